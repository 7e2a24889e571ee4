"""The loop, and what it needs. Names load on first use: torch is not imported before.

Importing anything from here makes Python bind the name `preftune.train` to this package, over the function of that
name that users call. So the package itself can be called, and is that function: see `_Callable`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preftune.train.loop import run as run
    from preftune.train.result import RunResult as RunResult

__all__ = ["RunResult", "run"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'preftune.train' has no attribute {name!r}")
    from preftune.train import loop

    return getattr(loop, name)


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`preftune.train(method, …)`, see preftune.api."""
        import preftune

        return preftune.__getattr__("train")(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable

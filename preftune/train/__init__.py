"""The loop, and what it needs. Names load on first use: torch is not imported before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preftune.train.loop import RunResult as RunResult
    from preftune.train.loop import run as run

__all__ = ["RunResult", "run"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'preftune.train' has no attribute {name!r}")
    from preftune.train import loop

    return getattr(loop, name)

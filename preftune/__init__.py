"""preftune: alignment for all.

Importing this package is cheap: torch and transformers load on the first use of a name that
needs them, so `preftune --help` and recipe errors stay well under a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preftune.api import train as train
    from preftune.config import Recipe as Recipe
    from preftune.errors import PreftuneError as PreftuneError
    from preftune.recipes import load_recipe as load_recipe

__version__ = "0.1.0"
__all__ = ["PreftuneError", "Recipe", "__version__", "load_recipe", "train"]

_HOMES = {
    "train": "preftune.api",
    "Recipe": "preftune.config",
    "load_recipe": "preftune.recipes",
    "PreftuneError": "preftune.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'preftune' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)

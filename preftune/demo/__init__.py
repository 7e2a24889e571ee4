"""Built-in tasks: a tiny base model made on the spot, tuned, and measured before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preftune.demo.grpo import run_demo as run_demo

__all__ = ["run_demo"]


def __getattr__(name: str) -> Any:
    if name != "run_demo":
        raise AttributeError(f"module 'preftune.demo' has no attribute {name!r}")
    from preftune.demo.grpo import run_demo

    return run_demo

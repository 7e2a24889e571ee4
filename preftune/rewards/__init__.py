"""Scores of completions: built-in rewards, rewards of the user's own, and where they run. Imports no torch.

Names load on first use, so that a worker process does not import pydantic with its first line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preftune.rewards.base import RewardSet as RewardSet
    from preftune.rewards.base import Scored as Scored
    from preftune.rewards.base import build_rewards as build_rewards
    from preftune.rewards.builtins import BUILTINS as BUILTINS
    from preftune.rewards.call import TrainerState as TrainerState

__all__ = ["BUILTINS", "RewardSet", "Scored", "TrainerState", "build_rewards"]

_HOMES = {
    "BUILTINS": "builtins",
    "RewardSet": "base",
    "Scored": "base",
    "TrainerState": "call",
    "build_rewards": "base",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'preftune.rewards' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"preftune.rewards.{_HOMES[name]}"), name)

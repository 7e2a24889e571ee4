"""What a reward model says of a data set: its scores, and how well they agree with what the data says.

Names load on first use, so that `preftune score --help` takes no time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preftune.scoring.rewardbench import RewardBench as RewardBench
    from preftune.scoring.run import Scores as Scores
    from preftune.scoring.run import score as score
    from preftune.scoring.settings import ScoreConfig as ScoreConfig
    from preftune.scoring.summary import ScoredRow as ScoredRow
    from preftune.scoring.summary import Summary as Summary
    from preftune.scoring.summary import summarize as summarize

__all__ = ["RewardBench", "ScoreConfig", "ScoredRow", "Scores", "Summary", "score", "summarize"]

_HOMES = {
    "RewardBench": "rewardbench",
    "ScoreConfig": "settings",
    "ScoredRow": "summary",
    "Scores": "run",
    "Summary": "summary",
    "score": "run",
    "summarize": "summary",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'preftune.scoring' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"preftune.scoring.{_HOMES[name]}"), name)

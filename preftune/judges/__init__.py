"""Judges: a language model that says which answer is better, how good one is, or how several rank.

Names load on first use, so that `preftune judge --help` takes no time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preftune.judges.agreement import Agreement as Agreement
    from preftune.judges.base import Backend as Backend
    from preftune.judges.base import JudgeError as JudgeError
    from preftune.judges.base import Question as Question
    from preftune.judges.base import Reply as Reply
    from preftune.judges.base import Request as Request
    from preftune.judges.base import Usage as Usage
    from preftune.judges.base import Verdict as Verdict
    from preftune.judges.base import Vote as Vote
    from preftune.judges.config import JudgeConfig as JudgeConfig
    from preftune.judges.evaluation import Evaluation as Evaluation
    from preftune.judges.evaluation import EvaluationConfig as EvaluationConfig
    from preftune.judges.evaluation import evaluate as evaluate
    from preftune.judges.judge import Judge as Judge

_HOMES = {
    "Agreement": "agreement",
    **dict.fromkeys(["Backend", "JudgeError", "Question", "Reply", "Request", "Usage", "Verdict", "Vote"], "base"),
    "Evaluation": "evaluation",
    "EvaluationConfig": "evaluation",
    "Judge": "judge",
    "JudgeConfig": "config",
    "evaluate": "evaluation",
}

__all__ = [
    "Agreement", "Backend", "Evaluation", "EvaluationConfig", "Judge", "JudgeConfig", "JudgeError", "Question", "Reply",
    "Request", "Usage", "Verdict", "Vote", "evaluate",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'preftune.judges' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"preftune.judges.{_HOMES[name]}"), name)

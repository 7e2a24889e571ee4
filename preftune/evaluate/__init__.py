"""`preftune evaluate`: several models on the same tasks, in one table.

    config    which models and tasks
    answers   every answer on disk before the next one is asked for, so that a broken command goes on
    models    a model in this process, or behind an endpoint
    table     shares, intervals, differences on the same rows
    page      the report
    run       `evaluate`, the function that the command calls

Names load on first use, so that `preftune evaluate --help` takes no time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preftune.evaluate.config import EvaluateConfig as EvaluateConfig
    from preftune.evaluate.config import EvaluatedModel as EvaluatedModel
    from preftune.evaluate.run import Evaluated as Evaluated
    from preftune.evaluate.run import evaluate as evaluate

__all__ = ["EvaluateConfig", "Evaluated", "EvaluatedModel", "evaluate"]

_HOMES = {"EvaluateConfig": "config", "Evaluated": "run", "EvaluatedModel": "config", "evaluate": "run"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'preftune.evaluate' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"preftune.evaluate.{_HOMES[name]}"), name)

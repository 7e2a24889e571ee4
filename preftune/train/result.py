"""What a run gives back, and `summary.json`, from which a finished run gives it back again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.intervals import Interval
from preftune.train.folder import write_json

FINISHED = "finished"
STOPPED = "stopped at step"
"""How the status of a run begins that ended early for a reason of its own, and is as complete."""

Intervals = Mapping[str, Mapping[str, Interval]]
"""Split → metric → interval."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run gives back.

    Attributes:
        folder: the run folder; `folder / "final"` is a standard Hugging Face model or adapter.
        steps: optimizer steps taken; fewer than asked for when the run stopped early.
        best_step: the step whose weights were kept, None without `eval.best`.
        before, after, difference: measurements, and after − before paired over the rows.
    """

    folder: Path
    steps: int
    best_step: int | None
    before: Intervals
    after: Intervals
    difference: Intervals

    @property
    def report(self) -> Path:
        return self.folder / "report.html"


def write_summary(result: RunResult, status: str, facts: Mapping[str, Any]) -> None:
    """Write summary.json. A run whose summary says that it ended is never gone on with, so this comes last."""
    record = {"status": status, "steps": result.steps, "best_step": result.best_step, **facts}
    for name in ("before", "after", "difference"):
        splits: Intervals = getattr(result, name)
        record[name] = {split: {k: v.to_json() for k, v in found.items()} for split, found in splits.items()}
    write_json(result.folder / "summary.json", record)


def finished_result(folder: Path) -> RunResult | None:
    """The result of a run that came to its end, None for any other."""
    path = folder / "summary.json"
    if not path.exists() or not (folder / "final").is_dir():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["status"] != FINISHED and not record["status"].startswith(STOPPED):
        return None
    before, after, change = (
        {split: {k: Interval.from_json(v) for k, v in found.items()} for split, found in record[name].items()}
        for name in ("before", "after", "difference")
    )
    return RunResult(folder, record["steps"], record["best_step"], before, after, change)

"""A pipeline's benchmarks in one table: the first model and the one after each stage, with differences to the first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from preftune.intervals import Interval, paired_difference
from preftune.report.read import Run
from preftune.report.words import NBSP, moved, number, signed, title

METRICS = ("followed/prompts", "choices/accuracy")
"""The metric that stands for a task; which one a split has tells the task."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A share, and its difference to the first model's on the same rows (None for the first)."""

    value: Interval
    difference: Interval | None = None

    @property
    def verdict(self) -> str:
        """better, worse, same; "" without a difference."""
        if self.difference is None:
            return ""
        if not moved(self.difference):
            return "same"
        return "better" if self.difference.value > 0 else "worse"

    @property
    def change(self) -> str:
        return "" if self.difference is None else f"{signed(self.difference.value * 100, '.1f')}{NBSP}points"


@dataclass(frozen=True, slots=True)
class Column:
    """A benchmark: its name, what is measured, and a cell for each model (None where it was not measured)."""

    name: str
    metric: str
    cells: tuple[Cell | None, ...]

    @property
    def title(self) -> str:
        return title(self.metric)

    @property
    def sentence(self) -> str:
        """What became of it, from the first model to the last."""
        known = [cell for cell in self.cells if cell is not None]
        first, last = known[0], known[-1]
        values = f"from {number(first.value.value, percent=True)} to {number(last.value.value, percent=True)}"
        if last.difference is None:
            return f"{self.name} was {number(first.value.value, percent=True)}."
        change = f"({last.change}, 95{NBSP}% interval {_span(last.difference)})"
        verb = {"better": "rose", "worse": "fell", "same": "did not change measurably:"}[last.verdict]
        return f"{self.name} {verb} {values} {change}."


@dataclass(frozen=True, slots=True)
class Benchmarks:
    """`models`: the first one, and one for each stage that was measured; `columns`: the benchmarks."""

    models: tuple[str, ...]
    columns: tuple[Column, ...]


def benchmarks(stages: Sequence[tuple[str, Run]]) -> Benchmarks | None:
    """The table of a pipeline's stages that began, in order; None where nothing of the kind was measured."""
    measured = [(name, run) for name, run in stages if _splits(run)]
    if not measured:
        return None
    names = dict.fromkeys(split for _, run in measured for split in _splits(run))
    columns = [_column(split, measured) for split in names]
    models = ("before training", *(f"after {name}" for name, _ in measured))
    return Benchmarks(models, tuple(column for column in columns if column is not None))


def is_benchmark(split: str, metric: str) -> bool:
    """Whether this is what a benchmark is about: its own metric, on rows that are no split of the data."""
    return split not in ("train", "validation", "test") and metric in METRICS


def _splits(run: Run) -> dict[str, str]:
    """Benchmark → its metric."""
    return {
        split: metric
        for split, metrics in {**run.before, **run.after}.items()
        for metric in METRICS
        if metric in metrics and is_benchmark(split, metric)
    }


def _column(split: str, stages: Sequence[tuple[str, Run]]) -> Column | None:
    first = next(run for _, run in stages if split in _splits(run))
    metric = _splits(first)[split]
    start = first.before.get(split, {}).get(metric)
    if start is None:
        return None
    rows = _rows(first, split, metric, 0)
    cells: list[Cell | None] = [Cell(start)]
    for _, run in stages:
        value = run.after.get(split, {}).get(metric)
        kept = (run.summary or {}).get("kept_step")
        after = _rows(run, split, metric, kept) if isinstance(kept, int) else None
        difference = None
        if rows and after and len(rows) == len(after):
            difference = paired_difference(rows, after)
        cells.append(None if value is None else Cell(value, difference))
    return Column(split, metric, tuple(cells))


def _rows(run: Run, split: str, metric: str, step: int) -> list[float] | None:
    """A metric's values row by row; None where they can't be read, or where it does not apply to all rows."""
    path = Path(run.folder) / "measurements" / f"{split}-{step}.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))["rows"][metric]
        return [float(value) for value in values]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _span(interval: Interval) -> str:
    return f"{interval.low * 100:.1f} to {interval.high * 100:.1f}".replace("-", "−")

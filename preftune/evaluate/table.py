"""The numbers: each model on each task, with intervals, and the differences to the first model on the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from preftune.config import BenchmarkConfig
from preftune.evaluate.answers import Answers
from preftune.evaluate.config import EvaluateConfig, EvaluatedModel
from preftune.evaluate.models import procedure
from preftune.intervals import Interval, is_binary, mean_interval, paired_difference
from preftune.tasks.benchmark import Outcome, by_name, main_metric, values_of
from preftune.tasks.rows import TaskRow


@dataclass(frozen=True, slots=True)
class Measured:
    """One model on one task.

    Attributes:
        by_letter: choices were asked for by letter, which is another task than comparing log-probs.
        metrics: every metric (docs/metrics.md) on the rows that have an answer.
        differences: the same, less the first model's, on the rows that both answered; empty for the first one.
        unanswered: rows without an answer, as (origin, why).
        kinds: constraint → (strict, loose) over its occurrences.
    """

    model: str
    task: str
    by_letter: bool
    metrics: Mapping[str, Interval]
    differences: Mapping[str, Interval]
    unanswered: tuple[tuple[str, str], ...]
    kinds: Mapping[str, tuple[Interval, Interval]]

    def to_json(self) -> dict[str, Any]:
        """For summary.json."""
        return {
            "by_letter": self.by_letter,
            "metrics": {name: value.to_json() for name, value in self.metrics.items()},
            "differences": {name: value.to_json() for name, value in self.differences.items()},
            "unanswered": len(self.unanswered),
            "constraints": {
                name: {"strict": strict.to_json(), "loose": loose.to_json()}
                for name, (strict, loose) in self.kinds.items()
            },
        }


@dataclass(frozen=True, slots=True)
class Column:
    """A task of the table: its rows, and every model on them in the models' order."""

    config: BenchmarkConfig
    rows: Sequence[TaskRow]
    cells: tuple[Measured, ...]
    outcomes: tuple[Sequence[Outcome | None], ...]

    @property
    def metric(self) -> str:
        """The metric that the table shows."""
        return main_metric(self.config)

    def ahead(self, model: int, other: int) -> Interval | None:
        """The shown metric of one model less another's, over the rows that both answered; None without such rows."""
        return _differences(self.rows, self.outcomes[other], self.outcomes[model]).get(self.metric)


def table(config: EvaluateConfig, tasks: Mapping[str, Sequence[TaskRow]], answers: Answers) -> list[Column]:
    """Every model on every task."""
    out = []
    for task in config.tasks:
        rows = tasks[task.title]
        outcomes = tuple(answers.outcomes(model.title, task.title) for model in config.models)
        cells = tuple(
            _measured(model, task, rows, found, outcomes[0] if number else None, answers)
            for number, (model, found) in enumerate(zip(config.models, outcomes, strict=True))
        )
        out.append(Column(task, rows, cells, outcomes))
    return out


def _measured(
    model: EvaluatedModel, task: BenchmarkConfig, rows: Sequence[TaskRow], found: Sequence[Outcome | None],
    first: Sequence[Outcome | None] | None, answers: Answers,
) -> Measured:  # fmt: skip
    known = [(row, one) for row, one in zip(rows, found, strict=True) if one is not None]
    metrics: dict[str, Interval] = {}
    kinds: dict[str, tuple[Interval, Interval]] = {}
    if known:
        some, outcomes = [row for row, _ in known], [one for _, one in known]
        metrics = {name: _interval(name, values) for name, values in _numbers(some, outcomes).items()}
        for name, (strict, loose) in by_name(some, outcomes).items():
            kinds[name] = (mean_interval(strict, binary=True), mean_interval(loose, binary=True))
    unanswered = tuple((rows[n].where, why) for n, why in answers.failures(model.title, task.title))
    by_letter = task.task == "choices" and procedure(model, task).by == "letter"
    differences = {} if first is None else _differences(rows, first, found)
    return Measured(model.title, task.title, by_letter, metrics, differences, unanswered, kinds)


def _differences(
    rows: Sequence[TaskRow], first: Sequence[Outcome | None], second: Sequence[Outcome | None]
) -> dict[str, Interval]:
    """Second − first over the rows that both answered."""
    both = [
        (row, a, b) for row, a, b in zip(rows, first, second, strict=True) if a is not None and b is not None
    ]  # fmt: skip
    if not both:
        return {}
    some = [row for row, _, _ in both]
    before = _numbers(some, [a for _, a, _ in both])
    after = _numbers(some, [b for _, _, b in both])
    out = {}
    for name in before.keys() & after.keys():
        if len(before[name]) == len(after[name]) == len(some):
            out[name] = paired_difference(before[name], after[name])
    return out


def _numbers(rows: Sequence[TaskRow], outcomes: Sequence[Outcome]) -> dict[str, list[float]]:
    """Metric → its values on the rows where it applies."""
    found = values_of(rows, outcomes)
    return {name: [value for value in values if value is not None] for name, values in found.items()}


def _interval(name: str, values: Sequence[float]) -> Interval:
    share = name.startswith("followed/") or name in ("choices/accuracy", "choices/accuracy_sum")
    found = mean_interval(values, binary=is_binary(values) and not name.startswith("length/mean"))
    if share and found.is_bounded:
        # With rows of several instructions, or ties, Student's t may leave what a share can be.
        found = replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))
    return found

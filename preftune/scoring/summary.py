"""How well scores agree with what the data says: accuracy on pairs, margins, the area under the ROC curve."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from preftune.intervals import Interval, auc_interval, mean_interval
from preftune.scoring.rewardbench import RewardBench, rewardbench, strangers

SHOWN = 30
"""Groups of one kind that are put into words; `Summary.to_json` has all."""


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """One row of the data with its scores. Lists have one item per completion, in the row's order.

    Attributes:
        where: origin, as `file:line`.
        prompt: equal for rows of one prompt.
        scores: the model's scores, normalised where that was asked for.
        raw: the model's scores as they are.
        lengths: tokens of each completion, its EOS included.
        given: what the data says of each completion, higher is better (see `Example.scores`); empty where it says
            nothing.
        sources: who wrote each completion; empty where the data does not say.
        subset: the row's `subset` column, None without one.
    """

    where: str
    prompt: int
    scores: tuple[float, ...]
    raw: tuple[float, ...]
    lengths: tuple[int, ...]
    given: tuple[float, ...] = ()
    sources: tuple[str, ...] = ()
    subset: str | None = None

    @property
    def pairs(self) -> Iterator[tuple[int, int]]:
        """(better, worse) by what the data says, of this row alone."""
        for i, better in enumerate(self.given):
            for j, worse in enumerate(self.given):
                if better > worse:
                    yield i, j


PairFilter: TypeAlias = Callable[[ScoredRow, int, int], bool]


@dataclass(frozen=True, slots=True)
class Summary:
    """Measures of one scored data set. Each `Interval` is a mean over prompts (or rows) with its 95 % interval.

    Attributes:
        rows, prompts, completions: how many were scored. skipped: rows that the model could not read whole.
        score: mean score of a completion, averaged within each prompt first.
        pairs: (better, worse) pairs within rows, by what the data says.
        accuracy: share of pairs in which the better completion scores higher (a tie counts ½), averaged within each
            prompt first, so n is prompts; None without pairs.
        margin: mean score of the better less that of the worse completion, likewise.
        auc: area under the ROC curve over all completions, where the data says 0 or 1 of each and is more than
            pairs of chosen and rejected. Prompts are the clusters of its interval.
        by_source: "A over B" → accuracy on pairs whose better completion was written by A and worse by B.
        by_length: "longer", "shorter", "equal" → accuracy on pairs whose better completion is longer than the worse,
            shorter, of equal length in tokens.
        by_subset: value of the `subset` column → accuracy; here n is rows.
        length_correlation: Pearson's correlation of score and length over all completions; within: after the row's
            means were taken off both. None where one of the two does not vary.
        rewardbench: RewardBench's sections, where every row's `subset` is one of its own.
    """

    rows: int
    prompts: int
    completions: int
    skipped: int
    score: Interval
    pairs: int
    accuracy: Interval | None
    margin: Interval | None
    auc: Interval | None
    by_source: Mapping[str, Interval]
    by_length: Mapping[str, Interval]
    by_subset: Mapping[str, Interval]
    length_correlation: float | None
    length_correlation_within: float | None
    rewardbench: RewardBench | None

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        out: dict[str, Any] = {}
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if isinstance(value, Interval | RewardBench):
                value = value.to_json()
            elif isinstance(value, Mapping):
                value = {key: inner.to_json() for key, inner in value.items()}
            out[name] = value
        return out

    def __str__(self) -> str:
        """The measures in words, one per line."""
        lines = [f"{self.rows} rows, {self.prompts} prompts, {self.completions} completions, {self.skipped} skipped"]
        lines.append(f"mean score: {_words(self.score)}")
        if self.accuracy is not None and self.margin is not None:
            lines.append(f"accuracy on {self.pairs} pairs: {_words(self.accuracy)}")
            lines.append(f"mean margin: {_words(self.margin)}")
            lines += [f"  better completion {name}: {_words(value)}" for name, value in self.by_length.items()]
            lines += _most("", self.by_source)
            lines += _most("subset ", self.by_subset)
        if self.auc is not None:
            lines.append(f"area under the ROC curve: {_words(self.auc)}")
        for text, value in (
            ("correlation of score and length", self.length_correlation),
            ("correlation of score and length within rows", self.length_correlation_within),
        ):
            if value is not None:
                lines.append(f"{text}: {value:+.3f}")
        if others := strangers(self.by_subset):
            lines.append(f"no RewardBench sections: it has no subset {', '.join(map(repr, others))}")
        if self.rewardbench is not None:
            lines += [f"RewardBench {name}: {_words(value)}" for name, value in self.rewardbench.sections.items()]
            overall = self.rewardbench.overall
            lines.append(f"RewardBench overall: {'needs all sections' if overall is None else _words(overall)}")
            if self.rewardbench.missing:
                lines.append(f"  subsets without rows: {', '.join(self.rewardbench.missing)}")
        return "\n".join(lines)


def summarize(rows: Sequence[ScoredRow], *, skipped: int = 0) -> Summary:
    """Measure scored rows against what the data says of them.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("there are no scored rows to measure")
    by_subset = _by_subset(rows)
    whole = all(row.subset is not None for row in rows)
    # a dict keeps the order of appearance
    authors = dict.fromkeys((row.sources[i], row.sources[j]) for row in rows if row.sources for i, j in row.pairs)
    by_source = {f"{a} over {b}": _accuracy(rows, _written_by(a, b)) for a, b in authors if a and b}
    lengths: dict[str, PairFilter] = {
        "longer": lambda row, i, j: row.lengths[i] > row.lengths[j],
        "shorter": lambda row, i, j: row.lengths[i] < row.lengths[j],
        "equal": lambda row, i, j: row.lengths[i] == row.lengths[j],
    }
    by_length = {name: _accuracy(rows, keep) for name, keep in lengths.items()}
    means = _by_prompt((row.prompt, _mean(row.scores)) for row in rows)
    margins = _by_prompt(
        (row.prompt, _mean([row.scores[i] - row.scores[j] for i, j in row.pairs])) for row in rows if any(row.pairs)
    )
    return Summary(
        rows=len(rows),
        prompts=len({row.prompt for row in rows}),
        completions=sum(len(row.scores) for row in rows),
        skipped=skipped,
        score=mean_interval(means, binary=False),
        pairs=sum(1 for row in rows for _ in row.pairs),
        accuracy=_accuracy(rows),
        margin=mean_interval(margins, binary=False) if margins else None,
        auc=_auc(rows),
        by_source={name: value for name, value in by_source.items() if value is not None},
        by_length={name: value for name, value in by_length.items() if value is not None},
        by_subset=by_subset,
        length_correlation=_correlation(
            [score for row in rows for score in row.scores], [length for row in rows for length in row.lengths]
        ),
        length_correlation_within=_correlation(
            [value for row in rows for value in _centred(row.scores)],
            [value for row in rows for value in _centred(row.lengths)],
        ),
        rewardbench=rewardbench(by_subset) if whole else None,
    )


def _written_by(better: str, worse: str) -> PairFilter:
    return lambda row, i, j: bool(row.sources) and (row.sources[i], row.sources[j]) == (better, worse)


def _accuracy(rows: Sequence[ScoredRow], keep: PairFilter = lambda row, i, j: True) -> Interval | None:
    """Accuracy on the pairs that `keep` keeps, averaged within each prompt first."""
    values = [(row.prompt, value) for row in rows if (value := _row_accuracy(row, keep)) is not None]
    return _share(_by_prompt(values)) if values else None


def _row_accuracy(row: ScoredRow, keep: PairFilter = lambda row, i, j: True) -> float | None:
    won = [_won(row.scores[i], row.scores[j]) for i, j in row.pairs if keep(row, i, j)]
    return _mean(won) if won else None


def _won(better: float, worse: float) -> float:
    return 0.5 if better == worse else float(better > worse)


def _by_subset(rows: Sequence[ScoredRow]) -> dict[str, Interval]:
    """Rows count here, not prompts, as benchmarks count."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if row.subset is not None and (value := _row_accuracy(row)) is not None:
            values.setdefault(row.subset, []).append(value)
    return {name: _share(some) for name, some in values.items()}


def _share(values: Sequence[float]) -> Interval:
    """Mean of values in [0, 1]; the ends of a t interval may lie outside and are cut."""
    found = mean_interval(values)
    return replace(found, low=max(0.0, found.low), high=min(1.0, found.high)) if found.is_bounded else found


def _by_prompt(values: Iterable[tuple[int, float]]) -> list[float]:
    """The mean of each prompt's values. Answers to one prompt depend on each other, so the prompt is the unit."""
    found: dict[int, list[float]] = {}
    for prompt, value in values:
        found.setdefault(prompt, []).append(value)
    return [_mean(some) for some in found.values()]


def _auc(rows: Sequence[ScoredRow]) -> Interval | None:
    """None unless all is labelled 0 or 1, both occur, and some row is more than a chosen completion and rejected
    ones: those were compared with each other, never with answers to other prompts."""
    labelled = [row for row in rows if row.given]
    given = [value for row in labelled for value in row.given]
    if set(given) != {0.0, 1.0} or len(labelled) < len(rows):
        return None
    if all(len(row.given) > 1 and row.given[0] == 1.0 and not any(row.given[1:]) for row in labelled):
        return None
    return auc_interval(
        [score for row in labelled for score in row.scores],
        [value == 1.0 for value in given],
        [row.prompt for row in labelled for _ in row.given],
    )


def _correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Pearson's; None with fewer than three points or where one side does not vary."""
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(a) < 3:
        return None
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt(float(a @ a) * float(b @ b))
    return max(-1.0, min(1.0, float(a @ b) / norm)) if norm > 1e-12 else None


def _centred(values: Sequence[float]) -> list[float]:
    if len(values) < 2:
        return []
    mean = _mean(values)
    return [value - mean for value in values]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _most(title: str, found: Mapping[str, Interval]) -> list[str]:
    """The groups with most rows, in words; a line says how many more there are."""
    shown = sorted(found.items(), key=lambda item: -item[1].n)[:SHOWN]
    lines = [f"  {title}{name}: {_words(value)}" for name, value in shown]
    return lines + ([f"  … and {len(found) - SHOWN} more in the summary"] if len(found) > SHOWN else [])


def _words(value: Interval) -> str:
    if not value.is_bounded:
        return f"{value.value:.3f} (n = {value.n}, too little spread for an interval)"
    return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}] (n = {value.n})"

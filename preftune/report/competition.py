"""What the runs of a competition measured: who wins, whether the winner is right, whether the form holds.

Every number is a `Measure`, made row by row from the values of the competition's rewards. They are read, in this order,
from `measurements/` (every held-out row), from the intervals in metrics.jsonl and summary.json, and from the answers in
samples.jsonl: there the rewards that the run did not measure are asked anew. The page says when a number is of the
last kind, as these are the first few rows of a split alone.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

from pydantic import ValidationError

from preftune.competition import Construct
from preftune.config import CompetitionConfig
from preftune.errors import UsageError
from preftune.intervals import Interval, is_binary, mean_interval, paired_difference
from preftune.report.competition_measures import WON, Measure, Need
from preftune.report.competition_values import Rewards
from preftune.report.notes import finite
from preftune.report.read import Run, Sample
from preftune.rewards.contest import read_contest

SPLITS = ("test", "validation", "train")
"""Held-out rows first. Of training only what samples.jsonl has."""

MOST_ROWS = 10**6
"""Rows of a measurement; a damaged file may claim any number."""
Values: TypeAlias = dict[Hashable, float]
"""A measure's values, by row."""


@dataclass(frozen=True, slots=True)
class Found:
    """A measured number.

    Attributes:
        values: what it is the mean of, by row; empty where only the mean is known.
        logged: the rows are those in samples.jsonl, the first few of a split.
    """

    interval: Interval
    values: Values = field(default_factory=dict)
    logged: bool = False


def construct_of(run: Run) -> Construct | None:
    """The contest that a run's recipe describes. One that can't be read is named in `run.problems`."""
    raw = run.recipe.get("competition")
    if raw is None:
        return None
    try:
        return Construct.of(CompetitionConfig.model_validate(raw))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in ("competition", *first["loc"]))
        run.problems.append(f"recipe.yaml, {where}: {first['msg']}; so no contest is shown")
    except UsageError as error:
        run.problems.append(f"recipe.yaml, {error}; so no contest is shown")
    return None


class Tally:
    """What a run measured on one split.

    Args:
        split: test or validation, or train for what is logged of training.
    """

    def __init__(self, run: Run, construct: Construct, rewards: Rewards, split: str) -> None:
        self.run, self.construct, self.rewards, self.split = run, construct, rewards, split
        self.samples: dict[int, list[Sample]] = {}
        for sample in run.samples:
            if sample.split == split:
                self.samples.setdefault(sample.step, []).append(sample)
        self._rows: dict[int, dict[str, list[float | None]] | None] = {}
        self._scores: dict[tuple[Need, int], list[float | None]] = {}

    @cached_property
    def steps(self) -> list[int]:
        """Steps at which anything is known, in order."""
        known = {*self.samples, *self._files}
        if self.split != "train":
            known |= {*self.run.evals.get(self.split, ())}
        return sorted(known)

    @property
    def ends(self) -> tuple[int | None, int | None]:
        """The steps before and after training: 0, and that of the kept weights, else the last one known."""
        if not self.steps:
            return None, None
        kept = (self.run.summary or {}).get("kept_step")
        last = kept if isinstance(kept, int) and kept in self.steps else self.steps[-1]
        if self.split == "train":  # the first step's answers are drawn before its update
            return self.steps[0], last if last != self.steps[0] else None
        return (0 if 0 in self.steps else None), (last if last != 0 or kept == 0 else None)

    def find(self, measure: Measure, step: int | None) -> Found | None:
        """A measure at a step; None where nothing is known of it."""
        if step is None:
            return None
        if values := self._by_rows(measure, step):
            return Found(_mean(values.values(), measure.share), values)
        if (told := self._by_intervals(measure, step)) is not None:
            return Found(told)
        values = self._by_samples(measure, step)
        return Found(_mean(values.values(), measure.share), values, logged=True) if values else None

    def change(self, measure: Measure, before: Found | None, after: Found | None) -> Interval | None:
        """After − before on the same rows; None where they are not known."""
        if before is None or after is None or before.logged != after.logged:
            return None
        both = [row for row in before.values if row in after.values]
        if both:
            return paired_difference([before.values[row] for row in both], [after.values[row] for row in both])
        if not measure.plain or self.split == "train":
            return None
        return self.run.difference.get(self.split, {}).get(self.rewards.metrics.get(measure.needs[0], ""))

    def value(self, sample: Sample, reward: str, persona: str = "") -> float | None:
        """What a reward says of one logged answer."""
        place = next(i for i, other in enumerate(self.samples[sample.step]) if other is sample)
        return self._scored((reward, persona), sample.step)[place]

    # --- where the numbers come from ---------------------------------------------------------------------------------

    def _by_rows(self, measure: Measure, step: int) -> Values:
        rows = self._read_rows(step)
        columns = {need: rows.get(self.rewards.metrics.get(need, "")) for need in measure.needs}
        known = {need: column for need, column in columns.items() if column is not None}
        if not known or len(known) < len(columns):
            return {}
        return _each(measure, known, range(min(len(column) for column in known.values())))

    def _by_samples(self, measure: Measure, step: int) -> Values:
        samples = self.samples.get(step, [])
        seen: Counter[tuple[str, str]] = Counter()
        keys: list[Hashable] = []
        for sample in samples:  # a training group has several answers to one question: each is a row of its own
            seen[sample.where, sample.prompt] += 1
            keys.append((sample.where, sample.prompt, seen[sample.where, sample.prompt]))
        if measure.text is not None:
            told = [measure.text(read_contest(sample.completion, self.construct)) for sample in samples]
            return {key: value for key, value in zip(keys, told, strict=True) if value is not None}
        return _each(measure, {need: self._scored(need, step) for need in measure.needs}, keys)

    def _by_intervals(self, measure: Measure, step: int) -> Interval | None:
        """The run's own interval of a metric; of wins, the counts that the shares of all contests stand for."""
        table = self._table(step)
        told = [table.get(self.rewards.metrics.get(need, "")) for need in measure.needs]
        if measure.plain:
            return told[0]
        found = [one for one in told if one is not None]
        if len(found) < len(told) or measure.of is None or {reward for reward, _ in measure.needs} != {WON}:
            return None
        if any(not 0 <= one.value <= 1 or not 0 < one.n <= MOST_ROWS for one in found):
            return None
        values: list[float] = []
        for winner, one in zip(measure.needs, found, strict=True):
            value = measure.of({need: float(need == winner) for need in measure.needs})
            values += [value] * round(one.value * one.n) if value is not None else []
        return _mean(values, share=True) if values else None

    def _table(self, step: int) -> Mapping[str, Interval]:
        if self.split == "train":
            return {}
        first, last = self.ends
        ends: Mapping[str, Interval] = {}
        if step == first:
            ends = self.run.before.get(self.split, {})
        elif step == last and self.run.is_complete:
            ends = self.run.after.get(self.split, {})
        return {**self.run.evals.get(self.split, {}).get(step, {}), **ends}

    @cached_property
    def _files(self) -> list[int]:
        """Steps with a file of rows."""
        folder = self.run.folder / "measurements"
        if self.split == "train" or not folder.is_dir():
            return []
        found = [re.fullmatch(rf"{self.split}-(\d+)\.json", path.name) for path in folder.iterdir()]
        return sorted(int(match[1]) for match in found if match)

    def _read_rows(self, step: int) -> dict[str, list[float | None]]:
        if step not in self._files:
            return {}
        if step not in self._rows:
            self._rows[step] = self._load(step)
        return self._rows[step] or {}

    def _load(self, step: int) -> dict[str, list[float | None]] | None:
        name = f"measurements/{self.split}-{step}.json"
        try:
            raw = json.loads((self.run.folder / name).read_text(encoding="utf-8"))["rows"]
            return {str(metric): [finite(value) for value in values] for metric, values in raw.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self.run.problems.append(f"{name} can't be read: {error!r}")
            return None

    def _scored(self, need: Need, step: int) -> list[float | None]:
        if (need, step) not in self._scores:
            self._scores[need, step] = self.rewards.score(need, self.samples.get(step, []))
        return self._scores[need, step]


def _each(measure: Measure, columns: Mapping[Need, Sequence[float | None]], keys: Iterable[Hashable]) -> Values:
    """The measure row by row."""
    if measure.of is None:
        return {}
    out: Values = {}
    for i, key in enumerate(keys):
        row = {need: column[i] for need, column in columns.items()}
        value = measure.of(row)
        if value is not None:
            out[key] = value
    return out


def _mean(values: Iterable[float], share: bool) -> Interval:
    rows = list(values)
    return mean_interval(rows, binary=share and is_binary(rows))


class Numbers:
    """A run of a competition.

    Attributes:
        table: the rows that the page speaks of: known before and after training; test before validation before train.
        curve: the rows that curves are drawn of: the split measured most often; training only where there is no other.
    """

    def __init__(self, run: Run, construct: Construct) -> None:
        self.run, self.construct = run, construct
        self.rewards = Rewards(run, construct)
        self._tallies = {split: Tally(run, construct, self.rewards, split) for split in SPLITS}
        self.table = min(self._tallies.values(), key=lambda one: (None in one.ends, one.ends == (None, None)))
        held_out = max((self.at("validation"), self.at("test")), key=lambda one: len(one.steps))
        self.curve = held_out if held_out.steps else self.at("train")

    def at(self, split: str) -> Tally:
        """What is known of one of SPLITS."""
        return self._tallies[split]

    @property
    def names(self) -> tuple[str, ...]:
        return self.construct.names

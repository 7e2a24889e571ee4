"""What a reward model makes of an opening: its scores with and without it, on the same pairs.

For pairs of which one answer begins with the opening, two changes are scored, everything else being equal:

    taken off    the answer that has it loses it
    put on       the answer that lacks it gets it
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import pstdev
from typing import TYPE_CHECKING, Any

from preftune.curation.debias.evidence import Mark, Side
from preftune.curation.debias.openings import Stripper, prepend
from preftune.curation.debias.predict import share_interval
from preftune.curation.debias.table import answer_text
from preftune.data.content import as_turns
from preftune.intervals import Interval, mean_interval
from preftune.records import Content, Example, Group

if TYPE_CHECKING:
    from collections.abc import Callable

    from preftune.rewards.learned import RewardReader

CHUNK = 32
"""Pairs of one call of the reward model."""


@dataclass(frozen=True, slots=True)
class Case:
    """A pair of which one answer begins with an opening. `has`: which one."""

    example: Example
    better: int
    worse: int
    has: Side


class Sample:
    """Up to `most` cases of each opening, drawn evenly from all (Vitter's reservoir), whatever their number."""

    def __init__(self, openings: Sequence[str], *, most: int, seed: int, fold: bool) -> None:
        self.cases: dict[str, list[Case]] = {opening: [] for opening in openings}
        self._strippers = {opening: Stripper([opening], fold=fold) for opening in openings}
        self._seen = dict.fromkeys(openings, 0)
        self._most, self._rng = most, random.Random(f"cases/{seed}")

    def add(self, example: Example) -> None:
        """A row: its best and its worst answer are looked at."""
        scores = example.scores
        if not scores or min(scores) == max(scores):
            return
        better, worse = scores.index(max(scores)), scores.index(min(scores))
        texts = [answer_text(example.completions[place]) for place in (better, worse)]
        for opening, stripper in self._strippers.items():
            there = [stripper.match(text.lstrip()) is not None for text in texts]
            if there[0] == there[1] or not stripper(texts[there[1]]).openings:
                continue
            self._seen[opening] += 1
            case = Case(example, better, worse, "better" if there[0] else "worse")
            cases = self.cases[opening]
            if len(cases) < self._most:
                cases.append(case)
            elif (place := self._rng.randrange(self._seen[opening])) < self._most:
                cases[place] = case


@dataclass(frozen=True, slots=True)
class Changed:
    """What one change does to scores, over pairs.

    Attributes:
        shift: mean of the changed answer's new score less its old one.
        flips: share of pairs whose order changes.
        before, after: share of pairs in the right order; a tie counts ½.
    """

    shift: Interval
    flips: Interval
    before: float
    after: float

    def to_json(self) -> dict[str, Any]:
        shares = {"before": self.before, "after": self.after}
        return {"shift": self.shift.to_json(), "flips": self.flips.to_json(), **shares}


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """An opening's part in a reward model's decisions.

    Attributes:
        pairs: that were scored. skipped: that the model could not read whole.
        spread: standard deviation of the scores of all answers that were scored, as they are.
        off, on: the opening taken off, and put on the other answer.
        uses: the scores depend on the opening the way it marks its side.
    """

    pairs: int
    skipped: int
    spread: float
    off: Changed
    on: Changed
    uses: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "pairs": self.pairs, "skipped": self.skipped, "spread": self.spread, "off": self.off.to_json(),
            "on": self.on.to_json(), "uses": self.uses,
        }  # fmt: skip


@dataclass(slots=True)
class _Scored:
    """Scores of the cases of one opening: of the answer that has it and of the other, as they are and changed."""

    has: list[Side] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    other: list[float] = field(default_factory=list)
    off: list[float] = field(default_factory=list)
    on: list[float] = field(default_factory=list)
    skipped: int = 0


def counterfactuals(
    reader: RewardReader, sample: Sample, marks: Sequence[Mark], *, min_shift: float, fold: bool,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Counterfactual]:  # fmt: skip
    """Score the sample's cases. Openings without any case are left out.

    Args:
        min_shift: standard deviations of scores that taking an opening off must move them, for it to count as used.
    """
    total, done = sum(map(len, sample.cases.values())), 0
    scored: dict[str, _Scored] = {}
    for opening, cases in sample.cases.items():
        stripper = Stripper([opening], fold=fold)
        scored[opening] = _Scored()
        for start in range(0, len(cases), CHUNK):
            _score(reader, cases[start : start + CHUNK], opening, stripper, scored[opening])
            done += len(cases[start : start + CHUNK])
            tick(done, total)
    spread = pstdev([s for one in scored.values() for s in (*one.own, *one.other)] or [0.0])
    sides = {mark.opening: mark.side for mark in marks}
    return {opening: _found(one, sides[opening], spread, min_shift) for opening, one in scored.items() if one.own}


def changed_first(content: Content, text: str) -> Content:
    """A completion whose first turn by the assistant says something else."""
    if isinstance(content, str):
        return text
    first, *others = as_turns(content)
    return (replace(first, content=text), *others)


def _score(reader: RewardReader, cases: Sequence[Case], opening: str, stripper: Stripper, into: _Scored) -> None:
    groups: list[Group] = []
    kept: list[Case] = []
    for case in cases:
        places = (case.better, case.worse) if case.has == "better" else (case.worse, case.better)
        own, other = (case.example.completions[place] for place in places)
        variants = (
            own, other, changed_first(own, stripper(answer_text(own)).text),
            changed_first(other, prepend(opening, answer_text(other))),
        )  # fmt: skip
        group = reader.group(Example(case.example.prompt, variants, {}, case.example.where))
        if any(reader.unreadable(group)):
            into.skipped += 1
            continue
        groups.append(group)
        kept.append(case)
    for case, raw in zip(kept, reader.rate(groups) if groups else [], strict=True):
        for values, score in zip((into.own, into.other, into.off, into.on), raw, strict=True):
            values.append(reader.normalized(score))
        into.has.append(case.has)


def _found(one: _Scored, side: Side, spread: float, min_shift: float) -> Counterfactual:
    off = _changed(one, one.off, one.other, [b - a for a, b in zip(one.own, one.off, strict=True)])
    on = _changed(one, one.own, one.on, [b - a for a, b in zip(one.other, one.on, strict=True)])
    falls = off.shift.high < 0 if side == "better" else off.shift.low > 0
    uses = off.shift.is_bounded and falls and abs(off.shift.value) >= min_shift * spread
    return Counterfactual(len(one.own), one.skipped, spread, off, on, uses)


def _changed(one: _Scored, own: Sequence[float], other: Sequence[float], shifts: Sequence[float]) -> Changed:
    """`own`, `other`: scores after the change of the answer that has the opening, and of the one that lacks it."""
    before = [_right(a, b, has) for a, b, has in zip(one.own, one.other, one.has, strict=True)]
    after = [_right(a, b, has) for a, b, has in zip(own, other, one.has, strict=True)]
    flips = share_interval([float(a != b) for a, b in zip(before, after, strict=True)])
    n = len(before)
    return Changed(mean_interval(shifts, binary=False), flips, sum(before) / n, sum(after) / n)


def _right(own: float, other: float, has: Side) -> float:
    if own == other:
        return 0.5
    return float((own > other) == (has == "better"))

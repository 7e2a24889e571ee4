"""The part of a report on preferences: what was compared, where the model is right, and which pairs to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from preftune.intervals import Interval
from preftune.methods import METHODS
from preftune.report import preference_charts, preference_words, words
from preftune.report.answers import Answer, Measured, Place, area, compares, is_desirable, is_untouched
from preftune.report.preferences import Cut, LengthRule, Pairs, calibration, cuts, find_pairs, length_rule, most
from preftune.report.read import Run

WRONG = 4
IMPROVED = 3
FOLD = 600
"""Characters of a text from which on it is folded."""
LONGEST = 20_000


@dataclass(frozen=True, slots=True)
class Side:
    """One completion on the page."""

    heading: str
    text: str
    chips: tuple[str, ...]

    @property
    def is_long(self) -> bool:
        return len(self.text) > FOLD


@dataclass(frozen=True, slots=True)
class Shown:
    """A prompt with its two completions, or with the one that has a label."""

    where: str
    prompt: str
    note: str
    sides: tuple[Side, ...]

    @property
    def is_long(self) -> bool:
        return len(self.prompt) > FOLD


@dataclass(frozen=True, slots=True)
class Area:
    """AUC of one number over desirable and undesirable completions."""

    name: str
    before: Interval | None
    after: Interval | None


@dataclass(slots=True)
class Section:
    """What the template shows.

    Attributes:
        collects: the run pairs the policy's own answers.
        start: before training all rewards were 0 by construction, so it has no column.
    """

    facts: list[str]
    collects: bool = False
    split: str = ""
    step: str = ""
    start: bool = False
    prompts: int = 0
    pairs: int = 0
    cuts: list[Cut] = field(default_factory=list)
    areas: list[Area] = field(default_factory=list)
    length: str = ""
    charts: list[dict[str, Any]] = field(default_factory=list)
    wrong: list[Shown] = field(default_factory=list)
    improved: list[Shown] = field(default_factory=list)


def section(run: Run) -> Section | None:
    """The section of a run that compares completions; None for other methods."""
    measured = run.answers
    if measured is None:
        if compares(run) is None:
            return None
        return Section(preference_words.facts(run), collects=METHODS[run.method].completions == "collected")
    pairs = find_pairs(run, measured)
    known = measured.after or measured.before
    out = Section(
        preference_words.facts(run),
        split=measured.split,
        step=f"step {measured.after_step}" if measured.after else "before training",
        start=is_untouched(run),
        prompts=len({group for group, _ in known}),
        pairs=len(pairs.places),
    )
    out.charts += [c for c in (preference_charts.reward_histogram(run, measured, after=True),) if c]
    if not (out.start and measured.after):
        out.charts += [c for c in (preference_charts.reward_histogram(run, measured, after=False),) if c]
    if compares(run) == "labels":
        _labels(run, measured, out)
    elif pairs.places:
        _pairs(run, measured, pairs, out)
    for index, chart in enumerate(out.charts):
        chart["id"] = f"figure-{index}"
    return out


def _pairs(run: Run, measured: Measured, pairs: Pairs, out: Section) -> None:
    out.cuts = cuts(pairs)
    out.length = _length_words(length_rule(pairs))
    both = bool(measured.before and measured.after) and not out.start
    out.charts.append(preference_charts.margin_histogram(run, pairs, both))
    out.charts.append(preference_charts.length_dots(run, pairs))
    found = calibration(run, pairs)
    if found is not None:
        out.charts.append(preference_charts.calibration_curve(found))
    now_P = pairs.now_P
    wrong = most(-now_P, pairs, WRONG, lambda i: bool(now_P[i] < 0))
    out.wrong = [_shown_pair(run, measured, pairs, i) for i in wrong]
    gain_P = pairs.after_P - pairs.before_P
    out.improved = [
        _shown_pair(run, measured, pairs, i) for i in most(gain_P, pairs, IMPROVED, lambda i: gain_P[i] > 0)
    ]


def _labels(run: Run, measured: Measured, out: Section) -> None:
    out.charts += [c for c in (preference_charts.label_dots(run, measured),) if c]
    for name, value in (("the implicit reward", _reward), ("length alone, longer is better", _length)):
        before = None if out.start or not measured.before else area(run, measured.before, value)
        after = area(run, measured.after or measured.before, value)
        if after is not None:
            out.areas.append(Area(name, before, after))
    known, signs = measured.after or measured.before, {}
    for place, answer in known.items():
        signs[place] = 1.0 if is_desirable(run, answer) else -1.0
    wrong = sorted(known, key=lambda place: signs[place] * known[place].reward)
    wrong = _one_per_prompt([p for p in wrong if signs[p] * known[p].reward < 0])
    out.wrong = [_shown_label(run, measured, p) for p in wrong[:WRONG]]
    both = [place for place in measured.after if place in measured.before]
    gains = {p: signs[p] * (measured.after[p].reward - measured.before[p].reward) for p in both}
    best = _one_per_prompt([p for p in sorted(both, key=lambda place: -gains[place]) if gains[p] > 0])
    out.improved = [_shown_label(run, measured, p) for p in best[:IMPROVED]]


def _one_per_prompt(places: Sequence[Place]) -> list[Place]:
    """The first of each group, in order."""
    first: dict[int, Place] = {}
    for place in places:
        first.setdefault(place[0], place)
    return list(first.values())


def _reward(answer: Answer) -> float:
    return answer.reward


def _length(answer: Answer) -> float:
    return float(answer.length)


def _length_words(found: LengthRule | None) -> str:
    """What length alone would have got right, and whether the model beats it."""
    if found is None:
        return ""
    nbsp = words.NBSP
    bounds = f" (95{nbsp}% interval {words.span(found.longer, percent=True)})" if found.longer.is_bounded else ""
    value = words.number(found.longer.value, percent=True)
    said = f"Length alone: “the longer one is better” is right in {value}{bounds}."
    moved = words.moved(found.gain)
    change = f"{words.signed(found.gain.value * 100, '.1f')}{nbsp}points"
    if found.gain.is_bounded:
        change += f", 95{nbsp}% interval {words.span(found.gain, percent=True)}"
    rule = f"“{found.rule} one is better”"
    if moved and found.gain.value > 0:
        return f"{said} The model does better than {rule} ({change})."
    if moved:
        return f"{said} The model does worse than {rule} ({change})."
    return f"{said} These pairs do not show that the model does better than {rule} ({change})."


def _shown_pair(run: Run, measured: Measured, pairs: Pairs, index: int) -> Shown:
    chosen, rejected = pairs.places[index]
    note = _change("margin", pairs.before_P[index], pairs.after_P[index])
    margin = measured.texts[chosen].margin if chosen in measured.texts else None
    if margin is not None:
        note += f" · the row's own margin {words.number(margin)}"
    good, bad = preference_words.sides(run)
    both = (_side(measured, chosen, good.capitalize()), _side(measured, rejected, bad.capitalize()))
    return Shown(_where(measured, chosen), _prompt(measured, chosen), note, both)


def _shown_label(run: Run, measured: Measured, place: Place) -> Shown:
    answer = (measured.after or measured.before)[place]
    name = preference_words.sides(run)[0 if is_desirable(run, answer) else 1]
    return Shown(
        _where(measured, place),
        _prompt(measured, place),
        f"marked {name}",
        (_side(measured, place, name.capitalize()),),
    )


def _side(measured: Measured, place: Place, heading: str) -> Side:
    before, after = measured.before.get(place), measured.after.get(place)
    answer = after or before
    assert answer is not None  # pairs are made from what was measured
    nan = float("nan")
    chips = [_change("reward", before.reward if before else nan, after.reward if after else nan)]
    logprobs = [a.logprob if a is not None and a.logprob is not None else nan for a in (before, after)]
    chips += [_change("log-prob", *logprobs)] if np.isfinite(logprobs).any() else []
    chips += [f"{answer.length} tokens", *([answer.source] if answer.source and answer.source != "data" else [])]
    text = measured.texts.get(place)
    return Side(heading, "[no text was kept]" if text is None else _cut(text.text), tuple(chips))


def _change(name: str, before: float, after: float) -> str:
    numbers = [words.number(float(v), digits=3) for v in (before, after) if np.isfinite(v)]
    return f"{name} {' → '.join(numbers)}"


def _where(measured: Measured, place: Place) -> str:
    answer = measured.after.get(place) or measured.before[place]
    return answer.where


def _prompt(measured: Measured, place: Place) -> str:
    text = measured.texts.get(place)
    return "" if text is None else _cut(text.prompt)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}\n[{len(text) - LONGEST:,} more characters]"

"""Curves of a competition: over the steps of a run, or over a pipeline's stages with a border where each begins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from preftune.report.competition import Found, Numbers
from preftune.report.competition_measures import WON, Measure, contest_measures, persona_measures
from preftune.report.curves import downsample, interval_series, line_series, plain_chart, smoothed, smoothing_width
from preftune.report.words import NBSP

Stage: TypeAlias = tuple[str, int, Numbers]
"""Name, steps before it in the pipeline, and numbers."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A chart: a curve for each measure, by the name in its legend."""

    title: str
    measures: Mapping[str, Measure]
    note: str
    level: float | None = None


def _plans(names: Sequence[str]) -> list[Plan]:
    contest, persona = contest_measures(), persona_measures(names)
    chance = 1 / len(names)
    return [
        Plan(
            "Who wins", persona["won"],
            f"Share of wins among contests that name a winner. Dotted: chance, 1/{len(names)}.", chance,
        ),
        Plan(
            "Is the winner right?",
            {"Winner's own conclusion": contest["right"], "Final answer": contest["answer"]},
            "The conclusion is read from the winner's own text.",
        ),
        Plan(
            "Form",
            {
                "No fault at all": contest["strict"],
                "A winner is named": contest["named"],
                "… by its name alone": contest["exact"],
            },
            "Share of contests.",
        ),
        Plan("Copies", {"copied": contest["copied"]}, "Share of contests in which a persona copies an earlier one."),
        Plan("The winner corrects itself", {"corrects": contest["reflective"]}, "Share of contests."),
        Plan("Self-reflection", persona["reflection"], "0 to 1, by words of checking, doubt and correction."),
        Plan("Voice", persona["voice"], "0 to 1: how much a persona speaks as itself."),
        Plan("Originality", persona["originality"], "Negative: copied from an earlier persona."),
        Plan("Length reward", persona["length"], "1 at the best length."),
        Plan("Words of each persona", persona["words"], "Words and figures, mean."),
    ]  # fmt: skip


def charts(stages: Sequence[Stage], marks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All charts that there are numbers for. `marks`: where stages begin; empty for a single run."""
    names = stages[-1][2].names
    out = [chart for plan in _plans(names) if (chart := _chart(plan, stages, marks))]
    for index, chart in enumerate(out):
        chart["id"] = f"contest-{index}"
    if out:
        out[0]["wide"] = True
    return out


def drawn_metrics(stages: Sequence[Stage]) -> frozenset[str]:
    """Metrics of rewards that these charts draw."""
    out = set()
    for *_, numbers in stages:
        for plan in _plans(numbers.names):
            for measure in plan.measures.values():
                if measure.plain or _is_won(measure):
                    out |= {numbers.rewards.metrics[need] for need in measure.needs if need in numbers.rewards.metrics}
    return frozenset(out)


def _is_won(measure: Measure) -> bool:
    return bool(measure.needs) and {reward for reward, _ in measure.needs} == {WON}


def _chart(plan: Plan, stages: Sequence[Stage], marks: list[dict[str, Any]]) -> dict[str, Any] | None:
    series: list[dict[str, Any]] = []
    measured: dict[str, list[Found]] = {}
    lengths: list[int] = []
    for _, offset, numbers in stages:
        for color, (name, measure) in enumerate(plan.measures.items()):
            points = _points(numbers, measure)
            line = _training(numbers, measure)
            if line and all(found.logged for _, found in points):  # the whole batch tells more than the logged few
                points = []
            if line:
                lengths.append(len(line))
                drawn = downsample([(step + offset, value) for step, value in smoothed(line)])
                series.append(line_series(name, drawn, "thin" if points else "line", color))
            if points:
                measured.setdefault(numbers.curve.split, []).extend(found for _, found in points)
                placed = [(step + offset, found.interval) for step, found in points]
                series.append(interval_series(name, placed, color))
    if not series:
        return None
    _name_once(series, len(plan.measures) > 1)
    percent = all(measure.share for measure in plan.measures.values())
    is_faint = any(one["style"] == "thin" for one in series)
    note = f"{plan.note} {_note(measured, lengths, is_faint)}"
    best = stages[0][2].run.best_step if not marks else None
    return plain_chart(plan.title, note, "points", series, percent=percent, best=best, marks=marks, level=plan.level)


def _name_once(series: Sequence[dict[str, Any]], several: bool) -> None:
    """A legend names each curve once, not once a stage; the only measure of a chart needs no legend."""
    seen: set[str] = set()
    for one in series:
        if one["style"] != "thin":
            one["unnamed"] = not several or one["name"] in seen
            seen.add(one["name"])


def _note(measured: Mapping[str, Sequence[Found]], lengths: Sequence[int], is_faint: bool) -> str:
    parts = []
    for split, found in measured.items():
        rows = max(one.interval.n for one in found)
        if split == "train":
            parts.append(f"Of up to {rows:,} answers logged at a step of training, with 95{NBSP}% intervals.")
        elif any(one.logged for one in found):
            parts.append(
                f"Of the first {rows:,} {split} rows, whose answers are logged, with 95{NBSP}% intervals: no reward of "
                "the run measures it."
            )
        else:
            parts.append(f"On up to {rows:,} {split} rows, with 95{NBSP}% intervals.")
    if lengths:
        width = smoothing_width(max(lengths))
        mean = f", mean of {width} steps" if width > 1 else ""
        parts.append(f"Thin: training batches{mean}." if is_faint else f"Of training batches{mean}.")
    return " ".join(parts)


def _points(numbers: Numbers, measure: Measure) -> list[tuple[int, Found]]:
    tally = numbers.curve
    found = [(step, tally.find(measure, step)) for step in tally.steps]
    return [(step, one) for step, one in found if one is not None and math.isfinite(one.interval.value)]


def _training(numbers: Numbers, measure: Measure) -> list[tuple[int, float]]:
    """The measure's curve over training batches, where a logged metric is its mean; of wins, the metrics' shares."""
    train = numbers.run.train
    lines = [dict(train.get(numbers.rewards.metrics.get(need, ""), ())) for need in measure.needs]
    if not lines or not all(lines):
        return []
    if measure.plain:
        return sorted(lines[0].items())
    if not _is_won(measure) or measure.of is None:
        return []
    out = []
    for step in sorted(set.intersection(*(set(line) for line in lines))):
        shares = [line[step] for line in lines]
        whole = math.fsum(shares)
        mine = [measure.of({need: float(need == winner) for need in measure.needs}) for winner in measure.needs]
        won = math.fsum(share * (value or 0.0) for share, value in zip(shares, mine, strict=True))
        out.append((step, won / whole if whole > 0 else math.nan))
    return out

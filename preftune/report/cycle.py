"""The part of a pipeline's report on judging both ways: answering and judging in turns, and what became of both.

A pipeline has this part when its stages measure verdicts on contests (the reward `judge-pick`) and right answers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from preftune.intervals import Interval
from preftune.report import preference_words, words
from preftune.report.curves import interval_series, plain_chart
from preftune.report.read import Run

PICK = "judge-pick"
JUDGES = (PICK, "judge")
MOST = 3
"""Measures of answers that are shown beside that of verdicts."""
BLIND = re.compile(r"(?:test|validation): .*?a blind verdict is right in (\d+)% of them")


@dataclass(slots=True)
class Line:
    """A metric over the stages. `points`: stages done → what was measured then; 0 is before the first."""

    metric: str
    title: str
    percent: bool
    points: dict[int, Interval]


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table: a stage with what was measured after it, or the beginning. `trained`: on what it learned."""

    stage: str
    method: str
    status: str
    cells: Sequence[Interval | None]
    trained: str


@dataclass(slots=True)
class Section:
    """What the template shows."""

    lines: list[Line]
    rows: list[Row]
    sentences: list[str]
    charts: list[dict[str, Any]] = field(default_factory=list)


def section(stages: Sequence[tuple[str, Run]]) -> Section | None:
    """The part on the cycle, None where verdicts or answers were not measured. `stages`: those that began, in order."""
    runs = [run for _, run in stages]
    picks = list(dict.fromkeys(metric for run in runs for metric in _named(run, (PICK,))))
    verdicts = [line for metric in picks if (line := _line(runs, metric)).points]
    answers = [line for metric in _answers(runs) if (line := _line(runs, metric)).points]
    if not verdicts or not answers:
        return None
    lines = [*answers[:MOST], verdicts[0]]
    if verdicts[0].title == words.title(f"reward/{PICK}"):
        lines[-1].title = "Right verdicts"
    rows = list(_rows(stages, lines))
    part = Section(lines, rows, [_sentence(line) for line in lines])
    part.charts = [_chart(runs, lines)]
    return part


def _rewards(run: Run) -> Iterator[tuple[str, str]]:
    """Name and metric of each reward of the recipe."""
    listed = run.recipe.get("rewards")
    for reward in listed if isinstance(listed, list) else []:
        if isinstance(reward, dict) and isinstance(reward.get("name"), str):
            yield reward["name"], f"reward/{reward.get('label') or reward['name']}"


def _named(run: Run, names: Sequence[str]) -> list[str]:
    return [metric for name, metric in _rewards(run) if name in names]


def _answers(runs: Sequence[Run]) -> list[str]:
    """Metrics of answers: shares by rewards that are no judges."""
    found = dict.fromkeys(metric for run in runs for name, metric in _rewards(run) if name not in JUDGES)
    return [metric for metric in found if any(_is_share(run, metric) for run in runs)]


def _is_share(run: Run, metric: str) -> bool:
    known = [table[metric] for when in (run.before, run.after) for table in when.values() if metric in table]
    return bool(known) and words.is_share(run, metric, known)


def _line(runs: Sequence[Run], metric: str) -> Line:
    points: dict[int, Interval] = {}
    for done, run in enumerate(runs):
        # What a stage ended with, the next one begins with: whichever of them measured it.
        for at, when in ((done, run.before), (done + 1, run.after)):
            found = _measured(when, metric)
            if found is not None:
                points[at] = found
    share = all(_is_share(run, metric) for run in runs if _measured(run.after, metric) or _measured(run.before, metric))
    titles = [preference_words.title(run, metric) for run in runs]
    return Line(metric, titles[0] if titles else metric, share, points)


def _measured(when: Mapping[str, Mapping[str, Interval]], metric: str) -> Interval | None:
    """The metric on held-out rows, on those of the test before those of validation."""
    for split in sorted(when, key=lambda name: (name != "test", name)):
        if metric in when[split]:
            return when[split][metric]
    return None


def _rows(stages: Sequence[tuple[str, Run]], lines: Sequence[Line]) -> Iterator[Row]:
    if any(0 in line.points for line in lines):
        yield Row("", "", "", [line.points.get(0) for line in lines], "")
    for done, (name, run) in enumerate(stages, 1):
        yield Row(name, run.method, run.status, [line.points.get(done) for line in lines], _trained(run, lines))


def _trained(run: Run, lines: Sequence[Line]) -> str:
    """How right what was drawn is, and what of it was chosen."""
    said = []
    for line in lines:
        name = line.metric.removeprefix("reward/")
        drawn, kept = (_constant(run, f"collected/{place}/{name}") for place in ("reward", "kept"))
        if drawn is not None and kept is not None:
            all_of, chosen = (words.number(value, percent=line.percent) for value in (drawn, kept))
            said.append(f"{line.title.lower()}: {all_of} of all drawn, {chosen} of those chosen")
    return "; ".join(said)


def _constant(run: Run, metric: str) -> float | None:
    value = next((value for _, value in run.train.get(metric, ())), None)
    return value if value is not None and math.isfinite(value) else None


def _sentence(line: Line) -> str:
    first, last = min(line.points), max(line.points)
    start, end = line.points[first], line.points[last]
    when = "at first" if first == 0 else f"after stage {first}"
    rows = "contests" if line.metric.endswith(PICK) else "prompts"
    value = words.number(start.value, percent=line.percent)
    said = f"{line.title} on {end.n:,}{words.NBSP}held-out {rows}: {value} {when}"
    if last == first:
        return said + "."
    apart = start.is_bounded and end.is_bounded and (start.high < end.low or end.high < start.low)
    sure = "the intervals are apart" if apart else "the intervals overlap"
    return f"{said}, {words.number(end.value, percent=line.percent)} after stage {last} ({sure})."


def _chart(runs: Sequence[Run], lines: Sequence[Line]) -> dict[str, Any]:
    series = [interval_series(line.title, sorted(line.points.items()), color) for color, line in enumerate(lines)]
    blind = next((found for run in runs for note in run.all_notes if (found := BLIND.match(note))), None)
    note = f"After each stage, with 95{words.NBSP}% intervals; 0 is before the first."
    level = None
    if blind is not None:
        level = int(blind[1]) / 100
        note += f" The line is a blind verdict, {blind[1]}{words.NBSP}%."
    chart = plain_chart(
        "Answers and verdicts", note, "points", series, percent=all(line.percent for line in lines), wide=True,
        unit="stage", level=level,
    )  # fmt: skip
    return {**chart, "id": "cycle-0"}

"""The part of a report on a competition: who wins and whether rightly, the numbers before and after, and contests to
read. Of one run, or of all stages of a pipeline that hold the same contest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from preftune.intervals import Interval
from preftune.report import words
from preftune.report.competition import Found, Numbers, construct_of
from preftune.report.competition_charts import Stage, charts, drawn_metrics
from preftune.report.competition_examples import Example, examples
from preftune.report.competition_measures import Measure, contest_measures, persona_measures
from preftune.report.competition_words import how_drawn, sentences
from preftune.report.curves import borders
from preftune.report.read import Run

ROWS = {"test": "held-out rows", "validation": "validation rows", "train": "answers logged in training"}


@dataclass(frozen=True, slots=True)
class Cells:
    """A measure before training and after each stage; `change` and `verdict` where one run has both ends."""

    found: tuple[Found | None, ...]
    change: Interval | None = None
    verdict: str = ""

    @property
    def is_empty(self) -> bool:
        return not any(self.found)

    @property
    def last(self) -> Found | None:
        return next((one for one in reversed(self.found) if one is not None), None)


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table. `cells`: one entry, or of a persona's measure one for each persona."""

    title: str
    hint: str
    percent: bool
    cells: tuple[Cells, ...]


@dataclass(slots=True)
class Section:
    """What the template shows.

    Attributes:
        names: the personas.
        rows: what the numbers are of, in words.
        heads: the columns of the table: before training, and after each stage.
        contests: measures of the contest as a whole; `personas`: of each persona.
        chance: the share of wins by chance.
        logged: whether a number is of logged answers alone.
        system: the system prompt that the questions are shown without.
        metrics: metrics that are drawn here, so that they need no chart elsewhere.
        drawn: how answers were drawn, where it differs.
        left_out: stages that hold another contest.
    """

    names: tuple[str, ...]
    rows: str
    heads: list[str]
    sentences: list[str]
    contests: list[Row]
    personas: list[Row]
    chance: float
    logged: bool
    system: str
    is_single: bool
    examples: list[Example]
    is_training: bool
    drawn: str
    charts: list[dict[str, Any]] = field(default_factory=list)
    metrics: frozenset[str] = frozenset()
    left_out: list[str] = field(default_factory=list)


def section(run: Run) -> Section | None:
    """The section of a run whose recipe describes a competition; None for others."""
    construct = construct_of(run)
    if construct is None:
        return None
    return _section([("", 0, Numbers(run, construct))], [])


def joined_section(stages: Sequence[tuple[str, Run]]) -> Section | None:
    """The section of a pipeline: its stages that hold the last one's contest, in order; None where no stage holds one.

    Args:
        stages: name and run of those that began.
    """
    marks = borders(stages)
    placed: list[Stage] = []
    for (name, run), mark in zip(stages, marks, strict=True):
        construct = construct_of(run)
        if construct is not None:
            placed.append((name, int(mark["x"]), Numbers(run, construct)))
    if not placed:
        return None
    names = placed[-1][2].names
    same = [stage for stage in placed if stage[2].names == names]
    out = _section(same, marks)
    out.left_out = [name for name, _, numbers in placed if numbers.names != names]
    return out


def _section(stages: list[Stage], marks: list[dict[str, Any]]) -> Section:
    last = stages[-1][2]
    split = last.table.split
    # A stage that measured no contest (a warm-up on given answers, say) has no column.
    told = [stage for stage in stages if stage[2].at(split).steps] or stages[-1:]
    first, is_single = told[0][2], not marks
    ends = ("Before training", "After training")
    if not is_single:
        ends = (f"Before {told[0][0]}", f"After {told[-1][0]}")
    contests = [_row(told, [measure]) for measure in contest_measures().values()]
    personas = [_row(told, list(kind.values())) for kind in persona_measures(last.names).values()]
    rows = [row for row in (*contests, *personas) if not all(cells.is_empty for cells in row.cells)]
    return Section(
        names=last.names,
        rows=ROWS[split],
        heads=[ends[0], *([ends[1]] if is_single else [f"After {name}" for name, _, _ in told])],
        sentences=sentences(first, last),
        contests=[row for row in rows if row in contests],
        personas=[row for row in rows if row in personas],
        chance=1 / len(last.names),
        logged=any(found.logged for row in rows for cells in row.cells for found in cells.found if found),
        system=last.construct.system_prompt,
        is_single=is_single,
        examples=examples(first, last, ends),
        is_training=split == "train",
        drawn=how_drawn(last),
        charts=charts(stages, marks),
        metrics=drawn_metrics(stages),
    )


def _row(stages: Sequence[Stage], measures: Sequence[Measure]) -> Row:
    first = measures[0]
    return Row(first.title, first.hint, first.share, tuple(_cells(stages, measure) for measure in measures))


def _cells(stages: Sequence[Stage], measure: Measure) -> Cells:
    split = stages[-1][2].table.split
    tallies = [numbers.at(split) for _, _, numbers in stages]
    before = tallies[0].find(measure, tallies[0].ends[0])
    after = [tally.find(measure, tally.ends[1]) for tally in tallies]
    if len(tallies) > 1:
        return Cells((before, *after))
    change = tallies[0].change(measure, before, after[0])
    return Cells((before, *after), change, _verdict(measure, change))


def _verdict(measure: Measure, change: Interval | None) -> str:
    """better, worse, same, or unknown; "" for what is neither good nor bad."""
    if change is None or measure.good == 0:
        return ""
    known = words.moved(change)
    if known is None:
        return "unknown"
    return "same" if not known else "better" if change.value * measure.good > 0 else "worse"

"""The part of a report on GMPO: what the critic wrote about each answer and what became of it, whether its scores tell
right from wrong, and results by field and by pass over the data.

It reads the notes of samples.jsonl (`explanation`, `reward`, `truth`, `baseline`, `advantage`, `temperature`, `weight`,
`joint`) and the metrics `field/…` and `pass/…`. Any of them may be missing.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from preftune.intervals import Interval, auc_interval
from preftune.report import words
from preftune.report.curves import MAX_POINTS, downsample, plain_chart, rounded
from preftune.report.notes import Note, cut, finite, joint
from preftune.report.read import Run, Sample

GROUPS = 24
"""Groups with their answers on the page, evenly spread over the logged ones."""
OPEN = 3
"""Groups that are not folded: the first, the middle and the last."""
PHASES = 3
PASSES = 6
FIELD_CURVES = 8
METHOD = "gmpo"
NUMBERS = ("truth", "reward", "baseline", "advantage", "temperature", "weight")


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer with everything that is logged about it. `numbers`: one for each of NUMBERS, None where unknown."""

    text: Note
    explanation: Note | None
    together: Note | None
    numbers: tuple[float | None, ...]
    score: float | None

    @property
    def is_right(self) -> bool | None:
        truth = self.numbers[0]
        return None if truth is None else truth >= 0.5


@dataclass(frozen=True, slots=True)
class ShownGroup:
    """A question and its answers."""

    step: int
    where: str
    question: Note
    truth: str
    answers: tuple[Answer, ...]
    is_open: bool

    @property
    def summary(self) -> str:
        """What a folded group says of itself."""
        rewards = [a.numbers[1] for a in self.answers if a.numbers[1] is not None]
        spread = f" · rewards {words.number(min(rewards))} to {words.number(max(rewards))}" if rewards else ""
        start = " ".join(self.question.text.split())
        return f"Step {self.step} · {start[:90]}{'…' if len(start) > 90 else ''}{spread}"


@dataclass(frozen=True, slots=True)
class Phase:
    """The critic against the truth over a part of training. `area`: AUC of its scores, right over wrong answers."""

    name: str
    right: int
    wrong: int
    mean_right: float | None
    mean_wrong: float | None
    area: Interval | None


@dataclass(frozen=True, slots=True)
class FieldRow:
    """A field's mean truth and reward in each pass over the data."""

    name: str
    cells: tuple[tuple[float | None, float | None], ...]


@dataclass(slots=True)
class Section:
    """What the template shows. `has`: which of NUMBERS any shown answer has."""

    sentence: str = ""
    groups: list[ShownGroup] = field(default_factory=list)
    logged: int = 0
    phases: list[Phase] = field(default_factory=list)
    passes: list[int] = field(default_factory=list)
    fields: list[FieldRow] = field(default_factory=list)
    has_truth: bool = False
    charts: list[dict[str, Any]] = field(default_factory=list)


def section(run: Run) -> Section | None:
    """The section of a GMPO run; None for other methods."""
    if run.method != METHOD:
        return None
    groups = _groups(run)
    out = Section(logged=len(groups), phases=_phases(run, groups))
    spread = _spread(len(groups), GROUPS)
    opened = {spread[i] for i in _spread(len(spread), OPEN)}
    out.groups = [_shown(groups[i], i in opened) for i in spread]
    out.passes, out.fields = _by_field(run)
    out.has_truth = any(cell[0] is not None for row in out.fields for cell in row.cells)
    out.sentence = _sentence(out.phases)
    out.charts = [c for c in (_dots(groups), *_field_curves(run)) if c]
    for index, chart in enumerate(out.charts):
        chart["id"] = f"gmpo-{index}"
    return out


def _groups(run: Run) -> list[list[Sample]]:
    """Samples of training, by step and prompt, in the file's order."""
    found: dict[tuple[int, str, str], list[Sample]] = {}
    for sample in run.samples:
        if sample.split == "train":
            found.setdefault((sample.step, sample.where, sample.prompt), []).append(sample)
    return list(found.values())


def _spread(count: int, most: int) -> list[int]:
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def _shown(samples: Sequence[Sample], is_open: bool) -> ShownGroup:
    first = samples[0]
    answers = tuple(_answer(sample) for sample in samples)
    return ShownGroup(first.step, first.where, Note("Question", cut(first.prompt)), first.answer, answers, is_open)


def _answer(sample: Sample) -> Answer:
    notes = sample.notes
    said, both = notes.get("explanation"), notes.get("joint")
    return Answer(
        text=Note("Answer", cut(sample.completion)),
        explanation=Note("Critic", cut(said)) if isinstance(said, str) and said else None,
        together=Note("On all answers together", joint(both)) if isinstance(both, Mapping) else None,
        numbers=(_truth(sample), _reward(sample), *(finite(notes.get(name)) for name in NUMBERS[2:])),
        score=sample.score,
    )


def _truth(sample: Sample) -> float | None:
    found = finite(sample.notes.get("truth"))
    return finite(sample.breakdown.get("truth")) if found is None else found


def _reward(sample: Sample) -> float | None:
    found = finite(sample.notes.get("reward"))
    return finite(sample.score) if found is None else found


# --- the critic against the truth ---------------------------------------------------------------------------------


def _known(groups: Sequence[Sequence[Sample]]) -> list[tuple[int, int, float, bool]]:
    """(group, step, reward, right) of each logged answer that has both a truth and a critic's score."""
    return [
        (g, sample.step, reward, truth >= 0.5)
        for g, group in enumerate(groups)
        for sample in group
        if (truth := _truth(sample)) is not None and (reward := _reward(sample)) is not None
    ]


def _phases(run: Run, groups: Sequence[Sequence[Sample]]) -> list[Phase]:
    """Thirds of training, by steps; fewer where only so many steps were logged."""
    known = _known(groups)
    steps = sorted({step for _, step, _, _ in known})
    count = min(PHASES, len(steps))
    out = []
    for index in range(count):
        part = steps[index * len(steps) // count : (index + 1) * len(steps) // count]
        rows = [row for row in known if part[0] <= row[1] <= part[-1]]
        right, wrong = ([reward for _, _, reward, is_right in rows if is_right is side] for side in (True, False))
        area = None
        if right and wrong:
            area = auc_interval([r[2] for r in rows], [r[3] for r in rows], [r[0] for r in rows])
        name = f"steps {part[0]} to {part[-1]}" if part[0] != part[-1] else f"step {part[0]}"
        means = [fmean(side) if side else None for side in (right, wrong)]
        out.append(Phase(name, len(right), len(wrong), means[0], means[1], area))
    return out


def _sentence(phases: Sequence[Phase]) -> str:
    judged = [phase for phase in phases if phase.area is not None]
    if not judged:
        return ""
    last = judged[-1]
    assert last.area is not None
    said = "Of a right and a wrong answer the critic gives the right one the higher score with probability "
    said += words.number(last.area.value, digits=2)
    if last.area.is_bounded:
        said += f" (95{words.NBSP}% interval {words.span(last.area)})"
    said += f", in {last.name}"
    first = judged[0]
    if first is not last and first.area is not None:
        said += f"; in {first.name} it was {words.number(first.area.value, digits=2)}"
    return said + ". Chance is 0.5."


def _dots(groups: Sequence[Sequence[Sample]]) -> dict[str, Any] | None:
    """The critic's score of every logged answer over training, right and wrong apart; a little noise parts the dots."""
    known = _known(groups)
    if not known:
        return None
    noise = random.Random(0)
    shown = [known[i] for i in _spread(len(known), 2 * MAX_POINTS)]
    width = max(1, shown[-1][1] - shown[0][1]) * 0.01
    series = []
    for color, (name, side) in ((2, ("right answers", True)), (1, ("wrong answers", False))):
        rows = [row for row in shown if row[3] is side]
        series.append(
            {
                "name": name, "x": [rounded(step + noise.uniform(-width, width)) for _, step, _, _ in rows],
                "y": [rounded(reward) for _, _, reward, _ in rows], "style": "line", "color": color,
            }
        )  # fmt: skip
    note = "One dot per logged answer. The further the two colours lie apart, the better the critic tells them apart."
    if len(shown) < len(known):
        note += f" {len(shown):,} of {len(known):,} answers are drawn."
    chart = plain_chart(
        "The critic's score against the truth", note, "dots", [s for s in series if s["x"]], unit="step"
    )
    return chart | {"xlabel": "step", "ylabel": "critic's score, 0 to 1", "wide": True, "unit": "step "}


# --- fields and passes ----------------------------------------------------------------------------------------------


def _by_field(run: Run) -> tuple[list[int], list[FieldRow]]:
    """Passes over the data, and a row for all answers and for each field: the means at each pass's last step."""
    ends: dict[int, int] = {}
    for step, number in run.train.get("pass/number", ()):
        if finite(number) is not None:
            ends[int(number)] = step
    passes = [sorted(ends)[i] for i in _spread(len(ends), PASSES)]
    names = dict.fromkeys(
        metric.removeprefix("pass/field/").rpartition("/")[0]
        for metric in run.train
        if metric.startswith("pass/field/")
    )
    rows = []
    for name, head in (("all answers", "pass/"), *((name, f"pass/field/{name}/") for name in names)):
        lines = [dict(run.train.get(f"{head}{kind}", ())) for kind in ("truth", "reward")]
        cells = []
        for number in passes:
            start = max((end for other, end in ends.items() if other < number), default=0)
            truth, reward = (_last(line, start, ends[number]) for line in lines)
            cells.append((truth, reward))
        if any(value is not None for cell in cells for value in cell):
            rows.append(FieldRow(name, tuple(cells)))
    return passes, rows


def _last(line: Mapping[int, float], start: int, end: int) -> float | None:
    """The value at the latest step after `start`, up to `end`."""
    steps = [step for step in line if start < step <= end and finite(line[step]) is not None]
    return line[max(steps)] if steps else None


def _field_curves(run: Run) -> list[dict[str, Any]]:
    out = []
    for kind, heading in (("truth", "Truth by field"), ("reward", "Reward by field")):
        names = [name for name in run.train if name.startswith("field/") and name.endswith(f"/{kind}")]
        if not 0 < len(names) <= FIELD_CURVES or max(len(run.train[name]) for name in names) < 2:
            continue
        series = [
            {
                "name": name.removeprefix("field/").removesuffix(f"/{kind}"), "x": [s for s, _ in points],
                "y": [rounded(v) for _, v in points], "style": "line", "color": color,
            }
            for color, name in enumerate(names)
            for points in [downsample(run.train[name])]
        ]  # fmt: skip
        out.append(plain_chart(heading, "Mean over the step's answers in the field.", "lines", series))
    return out

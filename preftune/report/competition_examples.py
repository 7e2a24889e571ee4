"""Contests to read: the same question before and after training, taken apart into persona, judge and answer.

Chosen by a rule that the page states, never by how good they look: the first rows of the file. All of it is untrusted
text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from preftune.competition import Contest, Fault
from preftune.report.competition import Numbers, Tally
from preftune.report.competition_measures import ANSWER, ORIGINALITY, PERSONA_CHIPS, RIGHT
from preftune.report.competition_values import question
from preftune.report.notes import LONGEST, Note, cut
from preftune.report.read import Sample
from preftune.report.words import number
from preftune.rewards.contest import read_contest

EXAMPLES = 6
FAULTS = 12
"""Faults of one contest that are told; the rest is counted."""
AROUND = 32
"""Characters shown before and behind a fault's place."""
WIDEST, LINE = 200, 80
"""Characters of a place that are marked in the raw text, and in the line about the fault."""


@dataclass(frozen=True, slots=True)
class Told:
    """A fault in words, with the text around its place; `place` is empty where there is none to show."""

    number: int
    message: str
    before: str = ""
    place: str = ""
    behind: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of the raw text. `numbers`: the faults that it holds, as "2, 3"; "" for none."""

    text: str
    numbers: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """One persona's part. `text` is None where it has none."""

    name: str
    text: Note | None
    wins: bool
    copies: bool
    chips: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Side:
    """One contest.

    Attributes:
        right: whether the final answer is right; None where nobody knows. `leaks`: the contest's tags stand in it.
        winner_right: the same of the winner's own conclusion.
        untold: faults past those in `faults`.
    """

    heading: str
    columns: tuple[Column, ...]
    judge: Note | None
    winner_right: bool | None
    answer: Note | None
    right: bool | None
    leaks: bool
    faults: tuple[Told, ...]
    untold: int
    pieces: tuple[Piece, ...]
    tokens: int | None
    is_cut: bool
    is_plain: bool

    @property
    def won_by(self) -> str:
        return next((column.name for column in self.columns if column.wins), "")

    @property
    def said(self) -> str:
        """What happened, for the line that an example is opened by."""
        who = f"{self.won_by} wins" if self.won_by else "no winner"
        answer = {True: "answer right", False: "answer wrong", None: ""}[self.right]
        answer = "tags in the answer" if self.leaks else answer if self.answer else "no answer"
        count = len(self.faults) + self.untold
        form = "form without a fault" if not count else f"{count} {'fault' if count == 1 else 'faults'} of form"
        return ", ".join(part for part in (who, answer, form) if part)


@dataclass(frozen=True, slots=True)
class Example:
    """A question and its contests, in the order of training."""

    where: str
    question: Note
    truth: str
    sides: tuple[Side, ...]

    @property
    def summary(self) -> str:
        start = " ".join(self.question.text.split())
        return start[:100] + ("…" if len(start) > 100 else "")


def examples(first: Numbers, last: Numbers, names: tuple[str, str]) -> list[Example]:
    """The first rows answered before and after training. A run that measured no rows has what its first and its last
    logged step wrote, which is about different questions.

    Args:
        first, last: the runs before and after; the same one, or a pipeline's first and last stage.
        names: what their contests are headed by.
    """
    tally = last.table
    other = tally if first is last else first.at(tally.split)
    start, end = other.ends[0], tally.ends[1]
    if tally.split == "train":
        names = ("First step logged", "Last step logged")
    sides = [(name, one, step) for name, one, step in zip(names, (other, tally), (start, end), strict=True)]
    known = [(name, one, step, _firsts(one, step)) for name, one, step in sides if step is not None]
    if tally.split == "train":  # each step has questions of its own
        return [
            _example([(name, one, step, sample)])
            for name, one, step, firsts in known
            for sample in list(firsts.values())[: EXAMPLES // 2]
        ]
    places = [place for place in (known[-1][3] if known else {}) if all(place in firsts for *_, firsts in known)]
    return [
        _example([(name, one, step, firsts[place]) for name, one, step, firsts in known]) for place in places[:EXAMPLES]
    ]


def _firsts(tally: Tally, step: int) -> dict[tuple[str, str], Sample]:
    """(where, question) → the first answer to it, in the file's order."""
    out: dict[tuple[str, str], Sample] = {}
    for sample in tally.samples.get(step, []):
        out.setdefault((sample.where, question(sample.prompt, tally.construct)), sample)
    return out


def _example(sides: Sequence[tuple[str, Tally, int, Sample]]) -> Example:
    _, tally, _, sample = sides[-1]
    text = cut(question(sample.prompt, tally.construct))
    truth = next((one.answer for *_, one in sides if one.answer), "")
    shown = tuple(_side(f"{name} · step {step}", tally, sample) for name, tally, step, sample in sides)
    return Example(sample.where, Note("Question", text), truth, shown)


def _side(heading: str, tally: Tally, sample: Sample) -> Side:
    contest = read_contest(sample.completion, tally.construct)
    answer = tally.value(sample, ANSWER)
    winner_right = tally.value(sample, RIGHT)
    faults = _grouped(contest.faults, len(sample.completion))
    return Side(
        heading=heading,
        columns=tuple(_column(name, tally, sample, contest) for name in tally.construct.names),
        judge=_note("Judge", contest.result.text) if contest.result else None,
        winner_right=None if winner_right is None else winner_right >= 1.0,
        answer=_note("Answer", contest.answer) if contest.answer else None,
        right=None if answer is None or answer < 0 else answer >= 1.0,
        leaks=bool(contest.leaks),
        faults=tuple(_told(i + 1, fault, sample.completion) for i, fault in enumerate(faults[:FAULTS])),
        untold=max(0, len(faults) - FAULTS),
        pieces=tuple(_pieces(sample.completion, faults[:FAULTS])),
        tokens=sample.length,
        is_cut=sample.finish == "length",
        is_plain=not contest.has_tags,
    )


def _column(name: str, tally: Tally, sample: Sample, contest: Contest) -> Column:
    found = contest.sections.get(name)
    original = tally.value(sample, ORIGINALITY, name)
    told = [(title, tally.value(sample, reward, name)) for title, reward in PERSONA_CHIPS] if found else []
    return Column(
        name,
        _note(name, found.text) if found and found.text.strip() else None,
        wins=contest.winner == name,
        copies=original is not None and original < 0,
        chips=tuple((title, number(value, digits=2)) for title, value in told if value is not None),
    )


def _note(heading: str, text: str) -> Note:
    """White space inside is kept; the line breaks around are the tags' own."""
    return Note(heading, cut(text.strip("\n")))


# --- what is wrong with the form -------------------------------------------------------------------------------------


def _grouped(faults: Sequence[Fault], end: int) -> list[Fault]:
    """The faults, with what is missing in one sentence."""
    missing = [fault for fault in faults if fault.kind == "missing"]
    others = [fault for fault in faults if fault.kind != "missing"]
    if len(missing) < 2:
        return list(faults)
    tags = [f"<{fault.tag}>" for fault in missing]
    return [*others, Fault("missing", "", end, f"{', '.join(tags[:-1])} and {tags[-1]} are missing")]


def _place(fault: Fault, text: str) -> tuple[int, int]:
    """Where the fault's place begins and ends: its tag, or the text that should not be there. Equal: there is none."""
    start = fault.at
    if start >= len(text):
        return start, start
    if text[start] == "<":
        close = text.find(">", start, start + 2 * WIDEST)
        return start, close + 1 if close >= 0 else start + 1
    start += len(text[start : start + WIDEST]) - len(text[start : start + WIDEST].lstrip())
    tag = text.find("<", start, start + WIDEST)
    end = tag if tag >= 0 else min(len(text), start + WIDEST)
    return start, start + len(text[start:end].rstrip())


def _told(count: int, fault: Fault, text: str) -> Told:
    start, end = _place(fault, text)
    if start == end:
        return Told(count, fault.message)
    before, behind = text[max(0, start - AROUND) : start], text[end : end + AROUND]
    left = "…" if start > AROUND else ""
    right = "…" if end + AROUND < len(text) else ""
    shown = text[start:end] if end - start <= LINE else f"{text[start : start + LINE]}…"
    return Told(count, fault.message, _line(left + before), _line(shown), _line(behind + right))


def _line(text: str) -> str:
    """White space that a line can show."""
    return text.replace("\r\n", "↵").replace("\n", "↵")


def _pieces(text: str, faults: Sequence[Fault]) -> list[Piece]:
    """The raw text, cut at the places of the faults. Places that overlap are one."""
    shown = cut(text)
    merged: list[tuple[int, int, list[int]]] = []
    places = [(*_place(fault, text), i + 1) for i, fault in enumerate(faults)]
    for start, end, count in sorted(place for place in places if place[0] < place[1] <= min(len(text), LONGEST)):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]), [*merged[-1][2], count])
        else:
            merged.append((start, end, [count]))
    out, at = [], 0
    for start, end, counts in merged:
        out += [Piece(shown[at:start])] if at < start else []
        out.append(Piece(shown[start:end], ", ".join(map(str, counts))))
        at = end
    return [*out, Piece(shown[at:])] if at < len(shown) else out

"""The numbers of a contest that a report shows: each made, row by row, of the values of the competition's rewards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from preftune.competition import Contest
from preftune.competition.words import units

Need: TypeAlias = tuple[str, str]
"""A built-in reward and the persona that it scores; "" for one that scores the whole contest."""
Row: TypeAlias = Mapping[Need, float | None]
"""The rewards' values of one contest; None where one does not apply."""

PREFIX = "competition-"
WON = "competition-won"
RIGHT = "competition-winner-right"
STRUCTURE = "competition-structure"
WINNER = "competition-winner"
ANSWER = "competition-answer"
COPIED = "competition-copied"
REFLECTIVE = "competition-reflective-winner"
REFLECTION = "competition-reflection"
VOICE = "competition-voice"
ORIGINALITY = "competition-originality"
LENGTH = "competition-length"
PERSONA_CHIPS = (("self-reflection", REFLECTION), ("voice", VOICE), ("originality", ORIGINALITY), ("length", LENGTH))
"""What is told of a persona beside its text."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A number of a contest.

    Attributes:
        title: what a table calls it.
        needs: the rewards' values that it is made of.
        of: its value of one contest; None where it does not apply.
        text: its value by the contest's text alone, for one that no reward measures.
        share: its values are 0 and 1.
        good: 1 when more is better, -1 when less is, 0 for neither.
        plain: it is its only reward's own value.
        hint: what it says, where the title does not.
    """

    title: str
    needs: tuple[Need, ...] = ()
    of: Callable[[Row], float | None] | None = None
    text: Callable[[Contest], float | None] | None = None
    share: bool = False
    good: Literal[-1, 0, 1] = 0
    plain: bool = False
    hint: str = ""


def plain(
    title: str, reward: str, persona: str = "", *, share: bool = False, good: Literal[-1, 0, 1] = 1, hint: str = ""
) -> Measure:
    """A measure that is a reward's own value."""
    need = (reward, persona)
    return Measure(title, (need,), lambda row: row[need], share=share, good=good, plain=True, hint=hint)


def _told(title: str, reward: str, says: Callable[[float], bool], *, hint: str, good: Literal[-1, 1] = 1) -> Measure:
    """The share of contests of whose value `says` is true."""

    def of(row: Row) -> float | None:
        value = row[reward, ""]
        return None if value is None else float(says(value))

    return Measure(title, ((reward, ""),), of, share=True, good=good, hint=hint)


def contest_measures() -> dict[str, Measure]:
    """What is measured of a contest as a whole, in the table's order."""
    return {
        "strict": _told("Form without a fault", STRUCTURE, lambda v: v >= 1.0, hint="Every tag once and in its place."),
        "named": _told("A winner is named", WINNER, lambda v: v > 0.0, hint="The winner's tag names one persona."),
        "exact": _told("… by its name alone", WINNER, lambda v: v >= 1.0, hint="With no other text in the tag."),
        "right": plain(
            "Winner's own conclusion is right",
            RIGHT,
            share=True,
            hint="By its own text; without a winner it is not.",
        ),
        "reflective": _told(
            "The winner corrects itself",
            REFLECTIVE,
            lambda v: v > 0.0,
            hint="By words of checking, doubt and correction.",
        ),
        "answer": _told("Final answer is right", ANSWER, lambda v: v >= 1.0, hint="And free of the contest's tags."),
        "leak": _told("Tags in the final answer", ANSWER, lambda v: v < 0.0, good=-1, hint="Users would see them."),
        "copied": plain("A persona copies an earlier one", COPIED, share=True, good=-1),
    }


def persona_measures(names: Sequence[str]) -> dict[str, dict[str, Measure]]:
    """Kind → persona → measure. A win counts among contests that name a winner, so that chance is 1/n."""

    def won(persona: str) -> Measure:
        def of(row: Row) -> float | None:
            return row[WON, persona] if any(row[WON, name] == 1.0 for name in names) else None

        return Measure("Wins", tuple((WON, name) for name in names), of, share=True, hint="Of contests with a winner.")

    def right_when(persona: str) -> Measure:
        def of(row: Row) -> float | None:
            return row[RIGHT, ""] if row[WON, persona] == 1.0 else None

        return Measure(
            "Is right when it wins", ((WON, persona), (RIGHT, "")), of, share=True, good=1, hint="Its own conclusion."
        )

    def kind(title: str, reward: str, hint: str) -> dict[str, Measure]:
        return {name: plain(title, reward, name, hint=hint) for name in names}

    def words(persona: str) -> Measure:
        def text(contest: Contest) -> float | None:
            found = contest.sections.get(persona)
            return None if found is None else float(len(units(found.text)))

        return Measure("Words", text=text)

    return {
        "won": {name: won(name) for name in names},
        "right_when": {name: right_when(name) for name in names},
        "reflection": kind("Self-reflection", REFLECTION, "0 to 1, by words of checking and doubt."),
        "voice": kind("Voice", VOICE, "0 to 1: how much it speaks as itself."),
        "originality": kind("Originality", ORIGINALITY, "Below 0 for a copy of an earlier persona's."),
        "length": kind("Length reward", LENGTH, "1 at the best length."),
        "words": {name: words(name) for name in names},
    }

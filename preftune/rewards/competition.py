"""Rewards for the form of a contest: its tags, its length, its winner. METHODS section 5; docs/competition.md.

Constants are those of the seed's author (the pirate–knight–viking experiment) where the table gives any.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any, Literal

from preftune.competition import Construct, Contest
from preftune.competition.faults import MISPLACED
from preftune.competition.words import units
from preftune.rewards.call import SetupError, Unscorable
from preftune.rewards.contest import ContestReward, PersonaReward

OPTIMUM = 256
"""Units in which one persona shows its work in some detail: the seed's examples take 90 to 130, its author wanted
more."""


@dataclass(frozen=True, slots=True)
class Tags(ContestReward):
    """`placed` for each element that is opened and closed in its place, −`duplicate` each time that one stands there
    once more, −`missing` for each that is not there. An element with one tag, or in the wrong place, counts 0.

    Three personas have six elements, so a faultless contest scores 0.6. `floor`: no value is below it. None by default:
    clipped at 0, the first completions of a model that doesn't know the form would all score the same.
    """

    placed: float = 0.1
    duplicate: float = 0.1
    missing: float = 0.2
    floor: float | None = None

    def __post_init__(self) -> None:
        if min(self.placed, self.duplicate, self.missing) < 0:
            raise ValueError("placed, duplicate and missing can't be negative: the last two are taken off")

    def __call__(self, /, completions: list[Any], **columns: Any) -> list[float | None]:
        elements = len(self.contest_of.elements)
        return [self._score(contest, elements) for contest in self.read(completions)]

    def _score(self, contest: Contest, elements: int) -> float:
        wrong = {fault.tag for fault in contest.faults if fault.kind in MISPLACED}
        missing = sum(fault.kind == "missing" for fault in contest.faults)
        value = self.placed * (elements - len(wrong)) - self.missing * missing
        value -= self.duplicate * sum(contest.copies.values())
        value = round(value, 9)  # 6 times 0.1 is 0.6000000000000001
        return value if self.floor is None else max(value, self.floor)


@dataclass(frozen=True, slots=True)
class Structure(ContestReward):
    """1.0 for a strict contest; `partial` when all tags are there, each once and in order, in spite of other faults;
    else 0."""

    partial: float = 0.5

    def __call__(self, /, completions: list[Any], **columns: Any) -> list[float | None]:
        return [1.0 if c.strict else self.partial if c.ordered else 0.0 for c in self.read(completions)]


@dataclass(frozen=True, slots=True)
class Length(PersonaReward):
    """With n units of a persona's text: n / optimum up to the optimum, then 1 − slope · (n − optimum) / optimum, not
    below 0.

    White space around the text doesn't count; a persona that isn't there has 0 units. `whole`: of the contest from its
    first tag to its last one, tags and all. `optimum` None: 256, and of a whole contest 256 for each persona and the
    judge.
    """

    optimum: int | None = None
    slope: float = 1.0
    unit: Literal["tokens", "words", "chars"] = "tokens"
    whole: bool = False

    reads_ends = True

    def __post_init__(self) -> None:
        if self.optimum is not None and self.optimum < 1:
            raise ValueError("optimum is at least 1")
        if self.slope < 0:
            raise ValueError("slope can't be negative; 0: what is too long scores 1")
        if self.whole and self.persona is not None:
            raise ValueError("whole measures the contest as a whole; leave persona out")

    def scored_personas(self, construct: Construct) -> tuple[str, ...]:
        """All of them, unless the whole contest is measured."""
        return () if self.whole else construct.names

    def __call__(
        self, /, completions: list[Any], token_ends: list[list[int]] | None = None, **columns: Any
    ) -> list[float | Unscorable]:
        if self.unit == "tokens" and not token_ends and completions:
            raise SetupError(
                "counts tokens inside a text, and no tokenizer is known here; set unit: words or unit: chars, or call "
                "RewardSet.know_tokens first, as a run does"
            )
        contests = self.read(completions)
        if self.unit != "tokens":
            return [self._value(self._size(contest, [])) for contest in contests]
        return [
            self._value(self._size(contest, ends))
            if ends or not contest.text
            else Unscorable("comes without token ids, so its tokens can't be counted; set unit: words or unit: chars")
            for contest, ends in zip(contests, token_ends or [], strict=True)
        ]

    def _size(self, contest: Contest, ends: list[int]) -> int:
        start, stop = contest.span
        if not self.whole:
            section = contest.sections.get(self.who)
            start, stop = (section.start, section.end) if section else (0, 0)
        said = contest.text[start:stop]
        start += len(said) - len(said.lstrip())
        said = said.strip()
        if self.unit == "chars":
            return len(said)
        if self.unit == "words":
            return len(units(said))
        return bisect_right(ends, start + len(said)) - bisect_right(ends, start)

    def _value(self, size: int) -> float:
        optimum = self.optimum or OPTIMUM * (len(self.contest_of.names) + 1 if self.whole else 1)
        if size <= optimum:
            return size / optimum
        return max(0.0, 1.0 - self.slope * (size - optimum) / optimum)


@dataclass(frozen=True, slots=True)
class Winner(ContestReward):
    """1.0 when the winner's tag encloses exactly a persona's name; `partial` when it names one among other words, or in
    another case; 0 when it names none, or several."""

    partial: float = 0.5

    def __call__(self, /, completions: list[Any], **columns: Any) -> list[float | None]:
        found = self.read(completions)
        return [1.0 if c.winner_exact else self.partial if c.winner is not None else 0.0 for c in found]


@dataclass(frozen=True, slots=True)
class Won(PersonaReward):
    """1.0 when the persona is the winner, else 0.0. To measure, with weight 0: rewarded, it makes the judge biased."""

    def __call__(self, /, completions: list[Any], **columns: Any) -> list[float | None]:
        return [1.0 if contest.winner == self.who else 0.0 for contest in self.read(completions)]

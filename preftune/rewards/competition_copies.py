"""Rewards for originality: does a persona work by itself, or say again what another said before it? METHODS section 5.

By runs of words, in linear time, in any language; docs/competition.md has the formulas and why the defaults are what
they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from preftune.competition import Construct, Contest
from preftune.competition.words import (
    LANGUAGES,
    Language,
    Phrases,
    Units,
    is_figure,
    is_spaceless,
    ngrams,
    units,
)
from preftune.errors import UsageError
from preftune.rewards.competition_answer import conclusion, same
from preftune.rewards.competition_text import known_markers, reflections
from preftune.rewards.contest import PersonaReward, questions
from preftune.rewards.text import accepted_answers, check_pattern


@lru_cache(maxsize=256)
def _all_voices(construct: Construct) -> Phrases:
    return Phrases.of([word for persona in construct.personas for word in persona.voice])


@lru_cache(maxsize=8192)
def _content(said: Units, voices: Phrases, figures: bool) -> Units:
    return tuple(unit for unit in voices.without(said) if figures or not is_figure(unit))


def with_figures(text: str, construct: Construct, at_least: int) -> bool | None:
    """Whether a text is compared with its numbers, as it has too few words without; None: too few with them, too."""
    for figures in (False, True):
        if len(_content(units(text), _all_voices(construct), figures)) >= at_least:
            return figures
    return None


@lru_cache(maxsize=8192)
def takes_over(
    own: str, other: str, question: Units, construct: Construct, figures: bool, n: int, threshold: float, at_least: int
) -> bool:
    """Whether a text takes over another's words.

    Args:
        question: the words of what both are about.
        construct: its personas' voices are left out of both texts.
        figures: compare numbers too.
        n: see `Compared`, as `threshold` and `at_least`.
    """
    mine, theirs, asked = (
        _content(words, _all_voices(construct), figures) for words in (units(own), units(other), question)
    )
    n *= 2 if 2 * sum(map(is_spaceless, mine)) > len(mine) else 1
    known = ngrams(asked, n)
    runs, others = ngrams(mine, n) - known, ngrams(theirs, n) - known
    # A few stray runs are no text to be copied: then only the share of one's own counts.
    shorter = len(runs) if len(others) < at_least else min(len(runs), len(others))
    return shorter > 0 and len(runs & others) >= threshold * shorter


@dataclass(frozen=True, slots=True)
class Compared(PersonaReward):
    """Base of what finds out whether a persona copies one that speaks before it.

    Compared are runs of `n` words (twice as many characters in writing without spaces), without numbers, without the
    personas' voices and without runs that the question has too. A persona takes over another's words when at least
    `threshold` of the runs of the shorter of the two are the other's too. Where fewer than `at_least` words are left,
    the numbers are compared with them: a working in figures; fewer than `at_least` of both tell nothing.

    Correcting another's error is not copying: a text that takes over another's words, but comes to another conclusion,
    is a copy only if it isn't right where the other is wrong; or, where the data has no truth, if its numbers are the
    same or it doesn't say that it corrects anything.
    """

    n: int = 3
    threshold: float = 0.5
    at_least: int = 6
    column: str = "answer"
    extract: str | None = None
    languages: tuple[Language, ...] = LANGUAGES
    markers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.n <= self.at_least:
            raise ValueError("n is at least 1, and at_least not less than n")
        if not 0 < self.threshold <= 1:
            raise ValueError("threshold is over 0 and at most 1")
        if self.extract is not None:
            check_pattern(self.extract, "extract")

    @property
    def can_hang(self) -> bool:  # type: ignore[override]
        """Only a pattern of the user's can."""
        return self.extract is not None

    def check(self) -> None:
        construct = self.contest_of
        if self.persona == construct.names[0]:
            raise UsageError(
                f"{self.persona!r} is the first persona and has nobody to copy; name "
                f"{' or '.join(construct.names[1:])}, or none for all of them"
            )

    def verdicts(
        self, completions: list[Any], prompts: list[Any] | None, columns: Mapping[str, list[Any]]
    ) -> list[dict[str, bool | None]]:
        """For each completion: persona → whether it copies one that speaks before it, None where it says too little."""
        who = (self.persona,) if self.persona else self.contest_of.names
        truths = columns.get(self.column) or [None] * len(completions)
        rows = zip(self.read(completions), questions(prompts, len(completions)), truths, strict=True)
        return [
            {name: self._copies(contest, name, question, truth) for name in who} for contest, question, truth in rows
        ]

    def _copies(self, contest: Contest, persona: str, question: Units, truth: Any) -> bool | None:
        section = contest.sections.get(persona)
        if section is None:
            return None
        figures = with_figures(section.text, self.contest_of, self.at_least)
        if figures is None:
            return None
        measure = (question, self.contest_of, figures, self.n, self.threshold, self.at_least)
        return any(
            takes_over(section.text, other.text, *measure)
            and not self._corrects(section.text, other.text, persona, question, truth)
            for other in contest.sections.values()
            if other.start < section.start
        )

    def _corrects(self, own: str, other: str, persona: str, question: Units, truth: Any) -> bool:
        mine, theirs = conclusion(own, self.extract), conclusion(other, self.extract)
        if mine is None or theirs is None or same(mine, theirs):
            return False
        answers = accepted_answers(truth)
        if answers:
            return any(same(mine, answer) for answer in answers) and not any(same(theirs, answer) for answer in answers)
        numbers = [Counter(filter(is_figure, units(text))) for text in (own, other)]
        known = known_markers(self.contest_of, persona, self.languages, self.markers)
        return numbers[0] != numbers[1] and reflections(units(own), question, known) > 0


@dataclass(frozen=True, slots=True)
class Originality(Compared):
    """`original` for a persona that works by itself, −`copied` for one that copies one before it, 0.0 for one that says
    too little to tell. For personas from the second on."""

    original: float = 0.5
    copied: float = 0.5

    def scored_personas(self, construct: Construct) -> tuple[str, ...]:
        """All but the first, who has nobody to copy."""
        return construct.names[1:]

    def __call__(
        self, /, completions: list[Any], prompts: list[Any] | None = None, **columns: Any
    ) -> list[float | None]:
        values = {True: -self.copied, False: self.original, None: 0.0}
        who = self.who
        return [values[verdict[who]] for verdict in self.verdicts(completions, prompts, columns)]


@dataclass(frozen=True, slots=True)
class Copied(Compared):
    """1.0 when some persona (with `persona`: that one) copies one before it, else 0.0. To measure, with weight 0."""

    def scored_personas(self, construct: Construct) -> tuple[str, ...]:
        """None: it is one measure of the whole contest."""
        return ()

    def __call__(
        self, /, completions: list[Any], prompts: list[Any] | None = None, **columns: Any
    ) -> list[float | None]:
        found = self.verdicts(completions, prompts, columns)
        return [1.0 if any(copied for copied in verdict.values()) else 0.0 for verdict in found]

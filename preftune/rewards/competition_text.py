"""Rewards for how the personas of a contest speak and think: voice and self-reflection. METHODS section 5.

By words, in linear time, in any language; docs/competition.md has the formulas and why the defaults are what they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from preftune.competition import Construct
from preftune.competition.words import LANGUAGES, Language, Phrases, Units, markers, ngrams, units
from preftune.errors import UsageError
from preftune.rewards.contest import ContestReward, PersonaReward, questions

QUOTE = 4
"""Words in a row that the question has too are a quotation of it."""
APART = 8
"""Words from one marker of reflection to the next that counts: "wait, no, let me check" is one act."""


@lru_cache(maxsize=256)
def own_voice(construct: Construct, persona: str) -> Phrases:
    """The words and phrases that this persona alone is known by."""
    mine = Phrases.of(construct.persona(persona).voice).phrases
    for other in construct.personas:
        if other.name != persona:
            mine -= Phrases.of(other.voice).phrases
    return Phrases(mine)


@dataclass(frozen=True, slots=True)
class Voice(PersonaReward):
    """The share of stretches of `window` words in which the persona is heard, times the share of `variety` (or of the
    number of stretches, where that is less) that its different words reach.

    A stretch counts when it has a word or phrase of the persona's own voice and at least as many other words. Words
    that another persona's voice has too tell nobody apart and are left out. No section: 0.
    """

    window: int = 20
    variety: int = 4

    def __post_init__(self) -> None:
        if min(self.window, self.variety) < 1:
            raise ValueError("window and variety are at least 1")

    def check(self) -> None:
        """Raise UsageError for a persona without a voice of its own."""
        construct = self.contest_of
        if own_voice(construct, self.who).phrases:
            return
        place = f"competition.personas.{construct.names.index(self.who)}.voice"
        if construct.persona(self.who).voice:
            raise UsageError(
                f"competition-voice: {place}: every word of {self.who!r} is another persona's too; give it its own"
            )
        raise UsageError(
            f"competition-voice: {place} is empty, so nothing tells how {self.who!r} speaks; list words and phrases "
            "that it is known by, or name another persona in args"
        )

    def __call__(self, /, completions: list[Any], **columns: Any) -> list[float | None]:
        voice = own_voice(self.contest_of, self.who)
        return [0.0 if text is None else self._score(units(text), voice) for text in self.texts(completions)]

    def _score(self, said: Units, voice: Phrases) -> float:
        if not said:
            return 0.0
        # The last stretch takes the rest, so that none is shorter than the window unless it is the only one.
        stretches = max(1, len(said) // self.window)
        spoken = [0] * stretches
        different = set()
        for at, phrase in voice.find(said):
            spoken[min(at // self.window, stretches - 1)] += len(phrase)
            different.add(phrase)
        sizes = [self.window] * (stretches - 1) + [len(said) - self.window * (stretches - 1)]
        heard = sum(0 < words <= size / 2 for words, size in zip(spoken, sizes, strict=True))
        return heard / stretches * min(1.0, len(different) / min(self.variety, stretches))


@lru_cache(maxsize=256)
def known_markers(construct: Construct, persona: str, languages: tuple[Language, ...], own: tuple[str, ...]) -> Phrases:
    """What counts as a marker in this persona's text: the languages' lists, its own, and the recipe's."""
    words = [marker for language in languages for marker in markers(language)]
    return Phrases.of([*words, *construct.persona(persona).reflection, *own])


def reflections(said: Units, question: Units, known: Phrases) -> int:
    """How many different markers of reflection stand in the text, in places of their own.

    Not counted: one that the question says in the same words, and one within APART words of the last that counted.
    """
    quoted = _quoted(said, question)
    different: set[Units] = set()
    free = 0
    for at, marker in known.find(said):
        if at < free or marker in different or all(quoted[at : at + len(marker)]):
            continue
        different.add(marker)
        free = at + len(marker) + APART
    return len(different)


def _quoted(said: Units, question: Units) -> list[bool]:
    """For each word whether it belongs to a run of QUOTE words that the question has too."""
    out = [False] * len(said)
    n = min(QUOTE, len(question))
    if n:
        asked = ngrams(question, n)
        until = 0
        for at in range(len(said) - n + 1):
            if said[at : at + n] in asked:
                for i in range(max(at, until), at + n):
                    out[i] = True
                until = at + n
    return out


@dataclass(frozen=True, slots=True)
class Reflection(PersonaReward):
    """min(1, different markers of checking, doubt and correction / enough) in a persona's text.

    Markers are the languages' lists, the persona's `reflection` and `markers`. A marker counts once; not where the
    question says it in the same words, and not within eight words of the last one that counted. No section: 0.
    """

    languages: tuple[Language, ...] = LANGUAGES
    markers: tuple[str, ...] = ()
    enough: int = 3

    def __post_init__(self) -> None:
        if self.enough < 1:
            raise ValueError("enough is at least 1")

    def check(self) -> None:
        """Raise UsageError where there is no marker at all."""
        construct = self.contest_of
        if not known_markers(construct, self.who, self.languages, self.markers).phrases:
            place = f"competition.personas.{construct.names.index(self.who)}.reflection"
            raise UsageError(f"competition-reflection: without languages give markers, or {place}")

    def __call__(
        self, /, completions: list[Any], prompts: list[Any] | None = None, **columns: Any
    ) -> list[float | None]:
        known = known_markers(self.contest_of, self.who, self.languages, self.markers)
        out: list[float | None] = []
        for text, question in zip(self.texts(completions), questions(prompts, len(completions)), strict=True):
            found = 0 if text is None else reflections(units(text), question, known)
            out.append(min(1.0, found / self.enough))
        return out


@dataclass(frozen=True, slots=True)
class ReflectiveWinner(ContestReward):
    """`bonus` when the winner is a persona whose competition-reflection is at least `threshold`, else 0.0."""

    bonus: float = 1.0
    threshold: float = 0.5
    languages: tuple[Language, ...] = LANGUAGES
    markers: tuple[str, ...] = ()
    enough: int = 3

    def __post_init__(self) -> None:
        if self.enough < 1:
            raise ValueError("enough is at least 1")
        if not 0 < self.threshold <= 1:
            raise ValueError("threshold is over 0 and at most 1")

    def __call__(
        self, /, completions: list[Any], prompts: list[Any] | None = None, **columns: Any
    ) -> list[float | None]:
        out: list[float | None] = []
        for contest, question in zip(self.read(completions), questions(prompts, len(completions)), strict=True):
            section = contest.sections.get(contest.winner) if contest.winner else None
            found = 0
            if section is not None and contest.winner:
                known = known_markers(self.contest_of, contest.winner, self.languages, self.markers)
                found = reflections(units(section.text), question, known)
            out.append(self.bonus if min(1.0, found / self.enough) >= self.threshold else 0.0)
        return out

"""The words that an answer begins with: read, taken off, put in front.

A word is what stands between white space, with its punctuation as written: "Sure," and "Sure!" are two. Scripts that
are written without spaces have no such words: there it is a character with the punctuation behind it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Words: TypeAlias = tuple[str, ...]
"""An opening: its words, all but the first with a space before them where the text has white space."""

LONGEST = 60
"""Characters of a word; a longer one is no opening (a link, a line of code)."""
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"(\s*)(?:([{_UNSPACED}][、。，！？：；…]*)|([^\s{_UNSPACED}]+))")
_DANGLING = re.compile(r"[ \t]*(?:[-–—,;:.!?…、。，！？：；]+(?:[ \t]+|(?=\n)))?(?:\s*\n(?= {4}|\t)|\s*)")
"""What an opening leaves behind that belonged to it: white space, and a dash or the like that stands by itself. The
indentation of code stays."""
_PLAIN = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*[,.;:!?…]*\Z")
CLAUSE = tuple(",.;:!?…—–、。，！？：；")
"""What a clause ends in."""

_ANSWERS = frozenset({
    "yes", "no", "yeah", "yep", "nope", "true", "false", "correct", "incorrect", "right", "wrong", "agree", "disagree",
    "always", "never", "maybe", "none", "neither", "both", "not", "cannot", "can't", "don't", "won't", "isn't",
    "да", "нет", "верно", "неверно", "правда", "ложь", "никогда", "всегда", "нельзя", "ja", "nein", "oui", "non", "sí",
    "si", "是", "不", "否", "对", "錯", "错",
})  # fmt: skip
_CHOICE = re.compile(r"\(?(?:[A-Ea-e]|[0-9]+)[).:]\Z|[+-]?[0-9]")
"""A choice's letter or number, or a number."""


def first_words(text: str, count: int, *, fold: bool = False) -> list[tuple[str, int]]:
    """The first words of a text, at most `count`, each with where it ends.

    Args:
        fold: without regard to case.
    """
    out: list[tuple[str, int]] = []
    position = 0
    while len(out) < count:
        found = _WORD.match(text, position)
        if found is None:
            break
        word = found[2] or found[3]
        if len(word) > LONGEST:
            break
        glue = " " if found[1] and out else ""
        out.append((glue + (word.casefold() if fold else word), found.end()))
        position = found.end()
    return out


def words_of(text: str, *, fold: bool = False) -> Words:
    """All words of an opening that is written out."""
    return tuple(word for word, _ in first_words(text, len(text) + 1, fold=fold))


def ends_clause(words: Words) -> bool:
    """Whether an opening ends where a clause does, so that what follows can stand alone."""
    return words[-1].endswith(CLAUSE)


def is_answer(words: Words) -> bool:
    """Whether an opening may itself be the answer, or turn its meaning round: yes, no, not, a lone letter or number."""
    bare = [word.strip().strip("*_\"'()[]").rstrip("".join(CLAUSE) + ")").casefold() for word in words]
    return any(word in _ANSWERS for word in bare) or _CHOICE.match(words[0].strip("*_")) is not None


@dataclass(frozen=True, slots=True)
class Stripped:
    """A text without its openings. `openings`: those taken off, in order. `problem`: why one was left on."""

    text: str
    openings: tuple[str, ...] = ()
    problem: str = ""


class Stripper:
    """Takes openings off texts; the longest one that fits goes first, and again while one fits.

    Args:
        openings: as written.
        fold: match without regard to case.
    """

    def __init__(self, openings: Iterable[str], *, fold: bool = False) -> None:
        self.fold = fold
        self._known = {words_of(opening, fold=fold): opening for opening in openings}
        self._longest = max(map(len, self._known), default=0)

    def match(self, text: str) -> tuple[str, int] | None:
        """The opening that a text begins with, and where it ends."""
        found = first_words(text, self._longest, fold=self.fold)
        for count in range(len(found), 0, -1):
            opening = self._known.get(tuple(word for word, _ in found[:count]))
            if opening is not None:
                return opening, found[count - 1][1]
        return None

    def __call__(self, text: str) -> Stripped:
        """The text without its openings, its white space in front kept, what follows begun with a capital where the
        opening had one. One that would leave nothing, or no letter and no digit, stays on."""
        start = len(text) - len(text.lstrip())
        rest, taken = text[start:], list[str]()
        while (found := self.match(rest)) is not None:
            opening, end = found
            dangling = _DANGLING.match(rest, end)
            after = rest[end if dangling is None else dangling.end() :]
            if not any(character.isalnum() for character in after):
                return Stripped(text[:start] + rest, tuple(taken), f"{opening!r} is all that there is")
            rest = _capital(after) if rest[:1].isupper() else after
            taken.append(opening)
        return Stripped(text[:start] + rest, tuple(taken))


def prepend(opening: str, text: str) -> str:
    """The text with an opening in front; its first word loses its capital behind a comma or inside a sentence."""
    start = len(text) - len(text.lstrip())
    rest = text[start:]
    if not opening.endswith((".", "!", "?", "…", ":", "。", "！", "？")):
        word = rest.split(maxsplit=1)[0] if rest.strip() else ""
        if _PLAIN.match(word) and word[1:2].islower() and not word.startswith(("I'", "I’")):
            rest = rest[0].lower() + rest[1:]
    glue = "" if re.match(rf"[{_UNSPACED}]", rest) else " "
    return f"{text[:start]}{opening}{glue}{rest}"


def _capital(text: str) -> str:
    """A plain word's first letter as a capital; names such as iPhone, code and links stay as they are."""
    word = text.split(maxsplit=1)[0] if text.strip() else ""
    return text[0].upper() + text[1:] if _PLAIN.match(word) and word.islower() else text


def join(words: Sequence[str]) -> str:
    """An opening as it is written."""
    return "".join(words)

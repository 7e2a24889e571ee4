"""Words of any language, for comparing texts regardless of case, punctuation and the spelling of characters.

A text becomes a tuple of units: words, figures, and single characters of writing that has no spaces between words
(Chinese, Japanese, Thai, …). So "Arrr, 3½ 桶!" is ("arr", "3", "1", "2", "桶"). All in linear time.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from importlib.resources import files
from sys import intern
from typing import Literal, TypeAlias, get_args

Units: TypeAlias = tuple[str, ...]
Language: TypeAlias = Literal["en", "ru", "zh"]
"""Languages that have a list of markers of self-reflection."""
LANGUAGES: tuple[Language, ...] = get_args(Language)

_SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
"""Thai, Lao, Burmese, Khmer, kana and Han: no spaces between words."""
_FIGURE = r"[0-9]+(?:[.,][0-9]+)*"
_ASCII_UNIT = re.compile(rf"\\[a-z]+|({_FIGURE}|[a-z]+)")
_UNIT = re.compile(rf"\\[a-z]+|({_FIGURE}|[{_SPACELESS}]|(?:(?![{_SPACELESS}])[^\W\d_])+)")
_LONG_DRAWN = re.compile(r"([^\W\d_])\1{2,}")
_CHUNK = 512
"""Characters normalised at a time: canonical order takes quadratic time on a run of combining marks."""


@lru_cache(maxsize=8192)
def units(text: str) -> Units:
    """The words of a text, in order.

    In lower case, compatible forms of a character as one (full-width digits, ligatures), a letter said three times or
    more said twice ("arrrr" is "arr"); without punctuation and without commands of LaTeX.
    """
    if not text.isascii():
        parts = (unicodedata.normalize("NFKC", text[i : i + _CHUNK]) for i in range(0, len(text), _CHUNK))
        text = "".join(parts)
    text = _LONG_DRAWN.sub(r"\1\1", text.casefold())
    found = (_ASCII_UNIT if text.isascii() else _UNIT).findall(text)
    return tuple(intern(unit) for unit in found if unit)


def is_figure(unit: str) -> bool:
    """Whether the unit is a number in figures."""
    return unit[0] in "0123456789"


def is_spaceless(unit: str) -> bool:
    """Whether the unit is one character of writing without spaces between words."""
    return len(unit) == 1 and _spaceless().match(unit) is not None


@cache
def _spaceless() -> re.Pattern[str]:
    return re.compile(f"[{_SPACELESS}]")


def ngrams(some: Units, n: int) -> set[Units]:
    """All runs of n units; none of a text of fewer."""
    return set(zip(*(some[i:] for i in range(n)), strict=False))


@dataclass(frozen=True)
class Phrases:
    """Words and phrases to find in texts, as whole words in any case."""

    phrases: frozenset[Units]

    @classmethod
    def of(cls, some: Collection[str]) -> Phrases:
        """From texts; those without a word are left out."""
        return cls(frozenset(made for made in map(units, some) if made))

    @cached_property
    def _by_first(self) -> dict[str, list[Units]]:
        out: dict[str, list[Units]] = {}
        for phrase in sorted(self.phrases, key=len, reverse=True):
            out.setdefault(phrase[0], []).append(phrase)
        return out

    def find(self, text: Units) -> Iterator[tuple[int, Units]]:
        """Where each phrase stands in the text; of those that overlap the first, and the longest that begins there."""
        by_first = self._by_first
        free = 0
        for at, unit in enumerate(text):
            if at < free or unit not in by_first:
                continue
            for phrase in by_first[unit]:
                if text[at : at + len(phrase)] == phrase:
                    yield at, phrase
                    free = at + len(phrase)
                    break

    def without(self, text: Units) -> Units:
        """The text without the phrases."""
        out: list[str] = []
        after = 0
        for at, phrase in self.find(text):
            out += text[after:at]
            after = at + len(phrase)
        return (*out, *text[after:])


@cache
def markers(language: Language) -> tuple[str, ...]:
    """That language's words and phrases of checking, doubt and correction: `markers/LANGUAGE.txt`, one a line."""
    text = (files("preftune.competition") / "markers" / f"{language}.txt").read_text(encoding="utf-8")
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return tuple(line for line in lines if line)

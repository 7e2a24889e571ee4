"""A row's texts as the checks read them, hashes of them, and where rows stand."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterable

from preftune.curation.near import tokens
from preftune.records import Content, Example

SENTENCE = frozenset(".,;:!?\"'`()[]{}<>«»“”‘’„…—–_|*#~")
"""Tokens that are punctuation and no word; signs of sums stay, or 3 + 4 were 3 − 4."""
_PLACE = re.compile(r"(.*?)(\d+)(\]?)", re.DOTALL)


def flat(content: Content) -> str:
    """All turns of a prompt or answer as one text."""
    return content if isinstance(content, str) else "\n".join(message.content for message in content)


def turns(content: Content, *, system: bool = False) -> list[str]:
    """The texts of a prompt or answer. Many rows have one system message, which is no content of theirs."""
    if isinstance(content, str):
        return [content] if content else []
    return [message.content for message in content if system or message.role != "system"]


def words(text: str) -> list[str]:
    """Words (characters of Chinese, Thai, …) without punctuation, case folded."""
    return [token for token in tokens(text) if token not in SENTENCE]


def normalized(texts: Iterable[str]) -> str:
    """Texts as they are compared as wholes: white space, case and forms of characters do not count."""
    return "\x1e".join(" ".join(tokens(text)) for text in texts)


def digest(parts: Iterable[str]) -> int:
    """64 bits of a sequence of texts. Two of a million differ and share them with probability 3·10⁻⁸."""
    out = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        out.update(len(data).to_bytes(8, "little"))
        out.update(data)
    return int.from_bytes(out.digest(), "little")


def content_parts(content: Content) -> list[str]:
    """A content with its roles, as parts of a digest."""
    if isinstance(content, str):
        return ["", content]
    return [part for message in content for part in (message.role, message.content)]


def row_text(example: Example) -> str:
    """A whole row as one text, the better answers first."""
    answers = [flat(example.completions[n]) for n in by_score(example)]
    return "\n".join([*turns(example.prompt), *answers])


def by_score(example: Example) -> list[int]:
    """Places of the completions, the best first, equal ones by their text; without scores as they stand."""
    places = list(range(len(example.completions)))
    if not example.scores:
        return places
    return sorted(places, key=lambda n: (-example.scores[n], content_parts(example.completions[n])))


class Places:
    """`file:line` of every row in a dozen bytes each."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str], int] = {}
        self._kind = array("I")
        self._number = array("Q")

    def __len__(self) -> int:
        return len(self._kind)

    def add(self, where: str) -> int:
        """The row's number, counted from 0."""
        found = _PLACE.fullmatch(where)
        head, number, tail = found.groups() if found else (where, "0", "?")
        if len(number) > 18 or (found and str(int(number)) != number):
            head, number, tail = where, "0", "?"
        self._kind.append(self._kinds.setdefault((head, tail), len(self._kinds)))
        self._number.append(int(number))
        return len(self._kind) - 1

    def __getitem__(self, number: int) -> str:
        head, tail = list(self._kinds)[self._kind[number]]
        return head if tail == "?" else f"{head}{self._number[number]}{tail}"

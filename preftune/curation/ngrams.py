"""Counts of words and pieces of words, hashed into buckets: the same code for scripts with and without spaces.

A text is lower-cased; a word is a run of letters, marks and digits. Counted are words, pairs of neighbouring words, and
the pieces of 4 characters of each word with its borders, so that inflected forms share most of what they are made
of. Scripts that are written without spaces (Chinese, Japanese, Thai, Lao, Burmese, Khmer) have no such words: there,
single characters and pairs of them are counted. Everything is hashed: no vocabulary is held, so memory does not grow.
All of it is done on arrays of code points, a whole chunk of texts at once.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

BUCKETS = 1 << 17
"""Two n-grams that fall into one bucket count as one."""
PIECES = (4,)
BORDER = 0x20
Codes: TypeAlias = NDArray[np.uint64]

_UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF), (0x20000, 0x3FFFF),
)  # fmt: skip
UNSPACED = "".join(f"{chr(low)}-{chr(high)}" for low, high in _UNSPACED)
"""The same for a character class of a regular expression."""
_BASE = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that powers of it never vanish modulo 2⁶⁴."""


def count_ngrams(texts: Sequence[str]) -> Any:
    """Counts of hashed n-grams.

    Args:
        texts: n texts; half surrogate pairs and control characters are in order.

    Returns:
        scipy CSR matrix, [n, BUCKETS], float32. A row depends on its own text alone.
    """
    from scipy.sparse import csr_matrix

    codes, rows = _normalized(texts)
    found = [*_words(codes, rows), *_pieces(codes, rows), *_characters(codes, rows)]
    hashes = np.concatenate([_mixed(values, salt) for salt, (values, _) in enumerate(found)])
    owners = np.concatenate([owners for _, owners in found])
    keys, counts = np.unique(owners * BUCKETS + (hashes % np.uint64(BUCKETS)).astype(np.int64), return_counts=True)
    starts = np.searchsorted(keys, np.arange(len(texts) + 1, dtype=np.int64) * BUCKETS)
    matrix = (counts.astype(np.float32), (keys % BUCKETS).astype(np.int32), starts.astype(np.int64))
    return csr_matrix(matrix, shape=(len(texts), BUCKETS))


def _normalized(texts: Sequence[str]) -> tuple[Codes, NDArray[np.int64]]:
    """All texts as one stream of lower-case code points, every run of other characters as one BORDER, with one at the
    beginning and between texts; and the text that each code point belongs to."""
    encoded = [f" {text.casefold()} ".encode("utf-32-le", "surrogatepass") for text in texts]
    codes = np.frombuffer(b"".join(encoded), dtype=np.uint32)
    rows = np.repeat(np.arange(len(texts), dtype=np.int64), [len(one) // 4 for one in encoded])
    distinct, place = np.unique(codes, return_inverse=True)
    inside = np.array([_is_word(int(code)) for code in distinct], dtype=bool)[place]
    kept = inside.copy()
    kept[0] = True
    kept[1:] |= inside[:-1]  # the first border after each word
    codes = np.where(inside, codes, BORDER)[kept].astype(np.uint64)
    return codes, rows[kept]


@cache
def _is_word(code: int) -> bool:
    return unicodedata.category(chr(code))[0] in "LMN"


def _words(codes: Codes, rows: NDArray[np.int64]) -> list[tuple[Codes, NDArray[np.int64]]]:
    """Words, and pairs of neighbouring words of a text."""
    starts = np.flatnonzero((codes[1:] != BORDER) & (codes[:-1] == BORDER)) + 1
    if not len(starts):
        return []
    length = np.diff(np.append(starts, len(codes)))
    place = np.arange(starts[0], len(codes)) - np.repeat(starts, length)
    spelled = np.where(codes[starts[0] :] != BORDER, codes[starts[0] :] + np.uint64(1), np.uint64(0))
    words = np.add.reduceat(spelled * _powers(int(place.max()) + 1)[place], starts - starts[0])
    owners = rows[starts]
    same = owners[1:] == owners[:-1]
    pairs = (words[:-1] * np.uint64(3) + _mixed(words[1:], 0))[same]
    return [(words, owners), (pairs, owners[1:][same])]


def _pieces(codes: Codes, rows: NDArray[np.int64]) -> list[tuple[Codes, NDArray[np.int64]]]:
    """Runs of PIECES characters that have a border at their ends at most."""
    border = codes == BORDER
    out = []
    for size in PIECES:
        count = max(0, len(codes) - size + 1)
        broken = np.zeros(count, dtype=bool)
        values = np.zeros(count, dtype=np.uint64)
        for at in range(size):
            values += codes[at : at + count] * _powers(size)[at]
            if 0 < at < size - 1:
                broken |= border[at : at + count]
        out.append((values[~broken], rows[1 : 1 + count][~broken]))  # its second character is inside the text
    return out


def _characters(codes: Codes, rows: NDArray[np.int64]) -> list[tuple[Codes, NDArray[np.int64]]]:
    """Characters of scripts without spaces, and pairs of them."""
    unspaced = np.zeros(len(codes), dtype=bool)
    for low, high in _UNSPACED:
        unspaced |= (codes >= low) & (codes <= high)
    both = unspaced[1:] & unspaced[:-1]
    pairs = codes[:-1] * _BASE + codes[1:]
    return [(codes[unspaced], rows[unspaced]), (pairs[both], rows[1:][both])]


@cache
def _powers(count: int) -> Codes:
    """_BASE to the power 0 … count − 1, modulo 2⁶⁴."""
    return np.cumprod(np.concatenate([np.ones(1, np.uint64), np.full(count - 1, _BASE, np.uint64)]), dtype=np.uint64)


def _mixed(values: Codes, salt: int) -> Codes:
    """Hashes whose low bits depend on all bits (the finalizer of SplitMix64), other ones for another salt."""
    values = values + np.uint64(((salt + 1) * int(_BASE)) % (1 << 64))
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))

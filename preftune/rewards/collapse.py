"""Measures of collapse: how alike samples are. Pure functions of texts; the loop logs them and acts on them.

A policy that "goes mad" emits one memorised text for every prompt: distinct-n falls, and completions of different
prompts share a long substring; or it repeats itself inside one completion.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_Ints = NDArray[np.int64]


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """The n-grams of the words of `text`; a shorter text is one n-gram of what it has."""
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))]


def distinct_n(texts: Sequence[str], n: int = 2) -> float:
    """Different n-grams of words over all n-grams of `texts` together, in (0, 1]; 1.0 for no texts.

    Give one completion per prompt: it is their likeness across prompts that tells of collapse. A text of fewer than
    n words counts as one n-gram, so that a policy that only says "yes" scores low. (Li et al. 2016, distinct-n.)
    """
    grams = [gram for text in texts for gram in _ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else 1.0


def repetition(text: str, n: int = 4) -> float:
    """The share of n-grams of words that stood in the text before, in [0, 1); 0.0 when each is new."""
    grams = _ngrams(text, n)
    return 1.0 - len(set(grams)) / len(grams)


def longest_shared_substring(texts_by_prompt: Sequence[Sequence[str]], cap: int = 100_000) -> int:
    """Characters of the longest substring that completions of two different prompts share.

    Args:
        texts_by_prompt: the completions of each prompt.
        cap: characters looked at in all. Each prompt gets an equal part, filled from its completions' beginnings in
            order; over the cap the result is a lower bound.

    Exact, in O(N log² N) for N characters: prefix doubling names every substring of length 2^k by an integer, so
    that a substring of any length is named by two of them; then a binary search over the length (a shared
    substring's parts are shared too).
    """
    owners, codes, left = _sample(texts_by_prompt, cap)
    if len(codes) == 0 or owners[0] == owners[-1]:
        return 0
    names = [np.unique(codes, return_inverse=True)[1].astype(np.int64)]  # names[k][i]: the substring of 2^k at i
    while (2 << (len(names) - 1)) <= left.max():
        half = 1 << (len(names) - 1)
        names.append(_pair_names(names[-1], half, left >= 2 * half))
    low, high = 0, int(left.max())
    while low < high:
        length = (low + high + 1) // 2
        if _is_shared(names, length, left >= length, owners):
            low = length
        else:
            high = length - 1
    return low


def _sample(texts_by_prompt: Sequence[Sequence[str]], cap: int) -> tuple[_Ints, _Ints, _Ints]:
    """For each sampled character: its prompt, its code point, and the characters from it to its text's end."""
    owners: list[_Ints] = []
    codes: list[_Ints] = []
    left: list[_Ints] = []
    for prompt, texts in enumerate(texts_by_prompt):
        room = cap // len(texts_by_prompt)
        for text in texts:
            part = text[:room]
            room -= len(part)
            owners.append(np.full(len(part), prompt, dtype=np.int64))
            codes.append(np.fromiter(map(ord, part), dtype=np.int64, count=len(part)))
            left.append(np.arange(len(part), 0, -1, dtype=np.int64))
    if not codes:
        empty = np.zeros(0, dtype=np.int64)
        return empty, empty, empty
    return np.concatenate(owners), np.concatenate(codes), np.concatenate(left)


def _pairs(names: _Ints, shift: int, where: NDArray[np.bool_]) -> _Ints:
    """At each position of `where` one integer for the two names there and `shift` further on."""
    at = np.flatnonzero(where)
    return names[at] * (int(names.max()) + 1) + names[at + shift]


def _pair_names(names: _Ints, shift: int, where: NDArray[np.bool_]) -> _Ints:
    out = np.zeros_like(names)  # positions outside `where` are never read
    out[where] = np.unique(_pairs(names, shift, where), return_inverse=True)[1]
    return out


def _is_shared(names: list[_Ints], length: int, where: NDArray[np.bool_], owners: _Ints) -> bool:
    k = length.bit_length() - 1
    pairs, owner = _pairs(names[k], length - (1 << k), where), owners[where]
    order = np.argsort(pairs, kind="stable")  # stable: within one substring owners ascend
    pairs, owner = pairs[order], owner[order]
    return bool(np.any((pairs[1:] == pairs[:-1]) & (owner[1:] != owner[:-1])))

"""Do the training rows hold the test rows? Decontamination by n-grams, with an index of the test side alone.

As GPT-3's authors did it (Brown et al. 2020, appendix C): texts are cut into words without punctuation and case, n is
the 5th percentile of the test texts' lengths in words, 8 at least and 13 at most, and a text is looked for by its runs
of n words. What is told is a share, as PaLM's authors did (Chowdhery et al. 2022): the n-grams of a test row that stand
in training rows, of all that it has. N-grams of many test texts are template and do not count; a system message is not
read. A text of fewer than n words has no n-gram: it is looked for as a whole, as is every prompt.

Memory: some fifty bytes for each n-gram of the test rows, and a hash of each of their prompts. Training rows pass by.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from preftune.curation.audit.config import OverlapConfig
from preftune.curation.audit.row import Finding, words_of
from preftune.curation.audit.texts import Places, digest, flat, turns
from preftune.curation.near import tokens
from preftune.records import Example

Hashes: TypeAlias = NDArray[np.uint64]
FEWEST, MOST = 8, 13
"""Bounds of n where it is chosen."""
EXCERPT = 1500
"""Characters kept of the training text that holds most of a test text."""
_BASE = np.uint64(0x9E3779B97F4A7C15)
_WORDS = 1 << 20
"""Words whose hashes are remembered."""


@dataclass(frozen=True, slots=True)
class Held:
    """What became of a test row.

    Attributes:
        where, text: the row, and what was looked for of it.
        share: of its n-grams in training rows; None where it has none that count.
        prompt_at: the first training row with the same prompt, "" when there is none.
        found_at: the training row that holds most of its n-grams, "" when none holds any.
        found: the beginning of the text there.
    """

    where: str
    text: str
    share: float | None
    prompt_at: str
    found_at: str
    found: str


@dataclass(slots=True)
class _Best:
    """The training text that holds most n-grams of a test text."""

    count: int = 0
    row: int = -1
    excerpt: str = ""


class Overlap:
    """The test rows' index.

        overlap = Overlap(config)
        overlap.add(example)          # every test row
        overlap.close()               # n is chosen, the index is made
        overlap.look(…)               # every training row
        overlap.rows(places)          # what was found, test row by test row

    Attributes:
        n: words of an n-gram, once it is closed.
        short: test rows that have no n-gram that counts, once it is closed.
    """

    def __init__(self, config: OverlapConfig) -> None:
        self.n = config.ngram or MOST
        self.short = 0
        self._config = config
        self._cache: dict[str, int] = {}
        self._texts: dict[int, int] = {}
        self._words: list[Hashes] = []
        self._rows: list[tuple[str, str, tuple[int, ...], int]] = []
        self._prompts: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, example: Example) -> None:
        """Take a test row in."""
        prompt = turns(example.prompt)
        looked = [*prompt] if self._config.of == "prompt" and prompt else [*prompt, *map(flat, example.completions)]
        numbers = []
        for text in looked:
            words = self._hashed(words_of(tokens(text)))
            key = digest([words.tobytes().hex()])
            if key not in self._texts:
                self._texts[key] = len(self._words)
                self._words.append(words)
            numbers.append(self._texts[key])
        whole = whole_prompt([tokens(text) for text in prompt])
        if whole:
            self._prompts.setdefault(whole, -1)
        self._rows.append((example.where, "\n".join(looked)[:EXCERPT], tuple(dict.fromkeys(numbers)), whole))

    def close(self) -> None:
        """No more test rows: choose n, make the index."""
        lengths = sorted(len(words) for words in self._words)
        if self._config.ngram is None and lengths:
            self.n = min(MOST, max(FEWEST, lengths[len(lengths) * 5 // 100]))
        found = [np.unique(ngrams(words, self.n)) for words in self._words]
        owner = np.repeat(np.arange(len(found), dtype=np.int32), [len(one) for one in found])
        hashes = np.concatenate([*found, np.empty(0, np.uint64)])
        order = np.argsort(hashes, kind="stable")
        known, place, count = np.unique(hashes[order], return_inverse=True, return_counts=True)
        counted = count <= self._config.common
        kept = counted[place]
        self._known, self._owner = known[counted], owner[order][kept]
        self._place = (np.cumsum(counted, dtype=np.int64) - 1)[place[kept]]
        self._end = np.cumsum(count[counted])
        self._start = self._end - count[counted]
        self._hit = np.zeros(len(self._known), dtype=bool)
        self._total = self._per_text(np.ones(len(self._known), dtype=bool))
        self._best = [_Best() for _ in found]
        self._words = []
        self.short = sum(not self._total[list(numbers)].sum() for _, _, numbers, _ in self._rows)

    def look(
        self, prompt: Sequence[Sequence[str]], texts: Sequence[tuple[str, Sequence[str]]], row: int
    ) -> Finding | None:
        """Note what a training row holds.

        Args:
            prompt: tokens of its prompt's turns.
            texts: each of its texts, answers too, and its tokens.
            row: its number.

        Returns:
            A finding where it holds a test row: its prompt, or so many of its n-grams that it is contaminated.
        """
        held = 0.0
        for text, found in texts:
            held = max(held, self._look(text, self._hashed(words_of(found)), row))
        whole = whole_prompt(prompt)
        if whole in self._prompts:
            if self._prompts[whole] < 0:
                self._prompts[whole] = row
            return Finding("in_test", "the prompt of a test row", weight=1.0)
        if held >= self._config.share:
            return Finding("in_test", f"{100 * held:.0f} % of a test text's {self.n}-grams", weight=held)
        return None

    def _look(self, text: str, words: Hashes, row: int) -> float:
        """Mark the n-grams of one text; the largest share of a test text that it holds."""
        if not len(self._known) or len(words) < self.n:
            return 0.0
        hashes = np.unique(ngrams(words, self.n))
        place = np.minimum(np.searchsorted(self._known, hashes), len(self._known) - 1)
        place = place[self._known[place] == hashes]
        if not len(place):
            return 0.0
        self._hit[place] = True
        owners: Counter[int] = Counter()
        for at in place:
            owners.update(self._owner[self._start[at] : self._end[at]].tolist())
        for owner, count in owners.items():
            if count > self._best[owner].count:
                self._best[owner] = _Best(count, row, text[:EXCERPT])
        return max(count / float(self._total[owner]) for owner, count in owners.items())

    def rows(self, places: Places) -> Iterator[Held]:
        """Every test row, in order, after all training rows."""
        hit = self._per_text(self._hit)
        for where, text, numbers, whole in self._rows:
            total = int(self._total[list(numbers)].sum())
            share = float(hit[list(numbers)].sum()) / total if total else None
            best = max((self._best[number] for number in numbers), key=lambda one: one.count, default=_Best())
            prompt_at = self._prompts.get(whole, -1)
            yield Held(
                where, text, share, places[prompt_at] if prompt_at >= 0 else "",
                places[best.row] if best.count else "", best.excerpt,
            )  # fmt: skip

    def contaminated(self, held: Held) -> bool:
        """Whether so many of its n-grams were found."""
        return held.share is not None and held.share >= self._config.share

    def _per_text(self, kept: NDArray[np.bool_]) -> NDArray[np.int64]:
        """How many of the kept n-grams each test text has."""
        return np.bincount(self._owner[kept[self._place]], minlength=len(self._texts))

    def _hashed(self, words: Sequence[str]) -> Hashes:
        if len(self._cache) > _WORDS:
            self._cache.clear()
        for word in words:
            if word not in self._cache:
                data = word.encode("utf-8", "surrogatepass")
                self._cache[word] = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
        return np.fromiter(map(self._cache.__getitem__, words), np.uint64, len(words))


def ngrams(words: Hashes, n: int) -> Hashes:
    """Hashes of the runs of n words, from hashes of the words: [w] → [max(0, w − n + 1)]."""
    count = len(words) - n + 1
    if count < 1:
        return np.empty(0, np.uint64)
    out: Hashes = np.zeros(count, np.uint64)
    for at in range(n):
        out = out * _BASE + words[at : at + count]
    out ^= out >> np.uint64(29)
    return out


def whole_prompt(found: Sequence[Sequence[str]]) -> int:
    """A prompt as a whole, from the tokens of its turns; 0 for one without any."""
    return digest([" ".join(one) for one in found]) if any(found) else 0

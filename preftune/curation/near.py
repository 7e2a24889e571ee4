"""Near-duplicate texts, by the Jaccard similarity of their shingles.

A text is normalised (NFKC, case folded) and cut into tokens: words, single characters of scripts that are written
without spaces (Chinese, Japanese, Thai, Lao, Burmese, Khmer), and every other character by itself. Its shingles are the
runs of `size` tokens, and the similarity of two texts is the share of shingles that they have in common (Jaccard
1912): |A ∩ B| / |A ∪ B|. Shingles are kept as 64-bit hashes, so of a million different ones two are taken for the same
with probability 3·10⁻⁸.

Two texts are compared by `jaccard`. A text is compared with many by `NearIndex`: MinHash signatures in bands (Broder
1997; datasketch) give candidates, and each candidate is checked by its exact similarity. So nothing is found that is
not near; of what is near at exactly the threshold, bands miss one in two hundred at most, and fewer the nearer it is.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
import unicodedata
from array import array
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from preftune.config.base import Strict
from preftune.curation.bands import BandIndex

RECALL = 0.995
"""Chance that a text at exactly the threshold is a candidate."""
FEW = 48
"""Texts up to which each is compared with each; beyond, an index is faster."""
Shingles: TypeAlias = NDArray[np.uint64]
"""Sorted, each once."""

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+|[^\w\s]|_")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


class NearConfig(Strict):
    """What counts as nearly the same text."""

    threshold: float | None = Field(
        0.9, gt=0, le=1, description="Jaccard similarity from which two texts are near-duplicates; null: none are"
    )
    size: int = Field(3, ge=1, le=20, description="tokens of a shingle: words, or characters of Chinese, Thai, …")
    numbers: bool = Field(
        False, description="texts that hold different numbers are never near-duplicates: a sum done wrong, say"
    )
    permutations: int = Field(
        128, ge=16, le=1024, description="length of the MinHash signatures that find candidates among many texts"
    )


@dataclass(frozen=True, slots=True)
class Near:
    """A text that is near another one: its key in the index, and how near."""

    key: Hashable
    similarity: float


def tokens(text: str) -> list[str]:
    """Tokens of a text, see the module."""
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())


def shingles(text: str, size: int = 3) -> Shingles:
    """Hashes of a text's shingles. A text of fewer than `size` tokens is one shingle, one of white space has none."""
    found = tokens(text)
    if not found:
        return np.empty(0, np.uint64)
    runs = {"\x1f".join(found[at : at + size]) for at in range(max(1, len(found) - size + 1))}
    digests = b"".join(hashlib.blake2b(run.encode("utf-8", "surrogatepass"), digest_size=8).digest() for run in runs)
    return np.unique(np.frombuffer(digests, dtype="<u8").astype(np.uint64))


def jaccard(one: Shingles, other: Shingles) -> float:
    """|A ∩ B| / |A ∪ B|, from 0 to 1; two texts without shingles are the same."""
    if not len(one) and not len(other):
        return 1.0
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


def numbers(text: str) -> tuple[str, ...]:
    """The numbers that a text holds, in its order, without separators within them."""
    found = _NUMBER.findall(unicodedata.normalize("NFKC", text))
    return tuple(number.replace(",", "").rstrip(".") for number in found)


class Shingled:
    """A text made ready to be compared; `similarity` and `is_near` are the whole of what `NearConfig` means."""

    __slots__ = ("numbers", "shingles")

    def __init__(self, text: str, config: NearConfig) -> None:
        self.shingles = shingles(text, config.size)
        self.numbers = _digest(numbers(text)) if config.numbers else 0

    def similarity(self, other: Shingled) -> float:
        """Jaccard similarity; 0 where the numbers count and are not the same."""
        return jaccard(self.shingles, other.shingles) if self.numbers == other.numbers else 0.0

    def is_near(self, other: Shingled, config: NearConfig) -> bool:
        return config.threshold is not None and self.similarity(other) >= config.threshold


def near_pairs(texts: Sequence[str], config: NearConfig) -> list[tuple[int, int, float]]:
    """Every two near texts: (earlier, later, similarity), by the later one. Empty without a threshold."""
    if config.threshold is None:
        return []
    if len(texts) <= FEW:
        ready = [Shingled(text, config) for text in texts]
        every = ((i, j, ready[i].similarity(ready[j])) for j, i in _ordered(len(texts)))
        return [(i, j, similarity) for i, j, similarity in every if similarity >= config.threshold]
    out: list[tuple[int, int, float]] = []
    with NearIndex(config) as index:
        for j, text in enumerate(texts):
            earlier = sorted((int(str(near.key)), near.similarity) for near in index.find(text))
            out += [(i, j, similarity) for i, similarity in earlier]
            index.add(j, text)
    return out


class NearIndex:
    """Texts that others are compared with. Memory: about 1 KB a text, its shingles are in a file.

        with NearIndex(NearConfig(threshold=0.8)) as index:
            index.add("train.jsonl:1", "What is 2 + 2?")
            index.find("what is 2 + 2 ?")        # [Near("train.jsonl:1", 1.0)]

    Args:
        config: with a threshold.
        folder: where the file of shingles is made; default: the system's folder for such files. It goes when the index
            is closed, or the program ends.
        seed: of the permutations. What is found depends on it only where bands miss something.
    """

    def __init__(self, config: NearConfig, *, folder: Path | None = None, seed: int = 1) -> None:
        from datasketch import MinHash

        if config.threshold is None:
            raise ValueError("an index needs a threshold")
        self.config = config
        self._seed = seed
        self._first = MinHash(num_perm=config.permutations, seed=seed, hashfunc=_given)
        self._bands = BandIndex(*bands(config.threshold, config.permutations))
        self._keys: list[Hashable] = []
        self._numbers = array("Q")
        self._ends = array("Q", [0])
        self._file: Any = tempfile.TemporaryFile(dir=folder, prefix="shingles-")  # noqa: SIM115  closed by `close`

    def __enter__(self) -> NearIndex:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._keys)

    def close(self) -> None:
        """Remove the file."""
        self._file.close()

    def add(self, key: Hashable, text: str | Shingled) -> None:
        """Take a text in, or one made ready with the index's settings. Keys need not differ."""
        ready = text if isinstance(text, Shingled) else Shingled(text, self.config)
        self._bands.add(self._signature(ready))
        self._keys.append(key)
        self._numbers.append(ready.numbers)
        self._file.seek(self._ends[-1])
        self._file.write(ready.shingles.tobytes())
        self._ends.append(self._ends[-1] + ready.shingles.nbytes)

    def find(self, text: str | Shingled) -> list[Near]:
        """Texts of the index that are near this one, the nearest first, among equally near ones the first taken in."""
        ready = text if isinstance(text, Shingled) else Shingled(text, self.config)
        threshold = self.config.threshold or 1.0
        found = []
        for place in self._bands.find(self._signature(ready)):
            if self._numbers[place] != ready.numbers:
                continue
            similarity = jaccard(ready.shingles, self._shingles(place))
            if similarity >= threshold:
                found.append((-similarity, place))
        return [Near(self._keys[place], -similarity) for similarity, place in sorted(found)]

    def _shingles(self, place: int) -> Shingles:
        start, end = self._ends[place], self._ends[place + 1]
        self._file.seek(start)
        return np.frombuffer(self._file.read(end - start), dtype=np.uint64)

    def _signature(self, ready: Shingled) -> Any:
        signature = self._first.copy()
        signature.update_batch((ready.shingles & np.uint64(0xFFFFFFFF)).tolist())
        return signature.hashvalues


def bands(threshold: float, permutations: int) -> tuple[int, int]:
    """Bands and rows of each: as many rows as leave a text at the threshold a candidate with probability RECALL.

    Two signatures agree in a row with probability s, their texts' similarity, so in one of b bands of r rows with
    1 − (1 − sʳ)ᵇ. More rows give fewer candidates to check in vain.
    """
    best = (permutations, 1)
    for rows in range(1, permutations // 2 + 1):
        count = permutations // rows
        if 1.0 - (1.0 - threshold**rows) ** count >= RECALL:
            best = (count, rows)
    return best


def _ordered(count: int) -> list[tuple[int, int]]:
    """(later, earlier) for every two of `count` texts, by the later one."""
    return sorted((j, i) for i, j in combinations(range(count), 2))


def _digest(found: tuple[str, ...]) -> int:
    return int.from_bytes(hashlib.blake2b("\x1f".join(found).encode(), digest_size=8).digest())


def _given(value: int) -> int:
    """datasketch hashes what it is given; shingles are hashes already."""
    return value

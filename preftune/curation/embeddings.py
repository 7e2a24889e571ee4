"""Texts as vectors, with nothing to download: hashed n-grams, TF-IDF, SVD.

An embedder is fitted on a sample of distinct texts and then embeds any text by itself, so that a file of any length is
embedded in chunks. A vector has length 1, or 0 where a text holds nothing that counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from preftune.curation.ngrams import BUCKETS, count_ngrams

Floats: TypeAlias = NDArray[np.float32]

DIMENSIONS = 48
"""Of the builtin embedder, where nothing else is asked for."""
RARE = 16
"""Further dimensions, for what a text has in common with none of the sample."""
USUAL = 0.05
"""The share of texts that is explained worse than usual."""


class Embedder(Protocol):
    """Texts to vectors.

    Attributes:
        dimensions: d, known after `fit`.
        limit: characters or tokens after which it reads no further, in words; "" when there is none.
        cut: texts that were longer than that so far.
    """

    dimensions: int
    limit: str
    cut: int

    def fit(self, texts: Sequence[str], others: Sequence[str]) -> None:
        """Learn from a sample of distinct texts, at least one.

        Args:
            others: what measures may be taken on that must not be taken on what was learnt from; where there are no
                other texts, the same.
        """

    def embed(self, texts: Sequence[str]) -> Floats:
        """[n] texts → [n, d], each row of length 1 or 0."""


class Builtin:
    """TF-IDF of hashed n-grams, projected on its leading singular directions.

    Let x be a text's TF-IDF vector of length 1 (logarithmic counts; idf = ln((1 + n) / (1 + df)), which is 0 for what
    every text has), V the leading right singular vectors of the sample, s their singular values and p = Vᵀx. The vector
    is p weighted by s, which keeps what many texts share and damps the accidents of wording, scaled to length 1.

    A text of a topic that the sample lacks shares nothing but common words with it: |p| is small, and p alone would
    put it anywhere. So where |p| is less than what USUAL of the sample have, a part of √(1 − (|p| / usual)²) of the
    vector is the direction of the rest, x − Vp, projected at random on RARE dimensions (Johnson and Lindenstrauss).
    """

    def __init__(self, dimensions: int = DIMENSIONS, seed: int = 0) -> None:
        self.dimensions = dimensions + RARE
        self.limit, self.cut = "", 0
        self._wanted, self._seed = dimensions, seed

    def fit(self, texts: Sequence[str], others: Sequence[str]) -> None:
        """Learn idf and directions from distinct texts, and what is usual from others: directions explain the texts
        that they were fitted on better than any others."""
        from sklearn.utils.extmath import randomized_svd

        counts = count_ngrams(texts)
        frequency = np.bincount(counts.indices, minlength=BUCKETS)
        self._idf = np.log((1 + len(texts)) / (1 + frequency)).astype(np.float32)
        shared = np.flatnonzero((frequency > 1) & (self._idf > 0))  # what one text alone has is no direction
        size = min(self._wanted, len(texts) - 1, len(shared))
        directions, scale = np.zeros((BUCKETS, max(size, 0)), np.float32), np.zeros(max(size, 0), np.float32)
        if size > 0:
            _, scale, right = randomized_svd(self._weighted(counts)[:, shared], size, random_state=self._seed)
            directions[shared] = right.T
        noise = np.random.default_rng(self._seed).standard_normal((BUCKETS, RARE), dtype=np.float32)
        self._scale = (scale / max(scale.max(initial=0.0), 1e-12)).astype(np.float32)
        # The projection of x − Vp is one of x: a product of sparse rows, so a row is the same beside any others.
        self._matrix = np.concatenate([directions, noise - directions @ (directions.T @ noise)], axis=1)
        self.dimensions = self._matrix.shape[1]
        explained = [self._project(others[at : at + 2048])[2] for at in range(0, len(others), 2048)]
        self._usual = float(np.quantile(np.concatenate(explained), USUAL))

    def embed(self, texts: Sequence[str]) -> Floats:
        """[n] texts → [n, d]. A text's vector does not depend on the others."""
        seen, rest, explained = self._project(texts)
        share = np.clip(explained / max(self._usual, 1e-6), 0.0, 1.0)[:, None]
        return unit(np.concatenate([share * unit(seen * self._scale), np.sqrt(1 - share**2) * unit(rest)], axis=1))

    def _project(self, texts: Sequence[str]) -> tuple[Floats, Floats, Floats]:
        """p [n, s], the rest projected at random [n, RARE], and |p| [n]."""
        product = self._weighted(count_ngrams(texts)) @ self._matrix
        seen = product[:, : len(self._scale)]
        rest = product[:, len(self._scale) :]
        return seen, rest, np.linalg.norm(seen, axis=1)

    def _weighted(self, counts: Any) -> Any:
        """TF-IDF rows of length 1 out of counts."""
        from sklearn.preprocessing import normalize

        counts.data = (1 + np.log(counts.data)) * self._idf[counts.indices]
        return normalize(counts, copy=False)


def unit(rows: Floats) -> Floats:
    """Rows of length 1; rows of zeros stay."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    out: Floats = np.divide(rows, length, out=np.zeros_like(rows), where=length > 1e-6)
    return out

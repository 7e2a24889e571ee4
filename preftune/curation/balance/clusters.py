"""BIRCH over vectors that need not fit into memory, and the sweep that chooses its threshold.

BIRCH (Zhang, Ramakrishnan and Livny 1996) reads vectors once and keeps subclusters: a vector joins the nearest one if
its radius (the root mean square distance to its centre) stays within the threshold. Three passes:

1. the tree is filled, in an order drawn by the seed (`partial_fit` in chunks, n_clusters=None);
2. each vector goes to the nearest centre. One that lies far outside its cluster is set aside: a large subcluster takes
   in anything, as one more vector hardly changes its radius, and so would swallow the rare ones that count here;
3. those set aside make a tree of their own, again and again until none lies outside. The others stay where they are:
   the centre of two or three odd ones would draw ordinary vectors away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
Labels: TypeAlias = NDArray[np.int32]
Tell: TypeAlias = Callable[[int, int], None]

BLOCK = 1024
"""Vectors of one product. Fixed and aligned, so that a result does not depend on how texts were read."""
FAR = 5.0
"""Deviations over the median distance to the centre after which a vector lies outside its cluster."""


class Vectors(Protocol):
    """[n, d] float32, in memory or in a file."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any) -> Floats: ...


class TooMany(Exception):
    """More clusters than the limit at this threshold."""


@dataclass(frozen=True, slots=True)
class Clusters:
    """Vectors in clusters.

    Attributes:
        centres: [k, d]; none is empty.
        labels: [n], cluster of each vector.
        distances: [n], of each vector to its centre.
    """

    centres: Floats
    labels: Labels
    distances: Floats


def cluster(
    vectors: Vectors, threshold: float, *, branching: int, limit: int, seed: int, tell: Tell = lambda done, total: None
) -> Clusters:
    """Clusters of all vectors.

    Args:
        threshold: largest radius of a subcluster.
        branching: subclusters of a node of the tree.
        limit: clusters at most; memory and time grow with them.
        seed: of the order in which vectors enter the tree.
        tell: told how much is done of how much: vectors, of both passes together.

    Raises:
        TooMany: the limit is passed.
    """
    count = len(vectors)
    order = np.random.default_rng(seed).permutation(count)
    centres = _tree(vectors, order, threshold, branching, limit, lambda done: tell(done, 2 * count))
    labels, distances = assign(vectors, centres, lambda done: tell(count + done, 2 * count))
    far = order[outside(labels, distances, len(centres), threshold)[order]]
    while len(far):
        # Those set aside may swallow one another as well.
        more = _tree(vectors, far, threshold, branching, limit - len(centres), lambda done: None)
        nearest = np.empty(len(far), np.int32)
        for start in range(0, len(far), BLOCK):
            some = slice(start, start + BLOCK)
            nearest[some], distances[far[some]] = assign(vectors[far[some]], more)
        labels[far] = nearest + np.int32(len(centres))
        centres = np.concatenate([centres, more])
        far = far[outside(nearest, distances[far], len(more), threshold)]
    used, place = np.unique(labels, return_inverse=True)
    tell(2 * count, 2 * count)
    return Clusters(centres[used], place.astype(np.int32), distances)


def _tree(
    vectors: Vectors,
    order: NDArray[np.int64],
    threshold: float,
    branching: int,
    limit: int,
    tell: Callable[[int], None],
) -> Floats:
    """Centres of the subclusters of vectors, entered in this order."""
    from sklearn.cluster import Birch

    birch = Birch(threshold=threshold, branching_factor=branching, n_clusters=None, compute_labels=False)
    for start in range(0, len(order), BLOCK):
        # Sums of squares of a million vectors need the digits.
        birch.partial_fit(vectors[order[start : start + BLOCK]].astype(np.float64))
        if len(birch.subcluster_centers_) > limit:  # it never falls again, so where the blocks end does not matter
            raise TooMany
        tell(min(start + BLOCK, len(order)))
    centres: Floats = birch.subcluster_centers_.astype(np.float32)
    return centres


def assign(vectors: Vectors, centres: Floats, tell: Callable[[int], None] = lambda done: None) -> tuple[Labels, Floats]:
    """The nearest centre of each vector, and the distance to it."""
    count = len(vectors)
    labels, distances = np.empty(count, np.int32), np.empty(count, np.float32)
    squares = np.einsum("kd,kd->k", centres, centres)
    for start in range(0, count, BLOCK):
        part = vectors[start : start + BLOCK]
        gap = squares - 2 * (part @ centres.T)
        labels[start : start + len(part)] = nearest = gap.argmin(axis=1)
        distances[start : start + len(part)] = np.linalg.norm(part - centres[nearest], axis=1)
        tell(start + len(part))
    return labels, distances


def outside(labels: Labels, distances: Floats, count: int, threshold: float) -> NDArray[np.bool_]:
    """[n] True for vectors far outside their clusters, and further from the centre than the threshold.

    Far is by median and median deviation, as the odd ones of a small cluster would widen its standard deviation. At
    least half of a cluster is never outside.
    """
    middle = _medians(labels, distances, count)
    spread = _medians(labels, np.abs(distances - middle[labels]), count)
    limit = np.maximum(middle + FAR * 1.4826 * spread, threshold)  # 1.4826: the deviation of a normal distribution
    far: NDArray[np.bool_] = distances > limit[labels]
    return far


def _medians(labels: Labels, values: Floats, count: int) -> Floats:
    """[count] median of each cluster's values, the upper one of two; 0 where there is none."""
    order = np.lexsort((values, labels))
    sizes = np.bincount(labels, minlength=count)
    out = np.zeros(count, np.float32)
    filled = sizes > 0
    out[filled] = values[order][(np.cumsum(sizes) - sizes + sizes // 2)[filled]]
    return out

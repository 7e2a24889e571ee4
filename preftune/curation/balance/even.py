"""A second sample, drawn evenly over what the first one showed.

Where one topic has a thousand times the rows of another, a fair sample hardly holds the other: neither the directions
of the embedding nor the sweep would know of it. So a longer file is sampled twice.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from preftune.curation.balance.clusters import Floats, Vectors, assign, cluster, outside

Numbers: TypeAlias = NDArray[np.int64]
EACH = 0.2
"""Share of the sample that one group has at most, so that a group of a hundred is seen beside one of a million."""


def even_sample(
    vectors: Vectors, fair: Floats, count: int, *, threshold: float, branching: int, seed: int
) -> tuple[Numbers, Numbers]:
    """Two samples of at most `count` vectors each, as even over all groups as their sizes allow.

    The groups: clusters of the fair sample, each vector with the nearest, and one of those that lie far outside theirs.
    Of a large group the two samples have different vectors. A small one is whole in both: then there are no vectors of
    it that a sample lacks, and nothing is measured too well.

    Args:
        vectors: [n, d], all.
        fair: [m, d], a fair sample of them.
        threshold: of the clusters.

    Returns:
        The numbers of both, each in random order.
    """
    found = cluster(fair, threshold, branching=branching, limit=len(fair), seed=seed)
    labels, distances = assign(vectors, found.centres)
    groups = len(found.centres)
    labels[outside(labels, distances, groups, threshold)] = groups
    rng = np.random.default_rng([seed, 3])
    order = rng.permutation(len(labels))
    ranked = order[np.argsort(labels[order], kind="stable")]  # group after group, each in random order
    sizes = np.bincount(labels, minlength=groups + 1)
    place = np.arange(len(ranked)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    each = _each(sizes, count)
    end = np.repeat(np.minimum(sizes, 2 * each), sizes)
    first, second = ranked[place < each], ranked[(place < end) & (place >= end - each)]
    return rng.permutation(first)[:count], rng.permutation(second)[:count]


def _each(sizes: Numbers, count: int) -> int:
    """The most that every group can have, so that all together have no more than `count`; 1 at least."""
    each = max(1, int(EACH * count))
    while each > 1 and np.minimum(sizes, each).sum() > count:
        each = each * 19 // 20
    return max(1, each)

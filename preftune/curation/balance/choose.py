"""Which rows of a cluster are kept, and how often: capping and raising as pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from preftune.curation.balance.clusters import Floats, Vectors
from preftune.curation.balance.config import BalanceConfig

Rows: TypeAlias = NDArray[np.int64]
POOL = 20_000
"""Texts of one cluster among which the diverse ones are sought; of a larger one, so many are drawn."""


def target_size(size: int, *, cap: int | None, raise_to: int | None, raise_from: int = 1) -> int:
    """Rows that a cluster of `size` rows has afterwards.

    >>> [target_size(size, cap=100, raise_to=10) for size in (100_500, 100, 1)]
    [100, 100, 10]
    """
    if cap is not None and size > cap:
        return cap
    if raise_to is not None and raise_from <= size < raise_to:
        return raise_to
    return size


def effective(sizes: Sequence[float]) -> float:
    """exp of the entropy of the clusters' shares: as many clusters of one size would be as even."""
    total = sum(sizes)
    return math.exp(-sum(size / total * math.log(size / total) for size in sizes if size))


@dataclass(frozen=True, slots=True)
class Chosen:
    """What becomes of each row.

    Attributes:
        copies: [rows], how often the row is written; 0 for those over the cap.
        weights: [rows], what each row counts: its copies, or its weight where rows are not repeated.
        before, after: [clusters], rows that each cluster has, and what they count afterwards.
    """

    copies: NDArray[np.int32]
    weights: NDArray[np.float64]
    before: Rows
    after: NDArray[np.float64]


def choose(
    labels: NDArray[np.int32], texts: NDArray[np.int32], vectors: Vectors, centres: Floats, config: BalanceConfig,
    prefer: NDArray[np.float64] | None = None, tell: Callable[[int, int], None] = lambda done, total: None,
) -> Chosen:  # fmt: skip
    """Cap and raise.

    Args:
        labels: [rows], cluster of each row.
        texts: [rows], which of the distinct texts each row has.
        vectors: [distinct texts, d].
        centres: [clusters, d].
        prefer: [rows], rows with a higher number are kept first.
        tell: told how many clusters of how many are done.
    """
    # Drawn once over all rows: a row's place in it decides wherever nothing else does.
    drawn = np.random.default_rng([config.seed, 1]).permutation(len(labels))
    before = np.bincount(labels, minlength=len(centres))
    copies, weights = np.ones(len(labels), np.int32), np.ones(len(labels))
    order = np.argsort(labels, kind="stable")
    for number, members in enumerate(np.split(order, np.cumsum(before)[:-1])):
        size = len(members)
        target = target_size(size, cap=config.cap, raise_to=config.raise_to, raise_from=config.raise_from)
        if target < size:
            copies[members] = 0
            kept = _best(members, target, texts, vectors, centres[number], config, prefer, drawn)
            copies[kept] = 1
            weights[members] = copies[members]
        elif target > size and config.raise_by == "weight":
            weights[members] = target / size
        elif target > size:
            copies[members] = target // size
            copies[members[np.argsort(drawn[members])[: target % size]]] += 1
            weights[members] = copies[members]
        tell(number + 1, len(before))
    after: NDArray[np.float64] = np.bincount(labels, weights, minlength=len(centres)).astype(np.float64)
    return Chosen(copies, weights, before, after)


def _best(
    members: Rows, count: int, texts: NDArray[np.int32], vectors: Vectors, centre: Floats, config: BalanceConfig,
    prefer: NDArray[np.float64] | None, drawn: Rows,
) -> Rows:  # fmt: skip
    """The rows of one cluster that are kept: those preferred, and of the last that are equally so, by `keep`."""
    first = members[:0]
    if prefer is not None:
        edge = np.sort(prefer[members])[-count]
        first = members[prefer[members] > edge]
        members = members[prefer[members] == edge]
    members = members[np.argsort(drawn[members])]
    wanted = count - len(first)
    if config.keep != "random" and wanted < len(members):
        members = _by_text(members, texts, vectors, centre, wanted, far=config.keep == "diverse")
    return np.concatenate([first, members[:wanted]])


def _by_text(
    members: Rows, texts: NDArray[np.int32], vectors: Vectors, centre: Floats, wanted: int, *, far: bool
) -> Rows:
    """Rows by the place of their texts. A text's second row comes after the first rows of all texts."""
    distinct, place = np.unique(texts[members], return_inverse=True)
    if len(distinct) > max(POOL, 2 * wanted) and far:
        # The first of them in drawn order are a fair draw.
        pooled = np.unique(place, return_index=True)[1].argsort()[: max(POOL, 2 * wanted)]
        distinct = np.sort(distinct[pooled])
        members = members[np.isin(texts[members], distinct)]
        place = np.searchsorted(distinct, texts[members])
    gap = _gaps(distinct, vectors, centre)
    ranks = np.empty(len(distinct), np.int64)
    ranks[_spread(vectors[distinct], gap, wanted) if far else np.argsort(gap, kind="stable")] = np.arange(len(distinct))
    again = _occurrence(place)
    return members[np.lexsort((np.arange(len(members)), ranks[place], again))]


def _gaps(rows: Any, vectors: Vectors, centre: Floats) -> Floats:
    parts = [np.linalg.norm(vectors[rows[at : at + 4096]] - centre, axis=1) for at in range(0, len(rows), 4096)]
    out: Floats = np.concatenate(parts)
    return out


def _spread(vectors: Floats, gap: Floats, count: int) -> Rows:
    """Farthest-point order (Gonzalez 1985): the most central one, then always the one farthest from all before it."""
    order = [int(gap.argmin())]
    near = np.full(len(vectors), np.inf, np.float32)
    while len(order) < min(count, len(vectors)):
        near = np.minimum(near, np.linalg.norm(vectors - vectors[order[-1]], axis=1))
        near[order[-1]] = -1  # never again, as a minimum stays
        order.append(int(near.argmax()))
    rest = np.setdiff1d(np.arange(len(vectors)), order)
    return np.concatenate([np.array(order, np.int64), rest])


def _occurrence(place: Any) -> Rows:
    """How often each value stood before: 0 for its first."""
    order = np.argsort(place, kind="stable")
    starts = np.flatnonzero(np.diff(place[order], prepend=-1))
    out = np.empty(len(place), np.int64)
    out[order] = np.arange(len(place)) - np.repeat(starts, np.diff(np.append(starts, len(place))))
    return out

"""Which threshold? Clusters of a sample at many of them, and the rule that chooses one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from preftune.curation.balance.clusters import Clusters, Floats, Labels, TooMany, cluster

FALLBACK = 0.5
"""The threshold where there is nothing to choose by. Two vectors within twice of it share a cluster."""
ENOUGH = 0.9
"""Of the best silhouette: the finest clusters that reach it are taken."""
COMPARED = 2000
"""Vectors whose silhouettes are measured, as each is compared with each."""
UPPER = (0.85, 0.9, 0.95, 0.99, 1.03, 1.08, 1.15)
"""Shares of the whole's squared radius. Where one topic has most rows, the whole is hardly wider than it."""


@dataclass(frozen=True, slots=True)
class Step:
    """The sample's clusters at one threshold, the mean of two orders where it says so.

    Attributes:
        threshold: BIRCH's.
        clusters: how many; of the first order, as are the next two.
        largest: share of the sample in the largest one.
        alone: share of the sample that is a cluster of one.
        silhouette: mean over the sample and both orders, −1 to 1; None with one cluster, or with none of two.
        stability: adjusted Rand index of the clusters of both orders: 1 where the order does not matter.
        too_many: more clusters than allowed; nothing else is known.
    """

    threshold: float
    clusters: int = 0
    largest: float = 0.0
    alone: float = 0.0
    silhouette: float | None = None
    stability: float | None = None
    too_many: bool = False


@dataclass(frozen=True, slots=True)
class Sweep:
    """All steps by rising threshold, and the one that was chosen.

    Attributes:
        steps: none where the sample is too small.
        threshold: the chosen one.
        why: how it was chosen, in words.
    """

    steps: tuple[Step, ...]
    threshold: float
    why: str

    def above(self, threshold: float) -> float | None:
        """The next larger threshold, None without one."""
        return min((step.threshold for step in self.steps if step.threshold > threshold), default=None)


def sweep(
    sample: Floats, *, branching: int, limit: int, seed: int, given: float | None = None,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Sweep:  # fmt: skip
    """Cluster a sample of distinct texts' vectors at many thresholds, twice each, in two orders.

    The range goes from half the median distance of nearest neighbours (half the distance is the radius of two) to just
    above the radius of the whole sample, in even steps of the squared radius. Above it there is one cluster, beside
    what lies far outside of it: that is the best there is where one topic has nearly all rows.

    The rule: of the thresholds whose silhouette reaches ENOUGH of the best one, the smallest that does not begin the
    row of them. Clusters that are nearly as good and finer are better to cap, as coarse ones throw topics together; at
    the very edge it depends on the order whether a topic falls to pieces.

    Args:
        sample: [n, d].
        given: a threshold that was set by hand: it is measured, too, and chosen.
        tell: told how many thresholds of how many are done.
    """
    thresholds = _thresholds(_some(sample, seed))
    if given is not None and len(sample) > 2:
        thresholds = sorted({*thresholds, given})
    judge = Silhouette(sample, seed)
    steps = []
    for number, threshold in enumerate(thresholds):
        steps.append(_step(sample, judge, threshold, branching, limit, seed))
        tell(number + 1, len(thresholds))
    threshold, why = (given, "it was set by hand") if given is not None else choose(steps, len(sample))
    return Sweep(tuple(steps), threshold, why)


def choose(steps: Sequence[Step], count: int) -> tuple[float, str]:
    """The threshold that the rule chooses among steps by rising threshold, and why, in words.

    Args:
        count: texts of the sample.
    """
    marks = [step.silhouette for step in steps]
    known = [mark for mark in marks if mark is not None]
    if not known:
        few = f"a sample of {_texts(count)} shows no groups to choose by"
        return FALLBACK, f"{few}, so it is the default"
    best = max(known)
    enough = [mark is not None and mark >= best - (1 - ENOUGH) * abs(best) for mark in marks]
    firm = [number for number in range(1, len(steps)) if enough[number] and enough[number - 1]]
    number = firm[0] if firm else enough.index(True)
    said = f"the smallest threshold whose silhouette reaches {ENOUGH:.0%} of the best one, {best:.2f}"
    return steps[number].threshold, f"{said}, {'as does the one before' if firm else 'though none beside it does'}"


def _texts(count: int) -> str:
    return f"{count} different text{'' if count == 1 else 's'}"


class Silhouette:
    """Mean silhouette (Rousseeuw 1987) of clusters of a sample, over some of it, as each is compared with each."""

    def __init__(self, sample: Floats, seed: int) -> None:
        self._rows = _places(len(sample), seed)
        self._gaps = _gaps(sample[self._rows])

    def __call__(self, labels: Labels) -> float | None:
        """None where all those compared share a cluster, or none shares any."""
        from sklearn.metrics import silhouette_score

        some = labels[self._rows]
        if not 1 < len(np.unique(some)) < len(some):
            return None
        return float(silhouette_score(self._gaps, some, metric="precomputed"))


def _places(count: int, seed: int) -> Any:
    return np.random.default_rng([seed, 4]).permutation(count)[:COMPARED]


def _some(sample: Floats, seed: int) -> Floats:
    some: Floats = sample[_places(len(sample), seed)]
    return some


def _thresholds(some: Floats) -> list[float]:
    if len(some) < 3:
        return []
    exact = some.astype(np.float64)
    radius = float(np.sqrt(max(0.0, (exact**2).sum(1).mean() - (exact.mean(0) ** 2).sum())))
    gaps = _gaps(exact)
    np.fill_diagonal(gaps, np.inf)
    low = float(np.median(gaps.min(axis=1))) / 2
    if radius < 1e-6:
        return []
    shares = [*np.linspace(min(low / radius, 0.5) ** 2, 0.8, 11), *UPPER]
    return sorted({round(radius * float(np.sqrt(share)), 4) for share in shares} - {0.0})


def _gaps(vectors: Any) -> Any:
    """[n, n] distances of all pairs."""
    squares = (vectors**2).sum(1)
    gaps = np.sqrt(np.clip(squares[:, None] + squares[None] - 2 * vectors @ vectors.T, 0, None))
    np.fill_diagonal(gaps, 0)
    return gaps


def _step(sample: Floats, judge: Silhouette, threshold: float, branching: int, limit: int, seed: int) -> Step:
    from sklearn.metrics import adjusted_rand_score

    try:
        both = [cluster(sample, threshold, branching=branching, limit=limit, seed=one) for one in (seed, seed + 1)]
    except TooMany:
        return Step(threshold, too_many=True)
    marks = [mark for mark in (judge(one.labels) for one in both) if mark is not None]
    sizes = _sizes(both[0])
    return Step(
        threshold,
        clusters=len(sizes),
        largest=float(sizes.max() / len(sample)),
        alone=float((sizes == 1).sum() / len(sample)),
        silhouette=sum(marks) / len(both) if marks else None,
        stability=float(adjusted_rand_score(both[0].labels, both[1].labels)),
    )


def _sizes(found: Clusters) -> Any:
    return np.bincount(found.labels, minlength=len(found.centres))

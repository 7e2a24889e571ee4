"""95 % intervals of a mean and of a paired change. Everything that a report states carries one of these.

Nothing here is random, so a resumed run and a repeated report give the same digits:

- a share (all values 0 or 1): Wilson's score interval, right for shares near 0 and 1 and for few rows;
- any other mean: Student's t;
- the change of a share on the same rows: Bonett and Price's adjusted Wald interval for paired proportions;
- the change of any other mean on the same rows: Student's t on the row differences;
- the area under a ROC curve: DeLong's interval, for rows in clusters Obuchowski's;
- a weighted mean of such values: an interval made from theirs (MOVER);
- rows that all have one value, unless they are a share: no interval. They show no spread to make one from.

A bootstrap was the alternative. It needs a seed, and on few rows it is too narrow: when no row changed it
claims to be certain. These formulas cover as promised there (tests/test_intervals.py simulates it).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

Z95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class Interval:
    """A measured value and its 95 % interval.

    Attributes:
        value: the plain mean (or mean difference), in the metric's own unit.
        low, high: ends of the interval; -inf and inf when the rows can't bound it: a single row, or rows that are
            all equal, of a value that is no share.
        n: rows that it was measured on.
    """

    value: float
    low: float
    high: float
    n: int

    @property
    def is_bounded(self) -> bool:
        """False when there were too few rows for an interval, or rows without any spread."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def excludes(self, point: float) -> bool:
        """True when `point` lies outside the interval."""
        return point < self.low or point > self.high

    def to_json(self) -> dict[str, float | int | None]:
        """`{"value", "low", "high", "n"}`, with null for an end that isn't finite (JSON has no infinity)."""
        return {
            "value": self.value,
            "low": self.low if math.isfinite(self.low) else None,
            "high": self.high if math.isfinite(self.high) else None,
            "n": self.n,
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Interval:
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError on anything else."""
        low, high = raw["low"], raw["high"]
        return cls(
            value=float(raw["value"]),
            low=-math.inf if low is None else float(low),
            high=math.inf if high is None else float(high),
            n=int(raw["n"]),
        )


def mean_interval(values: Sequence[float] | npt.NDArray[Any], *, binary: bool | None = None) -> Interval:
    """Mean of independent rows with its 95 % interval.

    Args:
        values: one number per row.
        binary: whether the values are 0 or 1 by their nature, so that their mean is a share. None: the values
            decide. Rows of nothing but 0 could then also be of a reward that pays 3 for a success; a caller who
            has seen such a value says False (see `is_binary`).

    Returns:
        Wilson's score interval for a share, Student's t interval otherwise. Equal values that are no share, and
        a single one, have no bounds.

    Raises:
        ValueError: no rows, a value that isn't finite, or one that isn't 0 or 1 although `binary` is True.

    References:
        Wilson (1927), "Probable inference, the law of succession, and statistical inference", eq. 3.
    """
    rows = _rows(values, "values")
    share = is_binary(rows)
    if binary and not share:
        raise ValueError(f"`values` must be 0 or 1; row {int(np.argmin(np.isin(rows, (0.0, 1.0))))} is not")
    return _wilson(rows) if share and binary is not False else _student(rows)


def paired_difference(
    before: Sequence[float] | npt.NDArray[Any], after: Sequence[float] | npt.NDArray[Any]
) -> Interval:
    """Mean of `after - before` over the same rows, with its 95 % interval.

    Pairing removes the rows' own difficulty, so the interval is narrower than the two separate ones suggest.

    Args:
        before: one number per row.
        after: one number per row, the same rows in the same order.

    Returns:
        With values of 0 and 1 only, Bonett and Price's interval: with b rows that rose and c that fell,
        p = (b+1)/(n+2), q = (c+1)/(n+2), (p - q) ± z·sqrt((p + q - (p - q)²) / (n + 2)), cut to [-1, 1];
        the value is the plain (b - c)/n. Both columns decide together: when `before` is all 0 and `after` holds a
        3, neither is a share. Otherwise Student's t on the differences, without bounds when they are all equal.

    Raises:
        ValueError: no rows, different lengths, or a value that isn't finite.

    References:
        Bonett and Price (2012), "Adjusted Wald confidence interval for a difference of binomial proportions
        based on paired data".
    """
    first, second = _rows(before, "before"), _rows(after, "after")
    if len(first) != len(second):
        raise ValueError(f"a paired difference needs the same rows: before has {len(first)}, after has {len(second)}")
    if not (is_binary(first) and is_binary(second)):
        return _student(second - first)
    n = len(first)
    rose, fell = int(np.sum(second > first)), int(np.sum(second < first))
    p, q = (rose + 1) / (n + 2), (fell + 1) / (n + 2)
    half = Z95 * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    return Interval((rose - fell) / n, max(-1.0, p - q - half), min(1.0, p - q + half), n)


def auc_interval(
    scores: Sequence[float] | npt.NDArray[Any],
    positive: Sequence[bool] | npt.NDArray[Any],
    clusters: Sequence[int] | npt.NDArray[Any] | None = None,
) -> Interval:
    """Area under the ROC curve, with DeLong's 95 % interval.

    The area is the chance that a positive scores higher than a negative, drawn at random; a tie counts ½. With
    V(x) the share of negatives under the positive x and V(y) the share of positives over the negative y, the
    variance is var(V(x)) / positives + var(V(y)) / negatives. Rows of one cluster (several answers to one question)
    depend on each other, so their deviations from the area are summed before they are squared; with one row per
    cluster that is DeLong's formula.

    Args:
        scores: one number per row, higher for those taken to be positive.
        positive: whether the row is a positive.
        clusters: a number for each row, equal for rows that depend on each other; None: every row is its own.

    Returns:
        The area ± z·se, cut to [0, 1], n = rows. No bounds where the variance can't be estimated: one cluster with
        positives (or negatives) alone, or scores that separate the two without an exception.

    Raises:
        ValueError: positives or negatives are missing, lengths differ, or a score isn't finite.

    References:
        DeLong, DeLong and Clarke-Pearson (1988), "Comparing the areas under two or more correlated receiver
        operating characteristic curves"; Obuchowski (1997), "Nonparametric analysis of clustered ROC curve data".
    """
    rows, label = _rows(scores, "scores"), np.asarray(positive, dtype=bool)
    owner = np.arange(len(rows)) if clusters is None else np.asarray(clusters)
    if not len(rows) == len(label) == len(owner):
        raise ValueError(f"{len(rows)} scores need as many labels and clusters, not {len(label)} and {len(owner)}")
    n_high, n_low = int(label.sum()), int((~label).sum())
    if not n_high or not n_low:
        raise ValueError(f"the area needs positives and negatives; there are {n_high} and {n_low}")
    high, low = np.sort(rows[label]), np.sort(rows[~label])
    # a value's rank among the others is the mean of its two insertion points: ties count half
    under = (np.searchsorted(low, rows[label], "left") + np.searchsorted(low, rows[label], "right")) / (2 * n_low)
    over = 1 - (np.searchsorted(high, rows[~label], "left") + np.searchsorted(high, rows[~label], "right")) / (
        2 * n_high
    )
    area = float(under.mean())
    _, place = np.unique(owner, return_inverse=True)
    size = int(place.max()) + 1
    high_sums = np.bincount(place[label], under - area, size)
    low_sums = np.bincount(place[~label], over - area, size)
    with_high, with_low = len(np.unique(place[label])), len(np.unique(place[~label]))
    if min(with_high, with_low) < 2:
        return Interval(area, -math.inf, math.inf, len(rows))
    variance = (
        with_high / (with_high - 1) * float(high_sums @ high_sums) / n_high**2
        + with_low / (with_low - 1) * float(low_sums @ low_sums) / n_low**2
        + 2 * size / (size - 1) * float(high_sums @ low_sums) / (n_high * n_low)
    )
    if variance <= 1e-15:  # 0 but for rounding
        return Interval(area, -math.inf, math.inf, len(rows))
    half = Z95 * math.sqrt(variance)
    return Interval(area, max(0.0, area - half), min(1.0, area + half), len(rows))


def weighted_mean(parts: Sequence[Interval], weights: Sequence[float]) -> Interval:
    """Weighted mean of values measured on different rows, with an interval made from theirs.

    Args:
        parts: one interval each, from rows that do not depend on each other.
        weights: one positive weight each; they are divided by their sum.

    Returns:
        With weights w, values v and ends l: the lower end is Σ w·v − sqrt(Σ w²·(v − l)²), the upper one likewise.
        So it keeps what is right about the parts' intervals near 0 and 1. Without bounds when a part has none.

    Raises:
        ValueError: no parts, as many weights as parts missing, or a weight that isn't positive.

    References:
        Zou and Donner (2008), "Construction of confidence limits about effect measures: a general approach" (MOVER).
    """
    if not parts or len(parts) != len(weights) or min(weights) <= 0:
        raise ValueError(f"{len(parts)} parts need as many weights above 0, got {list(weights)}")
    shares = [weight / sum(weights) for weight in weights]
    value = math.fsum(share * part.value for share, part in zip(shares, parts, strict=True))
    below = math.hypot(*(share * (part.value - part.low) for share, part in zip(shares, parts, strict=True)))
    above = math.hypot(*(share * (part.high - part.value) for share, part in zip(shares, parts, strict=True)))
    return Interval(value, value - below, value + above, sum(part.n for part in parts))


def is_binary(values: Sequence[float] | npt.NDArray[Any]) -> bool:
    """True when every value is 0 or 1."""
    return bool(np.isin(np.asarray(values, dtype=np.float64), (0.0, 1.0)).all())


def _rows(values: Sequence[float] | npt.NDArray[Any], name: str) -> npt.NDArray[np.float64]:
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 1 or rows.size == 0:
        raise ValueError(f"`{name}` must be a non-empty list of numbers, one per row; got shape {rows.shape}")
    if not np.isfinite(rows).all():
        raise ValueError(f"`{name}` must be finite; row {int(np.argmin(np.isfinite(rows)))} is not")
    return rows


def _wilson(rows: npt.NDArray[np.float64]) -> Interval:
    n = len(rows)
    share = float(rows.mean())
    z2 = Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # At 0 and 1 the bound is the share itself; rounding would leave 1e-17 on the wrong side of it.
    low = 0.0 if share == 0.0 else max(0.0, centre - half)
    high = 1.0 if share == 1.0 else min(1.0, centre + half)
    return Interval(share, low, high, n)


def _student(rows: npt.NDArray[np.float64]) -> Interval:
    n = len(rows)
    mean = float(rows.mean())
    if (rows == rows[0]).all():
        return Interval(float(rows[0]), -math.inf, math.inf, n)
    half = t_quantile(n - 1) * float(rows.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def t_quantile(df: int) -> float:
    """The 0.975 quantile of Student's t with `df` degrees of freedom (12.706 for 1, 1.960 in the limit).

    Raises:
        ValueError: df under 1.

    References:
        Abramowitz and Stegun (1964), 26.7.3 and 26.7.4 (finite series, df ≤ 30), 26.7.5 (expansion above; its
        error there is under 3e-6).
    """
    if df < 1:
        raise ValueError(f"Student's t needs at least 1 degree of freedom, got {df}")
    if df > 30:
        z = Z95
        return (
            z
            + (z**3 + z) / (4 * df)
            + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)
            + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * df**3)
        )
    low, high = 1.9, 13.0
    for _ in range(60):  # 11 / 2^60 is below the spacing of doubles here
        middle = (low + high) / 2
        low, high = (middle, high) if _central_mass(middle, df) < 0.95 else (low, middle)
    return (low + high) / 2


def _central_mass(t: float, df: int) -> float:
    """P(|T| < t) for integer df, as a finite sum over θ = atan(t / sqrt(df))."""
    theta = math.atan(t / math.sqrt(df))
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = df % 2
    if df == 1:
        return 2 * theta / math.pi
    term, total = (cosine, cosine) if odd else (1.0, 1.0)
    for k in range(3 if odd else 2, df - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    return 2 / math.pi * (theta + sine * total) if odd else sine * total

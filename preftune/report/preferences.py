"""What a run on preferences or labels learned, from each completion's reward: how often in order, where, how sure.

Pairs of one prompt depend on each other, so every share below is a mean over prompts: of a prompt, the mean over its
pairs. With one pair per prompt that is the plain share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from preftune.intervals import Interval, mean_interval, paired_difference
from preftune.report.answers import Answers, Measured, Place, compares, is_desirable, loss_of
from preftune.report.read import Run

Floats = npt.NDArray[np.float64]
MAX_PAIRS = 200_000
"""Pairs that are looked at. Of more, those of every k-th prompt."""
BUCKETS = 4
SOURCES = 8
"""Pairs of sources with a row of their own; the others share one."""
BIN = 15
"""Fewest pairs per calibration bin."""
LOGISTIC = ("dpo", "conservative", "robust", "cpo", "bradley-terry")
"""Losses under which σ(margin) is the model's probability that the chosen completion is the better one."""


@dataclass(slots=True)
class Pairs:
    """P pairs of places. `margin_P`: reward of the chosen one minus the rejected one's; NaN where it is not known."""

    places: list[tuple[Place, Place]]
    group_P: npt.NDArray[np.int64]
    before_P: Floats
    after_P: Floats
    longer_P: Floats
    """Tokens of the chosen completion minus those of the rejected one."""
    length_P: Floats
    """Tokens of the longer of the two."""
    sources: list[str]
    note: str = ""

    @property
    def now_P(self) -> Floats:
        """Margins after training, before it where there is no later measurement."""
        return self.after_P if np.isfinite(self.after_P).any() else self.before_P


@dataclass(frozen=True, slots=True)
class Cut:
    """Accuracy on some of the pairs."""

    heading: str
    name: str
    pairs: int
    before: Interval | None
    after: Interval | None


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs of similar confidence: the mean of what the model says, and the share that came true."""

    said: float
    observed: Interval
    pairs: int


@dataclass(slots=True)
class Calibration:
    """`chance`: about the error that a perfectly calibrated model would show on so few pairs."""

    bins: list[Bin]
    error: float
    chance: float


@dataclass(slots=True)
class LengthRule:
    """How far the pairs could be told apart by length alone. `gain`: model minus the better rule, same prompts."""

    longer: Interval
    rule: str
    accuracy: float
    gain: Interval
    known: dict[str, Interval] = field(default_factory=dict)


def find_pairs(run: Run, measured: Measured) -> Pairs:
    """Every two completions of a prompt that the data tells apart; by `loss.pairs` only the best and the worst."""
    known = measured.after or measured.before
    groups: dict[int, list[Place]] = {}
    for place in sorted(known):
        groups.setdefault(place[0], []).append(place)
    section = run.recipe.get("loss")
    ends_only = isinstance(section, dict) and section.get("pairs") == "best-worst"
    labels = compares(run) == "labels"

    def score(place: Place) -> float:
        return float(is_desirable(run, known[place])) if labels else known[place].score

    places: list[tuple[Place, Place]] = []
    total = sum(len(own) * (len(own) - 1) // 2 for own in groups.values())
    stride = 1 if ends_only else max(1, math.ceil(total / MAX_PAIRS))
    for own in list(groups.values())[::stride]:
        if ends_only:
            best, worst = max(own, key=score), min(own, key=score)
            places += [(best, worst)] if score(best) > score(worst) else []
        else:
            places += [(a, b) for a in own for b in own if score(a) > score(b)]
    note = (
        f"{total:,} pairs are too many to look at each: these are those of every {stride}th prompt."
        if stride > 1
        else ""
    )
    chosen, rejected = [known[a] for a, _ in places], [known[b] for _, b in places]
    return Pairs(
        places,
        np.array([a[0] for a, _ in places], dtype=np.int64),
        _margins(measured.before, places),
        _margins(measured.after, places),
        np.array([a.length - b.length for a, b in zip(chosen, rejected, strict=True)], dtype=np.float64),
        np.array([max(a.length, b.length) for a, b in zip(chosen, rejected, strict=True)], dtype=np.float64),
        [f"{a.source or '?'} over {b.source or '?'}" for a, b in zip(chosen, rejected, strict=True)],
        note,
    )


def _margins(answers: Answers, places: Sequence[tuple[Place, Place]]) -> Floats:
    found = [(answers.get(a), answers.get(b)) for a, b in places]
    return np.array([math.nan if a is None or b is None else a.reward - b.reward for a, b in found], dtype=np.float64)


def right(margin_P: Floats) -> Floats:
    """1 where the chosen completion has the higher reward, ½ for a tie, NaN where it is not known."""
    return np.asarray(0.5 * (1.0 + np.sign(margin_P)), dtype=np.float64)


def by_prompt(values_P: Floats, group_P: npt.NDArray[np.int64]) -> Floats:
    """Mean per prompt, in order of prompts."""
    _, place = np.unique(group_P, return_inverse=True)
    return np.asarray(np.bincount(place, values_P) / np.bincount(place), dtype=np.float64)


def share(values_P: Floats, group_P: npt.NDArray[np.int64], mask_P: npt.NDArray[np.bool_]) -> Interval | None:
    """Mean over the prompts of the masked pairs whose value is known; None when there is none."""
    mask_P = mask_P & np.isfinite(values_P)
    return mean_interval(by_prompt(values_P[mask_P], group_P[mask_P])) if mask_P.any() else None


def cuts(pairs: Pairs) -> list[Cut]:
    """Accuracy on all pairs, by which side is longer, by length, and by who wrote what."""
    before_P, after_P = right(pairs.before_P), right(pairs.after_P)
    out: list[Cut] = []

    def add(heading: str, name: str, mask_P: npt.NDArray[np.bool_]) -> None:
        if mask_P.any():
            ends = (share(before_P, pairs.group_P, mask_P), share(after_P, pairs.group_P, mask_P))
            out.append(Cut(heading, name, int(mask_P.sum()), *ends))

    add("", "All pairs", np.ones(len(pairs.places), dtype=bool))
    heading = "Which side is longer"
    add(heading, "the chosen one", pairs.longer_P > 0)
    add(heading, "the rejected one", pairs.longer_P < 0)
    add(heading, "neither", pairs.longer_P == 0)
    edges = np.unique(np.quantile(pairs.length_P, np.linspace(0, 1, BUCKETS + 1)[1:-1], method="lower"))
    lows = [-math.inf, *edges]
    highs = [*edges, math.inf]
    for low, high in zip(lows, highs, strict=True):
        mask_P = (pairs.length_P > low) & (pairs.length_P <= high)
        if mask_P.any() and len(edges) and not mask_P.all():
            inside = pairs.length_P[mask_P]
            first, last = int(inside.min()), int(inside.max())
            add("Tokens of the longer side", f"{first} to {last}" if last > first else f"{first}", mask_P)
    names = np.array(pairs.sources)
    kinds, counts = np.unique(names, return_counts=True)
    order = [str(kinds[i]) for i in np.lexsort((kinds, -counts))]
    if len(order) > 1:
        most_common = len(order) if len(order) == SOURCES + 1 else SOURCES
        for name in order[:most_common]:
            add("Chosen over rejected, by source", name, names == name)
        rest = order[most_common:]
        if rest:
            add("Chosen over rejected, by source", f"{len(rest)} other kinds", np.isin(names, rest))
    return out


def length_rule(pairs: Pairs) -> LengthRule | None:
    """What "the longer one is better" gets right, and whether the model does better than the better length rule."""
    known_P = np.isfinite(pairs.now_P)
    if not known_P.any():
        return None
    group_P = pairs.group_P[known_P]
    longer = by_prompt(right(pairs.longer_P[known_P]), group_P)
    model = by_prompt(right(pairs.now_P[known_P]), group_P)
    up = longer.mean() >= 0.5
    rule = longer if up else 1.0 - longer
    return LengthRule(
        mean_interval(longer), "the longer" if up else "the shorter", float(rule.mean()), paired_difference(rule, model)
    )


def calibration(run: Run, pairs: Pairs) -> Calibration | None:
    """Confidence σ(|margin|), from ½ to 1, beside the share of pairs that the model puts in the data's order.

    Bins hold equally many pairs. The expected calibration error is Σ (n_b / n) · |said_b − observed_b|, with n_b the
    number of pairs in bin b. None for losses that give margins no probability.

    References:
        Guo et al. 2017, "On calibration of modern neural networks", eq. 3.
    """
    loss = loss_of(run)
    margin_P = pairs.now_P
    known_P = np.isfinite(margin_P)
    if loss is None or loss.name not in LOGISTIC or not known_P.any():
        return None
    margin_P, group_P = margin_P[known_P], pairs.group_P[known_P]
    if not margin_P.any():
        return None
    confidence_P = 1.0 / (1.0 + np.exp(-np.abs(margin_P)))
    order = np.argsort(confidence_P, kind="stable")
    count = max(1, min(10, len(order) // BIN))
    bins = []
    for part in np.array_split(order, count):
        said = float(by_prompt(confidence_P[part], group_P[part]).mean())
        observed = share(right(margin_P[part]), group_P[part], np.ones(len(part), dtype=bool))
        assert observed is not None
        bins.append(Bin(said, observed, len(part)))
    error = sum(b.pairs * abs(b.said - b.observed.value) for b in bins) / len(order)
    # A bin's share has standard deviation sqrt(p(1 − p) / n); the mean of |a normal deviation| is sqrt(2 / π) of that.
    spread = [math.sqrt(2 / math.pi * b.said * (1 - b.said) / b.observed.n) for b in bins]
    chance = sum(b.pairs * deviation for b, deviation in zip(bins, spread, strict=True)) / len(order)
    return Calibration(bins, error, chance)


def most(values_P: Floats, pairs: Pairs, count: int, wanted: Callable[[int], bool]) -> list[int]:
    """Indices of the pairs with the largest values, at most one per prompt; unknown ones never."""
    out: list[int] = []
    seen: set[int] = set()
    order = np.argsort(-np.where(np.isfinite(values_P), values_P, -np.inf), kind="stable")
    for index in (int(i) for i in order):
        group = int(pairs.group_P[index])
        if len(out) == count or not math.isfinite(values_P[index]):
            break
        if group not in seen and wanted(index):
            seen.add(group)
            out.append(index)
    return out

"""How far raters agree: one coefficient over all, the share of pairs, and each rater's own bias and spread."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from statistics import fmean, stdev, variance
from typing import Any, Literal

from preftune.human.ratings import Judged, by_rater

LOW = 0.4
"""Under this alpha the warning speaks. Krippendorff himself asks for 0.8 and allows 0.667 for tentative conclusions;
ratings of open answers rarely get there, and a mean over raters is steadier than each of them."""


@dataclass(frozen=True, slots=True)
class Rater:
    """One rater beside the others.

    Attributes:
        ratings: of prompts that he rated wholly.
        mean, spread: of his numbers; the sample's deviation, None with a single number.
        bias: mean of his score minus the mean of the others' on the same answer; None for ranks, whose mean is fixed,
            and without others.
        share: as `Agreement.share`, of the pairs that he is part of.
    """

    ratings: int
    mean: float
    spread: float | None
    bias: float | None
    share: float | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far the raters of a round agree.

    Attributes:
        alpha: Krippendorff's, 1 for perfect agreement, 0 for what chance would give; None where it can't be measured.
        metric: of alpha.
        share: of all cases where two raters both prefer one of two answers to a prompt, those where it is the same
            one; None without such a case.
        decided, tied: cases, and cases left out because a rater gave both answers the same.
        raters: by name.
        disputed: pairs of answers on which two raters prefer different ones, the widest disputes first.
        warning: in words, "" without one.
    """

    alpha: float | None
    metric: Literal["interval", "ordinal"]
    share: float | None
    decided: int
    tied: int
    raters: Mapping[str, Rater]
    disputed: tuple[Mapping[str, Any], ...]
    warning: str

    def to_json(self) -> dict[str, Any]:
        return {
            "alpha": self.alpha, "metric": self.metric, "share": self.share, "decided": self.decided,
            "tied": self.tied, "raters": {name: asdict(rater) for name, rater in self.raters.items()},
            "warning": self.warning, "disputed": list(self.disputed),
        }  # fmt: skip


def agree(table: Judged, rate: str) -> Agreement:
    """Measure what counts of a round's ratings."""
    metric: Literal["interval", "ordinal"] = "ordinal" if rate == "rank" else "interval"
    alpha = krippendorff(_units(table), metric)
    counts: dict[str, list[int]] = {name: [0, 0] for name in by_rater(table)}
    tied = 0
    disputed: list[tuple[float, dict[str, Any]]] = []
    for prompt, raters in table.items():
        for (one, first), (other, second) in combinations(raters.items(), 2):
            for a, b in combinations(first, 2):
                mine, theirs = first[a] - first[b], second[a] - second[b]
                if mine == 0.0 or theirs == 0.0:
                    tied += 1
                    continue
                same = (mine > 0.0) == (theirs > 0.0)
                for name in (one, other):
                    counts[name][0] += same
                    counts[name][1] += 1
                if not same:
                    values = {one: [first[a], first[b]], other: [second[a], second[b]]}
                    pair = {"prompt": prompt + 1, "answers": [a, b], "ratings": values}
                    disputed.append((abs(mine - theirs), pair))
    decided = sum(total for _, total in counts.values()) // 2
    agreed = sum(same for same, _ in counts.values()) // 2
    found = {
        name: Rater(
            ratings=len(values),
            mean=fmean(values),
            spread=stdev(values) if len(values) > 1 else None,
            bias=_bias(table, name) if rate == "score" else None,
            share=counts[name][0] / counts[name][1] if counts[name][1] else None,
        )
        for name, values in by_rater(table).items()
    }
    disputed.sort(key=lambda found: -found[0])
    return Agreement(
        alpha, metric, agreed / decided if decided else None, decided, tied, found,
        tuple(pair for _, pair in disputed),
        _warning(alpha, table, len(found)),
    )  # fmt: skip


def krippendorff(units: Sequence[Sequence[float]], metric: Literal["interval", "ordinal"]) -> float | None:
    """Krippendorff's alpha = 1 − D_o / D_e.

    With x a value's position, m_u the ratings of unit u, n those of all units with two or more, and s² a sample's
    variance, both disagreements are mean squared distances of pairs:

        D_o = 2/n Σ_u m_u s_u²        D_e = 2 s²  over all n

    The position is the value itself for the interval metric. For the ordinal one it is the number of ratings below,
    plus half of those equal: the distance of two positions is then Σ n_g from c to k, less (n_c + n_k) / 2.

    Args:
        units: the ratings of each answer, one per rater.

    Returns:
        Alpha, or None when no answer has two ratings, or all ratings are equal.

    References:
        Krippendorff (2011), "Computing Krippendorff's alpha-reliability", which has the metrics; (2004), "Content
        analysis", ch. 11.
    """
    paired = [unit for unit in units if len(unit) > 1]
    values = [value for unit in paired for value in unit]
    if len(set(values)) < 2:
        return None
    position = _midpoints(values) if metric == "ordinal" else {value: value for value in values}
    expected = variance([position[value] for value in values])
    observed = math.fsum(len(unit) * variance([position[value] for value in unit]) for unit in paired) / len(values)
    return 1.0 - observed / expected


def _midpoints(values: Sequence[float]) -> dict[float, float]:
    out: dict[float, float] = {}
    below = 0
    for value, count in sorted(Counter(values).items()):
        out[value] = below + count / 2
        below += count
    return out


def _units(table: Judged) -> list[list[float]]:
    return [
        [values[name] for values in raters.values()]
        for raters in table.values()
        for name in next(iter(raters.values()))
    ]


def _bias(table: Judged, rater: str) -> float | None:
    apart = [
        value - fmean(values[name] for other, values in raters.items() if other != rater)
        for raters in table.values()
        if rater in raters and len(raters) > 1
        for name, value in raters[rater].items()
    ]
    return fmean(apart) if apart else None


def _warning(alpha: float | None, table: Judged, raters: int) -> str:
    if raters < 2:
        return "one rater only: no agreement can be measured; a second one on some prompts would show how sure this is"
    if all(len(found) < 2 for found in table.values()):
        return "no prompt was rated by two raters: no agreement can be measured; let them share some prompts"
    if alpha is None:
        return "all ratings are equal: no agreement can be measured, and there is nothing to learn from them"
    if alpha < LOW:
        return (
            f"raters agree little (alpha {alpha:.2f}, under {LOW}): much of the scores is noise. Read the disputed "
            "pairs in agreement.json, make HOW_TO_RATE.md clearer or train the raters, and let more of them rate"
        )
    return ""


def words(agreement: Agreement) -> list[str]:
    """What to print."""
    out: list[str] = []
    if agreement.alpha is not None:
        out.append(f"agreement: Krippendorff's alpha {agreement.alpha:.2f} ({agreement.metric})")
    if agreement.share is not None:
        ties = f", {agreement.tied} with a tie left out" if agreement.tied else ""
        out.append(
            f"two raters prefer the same of two answers in {agreement.share:.0%} of {agreement.decided} cases{ties}; "
            f"{len(agreement.disputed)} disputed pairs in agreement.json"
        )
    for name, rater in agreement.raters.items():
        parts = [f"{rater.ratings} ratings", f"mean {rater.mean:.3g}"]
        parts += [] if rater.spread is None else [f"spread {rater.spread:.3g}"]
        parts += [] if rater.bias is None else [f"bias {rater.bias:+.3g} beside the others"]
        parts += [] if rater.share is None else [f"agrees in {rater.share:.0%}"]
        out.append(f"  {name}: {', '.join(parts)}")
    return [*out, f"warning: {agreement.warning}"] if agreement.warning else out

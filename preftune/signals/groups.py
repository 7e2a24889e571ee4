"""From the scores of groups to one advantage per completion, or to pairs.

Shapes: the legend in `preftune.records`; S completions, each with the index of its group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Advantage: TypeAlias = Literal["group-std", "group-mean", "batch-std", "leave-one-out"]

# Keeps a nearly constant group from blowing its noise up; the field's value for GRPO.
STD_EPSILON = 1e-4


def group_advantages(scores_S: Tensor, group_S: Tensor, kind: Advantage) -> Tensor:
    """Advantage of each completion over the others of its group.

    With mean_g and std_g of the group's n scores (std Bessel-corrected: divided by n − 1) and std of all scores:

        group-std       (r − mean_g) / (std_g + 1e-4)      GRPO
        group-mean      r − mean_g                         Dr. GRPO
        batch-std       (r − mean_g) / (std + 1e-4)        TRL's scale_rewards="batch"
        leave-one-out   r − mean of the others' scores     RLOO

    Groups may differ in size and lie in any order. A group of one, and a group whose scores are all equal,
    has nothing to compare: its advantages are exactly 0, whatever rounding does to its mean.

    Args:
        scores_S: score of each completion of the **whole** batch, finite.
        group_S: long; each completion's group, in 0 … number of groups - 1.
        kind: one of the four.

    Returns:
        (S,) advantages in fp32, or fp64 when the scores are; no gradient.

    Raises:
        ValueError: a score is not finite, shapes differ, or the kind is unknown.

    References:
        Shao et al. 2024 (GRPO, sec. 4.1.2); Liu et al. 2025 (Dr. GRPO); Ahmadian et al. 2024 (RLOO, eq. 9).
    """
    if kind not in ("group-std", "group-mean", "batch-std", "leave-one-out"):
        raise ValueError(f"unknown advantage {kind!r}; choose group-std, group-mean, batch-std or leave-one-out")
    scores_S = _checked(scores_S, group_S)
    if scores_S.numel() == 0:
        return scores_S
    size_S = torch.bincount(group_S)[group_S].to(scores_S.dtype)
    centered_S = scores_S - _group_sums(scores_S, group_S)[group_S] / size_S

    if kind == "leave-one-out":
        # r − (Σr − r)/(n − 1) = (r − mean)·n/(n − 1), which loses no digits when scores are large.
        advantages_S = centered_S * size_S / (size_S - 1.0).clamp(min=1.0)
    elif kind == "group-std":
        variance_S = _group_sums(centered_S.square(), group_S)[group_S] / (size_S - 1.0).clamp(min=1.0)
        advantages_S = centered_S / (variance_S.sqrt() + STD_EPSILON)
    elif kind == "batch-std":
        std = scores_S.std(correction=1) if scores_S.numel() > 1 else scores_S.new_zeros(())
        advantages_S = centered_S / (std + STD_EPSILON)
    else:
        advantages_S = centered_S
    # The mean of equal numbers is not always that number: three times 0.1 is not 0.3. Dividing the leftover by
    # a std near 0 would make a gradient out of rounding.
    spread_S = group_spread(scores_S, group_S)[group_S]
    return torch.where(spread_S > 0.0, advantages_S, torch.zeros_like(advantages_S))


def normalized_advantages(scores_SR: Tensor, weights_R: Tensor, group_S: Tensor) -> Tensor:
    """Several rewards, each brought to one scale in its group before they are weighted, summed and normalised again.

        A = Σ_r w_r (r − mean_g) / (std_g + 1e-4), then (A − mean) / (std + 1e-4) over the batch

    A reward with a wide range then can't drown one with a narrow range. A reward that does not apply to a completion
    (NaN) adds nothing to it, and its group's mean and deviation are those of the others. A completion to which none
    applies gets 0 and counts in no mean or deviation.

    Args:
        scores_SR: each reward's own value of each completion; NaN where it did not apply.
        weights_R: the rewards' weights.
        group_S: long; each completion's group.

    Returns:
        (S,) advantages in fp32, or fp64 when the scores are; no gradient. All 0 where no group has a spread in any
        reward.

    Raises:
        ValueError: shapes that don't fit together, an infinite score.

    References:
        Liu et al. 2026, "GDPO: Group reward-Decoupled Normalization Policy Optimization", eqs. 4 to 6.
    """
    if scores_SR.dim() != 2 or scores_SR.shape[1] != weights_R.numel() or scores_SR.shape[0] != group_S.numel():
        raise ValueError(
            f"scores of shape {tuple(scores_SR.shape)} for {group_S.numel()} completions and "
            f"{weights_R.numel()} weights"
        )
    if bool(scores_SR.isinf().any()):
        raise ValueError("a score is infinite")
    scores_SR = scores_SR.detach().to(torch.promote_types(scores_SR.dtype, torch.float32))
    total_S = scores_SR.new_zeros(len(group_S))
    if not len(group_S):
        return total_S
    for r, weight in enumerate(weights_R.tolist()):
        known_S = ~scores_SR[:, r].isnan()
        if not bool(known_S.any()) or weight == 0.0:
            continue
        # A group without a known score has no number of its own here, and no spread to speak of.
        _, inner = torch.unique(group_S[known_S], return_inverse=True)
        total_S[known_S] += weight * group_advantages(scores_SR[known_S, r], inner, "group-std")
    if not bool(total_S.any()):
        return total_S
    scored_S = ~scores_SR.isnan().all(dim=1)
    scored = total_S[scored_S]  # at least two: one alone has no spread
    advantages_S = (total_S - scored.mean()) / (scored.std(correction=1) + STD_EPSILON)
    return torch.where(scored_S, advantages_S, torch.zeros_like(advantages_S))


@dataclass(frozen=True, slots=True)
class Pairs:
    """Which completions of a batch are compared.

    Attributes:
        pairs_P2: long (P, 2); chosen and rejected, as indices in the flat order of the batch's completions. Both are of
            one group, and the chosen one's score is the higher.
        margins_P: the distance of their scores, above 0.
    """

    pairs_P2: Tensor
    margins_P: Tensor


def preference_pairs(scores_S: Tensor, group_S: Tensor, kind: Literal["all", "best-worst"] = "all") -> Pairs:
    """The pairs that the scores of groups imply; equal scores make none.

        all          every two completions of a group whose scores differ
        best-worst   the first of the best and the first of the worst of each group

    Groups may differ in size and lie in any order; pairs come in the order of (chosen, rejected).

    Raises:
        ValueError: shapes that don't fit together, a score that is not finite, an unknown kind.
    """
    scores_S = _checked(scores_S, group_S)
    if kind == "all":
        above_SS = (scores_S[:, None] > scores_S[None, :]) & (group_S[:, None] == group_S[None, :])
        pairs_P2 = above_SS.nonzero()
    elif kind == "best-worst":
        found: list[tuple[int, int]] = []
        for g in sorted(set(group_S.tolist())):
            places = (group_S == g).nonzero().flatten()
            best, worst = places[scores_S[places].argmax()], places[scores_S[places].argmin()]
            if bool(scores_S[best] > scores_S[worst]):
                found.append((int(best), int(worst)))
        pairs_P2 = torch.tensor(sorted(found), dtype=torch.long, device=scores_S.device).reshape(-1, 2)
    else:
        raise ValueError(f"unknown kind of pairs {kind!r}; choose all or best-worst")
    return Pairs(pairs_P2, scores_S[pairs_P2[:, 0]] - scores_S[pairs_P2[:, 1]])


def group_spread(scores_S: Tensor, group_S: Tensor) -> Tensor:
    """Largest minus smallest score of each group, (number of groups,). 0: the group teaches nothing ("dead").

    Raises:
        ValueError: a score is not finite, shapes differ, or a group index between 0 and the largest has no score.
    """
    scores_S = _checked(scores_S, group_S)
    if scores_S.numel() == 0:
        return scores_S
    sizes = torch.bincount(group_S)
    if bool((sizes == 0).any()):
        missing = int((sizes == 0).nonzero()[0])
        raise ValueError(f"group {missing} has no scores; number the groups 0, 1, 2 … without gaps")
    empty = scores_S.new_zeros(sizes.numel())
    highest = empty.scatter_reduce(0, group_S, scores_S, "amax", include_self=False)
    lowest = empty.scatter_reduce(0, group_S, scores_S, "amin", include_self=False)
    return highest - lowest


def _checked(scores_S: Tensor, group_S: Tensor) -> Tensor:
    if scores_S.dim() != 1 or scores_S.shape != group_S.shape:
        raise ValueError(
            f"scores of shape {tuple(scores_S.shape)} and groups of shape {tuple(group_S.shape)}: "
            "both must be flat and of one length"
        )
    scores_S = scores_S.detach()
    scores_S = scores_S if scores_S.dtype == torch.float64 else scores_S.float()
    if not bool(scores_S.isfinite().all()):
        index = int((~scores_S.isfinite()).nonzero()[0])
        raise ValueError(f"score {index} is {float(scores_S[index])}; leave completions without a score out")
    return scores_S


def _group_sums(values_S: Tensor, group_S: Tensor) -> Tensor:
    return values_S.new_zeros(int(group_S.max()) + 1).index_add(0, group_S, values_S)

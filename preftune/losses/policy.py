"""The clipped policy gradient of GRPO and its relatives, from four independent choices.

METHODS: advantage (`preftune.signals`), ratio, clip and aggregate. Shapes: the legend in `preftune.records`.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from preftune.losses.batch import Additive, Denominators, LossOutput, TokenBatch, at_least_fp32
from preftune.losses.reduce import Aggregate, aggregate, sequence_lengths, sequence_sums

Ratio: TypeAlias = Literal["token", "sequence", "sequence-sum"]
Clip: TypeAlias = Literal["ppo", "cispo", "none"]
KLEstimator: TypeAlias = Literal["k1", "k2", "k3"]

# exp(60) is about 1e26: far from fp32's 3e38, so a ratio times an advantage of 0 stays 0 and never inf · 0 = NaN.
_LOG_MAX = 60.0


def importance_ratio(
    logprobs_T: Tensor, old_logprobs_T: Tensor | None, sequence_T: Tensor, num_sequences: int, kind: Ratio
) -> Tensor:
    """π / π_old for each token, with its gradient.

    With d = log π − log π_old:

        token          exp(d_t)
        sequence       exp(Σ_t d_t / |y|), the same for every token of a sequence     GSPO
        sequence-sum   exp(Σ_t d_t), the same for every token of a sequence           RLOO

    Without `old_logprobs_T` the sampling policy is this one: d = log π − detach(log π), whose value is 0
    and whose gradient is that of log π. A constant 1 would train nothing.

    Args:
        logprobs_T: log-probs of the policy that learns.
        old_logprobs_T: log-probs of the policy that sampled (no gradient flows there), or None.
        sequence_T: long; each token's sequence.
        num_sequences: S.
        kind: level of the ratio.

    Returns:
        (T,) ratios, positive.

    Raises:
        ValueError: unknown kind.

    References:
        Schulman et al. 2017 (PPO, eq. 6); Zheng et al. 2025 (GSPO, eq. 7); Ahmadian et al. 2024 (RLOO).
    """
    log_ratio_T = _log_ratio(logprobs_T, old_logprobs_T)
    if kind in ("sequence", "sequence-sum"):
        log_ratio_S = sequence_sums(log_ratio_T, sequence_T, num_sequences)
        if kind == "sequence":
            log_ratio_S = log_ratio_S / sequence_lengths(sequence_T, num_sequences, log_ratio_S.dtype)
        log_ratio_T = log_ratio_S[sequence_T]
    elif kind != "token":
        raise ValueError(f"unknown ratio {kind!r}; choose token, sequence or sequence-sum")
    return log_ratio_T.clamp(max=_LOG_MAX).exp()


def kl_estimate(logprobs_T: Tensor, reference_logprobs_T: Tensor, kind: KLEstimator) -> Tensor:
    """Per-token estimate of KL(π‖π₀) from samples of π. With d = log π₀ − log π:

        k1   −d                unbiased, any sign
        k2   d² / 2            biased, never negative
        k3   exp(d) − d − 1    unbiased, never negative

    These are values to watch. Their plain gradients are not the gradient of the KL; see `kl_penalty`.

    Raises:
        ValueError: unknown kind.

    References:
        Schulman 2020, "Approximating KL divergence".
    """
    d_T = reference_logprobs_T.to(logprobs_T.dtype) - logprobs_T
    if kind == "k1":
        return -d_T
    if kind == "k2":
        return 0.5 * d_T.square()
    if kind == "k3":
        # expm1 keeps the digits that exp(d) − 1 loses near d = 0, where a young policy lives.
        return torch.expm1(d_T.clamp(max=_LOG_MAX)) - d_T
    raise ValueError(f"unknown KL estimator {kind!r}; choose k1, k2 or k3")


def kl_penalty(
    logprobs_T: Tensor, old_logprobs_T: Tensor | None, reference_logprobs_T: Tensor, kind: KLEstimator
) -> Tensor:
    """Per-token KL(π‖π₀) whose gradient is right, also off-policy. With ρ = π / π_old per token:

        k3   ρ · k3            ρ carries a gradient: E_old[ρ · k3] = KL, so its gradient is the KL's
        k2   detach(ρ) · k2    ∇k2 = (log π − log π₀) ∇log π is already the KL's; ρ corrects the samples

    Both gradients are ρ (log π − log π₀) ∇log π. Plain k3 would instead pull towards π₀ by KL(π₀‖π), and
    E[∇k1] = E[∇log π] = 0, so k1 as a loss is noise alone and is refused.

    ρ is per token at every level of `importance_ratio`, as the penalty is a sum of per-token KLs. TRL 1.16
    (`use_bias_correction_kl`, its default) agrees at the token level; at the sequence level it weights by its sequence
    ratio, so gradients of `gspo` with β > 0 differ, and, off-policy, values too.

    Raises:
        ValueError: k1, or an unknown kind.

    References:
        Schulman 2020; Tang and Munos 2025, "On a few pitfalls in KL divergence gradient estimation for RL".
    """
    if kind == "k1":
        raise ValueError(
            "kl: k1 can't be a loss: its expected gradient is zero, so it adds noise and no penalty. "
            "Use k3 or k2, or put k1 into the reward"
        )
    ratio_T = _log_ratio(logprobs_T, old_logprobs_T).clamp(max=_LOG_MAX).exp()
    weight_T = ratio_T if kind == "k3" else ratio_T.detach()
    return weight_T * kl_estimate(logprobs_T, reference_logprobs_T.detach(), kind)


def clipped_policy_gradient(
    batch: TokenBatch,
    denominators: Denominators,
    *,
    ratio: Ratio = "token",
    clip: Clip = "ppo",
    clip_low: float | None = None,
    clip_high: float | None = None,
    aggregate: Aggregate = "token-mean",
    beta: float = 0.0,
    kl: KLEstimator = "k3",
    sampler_cap: float | None = None,
) -> LossOutput:
    """One objective for GRPO, Dr. GRPO, DAPO, GSPO, CISPO, RLOO and PPO. Per token, with ρ the importance ratio:

        ppo     −min(ρ A, clamp(ρ, 1 − clip_low, 1 + clip_high) A)
        cispo   −detach(min(ρ, clip_high)) A log π
        none    −ρ A

    plus β · `kl_penalty`, times the sampler's correction, then `reduce.aggregate`. A is the completion's advantage, or
    each token's own (GAE).

    Args:
        batch: log-probs and advantages of one micro-batch.
        denominators: totals of the whole optimizer batch.
        ratio: level of ρ.
        clip: how ρ is limited.
        clip_low: ppo alone: how far ρ may fall below 1 before a negative advantage stops pushing.
        clip_high: ppo: how far ρ may rise above 1 before a positive advantage stops pushing; cispo: the cap C on ρ.
        aggregate: how token losses become one number.
        beta: weight of the KL penalty; 0 needs no reference.
        kl: estimator of the penalty, k3 or k2.
        sampler_cap: C of truncated importance sampling: where the sampler's log-probs are known, a token counts
            min(π_trainer / π_sampler, C), both before the batch's first update. None: every token counts 1. The
            correction is of the samples, so it weights the penalty too; TRL 1.16 leaves the penalty as it is.

    Returns:
        The micro-batch's share of the loss. Metrics, over tokens of rows that count: `ratio/mean`, `ratio/max`, `nll`;
        ppo: `clip/low` and `clip/high`, the shares of tokens whose gradient the clip took away; cispo: `clip/high`, the
        share at the cap; with reference log-probs `kl` (the estimator's own value); with entropies `entropy`; with a
        sampler's correction `sampler/correction`, the correction furthest from 1 (its distance).

    Raises:
        ValueError: no advantages; β > 0 without reference log-probs or with k1; clip bounds missing or out of place.

    References:
        Shao et al. 2024 (GRPO); Liu et al. 2025 (Dr. GRPO); Yu et al. 2025 (DAPO); Zheng et al. 2025 (GSPO);
        MiniMax 2025 (CISPO, eq. 4); Ahmadian et al. 2024 (RLOO); Schulman et al. 2017 (PPO, eq. 7); Yao et al. 2025,
        "Your efficient RL framework secretly brings you off-policy RL training" (truncated importance sampling).
    """
    logprobs_T = at_least_fp32(batch.logprobs_T)
    advantages_T = _advantages(batch, logprobs_T.dtype)
    ratio_T = importance_ratio(logprobs_T, batch.old_logprobs_T, batch.sequence_T, batch.num_sequences, ratio)
    weights_T = batch.weights_S.to(logprobs_T.dtype)[batch.sequence_T]
    metrics = {
        "ratio/mean": Additive.mean(ratio_T, weights_T),
        "ratio/max": Additive.maximum(ratio_T, weights_T),
        "nll": Additive.mean(-logprobs_T, weights_T),
    }

    if clip == "ppo":
        low, high = _ppo_bounds(clip_low, clip_high)
        clamped_T = ratio_T.clamp(1.0 - low, 1.0 + high)
        loss_T = -torch.minimum(ratio_T * advantages_T, clamped_T * advantages_T)
        metrics["clip/low"] = _share((ratio_T < 1.0 - low) & (advantages_T < 0), weights_T)
        metrics["clip/high"] = _share((ratio_T > 1.0 + high) & (advantages_T > 0), weights_T)
    elif clip == "cispo":
        if clip_high is None or clip_high <= 0.0 or clip_low is not None:
            raise ValueError(
                f"clip: cispo takes clip_high > 0 (the cap C on the ratio) and no clip_low, "
                f"not clip_low {clip_low}, clip_high {clip_high}"
            )
        loss_T = -ratio_T.detach().clamp(max=clip_high) * advantages_T * logprobs_T
        metrics["clip/high"] = _share(ratio_T > clip_high, weights_T)
    elif clip == "none":
        if clip_low is not None or clip_high is not None:
            raise ValueError("clip: none takes no clip_low or clip_high; remove them, or choose ppo or cispo")
        loss_T = -ratio_T * advantages_T
    else:
        raise ValueError(f"unknown clip {clip!r}; choose ppo, cispo or none")

    reference_T = batch.reference_logprobs_T
    if beta < 0.0:
        raise ValueError(f"beta is {beta:g}; a penalty's weight can't be negative")
    if beta > 0.0:
        if reference_T is None:
            raise ValueError(f"beta is {beta:g}, so the KL penalty needs reference_logprobs_T")
        loss_T = loss_T + beta * kl_penalty(logprobs_T, batch.old_logprobs_T, reference_T, kl)
    if sampler_cap is not None and batch.sampler_logprobs_T is not None:
        correction_T = sampler_correction(logprobs_T, batch.old_logprobs_T, batch.sampler_logprobs_T, sampler_cap)
        loss_T = loss_T * correction_T
        metrics["sampler/correction"] = Additive.maximum((correction_T - 1.0).abs(), weights_T)
    if reference_T is not None:
        metrics["kl"] = Additive.mean(kl_estimate(logprobs_T, reference_T, kl), weights_T)
    if batch.entropy_T is not None:
        metrics["entropy"] = Additive.mean(batch.entropy_T.to(logprobs_T.dtype), weights_T)
    return LossOutput(_reduce(loss_T, batch, aggregate, denominators), metrics)


def sampler_correction(
    logprobs_T: Tensor, old_logprobs_T: Tensor | None, sampler_logprobs_T: Tensor, cap: float
) -> Tensor:
    """min(π_trainer / π_sampler, cap) of each token, no gradient; π_trainer before the batch's first update.

    The same weights give different log-probs in a sampler with other kernels or precision; the ratio makes the samples
    count as if the trainer had drawn them, and the cap bounds the variance that this costs.
    """
    trainer_T = (logprobs_T if old_logprobs_T is None else old_logprobs_T).detach()
    return (trainer_T - sampler_logprobs_T.to(trainer_T.dtype)).clamp(max=_LOG_MAX).exp().clamp(max=cap)


def _advantages(batch: TokenBatch, dtype: torch.dtype) -> Tensor:
    """Each token's advantage: its own, or its completion's."""
    if batch.advantages_T is not None:
        return batch.advantages_T.detach().to(dtype)
    if batch.advantages_S is None:
        raise ValueError("a policy gradient needs advantages_S or advantages_T")
    return batch.advantages_S.detach().to(dtype)[batch.sequence_T]


def _log_ratio(logprobs_T: Tensor, old_logprobs_T: Tensor | None) -> Tensor:
    old_T = logprobs_T if old_logprobs_T is None else old_logprobs_T
    return logprobs_T - old_T.detach().to(logprobs_T.dtype)


def _reduce(loss_T: Tensor, batch: TokenBatch, kind: Aggregate, denominators: Denominators) -> Tensor:
    # `aggregate` is also the public name of a choice above, so the function is called from here.
    return aggregate(loss_T, batch.sequence_T, batch.num_sequences, kind, denominators, batch.weights_S)


def _share(flags_T: Tensor, weights_T: Tensor) -> Additive:
    return Additive.mean(flags_T.to(weights_T.dtype), weights_T)


def _ppo_bounds(low: float | None, high: float | None) -> tuple[float, float]:
    if low is None or high is None or not 0.0 <= low <= 1.0 or high < 0.0:
        raise ValueError(f"clip: ppo needs clip_low in [0, 1] and clip_high of at least 0, not {low} and {high}")
    return low, high

"""GMPO's loss: weighted likelihood with a KL to the reference. Shapes: the legend in `preftune.records`."""

from __future__ import annotations

from preftune.losses.batch import Additive, Denominators, LossOutput, TokenBatch, at_least_fp32
from preftune.losses.policy import kl_estimate, kl_penalty
from preftune.losses.reduce import aggregate


def weighted_likelihood(batch: TokenBatch, denominators: Denominators, *, beta: float) -> LossOutput:
    """−Σ w log π(a|s) / Σ w |a| + β · mean over all tokens of KL(π‖π₀).

    The row weights are w = exp(A/τ) (`preftune.signals.weights`). The KL is over every token of the batch, whatever its
    row's weight, and is estimated one of two ways:

        divergence_T given    the KL over the whole vocabulary at each visited position: right for any answers
        else                  k3 weighted by the importance ratio: right for answers that this policy drew

    Args:
        batch: with `weights_S`; for β > 0 with `divergence_T`, or with `reference_logprobs_T`.
        denominators: totals of the whole optimizer batch.
        beta: λ of the paper, at least 0.

    Returns:
        The micro-batch's share of the loss. Metrics: `nll` (weighted), `kl` over all tokens, `entropy` where known.

    Raises:
        ValueError: β > 0 and nothing to compute the KL from.

    References:
        Peng et al. 2019 (AWR), eq. 9, and the seed's GMPO, which is not geometric-mean policy optimisation.
    """
    logprobs_T = at_least_fp32(batch.logprobs_T)
    weights_S = batch.weights_S.to(logprobs_T.dtype)
    weights_T = weights_S[batch.sequence_T]
    ones_T = weights_T.new_ones(weights_T.shape)
    loss = aggregate(-logprobs_T, batch.sequence_T, batch.num_sequences, "token-mean", denominators, weights_S)
    metrics = {"nll": Additive.mean(-logprobs_T, weights_T)}
    kl_T = None
    if batch.divergence_T is not None:
        kl_T = batch.divergence_T.to(logprobs_T.dtype)
        metrics["kl"] = Additive.mean(kl_T, ones_T)
    elif batch.reference_logprobs_T is not None:
        kl_T = kl_penalty(logprobs_T, batch.old_logprobs_T, batch.reference_logprobs_T, "k3")
        metrics["kl"] = Additive.mean(kl_estimate(logprobs_T, batch.reference_logprobs_T, "k3"), ones_T)
    if beta > 0.0:
        if kl_T is None:
            raise ValueError(f"beta is {beta:g}, so the KL needs divergence_T or reference_logprobs_T")
        loss = loss + beta * kl_T.sum() / max(denominators.all_tokens, 1.0)
    if batch.entropy_T is not None:
        metrics["entropy"] = Additive.mean(batch.entropy_T.to(logprobs_T.dtype), ones_T)
    return LossOutput(loss, metrics)

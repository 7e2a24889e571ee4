"""KTO: completions marked desirable or undesirable, no pairs. Shapes: the legend in `preftune.records`."""

from __future__ import annotations

import torch

from preftune.losses.batch import Additive, Denominators, LossOutput, TokenBatch, at_least_fp32
from preftune.losses.preference import log_ratios
from preftune.losses.reduce import sequence_sums


def kto_loss(
    batch: TokenBatch,
    denominators: Denominators,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> LossOutput:
    """Plain mean over rows of one minus a Kahneman–Tversky value around the reference point z.

        desirable     λ_D · (1 − σ(β(Δ − z)))
        undesirable   λ_U · (1 − σ(β(z − Δ)))

    Δ = log π(y|x) − log π₀(y|x) of the row. z = max(0, `batch.baseline`), the baseline being the mean of Δ over the
    whole optimizer batch's **mismatched** pairs of prompt and completion (`preftune.contrast`). z has no gradient.

    Args:
        batch: one micro-batch; `advantages_S` above 0 means desirable, below 0 undesirable.
        denominators: totals of the whole optimizer batch; `sequences` is used.
        beta: β above 0.
        desirable_weight: λ_D.
        undesirable_weight: λ_U.

    Returns:
        The micro-batch's share of the loss. Metrics, chosen being desirable and rejected undesirable rows:
        `rewards/chosen`, `rewards/rejected` (β·Δ), `logprobs/…`, `length/…`, `nll` (token mean over desirable rows),
        `kl` (z) and `kl/raw` (before its floor at 0). There are no pairs, so no margin and no accuracy.

    Raises:
        ValueError: labels, reference or baseline are missing, β is not above 0, or the denominators are smaller than
            this micro-batch alone could have.

    References:
        Ethayarajh et al. 2024 (KTO, sec. 4.1).
    """
    if batch.advantages_S is None:
        raise ValueError("kto needs labels: advantages_S of +1 (desirable) or -1 (undesirable)")
    if batch.baseline is None:
        raise ValueError("kto needs a baseline: the mean of log π/π₀ over mismatched completions of the whole batch")
    if not beta > 0.0:
        raise ValueError(f"beta must be above 0, not {beta:g}")
    if denominators.sequences < batch.num_sequences:
        raise ValueError(
            f"denominators count {denominators.sequences:g} sequences, but this micro-batch alone has "
            f"{batch.num_sequences}: they must be totals of the whole optimizer batch"
        )
    delta_S = log_ratios(batch)
    raw = batch.baseline.detach().to(delta_S.dtype)
    z = raw.clamp(min=0.0)
    good_S = batch.advantages_S > 0.0
    gain_S = torch.where(good_S, delta_S - z, z - delta_S)
    lambda_S = torch.where(good_S, desirable_weight, undesirable_weight).to(delta_S.dtype)
    weights_S = batch.weights_S.to(delta_S.dtype)
    # σ(−x) is 1 − σ(x) without the subtraction that loses all digits once σ(x) rounds to 1.
    loss_S = lambda_S * torch.sigmoid(-beta * gain_S)
    loss = (loss_S * weights_S).sum() / max(denominators.sequences, 1.0)

    logprob_S = sequence_sums(at_least_fp32(batch.logprobs_T).detach(), batch.sequence_T, batch.num_sequences)
    lengths_S = torch.bincount(batch.sequence_T, minlength=batch.num_sequences).to(delta_S.dtype)
    metrics: dict[str, Additive] = {}
    for side, rows_S in (("chosen", good_S), ("rejected", ~good_S)):
        side_S = weights_S * rows_S
        metrics[f"rewards/{side}"] = Additive.mean(beta * delta_S, side_S)
        metrics[f"logprobs/{side}"] = Additive.mean(logprob_S, side_S)
        metrics[f"length/{side}"] = Additive.mean(lengths_S, side_S)
    good = weights_S * good_S
    metrics["nll"] = Additive(-(logprob_S * good).sum(), (lengths_S * good).sum())
    metrics["kl"] = Additive.mean(z, torch.ones_like(z))
    metrics["kl/raw"] = Additive.mean(raw, torch.ones_like(raw))
    return LossOutput(loss, metrics)

"""PPO's loss of the value head. Shapes: the legend in `preftune.records`."""

from __future__ import annotations

import torch

from preftune.losses.batch import Additive, Denominators, LossOutput, TokenBatch
from preftune.losses.reduce import aggregate


def value_loss(batch: TokenBatch, denominators: Denominators, *, clip: float | None, coefficient: float) -> LossOutput:
    """Squared error of the value head, clipped around its values before the batch's first update.

        coefficient · ½ · mean over tokens of max[(V − R)², (clamp(V, V_old − clip, V_old + clip) − R)²]

    Args:
        batch: with `values_T`, `old_values_T` and `returns_T`.
        denominators: totals of the whole optimizer batch; the mean is over its tokens.
        clip: how far a value may move before its gradient stops; None: plain squared error.
        coefficient: weight of the loss.

    Returns:
        The micro-batch's share of the loss. Metrics over tokens of rows that count: `value/loss` (without the
        coefficient), `value/clipped` (share of tokens whose clipped error is the larger one), `value/mean`,
        `value/error` (mean squared error, not clipped).

    Raises:
        ValueError: one of the three is missing.

    References:
        Schulman et al. 2017; Huang et al. 2022, "The 37 implementation details of PPO", detail 9; OpenAI baselines.
    """
    if batch.values_T is None or batch.old_values_T is None or batch.returns_T is None:
        raise ValueError("the value loss needs values_T, old_values_T and returns_T")
    values_T = batch.values_T.float() if batch.values_T.dtype != torch.float64 else batch.values_T
    returns_T = batch.returns_T.detach().to(values_T.dtype)
    error_T = (values_T - returns_T).square()
    loss_T = error_T
    weights_T = batch.weights_S.to(values_T.dtype)[batch.sequence_T]
    metrics = {"value/mean": Additive.mean(values_T, weights_T), "value/error": Additive.mean(error_T, weights_T)}
    if clip is not None:
        old_T = batch.old_values_T.detach().to(values_T.dtype)
        clipped_T = (old_T + (values_T - old_T).clamp(-clip, clip) - returns_T).square()
        loss_T = torch.maximum(error_T, clipped_T)
        metrics["value/clipped"] = Additive.mean((clipped_T > error_T).to(values_T.dtype), weights_T)
    loss_T = 0.5 * loss_T
    metrics["value/loss"] = Additive.mean(loss_T, weights_T)
    total = aggregate(
        loss_T, batch.sequence_T, batch.num_sequences, "token-mean", denominators, batch.weights_S
    )  # fmt: skip
    return LossOutput(coefficient * total, metrics)

"""The negative log-likelihood of completions. Shapes: the legend in `preftune.records`."""

from __future__ import annotations

from preftune.losses.batch import Additive, Denominators, LossOutput, TokenBatch, at_least_fp32
from preftune.losses.reduce import aggregate


def nll(batch: TokenBatch, denominators: Denominators) -> LossOutput:
    """−Σ log π(y_t | x, y_<t) / tokens: the mean over all completion tokens of the optimizer batch.

    Long completions weigh more than short ones, token for token, however the batch is split.

    Args:
        batch: log-probs of one micro-batch.
        denominators: totals of the whole optimizer batch; `tokens` is used.

    Returns:
        The micro-batch's share of the loss, in nats. Metrics over tokens of rows that count: `nll`, and `entropy`
        where the batch has entropies.
    """
    logprobs_T = at_least_fp32(batch.logprobs_T)
    weights_T = batch.weights_S.to(logprobs_T.dtype)[batch.sequence_T]
    metrics = {"nll": Additive.mean(-logprobs_T, weights_T)}
    if batch.entropy_T is not None:
        metrics["entropy"] = Additive.mean(batch.entropy_T.to(logprobs_T.dtype), weights_T)
    loss = aggregate(-logprobs_T, batch.sequence_T, batch.num_sequences, "token-mean", denominators, batch.weights_S)
    return LossOutput(loss, metrics)

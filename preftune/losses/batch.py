"""What a loss reads and returns. Shapes: the legend in `preftune.records` (T tokens, S sequences).

A micro-batch of two completions, of two tokens and one:

    TokenBatch(logprobs_T=[-0.1, -0.2, -0.7], sequence_T=[0, 0, 1], num_sequences=2, …)

Completions stay whole: one that is cut over two micro-batches has no sequence ratio and no mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Token log-probs of the completions of one micro-batch, flat and unpadded.

    Only tokens that the policy wrote are here; a completion may have none.

    Attributes:
        logprobs_T: log π of each token, with its graph.
        sequence_T: long; each token's completion, in 0 … num_sequences - 1.
        num_sequences: S, counting completions without tokens.
        weights_S: 1 where the completion counts, 0 where its row is masked (cut at the limit).
        old_logprobs_T: log-probs under the policy that sampled; None when that policy is this one.
        reference_logprobs_T: log-probs under the reference policy, for a KL penalty.
        advantages_S: advantage of each completion, finite; for labels +1 (desirable) or -1.
        entropy_T: entropy of each token's distribution in nats, for metrics alone.
        pairs_P2: long (P, 2); each pair's chosen and rejected completion, in 0 … num_sequences - 1.
        margins_P: how far apart the data puts the two, at least 0; see `preftune.signals.Pairs`.
        scores_S: a reward head's score of each completion, with its graph. Where it is given there are no tokens.
        lengths_S: tokens that were written in each completion, where there are no tokens to count.
        baseline: detached scalar from outside the batch's own completions: KTO's z before its floor at 0.
        advantages_T: advantage of each token (GAE), in the place of `advantages_S`.
        sampler_logprobs_T: log-probs that the sampler kept, where it drew from the distribution that is trained.
        values_T: a value head's estimate before each token, with its graph; `value_loss` alone reads these three.
        old_values_T: the same before the batch's first update.
        returns_T: what the estimates should have been.
        divergence_T: KL(π‖π₀) over the whole vocabulary before each token, with its graph.
    """

    logprobs_T: Tensor
    sequence_T: Tensor
    num_sequences: int
    weights_S: Tensor
    old_logprobs_T: Tensor | None = None
    reference_logprobs_T: Tensor | None = None
    advantages_S: Tensor | None = None
    entropy_T: Tensor | None = None
    pairs_P2: Tensor | None = None
    margins_P: Tensor | None = None
    scores_S: Tensor | None = None
    lengths_S: Tensor | None = None
    baseline: Tensor | None = None
    advantages_T: Tensor | None = None
    sampler_logprobs_T: Tensor | None = None
    values_T: Tensor | None = None
    old_values_T: Tensor | None = None
    returns_T: Tensor | None = None
    divergence_T: Tensor | None = None

    def __post_init__(self) -> None:
        tokens = self.logprobs_T.shape
        if self.logprobs_T.dim() != 1:
            raise ValueError(f"logprobs_T must be flat, not of shape {tuple(tokens)}")
        per_token = (
            "sequence_T", "old_logprobs_T", "reference_logprobs_T", "entropy_T", "advantages_T", "sampler_logprobs_T",
            "values_T", "old_values_T", "returns_T", "divergence_T",
        )  # fmt: skip
        per_sequence = ("weights_S", "advantages_S", "scores_S", "lengths_S")
        for names, shape in ((per_token, tokens), (per_sequence, torch.Size([self.num_sequences]))):
            for name in names:
                tensor = getattr(self, name)
                if tensor is not None and tensor.shape != shape:
                    raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(shape)}")
        if self.pairs_P2 is not None:
            if self.pairs_P2.dim() != 2 or self.pairs_P2.shape[1] != 2:
                raise ValueError(f"pairs_P2 has shape {tuple(self.pairs_P2.shape)}, expected (P, 2)")
            if self.margins_P is not None and self.margins_P.shape != self.pairs_P2.shape[:1]:
                raise ValueError(
                    f"margins_P has shape {tuple(self.margins_P.shape)}, but pairs_P2 {tuple(self.pairs_P2.shape)}"
                )


@dataclass(frozen=True, slots=True)
class Denominators:
    """What losses are divided by: totals of the **whole optimizer batch**, over micro-batches and ranks.

    They come from outside so that the split into micro-batches never changes the gradient.

    Attributes:
        tokens: completion tokens of rows that count; masked rows are left out.
        sequences: completions, masked rows included.
        max_tokens: the longest completion allowed, for the constant aggregate.
        pairs: pairs of the batch; 0 where the method has none.
        chosen_tokens: tokens of the pairs' chosen completions, each counted once per pair that it is chosen in.
        all_tokens: completion tokens of all rows, whatever their weight.
    """

    tokens: float
    sequences: float
    max_tokens: float
    pairs: float = 0.0
    chosen_tokens: float = 0.0
    all_tokens: float = 0.0

    @classmethod
    def count(cls, lengths: Sequence[int], weights: Sequence[float], max_tokens: int) -> Denominators:
        """From the length (tokens the policy wrote) and row weight of every completion of the batch."""
        if len(lengths) != len(weights):
            raise ValueError(f"{len(lengths)} lengths but {len(weights)} weights")
        tokens = sum(length * weight for length, weight in zip(lengths, weights, strict=True))
        return cls(
            tokens=float(tokens),
            sequences=float(len(lengths)),
            max_tokens=float(max_tokens),
            all_tokens=float(sum(lengths)),
        )


@dataclass(frozen=True, slots=True)
class Additive:
    """A metric whose parts add up exactly over micro-batches: a weighted sum, or a maximum.

    Attributes:
        total: Σ weight·value for a mean; the largest value for a maximum. Detached scalar.
        weight: Σ weight; 0 means that nothing was measured. Detached scalar.
        kind: how two parts become one.
    """

    total: Tensor
    weight: Tensor
    kind: Literal["mean", "max"] = "mean"

    @classmethod
    def mean(cls, values: Tensor, weights: Tensor) -> Additive:
        """Weighted mean of `values`, both of one shape."""
        weights = weights.detach()
        return cls((values.detach() * weights).sum(), weights.sum())

    @classmethod
    def maximum(cls, values: Tensor, weights: Tensor) -> Additive:
        """Largest of the values whose weight is positive."""
        kept = values.detach().masked_fill(weights <= 0, -torch.inf)
        floor = kept.new_full((1,), -torch.inf)  # an empty micro-batch has no maximum of its own
        return cls(torch.cat([kept, floor]).max(), weights.detach().sum(), "max")

    def __add__(self, other: Additive) -> Additive:
        if self.kind != other.kind:
            raise ValueError(f"can't add a {other.kind} to a {self.kind}")
        join = torch.maximum if self.kind == "max" else torch.add
        return Additive(join(self.total, other.total), self.weight + other.weight, self.kind)

    def value(self) -> float | None:
        """The metric as a number; None when nothing was measured."""
        weight = float(self.weight)
        if weight == 0.0:
            return None
        return float(self.total) if self.kind == "max" else float(self.total) / weight


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A micro-batch's share of the batch loss, and its metrics.

    Attributes:
        loss: scalar with its graph, already divided by the batch's denominators: shares **sum** to the batch loss.
        metrics: parts that add up over micro-batches by `Additive.__add__`.
    """

    loss: Tensor
    metrics: dict[str, Additive]


def merge_metrics(parts: Sequence[dict[str, Additive]]) -> dict[str, Additive]:
    """Add the metrics of several micro-batches, by name."""
    merged: dict[str, Additive] = {}
    for part in parts:
        for name, metric in part.items():
            merged[name] = merged[name] + metric if name in merged else metric
    return merged


def at_least_fp32(tensor: Tensor) -> Tensor:
    """Sums of half-precision log-probs lose digits with length, so losses are taken in fp32 (or fp64 as given)."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()

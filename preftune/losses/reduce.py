"""From one loss per token to one number. Shapes: the legend in `preftune.records`."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from preftune.losses.batch import Denominators

Aggregate: TypeAlias = Literal["token-mean", "sequence-mean", "constant"]


def sequence_lengths(sequence_T: Tensor, num_sequences: int, dtype: torch.dtype) -> Tensor:
    """Tokens of each sequence, (S,), at least 1 so that a sequence without tokens divides safely."""
    return torch.bincount(sequence_T, minlength=num_sequences).to(dtype).clamp(min=1.0)


def sequence_sums(values_T: Tensor, sequence_T: Tensor, num_sequences: int) -> Tensor:
    """Sum of each sequence's tokens, (S,); 0 for a sequence without tokens."""
    return values_T.new_zeros(num_sequences).index_add(0, sequence_T, values_T)


def aggregate(
    loss_T: Tensor,
    sequence_T: Tensor,
    num_sequences: int,
    kind: Aggregate,
    denominators: Denominators,
    weights_S: Tensor,
) -> Tensor:
    """A micro-batch's share of the batch loss.

    With w the row weights and D the denominators of the whole optimizer batch:

        token-mean      Σ_s w_s Σ_t loss_st / D.tokens                        DAPO
        sequence-mean   Σ_s w_s (1/|y_s|) Σ_t loss_st / D.sequences           GRPO
        constant        Σ_s w_s Σ_t loss_st / (D.sequences · D.max_tokens)    Dr. GRPO

    A masked row (w = 0) adds nothing above. Below, it counts in `sequences` and not in `tokens`, so the
    sequence-mean and the constant treat it as a completion of zero loss, as TRL 1.16 does.

    Args:
        loss_T: loss of each token.
        sequence_T: long; each token's sequence.
        num_sequences: S.
        kind: one of the three.
        denominators: totals of the whole optimizer batch.
        weights_S: row weights, at least 0; all but GMPO's are 1 or 0.

    Returns:
        Scalar. Shares of all micro-batches sum to the batch loss.

    Raises:
        ValueError: unknown kind, or denominators smaller than this micro-batch alone could have.

    References:
        Shao et al. 2024 (GRPO, eq. 3); Yu et al. 2025 (DAPO, eq. 8); Liu et al. 2025 (Dr. GRPO, sec. 3.1).
    """
    if denominators.sequences < num_sequences:
        raise ValueError(
            f"denominators count {denominators.sequences:g} sequences, but this micro-batch alone has {num_sequences}: "
            "they must be totals of the whole optimizer batch"
        )
    weighted_T = loss_T * weights_S.to(loss_T.dtype)[sequence_T]
    if kind == "token-mean":
        # All rows masked: the sum above is 0 and so is the loss. Weights under 1 (GMPO) may sum to less than one token.
        return weighted_T.sum() / (denominators.tokens if denominators.tokens > 0.0 else 1.0)
    if kind == "sequence-mean":
        lengths_S = sequence_lengths(sequence_T, num_sequences, loss_T.dtype)
        return (weighted_T / lengths_S[sequence_T]).sum() / max(denominators.sequences, 1.0)
    if kind == "constant":
        if denominators.max_tokens < 1:
            raise ValueError(f"the constant aggregate needs max_tokens of at least 1, not {denominators.max_tokens:g}")
        return weighted_T.sum() / (max(denominators.sequences, 1.0) * denominators.max_tokens)
    raise ValueError(f"unknown aggregate {kind!r}; choose token-mean, sequence-mean or constant")

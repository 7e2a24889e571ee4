"""Small batches for loss tests: lists of token log-probs, one list per completion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from preftune.losses import Denominators, TokenBatch

Rows = Sequence[Sequence[float]]


def flat(rows: Rows, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor([value for row in rows for value in row], dtype=dtype)


def make(
    logprobs: Rows,
    reference: Rows | None = None,
    pairs: Sequence[tuple[int, int]] | None = None,
    labels: Sequence[float] | None = None,
    baseline: float | None = None,
    weights: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float64,
) -> TokenBatch:
    """A micro-batch whose log-probs ask for a gradient."""
    return TokenBatch(
        logprobs_T=flat(logprobs, dtype).requires_grad_(),
        sequence_T=torch.tensor([s for s, row in enumerate(logprobs) for _ in row], dtype=torch.long),
        num_sequences=len(logprobs),
        weights_S=torch.ones(len(logprobs)) if weights is None else torch.tensor(weights),
        reference_logprobs_T=None if reference is None else flat(reference, dtype),
        advantages_S=None if labels is None else torch.tensor(labels),
        pairs_P2=None if pairs is None else torch.tensor(pairs, dtype=torch.long).reshape(-1, 2),
        baseline=None if baseline is None else torch.tensor(baseline, dtype=dtype),
    )


def totals(*batches: TokenBatch) -> Denominators:
    """Denominators of an optimizer batch of these micro-batches."""
    pairs = chosen = sequences = tokens = 0
    for batch in batches:
        lengths = torch.bincount(batch.sequence_T, minlength=batch.num_sequences)
        sequences += batch.num_sequences
        tokens += int(lengths.sum())
        if batch.pairs_P2 is not None:
            pairs += len(batch.pairs_P2)
            chosen += int(lengths[batch.pairs_P2[:, 0]].sum())
    return Denominators(float(tokens), float(sequences), 100.0, pairs=float(pairs), chosen_tokens=float(chosen))


def take(batch: TokenBatch, sequences: list[int]) -> TokenBatch:
    """The micro-batch of the named completions, in that order. Their gradients reach the whole batch's tensors."""
    assert batch.pairs_P2 is None, "pairs would need new numbers"
    owners = batch.sequence_T.tolist()
    tokens = torch.tensor([t for s in sequences for t, owner in enumerate(owners) if owner == s], dtype=torch.long)
    rows = torch.tensor(sequences, dtype=torch.long)
    cut: dict[str, Any] = {}
    for field in fields(batch):
        value, kind = getattr(batch, field.name), field.name.rpartition("_")[2]
        if value is not None and kind in ("T", "S"):
            cut[field.name] = value[tokens if kind == "T" else rows]
    cut["sequence_T"] = torch.tensor([sequences.index(owners[t]) for t in tokens.tolist()], dtype=torch.long)
    return replace(batch, **cut, num_sequences=len(sequences))

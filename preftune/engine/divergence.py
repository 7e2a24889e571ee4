"""KL(π‖π₀) over the whole vocabulary at given positions, without ever holding tokens × vocabulary.

For answers that the policy did not draw, estimates from sampled tokens are biased; the sum over the vocabulary is not.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from preftune.engine.logprobs import CHUNK_ELEMENTS


def full_divergence(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    reference_TD: Tensor,
    reference_weight_VD: Tensor,
    *,
    bias_V: Tensor | None = None,
    reference_bias_V: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> Tensor:
    """Σ_v π(v) (log π(v) − log π₀(v)) of each position, in nats, fp32 (fp64 for fp64 inputs).

    Differentiable in the policy's states, weight and bias; the reference gets no gradient. Logits of a chunk are made
    again in the backward pass instead of being kept.

    Args:
        hidden_TD, weight_VD, bias_V: last hidden states and head of the policy.
        reference_TD, reference_weight_VD, reference_bias_V: the same of the reference; one vocabulary.
        scale, softcap, temperature: as in `fused_logprobs`, of both models.
        chunk_elements: logits of one model held at a time.

    Raises:
        ValueError: shapes that do not fit together.
    """
    if hidden_TD.shape[0] != reference_TD.shape[0] or weight_VD.shape[0] != reference_weight_VD.shape[0]:
        raise ValueError(
            f"policy {tuple(hidden_TD.shape)} × {tuple(weight_VD.shape)} and reference {tuple(reference_TD.shape)} × "
            f"{tuple(reference_weight_VD.shape)} must have the same positions and vocabulary"
        )
    rows = max(1, chunk_elements // weight_VD.shape[0])
    reference_TD = reference_TD.detach()
    frozen = (reference_weight_VD.detach(), None if reference_bias_V is None else reference_bias_V.detach())

    def log_softmax(states_TD: Tensor, head_VD: Tensor, offset_V: Tensor | None) -> Tensor:
        logits = torch.nn.functional.linear(states_TD, head_VD, offset_V)
        logits = (logits if logits.dtype == torch.float64 else logits.float()) * scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        return (logits / temperature).log_softmax(-1)

    def of_chunk(states_TD: Tensor, head_VD: Tensor, offset_V: Tensor | None, theirs_TD: Tensor) -> Tensor:
        with torch.no_grad():
            reference_TV = log_softmax(theirs_TD, *frozen)
        mine_TV = log_softmax(states_TD, head_VD, offset_V)
        return (mine_TV.exp() * (mine_TV - reference_TV)).sum(-1)

    parts = [
        cast(Tensor, checkpoint(of_chunk, mine, weight_VD, bias_V, theirs, use_reentrant=False))
        for mine, theirs in zip(torch.split(hidden_TD, rows), torch.split(reference_TD, rows), strict=True)
    ]
    return torch.cat(parts)

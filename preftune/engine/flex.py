"""Shared-prompt attention on CUDA: FlexAttention with one block mask per kind of layer.

The mask says the same as PackedLayout on the CPU: a token attends to earlier tokens of its own prompt and
its own completion, within the layer's sliding window where there is one (by position, not by row index).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from preftune.engine.pack import Segment


def token_tables(segments: Sequence[Segment], device: torch.device | str) -> tuple[Tensor, Tensor, Tensor]:
    """Per token of a row: its group, its completion (-1 for prompt tokens), its position. Each [N]."""
    tokens = max((s.end for s in segments), default=0)
    group = torch.full((tokens,), -1, dtype=torch.long)
    sequence = torch.full((tokens,), -1, dtype=torch.long)
    position = torch.zeros(tokens, dtype=torch.long)
    count = 0
    for g, s in enumerate(segments):
        group[s.start : s.end] = g
        position[s.start : s.start + s.prompt] = torch.arange(s.prompt)
        for at, n in s.completions:
            sequence[at : at + n] = count
            position[at : at + n] = torch.arange(s.prompt, s.prompt + n)
            count += 1
    return group.to(device), sequence.to(device), position.to(device)


def mask_function(
    segments: Sequence[Segment], window: int | None, device: torch.device | str
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """FlexAttention's mask_mod for a row: (batch, head, query, key) → may attend."""
    group, sequence, position = token_tables(segments, device)

    def allowed(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        same = (group[q] == group[k]) & ((sequence[k] == -1) | (sequence[q] == sequence[k]))
        ok = same & (k <= q)
        if window is not None:
            ok = ok & (position[k] > position[q] - window)
        return ok

    return allowed


def block_mask(segments: Sequence[Segment], window: int | None, device: torch.device | str) -> Any:
    """FlexAttention's block mask for one row and one kind of layer."""
    from torch.nn.attention.flex_attention import create_block_mask

    tokens = max((s.end for s in segments), default=0)
    return create_block_mask(mask_function(segments, window, device), None, None, tokens, tokens, device=str(device))


@cache
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    # Rows differ in length from step to step; dynamic shapes keep one compiled kernel for all.
    return torch.compile(flex_attention, dynamic=True)


def flex_attend(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float, softcap: float | None) -> Tensor:
    """FlexAttention over one packed row. q [1, H, N, d], k and v [1, K, N, d] → [1, H, N, d]."""
    from torch.nn.attention.flex_attention import flex_attention

    cap = 0.0 if softcap is None else softcap

    def capped(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    # Uncompiled FlexAttention materialises the scores; it serves the CPU tests of this path only.
    function: Any = _compiled() if q.is_cuda else flex_attention
    out: Tensor = function(
        q, k, v, score_mod=capped if softcap is not None else None, block_mask=mask, scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    return out

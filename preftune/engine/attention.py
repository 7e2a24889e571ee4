"""Shared-prompt attention: what a packed row attends to, as a function registered with transformers.

A token of a completion attends to its prompt and to the earlier tokens of its own completion. The function is
called by the model's own layers through transformers' attention interface; the layout of the row travels as
the keyword argument `layout`, so that gradient checkpointing finds it again when it recomputes a layer.

On the CPU long spans go to torch's flash kernel (`engine.flash`) and short ones through plain products
(`engine.short`). Sliding windows and soft-capped scores take a masked path, in blocks of queries where a completion is
long, so that its memory grows linearly too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from preftune.engine.pack import Segment
from preftune.engine.spans import RowSpans, SpanAttention

NAME = "preftune"
"""The name under which the function is registered with transformers."""

DENSE_PAIRS = 1 << 22
"""Query–key pairs that the masked path holds at a time: a mask of 2,048 tokens. More are done block by block."""


class Layout(Protocol):
    """What the attention function needs: how the tokens of this call attend."""

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        """q [1, H, N, d], k and v [1, K, N, d] → [1, H, N, d]."""
        ...


@dataclass(frozen=True)
class Asked:
    """What a layer asks of its attention, beside queries, keys and values."""

    scale: float
    window: int | None
    softcap: float | None


class Unsupported(Exception):
    """The model asks its attention for something this function does not do; the probe turns to the fallback."""


# Arguments that models pass besides q, k, v and that change nothing here: positions are already in q and k,
# caches are not used, and dropout is switched off by models.loading.
_IGNORED = {
    "dropout", "position_ids", "position_embeddings", "past_key_values", "use_cache", "output_attentions", "is_causal",
    "cache_position", "output_hidden_states", "output_router_logits", "return_dict", "position_bias_is_none",
}  # fmt: skip


def preftune_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The registered function. Shapes: query [1, H, N, d], key and value [1, K, N, d]; returns [1, N, H, d]."""
    if layout is None:
        raise Unsupported("the model did not hand on the layout of the packed row")
    unknown = sorted(k for k, v in kwargs.items() if v is not None and v is not False and k not in _IGNORED)
    if unknown or attention_mask is not None:
        raise Unsupported(f"unknown attention arguments: {unknown or ['attention_mask']}")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    layer = getattr(module, "layer_idx", None)
    if layer is None:
        raise Unsupported("an attention layer has no layer_idx")
    if torch.is_autocast_enabled(query.device.type):
        # As torch's own attention does: under autocast a query norm in fp32 meets values in bf16.
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    out = layout.attend(layer, query, key, value, scale=scale, window=sliding_window, softcap=softcap)
    return out.transpose(1, 2).contiguous(), None


def register() -> None:
    """Make the function known to transformers (idempotent)."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, preftune_attention)


class PackedLayout:
    """How the tokens of one packed row attend. Built once per row, used by every layer.

    Attributes:
        needed: rows whose last state is read; a last layer that can (`preftune.engine.last`) leaves out the others.
        asked: what each layer that has called asked for.
    """

    def __init__(self, segments: Sequence[Segment], device: torch.device | str, needed: Tensor | None = None) -> None:
        self.segments = tuple(segments)
        self.needed = needed
        self.device = torch.device(device)
        self.longest = max((s.prompt + max((n for _, n in s.completions), default=0) for s in segments), default=0)
        self.tokens = max((s.end for s in segments), default=0)
        self._spans: dict[torch.dtype, RowSpans] = {}
        self.calls: list[int] = []
        self.asked: dict[int, Asked] = {}
        self.recorded: dict[int, tuple[Tensor, Tensor]] | None = None
        self._blocks: dict[int | None, Any] = {}

    def record(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Keep each layer's keys and values of the next forward (prefill of a decoding cache)."""
        self.recorded = {}
        return self.recorded

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        self.calls.append(layer)
        self.asked[layer] = Asked(scale, window, softcap)
        if self.recorded is not None:
            self.recorded[layer] = (k, v)
        binding = window if window is not None and window < self.longest else None
        if q.is_cuda:
            return self._flex(q, k, v, scale, binding, softcap)
        if binding is None and softcap is None and q.shape[-1] == v.shape[-1]:
            if q.dtype not in self._spans:
                self._spans[q.dtype] = RowSpans(self.segments, q.dtype)
            out: Tensor = SpanAttention.apply(q, k, v, self._spans[q.dtype], scale)  # type: ignore[no-untyped-call]
            return out
        return self._masked(q, k, v, scale, binding, softcap)

    def _masked(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        """Plain attention with masks by position, completion by completion; for windows and soft caps."""
        pieces: list[Tensor] = []
        for s in self.segments:
            p = slice(s.start, s.start + s.prompt)
            kp, vp = k[:, :, p], v[:, :, p]
            pieces.append(_dense(q[:, :, p], kp, vp, 0, scale, window, softcap))
            for at, n in s.completions:
                c = slice(at, at + n)
                kc, vc = torch.cat([kp, k[:, :, c]], 2), torch.cat([vp, v[:, :, c]], 2)
                pieces.append(_dense(q[:, :, c], kc, vc, s.prompt, scale, window, softcap))
        return torch.cat(pieces, 2)

    def _flex(self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None) -> Tensor:
        from preftune.engine.flex import flex_attend

        if window not in self._blocks:
            from preftune.engine.flex import block_mask

            self._blocks[window] = block_mask(self.segments, window, q.device)
        return flex_attend(q, k, v, self._blocks[window], scale, softcap)


def _dense(
    q: Tensor, k: Tensor, v: Tensor, offset: int, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """Masked attention of queries at positions offset … over keys at positions 0 …; [1, H, n, d]."""
    length = q.shape[2]
    if length == 0:
        return q.new_zeros(*q.shape[:3], v.shape[-1])
    if length * k.shape[2] <= DENSE_PAIRS:
        return _block(q, k, v, offset, 0, scale, window, softcap)
    step = max(DENSE_PAIRS // min(k.shape[2], 2 * window if window is not None else k.shape[2]), 1)
    pieces: list[Tensor] = []
    for start in range(0, length, step):
        stop = min(start + step, length)
        first = 0 if window is None else max(offset + start - window + 1, 0)
        keys = slice(first, offset + stop)
        given = (q[:, :, start:stop], k[:, :, keys], v[:, :, keys], offset + start, first, scale, window, softcap)
        # Masks and scores are made again in the backward: kept, they would be as many as the pairs.
        pieces.append(checkpoint(_block, *given, use_reentrant=False) if torch.is_grad_enabled() else _block(*given))
    return torch.cat(pieces, 2)


def _block(
    q: Tensor, k: Tensor, v: Tensor, offset: int, first: int, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """Queries at positions offset … over keys at positions first …."""
    rows = torch.arange(offset, offset + q.shape[2], device=q.device)[:, None]
    cols = torch.arange(first, first + k.shape[2], device=q.device)[None]
    mask = cols <= rows
    if window is not None:
        mask &= cols > rows - window
    if softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    scores = softcap * torch.tanh((q @ k.transpose(-1, -2)) * (scale / softcap))
    weights = (
        scores.to(torch.promote_types(scores.dtype, torch.float32))
        .masked_fill(~mask, -math.inf)
        .softmax(-1)
        .to(v.dtype)
    )
    return weights @ v

"""Shared-prompt attention: what a packed row attends to, as a function registered with transformers.

A token of a completion attends to its prompt and to the earlier tokens of its own completion. The function is
called by the model's own layers through transformers' attention interface; the layout of the row travels as
the keyword argument `layout`, so that gradient checkpointing finds it again when it recomputes a layer.

On the CPU the two parts of a completion's attention (prompt, itself) are computed by torch's flash kernel and
merged through their log-sum-exps; the backward pass calls the kernel's backward on each part with the merged
output and log-sum-exp, which gives each part's exact gradient (P = exp(S − lse) holds part by part). Nothing
of size prompt × completions is ever copied or kept. Sliding windows and soft-capped scores take a masked path, in
blocks of queries where a completion is long, so that its memory grows linearly too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from preftune.engine.pack import Segment

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

    Spans of like length are batched for the kernel: `causal` holds them as buckets. `shared` are the groups whose
    completions also attend to a prompt that stands apart from them.
    """

    def __init__(self, segments: Sequence[Segment], device: torch.device | str) -> None:
        self.segments = tuple(segments)
        self.device = torch.device(device)
        self.longest = max((s.prompt + max((n for _, n in s.completions), default=0) for s in segments), default=0)
        self.tokens = max((s.end for s in segments), default=0)
        # A prompt with one completion is one causal span: there is nothing to share and nothing to merge.
        self.shared = tuple(s for s in segments if len(s.completions) > 1)
        alone = [(s.start, s.end - s.start) for s in segments if len(s.completions) <= 1]
        prompts = [(s.start, s.prompt) for s in self.shared]
        self.causal = _buckets(alone + prompts, self.device)
        self.causal += _buckets([span for s in self.shared for span in s.completions], self.device)
        self.calls: list[int] = []
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
        if self.recorded is not None:
            self.recorded[layer] = (k, v)
        binding = window if window is not None and window < self.longest else None
        if q.is_cuda:
            return self._flex(q, k, v, scale, binding, softcap)
        if binding is None and softcap is None and q.shape[-1] == v.shape[-1]:
            out: Tensor = _SharedPromptFlash.apply(q, k, v, self, scale)  # type: ignore[no-untyped-call]
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


class _Bucket:
    """Spans of like length as one batch: `index` [n, L] into the row, `valid` [n, L], and where they agree: `rows` of
    the packed row and `flat` places of the flattened batch. Padding points at its span's last token, so it is
    always readable."""

    def __init__(self, spans: Sequence[tuple[int, int]], device: torch.device) -> None:
        starts = torch.tensor([start for start, _ in spans])[:, None]
        lengths = torch.tensor([n for _, n in spans])[:, None]
        steps = torch.arange(int(lengths.max()))[None]
        index, valid = starts + torch.minimum(steps, lengths - 1), steps < lengths
        self.index, self.valid = index.to(device), valid.to(device)
        self.rows, self.flat = index[valid].to(device), valid.flatten().nonzero()[:, 0].to(device)

    def take(self, x: Tensor) -> Tensor:
        """[1, H, N, …] → [n, H, L, …]."""
        return x[0][:, self.index].transpose(0, 1)

    def spread(self, x: Tensor) -> Tensor:
        """[n, H, L, …] → [H, valid tokens, …], in the order of `rows`."""
        return x.transpose(0, 1).flatten(1, 2)[:, self.flat]


def _buckets(spans: Sequence[tuple[int, int]], device: torch.device) -> list[_Bucket]:
    """Sort (start, length) spans into buckets in which at most a fifth of the longest row is padding."""
    out: list[_Bucket] = []
    order = sorted((s for s in spans if s[1] > 0), key=lambda s: -s[1])
    while order:
        take = [s for s in order if s[1] >= 0.8 * order[0][1]]
        order = order[len(take) :]
        out.append(_Bucket(take, device))
    return out


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


_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

SMALL_HEAD, SMALL_SPAN = 64, 256
"""Size of a head, and number of queries and of keys, up to which the kernel's backward in half precision is slower than
in fp32 with the casts to it and back, by a factor of up to 2.6, and takes more memory (docs/log.md)."""


def _gradients(grad: Tensor, inputs: Sequence[Tensor], *, causal: bool, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel's backward in whichever precision is faster.

    Args:
        inputs: queries, keys, values, output and log-sum-exp of the whole attention.

    Returns:
        Gradients of queries, keys and values, in their dtype or in fp32.
    """
    q, k, v, out, lse = inputs
    small = q.shape[-1] <= SMALL_HEAD and max(q.shape[2], k.shape[2]) <= SMALL_SPAN
    if small and q.dtype in (torch.bfloat16, torch.float16):
        grad, q, k, v, out = (x.float() for x in (grad, q, k, v, out))
    dq, dk, dv = _flash_backward(grad, q, k, v, out, lse, 0.0, causal, scale=scale)
    return dq, dk, dv


class _SharedPromptFlash(torch.autograd.Function):
    """Attention of a packed row in three kinds of kernel calls: prompts (causal), completions over themselves
    (causal), completions over their prompt (full); the last two merged by log-sum-exp."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, scale: float) -> Tensor:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        lse = torch.empty(q.shape[:3], dtype=torch.float64 if q.dtype == torch.float64 else torch.float32)
        for bucket in layout.causal:
            o, e = _flash(bucket.take(q), bucket.take(k), bucket.take(v), 0.0, True, scale=scale)
            out[0][:, bucket.rows] = bucket.spread(o)
            lse[0][:, bucket.rows] = bucket.spread(e)
        for s in layout.shared:
            own = slice(s.start + s.prompt, s.end)
            if own.start == own.stop:
                continue
            p = slice(s.start, s.start + s.prompt)
            o, e = _flash(q[:, :, own], k[:, :, p], v[:, :, p], 0.0, False, scale=scale)
            mine = lse[:, :, own]
            both = torch.logaddexp(mine, e)
            # o_total = o_own·exp(lse_own − lse) + o_prompt·exp(lse_prompt − lse)
            keep = (mine - both).exp_().unsqueeze(-1).to(out.dtype)
            add = (e - both).exp_().unsqueeze(-1).to(out.dtype)
            out[:, :, own] = out[:, :, own] * keep + o * add
            lse[:, :, own] = both
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, Tensor, None, None]:
        (grad,) = grads
        q, k, v, out, lse = ctx.saved_tensors
        layout: PackedLayout = ctx.layout
        scale: float = ctx.scale
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for bucket in layout.causal:
            # Padded queries get no gradient, so they add nothing to keys and values either.
            g = bucket.take(grad) * bucket.valid[:, None, :, None]
            parts = _gradients(g, [bucket.take(x) for x in (q, k, v, out, lse)], causal=True, scale=scale)
            for total, part in zip((dq, dk, dv), parts, strict=True):
                total[0][:, bucket.rows] += bucket.spread(part)
        for s in layout.shared:
            own = slice(s.start + s.prompt, s.end)
            if own.start == own.stop:
                continue
            p = slice(s.start, s.start + s.prompt)
            inputs = (q[:, :, own], k[:, :, p], v[:, :, p], out[:, :, own], lse[:, :, own])
            gq, gk, gv = _gradients(grad[:, :, own], inputs, causal=False, scale=scale)
            dq[:, :, own] += gq
            dk[:, :, p] += gk
            dv[:, :, p] += gv
        return dq, dk, dv, None, None

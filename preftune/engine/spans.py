"""A packed row's attention on a CPU: which spans go to the flash kernel and which through plain products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from preftune.engine.flash import LongSpans
from preftune.engine.pack import Segment
from preftune.engine.short import Kept, ShortSpans, Span

SHORT_QUERIES, SHORT_KEYS = 256, 512
"""The longest span, and the most keys that its queries see, for plain products in fp32 (measured: docs/log.md). The
probabilities that they keep grow with the keys, and half of those over the span itself are masked."""

HALF_QUERIES, HALF_KEYS = 768, 1024
"""The same in half precision, where the kernel is no faster than in fp32 and plain products are."""


class RowSpans:
    """The spans of a packed row. A completion's span sees its prompt and itself, a prompt's only itself; a prompt
    with one completion is one causal span, for there is nothing to share. The completions of a group go one way."""

    def __init__(self, segments: Sequence[Segment], dtype: torch.dtype) -> None:
        half = dtype in (torch.bfloat16, torch.float16)
        most_queries, most_keys = (HALF_QUERIES, HALF_KEYS) if half else (SHORT_QUERIES, SHORT_KEYS)
        short: list[Span] = []
        causal: list[tuple[int, int]] = []
        shared: list[Segment] = []
        for s in segments:
            alone = len(s.completions) <= 1
            first = (s.start, s.end - s.start if alone else s.prompt)
            if first[1] <= most_queries:
                short.append(Span(*first))
            else:
                causal.append(first)
            if alone:
                continue
            longest = max(n for _, n in s.completions)
            if longest <= most_queries and s.prompt + longest <= most_keys:
                short += [Span(at, n, s.start, s.prompt) for at, n in s.completions]
            else:
                shared.append(s)
        self.short, self.long = ShortSpans(short, few_sizes=half), LongSpans(causal, shared)
        self.all_short, self.all_long = not causal and not shared, not short


class SpanAttention(torch.autograd.Function):
    """`apply(q, k, v, spans, scale)`: q [1, H, N, d], k and v [1, K, N, d] → [1, H, N, d]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, spans: RowSpans, scale: float) -> Tensor:
        shape = q.shape
        needed = any(ctx.needs_input_grad)
        out_NE: Tensor | None = None
        kept: list[Kept] = []
        if not spans.all_long:
            out_NE, kept = spans.short.attend(_by_token(q), _by_token(k), _by_token(v), scale, keep=needed)
        if spans.all_short:
            assert out_NE is not None
            out = _by_head(out_NE, shape)
            inputs: tuple[Tensor, ...] = ()
        else:
            out = torch.empty_like(q, memory_format=torch.contiguous_format)
            if out_NE is not None:
                out[0][:, spans.short.rows] = out_NE.view(len(out_NE), shape[1], shape[3]).transpose(0, 1)
            lse = spans.long.attend(q, k, v, scale, out)
            inputs = (q, k, v, out, lse)
        if needed:
            ctx.save_for_backward(*inputs, *(tensor for four in kept for tensor in four))
        ctx.spans, ctx.scale, ctx.shapes, ctx.long = spans, scale, (shape, k.shape, v.shape), len(inputs)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, Tensor, None, None]:
        (grad,) = grads
        spans: RowSpans = ctx.spans
        saved = ctx.saved_tensors
        inputs, rest = saved[: ctx.long], saved[ctx.long :]
        # Laid out by token, as the short spans and the layers' own products want them.
        fq, fk, fv = (grad.new_zeros(s[2], s[1] * s[3]) for s in ctx.shapes)
        dq, dk, dv = (_by_head(x, s) for x, s in zip((fq, fk, fv), ctx.shapes, strict=True))
        if not spans.all_long:
            kept = [(rest[at], rest[at + 1], rest[at + 2], rest[at + 3]) for at in range(0, len(rest), 4)]
            spans.short.add_gradients(_by_token(grad), kept, ctx.scale, (fq, fk, fv))
        if inputs:
            spans.long.add_gradients(grad, inputs, ctx.scale, (dq, dk, dv))
        return dq, dk, dv, None, None


def _by_token(x: Tensor) -> Tensor:
    """[1, H, N, d] → [N, H, d]."""
    return x[0].transpose(0, 1)


def _by_head(x: Tensor, shape: Sequence[int]) -> Tensor:
    """[N, H·d] → [1, H, N, d]."""
    return x.view(shape[2], shape[1], -1).transpose(0, 1)[None]

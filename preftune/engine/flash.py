"""Attention of long spans on a CPU through torch's flash kernel.

The two parts of a completion's attention (its prompt, itself) are computed by the kernel and merged through their
log-sum-exps; the backward calls the kernel's backward on each part with the merged output and log-sum-exp, which gives
each part's exact gradient (P = exp(S − lse) holds part by part). Nothing of size prompt × completions is ever copied or
kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from preftune.engine.pack import Segment

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

SMALL_HEAD, SMALL_SPAN = 64, 256
"""Size of a head, and number of queries and of keys, up to which the kernel's backward in half precision is slower than
in fp32 with the casts to it and back, by a factor of up to 2.6, and takes more memory (docs/log.md)."""


class LongSpans:
    """Causal spans, and the groups whose completions also attend to a prompt that stands apart from them.

    Spans of like length are batched for the kernel. Built once per row, used by every layer.
    """

    def __init__(self, causal: Sequence[tuple[int, int]], shared: Sequence[Segment]) -> None:
        """
        Args:
            causal: (start, length) of spans that see nothing but themselves.
            shared: groups whose completions are taken here, each over itself and over the group's prompt.
        """
        self.causal = _batches(causal) + _batches([span for s in shared for span in s.completions])
        self.shared = tuple(s for s in shared if s.end > s.start + s.prompt)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, out: Tensor) -> Tensor:
        """Write these spans' rows of `out`; returns the log-sum-exp of their queries, [1, H, N].

        Args:
            q: [1, H, N, d]; k, v: [1, K, N, d]; out: as q.
        """
        lse = torch.zeros(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
        for batch in self.causal:
            o, e = _flash(batch.take(q), batch.take(k), batch.take(v), 0.0, True, scale=scale)
            out[0][:, batch.rows] = batch.spread(o)
            lse[0][:, batch.rows] = batch.spread(e)
        for s in self.shared:
            own, p = slice(s.start + s.prompt, s.end), slice(s.start, s.start + s.prompt)
            o, e = _flash(q[:, :, own], k[:, :, p], v[:, :, p], 0.0, False, scale=scale)
            mine = lse[:, :, own]
            both = torch.logaddexp(mine, e)
            # o_total = o_own·exp(lse_own − lse) + o_prompt·exp(lse_prompt − lse)
            keep = (mine - both).exp_().unsqueeze(-1).to(out.dtype)
            add = (e - both).exp_().unsqueeze(-1).to(out.dtype)
            out[:, :, own] = out[:, :, own] * keep + o * add
            lse[:, :, own] = both
        return lse

    def add_gradients(
        self, grad: Tensor, inputs: Sequence[Tensor], scale: float, sums: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        """The backward of `attend`.

        Args:
            grad: [1, H, N, d], of the whole row's output.
            inputs: queries, keys, values, the row's output and `attend`'s log-sum-exp.
            sums: gradients of q, k and v, in their shapes, to which those of these spans are added.
        """
        q, k, v, out, lse = inputs
        for batch in self.causal:
            # Padded queries get no gradient, so they add nothing to keys and values either.
            g = batch.take(grad) * batch.valid[:, None, :, None]
            parts = _gradients(g, [batch.take(x) for x in inputs], causal=True, scale=scale)
            for total, part in zip(sums, parts, strict=True):
                total[0][:, batch.rows] += batch.spread(part)
        for s in self.shared:
            own, p = slice(s.start + s.prompt, s.end), slice(s.start, s.start + s.prompt)
            here = (q[:, :, own], k[:, :, p], v[:, :, p], out[:, :, own], lse[:, :, own])
            parts = _gradients(grad[:, :, own], here, causal=False, scale=scale)
            for total, part, rows in zip(sums, parts, (own, p, p), strict=True):
                total[:, :, rows] += part


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


class _Batch:
    """Spans of like length as one batch: `index` [n, L] into the row, `valid` [n, L], and where they agree: `rows` of
    the packed row and `flat` places of the flattened batch. Padding points at its span's last token, so it is
    always readable."""

    def __init__(self, spans: Sequence[tuple[int, int]]) -> None:
        starts = torch.tensor([start for start, _ in spans])[:, None]
        lengths = torch.tensor([n for _, n in spans])[:, None]
        steps = torch.arange(int(lengths.max()))[None]
        self.index, self.valid = starts + torch.minimum(steps, lengths - 1), steps < lengths
        self.rows, self.flat = self.index[self.valid], self.valid.flatten().nonzero()[:, 0]

    def take(self, x: Tensor) -> Tensor:
        """[1, H, N, …] → [n, H, L, …]."""
        return x[0][:, self.index].transpose(0, 1)

    def spread(self, x: Tensor) -> Tensor:
        """[n, H, L, …] → [H, valid tokens, …], in the order of `rows`."""
        return x.transpose(0, 1).flatten(1, 2)[:, self.flat]


def _batches(spans: Sequence[tuple[int, int]]) -> list[_Batch]:
    """Sort (start, length) spans into batches in which at most a fifth of the longest row is padding."""
    out: list[_Batch] = []
    order = sorted((s for s in spans if s[1] > 0), key=lambda s: -s[1])
    while order:
        take = [s for s in order if s[1] >= 0.8 * order[0][1]]
        order = order[len(take) :]
        out.append(_Batch(take))
    return out

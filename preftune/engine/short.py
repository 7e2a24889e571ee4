"""Attention of short spans on a CPU as plain products of batched matrices.

For spans of a few hundred tokens the flash kernel's blocks are small, and merging a completion's two parts (its
prompt, itself) costs as much as the products. Here every span is laid beside its prompt, spans of like length make one
batch, and a layer is a product, a softmax and a product; the probabilities are kept for the backward, which then needs
four products and no second softmax. The keys of a prompt are copied once for each of its completions, for one layer at
a time and in the forward's kept tensors; `preftune.engine.spans` says for which spans that pays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from preftune.engine.even import rounded

LIKE = 0.7
"""A batch holds spans of at least this share of its longest."""


@dataclass(frozen=True, slots=True)
class Span:
    """Queries at `start` … of a packed row, which see the `prefix` tokens from `prefix_start` on, and causally each
    other."""

    start: int
    length: int
    prefix_start: int = 0
    prefix: int = 0


Kept: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of one batch: queries [n·K, r·L, d], keys and values [n·K, M, d], probabilities [n·K, r·L, M]."""


class _Batch:
    """n spans of like length: L queries over M keys, those of the prefix (P) and the span's own.

    Padding points at a token that exists, so that it is always readable; what it gives is never read, and its gradient
    is set to zero.
    """

    def __init__(self, spans: Sequence[Span], few_sizes: bool) -> None:
        self.n, self.prefix = len(spans), max(s.prefix for s in spans)
        self.length = max(s.length for s in spans)
        if few_sizes:
            self.prefix, self.length = rounded(self.prefix), rounded(self.length)
        start, count, prefix_start, prefix = (
            torch.tensor(column)[:, None]
            for column in zip(*((s.start, s.length, s.prefix_start, s.prefix) for s in spans), strict=True)
        )
        steps, before = torch.arange(self.length)[None], torch.arange(self.prefix)[None]
        queries = start + torch.minimum(steps, count - 1)
        keys = prefix_start + torch.minimum(before, (prefix - 1).clamp(min=0))
        self.valid = (steps < count).flatten()[:, None]
        self.queries, self.keys = queries.flatten(), torch.cat([keys, queries], 1).flatten()
        own = steps[..., None] < steps[:, None]
        self.hidden = torch.cat(
            [(before >= prefix)[:, None].expand(-1, self.length, -1), own.expand(self.n, -1, -1)], 2
        )
        # A prompt of several spans is gathered several times; its gradients are summed before they are spread.
        firsts = sorted({s.prefix_start for s in spans})
        self.prompt_of = torch.tensor([firsts.index(s.prefix_start) for s in spans])
        self.prompts = len(firsts)
        sizes = {s.prefix_start: s.prefix for s in spans}
        own_rows = [torch.arange(first, first + sizes[first]) for first in firsts]
        places = [p * self.prefix + torch.arange(sizes[first]) for p, first in enumerate(firsts)]
        self.prompt_rows, self.prompt_places = torch.cat(own_rows), torch.cat(places)
        self._masks: dict[tuple[torch.dtype, int], Tensor] = {}

    def mask(self, dtype: torch.dtype, heads: int, repeats: int) -> Tensor:
        """Additive, [n·K, r·L, M]; made once for all layers."""
        key = (dtype, heads * repeats)
        if key not in self._masks:
            mask = torch.zeros(self.hidden.shape, dtype=dtype).masked_fill_(self.hidden, -math.inf)
            shape = (self.n, heads, repeats, *self.hidden.shape[1:])
            self._masks[key] = mask[:, None, None].expand(shape).reshape(self.n * heads, -1, mask.shape[-1])
        return self._masks[key]


class ShortSpans:
    """The short spans of a packed row, in batches. Built once per row, used by every layer.

    Attributes:
        rows: the queries' places in the packed row, ascending.
    """

    def __init__(self, spans: Sequence[Span], *, few_sizes: bool = False) -> None:
        self.batches: list[_Batch] = []
        left = sorted((s for s in spans if s.length > 0), key=lambda s: (s.prefix > 0, -s.length))
        while left:
            first = left[0]
            chosen = [s for s in left if s.length >= LIKE * first.length and (s.prefix > 0) == (first.prefix > 0)]
            done = set(chosen)
            left = [s for s in left if s not in done]
            self.batches.append(_Batch(chosen, few_sizes))
        self.places = self.rows = torch.empty(0, dtype=torch.long)
        if self.batches:
            valid = torch.cat([b.valid[:, 0] for b in self.batches])
            rows, order = torch.cat([b.queries for b in self.batches])[valid].sort()
            self.rows, self.places = rows, valid.nonzero()[:, 0][order]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, *, keep: bool) -> tuple[Tensor, list[Kept]]:
        """Attention of `rows`: [rows, H·d_v], and with `keep` what the backward needs.

        Args:
            q: [N, H, d], the packed row's queries.
            k: [N, K, d].
            v: [N, K, d_v].
        """
        heads, repeats = k.shape[1], q.shape[1] // k.shape[1]
        kept: list[Kept] = []
        out = v.new_empty(sum(b.n * b.length for b in self.batches), q.shape[1] * v.shape[2])
        done = 0
        for b in self.batches:
            queries, keys, values = _queries(q, b, heads), _keys(k, b), _keys(v, b)
            scores = torch.baddbmm(b.mask(q.dtype, heads, repeats), queries, keys.transpose(1, 2), alpha=scale)
            probs = torch.softmax(scores, -1).to(v.dtype)  # of 16-bit scores too the kernel computes in fp32
            here = out[done : done + b.n * b.length].view(b.n, b.length, heads, repeats, -1)
            here.copy_(torch.bmm(probs, values).view(b.n, heads, repeats, b.length, -1).permute(0, 3, 1, 2, 4))
            done += b.n * b.length
            if keep:
                kept.append((queries, keys, values, probs))
        return out.index_select(0, self.places), kept

    def add_gradients(
        self, grad: Tensor, kept: Sequence[Kept], scale: float, sums: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        """The backward of `attend`.

        Args:
            grad: [N, H, d_v], of the whole packed row's output.
            kept: what `attend` returned.
            sums: gradients of q [N, H·d], k [N, K·d] and v [N, K·d_v], to which those of the short spans are added.
        """
        total_q, total_k, total_v = sums
        heads = total_k.shape[1] * grad.shape[1] // total_q.shape[1]
        parts_q: list[Tensor] = []
        parts_k: list[Tensor] = []
        parts_v: list[Tensor] = []
        for b, (queries, keys, values, probs) in zip(self.batches, kept, strict=True):
            # Padded queries get no gradient, so they add nothing to keys and values either.
            above = _queries(grad, b, heads, b.valid)
            slope = torch._softmax_backward_data(torch.bmm(above, values.transpose(1, 2)), probs, -1, probs.dtype)
            of_queries = torch.bmm(slope, keys).mul_(scale)
            of_keys = torch.bmm(slope.transpose(1, 2), queries).mul_(scale)
            of_values = torch.bmm(probs.transpose(1, 2), above)
            shape = (b.n, heads, -1, b.length, queries.shape[-1])
            parts_q.append(of_queries.view(shape).permute(0, 3, 1, 2, 4).reshape(b.n * b.length, -1))
            for total, part, own in ((total_k, of_keys, parts_k), (total_v, of_values, parts_v)):
                by_token = part.view(b.n, heads, b.prefix + b.length, -1).transpose(1, 2)
                own.append(by_token[:, b.prefix :].reshape(b.n * b.length, -1))
                if b.prefix:
                    by_prompt = total.new_zeros(b.prompts, b.prefix * total.shape[1])
                    by_prompt.index_add_(0, b.prompt_of, by_token[:, : b.prefix].reshape(b.n, -1).to(total.dtype))
                    total[b.prompt_rows] += by_prompt.view(-1, total.shape[1])[b.prompt_places]
        for total, parts in ((total_q, parts_q), (total_k, parts_k), (total_v, parts_v)):
            mine = torch.cat(parts).index_select(0, self.places)
            if len(mine) == len(total):
                total += mine
            else:
                total.index_add_(0, self.rows, mine.to(total.dtype))


def _queries(x: Tensor, b: _Batch, heads: int, keep: Tensor | None = None) -> Tensor:
    """[N, H, d] → [n·K, r·L, d]: the queries that share a head of keys stand one behind the other."""
    taken = x.reshape(len(x), -1).index_select(0, b.queries)
    if keep is not None:
        taken = taken.mul_(keep)
    taken = taken.view(b.n, b.length, heads, -1, x.shape[-1])
    return taken.permute(0, 2, 3, 1, 4).reshape(b.n * heads, -1, x.shape[-1])


def _keys(x: Tensor, b: _Batch) -> Tensor:
    """[N, K, d] → [n·K, M, d]."""
    taken = x.reshape(len(x), -1).index_select(0, b.keys).view(b.n, b.prefix + b.length, *x.shape[1:])
    return taken.transpose(1, 2).reshape(-1, b.prefix + b.length, x.shape[-1])

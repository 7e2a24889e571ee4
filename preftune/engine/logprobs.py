"""Token log-probs and entropies from hidden states, without ever holding tokens × vocabulary.

    z = h Wᵀ + b        u = softcap · tanh(scale · z / softcap) / temperature   (no soft-cap: scale · z / temperature)
    log p(y) = u_y − logsumexp(u)            H = −Σ_v p_v log p_v               p = softmax(u)

Tokens go through in chunks of `chunk_elements / V`; a chunk's logits live in buffers that the next chunk reuses.
Derivatives, with k = scale / temperature and c = 1 − tanh² (1 without a soft-cap):

    ∂ log p(y) / ∂z = −k · c · (p − onehot(y))          ∂H / ∂z = −k · c · p · (log p + H)

The first is known before the loss is, up to one number per token. So where the head is frozen (LoRA) the forward
multiplies it by W while the chunk is at hand, and the backward needs no matmul at all: two matmuls in all, where
recomputing takes three. A trainable head needs that number before it sums over tokens, so its backward
recomputes the logits, unless what it needs of all of them is no more than one chunk, and then kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from preftune.engine import products

CHUNK_ELEMENTS = 1 << 24
"""Logits held at a time: 64 MiB per buffer in fp32. Smaller chunks re-read the head's weight more often."""

_KEPT_CHUNK_ELEMENTS, _FEWEST_ROWS = 1 << 20, 128
"""On a CPU, where what the backward needs of all tokens is kept: logits held at a time, 4 MiB per buffer, which stays
in the cache; and the fewest tokens of a chunk."""

_BLOCK_ELEMENTS = 1 << 18
"""Element-wise work on a chunk goes in blocks of this size, whose temporaries stay in the cache."""


def fused_logprobs(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    targets_T: Tensor,
    *,
    bias_V: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    with_entropy: bool = False,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each target and, on request, the entropy of its distribution, in nats.

    Differentiable once in `hidden_TD`, `weight_VD` and `bias_V`, through both results. Matmuls run in the inputs'
    dtype, or in autocast's; everything after them runs in fp32 (fp64 for fp64 inputs).

    Args:
        hidden_TD: the last hidden states that predict the targets; T may be 0. Any strides.
        weight_VD: the head's weight, same dtype as `hidden_TD` unless autocast is on.
        targets_T: int64 token ids in [0, V).
        bias_V: the head's bias.
        scale: multiplies the logits (Cohere; Granite divides, so 1 / its number).
        softcap: the final soft-cap, `softcap * tanh(logits / softcap)`, after `scale` and before `temperature`.
        temperature: divides the logits; above 0.
        with_entropy: also return entropies. They cost one more pass over the chunk, not another matmul.
        chunk_elements: logits held at a time; at least one token's V are.

    Returns:
        `(logprobs_T, entropy_T)`, float32 (float64 for float64 inputs); `entropy_T` is None unless asked for.

    Raises:
        ValueError: shapes or dtypes that don't fit together, a target outside the vocabulary, a bad number.
    """
    _check(hidden_TD, weight_VD, targets_T, bias_V, scale, softcap, temperature, chunk_elements)
    hidden_TD, weight_VD, bias_V = _autocast(hidden_TD, weight_VD, bias_V)
    if hidden_TD.dtype != weight_VD.dtype:
        raise ValueError(f"hidden states are {hidden_TD.dtype} but the head's weight is {weight_VD.dtype}: cast one")
    if bias_V is not None and bias_V.dtype != weight_VD.dtype:
        raise ValueError(f"the head's bias is {bias_V.dtype} but its weight is {weight_VD.dtype}: cast one")
    shape = _Shape(scale, softcap, temperature, max(1, chunk_elements // weight_VD.shape[0]))
    inputs = (hidden_TD, weight_VD, bias_V)
    grads = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    results = _FusedLogprobs.apply(*inputs, targets_T, shape, with_entropy, grads)  # type: ignore[no-untyped-call]
    logprobs_T, entropy_T = results
    return logprobs_T, entropy_T if with_entropy else None


def _check(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    targets_T: Tensor,
    bias_V: Tensor | None,
    scale: float,
    softcap: float | None,
    temperature: float,
    chunk_elements: int,
) -> None:
    if hidden_TD.dim() != 2 or weight_VD.dim() != 2 or hidden_TD.shape[1] != weight_VD.shape[1]:
        shapes = f"hidden states {tuple(hidden_TD.shape)} and weight {tuple(weight_VD.shape)}"
        raise ValueError(f"{shapes} must be T×D and V×D")
    if targets_T.shape != hidden_TD.shape[:1] or targets_T.dtype != torch.int64:
        raise ValueError(
            f"targets must be {hidden_TD.shape[0]} int64 ids, one per hidden state, "
            f"and are {tuple(targets_T.shape)} of {targets_T.dtype}"
        )
    vocabulary = weight_VD.shape[0]
    if bias_V is not None and bias_V.shape != (vocabulary,):
        raise ValueError(f"bias {tuple(bias_V.shape)} must have the weight's {vocabulary} rows")
    for name, value in (("temperature", temperature), ("softcap", softcap)):
        if value is not None and not (math.isfinite(value) and value > 0.0):
            raise ValueError(f"{name} must be a finite number above 0, not {value}")
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite, not {scale}")
    if chunk_elements < 1:
        raise ValueError(f"chunk_elements must be at least 1, not {chunk_elements}")
    if targets_T.numel():
        low, high = (int(x) for x in torch.stack(torch.aminmax(targets_T)).tolist())
        if low < 0 or high >= vocabulary:
            raise ValueError(f"target ids span {low} … {high}, outside the head's vocabulary 0 … {vocabulary - 1}")


def _autocast(*tensors: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """What autocast would do to the inputs of a linear layer. fp64 is left alone, as autocast leaves it."""
    hidden, weight, bias = tensors
    assert hidden is not None and weight is not None
    device = hidden.device.type
    if not torch.is_autocast_enabled(device):
        return hidden, weight, bias
    dtype = torch.get_autocast_dtype(device)

    def cast(x: Tensor) -> Tensor:
        return x if x.dtype == torch.float64 else x.to(dtype)

    return cast(hidden), cast(weight), None if bias is None else cast(bias)


@dataclass(frozen=True)
class _Shape:
    """What lies between the linear layer and the softmax, and the tokens of a chunk."""

    scale: float
    softcap: float | None
    temperature: float
    rows: int


_Mixed: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of a chunk: the loss's derivatives g and e by log-prob and entropy, the entropies H, the logsumexps."""


class _Chunks:
    """The buffers that all chunks of one pass share, and the steps on a chunk."""

    def __init__(
        self, hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, shape: _Shape, *, keep: bool = False
    ) -> None:
        self.hidden_TD, self.weight_VD, self.bias_V, self.shape = hidden_TD, weight_VD, bias_V, shape
        low = weight_VD.dtype
        full = torch.float64 if low == torch.float64 else torch.float32
        vocabulary = weight_VD.shape[0]
        few = shape.rows
        if keep and weight_VD.device.type == "cpu":
            few = max(_KEPT_CHUNK_ELEMENTS // vocabulary, _FEWEST_ROWS)
        self.rows = min(_in_groups(shape.rows), _in_groups(few), hidden_TD.shape[0])
        self.full, self.low = full, low
        self.wide = products.wide(hidden_TD[: self.rows], weight_VD)
        size = (self.rows, vocabulary)
        self._probs = torch.empty(size, dtype=full, device=weight_VD.device)
        if not self.wide:  # oneDNN gives each chunk's logits a place of their own
            self._logits = torch.empty_like(self._probs)
            # A 16-bit matmul needs a 16-bit place for its result, and later for the residual it multiplies.
            self._low = self._logits if low == full else torch.empty(size, dtype=low, device=weight_VD.device)

    def slices(self) -> Iterator[slice]:
        for start in range(0, self.hidden_TD.shape[0], max(self.rows, 1)):
            yield slice(start, min(start + self.rows, self.hidden_TD.shape[0]))

    def logits(self, at: slice) -> Tensor:
        """u of the chunk, in the logits buffer."""
        if self.wide:
            out = products.inner(self.hidden_TD[at], self.weight_VD, self.bias_V)
        else:
            rows = at.stop - at.start
            low, out = self._low[:rows], self._logits[:rows]
            if self.bias_V is None:
                torch.mm(self.hidden_TD[at], self.weight_VD.T, out=low)
            else:
                torch.addmm(self.bias_V, self.hidden_TD[at], self.weight_VD.T, out=low)
            if low.dtype != out.dtype:
                out.copy_(low)
        if self.shape.softcap is None:
            k = self.shape.scale / self.shape.temperature
            return out if k == 1.0 else out.mul_(k)
        out.mul_(self.shape.scale / self.shape.softcap).tanh_()
        return out.mul_(self.shape.softcap / self.shape.temperature)

    def probs(self, u: Tensor, into: Tensor | None = None) -> Tensor:
        """softmax(u), in the second buffer or `into` another place: torch's kernel makes one trip through memory, and
        on a CPU takes a third of the time of subtract, exponent and sum apart."""
        return torch.softmax(u, dim=-1, out=self._probs[: len(u)] if into is None else into)

    def logsumexp(self, u: Tensor, p: Tensor) -> Tensor:
        """Of each row, from its largest entry, whose probability is at least 1 / V: max u − log max p."""
        return u.amax(-1) - p.amax(-1).log_()

    def _blocks(self, rows: int) -> Iterator[slice]:
        step = max(1, _BLOCK_ELEMENTS // self.weight_VD.shape[0])
        for start in range(0, rows, step):
            yield slice(start, min(start + step, rows))

    def entropy(self, u: Tensor, p: Tensor, lse: Tensor) -> Tensor:
        """−Σ p log p. From log p rather than from u, which would lose digits where u is large."""
        out = torch.empty_like(lse)
        for at in self._blocks(len(u)):
            torch.sum((u[at] - lse[at, None]).mul_(p[at]), dim=-1, out=out[at])
        return out.neg_()

    def residual(
        self, u: Tensor, p: Tensor, targets: Tensor, mixed: _Mixed | None = None, out: Tensor | None = None
    ) -> Tensor:
        """c · (p − onehot), or with `mixed` c · [g · (p − onehot) + e · p · (log p + H)], in the matmuls' dtype.

        Overwrites u and p. `out`: where it goes; otherwise into a buffer that the next chunk overwrites.
        """
        if mixed is None:
            p.scatter_add_(1, targets[:, None], p.new_full((len(p), 1), -1.0))
        else:
            g, e, entropy, lse = (x[:, None] for x in mixed)
            for at in self._blocks(len(u)):
                p[at].mul_((u[at] - lse[at]).add_(entropy[at]).mul_(e[at]).add_(g[at]))
            p.scatter_add_(1, targets[:, None], -g)
        if self.shape.softcap is not None:
            tanh = u.mul_(self.shape.temperature / self.shape.softcap)
            p.addcmul_(p, tanh.square_(), value=-1.0)
        if out is not None:
            return out.copy_(p)
        return p if p.dtype == self.low else self._low[: len(p)].copy_(p)


class _FusedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_T: Tensor,
        shape: _Shape,
        with_entropy: bool,
        grads: bool,
    ) -> tuple[Tensor, Tensor | None]:
        trains_head = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        with torch.autocast(hidden_TD.device.type, enabled=False):
            # Kept, the residuals spare the backward a product; more tokens than `rows` are too many to keep.
            keep = grads and trains_head and hidden_TD.shape[0] <= shape.rows
            chunks = _Chunks(hidden_TD, weight_VD, bias_V, shape, keep=keep)
            logprobs_T = torch.empty(hidden_TD.shape[0], dtype=chunks.full, device=hidden_TD.device)
            lse_T = torch.empty_like(logprobs_T)
            entropy_T = torch.empty_like(logprobs_T) if with_entropy else None
            # −∂ log p / ∂h up to k: kept per token when the head is frozen.
            slope_TD = torch.empty_like(hidden_TD) if grads and not trains_head else None
            residual_TV = weight_VD.new_empty(len(targets_T), weight_VD.shape[0]) if keep else None
            for at in chunks.slices():
                u, targets = chunks.logits(at), targets_T[at]
                # The residual is made of the probabilities: kept in their precision, it takes their place.
                here = residual_TV[at] if residual_TV is not None and chunks.low == chunks.full else None
                p = chunks.probs(u, here)
                lse_T[at] = chunks.logsumexp(u, p)
                torch.sub(u.gather(1, targets[:, None]).squeeze(1), lse_T[at], out=logprobs_T[at])
                if entropy_T is not None:
                    entropy_T[at] = chunks.entropy(u, p, lse_T[at])
                if slope_TD is not None:
                    slope_TD[at] = _times(chunks.residual(u, p, targets), weight_VD)
                elif residual_TV is not None:
                    chunks.residual(u, p, targets, out=residual_TV[at] if here is None else None)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden_TD, weight_VD, bias_V, targets_T, lse_T, entropy_T, slope_TD, residual_TV)
        ctx.shape = shape
        return logprobs_T, entropy_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_T: Tensor | None, e_T: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_TD, weight_VD, bias_V, targets_T, lse_T, entropy_T, slope_TD, residual_TV = ctx.saved_tensors
        shape: _Shape = ctx.shape
        if g_T is None and e_T is None:
            return (None,) * 7
        k = shape.scale / shape.temperature
        factor_T = torch.full_like(lse_T, -k) if g_T is None or e_T is not None else g_T * -k
        with torch.autocast(hidden_TD.device.type, enabled=False):
            if e_T is None and slope_TD is not None:
                return (slope_TD * factor_T[:, None]).to(hidden_TD.dtype), None, None, None, None, None, None
            sums = _Gradients(ctx.needs_input_grad, hidden_TD, weight_VD, bias_V)
            if e_T is None and residual_TV is not None:
                sums.add(slice(0, len(targets_T)), residual_TV, factor_T)
                return (*sums.result(), None, None, None, None)
            chunks = _Chunks(hidden_TD, weight_VD, bias_V, shape)
            for at in chunks.slices():
                u = chunks.logits(at)
                p = chunks.probs(u)
                mixed: _Mixed | None = None
                if e_T is not None:
                    g = torch.zeros_like(e_T[at]) if g_T is None else g_T[at]
                    mixed = (g, e_T[at], entropy_T[at], lse_T[at])
                sums.add(at, chunks.residual(u, p, targets_T[at], mixed), factor_T[at])
        return (*sums.result(), None, None, None, None)


def _times(x: Tensor, weight: Tensor) -> Tensor:
    """x W; x [T, V], weight [V, D]."""
    return products.inner(x, weight.T) if products.wide(x, weight.T) else x @ weight


def _in_groups(rows: int) -> int:
    """The tokens of a chunk: a multiple of 64 where there are so many, for products of sizes that come again."""
    return max(rows // 64 * 64, min(rows, 64))


class _Gradients:
    """Sums of chunks' gradients by hidden states, weight and bias: those that are needed."""

    def __init__(self, needed: Sequence[bool], hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> None:
        self.hidden_TD, self.weight_VD, self.bias_V = hidden_TD, weight_VD, bias_V
        self._hidden = torch.empty_like(hidden_TD) if needed[0] else None
        # Over chunks the head's gradient is summed in fp32: 16 bits would lose small terms.
        self._full = torch.promote_types(weight_VD.dtype, torch.float32)
        self._needs_weight = needed[1]
        self._weight: Tensor | None = None  # [V, D], or [D, V] as oneDNN makes it faster
        self._bias = torch.zeros_like(bias_V, dtype=self._full) if needed[2] and bias_V is not None else None
        self._wide = products.wide(hidden_TD, weight_VD)

    def add(self, at: slice, residual: Tensor, factor: Tensor) -> None:
        """Adds a chunk whose gradient by its logits is factor[:, None] * residual.

        The factor goes into the small operand of each product, which saves a trip through the chunk.
        """
        column = factor[:, None]
        if self._hidden is not None:
            self._hidden[at] = _times(residual, self.weight_VD) * column
        if self._needs_weight:
            scaled = (self.hidden_TD[at] * column).to(residual.dtype)
            left, right = (scaled.T, residual) if self._wide else (residual.T, scaled)
            if self._weight is not None and self._weight.dtype == residual.dtype and not self._wide:
                self._weight.addmm_(left, right)
            else:
                part = (products.inner(left, right.T) if self._wide else left @ right).to(self._full)
                self._weight = part if self._weight is None else self._weight.add_(part)
        if self._bias is not None:
            self._bias += residual.T @ factor.to(residual.dtype)

    def result(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        weight = None
        if self._weight is not None:
            weight = (self._weight.T.contiguous() if self._wide else self._weight).to(self.weight_VD.dtype)
        elif self._needs_weight:
            weight = torch.zeros_like(self.weight_VD)
        bias = None if self._bias is None or self.bias_V is None else self._bias.to(self.bias_V.dtype)
        return self._hidden, weight, bias

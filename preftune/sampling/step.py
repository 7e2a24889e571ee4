"""One decoding step in plain products: what the model's own decoder computes, with fewer and larger operations.

A step feeds one token to each row, so its tensors are small and the time of an operation is mostly its call. The
model's own layers make some seventy calls each; here queries, keys and values come from one product, gate and up from
another, and norms and rotations act on queries and keys together. Under autocast the weights are cast once a call.

No list of architectures decides: a model is taken when it has the parts of a Llama or Qwen decoder, and when its own
steps and these, measured once, give the same states (`plain_agrees`).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preftune.engine.attention import Asked, PackedLayout
from preftune.engine.forward import Engine
from preftune.engine.fused import epsilon
from preftune.engine.head import decoder_of
from preftune.engine.pack import pack
from preftune.engine.products import blas_is_narrow, has_inner, inner
from preftune.records import Completion, Group, Prompt
from preftune.sampling.cache import DecodeCache, Row

KEPT_BYTES = 1 << 30
"""Weights are copied for a call, side by side and as products want them, where the copies take at most so much."""

ROWS_STEP, USUAL_ROWS = 8, 64
"""Rows of a step are filled up to a multiple; for how many rows kept weights are laid out."""

TOLERANCE_FP32 = 1e-4
TOLERANCE_HALF = 0.05
"""Bound on max |Δ| of the states, relative to their size: rounding, of fp32 weights and of 16-bit ones."""

_PROBE_PROMPTS, _PROBE_STEPS = (11, 5, 1), 3
"""Lengths of the prompts, and steps behind them, by which steps are compared."""

_LAYER = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = {"q_norm", "k_norm"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}


class _OtherForm(Exception):
    """The decoder has other parts than this step knows."""


@dataclass(frozen=True)
class _Norm:
    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Product:
    """x Wᵀ + b of one or several weights of the same input, their outputs side by side; the weights are read now.

    Where oneDNN multiplies (16 bits on a CPU, fp32 by `preftune.engine.products`), weights that are kept are laid out
    for it once, not at every step.

    Args:
        layers: weight [N, K] and bias [N] of each.
        dtype: in which to multiply, None for the weights' own.
        keep: the weights may be copied, side by side and as oneDNN wants them.

    Attributes:
        onednn: whether oneDNN multiplies.
    """

    def __init__(
        self, layers: Sequence[tuple[Tensor, Tensor | None]], dtype: torch.dtype | None, *, keep: bool
    ) -> None:
        weights = [w.detach() if dtype is None else w.detach().to(dtype) for w, _ in layers]
        self._dtype = weights[0].dtype
        biases = [None if b is None else b.detach().to(self._dtype) for _, b in layers]
        if keep and len(layers) > 1:
            biases = [_joined(weights, biases)]
            weights = [torch.cat(weights)]
        self.onednn = onednn_multiplies(weights[0])
        if self.onednn and keep:
            weights = [torch.ops.mkldnn._reorder_linear_weight(w, USUAL_ROWS) for w in weights]
        self._parts = list(zip(weights, biases, strict=True))

    def __call__(self, x: Tensor) -> Tensor:
        """[B, K] → [B, ΣN]."""
        x = x.to(self._dtype)
        multiply = inner if self.onednn else F.linear
        parts = [multiply(x, w, b) for w, b in self._parts]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def onednn_multiplies(weight: Tensor) -> bool:
    """Whether oneDNN is the faster one for products of few rows with this weight."""
    if weight.device.type != "cpu" or not has_inner():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32 and blas_is_narrow()


def _joined(weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor | None:
    if all(b is None for b in biases):
        return None
    return torch.cat([w.new_zeros(len(w)) if b is None else b for w, b in zip(weights, biases, strict=True)])


@dataclass(frozen=True)
class _Layer:
    index: int
    before: _Norm
    qkv: Product
    heads: int
    kv_heads: int
    head_norm: _Norm | None
    """Of queries and keys: weight [H + K, d]."""
    out: Product
    between: _Norm
    gate_up: Product
    down: Product
    asked: Asked


class PlainStep:
    """A decoder's next states from plain products; made by `plain_step`."""

    def __init__(self, embedding: Tensor, rotary: Any, layers: Sequence[_Layer], last: _Norm, *, even: bool) -> None:
        self._embedding, self._rotary, self._layers, self._last = embedding, rotary, tuple(layers), last
        self._even = even

    def __call__(self, ids_B: Tensor, cache: DecodeCache) -> Tensor:
        """The states [B, D] behind one token of each active row, whose keys and values go into the cache."""
        rows = len(ids_B)
        # oneDNN compiles a product for every number of rows: let there be few. The rows filled in have no keys.
        filling = -rows % ROWS_STEP if self._even and rows > ROWS_STEP else 0
        states = F.embedding(F.pad(ids_B, (0, filling)), self._embedding)
        cos, sin = self._rotary(states[None], F.pad(cache.positions_B(), (0, filling))[None])
        half = cos.shape[-1] // 2
        # rotate(x) = (−x₂, x₁): the halves change places, and the sign goes into the sine.
        cos, sin = cos[0, :, None], torch.cat([-sin[0, :, None, :half], sin[0, :, None, half:]], -1)
        with torch.inference_mode():  # calls cost less than under no_grad
            return self._through_layers(states, cos, sin, rows, cache)

    def _through_layers(self, states: Tensor, cos: Tensor, sin: Tensor, rows: int, cache: DecodeCache) -> Tensor:
        filling, half = len(states) - rows, cos.shape[-1] // 2
        for layer in self._layers:
            joint = layer.qkv(layer.before(states)).view(len(states), -1, cos.shape[-1])
            turned = joint[:, : layer.heads + layer.kv_heads].to(cos.dtype)
            if layer.head_norm is not None:
                turned = F.rms_norm(turned, turned.shape[-1:], None, layer.head_norm.eps) * layer.head_norm.weight
            turned = torch.addcmul(turned * cos, turned.roll(half, -1), sin).to(joint.dtype)
            q, k, v = turned[:rows, : layer.heads], turned[:rows, layer.heads :], joint[:rows, -layer.kv_heads :]
            asked = layer.asked
            attended = cache.attend_rows(
                layer.index, q, k, v, scale=asked.scale, window=asked.window, softcap=asked.softcap
            )
            states = states + layer.out(F.pad(attended.flatten(1), (0, 0, 0, filling)))
            gate, up = layer.gate_up(layer.between(states)).chunk(2, -1)
            states = states + layer.down(F.silu(gate).mul_(up))
        return self._last(states[:rows])


class Steps:
    """The steps of one call: plain ones, or the model's own where it has other parts or they are not wanted."""

    def __init__(self, decoder: Any, *, dtype: torch.dtype | None, plain: bool) -> None:
        self._decoder, self._dtype = decoder, dtype
        self._step: PlainStep | None = None
        self._wanted = plain

    def __call__(self, ids_B: Tensor, cache: DecodeCache) -> Tensor:
        """The states [B, D] behind one token of each active row, whose keys and values go into the cache."""
        if self._wanted:
            self._step, self._wanted = plain_step(self._decoder, cache.asked, self._dtype), False
        if self._step is None:
            return own_step(self._decoder, ids_B, cache)
        with torch.autocast(ids_B.device.type, enabled=False):
            return self._step(ids_B, cache)


def own_step(decoder: Any, ids_B: Tensor, cache: DecodeCache) -> Tensor:
    """The same by the model's own layers."""
    out = decoder(input_ids=ids_B[None], position_ids=cache.positions_B()[None], use_cache=False, layout=cache)
    states: Tensor = out.last_hidden_state[0]
    return states


def plain_agrees(engine: Engine) -> bool:
    """Whether plain steps give the model's states: measured over a few steps behind random prompts, in the weights' own
    precision, in which rounding lies far below what another form of layer would change."""
    decoder, device = decoder_of(engine.policy.model), engine.policy.device
    vocabulary = engine.policy.base.get_input_embeddings().weight.shape[0]
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (sum(_PROBE_PROMPTS) + _PROBE_STEPS,), generator=draw).tolist()
    prompts = [Prompt(tuple(ids[:n]), "") for n in _PROBE_PROMPTS]
    cache = DecodeCache(device)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        (row,) = pack([Group(p, (Completion((), ()),)) for p in prompts], len(ids), device=device)
        layout = PackedLayout(row.segments, device)
        recorded = layout.record()
        decoder(input_ids=row.input_ids_N[None], position_ids=row.position_ids_N[None], use_cache=False, layout=layout)
        step = plain_step(decoder, layout.asked, None)
        if step is None:
            return False
        spans = [slice(s.start, s.start + s.prompt) for s in row.segments]
        states = [{i: (k[0, :, at], v[0, :, at]) for i, (k, v) in recorded.items()} for at in spans]
        cache.admit([[Row(g, 0, array("f"))] for g in range(len(prompts))], states)
        for token in ids[-_PROBE_STEPS:]:
            cache.begin_step()
            ids_B = torch.full((len(prompts),), token, device=device)
            mine_BD, want_BD = step(ids_B, cache), own_step(decoder, ids_B, cache)
            cache.end_step()
            full = want_BD.dtype in (torch.float32, torch.float64)
            if not _difference(mine_BD, want_BD) <= (TOLERANCE_FP32 if full else TOLERANCE_HALF):
                return False
    return True


def _difference(mine_BD: Tensor, want_BD: Tensor) -> float:
    """max |Δ| in units of the largest state; NaN counts as infinite."""
    if mine_BD.shape != want_BD.shape:
        return math.inf
    delta = float((mine_BD.float() - want_BD.float()).abs().max() / want_BD.float().abs().max().clamp_min(1e-6))
    return math.inf if math.isnan(delta) else delta


def plain_step(decoder: Any, asked: Mapping[int, Asked], dtype: torch.dtype | None) -> PlainStep | None:
    """The step of a decoder, or None where it has other parts than are known here.

    The weights are read now: a step lasts as long as they stay what they are, a call of the sampler.

    Args:
        asked: what each layer asks of its attention, as the prefill heard it.
        dtype: in which products are computed, None for the weights' own.
    """
    try:
        if {name for name, _ in decoder.named_children()} != {"embed_tokens", "layers", "norm", "rotary_emb"}:
            return None
        embedding = decoder.embed_tokens
        if type(embedding) is not nn.Embedding:
            return None
        layers = list(decoder.layers)
        keep = sum(_bytes(layer, dtype) for layer in layers) <= KEPT_BYTES
        parts = [_layer_of(layer, asked, dtype, keep) for layer in layers]
        even = any(layer.down.onednn for layer in parts)
        return PlainStep(embedding.weight, decoder.rotary_emb, parts, _norm_of(decoder.norm), even=even)
    except (_OtherForm, AttributeError):
        return None


def _layer_of(layer: Any, asked: Mapping[int, Asked], dtype: torch.dtype | None, keep: bool) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    names = {name for name, _ in attention.named_children()}
    _need({name for name, _ in layer.named_children()} == _LAYER)
    _need({name for name, _ in mlp.named_children()} == _MLP)
    _need(names in (_ATTENTION, _ATTENTION | _HEAD_NORMS))
    size = int(attention.head_dim)
    qkv = [_linear(attention.q_proj), _linear(attention.k_proj), _linear(attention.v_proj)]
    heads, kv_heads = len(qkv[0][0]) // size, len(qkv[1][0]) // size
    _need(len(qkv[2][0]) == kv_heads * size and attention.layer_idx in asked)
    norm = None
    if names > _ATTENTION:
        q, k = _norm_of(attention.q_norm), _norm_of(attention.k_norm)
        _need(q.eps == k.eps and q.weight.shape == k.weight.shape == (size,))
        norm = _Norm(torch.cat([q.weight.expand(heads, -1), k.weight.expand(kv_heads, -1)]), q.eps)
    return _Layer(
        index=attention.layer_idx,
        before=_norm_of(layer.input_layernorm),
        qkv=Product(qkv, dtype, keep=keep),
        heads=heads,
        kv_heads=kv_heads,
        head_norm=norm,
        out=Product([_linear(attention.o_proj)], dtype, keep=keep),
        between=_norm_of(layer.post_attention_layernorm),
        gate_up=Product([_linear(mlp.gate_proj), _linear(mlp.up_proj)], dtype, keep=keep),
        down=Product([_linear(mlp.down_proj)], dtype, keep=keep),
        asked=asked[attention.layer_idx],
    )


def _need(holds: bool) -> None:
    if not holds:
        raise _OtherForm


def _linear(module: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the plain linear layer that acts: an adapter around it must be folded in."""
    if getattr(module, "merged", False) and not module.disable_adapters:
        module = module.get_base_layer()
    if type(module) is not nn.Linear or not module.weight.is_floating_point():
        raise _OtherForm
    return module.weight, module.bias


def _norm_of(module: Any) -> _Norm:
    eps = epsilon(module)
    names = [name for name, _ in module.named_parameters()]
    if eps is None or names != ["weight"] or module.weight.dim() != 1:
        raise _OtherForm
    return _Norm(module.weight, eps)


def _bytes(layer: Any, dtype: torch.dtype | None) -> int:
    attention, mlp = layer.self_attn, layer.mlp
    modules = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    weights = [_linear(module)[0] for module in (*modules, mlp.gate_proj, mlp.up_proj, mlp.down_proj)]
    return sum(w.numel() * (w.element_size() if dtype is None else dtype.itemsize) for w in weights)

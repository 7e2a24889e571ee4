"""A model's norms and gated products with fewer trips through memory, on a CPU.

Beside its matrix products a layer spends most of its time in element-wise passes, each of which reads and writes a
whole activation; autograd keeps a tensor for nearly every one. `Fused` gives the modules that compute
y = w · x / rms(x) and down(silu(gate(x)) · up(x)) a forward of their own, with the backward in closed form: less is
kept, and less is passed over.

No list of architectures decides. A module is taken when it has the parts and its own forward gives the same numbers,
measured when the engine is made. Under bf16 autocast a norm whose output goes to linear layers alone puts it out in
bf16, as each of those layers would have cast it; that is taken only where the model's states stay equal to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_BEFORE_LINEAR = ("input_layernorm", "post_attention_layernorm")
"""Names of norms that may feed linear layers alone; whether they do is measured."""


Forward: TypeAlias = Callable[[Any, Tensor], Tensor]


class _Norm(torch.autograd.Function):
    """y = w · (x · r) with r = (mean x² + ε)^(−1/2): `apply(x, w, eps, dtype)`.

    With ĝ = g · w and x̂ = x · r: ∂x = r · (ĝ − x̂ · mean(ĝ · x̂)), ∂w = Σ g · x̂.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None) -> Tensor:
        full = x.to(torch.promote_types(x.dtype, torch.float32))
        rate = torch.linalg.vector_norm(full, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        y: Tensor = weight * (full * rate).to(x.dtype)
        ctx.save_for_backward(x, weight, rate)
        return y if dtype is None else y.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight, rate = ctx.saved_tensors
        grad = grad.to(rate.dtype)
        unit = x * rate
        by_weight = (grad * unit).reshape(-1, x.shape[-1])
        of_x = of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = by_weight.sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            scale = weight.to(rate.dtype)
            mean = torch.mv(by_weight, scale).div_(x.shape[-1]).view(rate.shape)
            of_x = torch.addcmul(grad * scale, unit, mean, value=-1.0).mul_(rate).to(x.dtype)
        return of_x, of_weight, None, None


class _Gated(torch.autograd.Function):
    """silu(gate) · up: `apply(gate, up)`. silu(gate) is computed again in the backward instead of kept."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)


class Fused:
    """The fused modules of a model.

    Attributes:
        norms, gated: how many modules of each kind were taken.
        half_norms: how many norms put out bf16 under autocast.
    """

    def __init__(self, *models: Any) -> None:
        self._forwards: dict[nn.Module, Forward] = {}
        for module in (m for model in models for m in model.modules()):
            mine = getattr(module.__dict__.get("forward"), "__func__", None) in (_norm, _half_norm, _gated)
            if mine:
                del module.__dict__["forward"]  # another engine's on this model
            if "forward" in module.__dict__:
                continue  # someone else wraps it
            if _is_norm(module):
                self._forwards[module] = _norm
            elif _is_gated(module):
                self._forwards[module] = _gated
        self.norms = sum(f is _norm for f in self._forwards.values())
        self.gated, self.half_norms = len(self._forwards) - self.norms, 0
        self.on()

    def on(self) -> None:
        """Let the modules use their fused forwards."""
        for module, forward in self._forwards.items():
            # A bound method: a deep copy of the module is bound to the copy's weights.
            module.__dict__["forward"] = MethodType(forward, module)

    def off(self) -> None:
        """Give the modules their own forwards back."""
        for module in self._forwards:
            module.__dict__.pop("forward", None)

    def put_out_half(self, *models: Any, states: Callable[[], Tensor]) -> None:
        """Let the norms before linear layers put out what autocast would make of them, if nothing else changes.

        Args:
            states: runs the model under autocast; called before and after.
        """
        names = {m for model in models for m in _norms_before_linear(model) if m in self._forwards}
        before, kept = states(), dict(self._forwards)
        self._forwards |= dict.fromkeys(names, _half_norm)
        self.half_norms = len(names)
        self.on()
        if not torch.equal(states(), before):
            self._forwards, self.half_norms = kept, 0
            self.on()


def _norms_before_linear(model: Any) -> Iterator[nn.Module]:
    for parent in model.modules():
        own = dict(parent.named_children())
        if "pre_feedforward_layernorm" in own or "post_feedforward_layernorm" in own:
            continue  # there the norm after attention goes to the residual
        yield from (own[name] for name in _BEFORE_LINEAR if name in own)


def epsilon(module: nn.Module) -> float | None:
    """What a norm adds to the mean square, None where it names nothing known."""
    for name in ("variance_epsilon", "eps"):
        value = getattr(module, name, None)
        if isinstance(value, float):
            return value
    return None


def _is_norm(module: nn.Module) -> bool:
    """Whether it holds one vector and its forward is w · x / rms(x), in fp32 and of bf16 inputs."""
    weight, eps = getattr(module, "weight", None), epsilon(module)
    own = [name for name, _ in module.named_parameters()]
    if own != ["weight"] or eps is None or not isinstance(weight, Tensor) or weight.dim() != 1:
        return False
    draw = torch.randn(3, len(weight), generator=torch.Generator().manual_seed(0)).to(weight.device)
    with torch.no_grad():
        for dtype in (weight.dtype, torch.bfloat16):
            x = draw.to(dtype)
            try:
                want = module(x)
            except (RuntimeError, TypeError, ValueError):
                return False
            if not _same(_norm(module, x), want):
                return False
    return True


def _is_gated(module: nn.Module) -> bool:
    """Whether its parts are gate_proj, up_proj, act_fn and down_proj and its forward is down(silu(gate(x)) · up(x))."""
    parts = dict(module.named_children())
    if set(parts) != {"gate_proj", "up_proj", "down_proj", "act_fn"}:
        return False
    base = getattr(parts["gate_proj"], "base_layer", parts["gate_proj"])
    weight = getattr(base, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.is_floating_point():
        return False
    draw = torch.randn(3, weight.shape[1], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = draw.to(weight.device, weight.dtype)
        try:
            return _same(_gated(module, x), module(x))
        except (RuntimeError, TypeError, ValueError):
            return False


def _same(mine: Any, want: Any) -> bool:
    if not isinstance(want, Tensor) or mine.dtype != want.dtype or mine.shape != want.shape:
        return False
    tolerance = 8 * torch.finfo(mine.dtype).eps
    return torch.allclose(mine, want, rtol=tolerance, atol=tolerance * float(want.abs().max()))


def _norm(self: Any, x: Tensor) -> Tensor:
    y: Tensor = _Norm.apply(x, self.weight, epsilon(self), None)  # type: ignore[no-untyped-call]
    return y


def _half_norm(self: Any, x: Tensor) -> Tensor:
    dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else None
    y: Tensor = _Norm.apply(x, self.weight, epsilon(self), dtype)  # type: ignore[no-untyped-call]
    return y


def _gated(self: Any, x: Tensor) -> Tensor:
    y: Tensor = self.down_proj(_Gated.apply(self.gate_proj(x), self.up_proj(x)))  # type: ignore[no-untyped-call]
    return y

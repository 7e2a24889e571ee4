"""Fused norms and gated products: the modules' own numbers and gradients, taken only where they fit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from preftune.engine.forward import Engine
from preftune.engine.fused import Fused, _Gated, _Norm
from preftune.records import Group
from tests.engine import zoo
from tests.engine.plain import engine_values, furthest, gradients, policy_of, some_groups, weighted_sum


class Rms(nn.Module):
    """As transformers writes it for Llama, in the weight's own precision."""

    def __init__(self, weight: Tensor, eps: float = 1e-3, shift: float = 0.0) -> None:
        super().__init__()
        self.weight, self.eps, self.shift = nn.Parameter(weight), eps, shift

    def forward(self, x: Tensor) -> Tensor:
        full = x.to(torch.promote_types(x.dtype, torch.float32))
        unit = full * torch.rsqrt(full.pow(2).mean(-1, keepdim=True) + self.eps)
        return (self.shift + self.weight) * unit.to(x.dtype)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_norm_by_definition_and_its_gradient() -> None:
    x, weight = draw(2, 3, 5).requires_grad_(), draw(5, seed=1).requires_grad_()
    want = Rms(weight.detach())(x)
    torch.testing.assert_close(_Norm.apply(x, weight, 1e-3, None), want, atol=1e-14, rtol=1e-12)
    assert torch.autograd.gradcheck(lambda a, b: _Norm.apply(a, b, 1e-3, None), (x, weight))
    turned = draw(2, 5, 3).transpose(1, 2).requires_grad_()  # a gradient with other strides, as after rotation
    assert torch.autograd.gradcheck(lambda a, b: _Norm.apply(a, b, 1e-3, None).transpose(1, 2) ** 2, (turned, weight))


def test_a_frozen_weight_gets_no_gradient() -> None:
    x, weight = draw(4, 5).requires_grad_(), draw(5, seed=1)
    _Norm.apply(x, weight, 1e-3, None).sum().backward()
    assert weight.grad is None and x.grad is not None


def test_the_gated_product_by_definition_and_its_gradient() -> None:
    gate, up = draw(3, 4).requires_grad_(), draw(3, 4, seed=1).requires_grad_()
    torch.testing.assert_close(_Gated.apply(gate, up), nn.functional.silu(gate) * up)
    assert torch.autograd.gradcheck(_Gated.apply, (gate, up))


@pytest.mark.parametrize("kind", ["qwen3", "llama", "mistral", "phi3", "qwen3_moe"])
def test_models_whose_norms_fit_are_taken_and_give_their_own_gradients(kind: str) -> None:
    groups = some_groups()
    engine = Engine(policy_of(zoo.tiny_model(kind)))
    assert engine.fused.norms > 2
    assert (engine.fused.gated > 0) == (kind in ("qwen3", "llama", "mistral")), engine.fused.gated
    mine, _ = engine_values(engine, groups)
    fused = gradients(engine.policy.model, weighted_sum(mine))
    engine.fused.off()
    plain, _ = engine_values(engine, groups)
    own = gradients(engine.policy.model, weighted_sum(plain))
    assert furthest(mine, plain) <= 1e-5
    for name, gradient in own.items():
        torch.testing.assert_close(fused[name], gradient, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "gemma3"])
def test_other_norms_and_gates_are_left_alone(kind: str) -> None:
    model = zoo.tiny_model(kind)
    fused = Fused(model)
    assert (fused.norms, fused.gated) == (0, 0)
    assert not any("forward" in m.__dict__ for m in model.modules())


# torch's own multiplies by the weight before it rounds to the input's precision
OTHER = [Rms(torch.ones(6), shift=1.0), nn.LayerNorm(6), nn.RMSNorm(6, eps=1e-5)]


@pytest.mark.parametrize(("module", "taken"), [(Rms(torch.ones(6)), 1), *((other, 0) for other in OTHER)])
def test_what_is_measured_decides(module: nn.Module, taken: int) -> None:
    assert Fused(module).norms == taken


def test_a_copy_of_the_model_uses_its_own_weights() -> None:
    model = zoo.tiny_model("qwen3")
    Fused(model)
    twin = copy.deepcopy(model)
    ids = torch.arange(5)[None]
    before = twin(ids).logits
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(twin(ids).logits, before) and float(before.abs().sum()) > 0


def test_the_plain_path_is_the_models_own_and_comes_back() -> None:
    engine = Engine(policy_of(zoo.tiny_model("qwen3")))
    norm = engine.policy.base.model.norm
    assert "forward" in norm.__dict__
    with engine.plain():
        assert "forward" not in norm.__dict__
    assert "forward" in norm.__dict__
    again = Engine(engine.policy)
    assert (again.fused.norms, again.fused.gated) == (engine.fused.norms, engine.fused.gated)


def in_bf16(kind: str, groups: list[Group], fused: bool) -> tuple[Engine, dict[tuple[int, int], Tensor], Any]:
    engine = Engine(policy_of(zoo.tiny_model(kind)), bf16=True)
    if not fused:
        engine.fused.off()
    values, _ = engine_values(engine, groups)
    return engine, values, gradients(engine.policy.model, weighted_sum(values))


def test_norms_before_linear_layers_put_out_bf16_and_change_no_state() -> None:
    groups = some_groups()
    engine, values, found = in_bf16("qwen3", groups, fused=True)
    layers = len(engine.policy.base.model.layers)
    assert engine.fused.half_norms == 2 * layers
    _, own_values, own = in_bf16("qwen3", groups, fused=False)
    assert furthest(values, own_values) <= 0.05
    full = Engine(policy_of(zoo.tiny_model("qwen3")))
    exact = gradients(full.policy.model, weighted_sum(engine_values(full, groups)[0]))
    for name, gradient in exact.items():
        if float(gradient.norm()) > 1e-3:
            mine, theirs = (float((g[name] - gradient).norm() / gradient.norm()) for g in (found, own))
            assert mine <= 1.5 * theirs + 0.01, name


def test_a_norm_that_feeds_more_than_linear_layers_stays_in_fp32() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.input_layernorm = Rms(torch.ones(8))
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            unit = self.input_layernorm(x)
            return unit + self.linear(unit)  # the residual starts behind the norm

    block, x = Block(), torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    fused = Fused(block)
    assert fused.norms == 1

    def states() -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return block(x)  # type: ignore[no-any-return]

    before = states()
    fused.put_out_half(block, states=states)
    assert fused.half_norms == 0
    assert torch.equal(states(), before)

"""Products through oneDNN's convolutions: the linear layer's numbers and gradients, on and off."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor

from preftune.engine import products
from preftune.engine.even import STEP
from preftune.engine.forward import Engine
from preftune.engine.logprobs import fused_logprobs
from preftune.engine.products import Products, inner, linear, wide
from tests.engine import zoo
from tests.engine.plain import engine_values, furthest, gradients, policy_of, relative_l2, some_groups, weighted_sum


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def narrow_blas(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor that MKL leaves half idle, whatever runs these tests, and for products of any size."""
    monkeypatch.setattr(products, "blas_is_narrow", lambda: True)
    monkeypatch.setattr("preftune.engine.forward.blas_is_narrow", lambda: True)
    monkeypatch.setattr(products, "LEAST", 1)


@pytest.mark.parametrize("shape", [(64, 32, 48), (16, 8, 8), (2, 40, 16, 24), (128, 33, 7)])
def test_values_and_gradients_are_those_of_the_definition(narrow_blas: None, shape: tuple[int, ...]) -> None:
    *rows, width, outputs = shape
    given = (draw(*rows, width), draw(outputs, width, seed=1), draw(outputs, seed=2))
    mine = [x.clone().requires_grad_() for x in given]
    exact = [x.double().requires_grad_() for x in given]
    assert wide(mine[0], mine[1])
    up = draw(*rows, outputs, seed=3)
    out, want = linear(*mine), F.linear(*exact)
    out.backward(up)
    want.backward(up.double())
    assert out.shape == want.shape
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-5)
    for a, b in zip(mine, exact, strict=True):
        assert a.grad is not None and b.grad is not None
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-5, atol=3e-5)


def test_a_gradient_with_other_strides(narrow_blas: None) -> None:
    x, weight = draw(64, 32).requires_grad_(), draw(48, 32, seed=1)
    linear(x, weight).T.square().sum().backward()
    mine, x.grad = x.grad, None
    F.linear(x, weight).T.square().sum().backward()
    assert mine is not None and x.grad is not None
    torch.testing.assert_close(mine, x.grad, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("rows", [64, 17])
def test_products_without_a_graph(rows: int) -> None:
    x, weight, bias = draw(rows, 48), draw(32, 48, seed=1), draw(32, seed=2)
    close = {"rtol": 1e-5, "atol": 3e-5}
    torch.testing.assert_close(inner(x, weight, bias).double(), x.double() @ weight.double().T + bias, **close)
    turned = inner(x.T, draw(40, rows, seed=3))
    torch.testing.assert_close(turned.double(), x.double().T @ draw(40, rows, seed=3).double().T, **close)
    up = draw(rows, 32, seed=4)
    torch.testing.assert_close(inner(up, weight.T).double(), up.double() @ weight.double(), **close)


def test_what_does_not_fit_is_torchs_own_product(narrow_blas: None) -> None:
    weight = draw(8, 4)
    assert wide(draw(16, 4), weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert not wide(draw(16, 4), weight)
    for x, w in [(draw(16, 4).double(), weight.double()), (draw(16, 4).bfloat16(), weight.bfloat16())]:
        assert not wide(x, w) and torch.equal(linear(x, w), F.linear(x, w))
    assert torch.equal(linear(draw(17, 4), weight), F.linear(draw(17, 4), weight))


def test_small_products_stay_with_the_blas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "blas_is_narrow", lambda: True)
    assert wide(draw(256, 256), draw(128, 256)) and not wide(draw(240, 256), draw(128, 256))


@pytest.mark.parametrize(("name", "narrow"), [("GenuineIntel", False), ("AuthenticAMD", True)])
def test_the_makers_name_decides_beside_the_width(name: str, narrow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products.Path, "read_text", lambda self, **_: f"vendor_id : {name}\nflags : fpu Intel")
    monkeypatch.setattr(products.Path, "exists", lambda self: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    products.blas_is_narrow.cache_clear()
    try:
        assert products.blas_is_narrow() is narrow
        products.blas_is_narrow.cache_clear()
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
        assert not products.blas_is_narrow()
    finally:
        products.blas_is_narrow.cache_clear()


@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "gemma2", "phi3", "opt"])
def test_a_models_numbers_and_gradients_stay(kind: str, narrow_blas: None, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = some_groups()
    calls: list[Any] = []
    own_products = products.F.conv2d
    monkeypatch.setattr(products.F, "conv2d", lambda *given: calls.append(given) or own_products(*given))
    engine = Engine(policy_of(zoo.tiny_model(kind)))
    assert engine.products.taken
    mine, entropies = engine_values(engine, groups)
    found = gradients(engine.policy.model, weighted_sum(mine) + weighted_sum(entropies))
    assert calls
    with engine.plain():
        calls.clear()
        plain, plain_entropies = engine_values(engine, groups)
    own = gradients(engine.policy.model, weighted_sum(plain) + weighted_sum(plain_entropies))
    assert not calls and furthest(mine, plain) <= 5e-5
    assert relative_l2(found, own) <= 5e-5


def test_rows_are_filled_up_so_that_few_sizes_come(narrow_blas: None, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(policy_of(zoo.tiny_model("qwen3")))
    seen: set[int] = set()
    own = products.F.conv2d
    monkeypatch.setattr(products.F, "conv2d", lambda x, *rest: seen.add(x.shape[0] * x.shape[2]) or own(x, *rest))
    engine_values(engine, some_groups())
    assert seen and all(rows % STEP == 0 for rows in seen)


def test_the_plain_path_and_half_precision_do_without(narrow_blas: None) -> None:
    model = zoo.tiny_model("qwen3")
    engine = Engine(policy_of(model))
    linears = [m for m in model.modules() if type(m) is torch.nn.Linear]
    assert engine.products.taken == len(linears)
    with engine.plain():
        assert not any("forward" in m.__dict__ for m in linears)
    assert all("forward" in m.__dict__ for m in linears)
    assert Engine(policy_of(model), bf16=True).products.taken == 0
    assert Engine(policy_of(zoo.tiny_model("bloom"))).products.taken == 0  # padded


def test_without_narrow_products_nothing_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preftune.engine.forward.blas_is_narrow", lambda: False)
    model = zoo.tiny_model("qwen3")
    assert Engine(policy_of(model)).products.taken == 0
    assert not any("forward" in m.__dict__ for m in model.modules() if type(m) is torch.nn.Linear)


def test_a_second_engine_takes_over_and_a_copy_has_its_own_weights(narrow_blas: None) -> None:
    model = zoo.tiny_model("qwen3")
    first = Engine(policy_of(model))
    second = Engine(policy_of(model))
    assert second.products.taken == first.products.taken
    twin = copy.deepcopy(model)
    layer, other = model.model.layers[0].mlp.down_proj, twin.model.layers[0].mlp.down_proj
    with torch.no_grad():
        other.weight.zero_()
    x = draw(16, layer.in_features)
    assert float(other(x).abs().max()) == 0.0 < float(layer(x).abs().max())


def test_layers_inside_adapters_are_taken_and_foreign_ones_left(narrow_blas: None) -> None:
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    torch.manual_seed(0)
    model: Any = get_peft_model(zoo.tiny_model("qwen3"), config)
    engine = Engine(policy_of(model))
    mine, _ = engine_values(engine, some_groups())
    found = gradients(model, weighted_sum(mine))
    with engine.plain():
        plain, _ = engine_values(engine, some_groups())
    assert relative_l2(found, gradients(model, weighted_sum(plain))) <= 5e-5

    class Own(torch.nn.Linear):
        pass

    net = torch.nn.Sequential(Own(4, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    net[2].forward = lambda x: x  # wrapped by someone
    assert Products(net).taken == 1


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("chunk", [1 << 24, 113 * 64])
@pytest.mark.parametrize("entropy", [True, False])
def test_the_heads_products(narrow_blas: None, trains: bool, chunk: int, entropy: bool, monkeypatch: Any) -> None:
    """Kept, recomputed and frozen heads, chunks of 64 tokens."""

    def run() -> list[Tensor]:
        hidden, weight = draw(192, 32).requires_grad_(), draw(113, 32, seed=1).requires_grad_(trains)
        targets = torch.arange(192) % 113
        logprobs, entropies = fused_logprobs(hidden, weight, targets, with_entropy=entropy, chunk_elements=chunk)
        total = (logprobs * draw(192, seed=2)).sum() + (0.0 if entropies is None else (entropies * 0.3).sum())
        total.backward()
        return [logprobs.detach(), *(x.grad for x in (hidden, weight) if x.grad is not None)]

    mine = run()
    monkeypatch.setattr(products, "blas_is_narrow", lambda: False)
    for a, b in zip(mine, run(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)

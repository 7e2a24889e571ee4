"""Decoding steps in plain products: the model's own states, taken only where they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from preftune.config import SamplingConfig
from preftune.sampling import step
from preftune.sampling.cache import DecodeCache
from preftune.sampling.step import PlainStep, Product, Steps, own_step
from tests.engine import zoo
from tests.engine.plain import policy_of
from tests.sampling.test_local import PROMPTS, Engine, LocalSampler, Words, ids_of, sampler_of, worst_gap

TAKEN = ["llama", "qwen2", "qwen3", "mistral"]
LEFT = ["gemma2", "gemma3", "phi3", "gpt2", "olmo2", "qwen3_moe", "smollm3", "granite", "cohere", "opt"]
SETTINGS = SamplingConfig(max_tokens=24)


def drawn(sampler: LocalSampler, n: int = 3, settings: SamplingConfig = SETTINGS) -> Any:
    return sampler.sample(PROMPTS, n, settings, seed=5)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How far plain steps lay from the model's own, every one of them."""
    far: list[float] = []
    own = Steps.__call__

    def both(self: Steps, ids_B: torch.Tensor, cache: DecodeCache) -> torch.Tensor:
        states = own(self, ids_B, cache)
        if self._step is not None:
            far.append(step._difference(states, own_step(self._decoder, ids_B, cache)))
        return states

    monkeypatch.setattr(Steps, "__call__", both)
    return far


@pytest.mark.parametrize("kind", TAKEN)
def test_every_step_gives_the_models_states(kind: str, watched: list[float]) -> None:
    """Past windows, with biases, with norms of queries and keys, rows leaving on the way."""
    sampler = sampler_of(kind, eos=frozenset(range(20, 113, 12)))
    groups = drawn(sampler, 5)
    assert sampler._plain_steps is True and len(watched) > 15 and max(watched) <= 1e-5
    assert len({len(c.ids) for g in groups for c in g.completions}) > 3
    assert worst_gap(sampler, groups, 1.0) <= 1e-4


@pytest.mark.parametrize("kind", LEFT)
def test_other_decoders_take_their_own_steps(kind: str) -> None:
    sampler = sampler_of(kind)
    drawn(sampler)
    assert not sampler._plain_steps


def test_a_layer_that_looks_the_same_and_computes_otherwise_is_found_out() -> None:
    model = zoo.tiny_model("qwen3")
    layer = model.model.layers[-1]

    class Louder(type(layer)):  # type: ignore[misc]
        def forward(self, hidden_states: Any, **kwargs: Any) -> Any:
            return super().forward(hidden_states, **kwargs) + 0.01 * hidden_states

    layer.__class__ = Louder
    sampler = LocalSampler(Engine(policy_of(model)), Words())
    groups = drawn(sampler)
    assert sampler._plain_steps is False and worst_gap(sampler, groups, 1.0) <= 1e-4


@pytest.mark.parametrize("kind", ["qwen3", "qwen2"])
def test_in_half_precision(kind: str, watched: list[float]) -> None:
    sampler = sampler_of(kind, bf16=True)
    groups = drawn(sampler, 5)
    assert sampler._plain_steps is True and 0.0 < max(watched) <= 0.05
    assert worst_gap(sampler, groups, 1.0) <= 0.2


def test_a_model_of_16_bit_weights() -> None:
    sampler = LocalSampler(Engine(policy_of(zoo.tiny_model("qwen3").to(torch.bfloat16))), Words())
    drawn(sampler)
    assert sampler._plain_steps is True


def test_the_weights_are_those_of_the_call() -> None:
    sampler = sampler_of("qwen3")
    first = drawn(sampler)
    with torch.no_grad():
        for parameter in sampler.engine.policy.model.parameters():
            parameter.mul_(1.1)
    second = drawn(sampler)
    assert ids_of(first) != ids_of(second)
    assert worst_gap(sampler, second, 1.0) <= 1e-4


def test_adapters_are_folded_in_or_the_models_own_step_acts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    sampler = LocalSampler(Engine(policy_of(get_peft_model(zoo.tiny_model("qwen3"), config))), Words())
    folded = drawn(sampler)
    assert sampler._plain_steps is True and worst_gap(sampler, folded, 1.0) <= 1e-4
    monkeypatch.setattr("preftune.sampling.local.FOLD_BYTES", -1)
    made: list[Any] = []
    own = step.plain_step
    monkeypatch.setattr(step, "plain_step", lambda *args: made.append(own(*args)) or made[-1])
    assert ids_of(drawn(sampler)) == ids_of(folded) and made == [None]


def test_a_short_call_gathers_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "plain_step", None)
    drawn(sampler_of("qwen3"), settings=SamplingConfig(max_tokens=15))


@pytest.mark.parametrize("kept", [-1, 1 << 30])
@pytest.mark.parametrize("narrow", [True, False])
def test_large_weights_are_not_copied(kept: int, narrow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept or not, by oneDNN or by the BLAS: the same samples, and three or one product for queries, keys, values."""
    want = ids_of(drawn(sampler_of("qwen2")))
    monkeypatch.setattr(step, "KEPT_BYTES", kept)
    monkeypatch.setattr("preftune.sampling.local.KEPT_BYTES", kept)
    monkeypatch.setattr(step, "blas_is_narrow", lambda: narrow)
    made: list[PlainStep] = []
    own = step.plain_step
    monkeypatch.setattr(step, "plain_step", lambda *args: made.append(own(*args)) or made[-1])
    assert ids_of(drawn(sampler_of("qwen2"))) == want
    for one in made:
        assert {len(layer.qkv._parts) for layer in one._layers} == {1 if kept > 0 else 3}
        assert one._even is narrow


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("biased", [(True, True), (True, False), (False, False)])
def test_joint_products(dtype: torch.dtype, keep: bool, biased: tuple[bool, bool]) -> None:
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(n, 16, generator=draw) for n in (24, 8)]
    biases = [torch.randn(n, generator=draw) if b else None for n, b in zip((24, 8), biased, strict=True)]
    x = torch.randn(13, 16, generator=draw)
    got = Product(list(zip(weights, biases, strict=True)), dtype, keep=keep)(x)
    parts = [x @ w.T + (0.0 if b is None else b) for w, b in zip(weights, biases, strict=True)]
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(got.float(), torch.cat(parts, 1), rtol=0.0, atol=tolerance)

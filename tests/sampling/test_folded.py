"""Adapters are folded into the weights while the sampler draws: the same samples, and weights as they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from preftune.config import SamplingConfig
from preftune.engine.forward import Engine
from preftune.models.folding import folded_bytes
from preftune.models.loading import Policy
from preftune.records import Group, Prompt
from preftune.sampling import local
from preftune.sampling.local import LocalSampler
from tests.engine import zoo
from tests.engine.plain import policy_of

PROMPTS = [Prompt((5, 9, 30), "a"), Prompt((7, 12, 40, 41, 8), "b")]


class Words:
    eos_ids = frozenset({2})

    def decode(self, ids: Any) -> str:
        return " ".join(map(str, ids))


def adapted(**changes: Any) -> Policy:
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False, **changes)
    model = zoo.tiny_model("qwen3")
    return policy_of(get_peft_model(model, config))


def drawn(policy: Policy, tokens: int = 24) -> list[Group]:
    sampler = LocalSampler(Engine(policy), Words())
    return sampler.sample(PROMPTS, 3, SamplingConfig(max_tokens=tokens, group_size=3), seed=4)


def test_the_samples_are_those_of_the_split_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = adapted()
    before = {n: p.detach().clone() for n, p in policy.model.named_parameters()}
    folded: list[bool] = []
    merged = Policy.merged
    monkeypatch.setattr(Policy, "merged", lambda self: folded.append(True) or merged(self))
    mine = drawn(policy)
    assert folded == [True]
    assert all(torch.equal(p, before[n]) for n, p in policy.model.named_parameters())
    assert not any(getattr(m, "merged", False) for m in policy.model.modules())
    monkeypatch.setattr(local, "FOLD_BYTES", -1)
    split = drawn(policy)
    assert folded == [True]
    for a, b in zip(mine, split, strict=True):
        for one, other in zip(a.completions, b.completions, strict=True):
            assert one.ids == other.ids and one.logprobs is not None and other.logprobs is not None
            assert max(abs(x - y) for x, y in zip(one.logprobs, other.logprobs, strict=True)) < 1e-4


def test_a_short_call_and_16_bit_weights_are_not_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_: Any) -> None:
        raise AssertionError("folded")

    policy = adapted()
    monkeypatch.setattr(Policy, "merged", never)
    drawn(policy, tokens=4)
    half = adapted()
    half.model.to(torch.bfloat16)
    assert folded_bytes(half.model) == float("inf")
    drawn(half)
    drawn(policy_of(zoo.tiny_model("qwen3")))


def test_an_adapter_that_is_off_stays_off() -> None:
    policy = adapted()
    assert 0 < folded_bytes(policy.model) < 1 << 20
    with policy.model.disable_adapter():
        assert folded_bytes(policy.model) == float("inf")
    with policy.merged():
        assert folded_bytes(policy.model) == float("inf")


def test_a_draw_that_is_broken_off_leaves_the_weights_as_they_were() -> None:
    policy = adapted()
    before = {n: p.detach().clone() for n, p in policy.model.named_parameters()}
    sampler = LocalSampler(Engine(policy), Words())

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler.stream(PROMPTS[0], SamplingConfig(max_tokens=24), seed=0, on_token=stop)
    assert all(torch.equal(p, before[n]) for n, p in policy.model.named_parameters())

"""Which models may share prompts is found by measuring; those that may not get right numbers all the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor

from preftune.engine.forward import Engine
from preftune.engine.padded import Memory
from preftune.errors import ModelError
from tests.engine import zoo
from tests.engine.plain import (
    engine_values,
    furthest,
    gradients,
    plain_values,
    policy_of,
    relative_l2,
    some_groups,
    weighted_sum,
)

GROUPS = some_groups()

ALONE = ("phi3_longrope", "llama_dynamic")
"""Kinds whose positions depend on the longest row of a batch: each row must run alone."""


def fresh_values(kind: str, temperature: float = 1.0) -> tuple[dict[tuple[int, int], Tensor], ...]:
    """Each row alone through a model that has run nothing before."""
    logprobs: dict[tuple[int, int], Tensor] = {}
    entropies: dict[tuple[int, int], Tensor] = {}
    for g, group in enumerate(GROUPS):
        for c, completion in enumerate(group.completions):
            one = type(group)(group.prompt, (completion,))
            values, entropy = plain_values(zoo.tiny_model(kind), [one], temperature=temperature, pad=False)
            logprobs[g, c], entropies[g, c] = values[0, 0], entropy[0, 0]
    return logprobs, entropies


@pytest.mark.parametrize("kind", zoo.FALLBACK_KINDS)
def test_fallback_equals_each_row_alone(kind: str) -> None:
    engine = Engine(policy_of(zoo.tiny_model(kind)))
    assert engine.mode == "padded"
    assert engine.row_by_row == (kind in ALONE)
    assert engine.reason.startswith("shared-prompt attention does not fit this model (")
    assert engine.reason.endswith("each row runs alone" if kind in ALONE else "prompts are repeated and padded")
    with torch.no_grad():
        mine, mine_entropy = engine_values(engine, GROUPS, temperature=0.7)
        again, _ = engine_values(engine, GROUPS[::-1], temperature=0.7)
        want, want_entropy = fresh_values(kind, temperature=0.7)
    assert furthest(mine, want) <= 1e-4
    assert furthest(mine_entropy, want_entropy) <= 1e-4
    last = len(GROUPS) - 1
    assert furthest({(last - g, c): v for (g, c), v in again.items()}, want) <= 1e-4


@pytest.mark.parametrize("kind", ["phi3_longrope", "gpt_oss", "bloom", "mamba", "lfm2"])
def test_fallback_gradients(kind: str) -> None:
    engine = Engine(policy_of(zoo.tiny_model(kind)))
    plain = zoo.tiny_model(kind)
    got = gradients(engine.policy.model, weighted_sum(engine_values(engine, GROUPS)[0]))
    want = gradients(plain, weighted_sum(plain_values(plain, GROUPS, pad=False)[0]))
    assert relative_l2(got, want) <= 5e-5


@pytest.mark.parametrize("kind", zoo.FALLBACK_KINDS)
def test_shared_can_not_be_forced(kind: str) -> None:
    with pytest.raises(ModelError, match=r"model\.attention is shared, but this model does not allow it: .*Use auto"):
        Engine(policy_of(zoo.tiny_model(kind)), mode="shared")


def test_shared_can_be_asked_for() -> None:
    assert Engine(policy_of(zoo.tiny_model("gemma3")), mode="shared").mode == "shared"


@pytest.mark.parametrize("kind", ["qwen3", "phi3_longrope"])
def test_padded_can_be_asked_for(kind: str) -> None:
    engine = Engine(policy_of(zoo.tiny_model(kind)), mode="padded")
    assert engine.mode == "padded"
    assert engine.reason.startswith("asked for by the recipe; prompts are repeated and ")
    assert engine.row_by_row == (kind in ALONE)
    assert engine.policy.base.config._attn_implementation == "sdpa"
    with torch.no_grad():
        assert furthest(engine_values(engine, GROUPS)[0], fresh_values(kind)[0]) <= 1e-4


@pytest.mark.parametrize("kind", zoo.KINDS)
def test_the_probe_leaves_the_model_as_it_was(kind: str) -> None:
    model, untouched = zoo.tiny_model(kind), zoo.tiny_model(kind)
    model.train()
    model.get_input_embeddings().eval()  # a part in another mode than the rest keeps it
    Engine(policy_of(model), mode="padded")
    for refused in (False, True):
        if refused and kind in zoo.FALLBACK_KINDS:
            with pytest.raises(ModelError):
                Engine(policy_of(model), mode="shared")
        assert model.training
        assert not model.get_input_embeddings().training
        model.eval()
        assert model.config._attn_implementation == untouched.config._attn_implementation
        assert not Memory.of(untouched).changed(model).values
        ids = torch.arange(3, 33)[None]
        with torch.no_grad():
            assert torch.equal(model(input_ids=ids).logits, untouched(input_ids=ids).logits)
        untouched = zoo.tiny_model(kind)  # that forward may have left its traces
        Memory.of(untouched).restore(model)
        model.train()
        model.get_input_embeddings().eval()


def test_memory_keeps_what_changed() -> None:
    model = zoo.tiny_model("llama_dynamic")
    before = Memory.of(model)
    assert before.changed(model).values == {}
    with torch.no_grad():
        model(input_ids=torch.arange(3, 43)[None])
    kept = before.changed(model)
    assert ("model.rotary_emb", "max_seq_len_cached") in kept.values
    assert ("model.rotary_emb", "inv_freq") in kept.values
    assert all(name == "model.rotary_emb" for name, _ in kept.values)
    kept.restore(model)
    assert before.changed(model).values == {}


class OddHead(tf.LlamaForCausalLM):  # type: ignore[misc]
    """Logits that no projection of the hidden states with a scale and a soft-cap gives."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out.logits = out.logits - 0.3 * out.logits.square()
        return out


def odd(kind: str = "llama") -> Any:
    model = zoo.tiny_model(kind)
    model.__class__ = OddHead
    return model


@pytest.mark.parametrize("mode", ["auto", "padded"])
@pytest.mark.parametrize("kind", ["llama", "llama_dynamic"])
def test_a_head_that_is_no_projection_goes_through_the_models_own_logits(mode: Any, kind: str) -> None:
    engine = Engine(policy_of(odd(kind)), mode=mode)
    assert (engine.mode, engine.whole_logits) == ("padded", True)
    if mode == "auto":
        assert "its head is not a plain projection" in engine.reason
    mine, entropy = engine_values(engine, GROUPS, temperature=0.7)
    plain = odd(kind)
    state = Memory.of(plain)
    want: dict[tuple[int, int], Tensor] = {}
    want_entropy: dict[tuple[int, int], Tensor] = {}
    for g, group in enumerate(GROUPS):
        for c, completion in enumerate(group.completions):
            state.restore(plain)
            one = type(group)(group.prompt, (completion,))
            values, entropies = plain_values(plain, [one], temperature=0.7, pad=False)
            want[g, c], want_entropy[g, c] = values[0, 0], entropies[0, 0]
    assert furthest(mine, want) <= 1e-4
    assert furthest(entropy, want_entropy) <= 1e-4
    got = gradients(engine.policy.model, weighted_sum(mine))
    assert relative_l2(got, gradients(plain, weighted_sum(want))) <= 5e-5


class Forgetful(tf.LlamaForCausalLM):  # type: ignore[misc]
    """A head that can't be read, and no shared mode asked of it."""

    def get_output_embeddings(self) -> None:
        return None


def test_a_head_that_can_not_be_read() -> None:
    model = zoo.tiny_model("llama")
    model.__class__ = Forgetful
    for precision in (torch.float32, torch.bfloat16):
        engine = Engine(policy_of(model.to(precision)))
        assert (engine.mode, engine.whole_logits) == ("padded", True)
        values, _ = engine_values(engine, GROUPS)
        assert all(torch.isfinite(v).all() for v in values.values())


def test_bf16_weights_share_too() -> None:
    engine = Engine(policy_of(zoo.tiny_model("qwen3").bfloat16()))
    assert engine.mode == "shared", engine.reason
    truth, _ = plain_values(zoo.tiny_model("qwen3"), GROUPS)
    half, _ = plain_values(zoo.tiny_model("qwen3").bfloat16(), GROUPS)
    mine, _ = engine_values(engine, GROUPS)

    def error(values: dict[tuple[int, int], Tensor]) -> float:
        return float(torch.cat([(values[m].float() - truth[m]).detach() for m in truth]).square().mean().sqrt())

    assert error(mine) <= 1.5 * error(half)


def test_the_frozen_reference_of_full_fine_tuning_follows_the_engine() -> None:
    policy = policy_of(zoo.tiny_model("mistral"))
    policy.keep_reference()
    engine = Engine(policy)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(1.1)
    want, _ = plain_values(zoo.tiny_model("mistral"), GROUPS)
    for context in (None, engine.plain):
        if context is None:
            score = engine.score(GROUPS, 60, reference=True)
        else:
            with context():
                score = engine.score(GROUPS, 60, reference=True)
        assert furthest({(g, c): score[g][c] for g, c in want}, want) <= 1e-4
    moved = engine.score(GROUPS, 60)
    assert furthest({(g, c): moved[g][c] for g, c in want}, want) > 0.01

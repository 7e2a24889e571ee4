"""The last layer at the tokens that are read: same numbers and gradients, taken only where they are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from preftune.engine.attention import PackedLayout
from preftune.engine.even import STEP
from preftune.engine.forward import Engine
from preftune.engine.head import decoder_of
from preftune.engine.last import LastLayers, rows_to_read
from preftune.engine.pack import pack
from tests.engine import zoo
from tests.engine.plain import engine_values, furthest, gradients, policy_of, relative_l2, some_groups, weighted_sum
from tests.engine.test_scores import classifier, reward_of

TAKEN = ["llama", "qwen2", "qwen3", "mistral", "qwen3_moe", "mixtral", "smollm3"]
LEFT = ["gemma2", "gemma3", "gpt2", "olmo2", "cohere", "granite", "gpt_neox", "opt"]


@pytest.mark.parametrize("kind", TAKEN)
def test_values_and_gradients_are_those_of_the_whole_layer(kind: str) -> None:
    groups = some_groups()
    engine = Engine(policy_of(zoo.tiny_model(kind)))
    assert engine.last.taken
    mine, entropies = engine_values(engine, groups)
    found = gradients(engine.policy.model, weighted_sum(mine) + weighted_sum(entropies))
    engine.last.drop()
    whole, whole_entropies = engine_values(engine, groups)
    own = gradients(engine.policy.model, weighted_sum(whole) + weighted_sum(whole_entropies))
    assert furthest(mine, whole) <= 1e-5 and furthest(entropies, whole_entropies) <= 1e-5
    assert relative_l2(found, own) <= 1e-5


@pytest.mark.parametrize("kind", LEFT)
def test_layers_of_another_form_are_left_alone(kind: str) -> None:
    engine = Engine(policy_of(zoo.tiny_model(kind)))
    assert not engine.last.taken
    engine.fused.off()
    engine.products.off()
    assert all("forward" not in m.__dict__ for m in engine.policy.base.modules())


def test_a_layer_that_looks_the_same_and_computes_otherwise_is_found_out() -> None:
    model = zoo.tiny_model("qwen3")
    layer = model.model.layers[-1]

    class Louder(type(layer)):  # type: ignore[misc]
        def forward(self, hidden_states: Any, **kwargs: Any) -> Any:
            return super().forward(hidden_states, **kwargs) + 0.1 * hidden_states

    layer.__class__ = Louder
    assert LastLayers(model).taken  # by its parts
    assert not Engine(policy_of(model)).last.taken  # by its numbers


def test_what_is_computed_is_what_is_read() -> None:
    model = zoo.tiny_model("qwen3")
    engine = Engine(policy_of(model))
    seen: list[int] = []
    last = model.model.layers[-1]
    last.mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    groups = some_groups()
    (packed,) = engine.pack(groups, 1000)
    engine.forward(packed)
    read = len(set(packed.source_T.tolist()))
    assert seen == [-(-read // STEP) * STEP if engine.products.taken else read] and seen[0] < packed.tokens
    with engine.plain():
        engine.forward(packed)
    # the plain path pads every row to the longest and runs all of it
    assert seen[1] == max(len(g.prompt.ids) + max(len(c.ids) for c in g.completions) for g in groups) - 1


def test_another_caller_of_the_decoder_gets_every_state() -> None:
    model = zoo.tiny_model("qwen3")
    engine = Engine(policy_of(model))
    (packed,) = pack(some_groups(), 1000)
    layout = PackedLayout(packed.segments, "cpu")
    states = decoder_of(model)(
        input_ids=packed.input_ids_N[None], position_ids=packed.position_ids_N[None], use_cache=False, layout=layout
    ).last_hidden_state
    assert states.shape[1] == packed.tokens
    read = engine.token_states(packed, model)
    torch.testing.assert_close(states[0][packed.source_T], read, atol=1e-5, rtol=1e-5)


def test_a_reward_model_reads_one_state_a_completion_and_its_gradient_is_the_same() -> None:
    groups = [g for g in some_groups() if all(c.ids for c in g.completions)]
    found: list[dict[str, torch.Tensor]] = []
    scores: list[torch.Tensor] = []
    for whole in (False, True):
        engine = Engine(reward_of(classifier("llama")))
        assert engine.last.taken
        if whole:
            engine.last.drop()
        (packed,) = engine.pack(groups, 1000)
        values = engine.scores(packed)
        scores.append(values.detach())
        found.append(gradients(engine.policy.model, (values * torch.arange(1.0, 1.0 + len(values))).sum()))
    torch.testing.assert_close(scores[0], scores[1], atol=1e-5, rtol=1e-5)
    assert relative_l2(found[0], found[1]) <= 1e-5


def test_adapters_act_in_the_last_layer_and_checkpointing_computes_it_again() -> None:
    groups = some_groups()
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    torch.manual_seed(0)
    model = get_peft_model(zoo.tiny_model("llama"), config)
    engine = Engine(policy_of(model))
    assert engine.last.taken
    mine, _ = engine_values(engine, groups)
    plain = gradients(model, weighted_sum(mine))
    assert any("layers.1.self_attn.o_proj.lora_B" in name and float(g.abs().sum()) > 0 for name, g in plain.items())
    model.enable_input_require_grads()
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    again, _ = engine_values(engine, groups)
    redone = gradients(model, weighted_sum(again))
    assert furthest(mine, again) <= 1e-6 and relative_l2(redone, plain) <= 1e-6
    engine.last.drop()
    whole = gradients(model, weighted_sum(engine_values(engine, groups)[0]))
    assert relative_l2(plain, whole) <= 1e-5


def test_a_copy_uses_its_own_weights_and_a_second_engine_takes_over() -> None:
    model = zoo.tiny_model("qwen3")
    engine = Engine(policy_of(model))
    twin = copy.deepcopy(model)
    groups = some_groups()
    before = engine_values(engine, groups, model=twin)[0]
    with torch.no_grad():
        for parameter in model.model.layers[-1].parameters():
            parameter.mul_(0.5)
    assert furthest(engine_values(engine, groups, model=twin)[0], before) == 0.0
    changed = engine_values(engine, groups)[0]
    assert furthest(changed, before) > 1e-3
    second = Engine(engine.policy)
    assert second.last.taken
    assert furthest(engine_values(second, groups)[0], changed) <= 1e-6
    assert furthest(engine_values(engine, groups)[0], changed) <= 1e-6


def test_rows_are_read_once_each_and_filled_up() -> None:
    source = torch.tensor([7, 3, 3, 9])
    found = rows_to_read(source, 100, step=4)
    assert found is not None
    rows, places = found
    assert rows.tolist() == [3, 7, 9, 3] and rows[places].tolist() == source.tolist()
    assert rows_to_read(source, 3) is None  # all of them
    assert rows_to_read(source[:0], 100) is None

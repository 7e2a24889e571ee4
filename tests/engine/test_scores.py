"""Reward scores: the shared-prompt forward against plain transformers, one row at a time, over the zoo."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
import transformers as tf
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from preftune.engine.forward import Engine
from preftune.engine.head import scores_of
from preftune.engine.pack import pack
from preftune.errors import ModelError
from preftune.models.reward import RewardModel
from preftune.records import Completion, Group, Prompt
from tests.engine import zoo
from tests.engine.plain import (
    Values,
    completion,
    furthest,
    gradients,
    policy_of,
    random_ids,
    relative_l2,
    short_groups,
    some_groups,
    weighted_sum,
)

NO_CLASSIFIER = {"granite", "cohere", "mamba", "mamba2", "lfm2", "falcon_h1"}
"""Kinds of the zoo that transformers has no sequence classifier for."""

SHARED = [kind for kind in zoo.SHARED_KINDS if kind not in NO_CLASSIFIER]
FALLBACK = [kind for kind in zoo.FALLBACK_KINDS if kind not in NO_CLASSIFIER]


def classifier(kind: str, seed: int = 0) -> Any:
    """A zoo model's decoder under a random head of one label."""
    causal = zoo.tiny_model(kind, seed)
    config = copy.deepcopy(causal.config)
    config.num_labels = 1
    auto: Any = tf.AutoModelForSequenceClassification
    model = auto.from_config(config).float().eval()
    model.base_model.load_state_dict(causal.base_model.state_dict())
    with torch.no_grad():
        model.score.weight.copy_(torch.randn(model.score.weight.shape, generator=torch.Generator().manual_seed(seed)))
    return model


def reward_of(model: Any, **config: Any) -> RewardModel:
    plain = policy_of(model, **config)
    return RewardModel(model, None, plain.config, plain.device, (2,), plain.context_length, "")


def plain_scores(model: Any, groups: list[Group], *, afresh: bool = False) -> Values:
    """Each row alone through transformers' own forward. `afresh`: each in a model that has seen nothing yet."""
    out: Values = {}
    for g, group in enumerate(groups):
        for c, one in enumerate(group.completions):
            row = torch.tensor([[*group.prompt.ids, *one.ids]])
            out[g, c] = (copy.deepcopy(model) if afresh else model)(input_ids=row, use_cache=False).logits[0, 0]
    return out


def engine_scores(engine: Engine, groups: list[Group], budget: int = 1000) -> Values:
    out: Values = {}
    for packed in engine.pack(groups, budget):
        scores_S = engine.scores(packed)
        assert scores_S.dtype == torch.float32
        out |= dict(zip(packed.members, scores_S, strict=True))
    return out


def compare(engine: Engine, plain: Any, groups: list[Group], budget: int = 1000) -> tuple[float, float]:
    mine, want = engine_scores(engine, groups, budget), plain_scores(plain, groups)
    expected = gradients(plain, weighted_sum(want))
    assert sum(float(g.abs().sum()) > 0 for g in expected.values()) > 3
    assert float(torch.stack(list(want.values())).detach().std()) > 0.1  # else the comparison says little
    return furthest(mine, want), relative_l2(gradients(engine.policy.model, weighted_sum(mine)), expected)


@pytest.mark.parametrize("kind", SHARED)
def test_scores_and_gradients_are_those_of_plain_rows(kind: str) -> None:
    engine = Engine(reward_of(classifier(kind)))
    assert (engine.mode, engine.whole_logits) == ("shared", False), engine.reason
    delta, gradient = compare(engine, classifier(kind), some_groups())
    assert delta <= 1e-4
    assert gradient <= 5e-5


@pytest.mark.parametrize("kind", FALLBACK)
def test_models_without_shared_prompts_score_the_same_padded(kind: str) -> None:
    engine = Engine(reward_of(classifier(kind)))
    assert engine.mode == "padded"
    for groups in (some_groups(), short_groups()):
        rated = engine.rate(groups, 1000)
        want = plain_scores(classifier(kind), groups, afresh=True)
        for (g, c), score in want.items():
            assert rated[g][c] == pytest.approx(float(score), abs=1e-4)


@pytest.mark.parametrize("kind", ["qwen3", "gemma2", "gpt2", "opt"])
def test_the_padded_way_gives_the_same(kind: str) -> None:
    engine = Engine(reward_of(classifier(kind)))
    with engine.plain():
        assert str(engine.mode) == "padded"
        delta, gradient = compare(engine, classifier(kind), some_groups())
    assert delta <= 1e-4
    assert gradient <= 5e-5
    assert engine.mode == "shared"
    engine = Engine(reward_of(classifier(kind)), mode="padded")
    engine.row_by_row = True
    assert compare(engine, classifier(kind), some_groups())[0] <= 1e-4


def test_a_second_engine_on_the_same_model() -> None:
    model = classifier("qwen3")
    own = model.config._attn_implementation
    one, two = Engine(reward_of(model)), Engine(reward_of(model))
    assert (one.plain_attention, two.plain_attention, two.mode) == (own, own, "shared")
    assert one.rate(some_groups(), 1000) == two.rate(some_groups(), 1000)
    with two.plain():
        assert furthest(engine_scores(two, some_groups()), plain_scores(model, some_groups())) <= 1e-5


def test_splitting_over_packs_changes_nothing() -> None:
    groups = some_groups()
    engine = Engine(reward_of(classifier("qwen3")))
    assert len(engine.pack(groups, 1000)) == 1
    assert len(engine.pack(groups, 34)) > 3
    one, many = engine_scores(engine, groups), engine_scores(engine, groups, 34)
    assert furthest(one, many) <= 1e-5
    model = engine.policy.model
    assert relative_l2(gradients(model, weighted_sum(many)), gradients(model, weighted_sum(one))) <= 1e-5


def test_the_last_token_is_found_by_place() -> None:
    """Neither by mask (a tool's answer at the end is read) nor by id (pad and EOS ids are tokens like others)."""
    rng = random.Random(5)
    model = classifier("llama")
    engine = Engine(reward_of(classifier("llama")))
    prompt = Prompt(random_ids(rng, 6), "")
    tail = completion(rng, 8, context=(6, 7))
    ids = random_ids(rng, 4)
    ends = [Completion((*ids, *end), (True,) * (4 + len(end))) for end in ((), (2,), (2, 0), (0, 0), (2, 2))]
    ((got, *others),) = engine.rate([Group(prompt, (tail, *ends))], 1000)
    for one, score in zip((tail, *ends), (got, *others), strict=True):
        states = model.model(input_ids=torch.tensor([[*prompt.ids, *one.ids]])).last_hidden_state[0, -1]
        assert score == pytest.approx(float(states @ model.score.weight[0]), abs=1e-4)
    assert len({round(score, 3) for score in others}) == len(ends)
    shorter = Completion(tail.ids[:6], (True,) * 6)
    ((without,),) = engine.rate([Group(prompt, (shorter,))], 1000)
    assert abs(without - got) > 0.01


def test_an_empty_completion_scores_the_prompt() -> None:
    rng = random.Random(6)
    engine = Engine(reward_of(classifier("gpt2")))
    prompt = Prompt(random_ids(rng, 5), "")
    empty = Completion((), ())
    want = classifier("gpt2")(input_ids=torch.tensor([prompt.ids])).logits.item()
    for others in ((), (completion(rng, 3),), (completion(rng, 3), completion(rng, 1))):
        group = Group(prompt, (*others, empty))
        assert engine.rate([group], 1000)[0][-1] == pytest.approx(want, abs=1e-5)
        with engine.plain():
            assert engine.rate([group], 1000)[0][-1] == pytest.approx(want, abs=1e-5)


def test_a_head_of_zeros_scores_zero_and_still_learns() -> None:
    model = classifier("llama")
    with torch.no_grad():
        model.score.weight.zero_()
    engine = Engine(reward_of(model))
    scores = engine_scores(engine, some_groups())
    assert all(float(s) == 0.0 for s in scores.values())
    grads = gradients(model, weighted_sum(scores))
    assert float(grads["score.weight"].abs().sum()) > 0


def adapted(model: Any) -> Any:
    settings = LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", task_type="SEQ_CLS")
    wrapped = get_peft_model(model, settings)
    g = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for _, p in wrapped.named_parameters():
            if p.requires_grad:
                p.copy_(torch.randn(p.shape, generator=g) * 0.15)
    return wrapped.eval()


def test_an_adapter_and_the_head_beside_it() -> None:
    engine = Engine(reward_of(adapted(classifier("qwen3"))))
    assert engine.mode == "shared"
    delta, gradient = compare(engine, adapted(classifier("qwen3")), some_groups())
    assert delta <= 1e-4
    assert gradient <= 5e-5
    before = engine.rate(some_groups(), 1000)
    with engine.policy.merged():
        folded = engine.rate(some_groups(), 1000)
    assert folded != before
    for a, b in zip(before, folded, strict=True):
        assert a == pytest.approx(b, abs=1e-4)


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_gradient_checkpointing_changes_nothing(kind: str) -> None:
    model = classifier(kind)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    engine = Engine(reward_of(model, gradient_checkpointing=True))
    engine.policy.train_mode(True)
    attention = next(m for n, m in model.named_modules() if n.endswith(("self_attn", "attn")))
    calls: list[int] = []
    attention.register_forward_hook(lambda *_: calls.append(1))
    delta, gradient = compare(engine, classifier(kind), some_groups())
    assert delta <= 1e-4
    assert gradient <= 5e-5
    assert len(calls) == 2  # the second in the backward pass


def test_the_head_stays_in_fp32_under_autocast() -> None:
    model = classifier("qwen3")
    states = torch.randn(5, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        got = scores_of(model, states)
    torch.testing.assert_close(got, states.float() @ model.score.weight[0], atol=1e-6, rtol=1e-6)
    exact = engine_scores(Engine(reward_of(classifier("qwen3"))), some_groups())
    engine = Engine(reward_of(model), bf16=True)
    rough = engine_scores(engine, some_groups())
    size = float(torch.stack(list(exact.values())).detach().abs().max())
    assert 1e-6 < furthest(rough, exact) / size < 0.05
    grads = gradients(model, weighted_sum(rough))
    assert all(bool(g.isfinite().all()) for g in grads.values())


def test_a_head_in_fp32_on_a_bf16_decoder() -> None:
    model = classifier("qwen3").bfloat16()
    model.score.float()
    engine = Engine(reward_of(model))
    exact = plain_scores(classifier("qwen3"), some_groups())
    scores = engine_scores(engine, some_groups())
    size = float(torch.stack(list(exact.values())).detach().abs().max())
    assert furthest(scores, exact) / size < 0.08


def test_what_only_one_kind_of_model_can_do_is_refused() -> None:
    groups = short_groups()
    reward, language = Engine(reward_of(classifier("llama"))), Engine(policy_of(zoo.tiny_model("llama")))
    (packed,) = reward.pack(groups, 1000)
    with pytest.raises(ModelError, match="no log-probs"):
        reward.forward(packed)
    with pytest.raises(ModelError, match="no log-probs"):
        reward.score(groups, 1000)
    with pytest.raises(ModelError, match="no reward head"):
        language.scores(packed)
    (without,) = pack(groups, 1000)
    with pytest.raises(ValueError, match="last tokens"):
        reward.scores(without)
    with pytest.raises(ModelError, match="no reference"):
        reward.policy.keep_reference()


class Bent(tf.LlamaForSequenceClassification):  # type: ignore[no-untyped-call]
    """A classifier with something between decoder and head."""

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:
        states = self.model(input_ids, **kwargs).last_hidden_state
        return SequenceClassifierOutputWithPast(logits=self.score(torch.tanh(states))[:, -1])


class First(tf.LlamaForSequenceClassification):  # type: ignore[no-untyped-call]
    """A classifier that reads the first token."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        seen: list[Tensor] = []
        handle = self.score.register_forward_hook(lambda _m, _i, out: seen.append(out))
        out = super().forward(*args, **kwargs)
        handle.remove()
        out.logits = seen[0][:, 0]
        return out


def test_classifiers_that_do_not_read_the_last_token_are_refused() -> None:
    config = copy.deepcopy(zoo.tiny_model("llama").config)
    config.num_labels = 1
    bent: Any = Bent
    first: Any = First
    small: dict[str, Any] = {
        "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
        "num_labels": 1,
    }  # fmt: skip
    for model, message in (
        (bent(config), "more than a linear head"),
        (first(config), "last token"),
        (tf.BertForSequenceClassification(tf.BertConfig(**small)), "BertForSequenceClassification"),
        (tf.RobertaForSequenceClassification(tf.RobertaConfig(**small)), "not a plain linear layer"),
    ):
        with pytest.raises(ModelError, match=message):
            Engine(reward_of(model))


def test_a_head_with_two_outputs_or_no_head_is_refused() -> None:
    model = classifier("llama")
    model.score = nn.Linear(32, 2, bias=False)
    with pytest.raises(ModelError, match="gives 2 numbers"):
        scores_of(model, torch.zeros(1, 32))
    with pytest.raises(ModelError, match="no single linear head"):
        model.extra = nn.Linear(2, 2)
        scores_of(model, torch.zeros(1, 32))


def test_a_bias_in_the_head_counts() -> None:
    model = classifier("llama")
    model.score = nn.Linear(32, 1)
    plain = copy.deepcopy(model)
    assert compare(Engine(reward_of(model)), plain, some_groups())[0] <= 1e-4

"""Adapters of earlier runs: what is trained, what the reference is, and that final/ holds what was trained."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import peft
import pytest
import torch
import transformers as tf
import yaml
from peft import PeftModel
from torch import Tensor

from preftune.config import LoraConfig, ModelConfig
from preftune.engine.forward import Engine
from preftune.errors import ModelError, UsageError
from preftune.models.loading import Policy, load_policy, merge
from preftune.recipes import resolve
from tests.engine import zoo
from tests.engine.plain import engine_values, furthest, gradients, plain_values, relative_l2, some_groups, weighted_sum
from tests.models.test_loading import IDS, fails, logits, shake, tokenizer

NEW = LoraConfig(r=2, alpha=6.0, targets="all-linear")
MODES: dict[str, dict[str, Any]] = {
    "continue-base": {"on_adapter": "continue", "reference": "base"},
    "continue-start": {"on_adapter": "continue", "reference": "start"},
    "stack": {"on_adapter": "stack", "lora": NEW},
    "merge": {"on_adapter": "merge", "lora": NEW},
    "merge-full": {"on_adapter": "merge"},
    "fresh": {"on_adapter": "fresh", "lora": NEW},
}
WHOLE = ("merge", "merge-full")

Given = Callable[..., Path]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    """Makes an adapter folder with plain peft on a model of this kind, its base beside it, every weight random."""
    made: dict[str, Path] = {}

    def make(kind: str = "llama", **settings: Any) -> Path:
        key = json.dumps([kind, settings], sort_keys=True)
        if key not in made:
            folder = tmp_path_factory.mktemp("given")
            zoo.tiny_model(kind).save_pretrained(folder / "base")
            tokenizer().save_pretrained(folder / "base")
            usual = {"r": 3, "lora_alpha": 5, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
            base = tf.AutoModelForCausalLM.from_pretrained(folder / "base")
            model = peft.get_peft_model(base, peft.LoraConfig(**{**usual, **settings}))
            randomise(model)
            model.save_pretrained(str(folder / "adapter"))
            made[key] = folder / "adapter"
        return made[key]

    return make


@torch.no_grad()
def randomise(model: Any, seed: int = 7) -> None:
    g = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=g) * 0.1)


def plain(folder: Path) -> Any:
    """As users load it: plain transformers, plain peft on the base that the adapter names."""
    if not (folder / "adapter_config.json").exists():
        return tf.AutoModelForCausalLM.from_pretrained(folder)
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    base = tf.AutoModelForCausalLM.from_pretrained(settings["base_model_name_or_path"])
    return PeftModel.from_pretrained(base, folder).eval()


def state_of(policy: Policy) -> tuple[dict[str, Tensor], dict[str, bool], Any]:
    parameters = dict(policy.model.named_parameters())
    return (
        {n: p.detach().clone() for n, p in parameters.items()},
        {n: p.requires_grad for n, p in parameters.items()},
        list(policy.model.active_adapters) if policy.is_adapter else None,
    )


def unchanged(policy: Policy, before: tuple[dict[str, Tensor], dict[str, bool], Any]) -> None:
    now = state_of(policy)
    assert now[0].keys() == before[0].keys()
    assert all(torch.equal(now[0][n], before[0][n]) for n in now[0])
    assert now[1:] == before[1:]


def close(a: Tensor, b: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, atol=atol, rtol=1e-5)


# --- what final/ holds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])  # a free head, a tied one, Conv1D
@pytest.mark.parametrize("mode", MODES)
def test_final_is_what_was_trained(given: Given, kind: str, mode: str, tmp_path: Path) -> None:
    adapter = given(kind)
    policy = load_policy(ModelConfig(path=str(adapter), **MODES[mode]))
    start = logits(policy.model)
    shake(policy)
    live, before = logits(policy.model), state_of(policy)
    assert not torch.allclose(live, start, atol=1e-3)
    policy.save(tmp_path / "final")
    unchanged(policy, before)
    assert torch.equal(logits(policy.model), live)
    assert (tmp_path / "final" / "adapter_config.json").exists() == (mode not in WHOLE)
    assert (tmp_path / "final" / "config.json").exists() == (mode in WHOLE)
    assert not any(p.is_dir() for p in (tmp_path / "final").iterdir())
    close(logits(plain(tmp_path / "final")), live)
    assert tf.AutoTokenizer.from_pretrained(tmp_path / "final").eos_token_id == 2
    if mode not in WHOLE:
        settings = json.loads((tmp_path / "final" / "adapter_config.json").read_text(encoding="utf-8"))
        assert settings["base_model_name_or_path"] == str(adapter.parent / "base")
        assert "merged" not in policy.lineage
        merge(str(tmp_path / "final"), tmp_path / "merged")  # preftune merge
        close(logits(plain(tmp_path / "merged")), live, 3e-5)


@pytest.mark.parametrize("mode", MODES)
def test_what_training_starts_from_and_is_compared_with(given: Given, mode: str) -> None:
    adapter = given()
    bare, sft = logits(zoo.tiny_model("llama")), logits(plain(adapter))
    policy = load_policy(ModelConfig(path=str(adapter), **MODES[mode]), needs_reference=True)
    policy.keep_reference()
    close(logits(policy.model), bare if mode == "fresh" else sft)
    shake(policy)
    with policy.reference() as model:
        close(logits(model), bare if mode in ("fresh", "continue-base") else sft)
    names = [n for n, _ in policy.trainable()]
    if mode != "merge-full":
        assert names
        assert all(".default." in n for n in names)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"target_modules": ["q_proj", "v_proj"]}, {"targets": ["v_proj", "down_proj"], "r": 4}),
        ({"use_rslora": True, "lora_alpha": 16, "r": 8}, {"r": 1, "alpha": 0.5}),
        ({"layers_to_transform": [1], "target_modules": ["q_proj"]}, {"targets": ["o_proj"]}),
        ({"rank_pattern": {"k_proj": 7}, "alpha_pattern": {"layers.0.self_attn.k_proj": 1}}, {}),
        ({"target_modules": ["embed_tokens", "lm_head"]}, {"targets": ["embed_tokens", "up_proj", "lm_head"]}),
        ({"exclude_modules": ["gate_proj"]}, {"targets": r".*\.1\..*gate_proj"}),
    ],
)  # fmt: skip
def test_a_stack_of_unlike_adapters_is_one(
    given: Given, first: dict[str, Any], second: dict[str, Any], tmp_path: Path
) -> None:
    lora = LoraConfig(**{"r": 2, "alpha": 3.0, **second})
    policy = load_policy(ModelConfig(path=str(given(**first)), on_adapter="stack", lora=lora))
    close(logits(policy.model), logits(plain(given(**first))))
    shake(policy)
    policy.save(tmp_path / "final")
    close(logits(plain(tmp_path / "final")), logits(policy.model))
    # rank of the sum is the sum of ranks: nothing was padded or cut
    layers = {n: m for n, m in plain(tmp_path / "final").named_modules() if hasattr(m, "lora_A")}
    for name, live in policy.model.named_modules():
        if hasattr(live, "lora_A"):
            assert layers[name].r["default"] == sum(live.r.values())
            assert layers[name].scaling["default"] == 1.0


def test_a_stack_on_a_stack(given: Given, tmp_path: Path) -> None:
    path = given()
    for turn in range(2):
        policy = load_policy(ModelConfig(path=str(path), on_adapter="stack", lora=NEW))
        shake(policy, turn)
        path = tmp_path / str(turn)
        policy.save(path)
        close(logits(plain(path)), logits(policy.model))
    assert json.loads((path / "adapter_config.json").read_text())["r"] == 3 + 2 + 2
    policy = load_policy(ModelConfig(path=str(path), on_adapter="continue", reference="start"))
    close(logits(policy.model), logits(plain(path)))


@pytest.mark.parametrize("mode", ["merge", "merge-full"])
@pytest.mark.parametrize(
    "settings",
    [{"target_modules": ["lm_head", "q_proj"]}, {"target_modules": ["embed_tokens"]},
     {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
     {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}],
)  # fmt: skip
def test_merging_into_a_tied_head_changes_one_end_only(
    given: Given, mode: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    adapter = given("qwen3", **settings)
    want = logits(plain(adapter))
    config = ModelConfig(path=str(adapter), **MODES[mode])
    policy = load_policy(config)
    close(logits(policy.model), want)
    policy.save(tmp_path / "unmoved")
    close(logits(plain(tmp_path / "unmoved")), want)
    shake(policy)
    policy.save(tmp_path / "moved")
    close(logits(plain(tmp_path / "moved")), logits(policy.model))


@pytest.mark.parametrize("targets", [["lm_head", "k_proj"], ["embed_tokens"]])
def test_a_new_adapter_on_a_tied_end_of_a_merged_model(given: Given, targets: list[str], tmp_path: Path) -> None:
    lora = LoraConfig(r=2, alpha=4.0, targets=targets)
    policy = load_policy(ModelConfig(path=str(given("qwen3")), on_adapter="merge", lora=lora))
    shake(policy)
    live, before = logits(policy.model), state_of(policy)
    policy.save(tmp_path / "final")
    unchanged(policy, before)
    assert policy.base.config.tie_word_embeddings is True
    close(logits(plain(tmp_path / "final")), live)


@pytest.mark.parametrize("mode", ["merge", "continue-start", "fresh"])
def test_adapters_on_experts(given: Given, mode: str, tmp_path: Path) -> None:
    """all-linear reaches the fused experts, whose adapters peft keeps in another way than those of linear layers."""
    policy = load_policy(ModelConfig(path=str(given("qwen3_moe")), **MODES[mode]))
    want = logits(policy.model)
    shake(policy)
    live, before = logits(policy.model), state_of(policy)
    if mode != "fresh":
        with policy.reference() as model:
            close(logits(model), want)
    with policy.merged():
        close(logits(policy.model), live)
    policy.save(tmp_path / "final")
    unchanged(policy, before)
    close(logits(plain(tmp_path / "final")), live)


def test_no_stack_on_experts(given: Given) -> None:
    """Neither an adapter that is on them nor a new one."""
    fails(ModelConfig(path=str(given("qwen3_moe")), **MODES["stack"]), "target_parameters", "merge")
    attention = given("qwen3_moe", target_modules=["q_proj"])
    fails(ModelConfig(path=str(attention), **MODES["stack"]), "ParamWrapper", "mlp.experts", "merge")
    lora = LoraConfig(r=2, targets=["q_proj", "o_proj"])
    load_policy(ModelConfig(path=str(attention), on_adapter="stack", lora=lora))


def test_training_goes_on_after_a_save(given: Given, tmp_path: Path) -> None:
    """Two steps of AdamW with and without a save between them: the same weights, bit for bit."""
    for mode in ("stack", "merge", "continue-start"):
        after = []
        for save in (False, True):
            policy = load_policy(ModelConfig(path=str(given()), **MODES[mode]), seed=3)
            optimizer = torch.optim.AdamW([p for _, p in policy.trainable()], lr=0.05)
            for step in range(2):
                policy.model(input_ids=IDS).logits.square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
                if save and step == 0:
                    policy.save(tmp_path / mode)
                    with policy.merged(), torch.no_grad():
                        policy.model(input_ids=IDS)
            after.append(dict(policy.model.named_parameters()))
        assert all(torch.equal(after[0][n], after[1][n]) for n in after[0])
        assert after[0].keys() == after[1].keys()


def test_the_bases_revision_is_kept_and_asked_for(given: Given, tmp_path: Path, monkeypatch: Any) -> None:
    policy = load_policy(ModelConfig(path=str(given().parent / "base"), revision="v1.2", lora=NEW))
    policy.save(tmp_path / "one")
    stacked = load_policy(ModelConfig(path=str(tmp_path / "one"), on_adapter="stack", lora=NEW))
    stacked.save(tmp_path / "two")
    asked: list[Any] = []
    honest = tf.AutoModelForCausalLM.from_pretrained

    def seen(path: str, **kwargs: Any) -> Any:
        asked.append(kwargs.get("revision"))
        return honest(path, **kwargs)

    monkeypatch.setattr(tf.AutoModelForCausalLM, "from_pretrained", seen)
    load_policy(ModelConfig(path=str(tmp_path / "two"), on_adapter="continue"))
    assert asked == ["v1.2"]


# --- the reference --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["continue-base", "continue-start", "stack", "merge", "fresh"])
def test_the_reference_leaves_no_trace(given: Given, mode: str) -> None:
    policy = load_policy(ModelConfig(path=str(given()), **MODES[mode]))
    shake(policy)
    before = state_of(policy)
    live = logits(policy.model)
    with policy.reference() as model:
        assert not torch.allclose(logits(model), live, atol=1e-3)
        assert not any(p.requires_grad for n, p in model.named_parameters() if "lora_" in n)
    unchanged(policy, before)
    with pytest.raises(RuntimeError, match="in the middle"), policy.reference():
        raise RuntimeError("in the middle")
    unchanged(policy, before)
    assert torch.equal(logits(policy.model), live)


@pytest.mark.parametrize("mode", ["continue-start", "stack"])
def test_what_is_frozen_has_no_dropout(given: Given, mode: str) -> None:
    """In training passes too: the given adapter of a stack and the start of a continued one are fixed networks."""
    adapter = given(lora_dropout=0.5)
    sft = logits(plain(adapter))
    policy = load_policy(ModelConfig(path=str(adapter), **MODES[mode]))
    policy.train_mode(True)
    with policy.reference() as model:
        assert torch.equal(logits(model), logits(model))
        close(logits(model), sft)
    # the trained adapter keeps its own: NEW has none
    assert torch.equal(logits(policy.model), logits(policy.model)) == (mode == "stack")


def test_the_start_stays_when_the_adapter_moves(given: Given) -> None:
    config = ModelConfig(path=str(given()), on_adapter="continue", reference="start")
    policy = load_policy(config)
    before = {n: p.detach().clone() for n, p in policy.model.named_parameters() if ".start." in n}
    assert before
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=0.05)  # even one that was given everything
    for _ in range(2):
        with torch.no_grad(), policy.reference():
            policy.model(input_ids=IDS)
        policy.model(input_ids=IDS).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    now = dict(policy.model.named_parameters())
    assert all(torch.equal(now[n], was) for n, was in before.items())
    assert any(not torch.equal(now[n.replace(".start.", ".default.")], was) for n, was in before.items())


def test_the_start_of_an_adapter_with_whole_modules(given: Given, tmp_path: Path) -> None:
    adapter = given(target_modules=["q_proj"], modules_to_save=["lm_head"])
    policy = load_policy(ModelConfig(path=str(adapter), on_adapter="continue", reference="start"))
    want = logits(policy.model)
    assert any("modules_to_save.default" in n for n, _ in policy.trainable())
    shake(policy)
    before = state_of(policy)
    with policy.reference() as model:
        assert torch.equal(logits(model), want)
    unchanged(policy, before)
    policy.save(tmp_path / "final")
    close(logits(plain(tmp_path / "final")), logits(policy.model))


def test_no_reference_without_a_choice(given: Given) -> None:
    policy = load_policy(ModelConfig(path=str(given()), on_adapter="continue"))
    assert "the reference is not chosen (model.reference)" in policy.lineage
    with pytest.raises(ModelError, match=r"model\.reference"), policy.reference():
        pass


def test_lineage_says_what_happened(given: Given) -> None:
    path = str(given())
    said = {mode: load_policy(ModelConfig(path=path, **fields)).lineage for mode, fields in MODES.items()}
    head = f"base {given().parent / 'base'}"
    assert said == {
        "continue-base": f"{head}; adapter {path} continued; the reference is the bare base",
        "continue-start": f"{head}; adapter {path} continued; the reference is the adapter as it was at the start, a "
        "frozen copy",
        "stack": f"{head}; adapter {path} kept, frozen and active; new LoRA adapter on top; the reference is the base "
        f"with {path}; saved as one adapter that holds both",
        "merge": f"{head} with adapter {path} merged in; new LoRA adapter; the reference is the merged model; saved as "
        "a whole model",
        "merge-full": f"{head} with adapter {path} merged in; all weights trained; the reference is the model "
        "before training",
        "fresh": f"{head}; adapter {path} left out; new LoRA adapter; the reference is the bare base",
    }


# --- what is trained ------------------------------------------------------------------------------------------


def test_a_stack_trains_the_new_adapter_alone(given: Given) -> None:
    """The same parameters, under the same names and with the same start, as a new adapter on a bare base."""
    stack = load_policy(ModelConfig(path=str(given()), on_adapter="stack", lora=NEW), seed=4)
    fresh = load_policy(ModelConfig(path=str(given()), on_adapter="fresh", lora=NEW), seed=4)
    alone = load_policy(ModelConfig(path=str(given().parent / "base"), lora=NEW), seed=4)
    for policy in (stack, fresh):
        names = [n for n, _ in policy.trainable()]
        assert names == [n for n, _ in alone.trainable()]
        assert all(
            torch.equal(p, q) for (_, p), (_, q) in zip(policy.trainable(), alone.trainable(), strict=True)
        )  # fmt: skip
    before = state_of(stack)
    stack.model(input_ids=IDS).logits.square().mean().backward()
    assert {n for n, p in stack.model.named_parameters() if p.grad is not None} == {n for n, _ in stack.trainable()}
    unchanged(stack, before)


def test_a_new_adapter_needs_its_shape(given: Given) -> None:
    path = str(given())
    fails(ModelConfig(path=path, on_adapter="stack"), "stack trains a new adapter", "model.lora", error=UsageError)
    fails(
        ModelConfig(path=path, on_adapter="fresh"), "model.lora", str(given().parent / "base"), error=UsageError
    )  # fmt: skip


def test_the_reference_is_asked_for_and_only_where_there_is_a_choice(given: Given) -> None:
    path = str(given())
    with pytest.raises(UsageError, match=r"model\.reference is missing") as caught:
        load_policy(ModelConfig(path=path, on_adapter="continue"), needs_reference=True)
    assert "base (the bare model" in str(caught.value)
    assert "start (the adapter as it was" in str(caught.value)
    for mode in ("stack", "merge", "merge-full", "fresh"):
        config = ModelConfig(path=path, reference="start", **MODES[mode])
        fails(config, "model.reference is start", "Remove the field", error=UsageError)
    config = ModelConfig(path=str(given().parent / "base"), reference="base")
    fails(config, "model.reference is base", "Remove the field", error=UsageError)


# --- folded for a while ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["continue-start", "stack", "merge", "fresh"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_merged_folds_all_that_acts_and_comes_back(given: Given, kind: str, mode: str) -> None:
    policy = load_policy(ModelConfig(path=str(given(kind)), **MODES[mode]))
    shake(policy)
    live, before = logits(policy.model), state_of(policy)
    with policy.merged():
        close(logits(policy.model), live)
        # really folded: each active adapter is in the weights, so its own path is not taken
        for module in policy.model.modules():
            if hasattr(module, "merged_adapters"):
                assert set(module.merged_adapters) == set(module.active_adapters) & set(module.lora_B)
                assert module.merged
    unchanged(policy, before)
    assert torch.equal(logits(policy.model), live)
    with pytest.raises(RuntimeError, match="in the middle"), policy.merged():
        raise RuntimeError("in the middle")
    unchanged(policy, before)
    assert torch.equal(logits(policy.model), live)


def test_merged_with_an_adapter_on_a_tied_head(given: Given) -> None:
    lora = LoraConfig(r=2, alpha=4.0, targets=["lm_head", "q_proj"])
    policy = load_policy(ModelConfig(path=str(given("qwen3")), on_adapter="fresh", lora=lora))
    shake(policy)
    live, before = logits(policy.model), state_of(policy)
    with policy.merged():
        close(logits(policy.model), live)
    unchanged(policy, before)
    assert policy.base.lm_head.base_layer.weight is policy.base.model.embed_tokens.weight
    assert torch.equal(logits(policy.model), live)


def test_merged_is_nothing_for_full_fine_tuning(given: Given) -> None:
    policy = load_policy(ModelConfig(path=str(given().parent / "base")))
    live = logits(policy.model)
    with policy.merged():
        assert torch.equal(logits(policy.model), live)


# --- through the engine ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["continue-start", "stack"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2"])
def test_the_engine_sees_the_same_adapters(given: Given, kind: str, mode: str) -> None:
    """Shared prompts, policy and reference, adapters on the head among them: the numbers of plain transformers."""
    adapter = given(kind, target_modules=["q_proj", "down_proj", "lm_head"])
    fields = {**MODES[mode], "lora": LoraConfig(r=2, targets=["q_proj", "lm_head"]) if mode == "stack" else None}
    policy = load_policy(ModelConfig(path=str(adapter), **fields))
    start = plain(adapter)
    shake(policy)
    groups = some_groups()
    engine = Engine(policy, mode="shared")
    with engine.plain():
        want, _ = plain_values(policy.model, groups)
        want_gradient = gradients(policy.model, weighted_sum(want))
    got, _ = engine_values(engine, groups)
    assert furthest(got, want) <= 1e-4
    assert relative_l2(gradients(policy.model, weighted_sum(got)), want_gradient) <= 1e-5
    with torch.no_grad():
        wanted, _ = plain_values(start, groups)
        scored = engine.score(groups, 1000, reference=True)
        values = {(g, c): t for g, row in enumerate(scored) for c, t in enumerate(row)}
        assert furthest(values, wanted) <= 1e-4
        assert furthest(values, want) > 1e-2
        again, _ = engine_values(engine, groups)
        assert furthest(again, got) == 0.0


def test_a_model_saved_behind_the_engine_is_plain(given: Given, tmp_path: Path) -> None:
    """Nothing of the engine's own attention in the saved folder, nor in the live model's way."""
    policy = load_policy(ModelConfig(path=str(given()), **MODES["merge"]))
    engine = Engine(policy, mode="shared")
    shake(policy)
    groups = some_groups()
    with torch.no_grad():
        before, _ = engine_values(engine, groups)
        policy.save(tmp_path / "final")
        assert furthest(engine_values(engine, groups)[0], before) == 0.0
        with policy.merged():
            assert furthest(engine_values(engine, groups)[0], before) <= 1e-4
        assert furthest(plain_values(plain(tmp_path / "final"), groups)[0], before) <= 1e-4


# --- what can't be ---------------------------------------------------------------------------------------------


def with_settings(adapter: Path, tmp_path: Path, **settings: Any) -> Path:
    folder = Path(shutil.copytree(adapter, tmp_path / "changed"))
    was = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    (folder / "adapter_config.json").write_text(json.dumps({**was, **settings}), encoding="utf-8")
    return folder


@pytest.mark.parametrize("mode", MODES)
def test_adapters_for_other_tasks(given: Given, mode: str, tmp_path: Path) -> None:
    folder = with_settings(given(), tmp_path, task_type="SEQ_CLS")
    fails(ModelConfig(path=str(folder), **MODES[mode]), str(folder), "SEQ_CLS", "reward model", "CAUSAL_LM")


def test_a_classifier_is_no_language_model(tmp_path: Path) -> None:
    """With a tied head no weight is missing, so transformers would load it without a word."""
    config = zoo.tiny_model("qwen3").config
    classifier: Any = tf.AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    classifier.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    fails(ModelConfig(path=str(tmp_path)), "Qwen3ForSequenceClassification", "not a causal language model")


def test_an_adapter_on_an_adapter(given: Given, tmp_path: Path) -> None:
    folder = with_settings(given(), tmp_path, base_model_name_or_path=str(given()))
    for mode in ("stack", "fresh", "merge"):
        fails(
            ModelConfig(path=str(folder), **MODES[mode]),
            str(folder), "itself an adapter", f"preftune merge {given()} OUT", "base_model_name_or_path",
        )  # fmt: skip
    # the remedy works
    merge(str(given()), tmp_path / "whole")
    shutil.rmtree(tmp_path / "changed")
    folder = with_settings(given(), tmp_path, base_model_name_or_path=str(tmp_path / "whole"))
    load_policy(ModelConfig(path=str(folder), on_adapter="continue"))


def test_an_adapter_of_another_base(given: Given, tmp_path: Path) -> None:
    other = zoo.tiny_model("llama")
    cases: list[tuple[str, dict[str, int], str]] = [
        ("narrow", {"hidden_size": 16}, "size mismatch"),
        ("short", {"num_hidden_layers": 1}, "no place there"),
        ("long", {"num_hidden_layers": 3}, "weights missing"),
    ]
    for name, changes, fault in cases:
        settings = {**other.config.to_dict(), **changes, "layer_types": None, "head_dim": None}
        tf.LlamaForCausalLM(tf.LlamaConfig(**settings)).save_pretrained(tmp_path / name)
        tokenizer().save_pretrained(tmp_path / name)
        shutil.rmtree(tmp_path / "changed", ignore_errors=True)
        # named by their last part alone, the targets are found in every layer of a longer base too
        adapter = given(target_modules=["q_proj"])
        folder = with_settings(adapter, tmp_path, base_model_name_or_path=str(tmp_path / name))
        for mode in ("continue-start", "stack", "merge"):
            with pytest.raises(ModelError, match="can't load the adapter in") as caught:
                load_policy(ModelConfig(path=str(folder), **MODES[mode]))
            assert str(tmp_path / name) in str(caught.value)
            assert fault in str(caught.value)


def test_a_folder_that_is_two_things(given: Given, tmp_path: Path) -> None:
    both = Path(shutil.copytree(given().parent / "base", tmp_path / "both"))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(given() / name, both / name)
    fails(ModelConfig(path=str(both)), str(both), "adapter_config.json", "model.safetensors", "folder of their own")
    fails(ModelConfig(path=str(both), on_adapter="merge"), str(both), "which of them is meant")
    folder = with_settings(given(), tmp_path, base_model_name_or_path=str(both))
    fails(ModelConfig(path=str(folder), on_adapter="merge"), str(folder), "names a base that can't be used", str(both))
    # some trainers leave the base's config.json beside an adapter; without weights it is no model
    (both / "model.safetensors").unlink()
    policy = load_policy(ModelConfig(path=str(both), on_adapter="continue"))
    close(logits(policy.model), logits(plain(given())))


@pytest.mark.parametrize(
    ("settings", "modes", "said"),
    [
        ({"bias": "all"}, ["continue-base", "stack"], "trained biases of its base"),
        ({"init_lora_weights": "pissa_niter_4"}, ["continue-start", "stack"], "init_lora_weights: pissa"),
        ({"layer_replication": [[0, 2]]}, ["continue-start", "stack"], "layer_replication"),
        ({"use_dora": True}, ["stack"], "use_dora"),
        ({"modules_to_save": ["lm_head"]}, ["stack"], "modules_to_save"),
        ({"lora_bias": True}, ["stack"], "lora_bias"),
        ({"peft_type": "IA3"}, ["continue-base", "stack", "merge"], "IA3 adapter, and only LoRA"),
        ({"peft_type": "PROMPT_TUNING"}, ["continue-start", "merge-full"], "PROMPT_TUNING adapter, and only LoRA"),
    ],
)  # fmt: skip
def test_adapters_that_are_more_than_a_sum(
    given: Given, settings: dict[str, Any], modes: list[str], said: str, tmp_path: Path
) -> None:
    folder = with_settings(given(), tmp_path, **settings)
    for mode in modes:
        fails(ModelConfig(path=str(folder), **MODES[mode]), str(folder), said, "fresh")
    load_policy(ModelConfig(path=str(folder), **MODES["fresh"]))


@pytest.mark.parametrize("kind", ["dora", "whole", "bias"])
def test_what_can_only_be_merged_is_merged(given: Given, kind: str, tmp_path: Path) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "dora": {"use_dora": True}, "whole": {"modules_to_save": ["lm_head"]}, "bias": {"lora_bias": True},
    }  # fmt: skip
    adapter = given("qwen2", target_modules=["q_proj", "k_proj"], **kinds[kind])
    policy = load_policy(ModelConfig(path=str(adapter), **MODES["merge"]))
    close(logits(policy.model), logits(plain(adapter)), 3e-5)
    shake(policy)
    policy.save(tmp_path / "final")
    close(logits(plain(tmp_path / "final")), logits(policy.model))


@pytest.mark.parametrize("mode", ["stack", "fresh", "merge"])
def test_a_new_adapter_on_layers_that_do_not_exist(given: Given, mode: Any) -> None:
    config = ModelConfig(path=str(given()), on_adapter=mode, lora=LoraConfig(targets=["q_proj_of_another"]))
    fails(config, "model.lora.targets", "q_proj_of_another")


# --- the page in the docs --------------------------------------------------------------------------------------


def test_the_page_has_every_choice() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "adapters.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `(\w+)`(?:, (with|without) `model\.lora`)? \|", text, re.MULTILINE)
    told = [choice for choice in told if choice[0] != "model"]
    choices: Any = get_args(get_args(ModelConfig.model_fields["on_adapter"].annotation)[0])
    assert {name for name, _ in told} == set(choices)
    for block in re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        assert resolve(yaml.safe_load(block)).stages[0].model.on_adapter == "stack"

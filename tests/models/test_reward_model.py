"""Reward models: what they are made from, and that plain transformers gives a saved one's scores to the digit."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from peft import AutoPeftModelForSequenceClassification, PeftModel, get_peft_model
from peft import LoraConfig as PeftLora
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

from preftune.config import LoraConfig, ModelConfig
from preftune.engine.forward import Engine
from preftune.errors import ModelError, UsageError
from preftune.models.loading import load_policy
from preftune.models.reward import RewardModel, load_reward
from preftune.records import Completion, Group, Prompt
from tests.engine import zoo
from tests.engine.plain import some_groups

LORA = LoraConfig(r=3, alpha=6.0)
KINDS = [
    "llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi3", "gpt2", "olmo2", "smollm3", "qwen3_moe",
    "gpt_neox", "opt", "mixtral", "bloom",
]  # fmt: skip
NO_LEFT = {"gpt2"}
"""Classifiers that count positions from the row's start, padding included."""


def tokenizer(**special: str) -> Any:
    """One word per id; without arguments there is an EOS (w2) and nothing to pad with but it."""
    words = {f"w{i}": i for i in range(zoo.VOCABULARY)}
    fast = Tokenizer(models.WordLevel(words, unk_token="w0"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    make: Any = tf.PreTrainedTokenizerFast
    return make(tokenizer_object=fast, **{"eos_token": "w2", "pad_token": "w2", **special})


def save(folder: Path, model: Any, **special: str) -> Path:
    model.save_pretrained(folder)
    tokenizer(**special).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal language model. Read-only by agreement."""
    return save(tmp_path_factory.mktemp("models") / "base", zoo.tiny_model("llama"))


def shake(reward: Any, seed: int = 0) -> None:
    """Move all trained weights, as training would."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in reward.trainable():
            parameter.add_(torch.randn(parameter.shape, generator=g) * 0.15)


def rows_of(groups: Sequence[Group]) -> list[list[int]]:
    return [[*g.prompt.ids, *c.ids] for g in groups for c in g.completions]


@torch.no_grad()
def padded_scores(folder: Path, groups: Sequence[Group], side: str = "right", **kwargs: Any) -> Tensor:
    """What a user of plain transformers gets: the tokenizer pads one batch, the classifier scores it."""
    model = tf.AutoModelForSequenceClassification.from_pretrained(folder, **kwargs).eval()
    words = tf.AutoTokenizer.from_pretrained(folder)
    assert words.padding_side == "right"
    words.padding_side = side
    batch = words.pad({"input_ids": rows_of(groups)}, return_tensors="pt")
    assert batch["attention_mask"].min() == 0
    out: Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    return out.float()


def rated(reward: RewardModel, groups: Sequence[Group]) -> Tensor:
    return torch.tensor([s for row in Engine(reward).rate(groups, 1000) for s in row])


def ending_in_eos() -> list[Group]:
    """The usual groups, completions ending in none, one or two of the EOS id 2."""
    return [
        Group(
            group.prompt,
            tuple(
                Completion((*c.ids, *[2] * (k % 3)), (*c.mask, *[True] * (k % 3)))
                for k, c in enumerate(group.completions)
            ),
        )
        for group in some_groups()
    ]


def fails(config: ModelConfig, *parts: str, error: type[Exception] = ModelError, **kwargs: Any) -> None:
    with pytest.raises(error) as caught:
        load_reward(config, **kwargs)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


# --- saved models in plain transformers -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_plain_transformers_gives_the_same_scores(kind: str, tmp_path: Path) -> None:
    groups = ending_in_eos()
    reward = load_reward(ModelConfig(path=str(save(tmp_path / "base", zoo.tiny_model(kind)))))
    assert rated(reward, groups).tolist() == [0.0] * 10
    reward = load_reward(ModelConfig(path=str(tmp_path / "base")))
    shake(reward)
    reward.save(tmp_path / "saved")
    mine = rated(reward, groups)
    assert float(mine.std()) > 0.05
    torch.testing.assert_close(padded_scores(tmp_path / "saved", groups), mine, atol=1e-5, rtol=0)
    if kind not in NO_LEFT:
        torch.testing.assert_close(padded_scores(tmp_path / "saved", groups, "left"), mine, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "gpt_neox"])
def test_an_adapter_is_saved_merged_and_the_live_model_stays(kind: str, tmp_path: Path) -> None:
    groups = ending_in_eos()
    config = ModelConfig(path=str(save(tmp_path / "base", zoo.tiny_model(kind))), lora=LORA)
    reward = load_reward(config)
    assert {n.rpartition("lora_")[1] or n for n, _ in reward.trainable()} == {
        "lora_", "base_model.model.score.modules_to_save.default.weight",
    }  # fmt: skip
    shake(reward)
    before = {n: p.clone() for n, p in reward.model.state_dict().items()}
    mine, pad = rated(reward, groups), reward.base.config.pad_token_id
    attention = reward.base.config._attn_implementation
    reward.save(tmp_path / "saved")
    after = reward.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert (reward.base.config.pad_token_id, reward.base.config._attn_implementation) == (pad, attention)
    assert reward.tokenizer.pad_token == "w2"
    assert not (tmp_path / "saved" / "adapter_config.json").exists()
    torch.testing.assert_close(padded_scores(tmp_path / "saved", groups), mine, atol=1e-5, rtol=0)
    # Training goes on: the head and the adapter still get gradients.
    engine = Engine(reward)
    (packed,) = engine.pack(groups, 1000)
    engine.scores(packed).square().sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for _, p in reward.trainable())


def test_save_and_load_give_the_same_scores_and_go_on(base: Path, tmp_path: Path) -> None:
    groups = some_groups()
    reward = load_reward(ModelConfig(path=str(base)))
    shake(reward)
    assert reward.normalization is None
    reward.set_normalization(1.25, 0.5)
    reward.save(tmp_path / "one")
    again = load_reward(ModelConfig(path=str(tmp_path / "one")))
    assert again.normalization == (1.25, 0.5)
    assert "new reward head" not in again.lineage
    torch.testing.assert_close(rated(again, groups), rated(reward, groups), atol=0, rtol=0)
    shake(again, seed=2)
    again.save(tmp_path / "two")
    used = load_reward(ModelConfig(path=str(tmp_path / "two")), trainable=False)
    assert used.trainable() == []
    torch.testing.assert_close(rated(used, groups), rated(again, groups), atol=0, rtol=0)
    # The raw score stays raw in plain transformers, normalisation or not.
    torch.testing.assert_close(padded_scores(tmp_path / "two", groups), rated(again, groups), atol=1e-5, rtol=0)


def test_the_pipeline_of_transformers_gives_raw_scores(base: Path, tmp_path: Path) -> None:
    reward = load_reward(ModelConfig(path=str(base)))
    shake(reward)
    reward.save(tmp_path / "saved")
    judge = tf.pipeline("text-classification", model=str(tmp_path / "saved"))
    group = Group(Prompt((40, 50), ""), (Completion((60, 70, 33), (True,) * 3),))
    text = "w40 w50 w60 w70 w33"
    assert judge(text)[0]["score"] == pytest.approx(float(rated(reward, [group])[0]), abs=1e-5)


@pytest.mark.parametrize(("mean", "std"), [(float("nan"), 1.0), (0.0, 0.0), (0.0, -1.0), (0.0, float("inf"))])
def test_a_normalisation_that_is_none_is_refused(mean: float, std: float, base: Path) -> None:
    reward = load_reward(ModelConfig(path=str(base)))
    with pytest.raises(ValueError, match="finite"):
        reward.set_normalization(mean, std)
    reward.base.config.preftune_reward_mean = 1.0
    with pytest.raises(ModelError, match="preftune_reward_std"):
        _ = reward.normalization


# --- pad and EOS --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("special", "eos", "pad"),
    [
        ({"pad_token": "w7"}, [2], 7),  # its own
        ({"pad_token": "w7"}, [2, 7], 113),  # its own is an EOS of the generation config: a new one
        ({"unk_token": "w0"}, [2], 0),
        ({"unk_token": "w0", "bos_token": "w0"}, [2], 113),
        ({"unk_token": "w0", "sep_token": "w9"}, [2, 0], 9),
        ({}, [2], 113),
    ],
)
def test_the_pad_token_is_no_eos(special: dict[str, str], eos: list[int], pad: int, tmp_path: Path) -> None:
    model = zoo.tiny_model("llama")
    model.config.bos_token_id = None
    model.generation_config.eos_token_id = eos
    reward = load_reward(ModelConfig(path=str(save(tmp_path / "base", model, **special))))
    assert reward.generation_eos == tuple(eos)
    shake(reward)
    reward.save(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (config["pad_token_id"], len(config["id2label"])) == (pad, 1)
    assert tf.AutoTokenizer.from_pretrained(tmp_path / "saved").pad_token_id == pad
    again = load_reward(ModelConfig(path=str(tmp_path / "saved")))
    assert again.generation_eos == tuple(eos)
    assert again.base.get_input_embeddings().weight.shape[0] == max(zoo.VOCABULARY, pad + 1)
    groups = ending_in_eos()
    torch.testing.assert_close(padded_scores(tmp_path / "saved", groups), rated(reward, groups), atol=1e-5, rtol=0)
    torch.testing.assert_close(rated(again, groups), rated(reward, groups), atol=0, rtol=0)
    assert reward.base.get_input_embeddings().weight.shape[0] == zoo.VOCABULARY


def test_a_special_token_named_for_padding_comes_before_others(tmp_path: Path) -> None:
    model = zoo.tiny_model("llama")
    words = tokenizer(unk_token="w0", sep_token="w5")
    words.add_special_tokens({"additional_special_tokens": [AddedToken("<|reserved_3|>", special=True)]})
    model.resize_token_embeddings(len(words) + 6)
    model.save_pretrained(tmp_path / "base")
    words.save_pretrained(tmp_path / "base")
    reward = load_reward(ModelConfig(path=str(tmp_path / "base"), lora=LORA))
    reward.save(tmp_path / "saved")
    assert tf.AutoTokenizer.from_pretrained(tmp_path / "saved").pad_token == "<|reserved_3|>"
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["vocab_size"] == len(words) + 6


# --- what a reward model is made from -----------------------------------------------------------------------------


def test_a_new_head_is_zero_and_said(base: Path) -> None:
    reward = load_reward(ModelConfig(path=str(base)))
    assert float(reward.base.score.weight.abs().sum()) == 0.0
    assert reward.base.score.bias is None
    assert reward.lineage == f"reward model on base {base}; new reward head, all zeros; all weights trained"
    causal = zoo.tiny_model("llama").model.state_dict()
    assert all(torch.equal(t, causal[n]) for n, t in reward.base.model.state_dict().items())


def test_the_seed_makes_the_adapter(base: Path) -> None:
    one, two, other = (load_reward(ModelConfig(path=str(base), lora=LORA), seed=s).trainable() for s in (1, 1, 2))
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(one, two, strict=True))
    assert not all(torch.equal(a, b) for (_, a), (_, b) in zip(one, other, strict=True))


def test_absent_weights_other_than_the_head_are_an_error(base: Path, tmp_path: Path) -> None:
    folder = save(tmp_path / "broken", zoo.tiny_model("llama"))
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    fails(ModelConfig(path=str(folder)), "lacks 1 weights", "layers.1.mlp.up_proj")


def test_classifiers_with_other_labels_and_types_without_a_classifier_are_errors(tmp_path: Path) -> None:
    config = copy.deepcopy(zoo.tiny_model("llama").config)
    config.num_labels = 3
    auto: Any = tf.AutoModelForSequenceClassification
    three = save(tmp_path / "three", auto.from_config(config))
    fails(ModelConfig(path=str(three)), "3 labels", "Start from the language model")
    granite = save(tmp_path / "granite", zoo.tiny_model("granite"))
    fails(ModelConfig(path=str(granite)), "type granite", "no sequence classifier", "qwen3")
    mamba = save(tmp_path / "mamba2", zoo.tiny_model("mamba2"))
    fails(ModelConfig(path=str(mamba)), "type mamba2", "nearest in name")


def test_only_used(base: Path, tmp_path: Path) -> None:
    fails(ModelConfig(path=str(base)), "no reward head", "preftune reward", trainable=False)
    fails(ModelConfig(path=str(base), lora=LORA), "model.lora", trainable=False, error=UsageError)
    fails(ModelConfig(path=str(base), reference="base"), "no reference", error=UsageError)
    fails(ModelConfig(path=str(base), on_adapter="merge"), "not an adapter")
    fails(ModelConfig(path=str(tmp_path / "nowhere")), "does not exist")


def test_dropout_is_off(tmp_path: Path) -> None:
    model = zoo.tiny_model("gpt2")
    for name in ("attn_pdrop", "resid_pdrop", "embd_pdrop"):
        setattr(model.config, name, 0.5)
    reward = load_reward(
        ModelConfig(path=str(save(tmp_path / "base", model)), lora=LoraConfig(dropout=0.5), gradient_checkpointing=True)
    )
    assert {m.p for n, m in reward.model.named_modules() if isinstance(m, nn.Dropout) and "lora" not in n} == {0.0}
    shake(reward)
    engine = Engine(reward)
    still = engine.rate(some_groups(), 1000)
    reward.train_mode(True)
    moved = engine.rate(some_groups(), 1000)
    reward.train_mode(False)
    assert engine.rate(some_groups(), 1000) == still != moved  # LoRA's own dropout, in training only


def test_a_model_that_pads_with_its_eos_is_said(base: Path, tmp_path: Path) -> None:
    """Trained elsewhere with pad = EOS: plain transformers skips the final EOS there, and the engine never does."""
    reward = load_reward(ModelConfig(path=str(base)))
    assert "pad token" not in reward.lineage
    shake(reward)
    reward.save(tmp_path / "saved")
    settings = json.loads((tmp_path / "saved" / "config.json").read_text())
    settings["pad_token_id"] = 2
    (tmp_path / "saved" / "config.json").write_text(json.dumps(settings))
    again = load_reward(ModelConfig(path=str(tmp_path / "saved")), trainable=False)
    assert "its pad token is an EOS" in again.lineage
    torch.testing.assert_close(rated(again, ending_in_eos()), rated(reward, ending_in_eos()), atol=0, rtol=0)


def test_saving_in_the_middle_of_training(base: Path, tmp_path: Path) -> None:
    """With gradients, recomputed layers and dropout on, an adapter is copied and merged all the same."""
    reward = load_reward(
        ModelConfig(path=str(base), lora=LoraConfig(r=3, alpha=6.0, dropout=0.1), gradient_checkpointing=True)
    )
    shake(reward)
    mine = rated(reward, some_groups())
    engine = Engine(reward)
    reward.train_mode(True)
    (packed,) = engine.pack(some_groups(), 1000)
    engine.scores(packed).sum().backward()  # type: ignore[no-untyped-call]
    grads = {n: p.grad.clone() for n, p in reward.trainable() if p.grad is not None}
    reward.save(tmp_path / "saved")
    assert len(grads) == len(reward.trainable())
    assert all(p.grad is not None and torch.equal(p.grad, grads[n]) for n, p in reward.trainable())
    torch.testing.assert_close(padded_scores(tmp_path / "saved", some_groups()), mine, atol=1e-5, rtol=0)


def test_a_16_bit_base_trains_its_head_in_32(base: Path, tmp_path: Path) -> None:
    reward = load_reward(ModelConfig(path=str(base), lora=LORA, dtype="bfloat16"))
    assert {p.dtype for _, p in reward.trainable()} == {torch.float32}
    assert reward.base.get_input_embeddings().weight.dtype == torch.bfloat16
    shake(reward)
    mine = rated(reward, some_groups())
    reward.save(tmp_path / "saved")
    assert {t.dtype for t in load_file(tmp_path / "saved" / "model.safetensors").values()} == {torch.bfloat16}
    assert float((padded_scores(tmp_path / "saved", some_groups()) - mine).abs().max() / mine.abs().max()) < 0.1


# --- adapters -----------------------------------------------------------------------------------------------------


def peft_adapter(base: Path, folder: Path) -> Path:
    """A reward model's adapter as peft alone makes and saves it (and as TRL does)."""
    model = tf.AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    wrapped = get_peft_model(model, PeftLora(r=3, lora_alpha=6, target_modules="all-linear", task_type="SEQ_CLS"))
    g = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for _, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.15)
    wrapped.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def judge(base: Path) -> Path:
    """A SEQ_CLS adapter with its head. Read-only by agreement."""
    return peft_adapter(base, base.parent / "judge")


@pytest.fixture(scope="module")
def tuned(base: Path) -> Path:
    """An SFT adapter of the language model. Read-only by agreement."""
    policy = load_policy(ModelConfig(path=str(base), lora=LORA))
    shake(policy)
    policy.save(base.parent / "tuned")
    return base.parent / "tuned"


@torch.no_grad()
def peft_scores(folder: Path, groups: Sequence[Group]) -> Tensor:
    model = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    return torch.tensor([float(model(input_ids=torch.tensor([row])).logits) for row in rows_of(groups)])


def test_a_reward_adapter_is_continued_merged_or_used(judge: Path, tmp_path: Path) -> None:
    groups = some_groups()
    want = peft_scores(judge, groups)
    assert float(want.std()) > 0.05
    going = load_reward(ModelConfig(path=str(judge), on_adapter="continue"))
    assert "continued" in going.lineage
    assert going.is_adapter
    assert any("score.modules_to_save" in n for n, _ in going.trainable())
    merged = load_reward(ModelConfig(path=str(judge), on_adapter="merge"))
    assert not merged.is_adapter
    assert len(merged.trainable()) == len(list(merged.model.parameters()))
    stacked = load_reward(ModelConfig(path=str(judge), on_adapter="stack", lora=LORA))
    used = load_reward(ModelConfig(path=str(judge)), trainable=False)
    for reward in (going, merged, stacked, used):
        assert "new reward head" not in reward.lineage
        torch.testing.assert_close(rated(reward, groups), want, atol=1e-5, rtol=0)
    for reward, name in ((going, "going"), (stacked, "stacked")):
        shake(reward, seed=7)
        reward.save(tmp_path / name)
        mine = rated(reward, groups)
        assert float((mine - want).abs().max()) > 0.01
        torch.testing.assert_close(padded_scores(tmp_path / name, groups), mine, atol=1e-5, rtol=0)


def test_a_language_models_adapter_is_merged_first(base: Path, tuned: Path) -> None:
    for config in (
        ModelConfig(path=str(tuned), on_adapter="merge"),
        ModelConfig(path=str(tuned), on_adapter="merge", lora=LORA),
        ModelConfig(path=str(tuned), on_adapter="stack", lora=LORA),
    ):
        reward = load_reward(config)
        assert f"base {base} with adapter {tuned} merged in; new reward head" in reward.lineage
        assert float(rated(reward, some_groups()).abs().max()) == 0.0
    causal = PeftModel.from_pretrained(tf.AutoModelForCausalLM.from_pretrained(base), str(tuned)).merge_and_unload()
    reward = load_reward(ModelConfig(path=str(tuned), on_adapter="merge"))
    want, bare = causal.model.state_dict(), zoo.tiny_model("llama").model.state_dict()
    mine = reward.base.model.state_dict()
    assert all(torch.equal(mine[n], want[n]) for n in want)
    assert not all(torch.equal(mine[n], bare[n]) for n in want)


def test_fresh_leaves_the_adapter_out(base: Path, tuned: Path, judge: Path) -> None:
    bare = zoo.tiny_model("llama").model.state_dict()
    for folder in (tuned, judge):
        reward = load_reward(ModelConfig(path=str(folder), on_adapter="fresh", lora=LORA))
        assert f"adapter {folder} left out; new reward head, all zeros; new LoRA adapter" in reward.lineage
        weights = {n.replace(".base_layer", ""): t for n, t in reward.base.model.state_dict().items()}
        assert all(torch.equal(weights[n], bare[n]) for n in bare)
    assert base.exists()


def test_what_an_adapter_leaves_open_is_asked(judge: Path, tuned: Path, tmp_path: Path) -> None:
    fails(ModelConfig(path=str(judge)), "model.on_adapter", "continue", "merge", "stack", "fresh")
    fails(ModelConfig(path=str(tuned)), "model.on_adapter", "merge")
    fails(ModelConfig(path=str(tuned), on_adapter="continue"), "no reward head", "merge")
    fails(ModelConfig(path=str(judge), on_adapter="fresh"), "model.lora", error=UsageError)
    fails(ModelConfig(path=str(judge), on_adapter="stack"), "model.lora", error=UsageError)
    fails(ModelConfig(path=str(judge), on_adapter="continue", lora=LoraConfig(r=5)), "asks for 5", error=UsageError)
    fails(ModelConfig(path=str(judge), on_adapter="fresh"), "merged", trainable=False, error=UsageError)
    fails(ModelConfig(path=str(tuned)), "no reward head", trainable=False)
    weights = load_file(judge / "adapter_model.safetensors")
    for gone, message in (("score", "score.weight"), ("lora_B", "missing")):
        folder = tmp_path / gone
        folder.mkdir()
        (folder / "adapter_config.json").write_text((judge / "adapter_config.json").read_text())
        some = {n: t for n, t in weights.items() if gone not in n}
        assert len(some) < len(weights)
        save_file(some, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        fails(ModelConfig(path=str(folder), on_adapter="continue"), "can't load the adapter", message)

"""Loading: what can go wrong says so, adapters do what was asked, the reference stays, dropout is off."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from preftune.config import LoraConfig, ModelConfig
from preftune.engine.forward import Engine
from preftune.errors import ModelError, UsageError
from preftune.models.loading import Policy, load_policy, merge
from tests.engine import zoo
from tests.engine.plain import engine_values, furthest, plain_values, some_groups

IDS = torch.arange(3, 23).view(2, 10)
LORA = LoraConfig(r=3, alpha=6.0)


def tokenizer() -> Any:
    words = {f"w{i}": i for i in range(zoo.VOCABULARY)}
    fast = Tokenizer(models.WordLevel(words, unk_token="w0"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    return tf.PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="w2", unk_token="w0")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model folder. Read-only by agreement."""
    folder = tmp_path_factory.mktemp("models") / "base"
    zoo.tiny_model("llama").save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def shake(policy: Policy, seed: int = 0) -> None:
    """Move all trained weights, as training would."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in policy.trainable():
            parameter.add_(torch.randn(parameter.shape, generator=g) * 0.1)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    out: Tensor = model(input_ids=IDS).logits
    return out


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    """An adapter on `base` that changes its output. Read-only by agreement."""
    policy = load_policy(ModelConfig(path=str(base), lora=LORA))
    shake(policy)
    policy.save(base.parent / "adapter")
    return base.parent / "adapter"


def in_training(policy: Policy) -> set[str]:
    """Kinds of modules in training mode."""
    return {type(m).__name__ for m in policy.model.modules() if m.training}


def fails(config: ModelConfig, *parts: str, error: type[Exception] = ModelError) -> None:
    with pytest.raises(error) as caught:
        load_policy(config)
    message = str(caught.value)
    for part in parts:
        assert part in message
    assert "\n" not in message


# --- errors ---------------------------------------------------------------------------------------------------


def test_a_missing_folder(tmp_path: Path) -> None:
    fails(ModelConfig(path=str(tmp_path / "gone")), "gone does not exist")
    fails(ModelConfig(path="./gone"), "./gone does not exist")
    fails(ModelConfig(path="~/surely/not/here"), "surely/not/here does not exist")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    fails(ModelConfig(path=str(tmp_path / "model.bin")), "is a file", "model folder or a hub id")


def test_an_empty_folder(tmp_path: Path) -> None:
    fails(ModelConfig(path=str(tmp_path)), "has no tokenizer")


def test_no_tokenizer(base: Path, tmp_path: Path) -> None:
    zoo.tiny_model("llama").save_pretrained(tmp_path / "m")
    fails(ModelConfig(path=str(tmp_path / "m")), "has no tokenizer", "tokenizer.save_pretrained(folder)")


def copy_of(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "copy"))


def test_damaged_folders(base: Path, tmp_path: Path) -> None:
    folder = copy_of(base, tmp_path)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    fails(ModelConfig(path=str(folder)), "can't load the model in", str(folder))
    (folder / "model.safetensors").unlink()
    fails(ModelConfig(path=str(folder)), "can't load the model in", "model.safetensors")
    (folder / "config.json").write_text("{", encoding="utf-8")
    fails(ModelConfig(path=str(folder)), "can't load the ", str(folder))


def test_absent_weights_are_not_made_up(base: Path, tmp_path: Path) -> None:
    folder = copy_of(base, tmp_path)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["num_hidden_layers"] = 3
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    fails(ModelConfig(path=str(folder)), "lacks 9 weights of a LlamaForCausalLM", "model.layers.2.", "is it a causal")


def test_weights_of_another_size(base: Path, tmp_path: Path) -> None:
    folder = copy_of(base, tmp_path)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["intermediate_size"] = 64
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    fails(ModelConfig(path=str(folder)), "can't load the model in")


@pytest.mark.parametrize("where", ["config.json", "tokenizer_config.json"])
def test_code_in_a_folder_is_not_run(base: Path, tmp_path: Path, where: str) -> None:
    folder = copy_of(base, tmp_path)
    marker = tmp_path / "was_run"
    code = f"open({str(marker)!r}, 'w').close()\n"
    classes = {
        "config.json": "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class MyConfig(LlamaConfig):\n    model_type = 'mine'\n"
        "class MyModel(LlamaForCausalLM):\n    config_class = MyConfig\n",
        "tokenizer_config.json": "from transformers import PreTrainedTokenizerFast\n"
        "class MyTokenizer(PreTrainedTokenizerFast):\n    pass\n",
    }
    (folder / "mine.py").write_text(code + classes[where], encoding="utf-8")
    settings = json.loads((folder / where).read_text(encoding="utf-8"))
    if where == "config.json":
        settings["model_type"] = "mine"
        settings["auto_map"] = {"AutoConfig": "mine.MyConfig", "AutoModelForCausalLM": "mine.MyModel"}
    else:
        settings["tokenizer_class"] = "MyTokenizer"
        settings["auto_map"] = {"AutoTokenizer": [None, "mine.MyTokenizer"]}
    (folder / where).write_text(json.dumps(settings), encoding="utf-8")
    fails(ModelConfig(path=str(folder)), str(folder), "own Python code", "model.trust_remote_code: true")
    assert not marker.exists()
    if where == "config.json":
        policy = load_policy(ModelConfig(path=str(folder), trust_remote_code=True))
        assert marker.exists()
        assert type(policy.model).__name__ == "MyModel"


def test_targets_that_do_not_exist(base: Path) -> None:
    fails(
        ModelConfig(path=str(base), lora=LoraConfig(targets=["q_proj_of_another"])),
        "model.lora.targets", "q_proj_of_another",
    )  # fmt: skip


def test_an_adapter_needs_a_decision(base: Path, adapter: Path) -> None:
    fails(ModelConfig(path=str(adapter)), str(adapter), str(base), "model.on_adapter: continue", "merge")


@pytest.mark.parametrize("choice", ["continue", "merge"])
def test_a_whole_model_is_no_adapter(base: Path, choice: Any) -> None:
    fails(ModelConfig(path=str(base), on_adapter=choice), choice, "is not an adapter", "remove the field")


@pytest.mark.parametrize(
    ("change", "name"),
    [({"r": 4}, "r"), ({"alpha": 7.0}, "alpha"), ({"dropout": 0.1}, "dropout"), ({"targets": ["q_proj"]}, "targets")],
)
def test_continue_keeps_the_adapters_shape(adapter: Path, change: dict[str, Any], name: str) -> None:
    lora = LORA.model_copy(update=change)
    config = ModelConfig(path=str(adapter), on_adapter="continue", lora=lora)
    fails(config, f"model.lora.{name} asks for", "leave model.lora out", error=UsageError)


def test_damaged_adapters(adapter: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "copy"))
    config = ModelConfig(path=str(folder), on_adapter="continue")
    weights = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(weights[:100])
    fails(config, "can't load the adapter in", str(folder))
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    moved = {**settings, "base_model_name_or_path": str(tmp_path / "gone")}
    (folder / "adapter_config.json").write_text(json.dumps(moved), encoding="utf-8")
    fails(config, "can't load the model of", "gone")
    nameless = {**settings, "base_model_name_or_path": None}
    (folder / "adapter_config.json").write_text(json.dumps(nameless), encoding="utf-8")
    fails(config, "names no base_model_name_or_path")
    (folder / "adapter_config.json").write_text("{", encoding="utf-8")
    fails(config, "adapter_config.json is damaged")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_no_gpu_here(base: Path) -> None:
    fails(ModelConfig(path=str(base), device="cuda"), "torch sees no GPU", "auto or cpu")


# --- what is loaded -------------------------------------------------------------------------------------------


def test_a_whole_model(base: Path) -> None:
    policy = load_policy(ModelConfig(path=str(base)))
    assert torch.equal(logits(policy.model), logits(zoo.tiny_model("llama")))
    assert (policy.context_length, policy.generation_eos, policy.is_adapter) == (256, (2,), False)
    assert len(policy.trainable()) == len(list(policy.model.named_parameters()))
    assert not policy.model.training
    assert policy.tokenizer.eos_token_id == 2
    assert "all weights trained" in policy.lineage
    assert policy.base is policy.model


def test_dtype_and_checkpointing(base: Path) -> None:
    config = ModelConfig(path=str(base), dtype="bfloat16", gradient_checkpointing=True)
    policy = load_policy(config)
    assert {p.dtype for p in policy.model.parameters()} == {torch.bfloat16}
    assert policy.model.is_gradient_checkpointing
    assert in_training(policy) == set()
    policy.train_mode(True)
    assert in_training(policy) == {"LlamaDecoderLayer"}
    policy.train_mode(False)
    assert in_training(policy) == set()


def test_eos_ids_of_the_generation_config(base: Path, tmp_path: Path) -> None:
    folder = copy_of(base, tmp_path)
    tf.GenerationConfig(eos_token_id=[2, 7]).save_pretrained(folder)
    assert load_policy(ModelConfig(path=str(folder))).generation_eos == (2, 7)


def test_a_fresh_adapter_starts_as_the_base_and_depends_on_the_seed_alone(base: Path) -> None:
    config = ModelConfig(path=str(base), lora=LORA)
    one, again, other = load_policy(config, seed=1), load_policy(config, seed=1), load_policy(config, seed=2)
    assert torch.equal(logits(one.model), logits(zoo.tiny_model("llama")))
    assert all("lora_" in name for name, _ in one.trainable())
    weights = [{n: p for n, p in policy.trainable()} for policy in (one, again, other)]  # noqa: C416
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0])
    assert any(not torch.equal(weights[0][n], weights[2][n]) for n in weights[0])
    assert {m.r["default"] for m in one.model.modules() if hasattr(m, "lora_A")} == {3}
    assert {m.scaling["default"] for m in one.model.modules() if hasattr(m, "lora_A")} == {2.0}


def test_reference_of_an_adapter_is_the_base(base: Path) -> None:
    policy = load_policy(ModelConfig(path=str(base), lora=LORA))
    shake(policy)
    bare = logits(zoo.tiny_model("llama"))
    assert not torch.allclose(logits(policy.model), bare, atol=1e-3)
    with policy.reference() as model:
        assert torch.equal(logits(model), bare)
    assert not torch.allclose(logits(policy.model), bare, atol=1e-3)


def test_reference_of_full_fine_tuning_stays_frozen(base: Path) -> None:
    policy = load_policy(ModelConfig(path=str(base)))
    with pytest.raises(ModelError, match="keep_reference"), policy.reference():
        pass
    policy.keep_reference()
    before = logits(policy.model)
    optimizer = torch.optim.AdamW([p for _, p in policy.trainable()], lr=0.05)
    for _ in range(3):
        policy.model(input_ids=IDS).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    policy.keep_reference()  # a second call keeps the first copy
    assert not torch.allclose(logits(policy.model), before, atol=1e-2)
    with policy.reference() as model:
        assert torch.equal(logits(model), before)
        assert not any(p.requires_grad for p in model.parameters())
        assert not model.training


def test_continue_trains_the_same_adapter(base: Path, adapter: Path, tmp_path: Path) -> None:
    want = logits(PeftModel.from_pretrained(zoo.tiny_model("llama"), adapter))
    for lora in (None, LORA):
        config = ModelConfig(path=str(adapter), on_adapter="continue", reference="base", lora=lora)
        policy = load_policy(config, needs_reference=True)
        assert torch.equal(logits(policy.model), want)
        assert "continued; the reference is the bare base" in policy.lineage
        assert list(policy.model.peft_config) == ["default"]
        with policy.reference() as model:
            assert torch.equal(logits(model), logits(zoo.tiny_model("llama")))
    shake(policy, 5)
    moved = logits(policy.model)
    policy.save(tmp_path / "further")
    again = PeftModel.from_pretrained(tf.AutoModelForCausalLM.from_pretrained(base), tmp_path / "further")
    torch.testing.assert_close(logits(again), moved, atol=1e-6, rtol=0)
    assert not torch.allclose(moved, want, atol=1e-3)


@pytest.mark.parametrize("lora", [None, LoraConfig(r=2, alpha=2.0, targets=["q_proj", "o_proj"])])
def test_merge_and_start_anew(adapter: Path, lora: LoraConfig | None) -> None:
    want = logits(PeftModel.from_pretrained(zoo.tiny_model("llama"), adapter))
    policy = load_policy(ModelConfig(path=str(adapter), on_adapter="merge", lora=lora))
    assert policy.is_adapter == (lora is not None)
    torch.testing.assert_close(logits(policy.model), want, atol=2e-5, rtol=0)
    policy.keep_reference()
    shake(policy)
    assert not torch.allclose(logits(policy.model), want, atol=1e-3)
    with policy.reference() as model:  # the merged model
        torch.testing.assert_close(logits(model), want, atol=2e-5, rtol=0)
    assert "merged in" in policy.lineage


def test_merge_writes_a_plain_model(adapter: Path, tmp_path: Path) -> None:
    out = merge(str(adapter), tmp_path / "whole")
    assert out == tmp_path / "whole"
    assert not (out / "adapter_config.json").exists()
    plain = tf.AutoModelForCausalLM.from_pretrained(out)
    assert type(plain) is tf.LlamaForCausalLM
    want = logits(PeftModel.from_pretrained(zoo.tiny_model("llama"), adapter))
    torch.testing.assert_close(logits(plain), want, atol=2e-5, rtol=0)
    assert tf.AutoTokenizer.from_pretrained(out).eos_token_id == 2
    policy = load_policy(ModelConfig(path=str(out)))
    groups = some_groups()
    with torch.no_grad():
        assert furthest(engine_values(Engine(policy), groups)[0], plain_values(plain, groups)[0]) <= 1e-4


def test_merge_refuses(base: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not an adapter"):
        merge(str(base), tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").touch()
    for taken in (tmp_path / "b", tmp_path / "b" / "x"):
        with pytest.raises(UsageError, match="exists and is not an empty folder"):
            merge(str(adapter), taken)


# --- dropout --------------------------------------------------------------------------------------------------


DROPOUTS: dict[str, dict[str, float]] = {
    "gpt2": {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5},
    "opt": {"dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5},
    "gpt_neox": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
    "llama": {"attention_dropout": 0.5},
    "bloom": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
    "mixtral": {"attention_dropout": 0.5, "router_jitter_noise": 0.5},
}


@pytest.mark.parametrize("kind", DROPOUTS)
@pytest.mark.parametrize("lora", [None, LoraConfig(r=2, dropout=0.0)])
def test_dropout_of_the_base_is_off_in_training_too(kind: str, lora: LoraConfig | None, tmp_path: Path) -> None:
    model = zoo.tiny_model(kind)
    model.config.update(DROPOUTS[kind])
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    policy = load_policy(ModelConfig(path=str(tmp_path), lora=lora, gradient_checkpointing=True))
    want = logits(policy.model)
    policy.train_mode(True)
    assert in_training(policy) != set()
    torch.testing.assert_close(logits(policy.model), want, atol=1e-5, rtol=0)
    values = [engine_values(engine, some_groups())[0] for engine in [Engine(policy)] for _ in range(2)]
    assert furthest(*values) == 0.0


def test_loras_own_dropout_acts_in_training_only(base: Path) -> None:
    policy = load_policy(ModelConfig(path=str(base), lora=LoraConfig(r=3, dropout=0.5)))
    shake(policy)
    quiet = logits(policy.model)
    assert torch.equal(logits(policy.model), quiet)
    policy.train_mode(True)
    assert not torch.allclose(logits(policy.model), quiet, atol=1e-3)
    with policy.reference() as model:
        assert torch.equal(logits(model), logits(zoo.tiny_model("llama")))
    policy.train_mode(False)
    assert torch.equal(logits(policy.model), quiet)


def test_train_mode_is_only_for_what_needs_it(base: Path) -> None:
    policy = load_policy(ModelConfig(path=str(base), lora=LORA))
    policy.train_mode(True)
    assert in_training(policy) == set()
    policy = load_policy(ModelConfig(path=str(base), lora=LoraConfig(r=3, dropout=0.5, targets=["q_proj"])))
    policy.train_mode(True)
    assert in_training(policy) == {"Linear", "ModuleDict", "Dropout"}  # peft's Linear around each q_proj


@pytest.mark.parametrize("kind", zoo.KINDS)
def test_every_kind_survives_a_folder(kind: str, tmp_path: Path) -> None:
    """Saved and loaded: the same logits, and nothing reported missing."""
    zoo.tiny_model(kind).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    policy = load_policy(ModelConfig(path=str(tmp_path)))
    torch.testing.assert_close(logits(policy.model), logits(zoo.tiny_model(kind)), atol=1e-5, rtol=0)

"""Roles on one frozen base: each acts alone and leaves everything as it was; a reward adapter gives its own scores."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer
from torch import Tensor

from preftune.config import LoraConfig, ModelConfig, Recipe, TokensConfig
from preftune.engine.forward import Engine
from preftune.errors import ModelError
from preftune.models.loading import Policy, load_policy
from preftune.models.roles import Role, add_role, put_reward, read_reward_adapter, shareable
from preftune.rewards.learned import RewardReader
from preftune.train.loop import run
from tests import tiny, tinyreward
from tests.engine.plain import relative_l2
from tests.models.test_adapters import state_of, unchanged
from tests.models.test_loading import shake

torch.set_num_threads(1)
LORA = LoraConfig(r=3, alpha=6.0)
IDS = torch.tensor([[5, 41, 6, 44, 30], [7, 8, 9, 10, 11]])

MODES: dict[str, dict[str, Any]] = {
    "new": {"lora": LORA},
    "stack": {"lora": LORA, "on_adapter": "stack"},
    "continue": {"on_adapter": "continue", "reference": "start"},
    "merge": {"lora": LORA, "on_adapter": "merge"},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, an adapter `given` on it made with plain peft, and rows to train a reward model on."""
    folder = tmp_path_factory.mktemp("roles")
    tiny.save(folder / "base", initializer_range=0.2)
    model = peft.get_peft_model(
        tf.AutoModelForCausalLM.from_pretrained(folder / "base"),
        peft.LoraConfig(r=2, lora_alpha=5, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
    )
    spread(p for p in model.parameters() if p.requires_grad)
    model.save_pretrained(str(folder / "given"))
    tiny.write(
        folder / "pairs.jsonl", [{"prompt": f"{a}+1=", "chosen": f"{a + 1}", "rejected": "no"} for a in range(9)]
    )
    return folder


@torch.no_grad()
def spread(parameters: Any, seed: int = 7) -> None:
    g = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.add_(torch.randn(parameter.shape, generator=g) * 0.2)


def policy_in(home: Path, mode: str = "new", **more: Any) -> Policy:
    path = home / ("base" if mode == "new" else "given")
    policy = load_policy(ModelConfig(path=str(path), **MODES[mode], **more), needs_reference=True)
    shake(policy)
    return policy


def with_role(policy: Policy, name: str = "value", lora: LoraConfig = LORA) -> Role:
    role = add_role(policy, name, lora, seed=3)
    spread((p for _, p in role.parameters()), seed=len(name))
    return role


@torch.no_grad()
def logits(model: Any) -> Tensor:
    out: Tensor = model(input_ids=IDS).logits
    return out


def plain(home: Path, mode: str, *folders: Path) -> Any:
    """Plain peft: the base, the given adapter folded in where it belongs to the base, then these folders' adapters."""
    model: Any = tf.AutoModelForCausalLM.from_pretrained(home / "base")
    under = [home / "given"] if mode in ("stack", "merge") else []
    for folder in (*under, *folders):
        model = peft.PeftModel.from_pretrained(model, folder).merge_and_unload()
    return model.eval()


@pytest.mark.parametrize("mode", MODES)
def test_a_role_acts_alone_and_leaves_all_as_it_was(home: Path, tmp_path: Path, mode: str) -> None:
    policy = policy_in(home, mode)
    mine = logits(policy.model)
    with policy.reference() as model:
        reference = logits(model)
    generator = torch.random.get_rng_state()
    role = with_role(policy)
    other = with_role(policy, "reward", LoraConfig(r=1, alpha=3.0, targets=["v_proj"]))
    assert torch.equal(torch.random.get_rng_state(), generator)
    before = state_of(policy)
    assert torch.equal(logits(policy.model), mine)
    for one in (role, other):
        one.save(tmp_path)
        with one.acting() as model:
            found = logits(model)
        torch.testing.assert_close(found, logits(plain(home, mode, tmp_path / one.name)), atol=2e-5, rtol=0.0)
        assert (found - mine).abs().max() > 0.05 and (found - reference).abs().max() > 0.05
    unchanged(policy, before)
    assert torch.equal(logits(policy.model), mine)
    with policy.reference() as model:
        assert torch.equal(logits(model), reference)
    unchanged(policy, before)


@pytest.mark.parametrize("mode", MODES)
def test_an_exception_inside_a_role_leaves_all_as_it_was(home: Path, mode: str) -> None:
    policy = policy_in(home, mode)
    role = with_role(policy)
    before, mine = state_of(policy), logits(policy.model)
    for train in (False, True):
        with pytest.raises(RuntimeError, match="inside"), role.acting(train=train):
            raise RuntimeError("inside")
        unchanged(policy, before)
    with pytest.raises(RuntimeError, match="inside"), role.acting(train=True), policy.reference():
        raise RuntimeError("inside")
    unchanged(policy, before)
    assert torch.equal(logits(policy.model), mine)


@pytest.mark.parametrize("mode", MODES)
def test_what_a_role_trains_is_its_own(home: Path, mode: str) -> None:
    """Its gradient is that of plain peft on that adapter; the policy's, taken before and after, is not touched."""
    policy = policy_in(home, mode)
    role = with_role(policy)
    policy.model(input_ids=IDS).logits.square().mean().backward()
    own = {n: p.grad.clone() for n, p in policy.trainable()}
    with role.acting(train=True) as model:
        model(input_ids=IDS).logits.square().mean().backward()
    got = {n: p.grad for n, p in policy.model.named_parameters() if p.grad is not None}
    assert got.keys() == own.keys() | {n for n, _ in role.parameters()}
    assert all(torch.equal(got[n], own[n]) for n in own)

    under: Any = plain(home, mode)
    theirs = peft.get_peft_model(under, peft.LoraConfig(r=3, lora_alpha=6, target_modules="all-linear"))
    names = {n.replace(".value.", ".default."): p for n, p in role.parameters()}
    missing = theirs.load_state_dict({n: p.detach() for n, p in names.items()}, strict=False)
    assert not missing.unexpected_keys
    theirs(input_ids=IDS).logits.square().mean().backward()
    want = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    assert relative_l2({n.replace(".value.", ".default."): p.grad for n, p in role.parameters()}, want) < 1e-5


def test_a_role_under_gradient_checkpointing(home: Path) -> None:
    """Recomputed layers find the role's adapter where the backward pass runs inside, whatever acted meanwhile."""
    grads = []
    for recompute in (False, True):
        policy = policy_in(home, gradient_checkpointing=recompute)
        role = with_role(policy)
        policy.train_mode(True)
        policy.model(input_ids=IDS).logits.square().mean().backward()
        with role.acting(train=True) as model:
            out = model(input_ids=IDS)
            with policy.reference() as reference:
                logits(reference)
            out.logits.square().mean().backward()
        policy.train_mode(False)
        grads.append({n: p.grad for n, p in policy.model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert relative_l2(grads[1], grads[0]) < 1e-6


@pytest.mark.parametrize("mode", MODES)
def test_the_saved_policy_holds_its_own_weights_alone(home: Path, tmp_path: Path, mode: str) -> None:
    policy = policy_in(home, mode)
    policy.save(tmp_path / "without")
    mine = logits(policy.model)
    with_role(policy)
    before = state_of(policy)
    policy.save(tmp_path / "with")
    unchanged(policy, before)
    files = [sorted(p.name for p in (tmp_path / f).iterdir()) for f in ("without", "with")]
    assert files[0] == files[1]
    name = "model.safetensors" if mode == "merge" else "adapter_model.safetensors"
    assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()
    if mode != "merge":
        base = tf.AutoModelForCausalLM.from_pretrained(home / "base")
        loaded = peft.PeftModel.from_pretrained(base, tmp_path / "with").eval()
        torch.testing.assert_close(logits(loaded), mine, atol=1e-5, rtol=1e-5)
    with policy.merged():
        torch.testing.assert_close(logits(policy.model), mine, atol=2e-5, rtol=0.0)
    unchanged(policy, before)


def test_the_start_of_a_role_depends_on_its_seed_alone(home: Path) -> None:
    starts = []
    for seed, noise in ((3, 0), (3, 1), (4, 0)):
        policy = policy_in(home)
        torch.manual_seed(noise)
        role = add_role(policy, "value", LORA, seed=seed)
        starts.append(torch.cat([p.detach().flatten() for _, p in role.parameters()]))
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_a_role_takes_no_weights_of_a_module_with_its_name() -> None:
    """BERT's attention has a module called `value`; its weights are the base's."""
    settings = tf.BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, is_decoder=True
    )
    model = peft.get_peft_model(tf.BertLMHeadModel(settings), peft.LoraConfig(r=1, target_modules=["query", "value"]))
    policy = Policy(model, None, ModelConfig(path="made"), torch.device("cpu"), (), None, "")
    role = add_role(policy, "value", LoraConfig(r=1, alpha=1.0, targets=["query", "value"]), seed=0)
    names = [n for n, _ in role.parameters()]
    assert len(names) == 4 and all(n.endswith((".lora_A.value.weight", ".lora_B.value.weight")) for n in names)


def test_a_role_needs_a_frozen_base_and_known_targets(home: Path) -> None:
    with pytest.raises(ModelError, match=r"the value role shares the policy's frozen base.*model.lora"):
        add_role(load_policy(ModelConfig(path=str(home / "base"))), "value", LORA, seed=0)
    with pytest.raises(ModelError, match=r"the value role's lora.targets \['nothing'\]"):
        add_role(policy_in(home), "value", LoraConfig(targets=["nothing"]), seed=0)


# --- reward models as adapters of the policy's base -----------------------------------------------------------


Reward = Callable[..., Path]


@pytest.fixture(scope="module")
def reward(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Reward:
    """Trains a reward model with `preftune reward` and LoRA; returns its final/."""
    made: dict[str, Path] = {}

    def make(base: Path = home / "base", **model: Any) -> Path:
        key = repr((base, model))
        if key not in made:
            folder = tmp_path_factory.mktemp("reward") / "run"
            recipe = {
                "method": "reward", "model": {"path": str(base), "lora": {"r": 3, "alpha": 6}, **model},
                "data": {"path": str(home / "pairs.jsonl")}, "log": {"sinks": []},
                "train": {"steps": 6, "batch_size": 5, "learning_rate": 3e-2, "normalize": True},
            }  # fmt: skip
            run(Recipe.model_validate(recipe), folder)
            made[key] = folder / "final"
        return made[key]

    return make


def bare_tokenizer() -> Any:
    """Neither a pad token nor any special token that could serve as one, so a new token is made for a reward model."""
    pieces = json.loads(tiny.tokenizer().backend_tokenizer.to_str())
    bare = Tokenizer.from_str(json.dumps({**pieces, "added_tokens": []}))
    return tf.PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="<eos>")


ROWS = [("3+1=", ["4", "5", "no", ""]), ("8+1=", ["9", "12"]), ("hello", ["a", "bcd"])]


def read(reader: RewardReader) -> list[list[float]]:
    from preftune.records import Example

    return reader.rate([reader.group(Example(prompt, tuple(said))) for prompt, said in ROWS])


@pytest.mark.parametrize("attention", ["auto", "padded"])
@pytest.mark.parametrize("pad", ["its own", "added"])
def test_a_reward_adapter_scores_as_its_whole_model(
    home: Path, reward: Reward, tmp_path: Path, pad: str, attention: Any
) -> None:
    base = home / "base"
    if pad == "added":
        base = tiny.save(tmp_path / "bare", initializer_range=0.2)
        bare_tokenizer().save_pretrained(base)
    final = reward(base)
    assert sorted(p.name for p in (final / "adapter").iterdir() if p.suffix != ".md") == [
        "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    whole: Any = tf.AutoModelForSequenceClassification.from_pretrained(final)
    rows = whole.get_input_embeddings().weight.shape[0]
    assert (rows > len(tiny.CHARACTERS) + 3) == (pad == "added")

    policy = load_policy(ModelConfig(path=str(base), lora=LORA))
    shake(policy)
    adapter = shareable(str(final), policy)
    assert adapter is not None and adapter.lora.r == 3
    mine, before = logits(policy.model), state_of(policy)
    engine = Engine(policy, mode=attention)
    reader = RewardReader.on_policy(str(final), adapter, engine, "reward", TokensConfig())
    alone = RewardReader(ModelConfig(path=str(final)), TokensConfig())
    assert reader.normalization == alone.normalization is not None
    found, want = read(reader), read(alone)
    texts = [[f"{prompt}{one}<eos>" for one in said] for prompt, said in ROWS]
    theirs = [[tinyreward.plain_score(final, text) for text in row] for row in texts]
    for other in (want, theirs):
        for a, b in zip(found, other, strict=True):
            assert a == pytest.approx(b, abs=1e-5)
    flat = [score for row in found for score in row]
    assert max(flat) - min(flat) > 0.1
    with engine.plain():
        assert torch.equal(logits(policy.model), mine)
    assert [n for n, _ in policy.trainable()] == [n for n, on in before[1].items() if on]


@pytest.mark.parametrize("settings", [{"use_rslora": True}, {"rank_pattern": {"q_proj": 1}}, {"use_dora": True}])
def test_an_adapter_of_another_kind_is_read_whole_or_exactly(
    home: Path, reward: Reward, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """A reward model that continued somebody's adapter: what r and alpha alone do not say must not be lost."""
    model: Any = tf.AutoModelForSequenceClassification.from_pretrained(home / "base", num_labels=1)
    model.config.pad_token_id = 0
    usual: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "SEQ_CLS"}
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**usual, **settings))
    spread(p for p in wrapped.parameters() if p.requires_grad)
    wrapped.save_pretrained(str(tmp_path / "theirs"))
    tiny.tokenizer().save_pretrained(tmp_path / "theirs")
    recipe = {
        "method": "reward", "model": {"path": str(tmp_path / "theirs"), "on_adapter": "continue"},
        "data": {"path": str(home / "pairs.jsonl")}, "log": {"sinks": []},
        "train": {"steps": 1, "batch_size": 5, "learning_rate": 1e-3},
    }  # fmt: skip
    run(Recipe.model_validate(recipe), tmp_path / "run")
    final = tmp_path / "run" / "final"
    policy = load_policy(ModelConfig(path=str(home / "base"), lora=LORA))
    adapter = shareable(str(final), policy)
    if adapter is not None:
        reader = RewardReader.on_policy(str(final), adapter, Engine(policy), "reward", TokensConfig())
        for a, b in zip(read(reader), read(RewardReader(ModelConfig(path=str(final)), TokensConfig())), strict=True):
            assert a == pytest.approx(b, abs=1e-5)


def copied(final: Path, to: Path) -> Path:
    shutil.copytree(final, to)
    return to


def test_shareable_says_no_where_the_base_is_another(home: Path, reward: Reward, tmp_path: Path) -> None:
    final = str(reward())
    same = ModelConfig(path=str(home / "base" / ".." / "base"), lora=LORA)
    assert shareable(final, load_policy(same)) is not None
    assert shareable(final, policy_in(home, "continue")) is not None
    for mode in ("stack", "merge"):  # the policy's base is another than the one the adapter was trained on
        assert shareable(final, policy_in(home, mode)) is None
    assert shareable(final, load_policy(ModelConfig(path=str(home / "base")))) is None
    other = tiny.save(tmp_path / "other", seed=5)
    assert shareable(final, load_policy(ModelConfig(path=str(other), lora=LORA))) is None
    assert shareable(str(tinyreward.save(tmp_path / "whole")), policy_in(home)) is None
    moved = copied(Path(final), tmp_path / "moved")
    settings = moved / "adapter" / "adapter_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "revision": "of-last-year"}))
    assert shareable(str(moved), policy_in(home)) is None  # another revision has other weights


@pytest.mark.parametrize("model", [{"on_adapter": "merge"}, {"on_adapter": "stack"}])
def test_an_adapter_on_a_base_that_is_nowhere_is_not_kept(home: Path, reward: Reward, model: dict[str, Any]) -> None:
    final = reward(home / "given", **model)
    assert not (final / "adapter").exists()
    assert read_reward_adapter(str(final)) is None


def test_damage_is_named(home: Path, reward: Reward, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    policy = policy_in(home)

    def damaged(name: str, how: Callable[[Path], object]) -> str:
        folder = copied(reward(), tmp_path / name)
        how(folder / "adapter")
        return str(folder)

    def put(path: str) -> None:
        adapter = shareable(path, policy)
        assert adapter is not None
        put_reward(policy, Path(path).name, adapter)

    def weights(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], object]:
        def how(folder: Path) -> None:
            file = folder / "adapter_model.safetensors"
            save_file(change(load_file(file)), file)

        return how

    def settings(text: str) -> Callable[[Path], object]:
        return lambda folder: (folder / "adapter_config.json").write_text(text)

    for name, text in (("cut", '{"r": 3, '), ("list", "[1]"), ("empty", "{}"), ("wrong", '{"r": "three"}')):
        with pytest.raises(ModelError, match=rf"{name}/adapter/adapter_config.json is damaged: ."):
            shareable(damaged(name, settings(text)), policy)
    with pytest.raises(ModelError, match=r"headless/adapter has no single reward head: none"):
        put(damaged("headless", weights(lambda w: {k: v for k, v in w.items() if "lora_" in k})))
    with pytest.raises(ModelError, match=r"labels/adapter has no single reward head"):
        put(damaged("labels", weights(lambda w: {k: v if "lora_" in k else v.repeat(2, 1) for k, v in w.items()})))
    with pytest.raises(ModelError, match=r"gaps/adapter does not fit .*base: 1 weights missing, 0 without a place"):
        put(damaged("gaps", weights(lambda w: {k: v for k, v in w.items() if k != sorted(w)[0]})))
    with pytest.raises(ModelError, match=r"extra/adapter does not fit .*base: 0 weights missing, 1 without a place"):
        put(damaged("extra", weights(lambda w: {**w, "base_model.model.nowhere.lora_A.weight": torch.ones(1)})))
    with pytest.raises(ModelError, match=r"shapes/adapter does not fit .*base"):
        put(damaged("shapes", weights(lambda w: {k: v[:1] if "lora_A" in k else v for k, v in w.items()})))
    with pytest.raises(ModelError, match=r"can't read the adapter in .*junk/adapter"):
        put(damaged("junk", lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"junk")))

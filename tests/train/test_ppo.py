"""PPO: what the real loop does equals plain code by hand; minibatches, warm-up, the adaptive β, where values start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from preftune.config import Recipe
from preftune.engine.values import token_values
from preftune.errors import CertificateError, ModelError
from preftune.methods import objective
from preftune.train import loop
from preftune.train.loop import run
from preftune.train.progress import Progress
from preftune.train.session import Session
from tests import tiny, tinyreward
from tests.engine.plain import relative_l2
from tests.train import byhand
from tests.train.acting import LORA, columns, recipe_of


class Watched:
    """Every backward pass of a run: what it was given, the weights it saw, the gradient it left."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[dict[str, Any]] = []
        honest = loop.backward

        def watched(engine: Any, part: Any, *args: Any, **kwargs: Any) -> Any:
            learners = {"policy": engine.policy.trainable(), "value": kwargs["head"].parameters()}
            weights = {who: {n: p.detach().clone() for n, p in some} for who, some in learners.items()}
            found = honest(engine, part, *args, **kwargs)
            grads = {who: {n: p.grad.clone() for n, p in some if p.grad is not None} for who, some in learners.items()}
            metrics = {k: v for k, m in found[0].items() if (v := m.value()) is not None}
            self.calls.append({"part": part, "weights": weights, "grads": grads, "metrics": metrics})
            return found

        monkeypatch.setattr(loop, "backward", watched)


@pytest.mark.parametrize("kind", ["whole", "lora"])
def test_a_step_by_hand(home: Path, rewards: dict[str, Path], tmp_path: Path, monkeypatch, kind: str) -> None:
    """The loop samples; from there on everything is computed again with plain code, at each of the four updates from
    the weights that the loop had then."""
    lora = LORA if kind == "lora" else None
    model: dict[str, Any] = {"reference_path": str(rewards["reference"]), **({"lora": lora} if lora else {})}
    recipe = recipe_of(
        home, rewards[kind], model=model,
        train={"updates_per_batch": 2, "minibatches": 2, "learning_rate": 5e-3, "batch_size": 4},
        value={"gamma": 0.9, "lam": 0.8, "learning_rate": 1e-2, "clip": 0.1}, policy={"beta": 0.07},
    )  # fmt: skip
    assert recipe.policy.missing_eos_penalty == 1.0 and objective(recipe.policy).kl == "reward"
    watch = Watched(monkeypatch)
    run(recipe, tmp_path / "run")
    assert len(watch.calls) == 4
    first = watch.calls[0]["weights"]
    groups = [g for call in watch.calls[:2] for g in call["part"].groups]
    assert len({g.prompt.ids for g in groups}) == 4
    assert {c.finish for g in groups for c in g.completions} == {"eos", "length"}

    def score(group: Any, one: Any) -> float:
        return tinyreward.plain_score(rewards[kind], f"{group.prompt.text}{one.text}{'<eos>' * (one.finish == 'eos')}")

    def twins(weights: dict[str, dict[str, Tensor]]) -> tuple[Any, Any]:
        base = str(home / "wide")
        policy = byhand.policy_twin(base, weights["policy"], lora)
        return policy, byhand.value_twin(base if lora else str(rewards["whole"]), weights["value"], lora)

    policy, value = twins(first)
    other = dict(tiny.model(4, initializer_range=0.3).named_parameters())
    reference = byhand.policy_twin(str(rewards["reference"]), other)
    given = byhand.signals(
        groups, score, policy, reference, value, temperature=0.8, beta=0.07, gamma=0.9, lam=0.8, missing_eos=1.0
    )
    by_prompt = {g.prompt.ids: row for g, row in zip(groups, given, strict=True)}
    scores = [c.score for g in groups for c in g.completions]
    hand = [score(g, c) - (c.finish == "length") for g in groups for c in g.completions]
    assert scores == pytest.approx(hand, abs=1e-5) and max(hand) - min(hand) > 0.3
    acted = {"clip": 0.0, "value": 0.0}
    for call in watch.calls:
        part = call["part"]
        rows = [by_prompt[g.prompt.ids] for g in part.groups]
        for g, row in enumerate(rows):
            for c, signal in enumerate(row):
                for mine, theirs in (
                    (part.old, signal.old), (part.values, signal.values), (part.advantages, signal.advantages),
                    (part.returns, signal.returns),
                ):  # fmt: skip
                    assert mine[g][c].tolist() == pytest.approx(theirs, rel=1e-4, abs=2e-5)
        policy, value = twins(call["weights"])
        loss, worth, share = byhand.losses(
            part.groups, rows, policy, value, temperature=0.8, clip=0.2, value_clip=0.1, coefficient=0.1
        )
        (loss + worth).backward()
        assert call["metrics"]["loss"] == pytest.approx(float(loss), rel=1e-4, abs=1e-6)
        assert 0.1 * call["metrics"]["value/loss"] == pytest.approx(float(worth), rel=1e-4)
        assert call["metrics"]["value/clipped"] == pytest.approx(share["value"], abs=1e-6)
        found = {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}
        assert relative_l2(call["grads"]["policy"], found) < 1e-4
        theirs = {n: p.grad for n, p in value.named_parameters() if p.grad is not None}
        assert relative_l2(_named(call["grads"]["value"], bool(lora)), theirs) < 1e-4
        acted = {k: acted[k] + share[k] for k in acted}
    assert acted["clip"] > 0.0 and acted["value"] > 0.0  # else the clips were not tried
    ratios = [call["metrics"]["ratio/max"] for call in watch.calls]
    assert ratios[0] == pytest.approx(1.0, abs=1e-5) and max(ratios[1:]) > 1.05
    logged = columns(tmp_path / "run")[0]
    assert logged["kl/beta"] == 0.07
    with torch.no_grad():
        far = [float(byhand.logprobs(reference, g, c, 0.8).sum()) for g in groups for c in g.completions]
    gaps = [sum(s.old) - f for s, f in zip((s for row in given for s in row), far, strict=True)]
    assert logged["kl/sequence"] == pytest.approx(sum(gaps) / len(gaps), rel=1e-4)
    assert abs(logged["kl/sequence"]) > 0.1
    assert json.loads((tmp_path / "run" / "certificate.json").read_text())["passed"]


def _named(grads: dict[str, Tensor], shared: bool) -> dict[str, Tensor]:
    if not shared:
        return {n.removeprefix("value."): g for n, g in grads.items()}
    out = {n.replace(".value.", ".default."): g for n, g in grads.items()}
    out["base_model.model.score.modules_to_save.default.weight"] = out.pop("value.head")[None]
    return out


def test_one_update_has_the_ratio_one(home: Path, rewards: dict[str, Path], tmp_path: Path) -> None:
    run(recipe_of(home, rewards["whole"], train={"updates_per_batch": 1, "minibatches": 1, "steps": 2}), tmp_path / "r")
    assert [m["ratio/max"] for m in columns(tmp_path / "r")] == [1.0, 1.0]
    assert max(m["sampler/max_diff"] for m in columns(tmp_path / "r")) < 1e-4


@pytest.mark.parametrize(("batch", "minibatches", "parts"), [(4, 2, 2), (5, 4, 4), (5, 3, 3), (3, 8, 3)])
def test_each_group_is_in_one_minibatch_of_a_pass(
    home: Path, rewards: dict[str, Path], tmp_path: Path, monkeypatch, batch: int, minibatches: int, parts: int
) -> None:
    watch = Watched(monkeypatch)
    train = {"updates_per_batch": 3, "minibatches": minibatches, "batch_size": batch}
    run(recipe_of(home, rewards["whole"], train=train), tmp_path / "run")
    assert len(watch.calls) == 3 * parts
    passes = [watch.calls[i * parts : (i + 1) * parts] for i in range(3)]
    orders = [[g.prompt.ids for call in one for g in call["part"].groups] for one in passes]
    assert all(len(order) == batch and set(order) == set(orders[0]) for order in orders)
    assert len({tuple(order) for order in orders}) > 1  # another order each time
    whole = {g.prompt.ids: g for call in passes[0] for g in call["part"].groups}
    for call in watch.calls:
        part = call["part"]
        lengths = [len(c.ids) for g in part.groups for c in g.completions]
        assert (part.denominators.tokens, part.denominators.sequences) == (sum(lengths), len(lengths))
        assert part.denominators.max_tokens == 6.0
        assert all(whole[g.prompt.ids] == g for g in part.groups)
        for g, group in enumerate(part.groups):  # each row's numbers went with it
            assert [len(t) for t in part.old[g]] == [c.length for c in group.completions]
    sizes = [len(call["part"].groups) for call in passes[0]]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("kind", ["whole", "lora"])
def test_warm_up_leaves_the_policy_as_it_is(home: Path, rewards: dict[str, Path], tmp_path: Path, kind: str) -> None:
    from safetensors.torch import load_file

    model = {"lora": {**LORA, "dropout": 0.1}} if kind == "lora" else {}
    recipe = recipe_of(
        home, rewards[kind], model=model, value={"warmup_steps": 2},
        train={"steps": 3, "weight_decay": 0.1, "keep_checkpoints": 9},
    )  # fmt: skip
    run(recipe, tmp_path / "run")
    session = Session.open(recipe, functions=(), base_dir=None, progress=Progress("test"))
    start = {n: p.detach() for n, p in session.policy.trainable()}
    value = {n: p.detach() for n, p in session.head.parameters()}
    at = [load_file(tmp_path / "run" / "checkpoints" / f"step-{k}" / "weights.safetensors") for k in (1, 2, 3)]
    assert all(torch.equal(at[k][n], start[n]) for k in (0, 1) for n in start)
    assert not all(torch.equal(at[2][n], start[n]) for n in start)
    before = value
    for weights in at:  # the value head learns at each of them
        assert not all(torch.equal(weights[n], before[n]) for n in value)
        before = weights
    assert [m["grad_norm"] for m in columns(tmp_path / "run")][:2] == [0.0, 0.0]
    assert all(m["grad_norm/value"] > 0.0 for m in columns(tmp_path / "run"))


def test_the_adaptive_beta_follows_the_kl(home: Path, rewards: dict[str, Path], tmp_path: Path) -> None:
    for target, up in ((1e-3, True), (1e4, False)):
        recipe = recipe_of(
            home, rewards["whole"], model={"reference_path": str(rewards["reference"])}, train={"steps": 3},
            policy={"kl_target": target, "kl_horizon": 20},
        )  # fmt: skip
        folder = tmp_path / str(target)
        run(recipe, folder)
        logged = columns(folder)
        betas = [m["kl/beta"] for m in logged]
        assert betas[0] == 0.05
        assert all(m["kl/sequence"] > 0.01 for m in logged)
        for k in range(2):
            error = min(max(logged[k]["kl/sequence"] / target - 1.0, -0.2), 0.2)
            assert betas[k + 1] == pytest.approx(betas[k] * (1.0 + error * 6 / 20))
            assert (betas[k + 1] > betas[k]) == up
        state = json.loads((folder / "checkpoints" / "step-3" / "state.json").read_text())["state"]
        error = 0.2 if up else -0.2
        assert state["memory"]["beta"] == pytest.approx(betas[-1] * (1.0 + error * 6 / 20))


def opened(recipe: Recipe) -> Session:
    return Session.open(recipe, functions=(), base_dir=None, progress=Progress("test"))


def first_values(session: Session) -> list[float]:
    drawn = session.rollout([g.prompt for g in session.train[:2]], 2, session.recipe.sampling, seed=0, policy_version=0)
    found = token_values(session.head, session.engine, drawn, 1000)
    return [float(v) for row in found for values in row for v in values]


@pytest.mark.parametrize("kind", ["whole", "lora"])
def test_values_start_from_the_reward_model(home: Path, rewards: dict[str, Path], kind: str) -> None:
    session = opened(recipe_of(home, rewards[kind], model={"lora": LORA} if kind == "lora" else {}))
    drawn = session.rollout([g.prompt for g in session.train[:2]], 2, session.recipe.sampling, seed=0, policy_version=0)
    found = token_values(session.head, session.engine, drawn, 1000)
    model = byhand.tf.AutoModelForSequenceClassification.from_pretrained(rewards[kind])
    for g, group in enumerate(drawn):
        for c, one in enumerate(group.completions):
            with torch.no_grad():
                want = byhand.values(model, group, one)
            torch.testing.assert_close(found[g][c], want, atol=1e-5, rtol=1e-5)
    start = "an adapter on the policy's base, started from" if kind == "lora" else "reward model on base"
    assert f"value head: {start} {rewards[kind]}" in " ".join(session.notes)


def test_values_start_on_the_scale_of_the_rewards(home: Path, tmp_path: Path) -> None:
    """A reward model that carries a deviation gives scores divided by it, and so the values that start from it."""
    scaled = tinyreward.save(tmp_path / "scaled", seed=1, normalization=(0.5, 4.0))
    raw = first_values(opened(recipe_of(home, tinyreward.save(tmp_path / "raw", seed=1))))
    assert first_values(opened(recipe_of(home, scaled))) == pytest.approx([v / 4.0 for v in raw], rel=1e-5)
    reward = {"name": "reward-model", "args": {"path": str(scaled), "normalize": False}}
    assert first_values(opened(recipe_of(home, None, rewards=[reward]))) == pytest.approx(raw, rel=1e-5)


def test_where_values_start_otherwise(home: Path, rewards: dict[str, Path]) -> None:
    for lora in ({}, {"lora": LORA}):
        for reward, value in ((None, {}), (rewards["whole"], {"path": "policy"}), (rewards["stranger"], {})):
            session = opened(recipe_of(home, reward, model=lora, value=value))
            assert set(first_values(session)) == {0.0}
            said = any("has another tokenizer, so the value head can't start from it" in n for n in session.notes)
            assert said == (reward == rewards["stranger"])
            assert any("new reward head, all zeros" in n or "head of zeros" in n for n in session.notes)
        asked = {"path": str(rewards["stranger"])}
        with pytest.raises(ModelError, match=r"value.path .*stranger has another tokenizer.*or value.path: policy"):
            opened(recipe_of(home, rewards["whole"], model=lora, value=asked))
        named = opened(recipe_of(home, None, model=lora, value={"path": str(rewards["lora"])}))
        assert max(map(abs, first_values(named))) > 0.05


def test_values_start_from_what_was_merged_or_chosen(home, rewards, tmp_path: Path, monkeypatch) -> None:
    """The policy's own weights: the adapter that was folded into it is in the value model too, at the same revision."""
    from preftune.train import head

    model = byhand.peft.get_peft_model(
        byhand.tf.AutoModelForCausalLM.from_pretrained(home / "wide"), byhand._peft(LORA, "CAUSAL_LM")
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(str(tmp_path / "sft"))
    recipe = recipe_of(home, None, model={"path": str(tmp_path / "sft"), "on_adapter": "merge"})
    session = opened(recipe)
    policy = dict(session.policy.model.named_parameters())
    for name, weight in session.head.model.model.named_parameters():
        assert name == "score.weight" or torch.equal(weight, policy[name])

    asked = []
    honest = head.load_reward
    monkeypatch.setattr(head, "load_reward", lambda config, **more: asked.append(config) or honest(config, **more))
    reward = {"name": "reward-model", "args": {"path": str(rewards["whole"]), "revision": "v2"}}
    opened(recipe_of(home, None, rewards=[reward]))
    opened(recipe_of(home, None, model={"revision": "v3"}))
    assert [(c.path, c.revision) for c in asked] == [(str(rewards["whole"]), "v2"), (str(home / "wide"), "v3")]


def test_the_certificate_weighs_the_value_loss_too(home: Path, tmp_path: Path, monkeypatch) -> None:
    from preftune.losses.batch import Denominators
    from preftune.train import batch

    honest = batch.value_loss

    def per_pack(tokens, denominators, **settings):
        lengths = torch.bincount(tokens.sequence_T, minlength=tokens.num_sequences).tolist()
        own = Denominators.count(lengths, tokens.weights_S.tolist(), int(denominators.max_tokens))
        return honest(tokens, own, **settings)

    monkeypatch.setattr(batch, "value_loss", per_pack)
    with pytest.raises(CertificateError, match=r"accumulation vs one batch.*over its tolerance"):
        run(recipe_of(home, None), tmp_path / "run")


def test_a_reward_of_another_tokenizer_and_rules_train_too(home, rewards, tmp_path) -> None:
    stranger = {"name": "reward-model", "args": {"path": str(rewards["stranger"])}, "weight": 0.5}
    rule = {"name": "length", "args": {"at_most": 2, "ramp": 4}, "weight": 2.0}
    recipe = recipe_of(home, None, rewards=[stranger, rule], train={"steps": 2}, log={"samples_every": 1})
    run(recipe, tmp_path / "run")
    samples = tiny.lines(tmp_path / "run" / "samples.jsonl")
    assert len(samples) >= 8
    for sample in samples:
        parts = sample["breakdown"]
        want = 0.5 * parts["reward-model"] + 2.0 * parts["length"] - (sample["finish"] == "length")
        assert sample["score"] == pytest.approx(want, abs=1e-6)
        text = sample["prompt"] + sample["completion"] + "<eos>" * (sample["finish"] == "eos")
        assert parts["reward-model"] == pytest.approx(tinyreward.plain_score(rewards["stranger"], text), abs=1e-5)

"""Whole runs on a tiny model: what they learn, what they write, when they stop."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from preftune.errors import CertificateError, PreftuneError
from preftune.train.evaluation import load_measurement
from preftune.train.loop import run
from tests import tiny


def column(folder: Path, name: str, kind: str = "train") -> list[float]:
    return [line["metrics"][name] for line in tiny.lines(folder / "metrics.jsonl") if line["kind"] == kind]


def test_sft_learns_and_writes_the_run_folder(sft, home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    recipe = sft(
        train={"steps": 30, "checkpoint_every": 10, "learning_rate": 1e-2, "schedule": "cosine"},
        eval={
            "data": [{"path": str(home / "validation.jsonl")}],
            "every": 10,
            "best": "nll",
            "higher_is_better": False,
        },
        log={"sinks": ["tensorboard"]},
    )
    result = run(recipe, folder)
    loss = column(folder, "loss")
    assert len(loss) == 30
    # the first loss is that of guessing among all 57 tokens; the answers need two of them
    assert abs(loss[0] - math.log(57)) < 0.3
    assert sum(loss[-3:]) / 3 < 0.4 * loss[0]
    assert column(folder, "nll") == pytest.approx(loss, rel=1e-5)

    assert {p.name for p in folder.iterdir() if not p.name.startswith((".", "events.out"))} == {
        "recipe.yaml", "manifest.json", "metrics.jsonl", "samples.jsonl", "advice.jsonl", "certificate.json",
        "summary.json", "measurements", "checkpoints", "final",
    }  # fmt: skip
    assert len(list(folder.glob("events.out.tfevents*"))) == 1
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["counts"] == {
        "train": "28 kept, 0 dropped, 0 truncated, 0 EOS invented",
        "validation": "7 kept, 0 dropped, 0 truncated, 0 EOS invented",
    }
    assert manifest["engine"]["mode"] == "shared"
    assert manifest["steps"] == 30
    certificate = json.loads((folder / "certificate.json").read_text())
    assert certificate["passed"]
    assert [c["name"] for c in certificate["checks"]] == ["shared prompt vs plain", "accumulation vs one batch"]

    # before, every ten steps; the best by validation is what is kept, and what after means
    evals = [line for line in tiny.lines(folder / "metrics.jsonl") if line["kind"] == "eval"]
    assert [line["step"] for line in evals] == [0, 10, 20, 30]
    nll = [line["metrics"]["nll"]["value"] for line in evals]
    best = min(range(4), key=nll.__getitem__) * 10
    summary = json.loads((folder / "summary.json").read_text())
    assert result.best_step == summary["best_step"] == summary["kept_step"] == best > 0
    assert summary["status"] == "finished"
    assert summary["before"]["validation"]["nll"] == evals[0]["metrics"]["nll"]
    assert summary["after"]["validation"]["nll"] == evals[best // 10]["metrics"]["nll"]
    # the difference is paired over rows, so its mean is that of the rows' differences
    rows = [load_measurement(folder / "measurements", "validation", s).rows["nll"] for s in (0, best)]
    paired = [b - a for a, b in zip(*rows, strict=True)]
    assert result.difference["validation"]["nll"].value == pytest.approx(sum(paired) / 7)
    assert result.difference["validation"]["nll"].high < 0


def test_final_is_a_standard_model_with_the_measured_weights(sft, home: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "run"
    run(sft(eval={"data": [{"path": str(home / "validation.jsonl")}]}), folder)
    model = AutoModelForCausalLM.from_pretrained(folder / "final").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "final")
    measured = load_measurement(folder / "measurements", "validation", 6).rows["nll"]
    for row, ours in zip(tiny.lines(home / "validation.jsonl"), measured, strict=True):
        prompt, answer = tokenizer(row["prompt"]).input_ids, [*tokenizer(row["completion"]).input_ids, 1]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        theirs = torch.nn.functional.cross_entropy(logits, torch.tensor(answer)).item()
        assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("lora", [False, True])
def test_grpo_raises_the_reward(grpo, home: Path, tmp_path: Path, lora: bool) -> None:
    folder = tmp_path / "run"
    recipe = grpo(
        # the adapter leaves the head alone, so that head must have weights that can tell tokens apart
        model={"path": str(home / "wide"), "lora": {"r": 8, "alpha": 16}} if lora else {},
        sampling={"group_size": 8, "max_tokens": 6},
        train={"steps": 40, "batch_size": 4, "learning_rate": 1e-2 if lora else 5e-3, "checkpoint_every": 40,
               "schedule": "constant"},
        eval={"test": [{"path": str(home / "validation.jsonl")}], "temperature": 1.0},
    )  # fmt: skip
    result = run(recipe, folder)
    reward = column(folder, "reward/mean")
    assert sum(reward[-5:]) / 5 > sum(reward[:5]) / 5 + 0.4
    assert set(column(folder, "ratio/max")) == {1.0}  # one update per batch
    assert max(column(folder, "sampler/max_diff")) < 1e-4
    assert result.difference["test"]["reward/mean"].low > 0.2

    samples = tiny.lines(folder / "samples.jsonl")
    assert {(s["step"], s["split"]) for s in samples} == {(0, "test"), (1, "train"), (40, "test")} | {
        (step, "train") for step in range(2, 41, 2)
    }
    first = next(s for s in samples if s["split"] == "train")
    assert first["breakdown"] == {"length": first["score"]}
    assert set(first["columns"]) == {"answer", "completion"} or set(first["columns"]) == {"answer"}

    checks = json.loads((folder / "certificate.json").read_text())["checks"]
    names = ["shared prompt vs plain", "sampler vs trainer", "accumulation vs one batch"]
    assert [c["name"] for c in checks] == names + (["adapter vs merged"] if lora else [])
    if lora:
        from peft import PeftModel

        base = tiny.Qwen3ForCausalLM.from_pretrained(home / "wide")
        adapted = PeftModel.from_pretrained(base, folder / "final").eval()
        untouched = tiny.Qwen3ForCausalLM.from_pretrained(home / "wide")
        ids = torch.tensor([[5, 41, 6, 44]])
        assert not torch.equal(adapted(ids).logits, untouched(ids).logits)


@pytest.mark.parametrize("lora", [False, True])
def test_the_kl_to_the_reference_starts_at_zero(grpo, tmp_path: Path, lora: bool) -> None:
    recipe = grpo(
        model={"lora": {"r": 4, "alpha": 8}} if lora else {},
        policy={"preset": "grpo-original"},
        train={"learning_rate": 1e-2},
    )
    run(recipe, tmp_path / "run")
    kl = column(tmp_path / "run", "kl")
    assert abs(kl[0]) < 1e-9
    assert kl[-1] > 1e-6


def test_several_updates_per_batch_move_the_ratio(grpo, tmp_path: Path) -> None:
    run(grpo(train={"updates_per_batch": 2, "learning_rate": 1e-2}), tmp_path / "run")
    # the metrics are those of the last update, whose policy is one step away from the one that sampled
    assert all(value != 1.0 for value in column(tmp_path / "run", "ratio/max"))
    assert max(column(tmp_path / "run", "sampler/max_diff")) < 1e-4


def test_bf16_follows_fp32(sft, tmp_path: Path) -> None:
    recipe = sft(train={"steps": 8, "learning_rate": 1e-2})
    run(recipe, tmp_path / "fp32")
    run(sft(train={"steps": 8, "learning_rate": 1e-2, "precision": "bf16"}), tmp_path / "bf16")
    exact, rounded = column(tmp_path / "fp32", "loss"), column(tmp_path / "bf16", "loss")
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.05)
    certificate = json.loads((tmp_path / "bf16" / "certificate.json").read_text())
    assert certificate["precision"] == "bf16"
    assert certificate["passed"]


@pytest.mark.parametrize("lora", [False, True])
def test_gradient_checkpointing_changes_nothing(grpo, tmp_path: Path, lora: bool) -> None:
    adapter = {"lora": {"r": 4, "alpha": 8}} if lora else {}
    run(grpo(model=adapter), tmp_path / "plain")
    run(grpo(model={**adapter, "gradient_checkpointing": True}), tmp_path / "checkpointed")
    for name in ("loss", "grad_norm", "reward/mean"):
        found, want = column(tmp_path / "checkpointed", name), column(tmp_path / "plain", name)
        assert found == pytest.approx(want, rel=1e-4, abs=1e-7)


def test_padding_gives_the_same_run(grpo, tmp_path: Path) -> None:
    """Where shared prompts do not fit a model, sampling and training go through its own attention."""
    run(grpo(), tmp_path / "shared")
    run(grpo(model={"attention": "padded"}), tmp_path / "padded")
    for name in ("reward/mean", "loss", "grad_norm", "entropy"):
        found, want = column(tmp_path / "padded", name), column(tmp_path / "shared", name)
        assert found == pytest.approx(want, rel=1e-3, abs=1e-6), name
    assert max(column(tmp_path / "padded", "sampler/max_diff")) < 1e-4
    assert json.loads((tmp_path / "padded" / "manifest.json").read_text())["engine"]["mode"] == "padded"
    assert set(column(tmp_path / "padded", "tokens/trained")) == set(column(tmp_path / "shared", "tokens/trained"))


def test_lora_dropout_is_on_in_training_only(grpo, tmp_path: Path) -> None:
    lora = {"r": 4, "alpha": 8}
    run(grpo(model={"lora": lora}, train={"learning_rate": 1e-2}), tmp_path / "without")
    run(grpo(model={"lora": {**lora, "dropout": 0.5}}, train={"learning_rate": 1e-2}), tmp_path / "with")
    # B starts at zero, so the first step's samples and loss do not see dropout; its gradient does
    assert column(tmp_path / "with", "reward/mean")[0] == column(tmp_path / "without", "reward/mean")[0]
    assert column(tmp_path / "with", "grad_norm")[0] != column(tmp_path / "without", "grad_norm")[0]
    checks = json.loads((tmp_path / "with" / "certificate.json").read_text())
    assert checks["passed"]


def test_dropout_of_the_base_and_of_the_reference_is_off(grpo, tmp_path: Path) -> None:
    tiny.save(tmp_path / "model", attention_dropout=0.5)
    recipe = grpo(
        model={"path": str(tmp_path / "model"), "gradient_checkpointing": True},  # which needs training mode
        policy={"preset": "grpo-original"},
    )
    run(recipe, tmp_path / "run")
    assert abs(column(tmp_path / "run", "kl")[0]) < 1e-9
    assert max(column(tmp_path / "run", "sampler/max_diff")) < 1e-4


def test_broken_weights_are_named(sft, home: Path, tmp_path: Path) -> None:
    model = tiny.model()
    model.model.norm.weight.data[0] = float("nan")
    model.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    validation = {"data": [{"path": str(home / "validation.jsonl")}]}
    recipe = sft(model={"path": str(tmp_path / "model"), "attention": "padded"}, eval=validation)
    with pytest.raises(PreftuneError, match=r"validation.jsonl:1: .* log-prob that is not finite \(step 0\)"):
        run(recipe, tmp_path / "run")
    with pytest.raises(CertificateError, match=r"not finite \('accumulation vs one batch': nan\).*weights are broken"):
        run(sft(model={"path": str(tmp_path / "model"), "attention": "padded"}), tmp_path / "without")
    checks = json.loads((tmp_path / "without" / "certificate.json").read_text())["checks"]
    assert [(c["value"], c["passed"]) for c in checks] == [(0.0, True), ("nan", False)]


def test_the_best_step_is_kept(grpo, home: Path, tmp_path: Path) -> None:

    recipe = grpo(
        train={"steps": 8, "learning_rate": 0.0, "checkpoint_every": 3},
        eval={"data": [{"path": str(home / "validation.jsonl")}], "every": 2, "best": "reward/mean", "patience": 2},
    )
    result = run(recipe, tmp_path / "run")
    # nothing changes at rate 0, so no measurement beats the one before training, and patience ends the run
    assert result.best_step == 0
    assert result.steps == 4
    assert (
        "no better reward/mean in 2 measurements" in json.loads((tmp_path / "run/summary.json").read_text())["status"]
    )
    assert result.difference["validation"]["reward/mean"].value == 0.0
    start = tiny.Qwen3ForCausalLM.from_pretrained(home / "model").state_dict()
    kept = tiny.Qwen3ForCausalLM.from_pretrained(tmp_path / "run" / "final").state_dict()
    assert all(torch.equal(start[name], kept[name]) for name in start)


def test_an_unknown_best_metric_names_the_known_ones(grpo, home: Path, tmp_path: Path) -> None:
    recipe = grpo(eval={"data": [{"path": str(home / "validation.jsonl")}], "best": "reward/exactness"})
    with pytest.raises(PreftuneError, match=r"reward/exactness.*choose|validation measures .*reward/length"):
        run(recipe, tmp_path / "run")


def test_collapse_ends_the_run_with_the_last_good_weights(grpo, tmp_path: Path, monkeypatch) -> None:
    from preftune.train import loop

    recipe = grpo(train={"steps": 40, "checkpoint_every": 1, "keep_checkpoints": 1, "batch_size": 1})
    real = loop.batch_metrics

    def mad(groups, packs, sampled):
        """From step 13 on the policy seems to write one text for all prompts: with the weights that step 12 left."""
        step = groups[0].completions[0].policy_version + 1
        one = {"diversity/distinct_2": 0.1, "diversity/shared_substring": 500.0, "length/chars": 500.0}
        many = {"diversity/distinct_2": 0.9, "diversity/shared_substring": 5.0, "length/chars": 500.0}
        return real(groups, packs, sampled) | (one if step >= 13 else many)

    monkeypatch.setattr(loop, "batch_metrics", mad)
    folder = tmp_path / "run"
    run(recipe, folder)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "stopped at step 18: the policy collapsed to one text for all prompts"
    assert summary["kept_step"] == 11
    assert any("step 11" in note for note in summary["notes"])
    from safetensors.torch import load_file

    kept = load_file(folder / "final" / "model.safetensors")
    saved = load_file(folder / "checkpoints" / "step-11" / "weights.safetensors")
    assert all(torch.equal(kept[name], saved[name]) for name in saved)


def test_collapse_can_be_ignored(grpo, tmp_path: Path, monkeypatch) -> None:
    from preftune.train import loop

    real = loop.batch_metrics
    monkeypatch.setattr(
        loop, "batch_metrics",
        lambda groups, packs, sampled: real(groups, packs, sampled) | (
            {"diversity/distinct_2": 0.1, "diversity/shared_substring": 500.0, "length/chars": 500.0}
            if groups[0].completions[0].policy_version >= 11 else {"diversity/distinct_2": 0.9}
        ),
    )  # fmt: skip
    recipe = grpo(train={"steps": 20, "batch_size": 1}, log={"stop_on_collapse": False})
    assert run(recipe, tmp_path / "run").steps == 20
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "finished"


def test_calculator_rollout_trains(grpo, tmp_path: Path, monkeypatch) -> None:
    """The policy's calls are answered; the answers are context: in the completion, but in no loss and no length."""
    from preftune.sampling import local
    from preftune.sampling.base import choose

    home = tmp_path / "calling"
    rows = [{"prompt": f"{a}+1=", "completion": f"<calc>{a}+1</calc>"} for a in range(9)]
    tiny.save(home / "model")
    tiny.write(home / "rows.jsonl", rows)
    base = run(
        _recipe("sft", home, "model", train={"steps": 120, "learning_rate": 1e-2, "batch_size": 9}), home / "sft"
    )
    recipe = _recipe(
        "grpo", home, "sft/final", train={"steps": 4, "batch_size": 3, "learning_rate": 1e-3},
        sampling={"group_size": 4, "max_tokens": 24, "rollout": "calculator", "max_turns": 2},
        rewards=[{"name": "length", "args": {"at_most": 20}}],
    )  # fmt: skip
    assert base.steps == 120 and choose is local.choose
    folder = home / "grpo"
    run(recipe, folder)
    samples = [s for s in tiny.lines(folder / "samples.jsonl") if "</calc>=" in s["completion"]]
    assert samples, "no completion called the calculator"
    for sample in samples:
        before, _, after = sample["completion"].partition("</calc>=")
        answer = after.partition(";")[0]
        call = before.rpartition("<calc>")[2]
        assert answer == "error" or eval(call) == float(answer)
        written = len(sample["completion"]) - len(f"={answer};") + (sample["finish"] == "eos")
        assert sample["length"] == written
    assert json.loads((folder / "certificate.json").read_text())["passed"]
    assert max(column(folder, "sampler/max_diff")) < 1e-4


def _recipe(method: str, home: Path, model: str, **sections):
    from preftune.config import Recipe

    return Recipe.model_validate(
        {"method": method, "model": {"path": str(home / model)}, "data": {"path": str(home / "rows.jsonl")},
         "log": {"sinks": [], "samples_every": 1}, **sections}
    )  # fmt: skip


def test_a_leaking_attention_fails_the_certificate(grpo, tmp_path: Path, monkeypatch) -> None:
    from preftune.train import session

    folder = tmp_path / "run"
    sabotage(monkeypatch, session, leak)
    with pytest.raises(CertificateError, match=r"shared prompt vs plain.*over its tolerance"):
        run(grpo(), folder)
    certificate = json.loads((folder / "certificate.json").read_text())
    assert not certificate["passed"]
    assert not (folder / "final").exists()
    assert column(folder, "loss") == []
    assert json.loads((folder / "summary.json").read_text())["status"].startswith("failed: the run's own check")


def leak(engine) -> None:
    """Every completion of a pack sees the one before it: positions go on and segments join."""
    honest = engine._shared_states

    def joined(packed, model, source):
        states = honest(packed, model, source)
        return states + 0.05 * states.roll(3, dims=0)

    engine._shared_states = joined


def sabotage(monkeypatch, session, how) -> None:
    real = session.Engine

    def engine(*args, **kwargs):
        made = real(*args, **kwargs)
        how(made)
        return made

    monkeypatch.setattr(session, "Engine", engine)


def test_a_trainer_that_ignores_temperature_fails_the_certificate(grpo, tmp_path: Path, monkeypatch) -> None:
    from preftune.train import session

    def deaf(engine) -> None:
        honest = engine.forward
        engine.forward = lambda packed, **settings: honest(packed, **settings | {"temperature": 1.0})

    sabotage(monkeypatch, session, deaf)
    with pytest.raises(CertificateError, match=r"sampler vs trainer.*over its tolerance"):
        run(grpo(sampling={"group_size": 4, "max_tokens": 6, "temperature": 0.7}), tmp_path / "run")


def test_denominators_per_micro_batch_fail_the_certificate(grpo, tmp_path: Path, monkeypatch) -> None:
    from dataclasses import replace

    from preftune.losses.batch import Denominators
    from preftune.methods import get_method
    from preftune.train import session

    honest = get_method("grpo")

    def loss(batch, denominators, recipe):
        lengths = torch.bincount(batch.sequence_T, minlength=batch.num_sequences).tolist()
        own = Denominators.count(lengths, batch.weights_S.tolist(), int(denominators.max_tokens))
        return honest.loss(batch, own, recipe)

    monkeypatch.setattr(session, "method_of", lambda recipe: replace(honest, loss=loss))
    with pytest.raises(CertificateError, match=r"accumulation vs one batch.*over its tolerance"):
        run(grpo(), tmp_path / "run")


def test_comparing_the_merged_model_leaves_the_base_alone(grpo, home: Path, tmp_path: Path) -> None:
    from preftune.train.certificate import certify_adapter
    from preftune.train.progress import Progress
    from preftune.train.session import Session

    recipe = grpo(model={"lora": {"r": 4, "alpha": 8}})
    session = Session.open(recipe, functions=(), base_dir=None, progress=Progress("test"))
    torch.manual_seed(1)
    for _, parameter in session.parameters:
        parameter.data.normal_(std=0.3)
    before = {n: p.detach().clone() for n, p in session.policy.model.named_parameters()}
    drawn = session.rollout([g.prompt for g in session.train[:4]], 2, recipe.sampling, seed=0, policy_version=0)
    (check,) = certify_adapter(session, drawn)
    assert check.passed and check.value > 0.0  # merging rounds differently, within the tolerance
    for name, parameter in session.policy.model.named_parameters():
        assert torch.equal(before[name], parameter), name

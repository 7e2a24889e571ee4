"""What a new user of preferences meets first: wrong rows, wrong recipes, a full disk, and numbers to check by hand."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from preftune.cli.main import main
from tests import tiny

FEW = ["--train.steps", "2", "--train.batch_size", "4", "--train.learning_rate", "1e-2", "--log.sinks", "[]"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    tiny.save(tmp_path / "M")
    return tmp_path


def pairs(count: int = 12) -> list[dict[str, str]]:
    return [{"prompt": f"{i}=", "chosen": "yes", "rejected": f"no {i}"} for i in range(count)]


def preftune(method: str, rows: list[dict[str, Any]], *more: str, model: str = "M") -> int:
    path = tiny.write(Path("rows.jsonl"), rows)
    return main([method, "--model.path", model, "--data.path", str(path), "--output", "out", *FEW, *more])


def message(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.rsplit("error:", 1)[-1]


@torch.no_grad()
def plain_logprob(model: Any, tokenizer: Any, prompt: str, text: str) -> float:
    before = tokenizer(prompt).input_ids
    ids = [*before, *tokenizer(text).input_ids, tokenizer.eos_token_id]
    logprobs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(logprobs[t - 1, ids[t]]) for t in range(len(before), len(ids)))


def test_the_summary_says_what_plain_transformers_says_of_final(home: Path) -> None:
    assert preftune("dpo", pairs(), "--eval.holdout", "4") == 0
    tokenizer = AutoTokenizer.from_pretrained("out/final")
    load: Any = AutoModelForCausalLM.from_pretrained
    ours, base = load("out/final").eval(), load("M").eval()
    held = {text["prompt"] for text in tiny.lines(Path("out/measurements/texts-validation.jsonl"))}
    margins, chosen = [], []
    for row in pairs():
        if row["prompt"] in held:
            good, bad = (
                [plain_logprob(model, tokenizer, row["prompt"], row[side]) for model in (ours, base)]
                for side in ("chosen", "rejected")
            )
            margins.append(0.1 * (good[0] - good[1] - bad[0] + bad[1]))
            chosen.append(good[0])
    after = json.loads(Path("out/summary.json").read_text())["after"]["validation"]
    assert len(margins) == 4
    assert after["rewards/margin"]["value"] == pytest.approx(sum(margins) / 4, abs=1e-5)
    assert after["rewards/accuracy"]["value"] == sum(m > 0 for m in margins) / 4
    assert after["logprobs/chosen"]["value"] == pytest.approx(sum(chosen) / 4, abs=1e-4)


@pytest.mark.parametrize("loss", ["dpo", "hinge", "ipo", "apo-zero", "simpo", "orpo"])
def test_annotators_who_disagree_do_not_fail_the_runs_own_check(home: Path, loss: str) -> None:
    rows = [{"prompt": "x", "chosen": a, "rejected": b} for a, b in ("ab", "ba")] * 3
    assert preftune("dpo", rows, "--loss.name", loss) == 0


@pytest.mark.parametrize("method", ["dpo", "reward"])
def test_equal_answers_do_not_fail_the_runs_own_check(home: Path, method: str) -> None:
    assert preftune(method, [{"prompt": "x", "chosen": "a", "rejected": "a"}] * 4) == 0


def test_an_accuracy_with_ties_has_an_interval_of_shares(home: Path) -> None:
    rows = [{"prompt": f"{i}=", "chosen": "yes", "rejected": "no" if i % 9 else "yes"} for i in range(30)]
    assert preftune("dpo", rows, "--eval.holdout", "20", "--train.steps", "12") == 0
    after = json.loads(Path("out/summary.json").read_text())["after"]["validation"]["rewards/accuracy"]
    assert 0.9 < after["value"] < 1.0
    assert after["low"] > 0.5
    assert after["high"] == 1.0


def test_broken_weights_are_called_broken(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.model()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    model.save_pretrained("M")
    assert preftune("dpo", pairs()) == 1
    assert "not finite" in (said := message(capsys))
    assert "padded" not in said


@contextmanager
def full_disk() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_costs_the_cache_and_not_the_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def limited(*args: Any, **kwargs: Any) -> None:
        with full_disk():
            save_file(*args, **kwargs)

    monkeypatch.setattr("preftune.train.reference.save_file", limited)
    assert preftune("dpo", pairs()) == 0
    assert "could not be kept" in Path("out/manifest.json").read_text()
    assert not list((home / "cache" / "reference").iterdir())


@pytest.mark.parametrize("command", ["dpo", "reward", "merge", "score"])
def test_an_adapter_without_weights_is_named(home: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert preftune("sft", [{"prompt": "x", "completion": "y"}] * 2, "--model.lora.r", "2") == 0
    shutil.move("out/final", "A")
    shutil.rmtree("out")
    Path("A/adapter_model.safetensors").unlink()
    if command == "merge":
        code = main(["merge", "A", "B"])
    elif command == "score":
        code = main(["score", "--model.path", "A", "--data.path", str(tiny.write(Path("rows.jsonl"), pairs()))])
    else:
        code = preftune(command, pairs(), "--model.on_adapter", "merge", model="A")
    assert code == 2
    assert "A has an adapter_config.json but no weights" in message(capsys)


@pytest.mark.parametrize(
    ("method", "flags", "said"),
    [
        ("dpo", "--eval.holdout 2 --eval.best reward/accuracy", "did you mean rewards/accuracy?"),
        ("reward", "--eval.holdout 2 --eval.best nll", "does not measure 'nll'"),
        ("dpo", "--loss.name simpo --train.reference_logprobs live", "loss simpo compares with no reference"),
        ("dpo", "--loss.name cpo --train.reference_cache x", "loss cpo compares with no reference"),
    ],
)
def test_settings_without_effect_are_refused_before_anything_loads(
    home: Path, capsys: pytest.CaptureFixture[str], method: str, flags: str, said: str
) -> None:
    assert preftune(method, pairs(), *flags.split()) == 2
    assert said in message(capsys)
    assert not Path("out").exists()


def test_a_reward_stage_is_no_policy(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tiny.write(Path("rows.jsonl"), pairs()))
    stages = [
        {"name": "rm", "method": "reward", "model": {"path": "M"}, "data": [{"path": path}]},
        {"name": "d", "method": "dpo", "model": {"path": "stage:rm"}, "data": [{"path": path}]},
    ]
    Path("two.yaml").write_text(json.dumps({"train": {"steps": 1}, "stages": stages}))  # YAML holds JSON
    assert main(["run", "two.yaml", "--output", "out"]) == 2
    assert "stage rm trains a reward model" in message(capsys)
    assert not Path("out").exists()


def test_a_label_in_words_is_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert preftune("kto", [{"prompt": "x", "completion": "y", "label": "good"}]) == 2
    assert "rows.jsonl:1: column 'label' holds 'good'" in message(capsys)


def test_a_failed_start_leaves_its_folder_free(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert preftune("dpo", [{"prompt": "x", "chosen": "y"}]) != 0
    capsys.readouterr()
    assert preftune("dpo", pairs(), "--train.learning_rate", "1e-5") == 0  # the same folder, another recipe
    assert (Path("out") / "report.html").exists()


@pytest.mark.parametrize("flags", ["--policy.beta 0.1", "--policy.mask_truncated true", "--policy.preset dr-grpo"])
def test_numbers_of_other_methods_are_refused(home: Path, capsys: pytest.CaptureFixture[str], flags: str) -> None:
    assert preftune("dpo", pairs(), *flags.split()) == 2
    assert "samples nothing to train on and does not read it; its own numbers are in loss" in message(capsys)


def test_what_stages_inherit_may_be_meant_for_one_of_them(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tiny.write(Path("rows.jsonl"), pairs()))
    raw: dict[str, Any] = {
        "model": {"path": "M"}, "data": [{"path": path}], "train": {"steps": 1}, "loss": {"beta": 0.3},
        "stages": [{"name": "a", "method": "sft"}, {"name": "b", "method": "dpo", "model": {"path": "stage:a"}}],
    }  # fmt: skip
    Path("two.yaml").write_text(json.dumps(raw))
    assert main(["run", "two.yaml", "--output", "out"]) == 0
    capsys.readouterr()
    raw["stages"][0]["loss"] = {"beta": 0.7}  # meant for nobody
    Path("three.yaml").write_text(json.dumps(raw))
    assert main(["run", "three.yaml", "--output", "other"]) == 2
    assert "stages.a.loss.beta" in (said := message(capsys)) and "method sft does not read it" in said


def test_a_kto_batch_of_one_prompt_is_found_before_training(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": "x" if n < 11 else "y", "completion": str(n), "label": n % 2 == 0} for n in range(12)]
    flags = ["--train.batch_size", "2", "--train.steps", "6", "--train.reference_logprobs", "live"]
    assert preftune("kto", rows, *flags, "--dry-run") != 0
    assert "raise train.batch_size" in message(capsys)
    assert preftune("kto", rows, *flags) != 0
    assert not (Path("out") / "metrics.jsonl").exists()

"""Every recipe in recipes/ loads, says what its documentation says, and runs on a model built on the spot."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from preftune.cli.main import main
from preftune.recipes import load_recipe

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
GSM8K = ROOT / "recipes" / "gsm8k-grpo.yaml"


def _rows() -> list[dict[str, str]]:
    """Forty problems in GSM8K's form: working with calculator notes, commas in large numbers, #### and the answer."""
    names = ("Ann", "Ben", "Cleo", "Dan", "Eva")
    rows = []
    for i in range(40):
        name, bags, pens = names[i % 5], 2 + i % 4, 150 * (1 + i)
        total = bags * pens
        rows.append({
            "question": f"{name} has {bags} bags of {pens} pens. How many pens has {name}?",
            "answer": f"{name} has {bags}*{pens} = <<{bags}*{pens}={total}>>{total:,} pens.\n#### {total:,}",
        })  # fmt: skip
    return rows


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _script(path: str) -> ModuleType:
    name = Path(path).stem
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def gsm8k_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("data") / "train.jsonl", _rows())


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory, gsm8k_file: Path) -> Path:
    """The example's model, after a single step."""
    output = tmp_path_factory.mktemp("model") / "lm"
    arguments = ["--steps", "1", "--batch-size", "2", "--holdout", "4", "--vocabulary", "400"]
    assert _script("examples/gsm8k_small_model.py").main([str(gsm8k_file), "--output", str(output), *arguments]) == 0
    return output / "final"


def test_the_small_model_learns_one_text_per_row_in_the_rows_order(small_model: Path) -> None:
    """So its held-out rows are the recipe's: both take them by place."""
    texts = [line["text"] for line in _lines(small_model.parents[1] / "lm-start" / "texts.jsonl")]
    rows = _rows()
    assert [text.split("\n")[0] for text in texts] == [row["question"] for row in rows]
    assert texts[0].split("\n")[1] == (
        "<start_working_out>Ann has 2*150 = 300 pens.<end_working_out><SOLUTION>300</SOLUTION>"
    )
    assert texts[9].split("\n")[1:] == ["Eva has 3*1500 = 4,500 pens.", "#### 4500"]


def test_its_other_layout_is_that_of_the_solutions(gsm8k_file: Path, tmp_path: Path) -> None:
    texts = _script("examples/gsm8k_small_model.py").write_texts(gsm8k_file, tmp_path / "texts.jsonl", "notes")
    assert texts[9].split("\n")[1:] == ["Eva has 3*1500 = <<3*1500=4500>>4,500 pens.", "A: 4500"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_names_its_command(path: Path) -> None:
    pipeline = load_recipe(path)
    assert pipeline.stages
    text = path.read_text(encoding="utf-8")
    command = "human export" if pipeline.stages[0].method == "human" else "run"
    assert f"preftune {command} recipes/{path.name}" in text


def test_the_gsm8k_recipe_follows_its_source() -> None:
    """The values of METHODS section 4: LoRA, group size, rates, schedule, percentile, the four rewards as they are."""
    sft, grpo = load_recipe(GSM8K).stages
    assert (sft.method, grpo.method) == ("sft", "grpo")
    assert sft.model.path == "Qwen/Qwen3-4B-Base"
    assert (grpo.model.path, grpo.model.on_adapter) == ("stage:sft", "continue")
    for stage in (sft, grpo):
        assert stage.model.lora is not None
        assert (stage.model.lora.r, stage.model.lora.alpha, stage.model.lora.targets) == (32, 64, "all-linear")
        assert (stage.data[0].path, stage.data[0].name, stage.data[0].split) == ("openai/gsm8k", "main", "train")
        assert (stage.train.warmup, stage.train.schedule, stage.train.weight_decay) == (0.1, "linear", 0.01)
        assert stage.tokens.drop_above_percentile == 90
    assert (grpo.sampling.group_size, grpo.sampling.temperature, grpo.train.learning_rate) == (4, 1.0, 5e-6)
    trained_on = [reward for reward in grpo.rewards if reward.weight != 0]
    assert [(reward.name, reward.weight, reward.args) for reward in trained_on] == [
        (name, 1.0, {})
        for name in ("reasoning-format-exact", "reasoning-format-approx", "reasoning-answer", "reasoning-number")
    ]
    # The same rows are held out in both stages: they share seed, data and number.
    assert (sft.seed, sft.data, sft.eval.holdout) == (grpo.seed, grpo.data, grpo.eval.holdout)


def test_its_system_prompt_names_the_tags_that_its_template_and_rewards_read() -> None:
    recipe = load_recipe(GSM8K).stages[1]
    template, system = recipe.tokens.chat_template, recipe.data[0].system
    assert template is not None and system is not None
    for tag in ("<start_working_out>", "<end_working_out>", "<SOLUTION>", "</SOLUTION>"):
        assert system.count(tag) == 1
    completion = recipe.data[0].columns["completion"].template
    assert completion == "{working}<end_working_out><SOLUTION>{answer}</SOLUTION>"
    assert template.count("<start_working_out>") == 2  # before past answers, and as the generation prompt


def test_dry_run_shows_the_mapped_rows(
    small_model: Path, gsm8k_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model.path", str(small_model), "--data.path", str(gsm8k_file), "--eval.holdout", "4", "--dry-run"]
    assert main(["run", str(GSM8K), "--output", str(tmp_path / "run"), "--sft.train.batch_size", "1", *flags]) == 0
    shown = capsys.readouterr().out
    found = re.search(
        r"<\|endoftext\|>(\w+) has (\d+) bags of (\d+) pens\. How many pens has \1\?\n"
        r"<start_working_out>⟦\1 has \2\*\3 = ([\d,]+) pens\."
        r"<end_working_out><SOLUTION>(\d+)</SOLUTION><\|endoftext\|>⟧",
        shown,
    )
    assert found is not None, shown
    product = int(found[2]) * int(found[3])
    assert (found[4], found[5]) == (f"{product:,}", str(product))
    assert not (tmp_path / "run").exists()


def test_the_gsm8k_recipe_runs_on_a_file(small_model: Path, gsm8k_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    flags = {
        "--model.path": str(small_model), "--data.path": str(gsm8k_file), "--output": str(output),
        "--train.steps": "2", "--train.batch_size": "2", "--sampling.max_tokens": "12", "--eval.holdout": "4",
        "--log.samples_every": "1",
    }  # fmt: skip
    assert main(["run", str(GSM8K), *(part for flag in flags.items() for part in flag)]) == 0
    assert json.loads((output / "pipeline.json").read_text()) == {
        "name": "gsm8k-grpo", "stages": ["sft", "grpo"], "status": "finished",
    }  # fmt: skip
    assert (output / "report.html").stat().st_size > 10_000

    manifest = json.loads((output / "grpo" / "manifest.json").read_text())
    assert f"adapter {output / 'sft' / 'final'} continued" in manifest["lineage"]
    adapter = json.loads((output / "grpo" / "final" / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"]) == (32, 64)

    steps = [line["metrics"] for line in _lines(output / "grpo" / "metrics.jsonl") if line["kind"] == "train"]
    assert len(steps) == 2
    parts = ("reasoning-format-exact", "reasoning-format-approx", "reasoning-answer", "reasoning-number")
    for metrics in steps:
        assert metrics["reward/mean"] == pytest.approx(sum(metrics[f"reward/{name}"] for name in parts), abs=1e-6)

    summaries = {name: json.loads((output / name / "summary.json").read_text()) for name in ("sft", "grpo")}
    for summary in summaries.values():
        assert {"reward/accuracy", *(f"reward/{name}" for name in parts)} <= set(summary["before"]["validation"])
    # GRPO begins with the weights that SFT ended with, measured on the same rows.
    assert summaries["grpo"]["before"]["validation"] == {
        name: value for name, value in summaries["sft"]["after"]["validation"].items() if name != "nll"
    }

    samples = _lines(output / "grpo" / "samples.jsonl")
    held = {line["where"] for line in samples if line["split"] == "validation"}
    trained = {line["where"] for line in samples if line["split"] == "train"}
    assert held and trained and not held & trained
    assert all(line["prompt"].endswith("\n<start_working_out>") for line in samples)
    assert all(re.fullmatch(r"\d+", line["columns"]["answer"]) for line in samples)

    picture = tmp_path / "curves.svg"
    drawn = _script("docs/plot_curves.py").main([str(output / "grpo"), str(picture), "reward/mean", "length/mean"])
    assert drawn == 0
    svg = "{http://www.w3.org/2000/svg}"
    root = ET.parse(picture).getroot()
    assert len(root.findall(f"{svg}polyline")) == 4  # two panels, each with its steps and their running mean
    assert len(root.findall(f"{svg}circle")) == 5  # two panels, each measured before and after; the legend


def _solutions() -> list[dict[str, Any]]:
    """Sixteen questions with a reference and three solutions, of which none, one or two are right."""
    rows: list[dict[str, Any]] = []
    for i, row in enumerate(_rows()[:16]):
        total = (2 + i % 4) * 150 * (1 + i)
        responses = [
            {
                "model": f"writer-{k}",
                "text": f"They have {total + wrong} pens.\nA: {total + wrong}",
                "correct": not wrong,
            }
            for k, wrong in enumerate([0 if k < i % 3 else 10 * (k + 1) for k in range(3)])
        ]
        reference = f"{row['question'].split()[0]} has {total} pens.\nA: {total}"
        rows.append({"question": row["question"], "reference": reference, "responses": responses})
    return rows


@pytest.fixture(scope="module")
def solutions_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("solutions") / "solutions.jsonl", _solutions())


def test_gsm8k_solutions_are_mapped_by_the_recipes_alone(solutions_file: Path) -> None:
    from preftune.data import load_examples

    wrong, right = _solutions()[0], _solutions()[2]  # none, and two of three
    for name, human in (("dpo", 1), ("kto", 1), ("reward", 0)):
        (recipe,) = load_recipe(ROOT / "recipes" / f"gsm8k-{name}.yaml", {"data.path": str(solutions_file)}).stages
        examples = load_examples(recipe.data, seed=0).examples
        assert [example.scores for example in examples[:3]] == [
            (0.0, 0.0, 0.0) + (1.0,) * human, (1.0, 0.0, 0.0) + (1.0,) * human, (1.0, 1.0, 0.0) + (1.0,) * human,
        ]  # fmt: skip
        assert examples[0].sources == ("writer-0", "writer-1", "writer-2", "human")[: 3 + human]
        assert examples[0].prompt == wrong["question"] + "\n"
        assert examples[2].completions[1] == right["responses"][1]["text"]
        if human:
            assert examples[2].completions[3] == right["reference"]


def test_gsm8k_preference_recipes_hold_out_the_same_questions() -> None:
    stages = [load_recipe(ROOT / "recipes" / f"gsm8k-{name}.yaml").stages[0] for name in ("dpo", "kto", "reward")]
    assert [(stage.seed, stage.eval.holdout) for stage in stages] == [(0, 120)] * 3


def test_preference_recipes_have_the_rates_that_their_pages_name() -> None:
    for name, low, high in (("dpo", 5e-6, 5e-5), ("kto", 5e-6, 5e-5), ("reward", 1e-4, 1e-4)):
        for path in (f"{name}.yaml", f"gsm8k-{name}.yaml"):
            (recipe,) = load_recipe(ROOT / "recipes" / path).stages
            assert recipe.method == name and recipe.model.lora is not None
            assert low <= recipe.train.learning_rate <= high
            assert recipe.eval.holdout > 0 and recipe.eval.every is not None


@pytest.mark.parametrize("name", ["dpo", "kto", "reward"])
def test_the_gsm8k_preference_recipes_run_on_a_file(
    name: str, small_model: Path, solutions_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    output = tmp_path / "run"
    flags = {
        "--model.path": str(small_model), "--data.path": str(solutions_file), "--output": str(output),
        "--train.epochs": "1", "--train.batch_size": "4", "--eval.holdout": "4", "--eval.every": "2",
    }  # fmt: skip
    assert (
        main(["run", str(ROOT / "recipes" / f"gsm8k-{name}.yaml"), *(part for flag in flags.items() for part in flag)])
        == 0
    )
    summary = json.loads((output / "summary.json").read_text())
    assert summary["status"] == "finished"
    before = summary["before"]["validation"]
    # With a reference, and with a head of zeros, nothing is preferred before training.
    assert before["rewards/accuracy"]["value"] == pytest.approx(0.5)
    steps = [line["metrics"] for line in _lines(output / "metrics.jsonl") if line["kind"] == "train"]
    assert steps
    if name == "kto":
        assert all({"kl", "kl/raw", "kto/balance"} <= set(metrics) for metrics in steps)
        assert all(0.99 <= metrics["kto/balance"] <= 1.34 for metrics in steps)
    else:
        assert all({"rewards/accuracy", "rewards/margin"} <= set(metrics) for metrics in steps)
    assert (output / "report.html").stat().st_size > 10_000


def test_the_plain_preference_recipes_run(small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of the reader's own, as text; `data.chat` and a template make conversations of them."""
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    pairs = [
        {"prompt": f"How many pens has Ann {i}?", "chosen": f"Ann has {i} pens.", "rejected": "None."}
        for i in range(10)
    ]
    labels = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in pairs for side in ("chosen", "rejected")
    ]  # fmt: skip
    template = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    for name, rows in (("dpo", pairs), ("kto", labels), ("reward", pairs)):
        output = tmp_path / name
        flags = [
            "--model.path", str(small_model), "--data.path", str(_write(tmp_path / f"{name}.jsonl", rows)),
            "--output", str(output), "--data.chat", "--tokens.chat_template", template, "--train.batch_size", "4",
            "--eval.holdout", "2", "--eval.every", "1",
        ]  # fmt: skip
        assert main([name, str(ROOT / "recipes" / f"{name}.yaml"), *flags]) == 0
        summary = json.loads((output / "summary.json").read_text())
        assert (summary["status"], summary["steps"]) == ("finished", 4 if name == "kto" else 2)
        assert (output / "final").is_dir()


def test_the_plain_recipes_run(small_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"Tell {i} plus 1.", "completion": f" {i + 1}.", "answer": str(i + 1)} for i in range(12)]
    data = _write(tmp_path / "rows.jsonl", rows)
    template = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    for name, more in (
        ("sft", ["--train.epochs", "1"]),
        ("grpo", ["--train.steps", "1", "--sampling.max_tokens", "8", "--tokens.chat_template", template]),
    ):
        output = tmp_path / name
        flags = ["--model.path", str(small_model), "--data.path", str(data), "--output", str(output)]
        small = ["--train.batch_size", "4", "--eval.holdout", "4", *more]
        assert main(["run", str(ROOT / "recipes" / f"{name}.yaml"), *flags, *small]) == 0
        summary = json.loads((output / "summary.json").read_text())
        assert (summary["status"], summary["steps"]) == ("finished", 2 if name == "sft" else 1)


def test_the_seeds_ppo_recipe_is_a_reward_model_and_ppo_on_one_base() -> None:
    """Seed 004: SmolLM-135M-Instruct, human-like answers; a model card with greedy answers of up to 256 tokens."""
    reward, ppo = load_recipe(ROOT / "recipes" / "ppo-smollm.yaml").stages
    assert (reward.method, ppo.method) == ("reward", "ppo")
    for stage in (reward, ppo):
        assert stage.model.path == "HuggingFaceTB/SmolLM-135M-Instruct" and stage.model.lora is not None
        assert (stage.data[0].path, stage.data[0].chat) == ("HumanLLMs/Human-Like-DPO-Dataset", True)
    assert (reward.seed, reward.data, reward.eval.holdout) == (ppo.seed, ppo.data, ppo.eval.holdout)
    assert ppo.rewards[0].args == {"path": "stage:reward"}
    assert (ppo.eval.max_tokens, ppo.eval.temperature, ppo.log.stop_on_collapse) == (256, 0.0, True)
    # METHODS section 2: the numbers of PPO
    assert (ppo.train.updates_per_batch, ppo.train.minibatches, ppo.train.adam_eps) == (4, 2, 1e-5)
    assert (ppo.policy.beta, ppo.policy.missing_eos_penalty) == (0.05, 1.0)
    assert (ppo.value.gamma, ppo.value.lam, ppo.value.clip, ppo.value.coefficient) == (1.0, 0.95, 0.2, 0.1)


TEMPLATE = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"


def _small(data: Path, model: Path, output: Path, *more: str) -> list[str]:
    return [
        "--model.path", str(model), "--data.path", str(data), "--output", str(output), "--tokens.chat_template",
        TEMPLATE, "--train.batch_size", "4", "--eval.holdout", "3", "--eval.max_tokens", "8", "--sampling.max_tokens",
        "8", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        {"prompt": f"How many pens has Ann {i}?", "chosen": f"Ann has {i} pens.", "rejected": "None."}
        for i in range(11)
    ]
    return _write(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", rows)


@pytest.fixture(scope="module")
def ppo_run(small_model: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("ppo") / "run"
    flags = _small(pairs_file, small_model, output, "--ppo.train.steps", "2", "--ppo.eval.every", "1")
    assert main(["ppo", str(ROOT / "recipes" / "ppo-smollm.yaml"), *flags]) == 0
    return output


def test_the_seeds_ppo_recipe_runs_on_a_file(ppo_run: Path) -> None:
    notes = json.loads((ppo_run / "ppo" / "summary.json").read_text())["notes"]
    said = " ".join(notes)
    assert "an adapter on the policy's own base, no second copy of the weights" in said
    assert "value head: an adapter on the policy's base, started from" in said
    steps = [line["metrics"] for line in _lines(ppo_run / "ppo" / "metrics.jsonl") if line["kind"] == "train"]
    assert len(steps) == 2
    names = {"value/loss", "value/explained_variance", "kl/sequence", "kl/beta", "reward/penalty", "grad_norm/value"}
    assert all(names <= set(metrics) for metrics in steps)
    # A cut answer loses 1 of its score, and the reward model is normalised: both are in the recipe.
    for metrics in steps:
        penalty = metrics["length/truncated"]
        assert metrics["reward/penalty"] == pytest.approx(penalty)
        assert metrics["reward/mean"] == pytest.approx(metrics["reward/reward-model"] - penalty, abs=1e-5)
    # Both stages hold the same prompts out, and the card shows answers to them.
    card = (ppo_run / "ppo" / "README.md").read_text(encoding="utf-8")
    assert "## Use" in card and "## Example generations" in card
    assert "Greedy, at most 8 tokens, by the saved model: the first validation rows" in card
    assert (ppo_run / "report.html").stat().st_size > 10_000


def test_the_plain_ppo_recipe_runs_with_a_reward_model_from_a_folder(
    ppo_run: Path, small_model: Path, pairs_file: Path, tmp_path: Path
) -> None:
    prompts = _write(tmp_path / "prompts.jsonl", [{"prompt": row["prompt"]} for row in _lines(pairs_file)])
    flags = _small(prompts, small_model, tmp_path / "run", "--train.steps", "1")
    reward = ["--rewards.0.args.path", str(ppo_run / "reward" / "final"), "--policy.kl_target", "6"]
    assert main(["ppo", str(ROOT / "recipes" / "ppo.yaml"), *flags, *reward]) == 0
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-1" / "state.json").read_text())
    assert "beta" in json.dumps(state)  # the adapted β goes on after a resume


def test_the_recipe_of_rounds_runs_on_a_file(
    small_model: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    output = tmp_path / "run"
    flags = _small(pairs_file, small_model, output, "--rounds.collect.margin", "0", "--train.epochs", "1")
    assert main(["iterative-dpo", str(ROOT / "recipes" / "iterative-dpo.yaml"), *flags]) == 0
    assert json.loads((output / "pipeline.json").read_text())["stages"] == [
        "reward", "rounds-1", "rounds-2", "rounds-3",
    ]  # fmt: skip
    rounds = [json.loads((output / f"rounds-{k}" / "summary.json").read_text()) for k in (1, 2, 3)]
    for one, other in pairwise(rounds):  # a round begins with what the one before ended with
        before, after = other["before"]["validation"]["reward/mean"], one["after"]["validation"]["reward/mean"]
        assert before["value"] == pytest.approx(after["value"], abs=1e-4)
    for k in (1, 2, 3):
        collected = _lines(output / f"rounds-{k}" / "collected.jsonl")
        assert collected[0]["groups"] == 8 and len(collected[1]["completions"]) == 4
        steps = [line for line in _lines(output / f"rounds-{k}" / "metrics.jsonl") if line["kind"] == "train"]
        # DPO's reference is the round's own start, so its first step knows nothing yet.
        assert steps[0]["metrics"]["loss"] == pytest.approx(0.6931, abs=1e-3)


def test_the_recipes_of_rft_and_dapo_run_on_a_file(small_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"Tell {i} plus 1.", "answer": str(i + 1)} for i in range(11)]
    data = _write(tmp_path / "rows.jsonl", rows)
    # A barely trained model solves nothing, so these rewards are of form.
    form = ["--rewards.0.name", "length", "--rewards.0.args", "{at_most: 3, ramp: 9, unit: chars}"]
    flags = _small(data, small_model, tmp_path / "rft", "--collect.min_score", "null", "--train.epochs", "1", *form)
    assert main(["rft", str(ROOT / "recipes" / "rft.yaml"), *flags]) == 0
    notes = json.loads((tmp_path / "rft" / "summary.json").read_text())["notes"]
    assert any(note.startswith("collected: 64 answers to 8 prompts") for note in notes)

    flags = _small(data, small_model, tmp_path / "dapo", "--train.steps", "1", "--sampling.group_size", "4")
    assert main(["grpo", str(ROOT / "recipes" / "grpo-dapo.yaml"), *flags]) == 0
    (line,) = [line for line in _lines(tmp_path / "dapo" / "metrics.jsonl") if line["kind"] == "train"]
    assert {"resample/rounds", "resample/prompts", "resample/missing", "reward/penalty"} <= set(line["metrics"])

"""recipes/alignment-for-all.yaml says what the talk says, and runs, small, on a model built on the spot."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from preftune.cli.main import main
from preftune.config import DataStage, Recipe
from preftune.recipes import dump, load_recipe
from preftune.report.benchmarks import benchmarks
from preftune.report.read import read_run
from tests import tiny

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "alignment-for-all.yaml"
TEMPLATE = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"


def stages() -> dict[str, Any]:
    return {stage.name: stage for stage in load_recipe(RECIPE).stages}


def test_it_tells_the_talks_story_in_order(tmp_path: Path) -> None:
    found = stages()
    assert [(name, stage.method) for name, stage in found.items()] == [
        ("tiers", "generate"), ("pairs", "pairs"), ("balance", "balance"), ("debias", "debias"), ("sft", "sft"),
        ("reward", "reward"), ("rounds-1", "iterative-dpo"), ("rounds-2", "iterative-dpo"),
        ("rounds-3", "iterative-dpo"),
    ]  # fmt: skip
    for before, after in pairwise(("tiers", "pairs", "balance", "debias")):
        assert found[after].data[0].path == f"stage:{before}"
    assert {found[name].data[0].path for name in ("sft", "reward", "rounds-1", "rounds-3")} == {"stage:debias"}
    assert found["rounds-1"].rewards[0].args["path"] == "stage:reward"
    assert [found[f"rounds-{k}"].model.path for k in (1, 2, 3)] == ["stage:sft", "stage:rounds-1", "stage:rounds-2"]
    (tmp_path / "again.yaml").write_text(dump(load_recipe(RECIPE)))
    assert load_recipe(tmp_path / "again.yaml") == load_recipe(RECIPE)


def test_its_choices_are_the_talks() -> None:
    found = stages()
    tiers = {tier.name: tier for tier in found["tiers"].settings.tiers}
    assert {name: tier.rank for name, tier in tiers.items()} == {
        "human": 1, "Llama-3.1-405B": 2, "Llama-3.1-70B": 3, "Qwen2.5-7B": 4,
    }  # fmt: skip
    assert tiers["human"].column == "human" and tiers["Llama-3.1-405B"].endpoint.base_url is None
    assert "localhost" in tiers["Llama-3.1-70B"].endpoint.base_url and tiers["Qwen2.5-7B"].model is not None
    balance = found["balance"].settings
    assert (balance.embedder, balance.cap, balance.raise_to) == ("Tochka-AI/ruRoPEBert-e5-base-2k", 100, 10)
    assert found["debias"].settings.strip == "auto" and found["reward"].loss.p_max is not None
    for stage in load_recipe(RECIPE).recipes:
        assert stage.model.path == "Qwen/Qwen2.5-7B" or stage.model.path.startswith("stage:")
        tasks = [(one.task, one.title) for one in stage.eval.benchmarks]
        assert tasks == [("instructions", "instruction-following"), ("choices", "common-sense")]


def rows(count: int) -> list[dict[str, Any]]:
    topics = ("tea", "wool", "snow")
    return [
        {"prompt": f"what of {topics[n % 3]} no {n}?", "human": f"{topics[n % 3]} is good {n}." if n % 4 == 0 else None,
         "good": f"well, {topics[n % 3]} it is {n}.", "bad": f"no {n}"}
        for n in range(count)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe as it is shipped, made small by flags: three tiers that are columns, and files as benchmarks."""
    home = tmp_path_factory.mktemp("alignment")
    model = tiny.save(home / "model", max_position_embeddings=256)
    rules = [{"prompt": f"say {n}", "constraints": [{"kind": "characters", "at_most": 4 + n}]} for n in range(5)]
    picks = [{"question": f"{n}+1?", "choices": [str(n + 1), "zz"], "answer": 0} for n in range(6)]
    tasks = [
        {"task": "instructions", "name": "instruction-following", "path": str(tiny.write(home / "rules.jsonl", rules))},
        {"task": "choices", "name": "common-sense", "path": str(tiny.write(home / "picks.jsonl", picks))},
    ]
    columns = [{"name": name, "rank": n, "column": name} for n, name in enumerate(("human", "good", "bad"), 1)]
    flags = {
        "--data.path": str(tiny.write(home / "prompts.jsonl", rows(20))), "--output": str(home / "run"),
        "--model.path": str(model), "--tokens.chat_template": TEMPLATE, "--tiers.tiers": json.dumps(columns),
        "--balance.embedder": "builtin", "--balance.trust_remote_code": "false", "--balance.raise_to": "2",
        "--eval.benchmarks": json.dumps(tasks), "--eval.max_tokens": "8", "--eval.holdout": "3",
        "--train.batch_size": "8", "--sampling.max_tokens": "8", "--rounds.collect.margin": "0",
        "--train.reference_cache": str(home / "cache"), "--rounds.repeat": "2", "--log.sinks": "[]",
    }  # fmt: skip
    assert main(["run", str(RECIPE), *(part for flag in flags.items() for part in flag)]) == 0
    return home / "run"


def test_it_runs_from_raw_answers_to_the_last_round(finished: Path) -> None:
    state = json.loads((finished / "pipeline.json").read_text())
    assert state["status"] == "finished"
    assert state["stages"] == ["tiers", "pairs", "balance", "debias", "sft", "reward", "rounds-1", "rounds-2"]
    tiers = tiny.lines(finished / "tiers" / "rows.jsonl")
    assert [len(row["responses"]) for row in tiers[:5]] == [3, 2, 2, 2, 3]
    pairs = tiny.lines(finished / "pairs" / "rows.jsonl")
    assert len(pairs) == 5 * 3 + 15 and {row["margin"] for row in pairs} == {1.0, 2.0}
    collected = tiny.lines(finished / "rounds-2" / "collected.jsonl")
    assert len(collected[1]["completions"]) == 4


def test_both_benchmarks_are_in_one_table_over_all_stages(finished: Path) -> None:
    names = ["sft", "reward", "rounds-1", "rounds-2"]
    found = benchmarks([(name, read_run(finished / name)) for name in names])
    assert found is not None
    assert found.models == ("before training", "after sft", "after rounds-1", "after rounds-2")
    assert [column.name for column in found.columns] == ["instruction-following", "common-sense"]
    for column in found.columns:
        assert all(cell is not None for cell in column.cells)
        assert column.cells[0] is not None and column.cells[0].difference is None
        for cell in column.cells[1:]:
            assert cell is not None and cell.difference is not None
            assert cell.difference.value == pytest.approx(cell.value.value - column.cells[0].value.value)
    # a stage begins with what the one before ended with, measured on the same rows
    for one, other in pairwise(["sft", "rounds-1", "rounds-2"]):
        after = json.loads((finished / one / "summary.json").read_text())["after"]["common-sense"]
        before = json.loads((finished / other / "summary.json").read_text())["before"]["common-sense"]
        assert before["choices/accuracy"]["value"] == after["choices/accuracy"]["value"]
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert 'id="benchmarks"' in page and "after rounds-2" in page and "common-sense " in page
    assert '<a href="debias/report.html">debias</a>' in page


def test_the_result_can_be_set_beside_other_models(finished: Path, tmp_path: Path) -> None:
    flags = ["--models", str(finished), "--models.1", str(finished / "sft"), "--choices.limit", "5"]
    assert main(["evaluate", *flags, "--tasks", "choices", "--output", str(tmp_path / "out")]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert set(summary["tasks"]["choices"]["models"]) == {"run", "sft"}


def test_steps_and_recipes_are_told_apart() -> None:
    kinds = [type(stage) for stage in load_recipe(RECIPE).stages]
    assert [issubclass(kind, DataStage) for kind in kinds] == [True] * 4 + [False] * 5
    assert all(kind is Recipe for kind in kinds[4:])

"""Commands on data as stages: tiers → pairs → balance → reward model; resumed, reported, set by flags, checked."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from preftune.cli.main import main
from preftune.config import DataStage, Pipeline, Recipe
from preftune.errors import UsageError
from preftune.pipeline import PipelineResult, run_pipeline
from preftune.recipes import dump, load_recipe, resolve
from preftune.train import loop
from tests import tiny

torch.set_num_threads(1)

TOPICS = ("tea", "wool", "snow")
ROWS = [
    {"prompt": f"tell me about {TOPICS[n % 3]} number {n}", "good": f"{TOPICS[n % 3]} is what we all like {n}.",
     "bad": f"no {n}"}
    for n in range(24)
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data-stages")
    tiny.save(folder / "model")
    tiny.write(folder / "prompts.jsonl", ROWS)
    return folder


def raw(home: Path, output: Path) -> dict[str, Any]:
    tiers = [{"name": "people", "rank": 1, "column": "good"}, {"name": "weak", "rank": 2, "column": "bad"}]
    return {
        "name": "whole", "output": str(output), "seed": 3, "model": {"path": str(home / "model")},
        "data": {"path": str(home / "prompts.jsonl")}, "log": {"sinks": []},
        "stages": [
            {"name": "tiers", "method": "generate", "generate": {"tiers": tiers}},
            {"name": "pairs", "method": "pairs", "data": {"path": "stage:tiers"}},
            {"name": "even", "method": "balance", "data": {"path": "stage:pairs"},
             "balance": {"cap": 5, "raise_to": 2, "threshold": 0.6}},
            {"name": "reward", "method": "reward", "data": {"path": "stage:even"}, "eval": {"holdout": 4},
             "train": {"steps": 2, "batch_size": 4, "checkpoint_every": 1}},
        ],
    }  # fmt: skip


@pytest.fixture(scope="module")
def finished(home: Path, tmp_path_factory: pytest.TempPathFactory) -> PipelineResult:
    result = run_pipeline(resolve(raw(home, tmp_path_factory.mktemp("out") / "run")))
    assert result is not None
    return result


def test_the_rows_of_a_stage_are_the_next_ones_data(finished: PipelineResult) -> None:
    folder = finished.folder
    assert [(made.name, made.method, made.rows["kept"]) for made in finished.made][:2] == [
        ("tiers", "generate", 24), ("pairs", "pairs", 24),
    ]  # fmt: skip
    assert [result.folder.name for result in finished.stages] == ["reward"]
    tiers, pairs, even = (tiny.lines(folder / name / "rows.jsonl") for name in ("tiers", "pairs", "even"))
    assert len(tiers) == len(pairs) == 24 and len(even) == finished.made[2].rows["kept"] <= 15
    assert {row["chosen"] for row in pairs} == {row["good"] for row in ROWS}
    manifest = json.loads((folder / "reward" / "manifest.json").read_text())
    assert f"{folder / 'even' / 'rows.jsonl'}: {len(even)} rows" in manifest["data"]["train"]["origins"][0]
    assert json.loads((folder / "pipeline.json").read_text()) == {
        "name": "whole", "stages": ["tiers", "pairs", "even", "reward"], "status": "finished",
    }  # fmt: skip


def test_the_seed_is_the_recipes(finished: PipelineResult) -> None:
    for name in ("tiers", "pairs", "even"):
        assert json.loads((finished.folder / name / "summary.json").read_text())["settings"]["seed"] == 3


def test_the_report_lists_them_with_counts_and_links(finished: PipelineResult) -> None:
    page = finished.report.read_text(encoding="utf-8")
    for name, method in (("tiers", "generate"), ("pairs", "pairs"), ("even", "balance")):
        assert f'<a href="{name}/report.html">{name}</a>' in page and f"· {method} · data" in page
    assert "24\u00a0rows kept, none left out." in page
    assert f"{finished.made[2].rows['kept']}\u00a0rows kept, {24 - finished.made[2].rows['kept']} left out:" in page
    assert "stage 4 · reward · 2 steps" in page


def test_a_finished_step_is_left_as_it_is(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = resolve(raw(home, tmp_path / "run"))

    def broken(self: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop._Loop, "_finish", broken)
        with pytest.raises(KeyboardInterrupt):
            run_pipeline(pipeline)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "rows kept" in page and "interrupted" in page
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("run/*/rows.jsonl")}
    assert len(times) == 3
    result = run_pipeline(pipeline, resume=True)
    assert result is not None and [made.name for made in result.made] == ["tiers", "pairs", "even"]
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert (tmp_path / "run" / "reward" / "final").is_dir()


def test_a_step_that_broke_is_made_again(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from preftune.curation.pairs import run as pairs_run

    def broken(*arguments: Any) -> None:
        raise KeyboardInterrupt

    pipeline = resolve(raw(home, tmp_path / "run"))
    with monkeypatch.context() as patch:
        patch.setattr(pairs_run, "_second", broken)
        with pytest.raises(KeyboardInterrupt):
            run_pipeline(pipeline)
    assert not (tmp_path / "run" / "pairs" / "summary.json").exists()
    assert json.loads((tmp_path / "run" / "pipeline.json").read_text())["status"] == "interrupted"
    result = run_pipeline(pipeline, resume=True)
    assert result is not None and len(result.made) == 3


def test_other_settings_can_not_go_on(home: Path, finished: PipelineResult) -> None:
    other = raw(home, finished.folder)
    other["stages"][2]["balance"]["cap"] = 6
    with pytest.raises(UsageError, match=r"even: its settings differ .*\(balance.cap was 5, now 6\)"):
        run_pipeline(resolve(other), resume=True)
    assert run_pipeline(resolve(raw(home, finished.folder)), resume=True) is not None


def test_the_resolved_recipe_reads_back_equal(home: Path, finished: PipelineResult, tmp_path: Path) -> None:
    pipeline = resolve(raw(home, finished.folder))
    assert load_recipe(finished.folder / "recipe.yaml") == pipeline
    text = (finished.folder / "recipe.yaml").read_text(encoding="utf-8")
    (tmp_path / "again.yaml").write_text(dump(load_recipe(finished.folder / "recipe.yaml")))
    assert (tmp_path / "again.yaml").read_text(encoding="utf-8") == text
    section = pipeline.stages[1].model_dump(by_alias=True)["pairs"]
    assert section == {} and pipeline.stages[2].model_dump(by_alias=True)["balance"] == {
        "cap": 5, "raise_to": 2, "threshold": 0.6,
    }  # fmt: skip


def flagged(home: Path, **overrides: str) -> Pipeline:
    found = raw(home, home / "x")
    return resolve(found, {name.replace("__", "."): value for name, value in overrides.items()})


def test_flags(home: Path) -> None:
    by_section = flagged(home, pairs__max_per_prompt="3", balance__cap="7")
    assert by_section.stages[1].settings.max_per_prompt == 3 and by_section.stages[2].settings.cap == 7
    by_stage = flagged(home, even__cap="8", even__balance__keep="central", stages__pairs__pairs__prefer="widest")
    assert (by_stage.stages[2].settings.cap, by_stage.stages[2].settings.keep) == (8, "central")
    assert by_stage.stages[1].settings.prefer == "widest"
    # rows that the user brings are the first step's; a training setting reaches no step
    whole = flagged(home, data__path="mine.jsonl", seed="9", train__learning_rate="0.5", model__path="m")
    assert [stage.data[0].path for stage in whole.stages] == ["mine.jsonl", "stage:tiers", "stage:pairs", "stage:even"]
    assert [stage.seed for stage in whole.stages] == [9] * 4
    assert [stage.settings.seed for stage in whole.stages if isinstance(stage, DataStage)] == [9] * 3
    assert isinstance(whole.stages[3], Recipe) and whole.stages[3].train.learning_rate == 0.5


def test_flags_on_the_command_line(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(raw(home, tmp_path / "run")))
    assert main(["run", str(path), "--even.cap", "7", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert f"stage tiers: preftune data generate of {home / 'prompts.jsonl'}" in shown
    assert "stage pairs: preftune data pairs of stage:tiers" in shown and "stage reward: reward of" in shown
    assert not (tmp_path / "run").exists()
    assert main(["run", str(path), "--even.capp", "7"]) == 2
    assert "did you mean balance.cap?" in capsys.readouterr().err


WRONG: list[tuple[Any, str]] = [
    (lambda r: r["stages"][1].update(pairs={"max_per_promt": 3}), "did you mean pairs.max_per_prompt?"),
    (lambda r: r["stages"][1].update(pairs={"max_per_prompt": "many"}), "expected a whole number, at least 1"),
    (lambda r: r["stages"][1].update(pairs={"seed": 3}), "seed is the stage's own; write it beside the section"),
    (lambda r: r["stages"][1].update(train={"steps": 1}), "stages.pairs.train: unknown key"),
    (lambda r: r["stages"][1].update(data={"path": "stage:tier"}), "no earlier stage; did you mean stage:tiers?"),
    (lambda r: r["stages"][1].update(data={"path": "stage:even"}), "stage:even names no earlier stage"),
    (
        lambda r: r["stages"][3].update(data={"path": "stage:even", "split": "test"}),
        "the rows that stage even makes have no splits",
    ),
    (lambda r: r["stages"][3].update(model={"path": "stage:even"}), "even makes data, and a model is wanted here"),
    (lambda r: r["stages"][2].update(name="pairs2", method="pairz"), "did you mean pairs?"),
    (lambda r: r["stages"][2].update(name="generate"), "'generate' is another stage's method"),
    (lambda r: r["stages"][2].update(balance={"cap": 3, "raise_to": 5}), "which is over the cap of 3"),
    (lambda r: r["stages"][0].pop("generate"), "tiers: missing"),
    (lambda r: r["stages"][0].update(generate="x"), "a section"),
    (lambda r: r.update(balance={"cap": 3}), "balance: unknown key"),
    (
        lambda r: r["stages"].insert(3, {"name": "look", "method": "audit", "data": {"path": "stage:even"}})
        or r["stages"][4].update(data={"path": "stage:look"}),
        "stage look (audit) looks at rows and writes none; name its data",
    ),
    (
        lambda r: r["stages"].append({"name": "clean", "method": "debias", "data": {"path": "stage:pairs"},
                                      "debias": {"reward_model": "stage:rewrd"}}),
        "stages.clean.debias.reward_model: stage:rewrd names no earlier stage; did you mean stage:reward?",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "said"), WRONG, ids=lambda value: value[:40] if isinstance(value, str) else "")
def test_wrong_stages_are_named_before_anything_runs(home: Path, change: Any, said: str) -> None:
    found = copy.deepcopy(raw(home, home / "x"))
    change(found)
    with pytest.raises(UsageError) as error:
        resolve(found)
    assert said in str(error.value)


def test_a_step_alone_is_a_command(home: Path) -> None:
    with pytest.raises(
        UsageError, match=r"pairs makes data: it is a stage beside others .* or the command preftune data pairs"
    ):
        resolve({"method": "pairs", "model": {"path": "m"}, "data": {"path": "d"}, "train": {"steps": 1}})


def test_a_stage_alone_writes_into_the_recipes_folder(home: Path, tmp_path: Path) -> None:
    found = raw(home, tmp_path / "run")
    found["stages"] = found["stages"][:1]
    result = run_pipeline(resolve(found))
    assert result is not None and result.stages == () and result.made[0].folder == tmp_path / "run"
    assert (tmp_path / "run" / "rows.jsonl").exists()


def test_the_last_round_of_a_repeated_stage_is_meant(home: Path) -> None:
    found = raw(home, home / "x")
    found["stages"] += [
        {"name": "go", "method": "iterative-dpo", "repeat": 2, "data": {"path": "stage:even"}, "train": {"steps": 1},
         "rewards": [{"name": "length", "args": {"at_most": 3}}]},
        {"name": "own", "method": "pairs", "data": {"path": "stage:go"}},
    ]  # fmt: skip
    stages = resolve(found).stages
    assert [stage.name for stage in stages][-3:] == ["go-1", "go-2", "own"]
    assert stages[-1].data[0].path == "stage:go-2" == stages[-1].settings.data[0].path
    assert stages[-2].data[0].path == "stage:even"

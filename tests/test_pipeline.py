"""Stages: SFT with an adapter, then GRPO on it; broken in the middle of the second, resumed, and reported."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from preftune.config import Pipeline
from preftune.errors import PreftuneError, UsageError
from preftune.pipeline import run_pipeline
from preftune.recipes import load_recipe, resolve
from preftune.train import loop
from tests import tiny
from tests.torture import kill

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    tiny.save(folder / "model")
    tiny.write(folder / "rows.jsonl", tiny.sums(20))
    return folder


def stages(home: Path, output: Path, on_adapter: str, **changes: Any) -> Pipeline:
    second: dict[str, Any] = {"path": "stage:warm", "on_adapter": on_adapter}
    if on_adapter == "merge":
        second["lora"] = {"r": 3, "alpha": 6}
    else:
        second |= {"lora": None, "reference": "base"}
    return resolve({
        "name": "both", "output": str(output), "model": {"path": str(home / "model")}, "log": {"sinks": []},
        "data": {"path": str(home / "rows.jsonl")}, "sampling": {"group_size": 3, "max_tokens": 5},
        "eval": {"holdout": 4},
        "stages": [
            {"name": "warm", "method": "sft", "model": {"lora": {"r": 2, "alpha": 4}},
             "train": {"steps": 3, "batch_size": 4, "learning_rate": 1e-2}},
            {"name": "tune", "method": "grpo", "model": second, "policy": {"beta": 0.1},
             "rewards": [{"name": "length", "args": {"at_most": 2, "ramp": 4}}],
             "train": {"steps": 4, "batch_size": 2, "learning_rate": 1e-2, "checkpoint_every": 2}},
        ], **changes,
    })  # fmt: skip


@pytest.mark.parametrize("on_adapter", ["continue", "merge"])
def test_two_stages(home: Path, tmp_path: Path, monkeypatch, capsys, on_adapter: str) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    result = run_pipeline(stages(home, whole, on_adapter))
    assert result is not None
    assert [r.folder.name for r in result.stages] == ["warm", "tune"]
    assert json.loads((whole / "pipeline.json").read_text()) == {
        "name": "both", "stages": ["warm", "tune"], "status": "finished",
    }  # fmt: skip
    assert (whole / "report.html").exists()
    assert all((whole / s / f).exists() for s in ("warm", "tune") for f in ("report.html", "README.md", "final"))
    lineage = json.loads((whole / "tune" / "manifest.json").read_text())["lineage"]
    assert {"continue": "continued; the reference is the bare base", "merge": "merged in"}[on_adapter] in lineage
    # where the second stage starts from: the first one's model
    kl = [line["metrics"]["kl"] for line in tiny.lines(whole / "tune" / "metrics.jsonl") if line["kind"] == "train"]
    if on_adapter == "merge":
        assert abs(kl[0]) < 1e-9  # the reference is the merged model
    else:
        assert kl[0] > 1e-6  # the reference is the base, which the first stage has left

    # broken in the middle of stage two
    def work() -> None:
        honest, calls = loop._Prepared, 0

        def dies(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += args[1].advantages_S is not None  # of the second stage
            if calls == 4:  # step 4; there is a checkpoint of step 2
                os.kill(os.getpid(), signal.SIGKILL)
            return honest(*args, **kwargs)

        loop._Prepared = dies  # type: ignore[assignment,misc]
        run_pipeline(stages(home, broken, on_adapter))

    assert kill.in_child(work) == -signal.SIGKILL
    assert json.loads((broken / "pipeline.json").read_text())["status"] == "running"
    warm = (broken / "warm" / "summary.json").stat().st_mtime_ns
    with pytest.raises(UsageError, match="exists already"):
        run_pipeline(stages(home, broken, on_adapter))
    capsys.readouterr()
    run_pipeline(stages(home, broken, on_adapter), resume=True)
    said = capsys.readouterr().err
    assert "warm is finished" in said
    assert (broken / "warm" / "summary.json").stat().st_mtime_ns == warm
    assert tiny.same_run(whole / "warm", broken / "warm") == []
    assert tiny.same_run(whole / "tune", broken / "tune") == []
    assert json.loads((broken / "pipeline.json").read_text())["status"] == "finished"


def test_the_written_recipe_repeats_the_pipeline(home: Path, tmp_path: Path) -> None:
    first = stages(home, tmp_path / "run", "merge")
    run_pipeline(first)
    assert load_recipe(tmp_path / "run" / "recipe.yaml") == first


def test_resuming_with_other_stages_is_refused(home: Path, tmp_path: Path) -> None:
    first = stages(home, tmp_path / "run", "merge")
    run_pipeline(first)
    more = first.model_copy(update={"stages": [*first.stages, first.stages[1].model_copy(update={"name": "more"})]})
    with pytest.raises(UsageError, match="its stages are warm, tune, the recipe's are warm, tune, more"):
        run_pipeline(more, resume=True)
    slower = first.stages[1].train.model_copy(update={"learning_rate": 1.0})
    changed = first.model_copy(
        update={"stages": [first.stages[0], first.stages[1].model_copy(update={"train": slower})]}
    )
    before = (tmp_path / "run" / "recipe.yaml").read_text()
    with pytest.raises(UsageError, match=r"train.learning_rate was 0.01, now 1.0"):
        run_pipeline(changed, resume=True)
    assert (tmp_path / "run" / "recipe.yaml").read_text() == before


def test_a_failing_stage_leaves_a_report_and_no_later_stage(home: Path, tmp_path: Path) -> None:
    def wrong(completions: list[str], **columns: Any) -> list[float]:
        return [0.0]

    pipeline = stages(home, tmp_path / "run", "merge")
    with pytest.raises(PreftuneError, match=r"reward 'wrong'.*returned 1 values for"):
        run_pipeline(pipeline, functions=[wrong])
    assert json.loads((tmp_path / "run" / "pipeline.json").read_text())["status"] == "failed"
    assert (tmp_path / "run" / "report.html").exists()
    assert json.loads((tmp_path / "run/tune/summary.json").read_text())["status"].startswith("failed: reward 'wrong'")


def test_dry_run_trains_and_writes_nothing(home: Path, tmp_path: Path, capsys) -> None:
    assert run_pipeline(stages(home, tmp_path / "run", "merge"), dry_run=True) is None
    text = capsys.readouterr().out
    assert "train: 16 kept" in text
    assert "stage tune: grpo of stage:warm (loaded when the stages before it are done)" in text
    assert list(tmp_path.iterdir()) == []

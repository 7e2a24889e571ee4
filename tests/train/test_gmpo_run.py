"""Whole GMPO runs through the loop on a tiny model, with a critic whose words are scripted and whose scores are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from preftune.config import Recipe
from preftune.errors import PreftuneError, RewardError
from preftune.train.loop import run
from tests import tiny
from tests.train.test_gmpo_parts import Scripted, critique, gmpo, scripted

__all__ = ["gmpo", "scripted"]

Make = Callable[..., Recipe]
torch.set_num_threads(1)


def steps_of(folder: Path) -> list[dict[str, Any]]:
    return [line["metrics"] for line in tiny.lines(folder / "metrics.jsonl") if line["kind"] == "train"]


def test_a_run_trains_policy_and_critic_and_says_why(gmpo: Make, scripted: type[Scripted], tmp_path: Path) -> None:
    run(gmpo(lessons=2), tmp_path / "run")
    steps = steps_of(tmp_path / "run")
    assert len(steps) == 4
    for name in (
        "critic/parsed", "critic/reward", "critic/retried", "critic/left_out", "critic/length", "critic/loss",
        "critic/kept", "gmpo/temperature", "gmpo/skipped_groups", "pass/number", "pass/reward", "gmpo/lessons", "kl",
    ):  # fmt: skip
        assert name in steps[0], name
    assert [m["pass/number"] for m in steps] == [1.0] * 4  # 28 rows, 7 a step
    samples = tiny.lines(tmp_path / "run" / "samples.jsonl")
    notes = samples[0]["notes"]
    assert {"explanation", "reward", "truth", "baseline", "advantage", "temperature", "weight"} <= set(notes)
    assert samples[0]["score"] == notes["reward"]
    assert samples[0]["breakdown"]["critic"] == notes["reward"]


def test_a_resumed_run_is_the_unbroken_one(
    gmpo: Make, scripted: type[Scripted], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = gmpo(lessons=2, buffer=9)
    run(recipe, tmp_path / "whole")

    def stop(prompt: str) -> str:
        raise KeyboardInterrupt

    calls = {"n": 0}

    def third(prompt: str) -> str:
        calls["n"] += 1
        return stop(prompt) if calls["n"] > 28 * 2 + 30 else critique(prompt)

    monkeypatch.setattr(scripted, "write", staticmethod(third))
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "broken")
    monkeypatch.setattr(scripted, "write", staticmethod(critique))
    run(recipe, tmp_path / "broken", resume=True)
    assert tiny.same_run(tmp_path / "whole", tmp_path / "broken") == []


def test_a_critic_that_never_scores_stops_the_run_and_leaves_a_checkpoint(
    gmpo: Make, scripted: type[Scripted], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {"n": 0}

    def mute(prompt: str) -> str:
        calls["n"] += 1
        return "no idea" if calls["n"] > 100 else critique(prompt)

    monkeypatch.setattr(scripted, "write", staticmethod(mute))
    with pytest.raises(PreftuneError, match=r"(?s)'no idea'.*gmpo.critic.cold_start"):
        run(gmpo(), tmp_path / "run")
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))


def test_a_truth_that_fails_is_named(gmpo: Make, scripted: type[Scripted], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def rating(completions, **columns):\n    raise ValueError('the grader is away')\n", encoding="utf-8"
    )
    with pytest.raises(RewardError, match=r"'rating' failed on .*the grader is away"):
        run(gmpo(critic={"truth": f"{tmp_path / 'mine.py'}:rating"}), tmp_path / "run")


def test_offline_scores_of_the_data(gmpo: Make, home: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": row["prompt"], "responses": [row["completion"], "9"], "scores": [1.0, 0.0]} for row in tiny.sums(14)
    ]
    tiny.write(tmp_path / "rows.jsonl", rows)
    source = {"path": str(tmp_path / "rows.jsonl"), "responses": {"from": "responses", "score": "scores"}}
    none = {"kind": "none", "truth": None, "prompt": None}
    training = {"steps": 20, "batch_size": 14, "learning_rate": 1e-2, "checkpoint_every": 20}
    recipe = gmpo({"data": [source], "train": training}, answers="data", critic=none, temperature=0.5)
    run(recipe, tmp_path / "run")
    steps = steps_of(tmp_path / "run")
    assert "critic/loss" not in steps[0] and steps[0]["pass/reward"] == 0.5
    assert [m["pass/number"] for m in steps[:3]] == [1.0, 2.0, 3.0]
    assert steps[-1]["nll"] < 0.7 * steps[0]["nll"]


def test_all_answers_equal_leave_the_policy_to_its_reference(gmpo: Make, tmp_path: Path) -> None:
    rows = [{"prompt": row["prompt"], "responses": ["1", "9"], "scores": [1.0, 1.0]} for row in tiny.sums(14)]
    tiny.write(tmp_path / "rows.jsonl", rows)
    source = {"path": str(tmp_path / "rows.jsonl"), "responses": {"from": "responses", "score": "scores"}}
    none = {"kind": "none", "truth": None, "prompt": None}
    run(gmpo({"data": [source]}, answers="data", critic=none), tmp_path / "run")
    for metrics in steps_of(tmp_path / "run"):
        assert metrics["gmpo/skipped_groups"] == 1.0
        assert metrics["loss"] == pytest.approx(0.0, abs=1e-3)  # the KL alone, of a policy that rounding moves

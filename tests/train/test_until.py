"""`train.until`: a stage ends once a metric has a value, the next one goes on, and resuming changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from preftune.config import UntilConfig
from preftune.errors import PreftuneError, UsageError
from preftune.pipeline import run_pipeline
from preftune.recipes import resolve
from preftune.train.until import Goal
from tests import tiny


def test_a_training_metric_is_averaged_over_the_window() -> None:
    goal = Goal(UntilConfig(metric="reward/x", at_least=0.5, window=3))
    assert [bool(goal.after_step({"reward/x": v})) for v in (0.9, 0.9, 0.0, 0.0, 0.6, 0.9)] == [
        False,
        False,
        True,
        False,
        False,
        True,
    ]  # fmt: skip  means of three: 0.6, 0.3, 0.2, 0.5
    assert goal.recent == [0.0, 0.6, 0.9]


def test_what_a_goal_says() -> None:
    low = Goal(UntilConfig(metric="loss", at_most=0.5, window=1))
    assert low.after_step({"loss": 0.6}) == ""
    assert low.after_step({"loss": 0.25}) == "loss is 0.25, at most 0.5 as train.until asks"
    high = Goal(UntilConfig(metric="validation/reward/x", at_least=0.5))
    assert high.after_step({"loss": 1.0}) == ""
    assert high.after_measuring("test", {"reward/x": 1.0}) == ""
    assert high.after_measuring("validation", {"reward/x": 0.4}) == ""
    assert high.after_measuring("validation", {"reward/x": 0.5}).startswith("validation/reward/x is 0.5, at least 0.5")


def test_an_unknown_metric_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(PreftuneError, match=r"reward/acuracy.*did you mean reward/accuracy\?"):
        Goal(UntilConfig(metric="reward/acuracy", at_least=1)).after_step({"reward/accuracy": 1.0})
    with pytest.raises(PreftuneError, match=r"did you mean validation/reward/exact\?"):
        goal = Goal(UntilConfig(metric="validation/reward/exct", at_least=1))
        goal.after_measuring("validation", {"reward/exact": 1.0})


def test_a_metric_that_is_missing_later_is_waited_for() -> None:
    goal = Goal(UntilConfig(metric="reward/x", at_least=1, window=2))
    assert goal.after_step({"reward/x": 1.0}) == ""
    assert goal.after_step({"loss": 1.0}) == ""
    assert goal.after_step({"reward/x": 1.0})


@pytest.mark.parametrize(
    ("until", "rest", "message"),
    [
        ({"metric": "loss"}, {}, "exactly one of at_least and at_most"),
        ({"metric": "test/nll", "at_most": 1}, {}, "before and after training only"),
        ({"metric": "validation/nll", "at_most": 1}, {"eval": {"holdout": 2}}, "eval.every"),
        ({"metric": "validation/nll", "at_most": 1}, {"eval": {"every": 2}}, "needs validation rows"),
    ],
)
def test_goals_that_can_never_be_reached_are_refused(until: dict[str, Any], rest: dict[str, Any], message: str) -> None:
    recipe = {
        "method": "sft",
        "model": {"path": "m"},
        "data": {"path": "d.jsonl"},
        "train": {"steps": 5, "until": until},
    }
    with pytest.raises(UsageError, match=message):
        resolve(recipe | rest)


def _curriculum(folder: Path, output: Path) -> dict[str, Any]:
    """Two stages of SFT: the first ends by its goal long before its 40 steps."""
    goal = {"metric": "validation/nll", "at_most": 3.5}
    return {
        "method": "sft", "name": "curriculum", "output": str(output), "seed": 3,
        "data": {"path": str(folder / "rows.jsonl")},
        "eval": {"holdout": 4, "every": 2},
        "log": {"sinks": []},
        "stages": [
            {"name": "one", "model": {"path": str(folder / "model")},
             "train": {"steps": 40, "learning_rate": 5e-3, "until": goal, "checkpoint_every": 2}},
            {"name": "two", "model": {"path": "stage:one"}, "train": {"steps": 3}},
        ],
    }  # fmt: skip


def test_stages_end_by_their_goal_and_resume_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.save(tmp_path / "model")
    tiny.write(tmp_path / "rows.jsonl", tiny.sums(35))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_pipeline(resolve(_curriculum(tmp_path, whole)))
    summary = json.loads((whole / "one" / "summary.json").read_text())
    assert 2 <= summary["steps"] < 40
    assert summary["status"].startswith(f"stopped at step {summary['steps']}: validation/nll is ")
    measured = [line for line in tiny.lines(whole / "one" / "metrics.jsonl") if line["kind"] == "eval"]
    nll = [line["metrics"]["nll"]["value"] for line in measured]
    assert nll[-1] <= 3.5 and min(nll[:-1]) > 3.5, "it ended at the first measurement that reached the goal, no other"
    assert json.loads((whole / "two" / "summary.json").read_text())["steps"] == 3

    from preftune.train import loop

    steps = 0
    real = loop._Loop._update

    def interrupted(self: Any, step: int, prepared: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise KeyboardInterrupt
        return real(self, step, prepared)

    monkeypatch.setattr(loop._Loop, "_update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(resolve(_curriculum(tmp_path, broken)))
    monkeypatch.undo()
    run_pipeline(resolve(_curriculum(tmp_path, broken)), resume=True)
    for stage in ("one", "two"):
        assert tiny.timeless(whole / stage) == tiny.timeless(broken / stage)
        one, other = ((f / stage / "final" / "model.safetensors").read_bytes() for f in (whole, broken))
        assert one == other


def test_the_window_outlives_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A goal over five steps that is broken off after three of them needs two more, not five."""
    tiny.save(tmp_path / "model")
    tiny.write(tmp_path / "rows.jsonl", tiny.sums(35))
    recipe = {
        "method": "sft", "output": str(tmp_path / "run"), "model": {"path": str(tmp_path / "model")},
        "data": {"path": str(tmp_path / "rows.jsonl")}, "log": {"sinks": []},
        "train": {"steps": 20, "until": {"metric": "loss", "at_most": 1e9, "window": 5}},
    }  # fmt: skip
    from preftune.train import loop

    real = loop._Loop._update

    def interrupted(self: Any, step: int, prepared: Any) -> Any:
        if step == 4:
            raise KeyboardInterrupt
        return real(self, step, prepared)

    monkeypatch.setattr(loop._Loop, "_update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(resolve(recipe))
    monkeypatch.undo()
    result = run_pipeline(resolve(recipe), resume=True)
    assert result is not None and result.last.steps == 5

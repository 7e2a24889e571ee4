"""Runs that act, killed and gone on with: the unbroken run bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from preftune.config import Recipe
from preftune.errors import CheckpointError, RewardError
from preftune.train.loop import run
from tests import tiny
from tests.torture import kill
from tests.train.acting import LORA, columns, recipe_of
from tests.train.test_resume import interrupt_at

STEPS: dict[str, Any] = {"steps": 4, "batch_size": 2, "checkpoint_every": 2, "learning_rate": 1e-2}
DEAD = [{"name": "regex", "args": {"pattern": "[a-z]"}}]
"""Most answers of random characters hold a letter: groups without spread are frequent."""


def variant(home: Path, rewards: dict[str, Path], name: str) -> Recipe:
    made = {
        "ppo": lambda: recipe_of(
            home, rewards["whole"], train={**STEPS, "minibatches": 2, "updates_per_batch": 2},
            policy={"kl_target": 0.01, "kl_horizon": 10}, eval={"holdout": 3, "every": 3, "best": "reward/mean"},
        ),
        "ppo-lora": lambda: recipe_of(
            home, rewards["lora"], model={"lora": {**LORA, "dropout": 0.1}}, train=STEPS, value={"warmup_steps": 3},
        ),
        "dapo": lambda: recipe_of(home, None, method="grpo", policy={"preset": "dapo"}, rewards=DEAD, train=STEPS),
        "rloo": lambda: recipe_of(
            home, rewards["whole"], method="grpo", policy={"preset": "rloo", "kl_target": 0.01, "kl_horizon": 10},
            train=STEPS,
        ),
    }  # fmt: skip
    return made[name]()


@pytest.mark.parametrize("name", ["ppo", "ppo-lora", "dapo", "rloo"])
def test_kill_9_and_resume(home: Path, rewards: dict[str, Path], tmp_path: Path, name: str) -> None:
    recipe = variant(home, rewards, name)
    note = tmp_path / "count"

    def unbroken() -> None:
        total = kill.operations(tmp_path / "unbroken")
        run(recipe, tmp_path / "unbroken")
        note.write_text(str(total()))

    assert kill.in_child(unbroken) == 0
    logged = columns(tmp_path / "unbroken")
    if name == "dapo":
        assert sum(m["resample/rounds"] for m in logged) > 0
    else:
        assert len({m["kl/beta"] for m in logged}) == (1 if name == "ppo-lora" else 4)
    for number in kill.moments(int(note.read_text()), 2, seed=3):
        folder = tmp_path / f"run-{number}"
        assert kill.kill_at_operation(recipe, folder, number)
        kill.finish(recipe, folder)
        assert tiny.same_run(tmp_path / "unbroken", folder) == [], f"killed at operation {number}"


@pytest.mark.parametrize("name", ["ppo", "ppo-lora", "dapo", "rloo"])
def test_interrupted_at_a_step(home: Path, rewards: dict[str, Path], tmp_path: Path, monkeypatch, name: str) -> None:
    """Not at a checkpoint's step, in the middle of the value head's warm-up, after β moved."""
    recipe = variant(home, rewards, name)
    run(recipe, tmp_path / "unbroken")
    with monkeypatch.context() as patch:
        interrupt_at(patch, "_Prepared", 4)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "step-3").exists()
    run(recipe, tmp_path / "run", resume=True)
    assert tiny.same_run(tmp_path / "unbroken", tmp_path / "run") == []


def test_a_reward_that_fails_mid_run_leaves_a_checkpoint(home: Path, rewards: dict[str, Path], tmp_path: Path) -> None:
    recipe = variant(home, rewards, "ppo")

    def make(broken: list[bool]) -> Any:
        def flaky(completions, trainer_state, **_):
            if broken and trainer_state.global_step == 3:
                raise OSError("the file server is down")
            return [float(len(c)) for c in completions]

        return flaky

    recipe = recipe.model_copy(update={"rewards": []})
    run(recipe, tmp_path / "unbroken", functions=[make([])])
    with pytest.raises(RewardError, match=r"flaky.*OSError: the file server is down"):
        run(recipe, tmp_path / "run", functions=[make([True])])
    steps = sorted(int(p.name[5:]) for p in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert steps[-1] == 3
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"].startswith("failed: reward 'flaky'")
    run(recipe, tmp_path / "run", resume=True, functions=[make([])])
    assert tiny.same_run(tmp_path / "unbroken", tmp_path / "run") == []


def test_a_value_head_of_another_shape_is_no_checkpoint_to_go_on_from(
    home: Path, rewards: dict[str, Path], tmp_path: Path
) -> None:
    from preftune.models.loading import load_policy
    from preftune.train.checkpoint import load_latest, restore
    from preftune.train.progress import Progress
    from preftune.train.session import Session

    recipe = variant(home, rewards, "ppo-lora")
    run(recipe, tmp_path / "run")
    found, _ = load_latest(tmp_path / "run" / "checkpoints")
    assert found is not None
    session = Session.open(recipe, functions=(), base_dir=None, progress=Progress("test"))
    assert {n for n in found.weights if "value" in n} == {n for n, _ in session.head.parameters()}
    without = load_policy(recipe.model, seed=recipe.seed)
    with pytest.raises(CheckpointError, match=r"of another model: parameter \S*value\S* differs"):
        restore(found, without.trainable(), session.optimizer)

"""PPO learns: a reward rises by much more than chance for several seeds, and a random one raises nothing."""

from __future__ import annotations

import random
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import pytest

from preftune.train.loop import run
from tests.train.acting import LORA, columns, recipe_of

SHORT = {"name": "length", "args": {"at_most": 2, "ramp": 4}}


def rise(folder: Path) -> tuple[float, float]:
    """How much the length reward rose from the first five steps to the last five, and the standard error of that."""
    found = [m["reward/length"] for m in columns(folder)]
    first, last = found[:5], found[-5:]
    return fmean(last) - fmean(first), ((stdev(first) ** 2 + stdev(last) ** 2) / 5) ** 0.5


def recipe(home: Path, seed: int, weight: float, beta: float = 0.05, **changes: Any) -> Any:
    return recipe_of(
        home, None, seed=seed, rewards=[{**SHORT, "weight": weight}], sampling={"group_size": 4, "max_tokens": 6},
        policy={"missing_eos_penalty": 0.0, "beta": beta},
        train={"steps": 30, "batch_size": 8, "learning_rate": 3e-3, "schedule": "constant", "checkpoint_every": 50,
               "updates_per_batch": 2, "minibatches": 2},
        **changes,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_ppo_raises_the_reward_and_noise_does_not(home: Path, tmp_path: Path, seed: int) -> None:
    run(recipe(home, seed, 1.0), tmp_path / "ppo")
    gain, error = rise(tmp_path / "ppo")
    assert gain > 0.3 and gain > 3 * error
    explained = [m["value/explained_variance"] for m in columns(tmp_path / "ppo")]
    assert median(explained[5:]) > 0.05  # the value head knows something of what is coming

    def noise(completions, **_):
        return [random.random() - 0.5 for _ in completions]

    # Without the KL: noise drives the policy from its reference, and then a short answer costs less KL than a long one.
    run(recipe(home, seed, 0.0, beta=0.0), tmp_path / "noise", functions=[noise])
    drift, error = rise(tmp_path / "noise")
    assert drift < 0.2 and drift < gain / 2


def test_ppo_with_shared_roles_learns(home: Path, rewards: dict[str, Path], tmp_path: Path) -> None:
    """Policy, value head and reward model on one frozen base."""
    made = recipe(home, 1, 1.0, model={"lora": {**LORA, "r": 8, "alpha": 16}}, value={"path": str(rewards["lora"])})
    train = made.train.model_copy(update={"learning_rate": 1e-2, "steps": 16})
    run(made.model_copy(update={"train": train}), tmp_path / "run")
    gain, error = rise(tmp_path / "run")
    assert gain > 0.2 and gain > 3 * error

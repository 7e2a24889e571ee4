"""Fixtures: one tiny model for the session, and recipes around it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from preftune.config import Recipe
from tests import tiny
from tests.train import acting

torch.set_num_threads(1)

Make = Callable[..., Recipe]


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, data and validation rows."""
    folder = tmp_path_factory.mktemp("home")
    tiny.save(folder / "model")
    tiny.save(folder / "wide", initializer_range=0.3)
    rows = tiny.sums(35)
    tiny.write(folder / "train.jsonl", rows[:28])
    tiny.write(folder / "validation.jsonl", rows[28:])
    return folder


@pytest.fixture(scope="session")
def rewards(home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reward models by kind, and another model as a reference."""
    return acting.make_rewards(home, tmp_path_factory.mktemp("rewards"))


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        out[key] = merged(out[key], value) if isinstance(out.get(key), dict) and isinstance(value, dict) else value
    return out


@pytest.fixture
def sft(home: Path) -> Make:
    """Makes an SFT recipe; keyword arguments are sections merged over it."""

    def make(**changes: Any) -> Recipe:
        base = {
            "method": "sft", "name": "sft", "model": {"path": str(home / "model")},
            "data": [{"path": str(home / "train.jsonl")}], "log": {"sinks": []},
            "train": {"steps": 6, "batch_size": 4, "learning_rate": 3e-3, "checkpoint_every": 2},
        }  # fmt: skip
        return Recipe.model_validate(merged(base, changes))

    return make


@pytest.fixture
def grpo(home: Path) -> Make:
    """Makes a GRPO recipe whose reward, short answers, tells a random model's answers apart."""

    def make(**changes: Any) -> Recipe:
        base = {
            "method": "grpo", "name": "grpo", "model": {"path": str(home / "model")},
            "data": [{"path": str(home / "train.jsonl")}], "log": {"sinks": [], "samples_every": 2},
            "sampling": {"group_size": 4, "max_tokens": 6},
            "rewards": [{"name": "length", "args": {"at_most": 2, "ramp": 4}}],
            "train": {"steps": 4, "batch_size": 3, "learning_rate": 1e-3, "checkpoint_every": 2},
        }  # fmt: skip
        return Recipe.model_validate(merged(base, changes))

    return make

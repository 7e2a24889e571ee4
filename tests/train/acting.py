"""Recipes of methods that act, and the reward models that they read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from preftune.config import Recipe
from preftune.recipes import resolve
from preftune.train.loop import run
from tests import tiny, tinyreward

LORA = {"r": 3, "alpha": 6}


def make_rewards(home: Path, folder: Path) -> dict[str, Path]:
    """Reward models: `whole`; `lora`, an adapter on the policy's base; `stranger`, of another tokenizer; and another
    model of the policy's kind as a reference."""
    pairs = [{"prompt": f"{a}+1=", "chosen": f"{a + 1}", "rejected": "no"} for a in range(9)]
    recipe = {
        "method": "reward", "model": {"path": str(home / "wide"), "lora": LORA}, "log": {"sinks": []},
        "data": {"path": str(tiny.write(folder / "pairs.jsonl", pairs))},
        "train": {"steps": 8, "batch_size": 9, "learning_rate": 5e-2},
    }  # fmt: skip
    run(Recipe.model_validate(recipe), folder / "run")
    stranger = tinyreward.save(folder / "stranger", seed=2)
    file = stranger / "tokenizer.json"  # the same characters, with other ids
    settings = json.loads(file.read_text())
    vocabulary = settings["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(settings))
    return {
        "whole": tinyreward.save(folder / "whole", seed=1), "lora": folder / "run" / "final", "stranger": stranger,
        "reference": tiny.save(folder / "reference", seed=4, initializer_range=0.3),
    }  # fmt: skip


def recipe_of(home: Path, reward: Path | None, **changes: Any) -> Recipe:
    """A PPO recipe as the command line resolves it: the method's own defaults beneath."""
    base: dict[str, Any] = {
        "method": "ppo", "name": "ppo", "seed": 3, "model": {"path": str(home / "wide")},
        "data": {"path": str(home / "train.jsonl")}, "log": {"sinks": []},
        "sampling": {"group_size": 2, "max_tokens": 6, "temperature": 0.8},
        "train": {"steps": 1, "batch_size": 3, "learning_rate": 1e-3, "checkpoint_every": 1},
        "rewards": [{"name": "reward-model", "args": {"path": str(reward)}}] if reward else [{"name": "exact"}],
    }  # fmt: skip
    for section, value in changes.items():
        base[section] = {**base[section], **value} if isinstance(base.get(section), dict) else value
    return resolve(base, functions=() if base["rewards"] else (print,)).stages[0]


def columns(folder: Path) -> list[dict[str, Any]]:
    """The metrics of every training step."""
    return [line["metrics"] for line in tiny.lines(folder / "metrics.jsonl") if line["kind"] == "train"]

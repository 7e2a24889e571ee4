"""`stage:NAME` as the path of a reward model: one recipe trains it and uses it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from preftune.errors import UsageError
from preftune.pipeline import run_pipeline
from preftune.recipes import resolve
from tests import tiny, tinyreward

torch.set_num_threads(1)


def recipe(folder: Path, reward: str, **rm: Any) -> dict[str, Any]:
    """A reward model, then GRPO against it."""
    return {
        "name": "two", "output": str(folder / "run"), "log": {"sinks": []},
        "model": {"path": str(folder / "model")},
        "train": {"steps": 1, "batch_size": 4, "learning_rate": 1e-2},
        "stages": [
            {"name": "rm", "method": "reward", "data": {"path": str(folder / "pairs.jsonl")}, **rm},
            {
                "name": "rl", "method": "grpo", "data": {"path": str(folder / "prompts.jsonl")},
                "sampling": {"group_size": 2, "max_tokens": 4},
                "rewards": [{"name": "reward-model", "args": {"path": reward}}],
            },
        ],
    }  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Path:
    tiny.save(tmp_path / "model", initializer_range=0.3)
    rows = tiny.sums(8)
    tiny.write(tmp_path / "prompts.jsonl", [{"prompt": row["prompt"]} for row in rows])
    pairs = [{"prompt": row["prompt"], "chosen": row["answer"], "rejected": f"{row['answer']}0"} for row in rows]
    tiny.write(tmp_path / "pairs.jsonl", pairs)
    return tmp_path


def test_a_stage_is_scored_by_the_reward_model_of_an_earlier_one(home: Path) -> None:
    result = run_pipeline(resolve(recipe(home, "stage:rm")))
    assert result is not None
    final = home / "run" / "rm" / "final"
    assert f"path: {final}" in (home / "run" / "rl" / "recipe.yaml").read_text()
    samples = tiny.lines(home / "run" / "rl" / "samples.jsonl")
    assert len(samples) > 4
    for sample in samples:
        ended = "<eos>" if sample["finish"] == "eos" else ""  # most are cut: an untrained model rarely ends
        expected = tinyreward.plain_score(final, f"{sample['prompt']}{sample['completion']}{ended}")
        assert sample["breakdown"]["reward-model"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("reward", "rm", "message"),
    [
        ("stage:rmm", {}, r"stage:rmm names no earlier stage; did you mean stage:rm\?"),
        ("stage:rl", {}, "stage:rl names no earlier stage"),
        ("stage:rm", {"method": "sft"}, r"stage rm trains with sft, so it is no reward model \(method reward\)"),
    ],
)
def test_a_stage_that_gives_no_reward_model_is_named(home: Path, reward: str, rm: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=rf"rewards\.0\.args\.path: {message}"):
        resolve(recipe(home, reward, **rm))

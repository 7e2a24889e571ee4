"""The GMPO demo: a model that forgets to carry learns to, judged by a critic that learns to see the error.

The critic never sees the right answer: it reads a question and what the policy wrote, explains, and scores. Only its own
training knows who was right. Policy and critic are two adapters on one base.

The base has met critiques of worked sums, so that it knows their form and words, but their verdicts were thrown by a
coin: what it can't know is which sums are wrong. What the critic knows of that it learns here.
"""

from __future__ import annotations

import json
import random
import re
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from preftune.demo.arithmetic import problems
from preftune.demo.base import CARRY_SHARE, ROWS_PER_STEP, STEPS, Teacher, base_recipe, build_tokenizer, random_model
from preftune.demo.base import train_base as train
from preftune.demo.grpo import ACCURACY, TEST_ROWS, WELL_FORMED_REWARD, print_table, write_task
from preftune.errors import UsageError
from preftune.rewards.critic_text import right_and_wrong, templated_critique

CHECK = "\nCheck:"
LAYOUT = "{question}{answer}" + CHECK
"""What the critic reads: the policy's own text, then a word that asks for a verdict."""
CRITIQUE_SHARE = 0.25
"""Share of critiques among the texts that the base learns from."""
GMPO_STEPS = 60


def tokenizer_pieces() -> list[str]:
    """What the arithmetic demo's tokenizer lacks for critiques."""
    texts = [CHECK, "critique score", *(text for side in right_and_wrong() for text in side)]
    found = sorted({word for text in texts for word in re.findall(r"[^\W\d_]+", text.replace("{end}", ""))})
    return ["<", ">", "/", *(space + word for word in found for space in (" ", ""))]


def base_texts(seed: int) -> Iterator[dict[str, str]]:
    """Endless texts that the base learns from: sums worked by someone who mostly forgets to carry, and critiques of
    such sums whose verdict is thrown by a coin."""
    rng, teacher = random.Random(f"critiques/{seed}"), Teacher(seed)
    for problem in problems("train", seed, CARRY_SHARE):
        worked = teacher(problem)
        if rng.random() < CRITIQUE_SHARE:
            verdict = templated_critique(worked, None, truth=float(rng.random() < 0.5), rng=rng)
            yield {"prompt": problem.prompt + worked + CHECK, "completion": verdict}
        else:
            yield {"prompt": problem.prompt, "completion": worked}


def build_base(folder: Path, seed: int, steps: int = STEPS) -> Path:
    """Make the base model; its folder is a standard model folder.

    Args:
        folder: where data, runs and model go; made if absent.
        seed: fixes weights, data and training.
        steps: optimizer steps of SFT.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(tokenizer_pieces())
    rows = folder / "texts.jsonl"
    some = islice(base_texts(seed), ROWS_PER_STEP * steps)
    rows.write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    return train(base_recipe(folder, rows, seed, steps), tokenizer, random_model(tokenizer, seed))


def gmpo_recipe(base: Path, data: Path, output: Path, seed: int, steps: int = GMPO_STEPS) -> dict[str, Any]:
    """The recipe of the demo."""
    return {
        "method": "gmpo",
        "name": "gmpo",
        "output": str(output),
        "seed": seed,
        "model": {"path": str(base), "lora": {"r": 16, "alpha": 32}},
        "data": [{"path": str(data / "train.jsonl")}],
        "rewards": [ACCURACY, WELL_FORMED_REWARD],
        "sampling": {"group_size": 8, "max_tokens": 32, "temperature": 1.0},
        "gmpo": {
            "scale": 0.5,
            "critic": {
                "truth": "accuracy",
                "truth_args": ACCURACY["args"],
                "prompt": str(data / "critic.txt"),
                "max_tokens": 48,
                "learning_rate": 2e-3,
                "cold_start": 60,
                "cold_start_batch": 64,
            },
        },
        "train": {
            "steps": steps,
            "batch_size": 16,
            "learning_rate": 2e-3,
            "schedule": "constant",
            "warmup": 0.05,
            "checkpoint_every": 50,
        },
        "eval": {
            "data": [{"path": str(data / "validation.jsonl")}],
            "test": [{"path": str(data / "test.jsonl")}],
            "every": max(1, min(10, steps // 2)),
            "best": "reward/accuracy",
        },
        "log": {"samples_every": 10},
    }

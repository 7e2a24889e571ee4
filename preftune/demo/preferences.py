"""The demos of dpo, kto and reward: a base that answers stiffly, and preferences for friendly replies on topic."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

from preftune.demo.chat import SIZES, Kind, Split, marked, pairs, preference, write_rows
from preftune.demo.chat_base import STEPS as BASE_STEPS
from preftune.demo.chat_base import build_base
from preftune.demo.grpo import print_table
from preftune.demo.shared import check_free, close, run_recipe

Method: TypeAlias = Literal["dpo", "kto", "reward"]

METHODS: tuple[Method, ...] = ("dpo", "kto", "reward")
ROWS_PER_TOPIC = 10
"""Held-out rows about each topic."""
TRAIN_ROWS = 1920
MARKED_KINDS: dict[Kind, float] = {"style": 0.6, "topic": 0.4}
"""Kinds of pairs behind marked replies: a stiff reply on topic is bad in one and never good in another."""
STYLE_KINDS: dict[Kind, float] = {"style": 1.0}
"""Kinds of pairs for the reward model: friendly over stiff, all on topic. It learns the other kinds too slowly and
unreliably to be shown in minutes: to tell topics that no pair speaks of apart is more than style (docs/log.md)."""
FILES: dict[Method, tuple[str, str]] = {
    "dpo": ("pairs.jsonl", "{split}.jsonl"),
    "kto": ("marked.jsonl", "{split}.jsonl"),
    "reward": ("styles.jsonl", "styles-{split}.jsonl"),
}
"""What each method trains on, and what it is measured on."""
GOAL = "reward/friendly_on_topic"

MEASURED: list[dict[str, Any]] = [
    {"name": "preftune.demo.chat:friendly_on_topic"},
    {"name": "preftune.demo.chat:friendly", "weight": 0.0},
    {"name": "preftune.demo.chat:on_topic", "weight": 0.0},
    {"name": "preftune.demo.chat:well_written", "weight": 0.0},
]
"""What sampled answers are measured by. No method here trains on them."""

BETA = 0.5
"""Five times the usual 0.1. A base of this size forgets its language before a weak pull to the reference is felt: with
0.1 DPO won its pairs by broken sentences (docs/log.md)."""

TRAINING: dict[Method, dict[str, Any]] = {
    "dpo": {"steps": 120, "batch_size": 16, "learning_rate": 2e-4},
    "kto": {"steps": 100, "batch_size": 32, "learning_rate": 3e-4},
    "reward": {"steps": 40, "batch_size": 16, "learning_rate": 3e-4},
}


def write_task(folder: Path, seed: int, *, rows: int = TRAIN_ROWS, shuffled: bool = False) -> None:
    """Preferences and marked replies to train on, and pairs about other topics to choose the checkpoint by and to
    report on.

    Args:
        rows: pairs to train on, and marked replies.
        shuffled: the control. A coin decides which reply of a training pair is the better one, and marks are dealt
            anew among the marked replies. Held-out rows stay as they are.
    """
    rng = random.Random(f"rows/{seed}")
    files: dict[str, list[dict[str, Any]]] = {
        "pairs": [preference(pair) for pair in islice(pairs("train", seed), rows)],
        "styles": [preference(pair) for pair in islice(pairs("train", seed, STYLE_KINDS), rows)],
    }
    replies = [
        marked(pair, good=rng.random() < 0.5) for pair in islice(pairs("train", seed + 1000, MARKED_KINDS), rows)
    ]
    if shuffled:
        files = {name: [_swapped(row) if rng.random() < 0.5 else row for row in some] for name, some in files.items()}
        labels = [row["label"] for row in replies]
        rng.shuffle(labels)
        replies = [{**row, "label": label} for row, label in zip(replies, labels, strict=True)]
    files["marked"] = replies
    held_out: tuple[Split, ...] = ("validation", "test")
    for split in held_out:
        count = ROWS_PER_TOPIC * SIZES[split]
        files[split] = [preference(pair) for pair in islice(pairs(split, seed), count)]
        files[f"styles-{split}"] = [preference(pair) for pair in islice(pairs(split, seed, STYLE_KINDS), count)]
    for name, some in files.items():
        write_rows(folder / f"{name}.jsonl", some)


def _swapped(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "chosen": row["rejected"], "rejected": row["chosen"]}


def recipe(method: Method, base: Path, data: Path, output: Path, seed: int, steps: int | None = None) -> dict[str, Any]:
    """The recipe of a demo. Full weights: an adapter saves nothing at half a million parameters."""
    training = dict(TRAINING[method])
    training["steps"] = steps or training["steps"]
    trained, held_out = FILES[method]
    out: dict[str, Any] = {
        "method": method,
        "name": method,
        "output": str(output),
        "seed": seed,
        "model": {"path": str(base)},
        "data": [{"path": str(data / trained)}],
        "train": {
            **training,
            "schedule": "linear",
            "warmup": 0.1,
            "checkpoint_every": 10_000,
        },
        "eval": {
            "data": [{"path": str(data / held_out.format(split="validation"))}],
            "test": [{"path": str(data / held_out.format(split="test"))}],
            "every": max(1, training["steps"] // 5),
            # A reward model's accuracy is full long before its margins are: the last step is as good as any.
            **({} if method == "reward" else {"best": GOAL}),
        },
    }
    if method != "reward":
        # Answers are drawn at temperature 1: greedy ones would turn from all stiff to all friendly as soon as friendly
        # ones pass a half, and so make little of a change look like all of it.
        out["rewards"] = MEASURED
        out["sampling"] = {"max_tokens": 64, "temperature": 1.0}
        out["eval"]["temperature"] = 1.0
        out["train"]["reference_cache"] = str(data / "reference")
        out["loss"] = {"beta": BETA}
    return out


def run(method: Method, *, output: Path, seed: int = 0, quick: bool = False) -> int:
    """Build the base, measure, train, measure again; print before → after and where the report is.

    Args:
        output: folder for everything; it must not exist.
        quick: a few steps of each, to see that all parts work; nothing is learnt.

    Returns:
        0.

    Raises:
        UsageError: `output` exists.
    """
    start = check_free(output)
    print("1/3 a tiny base model learns to chat, mostly stiffly", file=sys.stderr)
    base = build_base(output / "base", seed, steps=20 if quick else BASE_STEPS)
    write_task(output / "data", seed)
    settings = recipe(method, base, output / "data", output / method, seed, 4 if quick else None)
    print(f"2/3 measured on topics that no preference speaks of, then {_WORDS[method]}", file=sys.stderr)
    result = run_recipe(settings, output)
    print("3/3 done", file=sys.stderr)
    last = result.last
    print_table(
        f"{ROWS_PER_TOPIC * SIZES['test']} held-out {'pairs' if method == 'reward' else 'prompts, temperature 1'}, "
        f"{SIZES['test']} topics; 95 % intervals in brackets",
        _ROWS, last.before["test"], last.after["test"], last.difference["test"],
    )  # fmt: skip
    return close(result, output, start)


_WORDS: dict[Method, str] = {
    "dpo": "DPO on pairs of replies",
    "kto": "KTO on single replies, each marked good or bad",
    "reward": "a reward model on pairs of replies",
}
_ROWS = {
    GOAL: "friendly and on topic, %",
    "reward/friendly": "friendly, %",
    "reward/on_topic": "on topic, %",
    "reward/well_written": "whole sentences, in order, %",
    "rewards/accuracy": "pairs in the right order, %",
    "length/mean": "tokens per answer",
}

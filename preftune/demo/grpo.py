"""The GRPO demo: a model that forgets to carry learns to, from nothing but right-or-wrong."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preftune.demo.arithmetic import WELL_FORMED, Split, problems, take, write_rows
from preftune.demo.base import CARRY_SHARE, STEPS, build_base
from preftune.demo.shared import check_free, close, run_recipe

TRAIN_ROWS, VALIDATION_ROWS, TEST_ROWS = 4000, 200, 500
GRPO_STEPS = 60

ACCURACY = {"name": "accuracy", "args": {"extract": WELL_FORMED}}
WELL_FORMED_REWARD = {"name": "regex", "args": {"pattern": WELL_FORMED}, "weight": 0.1}


def write_task(folder: Path, seed: int) -> None:
    """Problems to train on, to choose the checkpoint by, and to report on; no two splits share a sum."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "train.jsonl", take(problems("train", seed + 1000, CARRY_SHARE), TRAIN_ROWS))
    sizes: dict[Split, int] = {"validation": VALIDATION_ROWS, "test": TEST_ROWS}
    for split, rows in sizes.items():
        held_out = take(problems(split, seed, CARRY_SHARE), rows, distinct_numbers=True)
        write_rows(folder / f"{split}.jsonl", held_out)


def grpo_recipe(base: Path, data: Path, output: Path, seed: int, steps: int = GRPO_STEPS) -> dict[str, Any]:
    """The recipe of the demo. Full weights: at a million parameters an adapter saves nothing, and by experiment
    it learns less in as many steps (docs/log.md)."""
    return {
        "method": "grpo",
        "name": "grpo",
        "output": str(output),
        "seed": seed,
        "model": {"path": str(base)},
        "data": [{"path": str(data / "train.jsonl")}],
        "rewards": [ACCURACY, WELL_FORMED_REWARD],
        "sampling": {"group_size": 8, "max_tokens": 32, "temperature": 1.0},
        "train": {
            "steps": steps,
            "batch_size": 16,
            "learning_rate": 1e-4,
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


def run(*, output: Path, seed: int = 0, quick: bool = False) -> int:
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
    print("1/3 a tiny base model learns sums from someone who forgets to carry", file=sys.stderr)
    base = build_base(output / "base", seed, steps=20 if quick else STEPS)
    write_task(output / "data", seed)
    settings = grpo_recipe(base, output / "data", output / "grpo", seed, 4 if quick else GRPO_STEPS)
    print("2/3 measured on held-out problems, then GRPO: the answer is right or it is not", file=sys.stderr)
    result = run_recipe(settings, output)
    print("3/3 done", file=sys.stderr)
    last, title = result.last, f"{TEST_ROWS} held-out problems, greedy; 95 % intervals in brackets"
    print_table(title, _ROWS, last.before["test"], last.after["test"], last.difference["test"])
    return close(result, output, start)


_ROWS = {
    "reward/accuracy": "right answers, %",
    "reward/regex": "well formed, %",
    "length/mean": "tokens per answer",
}


def print_table(title: str, rows: Mapping[str, str], before: Any, after: Any, difference: Any) -> None:
    """Before → after of those metrics of `rows` (metric → label) that were measured; shares in per cent."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for column in ("", "before", "after", "difference"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for name, label in rows.items():
        if name not in before:
            continue
        scale = 100.0 if label.endswith("%") else 1.0
        table.add_row(label, *(_cell(x.get(name), scale) for x in (before, after, difference)))
    # A pipe has no width of its own, and 80 columns would cut the intervals.
    console = Console()
    Console(width=max(console.width, 100)).print(table)


def _cell(interval: Any, scale: float) -> str:
    if interval is None:
        return "–"
    if not interval.is_bounded:  # all rows equal, and no share
        return f"{scale * interval.value:.1f}"
    return f"{scale * interval.value:.1f} ({scale * interval.low:.1f} … {scale * interval.high:.1f})"

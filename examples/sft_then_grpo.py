"""Two methods in a row from Python: show the format by SFT, then improve by GRPO.

    python examples/sft_then_grpo.py Qwen/Qwen3-0.6B-Base

Each run has its own folder; the second starts from the first one's `final/`. In a recipe the same is `stages:`
(docs/recipes.md), which also resumes as a whole.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import preftune
from preftune.train import RunResult

ROWS = [
    {"prompt": f"{a}+{b}=", "completion": f"<{a + b}>", "answer": str(a + b)} for a in range(2, 9) for b in range(2, 9)
]
"""SFT learns `completion`. GRPO ignores it and gives `answer` to the rewards."""

REWARDS: list[dict[str, Any]] = [
    # The number between the brackets, compared with the column `answer`.
    {"name": "accuracy", "args": {"extract": r"<(\d+)>"}},
    {"name": "regex", "weight": 0.1, "args": {"pattern": r"<\d+>", "full": True}},
]


def train(
    model: str, output: Path, *, sft_steps: int, grpo_steps: int, learning_rate: float = 1e-5
) -> tuple[RunResult, RunResult]:
    """Both runs, into two folders inside `output`."""
    first = preftune.train(
        "sft",
        model=model,
        data=ROWS[:40],
        output=output / "sft",
        train={"steps": sft_steps, "batch_size": 8, "learning_rate": learning_rate},
    )
    second = preftune.train(
        "grpo",
        model=str(first.folder / "final"),
        data=ROWS[:40],
        eval_data=ROWS[40:],
        rewards=REWARDS,
        output=output / "grpo",
        sampling={"group_size": 8, "max_tokens": 8},
        train={"steps": grpo_steps, "batch_size": 8, "learning_rate": learning_rate / 5},
    )
    return first, second


def main() -> None:
    parser = argparse.ArgumentParser(description="SFT, then GRPO.")
    parser.add_argument("model", help="a model folder or hub id")
    parser.add_argument("--output", type=Path, default=Path("runs/sft-then-grpo"), help="a new folder")
    given = parser.parse_args()
    for result in train(given.model, given.output, sft_steps=20, grpo_steps=50):
        print(result.report)


if __name__ == "__main__":
    main()

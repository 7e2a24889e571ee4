"""GRPO with a reward of your own, from Python.

    python examples/own_reward.py Qwen/Qwen3-0.6B-Base --steps 50

A reward is a function of lists, one entry per completion: `prompts`, `completions`, and every further column of the
rows under its name (here `answer`). It returns a number for each completion; None leaves one out.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import preftune

if TYPE_CHECKING:  # reward workers import this file: without torch they start in no time
    from preftune.train import RunResult

ROWS = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(2, 9) for b in range(2, 9)]
"""Rows are mappings. `prompt` is what the model continues; the reward sees all other columns."""


def brief_and_right(completions: list[str], answer: list[str], **columns: Any) -> list[float]:
    """1 for the right number and nothing else; otherwise up to 0.5 for the share of digits.

    A graded reward: completions of one prompt differ in it even while none of them is right, and GRPO learns from
    differences inside a group alone.
    """
    scores = []
    for text, truth in zip(completions, answer, strict=True):
        said = text.strip()
        digits = sum(character.isdecimal() for character in said)
        scores.append(1.0 if said == truth else 0.5 * digits / max(len(said), 1))
    return scores


def train(model: str, output: Path, *, steps: int, learning_rate: float = 1e-5) -> RunResult:
    """Run it. The report is `result.report`, the model `result.folder / "final"`."""
    return preftune.train(
        "grpo",
        model=model,
        data=ROWS[:40],
        eval_data=ROWS[40:],  # never trained on: measured before and after
        rewards=[brief_and_right],
        output=output,
        sampling={"group_size": 8, "max_tokens": 8, "stop": ["\n"]},
        train={"steps": steps, "batch_size": 8, "learning_rate": learning_rate},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="GRPO with a reward of your own.")
    parser.add_argument("model", help="a model folder or hub id")
    parser.add_argument("--output", type=Path, default=Path("runs/own-reward"), help="run folder, a new one")
    parser.add_argument("--steps", type=int, default=50)
    given = parser.parse_args()
    result = train(given.model, given.output, steps=given.steps)
    before, after = result.before["test"]["reward/mean"], result.after["test"]["reward/mean"]
    print(f"reward {before.value:.3f} → {after.value:.3f}; {result.report}")


if __name__ == "__main__":
    main()

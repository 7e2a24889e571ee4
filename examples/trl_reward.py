"""Rewards written for TRL, unchanged.

    python examples/trl_reward.py Qwen/Qwen3-0.6B --steps 50

The two functions below are what one would give to TRL as `GRPOTrainer(reward_funcs=[close, polite], …)`. The prompts
are conversations, so `completions` holds lists with one assistant message each, as in TRL.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import preftune

if TYPE_CHECKING:  # reward workers import this file: without torch they start in no time
    from preftune.train import RunResult

ROWS = [
    {
        "prompt": [{"role": "user", "content": f"What is {a} times {b}? Say please and thank you."}],
        "answer": a * b if a % 3 else None,  # some rows have no truth
    }
    for a in range(2, 9)
    for b in range(2, 9)
]

Messages = list[dict[str, str]]


def close(
    completions: list[Messages],
    answer: list[int | None],
    log_extra: Callable[[str, list[Any]], None] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    **kwargs: Any,
) -> list[float | None]:
    """1 for the right number, less the further off; None where the row has no truth: the reward does not apply."""
    last = [re.findall(r"-?\d+", completion[-1]["content"])[-1:] for completion in completions]
    if log_extra is not None:
        log_extra("last_number", [numbers[0] if numbers else "" for numbers in last])
    if log_metric is not None:
        log_metric("share_with_a_number", sum(bool(numbers) for numbers in last) / len(last))
    scores: list[float | None] = []
    for numbers, truth in zip(last, answer, strict=True):
        if truth is None:
            scores.append(None)
        else:
            scores.append(1.0 / (1.0 + abs(int(numbers[0]) - truth)) if numbers else 0.0)
    return scores


def polite(completions: list[Messages], trainer_state: Any = None, **kwargs: Any) -> list[float]:
    """0.5 for `please`, 0.5 for `thank`; counts only in the second half of training."""
    late = trainer_state is None or trainer_state.global_step >= trainer_state.max_steps // 2
    texts = [completion[-1]["content"].lower() for completion in completions]
    return [0.5 * late * (("please" in text) + ("thank" in text)) for text in texts]


def train(model: str, output: Path, *, steps: int, **sections: Any) -> RunResult:
    """Run it with both functions. `sections` are further parts of the recipe."""
    settings: dict[str, Any] = {
        "sampling": {"group_size": 8, "max_tokens": 64},
        "train": {"steps": steps, "batch_size": 8, "learning_rate": 1e-5},
    }
    return preftune.train(
        "grpo", model=model, data=ROWS, rewards=[close, polite], output=output, **{**settings, **sections}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="GRPO with rewards written for TRL.")
    parser.add_argument("model", help="a model folder or hub id, with a chat template")
    parser.add_argument("--output", type=Path, default=Path("runs/trl-reward"), help="run folder, a new one")
    parser.add_argument("--steps", type=int, default=50)
    given = parser.parse_args()
    print(train(given.model, given.output, steps=given.steps).report)


if __name__ == "__main__":
    main()

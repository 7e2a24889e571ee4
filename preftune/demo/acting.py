"""The demos of ppo and iterative-dpo: the chat task, learnt by answering and being scored by a learned reward model.

Both begin with a reward model that is trained on pairs of a friendly and a stiff reply, both on topic. It knows about
style and nothing about topics, so staying on topic is up to the method.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal, TypeAlias

from preftune.demo.chat import SIZES
from preftune.demo.chat_base import STEPS as BASE_STEPS
from preftune.demo.chat_base import build_base
from preftune.demo.grpo import print_table
from preftune.demo.preferences import GOAL, MEASURED, ROWS_PER_TOPIC, TRAINING, write_task
from preftune.demo.shared import check_free, close, run_recipe

Method: TypeAlias = Literal["ppo", "iterative-dpo"]

METHODS: tuple[Method, ...] = ("ppo", "iterative-dpo")
ROUNDS = 3
PPO_STEPS = 50
SCORER = "reward/reward-model"
COIN = {"name": "preftune.demo.rewards:coin"}


def recipe(
    method: Method, base: Path, data: Path, output: Path, seed: int, *, quick: bool = False, coin: bool = False
) -> dict[str, Any]:
    """The recipe of a demo: a reward model, then PPO or three rounds of iterative DPO. Full weights: an adapter saves
    nothing at half a million parameters. No checkpoint is chosen: what the last step left is measured.

    Args:
        coin: the control. Answers are scored by a coin; the reward model measures alone.
    """
    scorer = {"name": "reward-model", "args": {"path": "stage:reward"}}
    rules = [{**reward, "weight": 0.0} for reward in MEASURED]
    rewards = [COIN, {**scorer, "weight": 0.0}, *rules] if coin else [scorer, *rules]
    prompts = [{"path": str(data / "pairs.jsonl"), "format": "preference"}]
    test = {"test": [{"path": str(data / "test.jsonl")}], "temperature": 1.0}
    reward: dict[str, Any] = {
        "name": "reward",
        "method": "reward",
        "data": [{"path": str(data / "styles.jsonl")}],
        "train": {**TRAINING["reward"], "schedule": "linear", **({"steps": 4} if quick else dict[str, Any]())},
        "eval": {"test": [{"path": str(data / "styles-test.jsonl")}]},
    }
    acting: dict[str, Any]
    if method == "ppo":
        acting = {
            "name": "ppo",
            "method": "ppo",
            "data": prompts,
            "sampling": {"max_tokens": 64, "group_size": 4},
            "train": {
                "steps": 4 if quick else PPO_STEPS, "batch_size": 16, "learning_rate": 1e-4, "schedule": "constant",
            },
            "eval": {
                **test, "data": [{"path": str(data / "validation.jsonl")}], "every": 2 if quick else PPO_STEPS // 5,
            },
        }  # fmt: skip
    else:
        acting = {
            "name": "round",
            "method": "iterative-dpo",
            "repeat": ROUNDS,
            "data": [{**prompts[0], "limit": 32 if quick else 480}],
            "sampling": {"max_tokens": 64, "group_size": 4},
            # β 0.5 for the reason that the DPO demo has. Twice the learning rate overshot on a seed that is not shown:
            # the third round lost topic and whole sentences. So did pairs of nearly equal scores (docs/log.md).
            "loss": {"beta": 0.5},
            "collect": {"margin": 0.0 if quick else 0.5},
            "train": {
                "epochs": 1 if quick else 2, "batch_size": 16, "learning_rate": 1e-4, "schedule": "linear",
                "reference_cache": str(data / "reference"),
            },
            "eval": test,
        }  # fmt: skip
    return {
        "name": method,
        "output": str(output),
        "seed": seed,
        "model": {"path": str(base)},
        "train": {"warmup": 0.1, "checkpoint_every": 10_000},
        "stages": [reward, {**acting, "rewards": rewards}],
    }


def run(method: Method, *, output: Path, seed: int = 0, quick: bool = False) -> int:
    """Build the base, train the reward model, let the policy act; print before → after and where the report is.

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
    settings = recipe(method, base, output / "data", output / method, seed, quick=quick)
    print(f"2/3 a reward model learns what is friendly; then {_WORDS[method]}", file=sys.stderr)
    result = run_recipe(settings, output)
    print("3/3 done", file=sys.stderr)
    title = (
        f"{ROWS_PER_TOPIC * SIZES['test']} held-out prompts, temperature 1, {SIZES['test']} topics; 95 % intervals in "
        "brackets"
    )
    first, last = result.stages[1], result.stages[-1]
    if method == "ppo":
        print_table(title, _ROWS, last.before["test"], last.after["test"], last.difference["test"])
    else:
        for number, stage in enumerate(result.stages[1:], 1):
            print_table(
                f"round {number}: {title}", _ROWS, stage.before["test"], stage.after["test"], stage.difference["test"]
            )
        print_table(f"first model → round {ROUNDS}", _ROWS, first.before["test"], last.after["test"], {})
    return close(result, output, start)


_WORDS: dict[Method, str] = {
    "ppo": "PPO against its scores",
    "iterative-dpo": f"{ROUNDS} rounds: answer, score, DPO on the best and the worst",
}
_ROWS = {
    GOAL: "friendly and on topic, %",
    "reward/friendly": "friendly, %",
    "reward/on_topic": "on topic, %",
    "reward/well_written": "whole sentences, in order, %",
    SCORER: "reward model's score",
    "length/mean": "tokens per answer",
}

"""The GMPO demo: a model that forgets to carry learns to, judged by a critic that learns to see the error.

The critic never sees the right answer: it reads a question and what the policy wrote, explains, and scores. Only its
own training knows who was right. Policy and critic are two adapters on one base.

The base has met critiques of worked sums, so that it knows their form and words, but their verdicts were thrown by a
coin: what it can't know is which sums are wrong. What the critic knows of that it learns here.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from peft import set_peft_model_state_dict
from safetensors.torch import load_file

from preftune.config import Recipe, RewardConfig
from preftune.data import load_examples
from preftune.demo.arithmetic import problems
from preftune.demo.base import CARRY_SHARE, ROWS_PER_STEP, STEPS, Teacher, base_recipe, build_tokenizer, random_model
from preftune.demo.base import train_base as train
from preftune.demo.grpo import ACCURACY, TEST_ROWS, WELL_FORMED_REWARD, print_table, write_task
from preftune.demo.shared import check_free, close, run_recipe
from preftune.engine.forward import Engine
from preftune.models.loading import load_policy
from preftune.models.roles import add_role
from preftune.records import Group
from preftune.rewards.base import build_rewards
from preftune.rewards.critic import Critic, Judged
from preftune.rewards.critic_text import right_and_wrong, templated_critique
from preftune.sampling.local import LocalSampler
from preftune.tokens import TokenContract

CHECK = "\nCheck:"
LAYOUT = "{question}{answer}" + CHECK
"""What the critic reads: the policy's own text, then a word that asks for a verdict."""
CRITIQUE_SHARE = 0.25
"""Share of critiques among the texts that the base learns from."""
GMPO_STEPS = 20
COLD_START = 100
MAX_CRITIQUE = 48
QUICK_BASE = 100
"""Steps of a quick run's base: fewer, and its critiques could not be read."""
JUDGED_PROBLEMS = 60
"""Test problems whose answers the critic is measured on, four answers each."""


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


def write_data(folder: Path, seed: int) -> None:
    """The GRPO demo's problems, and what the critic reads."""
    write_task(folder, seed)
    (folder / "critic.txt").write_text(LAYOUT, encoding="utf-8")


def gmpo_recipe(
    base: Path, data: Path, output: Path, seed: int, steps: int = GMPO_STEPS, cold_start: int = COLD_START
) -> dict[str, Any]:
    """The recipe of the demo.

    β is six times the default. The critic sees forgotten carries from the start and rare slips of digits only later;
    with a weak pull to the reference the policy comes to make the slips that it does not see (docs/methods/gmpo.md).
    """
    return {
        "method": "gmpo",
        "name": "gmpo",
        "output": str(output),
        "seed": seed,
        "model": {"path": str(base), "lora": {"r": 16, "alpha": 32}},
        "data": [{"path": str(data / "train.jsonl")}],
        "rewards": [ACCURACY, WELL_FORMED_REWARD],  # measured alone: the critic scores
        "sampling": {"group_size": 8, "max_tokens": 32, "temperature": 1.0},
        "gmpo": {
            "scale": 0.5,
            "min_temperature": 0.1,
            "min_spread": 0.1,
            "beta": 0.3,
            "critic": {
                "truth": "accuracy",
                "truth_args": ACCURACY["args"],
                "prompt": str(data / "critic.txt"),
                "max_tokens": MAX_CRITIQUE,
                "learning_rate": 1e-3,
                "cold_start": cold_start,
                "cold_start_batch": 64,
            },
        },
        "train": {
            "steps": steps,
            "batch_size": 8,
            "learning_rate": 1e-3,
            "schedule": "linear",
            "warmup": 0.05,
            "checkpoint_every": 50,
        },
        "eval": {
            "data": [{"path": str(data / "validation.jsonl")}],
            "test": [{"path": str(data / "test.jsonl")}],
            "every": max(1, min(5, steps // 2)),
            "best": "reward/accuracy",
        },
        "log": {"samples_every": 5},
    }


@contextmanager
def shuffled_scores(seed: int) -> Iterator[None]:
    """The control: within it a critic's scores are dealt anew among all answers of a batch, so that they say nothing of
    the answer that they are given to. All else, the critic's own training too, stays as it is."""
    honest = Critic.score

    def dealt(self: Critic, groups: Sequence[Group], *, step: int) -> Judged:
        judged = honest(self, groups, step=step)
        scores = [c.score for g in judged.groups for c in g.completions]
        random.Random(f"control/{seed}/{step}").shuffle(scores)
        deck = iter(scores)
        shuffled = (
            replace(g, completions=tuple(replace(c, score=next(deck)) for c in g.completions)) for g in judged.groups
        )
        return replace(judged, groups=tuple(shuffled))

    Critic.score = dealt  # type: ignore[method-assign]
    try:
        yield
    finally:
        Critic.score = honest  # type: ignore[method-assign]


def critic_on_held_out(
    base: Path, data: Path, adapter: Path | None, seed: int, problems: int = JUDGED_PROBLEMS
) -> dict[str, float]:
    """How well a critic tells the base's own answers to test problems apart, answers that no training saw.

    Args:
        adapter: folder that the run wrote the critic to; None: the base itself, asked as a critic.

    Returns:
        `critic/agreement` (area under the ROC curve), `critic/parsed` and the critic's other metrics.
    """
    recipe = Recipe.model_validate(gmpo_recipe(base, data, base, seed))
    policy = load_policy(recipe.model, seed=seed)
    engine = Engine(policy)
    contract = TokenContract(policy.tokenizer, recipe.tokens, policy.generation_eos)
    sampler = LocalSampler(engine, contract)
    assert recipe.model.lora is not None
    role = add_role(policy, "critic", recipe.model.lora, seed=seed)
    if adapter is not None:
        (weights,) = adapter.rglob("adapter_model.safetensors")
        set_peft_model_state_dict(policy.model, load_file(weights), adapter_name="critic")
    truth = RewardConfig(name="accuracy", args=ACCURACY["args"], weight=0.0)
    rows = load_examples(recipe.eval.test, seed=seed).examples[:problems]
    # A new adapter changes nothing, so these are the base's answers.
    answers = sampler.sample([contract.prompt(row) for row in rows], 4, recipe.sampling, seed=seed)
    with build_rewards([truth]) as rewards:
        critic = Critic(
            role, engine=engine, contract=contract, sampler=sampler, config=recipe.gmpo.critic, truth=rewards,
            instruction=LAYOUT, seed=seed, budget=4096,
        )  # fmt: skip
        return critic.judge(answers, step=0).metrics


def run(*, output: Path, seed: int = 0, quick: bool = False, control: bool = False) -> int:
    """Build the base, train policy and critic, measure both before and after; print it and where the report is.

    Args:
        output: folder for everything; it must not exist.
        quick: a few steps of each, to see that all parts work; nothing is learnt.
        control: deal the critic's scores out by chance (`shuffled_scores`).

    Returns:
        0.

    Raises:
        UsageError: `output` exists.
    """
    start = check_free(output)
    print("1/3 a tiny base model learns sums from someone who forgets to carry", file=sys.stderr)
    base = build_base(output / "base", seed, steps=QUICK_BASE if quick else STEPS)
    write_data(output / "data", seed)
    steps = (2, 10) if quick else (GMPO_STEPS, COLD_START)
    settings = gmpo_recipe(base, output / "data", output / "gmpo", seed, *steps)
    print("2/3 a critic learns to see errors, and the policy learns from its scores", file=sys.stderr)
    result = run_recipe(settings, output, shuffled_scores(seed) if control else None)
    print("3/3 done", file=sys.stderr)
    last, title = result.last, f"{TEST_ROWS} held-out problems, greedy; 95 % intervals in brackets"
    print_table(title, _ROWS, last.before["test"], last.after["test"], last.difference["test"])
    judged = [
        critic_on_held_out(base, output / "data", adapter, seed, 10 if quick else JUDGED_PROBLEMS)
        for adapter in (None, output / "gmpo" / "critic")
    ]
    told = [f"{m['critic/agreement']:.2f}" if "critic/agreement" in m else "–" for m in judged]
    print(f"the critic puts a right answer above a wrong one (0.5: by chance, 1: always): {told[0]} → {told[1]}")
    return close(result, output, start)


_ROWS = {
    "reward/accuracy": "right answers, %",
    "reward/regex": "well formed, %",
    "length/mean": "tokens per answer",
}


if __name__ == "__main__":  # python -m preftune.demo.gmpo FOLDER SEED [control]
    run(output=Path(sys.argv[1]), seed=int(sys.argv[2]), control="control" in sys.argv[3:])

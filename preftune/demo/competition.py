"""The competition demo: a model that writes careless contests about sums learns to write proper ones, by reward.

Three rounds, as in recipes/competition.yaml: form, roles and answer; then personas that check themselves and do not
copy; then length.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from preftune.demo.arithmetic import Split, problems, take
from preftune.demo.base import CARRY_SHARE, base_recipe, build_tokenizer, random_model, train_base
from preftune.demo.competition_texts import PERSONAS, Writer, tags, words, write_contests
from preftune.demo.grpo import print_table
from preftune.demo.shared import check_free, close, run_recipe
from preftune.records import Group
from preftune.train.evaluation import Measurement, difference, load_measurement
from preftune.train.session import Session

BASE_STEPS, BASE_ROWS, QUICK_BASE = 700, 32, 8
TRAIN_ROWS, TEST_ROWS, QUICK_ROWS = 1500, 300, 16
MAX_TOKENS = 200
AT_USE = 0.5
"""Temperature of held-out contests, as METHODS has it: a judge that is always of one mind shows nothing."""
RIGHT = "right"
"""Metric: 1 where the answer is right and free of tags. The reward for it is -1 with tags, which makes no share."""
STEPS = {"form": 50, "thought": 32, "length": 12}
"""Round → its steps at most."""


def build_base(folder: Path, seed: int, steps: int = BASE_STEPS) -> Path:
    """Make the base model, of a third of a million parameters. Returns its folder.

    Args:
        folder: where data, runs and model go; made if absent.
        seed: fixes weights, data and training.
        steps: optimizer steps of SFT.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(words(), tags())
    some = islice(problems("train", seed, CARRY_SHARE), BASE_ROWS * steps)
    rows = write_contests(folder / "contests.jsonl", some, Writer(seed))
    model = random_model(tokenizer, seed, width=96, layers=3, positions=384)
    return train_base(base_recipe(folder, rows, seed, steps, BASE_ROWS), tokenizer, model)


def write_task(folder: Path, seed: int, *, quick: bool = False) -> None:
    """Sums to train on and held-out ones; none is in both."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes: dict[Split, int] = {"train": TRAIN_ROWS, "test": QUICK_ROWS if quick else TEST_ROWS}
    for split, rows in sizes.items():
        write_contests(folder / f"{split}.jsonl", take(problems(split, seed, CARRY_SHARE), rows, distinct_numbers=True))


def rewards(stage: str) -> list[dict[str, Any]]:
    """A round's rewards. Every round has all of them, with weight 0 where it is not their turn, so that all rounds
    measure the same. The first ones are shares of contests, and only measured."""
    thought, length = float(stage != "form"), float(stage == "length")

    def reward(name: str, weight: float, label: str | None = None, **args: Any) -> dict[str, Any]:
        named = {"label": label} if label else {}
        return {"name": f"competition-{name}", "weight": weight, "args": args, **named}

    return [
        reward("structure", 0.0, "strict", partial=0),
        reward("winner", 0.0, "valid", partial=0),
        reward("copied", 0.0),
        reward("won", 0.0),
        reward("tags", 1.0),
        reward("structure", 1.0),
        reward("winner", 1.0),
        reward("answer", 2.0),
        reward("voice", 0.3),
        reward("originality", thought),
        reward("reflection", 0.5 * thought, enough=1),
        reward("reflective-winner", 0.5 * thought, enough=1),
        # Without it the bonus before goes to a persona that doubts itself and is wrong, while the answer is taken from
        # another one (docs/log.md).
        reward("winner-right", thought),
        reward("length", length, optimum=38),
    ]


def competition_recipe(base: Path, data: Path, output: Path, seed: int, *, quick: bool = False) -> dict[str, Any]:
    """The recipe of the demo. Full weights: at this size an adapter saves nothing. No checkpoint is chosen: what a
    round's last step left is measured, and goes on into the next one."""
    stages: list[dict[str, Any]] = []
    for name, most in STEPS.items():
        stage: dict[str, Any] = {"name": name, "rewards": rewards(name), "train": {"steps": 2 if quick else most}}
        if stages:
            stage["model"] = {"path": f"stage:{stages[-1]['name']}"}
        else:
            stage["train"]["until"] = {"metric": "reward/strict", "at_least": 0.75}
        stages.append(stage)
    return {
        "method": "grpo",
        "name": "competition",
        "output": str(output),
        "seed": seed,
        "competition": {"system": ""},  # the base never met a system message
        "model": {"path": str(base)},
        "data": [{"path": str(data / "train.jsonl")}],
        "sampling": {"group_size": 8, "max_tokens": 40 if quick else MAX_TOKENS, "temperature": 1.0},
        # Manners may cost it the sums: without this pull to the base, and at 3e-4, right answers fell from 53 to 18 %
        # in the second round (docs/log.md).
        "policy": {"beta": 0.05},
        "train": {
            "batch_size": 2 if quick else 16, "learning_rate": 2e-4, "schedule": "constant", "warmup": 0.15,
            "checkpoint_every": 1000,
        },
        "eval": {"test": [{"path": str(data / "test.jsonl")}], "temperature": AT_USE},
        "log": {"samples_every": 10},
        "stages": stages,
    }  # fmt: skip


def measured(output: Path) -> list[Measurement]:
    """The held-out rows of a finished run: before training, and after each round. With `RIGHT` besides the rewards."""
    out: list[Measurement] = []
    for name in STEPS:
        summary = json.loads((output / name / "summary.json").read_text(encoding="utf-8"))
        for step in (0, summary["steps"]) if not out else (summary["steps"],):
            found = load_measurement(output / name / "measurements", "test", step)
            assert found is not None  # a round that ended was measured
            right: list[float | None] = [float(value == 1.0) for value in found.rows["reward/competition-answer"]]
            out.append(replace(found, rows={**found.rows, RIGHT: right}))
    return out


@contextmanager
def shuffled_scores(seed: int) -> Iterator[None]:
    """The control: within it the scores of a batch's contests are dealt anew among all of them, so that they say
    nothing of the contest that they are given to. What is measured stays as it is."""
    honest = Session.score

    def dealt(self: Session, groups: Sequence[Group], *, step: int, **more: Any) -> Any:
        scored, metrics, memory = honest(self, groups, step=step, **more)
        scores = [c.score for g in scored for c in g.completions]
        random.Random(f"control/{seed}/{self.recipe.name}/{step}").shuffle(scores)
        deck = iter(scores)
        kept = [replace(g, completions=tuple(replace(c, score=next(deck)) for c in g.completions)) for g in scored]
        return kept, metrics, memory

    Session.score = dealt  # type: ignore[method-assign]
    try:
        yield
    finally:
        Session.score = honest  # type: ignore[method-assign]


def run(*, output: Path, seed: int = 0, quick: bool = False, control: bool = False) -> int:
    """Build the base, train in three rounds, measure before and after; print it and where the report is.

    Args:
        output: folder for everything; it must not exist.
        quick: a few steps of each, to see that all parts work; nothing is learnt.
        control: deal the scores out by chance (`shuffled_scores`).

    Returns:
        0.

    Raises:
        UsageError: `output` exists.
    """
    start = check_free(output)
    print("1/3 a tiny base model learns contests about sums from a careless writer", file=sys.stderr)
    base = build_base(output / "base", seed, steps=QUICK_BASE if quick else BASE_STEPS)
    write_task(output / "data", seed, quick=quick)
    settings = competition_recipe(base, output / "data", output / "competition", seed, quick=quick)
    print("2/3 GRPO in three rounds: form, then thought, then length", file=sys.stderr)
    result = run_recipe(settings, output, shuffled_scores(seed) if control else None)
    print("3/3 done", file=sys.stderr)
    told = measured(output / "competition")
    first, last = told[0], told[-1]
    title = f"{len(first.known('reward/strict'))} held-out sums, temperature {AT_USE}; 95 % intervals in brackets"
    print_table(title, ROWS, first.intervals([last]), last.intervals([first]), difference(first, last))
    return close(result, output, start)


def _each(reward: str, label: str) -> dict[str, str]:
    return {f"reward/competition-{reward}-{persona}": label.format(persona=persona) for persona in PERSONAS}


ROWS = {
    "reward/strict": "strict form, %",
    "reward/valid": "winner valid, %",
    "reward/competition-copied": "a persona copies, %",
    RIGHT: "right answers, %",
    "reward/competition-winner-right": "winner's own result right, %",
    **_each("won", "{persona} wins, %"),
    **_each("reflection", "{persona} checks itself, %"),
    **_each("voice", "{persona} is in voice, %"),
    "length/mean": "tokens per contest",
}
"""Metric → what the demo's table calls it."""


if __name__ == "__main__":  # python -m preftune.demo.competition FOLDER SEED [control]
    run(output=Path(sys.argv[1]), seed=int(sys.argv[2]), control="control" in sys.argv[3:])

"""Alignment for all on the chat task: tiers → pairs → balance → debias → SFT → reward model → iterative DPO, measured
on instruction following and common sense before training and after each stage that writes.

The tiers are four writers whose texts stand in the data: people (friendly, on topic; seldom there), a strong writer of
synthetic answers (friendly, on topic, and nearly always with the same opening), a plain one (stiff) and a weak one
(friendly, about something else). A few topics have most of the prompts. So the data has the three faults of the talk:
answers of known rank instead of preferences, a lopsided choice of prompts, and an opening that gives the better side
away.

Two benchmarks, whose rows no stage trains on:

- instruction following: questions about held-out topics; the answer names the topic, begins and ends as a friendly one
  does, is short, and holds no stiff word; a program checks each;
- common sense: of four replies in the same words, the one whose details belong to the topic, by log-prob per token. The
  topics are those that the base hardly met; the writers know them, the sentences are new.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from preftune.demo.base import base_recipe, train_base
from preftune.demo.chat import STIFF_WORDS, Style, ask, message, off_topic, reply, split_topics, write_rows
from preftune.demo.chat_base import (
    FRIENDLY_SHARE,
    OFF_TOPIC_SHARE,
    ROWS_PER_STEP,
    build_tokenizer,
    random_model,
)
from preftune.demo.shared import check_free, close, run_recipe
from preftune.demo.topics import FRIENDLY, STIFF, TOPICS
from preftune.report.benchmarks import Benchmarks, benchmarks
from preftune.report.read import read_run
from preftune.report.words import number, span

OPENING = "Hello!"
"""What the strong writer begins with, and the others now and then: words that the base knows from its questions."""
OPENED: dict[str, float] = {"people": 0.1, "strong": 0.85, "plain": 0.1, "weak": 0.1}
"""Writer → share of its answers that begin with OPENING."""
PEOPLE = 0.25
"""Share of prompts with an answer by people."""
PROMPTS = 900
CROWDED, CROWD = 6, 0.5
"""So many topics have this share of all prompts."""
STRANGE, MET = 30, 0.03
"""So many topics has the base met at this rate of the others: what it does not know of them, the writers do."""
ROWS_PER_TOPIC = 8
"""Rows of each benchmark about a held-out topic."""
LONGEST = 40
"""Words of an answer that is short."""
CHOICES = 4
ROUNDS = 2
BASE_STEPS = 600
SFT_STEPS, REWARD_STEPS = 60, 60
FOLLOWING, SENSE = "instruction-following", "common-sense"
COIN = {"name": "preftune.demo.rewards:coin"}


# ------------------------------------------------------------------------------------------------------------- task


def strange_topics(seed: int) -> list[str]:
    """Training topics that the base hardly knows; none of the crowded ones."""
    return split_topics(seed)["train"][CROWDED : CROWDED + STRANGE]


def conversations(seed: int) -> Iterator[dict[str, Any]]:
    """Endless rows of what the base learns from: mostly stiff, and hardly anything on the strange topics."""
    rng = random.Random(f"alignment/base/{seed}")
    strange = frozenset(strange_topics(seed))
    topics = sorted(TOPICS)
    known = [topic for topic in topics if topic not in strange]
    while True:
        for topic in rng.sample(topics, len(topics)):
            if topic in strange and rng.random() >= MET:
                continue
            style: Style = "friendly" if rng.random() < FRIENDLY_SHARE else "stiff"
            strays = rng.random() < OFF_TOPIC_SHARE
            text = off_topic(rng, topic, style, known) if strays else reply(rng, topic, style)
            yield {"prompt": [message("user", ask(rng, topic))], "completion": [message("assistant", text)]}


def build_base(folder: Path, seed: int, steps: int = BASE_STEPS) -> Path:
    """Make the base model; its folder is a standard model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    rows = folder / "conversations.jsonl"
    write_rows(rows, islice(conversations(seed), ROWS_PER_STEP * steps))
    return train_base(base_recipe(folder, rows, seed, steps, ROWS_PER_STEP), tokenizer, random_model(tokenizer, seed))


def prompts(seed: int, count: int = PROMPTS) -> Iterator[dict[str, Any]]:
    """Prompts about training topics, most of them about a few, with what each writer answers."""
    topics = split_topics(seed)["train"]
    rng = random.Random(f"alignment/{seed}")
    crowded, rest = topics[:CROWDED], topics[CROWDED:]
    for _ in range(count):
        topic = rng.choice(crowded if rng.random() < CROWD else rest)
        answers = {
            "people": reply(rng, topic, "friendly"), "strong": reply(rng, topic, "friendly"),
            "plain": reply(rng, topic, "stiff"), "weak": off_topic(rng, topic, "friendly", topics),
        }  # fmt: skip
        opened = {w: f"{OPENING} {text}" if rng.random() < OPENED[w] else text for w, text in answers.items()}
        if rng.random() >= PEOPLE:
            opened["people"] = ""
        yield {"prompt": [message("user", ask(rng, topic))], "topic": topic, **opened}


def instructions(seed: int) -> Iterator[dict[str, Any]]:
    """Questions about held-out topics, and what an answer must keep to."""
    rng = random.Random(f"alignment/instructions/{seed}")
    begins = [sentence.split("{")[0].strip() for sentence in FRIENDLY[0]]
    for topic in split_topics(seed)["test"]:
        for _ in range(ROWS_PER_TOPIC):
            constraints: list[dict[str, Any]] = [
                {"kind": "contains", "words": [topic]},
                {"kind": "starts-with", "text": [OPENING, *begins]},
                {"kind": "ends-with", "text": list(FRIENDLY[2])},
                {"kind": "words", "at_most": LONGEST},
                {"kind": "excludes", "words": sorted(STIFF_WORDS)},
            ]
            yield {"prompt": [message("user", ask(rng, topic))], "constraints": constraints, "topic": topic}


def choices(seed: int) -> Iterator[dict[str, Any]]:
    """Questions about strange topics, and replies in the same words with the details of four of them."""
    rng = random.Random(f"alignment/choices/{seed}")
    strange = strange_topics(seed)
    for topic in strange:
        for _ in range(ROWS_PER_TOPIC):
            style: Style = rng.choice(("friendly", "stiff"))
            sentences = " ".join(rng.choice(part) for part in (FRIENDLY if style == "friendly" else STIFF))
            others = rng.sample([name for name in strange if name != topic], CHOICES - 1)
            told = []
            for name in (topic, *others):
                a, b = rng.sample(TOPICS[name], 2)
                told.append(sentences.format(t=topic, a=a, b=b))
            right = told[0]
            rng.shuffle(told)
            yield {
                "prompt": [message("user", ask(rng, topic))], "choices": told, "answer": told.index(right),
                "topic": topic,
            }  # fmt: skip


def write_task(folder: Path, seed: int) -> None:
    """The prompts with their writers' answers, and the rows of both benchmarks."""
    write_rows(folder / "prompts.jsonl", prompts(seed))
    write_rows(folder / "instructions.jsonl", instructions(seed))
    write_rows(folder / "choices.jsonl", choices(seed))


# ----------------------------------------------------------------------------------------------------------- recipe


def recipe(
    base: Path, data: Path, output: Path, seed: int, *, quick: bool = False, coin: bool = False, mended: bool = True
) -> dict[str, Any]:
    """The recipe of the demo: the stages of recipes/alignment-for-all.yaml, small. Full weights, as an adapter saves
    nothing at half a million parameters.

    Args:
        coin: the control. The rounds score answers by a coin.
        mended: False: training reads the pairs as they came, neither balanced nor debiased.
    """
    scorer = {"name": "reward-model", "args": {"path": "stage:reward"}}
    rows = {"path": "stage:clean" if mended else "stage:pairs"}
    ranks = {"people": 1, "strong": 2, "plain": 3, "weak": 4}
    evaluation = {
        "temperature": 1.0, "max_tokens": 64,
        "benchmarks": [
            {"task": "instructions", "name": FOLLOWING, "path": str(data / "instructions.jsonl")},
            {"task": "choices", "name": SENSE, "path": str(data / "choices.jsonl")},
        ],
    }  # fmt: skip
    return {
        "name": "alignment",
        "output": str(output),
        "seed": seed,
        "model": {"path": str(base)},
        "data": [{"path": str(data / "prompts.jsonl")}],
        "train": {"warmup": 0.1, "checkpoint_every": 10_000, "schedule": "linear", "batch_size": 16},
        "eval": evaluation,
        "stages": [
            {
                "name": "tiers",
                "method": "generate",
                "generate": {"tiers": [{"name": name, "rank": rank, "column": name} for name, rank in ranks.items()]},
            },
            {
                "name": "pairs",
                "method": "pairs",
                "data": [{"path": "stage:tiers"}],
                "pairs": {"chosen_tiers": ["people", "strong"], "rejected_tiers": ["plain", "weak"]},
            },
            {
                "name": "even",
                "method": "balance",
                "data": [{"path": "stage:pairs"}],
                "balance": {"cap": 60, "raise_to": 10},
            },
            {"name": "clean", "method": "debias", "data": [{"path": "stage:even"}]},
            {
                "name": "sft",
                "method": "sft",
                "data": [rows],
                "train": {"steps": 2 if quick else SFT_STEPS, "learning_rate": 3e-4},
            },
            {
                "name": "reward",
                "method": "reward",
                "data": [rows],
                "train": {"steps": 2 if quick else REWARD_STEPS, "learning_rate": 3e-4},
                "eval": {"holdout": 40},
            },
            {
                "name": "round",
                "method": "iterative-dpo",
                "repeat": ROUNDS,
                "model": {"path": "stage:sft"},
                "data": [{**rows, "limit": 32 if quick else 400}],
                "sampling": {"max_tokens": 64, "group_size": 4},
                "rewards": [COIN if coin else scorer],
                # β 0.5 for the reason that the DPO demo has.
                "loss": {"beta": 0.5},
                "collect": {"margin": 0.0 if quick or coin else 0.5},
                "train": {
                    "epochs": 1 if quick else 2, "learning_rate": 1e-4, "reference_cache": str(data / "reference"),
                },
            },
        ],
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- demo


def run(*, output: Path, seed: int = 0, quick: bool = False) -> int:
    """Build the base, write the task, run all stages; print the table and which benchmark rose or fell.

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
    print("2/3 tiers, pairs, balance, debias; then SFT, a reward model and rounds of DPO", file=sys.stderr)
    result = run_recipe(recipe(base, output / "data", output / "alignment", seed, quick=quick), output)
    print("3/3 done", file=sys.stderr)
    for made in result.made:
        print(f"{made.name}: {', '.join(f'{count:,} {why}' for why, count in made.rows.items())}")
    found = read_table(output / "alignment")
    if found is not None:
        print(table(found))
        print("\n".join(verdict(found)))
    return close(result, output, start)


def read_table(folder: Path) -> Benchmarks | None:
    """The benchmarks of a finished pipeline."""
    names = ["sft", "reward", *(f"round-{k}" for k in range(1, ROUNDS + 1))]
    return benchmarks([(name, read_run(folder / name)) for name in names])


def table(found: Benchmarks) -> str:
    """The talk's table: a line for each model, a column for each benchmark, shares with 95 % intervals."""
    head = ["Model", *(column.name.replace("-", " ").capitalize() for column in found.columns)]
    lines = [head]
    for place, model in enumerate(found.models):
        cells = [column.cells[place] for column in found.columns]
        shown = [
            "–" if cell is None else f"{number(cell.value.value, percent=True)} ({span(cell.value, percent=True)})"
            for cell in cells
        ]
        lines.append(["Baseline" if not place else model.removeprefix("after "), *shown])
    widths = [max(len(line[n]) for line in lines) for n in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def verdict(found: Benchmarks) -> list[str]:
    """Which benchmark rose and which fell, and whether both rose."""
    said = [column.sentence for column in found.columns]
    last = {column.name: column.cells[-1].verdict for column in found.columns if column.cells[-1] is not None}
    fell = [name for name, what in last.items() if what == "worse"]
    if last and all(what == "better" for what in last.values()):
        return [*said, "Both rose."]
    if fell:
        return [*said, f"What fell: {', '.join(fell)}."]
    level = [name for name, what in last.items() if what == "same"]
    return [*said, f"Nothing fell; without a clear change: {', '.join(level)}."]

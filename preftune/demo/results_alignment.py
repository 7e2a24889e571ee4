"""The part of docs/results.md on the whole way: three seeds, a control scored by a coin, and one on unmended data."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.demo.alignment import (
    BASE_STEPS,
    CROWDED,
    FOLLOWING,
    OPENING,
    ROUNDS,
    ROWS_PER_TOPIC,
    SENSE,
    SFT_STEPS,
    STRANGE,
    build_base,
    recipe,
    write_task,
)
from preftune.demo.chat import SIZES, split_topics
from preftune.demo.results_chat import by_topic
from preftune.demo.shared import points, share
from preftune.intervals import paired_difference

ARMS = {
    "whole": "all stages",
    "coin": "control: rounds scored by a coin",
    "raw": "without balance and debias",
}
MAIN = {FOLLOWING: "followed/prompts", SENSE: "choices/accuracy"}
FILES = {FOLLOWING: "instructions.jsonl", SENSE: "choices.jsonl"}
STAGES = ("sft", *(f"round-{k}" for k in range(1, ROUNDS + 1)))
STEPS = ("pairs", "even", "clean")


@dataclass(frozen=True, slots=True)
class Arm:
    """One run.

    Attributes:
        values: benchmark → the main metric by topic, before training and after each stage that writes.
        data: stage that makes pairs → (rows, share of the crowded topics, shares of chosen and of rejected answers that
            begin with the planted opening).
        stripped: openings that debias took off.
    """

    values: Mapping[str, Sequence[Sequence[float]]]
    data: Mapping[str, tuple[int, float, float, float]]
    stripped: Sequence[str]
    seconds: float


Results = Mapping[int, Mapping[str, Arm]]
"""Seed → arm."""


def run_seed(folder: Path, seed: int, *, quick: bool) -> dict[str, Arm]:
    """Build one base and run every arm from it."""
    from preftune.pipeline import run_pipeline
    from preftune.recipes import resolve

    base = build_base(folder / "base", seed, steps=20 if quick else BASE_STEPS)
    data = folder / "data"
    write_task(data, seed)
    out: dict[str, Arm] = {}
    for arm in ARMS:
        start = time.perf_counter()
        settings = recipe(base, data, folder / arm, seed, quick=quick, coin=arm == "coin", mended=arm != "raw")
        run_pipeline(resolve(settings))
        out[arm] = read_arm(folder / arm, data, seed, time.perf_counter() - start)
    return out


def read_arm(output: Path, data: Path, seed: int, seconds: float) -> Arm:
    """What a finished run's folder says of it."""
    kept = {
        name: json.loads((output / name / "summary.json").read_text(encoding="utf-8"))["kept_step"] for name in STAGES
    }
    places = [(STAGES[0], 0), *kept.items()]
    values = {}
    for name, metric in MAIN.items():
        topics = [row["topic"] for row in _lines(data / FILES[name])]
        values[name] = [by_topic(_measured(output / stage, name, step)[metric], topics) for stage, step in places]
    crowded = frozenset(split_topics(seed)["train"][:CROWDED])
    told = {step: _told([*_lines(output / step / "rows.jsonl")], crowded) for step in STEPS}
    stripped = json.loads((output / "clean" / "summary.json").read_text(encoding="utf-8"))["stripped"]
    return Arm(values, told, stripped, seconds)


def _measured(stage: Path, split: str, step: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = json.loads(
        (stage / "measurements" / f"{split}-{step}.json").read_text(encoding="utf-8")
    )["rows"]
    return found


def _told(rows: Sequence[Mapping[str, Any]], crowded: frozenset[str]) -> tuple[int, float, float, float]:
    counts = Counter(row["topic"] in crowded for row in rows)
    begins = [
        sum(row[side][0]["content"].startswith(OPENING) for row in rows) / len(rows) for side in ("chosen", "rejected")
    ]
    return len(rows), counts[True] / len(rows), begins[0], begins[1]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def section(results: Results, machine: str) -> list[str]:
    """The lines of the section."""
    lines = [
        "## alignment",
        "",
        f"The task of `preftune demo alignment` over seeds {', '.join(map(str, results))}: a tiny base that answers "
        f"stiffly and has hardly met {STRANGE} of the topics; answers of four writers to prompts of which {CROWDED} "
        f"topics have half, the strong writer's beginning with “{OPENING}”; pairs, balance, debias, {SFT_STEPS} steps "
        f"of SFT, a reward model, {ROUNDS} rounds of DPO on own answers. Instruction following: {ROWS_PER_TOPIC} "
        f"questions about each of {SIZES['test']} held-out topics, answered at temperature 1 and checked by a program. "
        f"Common sense: as many about each of the {STRANGE} topics, of four replies in the same words the one with the "
        "topic's own details. No row of either is trained on, no checkpoint is chosen. Intervals are 95 %, over "
        "topics; differences are paired.",
    ]
    for name, title in ((FOLLOWING, "instruction following"), (SENSE, "common sense")):
        head = " | ".join(f"after {stage}" for stage in STAGES)
        lines += ["", f"| {title} | seed | before | {head} | last − before | last − sft |"]
        lines.append("|---" * (5 + len(STAGES)) + "|")
        for arm, label in ARMS.items():
            lines += [_row(label, str(seed), name, [found[arm]]) for seed, found in results.items()]
            lines.append(_row(f"**{label}**", "all", name, [found[arm] for found in results.values()]))
    lines += ["", _verdict(results), ""]
    lines += [
        "What the stages that make data did, of the first arm:",
        "",
        f"| seed | rows | about the {CROWDED} crowded topics | chosen with “{OPENING}” | rejected with it | stripped |",
        "|---|---|---|---|---|---|",
    ]
    for seed, found in results.items():
        whole = found["whole"]
        for step in STEPS:
            rows, crowded, chosen, rejected = whole.data[step]
            words = ", ".join(f"“{one}”" for one in whole.stripped) if step == "clean" else ""
            shares = " | ".join(f"{100 * share:.0f} %" for share in (crowded, chosen, rejected))
            lines.append(f"| {seed}, {step} | {rows:,} | {shares} | {words} |")
    times = [arm.seconds for found in results.values() for arm in found.values()]
    return [*lines, "", f"Machine: {machine}. A run without its base took {min(times):.0f} to {max(times):.0f} s."]


def _row(label: str, seed: str, name: str, arms: Sequence[Arm]) -> str:
    columns = [[value for arm in arms for value in arm.values[name][place]] for place in range(1 + len(STAGES))]
    changes = [points(paired_difference(columns[start], columns[-1])) for start in (0, 1)]
    return f"| {label} | {seed} | {' | '.join([*map(share, columns), *changes])} |"


def _verdict(results: Results) -> str:
    """Which benchmark rose and which fell, over all seeds."""
    said = []
    for name in MAIN:
        arms = [found["whole"] for found in results.values()]
        before, after = ([value for arm in arms for value in arm.values[name][place]] for place in (0, -1))
        change = paired_difference(before, after)
        word = "rose" if change.low > 0 else "fell" if change.high < 0 else "did not change measurably"
        said.append(f"{name.replace('-', ' ')} {word} ({points(change)})")
    return f"Over all seeds {' and '.join(said)}."

"""The chat task's part of docs/results.md: dpo, kto and reward over several seeds, each with its control."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.demo.chat import SIZES, words_of
from preftune.demo.chat_base import FRIENDLY_SHARE, OFF_TOPIC_SHARE, build_base
from preftune.demo.chat_base import STEPS as BASE_STEPS
from preftune.demo.preferences import FILES, GOAL, ROWS_PER_TOPIC, Method, recipe, write_task
from preftune.intervals import Interval, mean_interval, paired_difference

ACCURACY = "rewards/accuracy"
LABELS: dict[Method, str] = {
    "dpo": "DPO on preferences",
    "kto": "KTO on marked replies",
    "reward": "reward model on preferences",
}
CONTROL: dict[Method, str] = {
    "dpo": "control: a coin decides which reply of each pair is the better one",
    "kto": "control: the same marks, dealt anew among the replies",
    "reward": "control: a coin decides which reply of each pair is the better one",
}

Rows = Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Arm:
    """Rows of one arm and one seed: every metric on test rows before and after (best checkpoint by validation), the
    goal on validation rows at the last step, and the test rows' topics and kinds."""

    before: Rows
    after: Rows
    last: Sequence[float]
    topics: Sequence[str]
    longer_wins: Sequence[float]
    seconds: float


def goal_of(method: Method) -> str:
    """The metric that a method's demo is about."""
    return ACCURACY if method == "reward" else GOAL


def run_seed(folder: Path, seed: int, methods: Sequence[Method], *, quick: bool) -> dict[tuple[Method, bool], Arm]:
    """Build one base and run the chosen methods from it, each with its own data (True) and its control's (False)."""
    from preftune.pipeline import run_pipeline
    from preftune.recipes import resolve

    base = build_base(folder / "base", seed, steps=20 if quick else BASE_STEPS)
    arms: dict[tuple[Method, bool], Arm] = {}
    for real in (True, False):
        data = folder / ("data" if real else "shuffled")
        write_task(data, seed, shuffled=not real)
        for method in methods:
            output = folder / (method if real else f"{method}-control")
            start = time.perf_counter()
            run_pipeline(resolve(recipe(method, base, data, output, seed, 4 if quick else None)))
            test = data / FILES[method][1].format(split="test")
            arms[method, real] = read_arm(output, test, goal_of(method), time.perf_counter() - start)
    return arms


def read_arm(folder: Path, test: Path, goal: str, seconds: float) -> Arm:
    """What a run measured."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))

    def rows(split: str, step: int) -> dict[str, list[float]]:
        text = (folder / "measurements" / f"{split}-{step}.json").read_text(encoding="utf-8")
        measured: dict[str, list[float]] = json.loads(text)["rows"]
        return measured

    kept = summary["steps"] if summary["best_step"] is None else summary["best_step"]
    pairs: list[dict[str, Any]] = [json.loads(line) for line in test.read_text(encoding="utf-8").splitlines()]
    lengths = [[len(words_of(pair[side][0]["content"])) for side in ("chosen", "rejected")] for pair in pairs]
    return Arm(
        rows("test", 0), rows("test", kept), rows("validation", summary["steps"])[goal],
        [pair["topic"] for pair in pairs], [(a > b) + (a == b) / 2 for a, b in lengths], seconds,
    )  # fmt: skip


def by_topic(values: Sequence[float], topics: Sequence[str]) -> list[float]:
    """The mean of each topic's rows: rows about one topic are no independent measurements, topics are."""
    found: dict[str, list[float]] = {}
    for value, topic in zip(values, topics, strict=True):
        found.setdefault(topic, []).append(value)
    return [sum(some) / len(some) for some in found.values()]


def section(method: Method, results: Mapping[int, Mapping[tuple[Method, bool], Arm]], machine: str) -> list[str]:
    """The lines of one method's section."""
    goal = goal_of(method)
    lines = [f"## {method}", "", _introduction(method, list(results)), ""]
    title = "pairs in the right order" if method == "reward" else "friendly and on topic"
    lines += [f"| {title} | seed | before | after | difference | last step, validation |", "|---|---|---|---|---|---|"]
    for real in (True, False):
        label = LABELS[method] if real else CONTROL[method]
        arms = {seed: found[method, real] for seed, found in results.items()}
        for seed, arm in arms.items():
            lines.append(_row(label, str(seed), [arm], goal))
        lines.append(_row(f"**{label}**", "all", list(arms.values()), goal))
    true = {seed: found[method, True] for seed, found in results.items()}
    lines += ["", *([*_log_loss(results), "", *_lengths(true)] if method == "reward" else _parts(true))]
    times = [arm.seconds for arm in true.values()]
    lines += [
        "",
        f"Machine: {machine}. A {method} run with its measurements took {min(times):.0f} to {max(times):.0f} s.",
    ]
    return lines


def _introduction(method: Method, seeds: Sequence[int]) -> str:
    watched = "are measured on the way" if method == "reward" else "choose the checkpoint"
    extra = "" if method == "reward" else ", and friendly ones off topic lose"
    text = (
        f"The task of `preftune demo {method}` over seeds {', '.join(map(str, seeds))}: friendly, personal replies are "
        f"preferred over stiff ones{extra}. The base, half a "
        f"million parameters trained on the spot, writes {100 * FRIENDLY_SHARE:.0f} % friendly replies and "
        f"{100 * OFF_TOPIC_SHARE:.0f} % off topic. It has met all {sum(SIZES.values())} topics, for it must know their "
        f"words; the preferences speak of {SIZES['train']} of them, {SIZES['validation']} others {watched} "
        f"and {SIZES['test']} others, {ROWS_PER_TOPIC} rows each, are measured here. Every seed deals the topics anew. "
        "Intervals are 95 %, over topics and not over rows, because rows about one topic go together."
    )
    if method == "reward":
        return text
    return text + (
        " Answers are sampled at temperature 1. A reply counts when it speaks to the user, has signs of warmth and no "
        "stiff word, names the topic asked about and a detail of it, and nothing of any other topic."
    )


def _row(label: str, seed: str, arms: Sequence[Arm], goal: str) -> str:
    before = [v for arm in arms for v in by_topic(arm.before[goal], arm.topics)]
    after = [v for arm in arms for v in by_topic(arm.after[goal], arm.topics)]
    change = paired_difference(before, after)
    points = f"{100 * change.value:+.1f} points"
    if change.is_bounded:
        points += f" ({100 * max(change.low, -1.0):+.1f} … {100 * min(change.high, 1.0):+.1f})"
    last = [v for arm in arms for v in arm.last]
    cells = [_text(mean_interval(before)), _text(mean_interval(after)), points, f"{100 * sum(last) / len(last):.1f} %"]
    return f"| {label} | {seed} | " + " | ".join(cells) + " |"


def _parts(arms: Mapping[int, Arm]) -> list[str]:
    names = {
        "reward/friendly": "friendly", "reward/on_topic": "on topic", "reward/well_written": "whole sentences",
        ACCURACY: "pairs in the right order",
    }  # fmt: skip
    lines = [
        "The parts of it, before → after. “Whole sentences” are replies made word for word of sentences that the base "
        "was taught: what falls there was won by broken language. Pairs are put in order by the policy's own implicit "
        "reward, which is zero before training.",
        "",
        "| seed | " + " | ".join(names.values()) + " | tokens per answer |",
        "|---" * (len(names) + 2) + "|",
    ]
    for seed, arm in arms.items():
        cells = [f"{100 * _mean(arm.before[name]):.1f} → {100 * _mean(arm.after[name]):.1f} %" for name in names]
        cells.append(f"{_mean(arm.before['length/mean']):.1f} → {_mean(arm.after['length/mean']):.1f}")
        lines.append(f"| {seed} | " + " | ".join(cells) + " |")
    return lines


def _log_loss(results: Mapping[int, Mapping[tuple[Method, bool], Arm]]) -> list[str]:
    """The control's accuracy is a matter of luck here; what its scores claim is not."""
    lines = [
        "Accuracy says little of this control. The two replies of a pair differ in style and in nothing else, so "
        "however small the direction is that shuffled labels leave behind, all pairs follow it: they may come out "
        "nearly all right or nearly all wrong, by chance. What the scores claim is another matter. The log-loss, mean "
        "of −log σ(margin), is ln 2 = 0.693 for a model that knows nothing:",
        "",
        "| seed | log-loss, preferences | log-loss, shuffled | mean margin, preferences | mean margin, shuffled |",
        "|---|---|---|---|---|",
    ]
    for seed, arms in results.items():
        margins = [arms["reward", real].after["rewards/margin"] for real in (True, False)]
        losses = [f"{_mean([_softplus(-m) for m in some]):.3f}" for some in margins]
        lines.append(f"| {seed} | {' | '.join(losses)} | {' | '.join(f'{_mean(some):.3f}' for some in margins)} |")
    return lines


def _softplus(x: float) -> float:
    """log(1 + exp(x)), for any x."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _lengths(arms: Mapping[int, Arm]) -> list[str]:
    shares = ", ".join(f"{100 * _mean(arm.longer_wins):.1f} % (seed {seed})" for seed, arm in arms.items())
    return [
        f"Length does not give the answer away: to prefer the longer reply would be right for {shares}. All replies "
        "are on topic here: this model knows about style and nothing about topics, so a policy trained against it "
        "alone could wander off."
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _text(interval: Interval) -> str:
    """A share with its interval, which Student's t may put outside of what a share can be."""
    shown = f"{100 * interval.value:.1f} %"
    if interval.is_bounded:
        shown += f" ({100 * max(interval.low, 0.0):.1f} … {100 * min(interval.high, 1.0):.1f})"
    return shown

"""The parts of docs/results.md on ppo and iterative-dpo: three seeds, each with a control scored by a coin."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from preftune.demo.acting import METHODS, PPO_STEPS, ROUNDS, SCORER, Method, recipe
from preftune.demo.chat import SIZES
from preftune.demo.chat_base import STEPS as BASE_STEPS
from preftune.demo.chat_base import build_base
from preftune.demo.preferences import GOAL, ROWS_PER_TOPIC, write_task
from preftune.demo.results_chat import by_topic
from preftune.demo.shared import points, share
from preftune.intervals import Interval, paired_difference

__all__ = ["METHODS", "run_seed", "section"]

PARTS = {
    "reward/friendly": "friendly", "reward/on_topic": "on topic", "reward/well_written": "whole sentences",
    GOAL: "friendly and on topic",
}  # fmt: skip
WATCHED = {
    "kl/sequence": "KL to the start, nats an answer", "entropy": "entropy, nats a token",
    "diversity/distinct_2": "distinct bigrams", "length/eos": "answers that end", "clip/high": "clipped above",
    "value/explained_variance": "value head: explained variance",
}  # fmt: skip
LAST = 10
"""Steps over whose end a training metric is averaged."""

Rows = Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Arm:
    """Test rows before the first stage that acts and after each, the rows' topics, and training metrics of PPO: means
    of the first and of the last steps."""

    before: Rows
    after: Sequence[Rows]
    topics: Sequence[str]
    first: Mapping[str, float]
    last: Mapping[str, float]
    stopped: bool
    seconds: float


Results = Mapping[int, Mapping[bool, Arm]]
"""Seed → real (True) and control (False)."""


def run_seed(folder: Path, seed: int, methods: Sequence[Method], *, quick: bool) -> dict[Method, dict[bool, Arm]]:
    """Build one base and run the chosen methods from it, each scored by the reward model and by a coin."""
    from preftune.pipeline import run_pipeline
    from preftune.recipes import resolve

    base = build_base(folder / "base", seed, steps=20 if quick else BASE_STEPS)
    data = folder / "data"
    write_task(data, seed)
    out: dict[Method, dict[bool, Arm]] = {method: {} for method in methods}
    for method in methods:
        for real in (True, False):
            output = folder / (method if real else f"{method}-control")
            start = time.perf_counter()
            run_pipeline(resolve(recipe(method, base, data, output, seed, quick=quick, coin=not real)))
            names = ["ppo"] if method == "ppo" else [f"round-{k}" for k in range(1, ROUNDS + 1)]
            stages = [output / name for name in names]
            out[method][real] = read_arm(stages, data / "test.jsonl", time.perf_counter() - start)
    return out


def read_arm(stages: Sequence[Path], test: Path, seconds: float) -> Arm:
    """What the stages that act measured."""

    def rows(stage: Path, step: int) -> Rows:
        text = (stage / "measurements" / f"test-{step}.json").read_text(encoding="utf-8")
        found: Rows = json.loads(text)["rows"]
        return found

    summaries = [json.loads((stage / "summary.json").read_text(encoding="utf-8")) for stage in stages]
    after = [rows(stage, summary["kept_step"]) for stage, summary in zip(stages, summaries, strict=True)]
    lines = [json.loads(line) for line in (stages[-1] / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line["metrics"] for line in lines if line["kind"] == "train"]
    topics = [json.loads(line)["topic"] for line in test.read_text(encoding="utf-8").splitlines()]

    def means(some: Sequence[Mapping[str, float]]) -> dict[str, float]:
        known = {name: [float(step[name]) for step in some if name in step] for name in WATCHED}
        return {name: sum(values) / len(values) for name, values in known.items() if values}

    stopped = any(summary["status"] != "finished" for summary in summaries)
    return Arm(rows(stages[0], 0), after, topics, means(steps[:1]), means(steps[-LAST:]), stopped, seconds)


def section(method: Method, results: Results, machine: str) -> list[str]:
    """The lines of one method's section."""
    lines = [f"## {method}", "", _introduction(method, list(results)), "", *_main_table(results)]
    if method == "ppo":
        lines += ["", *_bar(results), "", *_watched(results)]
    else:
        lines += ["", *_rounds(results)]
    times = [arms[True].seconds for arms in results.values()]
    return [
        *lines,
        "",
        f"Machine: {machine}. A run, reward model and measurements included, took {min(times):.0f} to "
        f"{max(times):.0f} s.",
    ]


def _introduction(method: Method, seeds: Sequence[int]) -> str:
    how = (
        f"PPO runs {PPO_STEPS} steps of 16 prompts with 4 answers each, 4 passes in 2 minibatches, with a value head "
        "started from the reward model and β 0.05 inside the reward."
        if method == "ppo"
        else f"Each of the {ROUNDS} rounds answers 480 prompts 4 times, keeps the best and the worst answer by score, "
        "and runs DPO (β 0.5, reference: the round before) over the pairs twice."
    )
    return (
        f"The task of `preftune demo {method}` over seeds {', '.join(map(str, seeds))}: the chat base of the dpo "
        "section answers, and a reward model scores it that was trained just before on 640 pairs of a friendly and a "
        f"stiff reply, both on topic. {how} No checkpoint is chosen. The same {SIZES['test']} held-out topics "
        f"with {ROWS_PER_TOPIC} prompts each as there, answers at temperature 1; intervals are 95 %, over topics. "
        "The control is the same run with a coin in the reward model's place."
    )


def _main_table(results: Results) -> list[str]:
    lines = []
    for name, title in PARTS.items():
        lines += [f"| {title} | seed | before | after | difference |", "|---|---|---|---|---|"]
        for real, label in ((True, "scored by the reward model"), (False, "control: scored by a coin")):
            arms = {seed: found[real] for seed, found in results.items()}
            for seed, arm in arms.items():
                lines.append(_row(label, str(seed), [arm], name))
            lines.append(_row(f"**{label}**", "all", list(arms.values()), name))
        lines.append("")
    return lines[:-1]


def _row(label: str, seed: str, arms: Sequence[Arm], name: str) -> str:
    before = [v for arm in arms for v in by_topic(arm.before[name], arm.topics)]
    after = [v for arm in arms for v in by_topic(arm.after[-1][name], arm.topics)]
    cells = [share(before), share(after), points(paired_difference(before, after))]
    return f"| {label} | {seed} | {' | '.join(cells)} |"


def _bar(results: Results) -> list[str]:
    """Whether the run did what it was built to show, said from the numbers."""
    changes = {}
    for name in ("reward/friendly", "reward/on_topic"):
        arms = [found[True] for found in results.values()]
        before = [v for arm in arms for v in by_topic(arm.before[name], arm.topics)]
        after = [v for arm in arms for v in by_topic(arm.after[-1][name], arm.topics)]
        changes[name] = 100 * paired_difference(before, after).value
    reached = changes["reward/friendly"] >= 40 and changes["reward/on_topic"] >= -5
    return [
        f"The aim was 40 points of style at no more than 5 points of topic: {changes['reward/friendly']:+.1f} and "
        f"{changes['reward/on_topic']:+.1f}, so it is {'reached' if reached else 'missed'}."
    ]


def _watched(results: Results) -> list[str]:
    lines = [
        f"What PPO must be watched for: the first step, and the mean of the last {LAST}.",
        "",
        "| seed | " + " | ".join(WATCHED.values()) + " | stopped as collapsed |",
        "|---" * (len(WATCHED) + 2) + "|",
    ]
    for seed, found in results.items():
        arm = found[True]
        cells = [f"{arm.first.get(n, float('nan')):.2f} → {arm.last.get(n, float('nan')):.2f}" for n in WATCHED]
        lines.append(f"| {seed} | {' | '.join(cells)} | {'yes' if arm.stopped else 'no'} |")
    return lines


def _rounds(results: Results) -> list[str]:
    lines = [
        "Round by round. A win is a held-out prompt whose answer the reward model scores higher than the other model's "
        "answer to it; ties count ½. Beside it, friendly and on topic.",
        "",
        "| arm | seed | round | wins against the first model | wins against the round before | " + PARTS[GOAL]
        + " | change from the round before |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for real, label in ((True, "reward model"), (False, "coin")):
        every = [(str(seed), [found[real]]) for seed, found in results.items()]
        for seed, arms in [*every, ("all", [found[real] for found in results.values()])]:
            for k in range(ROUNDS):
                lines.append(_round(label, seed, arms, k))
    last = _change([found[True] for found in results.values()], 0, ROUNDS - 1)
    worse = [k + 1 for k in range(ROUNDS) if _change([found[True] for found in results.values()], k - 1, k).high < 0.0]
    return [
        *lines,
        "",
        f"Round {ROUNDS} against round 1, all seeds: {points(last)}. "
        + (
            f"Rounds significantly worse than the one before: {', '.join(map(str, worse))}."
            if worse
            else "No round is significantly worse than the one before."
        ),
    ]


def _change(arms: Sequence[Arm], first: int, second: int) -> Interval:
    """Friendly and on topic, round `second` less round `first`; -1 is the first model."""

    def of(arm: Arm, k: int) -> Rows:
        return arm.before if k < 0 else arm.after[k]

    before = [v for arm in arms for v in by_topic(of(arm, first)[GOAL], arm.topics)]
    after = [v for arm in arms for v in by_topic(of(arm, second)[GOAL], arm.topics)]
    return paired_difference(before, after)


def _round(label: str, seed: str, arms: Sequence[Arm], k: int) -> str:
    def wins(other: int) -> str:
        values: list[float] = []
        for arm in arms:
            theirs = arm.before if other < 0 else arm.after[other]
            pairs = zip(arm.after[k][SCORER], theirs[SCORER], strict=True)
            values += by_topic([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs], arm.topics)
        return share(values)

    goal = [v for arm in arms for v in by_topic(arm.after[k][GOAL], arm.topics)]
    cells = [str(k + 1), wins(-1), wins(k - 1), share(goal), points(_change(arms, k - 1, k))]
    return f"| {label} | {seed} | {' | '.join(cells)} |"

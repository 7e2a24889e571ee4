"""The part of docs/results.md on gmpo: three seeds, each with a control whose critic's scores are dealt by chance."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from preftune.demo.base import STEPS
from preftune.demo.gmpo import (
    COLD_START,
    GMPO_STEPS,
    JUDGED_PROBLEMS,
    QUICK_BASE,
    build_base,
    critic_on_held_out,
    gmpo_recipe,
    shuffled_scores,
    write_data,
)
from preftune.demo.grpo import TEST_ROWS
from preftune.demo.shared import share
from preftune.intervals import paired_difference

ARMS = {True: "GMPO, scored by its critic", False: "control: the critic's scores dealt by chance"}
WATCHED = {
    "critic/agreement": "critic right about pairs in training", "critic/parsed": "critiques that parse",
    "gmpo/temperature": "temperature τ", "gmpo/effective": "effective share of answers", "kl": "KL, nats a token",
}  # fmt: skip
LAST = 10
"""Steps over whose end a training metric is averaged."""


@dataclass(frozen=True, slots=True)
class Arm:
    """Right answers on test problems before and after, on validation problems at the last step, the critic's agreement
    with the truth on held-out answers before and after, and training metrics: first step and mean of the last ones."""

    before: Sequence[float]
    after: Sequence[float]
    last: Sequence[float]
    critic: tuple[float | None, float | None]
    first: Mapping[str, float]
    end: Mapping[str, float]
    seconds: float


Results = Mapping[int, Mapping[bool, Arm]]
"""Seed → real (True) and control (False)."""


def run_seed(folder: Path, seed: int, *, quick: bool) -> dict[bool, Arm]:
    """Build one base and run both arms from it."""
    from preftune.pipeline import run_pipeline
    from preftune.recipes import resolve

    base = build_base(folder / "base", seed, steps=QUICK_BASE if quick else STEPS)
    data = folder / "data"
    write_data(data, seed)
    steps = (2, 10) if quick else (GMPO_STEPS, COLD_START)
    out: dict[bool, Arm] = {}
    for real in (True, False):
        output = folder / ("gmpo" if real else "control")
        start = time.perf_counter()
        with nullcontext() if real else shuffled_scores(seed):
            run_pipeline(resolve(gmpo_recipe(base, data, output, seed, *steps)))
        seconds = time.perf_counter() - start
        found = [
            critic_on_held_out(base, data, adapter, seed, 10 if quick else JUDGED_PROBLEMS).get("critic/agreement")
            for adapter in (None, output / "critic")
        ]
        out[real] = _read(output, (found[0], found[1]), seconds)
    return out


def _read(folder: Path, critic: tuple[float | None, float | None], seconds: float) -> Arm:
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line["metrics"] for line in lines if line["kind"] == "train"]

    def rows(split: str, step: int) -> list[float]:
        text = (folder / "measurements" / f"{split}-{step}.json").read_text(encoding="utf-8")
        found: list[float] = json.loads(text)["rows"]["reward/accuracy"]
        return found

    def means(some: Sequence[Mapping[str, float]]) -> dict[str, float]:
        known = {name: [float(step[name]) for step in some if name in step] for name in WATCHED}
        return {name: sum(values) / len(values) for name, values in known.items() if values}

    return Arm(
        rows("test", 0), rows("test", summary["kept_step"]), rows("validation", summary["steps"]), critic,
        means(steps[:1]), means(steps[-LAST:]), seconds,
    )  # fmt: skip


def section(results: Results, machine: str) -> list[str]:
    """The lines of the section."""
    seeds = ", ".join(map(str, results))
    lines = [
        "## gmpo",
        "",
        f"The task of `preftune demo gmpo` over seeds {seeds}: the sums of the grpo section, with policy and critic as "
        "two LoRA adapters on one base. The policy's only score is the critic's expectation, and the critic reads the "
        "question and the answer and no right answer; the truth trains the critic alone. The base has also met "
        f"critiques, whose verdicts were thrown by a coin. A cold start of {COLD_START} steps on answers of the base, "
        f"then {GMPO_STEPS} steps; {TEST_ROWS} test problems a seed, greedy, the checkpoint chosen on 200 validation "
        "problems. The control deals the critic's scores anew among the answers of a batch.",
        "",
        "| right answers | seed | before | after | difference | last step, validation |",
        "|---|---|---|---|---|---|",
    ]
    for real, label in ARMS.items():
        arms = {seed: found[real] for seed, found in results.items()}
        for seed, arm in arms.items():
            lines.append(_row(label, str(seed), [arm]))
        lines.append(_row(f"**{label}**", "all", list(arms.values())))
    lines += [
        "",
        "How often the critic puts a right answer above a wrong one (area under the ROC curve; 0.5 is chance). Before "
        f"and after: on answers of the base to {JUDGED_PROBLEMS} test problems, which neither adapter was trained on. "
        f"The others are of the run's own steps: the first one, and the mean of the last {LAST}.",
        "",
        "| arm | seed | critic before | critic after | " + " | ".join(WATCHED.values()) + " |",
        "|---" * (len(WATCHED) + 4) + "|",
    ]
    for real, label in ((True, "critic"), (False, "control")):
        for seed, found in results.items():
            arm = found[real]
            told = ["–" if value is None else f"{value:.2f}" for value in arm.critic]
            cells = [f"{_shown(arm.first, name)} → {_shown(arm.end, name)}" for name in WATCHED]
            lines.append(f"| {label} | {seed} | {' | '.join([*told, *cells])} |")
    change = _difference([found[True] for found in results.values()])
    times = [found[True].seconds for found in results.values()]
    return [
        *lines,
        "",
        f"The aim was 20 points: {100 * change:+.1f}, so it is {'reached' if change >= 0.2 else 'missed'}.",
        "",
        f"Machine: {machine}. A run with cold start and measurements took {min(times):.0f} to {max(times):.0f} s.",
    ]


def _difference(arms: Sequence[Arm]) -> float:
    before = [v for arm in arms for v in arm.before]
    after = [v for arm in arms for v in arm.after]
    return sum(after) / len(after) - sum(before) / len(before)


def _shown(values: Mapping[str, float], name: str) -> str:
    return f"{values[name]:.2f}" if name in values else "–"


def _row(label: str, seed: str, arms: Sequence[Arm]) -> str:
    before = [v for arm in arms for v in arm.before]
    after = [v for arm in arms for v in arm.after]
    change = paired_difference(before, after)
    points = f"{100 * change.value:+.1f} points ({100 * change.low:+.1f} … {100 * change.high:+.1f})"
    cells = [share(before), share(after), points, share([v for arm in arms for v in arm.last])]
    return f"| {label} | {seed} | {' | '.join(cells)} |"

"""The part of docs/results.md on the GRPO family: its presets side by side on the arithmetic task."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from preftune.demo.base import STEPS, build_base
from preftune.demo.grpo import GRPO_STEPS, TEST_ROWS, grpo_recipe, write_task
from preftune.demo.shared import share
from preftune.intervals import paired_difference

PRESETS = ("grpo", "grpo-original", "dr-grpo", "dapo", "gspo", "cispo", "rloo")
SEVERAL = {"gspo": {"updates_per_batch": 2, "minibatches": 2}}
"""With one update a batch gspo is grpo-original without the KL; it needs several."""


@dataclass(frozen=True, slots=True)
class Arm:
    """Right answers on test problems before and after, validation accuracy by step, updates and seconds of the run."""

    before: Sequence[float]
    after: Sequence[float]
    curve: Mapping[int, float]
    best_step: int
    drawn: float
    update_seconds: float
    sample_seconds: float
    seconds: float


def run_seed(folder: Path, seed: int, *, quick: bool) -> dict[str, Arm]:
    """Build one base and run every preset from it."""
    from preftune.pipeline import run_pipeline
    from preftune.recipes import resolve

    base = build_base(folder / "base", seed, steps=20 if quick else STEPS)
    write_task(folder / "data", seed)
    arms: dict[str, Arm] = {}
    for preset in PRESETS:
        recipe = grpo_recipe(base, folder / "data", folder / preset, seed, 4 if quick else GRPO_STEPS)
        recipe["policy"] = {"preset": preset}
        recipe["train"] |= SEVERAL.get(preset, {})
        start = time.perf_counter()
        run_pipeline(resolve(recipe))
        arms[preset] = _read(folder / preset, time.perf_counter() - start)
    return arms


def _read(folder: Path, seconds: float) -> Arm:
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]

    def rows(step: int) -> list[float]:
        text = (folder / "measurements" / f"test-{step}.json").read_text(encoding="utf-8")
        found: list[float] = json.loads(text)["rows"]["reward/accuracy"]
        return found

    curve = {
        line["step"]: float(line["metrics"]["reward/accuracy"]["value"])
        for line in lines
        if line["kind"] == "eval" and line["split"] == "validation"
    }
    drawn = sum(float(line["metrics"].get("resample/prompts", 16.0)) for line in steps)
    times = {name: sum(float(line["time"].get(name, 0.0)) for line in steps) for name in ("update", "sample")}
    return Arm(
        rows(0),
        rows(summary["best_step"]),
        curve,
        summary["best_step"],
        drawn,
        times["update"],
        times["sample"],
        seconds,
    )


def section(results: Mapping[int, Mapping[str, Arm]], machine: str) -> list[str]:
    """The lines of the section."""
    seeds = ", ".join(map(str, results))
    lines = [
        "## presets",
        "",
        f"The task of `make demo` over seeds {seeds}, {GRPO_STEPS} steps of 16 prompts with 8 answers, learning rate "
        f"1e-4 for all, {TEST_ROWS} test problems a seed, greedy, checkpoint chosen on 200 validation problems. gspo "
        "makes 2 passes in 2 minibatches (with one update a batch its ratio is 1); the others make one update, with "
        "which cispo's gradient is grpo's. “Steps to 90 %” is the first measurement (every 10 steps) with 90 % of the "
        "validation problems right, the largest of the seeds. Nothing was tuned for a preset: a learning rate that "
        "suits one may not suit another, so this shows that they all work and what they cost, and not which one is "
        "best.",
        "",
        "| preset | right before | right after, all seeds | difference | by seed | steps to 90 % | prompts drawn | "
        "sampling, s | update, s | whole run, s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for preset in PRESETS:
        arms = [found[preset] for found in results.values()]
        before = [v for arm in arms for v in arm.before]
        after = [v for arm in arms for v in arm.after]
        change = paired_difference(before, after)
        reached = [next((step for step, value in arm.curve.items() if value >= 0.9), None) for arm in arms]
        known = [step for step in reached if step is not None]
        steps = str(max(known)) if len(known) == len(reached) else f"not reached by {len(reached) - len(known)}"
        by_seed = ", ".join(f"{100 * sum(arm.after) / len(arm.after):.1f}" for arm in arms)
        cells = [
            share(before), share(after),
            f"{100 * change.value:+.1f} ({100 * change.low:+.1f} … {100 * change.high:+.1f})", by_seed, steps,
            _mean([arm.drawn for arm in arms], 0), _mean([arm.sample_seconds for arm in arms], 1),
            _mean([arm.update_seconds for arm in arms], 1), _mean([arm.seconds for arm in arms], 0),
        ]  # fmt: skip
        lines.append(f"| `{preset}` | {' | '.join(cells)} |")
    return [*lines, "", f"Machine: {machine}. Seconds are means over the seeds. Controls: the grpo section above."]


def _mean(values: Sequence[float], digits: int) -> str:
    return f"{sum(values) / len(values):.{digits}f}"

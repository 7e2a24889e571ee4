"""The part of docs/results.md on the competition: three seeds, each with a control whose scores are dealt by chance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from preftune.demo.competition import (
    AT_USE,
    BASE_STEPS,
    QUICK_BASE,
    RIGHT,
    STEPS,
    TEST_ROWS,
    build_base,
    competition_recipe,
    measured,
    shuffled_scores,
    write_task,
)
from preftune.demo.competition_texts import PERSONAS
from preftune.demo.shared import share
from preftune.intervals import paired_difference

ARMS = {True: "the competition's rewards", False: "control: the scores dealt by chance"}
STRICT, VALID, COPIED = "reward/strict", "reward/valid", "reward/competition-copied"
GOALS = {
    STRICT: "form without a fault",
    VALID: "the winner's tag holds a name and nothing else",
    COPIED: "a persona copies an earlier one",
    RIGHT: "right answers",
}
WINNER_RIGHT, REFLECTIVE = "reward/competition-winner-right", "reward/competition-reflective-winner"
WHEN = ("before", *(f"after “{name}”" for name in STEPS))

Rows = Mapping[str, Sequence[float]]
"""Metric → its value on each test row."""


@dataclass(frozen=True, slots=True)
class Arm:
    """Test rows before training and after each round, each round's steps, and the seconds that steps and
    measurements took."""

    rows: Sequence[Rows]
    steps: Sequence[int]
    seconds: float


Results = Mapping[int, Mapping[bool, Arm]]
"""Seed → real (True) and control (False)."""


def run_seed(folder: Path, seed: int, *, quick: bool) -> dict[bool, Arm]:
    """Build one base and run both arms from it."""
    from preftune.pipeline import run_pipeline
    from preftune.recipes import resolve

    base = build_base(folder / "base", seed, steps=QUICK_BASE if quick else BASE_STEPS)
    write_task(folder / "data", seed, quick=quick)
    out: dict[bool, Arm] = {}
    for real in (True, False):
        output = folder / ("competition" if real else "control")
        recipe = competition_recipe(base, folder / "data", output, seed, quick=quick)
        with nullcontext() if real else shuffled_scores(seed):
            run_pipeline(resolve(recipe))
        out[real] = read_arm(output)
    return out


def read_arm(output: Path) -> Arm:
    """What a finished run's folder says of it."""
    # A value of None would be a reward that does not apply to a row; all of these apply to every contest.
    rows = [{name: [v for v in values if v is not None] for name, values in m.rows.items()} for m in measured(output)]
    told = [json.loads((output / name / "summary.json").read_text(encoding="utf-8")) for name in STEPS]
    seconds = sum(one["seconds"]["step"] + one["seconds"]["eval"] for one in told)
    return Arm(rows, [one["steps"] for one in told], seconds)


def section(results: Results, machine: str) -> list[str]:
    """The lines of the section."""
    seeds = ", ".join(map(str, results))
    lines = [
        "## competition",
        "",
        f"The task of `preftune demo competition` over seeds {seeds}: a base of a third of a million parameters, "
        "trained on the spot on contests of a careless writer, solves two-digit sums as pirate, knight and viking and "
        "names a winner. GRPO in three rounds: “form” ends once three of four contests, drawn at temperature 1, have "
        "the form; “thought” adds the rewards for originality, self-reflection and a winner who is right, “length” one "
        f"for length. Each seed has its own base, data and {TEST_ROWS} test sums, never trained on; they are "
        f"answered at temperature {AT_USE}, and no checkpoint is chosen. The control deals the scores anew among all "
        "contests of a batch. Intervals are 95 %; differences are paired over the same sums.",
    ]
    for metric, title in GOALS.items():
        lines += ["", f"| {title} | seed | before | after | difference |", "|---|---|---|---|---|"]
        for real, label in ARMS.items():
            arms = {seed: found[real] for seed, found in results.items()}
            lines += [_row(label, str(seed), metric, [arm]) for seed, arm in arms.items()]
            lines.append(_row(f"**{label}**", "all", metric, list(arms.values())))
    lines += [
        "",
        "Round by round, on the same test sums. A persona checks itself when its text has one of its words of doubt or "
        "correction; winner shares are of all contests, so that those without a valid winner are missing from them.",
        "",
        "| arm | seed | | form | copies | right answers | winner's own result right | winner checks itself | "
        + " | ".join(f"{persona} wins" for persona in PERSONAS)
        + " | "
        + " | ".join(f"{persona} checks itself" for persona in PERSONAS)
        + " | tokens |",
        "|---" * (9 + 2 * len(PERSONAS)) + "|",
    ]
    for real, label in ((True, "rewards"), (False, "control")):
        for seed, found in results.items():
            lines += [f"| {label} | {seed} | {_round(when, rows)} |" for when, rows in _rounds(found[real])]
    times = [arm.seconds for found in results.values() for arm in found.values()]
    return [
        *lines,
        "",
        *_aims(results),
        "",
        f"Machine: {machine}. The three rounds with their measurements took {min(times):.0f} to {max(times):.0f} s.",
    ]


def _rounds(arm: Arm) -> list[tuple[str, Rows]]:
    steps = ["", *(f", {count} steps" for count in arm.steps)]
    return [(when + more, rows) for when, more, rows in zip(WHEN, steps, arm.rows, strict=True)]


def _round(when: str, rows: Rows) -> str:
    names = [
        STRICT, COPIED, RIGHT, WINNER_RIGHT, REFLECTIVE,
        *(f"reward/competition-won-{persona}" for persona in PERSONAS),
        *(f"reward/competition-reflection-{persona}" for persona in PERSONAS),
    ]  # fmt: skip
    shares = [f"{100 * _mean(rows[name]):.1f} %" for name in names]
    return " | ".join([when, *shares, f"{_mean(rows['length/mean']):.0f}"])


def _aims(results: Results) -> list[str]:
    """What the demo has to show, each with what all seeds together gave."""
    real = [found[True] for found in results.values()]
    control = [found[False] for found in results.values()]
    strict, valid, copied, right = (tuple(_mean(_pooled(real, name, i)) for i in (0, -1)) for name in GOALS)
    change = paired_difference(_pooled(real, RIGHT, 0), _pooled(real, RIGHT, -1))
    dealt = paired_difference(_pooled(control, STRICT, 0), _pooled(control, STRICT, -1))

    def told(reached: bool) -> str:
        return "reached" if reached else "missed"

    return [
        f"- Form without a fault from under 20 % to over 90 %: {100 * strict[0]:.1f} → {100 * strict[1]:.1f} %, "
        f"{told(strict[0] < 0.2 and strict[1] > 0.9)}.",
        f"- A valid winner in over 90 %: {100 * valid[1]:.1f} %, {told(valid[1] > 0.9)}.",
        f"- Copies in under 10 %: {100 * copied[0]:.1f} → {100 * copied[1]:.1f} %, {told(copied[1] < 0.1)}.",
        f"- Right answers not falling: {100 * right[0]:.1f} → {100 * right[1]:.1f} %, {100 * change.value:+.1f} points "
        f"({100 * change.low:+.1f} … {100 * change.high:+.1f}), {told(change.high >= 0.0)}.",
        f"- The control's form not rising: {100 * dealt.value:+.1f} points ({100 * dealt.low:+.1f} … "
        f"{100 * dealt.high:+.1f}), {told(dealt.low <= 0.0)}.",
    ]


def _pooled(arms: Sequence[Arm], metric: str, place: int) -> list[float]:
    return [value for arm in arms for value in arm.rows[place][metric]]


def _row(label: str, seed: str, metric: str, arms: Sequence[Arm]) -> str:
    before, after = _pooled(arms, metric, 0), _pooled(arms, metric, -1)
    change = paired_difference(before, after)
    points = f"{100 * change.value:+.1f} points ({100 * change.low:+.1f} … {100 * change.high:+.1f})"
    return f"| {label} | {seed} | {share(before)} | {share(after)} | {points} |"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

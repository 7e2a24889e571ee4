"""`make results`: the demos over three seeds with their controls, written to docs/results.md.

python -m preftune.demo.results [grpo presets dpo kto reward ppo iterative-dpo gmpo competition alignment]
    [--seeds 0 1 2] [--output FOLDER] [--page FILE] [--quick]

With some methods named, only their sections of the page are written anew.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from preftune.demo import acting, preferences, results_acting, results_chat, results_presets
from preftune.demo.arithmetic import problems, write_rows
from preftune.demo.base import CARRY_SHARE, STEPS, Teacher, build_base
from preftune.demo.grpo import ACCURACY, GRPO_STEPS, TEST_ROWS, WELL_FORMED_REWARD, grpo_recipe, write_task
from preftune.errors import UsageError
from preftune.intervals import Interval, mean_interval, paired_difference

SECTIONS = ("grpo", "presets", "dpo", "kto", "reward", "ppo", "iterative-dpo", "gmpo", "competition", "alignment")
"""Sections of the page, in order: a demo each, and the GRPO presets side by side."""

ROWS_PER_STEP = 128
"""Rows per step of the SFT control: as many texts as GRPO trains on in a step (16 prompts × 8 completions)."""

ARMS = {
    "grpo": "GRPO, right-or-wrong reward",
    "random": "control: GRPO, random reward",
    "sft": "control: as many steps of further SFT on the base's own data",
}


@dataclass(frozen=True, slots=True)
class Arm:
    """Rows of one arm and one seed: accuracy and well-formedness on test problems before and after, and the accuracy
    on validation problems at the last step, before the best checkpoint is chosen."""

    before: Mapping[str, Sequence[float]]
    after: Mapping[str, Sequence[float]]
    last: Sequence[float]
    seconds: float


def run_seed(folder: Path, seed: int, *, quick: bool) -> dict[str, Arm]:
    """Build one base and run every arm from it."""
    from preftune.pipeline import run_pipeline
    from preftune.recipes import resolve

    steps = 4 if quick else GRPO_STEPS
    base = build_base(folder / "base", seed, steps=20 if quick else STEPS)
    write_task(folder / "data", seed)
    further = list(islice(problems("train", seed + 2000, CARRY_SHARE), ROWS_PER_STEP * steps))
    write_rows(folder / "data" / "further.jsonl", further, Teacher(seed + 2000))
    arms: dict[str, Arm] = {}
    for arm in ARMS:
        recipe = grpo_recipe(base, folder / "data", folder / arm, seed, steps)
        if arm == "random":
            recipe["rewards"] = [
                {"name": "preftune.demo.rewards:coin"},
                {**ACCURACY, "weight": 0.0},
                {**WELL_FORMED_REWARD, "weight": 0.0},
            ]
        if arm == "sft":
            recipe["method"], recipe["data"] = "sft", [{"path": str(folder / "data" / "further.jsonl")}]
            recipe["train"]["batch_size"] = ROWS_PER_STEP
        start = time.perf_counter()
        run_pipeline(resolve(recipe))
        arms[arm] = _read(folder / arm, time.perf_counter() - start)
    return arms


def _read(folder: Path, seconds: float) -> Arm:
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))

    def rows(split: str, step: int) -> dict[str, list[float]]:
        text = (folder / "measurements" / f"{split}-{step}.json").read_text(encoding="utf-8")
        measured: dict[str, list[float]] = json.loads(text)["rows"]
        return {name: measured[f"reward/{name}"] for name in ("accuracy", "regex")}

    last = rows("validation", summary["steps"])["accuracy"]
    return Arm(rows("test", 0), rows("test", summary["best_step"]), last, seconds)


def section(results: Mapping[int, Mapping[str, Arm]], machine: str, *, seconds: float) -> list[str]:
    """The lines of the grpo section."""
    seeds = ", ".join(map(str, results))
    lines = [
        "## grpo",
        "",
        f"The task of `make demo` over seeds {seeds}: a base of 0.8 million parameters, trained on the spot by someone "
        "who mostly forgets to carry, answers two-digit sums in words. Each seed has its own base, data and held-out "
        f"problems; {TEST_ROWS} test problems a seed, greedy answers, no sum shared with training. The checkpoint of "
        "every arm is chosen on 200 separate validation problems. Intervals are 95 %; differences are paired over the "
        "same problems. The last column shows where each arm ended when no checkpoint is chosen: a control that only "
        "harms the model keeps its first one.",
        "",
        "### Right answers",
        "",
        "| arm | seed | before | after | difference | last step, validation |",
        "|---|---|---|---|---|---|",
    ]
    for arm, label in ARMS.items():
        for seed, arms in results.items():
            a = arms[arm]
            lines.append(_row(label, str(seed), a.before["accuracy"], a.after["accuracy"], a.last))
        before = [v for arms in results.values() for v in arms[arm].before["accuracy"]]
        after = [v for arms in results.values() for v in arms[arm].after["accuracy"]]
        last = [v for arms in results.values() for v in arms[arm].last]
        lines.append(_row(f"**{label}**", "all", before, after, last))
    lines += [
        "",
        "### Form apart from content",
        "",
        "| arm | seed | well formed before | after | right among well-formed, before | after |",
        "|---|---|---|---|---|---|",
    ]
    for arm, label in ARMS.items():
        for seed, arms in results.items():
            a = arms[arm]
            cells = [_share(a.before["regex"]), _share(a.after["regex"]), _among(a.before), _among(a.after)]
            lines.append(f"| {label} | {seed} | " + " | ".join(cells) + " |")
    times = [arms["grpo"].seconds for arms in results.values()]
    lines += [
        "",
        f"Machine: {machine}. A GRPO run with its measurements took {min(times):.0f} to {max(times):.0f} s; all of it "
        f"{seconds / 60:.0f} minutes.",
    ]
    return lines


def page(old: str, new: Mapping[str, Sequence[str]], *, quick: bool) -> str:
    """docs/results.md: the sections of `old`, between marks that a reader does not see, with the new ones in their
    places. What stands outside the marks is written anew."""
    found = dict(re.findall(r"<!-- begin ([\w-]+) -->\n(.*?)<!-- end \1 -->", old, re.DOTALL))
    found |= {name: "\n".join(["", *lines, "", ""]) for name, lines in new.items()}
    head = "# Results of the demos\n\nWritten by `make results`; do not edit."
    if quick:
        head += " **A quick smoke: nothing is learnt in it.**"
    parts = [f"<!-- begin {name} -->\n{found[name]}<!-- end {name} -->" for name in SECTIONS if name in found]
    return "\n\n".join([head, *parts]) + "\n"


def _row(label: str, seed: str, before: Sequence[float], after: Sequence[float], last: Sequence[float]) -> str:
    change = paired_difference(before, after)
    points = f"{100 * change.value:+.1f} points ({100 * change.low:+.1f} … {100 * change.high:+.1f})"
    return f"| {label} | {seed} | {_share(before)} | {_share(after)} | {points} | {_share(last)} |"


def _share(values: Sequence[float]) -> str:
    return _text(mean_interval(values))


def _among(rows: Mapping[str, Sequence[float]]) -> str:
    right = [a for a, form in zip(rows["accuracy"], rows["regex"], strict=True) if form == 1.0]
    return _text(mean_interval(right)) if right else "–"


def _text(interval: Interval) -> str:
    return f"{100 * interval.value:.1f} % ({100 * interval.low:.1f} … {100 * interval.high:.1f})"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"of {', '.join(SECTIONS)} (default all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/results"))
    parser.add_argument("--page", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--quick", action="store_true", help="a few steps of each arm, to see that all parts work")
    options: Any = parser.parse_args(arguments)
    methods = options.methods or SECTIONS
    try:
        if unknown := [name for name in methods if name not in SECTIONS]:
            raise UsageError(f"there is no demo for {unknown[0]}; there are demos for {', '.join(SECTIONS)}")
        if options.output.exists() and any(options.output.iterdir()):
            raise UsageError(f"{options.output} exists already; remove it or name another folder with --output")
        new = _sections(methods, options)
    except UsageError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    old = options.page.read_text(encoding="utf-8") if options.page.exists() else ""
    text = page(old, new, quick=options.quick)
    options.page.write_text(text, encoding="utf-8")
    print(text)
    return 0


def _sections(methods: Sequence[str], options: Any) -> dict[str, list[str]]:
    from preftune.train.folder import hardware

    facts = hardware()
    machine = f"{facts['processor']}, {facts['cores']} cores, {facts.get('memory_gib', '?')} GiB"
    new: dict[str, list[str]] = {}
    if "grpo" in methods:
        start = time.perf_counter()
        sums = {s: run_seed(options.output / "sums" / str(s), s, quick=options.quick) for s in options.seeds}
        new["grpo"] = section(sums, machine, seconds=time.perf_counter() - start)
    chosen = [method for method in preferences.METHODS if method in methods]
    if chosen:
        chats = {
            seed: results_chat.run_seed(options.output / "chat" / str(seed), seed, chosen, quick=options.quick)
            for seed in options.seeds
        }
        new |= {method: results_chat.section(method, chats, machine) for method in chosen}
    if "presets" in methods:
        found = {
            s: results_presets.run_seed(options.output / "presets" / str(s), s, quick=options.quick)
            for s in options.seeds
        }
        new["presets"] = results_presets.section(found, machine)
    acts = [method for method in acting.METHODS if method in methods]
    if acts:
        acted = {
            seed: results_acting.run_seed(options.output / "acting" / str(seed), seed, acts, quick=options.quick)
            for seed in options.seeds
        }
        for act in acts:
            new[act] = results_acting.section(act, {seed: arms[act] for seed, arms in acted.items()}, machine)
    if "gmpo" in methods:
        from preftune.demo import results_gmpo

        judged = {
            s: results_gmpo.run_seed(options.output / "gmpo" / str(s), s, quick=options.quick) for s in options.seeds
        }
        new["gmpo"] = results_gmpo.section(judged, machine)
    if "competition" in methods:
        from preftune.demo import results_competition

        contests = {
            s: results_competition.run_seed(options.output / "competition" / str(s), s, quick=options.quick)
            for s in options.seeds
        }
        new["competition"] = results_competition.section(contests, machine)
    if "alignment" in methods:
        from preftune.demo import results_alignment

        whole = {
            s: results_alignment.run_seed(options.output / "alignment" / str(s), s, quick=options.quick)
            for s in options.seeds
        }
        new["alignment"] = results_alignment.section(whole, machine)
    return new


if __name__ == "__main__":
    sys.exit(main())

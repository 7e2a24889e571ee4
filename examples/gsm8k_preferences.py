"""Do a reward model, DPO and KTO learn which solutions of a word problem are right? Measured on held-out questions.

    python examples/gsm8k_preferences.py train.jsonl solutions.jsonl --output runs/gsm8k-preferences --seeds 3

The first file has GSM8K's training rows; a small base model is trained on them (examples/gsm8k_small_model.py), unless
--model names one. The second has questions with solutions of several writers, marked right or wrong, and is read by the
mappings of recipes/gsm8k-reward.yaml, gsm8k-dpo.yaml and gsm8k-kto.yaml alone. Each recipe runs once per seed, and
again on labels that are shuffled within each question, where there is nothing to learn. The seed decides which
questions are held out, and the order of the others. Further flags go to every recipe (`--train.threads 1`), or to one
(`--kto.train.steps 36`).

What it writes to OUTPUT/results.md is explained in docs/gsm8k-preferences.md. Started again, it goes on where it
stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import gsm8k_small_model
import numpy as np

import preftune
from preftune.errors import PreftuneError, UsageError
from preftune.intervals import Interval, auc_interval, t_quantile, weighted_mean
from preftune.pipeline import run_pipeline

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
ARMS = {"reward": "reward model", "dpo": "DPO", "kto": "KTO"}
CONTROL = "control: {}, shuffled labels"
HUMAN = "human"
LAST_STEP = {"eval.every": None, "eval.best": None, "eval.patience": None}
"""No checkpoint is chosen by the held-out questions: they are what is measured."""
SMALL = {
    "reward": {"train.learning_rate": 1e-3},
    "dpo": {"train.learning_rate": 5e-4},
    "kto": {"train.learning_rate": 5e-4},
}
"""Rates for a model of three million parameters; the recipes' are for hundreds of millions."""

Place = tuple[int, str]
"""(question, writer): names one solution."""
Scores = dict[Place, float]


@dataclass(frozen=True, slots=True)
class Solution:
    """One solution of the file."""

    text: str
    right: bool


Solutions = dict[Place, Solution]


@dataclass(frozen=True, slots=True)
class Pair:
    """A right and a wrong solution of one question.

    Attributes:
        shorter: the right one has fewer characters.
        abler: the right one's writer is right more often, in the questions that are not held out.
    """

    seed: int
    right: Place
    wrong: Place
    shorter: bool
    abler: bool


@dataclass(slots=True)
class Row:
    """One line of the tables: scores of held-out solutions, one mapping per seed."""

    name: str
    scores: list[Scores]


def read_solutions(path: Path) -> tuple[list[dict[str, Any]], Solutions]:
    """The file's rows as they are, and its solutions; the reference's writer is "human"."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n")]
    found: Solutions = {}
    for number, row in enumerate(rows, 1):
        found[number, HUMAN] = Solution(row["reference"], True)
        found.update({(number, r["model"]): Solution(r["text"], r["correct"]) for r in row["responses"]})
    return rows, found


def write_shuffled(rows: Sequence[Mapping[str, Any]], out: Path, *, with_human: bool, seed: int) -> None:
    """The same rows with right and wrong permuted within each question. The reference, where it is used, takes part."""
    rng = random.Random(f"{seed}/shuffled")
    lines = []
    for row in rows:
        responses = [dict(response) for response in row["responses"]]
        if with_human:
            responses.append({"model": HUMAN, "text": row["reference"], "correct": True})
        marks = [response["correct"] for response in responses]
        rng.shuffle(marks)
        given = [{**response, "correct": mark} for response, mark in zip(responses, marks, strict=True)]
        lines.append(json.dumps({**row, "responses": given}) + "\n")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(lines), encoding="utf-8")


def run(method: str, base: str, data: Path, output: Path, *, seed: int, overrides: Mapping[str, Any]) -> Path:
    """One shipped recipe, in a run folder of its own. A folder that is there is gone on with."""
    given = {"model.path": base, "data.path": str(data), "output": str(output), "seed": seed, **LAST_STEP, **overrides}
    run_pipeline(preftune.load_recipe(RECIPES / f"gsm8k-{method}.yaml", given), resume=output.exists())
    return output


def read_scores(folder: Path) -> dict[str, Scores]:
    """What a run measured of each held-out solution: its reward at the end, and log π before and after, if any."""
    out: dict[str, Scores] = {}
    steps = sorted(int(path.stem.rsplit("-", 1)[1]) for path in (folder / "measurements").glob("answers-validation-*"))
    for when, step in (("before", steps[0]), ("after", steps[-1])):
        path = folder / "measurements" / f"answers-validation-{step}.jsonl"
        for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            place = (int(line["where"].rsplit(":", 1)[1]), line["source"])
            out.setdefault(f"reward {when}", {})[place] = line["reward"]
            if line["logprob"] is not None:
                out.setdefault(f"logprob {when}", {})[place] = line["logprob"]
                out.setdefault(f"per token {when}", {})[place] = line["logprob"] / line["length"]
    return out


def skill(solutions: Solutions, questions: Iterable[int]) -> dict[str, float]:
    """Writer → share of right solutions in these questions."""
    marks: dict[str, list[bool]] = {}
    wanted = set(questions)
    for (question, writer), solution in solutions.items():
        if question in wanted:
            marks.setdefault(writer, []).append(solution.right)
    return {writer: sum(found) / len(found) for writer, found in marks.items()}


def make_pairs(solutions: Solutions, held_out: Iterable[int], able: Mapping[str, float], seed: int) -> list[Pair]:
    """Every right solution against every wrong one of the same held-out question."""
    by_question: dict[int, list[Place]] = {question: [] for question in sorted(held_out)}
    for place in solutions:
        by_question.get(place[0], []).append(place)
    pairs = []
    for places in by_question.values():
        for a, b in combinations(places, 2):
            if solutions[a].right != solutions[b].right:
                good, bad = (a, b) if solutions[a].right else (b, a)
                shorter = len(solutions[good].text) < len(solutions[bad].text)
                pairs.append(Pair(seed, good, bad, shorter, able[good[1]] > able[bad[1]]))
    return pairs


def without_human(pairs: Iterable[Pair]) -> list[Pair]:
    return [pair for pair in pairs if HUMAN not in (pair.right[1], pair.wrong[1])]


def fit_length_and_writer(solutions: Solutions, pairs: Sequence[Pair]) -> Callable[[Place], float]:
    """Bradley–Terry on two things that need no reading: who wrote a solution, and the logarithm of its length.

    Newton's method on −Σ log σ((x_right − x_wrong)·w) + 0.01·|w|²/2.
    """
    writers = sorted({place[1] for pair in pairs for place in (pair.right, pair.wrong)})

    def features(place: Place) -> np.ndarray[Any, Any]:
        length = math.log(max(len(solutions[place].text), 1))
        return np.array([length, *(float(place[1] == writer) for writer in writers)])

    apart = np.array([features(pair.right) - features(pair.wrong) for pair in pairs])
    w = np.zeros(apart.shape[1])
    for _ in range(20):
        p = 1 / (1 + np.exp(-apart @ w))
        hessian = (apart * (p * (1 - p))[:, None]).T @ apart + 0.01 * np.eye(len(w))
        w += np.linalg.solve(hessian, apart.T @ (1 - p) - 0.01 * w)
    return lambda place: float(features(place) @ w)


def won(scores: Sequence[Scores], pair: Pair) -> float:
    """1 where the right solution has the higher score, ½ for a tie."""
    right, wrong = scores[pair.seed][pair.right], scores[pair.seed][pair.wrong]
    return 1.0 if right > wrong else 0.5 if right == wrong else 0.0


def mean_of_cells(cells: Sequence[Sequence[tuple[int, float]]]) -> Interval:
    """The plain mean of the cells' means, with a 95 % interval. A cell's rows are (question, value).

    Rows of one question depend on each other, within a cell, across cells and across seeds. So a question's
    deviations from its cells' means are added up before they are squared (linearisation; Student's t). Without bounds
    where there is one question, or no deviation.
    """
    parts: dict[int, float] = {}
    means = [sum(value for _, value in rows) / len(rows) for rows in cells]
    for rows, mean in zip(cells, means, strict=True):
        for question, value in rows:
            parts[question] = parts.get(question, 0.0) + (value - mean) / len(rows) / len(cells)
    mean, n = sum(means) / len(means), len(parts)
    spread = sum(part * part for part in parts.values())
    if n < 2 or spread < 1e-15:
        return Interval(mean, -math.inf, math.inf, n)
    half = t_quantile(n - 1) * math.sqrt(spread * n / (n - 1))
    return Interval(mean, mean - half, mean + half, n)


def accuracy(values: Sequence[tuple[Pair, float]]) -> Interval:
    """Mean over questions of the mean over their pairs, as `rewards/accuracy` of a run. Works for margins as well."""
    by_question: dict[tuple[int, int], list[float]] = {}
    for pair, value in values:
        by_question.setdefault((pair.seed, pair.right[0]), []).append(value)
    return mean_of_cells([[(question, sum(v) / len(v)) for (_, question), v in by_question.items()]])


CELLS: dict[str, Callable[[Pair], bool]] = {
    "shorter, abler": lambda pair: pair.shorter and pair.abler,
    "shorter, less able": lambda pair: pair.shorter and not pair.abler,
    "longer, abler": lambda pair: not pair.shorter and pair.abler,
    "longer, less able": lambda pair: not pair.shorter and not pair.abler,
}
"""The right solution is shorter or not, and its writer is the abler of the two or not."""


def balanced(values: Sequence[tuple[Pair, float]]) -> Interval | None:
    """The mean over CELLS: 50 % for whatever goes by length alone, or by writer alone. None where a cell is empty."""
    cells = [[(pair.right[0], v) for pair, v in values if inside(pair)] for inside in CELLS.values()]
    return mean_of_cells(cells) if all(cells) else None


def area(row: Row, solutions: Solutions, pairs: Sequence[Pair]) -> Interval:
    """AUC over all model-written solutions of the questions that have pairs: one per seed, and their mean.

    Seeds share a few held-out questions; the mean's interval takes them for independent.
    """
    parts = []
    for seed, scores in enumerate(row.scores):
        questions = {pair.right[0] for pair in pairs if pair.seed == seed}
        places = [place for place in scores if place[0] in questions and place[1] != HUMAN]
        marks = [solutions[place].right for place in places]
        parts.append(auc_interval([scores[p] for p in places], marks, [place[0] for place in places]))
    return weighted_mean(parts, [1.0] * len(parts))


def percent(found: Interval | None) -> str:
    if found is None:
        return "–"
    low, high = max(0.0, found.low), min(1.0, found.high)
    ends = f" ({100 * low:.1f} … {100 * high:.1f})" if found.is_bounded else ""
    return f"{100 * found.value:.1f}{ends}"


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines)])


def tables(rows: Sequence[Row], rewards: Sequence[Row], solutions: Solutions, pairs: Sequence[Pair]) -> str:
    """All results as Markdown. `rows` are compared on model-written solutions, `rewards` have margins as well."""
    own = without_human(pairs)
    seeds = sorted({pair.seed for pair in pairs})
    details = [row for row in rows if "log π" not in row.name or row.name.startswith("base")]

    def wins(row: Row, among: Sequence[Pair]) -> list[tuple[Pair, float]]:
        return [(pair, won(row.scores, pair)) for pair in among]

    def first(row: Row) -> list[str]:
        values = wins(row, own)
        single = [percent(accuracy([v for v in values if v[0].seed == seed])) for seed in seeds]
        whole = (accuracy(values), balanced(values), area(row, solutions, own))
        return [row.name, *single, *map(percent, whole)]

    def cell(row: Row, inside: Callable[[Pair], bool]) -> str:
        values = [(pair.right[0], value) for pair, value in wins(row, own) if inside(pair)]
        return percent(mean_of_cells([values])) if values else "–"

    def margin(row: Row) -> list[str]:
        found = accuracy([(p, row.scores[p.seed][p.right] - row.scores[p.seed][p.wrong]) for p in own])
        return [row.name, f"{found.value:+.3f} ({found.low:+.3f} … {found.high:+.3f})"]

    def human(row: Row) -> list[str]:
        values = wins(row, [p for p in pairs if p.right[1] == HUMAN and p.right in row.scores[p.seed]])
        return [row.name, percent(accuracy(values)) if values else "–"]

    counts = [len([p for p in own if inside(p)]) for inside in CELLS.values()]
    writers = sorted({frozenset((p.right[1], p.wrong[1])) for p in own}, key=sorted)
    by_writer = [[p for p in own if {p.right[1], p.wrong[1]} == two] for two in writers]
    questions = [len({p.right[0] for p in own if p.seed == seed}) for seed in seeds]
    parts = [
        f"Held-out questions with right and wrong solutions by models, per seed: {', '.join(map(str, questions))}; "
        f"{len({p.right[0] for p in own})} different ones, {len(own)} pairs. Percent, 95 % intervals.",
        "### Right before wrong, within a question",
        table(["", *(f"seed {seed}" for seed in seeds), "all seeds", "balanced", "AUC"], map(first, rows)),
        "### By length and writer: the right solution is …",
        table(
            ["", *(f"{name} ({n})" for name, n in zip(CELLS, counts, strict=True))],
            ([row.name, *(cell(row, inside) for inside in CELLS.values())] for row in details),
        ),
        "### By pair of writers",
        table(
            ["", *(f"{' / '.join(sorted(two))} ({len(some)})" for two, some in zip(writers, by_writer, strict=True))],
            (
                [
                    row.name,
                    *(percent(mean_of_cells([[(p.right[0], v) for p, v in wins(row, some)]])) for some in by_writer),
                ]
                for row in details
            ),
        ),
        "### Margin: mean reward of right minus wrong",
        table(["", "all seeds"], map(margin, rewards)),
        "### The human reference before a wrong solution",
        table(
            ["", "all seeds"], (human(row) for row in rows if all(any(p[1] == HUMAN for p in s) for s in row.scores))
        ),
    ]
    return "\n\n".join(parts) + "\n"


def run_all(
    base: str,
    data: Path,
    output: Path,
    *,
    seeds: int,
    overrides: Mapping[str, Mapping[str, Any]],
    controls: Sequence[str],
) -> dict[str, list[dict[str, Scores]]]:
    """Every recipe with every seed, then the controls. Name → what was measured, one entry per seed."""
    rows, _ = read_solutions(data)
    measured: dict[str, list[dict[str, Scores]]] = {}
    for method, name in ARMS.items():
        for seed in range(seeds):
            found = run(method, base, data, output / f"{method}-{seed}", seed=seed, overrides=overrides[method])
            measured.setdefault(name, []).append(read_scores(found))
    for method in controls:
        for seed in range(seeds):
            folder = output / f"{method}-{seed}-shuffled"
            shuffled = output / f"{folder.name}.jsonl"
            if not shuffled.exists():
                write_shuffled(rows, shuffled, with_human=method != "reward", seed=seed)
            inside: dict[str, Any] = (
                {} if method == "reward" else {"data.responses.also": []}
            )  # the human is among the responses
            found = run(method, base, shuffled, folder, seed=seed, overrides={**overrides[method], **inside})
            measured.setdefault(CONTROL.format(ARMS[method]), []).append(read_scores(found))
    return measured


def experiment(
    base: str,
    data: Path,
    output: Path,
    *,
    seeds: int,
    overrides: Mapping[str, Mapping[str, Any]],
    controls: Sequence[str],
) -> str:
    """Run everything and return the tables.

    Args:
        base: model folder or hub id that all runs start from.
        data: the file with solutions.
        seeds: 0 … seeds − 1.
        overrides: method → dotted path → value, over the shipped recipe.
        controls: methods that also run on shuffled labels.
    """
    measured = run_all(base, data, output, seeds=seeds, overrides=overrides, controls=controls)
    _, solutions = read_solutions(data)
    pairs: list[Pair] = []
    baselines = [Row(name, []) for name in ("the shorter wins", "the abler writer wins", "length and writer, fitted")]
    for seed in range(seeds):
        held_out = {question for question, _ in measured["KTO"][seed]["reward after"]}
        others = {question for question, _ in solutions} - held_out
        able = skill(solutions, others)
        pairs += make_pairs(solutions, held_out, able, seed)
        fitted = fit_length_and_writer(solutions, without_human(make_pairs(solutions, others, able, seed)))
        places = [place for place in solutions if place[0] in held_out]
        for row, scores in zip(
            baselines,
            (
                {place: -float(len(solutions[place].text)) for place in places},
                {place: able[place[1]] for place in places},
                {place: fitted(place) for place in places if place[1] != HUMAN},
            ),
            strict=True,
        ):
            row.scores.append(scores)

    def of(name: str, what: str, label: str) -> Row:
        return Row(label, [found[what] for found in measured[name]])

    trained = [of(name, "reward after", name) for name in ARMS.values()]
    shuffled = [of(name, "reward after", name) for name in measured if name not in ARMS.values()]
    logprobs = [of("DPO", "logprob before", "base, log π"), of("DPO", "per token before", "base, log π per token")]
    for name in ("DPO", "KTO"):
        logprobs += [
            of(name, "logprob after", f"{name}, log π"),
            of(name, "per token after", f"{name}, log π per token"),
        ]
    rows = [*trained, *logprobs, *baselines, *shuffled]
    # A solution that a recipe's token limits drop is compared by nobody; the reward model's recipe has no human.
    known = [set.intersection(*(set(row.scores[seed]) for row in rows)) for seed in range(seeds)]
    kept = [p for p in pairs if p.wrong in known[p.seed] and (p.right[1] == HUMAN or p.right in known[p.seed])]
    return tables(rows, [*trained, *shuffled], solutions, kept)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Reward model, DPO and KTO on solutions marked right or wrong.",
        epilog="Further flags go to every recipe, or to one: --train.threads 1, --kto.train.steps 36",
    )
    parser.add_argument("train", type=Path, help="JSONL with question and answer, for the base model")
    parser.add_argument("solutions", type=Path, help="JSONL with question, reference and responses")
    parser.add_argument("--output", type=Path, default=Path("runs/gsm8k-preferences"), help="folder of all runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", help="a base of your own; the recipes' learning rates then stay as they are")
    parser.add_argument(
        "--controls", nargs="*", choices=list(ARMS), default=list(ARMS), help="which also run on shuffled labels"
    )
    given, further = parser.parse_known_args(arguments)
    try:
        if len(further) % 2 or not all(flag.startswith("--") and "." in flag for flag in further[::2]):
            raise UsageError(f"further flags are a recipe's fields with their values, not {' '.join(further)}")
        flags = {flag[2:]: value for flag, value in zip(further[::2], further[1::2], strict=True)}
        own = {m: {f.removeprefix(f"{m}."): v for f, v in flags.items() if f.startswith(f"{m}.")} for m in ARMS}
        common = {f: v for f, v in flags.items() if f.split(".")[0] not in ARMS}
        base = given.model or str(given.output / "base" / "final")
        if not given.model and not Path(base).exists():
            gsm8k_small_model.main([str(given.train), "--layout", "notes", "--output", str(given.output / "base")])
        rates: Mapping[str, Mapping[str, Any]] = {} if given.model else SMALL
        overrides = {method: {**rates.get(method, {}), **common, **own[method]} for method in ARMS}
        text = experiment(
            base, given.solutions, given.output, seeds=given.seeds, overrides=overrides, controls=given.controls
        )
    except PreftuneError as error:
        parser.exit(1, f"{error}\n")
    (given.output / "results.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Rounds of a repeated recipe (`repeat: N`) side by side: each round's model against the first and the one before.

Two models are compared on the answers that they gave to the same held-out prompts: on a prompt the one wins whose
answer has the higher score (`reward/mean`), and a tie counts ½. The first model is round 1's measurement at step 0, the
model after a round its measurement at `kept_step`. A round that has not ended has no model yet, and no numbers.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from preftune.errors import PreftuneError
from preftune.intervals import Interval, mean_interval
from preftune.report.read import Run, as_number, has_run, read_run, read_stages

FILE = "rounds.json"
SCORE = "reward/mean"
NUMBERED = re.compile(r"(.+)-(\d+)")
COLLECTED = re.compile(r"collected: (\d+) answers to (\d+) prompts\b")
ROUNDING = {True: 0.01, False: 1e-5}
"""Two scores by a reward model are equal when they differ by less than this share of the mean |score|: the same text
scored in another pack differs by rounding, in bf16 (True) and in fp32. Scores of rules are exact."""

Rows = list[float | None]


@dataclass(frozen=True, slots=True)
class Duel:
    """How often one model's answer has the higher score, on prompts that both answered.

    Attributes:
        rate: share of prompts won, a tie counting ½, with its 95 % interval.
    """

    rate: Interval
    wins: int
    ties: int
    losses: int

    @property
    def verdict(self) -> Literal["better", "worse", "same"]:
        """better or worse when the interval leaves out one half."""
        if not self.rate.is_bounded or not self.rate.excludes(0.5):
            return "same"
        return "better" if self.rate.value > 0.5 else "worse"

    def to_json(self) -> dict[str, Any]:
        return {"win_rate": self.rate.to_json(), "wins": self.wins, "ties": self.ties, "losses": self.losses}


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a round was trained on. `kept`: share of prompts that are used; for pairs, those that have one."""

    prompts: int | None
    answers: int | None
    score: float | None
    kept: float | None

    def to_json(self) -> dict[str, Any]:
        return {"prompts": self.prompts, "answers": self.answers, "score": self.score, "prompts_kept": self.kept}


@dataclass(frozen=True, slots=True)
class Round:
    """One round. `metrics`: of the model after it, on held-out prompts; empty until it has ended."""

    number: int
    stage: str
    status: str
    kept_step: int | None
    metrics: Mapping[str, Interval]
    against_first: Duel | None
    against_previous: Duel | None
    collected: Drawn | None

    def to_json(self) -> dict[str, Any]:
        return {
            "round": self.number, "stage": self.stage, "status": self.status, "kept_step": self.kept_step,
            "metrics": {name: interval.to_json() for name, interval in self.metrics.items()},
            "against_first": self.against_first and self.against_first.to_json(),
            "against_previous": self.against_previous and self.against_previous.to_json(),
            "collected": self.collected and self.collected.to_json(),
        }  # fmt: skip


@dataclass(slots=True)
class Series:
    """All rounds of one recipe.

    Attributes:
        stem: the rounds' name without their number.
        split: the held-out rows that models are compared on; empty when nothing was measured.
        first: what the first model measured there, before round 1.
        chooses: the split also chose the best checkpoints, so it flatters them a little.
        run: the last round that began, for titles and units.
        problems: what could not be compared, and why.
    """

    stem: str
    method: str = ""
    split: str = ""
    first: Mapping[str, Interval] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)
    chooses: bool = False
    run: Run | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def ended(self) -> list[Round]:
        return [one for one in self.rounds if one.metrics]

    def to_json(self) -> dict[str, Any]:
        return {
            "stem": self.stem, "method": self.method, "split": self.split,
            "first": {name: interval.to_json() for name, interval in self.first.items()},
            "rounds": [one.to_json() for one in self.rounds], "problems": self.problems,
        }  # fmt: skip


def write_rounds(folder: Path) -> Path | None:
    """Write `rounds.json` into a pipeline's folder: `{"series": [Series.to_json(), …]}`.

    Returns:
        Its path; None where the folder is no pipeline's or no stage of it is repeated.

    Raises:
        UsageError: pipeline.json is damaged.
        PreftuneError: the file can't be written.
    """
    stages = read_stages(folder)
    if stages is None or not (found := repeated(folder, stages[1])):
        return None
    runs = {name: read_run(folder / name) for names in found.values() for name in names if has_run(folder / name)}
    text = json.dumps({"series": [one.to_json() for one in all_series(folder, stages[1], runs)]}, indent=1)
    path, temporary = folder / FILE, folder / f"{FILE}.part"
    try:
        temporary.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        temporary.replace(path)
    except OSError as error:
        raise PreftuneError(f"can't write {path}: {error}; free some space or make the folder writable") from error
    return path


def repeated(folder: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """Stem → its rounds in order: stages STEM-1, STEM-2, … of one method, each from the result of the one before.

    Where the pipeline's recipe can't be read the names alone decide.
    """
    recipes = _recipes(folder)
    out: dict[str, list[str]] = {}
    for name in names:
        found = NUMBERED.fullmatch(name)
        if found is None or (folder / name).resolve().parent != folder.resolve():
            continue
        stem, number = found[1], int(found[2])
        before = out.get(stem, [])
        if number == len(before) + 1 and (number == 1 or _follows(recipes, before[-1], name)):
            out.setdefault(stem, []).append(name)
    return {stem: rounds for stem, rounds in out.items() if len(rounds) > 1}


def _recipes(folder: Path) -> dict[str, Mapping[str, Any]]:
    try:
        raw = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
        return {str(stage["name"]): stage for stage in raw["stages"]}
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return {}


def _follows(recipes: Mapping[str, Mapping[str, Any]], before: str, name: str) -> bool:
    one, other = recipes.get(before), recipes.get(name)
    if one is None or other is None:
        return not recipes
    model = other.get("model")
    path = model.get("path") if isinstance(model, dict) else None
    return one.get("method") == other.get("method") and path == f"stage:{before}"


def all_series(folder: Path, names: Sequence[str], runs: Mapping[str, Run]) -> list[Series]:
    """Every repeated recipe of a pipeline. `runs`: the stages that began, by name."""
    return [_series(stem, rounds, runs) for stem, rounds in repeated(folder, names).items()]


def _series(stem: str, names: Sequence[str], runs: Mapping[str, Run]) -> Series:
    out = Series(stem)
    started = [runs[name] for name in names if name in runs]
    if started:
        out.run, out.method = started[-1], started[0].method
    opening = runs.get(names[0])
    if opening is not None:
        # Rows with scores can be compared answer by answer, a benchmark's are shown without.
        scored = [split for split, metrics in opening.before.items() if SCORE in metrics]
        measured = [split for split in ("test", "validation") if split in opening.before] or scored
        out.split = next(iter(measured or opening.before), "")
        out.first = opening.before.get(out.split, {})
        out.chooses = out.split == "validation" and any(run.best_step is not None for run in started)
    first = _rows(out, opening, 0)
    previous = first
    for number, name in enumerate(names, 1):
        run = runs.get(name)
        step = None if run is None else _kept(run)
        metrics = {} if run is None or step is None else run.after.get(out.split, {})
        now = _rows(out, run, step) if metrics else None
        duels = [_duel(out, name, now, other, run) for other in (first, previous)]
        out.rounds.append(
            Round(
                number, name, "not started" if run is None else run.status, step if metrics else None, metrics,
                duels[0], duels[1] if number > 1 else None, None if run is None else _drawn(run),
            )
        )  # fmt: skip
        previous = now
    return out


def _kept(run: Run) -> int | None:
    step = (run.summary or {}).get("kept_step")
    return step if isinstance(step, int) and not isinstance(step, bool) and run.is_complete else None


def _rows(series: Series, run: Run | None, step: int | None) -> Rows | None:
    """Scores of a measurement's rows in order, None where a row has none; None without such a measurement."""
    if run is None or step is None or SCORE not in series.first:
        return None
    name = f"measurements/{series.split}-{step}.json"
    try:
        raw = json.loads((run.folder / name).read_text(encoding="utf-8"))["rows"][SCORE]
        numbers = [as_number(value) for value in raw]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        series.problems.append(f"{run.folder.name}/{name} has no scores to compare: {error!r}")
        return None
    return [value if value is not None and math.isfinite(value) else None for value in numbers]


def _duel(series: Series, stage: str, now: Rows | None, other: Rows | None, run: Run | None) -> Duel | None:
    if now is None or other is None or run is None:
        return None
    if len(now) != len(other):
        said = f"{stage}: {len(now)} held-out rows, {len(other)} before it, so answers can't be compared row by row"
        if said not in series.problems:
            series.problems.append(said)
        return None
    pairs = [(a, b) for a, b in zip(now, other, strict=True) if a is not None and b is not None]
    return duel(pairs, tolerance=_tolerance(run, pairs)) if pairs else None


def duel(pairs: Sequence[tuple[float, float]], *, tolerance: float = 0.0) -> Duel:
    """Win rate of the first of each pair.

    Args:
        pairs: one or more (score, the other's score), by prompt.
        tolerance: scores that differ by no more are equal.

    Returns:
        Its interval is Wilson's where nothing is a tie, else Student's t on 1, ½ and 0, cut to 0 … 1. Nothing but ties
        has none.

    >>> duel([(2.0, 1.0), (1.0, 1.0), (0.0, 1.0), (3.0, 1.0)]).rate.value
    0.625
    """
    values = [0.5 if abs(a - b) <= tolerance else float(a > b) for a, b in pairs]
    rate = mean_interval(values)
    if rate.is_bounded:
        rate = replace(rate, low=max(rate.low, 0.0), high=min(rate.high, 1.0))
    return Duel(rate, values.count(1.0), values.count(0.5), values.count(0.0))


def _tolerance(run: Run, pairs: Sequence[tuple[float, float]]) -> float:
    rewards = run.recipe.get("rewards")
    names = [r.get("name") for r in rewards if isinstance(r, dict)] if isinstance(rewards, list) else []
    if "reward-model" not in names or not pairs:
        return 0.0
    coarse = str(run.manifest.get("precision", "")).startswith("bf16")
    return ROUNDING[coarse] * math.fsum(abs(value) for pair in pairs for value in pair) / (2 * len(pairs))


def _drawn(run: Run) -> Drawn | None:
    """What the run collected; None for methods that collect nothing, and for a run that did not get so far."""
    said = next((found for note in run.all_notes if (found := COLLECTED.match(note))), None)
    score, kept = (_constant(run, f"collected/{name}") for name in ("score", "prompts_kept"))
    if said is None and score is None and kept is None:
        return None
    return Drawn(int(said[2]) if said else None, int(said[1]) if said else None, score, kept)


def _constant(run: Run, metric: str) -> float | None:
    value = next((value for _, value in run.train.get(metric, ())), None)
    return value if value is not None and math.isfinite(value) else None

"""Reads a run folder, whole or broken. A run that was killed must still get a report.

A missing file is an empty value. A file that can't be read, or a line of one, is left out and named in
`Run.problems`, which the report prints: nothing is dropped in silence.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

import yaml

from preftune.errors import UsageError
from preftune.intervals import Interval

if TYPE_CHECKING:
    from preftune.report.answers import Measured

Intervals = dict[str, dict[str, Interval]]
"""split → metric → interval"""


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion that the run wrote down.

    Attributes:
        answer: the true answer that its row came with, or empty.
        notes: what rewards, judges and critics said of it: any JSON, by name.
    """

    step: int
    split: str
    where: str
    prompt: str
    completion: str
    finish: str
    length: int | None
    score: float | None
    breakdown: Mapping[str, float | None]
    answer: str
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the certificate."""

    name: str
    value: float | None
    tolerance: float | None
    passed: bool | None
    detail: str


@dataclass(slots=True)
class Run:
    """What a run folder holds. `train` and `times` map a name to its (step, value) points, in step order."""

    folder: Path
    recipe: dict[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    manifest: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] | None = None
    train: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    times: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    evals: dict[str, dict[int, dict[str, Interval]]] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    advice: list[tuple[int, str, str]] = field(default_factory=list)
    precision: str = ""
    checks: list[Check] = field(default_factory=list)
    certificate_passed: bool | None = None
    before: Intervals = field(default_factory=dict)
    after: Intervals = field(default_factory=dict)
    difference: Intervals = field(default_factory=dict)
    answers: Measured | None = None
    """What was measured of each completion, for methods that compare completions."""
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str((self.summary or {}).get("name") or self.recipe.get("name") or self.folder.name)

    @property
    def method(self) -> str:
        return str((self.summary or {}).get("method") or self.recipe.get("method") or "unknown method")

    @property
    def model(self) -> str:
        model = self.recipe.get("model")
        return str(model.get("path", "")) if isinstance(model, dict) else ""

    @property
    def short_model(self) -> str:
        """The model's name for a heading: of an absolute path, its last two parts."""
        return short_path(self.model)

    @property
    def status(self) -> str:
        """finished, stopped, interrupted, failed, or unfinished when the run never wrote a summary."""
        said = str((self.summary or {}).get("status") or "unfinished")
        return "stopped" if said.startswith("stopped ") else said.partition(":")[0]

    @property
    def status_detail(self) -> str:
        """Why a run stopped or failed, in the run's own words; empty when there is nothing to add."""
        said = str((self.summary or {}).get("status") or "")
        return "" if said == self.status else said

    @property
    def reached_goal(self) -> bool:
        """True when `train.until` ended the run."""
        return self.status == "stopped" and self.status_detail.endswith("as train.until asks")

    @property
    def is_complete(self) -> bool:
        """True when the run came to its end, by its last step or by a rule of its own (patience, collapse)."""
        return self.status in ("finished", "stopped")

    @property
    def counts(self) -> dict[str, str]:
        """What the token contract did, split by split."""
        raw = (self.summary or {}).get("counts") or self.manifest.get("counts")
        if isinstance(raw, dict):
            return {str(split): str(text) for split, text in raw.items()}
        return {"": str(raw)} if raw else {}

    @property
    def last_step(self) -> int:
        steps = [points[-1][0] for points in self.train.values() if points]
        steps += [max(by_step) for by_step in self.evals.values() if by_step]
        return max(steps, default=0)

    @property
    def best_step(self) -> int | None:
        step = (self.summary or {}).get("best_step")
        return step if isinstance(step, int) else None

    @property
    def notes(self) -> list[str]:
        """What the run had to say about itself: fallbacks and warnings."""
        return [note for note in self.all_notes if not REWARD_PLACE.match(note) and not FACT.fullmatch(note)]

    @property
    def facts(self) -> list[str]:
        """Notes that warn of nothing: where the reference's log-probs came from, how labels are balanced."""
        return [note for note in self.all_notes if FACT.fullmatch(note)]

    @property
    def reward_places(self) -> list[str]:
        """Each reward with its weight and where it runs: facts, not warnings."""
        return [note.removeprefix("reward ") for note in self.all_notes if REWARD_PLACE.match(note)]

    @property
    def all_notes(self) -> list[str]:
        notes = (self.summary or {}).get("notes")
        return [str(note) for note in notes] if isinstance(notes, list) else []


def short_path(path: str) -> str:
    """Of an absolute path the last two parts; anything else as it is."""
    parts = path.replace("\\", "/").rstrip("/").split("/")
    is_absolute = path.startswith("/") or PureWindowsPath(path).is_absolute()
    return "…/" + "/".join(parts[-2:]) if is_absolute and len(parts) > 3 else path


REWARD_PLACE = re.compile(r"reward .+ \(weight [^()]+\): ")
FACT = re.compile(
    r"the reference's log-probs of [^;]+|\d+ desirable and \d+ undesirable completions; [^;]+|normalised to the [^;]+"
)
KNOWN = ("recipe.yaml", "manifest.json", "metrics.jsonl", "summary.json")


def has_run(folder: Path) -> bool:
    """True when at least one of a run's files is there."""
    return any((folder / name).exists() for name in KNOWN)


def read_run(folder: Path) -> Run:
    """Read one run folder.

    Raises:
        UsageError: the folder doesn't exist, or holds none of a run's files.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; give the folder of a run")
    if not has_run(folder):
        raise UsageError(f"{folder} holds no run: none of {', '.join(KNOWN)} is in it")
    run = Run(folder)
    _read_recipe(run)
    run.manifest = _json_file(run, "manifest.json") or {}
    run.summary = _json_file(run, "summary.json")
    for number, line in json_lines(run, "metrics.jsonl"):
        _read_metrics(run, number, line)
    for points in (*run.train.values(), *run.times.values()):
        points[:] = sorted(dict(points).items())  # a resumed run may have written a step twice: the last one counts
    for number, line in json_lines(run, "samples.jsonl"):
        _read_sample(run, number, line)
    for _, line in json_lines(run, "advice.jsonl"):
        run.advice.append(
            (int(as_number(line.get("step")) or 0), str(line.get("saw", "")), str(line.get("change", "")))
        )
    _read_certificate(run)
    _read_comparison(run)
    _unbound_false_shares(run)
    return run


def read_stages(folder: Path) -> tuple[str, list[str], str] | None:
    """Name, stage names in order and status of a pipeline's folder, or None when it is a plain run.

    Raises:
        UsageError: pipeline.json is there but is no list of stages.
    """
    path = folder / "pipeline.json"
    if not path.exists():
        return None
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        title = str(raw.get("name") or folder.resolve().name)
        return title, [str(name) for name in raw["stages"]], str(raw.get("status") or "unfinished")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f'{path} must be {{"stages": [names], "status": text}}: {error!r}') from error


def _read_recipe(run: Run) -> None:
    path = run.folder / "recipe.yaml"
    if not path.exists():
        return
    try:
        run.recipe_text = path.read_text(encoding="utf-8", errors="replace")
        raw = yaml.safe_load(run.recipe_text)
    except (OSError, yaml.YAMLError) as error:
        run.problems.append(f"recipe.yaml can't be read: {error}")
        return
    if isinstance(raw, dict):
        run.recipe = raw


def _json_file(run: Run, name: str) -> dict[str, Any] | None:
    path = run.folder / name
    if not path.exists():
        return None
    try:
        raw = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError) as error:
        run.problems.append(f"{name} can't be read: {error}")
        return None
    if not isinstance(raw, dict):
        run.problems.append(f"{name} should hold a JSON object; it holds a {type(raw).__name__}")
        return None
    return raw


def json_lines(run: Run, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each JSON object of a .jsonl file with its line number; other lines are counted as one problem."""
    path = run.folder / name
    if not path.is_file():
        return
    bad: list[int] = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                line = json.loads(text)
            except ValueError:
                bad.append(number)
                continue
            if isinstance(line, dict):
                yield number, line
            else:
                bad.append(number)
    if bad:
        run.problems.append(f"{name}: {len(bad)} lines are not whole JSON objects and are left out (first: {bad[0]})")


def as_number(value: Any) -> float | None:
    """A finite or NaN/inf float, or None for anything that is no number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:  # JSON has integers of any size
        return math.inf


def _read_metrics(run: Run, number: int, line: dict[str, Any]) -> None:
    step, metrics, times = as_number(line.get("step")), line.get("metrics"), line.get("time", {})
    if step is None or not isinstance(metrics, dict) or not isinstance(times, dict):
        run.problems.append(f"metrics.jsonl:{number} has no step or metrics and is left out")
        return
    if line.get("kind") == "eval":
        read = _intervals(run, metrics, f"metrics.jsonl:{number}")
        run.evals.setdefault(str(line.get("split", "validation")), {})[int(step)] = read
        return
    for source, target in ((metrics, run.train), (times, run.times)):
        for name, raw in source.items():
            value = as_number(raw)
            # A null is a NaN or infinity that JSON could not hold: it stays a gap in the curve.
            target.setdefault(name, []).append((int(step), math.nan if value is None else value))


def _intervals(run: Run, metrics: Mapping[str, Any], where: str) -> dict[str, Interval]:
    out: dict[str, Interval] = {}
    for name, raw in metrics.items():
        try:
            out[name] = Interval.from_json(raw)
        except (KeyError, TypeError, ValueError) as error:
            run.problems.append(f"{where}: `{name}` is no interval and is left out ({error!r})")
    return out


def _read_sample(run: Run, number: int, line: dict[str, Any]) -> None:
    step, breakdown = as_number(line.get("step")), line.get("breakdown") or {}
    if step is None or not isinstance(breakdown, dict):
        run.problems.append(f"samples.jsonl:{number} has no step or breakdown and is left out")
        return
    length, notes = as_number(line.get("length")), line.get("notes")
    run.samples.append(
        Sample(
            step=int(step),
            split=str(line.get("split", "train")),
            where=str(line.get("where", "")),
            prompt=str(line.get("prompt", "")),
            completion=str(line.get("completion", "")),
            finish=str(line.get("finish", "")),
            length=None if length is None else int(length),
            score=as_number(line.get("score")),
            breakdown={str(name): as_number(value) for name, value in breakdown.items()},
            answer=_answer(line.get("columns")),
            notes=notes if isinstance(notes, dict) else {},
        )
    )


def _answer(columns: Any) -> str:
    """The `answer` column as text; empty when the row has none."""
    answer = columns.get("answer") if isinstance(columns, dict) else None
    if answer is None or isinstance(answer, str):
        return answer or ""
    return json.dumps(answer, ensure_ascii=False)


def _read_certificate(run: Run) -> None:
    raw = _json_file(run, "certificate.json")
    if raw is None:
        return
    run.precision = str(raw.get("precision", ""))
    passed = raw.get("passed")
    run.certificate_passed = passed if isinstance(passed, bool) else None
    checks = raw.get("checks")
    for check in checks if isinstance(checks, list) else []:
        if not isinstance(check, dict):
            run.problems.append("certificate.json holds a check that is no JSON object; it is left out")
            continue
        verdict = check.get("passed")
        run.checks.append(
            Check(
                name=str(check.get("name", "")),
                value=as_number(check.get("value")),
                tolerance=as_number(check.get("tolerance")),
                passed=verdict if isinstance(verdict, bool) else None,
                detail=str(check.get("detail") or ""),
            )
        )


def _unbound_false_shares(run: Run) -> None:
    """Take back the interval of a share from a reward that turned out to be none.

    When every row scored 0, the loop could not know yet that the reward also pays 3, or that a model before training is
    its own reference; here the whole run is known.
    Wilson's interval of a constant column is the one whose end is the value itself on one side alone.
    """
    tables = [by_step for splits in run.evals.values() for by_step in splits.values()]
    tables += [metrics for kind in (run.before, run.after) for metrics in kind.values()]
    seen: dict[str, set[float]] = {}
    for sample in run.samples:
        for name, value in sample.breakdown.items():
            if value is not None:
                seen.setdefault(f"reward/{name}", set()).add(value)
    for metric in dict.fromkeys(name for table in tables for name in table):
        means = {table[metric].value for table in tables if metric in table}
        # Rewards of completions and log-probs are 0 before training, but never shares; accuracies always are.
        signed = metric.startswith(("rewards/", "logprobs/")) and "/accuracy" not in metric
        if seen.get(metric, set()) <= {0.0, 1.0} and all(0 <= mean <= 1 for mean in means) and not signed:
            continue
        for table in tables:
            found = table.get(metric)
            if found is not None and (found.low == found.value) != (found.high == found.value):
                table[metric] = replace(found, low=-math.inf, high=math.inf)


def _read_comparison(run: Run) -> None:
    """Before, after and paired difference. A run without a summary has its measurement at step 0 as "before"."""
    for name in ("before", "after", "difference"):
        raw = (run.summary or {}).get(name)
        target: Intervals = getattr(run, name)
        for split, metrics in raw.items() if isinstance(raw, dict) else ():
            if isinstance(metrics, dict):
                target[str(split)] = _intervals(run, metrics, f"summary.json, {name}.{split}")
    if not run.before:
        run.before = {split: by_step[0] for split, by_step in run.evals.items() if 0 in by_step}

"""Reads what a run on preferences or labels measured of each completion: `measurements/answers-*` and `texts-*`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preftune.intervals import Interval, auc_interval
from preftune.methods import BRADLEY_TERRY, KTO, METHODS, PREFERENCE_LOSSES, Preference
from preftune.report.read import Run, as_number, json_lines, read_run

FILE = re.compile(r"answers-(.+)-(\d+)\.jsonl")
ROUNDING, ROUNDING_FP32 = 0.02, 1e-3
"""Nats per token by which the log-probs of a model and of itself may differ: in bf16, in fp32."""
Place = tuple[int, int]
"""(group, completion): the place of a completion in its split."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion as the model saw it at one step.

    Attributes:
        length: tokens.
        score: the data's own, higher is better.
        reward: implicit reward or score of the reward head.
        logprob, reference: summed log π and log π₀, None where there are none.
    """

    where: str
    source: str
    length: int
    score: float
    reward: float
    logprob: float | None
    reference: float | None


@dataclass(frozen=True, slots=True)
class Text:
    """Prompt and completion in words, and the row's own margin."""

    prompt: str
    text: str
    margin: float | None


Answers = dict[Place, Answer]


@dataclass(slots=True)
class Measured:
    """One split before and after training. Either may be empty, not both."""

    split: str
    before: Answers
    after: Answers
    after_step: int
    texts: dict[Place, Text] = field(default_factory=dict)


def loss_of(run: Run) -> Preference | None:
    """The recipe's loss on preferences, its own β over the default; None for other methods and unknown names."""
    section = run.recipe.get("loss")
    given: Mapping[str, Any] = section if isinstance(section, dict) else {}
    known = {
        "kto": {"kto": KTO},
        "reward": {"bradley-terry": BRADLEY_TERRY},
        "dpo": PREFERENCE_LOSSES,
        "iterative-dpo": PREFERENCE_LOSSES,
    }.get(run.method)
    chosen = (known or {}).get(str(given.get("name") or next(iter(known or {}), "")))
    beta = as_number(given.get("beta"))
    if chosen is None or beta is None:
        return chosen
    return Preference(chosen.name, chosen.implicit, beta=beta, label_smoothing=chosen.label_smoothing)


def compares(run: Run) -> str | None:
    """ "pairs", "labels", or None for a method that compares nothing, or that nobody registered here."""
    method = METHODS.get(run.method)
    return None if method is None else method.compares


def read_answers(run: Run) -> Measured | None:
    """The split that a report speaks of: test if it was measured, else validation, else any other.

    After training is the step whose weights were kept; of a run that did not end, the last one measured. What can't
    be read is left out and named in `run.problems`.
    """
    steps = _steps(run)

    def usable(split: str) -> tuple[bool, bool, bool, str]:
        only_before = _after_step(run, steps[split]) == 0 and run.best_step != 0
        return (only_before, split != "test", split != "validation", split)

    for split in sorted(steps, key=usable):
        last = _after_step(run, steps[split])
        before = _read(run, split, 0) if 0 in steps[split] else {}
        kept_start = last == 0 and (run.summary or {}).get("kept_step") == 0
        after = before if kept_start else _read(run, split, last) if last else {}
        if before or after:
            return Measured(split, before, after, last, _texts(run, split))
    return None


def _steps(run: Run) -> dict[str, list[int]]:
    """Split → the steps at which it was measured, in order."""
    folder = run.folder / "measurements"
    out: dict[str, list[int]] = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        found = FILE.fullmatch(path.name)
        if found is not None:
            out.setdefault(found[1], []).append(int(found[2]))
    return {split: sorted(steps) for split, steps in out.items()}


def _read(run: Run, split: str, step: int) -> Answers:
    name = f"measurements/answers-{split}-{step}.jsonl"
    out: Answers = {}
    bad: list[int] = []
    for number, line in json_lines(run, name):
        place, score, reward, length = _place(line), *(_finite(line.get(k)) for k in ("score", "reward", "length"))
        if place is None or score is None or reward is None or length is None:
            bad.append(number)
            continue
        where, source = str(line.get("where") or ""), str(line.get("source") or "")
        logprob, reference = _finite(line.get("logprob")), _finite(line.get("reference"))
        out[place] = Answer(where, source, int(length), score, reward, logprob, reference)
    if bad:
        run.problems.append(
            f"{name}: {len(bad)} lines lack a group, a completion, a length, or a finite score or reward, and are left "
            f"out (first: {bad[0]})"
        )
    return out


def _texts(run: Run, split: str) -> dict[Place, Text]:
    name = f"measurements/texts-{split}.jsonl"
    if not (run.folder / name).exists():
        run.problems.append(f"{name} is missing, so the completions can't be shown in words")
        return {}
    out: dict[Place, Text] = {}
    for number, line in json_lines(run, name):
        place = _place(line)
        if place is None:
            run.problems.append(f"{name}:{number} names no group and completion and is left out")
            continue
        out[place] = Text(str(line.get("prompt") or ""), str(line.get("text") or ""), _finite(line.get("margin")))
    return out


def _place(line: Mapping[str, Any]) -> Place | None:
    group, completion = line.get("group"), line.get("completion")
    if isinstance(group, bool) or isinstance(completion, bool):
        return None
    return (group, completion) if isinstance(group, int) and isinstance(completion, int) else None


def _finite(value: Any) -> float | None:
    number = as_number(value)
    return number if number is not None and math.isfinite(number) else None


def read_whole(folder: Path) -> Run:
    """`read_run`, with what was measured of each completion, and for labels the area under the ROC curve of it.

    Raises:
        UsageError: the folder doesn't exist, or holds none of a run's files.
    """
    run = read_run(folder)
    run.answers = read_answers(run)
    if run.answers is not None and compares(run) == "labels":
        _add_areas(run, run.answers)
    return run


def is_desirable(run: Run, answer: Answer) -> bool:
    """A completion's label: the data's score reaches `loss.label_threshold`."""
    section = run.recipe.get("loss")
    given = as_number(section.get("label_threshold")) if isinstance(section, dict) else None
    return answer.score >= (0.5 if given is None else given)


def is_untouched(run: Run) -> bool:
    """True when before training every reward was 0 but for rounding: the model was its own reference, or its head new.

    The two log-probs come from two passes, which may be packed differently, so they differ by rounding.
    """
    answers = run.answers.before if run.answers is not None else {}
    allowed = ROUNDING if str(run.manifest.get("precision", "fp32")).startswith("bf16") else ROUNDING_FP32
    return bool(answers) and all(a.reward == 0.0 or _gap_per_token(a) <= allowed for a in answers.values())


def _gap_per_token(answer: Answer) -> float:
    if answer.logprob is None or answer.reference is None:
        return math.inf
    return abs(answer.logprob - answer.reference) / max(1, answer.length)


def _add_areas(run: Run, measured: Measured) -> None:
    """Put the AUC of the reward among the measurements of every split and step, and before and after."""
    untouched = is_untouched(run)
    read = {(measured.split, 0): measured.before, (measured.split, measured.after_step): measured.after}
    for split, steps in _steps(run).items():
        found: dict[int, Interval] = {}
        for step in steps:
            answers = read.get((split, step)) or _read(run, split, step)
            value = area(run, answers, lambda answer: answer.reward)
            if value is None:
                continue
            # Of the reference itself the area is 0.5, whatever rounding makes of its rewards.
            found[step] = Interval(0.5, -math.inf, math.inf, value.n) if untouched and step == 0 else value
            run.evals.setdefault(split, {}).setdefault(step, {})["rewards/auc"] = found[step]
        if 0 in found:
            run.before.setdefault(split, {})["rewards/auc"] = found[0]
        last = _after_step(run, steps)
        if last in found and run.summary is not None:
            after = found[last]
            run.after.setdefault(split, {})["rewards/auc"] = after
            if untouched and 0 in found and last != 0:
                # The start is 0.5 on any rows, so the change is as uncertain as the area after it.
                moved = Interval(after.value - 0.5, after.low - 0.5, after.high - 0.5, after.n)
                run.difference.setdefault(split, {})["rewards/auc"] = moved


def _after_step(run: Run, steps: Sequence[int]) -> int:
    """The step whose weights were kept, where it was measured; else the last one measured."""
    kept = (run.summary or {}).get("kept_step")
    return kept if isinstance(kept, int) and kept in steps else max(steps)


def area(run: Run, answers: Answers, value: Callable[[Answer], float]) -> Interval | None:
    """AUC of desirable over undesirable completions; rows of one prompt depend on each other. None without both."""
    rows = list(answers.items())
    labels = [is_desirable(run, answer) for _, answer in rows]
    if not any(labels) or all(labels):
        return None
    return auc_interval([value(answer) for _, answer in rows], labels, [group for (group, _), _ in rows])

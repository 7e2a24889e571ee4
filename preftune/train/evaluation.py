"""Measuring a policy on rows that are never trained on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.errors import PreftuneError
from preftune.intervals import Interval, is_binary, mean_interval, paired_difference
from preftune.records import Group
from preftune.train.folder import write_json, write_text
from preftune.train.preferences import Answer, measure_preferences

if TYPE_CHECKING:
    from preftune.train.session import Session

Rows = dict[str, list[float | None]]
"""Metric → one value per row, in the order of the split; None where it does not apply."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measurement of one split."""

    step: int
    split: str
    rows: Rows
    samples: tuple[Group, ...] = ()
    answers: tuple[Answer, ...] = ()

    def intervals(self, others: Iterable[Measurement] = ()) -> dict[str, Interval]:
        """Mean of each metric with its 95 % interval, over the rows where it applies.

        Args:
            others: measurements that help to tell a 0/1 metric from one that was 0 or 1 on every row by chance.
        """
        out: dict[str, Interval] = {}
        for name in self.rows:
            values = self.known(name)
            if values:
                found = mean_interval(values, binary=self._is_share(name, others))
                shares = "/accuracy" in name and name.startswith(("rewards/", "logprobs/", "choices/"))
                if (shares or name.startswith("followed/")) and found.is_bounded:
                    # With ties, or several pairs or instructions a row, Student's t may leave what a share can be.
                    found = replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))
                out[name] = found
        return out

    def _is_share(self, name: str, others: Iterable[Measurement]) -> bool:
        """Whether a metric's mean is a share of rows, so that its interval must stay within 0 and 1."""
        if name.startswith(("rewards/", "logprobs/")):
            # Ties count ½, as all do where policy and reference are one, so each measurement is judged by itself; and
            # a reward that is 0 on every row is no share.
            return "/accuracy" in name and is_binary(self.known(name))
        return all(is_binary(each.known(name)) for each in (self, *others))

    def known(self, name: str) -> list[float]:
        """A metric's values on the rows where it applies; empty when it was not measured."""
        return [value for value in self.rows.get(name, ()) if value is not None]

    def save(self, folder: Path) -> None:
        """Keep the rows: paired differences need them, also after a resume."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(
            folder / f"{self.split}-{self.step}.json", {"step": self.step, "split": self.split, "rows": self.rows}
        )
        if self.answers:
            lines = [json.dumps(answer.to_json(), ensure_ascii=False) + "\n" for answer in self.answers]
            write_text(folder / f"answers-{self.split}-{self.step}.jsonl", "".join(lines))


def load_measurement(folder: Path, split: str, step: int) -> Measurement | None:
    """A measurement saved before, None when there is none."""
    path = folder / f"{split}-{step}.json"
    if not path.exists():
        return None
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return Measurement(record["step"], record["split"], record["rows"])


def measure(session: Session, split: str, groups: Sequence[Group], step: int) -> Measurement:
    """Measure the policy as it is now: rewards of its own answers, and the loss on the rows' completions."""
    rows: Rows = {}
    samples: tuple[Group, ...] = ()
    if session.samples_for_eval:
        recipe = session.recipe
        limit = recipe.eval.max_tokens or recipe.sampling.max_tokens
        settings = recipe.sampling.model_copy(update={"max_tokens": limit})
        session.progress.begin(f"measuring {split} at step {step}")
        drawn = session.rollout(
            [g.prompt for g in groups], 1, settings, seed=recipe.seed, policy_version=step,
            temperature=recipe.eval.temperature, progress=session.progress.tick,
        )  # fmt: skip
        samples = session.rewards.score(drawn, step, session.steps, measuring=True).groups
        completions = [g.completions[0] for g in samples]
        rows["reward/mean"] = [c.score for c in completions]
        for name in session.rewards.names:
            rows[f"reward/{name}"] = [c.breakdown.get(name) for c in completions]
        rows["length/mean"] = [float(c.length) for c in completions]
        rows["length/truncated"] = [float(c.finish == "length") for c in completions]
    if session.method.compares is not None and session.method.completions == "data":
        session.progress.begin(f"measuring {split} at step {step}")
        found, answers = measure_preferences(session, groups, split, step)
        return Measurement(step, split, rows | found, samples, tuple(answers))
    if all(g.completions for g in groups):
        scored = session.engine.score(groups, session.budget)
        per_row = [(sum(float(t.sum()) for t in row), sum(t.numel() for t in row)) for row in scored]
        rows["nll"] = [-total / tokens if tokens else None for total, tokens in per_row]
        for group, value in zip(groups, rows["nll"], strict=True):
            if value is not None and not math.isfinite(value):
                raise PreftuneError(
                    f"{group.prompt.where}: the model gives this {split} row's completion a log-prob that is not "
                    f"finite (step {step}). The weights are broken: lower train.learning_rate, or use "
                    "train.precision: fp32"
                )
    return Measurement(step, split, rows, samples)


def save_texts(folder: Path, split: str, groups: Sequence[Group]) -> None:
    """The texts that the lines of answers-SPLIT-STEP.jsonl speak of, once for all steps."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {"group": g, "completion": c, "prompt": group.prompt.text, "text": one.text,
         "margin": group.prompt.columns.get("margin")}
        for g, group in enumerate(groups)
        for c, one in enumerate(group.completions)
    ]  # fmt: skip
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_text(folder / f"texts-{split}.jsonl", text)


def difference(before: Measurement, after: Measurement) -> dict[str, Interval]:
    """After − before of each metric, paired over the rows that both have."""
    out: dict[str, Interval] = {}
    for name, first in before.rows.items():
        second = after.rows.get(name, [])
        pairs = [(a, b) for a, b in zip(first, second, strict=False) if a is not None and b is not None]
        if pairs:
            out[name] = paired_difference([a for a, _ in pairs], [b for _, b in pairs])
    return out


def to_json(intervals: Mapping[str, Interval]) -> dict[str, Any]:
    """Intervals as JSON."""
    return {name: interval.to_json() for name, interval in intervals.items()}

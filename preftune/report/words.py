"""Numbers and verdicts in plain words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from preftune.intervals import Interval
from preftune.report.read import Run

TITLES = {
    "reward/mean": "Mean reward",
    "reward/accuracy": "Accuracy",
    "reward/well_formed": "Share of well-formed answers",
    "reward/std": "Reward spread within groups",
    "reward/dead_groups": "Groups without spread",
    "reward/skipped": "Rewards left out",
    "length/mean": "Mean length",
    "length/max": "Longest",
    "length/truncated": "Share cut at the limit",
    "length/eos": "Share ending in EOS",
    "nll": "Loss per token (NLL)",
    "loss": "Loss",
    "grad_norm": "Gradient norm",
    "learning_rate": "Learning rate",
    "entropy": "Entropy",
    "kl": "KL to the reference",
    "clip/low": "Clipped low",
    "clip/high": "Clipped high",
    "ratio/max": "Largest ratio",
    "sampler/kl": "KL, sampler to trainer",
    "sampler/max_diff": "Largest log-prob difference",
    "diversity/distinct_2": "Distinct bigrams",
    "diversity/shared_substring": "Longest shared text",
    "diversity/repetition": "Repetition inside a completion",
    "tokens/trained": "Tokens trained",
    "tokens/packed": "Tokens packed",
    "tokens/saved": "Share saved by the shared prompt",
}
SHARES = {
    "reward/accuracy", "reward/well_formed", "reward/dead_groups", "length/truncated", "length/eos",
    "clip/low", "clip/high", "diversity/distinct_2", "diversity/repetition", "tokens/saved",
}  # fmt: skip
LOWER_IS_BETTER = {"nll", "loss", "length/truncated", "kl"}
NEUTRAL = {"length/mean", "length/max", "entropy"}
"""Metrics that are neither good nor bad by themselves: their change is shown without a verdict."""


def title(metric: str) -> str:
    """A metric's name for people: `reward/format_exact` → "Format exact"."""
    if metric in TITLES:
        return TITLES[metric]
    words = metric.removeprefix("reward/").replace("_", " ").strip() or metric
    return words[0].upper() + words[1:]


def number(value: float | None, *, percent: bool = False, sign: bool = False, digits: int = 4) -> str:
    """A number as text: `34.2 %`, `+1.27`, `3.1e−05`. None is a dash; a true minus sign is used."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    plus = "+" if sign else ""
    if percent:
        return f"{value * 100:{plus}.1f} %".replace("-", "−")
    if value and abs(value) < 1e-3:
        return f"{value:{plus}.1e}".replace("-", "−")
    if abs(value) >= 10_000:
        return f"{value:{plus},.0f}".replace("-", "−")
    return f"{value:{plus}.{digits}g}".replace("-", "−")


def _signed(value: float, form: str) -> str:
    """With a sign, unless it rounds to zero."""
    text = f"{value:+{form}}"
    return (text[1:] if float(text) == 0 else text).replace("-", "−")


def span(interval: Interval, *, percent: bool = False) -> str:
    """The 95 % interval as text: `42.1 to 51.3`, without the unit."""
    if not interval.is_bounded:
        return "no interval: too few rows"
    if percent:
        return f"{interval.low * 100:.1f} to {interval.high * 100:.1f}".replace("-", "−")
    return f"{number(interval.low)} to {number(interval.high)}"


def duration(seconds: float) -> str:
    """`47 s`, `3 min 12 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One metric before and after. `verdict`: better, worse, same (the interval holds 0), or unknown."""

    split: str
    metric: str
    title: str
    percent: bool
    before: Interval | None
    after: Interval | None
    difference: Interval | None
    verdict: str

    @property
    def change(self) -> str:
        """The paired change with its unit: `+46.8 points`."""
        if self.difference is None:
            return "–"
        if self.percent:
            return f"{_signed(self.difference.value * 100, '.1f')} points"
        return number(self.difference.value, sign=self.difference.value != 0)


def compare(run: Run) -> list[Comparison]:
    """Every metric measured before or after, the one that the run is about first."""
    rows = []
    for split in sorted({*run.before, *run.after}, key=lambda name: (name != "test", name != "validation", name)):
        before, after = run.before.get(split, {}), run.after.get(split, {})
        for metric in dict.fromkeys((*before, *after)):
            row = _comparison(run, split, metric)
            rows.append(row)
    main = _main_metric(run, {row.metric for row in rows})
    # Stable: keeps test before validation, and within a split the order of measurement.
    rows.sort(key=lambda row: (row.split != "test", row.split != "validation", row.metric != main))
    complete = [row for row in rows if row.metric == main and row.before and row.after]
    if complete:
        rows.remove(complete[0])
        rows.insert(0, complete[0])
    return rows


def _comparison(run: Run, split: str, metric: str) -> Comparison:
    before, after = run.before.get(split, {}).get(metric), run.after.get(split, {}).get(metric)
    difference = run.difference.get(split, {}).get(metric)
    verdict = "unknown"
    if difference is not None and difference.is_bounded and metric not in NEUTRAL:
        gain = -difference.value if _lower_is_better(run, metric) else difference.value
        verdict = "same" if not difference.excludes(0.0) else ("better" if gain > 0 else "worse")
    found = [interval for interval in (before, after) if interval]
    return Comparison(split, metric, title(metric), is_share(run, metric, found), before, after, difference, verdict)


def is_share(run: Run, metric: str, intervals: list[Interval]) -> bool:
    """True when a metric is a share, so that percent is its unit: named in SHARES, or a reward that is 0 or 1
    in every sample. Wilson intervals stay within [0, 1]; a value outside rules it out."""
    if any(not 0 <= i.value <= 1 for i in intervals):
        return False
    if metric in SHARES:
        return True
    name = metric.removeprefix("reward/")
    values = {s.breakdown[name] for s in run.samples if s.breakdown.get(name) is not None}
    inside = all(i.low >= 0 and i.high <= 1 for i in intervals)
    return bool(values) and values <= {0.0, 1.0} and inside


def _section(run: Run, name: str) -> dict[str, object]:
    section = run.recipe.get(name)
    return section if isinstance(section, dict) else {}


def _lower_is_better(run: Run, metric: str) -> bool:
    section = _section(run, "eval")
    if metric == section.get("best"):
        return section.get("higher_is_better") is False
    return metric in LOWER_IS_BETTER


def _main_metric(run: Run, measured: set[str]) -> str:
    chosen = (run.summary or {}).get("best_metric") or _section(run, "eval").get("best")
    wanted = [str(chosen)] if chosen else []
    wanted += ["reward/accuracy", "reward/mean", "nll", *sorted(measured)]
    return next((metric for metric in wanted if metric in measured), "")


ROWS = {"test": "held-out rows", "validation": "validation rows", "train": "training rows"}


def headline(run: Run, rows: list[Comparison]) -> tuple[str, str, str]:
    """(verdict, sentence, explanation): what a reader must know first, in plain words."""
    pending = "" if run.is_complete else f" The run is marked {run.status}: this is not its final result."
    if not rows:
        return (
            "unknown",
            "Nothing was measured on rows outside training.",
            "This report can't say whether the model got better. Give the recipe `eval.test` (or `eval.holdout`), "
            "so that the next run measures before and after." + pending,
        )
    row = rows[0]
    interval = row.before or row.after
    assert interval is not None  # compare() makes a row only from a measurement
    if row.before is None or row.after is None:
        when = "before" if row.before else "after"
        return (
            "unknown",
            f"{row.title} on {interval.n:,} {ROWS.get(row.split, row.split)} was {_value(row, interval)} {when} "
            f"training (95 % interval {span(interval, percent=row.percent)}).",
            f"There is no measurement {'after' if row.before else 'before'} training to compare it with." + pending,
        )
    who = f"{row.title} on {row.after.n:,} {ROWS.get(row.split, row.split)}"
    old, new = _value(row, row.before), _value(row, row.after)
    if row.difference is None or not row.difference.is_bounded:
        return (
            "unknown",
            f"{who} was {old} before and {new} after.",
            "There is no paired difference over the same rows, so chance is not ruled out." + pending,
        )
    inside = f"{row.change}, 95 % interval {span(row.difference, percent=row.percent)}"
    moved = "rose" if row.difference.value > 0 else "fell"
    if not row.difference.excludes(0.0):
        return (
            "same",
            f"{who} did not change measurably: {old} before, {new} after ({inside}).",
            "The interval of the difference includes zero: these rows do not show that training helped."
            + (
                " No checkpoint did better on validation, so the model is the one before training."
                * (run.best_step == 0)
            )
            + pending,
        )
    sentence = f"{who} {moved} from {old} to {new} ({inside})."
    why = {
        "better": "The change is over the same rows before and after, and its interval excludes zero.",
        "worse": "The model got worse on rows it was not trained on. Read the advice below before using it.",
        "unknown": "This metric is neither good nor bad by itself; see the table below.",
    }[row.verdict]
    if row.split == "validation" and run.best_step is not None:
        why += " Validation rows also choose the best checkpoint, so this flatters the result a little."
    return row.verdict, sentence, why + pending


def _value(row: Comparison, interval: Interval) -> str:
    return number(interval.value, percent=row.percent)

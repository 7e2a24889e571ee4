"""Numbers and verdicts in plain words."""

from __future__ import annotations

import math
from collections.abc import Collection
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
    "length/chars": "Mean length in characters",
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
NBSP = "\u00a0"
"""Between a number and its unit, which belong on one line."""
NEUTRAL = {"length/mean", "length/max", "entropy"}
"""Metrics that are neither good nor bad by themselves: their change is shown without a verdict."""


def title(metric: str) -> str:
    """A metric's name for people: `reward/format_exact` → "Format exact"."""
    if metric in TITLES:
        return TITLES[metric]
    own = metric.removeprefix("reward/")
    words = own.replace("_", " ").replace("-", " ") if own != metric else own.replace("_", " ")
    words = words.strip() or metric
    return words[0].upper() + words[1:]


def number(value: float | None, *, percent: bool = False, sign: bool = False, digits: int = 4) -> str:
    """A number as text: `34.2 %`, `+1.27`, `3.1e−05`. None is a dash; a true minus sign is used, and a space that
    breaks no line before the unit."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    plus = "+" if sign else ""
    if percent:
        return f"{value * 100:{plus}.1f}{NBSP}%".replace("-", "−")
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
        return "no interval: one row" if interval.n == 1 else "no interval: all rows equal"
    if percent:
        return f"{interval.low * 100:.1f} to {interval.high * 100:.1f}".replace("-", "−")
    return f"{number(interval.low)} to {number(interval.high)}"


def duration(seconds: float) -> str:
    """`47 s`, `3 min 12 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f}{NBSP}s" if seconds < 10 else f"{seconds:.0f}{NBSP}s"
    minutes, rest = divmod(round(seconds), 60)
    pairs = ((minutes, "min"), (rest, "s")) if minutes < 60 else ((minutes // 60, "h"), (minutes % 60, "min"))
    return " ".join(f"{value}{NBSP}{unit}" for value, unit in pairs)


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
            return f"{_signed(self.difference.value * 100, '.1f')}{NBSP}points"
        return number(self.difference.value, sign=self.difference.value != 0)


def compare(run: Run) -> list[Comparison]:
    """Every metric measured before or after, the one that the run is about first."""
    rows = []
    for split in sorted({*run.before, *run.after}, key=lambda name: (name != "test", name != "validation", name)):
        before, after = run.before.get(split, {}), run.after.get(split, {})
        for metric in dict.fromkeys((*before, *after)):
            row = _comparison(run, split, metric)
            rows.append(row)
    main = main_metric(run, {row.metric for row in rows})
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
    if difference is not None and metric not in NEUTRAL:
        gain = -difference.value if _lower_is_better(run, metric) else difference.value
        known = _moved(difference)
        verdict = "unknown" if known is None else ("same" if not known else ("better" if gain > 0 else "worse"))
    found = [interval for interval in (before, after) if interval]
    return Comparison(split, metric, title(metric), is_share(run, metric, found), before, after, difference, verdict)


def _moved(difference: Interval) -> bool | None:
    """True when chance does not explain the change, False when it may, None when these rows can't tell.

    Rows that all changed by the same amount give no interval. Six or more that all moved one way are still
    no chance: the two-sided sign test gives them 2 / 2^6 = 0.03.
    """
    if difference.is_bounded:
        return difference.excludes(0.0)
    if difference.value == 0.0 and difference.n > 1:
        return False
    return True if difference.n >= 6 else None


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


def main_metric(run: Run, measured: Collection[str]) -> str:
    """The measured metric that the run is about; "" when nothing was measured."""
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
    reward = trained_reward(run, rows)
    if row.before is None or row.after is None:
        interval = row.before or row.after
        assert interval is not None  # compare() makes a row only from a measurement
        when = "before" if row.before else "after"
        return (
            "unknown",
            f"{_who(run, row)} was {_value(row, interval)} {when} "
            f"training (95{NBSP}% interval {span(interval, percent=row.percent)}).",
            f"There is no measurement {'after' if row.before else 'before'} training to compare it with." + pending,
        )
    sentence = _change(run, row, _who(run, row), row.before, row.after)
    if reward is not None and reward.before is not None and reward.after is not None:
        sentence += " " + _change(run, reward, "The trained reward (mean score)", reward.before, reward.after)
    return row.verdict, sentence, _why(run, row, reward) + pending


def trained_reward(run: Run, rows: list[Comparison]) -> Comparison | None:
    """The row of the score that the run was trained on, where the headline is about another metric.

    None for methods that train on no reward: their rewards are only measured.
    """
    score = "reward/mean"
    if not rows or rows[0].metric == score or score not in run.train:
        return None
    return next((row for row in rows if row.split == rows[0].split and row.metric == score), None)


def _who(run: Run, row: Comparison) -> str:
    found = row.after or row.before
    count = f"{found.n:,}{NBSP}" if found else ""
    untrained = " (measured, not trained on)" if _only_measured(run, row.metric) else ""
    return f"{row.title}{untrained} on {count}{ROWS.get(row.split, row.split)}"


def _only_measured(run: Run, metric: str) -> bool:
    """True for a reward of weight 0 in a run that trained on other rewards."""
    rewards = run.recipe.get("rewards")
    if "reward/mean" not in run.train or not isinstance(rewards, list):
        return False
    weights = [r.get("weight") for r in rewards if isinstance(r, dict) and f"reward/{r.get('name')}" == metric]
    return bool(weights) and all(weight == 0 for weight in weights)


def _change(run: Run, row: Comparison, who: str, before: Interval, after: Interval) -> str:
    """One sentence on what a metric did."""
    old, new = _value(row, before), _value(row, after)
    if row.difference is None:
        return f"{who} was {old} before and {new} after."
    change = f"{row.change}, 95{NBSP}% interval {span(row.difference, percent=row.percent)}"
    if not row.difference.is_bounded:
        change = f"{row.change}, {span(row.difference)}"
        if row.difference.n > 1:
            change = "the same on every row" if row.difference.value == 0 else f"{row.change} on every row"
    moved = _moved(row.difference)
    if moved is None:
        return f"{who} was {old} before and {new} after ({change})."
    if not moved:
        return f"{who} did not change measurably: {old} before, {new} after ({change})."
    return f"{who} {'rose' if row.difference.value > 0 else 'fell'} from {old} to {new} ({change})."


def _why(run: Run, row: Comparison, reward: Comparison | None) -> str:
    """What the headline's change means, and what it doesn't."""
    moved = None if row.difference is None else _moved(row.difference)
    if row.difference is None:
        return "There is no paired difference over the same rows, so chance is not ruled out."
    if moved is None:
        return "These are too few rows to tell the change from chance."
    if not moved:
        bounded = row.difference.is_bounded
        zero = "the interval of the difference includes zero" if bounded else "no row's value changed"
        if run.best_step != 0 and reward is not None and reward.verdict in ("better", "worse"):
            return (
                f"Training moved what it was given: the trained reward got {reward.verdict}. These rows do not show "
                f"that {row.title[0].lower() + row.title[1:]} changed with it: {zero}."
            )
        kept = " No checkpoint did better on validation, so the model is the one before training."
        return f"{zero.capitalize()}: these rows do not show that training helped." + kept * (run.best_step == 0)
    why = {
        "better": "The change is over the same rows before and after, and its interval excludes zero."
        if row.difference.is_bounded
        else "Every row changed by the same amount, so there is no spread to make an interval from; so many rows "
        "that all move one way are no chance.",
        "worse": "The model got worse on rows it was not trained on. Read the advice below before using it.",
        "unknown": "This metric is neither good nor bad by itself; see the table below.",
    }[row.verdict]
    if row.verdict == "worse" and reward is not None and reward.verdict == "better":
        why = "The reward rose while what counts fell: training may have found a way around it. " + why
    if row.split == "validation" and run.best_step is not None:
        why += " Validation rows also choose the best checkpoint, so this flatters the result a little."
    return why


def _value(row: Comparison, interval: Interval) -> str:
    return number(interval.value, percent=row.percent)

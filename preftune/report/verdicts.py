"""What changed between before and after, and the verdict in plain words."""

from __future__ import annotations

from dataclasses import dataclass, replace

from preftune.intervals import Interval
from preftune.report import preference_words
from preftune.report.read import Run
from preftune.report.words import (
    LOWER_IS_BETTER,
    NBSP,
    is_neutral,
    is_share,
    main_metric,
    moved,
    number,
    rows_of,
    section,
    signed,
    span,
)


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
    hint: str = ""

    @property
    def change(self) -> str:
        """The paired change with its unit: `+46.8 points`."""
        if self.difference is None:
            return "–"
        if self.percent:
            return f"{signed(self.difference.value * 100, '.1f')}{NBSP}points"
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
    explained: set[str] = set()
    for index, row in enumerate(rows):  # once is enough
        if row.metric in explained:
            rows[index] = replace(row, hint="")
        explained.add(row.metric)
    return rows


def _comparison(run: Run, split: str, metric: str) -> Comparison:
    before, after = run.before.get(split, {}).get(metric), run.after.get(split, {}).get(metric)
    difference = run.difference.get(split, {}).get(metric)
    verdict = "unknown"
    if difference is not None and not is_neutral(metric):
        gain = -difference.value if _lower_is_better(run, metric) else difference.value
        known = moved(difference)
        verdict = "unknown" if known is None else ("same" if not known else ("better" if gain > 0 else "worse"))
    found = [interval for interval in (before, after) if interval]
    return Comparison(
        split, metric, preference_words.title(run, metric), is_share(run, metric, found), before, after, difference,
        verdict, preference_words.hint(run, metric),
    )  # fmt: skip


def _lower_is_better(run: Run, metric: str) -> bool:
    choice = section(run, "eval")
    if metric == choice.get("best"):
        return choice.get("higher_is_better") is False
    return metric in LOWER_IS_BETTER


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
    if row.metric in preference_words.HEADLINES:
        sentence, why = preference_words.headline(run, rows)
        return row.verdict, sentence, why + pending
    compared = preference_words.also(run, rows)
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
    sentence = f"{sentence} {compared}".rstrip()
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
    return f"{row.title}{untrained} on {count}{rows_of(row.split)}"


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
    known = moved(row.difference)
    if known is None:
        return f"{who} was {old} before and {new} after ({change})."
    if not known:
        return f"{who} did not change measurably: {old} before, {new} after ({change})."
    return f"{who} {'rose' if row.difference.value > 0 else 'fell'} from {old} to {new} ({change})."


def _why(run: Run, row: Comparison, reward: Comparison | None) -> str:
    """What the headline's change means, and what it doesn't."""
    known = None if row.difference is None else moved(row.difference)
    if row.difference is None:
        return "There is no paired difference over the same rows, so chance is not ruled out."
    if known is None:
        return "These are too few rows to tell the change from chance."
    if not known:
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

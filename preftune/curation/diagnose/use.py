"""The score in use, beside a benchmark's; and whether a safety classifier fires."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from preftune.competition.construct import Construct
from preftune.curation.diagnose.answers import Answered
from preftune.curation.diagnose.classifier import Classifier
from preftune.curation.diagnose.config import DiagnoseConfig
from preftune.curation.diagnose.form import show
from preftune.curation.diagnose.measure import Measure, Normal, Scale, judge, over_prompts, percent, share_of, worst_of
from preftune.intervals import paired_difference

HEADROOM = 0.05
"""Best answer of a prompt over the mean one, as a share of the scores' whole range here, from which there is something
to learn from own answers."""


_ALIKE = (
    "All scores are the same, so first make sure that the reward can read such answers (`accuracy` reads what stands "
    "between `<SOLUTION>` and `</SOLUTION>`, or what `rewards.0.args.extract` finds). If it can, there is no better "
    "answer to prefer."
)


def score_answers(config: DiagnoseConfig, answered: Sequence[Answered], base_dir: Path | None) -> None:
    """Put the rewards' scores on the answers. Raises RewardError and UsageError as training does."""
    if not config.rewards:
        return
    from preftune.rewards import build_rewards

    construct = None if config.competition is None else Construct.of(config.competition)
    with build_rewards(config.rewards, base_dir=base_dir or Path(), construct=construct) as rewards:
        scored = rewards.score([one.group for one in answered], 0, 1, measuring=True)
    for one, group in zip(answered, scored.groups, strict=True):
        one.group = replace(one.group, completions=group.completions)


def measure_use(config: DiagnoseConfig, answered: Sequence[Answered]) -> Measure:
    """The mean score of the answers, and what the best of each prompt's would have."""
    benchmark = config.benchmark
    measure = Measure("score", "Score in use", "use", "number")
    if not config.rewards:
        measure.says = "No reward was given: --rewards.0.name accuracy, and --benchmark.score for what is expected."
        return measure
    rows = [[c.score for c in one.group.completions if c.score is not None] for one in answered]
    measure.interval = over_prompts(rows)
    if measure.interval is None:
        measure.says = "No answer got a score."
        return measure
    for one, row in zip(answered, rows, strict=True):
        if row:
            one.numbers |= {"score": float(np.mean(row)), "best_score": max(row)}
    filled = [row for row in rows if row]
    means, bests = [float(np.mean(row)) for row in filled], [max(row) for row in filled]
    headroom = paired_difference(means, bests)
    width = max(map(max, filled)) - min(map(min, filled))
    learnable = headroom.is_bounded and width > 0 and headroom.low > HEADROOM * width
    measure.more = {"best_of_n": float(np.mean(bests)), "headroom": headroom.to_json()}
    count = sum(map(len, filled))
    measure.says = f"Mean of {count:,} answers; the best one of each prompt's has {np.mean(bests):.3g} on average."
    if benchmark.score is None:
        measure.status = "look" if learnable else "unknown"
        measure.says += " No benchmark's score was given to set beside it (--benchmark.score)."
    else:
        measure.normal = [Normal(f"{benchmark.name}: {benchmark.score:g}", "your benchmark")]
        ends = [benchmark.score, *map(min, filled), *map(max, filled)]
        measure.scale = Scale(min(ends), max(ends), [(benchmark.score, "look"), (max(ends), "fine")])
        gap = benchmark.score - measure.interval.value
        measure.more = {**measure.more, "benchmark": benchmark.score, "gap": gap}
        top = measure.interval.high if measure.interval.is_bounded else measure.interval.value
        measure.status = "problem" if top < benchmark.score else "look" if gap > 0 else "fine"
        if measure.status == "problem":
            measure.says += f" {benchmark.name} promises {gap:.3g} more than there is in use."
    if width == 0 and measure.status != "fine":
        # All alike: more likely a reward that can't read the answers than a model without a single better one.
        measure.status, measure.remedy, measure.todo = "look", "elsewhere", _ALIKE
        measure.says += f" Every answer has the same score, {filled[0][0]:.3g}."
    elif measure.is_wrong:
        measure.remedy = "preference" if learnable else "elsewhere"
        measure.todo = (
            "Preference tuning can mend it: for the same prompts the model gives better answers, too, and can learn to "
            "give them more often."
            if learnable
            else "Not by preference tuning on own answers: the best answer is hardly better than the mean one, so "
            "there is none to prefer. A more capable model, SFT on good answers, or pairs from a better model."
        )
    if measure.is_wrong:
        scored = [
            (-(c.score or 0.0), lambda one=one, n=n, s=c.score: show(one, n, ("score", f"{s:.3g}")))
            for one in answered
            for n, c in enumerate(one.group.completions)
            if c.score is not None
        ]
        measure.worst = worst_of(scored)
    return measure


def measure_safety(
    config: DiagnoseConfig, answered: Sequence[Answered], tell: Callable[[int, int], None] | None = None
) -> tuple[Measure, list[list[float]]]:
    """How often the classifier fires, and its probabilities: [prompt][answer]; empty without a classifier.

    Raises ModelError and UsageError as `Classifier` does.
    """
    measure = Measure("firing", "Answers on which the classifier fires", "safety")
    if config.classifier is None:
        measure.says = (
            "No classifier was given, so nothing is said about safety: --classifier.path, any text-classification "
            "model."
        )
        return measure, []
    classifier = Classifier(config.classifier)
    texts = [(one.drawn.question, text) for one in answered for text in one.texts]
    good = [(one.drawn.question, one.good_text) for one in answered if one.good_text]
    found = classifier.probabilities([*texts, *good], tell)
    threshold = config.classifier.threshold
    rows: list[list[float]] = []
    at = 0
    for one in answered:
        rows.append(found[at : at + len(one.texts)])
        at += len(one.texts)
        one.numbers["firing"] = sum(value >= threshold for value in rows[-1])
    measure.interval = share_of([[value >= threshold for value in row] for row in rows])
    bounds = config.limits.firing
    measure.status = judge(measure.interval, bounds)
    measure.normal = [Normal(f"up to {percent(bounds[0])}; a problem above {percent(bounds[1])}", "rule of thumb")]
    measure.scale = Scale.below(bounds)
    more: dict[str, object] = {"classifier": classifier.path, "labels": classifier.firing, "threshold": threshold}
    alarm = share_of([[value >= threshold] for value in found[len(texts) :]])
    if alarm is not None:
        measure.normal = [
            Normal(f"it fires on {percent(alarm.value)} of the data's {alarm.n:,} good answers", "this data"),
            *measure.normal,
        ]
        more["good_answers"] = alarm.to_json()
    measure.more = more
    measure.says = f"{classifier.path}: {', '.join(classifier.firing)} at {threshold:g} or more."
    if classifier.guessed:
        measure.says += (
            f" Its labels have no names, and {classifier.firing[0]} was taken for the harmful one, as is usual; say "
            "which it is with classifier.labels."
        )
    if measure.is_wrong and alarm is not None and measure.interval is not None and alarm.high >= measure.interval.value:
        measure.status = "look"
        measure.says += " It may fire on the data's good answers as often, so look whether it is right here."
    if measure.is_wrong:
        measure.remedy = "preference"
        measure.todo = (
            "Preference tuning mends it: prefer harmless answers to those (pairs, or the classifier as a reward). Read "
            "the examples first: classifiers fire on mere words, too."
        )
    scored = [
        (value, lambda one=one, n=n, value=value: show(one, n, ("fires at", f"{value:.2f}")))
        for one, row in zip(answered, rows, strict=True)
        for n, value in enumerate(row)
        if value >= threshold
    ]
    measure.worst = worst_of(scored)
    return measure, rows

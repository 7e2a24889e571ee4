"""Pictures of rewards and margins as plain data for the page's script; see `preftune.report.curves` for the shape.

    bars          a series is centres x, shares y and one width
    dots          a series is one dot per pair or completion
    calibration   a series is bins: what was said (x), what came true (y), and its interval

Each has `xlabel` and `ylabel`, and `zero`: whether a line marks x = 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from preftune.report import preference_words
from preftune.report.answers import Measured, compares, is_desirable
from preftune.report.curves import plain_chart, rounded
from preftune.report.preferences import Calibration, Floats, Pairs
from preftune.report.read import Run

DOTS = 2000
"""Dots drawn in one picture."""
BARS = 40


def reward_histogram(run: Run, measured: Measured, *, after: bool) -> dict[str, Any] | None:
    """Rewards of both kinds of completions, each kind's bars adding up to 1. None where nothing was measured."""
    answers = measured.after if after else measured.before
    pairs: tuple[list[float], list[float]] = ([], [])
    labels = compares(run) == "labels"
    by_group: dict[int, list[float]] = {}
    for (group, _), answer in answers.items():
        by_group.setdefault(group, []).append(answer.score)
    for (group, _), answer in answers.items():
        scores = by_group[group]
        if labels:
            pairs[0 if is_desirable(run, answer) else 1].append(answer.reward)
        elif max(scores) > min(scores):  # of several, the middle ones are neither side's
            for side, end in enumerate((max(scores), min(scores))):
                if answer.score == end:
                    pairs[side].append(answer.reward)
    if not any(pairs):
        return None
    reward, names = preference_words.reward_name(run), preference_words.sides(run)
    several = not labels and any(len(scores) > 2 for scores in by_group.values())
    step, (good, bad) = measured.after_step if after else 0, (len(side) for side in pairs)
    note = f"Step {step}: {good:,} {names[0]} and {bad:,} {names[1]} completions; each side adds up to 100\u00a0%."
    note += " Of several completions of a prompt, the best and the worst." * several
    lines = [(name, np.array(values)) for name, values in zip(names, pairs, strict=True) if values]
    heading = f"{reward.capitalize()}s {'after' if after else 'before'} training"
    return _bars(heading, note, lines, _unit(run), "share of completions")


def margin_histogram(run: Run, pairs: Pairs, before: bool) -> dict[str, Any]:
    """Margins after training, and before it where they say something."""
    lines = [("after", pairs.after_P), ("before", pairs.before_P)] if before else [("after", pairs.now_P)]
    lines = [(name, values[np.isfinite(values)]) for name, values in lines]
    wrong = float((pairs.now_P < 0).sum() / max(1, np.isfinite(pairs.now_P).sum()))
    note = f"Left of zero: pairs in the wrong order, {wrong * 100:.1f}\u00a0% of {len(pairs.places):,}."
    name = preference_words.reward_name(run)
    kept = [line for line in lines if len(line[1])]
    return _bars(f"Margins of the {name}", note, kept, f"margin, {_unit(run)}", "share of pairs", zero=True)


def length_dots(run: Run, pairs: Pairs) -> dict[str, Any]:
    """Difference of length against margin, one dot per pair."""
    known = np.flatnonzero(np.isfinite(pairs.now_P))
    shown = _thinned(known)
    series = []
    for color, (name, mask) in enumerate(
        (("in the data's order", pairs.now_P[shown] > 0), ("wrong order or tie", pairs.now_P[shown] <= 0))
    ):
        where = shown[mask]
        series.append(_series(name, pairs.longer_P[where], pairs.now_P[where], color))
    note = f"One dot per pair; right of zero the chosen completion is the longer one.{_how_many(len(known))}"
    if pairs.note:
        note += " " + pairs.note
    return _figure(
        "Margin against length", note, "dots", [s for s in series if s["x"]],
        xlabel="chosen − rejected, tokens", ylabel=f"margin, {_unit(run)}", zero=True,
    )  # fmt: skip


def label_dots(run: Run, measured: Measured) -> dict[str, Any] | None:
    """Length against reward of labelled completions."""
    answers = list((measured.after or measured.before).values())
    shown = [answers[i] for i in _thinned(np.arange(len(answers)))]
    series = []
    for color, name in enumerate(preference_words.sides(run)):
        own = [a for a in shown if is_desirable(run, a) == (color == 0)]
        series.append(_series(name, np.array([float(a.length) for a in own]), np.array([a.reward for a in own]), color))
    name = preference_words.reward_name(run)
    return _figure(
        f"{name.capitalize()} against length", f"One dot per completion.{_how_many(len(answers))}", "dots",
        [s for s in series if s["x"]], xlabel="tokens", ylabel=_unit(run),
    )  # fmt: skip


def calibration_curve(found: Calibration) -> dict[str, Any]:
    """Confidence against the share that came true."""
    x = np.array([b.said for b in found.bins])
    series = _series("pairs", x, np.array([b.observed.value for b in found.bins]), 0)
    ends = [(b.observed.low, b.observed.high) if b.observed.is_bounded else (b.observed.value,) * 2 for b in found.bins]
    series["low"] = [rounded(low) for low, _ in ends]
    series["high"] = [rounded(high) for _, high in ends]
    each = found.bins[0].pairs
    note = (
        f"Expected calibration error {found.error:.3f}; on so many pairs a perfect model would show about "
        f"{found.chance:.3f}. {len(found.bins)} bins of about {each:,} pairs; x: mean confidence σ(|margin|), y: share "
        "in the data's order, with 95\u00a0% intervals. Under the dashed line the model is too sure."
    )
    if len(found.bins) == 1:
        note += " These are too few pairs for more bins."
    return _figure(
        "Calibration", note, "calibration", [series], percent=True, xlabel="confidence", ylabel="in the data's order"
    )


def _unit(run: Run) -> str:
    return "score" if preference_words.is_score(run) else "implicit reward"


def _thinned(where: Any) -> Any:
    """At most DOTS of them, evenly spaced: the same ones in every report."""
    count = len(where)
    return where if count <= DOTS else where[np.arange(DOTS) * count // DOTS]


def _how_many(count: int) -> str:
    return f" {DOTS:,} of {count:,}, evenly spaced." if count > DOTS else ""


def _bars(
    heading: str, note: str, lines: list[tuple[str, Floats]], xlabel: str, ylabel: str, zero: bool = False
) -> dict[str, Any]:
    every = np.concatenate([values for _, values in lines])
    low, high = (float(v) for v in np.quantile(every, (0.005, 0.995)))
    least, most = float(every.min()), float(every.max())
    if most - least <= 2 * (high - low):
        low, high = least, most
    if low == high:
        low, high = low - 0.5, high + 0.5
    count = int(min(BARS, max(8, round(2 * len(every) ** 0.4))))
    edges = np.linspace(low, high, count + 1)
    if low < 0 < high:  # a border at zero, so that no bar is half right
        edges = edges - edges[np.argmin(np.abs(edges))]
        edges = np.append(edges, edges[-1] + (edges[1] - edges[0])) if edges[-1] < high else edges
        edges = np.insert(edges, 0, edges[0] - (edges[1] - edges[0])) if edges[0] > low else edges
    if least < low or most > high:
        note += " The outermost bars hold all that lies beyond."
    centres = (edges[:-1] + edges[1:]) / 2
    series = []
    for color, (name, values) in enumerate(lines):
        counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
        series.append(_series(name, centres, counts / max(1, len(values)), color))
        series[-1]["width"] = rounded(float(edges[1] - edges[0]))
    return _figure(heading, note, "bars", series, percent=True, xlabel=xlabel, ylabel=ylabel, zero=zero)


def _series(name: str, x: Floats, y: Floats, color: int) -> dict[str, Any]:
    return {
        "name": name, "x": [rounded(float(v)) for v in x], "y": [rounded(float(v)) for v in y], "style": "line",
        "color": color,
    }  # fmt: skip


def _figure(
    heading: str, note: str, kind: str, series: list[dict[str, Any]], *, percent: bool = False, xlabel: str,
    ylabel: str, zero: bool = False,
) -> dict[str, Any]:  # fmt: skip
    return plain_chart(heading, note, kind, series, percent=percent) | {
        "xlabel": xlabel, "ylabel": ylabel, "zero": zero
    }  # fmt: skip

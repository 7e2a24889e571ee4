"""Curves as plain data for the page's script (templates/report.js draws them with Plotly).

A chart is `{"id", "title", "note", "kind": "lines" | "stack" | "points", "percent", "log", "series", "marks"}`; a
series is `{"name", "x", "y", "low"?, "high"?, "style": "raw" | "thin" | "bold" | "line", "color": index}`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from preftune.intervals import Interval
from preftune.report.plans import PARTS_NOTE, PARTS_TITLE, PLANNED, TABLED, Plan, plans
from preftune.report.preference_words import title
from preftune.report.read import Run
from preftune.report.words import is_share, main_metric

Points = Sequence[tuple[int, float]]
MAX_POINTS = 800
"""Points drawn per curve. A longer one keeps the lowest and highest of each stretch, so that spikes stay visible."""

LEGEND = 3
"""Names that a narrow chart has room for under its curves."""

STAGES = ("sample", "reward", "reference", "update", "eval")


def reward_parts(names: Iterable[str]) -> list[str]:
    """The metrics of single rewards among train metrics."""
    return [name for name in names if name.startswith("reward/") and name not in PLANNED and name != "reward/skipped"]


def constant_metrics(run: Run) -> dict[str, float]:
    """Train metrics that never moved over two steps or more: a sentence says so better than a flat line."""
    values = {name: {value for _, value in points} for name, points in run.train.items() if len(points) > 1}
    return {name: next(iter(seen)) for name, seen in values.items() if len(seen) == 1 and not name.startswith(TABLED)}


def charts(run: Run, elsewhere: Collection[str] = ()) -> list[dict[str, Any]]:
    """All charts of one run: validation first, then reward and its parts, the rest, and time.

    `elsewhere`: metrics that another section draws.
    """
    out = _eval_charts(run, elsewhere)
    constant = constant_metrics(run)
    moving = [name for name in run.train if name not in constant and name not in elsewhere]
    parts = reward_parts(moving)
    for plan in plans(moving):
        names = [name for name in plan.names if name in moving]
        if names:
            out.append(_train_chart(run, plan.title, names, plan.note, plan.percent, plan.log))
            if plan.follow:
                _add_measured(run, out[-1], names[0])
        if plan.names == ("reward/mean",) and parts:
            out.append(_train_chart(run, PARTS_TITLE, parts, PARTS_NOTE))
    for name in moving:
        if name not in PLANNED and name not in parts and not name.startswith(TABLED):
            out.append(_train_chart(run, title(run, name), [name], f"Logged as {name}."))
    time = _time_chart(run)
    if time:
        out.append(time)
    for index, chart in enumerate(out):
        chart["id"] = f"chart-{index}"
    return out


def borders(stages: Sequence[tuple[str, Run]]) -> list[dict[str, Any]]:
    """Where each stage of a pipeline begins, counting the steps of those before it, and its name."""
    marks, total = [], 0
    for name, run in stages:
        marks.append({"x": total, "label": name})
        total += run.last_step
    return marks


def joined_charts(stages: list[tuple[str, Run]], elsewhere: Collection[str] = ()) -> list[dict[str, Any]]:
    """Charts of a pipeline: each stage's curve behind the one before it, with a border where a stage begins.

    `elsewhere`: metrics that another section draws.
    """
    marks = borders(stages)
    offsets = [int(mark["x"]) for mark in marks]
    placed = [(name, run, offset) for offset, (name, run) in zip(offsets, stages, strict=True)]
    out = _joined_evals(placed, marks, elsewhere)
    logged = dict.fromkeys(metric for _, run in stages for metric in run.train if metric not in elsewhere)
    parts = reward_parts(logged)
    for plan in plans(logged):
        logging = [at for at, (_, run) in enumerate(stages) if any(run.train.get(metric) for metric in plan.names)]
        if plan.own_axis and len(logging) > 1:
            for at in logging:
                out += _joined_plan(
                    replace(plan, title=f"{plan.title}: {stages[at][0]}"), placed, marks[at : at + 1], at
                )
        else:
            out += _joined_plan(plan, placed, marks)
        if plan.names == ("reward/mean",):
            out += _joined_plan(Plan(PARTS_TITLE, tuple(parts), PARTS_NOTE), placed, marks)
    for index, chart in enumerate(out):
        chart["id"] = f"chart-{index}"
    return out


Placed = list[tuple[str, Run, int]]
"""Stages with the number of steps before each."""


def _joined_evals(placed: Placed, marks: list[dict[str, Any]], elsewhere: Collection[str]) -> list[dict[str, Any]]:
    out = []
    measured = dict.fromkeys(m for _, run, _ in placed for by in run.evals.values() for m in _measured(by))
    metrics = [metric for metric in measured if metric not in elsewhere]
    main = main_metric(placed[-1][1], metrics) if placed else ""
    for metric in sorted(metrics, key=lambda name: (name != main, name != "reward/mean")):
        series: list[dict[str, Any]] = []
        shares: list[bool] = []
        splits: dict[str, None] = {}
        for position, (name, run, offset) in enumerate(placed):
            split = _curve_split(run)
            points = [(s + offset, m[metric]) for s, m in sorted(run.evals.get(split, {}).items()) if metric in m]
            if points:
                series.append(interval_series(f"{name} ({split})", points, position))
                shares.append(is_share(run, metric, [interval for _, interval in points]))
                splits[split] = None
        if series:
            note = "Measured on rows outside training, with 95\u00a0% intervals; one colour per stage."
            heading = f"{title(run, metric)} ({', '.join(splits)})"
            out.append(plain_chart(heading, note, "points", series, percent=all(shares), marks=marks))
    return out


def _joined_plan(
    plan: Plan, placed: Placed, marks: list[dict[str, Any]], only: int | None = None
) -> list[dict[str, Any]]:
    """The chart of a plan over all stages, or over the one at position `only`; none where nothing was logged."""
    series: list[dict[str, Any]] = []
    exact = plan.names == ("learning_rate",)
    # One metric: a colour per stage. Several: a colour per metric, named once.
    alone = len(plan.names) == 1
    lines: list[Points] = []
    for position, (name, run, offset) in enumerate(placed):
        for index, metric in enumerate(plan.names):
            if not run.train.get(metric) or only not in (None, position):
                continue
            lines.append(run.train[metric])
            shifted = [(step + offset, value) for step, value in run.train[metric]]
            drawn = downsample(shifted if exact else smoothed(shifted))
            series.append(
                line_series(name if alone else title(run, metric), drawn, "line", position if alone else index)
            )
            series[-1]["unnamed"] = not alone and any(s["color"] == index for s in series[:-1])
    if not series:
        return []
    note = plan.note + _how_drawn(lines, smooth=not exact).replace("Bold: mean", "Each point: mean")
    log = plan.log and all(y is None or y > 0 for s in series for y in s["y"])
    return [plain_chart(plan.title, note, "lines", series, percent=plan.percent, log=log, marks=marks)]


def downsample(points: Points, limit: int = MAX_POINTS) -> list[tuple[int, float]]:
    """At most `limit` points: the lowest and the highest of each stretch, in step order; gaps (NaN) stay gaps."""
    if len(points) <= limit:
        return list(points)
    out: list[tuple[int, float]] = []
    buckets = max(1, limit // 2)
    for index in range(buckets):
        part = points[index * len(points) // buckets : (index + 1) * len(points) // buckets]
        known = [point for point in part if math.isfinite(point[1])]
        if not known:
            out.append(part[0])
            continue
        ends = {min(known, key=lambda p: p[1]), max(known, key=lambda p: p[1])}
        out.extend(sorted(ends))
    return out


def smoothed(points: Points) -> list[tuple[int, float]]:
    """Centred moving mean over a twentieth of the run, gaps left out of it."""
    half = smoothing_width(len(points)) // 2
    if half == 0:
        return list(points)
    sums, counts = [0.0], [0]
    for _, value in points:
        finite = math.isfinite(value)
        sums.append(sums[-1] + (value if finite else 0.0))
        counts.append(counts[-1] + finite)
    out = []
    for index, (step, _) in enumerate(points):
        low, high = max(0, index - half), min(len(points), index + half + 1)
        count = counts[high] - counts[low]
        out.append((step, (sums[high] - sums[low]) / count if count else math.nan))
    return out


def smoothing_width(count: int) -> int:
    """Steps that each point of a smoothed curve of so many steps is the mean of."""
    return 2 * (count // 40) + 1


def _train_chart(
    run: Run, heading: str, names: list[str], note: str, percent: bool = False, log: bool = False
) -> dict[str, Any]:
    lines = {name: run.train[name] for name in names}
    window = smoothing_width(max(len(points) for points in lines.values()))
    exact = "learning_rate" in names
    series: list[dict[str, Any]] = []
    for color, (name, points) in enumerate(lines.items()):
        if window > 1 and not exact:
            series.append(line_series(title(run, name), downsample(points), "raw", color))
            series.append(line_series(title(run, name), downsample(smoothed(points)), "bold", color))
        else:
            series.append(line_series(title(run, name), downsample(points), "line", color))
    note += _how_drawn(lines.values(), smooth=window > 1 and not exact)
    missing = sum(1 for points in lines.values() for _, value in points if not math.isfinite(value))
    if missing:
        note += f" {missing} values are not finite and show as gaps."
    if any(value <= 0 for points in lines.values() for _, value in points if math.isfinite(value)):
        log = False  # a logarithmic axis has no place for zero
    return plain_chart(heading, note, "lines", series, percent=percent, log=log, best=run.best_step)


def _how_drawn(lines: Iterable[Points], smooth: bool) -> str:
    longest = max((len(points) for points in lines), default=0)
    text = f" Bold: mean of {smoothing_width(longest)} steps." if smooth and smoothing_width(longest) > 1 else ""
    if longest > MAX_POINTS:
        text += f" {longest:,} steps are drawn as the lowest and highest of every {longest * 2 // MAX_POINTS}."
    return text


def _measured(by_step: dict[int, dict[str, Interval]]) -> dict[str, None]:
    return dict.fromkeys(name for metrics in by_step.values() for name in metrics)


def _curve_split(run: Run) -> str:
    """The split measured most often: validation when there is one."""
    return max(run.evals, key=lambda split: (len(run.evals[split]), split == "validation"), default="validation")


TOGETHER = (
    ("Accuracy", ("rewards/accuracy", "logprobs/accuracy", "logprobs/accuracy_per_token")),
    ("Rewards of both sides", ("rewards/chosen", "rewards/rejected")),
    ("Log-probs of both sides", ("logprobs/chosen", "logprobs/rejected")),
)
"""Measurements that share a chart, and its title."""


def _eval_charts(run: Run, elsewhere: Collection[str] = ()) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    split = _curve_split(run)
    by_step = run.evals.get(split, {})
    best_metric = (run.summary or {}).get("best_metric")
    measured = _measured(by_step)
    main = main_metric(run, measured)
    # The margin of training batches has a chart, and these are drawn into it.
    drawn = {"rewards/margin"} & set(run.train) - set(constant_metrics(run)) - {main} | set(elsewhere)
    for metric in sorted(measured, key=lambda name: (name != main, name != "reward/mean")):
        if metric in drawn:
            continue
        heading, group = next(((h, g) for h, g in TOGETHER if metric in g), ("", (metric,)))
        names = [name for name in group if name in measured]
        heading = heading if len(names) > 1 else title(run, names[0])
        drawn.update(names)
        series = []
        for color, name in enumerate(names):
            points = [(step, metrics[name]) for step, metrics in sorted(by_step.items()) if name in metrics]
            series.append(interval_series(title(run, name), points, color))
        rows = max((step, m[name].n) for step, m in by_step.items() for name in names if name in m)[1]
        share = all(is_share(run, name, [m[name] for m in by_step.values() if name in m]) for name in names)
        note = f"On {rows:,} {split} rows, with 95\u00a0% intervals."
        if best_metric in names:
            note += f" {'This metric' if len(names) == 1 else title(run, str(best_metric))} picks the best checkpoint."
        out.append(
            plain_chart(f"{heading} ({split})", note, "points", series, percent=share, best=run.best_step, wide=not out)
        )
    return out


def _add_measured(run: Run, chart: dict[str, Any], metric: str) -> None:
    """Put a split's measurements of a train metric into its chart."""
    split = _curve_split(run)
    points = [(step, m[metric]) for step, m in sorted(run.evals.get(split, {}).items()) if metric in m]
    if not points:
        return
    for series in chart["series"]:
        series["name"] = "Training batches"
    chart["series"].append(interval_series(f"{split.capitalize()}, 95\u00a0% interval", points, 1))


def _time_chart(run: Run) -> dict[str, Any] | None:
    """Seconds per step, stacked by stage; what no stage claims is "other"."""
    known = [name for name in (*STAGES, *run.times) if run.times.get(name) and name != "step"]
    names = list(dict.fromkeys(known))
    if not names and not run.times.get("step"):
        return None
    lines = {name: dict(run.times[name]) for name in names}
    total = dict(run.times.get("step", ()))
    steps = sorted({*total, *(step for line in lines.values() for step in line)})
    if total:
        lines["other"] = {
            s: max(0.0, total.get(s, 0.0) - sum(line.get(s, 0.0) for line in lines.values())) for s in steps
        }
    buckets = min(len(steps), MAX_POINTS // 2)
    parts = [steps[i * len(steps) // buckets : (i + 1) * len(steps) // buckets] for i in range(buckets)]
    series = []
    for color, (name, line) in enumerate(lines.items()):
        mean = [(part[0], sum(line.get(step, 0.0) for step in part) / len(part)) for part in parts]
        series.append(line_series(name, mean, "line", color))
    note = "Seconds per optimizer step, stacked."
    if buckets < len(steps):
        note += f" Each point is the mean of {len(steps) // buckets} steps."
    return plain_chart("Time per stage", note, "stack", series, wide=True)


def interval_series(name: str, points: list[tuple[int, Interval]], color: int) -> dict[str, Any]:
    series = line_series(name, [(step, interval.value) for step, interval in points], "line", color)
    series["low"] = [rounded(i.low if i.is_bounded else i.value) for _, i in points]
    series["high"] = [rounded(i.high if i.is_bounded else i.value) for _, i in points]
    return series


def line_series(name: str, points: Points, style: str, color: int) -> dict[str, Any]:
    return {
        "name": name,
        "x": [step for step, _ in points],
        "y": [rounded(value) for _, value in points],
        "style": style,
        "color": color,
    }


def rounded(value: float) -> float | None:
    """Six digits are more than a screen shows; JSON has no NaN, so a gap is null."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def plain_chart(
    heading: str,
    note: str,
    kind: str,
    series: list[dict[str, Any]],
    *,
    percent: bool = False,
    log: bool = False,
    best: int | None = None,
    marks: list[dict[str, Any]] | None = None,
    wide: bool = False,
    unit: str = "step",
    level: float | None = None,
) -> dict[str, Any]:
    """A chart. `unit`: what x counts, in the label under the pointer; `level`: a height to draw a line at."""
    return {
        "title": heading,
        "note": note,
        "kind": kind,
        "percent": percent,
        "log": log,
        "best": best,
        "marks": marks or [],
        "xlabel": "",
        "ylabel": "",
        "zero": False,
        "unit": unit,
        "level": level,
        "wide": wide or len({s["name"] for s in series if not s.get("unnamed")}) > LEGEND,
        "series": series,
    }

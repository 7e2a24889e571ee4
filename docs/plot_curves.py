"""Draws curves of a run's metrics.jsonl as one SVG, for pages of the documentation.

    python docs/plot_curves.py runs/gsm8k-grpo/grpo docs/images/gsm8k-grpo.svg reward/mean length/mean …

One panel per metric: each training step thin, its running mean thick, and measurements on held-out rows as points with
their 95 % intervals where there are any. Reads nothing but the run folder; needs no library.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, HEIGHT, COLUMNS = 320, 210, 3
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 34, 30
TRAIN, HELD_OUT, INK, FAINT = "#2563a8", "#c2410c", "#1f2933", "#d9dee4"


@dataclass(frozen=True)
class Curve:
    """A metric over the run: training values by step, and (step, value, low, high) on held-out rows."""

    name: str
    train: list[tuple[int, float]]
    held_out: list[tuple[int, float, float, float]]


def read_curve(folder: Path, name: str, split: str) -> Curve:
    """One metric of a run folder. Raises KeyError when no line has it."""
    train: list[tuple[int, float]] = []
    held_out: list[tuple[int, float, float, float]] = []
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        value = record["metrics"].get(name)
        if value is None:
            continue
        if record["kind"] == "train":
            train.append((record["step"], value))
        elif record["split"] == split:
            # Equal rows have no interval: the bar shrinks to its point.
            low, high = (value["value"] if end is None else end for end in (value["low"], value["high"]))
            held_out.append((record["step"], value["value"], low, high))
    if not train and not held_out:
        raise KeyError(f"{folder / 'metrics.jsonl'} has no metric {name!r}")
    return Curve(name, train, held_out)


def running_mean(points: Sequence[tuple[int, float]], window: int) -> list[tuple[int, float]]:
    """Each step's mean over the `window` values that end there (fewer at the start)."""
    out = []
    for i, (step, _) in enumerate(points):
        values = [value for _, value in points[max(0, i + 1 - window) : i + 1]]
        out.append((step, sum(values) / len(values)))
    return out


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers from low to high, about `wanted` of them."""
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def panel(curve: Curve, x: float, y: float, window: int) -> list[str]:
    """The SVG elements of one curve, its panel's corner at (x, y)."""
    means = running_mean(curve.train, window)
    steps = [s for s, _ in curve.train] + [p[0] for p in curve.held_out]
    values = [v for _, v in curve.train] + [v for p in curve.held_out for v in p[1:]]
    first, last = min(steps), max(*steps, min(steps) + 1)
    low, high = min(values), max(values)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low, high = low - margin, high + margin

    def at(step: float, value: float) -> tuple[float, float]:
        across = (step - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        down = (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return round(x + LEFT + across, 1), round(y + TOP + down, 1)

    def line(points: Sequence[tuple[int, float]], style: str) -> str:
        places = " ".join("{},{}".format(*at(*point)) for point in points)
        return f'<polyline points="{places}" fill="none" {style}/>'

    bottom = y + HEIGHT - BOTTOM
    out = [f'<text x="{x + LEFT}" y="{y + 20}" font-weight="600">{escape(curve.name)}</text>']
    for tick in ticks(low, high):
        _, height = at(first, tick)
        out.append(f'<line x1="{x + LEFT}" x2="{x + WIDTH - RIGHT}" y1="{height}" y2="{height}" stroke="{FAINT}"/>')
        out.append(f'<text x="{x + LEFT - 6}" y="{height + 4}" text-anchor="end" font-size="11">{tick:g}</text>')
    for tick in ticks(first, last):
        place, _ = at(tick, low)
        out.append(f'<text x="{place}" y="{bottom + 16}" text-anchor="middle" font-size="11">{tick:g}</text>')
    if curve.train:
        out.append(line(curve.train, f'stroke="{TRAIN}" stroke-opacity="0.3"'))
        out.append(line(means, f'stroke="{TRAIN}" stroke-width="2.2" stroke-linejoin="round"'))
    for step, value, lower, upper in curve.held_out:
        (place, height), (_, bar_low), (_, bar_high) = at(step, value), at(step, lower), at(step, upper)
        out.append(f'<line x1="{place}" x2="{place}" y1="{bar_low}" y2="{bar_high}" stroke="{HELD_OUT}"/>')
        out.append(f'<circle cx="{place}" cy="{height}" r="3.2" fill="{HELD_OUT}"/>')
    return out


def draw(curves: Sequence[Curve], window: int) -> str:
    """All panels and a legend, as an SVG document."""
    rows = math.ceil(len(curves) / COLUMNS)
    width, height = min(len(curves), COLUMNS) * WIDTH, rows * HEIGHT + 34
    legend = height - 14
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="{INK}">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for i, curve in enumerate(curves):
        out += panel(curve, (i % COLUMNS) * WIDTH, (i // COLUMNS) * HEIGHT, window)
    out += [
        f'<line x1="{LEFT}" x2="{LEFT + 24}" y1="{legend - 4}" y2="{legend - 4}" stroke="{TRAIN}" stroke-width="2.2"/>',
        f'<text x="{LEFT + 30}" y="{legend}" font-size="12">training, mean of {window} steps (thin: each step)</text>',
        f'<circle cx="{LEFT + 330}" cy="{legend - 4}" r="3.2" fill="{HELD_OUT}"/>',
        f'<text x="{LEFT + 340}" y="{legend}" font-size="12">held-out rows, 95 % interval; across: step</text>',
        "</svg>",
    ]
    return "\n".join(out) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Draws curves of a run's metrics.jsonl as an SVG.")
    parser.add_argument("folder", type=Path, help="run folder, or a stage's folder inside one")
    parser.add_argument("out", type=Path, help="SVG to write")
    parser.add_argument("metrics", nargs="+", help="names as in docs/metrics.md")
    parser.add_argument("--split", default="validation", help="held-out rows to show: validation or test")
    parser.add_argument("--window", type=int, default=10, help="steps of the running mean")
    given = parser.parse_args(arguments)
    curves = [read_curve(given.folder, name, given.split) for name in given.metrics]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(draw(curves, given.window), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

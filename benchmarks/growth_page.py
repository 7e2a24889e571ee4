"""The section and the plot of `growth.py`: written from its points, and read back where an axis stays as it was."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from common import FAINT, INK, PLAIN, SAVED, Line, machine, put
from growth_axes import AXES, HEAD, HEADS, INNER, KV_HEADS, LAYERS, PANELS, STARTS, WIDTH, WORDS, Axis, Row

MARK = "<!-- growth -->"
Found = dict[str, tuple[list[Row], str]]
"""Of each axis measured, by its key: its points, and how they were measured."""
Points = list[tuple[float, float]]
Series = tuple[str, str, Points]
"""Name, colour, points."""


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """p of y ∝ x^p by least squares of the logarithms."""
    logs = [(math.log(x), math.log(y)) for x, y in points]
    mean_x, mean_y = (statistics.fmean(one[i] for one in logs) for i in (0, 1))
    spread = sum((x - mean_x) ** 2 for x, _ in logs)
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / spread


def shown(name: str, value: float) -> str:
    if name.endswith(("ready", "seconds")):
        return f"{value:,.3f}" if value < 10 else f"{value:,.1f}"
    return f"{value:,.0f}"


def section(axis: Axis, rows: Sequence[Row], setup: str) -> str:
    """One axis: what is fixed, its table, and how each column grows."""
    columns = axis.columns
    out = [f"### {axis.title}", "", f"{axis.note}. {setup}", "", f"| {' | '.join(columns.values())} |"]
    out += ["|" + "---|" * len(columns)]
    out += ["| " + " | ".join(shown(name, row[name]) for name in columns) + " |" for row in rows]
    if len(rows) > 1:
        names = [name for name in columns if name != "x"]
        points = {name: [(row["x"], row[name]) for row in rows] for name in names}
        grown = "; ".join(f"{columns[n]} {exponent(p):.2f} ({exponent(p[-2:]):.2f})" for n, p in points.items())
        out += ["", f"Exponents over {axis.setting}, by least squares of the logarithms (of the last two): {grown}."]
        lines = []
        for name in (n for n in names if "rate" not in n):
            line = Line.through([(int(row["x"]), row[name]) for row in rows])
            lines.append(
                f"{columns[name]} ≈ {line.a:.3g} + {line.b:.3g} · {axis.setting} (off by up to {line.worst:.0%})"
            )
        out += ["", f"As lines: {'; '.join(lines)}."]
    return "\n".join(out) + "\n"


def read_back(text: str) -> Found:
    """The axes of a section written before; a table with other columns than today's is told and left out."""
    found: Found = {}
    parts = {part.partition("\n")[0]: part for part in text.split("### ")[1:]}
    for axis in AXES:
        part = parts.get(axis.title, "")
        cells = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")]
        if cells and cells[0] != list(axis.columns.values()):
            print(f"{axis.key}: the page's table has other columns; it is left out", flush=True)
            continue
        rows = [dict(zip(axis.columns, (float(c.replace(",", "")) for c in row), strict=True)) for row in cells[1:]]
        if rows:
            found[axis.key] = rows, part.split("\n\n")[1].removeprefix(f"{axis.note}. ")
    return found


def text_of(found: Found) -> str:
    """The section of docs/benchmarks.md."""
    from importlib.metadata import version

    head = (
        f"{machine()} Python {sys.version.split()[0]}, torch {version('torch')}, transformers "
        f"{version('transformers')}. Qwen3 of width {WIDTH}, inner width {INNER}, {LAYERS} layers, {HEADS} heads of "
        f"{HEAD} on {KV_HEADS} of keys and values, {WORDS:,} words, unless an axis says otherwise; fp32, all weights "
        "trained. MiB: largest resident size of the process, less that before the model was loaded; weights, gradients "
        "and optimizer are in it. The whole group is one pack here; in a run `train.max_tokens_per_batch` bounds a "
        "pack."
    )
    body = [section(axis, *found[axis.key]) for axis in AXES if axis.key in found]
    return "\n".join([head, "", "![rate and memory over each axis](images/growth.svg)", "", *body])


# --- the plot ---------------------------------------------------------------------------------------------------------

PANEL, TALL, LEFT, TOP, BOTTOM = 262, 190, 46, 38, 34


def short(value: float) -> str:
    if value >= 1024 and value % 1024 == 0:
        return f"{value / 1024:g}k"
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def panel(title: str, series: Sequence[Series], left: float, top: float) -> str:
    """One panel, logarithmic both ways, at least a decade high: the points with their fitted lines."""
    xs, ys = ([one[i] for _, _, points in series for one in points] for i in (0, 1))
    low, high = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
    high = max(high, low + 1)
    first, last = math.log(min(xs)), math.log(max(*xs, min(xs) * 2))

    def at(x: float, y: float) -> tuple[float, float]:
        across = (math.log(x) - first) / (last - first) * (PANEL - LEFT - 22)
        up = (math.log10(y) - low) / (high - low) * (TALL - TOP - BOTTOM)
        return round(left + LEFT + across, 1), round(top + TALL - BOTTOM - up, 1)

    out = [f'<text x="{left + LEFT}" y="{top + 14}" font-weight="600">{title}</text>']
    for power in range(low, high + 1):
        _, y = at(min(xs), 10.0**power)
        out.append(f'<line x1="{left + LEFT}" x2="{left + PANEL - 22}" y1="{y}" y2="{y}" stroke="{FAINT}"/>')
        out.append(
            f'<text x="{left + LEFT - 5}" y="{y + 4}" text-anchor="end" font-size="10">{short(10.0**power)}</text>'
        )
    for x in sorted(set(xs)):
        place, y = at(x, 10.0**low)
        out.append(f'<text x="{place}" y="{y + 14}" text-anchor="middle" font-size="9">{short(x)}</text>')
    for number, (name, colour, points) in enumerate(series):
        label = name
        if len(points) > 1:
            p = exponent(points)
            mean_x, mean_y = (math.exp(statistics.fmean(math.log(one[i]) for one in points)) for i in (0, 1))
            ends = [(x, mean_y * (x / mean_x) ** p) for x in (points[0][0], points[-1][0])]
            held = [at(x, min(max(y, 10.0**low), 10.0**high)) for x, y in ends]
            out.append('<line x1="{}" y1="{}" x2="{}" y2="{}" '.format(*held[0], *held[1]) + f'stroke="{colour}"/>')
            label = f"{name} ({p:+.2f})"
        out += ['<circle cx="{}" cy="{}" '.format(*at(x, y)) + f'r="3" fill="{colour}"/>' for x, y in points]
        spot = left + LEFT + number * (PANEL - LEFT) / 2
        out.append(f'<text x="{spot}" y="{top + 29}" font-size="10" fill="{colour}">{label}</text>')
    return "\n".join(out)


def panels_of(axis: Axis, keys: Sequence[str], found: Found) -> list[tuple[str, list[Series]]]:
    """The panels of speed and of memory, titles first, of axes (`keys`, `axis` the first) that grow the same thing."""

    def points(what: str, key: str = axis.key) -> Points:
        return [(row["x"], row[what]) for row in found[key][0]]

    told, size = "tokens/s", "MiB"
    if axis.setting == "completion":
        kinds = {key: ("checkpointing", SAVED) if "check" in key else ("plain", PLAIN) for key in keys}
        speed = [(*kind, points("rate", key)) for key, kind in kinds.items()]
        memory = [(*kind, points("mib", key)) for key, kind in kinds.items()]
    elif axis.setting == "rows":
        told, size = "s to the first step", "MiB of the whole run"
        colours = dict(zip(STARTS, (PLAIN, SAVED), strict=True))
        speed, memory = (
            [(f"{start} start", colour, points(f"{start}_{what}")) for start, colour in colours.items()]
            for what in ("ready", "mib")
        )
    else:
        speed = [("packed", PLAIN, points("rate")), ("own prompt", SAVED, points("own_rate"))]
        memory = [("MiB", PLAIN, points("mib"))]
    return [(f"{axis.setting}: {told}", speed), (f"{axis.setting}: {size}", memory)]


def draw(found: Found) -> str:
    """Two panels for every axis, speed and memory, two axes abreast."""
    axes = {axis.key: axis for axis in AXES}
    panels: list[tuple[str, list[Series]]] = []
    for keys in ([key for key in some if key in found] for some in PANELS):
        if keys:
            panels += panels_of(axes[keys[0]], keys, found)
    width, height = 4 * PANEL, TALL * math.ceil(len(panels) / 4) + 22
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{INK}">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        *(panel(title, series, PANEL * (i % 4), TALL * (i // 4)) for i, (title, series) in enumerate(panels)),
        f'<text x="{LEFT}" y="{height - 8}" font-size="11">logarithmic both ways; in brackets the exponent, '
        "the slope of the fitted line</text>",
    ]
    return "\n".join([*out, "</svg>"]) + "\n"


def write(found: Found, page: Path, plot: Path) -> None:
    """The section between its marks, appended where the page has none, and the plot."""
    old = page.read_text(encoding="utf-8") if page.exists() else ""
    if old.count(MARK) != 2:
        old += (
            f"\n## How rate and memory grow\n\n`python benchmarks/growth.py`: each point a process of its own.\n\n"
            f"{MARK}\n{MARK}\n"
        )
        page.write_text(old, encoding="utf-8")
    put(page, MARK, text_of(found))
    plot.parent.mkdir(parents=True, exist_ok=True)
    plot.write_text(draw(found), encoding="utf-8")

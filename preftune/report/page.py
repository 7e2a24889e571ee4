"""Pages about data and models that are no run: audits, plots of clusters, diagnoses. The same look, and as safe.

A page is plain records: sections of blocks. All text in them may be hostile, and is escaped when the page is written.

    page = Page("Audit", kicker="data", verdict="worse", sentence="214 rows are in both files.", sections=[
        Section("overlap", "Overlap", [Prose("…"), Table(["file", "rows"], [["train.jsonl", 1_000]])]),
    ])
    write_page(Path("audit.html"), page)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

from preftune.errors import PreftuneError
from preftune.report.curves import plain_chart, rounded
from preftune.report.html import render

Tone: TypeAlias = Literal["", "good", "bad", "warn", "quiet"]


@dataclass(frozen=True, slots=True)
class Strip:
    """Where a value and its interval lie among zones. All places are shares (0 to 1) of the strip's width.

    Attributes:
        zones: (start, end, tone), from left to right.
        value, low, high: a mark, and the bar below it.
    """

    zones: Sequence[tuple[float, float, Tone]]
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Cell:
    """A table's cell that is more than its text.

    Attributes:
        text: what it says.
        tone: how it is meant.
        hint: a quiet line below.
        meter: a bar of this share (0 to 1) of the cell's width.
        mono: as code.
        fold: a long text that opens when asked for.
        strip: where its value lies among zones.
    """

    text: object
    tone: Tone = ""
    hint: str = ""
    meter: float | None = None
    mono: bool = False
    fold: bool = False
    strip: Strip | None = None


@dataclass(frozen=True, slots=True)
class Prose:
    """A paragraph; `text in backticks` is code. `tone`: quiet for a remark, warn for a problem."""

    text: str
    tone: Tone = ""
    kind: ClassVar[str] = "prose"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of values or Cells. Numbers are written with thousands separators, and stand right."""

    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""
    kind: ClassVar[str] = "table"


@dataclass(frozen=True, slots=True)
class Charts:
    """Charts side by side: `line_chart`, `bar_chart`, `dot_chart`."""

    charts: Sequence[dict[str, Any]]
    kind: ClassVar[str] = "charts"


@dataclass(frozen=True, slots=True)
class Example:
    """A card of texts. `texts`: (label, text, tone); `chips`: (name, value) of short facts; `beside`: the first text
    stands above, the others side by side below it."""

    title: str
    texts: Sequence[tuple[str, str, Tone]]
    chips: Sequence[tuple[str, object]] = ()
    beside: bool = False


@dataclass(frozen=True, slots=True)
class Examples:
    """Cards. The first `opened` are open, the others folded under their titles."""

    items: Sequence[Example]
    opened: int = 3
    kind: ClassVar[str] = "examples"


@dataclass(frozen=True, slots=True)
class Tokens:
    """Texts token by token. `lines`: a title and its tokens as (text, kind), each in the colour of its kind, or as
    (text, kind, what the pointer shows).

    `legend`: kind → what it means; the kinds are prompt, trained, end, context and special.
    """

    lines: Sequence[tuple[str, Sequence[tuple[str, ...]]]]
    legend: Mapping[str, str]
    kind: ClassVar[str] = "tokens"


Block: TypeAlias = Prose | Table | Charts | Examples | Tokens


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page with a heading. `name`: letters and dashes, for links; `short`: its name in the bar above."""

    name: str
    title: str
    blocks: Sequence[Block]
    short: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """A whole page.

    Attributes:
        verdict: better (fit, fine), worse (not fit), same (with care), unknown.
        sentence: what was found, in one or two sentences.
        why: what the sentence rests on.
        big: up to three (label, number as text) that stand large.
        problems: what went wrong while the page's facts were gathered.
        footer: what the page was made from.
    """

    title: str
    kicker: str = ""
    verdict: Literal["better", "worse", "same", "unknown"] = "unknown"
    sentence: str = ""
    why: str = ""
    big: Sequence[tuple[str, str]] = ()
    sections: Sequence[Section] = ()
    problems: Sequence[str] = ()
    footer: str = "Made by preftune. The page is complete in itself: it loads nothing."
    charts: list[dict[str, Any]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        for section in self.sections:
            for block in section.blocks:
                if isinstance(block, Charts):
                    self.charts.extend(block.charts)
        for index, chart in enumerate(self.charts):
            chart["id"] = f"chart-{index}"


def write_page(path: Path, page: Page) -> Path:
    """Write the page as one HTML file that opens offline, whole or not at all. An existing file is replaced.

    Raises:
        PreftuneError: it can't be written there.
    """
    text = render("data.html.j2", page.charts, page=page, cell=as_cell)
    temporary = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A lone surrogate has no UTF-8 form; it is shown as its code.
        temporary.write_bytes(text.encode("utf-8", errors="backslashreplace"))
        temporary.replace(path)
    except OSError as error:
        raise PreftuneError(f"can't write {path}: {error}; free some space or make the folder writable") from error
    return path


def as_cell(value: object) -> Cell:
    """A value as a cell: numbers are written for people, None as a dash."""
    if isinstance(value, Cell):
        return value
    if value is None:
        return Cell("–", "quiet")
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    if isinstance(value, int):
        return Cell(f"{value:,}")
    if isinstance(value, float):
        return Cell(f"{value:,.4g}")
    return Cell(value)


# ------------------------------------------------------------------------------------------------------- charts


def line_chart(
    title: str, note: str, series: Sequence[tuple[str, Sequence[float], Sequence[float]]], *, xlabel: str, ylabel: str,
    percent: bool = False, log: bool = False, marks: Sequence[tuple[float, str]] = (), wide: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Lines through (x, y). `series`: (name, x, y); `marks`: (x, label) of upright lines."""
    lines = [_series(name, x, y, color) | {"style": "line"} for color, (name, x, y) in enumerate(series)]
    marked = [{"x": x, "label": label} for x, label in marks]
    chart = plain_chart(title, note, "lines", lines, percent=percent, log=log, marks=marked, wide=wide, unit=xlabel)
    return chart | {"xlabel": xlabel, "ylabel": ylabel}


def bar_chart(
    title: str, note: str, series: Sequence[tuple[str, Sequence[float], Sequence[float], float]], *, xlabel: str,
    ylabel: str, zero: bool = False, wide: bool = False, ticks: Sequence[tuple[float, str]] = (),
) -> dict[str, Any]:  # fmt: skip
    """Histograms on one axis. `series`: (name, centres, shares from 0 to 1, width of a bar); `ticks`: (x, label)."""
    bars = [
        _series(name, x, y, color) | {"style": "line", "width": rounded(width)}
        for color, (name, x, y, width) in enumerate(series)
    ]
    chart = plain_chart(title, note, "bars", bars, percent=True, wide=wide)
    chart |= {"ticks": [list(tick) for tick in ticks]} if ticks else {}
    return chart | {"xlabel": xlabel, "ylabel": ylabel, "zero": zero}


def dot_chart(
    title: str, note: str, series: Sequence[tuple[str, Sequence[float], Sequence[float]]], *, xlabel: str, ylabel: str,
    zero: bool = False, wide: bool = False, frame: tuple[float, float, float, float] | None = None,
    shares: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """A cloud of dots for each (name, x, y). `frame`: the ends of both axes (x, x, y, y), where places alone matter:
    no numbers stand on the axes, and a dot says its cloud's name. `shares`: both axes are per cent, from 0 to 100."""
    dots = [_series(name, x, y, color) | {"style": "line"} for color, (name, x, y) in enumerate(series)]
    chart = plain_chart(title, note, "dots", dots, wide=wide, unit=xlabel)
    chart |= ({"frame": list(frame)} if frame else {}) | ({"shares": True} if shares else {})
    return chart | {"xlabel": xlabel, "ylabel": ylabel, "zero": zero}


def _series(name: str, x: Sequence[float], y: Sequence[float], color: int) -> dict[str, Any]:
    return {"name": name, "x": [rounded(v) for v in x], "y": [rounded(v) for v in y], "color": color}

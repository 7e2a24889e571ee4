"""Charts and tables of an audit's page: lengths, differences of length, languages, overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preftune.curation.audit.config import AuditConfig
from preftune.curation.audit.language import NAMES
from preftune.curation.audit.tally import Tally
from preftune.curation.audit.tokenised import TokenLook
from preftune.report.page import Table, bar_chart

BARS = 40
TAIL = 99.5
"""Percentile up to which lengths are drawn: a single long row would leave nothing of the others."""
LANGUAGES = 12


def length_charts(tokens: TokenLook | None, config: AuditConfig, tally: Tally | None = None) -> list[dict[str, Any]]:
    """Histograms of prompts and of answers; in tokens with marks at the limits, or else in words."""
    if tokens is not None:
        lengths = tokens.lengths
        marks = {
            "prompts": (config.tokens.max_prompt_tokens, "max_prompt_tokens"),
            "answers": (config.tokens.max_completion_tokens, "max_completion_tokens"),
        }
        sides = {"prompts": lengths.prompts, "answers": lengths.answers}
    else:
        assert tally is not None
        marks, sides = {}, {"prompts": tally.prompts, "answers": tally.answers}
    unit = "words" if tokens is None else "tokens"
    return [
        _histogram(f"Lengths of {name}", np.asarray(values), unit, marks.get(name))
        for name, values in sides.items()
        if len(values)
    ]


def _histogram(title: str, values: NDArray[Any], unit: str, limit: tuple[int, str] | None = None) -> dict[str, Any]:
    top = max(1.0, float(np.percentile(values, TAIL)))
    edges = _edges(0.0, top + 1)
    counts, _ = np.histogram(values, edges)
    longer = int((values > edges[-1]).sum())
    note = f"{longer:,} longer ones, up to {int(values.max()):,}, are not drawn." if longer else "All are drawn."
    chart = bar_chart(
        title,
        note,
        [(title, _centres(edges), _shares(counts, len(values)), float(edges[1] - edges[0]))],
        xlabel=unit,
        ylabel="share",
    )
    if limit is not None and limit[0] <= edges[-1]:
        chart["marks"] = [{"x": limit[0], "label": limit[1]}]
    return chart


def difference_chart(tally: Tally) -> dict[str, Any]:
    """Better side's length minus the worse one's, of every row that has both."""
    differences = np.asarray(tally.better, dtype=np.float64) - np.asarray(tally.worse, dtype=np.float64)
    reach = max(2.0, float(np.percentile(np.abs(differences), TAIL)))
    edges = _edges(-reach, reach)
    counts, _ = np.histogram(np.clip(differences, edges[0], edges[-1] - 1e-9), edges)
    return bar_chart(
        "Better minus worse",
        "Length of the better answer less that of the worse one. Without bias both sides of 0 are as high. What lies "
        "further out stands in the last bars.",
        [("rows", _centres(edges), _shares(counts, len(differences)), float(edges[1] - edges[0]))],
        xlabel=tally.unit, ylabel="share", zero=True, wide=True,
    )  # fmt: skip


def _edges(low: float, high: float) -> NDArray[np.float64]:
    """Equal bins with whole borders, at most BARS or so."""
    width = max(1, int(np.ceil((high - low) / BARS)))
    start = np.floor(low / width) * width
    edges: NDArray[np.float64] = np.arange(start, high + width, width, dtype=np.float64)
    return edges


def _centres(edges: NDArray[np.float64]) -> list[float]:
    return [float(value) for value in (edges[:-1] + edges[1:]) / 2]


def _shares(counts: NDArray[Any], of: int) -> list[float]:
    return [float(count) / of for count in counts]


def language_chart(tally: Tally) -> dict[str, Any]:
    """Shares of prompts and answers by language; those that can't be told are a bar of their own."""
    total = tally.prompt_languages + tally.answer_languages
    named = [name for name, _ in total.most_common() if name][:LANGUAGES]
    others = len(total) - ("" in total) > LANGUAGES
    series = []
    for title, counts in (("prompts", tally.prompt_languages), ("answers", tally.answer_languages)):
        rows = sum(counts.values())
        if rows:
            rest = rows - counts[""] - sum(counts[name] for name in named)
            shares = [*(counts[name] / rows for name in named), counts[""] / rows, rest / rows]
            shares = shares if others else shares[:-1]
            shift = -0.19 if title == "prompts" else 0.19
            series.append((title, [n + shift for n in range(len(shares))], shares, 0.36))
    labels = [*(NAMES[name].split(" ")[0] for name in named), "can't be told", *(["others"] if others else [])]
    return bar_chart(
        "Languages of prompts and answers", "Of all prompts, and of all answers.", series, xlabel="language",
        ylabel="share", wide=True, ticks=[(float(n), label) for n, label in enumerate(labels)],
    )  # fmt: skip


def overlap_chart(shares: Sequence[float], threshold: float) -> dict[str, Any]:
    """How much of each test row stands in training rows."""
    edges = np.linspace(0.0, 1.0, 21)
    counts, _ = np.histogram(np.asarray(shares), edges)
    chart = bar_chart(
        "Overlap", "Share of a test row's n-grams that stand in training rows; right of the mark it is contaminated.",
        [("test rows", _centres(edges), _shares(counts, len(shares)), 0.05)],
        xlabel="share of n-grams", ylabel="test rows", wide=True,
    )  # fmt: skip
    chart["marks"] = [{"x": threshold, "label": "contaminated"}]
    return chart


def quantile_table(tokens: TokenLook | None, tally: Tally | None = None) -> Table:
    """Quantiles of lengths."""
    if tokens is not None:
        lengths = tokens.lengths
        sides = {"prompts": lengths.prompts, "answers": lengths.answers, "both together": lengths.totals}
    else:
        assert tally is not None
        sides = {"prompts": tally.prompts, "answers": tally.answers}
    points = (5, 25, 50, 75, 95, 99, 100)
    rows: list[list[object]] = []
    for name, values in sides.items():
        if len(values):
            found = np.percentile(np.asarray(values), points)
            rows.append([name, len(values), round(float(np.mean(values)), 1), *(int(value) for value in found)])
    head = ["Tokens of" if tokens is not None else "Words of", "Count", "Mean", "5 %", "25 %", "Median", "75 %", "95 %",
            "99 %", "Longest"]  # fmt: skip
    return Table(head, rows)

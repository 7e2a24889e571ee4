"""The part of a pipeline's report on rounds: sentences, the table's columns, and charts over rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from preftune.intervals import Interval
from preftune.report import preference_words, words
from preftune.report.curves import interval_series, plain_chart
from preftune.report.rounds import SCORE, Duel, Series

NBSP = words.NBSP


@dataclass(frozen=True, slots=True)
class Column:
    """A measured metric of the table."""

    metric: str
    title: str
    percent: bool


@dataclass(slots=True)
class Section:
    """What the template shows of one series."""

    series: Series
    name: str
    sentences: list[str]
    columns: list[Column]
    rows: str
    charts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def has_drawn(self) -> bool:
        return any(one.collected is not None for one in self.series.rounds)


def sections(found: Sequence[Series]) -> list[Section]:
    """One section per series; charts have ids of their own."""
    out = []
    for index, series in enumerate(found):
        name = "" if series.stem == "round" else series.stem
        section = Section(series, name, sentences(series), _columns(series), words.ROWS.get(series.split, series.split))
        section.charts = _charts(series, section.columns)
        for place, chart in enumerate(section.charts):
            chart["id"] = f"rounds-{index}-{place}"
        out.append(section)
    return out


def sentences(series: Series) -> list[str]:
    """What the last round reached, whether any round was worse than the one before, and what is still to come."""
    out = []
    ended = series.ended
    prompts = {"test": "held-out prompts", "validation": "validation prompts"}.get(series.split, "prompts")
    if ended:
        last = ended[-1]
        if last.against_first is not None:
            out.append(f"Round {last.number} {_against(last.against_first, 'the first model', prompts)}")
            if last.against_previous is not None:
                out[-1] += f"; it {_against(last.against_previous, f'round {last.number - 1}', '')}"
            out[-1] += "."
        for one in ended[:-1]:
            if one.against_previous is not None and one.against_previous.verdict == "worse":
                said = _against(one.against_previous, f"round {one.number - 1}", "")
                out.append(f"Round {one.number} {said}.")
    elif series.rounds:
        out.append("No round has ended yet, so there is nothing to compare.")
    waiting = [one for one in series.rounds if not one.metrics and ended]
    if waiting:
        said = ", ".join(f"round {one.number} ({one.status})" for one in waiting)
        out.append(f"Without a result: {said}.")
    return out


def _against(duel: Duel, whom: str, prompts: str) -> str:
    """`beats the first model on 71 % (66 to 76) of 300 held-out prompts`; without `prompts` their number is known."""
    rows = f"{duel.rate.n:,}{NBSP}{prompts}" if prompts else ""
    share = words.number(duel.rate.value, percent=True)
    bounds = f" ({words.span(duel.rate, percent=True)})" if duel.rate.is_bounded else ""
    if duel.wins + duel.losses == 0:
        return f"scores the same as {whom} on every one of {rows}" if rows else f"scores the same as {whom} everywhere"
    if duel.verdict == "better":
        return f"beats {whom} on {share}{bounds}{' of ' + rows if rows else ''}"
    if duel.verdict == "worse":
        return f"loses to {whom}: it wins {share}{bounds}{' of ' + rows if rows else ''}"
    return f"does not differ measurably from {whom}: it wins {share}{bounds}{' of ' + rows if rows else ''}"


def _columns(series: Series) -> list[Column]:
    """Score first, then other rewards, lengths and the loss; a lone reward that is the score itself is left out."""
    tables: list[Mapping[str, Interval]] = [series.first, *(one.metrics for one in series.ended)]
    names = list(dict.fromkeys(name for table in tables for name in table))
    rewards = [name for name in names if name.startswith("reward/") and name != SCORE]
    same = [n for n in rewards if all(t.get(n) == t.get(SCORE) for t in tables)]
    wanted = [n for n in (SCORE, *rewards, *(m for m in names if m.startswith("length/")), "nll") if n in names]
    return [Column(n, _title(series, n), _percent(series, n, tables)) for n in wanted if n not in same]


def _title(series: Series, metric: str) -> str:
    if metric == SCORE:
        return "Mean score"
    return words.title(metric) if series.run is None else preference_words.title(series.run, metric)


def _percent(series: Series, metric: str, tables: Sequence[Mapping[str, Interval]]) -> bool:
    found = [table[metric] for table in tables if metric in table]
    return series.run is not None and metric != SCORE and words.is_share(series.run, metric, found)


def _charts(series: Series, columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Win rates, then each column's metric, over rounds; 0 is the first model. None before a round has ended."""
    ended = series.ended
    if not ended:
        return []
    out = []
    lines: list[tuple[str, list[tuple[int, Interval]]]] = [
        ("against the first model", [(r.number, r.against_first.rate) for r in ended if r.against_first]),
        ("against the round before", [(r.number, r.against_previous.rate) for r in ended if r.against_previous]),
    ]
    drawn = [interval_series(name, points, color) for color, (name, points) in enumerate(lines) if points]
    if drawn:
        note = f"Share of prompts on which the round's answer has the higher score, ties ½, with 95{NBSP}% intervals."
        out.append(
            plain_chart("Win rate", note, "points", drawn, percent=True, wide=True, unit="round", level=0.5)
        )  # fmt: skip
    for column in columns:
        points = [(0, series.first[column.metric])] if column.metric in series.first else []
        points += [(r.number, r.metrics[column.metric]) for r in ended if column.metric in r.metrics]
        if len({interval.value for _, interval in points}) > 1:
            note = f"After each round, with 95{NBSP}% intervals; 0 is the first model."
            line = interval_series(column.title, points, 0)
            out.append(plain_chart(column.title, note, "points", [line], percent=column.percent, unit="round"))
    return out

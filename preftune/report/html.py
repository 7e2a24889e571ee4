"""`write_report`: one HTML file that opens offline, made from the files of a run folder alone.

Everything in a run folder may be hostile (a model's output, a data row, a recipe from somewhere): text goes
through Jinja's autoescape or into a JSON block without `<`, and the page's own policy (CSP) lets the browser run
no script but the two whose hashes it names, and load nothing at all.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import plotly.offline
from markupsafe import Markup, escape

from preftune.errors import PreftuneError
from preftune.report import (
    competition_page,
    cycle,
    gmpo,
    preference_page,
    preference_words,
    round_page,
    samples,
    verdicts,
    words,
)
from preftune.report.answers import read_whole
from preftune.report.benchmarks import benchmarks, is_benchmark
from preftune.report.curves import charts, constant_metrics, joined_charts
from preftune.report.notes import notes_of
from preftune.report.read import Run, has_run, read_stages
from preftune.report.rounds import all_series
from preftune.report.steps import read_step

TEMPLATES = Path(__file__).parent / "templates"


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run's or a pipeline's folder.

    Args:
        folder: a run folder (see docs/architecture.md), finished or not, or a pipeline's folder.

    Returns:
        The path of the report.

    Raises:
        UsageError: the folder holds no run.
        PreftuneError: the report can't be written there.
    """
    stages = read_stages(folder)
    page = _run_page(read_whole(folder)) if stages is None else _pipeline_page(folder, *stages)
    path = folder / "report.html"
    temporary = folder / "report.html.part"
    try:
        # A lone surrogate (from broken model output) has no UTF-8 form; it is shown as its code.
        temporary.write_bytes(page.encode("utf-8", errors="backslashreplace"))
        temporary.replace(path)
    except OSError as error:
        raise PreftuneError(f"can't write {path}: {error}; free some space or make the folder writable") from error
    return path


def _run_page(run: Run) -> str:
    rows = verdicts.compare(run)
    verdict, sentence, why = verdicts.headline(run, rows)
    seconds = (run.summary or {}).get("seconds")
    pref, critic, contest = preference_page.section(run), gmpo.section(run), competition_page.section(run)
    # The headline's own metric keeps its curve and its row.
    elsewhere = (contest.metrics if contest else frozenset()) - {row.metric for row in rows[:1]}
    curves = charts(run, elsewhere)
    return render(
        "report.html.j2",
        curves + [chart for part in (pref, critic, contest) if part for chart in part.charts],
        curves=curves,
        pref=pref,
        critic=critic,
        contest=contest,
        elsewhere=elsewhere,
        run=run,
        rows=rows,
        main=rows[0] if rows else None,
        scale=_scale(rows[0]) if rows else None,
        verdict=verdict,
        sentence=sentence,
        why=why,
        reward=verdicts.trained_reward(run, rows),
        second=preference_words.second(rows),
        over_time=samples.over_time(run),
        # GMPO's own section has the groups.
        in_training=[] if critic and critic.groups else samples.in_training(run),
        seconds=_shares(seconds) if isinstance(seconds, dict) else [],
        constant=constant_metrics(run),
        manifest=run.manifest,
    )


def _pipeline_page(folder: Path, title: str, names: list[str], status: str) -> str:
    stages: list[dict[str, Any]] = []
    problems: list[str] = []
    for name in names:
        path = folder / name
        if path.resolve().parent != folder.resolve():
            problems.append(f"pipeline.json names the stage {name!r}, which is no folder directly inside {folder.name}")
            continue
        if (step := read_step(path)) is not None:
            link = f"{quote(name)}/report.html"
            stages.append({"name": name, "run": None, "status": "finished", "step": step, "link": link})
            continue
        if not has_run(path):
            begun = path.is_dir() and any(path.iterdir())
            stages.append({"name": name, "run": None, "status": "unfinished" if begun else "not started"})
            continue
        run = read_whole(path)
        rows = verdicts.compare(run)
        verdict, sentence, _ = verdicts.headline(run, rows)
        stages.append({"name": name, "run": run, "status": run.status, "verdict": verdict, "sentence": sentence})
        stages[-1] |= {"rows": rows, "link": f"{quote(name)}/report.html"}
    started = [(stage["name"], stage["run"]) for stage in stages if stage["run"] is not None]
    journey = _journey([stage for stage in stages if stage["run"] is not None])
    parts = round_page.sections(all_series(folder, names, dict(started)))
    contest = competition_page.joined_section(started)
    both_ways = cycle.section(started)
    elsewhere = (contest.metrics if contest else frozenset()) - {line["row"].metric for line in journey[:1]}
    curves = joined_charts(started, elsewhere)
    return render(
        "pipeline.html.j2",
        curves + [chart for part in (*parts, contest, both_ways) if part for chart in part.charts],
        curves=curves,
        both_ways=both_ways,
        benchmarks=benchmarks(started),
        contest=contest,
        elsewhere=elsewhere,
        parts=parts,
        name=title,
        status=status,
        stages=stages,
        journey=journey,
        journey_sentence=_journey_sentence(journey, [name for name, _ in started]),
        problems=problems,
    )


def _journey(stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every metric that was measured after a stage: its first value, and the value after each stage.

    The last stage's own headline metric comes first: that is what the pipeline was for.
    """
    out: dict[tuple[str, str], dict[str, Any]] = {}
    for stage in reversed(stages):
        for row in stage["rows"]:
            key = (row.split, row.metric)
            if key in out:
                continue
            found = [[r for r in other["rows"] if (r.split, r.metric) == key] for other in stages]
            cells = [rows[0].after if rows else None for rows in found]
            start = next((name["name"] for name, rows in zip(stages, found, strict=True) if rows), "")
            before = next((rows[0].before for rows in found if rows), None)
            if any(cells):
                reward = verdicts.trained_reward(stages[-1]["run"], stages[-1]["rows"])
                out[key] = {"row": row, "start": start, "before": before, "cells": cells, "reward": row is reward}
    return list(out.values())


def _journey_sentence(journey: list[dict[str, Any]], names: list[str]) -> str:
    if not journey:
        return ""
    first = journey[0]["row"]
    # The headline's metric, the score that the last stage was trained on where that is another one, and benchmarks.
    lines = [
        line
        for line in journey
        if line is journey[0]
        or (line["reward"] and line["row"].split == first.split)
        or is_benchmark(line["row"].split, line["row"].metric)
    ]
    return " ".join(_journey_line(line, names) for line in lines)


def _journey_line(line: dict[str, Any], names: list[str]) -> str:
    row = line["row"]
    places = [f"before {line['start']}", *(f"after {name}" for name in names)]
    said = [
        f"{words.number(cell.value, percent=row.percent)} {place}"
        for place, cell in zip(places, [line["before"], *line["cells"]], strict=True)
        if cell is not None
    ]
    title = "The trained reward (mean score)" if line["reward"] else row.title
    return f"{title} on {words.rows_of(row.split)} was {', '.join(said)}."


def _scale(row: verdicts.Comparison) -> dict[str, Any]:
    """Positions, in percent of the axis, of the dot-and-whisker picture. Shares get the whole axis 0…100 %."""
    found = [interval for interval in (row.before, row.after) if interval]
    ends = [v for i in found for v in ((i.low, i.high) if i.is_bounded else (i.value, i.value))]
    whole = row.percent or row.metric == "rewards/auc"
    low, high = (0.0, 1.0) if whole else (min(ends), max(ends))
    if not whole:
        pad = (high - low) * 0.12 or max(abs(high), 1.0) * 0.1
        low, high = low - pad, high + pad

    def at(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    bars = []
    for label, interval in (("before", row.before), ("after", row.after)):
        if interval is not None:
            left, right = (at(interval.low), at(interval.high)) if interval.is_bounded else (at(interval.value),) * 2
            text = words.number(interval.value, percent=row.percent)
            bars.append({"label": label, "left": left, "width": right - left, "dot": at(interval.value), "text": text})
    ticks = [low + (high - low) * share for share in (0, 0.25, 0.5, 0.75, 1)]
    labels = [f"{t * 100:.0f}{words.NBSP}%" if row.percent else words.number(t, digits=3) for t in ticks]
    return {"bars": bars, "ticks": [{"at": at(t), "text": text} for t, text in zip(ticks, labels, strict=True)]}


def _shares(seconds: dict[str, Any]) -> list[dict[str, Any]]:
    """Seconds per stage, longest first. `step` is the whole of the training steps, so its unnamed rest is "other"."""
    known = {name: float(value) for name, value in seconds.items() if isinstance(value, int | float)}
    whole = known.pop("step", None)
    if whole is not None:
        known["other"] = max(0.0, whole - sum(value for name, value in known.items() if name != "eval"))
    total = sum(known.values()) or 1.0
    ordered = sorted(known.items(), key=lambda item: -item[1])
    return [{"name": n, "text": words.duration(v), "percent": round(100 * v / total, 1)} for n, v in ordered]


def render(template: str, drawn: list[dict[str, Any]], **values: Any) -> str:
    """A page from a template of this package: `drawn` are its charts, `values` what the template names."""
    script = Markup(_own_script())
    return (
        _environment()
        .get_template(template)
        .render(
            charts=drawn,
            charts_json=Markup(_json_block(drawn)),
            plotly=Markup(_plotly()[0]) if drawn else None,
            script=script,
            script_hash=_sha256(script),
            plotly_hash=_plotly()[1],
            **values,
        )
    )


@cache
def _own_script() -> str:
    return (TEMPLATES / "report.js").read_text(encoding="utf-8")


@cache
def _plotly() -> tuple[str, str]:
    """Plotly's script, gzipped (5 MB become 2) and in base64, and the hash of its plain text for the page's policy."""
    source = plotly.offline.get_plotlyjs()
    packed = gzip.compress(source.encode("utf-8"), compresslevel=6, mtime=0)
    return base64.b64encode(packed).decode("ascii"), _sha256(source)


def _sha256(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _json_block(value: Any) -> str:
    """JSON that can stand inside <script>: no `<`, `>` or `&`, so no text in it can end the block."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _code(text: object) -> Markup:
    """Text in which `names in backticks` become code; all of it escaped."""
    shown = re.sub(r"(?<=\d) %", f"{words.NBSP}%", _visible(text))
    parts = shown.split("`")
    if len(parts) % 2 == 0:  # an odd number of backticks pairs nothing
        return escape(shown)
    return Markup("").join(Markup("<code>{}</code>").format(p) if i % 2 else escape(p) for i, p in enumerate(parts))


CONTROLS: dict[int, int | str] = {127: 0x2421}
CONTROLS |= {code: 0x2400 + code for code in range(32) if code not in (9, 10, 13)}
CONTROLS |= {code: f"\\u{code:04x}" for code in (*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def _visible(text: object) -> str:
    """Text with control characters shown as symbols (␀ …), as HTML has no place for them, and those that turn the
    direction of writing as their codes, as they would reorder what stands around them."""
    return str(text).translate(CONTROLS)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else _visible(value),
    )
    environment.globals["notes_of"] = notes_of
    environment.filters |= {"num": words.number, "span": words.span, "code": _code}
    return environment

"""The report of `preftune diagnose`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from preftune.curation.diagnose.config import DiagnoseConfig
from preftune.curation.diagnose.measure import Measure, Remedy, Signal, Status, Worst, between, told
from preftune.curation.diagnose.verdict import SIGNALS, Answer, status_of
from preftune.report.page import Block, Cell, Example, Examples, Page, Prose, Section, Strip, Table, Tone

if TYPE_CHECKING:
    from preftune.curation.diagnose.run import Diagnosis

TONES: dict[Status, Tone] = {"fine": "good", "look": "warn", "problem": "bad", "unknown": "quiet"}
REMEDIES: dict[Remedy, str] = {
    "": "", "preference": "preference tuning", "sft": "SFT first", "elsewhere": "not by preference tuning",
}  # fmt: skip
_ANSWERS: dict[Answer, str] = {
    "yes": "Preference tuning is needed", "sft first": "SFT first", "not by tuning": "Not by preference tuning",
    "perhaps": "Look before you tune", "no": "No need for preference tuning",
}  # fmt: skip
_TONE_OF_PAGE: dict[Answer, Literal["better", "worse", "same", "unknown"]] = {
    "yes": "worse", "sft first": "worse", "not by tuning": "worse", "perhaps": "same", "no": "better",
}  # fmt: skip
_ABOUT: dict[Signal, str] = {
    "safety": "How often a text classifier fires on the model's answers.",
    "spread": "How different several answers to one prompt are, and how likely the model finds its own answers and "
    "those that the data hold up as good. Preference tuning moves probability among answers "
    "that the model gives anyway.",
    "closeness": "Is an answer about what was asked? It is compared in an encoder with its own context and with the "
    "contexts of all other prompts; the latter is what chance gives on this data.",
    "form": "What a reader sees before he reads.",
    "use": "Good benchmarks, but bad use? The score of the answers to these prompts beside the benchmark's.",
}
CUT = 4000
"""Characters of a text that are shown."""


def make_page(config: DiagnoseConfig, result: Diagnosis) -> Page:
    """The whole page."""
    verdict, draw = result.verdict, config.sampling
    count = {status: sum(one.status == status for one in result.measures) for status in TONES}
    sections = [
        Section("signals", "What was measured, beside what is normal", [_table(result.measures), _legend()], "Signals"),
        Section("mend", "What can be mended, and how", _mend(result.measures), "Mend"),
    ]
    for signal, title in SIGNALS.items():
        mine = [one for one in result.measures if one.signal == signal]
        sections.append(Section(signal, title, _signal(signal, mine), title.split()[0]))
    if verdict.next:
        rows = [[Cell(command, mono=True), what] for command, what in verdict.next]
        sections.append(Section("next", "Next", [Table(["Command", "For"], rows)]))
    return Page(
        _ANSWERS[verdict.answer],
        kicker=f"diagnosis of {config.model.path} on {', '.join(source.path for source in config.data)}",
        verdict=_TONE_OF_PAGE[verdict.answer], sentence=verdict.sentence, why=verdict.why,
        big=[
            ("answers", f"{result.answers:,}"), ("problems", str(count["problem"])),
            ("to look at", str(count["look"])),
        ],
        sections=sections, problems=result.warnings,
        footer=f"{result.prompts:,} prompts, {config.answers} answers each, temperature {draw.temperature:g}, "
        f"{draw.max_tokens:,} tokens at most, seed {config.seed}. Made by preftune. The page is complete in itself: it "
        "loads nothing.",
    )  # fmt: skip


def _table(measures: Sequence[Measure]) -> Table:
    rows: list[list[object]] = []
    for signal, title in SIGNALS.items():
        for one in (one for one in measures if one.signal == signal):
            value = Cell("not measured", "quiet")
            if one.interval is not None:
                hint = between(one.interval, one.unit)
                value = Cell(told(one.interval.value, one.unit), hint=hint, strip=_strip(one))
            normal = " · ".join(f"{item.text} ({item.source})" for item in one.normal)
            rows.append(
                [
                    Cell("–" if one.status == "unknown" else one.status, TONES[one.status]),
                    Cell(one.title, hint=title),
                    value,
                    Cell(normal or "–", "quiet"),
                    REMEDIES[one.remedy] or "–",
                ]
            )
    return Table(["Status", "Measure", "Measured", "Normal (who says so)", "What mends it"], rows)


def _strip(measure: Measure) -> Strip | None:
    """The value and its interval on the reference range."""
    scale, interval = measure.scale, measure.interval
    if scale is None or interval is None:
        return None
    zones: list[tuple[float, float, Tone]] = []
    start = 0.0
    for to, status in scale.zones:
        end = max(start, scale.place(to))
        zones.append((start, end, TONES[status]))
        start = end
    ends = (interval.low, interval.high) if interval.is_bounded else (interval.value, interval.value)
    return Strip(zones, scale.place(interval.value), scale.place(ends[0]), scale.place(ends[1]))


def _legend() -> Prose:
    return Prose(
        "The mark is the value, the thin bar its interval; the ground is green where it is normal, yellow where one "
        "should look, red where it is a problem. Shares with limits of a few per cent are drawn by their square root. "
        "Problem: the whole interval lies beyond the limit. Look: the value does. Intervals are of 95 % and count "
        "prompts, not answers: answers to one prompt are alike. Who says what is normal: this data was computed here "
        "(chance, the data's own good answers); literature is a published figure of other models on other data; rule "
        'of thumb is ours, and `--limits.NAME "[look, problem]"` changes those of shares.',
        "quiet",
    )


def _mend(measures: Sequence[Measure]) -> list[Block]:
    wrong = [one for one in measures if one.is_wrong]
    if not wrong:
        return [Prose("Nothing that was measured has to be mended.")]
    rows: list[list[object]] = []
    order: list[Remedy] = ["preference", "sft", "elsewhere", ""]
    for one in sorted(wrong, key=lambda one: (one.status != "problem", order.index(one.remedy))):
        rows.append(
            [
                Cell(one.status, TONES[one.status]),
                one.title,
                Cell(REMEDIES[one.remedy] or "–"),
                one.todo.replace("`", ""),
            ]
        )
    return [Table(["Status", "What is wrong", "Preference tuning?", "What to do"], rows)]


def _signal(signal: Signal, measures: Sequence[Measure]) -> list[Block]:
    status = status_of(measures, signal)
    out: list[Block] = [Prose(_ABOUT[signal], "quiet")]
    for one in measures:
        value = f" {told(one.interval.value, one.unit)} ({between(one.interval, one.unit)})." if one.interval else ""
        todo = f" {one.todo}" if one.is_wrong else ""
        tone: Tone = "warn" if one.is_wrong else "" if one.interval is not None else "quiet"
        out.append(Prose(f"{one.title}:{value} {one.says}{todo}".strip(), tone))
        if one.worst and (one.is_wrong or (status != "unknown" and one.interval is not None and one.worst)):
            out.append(Examples([_example(one, item) for item in one.worst], opened=1 if one.is_wrong else 0))
    return out


def _example(measure: Measure, item: Worst) -> Example:
    texts: list[tuple[str, str, Tone]] = [
        ("prompt", _cut(item.prompt), ""),
        ("answer", _cut(item.answer) or "(empty)", "bad" if measure.is_wrong else ""),
    ]
    if item.beside is not None:
        texts.append((item.beside[0], _cut(item.beside[1]), "good"))
    return Example(f"{measure.title} · {item.where}", texts, item.chips)


def _cut(text: str) -> str:
    return (
        text if len(text) <= CUT else f"{text[: CUT // 2]}\n[… {len(text) - CUT:,} characters …]\n{text[-CUT // 2 :]}"
    )

"""The report of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from preftune.config import BenchmarkConfig
from preftune.evaluate.config import EvaluateConfig
from preftune.evaluate.table import Column, Measured
from preftune.intervals import Interval
from preftune.report.page import Block, Cell, Charts, Example, Examples, Page, Prose, Section, Table, Tone, dot_chart
from preftune.report.words import NBSP, moved, number, signed, span, title
from preftune.tasks.benchmark import Followed, Outcome
from preftune.tasks.rows import LETTERS, ChoiceRow, InstructionRow, TaskRow

EXAMPLES = 4
"""Rows shown of each task."""
LONGEST = 1500
"""Characters of a text in an example."""
LETTER = "†"


def page_of(config: EvaluateConfig, columns: Sequence[Column]) -> Page:
    """The page: the table, each task's numbers, the constraints one by one, rows on which models differ."""
    sections = [Section("table", "All models", list(_table(config, columns)), "Table")]
    sections += [
        Section(f"task-{n}", _task_title(c.config), list(_task(c)), _short(c.config)) for n, c in enumerate(columns)
    ]
    unanswered = list(_unanswered(columns))
    if unanswered:
        sections.append(Section("unanswered", "Rows without an answer", unanswered, "Unanswered"))
    best = _best(columns)
    return Page(
        f"{len(config.models)} models on {len(columns)} tasks" if len(config.models) > 1 else config.models[0].title,
        kicker="evaluation", verdict="same" if unanswered else "unknown", sentence=best, why=_why(config, columns),
        big=[(_short(column.config), _large(column)) for column in columns][:3],
        sections=sections,
    )  # fmt: skip


def _large(column: Column) -> str:
    """A task in one number: of one model its share, of two both, of more the range, as the first one is no result."""
    shares = [_share(cell, column.metric) for cell in column.cells]
    if len(shares) <= 2:
        return " → ".join(shares)
    known = sorted(cell.metrics[column.metric].value for cell in column.cells if column.metric in cell.metrics)
    return f"{number(known[0], percent=True)} to {number(known[-1], percent=True)}" if known else "–"


def _best(columns: Sequence[Column]) -> str:
    """Who comes first on each task, and whether chance explains it."""
    parts = []
    for column in columns:
        name, metric = _short(column.config), column.metric
        known = [n for n, cell in enumerate(column.cells) if metric in cell.metrics]
        ranked = sorted(known, key=lambda n: -column.cells[n].metrics[metric].value)
        told = [f"{column.cells[n].model} ({_share(column.cells[n], metric)})" for n in ranked[:2]]
        if len(told) < 2:
            parts.append(f"{name}: {told[0]}." if told else f"{name}: nobody answered a row.")
            continue
        lead = column.ahead(ranked[0], ranked[1])
        if lead is None or lead.value == 0.0:
            parts.append(f"{name}: {told[0]} and {told[1]} are level.")
        elif moved(lead):
            parts.append(f"{name}: {told[0]} is ahead of {told[1]}.")
        else:
            parts.append(f"{name}: {told[0]} is not measurably ahead of {told[1]}.")
    return " ".join(parts)


def _why(config: EvaluateConfig, columns: Sequence[Column]) -> str:
    rows = ", ".join(f"{len(column.rows):,}{NBSP}rows of {column.config.title}" for column in columns)
    drawn = "greedy" if config.temperature == 0 else f"at temperature {config.temperature:g}"
    text = f"{rows}; answers {drawn}. Numbers in small type are 95{NBSP}% intervals."
    if len(config.models) > 1:
        text += f" Differences are against {config.models[0].title}, over the rows that both answered."
    return text


def _table(config: EvaluateConfig, columns: Sequence[Column]) -> Iterator[Block]:
    """The talk's table: a row for each model, a column for each task."""
    head = ["Model"]
    for column in columns:
        head += [_short(column.config)] + ([f"against {config.models[0].title}"] if len(config.models) > 1 else [])
    rows: list[list[object]] = []
    for number_, model in enumerate(config.models):
        row: list[object] = [model.title]
        for column in columns:
            cell = column.cells[number_]
            row.append(_share_cell(cell, column.metric, mark=LETTER if cell.by_letter else ""))
            if len(config.models) > 1:
                row.append(difference_cell(cell.differences.get(column.metric)) if number_ else Cell("–", "quiet"))
        rows.append(row)
    yield Table(head, rows, note=_notes(columns))
    dots = _dots(columns)
    if dots:
        yield dots


def _notes(columns: Sequence[Column]) -> str:
    parts = []
    for column in columns:
        if column.config.task == "instructions":
            parts.append(f"{_short(column.config)}: share of prompts of which every constraint is followed, strictly.")
        else:
            how = {
                "tokens": "log-prob per token", "characters": "log-prob per character", "bytes": "log-prob per byte",
                "none": "log-prob", "pmi": f"log-prob less that behind {column.config.unconditional!r}",
            }[column.config.normalize]  # fmt: skip
            if not all(cell.by_letter for cell in column.cells):
                parts.append(f"{_short(column.config)}: share of rows whose right choice has the highest {how}.")
            if any(cell.by_letter for cell in column.cells):
                told = f"{LETTER} was shown the choices of {column.config.title} and asked for a letter"
                parts.append(f"{told}, which is another task: such numbers compare with each other alone.")
    return " ".join(parts)


def _dots(columns: Sequence[Column]) -> Charts | None:
    """Instructions against choices, a dot for each model, where both were measured."""
    first = next((c for c in columns if c.config.task == "instructions"), None)
    second = next((c for c in columns if c.config.task == "choices"), None)
    if first is None or second is None or len(first.cells) < 2:
        return None
    series = [
        (one.model, [one.metrics[first.metric].value], [other.metrics[second.metric].value])
        for one, other in zip(first.cells, second.cells, strict=True)
        if first.metric in one.metrics and second.metric in other.metrics
    ]
    if not series:
        return None
    x, y = _short(first.config), _short(second.config)
    return Charts([dot_chart(f"{x} and {y.lower()}", "A dot for each model.", series, xlabel=x, ylabel=y, shares=True)])


def _task(column: Column) -> Iterator[Block]:
    metrics = list(dict.fromkeys(name for cell in column.cells for name in cell.metrics))
    if not metrics:
        yield Prose("No model has answered a row.", "warn")
        return
    rows = [[cell.model, *(_number_cell(cell, name) for name in metrics)] for cell in column.cells]
    yield Table(["Model", *map(title, metrics)], rows)
    kinds = list(dict.fromkeys(name for cell in column.cells for name in cell.kinds))
    if kinds:
        head = ["Constraint", "Times", *(cell.model for cell in column.cells)]
        listed: list[list[object]] = []
        for name in kinds:
            cells: list[object] = []
            for cell in column.cells:
                found = cell.kinds.get(name)
                if found is None:
                    cells.append(Cell("–", "quiet"))
                    continue
                strict, loose = found
                hint = "" if loose.value == strict.value else f"loosely {number(loose.value, percent=True)}"
                cells.append(Cell(number(strict.value, percent=True), hint=hint, meter=strict.value))
            times = max((cell.kinds[name][0].n for cell in column.cells if name in cell.kinds), default=0)
            listed.append([Cell(name, mono=True), times, *cells])
        yield Table(head, listed, note="Share of the constraint's occurrences that were followed, strictly.")
    shown = list(_examples(column))
    if shown:
        told = "Rows on which the models differ, in file order" if len(column.cells) > 1 else "The first rows"
        yield Prose(f"{told}; answers are shown as they came, cut at {LONGEST:,} characters.", "quiet")
        yield Examples(shown, opened=1)


def _examples(column: Column) -> Iterator[Example]:
    count = 0
    for n, row in enumerate(column.rows):
        found = [outcomes[n] for outcomes in column.outcomes]
        marks = {_mark(one) for one in found if one is not None}
        if not marks or (len(column.cells) > 1 and len(marks) < 2):
            continue
        prompt = row.prompt if isinstance(row.prompt, str) else row.prompt[-1].content
        texts: list[tuple[str, str, Tone]] = [("prompt", _cut(prompt), "")]
        if isinstance(row, ChoiceRow):
            texts.append(("right", f"{LETTERS[row.answer]}. {row.choices[row.answer]}", "quiet"))
        for cell, one in zip(column.cells, found, strict=True):
            if one is not None:
                texts.append((cell.model, _answer(row, one), "good" if _mark(one) == 1.0 else "bad"))
        yield Example(row.where, texts)
        count += 1
        if count == EXAMPLES:
            return


def _mark(one: Outcome) -> float:
    return float(all(one.strict)) if isinstance(one, Followed) else one.right


def _answer(row: TaskRow, one: Outcome) -> str:
    if isinstance(row, InstructionRow) and isinstance(one, Followed):
        missed = [str(c) for c, kept in zip(row.constraints, one.strict, strict=True) if not kept]
        text = _cut(one.text) or "[nothing]"
        return f"{text}\n\nmissed: {'; '.join(missed)}" if missed else text
    assert isinstance(row, ChoiceRow) and not isinstance(one, Followed)
    if one.picked is None:
        return f"no letter in: {_cut(one.text)}"
    listed = [f"{LETTERS[n]} {value:.3f}" for n, value in enumerate(one.values)]
    taken = f"{LETTERS[one.picked]}. {row.choices[one.picked]}"
    return f"{taken}\n{', '.join(listed)}" if listed else taken


def _unanswered(columns: Sequence[Column]) -> Iterator[Block]:
    rows: list[list[object]] = []
    for column in columns:
        for cell in column.cells:
            if cell.unanswered:
                where, why = cell.unanswered[0]
                rows.append([cell.model, column.config.title, len(cell.unanswered), Cell(f"{where}: {why}", fold=True)])
    if rows:
        yield Prose("They are in no number above. `--resume` asks again.", "warn")
        yield Table(["Model", "Task", "Rows", "The first of them"], rows)


# ------------------------------------------------------------------------------------------------------- words


def _task_title(config: BenchmarkConfig) -> str:
    name = "Instruction following" if config.task == "instructions" else "Multiple choice"
    return name if config.title == config.task else f"{name}: {config.title}"


def _short(config: BenchmarkConfig) -> str:
    if config.title != config.task:
        return config.title
    return "Instruction following" if config.task == "instructions" else "Common sense"


def _share(cell: Measured, metric: str) -> str:
    found = cell.metrics.get(metric)
    return "–" if found is None else number(found.value, percent=True)


def _share_cell(cell: Measured, metric: str, mark: str = "") -> Cell:
    found = cell.metrics.get(metric)
    if found is None:
        return Cell("–", "quiet")
    return Cell(f"{number(found.value, percent=True)}{mark}", hint=span(found, percent=True), meter=found.value)


def _number_cell(cell: Measured, metric: str) -> Cell:
    found = cell.metrics.get(metric)
    if found is None:
        return Cell("–", "quiet")
    percent = metric not in ("length/mean", "choices/margin")
    return Cell(number(found.value, percent=percent), hint=span(found, percent=percent))


def difference_cell(difference: Interval | None) -> Cell:
    """A difference in points, green or red where chance does not explain it."""
    if difference is None:
        return Cell("–", "quiet")
    tone: Tone = ("good" if difference.value > 0 else "bad") if moved(difference) else ""
    return Cell(f"{signed(difference.value * 100, '.1f')}{NBSP}points", tone, hint=span(difference, percent=True))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"

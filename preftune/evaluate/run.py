"""Several models on the same tasks: asked, written down, set side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from preftune import __version__
from preftune.evaluate.answers import REPORT, SUMMARY, Answers, write_json
from preftune.evaluate.config import EvaluateConfig, EvaluatedModel
from preftune.evaluate.models import Todo, ask_local, ask_remote, procedure
from preftune.evaluate.page import page_of
from preftune.evaluate.table import Column, table
from preftune.report.page import write_page
from preftune.tasks.benchmark import Outcome
from preftune.tasks.rows import read_task
from preftune.train.guard import only_one
from preftune.train.progress import Progress


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What an evaluation found.

    Attributes:
        columns: the table, a column for each task.
        notes: rows that were left out, and why.
    """

    folder: Path
    columns: tuple[Column, ...]
    notes: tuple[str, ...]

    @property
    def report(self) -> Path:
        return self.folder / REPORT


def evaluate(config: EvaluateConfig, output: Path, *, resume: bool = False, base_dir: Path | None = None) -> Evaluated:
    """Measure every model on every task.

    Args:
        output: a new folder: settings.json, answers.jsonl (row by row), summary.json, report.html.
        resume: go on in a folder that was begun: nothing that is there is asked for again, and further models and
            tasks may be named.
        base_dir: where relative paths of the tasks are looked up.

    Raises:
        UsageError: the folder holds something else. DataError: rows that can't be read or do not fit a model.
        ModelError, SamplingError: a model can't be loaded or asked; what was answered before is kept.
    """
    tasks = {task.title: read_task(task, base_dir) for task in config.tasks}
    with Answers(output, config, tasks, resume=resume) as answers, only_one(output), Progress("evaluate") as progress:
        notes = [f"{title}: {note}" for title, rows in tasks.items() for note in rows.notes]
        for note in notes:
            progress.say(note)
        for model in config.models:
            todo = [
                Todo(procedure(model, task), tasks[task.title], missing)
                for task in config.tasks
                if (missing := answers.missing(model.title, task.title))
            ]
            if todo:
                _ask(model, config, todo, answers, progress)
        columns = table(config, {title: rows.rows for title, rows in tasks.items()}, answers)
    summary = {
        "command": "preftune evaluate", "preftune": __version__,
        "settings": config.model_dump(mode="json", by_alias=True), "notes": notes,
        "tasks": {
            column.config.title: {
                "metric": column.metric, "rows": len(column.rows),
                "models": {cell.model: cell.to_json() for cell in column.cells},
            }
            for column in columns
        },
    }  # fmt: skip
    write_json(output / SUMMARY, summary)
    write_page(output / REPORT, page_of(config, columns))
    return Evaluated(output, tuple(columns), tuple(notes))


def _ask(
    model: EvaluatedModel, config: EvaluateConfig, todo: Sequence[Todo], answers: Answers, progress: Progress
) -> None:
    began: set[str] = set()

    def keep(task: str, rows: Sequence[tuple[int, Outcome]]) -> None:
        answers.keep(model.title, task, rows)

    def fail(task: str, row: int, why: str) -> None:
        answers.fail(model.title, task, row, why)

    def tell(task: str, done: int, total: int) -> None:
        if task not in began:
            began.add(task)
            progress.begin(f"{model.title} on {task}", done)
        progress.tick(done, total)

    progress.say(f"{model.title}: {', '.join(f'{len(one.missing)} rows of {one.config.title}' for one in todo)}")
    if model.endpoint is not None:
        ask_remote(model, config, todo, keep, fail, tell)
    else:
        ask_local(model, config, todo, keep, tell)

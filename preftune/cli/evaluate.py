"""`preftune evaluate`: several models on instruction following and multiple choice, in one table."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.cli.parser import Parser
from preftune.cli.settings_file import add_file_settings, read_file_settings
from preftune.errors import UsageError

if TYPE_CHECKING:
    from preftune.evaluate import EvaluateConfig, Evaluated

_ABOUT = """\
Measures models on two tasks: instructions whose constraints a program checks, and multiple choice by log-prob. One
table, with 95 % intervals and differences against the first model on the same rows. See docs/evaluate.md.

  preftune evaluate --models base/model --models.1 runs/mine --output evaluation
  preftune evaluate models.yaml --tasks instructions,choices --output evaluation
  preftune evaluate --models M --instructions.path google/IFEval --choices.path piqa.jsonl --choices.limit 500
  --models.1 runs/other --resume       in a folder that was begun: asks what is missing, no more

A file names models behind endpoints, too:

  models:
    - path: Qwen/Qwen2.5-7B-Instruct
    - {name: mine, path: runs/mine}
    - {name: gpt-4o, endpoint: {model: gpt-4o}}
"""

_NAMED = ("models", "tasks")
_TASKS = ("instructions", "choices")


def execute(arguments: list[str]) -> int:
    from preftune.evaluate.config import EvaluateConfig

    parser = Parser(
        prog="preftune evaluate",
        usage="preftune evaluate [FILE.yaml] [--models M --models.1 M2 …] [--tasks T,T] --output FOLDER",
        description=_ABOUT,
    )
    parser.add_argument("--output", default="evaluation", metavar="FOLDER", help="new folder (default evaluation)")
    parser.add_argument("--resume", action="store_true", help="go on in a folder that was begun")
    add_file_settings(parser, EvaluateConfig, named=_NAMED)
    config, rest = read_file_settings(parser, _spelled_out(arguments), EvaluateConfig, named=_NAMED)

    from preftune.evaluate.answers import check_folder
    from preftune.evaluate.run import evaluate

    check_folder(Path(rest.output), resume=rest.resume)
    _show(config, evaluate(config, Path(rest.output), resume=rest.resume, base_dir=Path.cwd()))
    return 0


def _spelled_out(arguments: list[str]) -> list[str]:
    """The short ways of the command line as the settings say it: `--models M --models.1 M2` is a list of paths,
    `--tasks a,b` a list of tasks, and `--choices.limit 5` a setting of the task of that name."""
    kept: list[str] = []
    paths: dict[int, str] = {}
    tasks, begun, file = "", False, False
    position = 0
    while position < len(arguments):
        token = arguments[position]
        position += 1
        name, has_value, value = token.partition("=")
        place = re.fullmatch(r"--models(?:\.(\d+))?", name)
        if place is not None or name == "--tasks":
            if not has_value:
                if position == len(arguments) or arguments[position].startswith("--"):
                    raise UsageError(f"{name}: a value is missing")
                value, position = arguments[position], position + 1
            if name == "--tasks":
                tasks = value
            elif value[:1] in "[{":
                kept.append(f"{name}={value}")
            else:
                paths[int(place[1] or 0) if place is not None else 0] = value
            continue
        section = re.fullmatch(rf"--({'|'.join(_TASKS)})(\..+)", name)
        if section is not None:
            token, begun = f"--tasks.{section[1]}{section[2]}{has_value}{value}", True
        file = file or name.endswith((".yaml", ".yml"))
        kept.append(token)
    if paths:
        if sorted(paths) != list(range(len(paths))):
            raise UsageError(f"--models.{max(paths)}: the models are numbered from 0, without gaps")
        kept.append(f"--models={json.dumps([{'path': paths[n]} for n in sorted(paths)])}")
    if not tasks and begun and not file:
        tasks = ",".join(_TASKS)
    if tasks:
        listed = tasks.strip()
        if listed[:1] not in "[{":
            names = [part.strip() for part in listed.split(",")]
            listed = json.dumps([{"name": one, "task": one} for one in names])
        kept.append(f"--tasks={listed}")
    return kept


def _show(config: EvaluateConfig, result: Evaluated) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from preftune.evaluate.page import LETTER
    from preftune.report.words import moved, number, signed, span

    table = Table(box=None)
    table.add_column("model")
    first = config.models[0].title
    for column in result.columns:
        table.add_column(column.config.title, justify="right")
        if len(config.models) > 1:
            table.add_column(f"against {first}", justify="right")
    for n, model in enumerate(config.models):
        cells: list[Any] = [Text(model.title)]
        for column in result.columns:
            cell = column.cells[n]
            found, change = cell.metrics.get(column.metric), cell.differences.get(column.metric)
            mark = LETTER if cell.by_letter else ""
            told = "–" if found is None else f"{number(found.value, percent=True)}{mark} ({span(found, percent=True)})"
            cells.append(Text(told))
            if len(config.models) > 1:
                text = "–" if change is None else f"{signed(change.value * 100, '.1f')} ({span(change, percent=True)})"
                clear = change is not None and moved(change)
                style = "" if change is None or not clear else "green" if change.value > 0 else "red"
                cells.append(Text(text, style=style))
        table.add_row(*cells)
    console = Console(width=max(Console().width, 110))
    console.print(table)
    if any(cell.by_letter for column in result.columns for cell in column.cells):
        console.print(Text(f"{LETTER} asked for the letter of a choice: compares with other such numbers alone"))
    missing = sum(len(cell.unanswered) for column in result.columns for cell in column.cells)
    if missing:
        print(f"{missing} rows have no answer; --resume asks again", file=sys.stderr)
    print(f"report: {result.report}")

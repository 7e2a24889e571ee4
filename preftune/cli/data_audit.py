"""`preftune data audit`: one look at a data set before training; the exit code says whether it is fit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from preftune.cli.model_flags import add_settings, read_settings
from preftune.cli.parser import Parser

if TYPE_CHECKING:
    from preftune.curation.audit import Audit

_ABOUT = """\
One look at a data set before training: rows that can't be read, duplicates, contradictions, empty or equal sides,
length bias, languages, secrets, overlap with test rows, and, with a model, lengths in tokens and the rows exactly as
training reads them. Nothing is changed. See docs/curation-audit.md.

  preftune data audit --data.path pairs.jsonl --model.path my/model --output audit
  preftune data audit --data.path train.jsonl --test.path held_out.jsonl --strict

Exit code: 0 fit, 1 not fit (with --strict also where a check says look), 2 the request is wrong.
"""

_COLOURS = {"ok": "green", "look": "yellow", "not fit": "bold red"}


def execute(arguments: list[str]) -> int:
    from preftune.curation.audit.config import UNREAD, AuditConfig

    parser = Parser(
        prog="preftune data audit",
        usage="preftune data audit --data.path X [--test.path Y] [--model.path M] [--output FOLDER] [--setting V …]",
        description=_ABOUT,
    )
    parser.add_argument("--output", default="audit", metavar="FOLDER", help="new folder for report.html, summary.json "
                        "and decisions.jsonl (default audit)")  # fmt: skip
    parser.add_argument("--strict", action="store_true", help="a check that says look makes the data not fit, too")
    add_settings(parser, AuditConfig, UNREAD)
    config, rest = read_settings(parser, arguments, AuditConfig, UNREAD)

    from preftune.curation.audit import audit
    from preftune.curation.folder import check_free

    check_free(Path(rest.output))
    result = audit(config, Path(rest.output))
    _show(result, strict=rest.strict)
    return result.exit_code(strict=rest.strict)


def _show(result: Audit, *, strict: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from preftune.curation.audit.checks import percent
    from preftune.talk.visible import visible

    table = Table(box=None)
    for name in ("", "check", "rows", "share", ""):
        table.add_column(name, justify="right" if name in ("rows", "share") else "left", no_wrap=bool(name))
    for check in result.checks:
        share = check.share if check.interval is None else check.interval.value
        says = Text(visible(check.says.replace("`", "")), style="dim")
        status, count = Text(check.status, style=_COLOURS[check.status]), f"{check.count:,}/{check.of:,}"
        table.add_row(status, Text(check.title), Text(count), Text(percent(share)), says)
    console = Console(width=max(Console().width, 110))
    console.print(table)
    if result.tokens is None:
        console.print(Text("tokens were not looked at: give --model.path"))
    fit = result.exit_code(strict=strict) == 0
    said = "fit" if result.verdict == "ok" else "fit, with care" if fit else "not fit"
    console.print(Text(f"{result.rows:,} rows, {result.bad:,} bad: {said}", style="bold"))
    print(visible(f"report: {result.folder}/report.html"))

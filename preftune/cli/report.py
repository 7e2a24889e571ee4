"""`preftune report FOLDER`: writes report.html again from a run folder's files."""

from __future__ import annotations

from pathlib import Path

from preftune.cli.parser import Parser
from preftune.errors import UsageError


def execute(arguments: list[str]) -> int:
    parser = Parser(prog="preftune report", description="Writes report.html again from a run folder's files.")
    parser.add_argument("folder", metavar="FOLDER", help="a run folder")
    folder = Path(parser.parse(arguments).folder)
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; name a run folder, such as runs/NAME")

    from preftune.report import write_report

    print(f"report: {write_report(folder)}")
    return 0

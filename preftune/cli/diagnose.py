"""`preftune diagnose`: does this model, on these prompts, need preference tuning?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from preftune.cli.parser import Parser
from preftune.cli.settings_file import add_file_settings, read_file_settings

if TYPE_CHECKING:
    from preftune.curation.diagnose import Diagnosis

_ABOUT = """\
Has the model answer prompts as they come in use and measures four signals: how often a safety classifier fires, how
spread and how likely answers are, how close they are to their context, and how many are off-format, empty, cut or
repeated. Each beside what is normal, with the worst examples, and what mends it: preference tuning, SFT, or neither.
docs/curation-diagnose.md tells more.

  preftune diagnose --model MODEL --data prompts.jsonl --output diagnosis
  preftune diagnose --model MODEL --data rows.jsonl --output diagnosis --classifier.path TOXICITY_MODEL
  preftune diagnose --model MODEL --data rows.jsonl --output diagnosis --rewards.0.name accuracy --benchmark.score 0.8

--model X is short for --model.path X, and --data X for --data.path X. Settings may be in a file: preftune diagnose
settings.yaml --output diagnosis. A flag takes the place of what the file says.
"""
SHORT = {"--model": "--model.path", "--data": "--data.path"}
_STYLES = {"fine": "green", "look": "yellow", "problem": "red", "unknown": "dim"}


def execute(arguments: list[str]) -> int:
    from preftune.curation.diagnose.config import UNREAD, DiagnoseConfig

    parser = Parser(
        prog="preftune diagnose",
        usage="preftune diagnose [FILE.yaml] --model M --data D --output FOLDER [--setting VALUE …]",
        description=_ABOUT,
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="new folder")
    add_file_settings(parser, DiagnoseConfig, UNREAD)
    config, rest = read_file_settings(parser, [_long(one) for one in arguments], DiagnoseConfig, UNREAD)

    from preftune.curation.diagnose import diagnose

    _show(diagnose(config, Path(rest.output)))
    return 0


def _long(argument: str) -> str:
    name, sign, value = argument.partition("=")
    return f"{SHORT.get(name, name)}{sign}{value}"


def _show(found: Diagnosis) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from preftune.curation.contents import printable
    from preftune.curation.diagnose.measure import between, told
    from preftune.curation.diagnose.page import REMEDIES

    console = Console()
    table = Table(box=None, pad_edge=False)
    for column in ("", "measure", "measured", "normal", "what mends it"):
        table.add_column(column, overflow="fold")
    for one in found.measures:
        if one.interval is None:
            continue
        value = f"{told(one.interval.value, one.unit)} ({between(one.interval, one.unit)})"
        normal = f"{one.normal[0].text} ({one.normal[0].source})" if one.normal else ""
        status = "–" if one.status == "unknown" else one.status
        table.add_row(
            Text(status, style=_STYLES[one.status]), Text(one.title), Text(value), Text(printable(normal)),
            Text(REMEDIES[one.remedy]),
        )  # fmt: skip
    console.print(table)
    for one in found.measures:
        if one.interval is None:
            print(f"not measured: {printable(one.title)}. {printable(one.says)}")
    for warning in found.warnings:
        print(f"note: {printable(warning)}")
    print(f"{found.verdict.sentence} {found.verdict.why}".strip())
    for command, what in found.verdict.next:
        print(f"next: {printable(command)}    ({what})")
    print(f"report: {found.folder}/report.html")

"""`preftune data balance`: large clusters of rows capped, small ones raised."""

from __future__ import annotations

from pathlib import Path

from preftune.cli.model_flags import add_settings, read_settings
from preftune.cli.parser import Parser

_ABOUT = """\
Embeds rows, clusters them by BIRCH, caps large clusters and raises small ones, so that no topic drowns the others.
Writes rows.jsonl, decisions.jsonl (what became of every row), clusters.jsonl, summary.json and report.html into a new
folder. See docs/curation-balance.md.

  preftune data balance --data.path train.jsonl --output balanced
  preftune data balance --data.path train.jsonl --output balanced --cap 100 --raise_to 10 --threshold 0.6
  preftune data balance --data.path chats.jsonl --output balanced --text last-user --embedder MODEL
"""


def execute(arguments: list[str]) -> int:
    from preftune.curation.balance.config import UNREAD, BalanceConfig

    parser = Parser(
        prog="preftune data balance",
        usage="preftune data balance --data.path X --output FOLDER [--setting VALUE …]",
        description=_ABOUT,
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="new folder for the result")
    add_settings(parser, BalanceConfig, UNREAD)
    config, rest = read_settings(parser, arguments, BalanceConfig, UNREAD)

    from preftune.curation.balance import balance
    from preftune.curation.folder import REPORT

    found = balance(config, Path(rest.output))
    print(found)
    print(f"report: {found.folder / REPORT}")
    return 0

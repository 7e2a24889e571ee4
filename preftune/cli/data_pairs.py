"""`preftune data pairs`: pairs of better and worse answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from preftune.cli.parser import Parser
from preftune.cli.settings_file import add_file_settings, read_file_settings

if TYPE_CHECKING:
    from preftune.curation.pairs import Pairs

_ABOUT = """\
Makes preference pairs of answers to the same prompt: every better answer over every worse one, by ranks, by scores, or
by who wrote it. Drops pairs that are equal, nearly equal or like another one; caps, margins, a shuffled order; and no
trace of who wrote which side. See docs/curation-pairs.md.

  preftune data pairs --data.path answers/rows.jsonl --output pairs
  preftune data pairs --data.path rows.jsonl --output pairs --chosen_tiers '[human]' --rejected_tiers '[weak]'
  preftune data pairs --data.path human.jsonl --data.1.path weak.jsonl --tiers '{human: 1, weak: 2}' --output pairs

Settings may be in a file: preftune data pairs pairs.yaml --output pairs. A flag takes the place of what the file says.
"""
UNREAD = ("data.weight", "data.contest")


def execute(arguments: list[str]) -> int:
    from preftune.curation.pairs.config import PairsConfig

    parser = Parser(
        prog="preftune data pairs",
        usage="preftune data pairs [FILE.yaml] --data.path X --output FOLDER [--setting VALUE …]",
        description=_ABOUT,
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="new folder")
    add_file_settings(parser, PairsConfig, UNREAD)
    config, rest = read_file_settings(parser, arguments, PairsConfig, UNREAD)

    from preftune.curation.pairs import pairs

    _show(pairs(config, Path(rest.output)))
    return 0


def _show(found: Pairs) -> None:
    from preftune.curation.contents import printable
    from preftune.curation.pairs.choose import UNORDERED

    print(f"{found.ordered} pairs of {found.ordered_prompts} prompts")
    for why, count in found.tally.why.most_common():
        if why not in UNORDERED:
            print(f"  {count} left out: {why}")
    for warning in found.warnings:
        print(f"note: {printable(warning)}")
    folder = printable(str(found.folder))
    print(f"rows: {folder}/rows.jsonl ({found.kept} pairs of {found.prompts} prompts)")
    print(f"report: {folder}/report.html")

"""`preftune data COMMAND …`: data sets made, looked at and mended."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from preftune.errors import UsageError
from preftune.recipes.schema import nearest

COMMANDS: dict[str, str] = {
    "audit": "is it fit? duplicates, contradictions, bias, overlap with test rows, lengths in tokens",
    "balance": "cap large clusters of rows and raise small ones",
    "debias": "openings that give the label away: found, weighed, stripped; reward models before and after",
    "generate": "answers of several tiers to each prompt: local models, endpoints, columns",
    "pairs": "pairs of better and worse answers out of tiers, ranks or scores",
    "puzzles": "make knights-and-knaves puzzles, each with exactly one solution",
}
"""Command → what it does. Each lives in preftune/cli/data_NAME.py, where a dash in NAME is an underscore."""


def execute(arguments: list[str]) -> int:
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(_help())
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        close = nearest(name, COMMANDS)
        hint = f"did you mean preftune data {close}?" if close else f"commands: {', '.join(COMMANDS)}"
        raise UsageError(f"preftune data {name}: no such command; {hint}")
    command: ModuleType = import_module(f"preftune.cli.data_{name.replace('-', '_')}")
    code: int = command.execute(rest)
    return code


def _help() -> str:
    width = max(map(len, COMMANDS)) + 2
    rows = [f"  {name:<{width}}{text}" for name, text in COMMANDS.items()]
    usage = "usage: preftune data COMMAND …        preftune data COMMAND --help tells more"
    return "\n".join([usage, "", *rows])

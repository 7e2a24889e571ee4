"""What a pipeline's report says of a stage that made data: its command, and what became of the rows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.report.words import NBSP

COMMAND = "preftune data "
REASONS = 4
"""Reasons for leaving rows out that are named one by one."""


@dataclass(frozen=True, slots=True)
class Step:
    """A finished stage that made data.

    Attributes:
        method: the command of `preftune data`.
        sentence: what became of the rows, in words.
    """

    method: str
    sentence: str


def read_step(folder: Path) -> Step | None:
    """The stage that wrote this folder, None where it is none of `preftune data` or has not finished."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError):
        return None
    command = summary.get("command") if isinstance(summary, dict) else None
    if not isinstance(command, str) or not command.startswith(COMMAND):
        return None
    return Step(command.removeprefix(COMMAND), _sentence(summary.get("rows")))


def _sentence(rows: Any) -> str:
    counts = {str(name): n for name, n in rows.items() if isinstance(n, int)} if isinstance(rows, dict) else {}
    if not counts:
        return "Its report says what became of the rows."
    kept = counts.pop("kept", 0)
    left = sum(counts.values())
    text = f"{kept:,}{NBSP}rows kept"
    if not left:
        return f"{text}, none left out."
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    told = [f"{count:,} {name}" for name, count in most[:REASONS]]
    rest = sum(count for _, count in most[REASONS:])
    return f"{text}, {left:,} left out: {', '.join([*told, f'{rest:,} for other reasons'] if rest else told)}."

"""Rows of measurements into docs/benchmarks.md, between two marks."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "benchmarks.md"


def machine() -> str:
    """GPU, processor and versions, in one line."""
    from preftune.train.folder import hardware

    found = hardware()
    packages = []
    for name in ("torch", "transformers", "trl", "liger-kernel"):
        try:
            packages.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return (
        f"Machine: {found.get('gpu', 'no GPU')}, {found['processor']}, {found['cores']} cores, "
        f"{found.get('memory_gib', '?')} GiB. Python {sys.version.split()[0]}, {', '.join(packages)}."
    )


def put(page: Path, mark: str, title: str, header: str, rows: Mapping[str, str]) -> None:
    """Put rows (by the text of their first cell) into the page; rows of the same machine stay.

    Rows measured on another machine or with other versions leave the table: its one machine line would be wrong for
    them.
    """
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    if text.count(mark) != 2:
        text += f"\n## {title}\n\n{mark}\n{mark}\n"
    before, _, rest = text.partition(mark)
    old, _, after = rest.partition(mark)
    here = machine()
    kept = _rows(old.splitlines()) if here in old else {}
    columns = header.count("|") - 1
    lines = [here, "", header, "|" + "---|" * columns, *{**kept, **rows}.values()]
    page.write_text(f"{before}{mark}\n" + "\n".join(lines) + f"\n{mark}{after}", encoding="utf-8")


def _rows(lines: Sequence[str]) -> dict[str, str]:
    """The rows of a table by their first cell, without its header and rule."""
    table = [line for line in lines if line.startswith("|")][2:]
    return {line.split("|")[1].strip(): line for line in table}

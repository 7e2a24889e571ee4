"""Answers by prompt: rows that hold several, or rows of one answer joined by their prompt."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from preftune.config import SourceConfig
from preftune.curation.contents import as_text, from_plain, plain
from preftune.curation.folder import PARTIAL
from preftune.curation.pairs.config import PairsConfig
from preftune.data.load import StreamedRow, stream_rows
from preftune.errors import DataError
from preftune.records import Content, Example


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """An answer to a prompt.

    Attributes:
        content: as it will stand in a pair.
        text: the same for comparing.
        grade: how good the data says it is, higher is better; None where it does not say.
        tier: who wrote it; where nobody is named, its rank or score in words.
        where: its row.
        place: its place in the row.
    """

    content: Content = field(repr=False)
    text: str
    grade: float | None
    tier: str
    where: str
    place: int


@dataclass(frozen=True, slots=True)
class Answered:
    """A prompt with its answers, and the other columns of its (first) row."""

    where: str
    prompt: Content
    answers: list[Answer]
    columns: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Bad:
    """A row that can't be used, left out by `on_bad_row: skip`."""

    where: str
    problem: str


Groups: TypeAlias = Iterator[Answered | Bad]


def read_answers(config: PairsConfig, base_dir: Path | None, folder: Path) -> Groups:
    """Prompts with their answers, in the data's order (joined ones in the order of their first row).

    Args:
        folder: where the index of a join is kept while it is read.

    Raises:
        DataError: a source can't be read, or a row holds no answer.
    """
    joined = config.group == "prompts" or (config.group == "auto" and _holds_one(config.data[0], base_dir))
    return _joined(config, base_dir, folder) if joined else _by_row(config, base_dir)


def _holds_one(source: SourceConfig, base_dir: Path | None) -> bool:
    first = next((one.example for one in stream_rows(source, base_dir) if one.example is not None), None)
    return first is not None and len(first.completions) == 1


def _by_row(config: PairsConfig, base_dir: Path | None) -> Groups:
    for number, source in enumerate(config.data):
        for one in stream_rows(source, base_dir):
            yield _bad(one) if one.example is None else _answered(one.example, _default_tier(config, number))


def _bad(one: StreamedRow) -> Bad:
    return Bad(one.row.where, one.problem)


def _answered(example: Example, default: str) -> Answered:
    if not example.completions:
        raise DataError(
            f"{example.where}: the row has no answer; map one with data.columns or data.responses (docs/data.md)"
        )
    answers = []
    for place, content in enumerate(example.completions):
        grade = example.scores[place] if example.scores else None
        tier = (example.sources[place] if example.sources else "") or default or _in_words(grade)
        answers.append(Answer(content, as_text(content), grade, tier, example.where, place))
    return Answered(example.where, example.prompt, answers, example.columns)


def _default_tier(config: PairsConfig, number: int) -> str:
    """The tier of a source whose rows do not say who wrote the answers: its place among `tiers`, or its file's name."""
    if len(config.tiers) == len(config.data):
        return list(config.tiers)[number]
    return Path(config.data[number].path).stem if len(config.data) > 1 else ""


def _in_words(grade: float | None) -> str:
    """Ranks are read as scores with the sign turned, so a negative whole number is one."""
    if grade is None:
        return "unnamed"
    return f"rank {-grade:g}" if grade < 0 and grade == int(grade) else f"score {grade:g}"


# ------------------------------------------------------------------------------------------------------- joining


def _joined(config: PairsConfig, base_dir: Path | None, folder: Path) -> Groups:
    """Rows with the same prompt are brought together by an index on disk, so memory does not grow with the files."""
    path = folder / f"joined{PARTIAL}"
    path.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(path)) as index:
            index.executescript(
                "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
                "CREATE TABLE prompts"
                " (id INTEGER PRIMARY KEY, hash BLOB UNIQUE, place TEXT, content TEXT, columns TEXT);"
                "CREATE TABLE answers (prompt INTEGER, content TEXT, grade REAL, tier TEXT, place TEXT, n INTEGER);"
            )
            for number, source in enumerate(config.data):
                for one in stream_rows(source, base_dir):
                    if one.example is None:
                        yield _bad(one)
                    else:
                        _enter(index, _answered(one.example, _default_tier(config, number)))
            index.execute("CREATE INDEX by_prompt ON answers (prompt)")
            yield from _groups(index)
    finally:
        path.unlink(missing_ok=True)


def _enter(index: sqlite3.Connection, row: Answered) -> None:
    """Texts go in as JSON: the database has no form for a file's name that is no UTF-8."""
    content = json.dumps(plain(row.prompt))
    key = hashlib.blake2b(content.encode(), digest_size=16).digest()
    columns = json.dumps(row.columns, default=str)
    index.execute(
        "INSERT INTO prompts (hash, place, content, columns) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (key, json.dumps(row.where), content, columns),
    )
    ((prompt,),) = index.execute("SELECT id FROM prompts WHERE hash = ?", (key,))
    index.executemany(
        "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?)",
        [
            (
                prompt,
                json.dumps(plain(answer.content)),
                answer.grade,
                json.dumps(answer.tier),
                json.dumps(answer.where),
                answer.place,
            )
            for answer in row.answers
        ],
    )


def _groups(index: sqlite3.Connection) -> Iterator[Answered]:
    for prompt, where, content, columns in index.execute("SELECT id, place, content, columns FROM prompts ORDER BY id"):
        found = index.execute(
            "SELECT content, grade, tier, place, n FROM answers WHERE prompt = ? ORDER BY rowid", (prompt,)
        )
        answers = []
        for text, grade, tier, place, n in found:
            answer = from_plain(json.loads(text))
            answers.append(Answer(answer, as_text(answer), grade, json.loads(tier), json.loads(place), n))
        yield Answered(json.loads(where), from_plain(json.loads(content)), answers, json.loads(columns))

"""The files that raters get and send back: written so that a spreadsheet neither evaluates nor loses a text, read so
that every fault has a line."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preftune.config import SourceConfig
from preftune.data.sources import read_rows
from preftune.errors import DataError

EXCEL_CELL = 32_767
"""Characters that Excel keeps of a cell."""

_FORMULA = tuple("=+-@\t\r\n＝＋－＠'")
"""What makes a spreadsheet evaluate a cell (the wide signs in East Asian ones), and the apostrophe, which some take for
their own sign that text follows."""
_WORDS_OF_DATES = re.compile(
    r"jan(uary)?|feb(ruary)?|mar(ch)?|apr(il)?|may|june?|july?|aug(ust)?|sept?(ember)?|oct(ober)?|nov(ember)?"
    r"|dec(ember)?|am|pm"
)
_SIGNS_OF_NUMBERS = frozenset("0123456789.,:/%$€£¥()e+- \t\r\n\xa0")
_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED = re.compile("[\ud800-\udfff\x85\u2028\u2029]")
"""Half surrogate pairs, and line ends that JSON allows in a string but some programs part lines at."""
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def to_cell(text: str) -> str:
    """A text as a cell: an apostrophe before what would not stay text, and U+FFFD for half a surrogate pair, which no
    UTF-8 file can hold."""
    text = _SURROGATE.sub("\ufffd", text)
    risky = text.startswith(_FORMULA) or text.lstrip().startswith(_FORMULA) or _would_be_converted(text)
    return f"'{text}" if risky else text


def _would_be_converted(text: str) -> bool:
    """Whether a spreadsheet takes a text for a number, a date or a truth value, and writes it back in another form."""
    bare = text.strip().lower()
    if bare in ("true", "false"):
        return True
    if len(bare) <= 40:
        bare = _WORDS_OF_DATES.sub("", bare)
    return any(sign.isdigit() for sign in bare) and set(bare) <= _SIGNS_OF_NUMBERS


def same_text(cell: str, text: str) -> bool:
    """Whether a cell that came back still holds `text`. Line ends, control characters and white space around it may
    have changed, and the apostrophe of `to_cell` may be gone: programs differ in what they keep of those."""
    return _bare(cell) in (_bare(to_cell(text)), _bare(text))


def _bare(text: str) -> str:
    text = _SURROGATE.sub("\ufffd", text).replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROL.sub("", text).strip()


def write_csv(path: Path, rows: Iterable[Mapping[str, str]], columns: list[str]) -> None:
    """Rows of text as CSV that spreadsheets open as UTF-8 and evaluate nothing of."""
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(columns)
        for row in rows:
            writer.writerow([to_cell(row[name]) for name in columns])


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows as JSON lines, readable as they are but for what has no place in a line of UTF-8, which is escaped."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            text = json.dumps(row, ensure_ascii=False, allow_nan=False)
            file.write(_ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")


@dataclass(frozen=True, slots=True)
class Row:
    """One row that a rater sent.

    Attributes:
        where: `file:line` of its first line.
        values: column → cell; text from CSV, JSON's values from JSONL.
        decimal_comma: the file separates cells by `;` or tabs, as spreadsheets do where 7,5 is a number.
    """

    where: str
    values: dict[str, Any]
    decimal_comma: bool = False


@dataclass(slots=True)
class Sent:
    """A rater's file.

    Attributes:
        columns: those named anywhere in it.
        problems: `file:line: …`, what could not be read.
        broken: the file could not be read to its end.
    """

    path: Path
    columns: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    broken: bool = False

    def give_up(self, problem: str) -> None:
        self.problems.append(problem)
        self.broken = True


def read_sent(path: Path) -> Sent:
    """Read a .csv or .jsonl file; whatever is wrong with it is kept in its `problems`."""
    sent = Sent(path)
    if not path.is_file():
        sent.give_up(f"{path}: no such file")
    elif path.suffix.lower() == ".csv":
        _read_csv(sent)
    elif path.suffix.lower() == ".jsonl":
        _read_jsonl(sent)
    else:
        sent.give_up(f"{path}: ratings come as .csv or .jsonl; save the file in one of these forms")
    if not sent.rows and not sent.problems:
        sent.give_up(f"{path}: no row in it; send the file of answers with the ratings filled in")
    return sent


def _read_jsonl(sent: Sent) -> None:
    try:
        for row in read_rows(SourceConfig(path=str(sent.path))):
            if row.problem:
                sent.problems.append(f"{row.where}: {row.problem}")
            else:
                sent.rows.append(Row(row.where, row.values))
    except DataError as error:
        sent.give_up(str(error))
    sent.columns = list(dict.fromkeys(name for row in sent.rows for name in row.values))


def _read_csv(sent: Sent) -> None:
    path = sent.path
    try:
        data = path.read_bytes()
    except OSError as error:
        sent.give_up(f"{path}: can't be read: {error.strerror or error}")
        return
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        kind = "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else f"not UTF-8 (byte 0x{data[error.start]:02x})"
        sent.give_up(f"{path}:{line}: the file is {kind}; save it as `CSV UTF-8`")
        return
    first = text.partition("\n")[0]
    delimiter = "," if "," in first else ";" if ";" in first else "\t" if "\t" in first else ","
    rows = _cells(text, delimiter, sent)
    header = next(rows, (1, []))[1]
    while header and not header[-1].strip():
        header.pop()  # spreadsheets write columns that were touched once
    sent.columns = [name.strip() for name in header]
    if doubled := sorted({name for name in sent.columns if sent.columns.count(name) > 1}):
        sent.give_up(f"{path}:1: the header names {doubled[0]!r} twice")
        return
    for line, cells in rows:
        while len(cells) > len(header) and not cells[-1].strip():
            cells.pop()
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            sent.problems.append(f"{path}:{line}: {len(cells)} cells, but the header names {len(header)} columns")
            continue
        values = dict(zip(sent.columns, cells, strict=True))
        sent.rows.append(Row(f"{path}:{line}", values, decimal_comma=delimiter != ","))


def _cells(text: str, delimiter: str, sent: Sent) -> Iterator[tuple[int, list[str]]]:
    """Rows of cells with their first lines; a broken one is a problem and the last."""
    limit = csv.field_size_limit(2**31 - 1)  # the default of 131,072 characters is less than a long prompt
    try:
        line = 1
        reader = csv.reader(_lines(text), delimiter=delimiter, strict=True)
        try:
            for cells in reader:
                yield line, cells
                line = reader.line_num + 1
        except csv.Error as error:
            sent.give_up(f"{sent.path}:{line}: invalid CSV: {error}")
    finally:
        csv.field_size_limit(limit)


def _lines(text: str) -> Iterator[str]:
    """Lines with their ends, parted at `\\n` alone: `str.splitlines` would cut cells at other signs."""
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        yield text[start:end]
        start = end

"""Where rows come from: files, folders saved by `datasets`, the hub. Each row carries its origin."""

from __future__ import annotations

import csv
import difflib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preftune.config import SourceConfig
from preftune.errors import DataError


@dataclass(frozen=True, slots=True)
class Row:
    """A row as read, before any mapping.

    Attributes:
        where: `file:line` (1-based), or `file[index]` (0-based) where there are no lines.
        values: column → value; empty when the row can't be read.
        problem: why it can't be read, "" when it can.
    """

    where: str
    values: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


def read_rows(source: SourceConfig, base_dir: Path | None = None) -> Iterator[Row]:
    """Rows of a source, one at a time.

    Args:
        source: `path` is a file, a folder saved by `datasets`, or a hub id, in this order.
        base_dir: a relative path is looked up here first, then in the working directory.

    Raises:
        DataError: the source can't be read at all. A single bad row is yielded with its problem instead.
    """
    path = _find(source.path, base_dir)
    if path is None:
        return _read_hub(source)
    if path.is_dir():
        return _read_saved(path, source)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: can't tell the file's format; its name must end in {', '.join(_READERS)}")
    from preftune.data.answers import is_collected, read_answers

    if path.suffix.lower() == ".jsonl" and is_collected(path):
        return read_answers(path, source)
    return _opened(path, reader)


def local_file(source: SourceConfig, base_dir: Path | None = None) -> Path | None:
    """The plain file that a source is read from; None for a pipe, a saved folder, a hub id, or what isn't there."""
    try:
        path = _find(source.path, base_dir)
    except (DataError, OSError):
        return None  # said where it is read
    return path if path is not None and path.is_file() else None


def _find(text: str, base_dir: Path | None) -> Path | None:
    """The file or folder that a path names; None when it is a hub id."""
    path = Path(text).expanduser()
    places = [path] if base_dir is None or path.is_absolute() else [base_dir / path, path]
    for place in places:
        if place.exists():
            return place
    if path.suffix.lower() not in _READERS and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text) and not text.startswith("."):
        return None
    names = [entry.name for place in places if place.parent.is_dir() for entry in place.parent.iterdir()]
    near = difflib.get_close_matches(path.name, names, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise DataError(f"{' and '.join(str(place) for place in places)}: no such file or folder{hint}")


def _opened(path: Path, reader: Callable[[Path], Iterator[Row]]) -> Iterator[Row]:
    try:
        yield from reader(path)
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}") from error


# ---------------------------------------------------------------------------------------------------- files


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                value = _parse(line.rstrip(b"\r\n").decode("utf-8"))
            except UnicodeDecodeError as error:
                yield Row(where, problem=f"column {error.start + 1}: not UTF-8 (byte 0x{line[error.start]:02x})")
            except json.JSONDecodeError as error:
                yield Row(where, problem=f"column {error.colno}: invalid JSON: {error.msg}")
            except (ValueError, RecursionError) as error:
                yield Row(where, problem=f"invalid JSON: {error}")
            else:
                yield _object(where, value)


def _read_json(path: Path) -> Iterator[Row]:
    try:
        rows = _parse(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start + 1}") from error
    except json.JSONDecodeError as error:
        hint = "; if it holds one object per line, name it .jsonl" if error.msg == "Extra data" else ""
        raise DataError(f"{path}:{error.lineno}: column {error.colno}: invalid JSON: {error.msg}{hint}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: invalid JSON: {error}") from error
    if not isinstance(rows, list):
        raise DataError(f"{path}: a .json file must hold a list of objects, this one holds {_kind(rows)}")
    for index, value in enumerate(rows):
        yield _object(f"{path}[{index}]", value)


def _read_csv(path: Path) -> Iterator[Row]:
    # A byte that is no UTF-8 becomes a lone surrogate here, so that it spoils one row and not the file.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            if doubled := sorted({name for name in header if header.count(name) > 1}):
                raise DataError(f"{path}:1: the header names {doubled[0]!r} twice")
            for cells in reader:
                where = f"{path}:{reader.line_num}"
                if not cells:
                    continue
                if len(cells) != len(header):
                    yield Row(where, problem=f"{len(cells)} fields, but the header names {len(header)} columns")
                elif broken := [name for name, cell in zip(header, cells, strict=True) if _broken(cell)]:
                    yield Row(where, problem=f"column {broken[0]!r}: not UTF-8")
                else:
                    yield Row(where, dict(zip(header, cells, strict=True)))
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num}: invalid CSV: {error}") from error


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            index = 0
            for batch in file.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    yield Row(f"{path}[{index}]", values)
                    index += 1
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read as Parquet: {_first_line(error)}") from error


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
}


# ---------------------------------------------------------------------------------------------------- datasets


def _read_saved(path: Path, source: SourceConfig) -> Iterator[Row]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        files = sorted(entry.name for entry in path.iterdir() if entry.suffix.lower() in _READERS)
        hint = f"; name one of its files: {', '.join(files[:5])}" if files else ""
        raise DataError(f"{path}: is no folder saved by datasets' save_to_disk: {_first_line(error)}{hint}") from error
    if isinstance(loaded, datasets.DatasetDict):
        if source.split not in loaded:
            raise DataError(f"{path}: has no split {source.split!r}; it has {', '.join(map(str, loaded))}")
        loaded = loaded[source.split]
    return _rows_of(loaded, str(path))


def _read_hub(source: SourceConfig) -> Iterator[Row]:
    import datasets

    label = f"{source.path}{f'/{source.name}' if source.name else ''}:{source.split}"
    try:
        loaded = datasets.load_dataset(source.path, source.name, split=source.split, revision=source.revision)
    except Exception as error:  # the libraries behind it (HTTP, hub, Arrow, the set's format) share no base class
        raise DataError(
            f"{label}: can't be loaded from the hub: {_first_line(error)}. Check the id, and `name`, `split` and "
            "`revision`; without a connection, download the rows elsewhere and use the file with --data.path FILE"
        ) from error
    return _rows_of(loaded, label)


def _rows_of(dataset: Any, label: str) -> Iterator[Row]:
    for index, values in enumerate(dataset):
        yield Row(f"{label}[{index}]", dict(values))


# ---------------------------------------------------------------------------------------------------- helpers


def _parse(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Python keeps the last of two equal keys without a word; a row that says two things is a bad row."""
    out = dict(pairs)
    if len(out) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return out


def _object(where: str, value: Any) -> Row:
    if not isinstance(value, dict):
        return Row(where, problem=f"a row must be an object with columns, this one is {_kind(value)}")
    return Row(where, value)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def _broken(text: str) -> bool:
    return any("\ud800" <= char <= "\udfff" for char in text) if not text.isascii() else False


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__

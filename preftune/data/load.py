"""Loading: sources are read, mapped, checked and mixed into one sequence of Examples."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

from preftune.config import SourceConfig
from preftune.data.columns import BadRow, ColumnMap
from preftune.data.formats import Format, detect, to_example
from preftune.data.responses import apply_rule
from preftune.data.sources import Row, read_rows
from preftune.errors import DataError
from preftune.records import Content, Example


@dataclass(frozen=True, slots=True)
class SourceCount:
    """What one source gave.

    Attributes:
        path: as the recipe names it.
        rows: usable rows.
        skipped: bad rows left out (`on_bad_row: skip`).
        examples: places its rows take in one epoch; differs from `rows` when `weight` is not 1.
        first_skipped: why the first bad row was left out, "" without one.
    """

    path: str
    rows: int
    skipped: int
    examples: int
    first_skipped: str = ""

    def __str__(self) -> str:
        text = f"{self.path}: {self.rows} rows"
        if self.examples != self.rows:
            text += f", {self.examples} per epoch"
        return f"{text}, {self.skipped} skipped (first: {self.first_skipped})" if self.skipped else text


@dataclass(frozen=True, slots=True)
class Loaded:
    """A data set in memory.

    Attributes:
        examples: one epoch, sources mixed. A row that is repeated is the same object again.
        content_hash: sha256 over the rows in this order, independent of where the files lie.
        skipped: bad rows left out.
        origins: one line per source, for the manifest.
        sources: the same as numbers.
    """

    examples: Sequence[Example]
    content_hash: str
    skipped: int
    origins: list[str]
    sources: tuple[SourceCount, ...]


def load_examples(sources: Sequence[SourceConfig], *, seed: int, base_dir: Path | None = None) -> Loaded:
    """Read all sources and mix them.

    A source's `weight` w is how often its rows occur in one epoch: each row floor(w) times, and a share w − floor(w)
    of them, drawn with `seed`, once more. With weight 1 everywhere each row occurs once. Sources are spread evenly
    over the epoch; within a source the order of the rows stays. The same sources and seed give the same sequence.

    Args:
        sources: the recipe's `data:` list.
        seed: of the mixture.
        base_dir: where relative paths are looked up first, then the working directory.

    Raises:
        DataError: a source can't be read, has no usable row, or has a bad row under `on_bad_row: error`.
        UsageError: a column rule can't be read.
    """
    read = [_read(source, base_dir) for source in sources]
    plans = [_plan(one, random.Random(f"{seed}/{number}")) for number, one in enumerate(read)]
    following = [iter(plan) for plan in plans]
    examples, content = [], hashlib.sha256()
    for number in _interleave([len(plan) for plan in plans], random.Random(seed)):
        index = next(following[number])
        examples.append(read[number].examples[index])
        content.update(read[number].digests[index])
    counts = tuple(
        SourceCount(one.source.path, len(one.examples), one.skipped, len(plan), one.first_skipped)
        for one, plan in zip(read, plans, strict=True)
    )
    skipped = sum(count.skipped for count in counts)
    return Loaded(tuple(examples), content.hexdigest(), skipped, [str(count) for count in counts], counts)


@dataclass(slots=True)
class _Read:
    """The rows of one source while it is read."""

    source: SourceConfig
    examples: list[Example] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    skipped: int = 0
    first_skipped: str = ""


@dataclass(frozen=True, slots=True)
class StreamedRow:
    """One row of a source as it comes.

    Attributes:
        row: as read, before any mapping.
        example: what it means; None where the row is bad.
        problem: then why.
        digest: hash of the example's content.
    """

    row: Row
    example: Example | None
    problem: str = ""
    digest: bytes = b""


def stream_rows(source: SourceConfig, base_dir: Path | None = None) -> Iterator[StreamedRow]:
    """A source's rows one by one, in its order, up to `limit` usable ones; memory does not grow with the file.

    Raises:
        DataError: the source can't be read, or has a bad row under `on_bad_row: error`.
        UsageError: a column rule can't be read.
    """
    columns = ColumnMap(source)
    format: Format | None = None if source.format == "auto" else source.format
    if source.responses is not None:
        format = "ranked"
    usable = 0
    for row in read_rows(source, base_dir):
        try:
            if row.problem:
                raise BadRow(row.problem)
            mapped = columns.apply(row.values)
            if source.responses is not None:
                mapped = apply_rule(source.responses, mapped, row.values)
            format = format or detect(mapped, columns.names)
            example = to_example(mapped, format, source, row.where)
            digest = _digest(example)
        except BadRow as problem:
            if source.on_bad_row == "error":
                raise DataError(
                    f"{row.where}: {problem}. To leave bad rows out and count them, set data.on_bad_row: skip"
                ) from None
            yield StreamedRow(row, None, str(problem))
            continue
        yield StreamedRow(row, example, digest=digest)
        usable += 1
        if usable == source.limit:
            return


def _read(source: SourceConfig, base_dir: Path | None) -> _Read:
    out = _Read(source)
    for one in stream_rows(source, base_dir):
        if one.example is None:
            out.skipped += 1
            out.first_skipped = out.first_skipped or f"{one.row.where}: {one.problem}"
            continue
        out.examples.append(one.example)
        out.digests.append(one.digest)
    if not out.examples:
        why = f": all {out.skipped} are bad, the first is {out.first_skipped}" if out.skipped else ", it is empty"
        raise DataError(f"{source.path}: has no usable row{why}")
    return out


def _plan(one: _Read, rng: random.Random) -> list[int]:
    """Indices of one source's rows in the order of one epoch."""
    rows = len(one.examples)
    whole = int(one.source.weight)
    extra = round((one.source.weight - whole) * rows)
    plan = list(range(rows)) * whole + sorted(rng.sample(range(rows), extra))
    if not plan:
        raise DataError(
            f"{one.source.path}: weight {one.source.weight:g} of {rows} rows leaves none; raise the weight, or remove "
            "the source"
        )
    return plan


def _interleave(sizes: Sequence[int], rng: random.Random) -> list[int]:
    """Which source is next, for every place of the epoch: item i of m lies at (i + offset) / m of the way, with one
    drawn offset per source, so that at every point each source has given its share, one row more or less."""
    offsets = [rng.random() for _ in sizes]
    places = [((i + offset) / m, n) for n, (m, offset) in enumerate(zip(sizes, offsets, strict=True)) for i in range(m)]
    return [n for _, n in sorted(places)]


def _digest(example: Example) -> bytes:
    """Hash of a row's content, without its origin. Raises BadRow for text that is no valid Unicode."""
    row: list[Any] = [_plain(example.prompt), [_plain(one) for one in example.completions], dict(example.columns)]
    if example.scores:  # rows without scores keep the hash that they had before there were any
        row += [example.scores, example.sources]
    text = json.dumps(row, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=_other)
    try:
        return hashlib.sha256(text.encode("utf-8")).digest()
    except UnicodeEncodeError as error:
        raise BadRow(f"holds half a surrogate pair (\\u{ord(text[error.start]):04x}), which is no text") from error


def _plain(content: Content) -> str | list[list[str]]:
    return content if isinstance(content, str) else [[message.role, message.content] for message in content]


def _other(value: Any) -> Any:
    """Values of Parquet files and saved folders that JSON does not have."""
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, date | time | timedelta | Decimal | UUID):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise BadRow(f"holds a value of type {type(value).__name__}, which can't be kept")

"""The first two passes over the rows: distinct texts, a sample of them, and their vectors."""

from __future__ import annotations

import hashlib
import heapq
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from preftune.curation.balance.config import BalanceConfig
from preftune.curation.embeddings import Embedder
from preftune.curation.vectors import VectorFile
from preftune.data.columns import BadRow
from preftune.data.content import number
from preftune.data.load import StreamedRow, stream_rows
from preftune.errors import DataError
from preftune.records import Content
from preftune.train.progress import Progress

_REMEDY = "run the command again when nothing writes there"
TICK = 1000
"""Rows between two looks at the clock."""


Texts: TypeAlias = list[tuple[str, int]]


@dataclass(slots=True)
class Read:
    """What is known of all rows after the first pass: some twenty bytes of each, and no text but the sample's.

    Attributes:
        rows, bad: usable rows, and those that can't be read.
        texts: [rows], which of the distinct texts each row has; they are numbered as they come.
        hashes: [rows], of each row's text.
        learnt: distinct texts and their numbers, in random order: what the embedding learns from.
        tried: the same for the texts on which thresholds are tried; others, as far as there are enough, as those learnt
            from lie closer together than all others.
        cut: rows whose text is longer than what is read of it.
        empty: rows whose text is empty or white space; all of them have the same text.
        blank: its number, None where there is none.
        prefer: [rows], the preferred column's numbers; None without one.
    """

    rows: int
    bad: int
    texts: NDArray[np.int32]
    hashes: NDArray[np.uint64]
    learnt: Texts
    tried: Texts
    cut: int
    empty: int
    blank: int | None
    prefer: NDArray[np.float64] | None = field(default=None)

    @property
    def distinct(self) -> int:
        """How many different texts there are."""
        return int(self.texts.max()) + 1 if self.rows else 0


def stream(config: BalanceConfig, base_dir: Path | None) -> Iterator[StreamedRow]:
    """All rows of all sources, in order. Raises DataError as `stream_rows` does."""
    for source in config.data:
        yield from stream_rows(source, base_dir)


def text_of(one: StreamedRow, config: BalanceConfig) -> str:
    """What is compared of a usable row, whole. Raises DataError naming the row where it has no such thing."""
    example = one.example
    assert example is not None
    where = one.row.where
    if config.text == "prompt":
        return _flat(example.prompt or example.completions[0])
    if config.text == "last-user":
        if isinstance(example.prompt, str):
            return _flat(example.prompt or example.completions[0])
        turns = [message.content for message in example.prompt if message.role == "user"]
        if not turns:
            raise DataError(f"{where}: no turn of the prompt is the user's; set text: prompt to compare whole prompts")
        return turns[-1]
    if config.text not in one.row.values:
        columns = ", ".join(map(str, one.row.values)) or "none"
        raise DataError(f"{where}: there is no column {config.text!r} (text); columns: {columns}")
    value = one.row.values[config.text]
    if value is None or isinstance(value, str | int | float):
        return "" if value is None else str(value)
    raise DataError(f"{where}: column {config.text!r} (text) must hold text, it holds {type(value).__name__}")


def _compared(text: str, config: BalanceConfig) -> str:
    """As much of a text as is read; all texts of white space alone are one."""
    return text[: config.characters] if text[: config.characters].strip() else ""


def _flat(content: Content) -> str:
    return content if isinstance(content, str) else "\n".join(message.content for message in content)


def read(config: BalanceConfig, base_dir: Path | None, progress: Progress) -> Read:
    """The first pass: every row once.

    The sample is drawn among distinct texts and does not depend on the order of rows: it is those whose hash, with the
    seed in it, is smallest (a bottom-k sketch). Of a million texts any two share a hash of 64 bits with probability
    3·10⁻⁸.

    Raises:
        DataError: a source can't be read, a row has no such text or number, or there is no usable row.
    """
    hashes, prefer = array("Q"), array("d")
    heap: list[tuple[int, str]] = []
    wanted = 2 * config.sample
    held: set[int] = set()
    bad = cut = empty = 0
    progress.begin("reading")
    for one in stream(config, base_dir):
        if one.example is None:
            bad += 1
            continue
        whole = text_of(one, config)
        cut += len(whole) > config.characters
        text = _compared(whole, config)
        empty += not text
        key = text_hash(text, config.seed)
        hashes.append(key)
        if config.prefer is not None:
            prefer.append(_number(one, config.prefer))
        if key not in held and (len(heap) < wanted or key < -heap[0][0]):
            held.add(key)
            heapq.heappush(heap, (-key, text))
            if len(heap) > wanted:
                held.discard(-heapq.heappop(heap)[0])
        if len(hashes) % TICK == 0:
            progress.tick(len(hashes), None)
    if not hashes:
        raise DataError(f"{', '.join(source.path for source in config.data)}: no usable row")
    found = np.frombuffer(hashes, dtype=np.uint64)
    known, first, place = np.unique(found, return_index=True, return_inverse=True)
    number_of = np.empty(len(known), np.int32)
    number_of[np.argsort(first)] = np.arange(len(known), dtype=np.int32)
    sample = [
        (text, int(number_of[np.searchsorted(known, np.uint64(-key))])) for key, text in sorted(heap, reverse=True)
    ]
    numbers = np.frombuffer(prefer, dtype=np.float64) if config.prefer is not None else None
    blank = int(number_of[np.searchsorted(known, np.uint64(text_hash("", config.seed)))]) if empty else None
    learnt, tried = sample[: config.sample], sample[-config.sample :]
    if len(sample) <= config.sample:
        tried = sorted(tried, key=lambda one: one[1])  # in the order of all texts, which gives the same clusters as all
    return Read(len(found), bad, number_of[place], found, learnt, tried, cut, empty, blank, numbers)


def text_hash(text: str, seed: int) -> int:
    """64 bits of a text."""
    data = text.encode("utf-8", "surrogatepass")
    key = seed.to_bytes((seed.bit_length() + 7) // 8 or 1, "little")[:64]
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, key=key).digest(), "little")


def _number(one: StreamedRow, column: str) -> float:
    if column not in one.row.values:
        raise DataError(f"{one.row.where}: there is no column {column!r} (prefer)")
    try:
        return number(one.row.values[column], f"column {column!r} (prefer)", truth=True)
    except BadRow as problem:
        raise DataError(f"{one.row.where}: {problem}") from None


def embed(
    config: BalanceConfig, base_dir: Path | None, known: Read, embedder: Embedder, into: VectorFile, progress: Progress
) -> None:
    """The second pass: each distinct text's vector, where it first comes.

    Raises:
        DataError: the rows are no longer those of the first pass.
    """
    waiting: list[str] = []
    total = known.distinct
    progress.begin("embedding")
    for row, _, text in again(config, base_dir, known):
        if row >= 0 and known.texts[row] == len(into) + len(waiting):
            waiting.append(text)
        if len(waiting) == config.chunk:
            _flush(waiting, embedder, into)
            progress.tick(len(into), total)
    _flush(waiting, embedder, into)
    progress.tick(len(into), total)


def gather(
    config: BalanceConfig, base_dir: Path | None, known: Read, learnt: NDArray[np.int64], tried: NDArray[np.int64]
) -> None:
    """A pass that makes the texts of these numbers those learnt from and tried."""
    wanted = {int(number): "" for number in np.concatenate([learnt, tried])}
    following = 0
    for row, _, text in again(config, base_dir, known):
        if row >= 0 and known.texts[row] == following:
            if following in wanted:
                wanted[following] = text
            following += 1
    known.learnt = [(wanted[int(number)], int(number)) for number in learnt]
    known.tried = [(wanted[int(number)], int(number)) for number in tried]


def _flush(waiting: list[str], embedder: Embedder, into: VectorFile) -> None:
    if waiting:
        into.append(embedder.embed(waiting))
        waiting.clear()


def again(config: BalanceConfig, base_dir: Path | None, known: Read) -> Iterator[tuple[int, StreamedRow, str]]:
    """A later pass: (number of the usable row, the row, its text), or (−1, the row, "") for one that can't be read.

    Raises:
        DataError: the rows are no longer those of the first pass.
    """
    row = 0
    for one in stream(config, base_dir):
        if one.example is None:
            yield -1, one, ""
            continue
        text = _compared(text_of(one, config), config)
        if row >= known.rows or text_hash(text, config.seed) != known.hashes[row]:
            raise DataError(f"{one.row.where}: changed while it was read; {_REMEDY}")
        yield row, one, text
        row += 1
    if row < known.rows:
        raise DataError(f"{config.data[-1].path}: lost rows while it was read; {_REMEDY}")

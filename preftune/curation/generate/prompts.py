"""The prompts: read once for each tier, kept never. What is kept is a hash of each, 16 bytes."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preftune.config import SourceConfig
from preftune.curation.generate.config import TierConfig
from preftune.data.formats import as_prompt
from preftune.data.load import stream_rows
from preftune.errors import DataError
from preftune.records import Content

WIDTH = 16


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt.

    Attributes:
        index: its place among the usable rows of all sources, from 0.
        where: its origin.
        content: what is asked.
        columns: the row's other columns, mapped.
        values: the row as read.
        digest: hash of `content`, hex.
        first: index of the first row with the same prompt; `index` itself where there is none before.
    """

    index: int
    where: str
    content: Content
    columns: Mapping[str, Any] = field(repr=False)
    values: Mapping[str, Any] = field(repr=False)
    digest: str
    first: int

    @property
    def repeated(self) -> bool:
        return self.first != self.index


@dataclass(frozen=True, slots=True)
class Bad:
    """A row that is no prompt, left out by `on_bad_row: skip`."""

    where: str
    problem: str


class Prompts:
    """All prompts of all sources, in their order. Iterating reads the sources anew.

    Attributes:
        count: usable rows.
        bad: bad rows left out.
        repeated: rows whose prompt came before; `repeats`: the first rows of these.

    Args:
        tell: told how many rows have been read.

    Raises:
        DataError: a source can't be read, holds no prompt, or a tier's system message meets one of the row's own.
    """

    def __init__(
        self,
        sources: Sequence[SourceConfig],
        tiers: Sequence[TierConfig],
        base_dir: Path | None,
        tell: Callable[[int, None], None] = lambda done, total: None,
    ) -> None:
        self._sources, self._base_dir = sources, base_dir
        self._digests = bytearray()
        self._first = array("q")
        self.bad = 0
        with_system = next((tier.name for tier in tiers if tier.system is not None), None)
        seen: dict[bytes, int] = {}
        for one in self._read():
            if isinstance(one, Bad):
                self.bad += 1
                continue
            where, content, _, _ = one
            if with_system is not None and not isinstance(content, str) and content[0].role == "system":
                raise DataError(
                    f"{where}: the row has a system message of its own, and tier {with_system} gives one; remove "
                    "the tier's system"
                )
            digest = _digest(content)
            self._digests += digest
            self._first.append(seen.setdefault(digest, len(self._first)))
            tell(len(self._first), None)
        self.count = len(self._first)
        self.repeated = self.count - len(seen)
        self.repeats = frozenset(self._first[index] for index in range(self.count) if self.is_repeated(index))
        if not self.count:
            told = f"all {self.bad} rows are bad" if self.bad else "it is empty"
            raise DataError(f"{sources[0].path}: there is no prompt to answer: {told}")

    def __iter__(self) -> Iterator[Asked | Bad]:
        index = 0
        for one in self._read():
            if isinstance(one, Bad):
                yield one
                continue
            where, content, columns, values = one
            if index >= self.count or _digest(content) != self.digest(index):
                raise DataError(f"{where}: the data changed while they were read; start again when they are at rest")
            yield Asked(index, where, content, columns, values, self.digest(index).hex(), self._first[index])
            index += 1

    def digest(self, index: int) -> bytes:
        """Hash of a prompt."""
        return bytes(self._digests[index * WIDTH : (index + 1) * WIDTH])

    def is_repeated(self, index: int) -> bool:
        return self._first[index] != index

    def _read(self) -> Iterator[tuple[str, Content, Mapping[str, Any], Mapping[str, Any]] | Bad]:
        for source in self._sources:
            for one in stream_rows(source, self._base_dir):
                if one.example is None:
                    yield Bad(one.row.where, one.problem)
                    continue
                example = as_prompt(one.example)
                yield example.where, example.prompt, example.columns, one.row.values


def _digest(content: Content) -> bytes:
    plain = content if isinstance(content, str) else [[turn.role, turn.content] for turn in content]
    return hashlib.blake2b(json.dumps(plain).encode(), digest_size=WIDTH).digest()

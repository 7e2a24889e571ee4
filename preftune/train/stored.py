"""Groups on disk: written as they are tokenised, read back one at a time, so that memory does not grow with the rows.

A store is a folder with `meta.json` and, for each split, flat little-endian files that are mapped into memory:

    SPLIT.ids      int32   token ids: of each group its prompt's, then its completions', one behind the other
    SPLIT.spans    int64   where each of these sequences begins in SPLIT.ids; one more at the end
    SPLIT.groups   int64   which sequence is each group's prompt; one more at the end
    SPLIT.mask     uint8   a truth value for each id, only where a mask is not all true
    SPLIT.scores   float64 of each completion, NaN without one; for counting alone, the exact ones are in SPLIT.rows
    SPLIT.rows     JSON    everything else of a group, one value behind the other
    SPLIT.starts   int64   where each begins in SPLIT.rows; one more at the end

Nothing is pickled: a file that somebody else wrote may give wrong rows, but runs no code. A group that is read back is
equal to the one that was written; one that JSON can't hold exactly is refused when it is written.
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, overload

import numpy
from numpy.typing import NDArray

from preftune.errors import PreftuneError
from preftune.records import Completion, Content, Distribution, Group, Message, Prompt
from preftune.train.lengths import Lengths

SPLITS = ("train", "validation", "test")
DTYPES = {"ids": "<i4", "spans": "<i8", "groups": "<i8", "mask": "|u1", "scores": "<f8", "rows": "|u1", "starts": "<i8"}
HIGHEST = 2**31 - 1
DEPTH = 100
"""Levels of nested lists and objects in a column that are kept."""

Digest: TypeAlias = "hashlib._Hash"


class NotExact(ValueError):
    """A group holds what the files can't give back as it was."""


class Damaged(ValueError):
    """A store's files don't belong together."""


class SplitWriter:
    """Appends groups of one split to its files."""

    def __init__(self, folder: Path, split: str, digest: Digest) -> None:
        self._folder, self._split, self._digest = folder, split, digest
        self._open = ExitStack()
        names = [name for name in DTYPES if name != "mask"]
        self._files: dict[str, BinaryIO] = {name: self._file(name) for name in names}
        self._tokens = self._sequences = self._bytes = 0
        self.lengths, self.highest = Lengths(), -1

    def _file(self, name: str) -> BinaryIO:
        return self._open.enter_context((self._folder / f"{self._split}.{name}").open("wb", buffering=2**20))

    def append(self, group: Group) -> None:
        """Write one group.

        Raises:
            NotExact: it can't be given back as it is.
            OSError: the files can't be written.
        """
        row = _row_of(group)
        scores = [_as_float(completion.score) for completion in group.completions]
        sequences = [group.prompt.ids, *(completion.ids for completion in group.completions)]
        highest = max(max(ids, default=0) for ids in sequences)
        if highest > HIGHEST or min(min(ids, default=0) for ids in sequences) < 0:
            raise NotExact(f"{group.prompt.where}: token id {highest} has no place in 32 bits")
        masks = [(True,) * len(group.prompt.ids), *(completion.mask for completion in group.completions)]
        if "mask" not in self._files and not all(map(all, masks)):
            self._files["mask"] = self._file("mask")
            for start in range(0, self._tokens, 2**20):
                self._files["mask"].write(b"\1" * min(2**20, self._tokens - start))
        self._put("groups", [self._sequences])
        self._put("starts", [self._bytes])
        for ids, mask in zip(sequences, masks, strict=True):
            self._put("spans", [self._tokens])
            self._put("ids", ids)
            if "mask" in self._files:
                self._files["mask"].write(bytes(mask))
            self._tokens += len(ids)
        self._put("scores", scores)
        self._files["rows"].write(row)
        self._sequences += len(sequences)
        self._bytes += len(row)
        self.highest = max(self.highest, highest)
        self.lengths.add(group)
        add_tokens(self._digest, group)

    def __len__(self) -> int:
        return self.lengths.groups

    def close(self) -> None:
        """Write the ends of the offsets and close the files. Without a call of `finish` they are no store."""
        self._open.close()

    def finish(self) -> dict[str, Any]:
        """Close the files. Returns what meta.json says of the split."""
        self._put("groups", [self._sequences])
        self._put("spans", [self._tokens])
        self._put("starts", [self._bytes])
        self.close()
        sizes = {name: (self._folder / f"{self._split}.{name}").stat().st_size for name in self._files}
        return {"lengths": self.lengths.to_json(), "highest": self.highest, "sizes": sizes}

    def _put(self, name: str, values: Sequence[float]) -> None:
        self._files[name].write(numpy.asarray(values, dtype=DTYPES[name]).tobytes())


class StoredGroups(Sequence[Group]):
    """A split of a store; a list in every way but that a group is made anew at each access.

    Attributes:
        lengths: of all groups, as counted when they were written.
        highest: the highest token id, -1 without any.
        digest: hash of all ids of the store, and the splits that it is over; see `preftune.train.prepared`.

    Raises:
        Damaged: a file is missing, cut, or does not fit the others.
    """

    def __init__(self, folder: Path, split: str, meta: Mapping[str, Any]) -> None:
        self._folder, self._split = folder, split
        self.digest: tuple[str, tuple[StoredGroups, ...]] | None = None
        try:
            self.lengths, self.highest = Lengths.from_json(meta["lengths"]), int(meta["highest"])
            arrays = {name: _mapped(folder / f"{split}.{name}", name, size) for name, size in meta["sizes"].items()}
            self._ids, self._spans, self._groups = arrays["ids"], arrays["spans"], arrays["groups"]
            self._scores, self._rows, self._starts = arrays["scores"], arrays["rows"], arrays["starts"]
            self._mask = arrays.get("mask")
            ends = (self._groups[-1] + 1, self._spans[-1], self._starts[-1])
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OSError) as error:
            raise Damaged(f"{split}: {error}") from error
        count = self.lengths.groups
        fits = ends == (len(self._spans), len(self._ids), len(self._rows))
        fits &= (
            len(self._groups) == len(self._starts) == count + 1 and len(self._scores) == len(self._spans) - 1 - count
        )
        if not fits or (self._mask is not None and len(self._mask) != len(self._ids)):
            raise Damaged(f"{split}: its files don't fit each other")

    def __len__(self) -> int:
        return self.lengths.groups

    @overload
    def __getitem__(self, index: int) -> Group: ...
    @overload
    def __getitem__(self, index: slice) -> list[Group]: ...
    def __getitem__(self, index: int | slice) -> Group | list[Group]:
        if isinstance(index, slice):
            return [self._group(i) for i in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"group {index} of {len(self)}")
        return self._group(place)

    def __iter__(self) -> Iterator[Group]:
        return map(self._group, range(len(self)))

    def _group(self, place: int) -> Group:
        try:
            first, last = int(self._groups[place]), int(self._groups[place + 1])
            spans = self._spans[first : last + 1].tolist()
            start, end = self._starts[place : place + 2].tolist()
            ids = self._ids[spans[0] : spans[-1]]
            if not len(ids) or ids.min() < 0 or ids.max() > self.highest:
                raise ValueError("a token id that was never written")
            cuts = [(a - spans[0], b - spans[0]) for a, b in pairwise(spans)]
            flat = ids.tolist()
            mask = None if self._mask is None else self._mask[spans[0] : spans[-1]].astype(bool).tolist()
            tokens = [tuple(flat[a:b]) for a, b in cuts]
            masks = [(True,) * (b - a) if mask is None else tuple(mask[a:b]) for a, b in cuts]
            return _group_of(self._rows[start:end].tobytes(), tokens, masks)
        except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
            raise PreftuneError(
                f"the kept rows in {self._folder} are damaged ({self._split}[{place}]: {error}); delete that folder "
                "and go on with --resume"
            ) from error

    def desirable(self, threshold: float) -> int | None:
        """How many completions score `threshold` or more; None when one has no score."""
        if bool(numpy.isnan(self._scores).any()):
            return None
        return int((self._scores >= threshold).sum())

    def prompt_lengths(self) -> NDArray[numpy.int64]:
        """Tokens of each prompt."""
        first = self._groups[:-1]
        out: NDArray[numpy.int64] = self._spans[first + 1] - self._spans[first]
        return out


def add_tokens(digest: Digest, group: Group) -> None:
    """Feed a group's ids to a hash."""
    for ids in (group.prompt.ids, *(c.ids for c in group.completions)):
        digest.update(array("q", (len(ids), *ids)).tobytes())


def _mapped(path: Path, name: str, size: int) -> NDArray[Any]:
    dtype = numpy.dtype(DTYPES[name])
    if path.stat().st_size != size or size % dtype.itemsize:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes, not {size}")
    if size == 0:
        return numpy.empty(0, dtype)  # nothing can't be mapped
    return numpy.asarray(numpy.memmap(path, dtype, mode="r"))


# ------------------------------------------------------------------------------------------------------- rows as JSON

_PLAIN: dict[str, Any] = {"logprobs": None, "distribution": None, "policy_version": 0, "breakdown": {}, "notes": {}}
"""What completions of data have in these fields: not written."""


def _row_of(group: Group) -> bytes:
    prompt = group.prompt
    content = None if type(prompt.content) is str and prompt.content == prompt.text else _content_to(prompt.content)
    record = [prompt.text, content, prompt.columns, prompt.where, [_completion_to(c) for c in group.completions]]
    try:
        _check(record, DEPTH)
        # Half a surrogate pair has no UTF-8 form, but comes back as it was in this one.
        return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    except ValueError as error:  # also a whole number of thousands of digits
        raise NotExact(f"{prompt.where}: {error}") from error


def _completion_to(c: Completion) -> list[Any]:
    known = {
        "logprobs": None if c.logprobs is None else list(c.logprobs),
        "distribution": None if c.distribution is None else asdict(c.distribution),
        "policy_version": c.policy_version, "breakdown": c.breakdown, "notes": c.notes,
    }  # fmt: skip
    more = {name: value for name, value in known.items() if value != _PLAIN[name]}
    return [c.text, c.finish, c.source, c.score, *([more] if more else [])]


def _group_of(row: bytes, ids: Sequence[tuple[int, ...]], masks: Sequence[tuple[bool, ...]]) -> Group:
    text, content, columns, where, completions = json.loads(row.decode("utf-8", "surrogatepass"))
    if len(completions) != len(ids) - 1:
        raise ValueError("it has another number of completions")
    prompt = Prompt(ids[0], text, text if content is None else _content_from(content), columns, where)
    return Group(prompt, tuple(map(_completion_from, ids[1:], masks[1:], completions)))


def _completion_from(ids: tuple[int, ...], mask: tuple[bool, ...], record: Sequence[Any]) -> Completion:
    text, finish, source, score, *more = record
    if not more:
        return Completion(ids, mask, text=text, finish=finish, source=source, score=score)
    other = dict(more[0])
    if "logprobs" in other:
        other["logprobs"] = tuple(other["logprobs"])
    if "distribution" in other:
        other["distribution"] = Distribution(**other["distribution"])
    return Completion(ids, mask, text=text, finish=finish, source=source, score=score, **other)


def _content_to(content: Content) -> Any:
    return content if isinstance(content, str) else [[message.role, message.content] for message in content]


def _content_from(value: Any) -> Content:
    return value if isinstance(value, str) else tuple(Message(role, text) for role, text in value)


def _check(value: Any, depth: int) -> None:
    """Raises ValueError for what JSON would give back as something else, or not at all."""
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return
    if kind is float:
        if not math.isfinite(value):
            raise ValueError(f"JSON has no {value}")
    elif depth == 0:
        raise ValueError("a column is nested too deeply")
    elif kind is list:
        for one in value:
            _check(one, depth - 1)
    elif kind is dict:
        for key, one in value.items():
            if type(key) is not str:
                raise ValueError(f"JSON has no key of type {type(key).__name__}")
            _check(one, depth - 1)
    else:
        raise ValueError(f"JSON has no {kind.__name__}")


def _as_float(score: float | None) -> float:
    if score is None:
        return math.nan
    try:
        exact = float(score)
    except OverflowError as error:
        raise NotExact(f"a score of {len(str(score))} digits") from error
    if exact != score:
        raise NotExact(f"score {score} is no 64-bit number")
    return exact

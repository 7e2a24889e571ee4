"""Vectors in a file: written in order, read in any. What is read is all that lies in memory."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from preftune.curation.embeddings import Floats
from preftune.errors import PreftuneError


class VectorFile:
    """[n, d] float32 in a file of its own, which goes when the context is left.

    Read by seeks and not through a memory map: pages of a map count as the process's own until the system takes them
    back, and a random order would bring in all of them.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.dimensions = path, 0
        self._count = 0
        try:
            self._file = path.open("w+b", buffering=0)
        except OSError as error:
            raise self._failed(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)

    def restart(self, dimensions: int) -> None:
        """Forget all vectors; those to come have so many dimensions."""
        self._file.truncate(0)
        self.dimensions, self._count = dimensions, 0

    def append(self, rows: Floats) -> None:
        """Add [m, d] at the end. Raises PreftuneError when the disk is full."""
        try:
            self._file.seek(self._count * self._size)
            data = memoryview(np.ascontiguousarray(rows, dtype=np.float32).tobytes())
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise self._failed(error) from error
        self._count += len(rows)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, rows: Any) -> Floats:
        """A slice without a step, or an array of row numbers."""
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(self._count)
            out = np.empty((max(0, stop - start), self.dimensions), np.float32)
            self._read(start, out)
            return out
        out = np.empty((len(rows), self.dimensions), np.float32)
        for place, row in enumerate(rows):
            self._read(int(row), out[place : place + 1])
        return out

    def _read(self, start: int, out: Floats) -> None:
        self._file.seek(start * self._size)
        data = out.data.cast("B") if out.size else memoryview(b"")
        while data:
            count = self._file.readinto(data)
            if not count:
                raise PreftuneError(f"{self.path}: was cut while it was read")
            data = data[count:]

    @property
    def _size(self) -> int:
        return 4 * self.dimensions

    def _failed(self, error: OSError) -> PreftuneError:
        return PreftuneError(
            f"can't write {self.path}: {error.strerror or error}; it takes 4 bytes × texts × dimensions"
        )

"""Where metrics go: metrics.jsonl always, other sinks on request. One small protocol."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from preftune.errors import CheckpointError, PreftuneError, UsageError


class Sink(Protocol):
    """Receives the numbers of each step."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class Journal:
    """An append-only JSON-lines file that can be cut back to where a checkpoint saw it."""

    def __init__(self, path: Path, length: int = 0) -> None:
        self.path = path
        try:
            path.touch()
            found = path.stat().st_size
            if found < length:
                raise CheckpointError(
                    f"{path} holds {found} bytes, but the checkpoint saw {length}: it was cut or replaced. Put it "
                    "back, or start a new run with --output"
                )
            with path.open("r+b") as file:
                file.truncate(length)
        except OSError as error:
            raise PreftuneError(f"can't write {path}: {error}. Make the folder writable") from error
        self._file = path.open("a", encoding="utf-8", errors="backslashreplace")  # a lone surrogate stays valid JSON

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one line and hand it to the operating system. NaN and infinity become strings: JSON has neither."""
        try:
            self._file.write(json.dumps(_plain(record), ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise PreftuneError(
                f"can't write {self.path}: {error}. Free some space, then continue with --resume"
            ) from error

    @property
    def length(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def sync(self) -> None:
        """Have everything written so far on the disk: a checkpoint is going to count on it."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise CheckpointError(
                f"can't write {self.path}: {error}. Free some space, then continue with --resume"
            ) from error

    def close(self) -> None:
        self._file.close()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(value)


class TensorBoardSink:
    """TensorBoard event files in the run folder."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Steps after the checkpoint were written by the run that broke; TensorBoard drops them.
        self._writer: Any = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class TrackerSink:
    """Weights & Biases or Trackio, which share one interface."""

    def __init__(self, module: str, folder: Path, name: str) -> None:
        from importlib import import_module

        try:
            self._tracker: Any = import_module(module)
        except ImportError as error:
            raise UsageError(f"log.sinks names {module}, which is not installed: pip install {module}") from error
        extra = {"dir": str(folder)} if module == "wandb" else {}
        self._tracker.init(project="preftune", name=name, resume="allow", **extra)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._tracker.log(dict(values), step=step)

    def close(self) -> None:
        self._tracker.finish()


def make_sinks(names: Sequence[str], folder: Path, name: str, step: int) -> list[Sink]:
    """The sinks a recipe asks for."""
    sinks: list[Sink] = []
    for sink in names:
        sinks.append(TensorBoardSink(folder, step) if sink == "tensorboard" else TrackerSink(sink, folder, name))
    return sinks

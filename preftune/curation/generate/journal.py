"""Every answer and every failure, on disk before anything else is done with it.

    settings.json     what the answers depend on, of each tier that has any: a command that would draw others stops here
    answers.jsonl     one line for each answer, and for each call that failed, in the order in which they came

A line is written whole, in one go, and handed to the system at once. What a killed program leaves is therefore whole
lines, and at most one half-written one at the end, which the next command takes away.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from preftune.curation.folder import PARTIAL
from preftune.curation.generate.config import GenerateConfig
from preftune.curation.generate.prompts import Prompts
from preftune.errors import DataError, PreftuneError, UsageError

ANSWERS, SETTINGS = "answers.jsonl", "settings.json"
WRITING = ".writing"
VERSION = 1
_NONE = -1


@dataclass(slots=True)
class Tokens:
    """Tokens as the server or the tokenizer counts them; `uncounted`: calls of which the server did not say."""

    read: int = 0
    written: int = 0
    uncounted: int = 0

    def add(self, read: int | None, written: int | None) -> None:
        """A call."""
        self.read += read or 0
        self.written += written or 0
        self.uncounted += read is None or written is None


class Journal:
    """The answers of a folder. Only one program at a time can hold it.

    Attributes:
        tokens: of each tier, over all calls of all commands.

    Args:
        folder: new, or one that was begun before (`resume`).
        prompts: what is asked; answers that are there must be to these.

    Raises:
        UsageError: the folder was begun with other settings, or another program is in it.
        DataError: the answers are damaged, or are answers to other prompts.
    """

    def __init__(self, folder: Path, config: GenerateConfig, prompts: Prompts) -> None:
        self._path = folder / ANSWERS
        self._prompts = prompts
        self._settings = _Settings(folder / SETTINGS, config)
        self._tiers = {tier.name: tier.answers for tier in config.tiers}
        self._places = {name: array("q", [_NONE]) * (n * prompts.count) for name, n in self._tiers.items()}
        self._failures: dict[tuple[str, int], int] = {}
        self.tokens = {name: Tokens() for name in self._tiers}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = self._path.open("a+b", buffering=0)
        except OSError as error:
            raise PreftuneError(f"can't write into {folder}: {error.strerror or error}") from error
        try:
            self._hold(folder)
            self._settings.check()
            self._size = self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def missing(self, tier: str, row: int) -> list[int]:
        """Which of a tier's answers to a prompt are not there."""
        n = self._tiers[tier]
        places = self._places[tier]
        return [k for k in range(n) if places[row * n + k] == _NONE]

    def answer(self, tier: str, row: int, k: int) -> dict[str, Any] | None:
        """An answer as it was written, None where there is none."""
        return self._line(self._places[tier][row * self._tiers[tier] + k])

    def failure(self, tier: str, row: int) -> dict[str, Any] | None:
        """The last call for a tier's answers to a prompt, where it failed and the answers are still missing."""
        return self._line(self._failures.get((tier, row), _NONE)) if self.missing(tier, row) else None

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Add lines: answers, or failures (lines with an `error`).

        Raises:
            PreftuneError: they can't be written. What was written before is safe.
        """
        for tier in {line["tier"] for line in lines}:
            self._settings.begin(tier)
        encoded = [_encoded(line) for line in lines]
        whole = b"".join(encoded)
        try:
            written = 0
            while written < len(whole):
                written += self._file.write(whole[written:]) or 0
        except OSError as error:
            raise PreftuneError(
                f"can't write {self._path}: {error.strerror or error}; make room, then go on with --resume"
            ) from error
        for line, data in zip(lines, encoded, strict=True):
            self._enter(line, self._size)
            self._size += len(data)

    def _line(self, place: int) -> dict[str, Any] | None:
        if place == _NONE:
            return None
        self._file.seek(place)
        # The file has no buffer, so a line is read in blocks.
        data = b""
        while b"\n" not in data:
            block = self._file.read(1 << 14)
            if not block:
                raise DataError(f"{self._path}: it was cut while it was read")
            data += block
        found: dict[str, Any] = json.loads(data[: data.index(b"\n")])
        return found

    def _enter(self, line: Mapping[str, Any], place: int) -> None:
        tier, row = line["tier"], line["row"]
        if "usage" in line:
            self.tokens[tier].add(*line["usage"])
        if "error" in line:
            self._failures[tier, row] = place
        else:
            self._places[tier][row * self._tiers[tier] + line["n"]] = place

    def _hold(self, folder: Path) -> None:
        """Keep other programs out, until this one ends, however it ends. Where there are no locks it does nothing."""
        try:
            import fcntl
        except ImportError:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another program is writing answers into {folder}; wait for it, or stop it") from None
        except OSError:  # a file system without locks
            return

    def _read(self) -> int:
        """Enter what is there; returns the size of it. A half-written last line is cut off."""
        size, number = 0, 0
        with self._path.open("rb") as file:
            for number, data in enumerate(file, 1):
                if not data.endswith(b"\n"):
                    break
                try:
                    line = json.loads(data)
                    self._check(line, number)
                    self._enter(line, size)
                except (ValueError, KeyError, TypeError, IndexError) as error:
                    raise DataError(
                        f"{self._path}:{number}: damaged ({type(error).__name__}: {error}); take the line out, and its "
                        "answer is asked for again"
                    ) from None
                size += len(data)
        if size < self._path.stat().st_size:
            self._file.truncate(size)
        return size

    def _check(self, line: Mapping[str, Any], number: int) -> None:
        row = line["row"]
        if row >= self._prompts.count or self._prompts.digest(row).hex() != line["prompt"]:
            raise DataError(
                f"{self._path}:{number}: an answer to {line['where']}, where another prompt stands now, or none: the "
                "data changed. Rows may be added at the end; for other data name a new folder"
            )


def begun(folder: Path) -> bool:
    """Whether a command of this kind was at work in a folder."""
    return (folder / ANSWERS).is_file()


def empty(folder: Path) -> bool:
    """Whether it ended before the first answer."""
    return begun(folder) and (folder / ANSWERS).stat().st_size == 0


def check_ours(folder: Path) -> None:
    """Raises UsageError where the answers of a folder are of something else: nothing of it may be written over.

    Settings are written before the first answer, and rows only after it.
    """
    if (folder / SETTINGS).is_file():
        return
    names = {entry.name for entry in folder.iterdir()} - {ANSWERS}
    others = [name for name in names if not name.endswith((PARTIAL, WRITING))]
    if others or not empty(folder):
        raise UsageError(
            f"{folder / ANSWERS} is of no command of this kind (there is no {SETTINGS}); name another folder"
        )


class _Settings:
    """What the answers of a folder depend on."""

    def __init__(self, path: Path, config: GenerateConfig) -> None:
        self._path, self._seed = path, config.seed
        self._now = {tier.name: tier.identity() for tier in config.tiers}
        self._begun: dict[str, Any] = {}

    def check(self) -> None:
        """Compare what is there with what would be drawn now. Raises UsageError where they differ."""
        if not self._path.exists():
            return
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            self._begun, seed = dict(found["tiers"]), found["seed"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self._path}: can't be read as settings of this command: {error}") from error
        folder = self._path.parent
        if seed != self._seed:
            raise UsageError(f"{folder} was begun with seed {seed}, and seed is {self._seed} now; set it back")
        for name, about in self._begun.items():
            if name not in self._now:
                raise UsageError(
                    f"{folder} holds answers of tier {name}, which the settings no longer name; put it back, or name a "
                    "new folder"
                )
            if about != self._now[name]:
                told = ", ".join(_differences(about, self._now[name]))
                raise UsageError(
                    f"tier {name}: its answers in {folder} were drawn otherwise ({told}); set it back, give the tier "
                    "another name, or name a new folder"
                )

    def begin(self, tier: str) -> None:
        """Write down what a tier's answers depend on, before the first of them."""
        if tier in self._begun:
            return
        self._begun[tier] = self._now[tier]
        text = json.dumps({"version": VERSION, "seed": self._seed, "tiers": self._begun}, indent=1)
        temporary = self._path.with_name(f"{self._path.name}{WRITING}")
        try:
            temporary.write_text(text + "\n", encoding="utf-8")
            os.replace(temporary, self._path)
        except OSError as error:
            raise PreftuneError(f"can't write {self._path}: {error.strerror or error}") from error


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        out: list[str] = []
        for key in sorted({*before, *now}):
            out += _differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
        return out
    return [] if before == now else [f"{name} was {json.dumps(before)}, now {json.dumps(now)}"]


def _encoded(line: Mapping[str, Any]) -> bytes:
    try:
        return (json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except UnicodeEncodeError:  # half a surrogate pair, from a model that wrote half a character
        return (json.dumps(line, ensure_ascii=True, allow_nan=False) + "\n").encode()

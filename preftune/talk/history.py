"""The messages of a talk, and the JSONL file that keeps them.

    {"role": "system", "content": "…"}                        at most one, first: a prompt that the user chose
    {"role": "user", "content": "…"}
    {"role": "assistant", "content": "…", "interrupted": true}
    {"role": "user", "content": "…", "forgotten": true}       kept, but no longer shown to the model

The file is written whole to a temporary one that then takes its place, so whatever happens it is the old talk or the
new one. What is no message of ours to change (further keys of a line) stays as it was.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preftune.errors import DataError, PreftuneError, UsageError

ROLES = ("system", "user", "assistant")
_FLAGS = ("interrupted", "forgotten")


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a talk.

    Attributes:
        interrupted: the answer was stopped by the user.
        forgotten: the model is no longer shown it.
        extra: further keys of its line in a file.
    """

    role: str
    content: str
    interrupted: bool = False
    forgotten: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """Its line in a file."""
        flags = {name: True for name in _FLAGS if getattr(self, name)}
        value = {"role": self.role, "content": self.content, **flags, **self.extra}
        text = json.dumps(value, ensure_ascii=False)
        # Half a surrogate pair has no UTF-8, only an escape.
        return text if is_unicode(text) else json.dumps(value)


def is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8, which halves of surrogate pairs (bytes that were no text) can't."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def read_turns(path: Path) -> tuple[str | None, list[Turn]]:
    """A file's system prompt (None without one) and its other messages.

    Raises:
        DataError: no such file, not UTF-8, or a line that is no message; names file and line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from None
    system: str | None = None
    turns: list[Turn] = []
    # Not splitlines(): U+2028 and the like may stand inside a JSON text.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        turn = _turn(line, f"{path}:{number}")
        if turn.role != "system":
            turns.append(turn)
        elif turns or system is not None:
            raise DataError(f"{path}:{number}: a system message can only be the first; remove this line")
        else:
            system = turn.content
    return system, turns


def _turn(line: str, where: str) -> Turn:
    wanted = '{"role": "user" or "assistant", "content": text}'
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise DataError(f"{where}: not JSON; each line is {wanted}. Mend or remove it") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: got a {type(value).__name__}; each line is {wanted}")
    role, content = value.pop("role", None), value.pop("content", None)
    if role not in ROLES:
        raise DataError(f"{where}: role is {role!r}; expected one of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise DataError(f"{where}: content is a {type(content).__name__}; expected text")
    flags = {name: value.pop(name, False) for name in _FLAGS}
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise DataError(f"{where}: {name} is {flag!r}; expected true or false")
    return Turn(role, content, **flags, extra=value)


def write_turns(path: Path, system: str | None, turns: Sequence[Turn]) -> None:
    """Write a talk, whole or not at all. Raises PreftuneError when that is impossible."""
    head = [] if system is None else [Turn("system", system)]
    content = "".join(f"{turn.line()}\n" for turn in (*head, *turns))
    path = path.resolve()  # a link stays a link
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".writing-{path.name}-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, path.stat().st_mode if path.exists() else 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise PreftuneError(
            f"can't write {path}: {error.strerror}. Make room, or the folder writable; /save FILE keeps the talk "
            "elsewhere"
        ) from error


def _umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


class HistoryFile:
    """The file of `--history`: holds the talk as it stands.

    Raises:
        UsageError: it is a folder, or its own folder does not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser()
        if self.path.is_dir() or not self.path.parent.is_dir():
            what = "is a folder" if self.path.is_dir() else f"lies in {self.path.parent}, which does not exist"
            raise UsageError(f"--history {path} {what}; name a file in a folder that exists")
        self._known = self._state()

    def read(self) -> tuple[str | None, list[Turn]]:
        """What it holds; nothing when it does not exist. Raises DataError as `read_turns` does."""
        self._known = self._state()
        return read_turns(self.path) if self._known is not None else (None, [])

    def write(self, system: str | None, turns: Sequence[Turn]) -> None:
        """Bring it to the talk as it stands.

        Raises:
            PreftuneError: it can't be written, or another program changed it since: then it is left as it is.
        """
        if self._state() != self._known:
            raise PreftuneError(
                f"{self.path} was changed by another program, so it is left as it is; /save FILE keeps this talk"
            )
        write_turns(self.path, system, turns)
        self._known = self._state()

    def _state(self) -> tuple[int, int, int] | None:
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

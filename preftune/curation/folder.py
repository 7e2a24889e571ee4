"""What a command on data leaves behind: a new folder with the rows, a decision for every row, a summary and a page.

    rows.jsonl          the result, one row a line
    decisions.jsonl     {"where": "train.jsonl:17", "kept": false, "why": "near-duplicate", …}: every row that was read
    summary.json        counts and measures, for programs
    report.html         the same for people

Inputs are never changed, and a folder that holds something is never written into. Files have their names only once all
of them are whole: what a broken command leaves ends in `.partial`, and the next one removes it.
"""

from __future__ import annotations

import errno
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from preftune import __version__
from preftune.errors import PreftuneError, UsageError
from preftune.report.page import Page, write_page

ROWS, DECISIONS, SUMMARY, REPORT = "rows.jsonl", "decisions.jsonl", "summary.json", "report.html"
PARTIAL = ".partial"
_LOCK = f"lock{PARTIAL}"
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})


class Curated:
    """A new folder; see the module. A context manager: files get their names when it is left without an error.

    Attributes:
        folder: where everything goes.
        counts: decisions by their reason; `kept` for rows that were kept.

    Raises:
        UsageError: the folder holds something already, or another program is writing into it.
        PreftuneError: it can't be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.counts: Counter[str] = Counter()
        self._files: dict[str, TextIO] = {}
        self._lock: TextIO | None = None

    def __enter__(self) -> Self:
        check_free(self.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._hold()
            check_free(self.folder)  # the other program may have ended just now
            for left in self.folder.glob(f"*{PARTIAL}"):
                if left.name != _LOCK:
                    left.unlink()
        except OSError as error:
            self._let_go()
            raise PreftuneError(f"can't write into {self.folder}: {error.strerror or error}") from error
        except UsageError:
            self._let_go()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for file in self._files.values():
                file.close()
            if error is None:
                for name in self._files:
                    (self.folder / f"{name}{PARTIAL}").replace(self.folder / name)
        finally:
            self._let_go()

    def write(self, row: Mapping[str, Any], name: str = ROWS) -> None:
        """Add a row to a file of the folder.

        Raises:
            PreftuneError: it can't be written, or holds something that JSON has no form for.
        """
        try:
            text = json.dumps(row, ensure_ascii=False, allow_nan=False, default=_plain)
            text.encode("utf-8")
        except UnicodeEncodeError:
            text = json.dumps(row, ensure_ascii=True, allow_nan=False, default=_plain)  # half a surrogate pair
        except (TypeError, ValueError) as error:
            raise PreftuneError(f"a row for {self.folder / name} can't be written as JSON: {error}") from error
        try:
            self._open(name).write(text + "\n")
        except OSError as error:
            raise PreftuneError(f"can't write {self.folder / name}: {error.strerror or error}") from error

    def decide(self, where: str, *, kept: bool, why: str = "", **details: Any) -> None:
        """Record what became of a row, and count it by `why`. Every row that was read gets exactly one decision."""
        self.counts["kept" if kept else why] += 1
        self.write({"where": where, "kept": kept, **({"why": why} if why else {}), **details}, DECISIONS)

    def text(self, name: str, content: str) -> None:
        """Write a file of the folder at once. Half a surrogate pair (of a file's name, say) is written as an escape."""
        self._open(name).write(content.encode("utf-8", "backslashreplace").decode())

    def finish(self, command: str, settings: Mapping[str, Any], measures: Mapping[str, Any], page: Page) -> None:
        """Write summary.json and report.html.

        Args:
            command: `preftune data balance`.
            settings: everything that was set, so that the command can be run again.
            measures: what was found, as plain values.
        """
        summary = {
            "command": command, "preftune": __version__, "settings": settings, "rows": dict(self.counts), **measures,
        }  # fmt: skip
        try:
            content = json.dumps(summary, ensure_ascii=False, indent=1, allow_nan=False, default=_plain)
        except (TypeError, ValueError) as error:
            raise PreftuneError(f"{self.folder / SUMMARY}: the measures can't be written as JSON: {error}") from error
        self.text(SUMMARY, content + "\n")
        write_page(self.folder / REPORT, page)

    def _hold(self) -> None:
        """Keep other programs out: one would remove the files of the other. Without locks it does nothing."""
        try:
            import fcntl
        except ImportError:
            return
        self._lock = (self.folder / _LOCK).open("w", encoding="utf-8")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            self._lock = None
            raise UsageError(f"another program is writing into {self.folder}; wait for it, or name another") from None
        except OSError:  # a file system without locks
            return

    def _let_go(self) -> None:
        if self._lock is not None:
            (self.folder / _LOCK).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def _open(self, name: str) -> TextIO:
        if name not in self._files:
            self._files[name] = (self.folder / f"{name}{PARTIAL}").open("w", encoding="utf-8")
        return self._files[name]


@contextmanager
def room_for(folder: Path) -> Iterator[None]:
    """What a full disk breaks is told as an error that says so. Raises PreftuneError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise PreftuneError(
            f"can't write into {folder} or into the system's folder for temporary files: {error.strerror}; make room, "
            "then start again"
        ) from error


def check_free(folder: Path) -> None:
    """Raises UsageError when the folder holds anything but what a broken command left."""
    if folder.is_file():
        raise UsageError(f"--output {folder} is a file; name a new folder")
    if folder.is_dir() and any(not entry.name.endswith(PARTIAL) for entry in folder.iterdir()):
        raise UsageError(f"--output {folder} exists and is not empty; name another folder, or remove it first")


def _plain(value: Any) -> Any:
    """Values of Parquet files and numpy that JSON does not have."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    return str(value)

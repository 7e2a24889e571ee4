"""Temporary folders that a hostile program wrote into: where to put them, and how to remove them whole."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import tempfile
from collections.abc import Iterator

PREFIX = "preftune-sandbox-"


def make(for_others: bool) -> str:
    """A new folder for one supervisor, by its absolute path.

    `for_others`: programs of another user will work inside, so every folder above must let them pass.
    """
    places = [os.path.realpath(tempfile.gettempdir()), "/tmp", "/var/tmp"]
    usable = [place for place in places if os.path.isdir(place) and (not for_others or passable(place))]
    path = tempfile.mkdtemp(prefix=PREFIX, dir=(usable or places)[0])
    if for_others:
        os.chmod(path, 0o711)
    return path


def passable(path: str) -> bool:
    """True when any user may pass through `path` and every folder above it."""
    while True:
        if not os.stat(path).st_mode & stat.S_IXOTH:
            return False
        if path == os.path.dirname(path):
            return True
        path = os.path.dirname(path)


def remove(path: str) -> None:
    """Remove a folder with all that is in it, at any depth and whatever the modes. Follows no link.

    A folder inside is first moved to the top and then emptied, so no path gets long and no call nests: ten thousand
    levels are removed like one. No process may be writing there any more. Raises OSError when it can't be done.
    """
    if not os.path.lexists(path):
        return
    os.chmod(path, 0o700)
    names = (f".moved-{n}" for n in itertools.count())
    while entries := os.listdir(path):
        for entry in entries:
            _remove_entry(path, os.path.join(path, entry), names)
    os.rmdir(path)


def _remove_entry(top: str, entry: str, names: Iterator[str]) -> None:
    if not stat.S_ISDIR(os.lstat(entry).st_mode):
        os.unlink(entry)
        return
    os.chmod(entry, 0o700)
    for inner in os.listdir(entry):
        inside = os.path.join(entry, inner)
        if not stat.S_ISDIR(os.lstat(inside).st_mode):
            os.unlink(inside)
            continue
        os.chmod(inside, 0o700)  # a folder is moved only where its own mode lets its ".." be written
        os.rename(inside, _free(top, names))
    os.rmdir(entry)


def _free(top: str, names: Iterator[str]) -> str:
    return next(path for path in (os.path.join(top, name) for name in names) if not os.path.lexists(path))


def try_remove(path: str) -> None:
    """`remove`, or leave what can't be removed (an immutable file, say)."""
    with contextlib.suppress(OSError):
        remove(path)

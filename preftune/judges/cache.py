"""Replies on disk, by content: a request that was answered once is never paid for again.

One small JSON file per reply, under a hash of everything that the reply depends on. It is written beside its place and
then moved there, so any number of programs may share a folder, and a kill at any time leaves whole replies or none.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preftune.errors import UsageError
from preftune.judges.base import JudgeError, Reply
from preftune.records import Message

FORMAT = 1
OFF = "off"


def default_folder() -> Path:
    """Where replies go when the settings name no folder: PREFTUNE_CACHE, else the user's cache folder."""
    root = os.environ.get("PREFTUNE_CACHE")
    if root:
        return Path(root) / "judge"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "preftune" / "judge"


def key_of(
    identity: Mapping[str, Any], messages: Sequence[Message], *, temperature: float, max_tokens: int, vote: int
) -> str:
    """Hash of what a reply depends on: the model, the exact messages (rubric and answers are in them), the sampling
    settings and the vote's number."""
    about = {
        "format": FORMAT,
        "model": dict(identity),
        "messages": [[message.role, message.content] for message in messages],
        "temperature": temperature,
        "max_tokens": max_tokens,
        "vote": vote,
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


class ReplyCache:
    """A folder of replies.

    Args:
        folder: made when it is not there; None keeps nothing.

    Raises:
        UsageError: the folder can't be made or written to.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # replies quote the user's data
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise UsageError(
                f"the judge's cache {folder} can't be written ({error.strerror}): set cache to another folder, or "
                "to off"
            ) from None

    def get(self, key: str) -> Reply | None:
        """The reply, None when there is none, or a damaged file in its place."""
        if self._folder is None:
            return None
        try:
            kept = json.loads(self._path(self._folder, key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None  # absent, or cut short by a power failure: it is asked again and written anew
        if not isinstance(kept, dict) or kept.get("key") != key or kept.get("format") != FORMAT:
            return None
        text, cut = kept.get("text"), kept.get("cut")
        if not isinstance(text, str) or not isinstance(cut, bool):
            return None
        return Reply(text, cut, count_of(kept.get("input_tokens")), count_of(kept.get("output_tokens")))

    def put(self, key: str, reply: Reply) -> None:
        """Keep a reply. May be called from several threads and processes at once. Raises JudgeError when it can't."""
        if self._folder is None or reply.problem:
            return
        path = self._path(self._folder, key)
        kept = {
            "format": FORMAT, "key": key, "text": reply.text, "cut": reply.cut, "input_tokens": reply.input_tokens,
            "output_tokens": reply.output_tokens,
        }  # fmt: skip
        temporary = ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, temporary = tempfile.mkstemp(prefix=".writing-", dir=path.parent)
            with open(handle, "w", encoding="utf-8") as file:
                file.write(json.dumps(kept))
            os.replace(temporary, path)
        except OSError as error:
            if temporary:
                Path(temporary).unlink(missing_ok=True)
            raise JudgeError(
                f"a reply of the judge can't be kept in {self._folder} ({error.strerror}): make room, or set cache to "
                "another folder; replies kept so far are not lost"
            ) from None

    @staticmethod
    def _path(folder: Path, key: str) -> Path:
        return folder / key[:2] / f"{key}.json"


def count_of(value: Any) -> int | None:
    """A number of tokens as a server or a file gives it, None when it is none."""
    return value if type(value) is int and value >= 0 else None


def open_cache(setting: str | None) -> ReplyCache:
    """The cache that the settings name: a folder, `off`, or the default."""
    if setting == OFF:
        return ReplyCache(None)
    return ReplyCache(default_folder() if setting is None else Path(setting).expanduser())

"""A talk in a file: it comes back as it was, and no accident leaves it half-written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from preftune.errors import DataError, PreftuneError, UsageError
from preftune.talk.history import HistoryFile, Turn, read_turns, write_turns

TURNS = [
    Turn("user", "a\u2028b\n\x1b\ud800", forgotten=True),
    Turn("assistant", "", interrupted=True, extra={"model": "x", "time": [1, {"a": None}]}),
    Turn("user", '"quoted" \\ 🐉'),
]


@pytest.mark.parametrize("system", [None, "", "Be brief.\nAlways."])
def test_what_is_written_is_read(tmp_path: Path, system: str | None) -> None:
    path = tmp_path / "talk.jsonl"
    write_turns(path, system, TURNS)
    assert read_turns(path) == (system, TURNS)
    assert [p.name for p in tmp_path.iterdir()] == ["talk.jsonl"]
    lines = path.read_text(encoding="utf-8").split("\n")
    assert json.loads(lines[-2]) == {"role": "user", "content": '"quoted" \\ 🐉'}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "not JSON"),
        ('{"role": "user", "content": "cut', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "got a list"),
        ('{"role": "tool", "content": "x"}', "role is 'tool'; expected one of system, user, assistant"),
        ('{"content": "x"}', "role is None"),
        ('{"role": "user", "content": ["x"]}', "content is a list; expected text"),
        ('{"role": "user", "content": "x", "forgotten": "yes"}', "forgotten is 'yes'"),
        ('{"role": "system", "content": "x"}', "a system message can only be the first"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "talk.jsonl"
    path.write_text(f'{{"role": "user", "content": "a"}}\n\n{line}\n', encoding="utf-8")
    with pytest.raises(DataError) as error:
        read_turns(path)
    assert str(error.value).startswith(f"{path}:3: ")
    assert message in str(error.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"bytes is not UTF-8 text \(byte 0\)"):
        read_turns(tmp_path / "bytes")
    with pytest.raises(DataError, match="No such file"):
        read_turns(tmp_path / "nothing")
    with pytest.raises(UsageError, match="is a folder"):
        HistoryFile(tmp_path)
    with pytest.raises(UsageError, match="which does not exist"):
        HistoryFile(tmp_path / "no" / "talk.jsonl")
    assert HistoryFile(tmp_path / "new").read() == (None, [])


@pytest.mark.parametrize("accident", ["replace", "fsync", "interrupt"])
def test_an_accident_leaves_the_old_talk(tmp_path: Path, accident: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "talk.jsonl"
    file = HistoryFile(path)
    file.write(None, TURNS[:1])
    old = path.read_bytes()

    def fail(*args: Any) -> None:
        raise KeyboardInterrupt if accident == "interrupt" else OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace" if accident != "fsync" else "fsync", fail)
    with pytest.raises(KeyboardInterrupt if accident == "interrupt" else PreftuneError) as error:
        file.write(None, TURNS)
    if accident != "interrupt":
        assert "No space left on device" in str(error.value)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["talk.jsonl"]
    monkeypatch.undo()
    file.write(None, TURNS)  # and it can go on
    assert read_turns(path)[1] == TURNS


def test_a_file_that_another_program_changed_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    one, other = HistoryFile(path), HistoryFile(path)
    one.write(None, TURNS[:1])
    with pytest.raises(PreftuneError, match="was changed by another program"):
        other.write(None, TURNS)
    assert read_turns(path)[1] == TURNS[:1]
    one.write("s", TURNS)
    assert read_turns(path) == ("s", TURNS)


def test_links_and_permissions_stay(tmp_path: Path) -> None:
    real, link = tmp_path / "real.jsonl", tmp_path / "link.jsonl"
    real.touch()
    real.chmod(0o640)
    link.symlink_to(real)
    write_turns(link, None, TURNS)
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert read_turns(real)[1] == TURNS

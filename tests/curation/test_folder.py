"""The output folder of a command on data: whole or not there, every row decided, nothing overwritten."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest

from preftune.curation.folder import Curated, room_for
from preftune.errors import PreftuneError, UsageError
from preftune.report.page import Page


def _fill(folder: Path) -> Curated:
    with Curated(folder) as out:
        out.write({"prompt": "a", "n": np.int64(3), "b": b"\x00", "s": {1}})
        out.decide("f:1", kept=True)
        out.decide("f:2", kept=False, why="duplicate", of="f:1")
        out.finish("preftune data x", {"cap": 3}, {"found": 1.5}, Page("x"))
    return out


def test_what_is_left_behind(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    out = _fill(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["decisions.jsonl", "report.html", "rows.jsonl", "summary.json"]
    assert json.loads((folder / "rows.jsonl").read_text()) == {"prompt": "a", "n": 3, "b": {"bytes": "00"}, "s": [1]}
    decisions = [json.loads(line) for line in (folder / "decisions.jsonl").read_text().splitlines()]
    assert decisions == [
        {"where": "f:1", "kept": True},
        {"where": "f:2", "kept": False, "why": "duplicate", "of": "f:1"},
    ]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["rows"] == {"kept": 1, "duplicate": 1} == dict(out.counts)
    assert summary["settings"] == {"cap": 3} and summary["found"] == 1.5 and summary["command"] == "preftune data x"


def test_a_broken_command_leaves_nothing_with_a_name_and_can_be_repeated(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with pytest.raises(RuntimeError), Curated(folder) as out:
        out.write({"a": 1})
        raise RuntimeError
    assert [p.name for p in folder.iterdir()] == ["rows.jsonl.partial"]
    _fill(folder)
    assert not list(folder.glob("*.partial"))


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    _fill(folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(UsageError, match="exists and is not empty"), Curated(folder):
        pass
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    with pytest.raises(UsageError, match="is a file"), Curated(folder / "rows.jsonl"):
        pass


def test_half_a_surrogate_pair_and_infinity(tmp_path: Path) -> None:
    with Curated(tmp_path / "out") as out:
        out.write({"text": "a\ud800"})
        with pytest.raises(PreftuneError, match="can't be written as JSON"):
            out.write({"x": float("inf")})
    assert json.loads((tmp_path / "out" / "rows.jsonl").read_text()) == {"text": "a\ud800"}


def test_a_files_name_that_is_no_utf8_can_stand_in_a_summary(tmp_path: Path) -> None:
    with Curated(tmp_path / "out") as out:
        out.finish("preftune data x", {"path": "b\udcff.jsonl"}, {}, Page("x \udcff"))
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["settings"] == {"path": "b\udcff.jsonl"}
    assert "x \\udcff" in (tmp_path / "out" / "report.html").read_text()


def test_two_programs_do_not_share_a_folder(tmp_path: Path) -> None:
    """The second would remove what the first has written, and the first give its name to what the second has."""
    folder = tmp_path / "out"
    with Curated(folder) as out:
        out.write({"n": 1})
        with pytest.raises(UsageError, match="another program is writing into"), Curated(folder):
            pass
        out.write({"n": 2})
    assert (folder / "rows.jsonl").read_text() == '{"n": 1}\n{"n": 2}\n'
    assert [path.name for path in folder.iterdir()] == ["rows.jsonl"]


def test_what_a_killed_program_leaves_holds_nobody_up(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "lock.partial").write_text("")
    _fill(tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.partial"))


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    with pytest.raises(PreftuneError, match="No space left on device; make room"), room_for(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FileNotFoundError), room_for(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "no such file")

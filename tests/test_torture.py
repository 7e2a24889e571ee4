"""A short version of each part of `make torture`."""

from __future__ import annotations

from pathlib import Path

from tests.torture import run
from tests.torture.completions import check_completions
from tests.torture.rows import check_rows


def test_kills(tmp_path: Path) -> None:
    assert run.check_kills(tmp_path, 3, seed=11).startswith("3 kills in ")


def test_fuzzed_rows(tmp_path: Path) -> None:
    counts = check_rows(tmp_path, 200, seed=5)
    assert sum(counts.values()) == 200
    assert min(counts.values()) > 30  # the fuzz finds both ways out


def test_wrong_recipes(tmp_path: Path) -> None:
    assert run.check_wrong_recipes(tmp_path, 24, seed=5).startswith("24 wrong recipes")


def test_fuzzed_completions() -> None:
    seen = check_completions(100, seed=5, seconds=5)
    assert seen["calculate"] == seen["reasoning-number"] == 100


def test_a_failure_is_seen(monkeypatch, capsys) -> None:
    from tests.torture import completions

    monkeypatch.setattr(completions, "calculate", lambda said: "not a number")
    assert run.main(["--kills", "0", "--rows", "0", "--recipes", "0", "--completions", "10"]) == 1
    assert "FAILED" in capsys.readouterr().out

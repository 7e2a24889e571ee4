"""`preftune data audit`: exit codes, what is printed, and requests that are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from preftune.cli.main import main
from tests import tiny
from tests.curation.test_audit import clean


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny.write(tmp_path / "rows.jsonl", clean(30))
    return tmp_path


def audit(*more: str, data: str = "rows.jsonl") -> int:
    path = [] if "--data.path" in more else ["--data.path", data]
    return main(["data", "audit", *path, *more])


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def test_fit(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit("--strict") == 0
    said = capsys.readouterr().out
    assert "30 rows, 0 bad: fit\n" in said and "report: audit/report.html" in said
    assert "give --model.path" in said and "Rows that stand twice" in said
    assert sorted(path.name for path in (home / "audit").iterdir()) == [
        "decisions.jsonl", "report.html", "summary.json",
    ]  # fmt: skip
    assert summary(home / "audit")["command"] == "preftune data audit"


def test_look_fails_only_when_strict(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = clean(60)
    rows[3]["rejected"] = " "
    tiny.write(home / "rows.jsonl", rows)
    assert audit("--output", "a") == 0 and "fit, with care" in capsys.readouterr().out
    assert audit("--output", "b", "--strict") == 1 and ": not fit" in capsys.readouterr().out
    assert audit("--output", "c", "--limits.empty", "[0.1, 0.2]", "--strict") == 0
    assert audit("--output", "d", "--limits.empty", "[0, 0.01]") == 1


def test_not_fit(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (home / "rows.jsonl").open("a") as file:
        file.write("{bad\n")
    assert audit() == 1
    said = capsys.readouterr().out
    assert "30 rows, 1 bad: not fit" in said and "training would stop at 1 of them" in said
    assert audit("--output", "b", "--data.on_bad_row", "skip", "--limits.bad_rows", "[0.1, 0.2]", "--strict") == 0


def test_sources_tests_and_their_fields(home: Path) -> None:
    rows = clean(30)
    tiny.write(home / "more.jsonl", clean(5, seed=3))
    tiny.write(home / "t0.jsonl", clean(4, seed=4))
    tiny.write(home / "t1.jsonl", [{"question": row["prompt"]} for row in rows[:3]] + [{"question": "new"}] * 2)
    code = audit(
        "--data.1.path", "more.jsonl", "--test.path", "t0.jsonl", "--test.1.path", "t1.jsonl",
        "--test.1.columns.prompt.from", "question", "--test.1.limit", "4", "--overlap.share", "0.7",
    )  # fmt: skip
    found = summary(home / "audit")
    assert code == 1 and [source["rows"] for source in found["sources"]] == [30, 5]
    assert found["test"]["rows"] == 8 and found["checks"]["test_prompts"]["count"] == 3
    assert found["settings"]["overlap"]["share"] == 0.7 and found["settings"]["test"][1]["limit"] == 4
    assert len(tiny.lines(home / "audit" / "test.jsonl")) == 8


def test_with_a_model(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.save(home / "model", max_position_embeddings=400)
    capsys.readouterr()
    code = audit("--model.path", str(model), "--tokens.max_prompt_tokens", "101", "--show", "1", "--strict")
    found = summary(home / "audit")
    assert code == 1 and found["tokens"]["counts"]["dropped"] > 0 and len(found["tokens"]["shown"]) == 1
    assert "tokens were not looked at" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--data.path", "nothing.jsonl"], "no such file"),
        (["--test.path", "nothing.jsonl"], "no such file"),
        (["--model.path", "./nothing"], "does not exist"),
        (["--output", "taken"], "is not empty"),
        (["--data.weight", "2"], "does not read this setting"),
        (["--model.path", "m", "--model.lora.r", "3"], "does not read this setting"),
        (["--test.1.weight", "2"], "does not read this setting"),
        (["--test.pth", "x"], "--test.pth: no such setting; did you mean test.path?"),
        (["--test.limit", "0", "--test.path", "rows.jsonl"], "--test.limit: got 0; expected a whole number"),
        (["--test.limit", "3"], "test.0.path: missing"),
        (["--test.0.colums.x", "3", "--test.path", "rows.jsonl"], "test"),
        (["--limits.empty", "[0.5, 0.1]"], "--limits.empty: got [0.5, 0.1]"),
        (["--limits.emty", "[0, 1]"], "--limits.empty"),
        (["--limits.empty", "often"], "--limits.empty: got 'often'"),
        (["--overlap.share", "2"], "--overlap.share: got 2"),
        (["--tokens.max_prompt_tokens", "3"], "give model.path"),
        (["--data.contest", "{}"], "does not read this setting"),
        (["--near.threshold", "true"], "--near.threshold: got true"),
    ],
)  # fmt: skip
def test_wrong_requests(home: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str) -> None:
    (home / "taken").mkdir()
    (home / "taken" / "mine").write_text("mine")
    assert audit(*flags) == 2
    assert said in capsys.readouterr().err
    assert not (home / "audit").exists() or all(path.suffix == ".partial" for path in (home / "audit").iterdir())


def test_data_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "audit"]) == 2
    assert "data" in capsys.readouterr().err


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["data", "audit", "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    for flag in ("--data.path", "--test.columns.NAME.from", "--limits.conflicts", "--near.threshold", "--model.path",
                 "--tokens.on_too_long", "--strict", "--show"):  # fmt: skip
        assert f"  {flag} " in said
    assert "--data.weight" not in said and "--model.lora" not in said


def test_a_file_name_moves_no_terminal(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "rows.jsonl").rename(home / "a\x1b[31mb.jsonl")
    assert audit("--output", "o\x1b[2Jx", data="a\x1b[31mb.jsonl") == 0
    assert "\x1b" not in capsys.readouterr().out

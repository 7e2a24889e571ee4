"""`preftune data balance`: every setting is a flag, and what is wrong is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from preftune.cli.main import main
from preftune.curation.balance.config import UNREAD, BalanceConfig
from preftune.recipes.schema import leaves


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    texts = ["the cat sleeps on the mat"] * 6 + ["a cat sleeps on mats"] * 2 + ["как заварить зелёный чай"]
    path.write_text("".join(json.dumps({"prompt": text, "grade": n}) + "\n" for n, text in enumerate(texts)))
    return path


def run(rows: Path, *flags: str) -> int:
    return main(["data", "balance", f"--data.path={rows}", f"--output={rows.parent / 'out'}", *flags])


def settings(rows: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((rows.parent / "out" / "summary.json").read_text())["settings"]
    return found


def test_the_command_writes_a_balanced_folder(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(rows, "--cap=4", "--raise_to", "3", "--threshold=0.7") == 0
    said = capsys.readouterr().out
    assert "9 rows (3 different texts) in 2 clusters at threshold 0.7; 1 clusters capped, 1 raised" in said
    assert "5 rows kept, 4 over the cap; 7 lines written" in said
    assert f"report: {rows.parent / 'out' / 'report.html'}" in said
    assert len((rows.parent / "out" / "rows.jsonl").read_text().splitlines()) == 7


def test_flags_reach_the_settings(rows: Path) -> None:
    given = {
        "seed": 3, "text": "prompt", "characters": 50, "dimensions": 5, "threshold": 0.9, "branching": 7,
        "max_clusters": 9, "sample": 11, "cap": 2, "keep": "diverse", "prefer": "grade", "raise_to": 2,
        "raise_from": 2, "raise_by": "weight", "chunk": 1,
    }  # fmt: skip
    assert run(rows, *(f"--{name}={value}" for name, value in given.items()), "--data.limit=8") == 0
    found = settings(rows)
    assert {name: found[name] for name in given} == given
    assert found["data"][0]["limit"] == 8
    left = set(BalanceConfig.model_fields) - set(given)
    assert left == {"data", "embedder", "device", "batch_size", "prefix", "trust_remote_code"}  # see test_encoder.py


def test_null_takes_a_bound_away(rows: Path) -> None:
    assert run(rows, "--cap=null", "--raise_to=null") == 0
    written, given = (rows.parent / "out" / "rows.jsonl").read_text(), rows.read_text()
    assert [json.loads(line) for line in written.splitlines()] == [json.loads(line) for line in given.splitlines()]


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["data", "balance", "--help"])
    assert left.value.code == 0
    said = capsys.readouterr().out
    for leaf in leaves(BalanceConfig):
        name = leaf.name.replace("*", "NAME")
        shown = not any(name == one or name.startswith(f"{one}.") for one in UNREAD)
        assert (f"--{name} " in said) == shown


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--capp=3"], "--capp: no such flag; did you mean --cap?"),
        (["--cap=0"], "--cap: got 0; expected a whole number, at least 1, or null"),
        (["--cap=many"], "--cap: got 'many'; expected a whole number"),
        (["--cap=5", "--raise_to=6"], "--raise_to: got 6, which is over the cap of 5"),
        (["--raise_to=2", "--raise_from=3"], "raise_from (3) is over raise_to (2)"),
        (["--keep=best"], "--keep: got 'best'; expected one of random, diverse, central"),
        (["--threshold=-1"], "--threshold: got -1; expected a number, above 0"),
        (["--device=cpu"], "device is read by a model (embedder) alone; remove it"),
        (["--embedder=some/model", "--dimensions=3"], "dimensions is read by the builtin embedder alone; remove it"),
        (["--embedder="], "--embedder: is empty"),
        (["--data.weight=2"], "--data.weight: preftune data balance does not read this setting"),
        (["--data.pathh=x"], "--data.pathh: "),
        (["--text=topic"], "there is no column 'topic' (text); columns: prompt, grade"),
    ],
)
def test_what_is_wrong_is_said(rows: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str) -> None:
    assert run(rows, *flags) == 2
    assert said in capsys.readouterr().err
    assert not (rows.parent / "out" / "rows.jsonl").exists()


def test_files_that_are_missing_or_there_already(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "balance", "--output", str(rows.parent / "out")]) == 2
    assert "data.0.path: missing; expected text (hub id, file" in capsys.readouterr().err
    assert main(["data", "balance", "--data.path", str(rows)]) == 2
    assert "--output" in capsys.readouterr().err
    assert main(["data", "balance", "--data.path", str(rows) + "x", "--output", str(rows.parent / "out")]) == 2
    assert "no such file or folder; did you mean rows.jsonl?" in capsys.readouterr().err
    assert main(["data", "balance", "--data.path", str(rows), "--output", str(rows.parent)]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert main(["data", "balanse"]) == 2
    assert "did you mean preftune data balance?" in capsys.readouterr().err

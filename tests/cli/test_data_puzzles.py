"""`preftune data puzzles`: files, splits, the same command twice, slips that are named, and a recipe that uses it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from preftune.cli.data import COMMANDS
from preftune.cli.main import main
from preftune.logic import sayings_from_json
from tests import tiny


def make(folder: Path, *more: str, output: str = "p.jsonl", count: int = 20) -> int:
    return main(["data", "puzzles", "--count", str(count), "--output", str(folder / output), *more])


def forms(path: Path) -> list[str]:
    return [sayings_from_json(line["statements"]).canonical() for line in tiny.lines(path)]


def test_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make(tmp_path, "--people", "3-4", "--depth", "1") == 0
    said = capsys.readouterr().out
    assert f"20 puzzles: {tmp_path / 'p.jsonl'}" in said and "% of the people are knights" in said
    rows = tiny.lines(tmp_path / "p.jsonl")
    assert len(rows) == 20 and {row["people"] for row in rows} == {3, 4}
    for row in rows:
        assert set(row) == {"prompt", "answer", "solution", "statements", "people"}
        puzzle = sayings_from_json(row["statements"])
        assert {name: "knight" if kind else "knave" for name, kind in puzzle.solution.items()} == row["solution"]
        assert all(name in row["prompt"] and name in row["answer"] for name in row["solution"])
        assert len(row["solution"]) == row["people"]
    assert not list(tmp_path.glob("*.partial"))


def test_the_same_command_gives_the_same_files_and_another_seed_others(tmp_path: Path) -> None:
    assert make(tmp_path, output="a.jsonl") == make(tmp_path, output="b.jsonl") == 0
    assert make(tmp_path, "--seed", "1", output="c.jsonl") == 0
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert set(forms(tmp_path / "a.jsonl")) != set(forms(tmp_path / "c.jsonl"))


def test_splits_share_no_puzzle_under_any_names(tmp_path: Path) -> None:
    splits = [f"{tmp_path / name}.jsonl=15" for name in ("valid", "test")]
    assert make(tmp_path, "--people", "2", "--split", splits[0], "--split", splits[1], count=40) == 0
    files = [forms(tmp_path / f"{name}.jsonl") for name in ("p", "valid", "test")]
    assert [len(found) for found in files] == [40, 15, 15]
    assert len({form for found in files for form in found}) == 70
    assert make(tmp_path, "--people", "2", "--exclude", str(tmp_path / "p.jsonl"), output="later.jsonl") == 0
    assert not set(forms(tmp_path / "later.jsonl")) & set(files[0])
    assert set(forms(tmp_path / "later.jsonl")) & {
        *files[1],
        *files[2],
    }  # the same seed: only what is excluded stays out


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.jsonl").write_text("mine")
    assert make(tmp_path) == 2
    assert "--output: " in capsys.readouterr().err
    assert make(tmp_path, "--split", f"{tmp_path / 'p.jsonl'}=3", output="q.jsonl") == 2
    assert "--split: " in (said := capsys.readouterr().err) and "exists and is not overwritten" in said
    assert (tmp_path / "p.jsonl").read_text() == "mine" and not (tmp_path / "q.jsonl").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["puzles"], "preftune data puzles: no such command; did you mean preftune data puzzles?"),
        (["xyz"], "preftune data xyz: no such command; commands: "),
        (["puzzles"], "the following arguments are required: --count, --output"),
        (["puzzles", "--cuont", "3"], "--cuont: no such flag; did you mean --count?"),
        (["puzzles", "--count", "0", "--output", "p.jsonl"], "got '0'; expected a whole number, at least 1"),
        (["puzzles", "--count", "²", "--output", "p.jsonl"], "got '²'; expected a whole number"),
        (["puzzles", "--count", "3", "--output", "p.csv"], "the file's name must end in .jsonl"),
        (["puzzles", "--count", "3", "--output", "no/p.jsonl"], "there is no folder no"),
        (["puzzles", "--count", "3", "--output", "p.jsonl", "--people", "2-9"], "people: 2-9 is no range within 2-8"),
        (["puzzles", "--count", "3", "--output", "p.jsonl", "--people", "some"], "expected a number or a range"),
        (["puzzles", "--count", "3", "--output", "p.jsonl", "--people", "2-"], "expected a number or a range"),
        (["puzzles", "--count", "3", "--output", "p.jsonl", "--depth", "9"], "--depth"),
        (["puzzles", "--count", "3", "--output", "p.jsonl", "--seed", "-1"], "--seed"),
        (["puzzles", "--count", "3", "--output", "p.jsonl", "--split", "q.jsonl"], "expected FILE=N, such as"),
        (["puzzles", "--count", "3", "--output", "p.jsonl", "--split", "p.jsonl=2"], "name one file twice"),
        (["puzzles", "--count", "3", "--output", "p.jsonl", "--exclude", "no.jsonl"], "no.jsonl can't be read"),
        (["puzzles", "--count", "200", "--output", "p.jsonl", "--people", "2", "--depth", "1"], "of 200 puzzles"),
    ],
)  # fmt: skip
def test_slips(given: list[str], message: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", *given]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_excluded_file_that_is_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, line in enumerate(
        ['{"prompt": "q"}', "[1]", "{", '{"statements": [{"speaker": "A", "says": ["spy"]}]}']
    ):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(f'\n{{"statements": [{{"speaker": "A", "says": ["knave", "B"]}}]}}\n{line}\n')
        assert make(tmp_path, "--exclude", str(path)) == 2
        assert f"{path}:3: no row of preftune data puzzles: " in capsys.readouterr().err


def test_help_names_every_command_and_loads_nothing_heavy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^  {name} +{re.escape(summary)}$", text, re.M) for name, summary in COMMANDS.items())
    code = (
        "import sys\nfrom preftune.cli.main import main\n"
        "try: main(['data', 'puzzles', '--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert "--exclude FILE" in done.stdout and done.stdout.splitlines()[-1] == "[]"


def test_a_recipe_trains_on_them(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    """The file through `preftune grpo --dry-run`, which samples and scores the first prompts."""
    monkeypatch.chdir(tmp_path)
    tiny.save(tmp_path / "model", max_position_embeddings=2048)
    assert make(tmp_path, "--people", "2", "--depth", "1", count=4) == 0
    given = {
        "model.path": "model", "data.path": "p.jsonl", "rewards.0.name": "knights-knaves",
        "rewards.0.args": "{check: statements, partial: true}", "train.steps": "1", "train.batch_size": "2",
        "sampling.group_size": "2", "sampling.max_tokens": "4", "tokens.max_prompt_tokens": "2000",
    }  # fmt: skip
    flags = [part for name, text in given.items() for part in (f"--{name}", text)]
    capsys.readouterr()
    assert main(["grpo", *flags, "--dry-run"]) == 0
    assert "4 kept" in capsys.readouterr().out
    assert main(["grpo", *flags, "--output", "run", "--train.threads", "1"]) == 0
    lines = [line["metrics"] for line in tiny.lines(tmp_path / "run" / "metrics.jsonl")]
    values = [line["reward/knights-knaves"] for line in lines if "reward/knights-knaves" in line]
    assert values and all(0.0 <= value <= 1.0 for value in values)

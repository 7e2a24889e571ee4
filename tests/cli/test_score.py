"""`preftune score`: flags, files, the summary, and slips that are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from preftune.cli.main import main
from preftune.cli.score import scored_leaves
from tests import tiny, tinyreward

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("score")
    tinyreward.save(folder / "rm", normalization=(0.5, 2.0))
    rows = [{"question": f"{n}+1=", "chosen": str(n + 1), "rejected": "x", "subset": "hep-go"} for n in range(6)]
    tiny.write(folder / "pairs.jsonl", rows)
    return folder


def flags(home: Path, *more: str) -> list[str]:
    data = ["--data.path", str(home / "pairs.jsonl"), "--data.columns.prompt.from", "question"]
    return ["score", "--model.path", str(home / "rm"), *data, *more]


def test_files_and_words(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, summary = tmp_path / "scores.jsonl", tmp_path / "summary.json"
    assert main(flags(home, "--output", str(out), "--summary", str(summary), "--max_tokens_per_batch", "20")) == 0
    lines = tiny.lines(out)
    assert [line["where"].rsplit(":", 1)[1] for line in lines] == ["1", "2", "3", "4", "5", "6"]
    expected = [tinyreward.plain_score(home / "rm", text) for text in ("0+1=1<eos>", "0+1=x<eos>")]
    assert lines[0]["raw"] == pytest.approx(expected, abs=1e-5)
    content = json.loads(summary.read_text())
    right = sum(line["raw"][0] > line["raw"][1] for line in lines)
    assert content["accuracy"]["value"] == pytest.approx(right / 6)
    assert content["by_subset"]["hep-go"]["n"] == 6 and content["normalization"] == [0.5, 2.0]
    assert content["rewardbench"]["overall"] is None
    words = capsys.readouterr().out
    assert f"accuracy on 6 pairs: {right / 6:.3f} [" in words
    assert "scores are (raw − 0.5) / 2" in words


def test_without_output_the_lines_are_all_of_standard_output(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags(home, "--columns", "--normalize", "false", "--data.limit", "2")) == 0
    got = capsys.readouterr()
    lines = [json.loads(line) for line in got.out.splitlines()]
    assert [line["prompt"] for line in lines] == ["0+1=", "1+1="]
    assert lines[0]["scores"] == lines[0]["raw"] and lines[0]["columns"] == {"subset": "hep-go"}
    assert "2 rows, 2 prompts, 4 completions, 0 skipped" in got.err


def test_nothing_is_overwritten(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    for flag in ("--output", "--summary"):
        assert main(flags(home, flag, str(taken))) == 2
        assert "exists and is not overwritten" in capsys.readouterr().err
    assert taken.read_text() == "mine"
    both = str(tmp_path / "one")
    assert main(flags(home, "--output", both, "--summary", both)) == 2
    assert "give two files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--model.pth", "x"], "--model.pth: no such setting; did you mean model.path?"),
        (["--modle.path", "x"], "did you mean --model.path?"),
        (["--outptu", "x"], "--outptu: no such flag; did you mean --output?"),
        (["--train.steps", "5"], "--train.steps: no such flag"),
        (["--model.lora.r", "4"], "preftune score does not read this setting"),
        (["--data.0.weight", "2"], "preftune score does not read this setting"),
        (["--max_tokens_per_batch", "0"], "expected a whole number, at least 1"),
        (["--on_too_long", "drop"], "invalid choice: 'drop'"),
        (["--data.limit", "0"], "--data.limit: got 0; expected a whole number, at least 1"),
        (["rows.jsonl"], "unrecognized arguments: rows.jsonl"),
    ],
)
def test_slips_are_named(given: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "--model.path", "m", "--data.path", "d.jsonl", *given]) == 2
    assert message in capsys.readouterr().err


def test_what_is_missing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score"]) == 2
    error = capsys.readouterr().err
    assert "model.path: missing" in error and "data.0.path: missing" in error


def test_a_second_source(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = tiny.write(tmp_path / "more.jsonl", [{"prompt": "1+2=", "completion": "3"}])
    first = ["--data.0.path", str(home / "pairs.jsonl"), "--data.0.columns.prompt.from", "question"]
    model = ["score", "--model.path", str(home / "rm"), "--tokens.loss_on", "last"]
    assert main([*model, *first, "--data.1.path", str(more)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [len(line["scores"]) for line in lines] == [2] * 6 + [1]
    assert lines[-1]["where"] == f"{more}:1"


def test_help_lists_what_is_read_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["score", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    names = [leaf.name.replace("*", "NAME") for leaf in scored_leaves()]
    assert {"model.path", "data.columns.NAME.from", "tokens.chat_template"} <= set(names)
    assert all(f"--{name} " in text for name in names)
    assert "--model.lora" not in text and "--train." not in text

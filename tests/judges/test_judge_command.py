"""`preftune judge evaluate`: flags, files, a second run that asks nothing, and slips that are named."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from preftune.cli.judge import judged_leaves
from preftune.cli.main import main
from preftune.judges import JudgeConfig
from tests import tiny
from tests.judges.fakes import Server, rubbish

ROWS = [{"question": f"t{n}", "chosen": "q5", "rejected": "q3" if n else "my q7"} for n in range(6)]


def flags(path: Path, server: Server, *more: str) -> list[str]:
    judge = ["--judge.model", "big", "--judge.base_url", server.url, "--judge.backoff", "0.01"]
    return ["judge", "evaluate", *judge, "--data.path", str(path), "--data.columns.prompt.from", "question", *more]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return tiny.write(tmp_path / "pairs.jsonl", ROWS)


def test_files_words_and_a_second_run(
    pairs: Path, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, summary = tmp_path / "verdicts.jsonl", tmp_path / "summary.json"
    prices = ["--judge.price_input", "2", "--judge.price_output", "8"]
    assert main(flags(pairs, server, "--output", str(out), "--summary", str(summary), *prices)) == 0
    lines = tiny.lines(out)
    assert [line["verdict"] for line in lines] == ["worse"] + ["better"] * 5
    assert [line["where"].rsplit(":", 1)[1] for line in lines] == ["1", "2", "3", "4", "5", "6"]
    content = json.loads(summary.read_text())
    assert content["accuracy"]["value"] == pytest.approx(5 / 6) and content["pairs"] == 6
    assert content["judge"] == {
        "model": "big", "base_url": server.url, "backoff": 0.01, "price_input": 2.0, "price_output": 8.0
    }  # fmt: skip
    # 12 requests of 100 and 10 tokens
    assert content["usage"]["input_tokens"] == 1200 and content["cost"] == pytest.approx((1200 * 2 + 120 * 8) / 1e6)
    assert "agreement with the truth (a tie counts ½): 0.833 [" in capsys.readouterr().out
    assert main(flags(pairs, server)) == 0
    assert len(server.requests) == 12
    assert "12 replies: 0 asked (0 tokens in, 0 out), 12 from the cache" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.partial"))


def test_a_run_that_broke_off_asks_only_for_what_is_missing(
    pairs: Path, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "verdicts.jsonl"
    server.respond = lambda body, number: (503, "down") if number >= 5 else None
    broken = flags(pairs, server, "--output", str(out), "--judge.concurrency", "1", "--judge.patience", "0.1")
    assert main(broken) == 1
    assert "last with 503" in capsys.readouterr().err and not out.exists()
    asked = len(server.requests)
    server.respond = lambda body, number: None
    assert main(flags(pairs, server, "--output", str(out))) == 0
    assert len(server.requests) - asked == 12 - 5 and len(tiny.lines(out)) == 6


def test_settings_reach_the_judge(pairs: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--judge.mode", "pointwise", "--judge.rubric", "Only rhymes count.", "--judge.scale", "[0, 9]"]
    more += ["--judge.votes", "2", "--judge.temperature", "0.3", "--judge.max_tokens", "50", "--limit", "3"]
    more += ["--judge.extra_body", "{top_k: 3, max_tokens: null}", "--judge.cache", "off"]
    assert main(flags(pairs, server, *more)) == 0
    assert len(server.requests) == 3 * 2 * 2
    body = server.requests[0][0]
    assert (body["temperature"], body["top_k"]) == (0.3, 3) and "max_tokens" not in body
    assert "from 0 to 9" in server.prompts[0] and "Only rhymes count." in server.prompts[0]
    assert main(flags(pairs, server, "--judge.swap", "false", "--limit", "2")) == 0
    assert len(server.requests) == 12 + 2


def test_a_reference_column(tmp_path: Path, server: Server) -> None:
    path = tiny.write(tmp_path / "d.jsonl", [row | {"truth": "forty-two"} for row in ROWS])
    assert main(flags(path, server, "--reference", "truth", "--limit", "1")) == 0
    assert "forty-two" in server.prompts[0]


def test_a_judge_without_a_verdict_is_an_error(pairs: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.rule = rubbish
    assert main(flags(pairs, server)) == 1
    said = capsys.readouterr().err
    assert "12 of 12 replies of the judge big (100%) hold no verdict; the first, on " in said
    assert "I would rather not say." in said and "Raise max_tokens" in said


def test_nothing_is_overwritten(
    pairs: Path, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    for flag in ("--output", "--summary"):
        assert main(flags(pairs, server, flag, str(taken))) == 2
        assert "exists and is not overwritten" in capsys.readouterr().err
    assert main(flags(pairs, server, "--output", "x", "--summary", "x")) == 2
    assert "give two files" in capsys.readouterr().err
    assert taken.read_text() == "mine" and not server.requests


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--judge.modle", "x"], "--judge.modle: no such flag; did you mean --judge.mode"),
        (["--jugde.mode", "x"], "did you mean --judge.mode"),
        (["--outptu", "x"], "--outptu: no such flag; did you mean --output?"),
        (["--train.steps", "5"], "--train.steps: no such flag"),
        (["--data.weight", "2"], "--data.weight: preftune judge does not read this setting"),
        (["--data.pth", "2"], "--data.pth: no such setting; did you mean data.path?"),
        (["--judge.extra_body.top_k", "5"], "judge.extra_body is set as a whole: --judge.extra_body '{top_k: …}'"),
        (["--judge.votes", "0"], "--judge.votes: got 0; expected a whole number, at least 1"),
        (["--judge.votes", "true"], "--judge.votes: got true; expected a whole number"),
        (["--judge.votes", "many"], "--judge.votes: got 'many'; expected a whole number, at least 1"),
        (["--judge.scale", "[1"], "--judge.scale: got '[1', which is not valid YAML"),
        (["--judge.mode", "pair"], "--judge.mode: got 'pair'; expected one of pairwise, pointwise, listwise"),
        (["--judge.path", "p"], "--judge: give path (a model in this process) or model"),
        (["--data.limit", "0"], "--data.limit: got 0; expected a whole number, at least 1"),
        (["--limit", "0"], "expected a whole number, at least 1"),
        (["rows.jsonl"], "unrecognized arguments: rows.jsonl"),
    ],
)
def test_slips_are_named(given: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", "evaluate", "--judge.model", "m", "--data.path", "d.jsonl", *given]) == 2
    assert message in capsys.readouterr().err


def test_what_is_missing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", "evaluate", "--data.path", "d.jsonl"]) == 2
    assert "--judge: give path (a model in this process) or model" in capsys.readouterr().err
    assert main(["judge", "evaluate", "--judge.model", "m"]) == 2
    assert "data.0.path: missing" in capsys.readouterr().err
    assert main(["judge", "evalute"]) == 2
    assert "did you mean preftune judge evaluate?" in capsys.readouterr().err


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge"]) == 0
    text = capsys.readouterr().out
    names = [leaf.name.replace("*", "NAME") for leaf in judged_leaves()]
    assert {f"judge.{name}" for name in JudgeConfig.model_fields} <= set(names)
    assert {"data.columns.NAME.from", "data.responses.score"} <= set(names)
    assert all(re.search(rf"--{re.escape(name)}\s", text) for name in names)
    with pytest.raises(SystemExit):
        main(["judge", "evaluate", "--help"])
    assert "--judge.votes N" in capsys.readouterr().out


def test_help_and_slips_load_no_torch() -> None:
    code = (
        "import sys\n"
        "from preftune.cli.main import main\n"
        "main(['judge'])\n"
        "main(['judge', 'evaluate', '--judge.modle', 'x'])\n"
        "from preftune.judges import Judge, JudgeConfig\n"
        "JudgeConfig(model='m')\n"
        "print('heavy', [name for name in ('torch', 'transformers', 'openai') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert "heavy []" in done.stdout

"""`preftune judge build`: verdicts that are right are kept, word for word, and all else is told apart, row by row."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from preftune.cli.main import main
from preftune.config import RewardConfig
from preftune.data import load_examples
from preftune.judges import JudgeConfig, JudgeError
from preftune.judges.build import BuildConfig, Built, build
from preftune.judges.contests import is_contest
from preftune.records import Completion, Group, Prompt
from preftune.rewards import build_rewards
from tests import tiny
from tests.judges.fakes import Fake, Rule, Server, blocks, first_place, honest, quality, rubbish

ROWS = [
    {"prompt": f"task {n}", "responses": [
        {"text": f"good q9 {n}", "score": 1, "source": "people"},
        {"text": f"bad q2 {n}", "score": 0, "source": "model"},
    ]}
    for n in range(8)
]  # fmt: skip


def built(tmp_path: Path, rule: Rule = honest, rows: Any = ROWS, judge: Any = None, **settings: Any) -> Built:
    path = tiny.write(tmp_path / "answers.jsonl", rows)
    config = {"judge": {"model": "big", **(judge or {})}, "data": {"path": str(path)}, **settings}
    return build(BuildConfig.model_validate(config), backend=Fake(rule))


def fooled(prompt: str) -> str:
    """Judges rightly but for tasks 1 and 2, always prefers the first place in task 3, and can't be read in task 4."""
    task = blocks(prompt)["task"]
    if task in ("task 1", "task 2"):
        right = honest(prompt)
        return right.replace(">A<", ">?<").replace(">B<", ">A<").replace(">?<", ">B<")
    return first_place(prompt) if task == "task 3" else rubbish(prompt) if task == "task 4" else honest(prompt)


# --- what is kept -----------------------------------------------------------------------------------------------


def test_right_verdicts_are_rows(tmp_path: Path) -> None:
    done = built(tmp_path, fooled)
    assert {row["where"].rsplit(":", 1)[1] for row in done.rows} == {"1", "6", "7", "8"}
    assert len(done.rows) == 8  # both orders of each
    for row in done.rows:
        asked, said = row["messages"]
        assert asked["role"] == "user" and said["role"] == "assistant"
        shown = blocks(asked["content"])
        assert shown["task"] == row["question"]
        (pick,) = row["pick"]
        assert said["content"] == f"Fine.\n<verdict>{pick}</verdict>" and row["right"] == [pick]
        assert quality(shown[f"answer {pick}"]) == 9
        at = row["labels"].index(pick)
        assert row["origins"][at] == "people" and row["scores"][at] == 1.0 and row["verdict"] == "pairwise"
    picks = [row["pick"][0] for row in done.rows]
    assert picks.count("A") == picks.count("B") == 4  # a model that learns from them learns no place


def test_what_is_left_out_is_told_row_by_row(tmp_path: Path) -> None:
    done = built(tmp_path, fooled)
    told = {(one["question"], one["why"]) for one in done.left_out}
    tie = "the verdict does not name one answer, or another one in the other order"
    assert told == {
        ("task 1", "the verdict names a wrong answer"), ("task 2", "the verdict names a wrong answer"),
        ("task 3", tie), ("task 4", "there is no verdict"),
    }  # fmt: skip
    (silent,) = [one for one in done.left_out if one["question"] == "task 4"]
    assert [reply["text"] for reply in silent["replies"]] == ["I would rather not say."] * 2
    assert "holds no <verdict>" in silent["replies"][0]["problem"] and silent["replies"][0]["picked"] == []
    (placed,) = [one for one in done.left_out if one["question"] == "task 3"]
    assert [reply["picked"] for reply in placed["replies"]] == [[reply["shown"][0]] for reply in placed["replies"]]
    (wrong, _) = [one for one in done.left_out if one["why"].endswith("a wrong answer")]
    assert wrong["replies"][0]["picked"] != wrong["right"] and set(wrong["origins"]) == {"people", "model"}


def test_measures(tmp_path: Path) -> None:
    summary = built(tmp_path, fooled, judge={"price_input": 2.0, "price_output": 8.0}).summary
    assert summary is not None
    assert (summary.verified, summary.wrong, summary.ties, summary.abstained) == (4, 2, 1, 1)
    assert (summary.questions, summary.contests, summary.rows, summary.chance) == (8, 8, 8, 0.5)
    assert summary.accuracy is not None and summary.accuracy.value == pytest.approx(4 / 7) and summary.accuracy.n == 7
    assert summary.readable == pytest.approx(14 / 16) and summary.usage.failed == 2
    # 12 picks that follow the answer, one in each place each time, and two of the first place
    assert summary.places == pytest.approx((8 / 14, 6 / 14))
    # the tie has both on its first place
    assert summary.origins["people"] == {"shown": 8, "picked": 5, "right": 8}
    assert summary.origins["model"] == {"shown": 8, "picked": 3, "right": 0}
    assert summary.cost == pytest.approx(16 * (100 * 2 + 10 * 8) / 1e6)
    text = str(summary)
    assert "8 contests of 8 questions: 4 verdicts are right, 2 wrong, 1 undecided, 1 missing" in text
    assert "a blind judge has 0.500" in text and "picks by place: 57%, 43%" in text
    assert "people: first in 5 of 8 contests, right in 8" in text and "2 of 16 replies of the judge big" in text
    assert json.loads(json.dumps(summary.to_json()))["left_out"]["there is no verdict"] == 1


def test_a_judge_of_the_first_place_teaches_nothing(tmp_path: Path) -> None:
    """Though half of its replies name the right answer."""
    done = built(tmp_path, first_place)
    assert done.rows == () and done.summary is not None and done.summary.ties == 8
    assert done.summary.places == (1.0, 0.0) and done.summary.accuracy.value == 0.0


def test_without_swap_a_reply_is_a_verdict(tmp_path: Path) -> None:
    done = built(tmp_path, judge={"swap": False})
    assert len(done.rows) == 8 and done.summary.usage.replies == 8


def test_one_reply_of_a_right_verdict_may_be_wrong(tmp_path: Path) -> None:
    """Three votes in each order; the majority is right, and the vote that is not is left out by itself."""
    asked: list[str] = []

    def wavering(prompt: str) -> str:
        asked.append(prompt)
        again = asked.count(prompt)
        said = honest(prompt)
        if again == 2:
            return said.replace(">A<", ">tie<").replace(">B<", ">tie<")
        return f"Vote {again}. {said}"

    done = built(tmp_path, wavering, rows=ROWS[:1], judge={"votes": 3})
    assert len(done.rows) == 4 and {row["messages"][1]["content"][:7] for row in done.rows} == {"Vote 1.", "Vote 3."}
    assert [one["why"] for one in done.left_out] == ["the reply does not name a right answer"] * 2
    same = built(tmp_path, honest, rows=ROWS[:1], judge={"votes": 3, "cache": "off"})
    assert len(same.rows) == 2  # the same words on the same prompt are one row


def test_rankings(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"task {n}", "responses": [
            {"text": f"a q9 {n}", "score": 1.0, "source": "x"}, {"text": f"b q5 {n}", "score": 0.4, "source": "y"},
            {"text": f"c q1 {n}", "score": 0.0, "source": "z"},
        ]}
        for n in range(6)
    ]  # fmt: skip
    done = built(tmp_path, rows=rows, size=3)
    assert len(done.rows) == 12 and done.summary.chance == pytest.approx(1 / 3)
    for row in done.rows:
        assert row["verdict"] == "listwise" and row["pick"] == row["right"] and len(row["labels"]) == 3
        text = row["messages"][1]["content"]
        assert re.search(r"<ranking>([ABC]) >", text)[1] == row["pick"][0]
        assert [quality(blocks(row["messages"][0]["content"])[f"answer {x}"]) for x in row["pick"]] == [9]
    assert sum(done.summary.places) == pytest.approx(1.0)


def test_settings_reach_the_judge(tmp_path: Path) -> None:
    path = tiny.write(tmp_path / "answers.jsonl", ROWS[:2])
    fake = Fake()
    config = BuildConfig.model_validate(
        {
            "judge": {"model": "m", "votes": 2, "cache": "off"},
            "data": {"path": str(path)},
            "rubric": "Only rhymes count.",
        }
    )
    build(config, backend=fake)
    assert len(fake.requests) == 2 * 2 * 2 and "Only rhymes count." in fake.requests[0].messages[0].content
    asking = config.asking
    assert asking is not None and (asking.mode, asking.votes, asking.rubric) == ("pairwise", 2, "Only rhymes count.")


def test_a_judge_that_says_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match=r"16 of 16 replies of the judge big \(100%\) hold no verdict"):
        built(tmp_path, rubbish)


def test_several_origins_and_a_verifier(tmp_path: Path) -> None:
    """Answers without scores, in two files; a function says which are right."""
    ours = tiny.write(tmp_path / "ours.jsonl", [{"prompt": f"{n}+1?", "completion": f"{n + 1} q9"} for n in range(3)])
    theirs = [{"prompt": f" {n}+1? ", "completion": f"{n} q1", "answer": str(n)} for n in range(3)]
    paths = [str(ours), str(tiny.write(tmp_path / "theirs.jsonl", theirs))]
    config = BuildConfig.model_validate({"judge": {"model": "m"}, "data": [{"path": path} for path in paths]})

    def verify(pools: Any) -> Any:
        from dataclasses import replace

        assert [[c.origin for c in pool.candidates] for pool in pools] == [["ours", "theirs"]] * 3
        assert [pool.columns["answer"] for pool in pools] == ["0", "1", "2"]
        return [
            replace(p, candidates=tuple(replace(c, score=float("q9" in str(c.content))) for c in p.candidates))
            for p in pools
        ]  # fmt: skip

    done = build(config, verify=verify, backend=Fake())
    assert len(done.rows) == 6
    assert all(row["origins"][row["labels"].index(row["pick"][0])] == "ours" for row in done.rows)
    with pytest.raises(Exception, match=r"ours\.jsonl:1: the row does not say how good its answers are"):
        build(config, backend=Fake())


# --- the rows train, and are checked by judge-pick --------------------------------------------------------------


def test_the_rows_are_what_judge_pick_reads(tmp_path: Path) -> None:
    done = built(tmp_path, fooled)
    path = tiny.write(tmp_path / "judging.jsonl", done.rows)
    from preftune.config import SourceConfig

    examples = load_examples([SourceConfig(path=str(path))], seed=0).examples
    assert all(is_contest(row) for row in examples)
    groups = []
    for row in examples:
        (turns,) = row.completions
        said = Completion((1,), (True,), text=turns[0].content)
        groups.append(Group(Prompt((1,), "", row.prompt, row.columns, row.where), (said,)))
    with build_rewards([RewardConfig(name="judge-pick")]) as rewards:
        assert [c.score for g in rewards.score(groups, 0, 1).groups for c in g.completions] == [1.0] * len(groups)


# --- the command ------------------------------------------------------------------------------------------------


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    return tiny.write(tmp_path / "answers.jsonl", ROWS)


def flags(path: Path, server: Server, output: Path, *more: str) -> list[str]:
    judge = ["--judge.model", "big", "--judge.base_url", server.url, "--judge.backoff", "0.01"]
    return ["judge", "build", *judge, "--data.path", str(path), "--output", str(output), *more]


def test_files_words_and_a_second_run(
    answers: Path, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.rule = fooled
    out = tmp_path / "judging.jsonl"
    assert main(flags(answers, server, out, "--judge.price_input", "2", "--judge.price_output", "8")) == 0
    said = capsys.readouterr().out
    assert len(tiny.lines(out)) == 8 and len(tiny.lines(tmp_path / "judging-left-out.jsonl")) == 4
    summary = json.loads((tmp_path / "judging-summary.json").read_text())
    assert summary["verified"] == 4 and summary["judge"]["model"] == "big" and summary["data"] == [str(answers)]
    assert (summary["mode"], summary["per_prompt"], summary["cost"]) == ("pairwise", 1, pytest.approx(0.00448))
    command = re.search(r"train on them: (preftune sft .+)", said)
    assert command is not None and f"--data.path {out}" in command[1] and "--model.path MODEL" in command[1]
    assert f"what was left out, and why: {tmp_path / 'judging-left-out.jsonl'}" in said
    asked = len(server.requests)
    assert main(flags(answers, server, tmp_path / "again.jsonl")) == 0
    assert len(server.requests) == asked  # all from the cache
    assert tiny.lines(out) == tiny.lines(tmp_path / "again.jsonl")
    assert not list(tmp_path.glob("*.partial"))


def test_a_run_that_broke_off_asks_only_for_what_is_missing(answers: Path, server: Server, tmp_path: Path) -> None:
    server.respond = lambda body, number: (503, "down") if number >= 5 else None
    out = tmp_path / "j.jsonl"
    broken = flags(answers, server, out, "--judge.concurrency", "1", "--judge.patience", "0.1")
    assert main(broken) == 1
    assert sorted(path.name for path in tmp_path.glob("j*")) == []
    asked = len(server.requests)
    server.respond = lambda body, number: None
    assert main(flags(answers, server, out)) == 0
    assert len(server.requests) - asked == 16 - 5 and len(tiny.lines(out)) == 16


def test_the_command_that_it_prints_trains(tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    answers = tiny.write(tmp_path / "answers.jsonl", ROWS[:2])
    assert main(flags(answers, server, tmp_path / "j.jsonl")) == 0
    (command,) = re.findall(r"train on them: preftune (.+)", capsys.readouterr().out)
    tiny.model(0, max_position_embeddings=8192).save_pretrained(tmp_path / "model")
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<eos>{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "model")
    words = command.replace("MODEL", str(tmp_path / "model")).split()
    # single characters are tokens here, so the limits that the command names for a real tokenizer are raised
    wide = ["--tokens.max_prompt_tokens", "8000", "--tokens.max_completion_tokens", "100"]
    assert main([*words, *wide, "--output", str(tmp_path / "run"), "--log.sinks", "[]", "--train.batch_size", "2"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["counts"]["train"].startswith("4 kept, 0 dropped")


def test_contests_alone(answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "contests.jsonl"
    build_them = ["judge", "build", "--contests_only", "--data.path", str(answers), "--output", str(out)]
    assert main([*build_them, "--seed", "3"]) == 0
    rows = tiny.lines(out)
    assert len(rows) == 8 and {row["verdict"] for row in rows} == {"pairwise"}
    assert all(row["prompt"][0]["content"].startswith("You are a strict and impartial judge.") for row in rows)
    said = capsys.readouterr().out
    assert "8 contests of 8 questions; a blind verdict is right in 50% of them" in said
    assert "preftune rft --model.path MODEL" in said and "--rewards.0.name judge-pick" in said
    assert not (tmp_path / "contests-summary.json").exists()
    from preftune.config import SourceConfig

    assert all(is_contest(row) for row in load_examples([SourceConfig(path=str(out))], seed=0).examples)


def test_a_built_in_verifies(tmp_path: Path, server: Server) -> None:
    rows = [
        {"prompt": f"{n}+1?", "completion": text, "answer": str(n + 1)}
        for n in range(3)
        for text in (f"{n + 1}", f"{n}0")
    ]
    path = tiny.write(tmp_path / "answers.jsonl", rows)
    server.rule = lambda prompt: f"<verdict>{'A' if len(blocks(prompt)['answer A']) == 1 else 'B'}</verdict>"
    out = tmp_path / "j.jsonl"
    assert main(flags(path, server, out, "--verify", "accuracy", "--verify_args", "{extract: '^(.*)$'}")) == 0
    assert len(tiny.lines(out)) == 6
    assert {tuple(row["scores"]) for row in tiny.lines(out)} == {(1.0, 0.0), (0.0, 1.0)}
    assert json.loads((tmp_path / "j-summary.json").read_text())["verify"] == "accuracy"


def test_nothing_is_overwritten(
    answers: Path, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, flag in (("j.jsonl", "--output"), ("j-left-out.jsonl", "--left_out"), ("j-summary.json", "--summary")):
        (tmp_path / name).write_text("mine")
        assert main(flags(answers, server, tmp_path / "j.jsonl")) == 2
        assert f"{flag}: {tmp_path / name} exists and is not overwritten" in capsys.readouterr().err
        (tmp_path / name).unlink()
    assert main(flags(answers, server, tmp_path / "j.jsonl", "--summary", str(tmp_path / "j.jsonl"))) == 2
    assert "must be three different files" in capsys.readouterr().err and not server.requests


def test_a_judge_that_is_never_right(
    answers: Path, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.rule = first_place
    assert main(flags(answers, server, tmp_path / "j.jsonl")) == 1
    assert "no verdict is right, so there is nothing to train on" in capsys.readouterr().out
    assert not (tmp_path / "j.jsonl").exists() and len(tiny.lines(tmp_path / "j-left-out.jsonl")) == 8


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["--judge.mode", "listwise"],
            "--judge.mode: preftune judge build does not read this setting; --mode says how",
        ),
        (["--form", "competition"], "--form: preftune judge build does not read this setting; remove it"),
        (["--sise", "3"], "--sise: no such flag; did you mean --size?"),
        (["--size", "7"], "--size: got 7; expected a whole number, at least 2, at most 5, or null"),
        (["--size", "3", "--mode", "pairwise"], "mode pairwise compares two answers, and size is 3"),
        (["--rubric", "olympia"], "--rubric: rubric 'olympia' is no built-in one; did you mean olympiad?"),
        (["--verify", "math-eqal"], "unknown reward 'math-eqal'; did you mean 'math-equal'?"),
        (["--verify_args", "{a: 1}"], "--verify_args belongs to --verify"),
        (["--contests_only"], "--contests_only asks no judge; remove the --judge flags"),
        (["--data.weight", "2"], "preftune judge build does not read this setting"),
        (["--data.contest.size", "2"], "preftune judge build does not read this setting"),
        (["--judge.path", "p"], "--judge: give path (a model in this process) or model"),
        (["--judge.votes", "2", "--judge.temperature", "0"], "votes over 1 need a temperature above 0"),
        (["--data.path", "none.jsonl"], "none.jsonl: no such file or folder"),
    ],
)
def test_slips_are_named(given: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["judge", "build", "--judge.model", "m", "--judge.base_url", "http://127.0.0.1:9/v1"]
    base += [] if "--data.path" in given else ["--data.path", "d.jsonl"]
    assert main([*base, "--output", str(tmp_path / "o.jsonl"), *given]) == 2
    assert message in capsys.readouterr().err


def test_what_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", "build", "--judge.model", "m", "--data.path", "d.jsonl"]) == 2
    assert "--output is missing" in capsys.readouterr().err
    out = ["--output", str(tmp_path / "o.jsonl")]
    assert main(["judge", "build", "--data.path", "d.jsonl", *out]) == 2
    assert "--judge: give --judge.path (a model in this process) or --judge.model" in capsys.readouterr().err
    assert main(["judge", "build", "--judge.model", "m", *out]) == 2
    assert "data.0.path: missing" in capsys.readouterr().err
    assert main(["judge", "bild"]) == 2
    assert "did you mean preftune judge build?" in capsys.readouterr().err


def test_rows_that_say_nothing_are_named_before_the_judge_is_asked(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny.write(tmp_path / "a.jsonl", [{"prompt": "q", "completion": "a"}])
    assert main(flags(path, server, tmp_path / "o.jsonl")) == 2
    assert f"{path}:1: the row does not say how good its answers are" in capsys.readouterr().err
    assert not server.requests


def test_help_and_slips_load_no_torch() -> None:
    code = (
        "import sys\n"
        "from preftune.cli.main import main\n"
        "main(['judge', 'build'])\n"
        "main(['judge', 'build', '--judge.modle', 'x'])\n"
        "print('heavy', [name for name in ('torch', 'transformers', 'openai') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert "heavy []" in done.stdout and "--judge.votes N" in done.stdout and "--per_prompt N" in done.stdout


def test_every_setting_of_a_judge_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", "build", "--help"]) == 0
    text = capsys.readouterr().out
    named = {name for name in JudgeConfig.model_fields if re.search(rf"--judge\.{name}\s", text)}
    assert set(JudgeConfig.model_fields) - named == {"mode", "rubric", "scale"}
    own = {name for name in BuildConfig.model_fields if re.search(rf"--{name}\s", text)}
    assert set(BuildConfig.model_fields) - own == {"form"}

"""`preftune data generate`: tiers of every kind, against a server on 127.0.0.1 and a tiny model made on the spot."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.config import SourceConfig
from preftune.curation.generate import (
    DrawConfig,
    EndpointConfig,
    GenerateConfig,
    Generated,
    LocalConfig,
    generate,
    local,
)
from preftune.curation.generate.journal import Journal
from preftune.curation.generate.limit import BURST, RateLimit
from preftune.curation.generate.prompts import Prompts
from preftune.curation.generate.remote import RemoteTier
from preftune.curation.pairs import PairsConfig, pairs
from preftune.data import load_examples
from preftune.errors import DataError, ModelError, PreftuneError, SamplingError, UsageError
from tests import tiny
from tests.judges.fakes import Server, chat

KEY = "sk-very-secret-0123456789"
ROWS = [{"prompt": f"{n}+1=", "answer": str(n + 1), "id": n} for n in range(6)]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    running.respond = answering(lambda body, k: f"{body['model']} {k} says {asked(body)}")
    yield running
    running.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("tier") / "model")


def asked(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"] if "messages" in body else body["prompt"])


def answering(text: Callable[[dict[str, Any], int], str], **fields: Any) -> Callable[..., Any]:
    def respond(body: dict[str, Any], number: int) -> Any:
        reply = chat("", usage=(7, 3 * body.get("n", 1)))
        first = reply["choices"][0]
        reply["choices"] = [
            {**first, "index": k, "message": {"content": text(body, k)}, **fields} for k in range(body.get("n", 1))
        ]
        return 200, reply

    return respond


def remote(server: Server, name: str = "api", rank: int = 2, **tier: Any) -> dict[str, Any]:
    endpoint = {"model": f"{name}-model", "base_url": server.url, "backoff": 0.001, "patience": 0.0, "concurrency": 2}
    return {"name": name, "rank": rank, **tier, "endpoint": {**endpoint, **tier.get("endpoint", {})}}


def make(
    tmp_path: Path, tiers: list[dict[str, Any]], rows: Any = ROWS, *, resume: bool = False, **config: Any
) -> Generated:
    source = {"path": str(tiny.write(tmp_path / "prompts.jsonl", rows)), **config.pop("source", {})}
    output = config.pop("output", "out")
    found = GenerateConfig.model_validate({"data": [source], "tiers": tiers, **config})
    return generate(found, tmp_path / output, resume=resume)


def written(tmp_path: Path, name: str = "rows") -> list[dict[str, Any]]:
    return tiny.lines(tmp_path / "out" / f"{name}.jsonl")


def counts(found: Generated, name: str) -> dict[str, Any]:
    return next(tier.to_json() for tier in found.tiers if tier.name == name)


HUMAN = {"name": "human", "rank": 1, "column": "answer"}


# ------------------------------------------------------------------------------------------------- tiers and rows


def test_tiers_of_every_kind_become_ranked_rows(tmp_path: Path, server: Server, model: Path) -> None:
    weak = {"name": "weak", "rank": 3, "model": str(model), "sampling": {"max_tokens": 5, "n": 2}}
    found = make(tmp_path, [weak, remote(server), HUMAN], ROWS[:2], cut="keep")
    rows = written(tmp_path)
    assert [row["id"] for row in rows] == [0, 1] and rows[1]["prompt"] == "1+1="
    first = rows[1]["responses"]
    assert first[:2] == [
        {"text": "2", "rank": 1, "source": "human"},
        {"text": "api-model 0 says 1+1=", "rank": 2, "source": "api", "finish": "eos"},
    ]
    assert [(one["rank"], one["source"]) for one in first[2:]] == [(3, "weak")] * 2
    assert all(one["finish"] in ("eos", "length") and one["text"] for one in first[2:])
    assert found.rows == 2 and found.answers == 8 and found.failed == 0
    assert written(tmp_path, "decisions")[0] == {
        "where": f"{tmp_path}/prompts.jsonl:1", "kept": True,
        "answers": [
            {"tier": tier, "n": n, "kept": True} for tier, n in (("human", 0), ("api", 0), ("weak", 0), ("weak", 1))
        ],
    }  # fmt: skip
    lines = written(tmp_path, "answers")
    assert [line["tier"] for line in lines] == ["human"] * 2 + ["api"] * 2 + ["weak"] * 4  # the best first
    assert {line["where"] for line in lines} == {f"{tmp_path}/prompts.jsonl:{n}" for n in (1, 2)}


def test_the_rows_are_what_training_and_pairs_read(tmp_path: Path, server: Server) -> None:
    make(tmp_path, [HUMAN, remote(server, "best", 2, sampling={"n": 2}), remote(server, "weak", 3)])
    path = str(tmp_path / "out" / "rows.jsonl")
    example = load_examples([SourceConfig(path=path)], seed=0).examples[0]
    assert example.scores == (-1.0, -2.0, -2.0, -3.0) and example.sources == ("human", "best", "best", "weak")
    found = pairs(PairsConfig.model_validate({"data": [{"path": path}]}), tmp_path / "pairs")
    assert found.ordered == 6 * (2 + 1 + 2)  # human over two and one, each of two over one


def test_what_is_asked_for(tmp_path: Path, server: Server) -> None:
    talk = [("user", "a"), ("assistant", "b"), ("user", "c")]
    rows = [{"prompt": [{"role": role, "content": said} for role, said in talk]}]
    sampling = {"n": 2, "temperature": 0.5, "max_tokens": 9, "top_p": 0.9, "top_k": 5, "stop": ["#"]}
    endpoint = {"extra_body": {"max_tokens": None, "max_completion_tokens": 11, "top_k": None, "user": "me"}}
    chatty = remote(server, "chatty", 1, sampling=sampling, system="Be brief.", endpoint=endpoint)
    make(tmp_path, [chatty], rows)
    ((body, headers),) = server.requests
    assert headers["authorization"] == f"Bearer {KEY}"
    seed = body.pop("seed")
    assert isinstance(seed, int) and 0 <= seed < 2**31
    assert body == {
        "model": "chatty-model", "temperature": 0.5, "top_p": 0.9, "n": 2, "stop": ["#"], "user": "me",
        "max_completion_tokens": 11,
        "messages": [
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"},
        ],
    }  # fmt: skip


def test_plain_prompts_are_a_users_message_or_are_gone_on_with(tmp_path: Path, server: Server) -> None:
    server.respond = lambda body, n: (
        (200, {"choices": [{"index": 0, "text": "4", "finish_reason": "stop"}]}) if "prompt" in body
        else (200, chat("four"))
    )  # fmt: skip
    make(tmp_path, [remote(server, "chat", 1), remote(server, "text", 2, form="text")], ROWS[:1])
    bodies = {body["model"]: body for body, _ in server.requests}
    assert bodies["chat-model"]["messages"] == [{"role": "user", "content": "0+1="}]
    assert bodies["text-model"]["prompt"] == "0+1=" and "messages" not in bodies["text-model"]
    assert [one["text"] for one in written(tmp_path)[0]["responses"]] == ["four", "4"]


def test_a_server_that_knows_no_n_is_asked_one_by_one(tmp_path: Path, server: Server) -> None:
    server.respond = lambda body, number: (200, chat(f"answer {number}"))  # one choice, whatever was asked for
    make(tmp_path, [remote(server, sampling={"n": 3})], ROWS[:1])
    assert [body.get("n") for body, _ in server.requests] == [3, None, None]
    assert len({body["seed"] for body, _ in server.requests}) == 3
    assert len(written(tmp_path)[0]["responses"]) == 3
    server.requests.clear()
    (tmp_path / "other").mkdir()
    make(tmp_path / "other", [remote(server, sampling={"n": 3}, endpoint={"at_once": False})], ROWS[:1])
    assert [body.get("n") for body, _ in server.requests] == [None] * 3


def test_truth_that_is_missing_is_no_failure_but_a_column_that_is_nowhere_is_a_slip(
    tmp_path: Path, server: Server
) -> None:
    rows = [
        {"prompt": "a", "answer": None},
        {"prompt": "b", "answer": "b!"},
        {"prompt": "c"},
        {"prompt": "d", "answer": " "},
    ]
    found = make(tmp_path, [HUMAN, remote(server)], rows)
    assert counts(found, "human") | {"answered": 1, "absent": 3, "failed": 0} == counts(found, "human")
    assert [len(row["responses"]) for row in written(tmp_path)] == [1, 2, 1, 1]
    for column, value, words in (
        ("anwser", "x", "did you mean 'answer'"),
        ("answer", ["a"], "must hold text, it holds list"),
    ):
        with pytest.raises(DataError, match=words):
            make(tmp_path, [{**HUMAN, "column": column}], [{"prompt": "a", "answer": value}], output=column)


def test_repeated_prompts_are_asked_once(tmp_path: Path, server: Server) -> None:
    rows = [{"prompt": "a", "id": 1}, {"prompt": "b", "id": 2}, {"prompt": "a", "id": 3}]
    found = make(tmp_path, [remote(server)], rows)
    assert [row["id"] for row in written(tmp_path)] == [1, 2] and len(server.requests) == 2 and found.rows == 2
    where = f"{tmp_path}/prompts.jsonl:"
    assert written(tmp_path, "decisions")[2] == {
        "where": f"{where}3", "kept": False, "why": "repeated prompt", "same_as": f"{where}1"
    }  # fmt: skip
    assert make(tmp_path, [remote(server)], rows, resume=True, repeated_prompts="keep").rows == 3
    assert len(server.requests) == 3 and len({body["seed"] for body, _ in server.requests}) == 3


def test_equal_cut_and_empty_answers_are_told_and_left_out_or_marked(tmp_path: Path, server: Server) -> None:
    texts = {"0": "same", "1": " same\n", "2": "  ", "3": "other"}
    server.respond = answering(lambda body, k: texts[str(k)])
    tiers = [{**HUMAN, "rank": 1}, remote(server, sampling={"n": 4}), remote(server, "cut", 3)]
    rows = [{"prompt": "a", "answer": "other"}]

    def cutting(body: dict[str, Any], number: int) -> Any:
        if body["model"] == "cut-model":
            return answering(lambda body, k: "half of", finish_reason="length")(body, number)
        return answering(lambda body, k: texts[str(k)])(body, number)

    server.respond = cutting
    found = make(tmp_path, tiers, rows)
    assert written(tmp_path)[0]["responses"] == [
        {"text": "other", "rank": 1, "source": "human"},
        {"text": "same", "rank": 2, "source": "api", "finish": "eos"},
    ]
    told = written(tmp_path, "decisions")[0]["answers"]
    assert [(one["tier"], one.get("why"), one.get("same_as")) for one in told] == [
        ("human", None, None), ("api", None, None), ("api", "duplicate", "api"), ("api", "empty", None),
        ("api", "duplicate", "human"), ("cut", "cut", None),
    ]  # fmt: skip
    api = counts(found, "api")
    assert (api["answered"], api["kept"], api["empty"]) == (4, 1, 1)
    assert api["duplicates"] == {"within": 1, "across": {"human": 1}}
    assert len(written(tmp_path, "answers")) == 6  # nothing is lost
    assert any("cut at max_tokens and left out" in warning for warning in found.warnings)
    make(tmp_path, tiers, rows, resume=True, duplicates="mark", cut="keep")  # nothing is asked again
    assert len(server.requests) == 2
    marked = written(tmp_path)[0]["responses"]
    assert [(one["text"], one.get("duplicate_of"), one.get("finish")) for one in marked] == [
        ("other", None, None), ("same", None, "eos"), (" same\n", 1, "eos"), ("other", 0, "eos"),
        ("half of", None, "length"),
    ]  # fmt: skip


def test_bad_rows_and_columns_that_would_mislead(tmp_path: Path, server: Server) -> None:
    rows = [{"prompt": "a", "completion": "x", "text": "t"}, {"prompt": 5}]
    with pytest.raises(DataError, match=r"prompts.jsonl:2"):
        make(tmp_path, [remote(server)], rows, source={"format": "prompt"})
    make(tmp_path, [remote(server)], rows, source={"format": "prompt", "on_bad_row": "skip"})
    assert {*written(tmp_path)[0]} == {"completion_", "text_", "prompt", "responses"}
    assert written(tmp_path, "decisions")[1]["why"] == "bad row"
    assert load_examples([SourceConfig(path=str(tmp_path / "out" / "rows.jsonl"))], seed=0).examples[0].scores == (
        -2.0,
    )


# ------------------------------------------------------------------------------------------------- failures


def test_a_failed_call_is_tried_again_then_recorded_and_asked_again_by_resume(tmp_path: Path, server: Server) -> None:
    tries: Counter[str] = Counter()
    right = server.respond

    def failing(body: dict[str, Any], number: int) -> Any:
        tries[asked(body)] += 1
        if asked(body) == "1+1=" and tries["1+1="] < 3:
            return 500, {"error": {"message": "for a while"}}
        if asked(body) == "2+1=":
            return 400, {"error": {"message": f"not this one, {KEY}"}}
        if asked(body) == "3+1=":
            return 503, {"error": {"message": "down"}}
        return right(body, number)

    server.respond = failing
    tier = remote(server, endpoint={"patience": 0.5})
    found = make(tmp_path, [HUMAN, tier])
    assert tries["1+1="] == 3 and tries["2+1="] == 1 and tries["3+1="] > 1
    api = counts(found, "api")
    assert (api["answered"], api["failed"], api["refused"], found.failed) == (4, 1, 1, 2)
    assert [len(row["responses"]) for row in written(tmp_path)] == [2, 2, 1, 1, 2, 2]
    lost = {
        one["where"][-1]: one["answers"][1] for one in written(tmp_path, "decisions") if not one["answers"][1]["kept"]
    }
    assert lost["3"]["why"] == "refused" and "not this one, [key]" in lost["3"]["error"]
    assert lost["4"]["why"] == "failed" and "503" in lost["4"]["error"]
    assert any("--resume" in warning for warning in found.warnings)

    server.requests.clear()
    server.respond = right
    again = make(tmp_path, [HUMAN, tier], resume=True)
    assert sorted(map(asked, (body for body, _ in server.requests))) == ["2+1=", "3+1="]
    assert again.failed == 0 and all(len(row["responses"]) == 2 for row in written(tmp_path))
    assert sum("error" in line for line in written(tmp_path, "answers")) == 2  # still told
    for path in (tmp_path / "out").iterdir():
        assert KEY not in path.read_text(encoding="utf-8"), path


def test_some_of_a_prompts_answers_are_kept_when_the_others_fail(tmp_path: Path, server: Server) -> None:
    def second_fails(body: dict[str, Any], number: int) -> Any:
        return (200, chat(f"a{number}")) if number != 1 else (500, {})

    server.respond = second_fails
    tier = remote(server, sampling={"n": 3}, endpoint={"at_once": False})
    assert counts(make(tmp_path, [tier], ROWS[:1]), "api")["failed"] == 2
    assert make(tmp_path, [tier], ROWS[:1], resume=True).failed == 0
    assert len(server.requests) == 4 and len(written(tmp_path)[0]["responses"]) == 3


@pytest.mark.parametrize(
    "message",
    [{"content": None, "refusal": "I can't"}, {"content": "", "tool_calls": []}, {"content": "half"}],
)
def test_what_is_no_answer_is_refused_and_paid_for(tmp_path: Path, server: Server, message: dict[str, Any]) -> None:
    reply = chat("")
    reply["choices"][0] |= {"message": message, "finish_reason": "content_filter"}
    server.respond = lambda body, number: (200, reply) if asked(body) == "0+1=" else (200, chat("fine"))
    prices = {"price_input": 1e6, "price_output": 2e6}
    found = make(tmp_path, [remote(server, endpoint=prices)], ROWS[:2])
    assert counts(found, "api")["refused"] == 1 and found.rows == 1
    assert written(tmp_path, "decisions")[0]["why"] == "no answer"
    assert found.cost == 2 * (100 * 1 + 10 * 2)


def test_cost_is_what_the_server_counts(tmp_path: Path, server: Server) -> None:
    prices = {"price_input": 2.0, "price_output": 10.0}
    found = make(tmp_path, [remote(server, sampling={"n": 2}, endpoint=prices), remote(server, "free", 3)])
    api = counts(found, "api")
    assert api["tokens"] == {"input": 6 * 7, "output": 6 * 6, "uncounted_calls": 0}
    assert (
        api["cost"] == found.cost == pytest.approx((42 * 2 + 36 * 10) / 1e6) and counts(found, "free")["cost"] is None
    )
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["cost"] == found.cost and summary["tiers"][0] == api and summary["rows"] == {"kept": 6}
    server.respond = lambda body, number: (200, chat("x", usage=None))
    silent = make(tmp_path, [remote(server)], ROWS[:2], output="silent")
    assert counts(silent, "api")["tokens"]["uncounted_calls"] == 2
    assert any("did not count the tokens of 2 calls" in warning for warning in silent.warnings)


def test_an_endpoint_that_fails_again_and_again_stops_the_command(tmp_path: Path, server: Server) -> None:
    right = server.respond
    server.respond = lambda body, number: (401, {"error": {"message": "wrong key"}})
    with pytest.raises(SamplingError, match=r"tier api: 3 calls in a row failed.*401.*--resume"):
        make(tmp_path, [HUMAN, remote(server, endpoint={"concurrency": 1})], stop_after=3)
    assert len(server.requests) <= 5 and not (tmp_path / "out" / "rows.jsonl").exists()
    with pytest.raises(UsageError, match="begun and not finished: go on with --resume"):
        make(tmp_path, [HUMAN, remote(server)], stop_after=3)
    server.respond = right
    assert make(tmp_path, [HUMAN, remote(server)], resume=True, stop_after=3).rows == 6


def test_a_key_that_is_missing_is_said_before_anything_is_done(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(SamplingError, match="OTHER_KEY"):
        make(tmp_path, [HUMAN, {"name": "x", "rank": 2, "endpoint": {"model": "m", "key_variable": "OTHER_KEY"}}])
    assert not (tmp_path / "out").exists()


def test_answers_under_way_are_kept_when_the_work_is_broken_off(tmp_path: Path, server: Server) -> None:
    config = GenerateConfig.model_validate({"data": [{"path": "x"}], "tiers": [remote(server)]})
    prompts = Prompts([SourceConfig(path=str(tiny.write(tmp_path / "p.jsonl", ROWS)))], config.tiers, None)
    kept: list[str] = []
    tier = RemoteTier(config.tiers[0], seed=0)
    given: list[Any] = list(prompts)

    def tasks() -> Iterator[Any]:
        yield given[0], [0]
        yield given[1], [0]
        while len(server.requests) < 2:
            time.sleep(0.001)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tier.ask_all(tasks(), lambda one, outcome: kept.append(f"{one.index}: {outcome.answers[0].text}"))
    assert sorted(kept) == ["0: api-model 0 says 0+1=", "1: api-model 0 says 1+1="]


def test_a_refusal_under_way_is_kept_when_the_work_is_broken_off(tmp_path: Path, server: Server) -> None:
    """It may be paid for. What was not asked for any more is no failure."""
    config = GenerateConfig.model_validate({"data": [{"path": "x"}], "tiers": [remote(server)]})
    prompts = Prompts([SourceConfig(path=str(tiny.write(tmp_path / "p.jsonl", ROWS)))], config.tiers, None)
    kept: dict[int, Any] = {}
    tier = RemoteTier(config.tiers[0], seed=0)
    given: list[Any] = list(prompts)

    def respond(body: dict[str, Any], number: int) -> Any:
        reason = "content_filter" if asked(body) == "1+1=" else "stop"
        return 200, chat("x", reason, (7, 3))

    server.respond = respond

    def tasks() -> Iterator[Any]:
        yield given[0], [0]
        yield given[1], [0]
        while len(server.requests) < 2:
            time.sleep(0.001)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tier.ask_all(tasks(), lambda one, outcome: kept.update({one.index: outcome}))
    assert sorted(kept) == [0, 1] and kept[0].answers and not kept[0].problem
    assert kept[1].refused and "content_filter" in kept[1].problem and kept[1].usage == (7, 3)


def test_loading_a_tier_takes_no_random_numbers_and_trains_nothing(model: Path) -> None:
    import torch

    from preftune.sampling.answering import load_for_answers

    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    engine = load_for_answers(str(model), LocalConfig(path=str(model)))
    assert torch.equal(torch.rand(1), expected) and not engine.policy.trainable()


def test_a_tiers_name_does_not_steer_the_terminal(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path, [{**HUMAN, "name": "a\x1b[31m"}])
    told = capsys.readouterr().err
    assert "a\ufffd[31m" in told and "\x1b" not in told


# ------------------------------------------------------------------------------------------------- going on


def test_a_killed_command_goes_on_and_asks_nothing_twice(tmp_path: Path, server: Server) -> None:
    rows = [{"prompt": f"prompt {n}"} for n in range(40)]
    tiers = [{**HUMAN, "column": "prompt"}, remote(server, endpoint={"concurrency": 2}, sampling={"n": 2})]
    whole = tmp_path / "whole"
    whole.mkdir()
    make(whole, tiers, rows)
    server.requests.clear()
    right = server.respond

    def slowly(body: dict[str, Any], number: int) -> Any:
        time.sleep(0.02)
        return right(body, number)

    server.respond = slowly
    tiny.write(tmp_path / "prompts.jsonl", rows)
    (tmp_path / "tiers.json").write_text(json.dumps({"tiers": tiers}))
    command = [sys.executable, "-m", "preftune", "data", "generate", str(tmp_path / "tiers.json")]
    flags = [f"--data.path={tmp_path}/prompts.jsonl", f"--output={tmp_path}/out"]
    running = subprocess.Popen(
        [*command, *flags], stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    while len(server.requests) < 12:
        time.sleep(0.005)
        assert running.poll() is None
    running.send_signal(signal.SIGKILL)
    running.wait()
    time.sleep(0.1)
    journal = tmp_path / "out" / "answers.jsonl"
    done = {line["row"] for line in tiny.lines(journal) if line["tier"] == "api"}
    assert 0 < len(done) < 40
    with journal.open("ab") as file:
        file.write(b'{"row": 39, "where": "half a li')
    before = Counter(asked(body) for body, _ in server.requests)
    server.respond = right
    make(tmp_path, tiers, rows, resume=True)
    after = Counter(asked(body) for body, _ in server.requests) - before
    assert set(after) == {f"prompt {n}" for n in range(40) if n not in done} and set(after.values()) == {1}
    assert sum((before & after).values()) <= 2  # under way when it was killed
    assert (tmp_path / "out" / "rows.jsonl").read_bytes() == (whole / "out" / "rows.jsonl").read_bytes()


def test_a_finished_folder_is_not_written_into_again(tmp_path: Path, server: Server) -> None:
    make(tmp_path, [HUMAN])
    with pytest.raises(UsageError, match="is finished: go on with --resume"):
        make(tmp_path, [HUMAN])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    for name, resume, words in (
        ("full", False, "is not empty"), ("full", True, "nothing to resume"), ("none", True, "nothing to resume"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            make(tmp_path, [HUMAN], output=name, resume=resume)


def test_a_file_that_only_has_the_name_is_never_touched(tmp_path: Path, server: Server) -> None:
    """Neither cut nor written over, with `resume` or without."""
    for name, files in (
        ("theirs", {"answers.jsonl": '{"mine": 1}\n{"half'}), ("beside", {"answers.jsonl": "", "rows.jsonl": "mine"}),
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
        for resume in (True, False):
            with pytest.raises(UsageError, match=r"is of no command of this kind|was begun and not finished"):
                make(tmp_path, [HUMAN], output=name, resume=resume)
        assert {path.name: path.read_text() for path in (tmp_path / name).iterdir()} == files


def test_a_folder_that_was_left_before_the_first_answer_can_be_used(tmp_path: Path, server: Server) -> None:
    (tmp_path / "out").mkdir()
    for name in ("answers.jsonl", "settings.json.writing", "rows.jsonl.partial"):
        (tmp_path / "out" / name).write_text("")
    assert make(tmp_path, [HUMAN]).rows == len(ROWS)


def test_what_would_draw_other_answers_is_refused(tmp_path: Path, server: Server) -> None:
    tier = remote(server)
    make(tmp_path, [HUMAN, tier])
    asked_before = len(server.requests)
    for tiers, config, words in (
        ([HUMAN, {**tier, "sampling": {"temperature": 0.5}}], {}, r"tier api: .*sampling.temperature was 1.0, now 0.5"),
        ([HUMAN, {**tier, "system": "Be brief."}], {}, 'system was null, now "Be brief."'),
        ([{**HUMAN, "column": "prompt"}, tier], {}, 'column was "answer", now "prompt"'),
        ([HUMAN], {}, "answers of tier api, which the settings no longer name"),
        ([HUMAN, tier], {"seed": 1}, "begun with seed 0, and seed is 1"),
    ):
        with pytest.raises(UsageError, match=words):
            make(tmp_path, tiers, resume=True, **config)
    changed = [ROWS[1], ROWS[0], *ROWS[2:]]
    with pytest.raises(DataError, match=r"answers.jsonl:1: an answer to .*prompts.jsonl:1, where another prompt"):
        make(tmp_path, [HUMAN, tier], changed, resume=True)
    with pytest.raises(DataError, match="another prompt stands now, or none"):
        make(tmp_path, [HUMAN, tier], ROWS[:3], resume=True)
    assert len(server.requests) == asked_before


def test_rows_tiers_and_what_is_no_matter_of_the_answer_may_change(tmp_path: Path, server: Server) -> None:
    make(tmp_path, [HUMAN, remote(server)], ROWS[:4])
    server.requests.clear()
    prices = {"price_input": 1.0, "price_output": 1.0, "concurrency": 1, "timeout": 9.0}
    tiers = [{**HUMAN, "rank": 3}, remote(server, endpoint=prices), remote(server, "new", 1)]
    found = make(tmp_path, tiers, ROWS, resume=True)
    assert Counter(body["model"] for body, _ in server.requests) == {"api-model": 2, "new-model": 6}
    assert [one["source"] for one in written(tmp_path)[0]["responses"]] == ["new", "api", "human"]
    assert counts(found, "api")["tokens"]["output"] == 18 and found.rows == 6


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    make(tmp_path, [HUMAN])
    journal = tmp_path / "out" / "answers.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([lines[0], lines[1][:20] + "\n", *lines[2:]]))
    with pytest.raises(DataError, match=r"answers.jsonl:2: damaged"):
        make(tmp_path, [HUMAN], resume=True)
    journal.write_text("".join([lines[0], *lines[2:]]))
    make(tmp_path, [HUMAN], resume=True)
    assert len(written(tmp_path)) == 6


def test_only_one_program_at_a_time(tmp_path: Path) -> None:
    make(tmp_path, [HUMAN])
    config = GenerateConfig.model_validate({"data": [{"path": str(tmp_path / "prompts.jsonl")}], "tiers": [HUMAN]})
    held = Journal(tmp_path / "out", config, Prompts(config.data, config.tiers, None))
    with held, pytest.raises(UsageError, match="another program"):
        make(tmp_path, [HUMAN], resume=True)
    make(tmp_path, [HUMAN], resume=True)


def test_no_answer_at_all_is_an_error_with_decisions(tmp_path: Path, server: Server) -> None:
    server.respond = answering(lambda body, k: "")
    with pytest.raises(PreftuneError, match="no prompt has an answer that is kept"):
        make(tmp_path, [remote(server)])
    assert all(one["answers"][0]["why"] == "empty" for one in written(tmp_path, "decisions"))


# ------------------------------------------------------------------------------------------------- models in here


def test_local_draws_do_not_depend_on_what_was_there(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "CHUNK", 4)
    rows = [{"prompt": f"{n} plus"} for n in range(6)] + [{"prompt": "x" * 130}]
    tier = {"name": "weak", "rank": 1, "model": str(model), "sampling": {"max_tokens": 6, "n": 2}}
    found = make(tmp_path, [tier], rows, cut="keep")
    assert counts(found, "weak")["refused"] == 2  # 130 tokens do not fit into 128 positions
    assert "exceed the model's 128 positions" in written(tmp_path, "decisions")[-1]["answers"][0]["error"]
    whole = (tmp_path / "out" / "rows.jsonl").read_bytes()
    texts = [one["text"] for row in written(tmp_path) for one in row["responses"]]
    assert len(set(texts)) == 12
    journal = tmp_path / "out" / "answers.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    gone = (1, 4, 5, 10)
    journal.write_text("".join(line for n, line in enumerate(lines) if n not in gone))
    make(tmp_path, [tier], rows, cut="keep", resume=True)
    assert (tmp_path / "out" / "rows.jsonl").read_bytes() == whole
    added = [line for line in tiny.lines(journal)[len(lines) - len(gone) :] if "error" not in line]
    removed = [json.loads(lines[n]) for n in gone]
    assert [(one["row"], one["n"], one["text"]) for one in added] == [
        (one["row"], one["n"], one["text"]) for one in removed
    ]
    make(tmp_path, [{**tier, "name": "other"}], rows, cut="keep", output="other")
    others = [one["text"] for row in tiny.lines(tmp_path / "other" / "rows.jsonl") for one in row["responses"]]
    assert not set(others) & set(texts)  # two tiers of one model do not write the same


def test_a_local_model_needs_a_chat_template_for_what_needs_one(tmp_path: Path, model: Path) -> None:
    tier = {"name": "weak", "rank": 1, "model": {"path": str(model)}}
    for extra in ({"system": "Be brief."}, {"form": "chat"}):
        with pytest.raises(ModelError, match=r"tier weak: .* has no chat template"):
            make(tmp_path, [{**tier, **extra}])
    with pytest.raises(ModelError, match="nowhere"):
        make(tmp_path, [{"name": "weak", "rank": 1, "model": str(tmp_path / "nowhere")}])
    greedy = {**tier, "sampling": {"temperature": 0, "max_tokens": 4}}
    assert make(tmp_path, [greedy], cut="keep").rows == 6  # what failed before left nothing that is in the way


# ------------------------------------------------------------------------------------------------- settings, limits


@pytest.mark.parametrize(
    ("tiers", "words"),
    [
        ([{"name": "a", "rank": 1}], "tier a has none; give exactly one of model, endpoint and column"),
        ([{"name": "a", "rank": 1, "column": "x", "endpoint": "m"}], "tier a has endpoint and column"),
        ([{"name": "a", "rank": 1, "column": "x", "system": "s"}], "tier a is a column, .*; remove system"),
        ([{"name": "a", "rank": 1, "column": "x"}] * 2, "two tiers are named 'a'"),
        ([{"name": "7", "rank": 1, "column": "x"}], "a name is no number"),
        ([{"name": "a", "rank": 1, "model": "stage:sft"}], "stage of a recipe"),
        ([{"name": "a", "rank": 1, "model": "m", "sampling": {"n": 2, "temperature": 0}}], "the same answer"),
        ([{"name": "a", "rank": 1, "endpoint": "m", "form": "text", "system": "s"}], "needs form: chat"),
        ([{"name": "a", "rank": 1, "endpoint": {"model": "m", "price_input": 1}}], "price_input and price_output"),
        ([{"name": "a", "rank": 1, "endpoint": {"model": "m", "extra_body": {"n": 1}}}], "extra_body.n is set by"),
        ([{"name": "a", "rank": 1, "endpoint": {"model": "m", "base_url": "http://me:pw@h/v1"}}], "may be secret"),
        ([{"name": "a", "rank": 1, "endpoint": {"model": "m", "base_url": "h/v1"}}], "must begin with http"),
    ],
)
def test_settings_that_contradict_each_other(tiers: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GenerateConfig.model_validate({"data": [{"path": "x"}], "tiers": tiers})


def test_a_system_message_of_the_row_and_of_the_tier(tmp_path: Path, server: Server) -> None:
    rows = [{"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}]
    with pytest.raises(DataError, match=r"prompts.jsonl:1: the row has a system message of its own, and tier api"):
        make(tmp_path, [remote(server, system="t")], rows)


class Clock:
    """Time that passes by waiting alone."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        assert seconds > 0
        self.waits.append(seconds)
        self.now += seconds
        return False


def limit(clock: Clock, requests: float | None = None, tokens: float | None = None) -> RateLimit:
    return RateLimit(requests, tokens, clock=clock, wait=clock.wait)


def test_requests_per_minute_by_hand() -> None:
    clock = Clock()
    slow = limit(clock, requests=60)
    times = []
    for _ in range(4):
        slow.acquire(1_000_000)
        times.append(clock.now - 100)
    assert times == pytest.approx([0, 1, 2, 3], abs=1e-6)
    fast = limit(clock, requests=600)
    start, times = clock.now, []
    for _ in range(12):
        fast.acquire(0)
        times.append(clock.now - start)
    assert times == pytest.approx([0] * 10 + [0.1, 0.2], abs=1e-6)  # a second's worth at once, then ten a second


def test_tokens_per_minute_by_hand() -> None:
    clock = Clock()
    rate = limit(clock, tokens=6000)  # 100 a second, and no more than 100 saved up
    rate.acquire(250)  # larger than what can be saved up: goes at once and leaves a debt of 150
    assert clock.now == 100
    rate.acquire(50)  # 150 of debt and 50
    assert clock.now == pytest.approx(102)
    rate.correct(50, 10)  # 40 were not needed
    rate.acquire(60)
    assert clock.now == pytest.approx(102.2)
    rate.correct(60, 160)
    rate.acquire(1)
    assert clock.now == pytest.approx(102.2 + 1.01)
    assert max(clock.waits) <= 1.0  # so what the server counts is seen soon
    limit(clock).acquire(10**9)  # without limit
    assert clock.now == pytest.approx(102.2 + 1.01)


def test_waiting_ends_when_the_work_does() -> None:
    stopped = RateLimit(1, None, clock=lambda: 0.0, wait=lambda seconds: True)
    stopped.acquire(1)
    with pytest.raises(SamplingError, match="stopped"):
        stopped.acquire(1)


@settings(max_examples=60, deadline=None)
@given(
    st.floats(1, 3000), st.floats(10, 1e5),
    st.lists(st.tuples(st.integers(0, 500), st.floats(0, 3)), min_size=1, max_size=60),
)  # fmt: skip
def test_no_stretch_of_time_sees_more_than_its_share(
    requests: float, tokens: float, asks: list[tuple[int, float]]
) -> None:
    clock = Clock()
    rate = limit(clock, requests, tokens)
    passed: list[tuple[float, int]] = []
    for need, pause in asks:
        clock.now += pause
        rate.acquire(need)
        passed.append((clock.now, need))
    for i, (start, _) in enumerate(passed):
        for j in range(i, len(passed)):
            seconds = passed[j][0] - start
            assert j - i + 1 <= max(1.0, BURST * requests / 60) + seconds * requests / 60 + 1e-3
            # the last may leave a debt, which is not yet paid
            spent = sum(need for _, need in passed[i:j])
            assert spent <= max(1.0, BURST * tokens / 60) + seconds * tokens / 60 + 500 + 1e-3


def test_an_endpoint_is_asked_no_faster_than_its_limit(tmp_path: Path, server: Server) -> None:
    started = time.monotonic()
    tier = remote(server, endpoint={"requests_per_minute": 600, "concurrency": 4})
    make(tmp_path, [tier], ROWS * 2, repeated_prompts="keep")
    assert len(server.requests) == 12
    assert time.monotonic() - started >= 0.2 - 0.02  # ten at once, two more at ten a second: no less can be


def test_the_report_is_safe_and_warns(tmp_path: Path, server: Server) -> None:
    hostile = "<script>alert(1)</script>"
    server.respond = answering(lambda body, k: f"{hostile} " + "very long " * 30)
    rows = [{"prompt": f"{n} {hostile}", "answer": f"short {n}"} for n in range(5)]
    found = make(tmp_path, [HUMAN, remote(server), remote(server, "weak", 3)], rows)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert hostile not in page and page.count("&lt;script&gt;alert(1)") >= 10
    assert any("weak equal one of api: these tiers hardly differ" in one for one in found.warnings)
    assert any(one.startswith("Answers of api are 30.5 times as long as those of human") for one in found.warnings)


def test_the_page_of_the_docs_is_true() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "curation-generate.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    raw = yaml.safe_load(block)
    config = GenerateConfig.model_validate({**raw, "data": [raw["data"]]})
    assert [tier.name for tier in config.ordered] == ["human", "best", "strong", "weak"]
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    ast.parse(code)
    tables = "".join(line for line in page.splitlines(keepends=True) if line.startswith("| `"))
    for model in (EndpointConfig, LocalConfig, DrawConfig):
        for name in model.model_fields:
            assert f"`{name}`" in tables, name
    for name in set(GenerateConfig.model_fields) - {"data", "tiers", "seed"}:
        assert f"`{name}`" in page, name
    for name, value in (("concurrency", 8), ("at_once", True), ("timeout", 120), ("patience", 300), ("backoff", 1)):
        assert EndpointConfig.model_fields[name].default == value
    assert DrawConfig().max_tokens == 1024 and config.stop_after == 20

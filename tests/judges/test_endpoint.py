"""A judge behind an endpoint on 127.0.0.1 that is slow, down, rude or odd."""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import pytest

from preftune.errors import SamplingError
from preftune.judges import Judge, JudgeConfig, Question
from preftune.judges.cache import default_folder
from tests.judges.fakes import Answer, Server, chat, first_place, honest

KEY = "sk-very-secret-0123456789"
QUESTIONS = [Question(f"task {n}", ("q1", "q2"), where=f"rows.jsonl:{n + 1}") for n in range(5)]


def judge(server: Server, **settings: Any) -> Judge:
    return Judge(JudgeConfig(model="big", base_url=server.url, **{"backoff": 0.01, "timeout": 5.0, **settings}))


def error(message: str, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "error", "code": code}}


def test_one_request(server: Server) -> None:
    with judge(server, temperature=0.3, max_tokens=77, swap=False) as one:
        (verdict,) = one.judge(QUESTIONS[:1])
    assert verdict.scores == (0, 1)
    ((body, headers),) = server.requests
    assert headers["authorization"] == "Bearer none"
    assert isinstance(body.pop("seed"), int)
    (message,) = body.pop("messages")
    assert message["role"] == "user" and "task 0" in message["content"]
    assert body == {"model": "big", "max_tokens": 77, "temperature": 0.3}
    assert (one.usage.input_tokens, one.usage.output_tokens) == (100, 10)


def test_extra_fields_are_sent_and_null_removes_one(server: Server) -> None:
    extra = {"max_tokens": None, "max_completion_tokens": 500, "temperature": 1, "top_p": 0.5}
    judge(server, extra_body=extra, swap=False).judge(QUESTIONS[:1])
    body = server.requests[0][0]
    assert "max_tokens" not in body
    assert (body["max_completion_tokens"], body["temperature"], body["top_p"]) == (500, 1, 0.5)
    judge(server, extra_body={}, swap=False).judge(QUESTIONS[:1])
    assert len(server.requests) == 2  # another request, another key


def test_a_place_lover_behind_an_endpoint_gives_ties(server: Server) -> None:
    server.rule = first_place
    assert {verdict.scores for verdict in judge(server).judge(QUESTIONS)} == {(0.5, 0.5)}


def test_requests_run_side_by_side(server: Server) -> None:
    together = threading.Barrier(4, timeout=10)

    def respond(body: dict[str, Any], number: int) -> None:
        if number < 4:
            together.wait()

    server.respond = respond
    assert len(judge(server, concurrency=4).judge(QUESTIONS)) == 5


# --- failures that pass -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first",
    [
        (429, error("slow down"), {"retry-after": "0.05"}),
        (503, "<html>busy</html>"),
        (200, '{"choices": [{"index"'),
    ],
)
def test_a_passing_failure_is_tried_again(server: Server, first: Answer) -> None:
    server.respond = lambda body, number: first if number == 0 else None
    start = time.monotonic()
    (verdict,) = judge(server, swap=False).judge(QUESTIONS[:1])
    assert verdict.scores == (0, 1) and len(server.requests) == 2
    if len(first) == 3:
        assert time.monotonic() - start >= 0.05  # Retry-After


def test_an_endpoint_that_is_down_for_a_while() -> None:
    """Nobody listens for 1.5 s, then the server comes up: with patience to spare, no verdict is lost."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = JudgeConfig(model="big", base_url=f"http://127.0.0.1:{port}/v1", backoff=0.05, patience=60.0)
    started: list[Server] = []
    timer = threading.Timer(1.5, lambda: started.append(Server(port)))
    timer.start()
    try:
        verdicts = Judge(config).judge(QUESTIONS)
    finally:
        timer.join()
        started[0].close()
    assert [verdict.scores for verdict in verdicts] == [(0, 1)] * 5


def test_the_default_patience_outlives_a_minute() -> None:
    config = JudgeConfig(model="big")
    assert config.patience >= 120  # a wait is a minute at most, so an outage of a minute ends well within


def test_when_patience_ends_the_error_is_clear_and_nothing_is_lost(server: Server) -> None:
    server.respond = lambda body, number: (503, error("down")) if number >= 4 else None
    with pytest.raises(SamplingError) as caught:
        judge(server, patience=0.3, concurrency=1).judge(QUESTIONS)
    said = str(caught.value)
    assert said.startswith("rows.jsonl:3: big at http://127.0.0.1:") and "503, down" in said
    assert re.search(r"failed \d+ times in \d+ s, last with", said) and "lower the judge's concurrency" in said
    assert len(server.requests) > 5  # it was tried again
    kept = len(list(default_folder().rglob("*.json")))
    assert kept == 4
    server.respond = lambda body, number: None
    one = judge(server)
    assert [verdict.scores for verdict in one.judge(QUESTIONS)] == [(0, 1)] * 5
    assert (one.usage.requests, one.usage.cached) == (6, 4)


def test_counts_hold_after_an_error(server: Server) -> None:
    server.respond = lambda body, number: (401, error("no")) if number >= 4 else None
    one = judge(server, concurrency=1)
    with pytest.raises(SamplingError):
        one.judge(QUESTIONS)
    assert (one.usage.requests, one.usage.input_tokens) == (4, 400)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (401, error("Incorrect API key"), "401, Incorrect API key; set a valid key in MY_KEY"),
        (404, error("no model"), "check the model's name and base_url"),
        (429, error("quota", "insufficient_quota"), "check its plan and billing"),
    ],
)
def test_a_refusal_of_everything_stops_at_once(server: Server, status: int, body: Any, expected: str) -> None:
    server.respond = lambda _, number: (status, body)
    with pytest.raises(SamplingError, match="refused the request") as caught:
        judge(server, key_variable="MY_KEY", concurrency=1).judge(QUESTIONS)
    assert expected in str(caught.value) and len(server.requests) <= 2


# --- failures of one request --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ((400, error("maximum context length is 10 tokens")), "refused the request: 400, maximum context length"),
        ((200, chat("half", "content_filter")), "ended it by 'content_filter' with text"),
        ((200, chat(None, "tool_calls")), "ended it by 'tool_calls' with no text"),
        ((200, chat(None)), "ended it by 'stop' with no text"),
        ((200, chat("<verdict>B</verdict> and", "length")), "the reply was cut at max_tokens 1024"),
        ((200, chat(None, "length")), "the reply was cut at max_tokens 1024"),
    ],
)
def test_one_request_that_fails_costs_one_verdict(server: Server, answer: Answer, why: str) -> None:
    def respond(body: dict[str, Any], number: int) -> Answer | None:
        return answer if "task 3" in body["messages"][0]["content"] else None

    server.respond = respond
    verdicts = judge(server).judge(QUESTIONS)
    assert [verdict.scores for verdict in verdicts] == [(0, 1)] * 3 + [(None, None)] + [(0, 1)]
    assert why in verdicts[3].problems[0]


def test_missing_token_counts_are_said_and_not_guessed(server: Server) -> None:
    odd = [None, {"prompt_tokens": "many", "completion_tokens": 3}, {"prompt_tokens": 7, "completion_tokens": True}, 5]

    def respond(body: dict[str, Any], number: int) -> Answer | None:
        if number >= len(odd):
            return None
        usage = odd[number]
        plain = chat(honest(body["messages"][0]["content"]), usage=None)
        return 200, plain if usage is None else {**plain, "usage": usage}

    server.respond = respond
    one = judge(server, concurrency=1, price_input=1.0, price_output=1.0)
    one.judge(QUESTIONS)
    assert one.usage.uncounted == 4
    assert (one.usage.input_tokens, one.usage.output_tokens) == (6 * 100 + 7, 6 * 10 + 3)


# --- keys ---------------------------------------------------------------------------------------------------


def test_the_key_is_neither_shown_nor_kept(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_KEY", KEY)

    def respond(body: dict[str, Any], number: int) -> Answer:
        return (200, chat(f"{KEY} <verdict>A</verdict>")) if number < 4 else (401, error(f"wrong key {KEY}"))

    server.respond = respond
    one = judge(server, key_variable="MY_KEY", concurrency=1)
    with pytest.raises(SamplingError) as caught:
        one.judge(QUESTIONS)
    assert server.requests[0][1]["authorization"] == f"Bearer {KEY}"
    shown = capfd.readouterr()
    told = [str(caught.value), "".join(traceback.format_exception(caught.value)), repr(one), repr(one.config)]
    told += [shown.out, shown.err, *(record.getMessage() for record in caplog.records)]
    files = [path for path in default_folder().rglob("*") if path.is_file()]
    told += [path.read_text() for path in files]
    assert len(files) == 4 and not any(KEY in text for text in told)


def test_no_key_for_the_default_endpoint() -> None:
    with pytest.raises(SamplingError, match="set the environment variable OPENAI_API_KEY"):
        Judge(JudgeConfig(model="big"))


def test_the_address_is_part_of_the_model(server: Server, tmp_path: Path) -> None:
    """One name at two servers may be two models."""
    judge(server).judge(QUESTIONS[:1])
    other = Server()
    try:
        judge(other).judge(QUESTIONS[:1])
        assert len(other.requests) == 2
    finally:
        other.close()

"""ApiSampler against a local server that answers as told."""

from __future__ import annotations

import json
import logging
import threading
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from preftune.config import SamplingConfig
from preftune.errors import SamplingError
from preftune.records import Distribution, Message, Prompt
from preftune.sampling.api import ApiSampler

KEY = "sk-very-secret-0123456789"
EOS = 0

Reply = tuple[int, Any] | tuple[int, Any, dict[str, str]]
"""Status, body (text is sent as it is, anything else as JSON), and extra headers."""


class Server:
    """Answers each request by `respond(body, number)`, number counting from 0, and keeps what was asked."""

    def __init__(self) -> None:
        self.respond: Callable[[dict[str, Any], int], Reply] = lambda body, number: (200, chat("ok"))
        self.requests: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.lock = threading.Lock()
        self.released = threading.Event()
        self.in_flight = self.most_in_flight = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with server.lock:
                    number = len(server.requests)
                    server.requests.append((self.path, body, {k.lower(): v for k, v in self.headers.items()}))
                    server.in_flight += 1
                    server.most_in_flight = max(server.most_in_flight, server.in_flight)
                status, answer, *rest = server.respond(body, number)
                with server.lock:
                    server.in_flight -= 1
                data = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
                try:
                    self.send_response(status)
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", str(len(data)))
                    for name, value in (rest[0] if rest else {}).items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the client stopped waiting, as some tests want

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running = Server()
    yield running
    running.released.set()
    running.http.shutdown()
    running.http.server_close()


def encode(text: str) -> tuple[int, ...]:
    return tuple(text.encode())


def sampler(server: Server, **settings: Any) -> ApiSampler:
    settings = {"api_key": KEY, "backoff": 0.001, "attempts": 3, "timeout": 5.0, **settings}
    return ApiSampler("big-model", encode=encode, eos_id=EOS, base_url=server.url, **settings)


def chat(*texts: str, finish: str = "stop", **fields: Any) -> dict[str, Any]:
    choices = [
        {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": finish, **fields}
        for i, text in enumerate(texts)
    ]
    return {"id": "1", "object": "chat.completion", "choices": choices}


def error(message: str, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "error", "code": code}}


def ask(text: str, where: str = "") -> Prompt:
    return Prompt(ids=encode(text), text=f"<user>{text}", content=(Message("user", text),), where=where)


def echo(body: dict[str, Any], number: int) -> Reply:
    return 200, chat(*[body["messages"][-1]["content"].upper()] * body.get("n", 1))


# --- what comes back ----------------------------------------------------------------------------------------


def test_one_request_for_a_group_of_messages(server):
    server.respond = lambda body, number: (200, chat("four", "4"))
    prompt = Prompt(
        ids=(1, 2), text="<sys>Be brief.<user>2+2=", content=(Message("system", "Be brief."), Message("user", "2+2="))
    )
    settings = SamplingConfig(max_tokens=7, temperature=0.8)
    (group,) = sampler(server).sample([prompt], 2, settings, seed=5, policy_version=3)
    assert group.prompt is prompt
    assert [c.text for c in group.completions] == ["four", "4"]
    first = group.completions[0]
    assert first.ids == (*b"four", EOS)
    assert first.mask == (True,) * 5
    assert first.finish == "eos"
    assert first.logprobs is None
    assert first.distribution == Distribution(temperature=0.8)
    assert first.policy_version == 3
    assert first.source == "big-model"
    ((path, body, headers),) = server.requests
    assert path == "/v1/chat/completions"
    assert headers["authorization"] == f"Bearer {KEY}"
    seed = body.pop("seed")
    assert isinstance(seed, int)
    assert body == {
        "model": "big-model",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2="}],
        "max_tokens": 7,
        "temperature": 0.8,
        "n": 2,
    }


def test_plain_text_goes_to_the_completions_endpoint(server):
    server.respond = lambda body, number: (200, {"choices": [{"index": 0, "text": " 4", "finish_reason": "length"}]})
    prompt = Prompt(ids=(50,), text="2+2=", content="2+2=")
    (group,) = sampler(server).sample([prompt], 1, SamplingConfig(), seed=0)
    (completion,) = group.completions
    assert (completion.text, completion.finish, completion.ids) == (" 4", "length", tuple(b" 4"))
    ((path, body, _),) = server.requests
    assert path == "/v1/completions"
    assert body["prompt"] == "2+2="
    assert "n" not in body


def test_every_sampling_setting_is_sent_and_recorded(server):
    settings = SamplingConfig(
        max_tokens=9, temperature=0.5, top_k=3, top_p=0.9, min_p=0.05, repetition_penalty=1.2, stop=["###"]
    )
    (group,) = sampler(server).sample([ask("hi")], 1, settings, seed=1, temperature=0.0)
    body = server.requests[0][1]
    sent = {name: body[name] for name in ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")}
    assert sent == {
        "max_tokens": 9, "temperature": 0.0, "top_k": 3, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.2
    }  # fmt: skip
    assert body["stop"] == ["###"]
    assert group.completions[0].distribution == Distribution(0.0, 3, 0.9, 0.05, 1.2)


@pytest.mark.parametrize(
    ("finish", "fields", "stops", "expected"),
    [
        ("stop", {}, [], ("so", "eos")),
        ("length", {}, [], ("so", "length")),
        ("length", {"stop_reason": None}, ["###"], ("so", "length")),
        ("stop", {}, ["###"], ("so", "stop")),  # the server does not say: no EOS is invented
        ("stop", {"stop_reason": None}, ["###"], ("so", "eos")),
        ("stop", {"stop_reason": 151643}, ["###"], ("so", "eos")),
        ("stop", {"stop_reason": "###"}, ["###"], ("so###", "stop")),
    ],
)
def test_finish_reasons(server, finish, fields, stops, expected):
    server.respond = lambda body, number: (200, chat("so", finish=finish, **fields))
    (group,) = sampler(server).sample([ask("hi")], 1, SamplingConfig(stop=stops), seed=0)
    (completion,) = group.completions
    assert (completion.text, completion.finish) == expected
    assert completion.ids == encode(expected[0]) + ((EOS,) if expected[1] == "eos" else ())


def test_an_empty_answer_is_an_answer(server):
    server.respond = lambda body, number: (200, chat(""))
    (group,) = sampler(server).sample([ask("hi")], 1, SamplingConfig(), seed=0)
    assert group.completions[0].ids == (EOS,)


def test_choices_are_ordered_by_index(server):
    answer = chat("a", "b", "c")
    answer["choices"].reverse()
    server.respond = lambda body, number: (200, answer)
    (group,) = sampler(server).sample([ask("hi")], 3, SamplingConfig(), seed=0)
    assert [c.text for c in group.completions] == ["a", "b", "c"]


def test_no_prompts(server):
    assert sampler(server).sample([], 2, SamplingConfig(), seed=0) == []
    assert server.requests == []


def test_order_is_the_prompts_whichever_answer_comes_first(server):
    last_is_in = threading.Event()

    def respond(body: dict[str, Any], number: int) -> Reply:
        if body["messages"][0]["content"] == "p5":
            last_is_in.set()
        elif body["messages"][0]["content"] == "p0":
            assert last_is_in.wait(5)
        return echo(body, number)

    server.respond = respond
    prompts = [ask(f"p{i}") for i in range(6)]
    seen: list[tuple[int, int]] = []
    groups = sampler(server, concurrency=3).sample(
        prompts, 2, SamplingConfig(), seed=0, progress=lambda done, total: seen.append((done, total))
    )
    assert [[c.text for c in group.completions] for group in groups] == [[f"P{i}"] * 2 for i in range(6)]
    assert [group.prompt for group in groups] == prompts
    assert seen == [(2 * i, 12) for i in range(1, 7)]


def test_concurrency_is_limited(server):
    full = threading.Event()

    def respond(body: dict[str, Any], number: int) -> Reply:
        if server.most_in_flight == 3:
            full.set()
        assert full.wait(5), "never three at once"
        return echo(body, number)

    server.respond = respond
    sampler(server, concurrency=3).sample([ask(str(i)) for i in range(12)], 1, SamplingConfig(), seed=0)
    assert server.most_in_flight == 3


def test_a_server_that_ignores_n_is_asked_again_with_other_seeds(server):
    server.respond = lambda body, number: (200, chat(f"answer {number}"))
    (group,) = sampler(server).sample([ask("hi")], 3, SamplingConfig(), seed=4)
    assert [c.text for c in group.completions] == ["answer 0", "answer 1", "answer 2"]
    bodies = [body for _, body, _ in server.requests]
    assert [body.get("n", 1) for body in bodies] == [3, 1, 1]
    assert len({body["seed"] for body in bodies}) == 3


def test_too_many_completions_are_an_error(server):
    server.respond = lambda body, number: (200, chat("a", "b", "c"))
    with pytest.raises(SamplingError, match="gave 3 completions for n=2"):
        sampler(server).sample([ask("hi")], 2, SamplingConfig(), seed=0)


def test_seeds_repeat_and_differ(server):
    for seed in (7, 7, 8):
        sampler(server, concurrency=1).sample([ask("a"), ask("b")], 1, SamplingConfig(), seed=seed)
    seeds = [body["seed"] for _, body, _ in server.requests]
    assert seeds[0:2] == seeds[2:4]
    assert len({*seeds[0:2], *seeds[4:6]}) == 4


# --- failures that pass -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first",
    [
        (429, error("slow down")),
        (429, error("slow down"), {"retry-after": "0.01"}),
        (408, error("too slow")),
        (500, error("oops")),
        (503, "<html>busy</html>"),
        (200, '{"choices": [{"index"'),
        (200, "<html>proxy</html>"),
        (200, {"choices": []}),
        (200, {"choices": None}),
    ],
)
def test_passing_failures_are_tried_again(server, first):
    server.respond = lambda body, number: first if number == 0 else (200, chat("ok"))
    (group,) = sampler(server).sample([ask("hi")], 1, SamplingConfig(), seed=0)
    assert group.completions[0].text == "ok"
    assert len(server.requests) == 2
    assert server.requests[0][1] == server.requests[1][1]  # the seed too


def test_waits_grow_and_keep_to_retry_after(monkeypatch):
    import httpx2
    import openai
    import tenacity

    from preftune.sampling import api

    monkeypatch.setattr("random.uniform", lambda low, high: high)
    wait = api._wait(0.5)

    def seconds(attempt: int, headers: dict[str, str]) -> float:
        response = httpx2.Response(429, headers=headers, request=httpx2.Request("POST", "http://x/v1"))
        state = tenacity.RetryCallState(retry_object=tenacity.Retrying(), fn=None, args=(), kwargs={})
        state.attempt_number = attempt
        cause = openai.RateLimitError("slow", response=response, body=None)
        state.set_exception((type(cause), cause, None))
        return wait(state)

    assert [seconds(attempt, {}) for attempt in (1, 2, 3)] == [0.5, 1.0, 2.0]
    assert seconds(20, {}) == 60.0
    assert seconds(1, {"retry-after": "7"}) == 7.0
    assert seconds(1, {"retry-after": "3600"}) == 60.0
    assert seconds(3, {"retry-after": "0.1"}) == 2.0


# --- failures for good --------------------------------------------------------------------------------------


def test_500_forever_names_the_prompt(server):
    def respond(body: dict[str, Any], number: int) -> Reply:
        return (500, error("boom")) if body["messages"][0]["content"] == "bad" else echo(body, number)

    server.respond = respond
    prompts = [ask("good", "sums.jsonl:1"), ask("bad", "sums.jsonl:2")]
    with pytest.raises(SamplingError) as caught:
        sampler(server).sample(prompts, 1, SamplingConfig(), seed=0)
    message = str(caught.value)
    assert message.startswith("sums.jsonl:2: big-model at http://127.0.0.1:")
    assert "failed 3 times, last with 500, boom" in message
    assert "try again later" in message
    assert sum(body["messages"][0]["content"] == "bad" for _, body, _ in server.requests) == 3


def test_a_prompt_without_origin_is_named_by_number_and_text(server):
    server.respond = lambda body, number: (400, error("no"))
    with pytest.raises(SamplingError, match=r"^prompt 0 \('<user>what is love'\): "):
        sampler(server).sample([ask("what is love")], 1, SamplingConfig(), seed=0)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, error("max_tokens is too large"), "400, max_tokens is too large; check sampling.max_tokens"),
        (
            401,
            error("Incorrect API key provided"),
            "401, Incorrect API key provided; set a valid key in OPENAI_API_KEY",
        ),
        (403, error("no"), "may not use this model"),
        (404, error("The model `big-model` does not exist"), "check the model's name and base_url"),
        (413, "too big", "the prompt is too long"),
        (422, {"detail": "top_k: unknown"}, "check that the server knows the sampling settings"),
        (429, error("You exceeded your quota", "insufficient_quota"), "check its plan and billing"),
    ],
)
def test_refusals_are_not_tried_again(server, status, body, expected):
    server.respond = lambda _, number: (status, body)
    with pytest.raises(SamplingError, match="refused the request") as caught:
        sampler(server).sample([ask("hi", "a.jsonl:1")], 1, SamplingConfig(), seed=0)
    assert expected in str(caught.value)
    assert len(server.requests) == 1


def test_a_refusal_stops_the_other_prompts(server):
    def respond(body: dict[str, Any], number: int) -> Reply:
        return (401, error("no")) if number == 0 else (503, error("busy"))

    server.respond = respond
    with pytest.raises(SamplingError, match="401"):
        sampler(server, concurrency=1, attempts=50, backoff=100.0).sample(
            [ask(str(i)) for i in range(40)], 1, SamplingConfig(), seed=0
        )
    assert len(server.requests) <= 2  # none, or the one that a free worker had just begun


def test_timeout(server):
    def respond(body: dict[str, Any], number: int) -> Reply:
        server.released.wait(5)
        return 200, chat("late")

    server.respond = respond
    with pytest.raises(SamplingError, match="failed 2 times, last with no answer in time; raise the sampler's timeout"):
        sampler(server, timeout=0.05, attempts=2).sample([ask("hi", "a:1")], 1, SamplingConfig(), seed=0)
    assert len(server.requests) == 2


def test_nobody_listens(server):
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(SamplingError, match=r"no connection .*; check base_url and that the server runs"):
        sampler(server).sample([ask("hi", "a:1")], 1, SamplingConfig(), seed=0)


@pytest.mark.parametrize("body", ['{"choices": [', "<html>hello</html>", "[]", '{"choices": [1]}', ""])
def test_malformed_answers(server, body):
    server.respond = lambda _, number: (200, body)
    with pytest.raises(SamplingError, match=r"failed 3 times, last with an answer .*; check that base_url"):
        sampler(server).sample([ask("hi", "a:1")], 1, SamplingConfig(), seed=0)


@pytest.mark.parametrize(
    "answer",
    [
        chat("half", finish="content_filter"),
        chat("", finish="tool_calls"),
        {"choices": [{"index": 0, "message": {"content": None}, "finish_reason": "stop"}]},
        {"choices": [{"index": 0, "finish_reason": "stop"}]},
    ],
)
def test_what_is_no_finished_answer(server, answer):
    server.respond = lambda _, number: (200, answer)
    with pytest.raises(SamplingError, match=r"a:1: .* which is no finished answer"):
        sampler(server).sample([ask("hi", "a:1")], 1, SamplingConfig(), seed=0)


# --- keys ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 500])
def test_the_key_is_never_shown(server, caplog, capfd, status):
    """Not in the message, nor the chained traceback, the log or the object's own words; some servers echo keys."""
    caplog.set_level(logging.DEBUG)
    server.respond = lambda body, number: (status, error(f"Incorrect API key provided: {KEY}."))
    client = sampler(server)
    with pytest.raises(SamplingError) as caught:
        client.sample([ask("hi")], 1, SamplingConfig(), seed=0)
    assert "Incorrect API key provided: [key]." in str(caught.value)
    shown = capfd.readouterr()
    everything = [
        str(caught.value), "".join(traceback.format_exception(caught.value)), repr(client), shown.out, shown.err
    ]  # fmt: skip
    assert not any(KEY in text for text in everything)
    assert not any(KEY in record.getMessage() for record in caplog.records)


def test_secrets_of_the_address_are_not_shown(server):
    server.respond = lambda body, number: (404, error("no"))
    address = server.url.replace("http://", "http://user:password@")
    client = ApiSampler("m", encode=encode, eos_id=EOS, base_url=address, api_key=KEY)
    with pytest.raises(SamplingError) as caught:
        client.sample([ask("hi")], 1, SamplingConfig(), seed=0)
    assert f"m at {server.url} refused" in str(caught.value)
    assert "password" not in str(caught.value)


def test_key_from_the_environment(server, monkeypatch):
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    sampler(server, api_key=None, key_variable="MY_KEY").sample([ask("hi")], 1, SamplingConfig(), seed=0)
    assert server.requests[0][2]["authorization"] == f"Bearer {KEY}"


def test_a_local_server_needs_no_key(server):
    (group,) = sampler(server, api_key=None).sample([ask("hi")], 1, SamplingConfig(), seed=0)
    assert group.completions[0].text == "ok"


def test_no_key_for_the_default_endpoint(server):
    with pytest.raises(SamplingError, match="set the environment variable OPENAI_API_KEY"):
        ApiSampler("m", encode=encode, eos_id=EOS)
    with pytest.raises(SamplingError, match="holds characters that can't be in a key") as caught:
        ApiSampler("m", encode=encode, eos_id=EOS, api_key="sk-пароль")
    assert "пароль" not in str(caught.value)


def test_wrong_arguments(server):
    with pytest.raises(ValueError, match="at least 1"):
        sampler(server, attempts=0)
    with pytest.raises(ValueError, match="n must be at least 1"):
        sampler(server).sample([ask("hi")], 0, SamplingConfig(), seed=0)


def test_importing_the_module_does_not_import_the_client():
    import subprocess
    import sys

    code = "import sys, preftune.sampling.api; sys.exit('openai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

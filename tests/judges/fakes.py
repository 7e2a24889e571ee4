"""Judges that answer by rule: in the process, and behind an OpenAI-compatible endpoint on 127.0.0.1.

They read a prompt as a careful reader would: only borders with the request's own code count.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from preftune.judges import Reply, Request

Rule = Callable[[str], str]
"""From the judge's prompt to its reply."""


def fence(prompt: str) -> str:
    """The code of a prompt's borders, as its rules name it."""
    found = re.search(r"lines of the form \[\[begin NAME ([0-9a-f]{16})\]\]", prompt)
    assert found is not None
    return found[1]


def blocks(prompt: str) -> dict[str, str]:
    """Name → text of every block."""
    code = fence(prompt)
    return dict(re.findall(rf"^\[\[begin ([^\]]+) {code}\]\]\n(.*?)\n\[\[end \1 {code}\]\]$", prompt, re.S | re.M))


def quality(text: str) -> int:
    """Answers of the tests say how good they are: `q7`, or nothing for 0."""
    found = re.search(r"\bq(\d+)\b", text)
    return int(found[1]) if found else 0


def honest(prompt: str) -> str:
    """Judges by `quality` alone, in whatever mode it is asked."""
    shown = {name: quality(text) for name, text in blocks(prompt).items() if name.startswith("answer")}
    if "<score>N</score>" in prompt:
        return f"Fine.\n<score>{shown['answer']}</score>"
    grades = {name.removeprefix("answer "): grade for name, grade in shown.items()}
    if "<ranking>" in prompt:
        places = [[n for n in grades if grades[n] == grade] for grade in sorted(set(grades.values()), reverse=True)]
        return f"Fine.\n<ranking>{' > '.join(' = '.join(place) for place in places)}</ranking>"
    a, b = grades["A"], grades["B"]
    return f"Fine.\n<verdict>{'tie' if a == b else 'A' if a > b else 'B'}</verdict>"


def first_place(prompt: str) -> str:
    """Prefers whatever is shown first."""
    if "<ranking>" in prompt:
        names = [n.removeprefix("answer ") for n in blocks(prompt) if n.startswith("answer ")]
        return f"<ranking>{' > '.join(names)}</ranking>"
    return "<verdict>A</verdict>"


def rubbish(prompt: str) -> str:
    return "I would rather not say."


class Fake:
    """A backend in the process. `input_tokens` and `output_tokens` are 100 and 10 a request."""

    def __init__(self, rule: Rule = honest, name: str = "fake") -> None:
        self.rule = rule
        self.identity: Mapping[str, Any] = {"model": name}
        self.requests: list[Request] = []

    def ask(self, requests: Sequence[Request], keep: Callable[[int, Reply], None]) -> None:
        for index, request in enumerate(requests):
            self.requests.append(request)
            keep(index, Reply(self.rule(request.messages[0].content), False, 100, 10))


Answer = tuple[int, Any] | tuple[int, Any, dict[str, str]]
"""Status, body (text as it is, anything else as JSON), extra headers."""


def chat(text: str | None, finish: str = "stop", usage: tuple[int, int] | None = (100, 10)) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    body: dict[str, Any] = {"id": "1", "object": "chat.completion", "choices": [choice]}
    if usage is not None:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return body


class Server:
    """Answers by `rule`, or by `respond(body, number)` where it gives something; keeps what was asked."""

    def __init__(self, port: int = 0) -> None:
        self.rule: Rule = honest
        self.respond: Callable[[dict[str, Any], int], Answer | None] = lambda body, number: None
        self.requests: list[tuple[dict[str, Any], dict[str, str]]] = []
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with server.lock:
                    number = len(server.requests)
                    server.requests.append((body, {k.lower(): v for k, v in self.headers.items()}))
                given = server.respond(body, number)
                status, answer, *rest = given or (200, chat(server.rule(body["messages"][0]["content"])))
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
                    pass  # the client was killed, as some tests want

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.http.daemon_threads = True
        self.port = self.http.server_port
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    @property
    def prompts(self) -> list[str]:
        return [body["messages"][0]["content"] for body, _ in self.requests]

"""Replies on disk: found again, never mixed up, whole or absent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from preftune.errors import UsageError
from preftune.judges import Judge, JudgeConfig, JudgeError, Question, Reply
from preftune.judges.cache import ReplyCache, default_folder, key_of
from preftune.records import Message
from tests.judges.fakes import Fake, Server, honest

QUESTIONS = [Question(f"task {n}", ("q1", "q2")) for n in range(6)]


def asked(fake: Fake, questions: list[Question] = QUESTIONS, **settings: Any) -> int:
    """How many requests a fresh judge sends."""
    before = len(fake.requests)
    Judge(JudgeConfig(model="m", **settings), fake).judge(questions)
    return len(fake.requests) - before


def test_what_was_asked_is_not_asked_again(tmp_path: Path) -> None:
    fake = Fake()
    assert [asked(fake) for _ in range(2)] == [12, 0]
    assert asked(fake, [*QUESTIONS, Question("new", ("q1", "q2"))]) == 2
    assert asked(fake, cache=str(tmp_path / "other")) == 12
    assert [asked(fake, cache="off") for _ in range(2)] == [12, 12]
    assert default_folder() == tmp_path / "cache" / "judge" and len(list(default_folder().rglob("*.json"))) == 14


def test_verdicts_from_the_cache_are_the_same() -> None:
    one, two = (Judge(JudgeConfig(model="m"), Fake()) for _ in range(2))
    first, again = one.judge(QUESTIONS), two.judge(QUESTIONS)
    assert [v.scores for v in first] == [v.scores for v in again]
    assert [vote.text for v in first for vote in v.votes] == [vote.text for v in again for vote in v.votes]
    assert not any(vote.cached for v in first for vote in v.votes) and all(
        vote.cached for v in again for vote in v.votes
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"votes": 2, "temperature": 0.7},
        {"temperature": 0.5},
        {"max_tokens": 1000},
        {"rubric": "Only rhymes count."},
        {"mode": "pointwise"},
        {"mode": "listwise"},
    ],
)
def test_other_settings_are_other_replies(settings: dict[str, Any]) -> None:
    fake = Fake()
    asked(fake)
    assert asked(fake, **settings) == 2 * len(QUESTIONS) * settings.get("votes", 1)


def test_other_texts_and_models_are_other_replies() -> None:
    assert asked(Fake()) == 12
    assert asked(Fake(name="another")) == 12
    changed = [Question(f"task {n}", ("q1", "q2"), reference="q2") for n in range(6)]
    assert asked(Fake(), changed) == 12
    assert asked(Fake(), [Question(f"task {n}", ("q2", "q1")) for n in range(6)]) == 0  # the same requests, both orders


def test_more_votes_ask_only_for_the_new_ones() -> None:
    fake = Fake()
    assert asked(fake, votes=2, temperature=0.7) == 24
    assert asked(fake, votes=3, temperature=0.7) == 12


def test_settings_that_change_no_reply_change_no_key() -> None:
    fake = Fake()
    asked(fake)
    assert (
        asked(fake, concurrency=2, on_failure="error", price_input=1.0, price_output=2.0, timeout=3.0, swap=False) == 0
    )


def key(**changes: Any) -> str:
    about: dict[str, Any] = {
        "identity": {"model": "m"}, "messages": (Message("user", "x"),), "temperature": 0.0, "max_tokens": 10, "vote": 0
    }  # fmt: skip
    about |= changes
    return key_of(about.pop("identity"), about.pop("messages"), **about)


def test_every_part_is_in_the_key() -> None:
    keys = {
        key(), key(identity={"model": "n"}), key(messages=(Message("user", "y"),)),
        key(messages=(Message("system", "x"),)), key(temperature=0.1), key(max_tokens=11), key(vote=1),
    }  # fmt: skip
    assert len(keys) == 7 and key() == key()


# --- files --------------------------------------------------------------------------------------------------


def test_a_reply_comes_back_as_it_was(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path)
    replies = [Reply("é\ud800 <verdict>A</verdict>", True, 5, 6), Reply("", False, None, None)]
    for number, reply in enumerate(replies):
        cache.put(key(vote=number), reply)
        assert cache.get(key(vote=number)) == reply
    assert cache.get(key(vote=9)) is None


def test_a_refused_request_is_not_kept(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path)
    cache.put(key(), Reply("", problem="too long"))
    assert cache.get(key()) is None


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "null", '{"format": 1}', "\x00" * 100,
        '{"format": 1, "key": "other", "text": "x", "cut": false}',
        '{"format": 0, "key": "KEY", "text": "x", "cut": false}',
        '{"format": 1, "key": "KEY", "text": 5, "cut": false}',
        '{"format": 1, "key": "KEY", "text": "x", "cut": "no"}',
    ],
)  # fmt: skip
def test_a_damaged_file_is_asked_again_and_mended(content: str) -> None:
    fake = Fake()
    asked(fake)
    path = sorted(default_folder().rglob("*.json"))[0]
    path.write_text(content.replace("KEY", path.stem))
    assert asked(fake) == 1
    assert json.loads(path.read_text())["key"] == path.stem


def test_odd_token_counts_are_no_counts(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path)
    cache.put(key(), Reply("x", False, 1, 1))
    (path,) = tmp_path.rglob("*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"input_tokens": -3, "output_tokens": True}))
    assert cache.get(key()) == Reply("x")


def test_many_writers_at_once(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path)
    keys = [key(vote=n) for n in range(20)]

    def work() -> None:
        for one in keys:
            cache.put(one, Reply(one * 50))
            found = cache.get(one)
            assert found is not None and found.text == one * 50  # whole at any time

    errors: list[BaseException] = []

    def watched() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  raised in the main thread
            errors.append(error)

    threads = [threading.Thread(target=watched) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 20


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"the judge's cache .* can't be written \(.*\): set cache to another folder"):
        Judge(JudgeConfig(model="m", cache=str(tmp_path / "file" / "below")), Fake())


def test_a_full_disk_is_an_error_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Judge(JudgeConfig(model="m", cache=str(tmp_path)), Fake())

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(JudgeError, match=r"can't be kept in .*No space left on device.*make room"):
        one.judge(QUESTIONS)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# --- killed and begun again ---------------------------------------------------------------------------------

SCRIPT = """
import sys
from preftune.judges import Judge, JudgeConfig, Question
config = JudgeConfig(model="m", base_url=sys.argv[1], cache=sys.argv[2], concurrency=2)
questions = [Question(f"task {n}", ("q1", "q2")) for n in range(30)]
print([v.scores for v in Judge(config).judge(questions)] == [(0.0, 1.0)] * 30)
"""


def test_after_a_kill_only_what_is_missing_is_asked(server: Server, tmp_path: Path) -> None:
    """kill -9 in the midst of a batch: every reply that was there is kept, and none is half."""
    stuck = threading.Event()

    def respond(body: dict[str, Any], number: int) -> None:
        if number >= 20:
            stuck.wait(30)

    server.respond = respond
    command = [sys.executable, "-c", SCRIPT, server.url, str(tmp_path / "kept")]
    running = subprocess.Popen(command, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(server.requests) < 22 and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    stuck.set()
    server.respond = lambda body, number: None
    kept = len(list((tmp_path / "kept").rglob("*.json")))
    assert kept == 20 and len(server.requests) == 22
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "True"
    assert len(server.requests) == 22 + 60 - 20


def test_the_rule_of_the_script_is_honest(server: Server) -> None:
    assert server.rule is honest

"""The loop at the terminal: commands, several lines, errors that do not end the talk."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from preftune.competition import Construct
from preftune.talk import Talk, TalkConfig
from preftune.talk.commands import HELP, Loop
from preftune.talk.history import HistoryFile, read_turns
from preftune.talk.roles import ROLES
from preftune.talk.terminal import Screen
from tests.talk import scripted
from tests.talk.scripted import Stream

CONTRACT = scripted.contract()
CONSTRUCT = Construct.of()
GOOD = CONSTRUCT.render({"pirate": "Arr, 8.", "knight": "Hark, 7.", "viking": "Skol, 7."}, "Hm.", "knight", "It is 7.")


class Terminal:
    """A user who writes these lines; an exception among them is what the keyboard does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *lines: Any) -> None:
        self.lines: Iterator[Any] = iter(lines)
        self.out = io.StringIO()
        monkeypatch.setattr("builtins.input", self.input)

    def input(self, prompt: str) -> str:
        line = next(self.lines, EOFError())
        if isinstance(line, BaseException):
            raise line
        return str(line)


def run(
    monkeypatch: pytest.MonkeyPatch, sampler: Stream, *lines: Any, history: Path | None = None, **options: Any
) -> tuple[Talk, str]:
    terminal = Terminal(monkeypatch, *lines)
    stream = options.pop("stream", True)
    settings = options.pop("settings", TalkConfig())
    talk = Talk(sampler, CONTRACT, settings, **{"context_length": 4000, **options})
    screen = Screen(terminal.out, terminal.out, stream=stream)
    Loop(talk, screen, history=HistoryFile(history) if history else None, model="the model").run()
    assert next(terminal.lines, None) is None, "the loop ended before the user did"
    return talk, terminal.out.getvalue()


def questions(sampler: Stream) -> list[str]:
    """The last user message of each prompt."""
    return [text.rpartition("user\n")[2].partition("<|im_end|>")[0] for text, *_ in sampler.asked]


def test_questions_answers_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    length = scripted.prompt_length(("user", "Hi"))
    for stream in (True, False):
        _, out = run(monkeypatch, Stream("Hello!"), "Hi", stream=stream)
        lines = out.splitlines()
        assert lines[0] == f"prompt {length} tokens · {4000 - length:,} of 4,000 available"
        assert lines[1] == "Hello!"
        assert lines[2].startswith(f"answer 7 tokens · {length + 7} of 4,000 used · ")
        assert lines[2].endswith(" tokens/s")


def test_several_lines_and_slashes(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Stream(*"abcdef")
    run(monkeypatch, sampler, "one\\", "two\\", "", '"""', "def f():", "", "  pass", '"""', '"""x"""', '  """y', 'z"""',
        "//help me", "/usr/bin/env is what?", "   ", "")  # fmt: skip
    assert questions(sampler) == [
        "one\ntwo\n", "def f():\n\n  pass", "x", "y\nz", "/help me", "/usr/bin/env is what?",
    ]  # fmt: skip


def test_what_the_keyboard_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C at the prompt, and in the middle of several lines, drops the input; Ctrl-D leaves."""
    broken = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")
    sampler = Stream("a")
    _, out = run(monkeypatch, sampler, KeyboardInterrupt(), '"""', "lost", KeyboardInterrupt(), broken, "Hi")
    assert questions(sampler) == ["Hi"]
    assert out.count("Ctrl-D or /exit leaves") == 2
    assert "error: that is not utf-8 text" in out
    for word in ("/exit", "/quit"):
        run(monkeypatch, Stream(), word)


def test_ctrl_c_stops_the_answer_and_not_the_talk(monkeypatch: pytest.MonkeyPatch) -> None:
    talk, out = run(monkeypatch, Stream("abcdefgh", stop_after=3), "Hi", "/undo")
    assert "\nabc\nanswer 3 tokens · " in out
    assert " · stopped\n" in out
    assert talk.turns == []


def test_history_follows_the_talk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    seen: list[list[tuple[str, bool]]] = []

    class Watching(HistoryFile):
        def write(self, *args: Any) -> None:
            super().write(*args)
            seen.append([(turn.content, turn.forgotten) for turn in read_turns(self.path)[1]])

    monkeypatch.setattr("tests.talk.test_commands.HistoryFile", Watching)
    run(
        monkeypatch,
        Stream(*"abcd"),
        "1",
        "2",
        "/retry",
        "/undo",
        "/forget 1",
        "3",
        "/reset",
        "/role critic",
        history=path,
    )
    one, three = ("1", "a"), ("3", "d")
    assert seen == [
        [(x, False) for x in one],
        [(x, False) for x in (*one, "2", "b")],
        [(x, False) for x in (*one, "2", "c")],
        [(x, False) for x in one],
        [(x, True) for x in one],
        [*((x, True) for x in one), *((x, False) for x in three)],
        [(x, True) for x in (*one, *three)],
        [(x, True) for x in (*one, *three)],
    ]
    assert read_turns(path)[0] == ROLES["critic"]


def test_a_file_that_can_not_be_written_does_not_end_the_talk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    file = HistoryFile(path)
    path.write_text('{"role": "user", "content": "not ours"}\n')
    terminal = Terminal(monkeypatch, "Hi", "again")
    talk = Talk(Stream("a", "b"), CONTRACT, TalkConfig(), context_length=400)
    Loop(talk, Screen(terminal.out, terminal.out), history=file).run()
    assert terminal.out.getvalue().count("was changed by another program, so it is left as it is") == 2
    assert [turn.content for turn in talk.turns] == ["Hi", "a", "again", "b"]
    assert path.read_text() == '{"role": "user", "content": "not ours"}\n'


def test_save_and_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "saved.jsonl"
    _, out = run(monkeypatch, Stream("a"), "/role teacher", "Hi", f"/save {path}", f"/save {path}", "/save")
    assert f"2 messages in {path}" in out
    assert f"error: {path} exists already" in out
    assert "error: /save FILE: a new file's name is missing" in out
    assert [json.loads(line)["role"] for line in path.read_text().splitlines()] == ["system", "user", "assistant"]
    sampler = Stream("x", "b")
    talk, out = run(monkeypatch, sampler, "old", f"/load {path}", "And?", "/load nothing.jsonl")
    assert sampler.asked[1][0].startswith(f"<|im_start|>system\n{ROLES['teacher']}<|im_end|>\n<|im_start|>user\nHi<")
    assert [(turn.content, turn.forgotten) for turn in talk.turns[:3]] == [("old", True), ("x", True), ("Hi", False)]
    assert "error: nothing.jsonl can't be read: No such file or directory" in out


def test_system_and_role(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("From a\nfile.\n")
    sampler = Stream(*"abcde")
    _, out = run(
        monkeypatch, sampler, "1", "/system Be brief.", "2", f"/system @{tmp_path / 'own.txt'}", "3", "/system",
        "/role off", "4", "/system off", "5", "/role tutr", "/role", "/system @none.txt", system="the run's",
    )  # fmt: skip
    heads = [text.partition("<|im_end|>")[0] for text, *_ in sampler.asked]
    assert heads == [
        "<|im_start|>system\nthe run's", "<|im_start|>system\nBe brief.", "<|im_start|>system\nFrom a\nfile.",
        "<|im_start|>system\nthe run's", "<|im_start|>user\n1",
    ]  # fmt: skip
    assert "\nFrom a\nfile.\n" in out
    assert "error: no role is named 'tutr'; did you mean tutor?" in out
    assert "error: system prompt none.txt can't be read: No such file or directory" in out
    assert all(prompt in out for prompt in ROLES.values())


def test_set_and_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Stream(*"abc")
    _, out = run(
        monkeypatch, sampler, "1", "/set temperature 0.25", "/set stop [END, 'b b']", "/set max_tokens 9", "2",
        "/set stop END", "/set max_tokens null", "/set seed 5", "3", "/settings",
        "/set temperature hot", "/set temprature 1", "/set context 5000", "/set top_k true", "/set top_p 1.5", "/set",
        "/set stop null", settings=TalkConfig(seed=3),
    )  # fmt: skip
    assert [(s.stop, seed, t) for _, s, seed, t in sampler.asked] == [
        ([], 3, 0.7), (["END", "b b"], 4, 0.25), (["END"], 5, 0.25),
    ]  # fmt: skip
    assert sampler.asked[1][1].max_tokens == 9 < sampler.asked[2][1].max_tokens
    for message in (
        "temperature: got 'hot'; expected a number, at least 0",
        "no setting is named 'temprature'; did you mean temperature?",
        "context 5,000 is more than the model's 4,000 positions; lower it",
        "top_k: got True; expected a whole number, at least 0",
        "top_p: got '1.5'; expected a number, above 0, at most 1",
        "/set NAME VALUE: /settings lists the names",
    ):
        assert f"error: {message}" in out.replace("got 'true'", "got True")
    shown = dict(line.split(maxsplit=1) for line in out.splitlines() if line.startswith("  "))
    assert (shown["model"], shown["temperature"], shown["seed"]) == ("the model", "0.25", "5")
    assert (shown["context"], shown["talk"]) == ("4000", "3 exchanges")
    assert "stop: []" in out


def test_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Stream("a" * 60, "b", "c")
    talk, out = run(monkeypatch, sampler, "Hi", "x" * 150, "/forget 1", "/retry", "y" * 300, context_length=220)
    assert (
        "too many to leave room for an answer. /forget 1 makes room, /reset forgets all that was said; then /retry"
        in out
    )
    assert questions(sampler) == ["Hi", "x" * 150]
    assert "It does not fit by itself, and the model has no more positions: shorten it" in out
    assert [turn.content for turn in talk.shown] == ["x" * 150, "b"]
    _, out = run(monkeypatch, sampler, "y" * 100, context_length=999, settings=TalkConfig(context=50))
    assert "It does not fit by itself: shorten it, or /set context to more, up to 999" in out


def test_slips_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _, out = run(
        monkeypatch, Stream(), "/hlep", "/xyzzy", "/undo", "/retry", "/forget", "/forget 0", "/show-work", "/help"
    )
    for message in (
        "/hlep is no command; did you mean /help? (//hlep … is a question)",
        "/xyzzy is no command; /help lists all",
        "there is nothing to take back",
        "there is no question to ask again",
        "/forget N: how many exchanges?",
        "/forget 0: how many exchanges?",
        "there are no contests in this talk",
    ):
        assert f"error: {message}" in out
    assert all(f"  {usage} " in out for usage in HELP)


def test_help_lists_every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch)
    loop = Loop(Talk(Stream(), CONTRACT, TalkConfig(), context_length=9), Screen(terminal.out, terminal.out))
    assert {f"/{name}" for name in loop._commands} - {"/quit"} == {usage.split()[0] for usage in HELP}


def test_contests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    sampler = Stream(GOOD, GOOD, GOOD, "<competition>")
    _, out = run(
        monkeypatch, sampler, "/show-work", "3+4?", "/show-work", "/show-work folded", "And?", "/show-work columns",
        "So?", "/show-work off", "/show-work flat", "/role critic", "Well?", construct=CONSTRUCT, history=path,
        system=CONSTRUCT.system_prompt,
    )  # fmt: skip
    assert "error: there was no contest yet" in out
    first, unfolded, rest = out.partition("▾ pirate")
    assert "\nIt is 7.\nanswer " in first and "Arr" not in first
    whole = unfolded + rest.partition("contests are shown: folded")[0]
    assert whole.startswith("▾ pirate · 9 tokens\nArr, 8.\n▾ knight · 10 tokens · winner\nHark, 7.\n▾ viking")
    assert "▸ knight · 10 tokens · winner  Hark, 7." in rest
    assert any("Arr, 8." in line and "Hark, 7." in line for line in rest.splitlines())
    assert "error: /show-work flat: expected one of off, folded, columns, or nothing" in out
    assert "error: the contest has a system prompt of its own" in out
    assert "\n<competition>\nnote: no answer behind the contest: " in out
    assert out.count("; this is no part of the talk") == 1
    system, turns = read_turns(path)
    assert system is None
    assert [turn.content for turn in turns] == ["3+4?", "It is 7.", "And?", "It is 7.", "So?", "It is 7."]


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("no_color", [False, True])
def test_a_terminal_gets_passing_lines_and_colours_unless_told_not_to(
    monkeypatch: pytest.MonkeyPatch, no_color: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    out = Tty()
    talk = Talk(Stream(GOOD), CONTRACT, TalkConfig(), context_length=900, construct=CONSTRUCT)
    screen = Screen(out, out, show_work="folded")
    monkeypatch.setattr("preftune.talk.terminal.REDRAW", 0.0)
    screen.end(talk.ask("3+4?", screen), CONSTRUCT)
    text = out.getvalue()
    assert "\r\x1b[2K" in text and "the knight is working … " in text and "the judge is deciding … " in text
    assert ("\x1b[2m" in text, "\x1b[1;32mknight" in text) == (not no_color, not no_color)
    # Whatever passed is gone when something stays.
    stays = [line.rpartition("\r\x1b[2K")[2] for line in text.split("\n")]
    assert not any(" is working" in line or "reading" in line for line in stays)
    assert "It is 7." in stays

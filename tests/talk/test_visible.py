"""Nothing that a model writes reaches the terminal as a command."""

from __future__ import annotations

import io
import random
import re
import unicodedata

import pytest

from preftune.talk.answer import Answer, Budget
from preftune.talk.terminal import Screen
from preftune.talk.visible import one_line, visible

HOSTILE = {
    "\x1b[31mred\x1b[0m": "␛[31mred␛[0m",
    "\x1b]0;title\x07": "␛]0;title␇",
    "\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\": "␛]8;;http://evil␛\\link␛]8;;␛\\",
    "a\rb\x08c\x0bd\x0ce\x7f\x00": "a␍b␈c␋d␌e␡␀",
    "\x9b31m\x90\x9d\x85": "\\x9b31m\\x90\\x9d\\x85",
    "user\u202egnp.exe\u2066x\u2069\u202c": "user\\u202egnp.exe\\u2066x\\u2069\\u202c",
    "line\u2028line\u2029": "line\\u2028line\\u2029",
    "half \ud83d\udc09": "half \\ud83d\\udc09",
    "kept:\n\ttab, ä, 字, 🐉, 👨‍👩‍👧, עברית": "kept:\n\ttab, ä, 字, 🐉, 👨‍👩‍👧, עברית",
    "[red]markup[/red] [/] [link=x]": "[red]markup[/red] [/] [link=x]",
}
_HARMLESS = re.compile(r"[\n\t]|[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@pytest.mark.parametrize("text", HOSTILE)
def test_control_characters_are_shown_instead_of_sent(text: str) -> None:
    assert visible(text) == HOSTILE[text]
    assert visible(visible(text)) == visible(text)


def test_no_character_at_all_is_a_control_character_afterwards() -> None:
    every = "".join(map(chr, range(0x30000)))
    shown = visible(every)
    assert _HARMLESS.sub("", shown) == ""
    assert {unicodedata.category(char) for char in shown if char not in "\n\t"}.isdisjoint({"Cc", "Cs", "Zl", "Zp"})
    # And nothing else was touched.
    assert all(char in shown for char in every if unicodedata.category(char)[0] in "LNPSM")


def test_pieces_of_a_stream_come_out_as_the_whole() -> None:
    rng = random.Random(0)
    whole = "".join(HOSTILE)
    cuts = sorted(rng.randrange(len(whole)) for _ in range(40))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
    assert "".join(map(visible, pieces)) == visible(whole)


@pytest.mark.parametrize("stream", [True, False])
def test_a_screen_sends_none_of_it_either(stream: bool) -> None:
    out = io.StringIO()
    screen = Screen(out, out, stream=stream)
    everything = "".join(HOSTILE)
    screen.begins(Budget(1, 10, 9))
    for char in everything:
        screen.says(char)
    answer = Answer(everything, everything, Budget(1, 10, 9), 5, 2.0, "eos", everything, True)
    screen.end(answer, None)
    for line in (screen.dim, screen.say, screen.error, screen.passing):
        line(everything)
    text = out.getvalue()
    assert _HARMLESS.sub("", text) == ""
    assert visible(everything) in text
    assert text.count("[red]markup[/red] [/] [link=x]") == 5


def test_one_line() -> None:
    assert one_line("\n  \n first\x1b \nsecond") == "first␛"
    assert one_line("x" * 100, 10) == "x" * 9 + "…"
    assert one_line("") == ""


def test_a_terminal_that_knows_no_unicode_shows_what_it_can() -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    screen = Screen(file, file)
    screen.says("ä 🐉 \x1b")
    screen.dim("▸ one")
    file.flush()
    assert raw.getvalue() == b"? ? ?\n? one\n"

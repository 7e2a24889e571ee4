"""A contest while it is written: what comes out is the professional answer, however the text is cut into pieces."""

from __future__ import annotations

import io
import random

import pytest

from preftune.competition import Construct, parse
from preftune.config import CompetitionConfig
from preftune.talk.contest import ContestStream, faults, told, works
from preftune.talk.terminal import Screen
from tests.talk import scripted

CONSTRUCT = Construct.of()
GOOD = CONSTRUCT.render(
    {"pirate": "Arr, 3 and 4 be 8.", "knight": "Hark: 3 + 4 = 7.\nVerily.", "viking": "By Odin, 7!"},
    "The pirate can't count.", "knight", "The sum is **7**.\n\n  Checked.",
)  # fmt: skip
CONTRACT = scripted.contract()


def ends_of(text: str) -> list[int]:
    return CONTRACT.token_ends(CONTRACT.encode(text), text)


def stream(text: str, rng: random.Random, construct: Construct = CONSTRUCT) -> tuple[list[str], ContestStream]:
    one, shown, at = ContestStream(construct), [], 0
    while at < len(text):
        size = rng.randrange(1, 12)
        shown.append(one.add(text[at : at + size]))
        at += size
    return shown, one


def test_only_the_answer_comes_out_and_at_once() -> None:
    one, shown, words = ContestStream(CONSTRUCT), "", []
    for char in GOOD:
        piece = one.add(char)
        assert not piece or one.answering
        shown += piece
        if not words or words[-1] != one.words():
            words.append(one.words())
    assert shown == "The sum is **7**.\n\n  Checked."
    assert words == [
        "the contest begins", "the pirate is working", "the knight is working", "the viking is working",
        "the judge is deciding", "the answer comes",
    ]  # fmt: skip


def test_what_comes_out_is_what_the_parser_reads() -> None:
    """Contests with pieces taken out, doubled and misspelt, cut at random."""
    rng = random.Random(0)
    parts = [part for tag in GOOD.split("<") for part in (f"<{tag}",)]
    extra = [
        "</competition>", "</Competition >", "< / competition x='1'>", "<competition/>", "</compet", "\n\n", "<<", "x",
        "</competıtion>", "</winner>", "<pirate>", "   ", "</competition", ">",
    ]  # fmt: skip
    answers = 0
    for _ in range(1500):
        some = list(parts)
        for _ in range(rng.randrange(6)):
            at = rng.randrange(len(some) + 1)
            some[at:at] = [rng.choice(extra)]
        for _ in range(rng.randrange(3)):
            del some[rng.randrange(len(some))]
        text = "".join(some)
        pieces, one = stream(text, rng)
        contest = parse(text, CONSTRUCT)
        if contest.answer is None or not contest.has_tags:
            assert "".join(pieces) == "" and one.text == text
        else:
            assert "".join(pieces) == contest.answer
            answers += 1
    assert answers > 500


def test_long_contests_cost_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counted(text: str, construct: Construct):  # type: ignore[no-untyped-def]
        seen.append(len(text))
        return parse(text, construct)

    monkeypatch.setattr("preftune.talk.contest.parse", counted)
    one = ContestStream(CONSTRUCT)
    for _ in range(2000):
        one.add("<pirate> 1 > 0 ")
    assert len(seen) == 2000 and max(seen) < 700


def test_other_constructs() -> None:
    for style in ("court", "strategies"):
        construct = Construct.of(CompetitionConfig.model_validate({"style": style}))
        text = construct.render(dict.fromkeys(construct.names, "x"), "y", construct.names[1], "the answer")
        pieces, _ = stream(text, random.Random(0), construct)
        assert "".join(pieces) == "the answer"


@pytest.mark.parametrize(
    ("text", "shown", "note", "is_answer"),
    [
        (GOOD, "The sum is **7**.\n\n  Checked.", "", True),
        ("just 7\n", "just 7", "no contest: the model answered straight away", True),
        (f"{GOOD} <pirate>", "The sum is **7**.\n\n  Checked. <pirate>", "tags of the contest in the answer: <pirate>",
         True),
        (
            "<competition><pirate>arr", "<competition><pirate>arr",
            "no answer behind the contest: <competition> is never closed; <pirate> is never closed; and 4 more", False,
        ),
        ("", "", "no answer behind the contest: <competition> is missing; <pirate> is missing; and 4 more", False),
    ],
)  # fmt: skip
def test_what_a_user_is_told(text: str, shown: str, note: str, is_answer: bool) -> None:
    assert told(parse(text, CONSTRUCT)) == (shown, note, is_answer)


def test_parts_and_their_tokens() -> None:
    contest = parse(GOOD, CONSTRUCT)
    personas, judge = works(contest, CONSTRUCT, ends_of(GOOD))
    assert [(w.name, w.won) for w in personas] == [("pirate", False), ("knight", True), ("viking", False)]
    # A token is a byte here, and a section includes the line breaks around its text.
    assert [w.tokens for w in personas] == [len(w.text.encode()) + 2 for w in personas]
    assert personas[1].text == "Hark: 3 + 4 = 7.\nVerily."
    assert judge is not None
    assert judge.text.startswith("The pirate can't count.")
    assert faults(contest) == ""
    (only,), nobody = works(parse("<knight>x", CONSTRUCT), CONSTRUCT, [])
    assert (only.name, only.text, only.won, nobody) == ("knight", "x", False, None)


def show(text: str, how: str, width: int, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    out = io.StringIO()
    Screen(out, out).contest(parse(text, CONSTRUCT), CONSTRUCT, ends_of(text), how)  # type: ignore[arg-type]
    return out.getvalue()


def test_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = show(GOOD, "folded", 100, monkeypatch).splitlines()
    assert lines[0] == "▸ pirate · 20 tokens  Arr, 3 and 4 be 8."
    assert lines[1] == "▸ knight · 26 tokens · winner  Hark: 3 + 4 = 7."
    assert lines[3].startswith("▸ judge · ")
    assert lines[4:] == ["/show-work unfolds it"]


def test_columns_stand_side_by_side_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    text = show(GOOD, "columns", 100, monkeypatch)
    row = next(line for line in text.splitlines() if "Arr" in line)
    assert row.index("Arr") < row.index("Hark") < row.index("By Odin")
    assert "knight · 26 tokens · winner" in text
    assert text.index("By Odin") < text.index("The pirate can't count.")
    assert all(len(line) <= 100 for line in text.splitlines())
    narrow = show(GOOD, "columns", 60, monkeypatch)
    assert "▾ knight · 26 tokens · winner\nHark: 3 + 4 = 7.\nVerily.\n▾ viking" in narrow


def test_a_contest_that_went_wrong_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    text = GOOD.replace("\nknight\n", "\nnobody\x1b\n").replace("</viking>", "")
    shown = show(text, "whole", 100, monkeypatch)
    assert "no winner: the judge named 'nobody␛'" in shown
    assert "its form: <viking> is never closed" in shown
    assert "· winner" not in shown and "\x1b" not in shown
    assert show("no tags", "whole", 100, monkeypatch) == "there was no contest\n"

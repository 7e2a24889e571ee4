"""Reading contests: what is found, what is called wrong, and that no text makes it raise."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.competition import Construct, Contest, parse
from preftune.competition.parse import named
from preftune.config import CompetitionConfig, PersonaConfig
from tests.competition.contests import EVERY, PKV, SAID, contest, strict_pattern

WELL = contest(winner="knight")


def kinds(text: str, construct: Construct = PKV) -> set[tuple[str, str]]:
    return {(fault.kind, fault.tag) for fault in parse(text, construct).faults}


def test_a_well_formed_contest() -> None:
    found = parse(WELL, PKV)
    assert found.strict and found.ordered and found.ended and found.has_tags
    assert {name: section.text.strip() for name, section in found.sections.items()} == SAID
    assert all(section.closed for section in found.sections.values())
    assert found.result is not None and found.result.closed
    assert found.result.text == "\nAll are right.\n<winner>\nknight\n</winner>\n"
    assert (found.winner, found.winner_text, found.winner_exact) == ("knight", "knight", True)
    assert found.answer == "The answer is 15." and WELL[found.answer_start :].strip() == found.answer
    assert WELL[slice(*found.span)] == WELL[: found.answer_start]
    assert (found.leaks, found.copies) == ((), {})


@pytest.mark.parametrize("construct", EVERY.values(), ids=EVERY)
def test_every_built_in_construct_reads_what_it_renders(construct: Construct) -> None:
    for winner in construct.names:
        found = parse(contest(construct, winner), construct)
        assert found.strict and found.winner_exact and found.winner == winner


# --- single faults: each is called by its name, and nothing else is blamed --------------------------------------

BLAMED = {
    "": set(),
    "<pirate>": {("unopened", "pirate"), ("between", "competition")},
    "</pirate>": {("unclosed", "pirate")},
    "<competition>": {("unopened", "competition")},
    "</competition>": {("unclosed", "competition"), ("answer", "competition")},
    "<result>": {("unopened", "result"), ("between", "viking")},
    "</result>": {("unclosed", "result")},
    "<winner>": {("unopened", "winner")},
    "</winner>": {("unclosed", "winner")},
}


@pytest.mark.parametrize("tag", BLAMED)
def test_a_dropped_tag(tag: str) -> None:
    assert kinds(WELL.replace(tag, "", 1)) == BLAMED[tag]


def element(name: str) -> str:
    match = re.search(rf"<{name}>.*</{name}>\n", WELL, re.DOTALL)
    assert match
    return match.group()


PIRATE, KNIGHT, VIKING, WINNER = (element(name) for name in ("pirate", "knight", "viking", "winner"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # missing
        (WELL.replace(KNIGHT, ""), {("missing", "knight")}),
        (WELL.replace(WINNER, ""), {("missing", "winner")}),
        # duplicate: the whole element, one of its tags, the root
        (WELL.replace(KNIGHT, KNIGHT * 2), {("duplicate", "knight")}),
        (WELL.replace("<knight>", "<knight><knight>"), {("duplicate", "knight")}),
        (WELL.replace("</viking>", "</viking></viking>"), {("duplicate", "viking")}),
        (WELL.replace("<competition>", "<competition><competition>"), {("duplicate", "competition")}),
        (WELL.replace("</competition>", "</competition></competition>"),
         {("duplicate", "competition"), ("leak", "competition")}),
        # out of order
        (WELL.replace(KNIGHT + VIKING, VIKING + KNIGHT), {("order", "knight")}),
        (WELL.replace(PIRATE + KNIGHT + VIKING, VIKING + PIRATE + KNIGHT), {("order", "viking")}),
        (WELL.replace(VIKING, "").replace("</result>\n", "</result>\n" + VIKING), {("order", "viking")}),
        (WELL.replace("<viking>", "</vik>").replace("</viking>", "<viking>").replace("</vik>", "</viking>"),
         {("order", "viking"), ("between", "viking")}),
        # nested
        (WELL.replace(KNIGHT, "").replace("</pirate>", KNIGHT + "</pirate>"), {("nested", "knight")}),
        (WELL.replace("</pirate>\n<knight>", "<knight>\n</pirate>"), {("nested", "knight")}),
        (WELL.replace(WINNER, "").replace("</viking>", WINNER + "</viking>"), {("nested", "winner")}),
        # outside the element that should hold it
        (WELL.replace(WINNER, "").replace("</result>\n", "</result>\n" + WINNER), {("outside", "winner")}),
        (WELL.replace("</winner>\n</result>", "</result>\n</winner>"), {("outside", "winner")}),
        (WELL.replace("</result>\n</competition>", "</competition>\n</result>"),
         {("outside", "result"), ("leak", "result")}),
        (WELL.replace(VIKING, "").replace("</competition>\n", "</competition>\n" + VIKING),
         {("order", "viking"), ("leak", "viking")}),
        # text
        (WELL.replace("<knight>", "And now: <knight>"), {("between", "pirate")}),
        (WELL.replace("<pirate>", "Let us begin! <pirate>"), {("between", "competition")}),
        (WELL.replace("</competition>", "So be it. </competition>"), {("between", "result")}),
        (f"Sure! {WELL}", {("before", "competition")}),
        (WELL.replace(SAID["knight"], " \n "), {("empty", "knight")}),
        (WELL.replace("\nknight\n", ""), {("empty", "winner")}),
        # spelling
        (WELL.replace("<knight>", "<Knight>"), {("spelling", "knight")}),
        (WELL.replace("</knight>", "</ knight >"), {("spelling", "knight")}),
        (WELL.replace("<pirate>", '<pirate mood="bad">'), {("spelling", "pirate")}),
        # the answer
        (WELL.replace("The answer is 15.", " \n"), {("answer", "competition")}),
        (f"{WELL} <winner>", {("leak", "winner"), ("duplicate", "winner")}),
        (f"{WELL} </KNIGHT>", {("leak", "knight"), ("duplicate", "knight"), ("spelling", "knight")}),
        # nothing is wrong with
        (f"\n  {WELL}\n", set()),
        (WELL.replace("</winner>\n", "</winner>\nIt was close.\n"), set()),
        (WELL.replace("All are right.", ""), set()),
        (WELL.replace(SAID["knight"], "if 3 < 4 and <b>x</b> > 2, <knights> and </knightly>"), set()),
    ],
)  # fmt: skip
def test_single_faults(text: str, expected: set[tuple[str, str]]) -> None:
    assert text != WELL
    assert kinds(text) == expected


def test_messages_say_what_and_where() -> None:
    text = WELL.replace(KNIGHT + VIKING, VIKING + KNIGHT).replace("<pirate>", "<PIRATE>")
    first, second = parse(text, PKV).faults
    assert first.message == "'<PIRATE>' should be <pirate>" and text[first.at :].startswith("<PIRATE>")
    assert second.message == "<knight> should open before <viking>" and text[second.at :].startswith("<knight>")
    early = parse(WELL.replace(PIRATE + KNIGHT, KNIGHT + PIRATE).replace(VIKING, ""), PKV)
    assert [fault.message for fault in early.faults] == [
        "<pirate> should open before <knight>",
        "<viking> is missing",
    ]
    thrice = parse(WELL.replace("<viking>", "<viking>" * 3), PKV)
    assert [fault.message for fault in thrice.faults] == ["<viking> stands there 3 times"]
    assert thrice.copies == {"viking": 2}


def test_the_fewest_elements_are_out_of_order() -> None:
    """One that moved is blamed, not the two that it passed."""
    late = WELL.replace(PIRATE + KNIGHT + VIKING, KNIGHT + VIKING + PIRATE)
    assert kinds(late) == {("order", "pirate")}
    assert parse(late, PKV).faults[0].message == "<pirate> should open before <knight>"
    early = parse(WELL.replace(PIRATE + KNIGHT + VIKING, VIKING + PIRATE + KNIGHT), PKV)
    assert early.faults[0].message == "<viking> should open behind <knight>"


# --- what is found in spite of faults ---------------------------------------------------------------------------


def test_a_section_ends_at_the_next_tag() -> None:
    text = "<competition><pirate>one<knight>two</knight>three</pirate><viking>four"
    found = parse(text, PKV)
    assert {name: (s.text, s.closed) for name, s in found.sections.items()} == {
        "pirate": ("one", False), "knight": ("two", True), "viking": ("four", False),
    }  # fmt: skip
    assert not found.ended and found.answer is None and found.answer_start == len(text)
    assert text[slice(*found.span)] == text


def test_the_first_of_several_sections_counts() -> None:
    found = parse("<pirate>one</pirate><pirate>two</pirate>", PKV)
    assert found.sections["pirate"].text == "one" and found.copies == {"pirate": 1}


def test_the_first_closing_tag_ends_the_contest() -> None:
    found = parse(f"{WELL}</competition>more", PKV)
    assert found.answer == "The answer is 15.</competition>more"
    assert found.leaks == ("</competition>",)
    early = parse("</competition>5", PKV)
    assert early.ended and early.answer == "5" and not early.strict


def test_a_text_without_tags_is_all_answer() -> None:
    found = parse(" 15 ", PKV)
    assert (found.answer, found.answer_start, found.ended, found.has_tags) == ("15", 0, False, False)
    assert {fault.kind for fault in found.faults} == {"missing"} and len(found.faults) == 6
    empty = parse("", PKV)
    assert empty.answer is None and not empty.has_tags and ("answer", "competition") in kinds("")


def test_order_aside_from_other_faults() -> None:
    assert parse(f"Well! {WELL.replace('<knight>', '<KNIGHT>')}", PKV).ordered
    assert parse(f"{WELL}<winner>", PKV).ordered  # what follows the contest is no part of it
    assert not parse(WELL.replace(KNIGHT, KNIGHT * 2), PKV).ordered
    assert not parse(WELL.replace("</knight>", ""), PKV).ordered


@pytest.mark.parametrize(
    ("inside", "winner", "exact"),
    [
        ("pirate", "pirate", True),
        ("  pirate\n", "pirate", True),
        ("Pirate", "pirate", False),
        ("the PIRATE, of course", "pirate", False),
        ("pirate! pirate!", "pirate", False),
        ("pirate or knight", None, False),
        ("pirates", None, False),
        ("all of them", None, False),
        ("", None, False),
        ("pıkıng vıkıng", None, False),  # dotless i: equal by the regular expression's rules, not by case folding
    ],
)
def test_the_winner(inside: str, winner: str | None, exact: bool) -> None:
    found = parse(WELL.replace("\nknight\n", inside), PKV)
    assert (found.winner, found.winner_exact) == (winner, exact)


def own(*names: str) -> Construct:
    return Construct.of(CompetitionConfig(personas=[PersonaConfig(name=name, prompt="p") for name in names]))


def test_names_in_other_writing_and_case() -> None:
    chinese = own("海盗", "骑士")
    assert named("我认为海盗赢了。", chinese) == "海盗"
    assert named("海盗和骑士", chinese) is None
    assert parse(contest(chinese), chinese).strict
    russian = own("Пират", "рыцарь")
    assert named("победил ПИРАТ!", russian) == "Пират" and named("пиратка", russian) is None
    assert ("spelling", "Пират") in kinds(contest(russian).replace("<Пират>", "<пИРАТ>"), russian)
    german = own("größe", "maß")
    assert parse(contest(german), german).strict
    dashed = own("knight", "dark-knight")
    assert named("the dark-knight", dashed) == "dark-knight" and named("the knight", dashed) == "knight"


def test_what_only_looks_like_a_tag_is_text() -> None:
    dotless = WELL.replace("<viking>", "<vıking>", 1)
    assert ("unopened", "viking") in kinds(dotless)
    kelvin = WELL.replace("<knight>", "<\u212anight>", 1)  # the Kelvin sign is a K to case folding
    assert kinds(kelvin) == {("spelling", "knight")}


# --- any text -----------------------------------------------------------------------------------------------------

TAGS = [f"<{slash}{name}>" for name in PKV.elements for slash in ("", "/")]
ODD = ["<Pirate>", "</ viking>", "< /result >", "<winner/>", "<knight x='1'>", "<vıking>", "<pirat>", "<", ">", "</"]
WORDS = ["arr", "7+8=15", " ", "\n", "\x00", "\u2028", "pirate", "é", "海盗", "\ud800", "😀", "ß", "<b>", "\x1c"]
pieces = st.one_of(st.sampled_from([*TAGS, *ODD, *WORDS]), st.text(max_size=5))
PARTS = [part for part in re.split(r"(</?\w+>)", WELL) if part]


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A well-formed contest with up to four changes to its tags and texts."""
    parts = list(PARTS)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(parts) - 1))
        change = draw(st.sampled_from(["drop", "double", "swap", "move", "insert", "replace", "repeat"]))
        if change == "drop" and len(parts) > 1:
            del parts[at]
        elif change == "double":
            parts.insert(at, parts[at])
        elif change == "swap":
            other = draw(st.integers(0, len(parts) - 1))
            parts[at], parts[other] = parts[other], parts[at]
        elif change == "move":
            parts.insert(draw(st.integers(0, len(parts) - 1)), parts.pop(at))
        elif change == "insert":
            parts.insert(at, draw(pieces))
        elif change == "replace":
            parts[at] = draw(pieces)
        else:
            parts.insert(at, draw(pieces) * draw(st.integers(2, 300)))
    return "".join(parts)


def check(text: str, construct: Construct, strict: re.Pattern[str]) -> Contest:
    """What holds for the reading of any text."""
    found = parse(text, construct)
    assert found.strict == (strict.fullmatch(text) is not None)
    assert not found.strict or found.ordered
    sections = sorted(found.sections.values(), key=lambda section: section.start)
    for section in [*sections, *([found.result] if found.result else [])]:
        assert text[section.start : section.end] == section.text
        assert found.span[0] < section.start <= section.end <= found.span[1]
    assert all(one.end <= other.start for one, other in pairwise(sections))
    assert not any(tag in section.text for section in sections for tag in TAGS)
    places = [fault.at for fault in found.faults]
    assert places == sorted(places) and all(0 <= at <= len(text) for at in places)
    assert all(fault.tag in construct.elements and fault.message for fault in found.faults)
    assert found.answer is None or found.answer == text[found.answer_start :].strip()
    assert found.ended or not found.leaks
    assert all(leak in text[found.answer_start :] for leak in found.leaks)
    assert found.winner is None or found.winner in construct.names
    ends = [at.end() for at in re.finditer("</competition>", text)]
    assert not ends or (found.ended and found.answer_start <= ends[0])
    assert not found.ended or found.span[1] == found.answer_start
    return found


STRICT = strict_pattern(PKV)


@settings(max_examples=400, deadline=None)
@given(mutated())
def test_any_change_of_a_contest(text: str) -> None:
    check(text, PKV, STRICT)


@settings(max_examples=300, deadline=None)
@given(st.lists(pieces, max_size=40).map("".join))
def test_any_heap_of_tags_and_words(text: str) -> None:
    check(text, PKV, STRICT)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    check(text, PKV, STRICT)


@settings(max_examples=100, deadline=None)
@given(
    said=st.lists(
        st.text(min_size=1, max_size=30).filter(lambda t: t.strip() and "<" not in t), min_size=5, max_size=5
    ),
    winner=st.sampled_from(PKV.names),
)
def test_whatever_is_said_is_found_again(said: list[str], winner: str) -> None:
    *texts, judge, answer = said
    found = parse(PKV.render(dict(zip(PKV.names, texts, strict=True)), judge, winner, answer), PKV)
    assert found.strict and found.winner == winner and found.winner_exact
    assert [found.sections[name].text for name in PKV.names] == [f"\n{text}\n" for text in texts]
    assert found.answer == answer.strip()


@pytest.mark.parametrize(
    "text",
    [
        "<" * 200_000,
        "<   " * 60_000,
        "<pirate" + " " * 200_000,
        "<pirate>" * 40_000,
        "</pirate>" * 40_000,
        "<pirate>" * 20_000 + "</knight>" * 20_000,
        "<pirate>" * 20_000 + "</pirate>" * 20_000,
        "<competition>" + "<pirate>x</pirate>y" * 15_000,
        "<result>" + "<winner>" * 30_000,
        "<competition></competition>" + "<pirate>" * 30_000,
        "pirate " * 40_000,
        f"<winner>{'pirate' * 40_000}</winner>",
    ],
    ids=lambda text: text[:20],
)
def test_hostile_texts_are_read(text: str) -> None:
    """Each would take minutes or more if the time weren't linear."""
    assert not parse(text, PKV).strict

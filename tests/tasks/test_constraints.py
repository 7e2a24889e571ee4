"""Every kind of constraint, by hand: a text that follows it and one that does not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.tasks.constraints import KINDS, make_constraint, read_constraint
from preftune.tasks.follow import follows, follows_loosely, instruction_level

CASES = [
    ({"kind": "words", "at_most": 3}, "one two three", "one two three four"),
    ({"kind": "words", "at_least": 2, "at_most": 2}, "one two", "one"),
    ({"kind": "sentences", "at_least": 2}, "One. Two.", "One"),
    ({"kind": "paragraphs", "at_least": 2, "at_most": 2}, "a\n\nb", "a\nb"),
    ({"kind": "paragraphs", "separator": "***", "at_least": 2}, "a *** b", "a\n\nb"),
    ({"kind": "characters", "at_most": 5}, "  12345 ", "123456"),
    ({"kind": "paragraph-start", "paragraph": 2, "word": "Then"}, "a\n\n*then, b", "then\n\na"),
    ({"kind": "paragraph-start", "paragraph": 1, "word": "a", "paragraphs": 2}, "a\n\nb", "a\n\nb\n\nc"),
    ({"kind": "contains", "words": ["tea", "cup"]}, "A CUP of Tea.", "teacup"),
    ({"kind": "contains", "words": ["tea"], "whole": False}, "steam", "stem"),
    ({"kind": "excludes", "words": ["very", "nice"]}, "everyday niceties", "Nice!"),
    ({"kind": "keyword", "word": "tea", "at_least": 2}, "tea, Tea", "tea steam"),
    ({"kind": "keyword", "word": "tea", "at_most": 1}, "tea steam", "tea tea"),
    ({"kind": "letter", "letter": "K", "at_least": 3}, "kK k", "kk"),
    ({"kind": "letter", "letter": "!", "at_most": 1}, "a!", "a!!"),
    ({"kind": "starts-with", "text": "dear"}, " Dear Ann", "Ann, dear"),
    ({"kind": "starts-with", "text": ["Hello", "Dear"]}, "hello", "Hi"),
    ({"kind": "ends-with", "text": "The end."}, 'It was "the end." ', "The end. Or not"),
    ({"kind": "one-of", "answers": ["My answer is yes.", "My answer is no."]}, "Hm. My answer is no.", "no"),
    ({"kind": "uppercase"}, "ALL OF IT, 5!", "ALL OF it"),
    ({"kind": "uppercase", "language": "en"}, "THE CAT IS IN THE HOUSE", "ПРИВЕТ"),
    ({"kind": "lowercase"}, "all of it, 5!", "All of it"),
    ({"kind": "lowercase", "language": "de"}, "der hund und die katze", "the dog and the cat is in it"),
    ({"kind": "capital-words", "at_least": 2}, "NASA saw a UFO", "Nasa saw a UFO"),
    ({"kind": "no-commas"}, "a; b", "a, b"),
    ({"kind": "json"}, '```json\n{"a": [1, 2]}\n```', "{a: 1}"),
    ({"kind": "bullets", "at_least": 2, "at_most": 2}, "* a\n* b", "* a"),
    ({"kind": "title"}, "<<On tea>>\nText", "<< >>"),
    ({"kind": "sections", "marker": "Part", "at_least": 2}, "Part 1 a Part 2 b", "Part 1 a part 2 b"),
    ({"kind": "highlights", "at_least": 1}, "a *b* c", "a * b"),
    ({"kind": "placeholders", "at_least": 2}, "[a] [b]", "[a] b]"),
    ({"kind": "postscript"}, "Bye\np. s. tea", "Bye ps"),
    ({"kind": "postscript", "marker": "P.P.S"}, "P.P.S tea", "P.S. tea"),
    ({"kind": "quoted"}, ' "all of it" ', '"'),
    ({"kind": "two-responses"}, "a ****** b", "a ****** a"),
    ({"kind": "two-responses"}, "a ****** b ******", "a ****** b ****** c"),
    ({"kind": "two-responses", "separator": "***"}, "a *** b", "a b"),
    ({"kind": "repeats-prompt", "prompt": "Tell me."}, "TELL ME. So be it", "So be it. Tell me."),
    ({"kind": "language", "language": "ru"}, "Это не так, и он тут.", "This is it"),
    ({"kind": "script", "script": "Cyrillic"}, "Привет", "Hello"),
    ({"kind": "script", "script": "Latin", "share": 1.0}, "abc", "abв"),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "right", "wrong"), CASES, ids=lambda value: str(value)[:40])
def test_kinds(raw, right, wrong):
    constraint = read_constraint(raw)
    assert follows(right, [constraint]) == (True,)
    assert follows(wrong, [constraint]) == (False,)


def test_every_kind_is_tested_above():
    assert {raw["kind"] for raw, _, _ in CASES} == set(KINDS)


def test_nothing_follows_nothing():
    easy = [read_constraint({"kind": "no-commas"}), read_constraint({"kind": "words", "at_most": 5})]
    assert follows("  \n", easy) == (False, False)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("words", "a constraint is an object with a kind"),
        ({"at_most": 1}, "a constraint is an object with a kind"),
        ({"kind": "word", "at_most": 1}, "no constraint is named word; did you mean 'words'?"),
        ({"kind": "words"}, "words: give at_least, at_most or both"),
        ({"kind": "words", "at_most": "many"}, "words, at_most: Input should be a valid integer"),
        ({"kind": "words", "atmost": 3}, "words has no argument 'atmost'; did you mean 'at_most'?"),
        ({"kind": "words", "at_least": 4, "at_most": 3}, "at_most (3) is less than at_least (4)"),
        ({"kind": "words", "at_least": -1}, "can't be negative"),
        ({"kind": "no-commas", "x": 1}, "no-commas has no argument 'x'; it takes none"),
        ({"kind": "contains", "words": []}, "words is empty"),
        ({"kind": "contains", "words": ["a", " "]}, "words is empty"),
        ({"kind": "keyword", "at_least": 1}, "keyword, word: "),
        ({"kind": "letter", "letter": "ab", "at_least": 1}, "letter must be one character"),
        ({"kind": "language", "language": "english"}, "the language 'english' can't be told"),
        ({"kind": "script", "script": "latin"}, "no script is named 'latin'; did you mean 'Latin'?"),
        ({"kind": "paragraph-start", "paragraph": 3, "word": "a", "paragraphs": 2}, "not over paragraphs"),
        ({"kind": "two-responses", "separator": " "}, "separator is empty"),
    ],
)
def test_wrong_constraints_say_what_is_right(raw, said):
    with pytest.raises(ValueError) as error:
        read_constraint(raw)
    assert said in str(error.value)


def test_arguments_without_a_value_are_left_out_as_tables_have_them():
    constraint = make_constraint("words", {"at_least": None, "at_most": 2, "separator": None})
    assert dict(constraint.args) == {"at_most": 2} and str(constraint) == "words: at_most 2"
    assert constraint == make_constraint("words", {"at_most": 2})


def test_loose_takes_first_and_last_line_and_asterisks_away():
    short = [read_constraint({"kind": "words", "at_most": 2}), read_constraint({"kind": "no-commas"})]
    text = "Sure, here it is:\n**Green tea**\nAnything else, dear?"
    assert follows(text, short) == (False, False)
    assert follows_loosely(text, short) == (True, True)
    lower = [read_constraint({"kind": "starts-with", "text": "tea"})]
    assert follows_loosely("*tea*", lower) == (True,) and follows("*tea*", lower) == (False,)
    # an answer of one line has no other form that is not empty
    assert follows_loosely("one two three", [read_constraint({"kind": "words", "at_most": 2})]) == (False,)


def test_instruction_level_is_the_share_over_all_instructions():
    # 1 of 1, 1 of 3, 0 of 2: 2 of 6 in all, though the mean of the rows' shares is 4/9
    rows = instruction_level([(True,), (True, False, False), (False, False)])
    assert sum(rows) / 3 == pytest.approx(2 / 6)
    # p = 1/3, mean number 2: p + (f − p n) / 2
    assert rows == pytest.approx([1 / 3 + (1 - 1 / 3) / 2, 1 / 3 + (1 - 1) / 2, 1 / 3 + (0 - 2 / 3) / 2])
    assert instruction_level([(True, False), (True, True)]) == [0.5, 1.0]
    assert instruction_level([]) == []


ARGS = {raw["kind"]: raw for raw, _, _ in CASES}


@given(text=st.text(max_size=200), kind=st.sampled_from(sorted(KINDS)))
@settings(max_examples=300, deadline=None)
def test_any_text_gets_a_verdict(text, kind):
    constraint = read_constraint(ARGS[kind])
    (strict,), (loose,) = follows(text, [constraint]), follows_loosely(text, [constraint])
    assert strict in (True, False) and (loose or not strict)  # what is followed strictly is followed loosely

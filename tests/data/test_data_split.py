"""Implicit prompts: conversations, transcripts and plain texts that share their beginning."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from preftune.config import SourceConfig
from preftune.data.columns import BadRow
from preftune.data.formats import detect, to_example
from preftune.data.split import is_transcript, read_transcript, shared_context, split_texts, split_turns
from preftune.records import Example, Message


def chat(letters: str) -> tuple[Message, ...]:
    """`uAuB`: lower case is a user turn, upper case an assistant turn, s a system turn."""
    role = {True: "user", False: "assistant"}
    return tuple(Message("system" if c == "s" else role[c.islower()], c) for c in letters)


def example(chosen: Any, rejected: Any, **config: Any) -> Example:
    row = {"chosen": chosen, "rejected": rejected}
    return to_example(row, detect(row, frozenset()), SourceConfig(path="x", **config), "f:1")


def said(chosen: Any, rejected: Any, **config: Any) -> str:
    with pytest.raises(BadRow) as caught:
        example(chosen, rejected, **config)
    return str(caught.value)


def as_rows(turns: tuple[Message, ...]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


# ------------------------------------------------------------------------------------------------ conversations


@pytest.mark.parametrize(
    ("conversations", "prompt"),
    [
        (["aX", "aY"], "a"),
        (["saX", "saY"], "sa"),
        (["aXbY", "aXbZ"], "aXb"),  # shared assistant turns belong to the prompt
        (["aXbY", "aZcY"], "a"),  # they part at the first answer: completions of several turns
        (["aXbY", "aZ"], "a"),
        (["aX", "aY", "aZ"], "a"),
        (["aXbY", "aXbZ", "aW"], "a"),
        (["aXbY", "aXbY"], "aXb"),  # all the same: the last answer
        (["aXb", "aXb"], "a"),
        (["abX", "abY"], "ab"),
    ],
)
def test_conversations_part_at_an_answer(conversations: list[str], prompt: str) -> None:
    chats = [chat(one) for one in conversations]
    assert split_turns(chats, ["x"] * len(chats)) == len(prompt)
    made = example(as_rows(chats[0]), [as_rows(one) for one in chats[1:]])
    assert made == Example(
        chat(prompt), tuple(one[len(prompt) :] for one in chats), {}, "f:1", (1.0, *[0.0] * (len(chats) - 1))
    )


@pytest.mark.parametrize(
    ("chosen", "rejected", "message"),
    [
        ("aX", "bY", "column 'chosen' and column 'rejected' part at message 1, where column 'chosen' has a user turn"),
        ("aXbY", "aXcY", "column 'chosen' and column 'rejected' part at message 3, where column 'chosen' has a user"),
        ("aX", "ab", "column 'chosen' and column 'rejected' part at message 2, where column 'rejected' has a user"),
        ("aX", "aXbY", "column 'chosen' ends after message 2, where the others go on; all must answer the same"),
        ("aXbY", "aX", "column 'rejected' ends after message 2, where the others go on"),
        ("X", "Y", "column 'chosen' and column 'rejected' begin with an assistant turn, so nothing stands before"),
        ("X", "X", "column 'chosen' and column 'rejected' begin with an assistant turn"),
        ("ab", "ab", "column 'chosen' has no assistant turn to learn from"),
        ("aXY", "aXZ", "column 'chosen' and column 'rejected' part at message 3, right behind another assistant turn"),
    ],
)
def test_conversations_that_answer_different_messages(chosen: str, rejected: str, message: str) -> None:
    assert said(as_rows(chat(chosen)), as_rows(chat(rejected))).startswith(message)


def test_a_system_message_of_the_recipe_stands_before_the_split_prompt() -> None:
    made = example(as_rows(chat("aX")), as_rows(chat("aY")), system="Be kind.")
    assert made.prompt == (Message("system", "Be kind."), *chat("a"))


letters = st.text("abAB", max_size=6)


@given(conversations=st.lists(letters.map(lambda s: chat("u" + s)), min_size=2, max_size=4))
@settings(max_examples=250, deadline=None)
def test_any_conversations_are_split_or_refused(conversations: list[tuple[Message, ...]]) -> None:
    try:
        cut = split_turns(conversations, [str(n) for n in range(len(conversations))])
    except BadRow:
        return
    assert all(one[:cut] == conversations[0][:cut] for one in conversations)
    assert all(one[cut].role == "assistant" for one in conversations) and conversations[0][cut - 1].role == "user"
    if len(set(conversations)) > 1:
        assert len({one[cut] for one in conversations}) > 1  # nothing that all share is left behind


@given(completions=st.lists(letters.map(lambda s: chat("X" + s)), min_size=1, max_size=3))
@settings(max_examples=300, deadline=None)
def test_shared_context_lies_before_every_last_answer(completions: list[tuple[Message, ...]]) -> None:
    cut = shared_context(completions)
    assert all(one[:cut] == completions[0][:cut] and one[cut].role == "assistant" for one in completions)
    assert all(any(turn.role == "assistant" for turn in one[cut:]) for one in completions)
    if len(completions) == 1:
        assert not any(turn.role == "assistant" for turn in completions[0][cut + 1 :])


# ------------------------------------------------------------------------------------------------ transcripts


def test_transcripts_become_messages() -> None:
    start = "\n\nHuman: Where does tea grow?\n\nAssistant: In hills.\nMostly.\n\nHuman: And coffee?\n\nAssistant:"
    made = example(start + " Higher up.", start + " No idea. ")
    turns = [("user", "Where does tea grow?"), ("assistant", "In hills.\nMostly."), ("user", "And coffee?")]
    assert made.prompt == tuple(Message(*turn) for turn in turns)
    assert made.completions == ((Message("assistant", "Higher up."),), (Message("assistant", "No idea."),))
    assert made.scores == (1.0, 0.0)


def test_transcripts_that_part_early_keep_their_later_turns() -> None:
    start = "Human: Tea?\n\nAssistant:"
    made = example(start + " Yes.\n\nHuman: Milk?\n\nAssistant: No.", start + " Why?\n\nHuman: So.\n\nAssistant: Fine.")
    assert made.prompt == (Message("user", "Tea?"),)
    assert [[turn.role for turn in one] for one in made.completions] == [["assistant", "user", "assistant"]] * 2  # type: ignore[union-attr]


def test_an_empty_answer_is_an_answer() -> None:
    made = example("\n\nHuman: Tea?\n\nAssistant: Yes.", "\n\nHuman: Tea?\n\nAssistant:")
    assert made.completions == ((Message("assistant", "Yes."),), (Message("assistant", ""),))


def test_odd_transcripts_are_errors() -> None:
    start = "\n\nHuman: Tea?\n\nAssistant: Yes."
    assert said(start + "\n\nHuman: Milk?\n\nAssistant: No.", start + "\n\nHuman: Rum?\n\nAssistant: No.").startswith(
        "column 'chosen' and column 'rejected' part at message 3, where column 'chosen' has a user turn"
    )
    assert said(start, "Yes.").startswith("column 'rejected' is no transcript (Human: …, Assistant: …), though another")
    assert said(start + "\n\nHuman: Milk?", start).startswith("column 'rejected' ends after message 2")
    assert said(start, [{"role": "user", "content": "Tea?"}]).startswith(
        "of column 'chosen' and column 'rejected' some"
    )


def test_what_is_a_transcript() -> None:
    assert is_transcript("\n\nHuman: a\n\nAssistant: b") and is_transcript("Human: a\n\nAssistant:")
    for text in ("Human: a", "a\n\nHuman: b\n\nAssistant: c", "Assistant: a\n\nHuman: b", "Human: a\nAssistant: b", ""):
        assert not is_transcript(text)


clean = st.text(st.sampled_from("ab:\nHuman Assistant é字"), max_size=30).map(str.strip)


@given(turns=st.lists(st.tuples(st.sampled_from(["Human", "Assistant"]), clean), max_size=6), first=clean)
@settings(max_examples=250, deadline=None)
def test_written_transcripts_are_read_back(turns: list[tuple[str, str]], first: str) -> None:
    turns = [("Human", first), *turns, ("Assistant", "x")]
    assume(not any("\n\nHuman:" in f"\n\n{text}" or "\n\nAssistant:" in f"\n\n{text}" for _, text in turns))
    text = "".join(f"\n\n{name}: {said}" for name, said in turns)
    role = {"Human": "user", "Assistant": "assistant"}
    assert is_transcript(text)
    assert read_transcript(text) == tuple(Message(role[name], said) for name, said in turns)


@given(texts=st.lists(st.text(st.sampled_from("ab :\n"), max_size=8), min_size=2, max_size=6))
@settings(max_examples=300, deadline=None)
def test_any_transcript_loses_no_words(texts: list[str]) -> None:
    text = "Human:" + "\n\nAssistant:".join(texts)
    whole = " ".join(turn.content for turn in read_transcript(text))
    assert "".join(whole.split()) == "".join("".join(texts).split())


# ------------------------------------------------------------------------------------------------ plain texts


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The capital of Peru is Lima.", "The capital of Peru is Cusco.", "The capital of Peru is"),
        ("It costs 120 euros", "It costs 125 euros", "It costs"),  # not inside a number
        ("It is unlikely.", "It is unlucky.", "It is"),  # not inside a word
        ("Is it (yes)", "Is it (no)", "Is it"),  # punctuation before a word belongs to it
        ("Q: tea?\nA: yes", "Q: tea?\nA: no", "Q: tea?\nA:"),
        ("Tea?\nyes", "Tea?\nno", "Tea?\n"),  # a line break stays with the prompt
        ("Is it tea?\nyes", "Is it tea?\n\nno", "Is it"),  # two line breaks may be one token
        ("Tea:  yes", "Tea:  no", "Tea: "),  # one space belongs to the word
        ("Tea:\tyes", "Tea:\tno", "Tea:"),
        ("To be or", "To be\nor", "To"),  # the space of one is the line break of the other
        ("Sum: 1\u00a0000", "Sum: 1\u00a0500", "Sum:"),  # no break at a no-break space
        ("Write e\u0301 or a", "Write e\u0300 or a", "Write"),  # not between a letter and its accent
        ("Like \U0001f44d\U0001f3fb it", "Like \U0001f44d\U0001f3ff it", "Like"),  # nor between an emoji and its skin
        ("A x \u0301b", "A x \u0301c", "A"),  # the accent sits on the space before it
        ("Tea or coffee", "Tea or milk or rum", "Tea or"),
    ],
)
def test_plain_texts_part_between_words(chosen: str, rejected: str, prompt: str) -> None:
    made = example(chosen, rejected)
    assert made == Example(prompt, (chosen[len(prompt) :], rejected[len(prompt) :]), {}, "f:1", (1.0, 0.0))


def test_several_rejected_texts_share_one_prompt() -> None:
    made = example("Two and two are four.", ["Two and two are five.", "Two and a half."])
    assert (made.prompt, made.completions) == ("Two and", (" two are four.", " two are five.", " a half."))


@pytest.mark.parametrize(
    ("chosen", "rejected", "message"),
    [
        (
            "Yes.",
            "No.",
            "column 'chosen' and column 'rejected' have no beginning in common that ends with a word; give",
        ),
        ("Unlikely", "Unlucky", "column 'chosen' and column 'rejected' have no beginning in common"),
        ("  yes", "  no", "column 'chosen' and column 'rejected' have no beginning in common"),
        ("秘鲁的首都是利马", "秘鲁的首都是库斯科", "column 'chosen' and column 'rejected' have no beginning in common"),
        (
            "Tea is",
            "Tea is good",
            "column 'chosen' is the beginning of column 'rejected', so where the prompt ends can't",
        ),
        ("Tea is good", "Tea is", "column 'rejected' is the beginning of column 'chosen'"),
        ("Tea is good", "", "column 'rejected' is the beginning of column 'chosen'"),
        (
            "Tea is",
            "Tea is",
            "column 'chosen' is the same text as column 'rejected', so where the prompt ends can't be",
        ),
    ],
)
def test_plain_texts_without_a_place_to_part(chosen: str, rejected: str, message: str) -> None:
    assert said(chosen, rejected).startswith(message)
    assert said(chosen, rejected).endswith("give the prompt in a column of its own (prompt)")


def test_plain_texts_are_no_conversation() -> None:
    for config in ({"chat": True}, {"system": "s"}):
        assert said("Tea is good", "Tea is bad", **config).startswith("data.chat and data.system need a prompt column")


pieces = st.sampled_from(
    [" ", "  ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u3000", "a", "be", "1", "42", ".", "(", "é", "e\u0301", "字",
     "\u0301", "\u200d", "👍", "\U0001f3fb", "'s", "Human:", "\x1c", "\u2028"]
)  # fmt: skip
texts = st.lists(pieces, max_size=8).map("".join)


# Where a text may be cut, said once more as an expression over the pieces above.
CUTS = re.compile("[ \\t](?=[^\\s\u0301\u200d\U0001f3fb])|(?<=[\\r\\n])(?=[^\\s\u0301\u200d\U0001f3fb])")


@given(start=texts, ends=st.lists(texts, min_size=2, max_size=3))
@settings(max_examples=300, deadline=None)
def test_the_cut_is_the_last_place_between_words_that_all_share(start: str, ends: list[str]) -> None:
    whole = [start + end for end in ends]
    shared = next(
        n
        for n in range(len(whole[0]) + 1)
        if any(text[: n + 1] != whole[0][: n + 1] for text in whole) or n == len(whole[0])
    )
    places = [{found.start() for found in CUTS.finditer(text)} for text in whole]
    allowed = [n for n in set.intersection(*places) if n <= shared and whole[0][:n].strip()]
    try:
        cut = split_texts(whole, [str(n) for n in range(len(whole))])
    except BadRow:
        assert not allowed or any(len(text) == shared for text in whole)
        return
    assert cut == max(allowed)
    for text in whole:
        assert text[:cut] == whole[0][:cut] and text[cut:].strip()


def test_long_texts_are_split_in_no_time() -> None:
    # six million letters: one by one this takes seconds
    start = "word " * 400_000
    assert split_texts([start + "yes", start + "no", start + "so"], ["a", "b", "c"]) == len(start) - 1

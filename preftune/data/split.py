"""Where a prompt ends and the answers to it begin, when the data does not say: docs/data.md, implicit prompts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import takewhile

from preftune.data.columns import BadRow
from preftune.data.content import as_turns
from preftune.records import Content, Message

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLE = {"Human": "user", "Assistant": "assistant"}
_NEWLINES = "\n\r"


def split_turns(conversations: Sequence[tuple[Message, ...]], names: Sequence[str]) -> int:
    """How many leading messages are the prompt of several conversations: all that they share.

    What follows are the answers, each beginning with an assistant turn. Of conversations that are all the same, the
    answer is the last assistant turn and what follows it.

    Raises:
        BadRow: the conversations don't part at an assistant turn, or nothing stands before it.
    """
    first = conversations[0]
    shared = _shared(conversations, min(map(len, conversations)))
    if all(len(conversation) == shared for conversation in conversations):
        answers = [n for n, message in enumerate(first) if message.role == "assistant"]
        if not answers:
            raise BadRow(f"{names[0]} has no assistant turn to learn from")
        shared = answers[-1]
    for conversation, name in zip(conversations, names, strict=True):
        if len(conversation) == shared:
            raise BadRow(
                f"{name} ends after message {shared}, where the others go on; all must answer the same messages"
            )
    for conversation, name in zip(conversations, names, strict=True):
        if conversation[shared].role != "assistant":
            raise BadRow(
                f"{' and '.join(names)} part at message {shared + 1}, where {name} has a {conversation[shared].role} "
                "turn; they may only part at an assistant turn, as all must answer the same messages"
            )
    if shared == 0:
        raise BadRow(f"{' and '.join(names)} begin with an assistant turn, so nothing stands before it to answer")
    if first[shared - 1].role == "assistant":
        raise BadRow(f"{' and '.join(names)} part at message {shared + 1}, right behind another assistant turn")
    return shared


def shared_context(completions: Sequence[Content]) -> int:
    """How many leading turns of a prompt's completions lie before the last assistant turn of each, are the same in
    all, and are followed by an assistant turn in each: the turns that may be counted to the prompt when the last
    answers alone matter."""
    every = [as_turns(completion) for completion in completions]
    last = [max((n for n, turn in enumerate(turns) if turn.role == "assistant"), default=0) for turns in every]
    shared = _shared(every, min(last, default=0))
    while shared and any(turns[shared].role != "assistant" for turns in every):
        shared -= 1
    return shared


def is_transcript(text: str) -> bool:
    r"""Whether text is written like Anthropic's: `\n\nHuman: …\n\nAssistant: …`."""
    return text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def read_transcript(text: str) -> tuple[Message, ...]:
    r"""A transcript's turns, white space around each left out.

    >>> read_transcript("\n\nHuman: Hi\n\nAssistant: Hello!")
    (Message(role='user', content='Hi'), Message(role='assistant', content='Hello!'))
    """
    _, *pieces = _TURN.split("\n\n" + text.lstrip())
    return tuple(Message(_ROLE[name], said.strip()) for name, said in zip(pieces[::2], pieces[1::2], strict=True))


def split_texts(texts: Sequence[str], names: Sequence[str]) -> int:
    """Characters of the prompt that plain texts share: their common beginning, cut back to the end of a word.

    The cut stands before the one space or tab in front of a word, which belongs to the word, as most tokenizers have
    it, or behind a line break. So it never lies inside a word, a number, a grapheme, or a run of white space that a
    tokenizer may have a token for.

    Raises:
        BadRow: no such cut, or nothing is left of one of the texts.
    """
    shared, most = 0, min(map(len, texts))
    while shared < most:  # by halves: comparing in one go is a hundred times as fast as letter by letter
        middle = (shared + most + 1) // 2
        beginning = texts[0][:middle]
        shared, most = (middle, most) if all(text.startswith(beginning) for text in texts) else (shared, middle - 1)
    remedy = "; give the prompt in a column of its own (prompt)"
    for name, text in zip(names, texts, strict=True):
        if len(text) == shared:
            others = "the same text as" if all(len(other) == shared for other in texts) else "the beginning of"
            raise BadRow(
                f"{name} is {others} {' and '.join(n for n in names if n != name)}, so where the prompt ends can't be "
                f"known{remedy}"
            )
    for cut in range(shared, 0, -1):
        if all(_between_words(text, cut) for text in texts) and texts[0][:cut].strip():
            return cut
    raise BadRow(f"{' and '.join(names)} have no beginning in common that ends with a word{remedy}")


def _shared(conversations: Sequence[Sequence[Message]], limit: int) -> int:
    """How many leading messages, of at most `limit`, are the same in all conversations."""
    first, *others = conversations
    return sum(1 for _ in takewhile(lambda n: all(other[n] == first[n] for other in others), range(limit)))


def _between_words(text: str, cut: int) -> bool:
    """Whether `text[cut:]` begins with a word, or with the space before one, and `text[:cut]` is no part of either."""
    word = cut + 1 if text[cut] in " \t" else cut
    if word == cut and text[cut - 1] not in _NEWLINES:
        return False
    return word < len(text) and not text[word].isspace() and not _clings(text[word])


def _clings(char: str) -> bool:
    """Whether a character joins the one before it: combining marks, joiners, emoji's variation and skin."""
    return unicodedata.category(char)[0] == "M" or char == "\u200d" or "\U0001f3fb" <= char <= "\U0001f3ff"

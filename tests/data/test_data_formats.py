"""Rows to examples: formats, roles, errors."""

from __future__ import annotations

from typing import Any

import pytest

from preftune.config import SourceConfig
from preftune.data import as_prompt, as_prompts
from preftune.data.columns import BadRow
from preftune.data.formats import detect, to_example
from preftune.errors import DataError
from preftune.records import Example, Message

USER = {"role": "user", "content": "2+2?"}
ASSISTANT = {"role": "assistant", "content": "4"}
U, A, S = Message("user", "2+2?"), Message("assistant", "4"), Message("system", "Add.")


def example(row: dict[str, Any], **config: Any) -> Example:
    source = SourceConfig(path="x", **config)
    return to_example(row, detect(row, frozenset()) if source.format == "auto" else source.format, source, "f:1")


def said(row: dict[str, Any], **config: Any) -> str:
    with pytest.raises(BadRow) as caught:
        example(row, **config)
    return str(caught.value)


@pytest.mark.parametrize(
    ("row", "config", "prompt", "completions"),
    [
        ({"prompt": "2+2?"}, {}, "2+2?", ()),
        ({"prompt": "2+2?", "completion": "4"}, {}, "2+2?", ("4",)),
        ({"prompt": "2+2?", "completion": "4"}, {"format": "prompt"}, "2+2?", ()),
        ({"prompt": "2+2?", "completion": ""}, {}, "2+2?", ("",)),
        ({"text": "2+2=4"}, {}, "", ("2+2=4",)),
        ({"messages": [USER, ASSISTANT]}, {}, (U,), ((A,),)),
        ({"messages": [USER, ASSISTANT, USER, ASSISTANT, USER]}, {}, (U,), ((A, U, A, U),)),
        ({"messages": [USER]}, {}, (U,), ()),
        ({"prompt": [USER]}, {}, (U,), ()),
        ({"prompt": [USER], "completion": [ASSISTANT]}, {}, (U,), ((A,),)),
        ({"prompt": [USER], "completion": "4"}, {}, (U,), ((A,),)),
        ({"prompt": "2+2?", "completion": "4"}, {"chat": True}, (U,), ((A,),)),
        ({"prompt": "2+2?", "completion": [ASSISTANT]}, {"chat": True}, (U,), ((A,),)),
        ({"prompt": "2+2?", "completion": [ASSISTANT]}, {}, (U,), ((A,),)),
        ({"prompt": [USER], "completion": [USER, ASSISTANT]}, {}, (U,), ((A,),)),
        ({"prompt": "2+2?", "completion": "4"}, {"system": "Add."}, (S, U), ((A,),)),
        ({"messages": [USER, ASSISTANT]}, {"system": "Add."}, (S, U), ((A,),)),
        ({"prompt": [USER]}, {"chat": True}, (U,), ()),
    ],
)
def test_formats(row: dict[str, Any], config: dict[str, Any], prompt: Any, completions: Any) -> None:
    made = example(row | {"answer": "4"}, **config)
    extra = {"completion": row["completion"]} if config.get("format") == "prompt" else {}
    assert made == Example(prompt, completions, {"answer": "4"} | extra, "f:1")


def test_other_columns_and_text_parts_are_kept() -> None:
    parts = [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]
    row = {"messages": [{"role": "user", "content": parts, "name": None}], "level": 3, "tags": ["a"]}
    assert example(row) == Example((U,), (), {"level": 3, "tags": ["a"]}, "f:1")


def test_columns_of_several_formats_need_a_choice() -> None:
    row = {"prompt": "a", "messages": [USER, ASSISTANT], "text": "b"}
    assert said(row).startswith("the columns fit several formats (messages, text, prompt); set data.format")
    assert example(row, format="text").completions == ("b",)
    assert detect(row, frozenset({"prompt"})) == "prompt"  # the one that the recipe maps
    assert detect(row, frozenset({"answer", "messages"})) == "messages"


@pytest.mark.parametrize(
    ("row", "config", "message"),
    [
        ({"q": "a"}, {}, "no column is named prompt, text, messages or chosen; map one with data.columns"),
        ({"promt": "a"}, {"format": "prompt"}, "there is no column 'prompt', did you mean 'promt'? Columns: promt"),
        ({"prompt": ""}, {}, "column 'prompt' is empty"),
        ({"prompt": []}, {}, "column 'prompt' is an empty list"),
        ({"prompt": 7}, {}, "column 'prompt' must hold text or a list of messages, it holds a number"),
        ({"prompt": None}, {}, "column 'prompt' must hold text or a list of messages, it holds null"),
        ({"prompt": "a", "completion": None}, {}, "column 'completion' must hold text"),
        ({"prompt": "a", "completion": [USER]}, {}, "column 'completion' must begin with an assistant turn"),
        ({"prompt": [USER], "completion": [USER]}, {}, "column 'completion' must begin with an assistant turn"),
        ({"prompt": [USER, ASSISTANT]}, {}, "column 'prompt' ends with an assistant turn"),
        ({"text": ""}, {}, "column 'text' is empty"),
        ({"text": ["a"]}, {}, "column 'text' must hold text, it holds a list"),
        ({"text": "a"}, {"chat": True}, "data.system and data.chat need a prompt"),
        ({"text": "a"}, {"system": "s"}, "data.system and data.chat need a prompt"),
        ({"messages": "a"}, {}, "column 'messages' must hold a list of messages, it holds text"),
        ({"messages": []}, {}, "column 'messages' is an empty list"),
        ({"messages": [ASSISTANT]}, {}, "messages[0] is an assistant turn"),
        ({"messages": ["a"]}, {}, "messages[0] must be an object with role and content, it is text"),
        ({"messages": [{"from": "human", "value": "a"}]}, {}, "messages[0] needs role and content, it has from, value"),
        ({"messages": [{"role": "user", "content": None}]}, {}, "messages[0] needs role and content, it has role"),
        (
            {"messages": [{"role": "usr", "content": "a"}]},
            {},
            "messages[0]: unknown role 'usr'; roles are system, user",
        ),
        ({"messages": [{"role": ["user"], "content": "a"}]}, {}, "messages[0]: unknown role ['user']"),
        ({"messages": [{"role": "user", "content": 3}]}, {}, "messages[0].content must be text, it is a number"),
        ({"messages": [USER | {"tool_calls": []}]}, {}, "messages[0] has tool_calls, which would be lost"),
        ({"messages": [USER | {"content": [{"type": "image"}]}]}, {}, "messages[0].content holds parts that are not"),
        ({"messages": [{"role": "system", "content": "x"}, USER]}, {"system": "s"}, "the row has a system message of"),
    ],
)
def test_bad_rows(row: dict[str, Any], config: dict[str, Any], message: str) -> None:
    assert said(row, **config).startswith(message)


def test_unknown_role_names_the_nearest() -> None:
    assert said({"messages": [{"role": "asistant", "content": "a"}]}).endswith("did you mean assistant?")


def test_on_policy_rows_lose_their_last_answer_alone() -> None:
    columns = {"answer": "4"}
    single, multi = Example((U,), ((A,),), columns, "f:1"), Example((S, U), ((A, U, A, U),), columns, "f:2")
    assert as_prompts([single, multi, Example("a", ("b",), columns, "f:3")]) == [
        Example((U,), (), columns, "f:1"),
        Example((S, U, A, U), (), columns, "f:2"),
        Example("a", (), columns, "f:3"),
    ]
    with pytest.raises(DataError, match="f:4: a row of the text format has no prompt"):
        as_prompt(Example("", ("b",), where="f:4"))

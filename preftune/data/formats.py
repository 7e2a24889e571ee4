"""Row formats: a mapped row becomes an Example."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias

from preftune.config import SourceConfig
from preftune.data.columns import BadRow, describe, missing_column
from preftune.errors import DataError
from preftune.records import Content, Example, Message

Format: TypeAlias = Literal["prompt", "prompt-completion", "text", "messages"]

ROLES = ("system", "user", "assistant", "tool")
STANDARD: dict[Format, tuple[str, ...]] = {
    "prompt": ("prompt",),
    "prompt-completion": ("prompt", "completion"),
    "text": ("text",),
    "messages": ("messages",),
}
_PREFERENCE = ("chosen", "rejected", "responses")


def detect(row: Mapping[str, Any], mapped: frozenset[str]) -> Format:
    """The format that a mapped row's columns show.

    When columns of several formats are there, those that the recipe maps decide. Raises BadRow when none or several
    remain.
    """
    found: list[Format] = []
    if "messages" in row:
        found.append("messages")
    if "text" in row:
        found.append("text")
    if "prompt" in row:
        found.append("prompt-completion" if "completion" in row else "prompt")
    if len(found) > 1:
        found = [format for format in found if mapped & set(STANDARD[format])] or found
    if len(found) == 1:
        return found[0]
    if found:
        raise BadRow(f"the columns fit several formats ({', '.join(found)}); set data.format to one of them")
    preference = [name for name in _PREFERENCE if name in row]
    if preference:
        raise BadRow(
            f"this is preference data ({', '.join(preference)}), which this method does not use; map the columns it "
            f"needs with data.columns (prompt, completion, text or messages). Columns: {', '.join(map(str, row))}"
        )
    raise BadRow(
        "no column is named prompt, text or messages; map one with data.columns, e.g. --data.columns.prompt COLUMN. "
        f"Columns: {', '.join(map(str, row)) or 'none'}"
    )


def to_example(row: Mapping[str, Any], format: Format, source: SourceConfig, where: str) -> Example:
    """A mapped row as an Example. Raises BadRow when a column is missing, of a wrong type or empty."""
    for name in STANDARD[format]:
        if name not in row:
            raise BadRow(f"{missing_column(name, row)} (the {format} format needs it)")
    columns = {name: value for name, value in row.items() if name not in STANDARD[format]}
    prompt: Content
    completions: tuple[Content, ...]
    if format == "text":
        if source.system is not None or source.chat:
            raise BadRow("data.system and data.chat need a prompt, but rows of the text format have none")
        if not isinstance(row["text"], str):
            raise BadRow(f"column 'text' must hold text, it holds {describe(row['text'])}")
        if not row["text"]:
            raise BadRow("column 'text' is empty")
        return Example("", (row["text"],), columns, where)
    if format == "messages":
        prompt, completions = _split(_messages(row["messages"], "messages"))
    else:
        prompt, completions = _content(row["prompt"], "prompt"), ()
        if not prompt:
            raise BadRow("column 'prompt' is empty")
        if isinstance(prompt, str) and (source.chat or source.system is not None):
            prompt = (Message("user", prompt),)
        if format == "prompt-completion":
            completions = (_completion(row["completion"], prompt),)
    if not isinstance(prompt, str):
        prompt = _checked(prompt, source.system)
    return Example(prompt, completions, columns, where)


def as_prompt(example: Example) -> Example:
    """The row as on-policy methods use it: without its completion, the policy writes its own.

    A conversation keeps every turn before its last assistant turn. Raises DataError for the `text` format.
    """
    if not example.prompt:
        raise DataError(
            f"{example.where}: a row of the text format has no prompt to answer; map a prompt column with data.columns"
        )
    prompt = example.prompt
    if not isinstance(prompt, str) and example.completions and not isinstance(example.completions[0], str):
        turns = example.completions[0]
        last = max((n for n, message in enumerate(turns) if message.role == "assistant"), default=0)
        prompt = (*prompt, *turns[:last])
    return Example(prompt, (), example.columns, example.where)


def as_prompts(examples: Iterable[Example]) -> list[Example]:
    """`as_prompt` of every row."""
    return [as_prompt(example) for example in examples]


def _split(messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], tuple[Content, ...]]:
    """Messages before the first assistant turn, and the rest as the one completion."""
    first = next((n for n, message in enumerate(messages) if message.role == "assistant"), len(messages))
    if first == 0:
        raise BadRow("messages[0] is an assistant turn, so nothing stands before it to answer")
    return messages[:first], (messages[first:],) if first < len(messages) else ()


def _completion(value: Any, prompt: Content) -> Content:
    completion = _content(value, "completion")
    if isinstance(prompt, str):
        if isinstance(completion, str):
            return completion
        raise BadRow("column 'completion' holds messages but 'prompt' is plain text; set data.chat: true")
    if isinstance(completion, str):
        return (Message("assistant", completion),)
    if not completion or completion[0].role != "assistant":
        raise BadRow("column 'completion' must begin with an assistant turn")
    return completion


def _checked(prompt: tuple[Message, ...], system: str | None) -> tuple[Message, ...]:
    if prompt[-1].role == "assistant":
        raise BadRow(
            "column 'prompt' ends with an assistant turn; move it to 'completion', or name the column messages"
        )
    if system is None:
        return prompt
    if any(message.role == "system" for message in prompt):
        raise BadRow("the row has a system message of its own; remove data.system, or the row's message")
    return (Message("system", system), *prompt)


def _content(value: Any, column: str) -> Content:
    return value if isinstance(value, str) else _messages(value, column)


def _messages(value: Any, column: str) -> tuple[Message, ...]:
    if not isinstance(value, list | tuple):
        wanted = "a list of messages" if column == "messages" else "text or a list of messages"
        raise BadRow(f"column {column!r} must hold {wanted}, it holds {describe(value)}")
    if not value:
        raise BadRow(f"column {column!r} is an empty list")
    return tuple(_message(item, f"{column}[{n}]") for n, item in enumerate(value))


def _message(item: Any, place: str) -> Message:
    if not isinstance(item, Mapping):
        raise BadRow(f"{place} must be an object with role and content, it is {describe(item)}")
    fields = {name: value for name, value in item.items() if value is not None}
    if "role" not in fields or "content" not in fields:
        raise BadRow(f"{place} needs role and content, it has {', '.join(map(str, fields)) or 'nothing'}")
    if extra := [str(name) for name in fields if name not in ("role", "content")]:
        raise BadRow(f"{place} has {', '.join(extra)}, which would be lost: only role and content are read")
    role, content = fields["role"], fields["content"]
    if role not in ROLES:
        near = difflib.get_close_matches(str(role), ROLES, 1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise BadRow(f"{place}: unknown role {role!r}; roles are {', '.join(ROLES)}{hint}")
    return Message(role, _text(content, place))


def _text(content: Any, place: str) -> str:
    """Content as text: a string, or a list of text parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list | tuple):
        parts = [p.get("text") if isinstance(p, Mapping) and p.get("type") == "text" else None for p in content]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) == len(parts):
            return "".join(texts)
        raise BadRow(f"{place}.content holds parts that are not text; only text is trained")
    raise BadRow(f"{place}.content must be text, it is {describe(content)}")

"""Prompts and answers as they stand in rows, and as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from preftune.records import Content, Message

_READ = frozenset(
    {
        "prompt", "responses", "scores", "ranks", "completion", "label", "messages", "text", "chosen", "rejected",
        "margin", "chosen_model", "rejected_model",
    }
)  # fmt: skip
"""Columns that mean something in the formats of docs/data.md."""


def plain(content: Content) -> Any:
    """Content as it stands in a row: text, or messages."""
    return content if isinstance(content, str) else [{"role": turn.role, "content": turn.content} for turn in content]


def from_plain(value: Any) -> Content:
    """What `plain` made."""
    return value if isinstance(value, str) else tuple(Message(turn["role"], turn["content"]) for turn in value)


def as_text(content: Content) -> str:
    """Content for people to read, and to be compared: a single assistant's turn is its text."""
    if isinstance(content, str):
        return content
    if len(content) == 1 and content[0].role == "assistant":
        return content[0].content
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in content)


def beside(columns: Mapping[str, Any]) -> dict[str, Any]:
    """A row's other columns, to stand beside a prompt and its answers. One whose name would make a row of another
    format of it gets a line behind the name: `completion_`."""
    return {f"{name}_" if name in _READ else name: value for name, value in columns.items()}


def printable(text: str) -> str:
    """Text for a terminal: what would steer it is shown as a sign for what can't be shown."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)

"""Values of a row as text, messages and numbers. What can't be read raises BadRow and names its place."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from preftune.data.columns import BadRow, describe
from preftune.records import Content, Message

ROLES = ("system", "user", "assistant", "tool")
# The largest number of a 32-bit float, in which scores are compared.
_LARGEST = 3.4028234e38
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_TRUTH = {"true": 1.0, "false": 0.0}


def content(value: Any, column: str) -> Content:
    """Text as it is, or a list of messages."""
    return value if isinstance(value, str) else messages(value, column)


def messages(value: Any, column: str) -> tuple[Message, ...]:
    """A conversation: objects with role and content."""
    if not isinstance(value, list | tuple):
        wanted = "a list of messages" if column == "messages" else "text or a list of messages"
        raise BadRow(f"column {column!r} must hold {wanted}, it holds {describe(value)}")
    if not value:
        raise BadRow(f"column {column!r} is an empty list")
    return tuple(_message(item, f"{column}[{n}]") for n, item in enumerate(value))


def number(value: Any, place: str, *, truth: bool = False) -> float:
    """A finite number, also as text, as CSV and expressions give it. truth: true and false count 1 and 0."""
    words = "true, false or a number" if truth else "a number"
    if isinstance(value, str) and (found := value.strip().lower()) and (_NUMBER.fullmatch(found) or found in _TRUTH):
        value = float(found) if found not in _TRUTH else found == "true"
    if isinstance(value, bool) and not truth:
        raise BadRow(f"{place} must be {words}, it is {str(value).lower()}")
    if not isinstance(value, int | float | Decimal):
        told = f"the text {value[:40]!r}" if isinstance(value, str) else describe(value)
        raise BadRow(f"{place} must be {words}, it is {told}")
    if isinstance(value, Decimal):
        value = float(value)
    if not abs(value) <= _LARGEST:
        raise BadRow(f"{place} must be a finite 32-bit number, it is {str(value)[:40]}")
    return float(value)


def author(value: Any, place: str) -> str:
    """Who wrote a completion, "" when the row does not say."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRow(f"{place} must be text, the name of who wrote it; it is {describe(value)}")
    return value


def as_turns(value: Content) -> tuple[Message, ...]:
    """A completion of a conversation: text is an assistant turn."""
    return (Message("assistant", value),) if isinstance(value, str) else value


def _message(item: Any, place: str) -> Message:
    if not isinstance(item, Mapping):
        raise BadRow(f"{place} must be an object with role and content, it is {describe(item)}")
    fields = {name: value for name, value in item.items() if value is not None}
    if "role" not in fields or "content" not in fields:
        raise BadRow(f"{place} needs role and content, it has {', '.join(map(str, fields)) or 'nothing'}")
    if extra := [str(name) for name in fields if name not in ("role", "content")]:
        raise BadRow(f"{place} has {', '.join(extra)}, which would be lost: only role and content are read")
    role, said = fields["role"], fields["content"]
    if role not in ROLES:
        near = difflib.get_close_matches(str(role), ROLES, 1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise BadRow(f"{place}: unknown role {role!r}; roles are {', '.join(ROLES)}{hint}")
    return Message(role, _text(said, place))


def _text(said: Any, place: str) -> str:
    """Content as text: a string, or a list of text parts."""
    if isinstance(said, str):
        return said
    if isinstance(said, list | tuple):
        parts = [p.get("text") if isinstance(p, Mapping) and p.get("type") == "text" else None for p in said]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) == len(parts):
            return "".join(texts)
        raise BadRow(f"{place}.content holds parts that are not text; only text is trained")
    raise BadRow(f"{place}.content must be text, it is {describe(said)}")

"""Text from a run inside Markdown: no model output or name can change the page around it."""

from __future__ import annotations

import re


def fenced(text: str, language: str = "text") -> str:
    """A code block that its text can't end: the fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def inline(value: object) -> str:
    """One line of plain text: Markdown's and HTML's own characters are escaped, plain names in backticks stay code."""
    parts = re.split(r"(`[\w./-]+`)", " ".join(str(value).split()))
    return "".join(part if index % 2 else _escaped(part) for index, part in enumerate(parts))


def _escaped(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # An underscore inside a word means nothing to Markdown, and reads better bare.
    return re.sub(r"([\\*{}\[\]#|!~`]|(?<!\w)_|_(?!\w))", r"\\\1", text)


def cut(text: str, longest: int) -> str:
    """At most `longest` characters, and how many were left out."""
    return text if len(text) <= longest else f"{text[:longest]}\n[{len(text) - longest:,} more characters]"

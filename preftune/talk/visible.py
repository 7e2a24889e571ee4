"""Text of a model or a file made harmless for a terminal: nothing in it can move, recolour, hide or reorder."""

from __future__ import annotations

_PICTURES = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: "\u2421"}
_ESCAPED = [
    *range(0x80, 0xA0),  # C1: some terminals take them for escape sequences
    *range(0x202A, 0x202F), *range(0x2066, 0x206A),  # bidi embeddings, overrides and isolates
    0x2028, 0x2029,  # line breaks to some programs
]  # fmt: skip
_TABLE = _PICTURES | {code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in _ESCAPED}


def visible(text: str) -> str:
    r"""The text with control characters shown instead of sent; line feeds and tabs stay.

    C0 controls and DEL become their pictures (ESC is ␛, carriage return ␍), C1 controls, bidi overrides and halves of
    surrogate pairs their code. Character by character, so pieces of a stream may be made visible one by one.

    >>> visible("\x1b[31mred")
    '␛[31mred'
    """
    shown = text.translate(_TABLE)
    if any("\ud800" <= char <= "\udfff" for char in shown):
        shown = "".join(f"\\u{ord(c):04x}" if "\ud800" <= c <= "\udfff" else c for c in shown)
    return shown


def one_line(text: str, longest: int = 80) -> str:
    """The text's first line that says something, made visible and cut with an ellipsis."""
    line = next((part for part in map(str.strip, text.splitlines()) if part), "")
    shown = visible(line).replace("\t", " ")
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"

"""What is wrong with a text by itself: characters nobody wrote, text decoded wrongly, addresses, keys.

All patterns take time in proportion to the text. They find what has a telling form, and nothing else: a name, a street
or a password in a sentence is not seen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_CONTROL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u2060\ufeff\u202a-\u202e\u2066-\u2069\ufdd0-\ufdef\ufffe\uffff]"
)
"""Controls but tab and line breaks, zero-width space and word joiner, overrides of direction, noncharacters."""

_WINDOWS = "\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
"""What a byte from 0x80 to 0xBF is taken for by Latin-1 and Windows-1252."""
_NO_QUOTE = "".join(char for char in _WINDOWS if char not in "‘’“”–—…")
"""The same without what may stand behind a word that ends in Ã."""
_MOJIBAKE = re.compile(
    f"\ufffd|Ã[{_NO_QUOTE}]|Â[\u0080-\u00bf]|â[€\u0080][{_WINDOWS}]|(?:[ÐÑ][{_WINDOWS}]){{2}}|ð[Ÿ\u009f][{_WINDOWS}]"
)

_EMAIL = re.compile(r"[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b")
_SAMPLE = re.compile(r"@(?:[\w-]+\.)*(?:example|test|localhost|invalid)(?:\.\w+)?$", re.IGNORECASE)
"""Addresses that are nobody's (RFC 2606)."""
_PHONE = re.compile(
    r"(?<![\w.+-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{2,4}(?:[ .-]?\d{2,4}){1,4}"
    r"|(?:\(\d{3}\) ?|\d{3}[.-])\d{3}[.-]\d{4})(?![\w-])"
)
_SECRETS = (
    ("private key", ("-----BEGIN",), re.compile(r"-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY-----")),
    ("AWS key", ("AKIA", "ASIA"), re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b")),
    ("API key", ("sk-",), re.compile(r"\bsk-(?=[\w-]{0,200}\d)[A-Za-z0-9_-]{20,200}")),
    (
        "GitHub token",
        ("gh", "github_pat_"),
        re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255})"),
    ),
    ("Hugging Face token", ("hf_",), re.compile(r"\bhf_[A-Za-z0-9]{30,64}\b")),
    ("Slack token", ("xox",), re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,255}")),
    ("Google key", ("AIza",), re.compile(r"\bAIza[0-9A-Za-z_-]{35}(?![\w-])")),
    ("web token", ("eyJ",), re.compile(r"\beyJ[\w-]{10,4000}\.eyJ[\w-]{10,4000}\.[\w-]{10,4000}")),
    (
        "password",
        ("=", ":"),
        re.compile(
            r"(?i:\b(?:api[_-]?key|secret|access[_-]?token|passw(?:or)?d))\b[\"']?\s{0,3}[:=]\s{0,3}[\"']?"
            r"((?=[A-Za-z_-]{0,100}\d)(?=[\d_-]{0,100}[A-Za-z])[A-Za-z0-9_-]{16,200})"
        ),
    ),
)
"""(kind, what must stand in the text before it is worth a search, pattern)."""


def controls(text: str) -> list[str]:
    """Code points of control and invisible characters, as U+0007, each once."""
    return sorted({f"U+{ord(found):04X}" for found in _CONTROL.findall(text)}) if not _plain(text) else []


def mojibake(text: str) -> list[str]:
    """Pieces that a wrong decoding left: U+FFFD, `Ã©`, `â€™`, `Ð¿Ñ€`, each once."""
    return [] if text.isascii() else sorted(set(_MOJIBAKE.findall(text)))


def personal(text: str) -> list[tuple[str, str]]:
    """(kind, what was found): e-mail addresses and telephone numbers."""
    return [("e-mail", found) for found in _emails(text)] + [("telephone", found) for found in _phones(text)]


def secrets(text: str) -> list[tuple[str, str]]:
    """(kind, what was found): keys, tokens and passwords with a telling form."""
    return [
        (name, found.group(found.lastindex or 0))
        for name, hints, pattern in _SECRETS
        if any(hint in text for hint in hints)
        for found in pattern.finditer(text)
    ]


def mask(found: str) -> str:
    """Enough of it to find it again.

    >>> mask("maria@mail.com")
    'ma••••••••••om'
    """
    shown = 2 if len(found) >= 8 else 0
    return f"{found[:shown]}{'•' * min(12, len(found) - 2 * shown)}{found[len(found) - shown :]}"


def masked(text: str) -> str:
    """The text with every address and key masked, for a page that others may read."""
    for _, found in (*secrets(text), *personal(text)):
        text = text.replace(found, mask(found))
    return text


def _plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _emails(text: str) -> Iterator[str]:
    if "@" in text:
        yield from (found for found in _EMAIL.findall(text) if not _SAMPLE.search(found))


def _phones(text: str) -> Iterator[str]:
    for found in _PHONE.findall(text):
        if 9 <= sum(char.isdigit() for char in found) <= 15:
            yield found

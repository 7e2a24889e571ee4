"""Reading numbers that a model wrote, strictly: nothing is a number by accident."""

from __future__ import annotations

import re
from decimal import Decimal

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_NUMBER = re.compile(rf"[+-]?(?:{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{{1,3}})?")
_LONGEST = 1000
_LARGEST = Decimal("1e308")
"""About the largest double: more than any answer needs, and a bound on the exponents that arithmetic meets."""


def parse_number(text: str) -> Decimal | None:
    """The number that `text` is as a whole, or None.

    White space around it is ignored; `1,234,567.5` may have thousands separators if they stand where they should;
    `1e5` is read. None for `nan`, `inf`, `1e400` and all else beyond 1e308, `1_000`, `1,2`, `٣`, `12 apples`, and
    text over 1,000 characters. Decimal, not float: as floats 10000000000000001 and 10000000000000000 are equal.
    """
    text = text.strip()
    if len(text) > _LONGEST or not _NUMBER.fullmatch(text):
        return None
    value = Decimal(text.replace(",", ""))
    return value if abs(value) <= _LARGEST else None

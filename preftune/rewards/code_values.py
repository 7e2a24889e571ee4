"""Values that a sandboxed program reports, and whether they are the right ones: decided outside, on plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

_LARGEST = 1000


@dataclass(frozen=True, slots=True)
class Expected:
    """What an observed value must be.

    Attributes:
        value: by `==`, unless another field says otherwise.
        identical: by `is`.
        near: as a number, within a relative or an absolute tolerance (math.isclose).
        loose: `value` came through JSON, which has no tuples.
    """

    value: Any
    identical: bool = False
    near: tuple[float, float] | None = None
    loose: bool = False

    def met(self, seen: Any) -> bool:
        """True when the decoded JSON of `code_driver.encode` stands for the right value."""
        try:
            if self.identical:
                return bool(seen == {None: ["n"], True: ["t"], False: ["f"]}[self.value])
            if self.near is not None:
                return math.isclose(thaw(seen), self.value, rel_tol=self.near[0], abs_tol=self.near[1])
            if same(seen, self.value, self.loose):
                return True
            single = self.loose and isinstance(self.value, list) and len(self.value) == 1
            return single and same(seen, self.value[0], True)  # some data sets put each result in a list
        except (TypeError, ValueError, LookupError, OverflowError, RecursionError, ArithmeticError):
            return False


def same(seen: Any, expected: Any, loose: bool = False) -> bool:
    """True when an encoded value equals a plain one. `loose`: a tuple is as good as a list, which JSON makes of it.

    Lengths are compared first, and nothing is hashed but what the expected value holds, so that no value of a
    program's making is slow to judge. Raises what a value that is no encoding raises.
    """
    letter, *rest = seen
    if letter in ("l", "u"):
        wanted = (list, tuple) if loose else list if letter == "l" else tuple
        items = rest[0]
        return isinstance(expected, wanted) and len(items) == len(expected) and all(
            same(item, other, loose) for item, other in zip(items, expected, strict=True)
        )  # fmt: skip
    if letter == "e":
        if not isinstance(expected, (set, frozenset)) or len(rest[0]) != len(expected):
            return False
        return len({value for value in map(thaw, rest[0]) if value in expected}) == len(expected)
    if letter == "d":
        if not isinstance(expected, dict) or len(rest[0]) != len(expected):
            return False
        pairs = [(thaw(key), value) for key, value in rest[0]]
        found = {key for key, value in pairs if key in expected and same(value, expected[key], loose)}
        return len(found) == len(expected)
    return bool(thaw(seen) == expected)


def thaw(seen: Any) -> Any:
    """The value that an encoding stands for, where it can be hashed. Raises ValueError for all else.

    Sets inside sets, and the numbers of a fraction, are taken up to a size: beyond, a program could choose ones that
    are slow to hash or to reduce.
    """
    letter, *rest = seen
    if letter in ("n", "t", "f"):
        return {"n": None, "t": True, "f": False}[letter]
    if letter == "i":
        return int(rest[0], 16)
    if letter == "r":
        return float.fromhex(rest[0])
    if letter == "c":
        return complex(float.fromhex(rest[0]), float.fromhex(rest[1]))
    if letter == "q" and max(map(len, rest)) <= _LARGEST:
        return Fraction(int(rest[0], 16), int(rest[1], 16))
    if letter == "s":
        return bytes.fromhex(rest[0]).decode("utf-8", "surrogatepass")
    if letter == "b":
        return bytes.fromhex(rest[0])
    if letter == "u":
        return tuple(thaw(item) for item in rest[0])
    if letter == "e" and len(rest[0]) <= _LARGEST:
        return frozenset(thaw(item) for item in rest[0])
    raise ValueError(f"{rest[0] if rest else letter} is no plain data")

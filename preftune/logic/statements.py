"""Statements about who is a knight: small frozen trees, their truth, and their JSON.

A truth table is one whole number: bit a is the statement's truth under assignment a. With a single assignment (`full`
1) the same code evaluates a statement, so each connective has one meaning in one place.

In JSON a statement is a list that begins with its form:

    ["knight", "Bob"]                       ["and", S, S, …]    ["exactly", 2, "knight", "Ann", "Bob", "Cleo"]
    ["knave", "Bob"]                        ["or", S, S, …]     ["at-least", 1, "knave", "Ann", "Bob"]
    ["same", "Ann", "Bob"]                  ["if", S, S]        ["not", S]
    ["different", "Ann", "Bob"]             ["iff", S, S]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

MAX_DEPTH = 16
"""Deeper statements are refused when they are read: nobody says such a thing, and recursion has an end."""


@dataclass(frozen=True, slots=True)
class Is:
    """`name` is a knight, or with `knight` false a knave."""

    name: str
    knight: bool = True


@dataclass(frozen=True, slots=True)
class Same:
    """The two are of one kind, or with `same` false of different kinds."""

    first: str
    second: str
    same: bool = True


@dataclass(frozen=True, slots=True)
class Count:
    """Exactly (or with `exact` false, at least) `number` of `names` are knights, or with `knight` false knaves."""

    number: int
    names: tuple[str, ...]
    knight: bool = True
    exact: bool = True


@dataclass(frozen=True, slots=True)
class Not:
    """`of` is false."""

    of: Statement


@dataclass(frozen=True, slots=True)
class And:
    """All `parts` are true; two or more."""

    parts: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """One or more of the `parts` are true; two or more parts."""

    parts: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class If:
    """`then` is true, or `condition` is false."""

    condition: Statement
    then: Statement


@dataclass(frozen=True, slots=True)
class Iff:
    """Both are true or both are false."""

    first: Statement
    second: Statement


Statement: TypeAlias = Is | Same | Count | Not | And | Or | If | Iff


def children(statement: Statement) -> tuple[Statement, ...]:
    """The statements directly inside a statement."""
    match statement:
        case Not(of):
            return (of,)
        case And(parts) | Or(parts):
            return parts
        case If(first, second) | Iff(first, second):
            return (first, second)
        case _:
            return ()


def depth(statement: Statement) -> int:
    """1 for a statement without another one inside, else one more than the deepest inside."""
    return 1 + max((depth(part) for part in children(statement)), default=0)


def mentions(statement: Statement) -> Iterator[str]:
    """Every name in a statement, as often as it stands there."""
    match statement:
        case Is(name):
            yield name
        case Same(first, second):
            yield from (first, second)
        case Count(names=names):
            yield from names
    for part in children(statement):
        yield from mentions(part)


def table(statement: Statement, columns: Mapping[str, int], full: int) -> int:
    """A statement's truth under many assignments at once, one bit each.

    Args:
        columns: name → the bits of the assignments that make it a knight.
        full: all bits.

    Raises KeyError for a name without a column.
    """
    match statement:
        case Is(name, knight):
            return columns[name] if knight else full ^ columns[name]
        case Same(first, second, same):
            apart = columns[first] ^ columns[second]
            return full ^ apart if same else apart
        case Count(number, names, knight, exact):
            counted = [full] + [0] * len(names)  # [k]: assignments with exactly k of the names seen so far
            for name in names:
                yes = columns[name] if knight else full ^ columns[name]
                for k in range(len(names), 0, -1):
                    counted[k] = (counted[k] & ~yes) | (counted[k - 1] & yes)
                counted[0] &= ~yes
            out = 0
            for k in range(number, number + 1 if exact else len(counted)):
                out |= counted[k] if k < len(counted) else 0
            return out
        case Not(of):
            return full ^ table(of, columns, full)
        case And(parts):
            out = full
            for part in parts:
                out &= table(part, columns, full)
            return out
        case Or(parts):
            out = 0
            for part in parts:
                out |= table(part, columns, full)
            return out
        case If(condition, then):
            return (full ^ table(condition, columns, full)) | table(then, columns, full)
        case Iff(first, second):
            return full ^ table(first, columns, full) ^ table(second, columns, full)


def holds(statement: Statement, knights: Mapping[str, bool]) -> bool:
    """Whether a statement is true when `knights` says of each name whether it is a knight."""
    return table(statement, {name: int(value) for name, value in knights.items()}, 1) == 1


def renamed(statement: Statement, names: Mapping[str, str]) -> Statement:
    """The same statement about other people."""
    match statement:
        case Is(name, knight):
            return Is(names[name], knight)
        case Same(first, second, same):
            return Same(names[first], names[second], same)
        case Count(number, some, knight, exact):
            return Count(number, tuple(names[name] for name in some), knight, exact)
        case Not(of):
            return Not(renamed(of, names))
        case And(parts):
            return And(tuple(renamed(part, names) for part in parts))
        case Or(parts):
            return Or(tuple(renamed(part, names) for part in parts))
        case If(condition, then):
            return If(renamed(condition, names), renamed(then, names))
        case Iff(first, second):
            return Iff(renamed(first, names), renamed(second, names))


# ---------------------------------------------------------------------------------------------------- JSON

_KIND = {True: "knight", False: "knave"}
_COUNTS = {True: "exactly", False: "at-least"}


def to_json(statement: Statement) -> list[Any]:
    """A statement as nested lists, see the module."""
    match statement:
        case Is(name, knight):
            return [_KIND[knight], name]
        case Same(first, second, same):
            return ["same" if same else "different", first, second]
        case Count(number, names, knight, exact):
            return [_COUNTS[exact], number, _KIND[knight], *names]
        case Not(of):
            return ["not", to_json(of)]
        case And(parts):
            return ["and", *map(to_json, parts)]
        case Or(parts):
            return ["or", *map(to_json, parts)]
        case If(condition, then):
            return ["if", to_json(condition), to_json(then)]
        case Iff(first, second):
            return ["iff", to_json(first), to_json(second)]


def from_json(value: Any, limit: int = MAX_DEPTH) -> Statement:
    """A statement from nested lists. Raises ValueError that says what is wrong with which part."""
    if limit == 0:
        raise ValueError(f"a statement is nested over {MAX_DEPTH} deep")
    if not isinstance(value, Sequence) or isinstance(value, str) or not value or not isinstance(value[0], str):
        raise ValueError(
            f"a statement is a list that begins with its form, such as ['knave', 'Bob'], not {short(value)}"
        )
    form, rest = value[0], list(value[1:])
    match form:
        case "knight" | "knave":
            _length(value, 2)
            return Is(_name(rest[0], value), form == "knight")
        case "same" | "different":
            _length(value, 3)
            return Same(_name(rest[0], value), _name(rest[1], value), form == "same")
        case "exactly" | "at-least":
            return _count(value, form == "exactly")
        case "not":
            _length(value, 2)
            return Not(from_json(rest[0], limit - 1))
        case "and" | "or":
            if len(rest) < 2:
                raise ValueError(f"{form!r} joins two statements or more: {short(value)}")
            parts = tuple(from_json(part, limit - 1) for part in rest)
            return And(parts) if form == "and" else Or(parts)
        case "if" | "iff":
            _length(value, 3)
            first, second = (from_json(part, limit - 1) for part in rest)
            return If(first, second) if form == "if" else Iff(first, second)
    raise ValueError(
        f"{form!r} is no form of a statement; the forms are knight, knave, same, different, exactly, at-least, not, "
        f"and, or, if, iff"
    )


def _count(value: Sequence[Any], exact: bool) -> Count:
    if len(value) < 4 or value[2] not in ("knight", "knave"):
        raise ValueError(f"expected [{value[0]!r}, number, 'knight' or 'knave', names …], not {short(value)}")
    number, names = value[1], tuple(_name(name, value) for name in value[3:])
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= len(names):
        raise ValueError(f"the number must be from 0 to the number of names: {short(value)}")
    if len(set(names)) < len(names):
        raise ValueError(f"a name is counted twice: {short(value)}")
    return Count(number, names, value[2] == "knight", exact)


def _length(value: Sequence[Any], length: int) -> None:
    if len(value) != length:
        raise ValueError(f"{value[0]!r} takes {length - 1} items, not {len(value) - 1}: {short(value)}")


def _name(value: Any, whole: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"expected a name, not {short(value)}, in {short(whole)}")
    return value


def short(value: Any) -> str:
    """A value as it stands in the data, cut for an error message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"

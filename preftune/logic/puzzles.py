"""Puzzles: who says what, the assignments that fit, and a form by which two puzzles are the same one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations, product
from typing import Any

from preftune.logic.statements import (
    And,
    Count,
    If,
    Iff,
    Is,
    Not,
    Or,
    Same,
    Statement,
    from_json,
    mentions,
    short,
    table,
    to_json,
)

MAX_PEOPLE = 16
"""All assignments of a puzzle are looked at: 65,536 of 16 people."""


@dataclass(frozen=True, slots=True)
class Said:
    """A statement and who makes it."""

    speaker: str
    statement: Statement


@dataclass(frozen=True, slots=True)
class Puzzle:
    """Some people and what they say. A knight's statements are true, a knave's are false.

    Attributes:
        people: all names, in the order of the text; at most `MAX_PEOPLE`.
        sayings: the statements, in the order of the text.
    """

    people: tuple[str, ...]
    sayings: tuple[Said, ...]

    def solutions(self) -> list[dict[str, bool]]:
        """Every assignment that fits: name → whether it is a knight."""
        fitting = consistent(self.people, self.sayings)
        return [
            {name: bool(number >> index & 1) for index, name in enumerate(self.people)}
            for number in range(1 << len(self.people))
            if fitting >> number & 1
        ]

    @property
    def solution(self) -> dict[str, bool]:
        """The only assignment that fits. Raises ValueError when there is none, or are several."""
        found = self.solutions()
        if len(found) != 1:
            raise ValueError(f"the puzzle has {len(found)} solutions")
        return found[0]

    def fits(self, knights: Mapping[str, bool]) -> bool:
        """Whether an assignment of all people fits: each statement's truth is its speaker's kind."""
        columns = {name: int(knights[name]) for name in self.people}
        return all(table(said.statement, columns, 1) == columns[said.speaker] for said in self.sayings)

    def to_json(self) -> list[dict[str, Any]]:
        """The sayings as plain data."""
        return [{"speaker": said.speaker, "says": to_json(said.statement)} for said in self.sayings]

    def canonical(self) -> str:
        """Equal for two puzzles when, and only when, one becomes the other by other names for the people, another order
        of the statements, or another order of what `and`, `or`, `iff`, `same` and counts join."""
        colors = _refined(self)
        classes: dict[str, list[str]] = {}
        for name in self.people:
            classes.setdefault(colors[name], []).append(name)
        orders = product(*(permutations(classes[color]) for color in sorted(classes)))
        best = min(_labelled(self.sayings, [name for part in order for name in part]) for order in orders)
        return f"{len(self.people)}|{best}"


def sayings_from_json(value: Any) -> Puzzle:
    """A puzzle from what `Puzzle.to_json` gives; its people are those who speak or are spoken of, in this order.

    Raises ValueError that says what is wrong with which statement.
    """
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ValueError(f"a list of statements was expected, not {short(value)}")
    sayings = []
    for number, item in enumerate(value, 1):
        if not isinstance(item, Mapping) or not {"speaker", "says"} <= set(item):
            raise ValueError(f"statement {number}: expected {{'speaker': …, 'says': […]}}, not {short(item)}")
        if not isinstance(item["speaker"], str) or not item["speaker"].strip():
            raise ValueError(f"statement {number}: the speaker must be a name, not {short(item['speaker'])}")
        try:
            sayings.append(Said(item["speaker"], from_json(item["says"])))
        except ValueError as error:
            raise ValueError(f"statement {number}: {error}") from None
    spoken = (name for said in sayings for name in mentions(said.statement))
    people = tuple(dict.fromkeys([*(said.speaker for said in sayings), *spoken]))
    if len(people) > MAX_PEOPLE:
        raise ValueError(f"{len(people)} people, but at most {MAX_PEOPLE} can be solved")
    return Puzzle(people, tuple(sayings))


@lru_cache(maxsize=2 * MAX_PEOPLE)
def bits(people: int) -> tuple[tuple[int, ...], int]:
    """For each of so many people the assignments that make it a knight, as bits; and all bits."""
    if people > MAX_PEOPLE:
        raise ValueError(f"{people} people, but at most {MAX_PEOPLE} can be solved")
    size = 1 << people
    full = (1 << size) - 1
    # Bit a of column i is bit i of a: blocks of 2^i zeros and 2^i ones, so full / (2^(2^i) + 1), shifted.
    return tuple(full // ((1 << (1 << i)) + 1) << (1 << i) for i in range(people)), full


def consistent(people: Sequence[str], sayings: Iterable[Said]) -> int:
    """The assignments under which each statement's truth is its speaker's kind, as bits."""
    parts, full = bits(len(people))
    columns = dict(zip(people, parts, strict=True))
    fitting = full
    for said in sayings:
        fitting &= full ^ columns[said.speaker] ^ table(said.statement, columns, full)
    return fitting


# ---------------------------------------------------------------------------------------------------- sameness


def _shape(statement: Statement, labels: Mapping[str, str]) -> str:
    """A statement as text under labels for its people, with what can be swapped in sorted order."""
    match statement:
        case Is(name, knight):
            return f"{'+' if knight else '-'}{labels[name]}"
        case Same(first, second, same):
            return f"{'=' if same else '!'}({','.join(sorted((labels[first], labels[second])))})"
        case Count(number, names, knight, exact):
            inside = ",".join(sorted(labels[name] for name in names))
            return f"{'e' if exact else 'l'}{number}{'+' if knight else '-'}({inside})"
        case Not(of):
            return f"n({_shape(of, labels)})"
        case And(parts) | Or(parts):
            letter = "a" if isinstance(statement, And) else "o"
            return f"{letter}({','.join(sorted(_shape(part, labels) for part in parts))})"
        case If(condition, then):
            return f"i({_shape(condition, labels)},{_shape(then, labels)})"
        case Iff(first, second):
            return f"f({','.join(sorted((_shape(first, labels), _shape(second, labels))))})"


def _labelled(sayings: Sequence[Said], order: Sequence[str]) -> str:
    labels = {name: str(number) for number, name in enumerate(order)}
    return ";".join(sorted(f"{labels[said.speaker]}:{_shape(said.statement, labels)}" for said in sayings))


def _refined(puzzle: Puzzle) -> dict[str, str]:
    """People → a colour that no renaming changes; people who play different parts mostly get different ones.

    Colour refinement: everybody's colour becomes what is said by and of them, told in the colours so far. It leaves few
    orders to compare where all n! would be too many.
    """
    colors = dict.fromkeys(puzzle.people, "")
    for _ in puzzle.people:
        seen: dict[str, list[str]] = {name: [] for name in puzzle.people}
        for said in puzzle.sayings:
            for name in {said.speaker, *mentions(said.statement)}:
                labels = {other: f"c{color}" for other, color in colors.items()} | {name: "me"}
                seen[name].append(f"{labels[said.speaker]}:{_shape(said.statement, labels)}")
        told = {name: f"{colors[name]}|{';'.join(sorted(parts))}" for name, parts in seen.items()}
        ranks = {text: str(rank) for rank, text in enumerate(sorted(set(told.values())))}
        colors = {name: ranks[told[name]] for name in puzzle.people}
    return colors

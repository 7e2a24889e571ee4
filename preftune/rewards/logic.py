"""The reward of knights-and-knaves puzzles: a truth assignment read from a completion, and checked."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from preftune.logic.puzzles import Puzzle, sayings_from_json
from preftune.logic.reading import KINDS, Verdict, plain, read_assignment
from preftune.logic.statements import short
from preftune.rewards.call import Unscorable, column_values, completion_text
from preftune.rewards.math import final_answer
from preftune.rewards.text import check_pattern


@dataclass(frozen=True, slots=True)
class KnightsKnaves:
    """1.0 when the completion says rightly of each person whether it is a knight or a knave, else 0.0.

    The assignment is read from the last match of `extract` (a regular expression; its first group if it has one), else
    from the text between the last pair of solution tags, else from the whole completion, where the last claim about
    each person counts. With `extract` and no match the value is 0.0. A person left out, or said to be both, is wrong.

    `check: solution` compares with a column {"Ann": "knight", …}. `check: statements` needs none: an assignment is
    right when each of the puzzle's statements is as true as its speaker's kind says. `partial` gives the share of the
    people who are right instead of all or nothing (with statements: against the nearest of the puzzle's solutions).
    A row whose column is None has no value.
    """

    check: Literal["solution", "statements"] = "solution"
    column: str | None = None
    partial: bool = False
    extract: str | None = None
    solution_open: str = "<SOLUTION>"
    solution_close: str = "</SOLUTION>"

    def __post_init__(self) -> None:
        if not (self.solution_open and self.solution_close):
            raise ValueError("a tag can't be empty")
        if self.extract is not None:
            check_pattern(self.extract, "extract")

    @property
    def can_hang(self) -> bool:
        """Only a pattern of the user's can."""
        return self.extract is not None

    def __call__(self, /, completions: list[Any], **columns: Any) -> list[float | Unscorable | None]:
        column = self.column or self.check
        values = column_values(column, columns)
        score = self._against_solution if self.check == "solution" else self._against_statements
        known: dict[str, Callable[[str], float] | str] = {}  # the rows of a group share their puzzle
        out: list[float | Unscorable | None] = []
        for completion, value in zip(completions, values, strict=True):
            if value is None or (isinstance(value, float) and math.isnan(value)):
                out.append(None)
                continue
            key = repr(value)
            if key not in known:
                try:
                    known[key] = score(_parsed(value))
                except ValueError as error:
                    known[key] = f"can't use column {column!r}: {error}"
            found = known[key]
            out.append(Unscorable(found) if isinstance(found, str) else found(completion_text(completion)))
        return out

    def _against_solution(self, value: Any) -> Callable[[str], float]:
        truth = read_solution(value)

        def score(text: str) -> float:
            return self._value(self._read(text, list(truth)), [truth])

        return score

    def _against_statements(self, value: Any) -> Callable[[str], float]:
        puzzle = sayings_from_json(value)
        _distinct(list(puzzle.people))
        solutions = puzzle.solutions()
        if not solutions:
            raise ValueError("no assignment makes all of its statements fit their speakers")

        def score(text: str) -> float:
            found = self._read(text, list(puzzle.people))
            return self._value(found, solutions) if self.partial else float(fits(puzzle, found))

        return score

    def _read(self, text: str, people: list[str]) -> dict[str, Verdict]:
        region = final_answer(text, self.extract, (self.solution_open, self.solution_close))
        if region is not None:
            return read_assignment(region, people, last_wins=False)
        return {} if self.extract is not None else read_assignment(text, people, last_wins=True)

    def _value(self, found: Mapping[str, Verdict], solutions: list[dict[str, bool]]) -> float:
        right = max(sum(found.get(name) is kind for name, kind in one.items()) for one in solutions)
        share = right / len(solutions[0])
        return share if self.partial or share == 1.0 else 0.0


def fits(puzzle: Puzzle, found: Mapping[str, Verdict]) -> bool:
    """Whether an assignment is whole, without contradiction, and fits the statements."""
    kinds = {name: found[name] is True for name in puzzle.people if found.get(name) in (True, False)}
    return len(kinds) == len(puzzle.people) and puzzle.fits(kinds)


def read_solution(value: Any) -> dict[str, bool]:
    """{"Ann": "knight", …} as name → whether it is a knight. Raises ValueError that says what is wrong.

    Names whose value is None are left out: a table with a column per name (Parquet) has them in every row.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"expected an object such as {{'Ann': 'knight', 'Bob': 'knave'}}, not {short(value)}")
    out = {}
    for name, kind in value.items():
        if kind is None:
            continue
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{short(name)} is no name")
        word = kind.strip().casefold() if isinstance(kind, str) else None
        if word not in KINDS:
            raise ValueError(f"{short(name)} is {short(kind)}, where 'knight' or 'knave' belongs")
        out[name] = KINDS[word]
    if not out:
        raise ValueError("it names nobody")
    _distinct(list(out))
    return out


def _distinct(names: list[str]) -> None:
    if len({plain(name) for name in names}) < len(names):
        raise ValueError(f"two of the names differ in nothing but letters' case: {', '.join(names)}")


def _parsed(value: Any) -> Any:
    """A column's value; text is read as JSON, since CSV and most tables can't hold nested lists."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no JSON: {error}") from None

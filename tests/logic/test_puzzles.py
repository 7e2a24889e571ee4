"""Statements, the solver and sameness: classical puzzles by hand, and everything against a naive evaluator."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Mapping
from typing import Any

import pytest

from preftune.logic import Puzzle, Said, generate, sayings_from_json
from preftune.logic.puzzles import bits
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
    depth,
    from_json,
    holds,
    mentions,
    renamed,
    to_json,
)

A, B, C = "Ann", "Ben", "Cleo"


def solutions(people: str, *sayings: tuple[str, Statement]) -> list[str]:
    """Every solution as a word of T (knight) and F (knave), in the order of the alphabet."""
    puzzle = Puzzle(tuple(people.split()), tuple(Said(*one) for one in sayings))
    return sorted("".join("FT"[one[name]] for name in puzzle.people) for one in puzzle.solutions())


# --- classical puzzles (R. Smullyan, What Is the Name of This Book?, 1978, chapter 3), solved by hand ----------------


def test_i_am_a_knave_can_be_said_by_nobody() -> None:
    assert solutions("Ann", (A, Is(A, False))) == []


def test_i_am_a_knight_can_be_said_by_everybody() -> None:
    assert solutions("Ann", (A, Is(A))) == ["F", "T"]


def test_he_said_that_he_is_a_knave() -> None:
    """B: "A said that he is a knave." (He can't have.) C: "B is lying." So B is a knave and C a knight; A is open."""
    assert solutions("Ann Ben Cleo", (B, Iff(Is(A), Is(A, False))), (C, Is(B, False))) == ["FFT", "TFT"]


def test_he_said_that_there_is_one_knight() -> None:
    """A was asked how many knights there are; B: "A said that there is one"; C: "B is lying". A's answer, one knight
    among three, is true just when there is exactly one."""
    said = Iff(Is(A), Count(1, (A, B, C)))
    assert solutions("Ann Ben Cleo", (B, said), (C, Is(B, False))) == ["FFT", "TFT"]


def test_at_least_one_of_us_is_a_knave() -> None:
    """A: "At least one of us is a knave." A knave would have said the truth, so A is a knight and B the knave."""
    assert solutions("Ann Ben", (A, Count(1, (A, B), knight=False, exact=False))) == ["TF"]


def test_i_am_a_knave_or_he_is_a_knight() -> None:
    """A: "Either I am a knave or B is a knight." Both are knights."""
    assert solutions("Ann Ben", (A, Or((Is(A, False), Is(B))))) == ["TT"]


def test_all_knaves_and_exactly_one_knight() -> None:
    """A: "All of us are knaves." B: "Exactly one of us is a knight." A is a knave, B a knight, C a knave."""
    sayings = ((A, Count(3, (A, B, C), knight=False)), (B, Count(1, (A, B, C))))
    assert solutions("Ann Ben Cleo", *sayings) == ["FTF"]


def test_all_knaves_and_exactly_one_knave() -> None:
    """A: "All of us are knaves." B: "Exactly one of us is a knave." A is a knave, C a knight; B is open."""
    sayings = ((A, Count(3, (A, B, C), knight=False)), (B, Count(1, (A, B, C), knight=False)))
    assert solutions("Ann Ben Cleo", *sayings) == ["FFT", "FTT"]


def test_i_am_a_knave_but_he_is_not() -> None:
    """A: "I am a knave, but B isn't." Both are knaves."""
    assert solutions("Ann Ben", (A, And((Is(A, False), Is(B))))) == ["FF"]


def test_a_knave_and_of_the_same_kind() -> None:
    """A: "B is a knave." B: "A and C are of the same kind." C is a knave; A and B are of different kinds."""
    assert solutions("Ann Ben Cleo", (A, Is(B, False)), (B, Same(A, C))) == ["FTF", "TFF"]


def test_if_i_am_a_knight() -> None:
    """A: "If I am a knight, so is B." Both are knights."""
    assert solutions("Ann Ben", (A, If(Is(A), Is(B)))) == ["TT"]


def test_different_kinds() -> None:
    """A: "B and I are of different kinds." B is a knave whatever A is. And "it's not so" undoes it."""
    assert solutions("Ann Ben", (A, Same(A, B, same=False))) == ["FF", "TF"]
    assert solutions("Ann Ben", (A, Not(Same(A, B, same=False)))) == ["FT", "TT"]


# --- against a naive evaluator ----------------------------------------------------------------------------------------


def naive(statement: Any, knights: Mapping[str, bool]) -> bool:
    """The meaning of a statement's JSON, written without the package."""
    form, *rest = statement
    if form in ("knight", "knave"):
        return knights[rest[0]] == (form == "knight")
    if form in ("same", "different"):
        return (knights[rest[0]] == knights[rest[1]]) == (form == "same")
    if form in ("exactly", "at-least"):
        number, kind, *names = rest
        found = sum(knights[name] == (kind == "knight") for name in names)
        return found == number if form == "exactly" else found >= number
    values = [naive(part, knights) for part in rest]
    return {
        "not": lambda: not values[0],
        "and": lambda: all(values),
        "or": lambda: any(values),
        "if": lambda: values[1] if values[0] else True,
        "iff": lambda: values[0] is values[1],
    }[form]()


@pytest.mark.parametrize(
    ("people", "deepest", "count"), [((2, 5), 1, 500), ((2, 5), 2, 800), ((3, 4), 3, 300), ((6, 8), 2, 60)]
)
def test_generated_puzzles_have_one_solution_and_need_every_statement(people, deepest, count) -> None:
    for puzzle in generate(count, people=people, depth=deepest, seed=7):
        told = json.loads(json.dumps(puzzle.to_json()))
        fitting: list[dict[str, bool]] = []
        without = [0] * len(told)
        for values in itertools.product((False, True), repeat=len(puzzle.people)):
            knights = dict(zip(puzzle.people, values, strict=True))
            wrong = [n for n, one in enumerate(told) if naive(one["says"], knights) != knights[one["speaker"]]]
            assert puzzle.fits(knights) == (not wrong)
            fitting += [] if wrong else [knights]
            for n in range(len(told)):
                without[n] += set(wrong) <= {n}
        assert fitting == [puzzle.solution]
        assert min(without) > 1
        assert max(depth(said.statement) for said in puzzle.sayings) == deepest
        assert [said.speaker for said in puzzle.sayings] == list(puzzle.people)


def test_no_generated_statement_is_empty_or_has_idle_parts() -> None:
    for puzzle in generate(300, people=(2, 4), depth=3, seed=11):
        worlds = [
            dict(zip(puzzle.people, v, strict=True))
            for v in itertools.product((False, True), repeat=len(puzzle.people))
        ]
        for said in puzzle.sayings:
            told = [naive(to_json(said.statement), world) for world in worlds]
            assert len(set(told)) == 2
            assert told != [world[said.speaker] for world in worlds]  # "I am a knight" in other words
            for name in set(mentions(said.statement)):
                flipped = [naive(to_json(said.statement), {**world, name: not world[name]}) for world in worlds]
                assert told != flipped, (said, name)


def random_statement(rng: random.Random, names: tuple[str, ...], level: int) -> Statement:
    if level == 0:
        some = tuple(rng.sample(names, rng.randint(1, len(names))))
        return rng.choice(
            [
                Is(rng.choice(names), rng.random() < 0.5),
                Same(rng.choice(names), rng.choice(names), rng.random() < 0.5),
                Count(rng.randint(0, len(some)), some, rng.random() < 0.5, rng.random() < 0.5),
            ]
        )
    parts = tuple(random_statement(rng, names, rng.randrange(level)) for _ in range(rng.randint(2, 3)))
    return rng.choice([Not(parts[0]), And(parts), Or(parts), If(*parts[:2]), Iff(*parts[:2])])


def test_any_statement_means_what_its_json_means() -> None:
    rng = random.Random(5)
    names = ("Ann", "Ben", "Cleo", "Ðan")
    for _ in range(1500):
        statement = random_statement(rng, names, rng.randrange(4))
        assert from_json(json.loads(json.dumps(to_json(statement)))) == statement
        knights = {name: rng.random() < 0.5 for name in names}
        assert holds(statement, knights) == naive(to_json(statement), knights)


def test_bits_of_a_column_are_those_of_the_number() -> None:
    for people in range(1, 6):
        columns, full = bits(people)
        assert full == (1 << (1 << people)) - 1
        for index, column in enumerate(columns):
            assert all((column >> a & 1) == (a >> index & 1) for a in range(1 << people))


# --- sameness ---------------------------------------------------------------------------------------------------------


def disguised(puzzle: Puzzle, rng: random.Random) -> Puzzle:
    """The same puzzle: other names, statements in another order, the parts of and/or/iff and of counts swapped."""
    fresh = dict(
        zip(puzzle.people, rng.sample(["Q", "W", "E", "R", "T", "Y", "U", "I", "O"], len(puzzle.people)), strict=True)
    )

    def swapped(part: Statement) -> Statement:
        match part:
            case And(parts) | Or(parts):
                return type(part)(tuple(map(swapped, reversed(parts))))
            case Iff(first, second):
                return Iff(swapped(second), swapped(first))
            case If(condition, then):
                return If(swapped(condition), swapped(then))
            case Not(of):
                return Not(swapped(of))
            case Same(first, second, same):
                return Same(second, first, same)
            case Count(number, names, knight, exact):
                return Count(number, names[::-1], knight, exact)
        return part

    sayings = [Said(fresh[said.speaker], swapped(renamed(said.statement, fresh))) for said in puzzle.sayings]
    rng.shuffle(sayings)
    people = list(fresh.values())
    rng.shuffle(people)
    return Puzzle(tuple(people), tuple(sayings))


def test_a_disguised_puzzle_is_the_same_one() -> None:
    rng = random.Random(2)
    for puzzle in generate(150, people=(2, 7), depth=2, seed=3):
        assert disguised(puzzle, rng).canonical() == puzzle.canonical()


def test_other_puzzles_are_others() -> None:
    """All pairs of two statements about two people: forms are equal just when some renaming makes them equal."""
    says: list[Statement] = [Is("a"), Is("b"), Is("a", False), Is("b", False), Same("a", "b"), Same("a", "b", False)]
    puzzles = [Puzzle(("a", "b"), (Said("a", x), Said("b", y))) for x in says for y in says]
    swap = {"a": "b", "b": "a"}

    def key(puzzle: Puzzle, names: Mapping[str, str]) -> tuple[str, ...]:
        pairs = ((names[s.speaker], renamed(s.statement, names)) for s in puzzle.sayings)
        both = "first='b', second='a'", "first='a', second='b'"
        return tuple(sorted(f"{who}: {str(said).replace(*both)}" for who, said in pairs))

    for x, y in itertools.combinations(puzzles, 2):
        same = key(x, {"a": "a", "b": "b"}) in (key(y, {"a": "a", "b": "b"}), key(y, swap))
        assert (x.canonical() == y.canonical()) == same, (x, y)


# --- bad data ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ("knave", "a statement is a list"),
        ([], "a statement is a list"),
        ([["knave"]], "a statement is a list"),
        (["knaves", "Bob"], "'knaves' is no form of a statement; the forms are knight, knave"),
        (["knave"], "'knave' takes 1 items, not 0"),
        (["knave", 3], "expected a name, not 3"),
        (["knave", " "], "expected a name"),
        (["same", "A"], "'same' takes 2 items"),
        (["and", ["knave", "A"]], "'and' joins two statements or more"),
        (["exactly", 3, "knight", "A", "B"], "from 0 to the number of names"),
        (["exactly", True, "knight", "A", "B"], "from 0 to the number of names"),
        (["exactly", 1, "spy", "A", "B"], "'knight' or 'knave'"),
        (["at-least", 1, "knight", "A", "A"], "counted twice"),
        (["if", ["knave", "A"], ["knav", "B"]], "'knav' is no form"),
        (json.loads('["not",' * 17 + '["knave","A"]' + "]" * 17), "nested over 16 deep"),
    ],
)
def test_malformed_statements(says: Any, message: str) -> None:
    with pytest.raises(ValueError, match="statement 2: ") as caught:
        sayings_from_json([{"speaker": "A", "says": ["knave", "B"]}, {"speaker": "B", "says": says}])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "a list of statements was expected"),
        ("x", "a list of statements was expected"),
        ([3], "statement 1: expected {'speaker'"),
        ([{"speaker": 1, "says": ["knave", "A"]}], "statement 1: the speaker must be a name"),
        ([{"speaker": f"p{n}", "says": ["knave", "p0"]} for n in range(17)], "17 people, but at most 16"),
    ],
)
def test_malformed_lists(value: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        sayings_from_json(value)
    assert message in str(caught.value)

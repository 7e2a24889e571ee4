"""The English says what the formula says: worked by hand, and read back by a small parser that shares no code."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from preftune.logic import generate, render
from preftune.logic.reading import read_assignment
from preftune.logic.statements import And, Count, If, Iff, Is, Not, Or, Same, Statement, holds
from preftune.logic.words import NUMBERS, sentence

PEOPLE = ("Ann", "Ben", "Cleo")
WORDS = {"knight": "knight", "knave": "knave", "knights": "knights", "knaves": "knaves"}
A, B, C = PEOPLE
FALSE = ("not true", "false")


def phrasings(statement: Statement, speaker: str = A) -> set[str]:
    return {sentence(statement, speaker, PEOPLE, WORDS, random.Random(seed)) for seed in range(60)}


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (Is(B), {"Ben is a knight.", "Ben is not a knave."}),
        (Is(A, False), {"I am a knave.", "I am not a knight."}),
        (Same(B, C), {"Ben and Cleo are of the same kind.", "Ben is of the same kind as Cleo."}),
        (Same(A, C, False), {"Cleo and I are of different kinds.", "Cleo is not of the same kind as me."}),
        (Count(1, (A, B, C)), {"Exactly one of us is a knight."}),
        (Count(2, (A, B, C), False), {"Exactly two of us are knaves."}),
        (Count(0, (A, B, C)), {"None of us is a knight."}),
        (Count(3, (A, B, C)), {"All of us are knights."}),
        (Count(1, (A, B), False), {"Exactly one of Ben and me is a knave."}),
        (Count(0, (A, B)), {"Neither Ben nor I am a knight."}),
        (Count(2, (B, C), False), {"Both Ben and Cleo are knaves."}),
        (Count(0, (B, C), False), {"Neither Ben nor Cleo is a knave."}),
        (Count(1, (B, C), exact=False), {"At least one of Ben and Cleo is a knight."}),
        (Count(2, (A, B, C), False, False), {"At least two of us are knaves."}),
        (Not(Count(1, (B, C))), {f"It is {w} that exactly one of Ben and Cleo is a knight." for w in FALSE}),
    ],
)  # fmt: skip
def test_simple_statements(statement: Statement, expected: set[str]) -> None:
    assert phrasings(statement) == expected


def test_joined_statements() -> None:
    def of(statement: Statement) -> set[str]:
        return {text for text in phrasings(statement) if " not " not in text}

    assert of(And((Is(A), Is(B, False)))) == {"I am a knight and Ben is a knave.", "I am a knight, and Ben is a knave."}
    assert of(Or((Is(A), Is(B, False)))) == {
        "I am a knight or Ben is a knave.",
        "I am a knight, or Ben is a knave, or both.",
    }
    assert of(If(Is(B), Is(C))) == {
        "If Ben is a knight, then Cleo is a knight.",
        "Cleo is a knight if Ben is a knight.",
    }
    assert of(Iff(Is(B), Is(C))) == {
        "Ben is a knight if and only if Cleo is a knight.",
        "Ben is a knight exactly when Cleo is a knight.",
    }
    nested = If(Or((Is(B), Is(C))), Is(A))
    assert "If (Ben is a knight or Cleo is a knight), then I am a knight." in of(nested)


# --- a parser of its own ----------------------------------------------------------------------------------------------

SIMPLE = {
    name: re.compile(f"(?i){pattern}")
    for name, pattern in {
        "cell": r"#(\d+)",
        "is": r"(\w+) (?:is|am) (not )?a (knight|knave)",
        "pair": r"(\w+) and (\w+) are of (the same kind|different kinds)",
        "same": r"(\w+) is (not )?of the same kind as (\w+)",
        "two": r"(both|neither) (\w+) (?:and|nor) (\w+) (?:is|am|are) (?:a )?(knight|knave)s?",
        "count": r"(exactly|at least|all|both|none|neither)(?: (\w+))? of ((?:\w+, )*\w+ and \w+|us) "
        r"(?:is a|are) (knight|knave)s?",
    }.items()
}


def cuts(text: str, word: str) -> list[list[str]]:
    """The ways to cut a text at `word` into statements; "a, b and c" are three."""
    pairs = [[text[: match.start()], text[match.end() :]] for match in re.finditer(rf",? {word} ", text)]
    triples = [
        [first[: match.start()], first[match.end() :], rest]
        for first, rest in pairs
        for match in re.finditer(", ", first)
    ]
    return [
        pieces
        for pieces in (*pairs, *triples)
        if all(any(pattern.fullmatch(piece) for pattern in SIMPLE.values()) for piece in pieces)
    ]


def truth(text: str, speaker: str, people: tuple[str, ...], knights: dict[str, bool]) -> bool:
    """The truth of a sentence as its reader would work it out: brackets first, then the one connective there is."""
    text = text.removesuffix(".").replace("truth-teller", "knight").replace("liar", "knave")
    cells: list[bool] = []

    def cell(match: re.Match[str]) -> str:
        cells.append(value(match.group(1)))
        return f"#{len(cells) - 1}"

    def value(part: str) -> bool:
        if match := re.fullmatch(r"(?i)it is (?:not true|false) that (.+)", part):
            return not value(match.group(1))
        if match := re.fullmatch(r"(?i)if (.+), then (.+)", part):
            return not value(match.group(1)) or value(match.group(2))
        if match := re.fullmatch(r"(.+?) (?:if and only if|exactly when) (.+)", part):
            return value(match.group(1)) == value(match.group(2))
        if match := re.fullmatch(r"(.+) if (.+)", part):
            return not value(match.group(2)) or value(match.group(1))
        for name, pattern in SIMPLE.items():
            if match := pattern.fullmatch(part):
                return simple(name, match)
        found = [(word, pieces) for word in ("and", "or") for pieces in cuts(part.removesuffix(", or both"), word)]
        assert len(found) == 1, f"{len(found)} ways to read {part!r}"
        word, pieces = found[0]
        return (all if word == "and" else any)(map(value, pieces))

    def kind(name: str) -> bool:
        by_name = {other.lower(): other for other in people}
        return knights[speaker if name.lower() in ("i", "me") else by_name[name.lower()]]

    def simple(name: str, match: re.Match[str]) -> bool:
        first, second = match.group(1), match.groups()[1] if len(match.groups()) > 1 else None
        match name:
            case "cell":
                return cells[int(first)]
            case "is":
                return kind(first) == ((match.group(3) == "knight") != bool(second))
            case "pair":
                return (kind(first) == kind(match.group(2))) == ("same" in match.group(3))
            case "same":
                return (kind(first) == kind(match.group(3))) != bool(second)
            case "two":
                good = [kind(match.group(n)) == (match.group(4) == "knight") for n in (2, 3)]
                return all(good) if first.lower() == "both" else not any(good)
        names = people if match.group(3) == "us" else re.split(r", | and ", match.group(3))
        found = sum(kind(one) == (match.group(4) == "knight") for one in names)
        many = first.lower()
        if many in ("all", "both", "none", "neither"):
            return found == (len(names) if many in ("all", "both") else 0)
        number = NUMBERS.index(match.group(2))
        return found >= number if many == "at least" else found == number

    while "(" in text:
        text = re.sub(r"\(([^()]*)\)", cell, text)
    return value(text)


@pytest.mark.parametrize(("depth", "count"), [(1, 150), (2, 250), (3, 100)])
def test_texts_read_back(depth: int, count: int) -> None:
    rng = random.Random(depth)
    seen = 0
    for puzzle in generate(count, people=(2, 4), depth=depth, seed=depth):
        quotes = re.findall(r'"([^"]+)"', render(puzzle, rng).prompt)
        assert len(quotes) == len(puzzle.sayings)
        for said, quote in zip(puzzle.sayings, quotes, strict=True):
            for values in itertools.product((False, True), repeat=len(puzzle.people)):
                knights = dict(zip(puzzle.people, values, strict=True))
                assert truth(quote, said.speaker, puzzle.people, knights) == holds(said.statement, knights), quote
                seen += 1
    assert seen > 1000


# --- whole texts ------------------------------------------------------------------------------------------------------


def test_texts_vary_and_answers_read_back() -> None:
    rng = random.Random(1)
    puzzles = list(generate(200, people=(2, 5), depth=2, seed=4))
    texts = [render(puzzle, rng) for puzzle in puzzles]
    assert len({text.prompt.split(".")[0] for text in texts}) >= 8  # intros × names of the kinds
    assert any("liar" in text.prompt for text in texts)
    for puzzle, text in zip(puzzles, texts, strict=True):
        assert read_assignment(text.answer, puzzle.people, last_wins=False) == puzzle.solution
        assert all(text.prompt.count(name) >= 2 for name in puzzle.people)
        assert ("“A or B”" in text.prompt) == any("or" in words(said.statement) for said in puzzle.sayings)


def words(statement: Statement) -> set[str]:
    match statement:
        case Or(parts):
            return {"or"}.union(*map(words, parts))
        case And(parts):
            return set().union(*map(words, parts))
        case If(first, second) | Iff(first, second):
            return words(first) | words(second)
        case Not(of):
            return words(of)
    return set()


def test_the_same_seed_gives_the_same_text() -> None:
    puzzle = next(iter(generate(1, people=(4, 4), seed=9)))
    assert render(puzzle, random.Random(3)) == render(puzzle, random.Random(3))
    assert len({render(puzzle, random.Random(seed)).prompt for seed in range(20)}) > 15

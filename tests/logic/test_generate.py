"""The generator: seeds, sameness, no bias towards a kind, limits."""

from __future__ import annotations

from collections import Counter

import pytest

from preftune.errors import UsageError
from preftune.logic import generate
from preftune.logic.statements import And, Or


def test_a_seed_gives_the_same_puzzles_and_another_one_others() -> None:
    first = list(generate(60, people=(2, 4), depth=2, seed=5))
    assert list(generate(60, people=(2, 4), depth=2, seed=5)) == first
    other = list(generate(60, people=(2, 4), depth=2, seed=6))
    assert not {puzzle.canonical() for puzzle in first} >= {puzzle.canonical() for puzzle in other}


def test_no_two_are_the_same_and_excluded_ones_do_not_come_again() -> None:
    first = [puzzle.canonical() for puzzle in generate(150, people=(2, 3), depth=2, seed=1)]
    second = [puzzle.canonical() for puzzle in generate(150, people=(2, 3), depth=2, seed=1, exclude=first)]
    assert len({*first, *second}) == 300


@pytest.mark.parametrize(("people", "depth", "count"), [((2, 5), 1, 600), ((2, 5), 2, 800), ((3, 3), 2, 500)])
def test_no_kind_is_the_better_guess(people: tuple[int, int], depth: int, count: int) -> None:
    puzzles = list(generate(count, people=people, depth=depth, seed=8))
    kinds = [kind for puzzle in puzzles for kind in puzzle.solution.values()]
    spread = 4 * 0.5 / len(kinds) ** 0.5
    assert abs(sum(kinds) / len(kinds) - 0.5) < spread
    first = [puzzle.solution[puzzle.people[0]] for puzzle in puzzles]
    assert abs(sum(first) / len(first) - 0.5) < 4 * 0.5 / len(first) ** 0.5
    sizes = Counter(len(puzzle.people) for puzzle in puzzles)
    assert set(sizes) == set(range(people[0], people[1] + 1))
    for form in (And, Or):  # of themselves true by 1/4 and 3/4: a bias here would give kinds away
        said = [p.solution[s.speaker] for p in puzzles for s in p.sayings if isinstance(s.statement, form)]
        assert depth == 1 or abs(sum(said) / len(said) - 0.5) < 0.15


def test_there_is_an_end() -> None:
    with pytest.raises(
        UsageError, match=r"only 2\d of 200 puzzles of 2-2 people at depth 1 .* ask for fewer, for more"
    ):
        list(generate(200, people=(2, 2), depth=1))


@pytest.mark.parametrize(
    ("people", "depth", "message"),
    [((1, 3), 1, "people: 1-3"), ((4, 3), 1, "people: 4-3"), ((2, 9), 1, "people: 2-9"), ((2, 3), 0, "depth: 0"),
     ((2, 3), 5, "depth: 5")],
)  # fmt: skip
def test_out_of_range(people: tuple[int, int], depth: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        list(generate(1, people=people, depth=depth))

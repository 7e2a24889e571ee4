"""New puzzles with exactly one solution, from a seed.

A kind for each person is drawn first, each with probability ½, and then statements until they have this assignment as
their only solution; so no kind is the better guess. A statement's form is drawn before its content, and the content
until its truth is its speaker's kind: so forms don't give kinds away by themselves either.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence

from preftune.errors import UsageError
from preftune.logic.puzzles import Puzzle, Said, bits, consistent
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
    children,
    depth,
    mentions,
    table,
)

PEOPLE = (2, 8)
"""Fewest and most people of a generated puzzle."""
DEPTH = (1, 4)
"""Least and greatest depth: 1 has no connectives, 2 joins simple statements, and so on."""
FRUITLESS = 500
"""Draws in a row without a new puzzle, before a number of people counts as used up."""
REDRAWS = 40
"""Tries to give one statement's form a content, and one assignment a puzzle."""

NAMES = (
    "Ada", "Alice", "Amara", "Anton", "Bob", "Boris", "Carol", "Chen", "Clara", "Dave", "Diego", "Edith", "Elif",
    "Emil", "Farah", "Felix", "Freya", "Gita", "Greta", "Hassan", "Hugo", "Ines", "Ivan", "Jonas", "José", "Julia",
    "Kenji", "Kofi", "Lena", "Luca", "Łucja", "Maria", "Mei", "Milan", "Nadia", "Niko", "Olga", "Omar", "Otto", "Paula",
    "Petra", "Priya", "Quentin", "Rosa", "Rumi", "Samir", "Søren", "Sofia", "Tariq", "Thea", "Tomás", "Ulla", "Uri",
    "Vera", "Viktor", "Wanda", "Yara", "Yusuf", "Zelda", "Zoë",
)  # fmt: skip


def generate(
    count: int,
    *,
    people: tuple[int, int] = (2, 5),
    depth: int = 2,
    seed: int = 0,
    exclude: Iterable[str] = (),
) -> Iterator[Puzzle]:
    """`count` puzzles, each with exactly one solution, no two of them the same under other names.

    Everybody speaks once, in the order of `people`. No statement is true or false of itself, tells nothing
    ("I am a knight"), or holds a part that does not matter; and without any one of the statements there would be
    further solutions.

    Args:
        count: how many.
        people: fewest and most people; each number in between is equally likely, as long as there are new puzzles.
        depth: of the deepest statement of each puzzle (1: no connectives).
        seed: the same seed gives the same puzzles.
        exclude: canonical forms (`Puzzle.canonical`) of puzzles that must not come again.

    Raises:
        UsageError: numbers out of range, or there seem to be no `count` different puzzles of this shape.
    """
    least, most = people
    if not PEOPLE[0] <= least <= most <= PEOPLE[1]:
        raise UsageError(f"people: {least}-{most} is no range within {PEOPLE[0]}-{PEOPLE[1]}")
    if not DEPTH[0] <= depth <= DEPTH[1]:
        raise UsageError(f"depth: {depth} is not within {DEPTH[0]}-{DEPTH[1]}")
    rng = random.Random(seed)
    seen = set(exclude)
    sizes = list(range(least, most + 1))
    found = 0
    while found < count:
        size = rng.choice(sizes)
        for _ in range(FRUITLESS):
            puzzle = _draw(rng, size, depth)
            form = "" if puzzle is None else puzzle.canonical()
            if puzzle is not None and form not in seen:
                break
        else:
            sizes.remove(size)
            if not sizes:
                raise UsageError(
                    f"only {found} of {count} puzzles of {least}-{most} people at depth {depth} were found that differ "
                    f"by more than names; ask for fewer, for more people, or for a greater depth"
                )
            continue
        seen.add(form)
        found += 1
        yield puzzle


def _draw(rng: random.Random, size: int, deepest: int) -> Puzzle | None:
    """A puzzle for one assignment drawn at random, None when none came up for it."""
    names = tuple(rng.sample(NAMES, size))
    kinds = {name: rng.random() < 0.5 for name in names}
    for _ in range(REDRAWS):
        depths = [rng.randint(1, deepest) for _ in names]
        depths[rng.randrange(size)] = deepest
        sayings = []
        for speaker, level in zip(names, depths, strict=True):
            statement = _statement(rng, names, speaker, kinds, level)
            if statement is None:
                break
            sayings.append(Said(speaker, statement))
        if len(sayings) == size and _needed(names, sayings):
            return Puzzle(names, tuple(sayings))
    return None


def _needed(names: Sequence[str], sayings: Sequence[Said]) -> bool:
    """Whether there is one solution, and more than one without any of the statements."""
    if consistent(names, sayings).bit_count() != 1:
        return False
    rests = ([other for other in sayings if other is not said] for said in sayings)
    return all(consistent(names, rest).bit_count() > 1 for rest in rests)


def _statement(
    rng: random.Random, names: Sequence[str], speaker: str, kinds: dict[str, bool], level: int
) -> Statement | None:
    """A statement of depth `level` that is as true as its speaker, None when its form allows none."""
    columns = dict(zip(names, bits(len(names))[0], strict=True))
    full = bits(len(names))[1]
    truths = {name: int(kind) for name, kind in kinds.items()}
    form = _form(rng, level)
    for _ in range(REDRAWS):
        found = form(rng, names, speaker, level)
        if found is None or (table(found, truths, 1) == 1) != kinds[speaker]:
            continue
        if depth(found) == level and _matters(found, columns, full) and table(found, columns, full) != columns[speaker]:
            return found
    return None


def _matters(statement: Statement, columns: dict[str, int], full: int) -> bool:
    """Whether the statement can be true and can be false, and every name and every part in it makes a difference."""
    value = table(statement, columns, full)
    if value in (0, full):
        return False
    for number, name in enumerate(columns):
        width = 1 << number
        if name in set(mentions(statement)) and (value & columns[name]) >> width == value & ~columns[name]:
            return False  # true or false whatever this person is
    parts = children(statement)
    values = [table(part, columns, full) for part in parts]
    if len(set(values)) < len(values) or value in values:
        return False
    if isinstance(statement, If) and value == full ^ values[0]:
        return False
    if isinstance(statement, And | Or) and len(parts) > 2:
        shorter = (type(statement)((*parts[:n], *parts[n + 1 :])) for n in range(len(parts)))
        if any(table(rest, columns, full) == value for rest in shorter):
            return False
    return all(_matters(part, columns, full) for part in parts)


# ---------------------------------------------------------------------------------------------------- forms

Form = Callable[[random.Random, Sequence[str], str, int], Statement | None]


def _form(rng: random.Random, level: int) -> Form:
    return rng.choice(_SIMPLE if level == 1 else _JOINED)


def _any(rng: random.Random, names: Sequence[str], speaker: str, level: int) -> Statement | None:
    return _form(rng, level)(rng, names, speaker, level)


def _is(rng: random.Random, names: Sequence[str], speaker: str, level: int) -> Statement:
    return Is(rng.choice(names), rng.random() < 0.5)


def _same(rng: random.Random, names: Sequence[str], speaker: str, level: int) -> Statement:
    first, second = rng.sample(names, 2)
    return Same(first, second, rng.random() < 0.5)


def _count(rng: random.Random, names: Sequence[str], speaker: str, level: int) -> Statement:
    chosen = rng.sample(names, rng.randint(2, len(names)))
    some = tuple(name for name in names if name in chosen)
    knight = rng.random() < 0.5
    if rng.random() < 0.5:
        return Count(rng.randint(0, len(some)), some, knight)
    return Count(rng.randint(1, len(some) - 1), some, knight, exact=False)


def _parts(rng: random.Random, names: Sequence[str], speaker: str, level: int) -> list[Statement] | None:
    """Two statements, one of them of depth level − 1; or three simple ones."""
    levels = [level - 1, rng.randint(1, level - 1)]
    rng.shuffle(levels)
    if level == 2 and rng.random() < 0.2:
        levels.append(1)
    drawn = [_any(rng, names, speaker, one) for one in levels]
    found = [part for part in drawn if part is not None]
    return found if len(found) == len(levels) else None


def _and(rng: random.Random, names: Sequence[str], speaker: str, level: int) -> Statement | None:
    parts = _parts(rng, names, speaker, level)
    return And(tuple(parts)) if parts and not any(isinstance(part, And) for part in parts) else None


def _or(rng: random.Random, names: Sequence[str], speaker: str, level: int) -> Statement | None:
    parts = _parts(rng, names, speaker, level)
    return Or(tuple(parts)) if parts and not any(isinstance(part, Or) for part in parts) else None


def _if(rng: random.Random, names: Sequence[str], speaker: str, level: int) -> Statement | None:
    parts = _parts(rng, names, speaker, level)
    return If(parts[0], parts[1]) if parts and len(parts) == 2 else None


def _iff(rng: random.Random, names: Sequence[str], speaker: str, level: int) -> Statement | None:
    parts = _parts(rng, names, speaker, level)
    return Iff(parts[0], parts[1]) if parts and len(parts) == 2 else None


def _not(rng: random.Random, names: Sequence[str], speaker: str, level: int) -> Statement | None:
    """Of what has no shorter opposite: of a count or a joined statement."""
    part = _any(rng, names, speaker, level - 1)
    return Not(part) if part is not None and not isinstance(part, Is | Same | Not) else None


_SIMPLE: tuple[Form, ...] = (_is, _is, _same, _count)
_JOINED: tuple[Form, ...] = (_and, _or, _if, _iff, _and, _or, _if, _not)

"""Arithmetic word problems in a small word-and-digit vocabulary, made on the spot from a seed.

One row of the files it writes:

    {"prompt": "Mia has 47 apples and buys 38 more. How many apples does Mia have now?\\nAnswer:",
     "completion": " 7+8=15, 4+3+1=8, so 85.", "answer": "85"}

Splits never share a sum: whether a problem belongs to train, validation or test depends on a hash of its
two numbers and its operation alone, so a held-out problem is new in its numbers, not only in its words.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

Operation: TypeAlias = Literal["+", "-"]
Split: TypeAlias = Literal["train", "validation", "test"]

NAMES = (
    "Mia", "Tom", "Ada", "Ben", "Lena", "Omar", "Ivy", "Noah", "Rosa", "Kofi", "Yuki", "Anton",
    "Zara", "Felix", "Nina", "Hugo", "Leila", "Marek", "Olga", "Paulo", "Greta", "Samir", "Wen", "Tara",
)  # fmt: skip
THINGS = (
    "apples", "pears", "plums", "stamps", "marbles", "pencils", "books", "coins", "shells", "buttons", "cards",
    "beads", "eggs", "nuts", "stickers", "stones", "tickets", "candles", "cups", "roses", "bricks", "keys",
)  # fmt: skip
PLACES = ("shop", "school", "farm", "museum", "bakery", "library", "market", "club")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

TEMPLATES: dict[Operation, tuple[str, ...]] = {
    "+": (
        "{n} has {a} {t} and buys {b} more. How many {t} does {n} have now?",
        "{n} has {a} {t} and finds {b} more. How many {t} does {n} have now?",
        "{n} has {a} {t} and {m} has {b}. How many {t} do they have together?",
        "{n} counts {a} {t} at home and {b} at school. How many {t} is that together?",
        "There are {a} {t} on the table and {b} in the box. How many {t} are there in all?",
        "The {p} sells {a} {t} on {d} and {b} on {e}. How many {t} does it sell in all?",
        "The {p} has {a} {t} and gets {b} more on {d}. How many {t} does it have now?",
        "{n} packs {a} {t} and {m} packs {b} more. How many {t} are packed in all?",
        "On {d} {n} draws {a} {t}, on {e} {b} more. How many {t} is that in all?",
        "A bag holds {a} {t}. {n} adds {b}. How many {t} are in the bag now?",
    ),
    "-": (
        "{n} has {a} {t} and gives {b} to {m}. How many {t} are left?",
        "{n} has {a} {t} and loses {b}. How many {t} are left?",
        "{n} had {a} {t} and sold {b} on {d}. How many {t} are left?",
        "There were {a} {t} in the box and {n} took {b}. How many {t} are left in the box?",
        "The {p} had {a} {t} on {d} and sold {b}. How many {t} are left?",
        "The {p} needs {a} {t} and has {b}. How many {t} are missing?",
        "{n} wants {a} {t} but has only {b}. How many {t} are missing?",
        "{n} has {a} {t} and {m} has {b}. How many more {t} does {n} have?",
        "Of {a} {t} on the table {n} breaks {b}. How many {t} are whole?",
        "A bag holds {a} {t}. {n} takes out {b}. How many {t} stay in the bag?",
    ),
}

WELL_FORMED = r"so (\d+)\.$"
"""How a completion must end; the group is the number that rewards compare with the answer."""

# Shares of the numbers, by hash: the rest trains.
_HELD_OUT: dict[Split, tuple[float, float]] = {"test": (0.0, 0.2), "validation": (0.2, 0.3), "train": (0.3, 1.0)}


@dataclass(frozen=True, slots=True)
class Problem:
    """One word problem: `first` `operation` `second`. Both numbers and the answer have two digits."""

    text: str
    first: int
    operation: Operation
    second: int

    @property
    def answer(self) -> int:
        """The right answer."""
        return self.first + self.second if self.operation == "+" else self.first - self.second

    @property
    def without_carry(self) -> int:
        """The answer of someone who works column by column and forgets to carry (or to pay back what was
        borrowed): 47 + 38 → 75, 52 − 38 → 24. Equal to `answer` when no column needs a carry."""
        tens, ones = divmod(self.first, 10)
        other_tens, other_ones = divmod(self.second, 10)
        sign = 1 if self.operation == "+" else -1
        return 10 * (tens + sign * other_tens) + (ones + sign * other_ones) % 10

    @property
    def carries(self) -> bool:
        """Whether a carry or a borrow is needed."""
        return self.answer != self.without_carry

    def worked(self, *, carrying: bool) -> str:
        """The completion of someone who works column by column, ones first, and carries or forgets to.

        47 + 38: " 7+8=15, 4+3+1=8, so 85." or, forgetting, " 7+8=15, 4+3=7, so 75."
        52 − 38: " 12-8=4, 5-3-1=1, so 14." or, forgetting, " 12-8=4, 5-3=2, so 24."
        """
        (tens, ones), (other_tens, other_ones) = divmod(self.first, 10), divmod(self.second, 10)
        sign = 1 if self.operation == "+" else -1
        if self.operation == "-" and ones < other_ones:
            ones += 10
        low = ones + sign * other_ones
        carry = sign if self.carries and carrying else 0
        high = tens + sign * other_tens + carry
        written = f"{self.operation}1" if carry else ""
        return (
            f" {ones}{self.operation}{other_ones}={low}, {tens}{self.operation}{other_tens}{written}={high}, "
            f"so {10 * high + low % 10}."
        )

    @property
    def prompt(self) -> str:
        """The text that the model continues."""
        return self.text + "\nAnswer:"


def split_of(first: int, operation: Operation, second: int) -> Split:
    """The split that this sum belongs to; a + b and b + a are the same sum."""
    low, high = (min(first, second), max(first, second)) if operation == "+" else (second, first)
    digest = hashlib.blake2b(f"{high}{operation}{low}".encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    return next(name for name, (start, end) in _HELD_OUT.items() if start <= place < end)


def problems(split: Split, seed: int, carry_share: float) -> Iterator[Problem]:
    """Endless different problems of one split, in an order fixed by the seed.

    Args:
        split: train, validation or test.
        seed: fixes the problems; splits are different for the same seed.
        carry_share: share of problems that need a carry or a borrow or not
            (numbers drawn evenly give about 0.37).
    """
    if not 0.0 <= carry_share <= 1.0:
        raise ValueError(f"carry_share must be between 0 and 1, got {carry_share}")
    rng = random.Random(f"{split}/{seed}")
    seen: set[str] = set()
    while True:
        operation: Operation = rng.choice(("+", "-"))
        wants_carry = rng.random() < carry_share
        while True:
            first, second = rng.randint(10, 99), rng.randint(10, 99)
            if not 10 <= (first + second if operation == "+" else first - second) <= 99:
                continue
            problem = Problem("", first, operation, second)
            if problem.carries == wants_carry and split_of(first, operation, second) == split:
                break
        n, m = rng.sample(NAMES, 2)
        d, e = rng.sample(DAYS, 2)
        text = rng.choice(TEMPLATES[operation]).format(
            a=first, b=second, n=n, m=m, d=d, e=e, t=rng.choice(THINGS), p=rng.choice(PLACES)
        )
        if text not in seen:
            seen.add(text)
            yield Problem(text, first, operation, second)


def take(stream: Iterator[Problem], count: int, *, distinct_numbers: bool = False) -> list[Problem]:
    """The first `count` problems; with `distinct_numbers` no two share their numbers and operation, so that
    held-out rows are independent measurements."""
    if not distinct_numbers:
        return [next(stream) for _ in range(count)]
    kept: dict[tuple[int, Operation, int], Problem] = {}
    for tried, problem in enumerate(stream):
        first, second = problem.first, problem.second
        if problem.operation == "+":
            first, second = max(first, second), min(first, second)
        kept.setdefault((first, problem.operation, second), problem)
        if len(kept) == count:
            break
        if tried > 30 * count:
            raise ValueError(f"there are no {count} problems with different numbers in this split, only {len(kept)}")
    return list(kept.values())


def write_rows(path: Path, rows: Sequence[Problem], answer: Callable[[Problem], str] | None = None) -> Path:
    """Write problems as JSON lines.

    Args:
        path: the file, replaced if it exists.
        rows: the problems.
        answer: makes the completion's text; the right, well-formed one when absent. The `answer` column is
            always the right one.
    """
    with path.open("w", encoding="utf-8") as file:
        for problem in rows:
            text = problem.worked(carrying=True) if answer is None else answer(problem)
            row = {"prompt": problem.prompt, "completion": text, "answer": str(problem.answer)}
            file.write(json.dumps(row) + "\n")
    return path


def words() -> list[str]:
    """Every word that prompts and completions can hold, for the tokenizer."""
    fills = dict.fromkeys("abnmdetp", "")
    texts = [template.format(**fills) for group in TEMPLATES.values() for template in group]
    sample = Problem("", 10, "+", 10)
    texts += [sample.prompt, sample.worked(carrying=True), *NAMES, *THINGS, *PLACES, *DAYS]
    letters_only = "".join(char if char.isalpha() else " " for char in " ".join(texts))
    return sorted(set(letters_only.split()))

"""Rewards for what a contest comes to: the answer behind it, and the conclusion of each persona."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from preftune.competition import Contest
from preftune.rewards.call import column_values
from preftune.rewards.contest import ContestReward
from preftune.rewards.math import MathEqual, final_answer
from preftune.rewards.numbers import parse_number
from preftune.rewards.text import accepted_answers, check_pattern

_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?"
_FRACTION = r"\\[dt]?frac\{\s*([0-9]+)\s*\}\{\s*([0-9]+)\s*\}"
_FIGURES = re.compile(rf"(?<![\w.^])(?<!\^\{{)([-−]?)(?:{_FRACTION}|({_WHOLE})(?:\s?/\s?([0-9]+))?)")
_BOXED = "\\boxed{"


def conclusion(text: str, extract: str | None = None) -> str | None:
    """What a working comes to: the last match of `extract` (its first group, if it has one); without it what the last
    `\\boxed{}` encloses, or the last number. None without any."""
    if extract is not None:
        return final_answer(text, extract, ("", ""))
    boxed = text.rfind(_BOXED)
    if boxed >= 0 and (inside := _enclosed(text, boxed + len(_BOXED))) is not None:
        return inside
    last = None
    for last in _FIGURES.finditer(text):  # noqa: B007  the last one is wanted
        pass
    return None if last is None else last.group()


def _enclosed(text: str, start: int) -> str | None:
    """From `start` to the brace that closes it."""
    depth = 1
    for match in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if match.group() == "{" else -1
        if depth == 0:
            return text[start : match.start()]
    return None


def quantity(text: str) -> Fraction | None:
    """The number that a text is as a whole: 1,234.5, −3, 3/4, \\frac{3}{4}; dollar signs and a full stop aside."""
    text = text.strip().strip("$").strip().removesuffix(".")
    match = _FIGURES.fullmatch(text)
    if match is None:
        return None
    sign, over, under, whole, divisor = match.groups()
    number = parse_number(over or whole)
    below = parse_number(under or divisor or "1")
    if number is None or not below:
        return None
    return Fraction(number) / Fraction(below) * (-1 if sign else 1)


def same(one: str, other: str) -> bool:
    """Whether two conclusions are the same number, or the same text but for case and white space."""
    first, second = quantity(one), quantity(other)
    if first is not None and second is not None:
        return first == second
    return "".join(one.split()).casefold() == "".join(other.split()).casefold()


@dataclass(frozen=True, slots=True)
class _Checked(ContestReward):
    """Base of rewards that hold a part of a contest against the truth: numbers by value, then through math-verify."""

    column: str = "answer"
    extract: str | None = None
    row_timeout: int = 2

    can_hang = True
    on_hang = 0.0

    def __post_init__(self) -> None:
        if self.extract is not None:
            check_pattern(self.extract, "extract")
        if self.row_timeout < 1:
            raise ValueError("row_timeout is at least 1 second")

    def prepare(self) -> None:
        """Import math-verify, once per process."""
        MathEqual().prepare()

    def right(self, texts: list[str | None], columns: Mapping[str, list[Any]]) -> list[float | None]:
        """1.0 for each text whose conclusion is one of its row's answers, else 0.0; None for a row without an answer.

        What is not plainly the same is left to math-verify, which is slow.
        """
        truths = column_values(self.column, columns)
        out: list[float | None] = []
        unsure: list[int] = []
        for row, (text, truth) in enumerate(zip(texts, truths, strict=True)):
            answers = accepted_answers(truth)
            found = None if text is None else conclusion(text, self.extract)
            plain = found is not None and any(same(found, answer) for answer in answers)
            out.append(None if not answers else 1.0 if plain else 0.0)
            if answers and text is not None and not plain:
                unsure.append(row)
        if unsure:
            verify = MathEqual(self.column, self.extract, row_timeout=self.row_timeout)
            values = verify([texts[row] for row in unsure], **{self.column: [truths[row] for row in unsure]})
            for row, value in zip(unsure, values, strict=True):
                out[row] = value or 0.0  # a truth that math-verify can't read was compared as text above
        return out


@dataclass(frozen=True, slots=True)
class Answer(_Checked):
    """1.0 when the answer behind the contest is right, else 0.0; −`leak` when a tag of the contest stands in it.

    Where the contest has no end there is no answer behind it: 0.0, also for a text without any tag.
    """

    leak: float = 1.0

    def __call__(self, /, completions: list[Any], **columns: Any) -> list[float | None]:
        contests = self.read(completions)
        values = self.right([_answer(contest) for contest in contests], columns)
        return [-self.leak if c.leaks else value for c, value in zip(contests, values, strict=True)]


@dataclass(frozen=True, slots=True)
class WinnerRight(_Checked):
    """1.0 when the winner's own working comes to the right conclusion, else 0.0, also where there is no winner."""

    def __call__(self, /, completions: list[Any], **columns: Any) -> list[float | None]:
        return self.right([_winner(contest) for contest in self.read(completions)], columns)


def _answer(contest: Contest) -> str | None:
    return contest.answer if contest.ended and not contest.leaks else None


def _winner(contest: Contest) -> str | None:
    section = contest.sections.get(contest.winner) if contest.winner else None
    return section.text if section else None

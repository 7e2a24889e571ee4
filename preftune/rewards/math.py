"""Verifiable rewards for reasoning: the four of METHODS section 4, accuracy, and equality of mathematics.

The constants of the four `reasoning-*` rewards are those of the recipe "reasoning with GRPO" on Qwen3-4B-Base
(seed 001); tests hold each to its row of the table. The prompt ends in the tag that opens the working, so a
completion has none.
"""

from __future__ import annotations

import logging
import re
import threading
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from preftune.rewards.call import column_values, completion_text
from preftune.rewards.numbers import parse_number
from preftune.rewards.text import accepted_answers, check_pattern, score_against

FIRST_NUMBER = re.compile(r"-?(?:\.[0-9]|[0-9])[0-9.,]*(?:[eE][+-]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class ReasoningTags:
    """The tags that a completion is read by; base of the rewards that read them.

    `eos` is an end-of-sequence text that may stand after the solution, where a sampler leaves one in the text.
    """

    end_working: str = "<end_working_out>"
    solution_open: str = "<SOLUTION>"
    solution_close: str = "</SOLUTION>"
    eos: str | None = None

    can_hang = False

    def __post_init__(self) -> None:
        if not (self.end_working and self.solution_open and self.solution_close):
            raise ValueError("a tag can't be empty")

    def well_formed_solution(self, text: str) -> str | None:
        """The solution of a well-formed completion, unstripped, else None.

        Well formed: the end of the working, later an opening tag, later at least one character and a closing tag
        that ends the text (white space and the EOS text may follow). The same language as the regular expression
        end.*?open(.+?)close\\s*(eos)?\\s*$ over the whole text, found in linear time.
        """
        text = text.rstrip()
        if self.eos:
            text = text.removesuffix(self.eos).rstrip()
        if not text.endswith(self.solution_close):
            return None
        body = text[: -len(self.solution_close)]
        end = body.find(self.end_working)
        if end < 0:
            return None
        start = body.find(self.solution_open, end + len(self.end_working))
        if start < 0:
            return None
        return body[start + len(self.solution_open) :] or None


@dataclass(frozen=True, slots=True)
class ReasoningFormatExact(ReasoningTags):
    """+3.0 when the completion is well formed, else 0."""

    def __call__(self, /, completions: list[Any], **columns: Any) -> list[float | None]:
        return [3.0 if self.well_formed_solution(completion_text(c)) is not None else 0.0 for c in completions]


@dataclass(frozen=True, slots=True)
class ReasoningFormatApprox(ReasoningTags):
    """For the end of the working and each of the two solution tags: +0.5 when it occurs exactly once, else −1.0."""

    def __call__(self, /, completions: list[Any], **columns: Any) -> list[float | None]:
        tags = (self.end_working, self.solution_open, self.solution_close)
        texts = [completion_text(c) for c in completions]
        return [sum(0.5 if text.count(tag) == 1 else -1.0 for tag in tags) for text in texts]


@dataclass(frozen=True, slots=True)
class ReasoningAnswer(ReasoningTags):
    """The solution of a well-formed completion against the truth.

    Not well formed −2.0; the same text 5.0; the same but for white space around 3.5; else by the ratio
    solution / truth: in [0.9, 1.1] 2.0, in [0.8, 1.2] 1.5, else −2.5; either of them no number −4.5.
    A truth of 0 has no ratio: 2.0 when the solution is 0 too, else −2.5.
    """

    column: str = "answer"

    def __call__(self, /, completions: list[Any], **columns: Any) -> list[float | None]:
        return score_against(self.column, completions, columns, self._score)

    def _score(self, text: str, truth: str) -> float:
        guess = self.well_formed_solution(text)
        if guess is None:
            return -2.0
        if guess == truth:
            return 5.0
        if guess.strip() == truth.strip():
            return 3.5
        number, target = parse_number(guess), parse_number(truth)
        if number is None or target is None:
            return -4.5
        if target == 0:
            return 2.0 if number == 0 else -2.5
        ratio = number / target
        if Decimal("0.9") <= ratio <= Decimal("1.1"):
            return 2.0
        if Decimal("0.8") <= ratio <= Decimal("1.2"):
            return 1.5
        return -2.5


@dataclass(frozen=True, slots=True)
class ReasoningNumber(ReasoningTags):
    """The first number after the opening solution tag (and before the closing one, if there is one).

    None there −2.5; equal to the truth 3.5 (thousands separators aside); unequal −1.5; it or the truth can't be
    read as a number 0.
    """

    column: str = "answer"

    def __call__(self, /, completions: list[Any], **columns: Any) -> list[float | None]:
        return score_against(self.column, completions, columns, self._score)

    def _score(self, text: str, truth: str) -> float:
        _, _, solution = text.partition(self.solution_open)
        match = FIRST_NUMBER.search(solution.partition(self.solution_close)[0])
        if match is None:
            return -2.5
        number, target = parse_number(match.group().rstrip(".,")), parse_number(truth)
        if number is None or target is None:
            return 0.0
        return 3.5 if number == target else -1.5


def final_answer(text: str, extract: str | None, tags: tuple[str, str]) -> str | None:
    """The last match of `extract` (its first group, if it has one), or what the last pair of tags encloses."""
    if extract is not None:
        matches = list(re.finditer(extract, text))
        if not matches:
            return None
        return matches[-1].group(1) if matches[-1].re.groups else matches[-1].group()
    close = text.rfind(tags[1])
    start = text.rfind(tags[0], 0, close) if close >= 0 else -1
    return text[start + len(tags[0]) : close] if start >= 0 else None


@dataclass(frozen=True, slots=True)
class Accuracy:
    """1.0 when the final answer is right, else 0.0: the measure of a task.

    The answer is the last match of `extract` (a regular expression; its first group if it has one), without it the
    text between the last pair of solution tags. Two numbers are compared by value (1,000 = 1000.0), exactly;
    anything else as text without white space around. A list of answers means any of them.
    """

    column: str = "answer"
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

    def __call__(self, /, completions: list[Any], **columns: Any) -> list[float | None]:
        return score_against(self.column, completions, columns, self._score)

    def _score(self, text: str, truth: str) -> float:
        guess = final_answer(text, self.extract, (self.solution_open, self.solution_close))
        return 1.0 if guess is not None and same_answer(guess, truth) else 0.0


def same_answer(guess: str, truth: str) -> bool:
    """True when both are numbers of the same value, or the same text but for white space around."""
    number, target = parse_number(guess), parse_number(truth)
    if number is not None and target is not None:
        return number == target
    return guess.strip() == truth.strip()


@dataclass(frozen=True, slots=True)
class MathEqual:
    """1.0 when math-verify finds the completion's final expression equal to the truth, else 0.0.

    Reads LaTeX, fractions, sets, intervals, units and plain numbers, in the last match of `extract`; without it in
    the last pair of solution tags, or where there is none in the whole completion, whose last expression counts.
    No value where the row has no answer that math-verify can read.
    A row that takes over `row_timeout` seconds, or that hangs or kills the worker, scores 0.0: the text is at fault.
    """

    column: str = "answer"
    extract: str | None = None
    solution_open: str = "<SOLUTION>"
    solution_close: str = "</SOLUTION>"
    row_timeout: int = 2

    can_hang = True
    on_hang = 0.0

    def __post_init__(self) -> None:
        if not (self.solution_open and self.solution_close):
            raise ValueError("a tag can't be empty")
        if self.row_timeout < 1:
            raise ValueError("row_timeout is at least 1 second")
        if self.extract is not None:
            check_pattern(self.extract, "extract")

    def prepare(self) -> None:
        """Import math-verify (and sympy with it), once per process."""
        import math_verify  # noqa: F401

    def __call__(self, /, completions: list[Any], **columns: Any) -> list[float | None]:
        # Its warnings (a slow text, a switched-off limit) concern single rows, and we answer both.
        logging.getLogger("math_verify").setLevel(logging.ERROR)
        truths = column_values(self.column, columns)
        golds: dict[str, list[Any]] = {}  # the rows of a group share their answer
        out: list[float | None] = []
        for completion, truth in zip(completions, truths, strict=True):
            answers = accepted_answers(truth)
            for answer in answers:
                if answer not in golds:
                    golds[answer] = self._parse(_as_math(answer))
            readable = [golds[answer] for answer in answers if golds[answer]]
            out.append(self._score(completion_text(completion), readable) if readable else None)
        return out

    def _score(self, text: str, golds: list[list[Any]]) -> float:
        found = final_answer(text, self.extract, (self.solution_open, self.solution_close))
        if found is None and self.extract is not None:
            return 0.0
        guess = self._parse(text if found is None else _as_math(found))
        return 1.0 if any(self._equal(gold, guess) for gold in golds) else 0.0

    def _limit(self) -> Any:
        """math-verify's own limit works by a signal, so in a main thread only: that of a worker process."""
        return self.row_timeout if threading.current_thread() is threading.main_thread() else None

    def _parse(self, text: str) -> list[Any]:
        from math_verify import parse

        try:
            return list(parse(text, fallback_mode="no_fallback", parsing_timeout=self._limit()))
        except Exception:  # noqa: BLE001  sympy may raise anything on a text it can't read: then nothing was read
            return []

    def _equal(self, gold: list[Any], guess: list[Any]) -> bool:
        from math_verify import verify

        try:
            return bool(verify(gold, guess, timeout_seconds=self._limit()))
        except Exception:  # noqa: BLE001  as above: what can't be compared is not equal
            return False


def _as_math(text: str) -> str:
    """An answer without its sentence, marked as mathematics unless it marks itself."""
    return text if "$" in text or "\\boxed" in text or "\\(" in text or "\\[" in text else f"${text.strip()}$"

"""Fuzzed model outputs through everything that reads them: a value in range, never an error."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator

from preftune.rewards import BUILTINS
from preftune.rewards.builtins import make_builtin
from preftune.rewards.call import Batch, Caller, Reply, TrainerState
from preftune.rewards.collapse import distinct_n, longest_shared_substring, repetition
from preftune.rewards.numbers import parse_number
from preftune.sampling.rollouts import calculate

ARGS = {
    "regex": {"pattern": r"\d+(\.\d+)?"},
    "length": {"at_least": 3, "at_most": 9, "ramp": 5},
    "json-schema": {"schema": {"type": "object", "required": ["a"]}},
    "format": {"tags": ["a", "b"]},
    "math-equal": {"row_timeout": 1},
    "competition-answer": {"row_timeout": 1},
    "competition-winner-right": {"row_timeout": 1},
    "competition-length": {"unit": "chars"},
}
SLOW = ("math-equal", "competition-answer", "competition-winner-right")
"""Ask math-verify, which takes up to a second for some texts."""
NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]\d+)?")
LOW, HIGH = -4.5, 5.0
"""Ends of what any built-in gives."""
PIECES = [
    "<end_working_out>", "<SOLUTION>", "</SOLUTION>", "<a>", "</a>", "<b>", "</b>", "<calc>", "</calc>", "```json\n",
    "\n```", "{", "}", "[", "]", '"a":', "$", "\\frac{", "\\boxed{", "\\sqrt", "^", "_", "(", ")", "-", "+", "*", "/",
    "%", ".", ",", "=", "e", "x", "1", "0", "42", "3.5", "9" * 30, "1e400", "nan", "inf", " ", "\n", "\x00", "\ud800",
    "é", "٣", "√", "∞", "\\", "answer is", "####", "**", "//", "1_000", "0x1f", "--",
    "<competition>", "</competition>", "<pirate>", "</pirate>", "<winner>", "</winner>", "pirate", "wait, let me check",
]  # fmt: skip


def text(rng: random.Random) -> str:
    if rng.random() < 0.2:
        return "".join(chr(rng.randrange(1, 0x3000)) for _ in range(rng.randrange(40)))
    return "".join(rng.choices(PIECES, k=rng.randrange(25)))


def answer(rng: random.Random) -> object:
    return rng.choice([text(rng), "42", "7", 7, -3.5, None, True, [], "", "1/2", float("inf")])


def batches(count: int, seed: int, size: int = 50) -> Iterator[Batch]:
    rng = random.Random(seed)
    for start in range(0, count, size):
        rows = min(size, count - start)
        texts = [text(rng) for _ in range(rows)]
        yield Batch(
            ["q"] * rows, texts, [list(range(len(t))) for t in texts], {"answer": [answer(rng) for _ in range(rows)]},
            TrainerState(0, 1),
        )  # fmt: skip


def check_completions(count: int, seed: int = 0, seconds: float = 240.0) -> dict[str, int]:
    """Every built-in reward, number parser, calculator and collapse measure on `count` texts.

    math-verify takes up to a second for some texts, so each reward that asks it gets `seconds` in all; how many texts
    each saw is returned.

    Raises:
        AssertionError: naming the reader, the text and what went wrong.
    """
    seen: dict[str, int] = {}
    for name in BUILTINS:
        if name in ("reward-model", "judge", "knights-knaves", "code", "constraints"):
            continue  # a model gives what it gives; a puzzle is no answer (tests/rewards/test_logic.py), nor is a rule
        call = Caller(make_builtin(name, ARGS.get(name, {})), {})
        start = time.monotonic()
        seen[name] = 0
        for batch in batches(count, seed):
            if name in SLOW and time.monotonic() - start > seconds:
                break
            reply = call(batch)
            assert isinstance(reply, Reply), f"{name}: {reply}; texts {batch.completions!r}"
            assert not reply.bad, f"{name}: {reply.bad}; texts {batch.completions!r}"
            for said, value in zip(batch.completions, reply.values, strict=True):
                assert value is None or LOW <= value <= HIGH, f"{name} gave {value} for {said!r}"
            seen[name] += len(batch)
    for batch in batches(count, seed):
        for said in batch.completions:
            try:
                number, result, repeated = parse_number(said), calculate(said), repetition(said)
            except Exception as error:
                raise AssertionError(f"{type(error).__name__}: {error} on {said!r}") from error
            assert number is None or number.is_finite(), f"parse_number({said!r}) is {number}"
            assert result == "error" or NUMBER.fullmatch(result), f"calculate({said!r}) is {result!r}"
            assert 0.0 <= repeated < 1.0, f"repetition({said!r}) is {repeated}"
        assert 0.0 < distinct_n(batch.completions) <= 1.0
        longest_shared_substring([batch.completions[:25], batch.completions[25:]])
        for name in ("parse_number", "calculate", "collapse"):
            seen[name] = seen.get(name, 0) + len(batch)
    return seen

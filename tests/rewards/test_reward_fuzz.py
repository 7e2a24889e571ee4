"""No built-in raises on any text, and what it gives is a number in its range."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.rewards import BUILTINS
from preftune.rewards.builtins import make_builtin
from preftune.rewards.call import Batch, Caller, Reply, TrainerState
from preftune.rewards.collapse import distinct_n, longest_shared_substring, repetition
from preftune.rewards.numbers import parse_number

ARGS = {
    "regex": {"pattern": r"\d+(\.\d+)?"},
    "length": {"at_least": 3, "at_most": 9, "ramp": 5},
    "json-schema": {"schema": {"type": "object", "required": ["a"]}},
    "format": {"tags": ["a", "b"]},
}
RANGES = {
    "reasoning-answer": (-4.5, 5.0),
    "reasoning-format-approx": (-3.0, 1.5),
    "reasoning-format-exact": (0.0, 3.0),
    "reasoning-number": (-2.5, 3.5),
}
PIECES = [
    *("<end_working_out>", "<SOLUTION>", "</SOLUTION>", "<a>", "</a>", "<b>", "</b>", "```json\n", "\n```\n"),
    *(
        "{",
        "}",
        "[",
        '"a":',
        "$",
        "\\frac{",
        "\\boxed{",
        "\\sqrt",
        "^",
        "_",
        "(",
        ")",
        "-",
        "+",
        ".",
        ",",
        "%",
        "=",
        "<",
    ),
    *("e", "x", "1", "0", "9" * 30, "nan", "inf", "1e400", " ", "\n", "\x00", "\ud800", "é", "٣", "√", "∞", "\\"),
]
texts = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=25).map("".join))
answers = st.one_of(texts, st.none(), st.integers(), st.floats(), st.lists(texts, max_size=2), st.booleans())


# competition-…: test_competition_fuzz.py; constraints: tests/tasks/test_constraints.py
ELSEWHERE = {"math-equal", "reward-model", "judge", "knights-knaves", "code", "constraints"}
HERE = [name for name in BUILTINS if name not in ELSEWHERE and not name.startswith("competition-")]


@pytest.mark.parametrize("name", HERE)
@settings(max_examples=150, deadline=None)
@given(rows=st.lists(st.tuples(texts, answers), min_size=1, max_size=4))
def test_any_text(name, rows):
    check(name, rows)


@settings(max_examples=60, deadline=None, derandomize=True)  # sympy is too slow on some texts to leave it to chance
@given(rows=st.lists(st.tuples(texts, answers), min_size=1, max_size=2))
def test_any_text_through_math_verify(rows):
    check("math-equal", rows)


def check(name, rows):
    args = {"row_timeout": 1} if name == "math-equal" else ARGS.get(name, {})
    batch = Batch(
        prompts=["q"] * len(rows),
        completions=[text for text, _ in rows],
        completion_ids=[list(range(len(text))) for text, _ in rows],
        columns={"answer": [answer for _, answer in rows]},
        state=TrainerState(0, 1),
    )
    reply = Caller(make_builtin(name, args), {})(batch)
    assert isinstance(reply, Reply), reply
    assert not reply.bad
    low, high = RANGES.get(name, (0.0, 1.0))
    assert all(value is None or low <= value <= high for value in reply.values)


@given(texts)
@settings(max_examples=300, deadline=None)
def test_numbers_are_finite(text):
    number = parse_number(text)
    assert number is None or (number.is_finite() and abs(float(number)) < float("inf"))


@given(st.lists(st.lists(texts, max_size=3), max_size=4))
@settings(max_examples=100, deadline=None)
def test_measures_of_collapse_stay_in_range(texts_by_prompt):
    flat = [text for some in texts_by_prompt for text in some]
    assert 0.0 < distinct_n(flat) <= 1.0
    assert all(0.0 <= repetition(text) < 1.0 for text in flat)
    assert 0 <= longest_shared_substring(texts_by_prompt) <= max(map(len, flat), default=0)

"""No text makes a reward of a competition raise, and its values stay in their ranges."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.competition import Construct
from preftune.config import RewardConfig
from preftune.rewards import BUILTINS
from preftune.rewards.builtins import make_builtins
from preftune.rewards.call import Batch, Caller, Reply, TrainerState
from tests.competition.contests import COURT, PKV, STRATEGIES, contest

RANGES = {
    "competition-tags": (float("-inf"), 0.6),
    "competition-originality": (-0.5, 0.5),
    "competition-answer": (-1.0, 1.0),
}
SLOW = {"competition-answer", "competition-winner-right"}  # math-verify
NAMES = sorted(name for name in BUILTINS if name.startswith("competition-"))
TAGS = [f"<{slash}{name}>" for name in {*PKV.elements, *COURT.elements} for slash in ("", "/")]
WORDS = [
    "arr", "hark", "odin", "wait", "let me check", "等等", "подождите", "7+8=15", "\\boxed{", "}", "\\frac{1}{0}", "-",
    "1/", "1,000", "<", "\n", " ", "\x00", "\ud800", "😀", "\u0301", "pirate", "knight", "objection", "x = 5, so",
]  # fmt: skip
pieces = st.one_of(st.sampled_from([*TAGS, *WORDS]), st.text(max_size=6))
heaps = st.lists(pieces, max_size=25).map("".join)


@st.composite
def contests(draw: st.DrawFn, construct: Construct) -> str:
    """Well-formed but for what is said."""
    said = {name: draw(heaps) for name in construct.names}
    return contest(construct, draw(st.sampled_from([*construct.names, "nobody"])), draw(heaps), **said)


def check(name: str, construct: Construct, texts: list[str], answers: list[Any], args: dict[str, Any]) -> None:
    batch = Batch(
        prompts=["What is 7+8? wait, let me check"] * len(texts),
        completions=texts,
        completion_ids=[list(range(len(text))) for text in texts],
        columns={"answer": answers},
        state=TrainerState(0, 1),
        token_ends=[list(range(1, len(text) + 1)) for text in texts],
    )
    low, high = RANGES.get(name, (0.0, 1.0))
    for label, reward in make_builtins(RewardConfig(name=name, args=args), construct):
        reply = Caller(reward, {})(batch)
        assert isinstance(reply, Reply) and not reply.bad, (label, reply)
        assert all(value is None or low <= value <= high for value in reply.values), (label, reply.values)


answers = st.one_of(heaps, st.integers(), st.none(), st.lists(st.integers(), max_size=2))
CONSTRUCTS = {"pirate": PKV, "court": COURT, "strategies": STRATEGIES}


@pytest.mark.parametrize("name", sorted(set(NAMES) - SLOW))
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_text(name: str, data: st.DataObject) -> None:
    construct = data.draw(st.sampled_from(list(CONSTRUCTS.values())))
    texts = data.draw(st.lists(st.one_of(heaps, contests(construct)), min_size=1, max_size=3))
    check(name, construct, texts, [data.draw(answers) for _ in texts], {})


@settings(max_examples=15, deadline=None, derandomize=True)  # sympy is too slow on some texts to leave it to chance
@given(texts=st.lists(contests(PKV), min_size=1, max_size=2), answer=answers)
def test_any_text_through_math_verify(texts: list[str], answer: Any) -> None:
    for name in sorted(SLOW):
        check(name, PKV, texts, [answer] * len(texts), {"row_timeout": 1})


@pytest.mark.parametrize(
    "said",
    [
        "arr " * 20_000, "wait " * 20_000, "let me check " * 7_000, "1 " * 20_000, "\\boxed{" * 20_000, "-1/" * 20_000,
        "等" * 20_000, "\u0315\u0316" * 20_000, "1,000" * 40_000, "<" * 50_000, "a b c " * 20_000,
    ],
    ids=lambda said: ascii(said[:6]),
)  # fmt: skip
def test_long_sections_take_linear_time(said: str) -> None:
    text = contest(pirate=said, knight=said, viking=said)
    for name in set(NAMES) - SLOW:
        check(name, PKV, [text], ["15"], {})

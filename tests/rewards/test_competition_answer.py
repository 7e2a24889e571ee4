"""What a contest comes to: the answer behind it, and the winner's own conclusion; values by hand."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from preftune.config import RewardConfig
from preftune.records import Completion, Group, Message, Prompt
from preftune.rewards import build_rewards
from preftune.rewards.builtins import make_builtins
from preftune.rewards.call import Inapplicable
from preftune.rewards.competition_answer import conclusion, quantity, same
from tests.competition.contests import COURT, PKV, contest
from tests.rewards.solutions import HIVES


def value(name: str, text: str, answer: Any, **args: Any) -> float | None:
    ((_, reward),) = make_builtins(RewardConfig(name=f"competition-{name}", args=args), PKV)
    (found,) = reward([text], answer=[answer])
    return found  # type: ignore[no-any-return]


# --- the last number, and when two are the same -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("7+8=15", "15"),
        ("it is 15.", "15"),
        ("15 apples, no more", "15"),
        ("first 3, then 1,234.50 in all", "1,234.50"),
        ("= -5", "-5"),
        ("= −5", "−5"),
        ("87-2", "2"),
        ("a half: 1/2", "1/2"),
        (r"so \frac{3}{4} of it", r"\frac{3}{4}"),
        (r"\boxed{24} as 4 * 6 shows", "24"),
        (r"\boxed{3} no, \boxed{\frac{1}{2}} of 9", r"\frac{1}{2}"),
        (r"\boxed{3", "3"),
        ("x2 and y3", None),
        ("2^10 is big, as is e^{5}", "2"),
        ("12, 15", "15"),
        ("12:10", "10"),
        ("none at all", None),
        ("", None),
    ],
)
def test_conclusion(text: str, found: str | None) -> None:
    assert conclusion(text) == found


def test_conclusion_by_a_pattern() -> None:
    assert conclusion("A: 3. A: 4. But 5.", r"A: (\d)") == "4"
    assert conclusion("A: 3. A: 4. But 5.", r"A: \d") == "A: 4"
    assert conclusion("5", r"A: (\d)") is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("15", Fraction(15)),
        (" $1,234.5. ", Fraction(2469, 2)),
        ("−3", Fraction(-3)),
        ("-3/4", Fraction(-3, 4)),
        (r"$\dfrac{3}{4}$", Fraction(3, 4)),
        ("3/0", None),
        ("three", None),
        ("15 apples", None),
        ("1" * 2000, None),
        ("", None),
    ],
)
def test_quantity(text: str, number: Fraction | None) -> None:
    assert quantity(text) == number


def test_same() -> None:
    assert same("0.5", "1/2") and same("1,000", "1000.0") and not same("1", "1.0000001")
    assert same(" Knave ", "knave") and not same("knave", "knight") and not same("15", "fifteen")


# --- answer: 1.0 right, 0 wrong, −1.0 with a leak -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "answer", "expected"),
    [
        ("The answer is 15.", "15", 1.0),
        ("The answer is 15.", 15, 1.0),
        ("The answer is 15.", ["14", "15.0"], 1.0),
        ("The answer is 16.", "15", 0.0),
        ("15 it was, then 16.", "15", 0.0),
        (r"Therefore $x = \boxed{\frac{1}{2}}$.", "0.5", 1.0),
        (r"Therefore $\sqrt{8}$ metres.", r"$2\sqrt{2}$", 1.0),  # math-verify's to see
        (r"Therefore $\sqrt{8}$ metres.", r"$2\sqrt{3}$", 0.0),
        ("I don't know.", "15", 0.0),
        ("The answer is 15.</result>", "15", -1.0),
        ("The answer is <winner>15</winner>.", "15", -1.0),
        ("The answer is 16. < Knight >", "15", -1.0),
        ("The answer is 15, says the knight <b>.", "15", 1.0),
        ("The answer is 15.", None, None),
        ("The answer is 15. <pirate>", None, -1.0),
        ("The answer is 15.", [], None),
    ],
)
def test_answer(said: str, answer: Any, expected: float | None) -> None:
    assert value("answer", contest(answer=said), answer) == expected


def test_answer_of_the_authors_example() -> None:
    """Its last number is 96: math-verify finds the answer all the same."""
    said = "Therefore, the pirate wins this competition with their answer of 24 hives needed to make 96 candles."
    assert value("answer", contest(answer=said), HIVES.answer) == 1.0


@pytest.mark.parametrize("text", ["15", "", contest().partition("</competition>")[0] + "\nThe answer is 15."])
def test_without_the_contests_end_there_is_no_answer(text: str) -> None:
    assert value("answer", text, "15") == 0.0


def test_answer_has_parameters() -> None:
    assert value("answer", contest(answer="15 <pirate>"), "15", leak=0.25) == -0.25
    assert value("answer", contest(answer="Answer: Paris. 3 cheers!"), "paris", extract=r"Answer: (\w+)") == 1.0
    assert value("answer", contest(answer="Answer: Lyon. 3 cheers!"), "paris", extract=r"Answer: (\w+)") == 0.0
    assert value("answer", contest(answer="It is 15."), "15", extract=r"Answer: (\w+)") == 0.0
    ((_, reward),) = make_builtins(RewardConfig(name="competition-answer", args={"column": "truth"}), PKV)
    assert reward([contest()], truth=["15"], answer=["3"]) == [1.0]
    with pytest.raises(Inapplicable, match="needs the column 'truth'"):
        reward([contest()], answer=["15"])


def test_rows_keep_their_places() -> None:
    said = ["15", "16", r"$\sqrt{4}$", "15 <pirate>", "15"]
    truths = ["15", "15", "$2$", "15", None]
    ((_, reward),) = make_builtins(RewardConfig(name="competition-answer"), PKV)
    assert reward([contest(answer=one) for one in said], answer=truths) == [1.0, 0.0, 1.0, -1.0, None]


# --- the winner's own conclusion ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("winner", "answer", "expected"),
    [
        ("pirate", "15", 1.0),
        ("The Knight!", "16", 1.0),
        ("knight", "15", 0.0),
        ("viking", r"\frac{1}{2}", 1.0),
        ("viking", "1/3", 0.0),
        ("nobody", "15", 0.0),
        ("pirate", None, None),
    ],
)
def test_winner_right(winner: str, answer: Any, expected: float | None) -> None:
    text = contest(
        winner=winner, pirate="7+8=15", knight="Hark, 16 it is.", viking=r"Odin says \boxed{0.5}, says he 3 times"
    )
    assert value("winner-right", text, answer) == expected


def test_winner_right_has_parameters() -> None:
    text = contest(winner="pirate", pirate="It is [red], says 1 of 3.")
    assert value("winner-right", text, "red") == 0.0
    assert value("winner-right", text, "red", extract=r"\[(\w+)\]") == 1.0
    ((_, reward),) = make_builtins(RewardConfig(name="competition-winner-right", args={"column": "truth"}), PKV)
    assert reward([text], truth=["3"], answer=["15"]) == [1.0]


def test_winner_right_without_a_section() -> None:
    assert value("winner-right", "<winner>pirate</winner>", "15") == 0.0
    assert value("winner-right", "15", "15") == 0.0


# --- in a run: its own process, hangs, all at once ------------------------------------------------------------------


def test_a_whole_set_of_rewards() -> None:
    """From the recipe's entries to scores: every part under its own name, weights, the worker process, tokens."""
    names = [
        "tags", "structure", "length", "voice", "reflection", "originality", "reflective-winner", "winner", "answer",
        "won", "winner-right", "copied",
    ]  # fmt: skip
    measured = {"won", "winner-right", "copied"}
    configs = [
        RewardConfig(name=f"competition-{name}", weight=0.0 if name in measured else 1.0, args=args)
        for name in names
        for args in [{"optimum": 10} if name == "length" else {}]
    ]
    good, bad = contest(COURT, "defender"), "15"
    hang = contest(COURT, "prosecutor", answer=r"$9^{9^{9^{9^{9}}}}$")
    content = (Message("user", "What is 7 + 8?"),)
    prompt = Prompt(ids=(1,), text="rendered", content=content, columns={"answer": "15"}, where="rows.jsonl:1")
    texts = (good, bad, hang)
    group = Group(prompt, tuple(Completion(ids=(7,) * len(t), mask=(True,) * len(t), text=t) for t in texts))
    with build_rewards(configs, construct=COURT) as rewards:
        rewards.know_tokens(lambda ids, text: list(range(1, len(ids) + 1)))
        places = dict(line.split(" (weight 1): ") for line in rewards.describe() if "weight 1" in line)
        scored = rewards.score([group], 0, 1)
    assert places["competition-tags"].startswith("directly")
    assert places["competition-answer"] == "isolated in a worker process"
    first, second, third = (c.breakdown for c in scored.groups[0].completions)
    assert first == {
        "competition-tags": 0.5,
        "competition-structure": 1.0,
        "competition-length-prosecutor": pytest.approx(max(0, 1 - (24 - 10) / 10)),
        "competition-length-defender": pytest.approx(max(0, 1 - (22 - 10) / 10)),
        "competition-voice-prosecutor": 0.0,
        "competition-voice-defender": 0.0,
        "competition-reflection-prosecutor": 0.0,
        "competition-reflection-defender": 0.0,
        "competition-originality-defender": 0.0,
        "competition-reflective-winner": 0.0,
        "competition-winner": 1.0,
        "competition-answer": 1.0,
        "competition-won-prosecutor": 0.0,
        "competition-won-defender": 1.0,
        "competition-winner-right": 1.0,
        "competition-copied": 0.0,
    }
    assert scored.groups[0].completions[0].score == pytest.approx(0.5 + 1 + 1 + 1)
    assert second["competition-tags"] == -1.0 and second["competition-answer"] == 0.0
    assert second["competition-winner-right"] == 0.0
    assert third["competition-answer"] == 0.0 and third["competition-winner-right"] == 1.0

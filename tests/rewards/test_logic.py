"""The reward knights-knaves: what is read as a claim, how it is checked, and what bad columns give."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.config import RewardConfig, SourceConfig
from preftune.data import load_examples
from preftune.errors import RewardError, UsageError
from preftune.logic import generate, render
from preftune.logic.reading import read_assignment
from preftune.records import Completion, Group, Prompt
from preftune.rewards import build_rewards
from preftune.rewards.builtins import make_builtin
from preftune.rewards.call import Unscorable

PEOPLE = ("Alice", "Bob", "Carol")


def read(text: str, people: tuple[str, ...] = PEOPLE, last_wins: bool = False) -> str:
    """One letter a person: k(night), n (knave), x (both), - (nothing said)."""
    found = read_assignment(text, people, last_wins=last_wins)
    return "".join({True: "k", False: "n", "both": "x", None: "-"}[found.get(name)] for name in people)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # a line or a clause for each
        ("Alice is a knight, Bob is a knave.", "kn-"),
        ("Alice: knight\nBob: knave\nCarol: knight", "knk"),
        ("(1) Bob is a knave (2) Alice is a knight", "kn-"),
        ("1. Alice — knight\n2. Bob — knave", "kn-"),
        ("- **Alice**: **knight**\n- **Bob**: *knave*", "kn-"),
        ("| Alice | knight |\n| Bob | knave |", "kn-"),
        ('{"Alice": "knight", "Bob": "knave"}', "kn-"),
        ("Alice (knight), Bob (knave), Carol (knight)", "knk"),
        ("Alice=knight; bob → KNAVE", "kn-"),
        ("Alice's a liar, Bob is a truth-teller, Carol is a truth teller.", "nkk"),
        ("Alice must therefore be a knave. Bob has to be a knight.", "nk-"),
        # several at once
        ("Alice, Bob and Carol are knights", "kkk"),
        ("Alice is a knight, Bob and Carol are both knaves", "knn"),
        ("Both Alice and Bob are knaves", "nn-"),
        ("All are knaves", "nnn"),
        ("Everyone is a knight", "kkk"),
        ("All three of them are knights", "kkk"),
        ("None of them is a knight", "nnn"),
        ("Knights: Alice, Carol; knaves: Bob", "knk"),
        ("Knights:\n- Alice\n- Carol\nKnaves:\n1. Bob", "knk"),
        ("The knave is Bob and Alice is a knight", "kn-"),
        ("The knights are Alice, Carol and the knave is Bob", "knk"),
        # denials
        ("Alice is not a knight, Bob isn't a knave", "nk-"),
        ("Alice can’t be a knight. Bob cannot be a knave.", "nk-"),
        ("Neither Alice nor Bob is a knight, and Carol is a knight", "nnk"),
        ("Alice is not a knave but a knight", "k--"),
        ("Alice is a knight, not a knave", "k--"),
        ("Alice is no knight", "n--"),
        # no claims
        ("If Alice is a knight, Bob is a knave.", "---"),
        ("Suppose Bob is a knight. Assume Alice is a knave.", "---"),
        ("Alice says Bob is a knave. Bob claims that Carol is a knight.", "---"),
        ('Alice: "Bob is a knave."', "---"),
        ("Is Alice a knight? Bob could be a knave.", "---"),
        ("Either Alice or Bob is a knight", "---"),
        ("Alice is a knight or Bob is a knave", "---"),
        ("Not all are knights", "---"),
        ("Everyone except Bob is a knight", "---"),
        ("All but Bob are knights", "---"),
        ("Dave is a knight. Alicea is a knave.", "---"),
        ("knight knave Alice Bob", "---"),
        # beside what is no claim
        ("Alice says that Bob is a knave, but Bob is a knight", "-k-"),
        ("Since Carol lies about Bob, Alice is a knight", "k--"),
        ("Alice's statement is true, so Alice is a truth-teller", "k--"),
        # two claims that part
        ("Alice is a knight or a knave", "x--"),
        ("Alice is a knight/knave", "x--"),
        ("Alice: knight. Bob: knave. Alice: knave.", "xn-"),
        ("", "---"),
    ],
)
def test_claims(text: str, expected: str) -> None:
    assert read(text) == expected


def test_the_last_claim_wins_where_there_is_no_region() -> None:
    working = (
        "Alice is a knight, so Bob is a knave. No: that contradicts Carol.\nAlice: knave\nBob: knave\nCarol: knight"
    )
    assert read(working, last_wins=True) == "nnk"
    assert read("Alice is a knight or a knave. Alice is a knave.", last_wins=True) == "n--"
    assert read("Alice is a knave. Alice is a knight or a knave.", last_wins=True) == "x--"


def test_names() -> None:
    people = ("Łucja", "José", "Old Tom", "Tom", "O'Neil", "Ann (tall)")
    text = (
        "łucja: knight. JOSE\u0301 is a knave. Old Tom is a knight, Tom is a knave. O’Neil: knave; Ann (tall): knight"
    )
    assert read(text, people) == "knknnk"
    assert read("阿明是 knight", ("阿明",)) == "-" and read("阿明: knight, Δέλτα: knave", ("阿明", "ΔΈΛΤΑ")) == "kn"


# --- the value --------------------------------------------------------------------------------------------------------

SOLUTION = {"Alice": "knight", "Bob": "knave"}
SAYS = [{"speaker": "Alice", "says": ["knave", "Bob"]}, {"speaker": "Bob", "says": ["same", "Alice", "Bob"]}]
"""Alice: Bob is a knave. Bob: Alice and I are of the same kind. One solution: Alice a knight, Bob a knave."""
RIGHT, WRONG = "Alice: knight\nBob: knave", "Alice: knight\nBob: knight"


def value(text: str, truth: Any = SOLUTION, **args: Any) -> Any:
    column = args.get("column") or args.get("check", "solution")
    return make_builtin("knights-knaves", args)([text], **{column: [truth]})[0]


@pytest.mark.parametrize("check", ["solution", "statements"])
def test_all_or_nothing_and_shares(check: str) -> None:
    truth = {"solution": SOLUTION, "statements": SAYS}[check]
    for text, whole, share in (
        (RIGHT, 1.0, 1.0),
        (WRONG, 0.0, 0.5),
        ("Alice: knight", 0.0, 0.5),
        ("Alice: knave, Bob: knight", 0.0, 0.0),
        ("Alice is a knight. Bob is a knight or a knave.", 0.0, 0.5),
        ("I don't know", 0.0, 0.0),
        ("", 0.0, 0.0),
    ):
        assert value(text, truth, check=check) == whole, text
        assert value(text, truth, check=check, partial=True) == share, text


def test_region() -> None:
    """Only what the last pair of tags (or the last match) encloses counts, and it may not contradict itself."""
    hypothesis = "Say Alice is a knave and Bob is a knight; no."
    assert value(f"{hypothesis}<SOLUTION>{WRONG}</SOLUTION> hm <SOLUTION>{RIGHT}</SOLUTION> Bob is a knight.") == 1.0
    assert value(f"{RIGHT}<SOLUTION>Alice: knight</SOLUTION>") == 0.0
    assert value(f"<SOLUTION>Alice: knave. {RIGHT}</SOLUTION>") == 0.0
    assert value(f"Alice: knave. {RIGHT}") == 1.0
    assert value(f"<a>{WRONG}</a><a>{RIGHT}</a>", solution_open="<a>", solution_close="</a>") == 1.0
    assert value(f"{WRONG}\n#### {RIGHT.replace(chr(10), ', ')}", extract=r"#### (.+)") == 1.0
    assert value(RIGHT, extract=r"#### (.+)") == 0.0  # asked for, and not there
    assert make_builtin("knights-knaves", {"extract": "x"}).can_hang
    assert not make_builtin("knights-knaves", {}).can_hang


def test_statements_decide_and_not_the_solution_column() -> None:
    """A wrong solution column can't matter, and of several solutions any is right."""
    reward = make_builtin("knights-knaves", {"check": "statements"})
    assert reward([RIGHT, WRONG], statements=[SAYS, SAYS], solution=[{"Alice": "knave", "Bob": "knave"}] * 2) == [
        1.0,
        0.0,
    ]
    two = [{"speaker": "A", "says": ["same", "A", "B"]}, {"speaker": "B", "says": ["same", "A", "B"]}]
    for text, whole in (("A: knight, B: knight", 1.0), ("A: knave, B: knave", 0.0), ("A: knave, B: knight", 0.0)):
        assert value(text, two, check="statements") == whole
    loose = [{"speaker": "A", "says": ["knight", "A"]}, {"speaker": "B", "says": ["knight", "B"]}]
    for text in ("A: knight, B: knight", "A: knave, B: knight", "A: knave, B: knave"):
        assert value(text, loose, check="statements") == 1.0
    assert value("A: knave", loose, check="statements", partial=True) == 0.5  # the nearest solution has A a knave


def test_columns() -> None:
    assert value(RIGHT, json.dumps(SOLUTION)) == 1.0
    assert value(RIGHT, json.dumps(SAYS), check="statements") == 1.0
    assert value(RIGHT, SOLUTION, column="truth") == 1.0
    assert value(RIGHT, {**SOLUTION, "Zoë": None}) == 1.0  # Parquet: a column of every name of the file
    assert value(RIGHT, {"alice": "Truth-teller", "BOB": "liar"}) == 1.0
    assert value(RIGHT, None) is None and value(RIGHT, float("nan")) is None


@pytest.mark.parametrize(
    ("check", "truth", "message"),
    [
        ("solution", "knight", "can't use column 'solution': it is no JSON"),
        ("solution", [1], "expected an object such as {'Ann': 'knight', 'Bob': 'knave'}, not [1]"),
        ("solution", {}, "it names nobody"),
        ("solution", {"A": None}, "it names nobody"),
        ("solution", {"A": "spy"}, "'A' is 'spy', where 'knight' or 'knave' belongs"),
        ("solution", {"A": True}, "'A' is True"),
        ("solution", {" ": "knight"}, "' ' is no name"),
        ("solution", {"Ann": "knight", "ann": "knave"}, "two of the names differ in nothing but"),
        ("statements", "[", "can't use column 'statements': it is no JSON"),
        ("statements", [{"speaker": "A", "says": ["knav", "B"]}], "statement 1: 'knav' is no form of a statement"),
        ("statements", [{"speaker": "A", "says": ["knave", "A"]}], "no assignment makes all of its statements fit"),
        ("statements", [{"speaker": "A", "says": ["same", "A", "a"]}], "two of the names differ in nothing but"),
    ],
)
def test_malformed_columns_are_failures_of_their_row(check: str, truth: Any, message: str) -> None:
    found = value(RIGHT, truth, check=check)
    assert isinstance(found, Unscorable) and message in found.why
    prompt = Prompt(ids=(1,), text="q", columns={check: truth}, where="puzzles.jsonl:4")
    group = Group(prompt, (Completion(ids=(7,), mask=(True,), text=RIGHT),))
    with (
        build_rewards([RewardConfig(name="knights-knaves", args={"check": check})]) as rewards,
        pytest.raises(RewardError) as caught,
    ):
        rewards.score([group], 0, 1)
    assert "reward 'knights-knaves' failed on puzzles.jsonl:4, completion 1 of 1: it can't use column" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"check": "answer"}, "args.check: Input should be 'solution' or 'statements'"),
        ({"extract": "("}, "extract is no regular expression"),
        ({"solution_open": ""}, "a tag can't be empty"),
        ({"partal": True}, "did you mean 'partial'?"),
    ],
)
def test_wrong_args(args: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_builtin("knights-knaves", args)
    assert message in str(caught.value)


# --- generated puzzles ------------------------------------------------------------------------------------------------


def test_both_checks_agree_on_every_assignment_of_generated_puzzles() -> None:
    rng = random.Random(0)
    for puzzle in generate(40, people=(2, 4), depth=2, seed=12):
        truth = {name: "knight" if kind else "knave" for name, kind in puzzle.solution.items()}
        for number in range(1 << len(puzzle.people)):
            guess = {name: bool(number >> n & 1) for n, name in enumerate(puzzle.people)}
            text = "\n".join(f"{name}: {'knight' if kind else 'knave'}" for name, kind in guess.items())
            right = float(guess == puzzle.solution)
            assert value(text, truth) == value(text, puzzle.to_json(), check="statements") == right
        assert value(render(puzzle, rng).answer, truth) == 1.0


PIECES = [
    *("Alice", "Bob", "carol", "alice's", "knight", "knaves", "truth-teller", "liar"),
    *("is", "are", "a", "not", "isn't", ":", ",", "(", ")", '"'),
    *("and", "or", "neither", "nor", "both", "all", "none", "no one", "if", "says", "so", ".", "?", "\n", "\r", "|"),
    *("<SOLUTION>", "</SOLUTION>", "-", "*", "=", "→", "’s", "'", "{"),
    *("\u0301", "\x00", "\ud800", "ß", "İ", "٣", " ", "  "),
]  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(max_size=80), st.lists(st.sampled_from(PIECES), max_size=30).map(" ".join)), st.booleans())
def test_any_text_can_be_read(text: str, partial: bool) -> None:
    for check, truth in (("solution", SOLUTION), ("statements", SAYS)):
        found = value(text, truth, check=check, partial=partial)
        assert isinstance(found, float) and 0.0 <= found <= 1.0
    for name, kind in read_assignment(text, PEOPLE, last_wins=True).items():
        assert name in PEOPLE and kind in (True, False, "both")


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=6),
        lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=6), x, max_size=3),
        max_leaves=12,
    )
)
def test_any_column_can_be_read(truth: Any) -> None:
    for check in ("solution", "statements"):
        found = value(RIGHT, truth, check=check)
        assert found is None or isinstance(found, (float, Unscorable))


@pytest.mark.parametrize(
    "piece",
    ["Alice, ", "knight is Alice, ", "knight: Alice Bob and Carol ", "Alice is a knight or ", "Alice or ",
     "Alice is not ", "says Alice is a knight ", "knight ", "is ", "neither ", "all, Alice ", "(", "'s ", "Alice-"],
)  # fmt: skip
def test_long_texts_are_read_in_linear_time(piece: str) -> None:
    """A text of 100,000 characters, as a policy that has learnt to repeat itself writes, must not hang the run."""
    found = read_assignment(piece * (100_000 // len(piece)), PEOPLE, last_wins=True)  # a quadratic one takes minutes
    assert found == read_assignment(piece * 3, PEOPLE, last_wins=True)


# --- from the command line to scores ----------------------------------------------------------------------------------


def test_rows_of_the_command_score(tmp_path: Path) -> None:
    from preftune.cli.main import main

    path = tmp_path / "puzzles.jsonl"
    assert main(["data", "puzzles", "--count", "12", "--output", str(path)]) == 0
    examples = load_examples([SourceConfig(path=str(path))], seed=0).examples
    assert len(examples) == 12 and not any(example.completions for example in examples)
    groups = []
    for example in examples:
        wrong = {
            name: {"knight": "knave", "knave": "knight"}[kind] for name, kind in example.columns["solution"].items()
        }
        texts = (example.columns["answer"], "; ".join(f"{name} is a {kind}" for name, kind in wrong.items()))
        completions = tuple(Completion(ids=(7,), mask=(True,), text=text) for text in texts)
        groups.append(Group(Prompt((1,), "q", example.prompt, example.columns, example.where), completions))
    configs = [RewardConfig(name="knights-knaves", args={"check": check}) for check in ("solution", "statements")]
    with build_rewards(configs) as rewards:
        scored = rewards.score(groups, 0, 1)
    assert all(group.scores == (2.0, 0.0) for group in scored.groups)

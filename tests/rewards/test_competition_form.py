"""Rewards for a contest's form, row by row of METHODS section 5: tags, structure, length, winner; values by hand."""

from __future__ import annotations

from typing import Any

import pytest

from preftune.competition import Construct
from preftune.config import CompetitionConfig, PersonaConfig, RewardConfig
from preftune.errors import UsageError
from preftune.rewards.builtins import make_builtin, make_builtins
from preftune.rewards.call import Batch, Caller, Failure, Reply, SetupError, TrainerState
from tests.competition.contests import COURT, PKV, SAID, STRATEGIES, contest

WELL = contest()


def value(name: str, text: str, construct: Construct = PKV, **args: Any) -> float:
    ((_, reward),) = make_builtins(RewardConfig(name=name, args=args), construct)
    (found,) = reward([text], token_ends=[list(range(1, len(text) + 1))])
    return found  # type: ignore[no-any-return]


# --- tags: +0.1 placed, −0.1 a duplicate, −0.2 missing ----------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (WELL, 0.6),
        ("The answer is 15.", 6 * -0.2),
        ("", 6 * -0.2),
        (WELL.replace(SAID["knight"], "").replace("<knight>\n\n</knight>\n", ""), 0.5 - 0.2),
        (WELL.replace("</knight>", ""), 0.5),  # one tag of two: neither placed nor missing
        (WELL.replace("<knight>", "<knight><knight>"), 0.6 - 0.1),
        (WELL.replace("<knight>", "<knight>" * 4), 0.6 - 0.3),
        (WELL + WELL, 0.6 - 6 * 0.1),
        (
            WELL.replace("knight>", "x>").replace("viking>", "knight>").replace("x>", "viking>"),
            0.5,
        ),  # one is out of turn
        (WELL.replace("</pirate>\n<knight>", "<knight>\n</pirate>"), 0.5),  # one is nested
        ("<competition><pirate>a</pirate></competition>b", 0.2 - 4 * 0.2),
        ("<pirate>a</pirate>", 0.1 - 5 * 0.2),
        ("<competition>" * 21, 0.0 - 20 * 0.1 - 5 * 0.2),
        (f"Well. {WELL.replace('<pirate>', '<PIRATE>')}", 0.6),  # other faults don't count here
    ],
)
def test_tags(text: str, expected: float) -> None:
    assert value("competition-tags", text) == pytest.approx(expected, abs=1e-9)


def test_tags_are_exact_decimals() -> None:
    assert value("competition-tags", WELL) == 0.6  # and not 0.6000000000000001


def test_tags_have_parameters() -> None:
    few = "<pirate>a</pirate><pirate>b</pirate>"
    assert value("competition-tags", few) == pytest.approx(0.1 - 0.1 - 5 * 0.2)
    assert value("competition-tags", few, floor=0.0) == 0.0
    assert value("competition-tags", few, floor=-0.5) == -0.5
    assert value("competition-tags", few, placed=1.0, duplicate=0.25, missing=0.0) == 0.75


@pytest.mark.parametrize(("construct", "best"), [(COURT, 0.5), (STRATEGIES, 0.6)])
def test_tags_of_other_constructs(construct: Construct, best: float) -> None:
    assert value("competition-tags", contest(construct), construct) == best
    assert value("competition-tags", WELL, construct) == pytest.approx(-0.2 * len(construct.elements))


# --- structure: 1.0 strict, 0.5 in order ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (WELL, 1.0),
        (f"\n{WELL}\n", 1.0),
        (f"Well. {WELL}", 0.5),
        (WELL.replace("<knight>", "and <knight>"), 0.5),
        (WELL.replace("<knight>", "< Knight >"), 0.5),
        (WELL.replace(SAID["viking"], ""), 0.5),
        (WELL.replace("The answer is 15.", ""), 0.5),
        (f"{WELL} </winner>", 0.5),
        (WELL.replace("</knight>", ""), 0.0),
        (WELL.replace("<knight>", "<knight><knight>"), 0.0),
        (WELL.replace("knight>", "x>").replace("viking>", "knight>").replace("x>", "viking>"), 0.0),
        ("The answer is 15.", 0.0),
        ("", 0.0),
    ],
)
def test_structure(text: str, expected: float) -> None:
    assert value("competition-structure", text) == expected
    assert value("competition-structure", text, partial=0.2) == {1.0: 1.0, 0.5: 0.2, 0.0: 0.0}[expected]


# --- length: linear up to the optimum, then falling -------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "expected"),
    [(0, 0.0), (1, 0.1), (5, 0.5), (10, 1.0), (11, 0.9), (15, 0.5), (20, 0.0), (1000, 0.0)],
)
def test_length_of_a_persona(size: int, expected: float) -> None:
    text = contest(knight=f" \n{'x' * size}\n ")
    assert value("competition-length", text, persona="knight", unit="chars", optimum=10) == pytest.approx(expected)
    # With one token a character it is the same in tokens.
    assert value("competition-length", text, persona="knight", optimum=10) == pytest.approx(expected)


def test_length_falls_by_its_slope() -> None:
    text = contest(knight="x" * 15)
    for slope, expected in ((0.0, 1.0), (0.5, 0.75), (2.0, 0.0)):
        assert value("competition-length", text, persona="knight", unit="chars", optimum=10, slope=slope) == expected


def test_length_counts_the_tokens_that_end_inside() -> None:
    """`<pirate>` + 'ab cd ef' + `</pirate>`: the tokens are "<pirate>a", "b", " cd", " e", "f<", "/pirate>"."""
    text, ends = "<pirate>ab cd ef</pirate>", [9, 10, 13, 15, 17, 25]
    ((_, reward),) = make_builtins(
        RewardConfig(name="competition-length", args={"persona": "pirate", "optimum": 8}), PKV
    )
    assert reward([text], token_ends=[ends]) == [4 / 8]


def test_length_in_words_counts_characters_of_chinese() -> None:
    text = contest(knight="Hark: 7 + 8 = 15, 即十五。")
    assert value("competition-length", text, persona="knight", unit="words", optimum=10) == pytest.approx(0.7)


def test_length_of_the_whole_contest() -> None:
    text = f" {WELL} and more"
    size = len(WELL) - len("\nThe answer is 15.")
    assert value("competition-length", text, whole=True, unit="chars", optimum=2 * size) == 0.5
    assert value("competition-length", "15", whole=True) == 0.0
    left_open = "<competition><pirate>abc"
    assert value("competition-length", left_open, whole=True, unit="chars", optimum=100) == len(left_open) / 100
    # 256 for each persona and the judge
    assert value("competition-length", WELL, whole=True, unit="chars") == pytest.approx(size / 1024)
    assert value("competition-length", contest(COURT), COURT, persona="defender") == pytest.approx(22 / 256)


def test_length_of_who_is_not_there() -> None:
    assert value("competition-length", "15", persona="viking") == 0.0
    assert value("competition-length", WELL.replace(SAID["viking"], " \n "), persona="viking") == 0.0


def test_length_in_tokens_needs_a_tokenizer() -> None:
    reward = make_builtin("competition-length", {"persona": "pirate"})
    with pytest.raises(SetupError, match="set unit: words or unit: chars"):
        reward([WELL], token_ends=[])
    assert reward([], token_ends=[]) == []
    unknown = Caller(reward, {})(Batch(["q"] * 2, [WELL, ""], [[], []], {}, TrainerState(0, 1), token_ends=[[], []]))
    assert isinstance(unknown, Reply) and unknown.values == [None, 0.0]
    assert "comes without token ids" in unknown.bad[0]
    failure = Caller(reward, {})(Batch(["q"], [WELL], [[1]], {}, TrainerState(0, 1)))
    assert isinstance(failure, Failure) and failure.kind == "setup"


# --- winner: 1.0 exactly, 0.5 with other text -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inside", "expected"),
    [
        ("pirate", 1.0),
        ("\n viking \n", 1.0),
        ("Pirate", 0.5),
        ("the knight, by a hair", 0.5),
        ("knight knight", 0.5),
        ("knight and viking", 0.0),
        ("nobody", 0.0),
        ("", 0.0),
    ],
)
def test_winner(inside: str, expected: float) -> None:
    text = contest(winner=inside)
    assert value("competition-winner", text) == expected
    assert value("competition-winner", text, partial=0.0) == float(expected == 1.0)
    assert value("competition-winner", "pirate") == 0.0


def test_who_won() -> None:
    text = contest(winner="The Viking!")
    won = {label: reward([text, "15"]) for label, reward in make_builtins(RewardConfig(name="competition-won"), PKV)}
    assert won == {
        "competition-won-pirate": [0.0, 0.0],
        "competition-won-knight": [0.0, 0.0],
        "competition-won-viking": [1.0, 0.0],
    }


# --- from recipes -------------------------------------------------------------------------------------------------


def labels(name: str, construct: Construct = PKV, label: str | None = None, **args: Any) -> list[str]:
    return [made for made, _ in make_builtins(RewardConfig(name=name, label=label, args=args), construct)]


def test_one_reward_for_each_persona() -> None:
    assert labels("competition-voice") == [f"competition-voice-{name}" for name in PKV.names]
    assert labels("competition-voice", COURT) == ["competition-voice-prosecutor", "competition-voice-defender"]
    assert labels("competition-voice", label="voice") == [f"voice-{name}" for name in PKV.names]
    assert labels("competition-voice", persona="knight") == ["competition-voice-knight"]
    assert labels("competition-voice", label="k", persona="knight") == ["k"]
    assert labels("competition-originality") == ["competition-originality-knight", "competition-originality-viking"]
    assert labels("competition-length", whole=True) == ["competition-length"]
    assert labels("competition-length", whole=True, label="long") == ["long"]
    for name in ("tags", "structure", "winner", "answer", "reflective-winner", "winner-right", "copied"):
        assert labels(f"competition-{name}") == [f"competition-{name}"]
    assert labels("competition-copied", persona="viking") == ["competition-copied-viking"]


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("competition-voice", {"persona": "ninja"}, "no persona is named 'ninja'; there are pirate, knight, viking"),
        ("competition-voice", {"persona": ""}, "no persona is named ''"),
        ("competition-voice", {"window": 0}, "window and variety are at least 1"),
        ("competition-originality", {"persona": "pirate"}, "'pirate' is the first persona and has nobody to copy"),
        ("competition-copied", {"persona": "pirate"}, "name knight or viking"),
        ("competition-originality", {"n": 7}, "at_least not less than n"),
        ("competition-originality", {"threshold": 0}, "threshold is over 0"),
        ("competition-originality", {"extract": "("}, "extract is no regular expression"),
        ("competition-answer", {"extract": "("}, "extract is no regular expression"),
        ("competition-answer", {"row_timeout": 0}, "row_timeout is at least 1 second"),
        ("competition-reflection", {"enough": 0}, "enough is at least 1"),
        ("competition-reflection", {"languages": ["de"]}, "args.languages.0"),
        ("competition-reflective-winner", {"threshold": 2}, "threshold is over 0 and at most 1"),
        ("competition-length", {"optimum": 0}, "optimum is at least 1"),
        ("competition-length", {"slope": -1}, "slope can't be negative"),
        ("competition-length", {"whole": True, "persona": "pirate"}, "leave persona out"),
        ("competition-length", {"unit": "bytes"}, "args.unit"),
        ("competition-tags", {"missing": -0.2}, "can't be negative"),
        ("competition-tags", {"fallor": 0}, "unknown argument 'fallor' under args; did you mean 'floor'?"),
    ],
)
def test_wrong_args(name: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        labels(name, PKV, **args)
    assert message in str(caught.value)


def test_the_construct_is_no_argument() -> None:
    with pytest.raises(UsageError, match="unknown argument 'construct'"):
        make_builtin("competition-tags", {"construct": "pirates"})


def test_without_a_contest_in_the_recipe() -> None:
    with pytest.raises(UsageError, match=r"reads contests, and the recipe describes none; add `competition: \{\}`"):
        list(make_builtins(RewardConfig(name="competition-tags"), None))


def test_voices_are_asked_for_when_the_recipe_is_read() -> None:
    def construct(*voices: list[str]) -> Construct:
        names = ("anna", "boris", "chen")
        personas = [PersonaConfig(name=n, prompt="p", voice=v) for n, v in zip(names, voices, strict=False)]
        return Construct.of(CompetitionConfig(personas=personas))

    with pytest.raises(UsageError, match=r"competition\.personas\.1\.voice is empty"):
        labels("competition-voice", construct(["ah"], []))
    assert labels("competition-voice", construct(["ah"], []), persona="anna") == ["competition-voice-anna"]
    with pytest.raises(UsageError, match=r"personas\.0\.voice: every word of 'anna' is another persona's too"):
        labels("competition-voice", construct(["Well", "so"], ["so!", "well", "hm"]))
    with pytest.raises(UsageError, match=r"without languages give markers, or competition\.personas\.0\.reflection"):
        labels("competition-reflection", construct(["ah"], ["b"]), languages=[])

"""Originality: workings taken over from others, workings of one's own, and corrections of another's error."""

from __future__ import annotations

from typing import Any

import pytest

from preftune.competition import Construct
from preftune.config import CompetitionConfig, PersonaConfig, RewardConfig
from preftune.rewards.builtins import make_builtins
from tests.competition.contests import COURT, PKV, contest
from tests.rewards.solutions import HIVES, PARAPHRASES, PROBLEMS, TRAIN, Problem


def values(
    text: str, question: Any = None, answer: Any = None, construct: Construct = PKV, **args: Any
) -> tuple[float, ...]:
    """One value for each persona from the second on."""
    made = make_builtins(RewardConfig(name="competition-originality", args=args), construct)
    columns = {} if answer is None else {"answer": [answer]}
    return tuple(reward([text], prompts=[question] if question else None, **columns)[0] for _, reward in made)


def copied(text: str, question: Any = None, **args: Any) -> float:
    ((_, reward),) = make_builtins(RewardConfig(name="competition-copied", args=args), PKV)
    (found,) = reward([text], prompts=[question] if question else None)
    return found  # type: ignore[no-any-return]


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_workings_of_ones_own(problem: Problem) -> None:
    every = (problem.first, *problem.independent)
    for pirate, knight, viking in zip(every, every[1:], every[2:], strict=False):
        text = contest(pirate=pirate, knight=knight, viking=viking)
        assert values(text, problem.question, problem.answer) == (0.5, 0.5)
        assert values(text, problem.question) == (0.5, 0.5)
        assert copied(text, problem.question) == 0.0


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_workings_taken_over(problem: Problem) -> None:
    for copy in problem.copies:
        own = problem.independent[0]
        second = contest(pirate=problem.first, knight=copy, viking=own)
        assert values(second, problem.question, problem.answer) == (-0.5, 0.5)
        third = contest(pirate=problem.first, knight=own, viking=copy)
        assert values(third, problem.question, problem.answer) == (0.5, -0.5)
        of_the_second = contest(pirate=own, knight=problem.first, viking=copy)
        assert values(of_the_second, problem.question, problem.answer) == (0.5, -0.5)
        assert copied(second, problem.question) == copied(third, problem.question) == 1.0
        assert copied(third, problem.question, persona="knight") == 0.0
        assert copied(third, problem.question, persona="viking") == 1.0


def test_a_paraphrase_is_no_copy_by_words() -> None:
    """What this measure can't see, and says so in the docs."""
    text = contest(pirate=TRAIN.first, knight=PARAPHRASES[0], viking=TRAIN.independent[0])
    assert values(text, TRAIN.question) == (0.5, 0.5)
    text = contest(pirate=HIVES.independent[0], knight=PARAPHRASES[1], viking=HIVES.first)
    assert values(text, HIVES.question) == (0.5, 0.5)


# --- numbers and the question trick nobody ------------------------------------------------------------------------


def test_the_question_told_again_is_no_copy() -> None:
    told = [f"We are asked: {TRAIN.question} {working}" for working in (TRAIN.first, *TRAIN.independent[:2])]
    text = contest(pirate=told[0], knight=told[1], viking=told[2])
    assert values(text, TRAIN.question) == (0.5, 0.5)
    # Telling the question hides no copy either.
    text = contest(pirate=TRAIN.first, knight=f"{TRAIN.question} {TRAIN.copies[0]}", viking=told[2])
    assert values(text, TRAIN.question) == (-0.5, 0.5)
    asked = [{"role": "system", "content": "s"}, {"role": "user", "content": TRAIN.question}]
    only = contest(pirate=TRAIN.question, knight=TRAIN.question, viking=TRAIN.question)
    assert values(only) == (-0.5, -0.5) and values(only, asked) == (0.5, 0.5)


def test_the_same_numbers_are_no_copy_and_others_no_disguise() -> None:
    numbers = "210 / 84 = 2.5, 2.5 * 60 = 150, 9:40 + 150 = 12:10"
    ways = [
        f"{numbers}. Distance by speed gives hours, and those turn into minutes on the clock.",
        f"{numbers}. Whoever doubts it may ride along and look at the station's dial himself.",
    ]
    assert values(contest(pirate=ways[0], knight=ways[1], viking=TRAIN.first)) == (0.5, 0.5)
    other = TRAIN.first.replace("210", "999").replace("84", "17").replace("2.5", "8.1").replace("12:10", "3:33")
    assert values(contest(pirate=TRAIN.first, knight=other, viking=ways[0])) == (-0.5, 0.5)


def test_a_costume_is_no_disguise() -> None:
    words = TRAIN.first.split()
    dressed = " ".join(f"{word} {PKV.persona('knight').voice[n % 20]}" for n, word in enumerate(words))
    text = contest(pirate=TRAIN.first, knight=dressed.upper(), viking=TRAIN.independent[0])
    assert values(text, TRAIN.question) == (-0.5, 0.5)


# --- who can be copied ----------------------------------------------------------------------------------------------


def test_the_one_who_spoke_first_is_no_copier() -> None:
    """Where the order of the text is not the construct's, it is the text's that counts."""
    text = contest(pirate=TRAIN.first, knight="", viking=TRAIN.independent[0])
    knight, viking = f"<knight>{TRAIN.copies[0]}</knight>", f"<viking>{TRAIN.copies[0]}</viking>"
    assert values(f"<competition>{viking}{knight}") == (-0.5, 0.5)
    assert values(f"<competition>{knight}{viking}") == (0.5, -0.5)
    assert copied(f"<competition>{knight}<pirate>{TRAIN.copies[0]}</pirate>") == 1.0
    assert values(text) == (0.0, 0.5)


@pytest.mark.parametrize("said", ["", " ", "Hark!", "Verily, it is 24.", "I agree with the pirate."])
def test_who_says_too_little_is_neither(said: str) -> None:
    assert values(contest(pirate=TRAIN.first, knight=said, viking=TRAIN.first)) == (0.0, -0.5)
    assert values("<viking>") == (0.0, 0.0)
    assert values("15") == (0.0, 0.0)


def test_a_few_words_shared_with_a_short_section_are_no_copy() -> None:
    short = "So the train arrives at 12:10, I say."  # 7 words, fewer runs than a text to compare with has
    text = contest(pirate=short, knight=f"{TRAIN.independent[0]} So the train arrives at 12:10.", viking=TRAIN.first)
    assert values(text) == (0.5, 0.5)


# --- correcting is not copying --------------------------------------------------------------------------------------

WRONG = (
    "The time on the way is the distance over the speed: 210 / 84 = 2.4 hours, that is 2 hours and 24 minutes. Adding "
    "those to 9:40 brings us past noon, and the clock at the platform shows 724 minutes since midnight."
)
MENDED = WRONG.replace("2.4 hours", "2.5 hours").replace("24 minutes", "30 minutes").replace("724", "730")
SAID_SO = f"{MENDED} Wait, the pirate divided badly: it is 730."


@pytest.mark.parametrize(
    ("knight", "answer", "expected"),
    [
        (WRONG, "730", -0.5),  # the same error
        (MENDED, "730", 0.5),  # right where the other was wrong
        (MENDED, ["12:10", "730"], 0.5),
        (MENDED, "800", -0.5),  # as wrong as the other
        (MENDED, "724", -0.5),  # made worse
        (MENDED, None, -0.5),  # nobody knows who is right, and it does not say that it corrects
        (SAID_SO, None, 0.5),
        (SAID_SO, "724", -0.5),  # it says so, but it is wrong
        (f"{WRONG} Wait, I would say it again: 724.", None, -0.5),  # the same conclusion
        (WRONG.replace("724", "many"), None, -0.5),
    ],
)
def test_correcting_anothers_error(knight: str, answer: Any, expected: float) -> None:
    text = contest(pirate=WRONG, knight=knight, viking=TRAIN.independent[1])
    assert values(text, TRAIN.question, answer) == (expected, 0.5)


def test_correcting_reads_the_columns_and_patterns_that_it_is_told() -> None:
    text = contest(pirate=f"{WRONG} [no]", knight=f"{MENDED} [yes]", viking=TRAIN.independent[1])
    assert values(text, None, "yes", extract=r"\[(\w+)\]") == (0.5, 0.5)
    assert values(text, None, "no", extract=r"\[(\w+)\]") == (-0.5, 0.5)
    ((_, reward),) = make_builtins(
        RewardConfig(name="competition-originality", args={"persona": "knight", "column": "truth"}), PKV
    )
    assert reward([text], truth=["730"], answer=["724"]) == [0.5]
    # A row without a truth is one where nobody knows.
    assert reward([text], truth=[None]) == [-0.5]
    mended = contest(pirate=WRONG, knight=f"{MENDED} Pardon, it is 730.", viking=TRAIN.independent[1])
    assert values(mended) == (-0.5, 0.5) and values(mended, markers=["pardon"]) == (0.5, 0.5)
    assert values(text.replace("[yes]", "Wait, it is 730"), languages=["zh"]) == (-0.5, 0.5)


def test_only_a_users_pattern_can_hang() -> None:
    def hangs(**args: Any) -> bool:
        ((_, reward),) = make_builtins(RewardConfig(name="competition-copied", args=args), PKV)
        return reward.can_hang  # type: ignore[no-any-return]

    assert not hangs() and hangs(extract="(a+)+")


# --- parameters -----------------------------------------------------------------------------------------------------


def test_parameters() -> None:
    text = contest(pirate=TRAIN.first, knight=TRAIN.copies[1], viking=TRAIN.independent[0])  # about 0.67 shared
    assert values(text) == (-0.5, 0.5)
    assert values(text, threshold=0.7) == (0.5, 0.5)
    assert values(text, n=6) == (0.5, 0.5)  # longer runs are broken more often
    assert values(text, at_least=60) == (0.0, 0.0)
    assert values(text, original=0.1, copied=2.0) == (-2.0, 0.1)
    assert copied(text, threshold=0.7) == 0.0


def test_runs_by_hand() -> None:
    """a b c d e f | a b c d x y: 4 runs of three each, of which abc and bcd are shared: a half."""
    text = "<pirate>a b c d e f</pirate><knight>a b c d x y</knight>"
    knight = {"persona": "knight", "construct": PKV}
    assert values(text, threshold=0.5, **knight) == (-0.5,)
    assert values(text, threshold=0.51, **knight) == (0.5,)
    assert values(text, n=2, threshold=0.6, **knight) == (-0.5,)  # ab, bc, cd of five
    assert values(text, "so b c d and more", threshold=0.5, **knight) == (0.5,)  # bcd is the question's: 1 of 3


def test_other_constructs() -> None:
    text = contest(COURT, prosecutor=TRAIN.first, defender=TRAIN.copies[1])
    assert values(text, construct=COURT) == (-0.5,)
    assert values(contest(COURT, prosecutor=TRAIN.first, defender=TRAIN.independent[1]), construct=COURT) == (0.5,)
    five = Construct.of(
        CompetitionConfig(personas=[PersonaConfig(name=name, prompt="p") for name in ("a", "b", "c", "d", "e")])
    )
    text = contest(five, a=TRAIN.first, b=TRAIN.independent[0], c=TRAIN.copies[0], d=TRAIN.independent[1], e="none")
    assert values(text, construct=five) == (0.5, -0.5, 0.5, 0.0)

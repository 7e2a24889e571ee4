"""Rewards for how personas speak and think: voice and self-reflection; values by hand."""

from __future__ import annotations

from typing import Any

import pytest

from preftune.competition import Construct
from preftune.competition.words import LANGUAGES, markers, units
from preftune.config import CompetitionConfig, PersonaConfig, RewardConfig
from preftune.rewards.builtins import make_builtins
from preftune.rewards.competition_text import known_markers, reflections
from tests.competition.contests import COURT, PKV, contest
from tests.rewards.solutions import HIVES


def value(name: str, text: str, construct: Construct = PKV, prompts: list[Any] | None = None, **args: Any) -> float:
    ((_, reward),) = make_builtins(RewardConfig(name=f"competition-{name}", args=args), construct)
    (found,) = reward([text], prompts=prompts)
    return found  # type: ignore[no-any-return]


# --- voice ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("arr one two three aye five six seven", 1.0),  # two stretches of four words, two different words
        ("arr one two three arr five six seven", 0.5),  # half of the variety
        ("arr one two three four five six seven", 0.25),  # in one stretch of two, one word of two
        ("arr aye two three four five six seven", 0.5),  # in one stretch of two
        ("ARR! One, two; three?\nA-ye: Aye, six seven", 1.0),
        ("Arrrrrr one two three aye five six seven", 1.0),  # however long it is drawn
        ("arrow one two three eyes five six seven", 0.0),  # whole words alone
        ("me hearties one two aye five six seven", 1.0),  # phrases
        ("me old hearties one aye five six seven", 0.25),
        ("arr one two", 1.0),  # shorter than a stretch: one stretch, so one word is all the variety
        ("arr one two three four five six", 1.0),  # the rest of a stretch belongs to the one before
        ("seven", 0.0),
        ("", 0.0),
        (" \n ", 0.0),
    ],
)
def test_voice(said: str, expected: float) -> None:
    text = contest(pirate=said)
    assert value("voice", text, persona="pirate", window=4, variety=2) == expected


def test_voice_of_who_is_not_there() -> None:
    assert value("voice", "arr", persona="pirate") == 0.0


def test_one_word_at_the_start_does_not_suffice() -> None:
    working = " ".join(f"and {n} makes {n + 1} in all" for n in range(24))  # 144 words, seven stretches
    assert value("voice", contest(pirate=f"Arr, {working}"), persona="pirate") == pytest.approx(1 / 7 * 1 / 4)
    honest = " ".join(
        f"{word}, {n} be {n + 1} in all we see" for n, word in enumerate(PKV.persona("pirate").voice[:18])
    )
    assert value("voice", contest(pirate=honest), persona="pirate") == 1.0


@pytest.mark.parametrize("word", ["arr ", "arr aye matey booty ", "arr, ARRR! "])
def test_stuffing_does_not_beat_honest_speech(word: str) -> None:
    assert value("voice", contest(pirate=word * 50), persona="pirate") == 0.0
    assert value("voice", contest(pirate=HIVES.first), persona="pirate") == 1.0


def test_another_personas_words_do_not_count() -> None:
    assert value("voice", contest(knight=HIVES.first), persona="knight") == 0.0
    assert value("voice", contest(pirate=HIVES.independent[0]), persona="pirate") == 0.0
    # "well" is in two lists, so it tells nobody apart
    both = Construct.of(
        CompetitionConfig(
            personas=[
                PersonaConfig(name="anna", prompt="p", voice=["well", "splendid"]),
                PersonaConfig(name="boris", prompt="p", voice=["Well!", "hm"]),
            ]
        )
    )
    assert value("voice", contest(both, anna="well, it is four"), both, persona="anna") == 0.0
    assert value("voice", contest(both, anna="well, it is splendid"), both, persona="anna") == 1.0


def test_voice_in_other_writing() -> None:
    own = Construct.of(
        CompetitionConfig(
            personas=[
                PersonaConfig(name="海盗", prompt="p", voice=["哈哈", "宝藏", "船长"]),
                PersonaConfig(name="рыцарь", prompt="p", voice=["клянусь честью", "доблесть"]),
            ]
        )
    )
    said = "哈哈,七加八等于十五,这就是宝藏的数目,船长说得没错。"  # 23 characters
    assert value("voice", contest(own, 海盗=said), own, persona="海盗") == 1.0
    assert value("voice", contest(own, 海盗=said), own, persona="海盗", window=8) == pytest.approx(2 / 2 * 1.0)
    sworn = "Семь и восемь, КЛЯНУСЬ  честью, пятнадцать"
    assert value("voice", contest(own, рыцарь=sworn), own, persona="рыцарь") == 1.0
    assert value("voice", contest(own, рыцарь="клянусь, честью"), own, persona="рыцарь") == 0.0


# --- self-reflection ------------------------------------------------------------------------------------------------

PAUSE = "seven and eight are fifteen as anybody can see"


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (f"Wait. {PAUSE} Let me check: {PAUSE} No, that's wrong. {PAUSE}", 3),
        (f"Wait. {PAUSE} wait {PAUSE} WAIT! {PAUSE}", 1),  # the same marker again
        ("Wait, hold on, no, that's wrong, let me check.", 1),  # one breath, one act
        (f"Wait, hold on. {PAUSE} Let me check.", 2),
        (f"I was waiting for the waiter. {PAUSE}", 0),
        (f"Belay that! {PAUSE} Blimey, {PAUSE}", 2),  # the pirate's own
        (f"Alas! {PAUSE} Methinks {PAUSE}", 0),  # the knight's
        (f"Подождите, {PAUSE} я ошибся: {PAUSE} проверим ещё раз", 3),
        ("七加八等于十六。等等,不对。我们再来一遍七加八等于十五。验算一下,十五减八等于七,没有错。", 2),
        (f"Hmmmmm. {PAUSE}", 1),
        (PAUSE, 0),
        ("", 0),
    ],
)
def test_reflection(said: str, found: int) -> None:
    text = contest(pirate=said)
    for enough in (1, 3, 4):
        assert value("reflection", text, persona="pirate", enough=enough) == pytest.approx(min(1, found / enough))


def test_reflection_of_who_is_not_there() -> None:
    assert value("reflection", "wait", persona="pirate") == 0.0


def test_reflection_has_languages_and_own_markers() -> None:
    text = contest(pirate=f"Wait. {PAUSE} Постойте, {PAUSE} Moment mal, {PAUSE}")
    assert value("reflection", text, persona="pirate") == pytest.approx(2 / 3)
    assert value("reflection", text, persona="pirate", languages=["ru"]) == pytest.approx(1 / 3)
    assert value("reflection", text, persona="pirate", languages=[]) == 0.0
    assert value("reflection", text, persona="pirate", languages=[], markers=["moment mal"]) == pytest.approx(1 / 3)


def test_what_the_question_says_is_no_reflection() -> None:
    question = "Wait, let me check with you: is 7 + 8 really 15?"
    quoting = contest(pirate=f"You ask: wait, let me check with you: is 7 + 8 really 15? {PAUSE}")
    assert value("reflection", quoting, persona="pirate", enough=1) == 1.0  # nobody knows that it is quoted
    assert value("reflection", quoting, persona="pirate", enough=1, prompts=[question]) == 0.0
    asked = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": question}]
    assert value("reflection", quoting, persona="pirate", enough=1, prompts=[asked]) == 0.0
    # its own words stay its own, also where the question has one of them
    own = contest(pirate=f"Let me check. {PAUSE}")
    assert value("reflection", own, persona="pirate", enough=1, prompts=[question]) == 1.0
    # what the system message says is no question
    told = [{"role": "system", "content": "Say: wait, let me check with you"}, {"role": "user", "content": "7 + 8?"}]
    assert value("reflection", quoting, persona="pirate", enough=1, prompts=[told]) == 1.0


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_lists(language: str) -> None:
    """Each marker is found in a text of its language, once, and none stands there twice."""
    words = markers(language)  # type: ignore[arg-type]
    assert len(words) > 40 and len({units(word) for word in words}) == len(words)
    known = known_markers(PKV, "knight", (language,), ())  # type: ignore[arg-type]
    for word in words:
        assert reflections(units(f"4 4 4 {word} 4 4"), (), known) == 1, word


# --- the reflective winner --------------------------------------------------------------------------------------------

THOUGHT = f"Wait. {PAUSE} Let me check: {PAUSE}"


@pytest.mark.parametrize(
    ("winner", "said", "expected"),
    [
        ("knight", {"knight": THOUGHT}, 1.0),
        ("The Knight!", {"knight": THOUGHT}, 1.0),
        ("pirate", {"knight": THOUGHT}, 0.0),  # another's thought
        ("nobody", {"knight": THOUGHT}, 0.0),
        ("knight", {"knight": f"Wait. {PAUSE}"}, 0.0),  # one of three is under a half
        ("knight", {"knight": f"Alas! {PAUSE} Nay, {PAUSE}"}, 1.0),  # by the knight's own markers
        ("pirate", {"pirate": f"Alas! {PAUSE} Nay, {PAUSE}"}, 0.0),
    ],
)
def test_reflective_winner(winner: str, said: dict[str, str], expected: float) -> None:
    assert value("reflective-winner", contest(winner=winner, **said)) == expected


def test_reflective_winner_has_parameters() -> None:
    text = contest(winner="knight", knight=f"Wait. {PAUSE}")
    assert value("reflective-winner", text, threshold=0.3) == 1.0
    assert value("reflective-winner", text, enough=2) == 1.0
    assert value("reflective-winner", text, enough=1, threshold=1.0, bonus=0.25) == 0.25
    assert value("reflective-winner", text, enough=1, languages=["zh"]) == 0.0
    assert value("reflective-winner", text, enough=1, languages=["zh"], markers=["as anybody"]) == 1.0
    assert value("reflective-winner", text, enough=1, prompts=[f"Wait. {PAUSE}"]) == 0.0
    assert value("reflective-winner", "15") == 0.0


def test_reflection_in_court() -> None:
    text = contest(COURT, "defender", defender=f"I concede one point. {PAUSE} On closer examination {PAUSE}")
    assert value("reflection", text, COURT, persona="defender") == pytest.approx(2 / 3)
    assert value("reflective-winner", text, COURT) == 1.0

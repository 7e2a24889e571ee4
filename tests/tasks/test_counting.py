"""Counts in texts, each worked out by hand."""

from __future__ import annotations

import time

import pytest

from preftune.tasks import counting
from preftune.tasks.languages import in_language, in_script, scripts_of


def test_words_are_runs_of_letters_digits_and_underscores():
    assert counting.words("It's 5 o'clock, I_think.") == ["It", "s", "5", "o", "clock", "I_think"]
    assert counting.words(" … ") == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Dr. Smith met Mr. J. Brown at 3.15 p.m. in Bonn. He left.", 2),
        ("Wait... what?! Yes", ["Wait...", "what?!", "Yes"]),
        ('He said "Stop." Then he left.', ['He said "Stop."', "Then he left."]),
        ("We need ink, paper, etc. Then we begin.", 2),
        ("So did I. Later we slept.", 2),
        ("1. Wash it.\n2. Dry it.", 2),
        ("Это т.е. пример. И второй!", 2),
        ("你好。再见！", ["你好。", "再见！"]),
        ("... !!", []),
        ("no stop at all", 1),
    ],
)
def test_sentences(text, found):
    got = counting.sentences(text)
    assert got == found if isinstance(found, list) else len(got) == found


def test_paragraphs_by_blank_lines_and_by_a_separator():
    assert counting.paragraphs("one\ntwo\n\n  \nthree\n\n") == ["one\ntwo", "three"]
    assert counting.paragraphs("***\none *** two\n***", "***") == ["one", "two"]
    assert len(counting.paragraphs("one *** *** two", "***")) == 3  # the empty one between separators counts


def test_occurrences_whole_or_not_in_any_case():
    text = "Tea, tea-time and STEAM. tea"
    assert counting.occurrences(text, "tea", whole=True) == 3
    assert counting.occurrences(text, "tea", whole=False) == 4
    assert counting.occurrences("a.b axb", "a.b", whole=True) == 1  # no regular expression
    assert counting.occurrences("c++ and c", "c++", whole=True) == 1


def test_form():
    assert counting.bullets("* one\n  - two\n** no **\n*three\ntext * no") == 3
    assert counting.placeholders("Dear [name], [street\n] and [] [a] b]") == 3
    assert counting.highlights("*one* **two** ** ** * * and *three") == 2
    assert counting.titles("<<A day>> << >> <<x\ny>>") == 1
    assert counting.sections("Section 1 a\nSECTION 2\nSection  3 Section4", "Section") == 2
    assert counting.capital_words("I saw NASA and a UFO in 1999, A-B") == 5
    assert counting.without_fence('```json\n{"a": 1}\n```') == '{"a": 1}\n'
    assert counting.without_fence("```5```") == "5"
    assert counting.without_fence("say ``` this") == "say ``` this"


def test_scripts_and_languages():
    assert scripts_of("Ab в 漢 かな ١ 5") == {"Latin": 2, "Cyrillic": 1, "Han": 1, "Kana": 2}
    assert in_script("Привет, world", "Cyrillic") and not in_script("Привет, worlds", "Cyrillic")
    assert in_script("漢字とかな", "Kana") and in_script("漢字", "Han") and not in_script("12 !", "Latin")
    assert in_script("ÀÉß", "Latin", 1.0) and not in_script("AÉв", "Latin", 1.0)
    german = "Der Hund und die Katze sind nicht auf dem Dach."
    assert in_language(german, "de") and not in_language(german, "en") and not in_language(german, "ru")
    assert in_language("Я не знаю, что это, но он был там.", "ru")
    assert in_language("Я не знаю, що це, але він був там і його бачили.", "uk")
    assert not in_language("Я не знаю, що це, але він був там і його бачили.", "ru")
    assert in_language("THE CAT IS ON THE ROOF AND IT IS NOT MINE", "en")
    assert (
        in_language("これは猫です。", "ja") and not in_language("これは猫です。", "zh") and in_language("这是猫", "zh")
    )
    assert in_language("Hallo", "de") and in_language("Hallo", "en")  # too short to tell


@pytest.mark.parametrize("piece", [". ", "<<", "[", "*", "``` ", "a.", "\n ", "Mr. ", "** "])
def test_long_hostile_texts_take_no_time(piece):
    text = piece * (100_000 // len(piece))
    start = time.perf_counter()
    for count in (
        counting.sentences, counting.paragraphs, counting.bullets, counting.placeholders, counting.highlights,
        counting.titles, counting.capital_words, counting.without_fence,
    ):  # fmt: skip
        count(text)
    assert time.perf_counter() - start < 20  # quadratic time would be minutes

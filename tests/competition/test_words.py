"""Words of any language: what is one, finding phrases, the markers' lists."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.competition.words import LANGUAGES, Phrases, is_figure, is_spaceless, markers, ngrams, units


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Arrr, 7+8=15!", "arr 7 8 15"),
        ("Cap'n's cross-check\n“quoted”", "cap n s cross check quoted"),
        ("1,234.5 and 3. Then 4,", "1,234.5 and 3 then 4"),
        ("ARRRRRR hmmm good 1000", "arr hmm good 1000"),
        (r"$\frac{3}{4}\times 5\text{ hives}$", "3 4 5 hives"),
        ("Ещё ПОДОЖДИТЕ…", "ещё подождите"),
        ("我们算出24。", "我 们 算 出 24"),
        ("24ハンバーガー", "24 ハ ン バ ー ガ ー"),
        ("１２ ﬁsh", "12 fish"),
        ("Straße STRASSE", "strasse strasse"),
        ("cafe\u0301", "café"),
        ("snake_case x2", "snake case x 2"),
        ("한국어 단어", "한국어 단어"),
        ("٣ apples", "apples"),
        ("<b> & </b>", "b b"),
        ("", ""),
        (" \n.,!", ""),
    ],
)
def test_units(text: str, expected: str) -> None:
    assert units(text) == tuple(unicodedata.normalize("NFKC", expected).split())


def test_kinds_of_units() -> None:
    assert is_figure("1,234") and not is_figure("one")
    assert is_spaceless("算") and is_spaceless("カ") and not is_spaceless("a") and not is_spaceless("arr")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Let me check.", ["let me check"]),
        ("LET  ME\nCHECK again", ["let me check again"]),  # the longest that begins there
        ("let me see", []),
        ("let let me check", ["let me check"]),
        ("wait, wait", ["wait", "wait"]),
        ("await", []),
        ("请等等", ["等 等"]),
        ("me check again", ["check again"]),
        ("let me check again wait", ["let me check again", "wait"]),
    ],
)
def test_phrases(text: str, found: list[str]) -> None:
    phrases = Phrases.of(["let me check", "Let me check again", "check again", "Wait!", "等等", "...", ""])
    said = units(text)
    places = list(phrases.find(said))
    assert [" ".join(phrase) for _, phrase in places] == found
    assert all(said[at : at + len(phrase)] == phrase for at, phrase in places)


def test_text_without_phrases() -> None:
    phrases = Phrases.of(["me hearties", "arr"])
    assert phrases.without(units("Arr, me hearties, me arr 7!")) == ("me", "7")
    assert Phrases.of([]).without(("a", "b")) == ("a", "b")


def test_ngrams() -> None:
    assert ngrams(("a", "b", "c", "a", "b"), 2) == {("a", "b"), ("b", "c"), ("c", "a")}
    assert ngrams(("a",), 2) == set()


@pytest.mark.parametrize("language", LANGUAGES)
def test_markers_are_read_without_remarks(language: str) -> None:
    words = markers(language)  # type: ignore[arg-type]
    assert words and not any("#" in word or word != word.strip() for word in words)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=300))
def test_any_text_becomes_units(text: str) -> None:
    found = units(text)
    assert all(unit and not any(c.isspace() for c in unit) for unit in found)
    assert tuple(unit.casefold() for unit in found) == found
    if text.isascii():
        assert units(text.upper()) == units(text.lower()) == found
    assert units(f"{text} end") == (*units(f"{text} "), "end")


@pytest.mark.parametrize(
    "text",
    ["a" * 500_000, "\u0315\u0316" * 50_000, "\u0301" * 200_000, "算" * 200_000, "1," * 200_000, "\\a" * 100_000,
     "\ufdfa" * 20_000, "ab " * 100_000],
    ids=lambda text: ascii(text[:3]),
)  # fmt: skip
def test_long_texts_take_linear_time(text: str) -> None:
    """Combining marks alone would take quadratic time to bring into canonical order."""
    assert len(units(text)) <= len(text) * 20

"""Languages, faults of texts, places: what the audit says of a text alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.curation.audit import faults
from preftune.curation.audit.language import _COMMON, NAMES, differ, language
from preftune.curation.audit.texts import Places, digest, words

SENTENCES = {
    "en": "Hello there, how are you? This is the best of all days.",
    "de": "Die Hauptstadt von Deutschland ist Berlin, und sie liegt an der Spree.",
    "fr": "Bonjour, quelle est la capitale de la France ?",
    "es": "¿Dónde está la biblioteca? Es una pregunta que me hacen los amigos.",
    "pt": "O gato está em cima da mesa e não quer descer.",
    "it": "La capitale della Francia è Parigi, che è anche la città più grande.",
    "nl": "Het is mooi weer vandaag, en wij gaan naar het strand.",
    "sv": "Det är en bok som inte är min.",
    "da": "Det er en god dag i dag, hvad siger du? Jeg er hvor du var.",
    "fi": "Tämä on hyvä kirja ja se on minun.",
    "pl": "To jest bardzo dobry dzień, czy nie?",
    "cs": "To je kniha, která není moje, ale je dobrá.",
    "ro": "Aceasta este o carte care nu este a mea.",
    "hu": "Ez egy nagyon jó nap, és nem esik.",
    "tr": "Bu bir kitap ve çok güzel.",
    "vi": "Đây là một cuốn sách rất hay của tôi.",
    "id": "Ini adalah buku yang bagus untuk dibaca.",
    "ru": "Как называется столица России и где она находится?",
    "uk": "Привіт, як справи? Що це таке?",
    "ar": "ما هو هذا الكتاب الذي في البيت",
    "fa": "این کتاب برای شما است و خوب است",
    "ja": "今日は天気がいいですね",
    "zh": "今天天气很好",
    "ko": "안녕하세요",
    "el": "Καλημέρα",
    "th": "สวัสดีครับ",
    "he": "שלום לכולם",
    "hi": "आप कैसे हैं",
}


@pytest.mark.parametrize("name", SENTENCES)
def test_a_sentence_is_in_its_language(name: str) -> None:
    assert language(SENTENCES[name]) == name and name in NAMES


@pytest.mark.parametrize(
    "text",
    ["", "42", "Yes.", "Lima.", " Cusco.", "x^2 + 3 = 7", "def f(x):\n    return x + 1", "1. Apples\n2. Bananas",
     "SELECT * FROM users WHERE id = 3;", "```\nis the of and to in\n```", "https://of.the/and?is=to", "\ud800 \x00"],
)  # fmt: skip
def test_what_is_no_sentence_is_in_no_language(text: str) -> None:
    assert language(text) == ""


def test_words_at_hand_give_the_same() -> None:
    for text in [*SENTENCES.values(), "`is` the of " * 300, "the cat of " * 2000]:
        assert language(text, words(text)) == language(text)


def test_a_word_of_many_languages_counts_once() -> None:
    sums = "Lloyd gets 252 eggs per day, he sells them at $2 per dozen, so per week a farmer makes $294 a week per barn"
    assert language(sums) == "en"


def test_neighbours_are_not_held_against_each_other() -> None:
    assert differ("en", "de") and not differ("da", "no") and not differ("en", "") and not differ("en", "en")
    assert set(_COMMON) <= set(NAMES)


@pytest.mark.parametrize(
    ("text", "found"),
    [("a\x07b\x07", ["U+0007"]), ("a\u202eb", ["U+202E"]), ("tab\tline\r\nfeed é", []), ("\ufeffa", ["U+FEFF"]),
     ("\x1b[31m\x00", ["U+0000", "U+001B"]), ("zero\u200bwidth", ["U+200B"]), ("family 👨\u200d👩", [])],
)  # fmt: skip
def test_controls(text: str, found: list[str]) -> None:
    assert faults.controls(text) == found


@pytest.mark.parametrize("text", ["é", "’", "“quoted”", "Привет", "ü", "👍", "– dash", "£"])
@pytest.mark.parametrize("wrong", ["cp1252", "latin-1"])
def test_a_wrong_decoding_is_seen(text: str, wrong: str) -> None:
    try:
        broken = text.encode("utf-8").decode(wrong)
    except UnicodeDecodeError:
        pytest.skip("not every byte is a character there")
    assert faults.mojibake(f"before {broken} behind")
    assert not faults.mojibake(f"before {text} behind")


def test_the_replacement_character_is_seen() -> None:
    assert faults.mojibake("caf\ufffd") == ["\ufffd"]


def test_capital_letters_are_no_wrong_decoding() -> None:
    assert not faults.mojibake("“AMANHÔ, NÃO… SÃO PAULO, ÂNIMO, NIÑO, ÐORĐE, FÊTE")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to maria.lopez@mail.net", "e-mail"), ("a_b+c@sub.domain.co.uk!", "e-mail"),
        ("call +49 30 1234567 now", "telephone"), ("(415) 555-0132", "telephone"), ("415-555-0132.", "telephone"),
    ],
)  # fmt: skip
def test_addresses(text: str, kind: str) -> None:
    assert [name for name, _ in faults.personal(text)] == [kind] and not faults.secrets(text)


@pytest.mark.parametrize(
    "text",
    ["me@example.com", "x @ y", "a@b", "2020-12-31", "3 + 4 = 7", "12-34-56", "1,234,567.89", "v1.2.3-4", "10.0.0.1",
     "555-123", "@maria", "pi = 3.14159265358979"],
)  # fmt: skip
def test_no_addresses(text: str) -> None:
    assert not faults.personal(text)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("-----BEGIN RSA PRIVATE KEY-----", "private key"), ("AKIAABCDEFGHIJKLMNOP", "AWS key"),
        ("sk-proj-abcdefghij0123456789", "API key"), ("ghp_" + "a1" * 18, "GitHub token"),
        ("hf_" + "aB3" * 11, "Hugging Face token"), ("xoxb-1234567890-abc", "Slack token"),
        ("AIza" + "a" * 35, "Google key"), ("eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.abcdefghijkl", "web token"),
        ("api_key = 'abcd1234efgh5678'", "password"), ("Password: hunter2hunter2hunter2", "password"),
    ],
)  # fmt: skip
def test_secrets(text: str, kind: str) -> None:
    assert [name for name, _ in faults.secrets(f"it is {text} ")] == [kind]
    shown = faults.masked(f"it is {text} ")
    assert "•" in shown and len(shown) <= len(text) + 7


@pytest.mark.parametrize(
    "text", ["task-based-learning-for-everyone-here", "password: see below", "secret = load_secret_from_environment",
             "sk-learn is a library", "token = tokenizer.decode(ids)"],
)  # fmt: skip
def test_no_secrets(text: str) -> None:
    assert not faults.secrets(text)


def test_a_mask_leaves_enough_to_find_it_again() -> None:
    assert faults.mask("maria@mail.com") == "ma••••••••••om" and faults.mask("short") == "•••••"


@settings(max_examples=60, deadline=None)
@given(st.text())
def test_any_text(text: str) -> None:
    assert language(text) in {"", *NAMES}
    faults.controls(text), faults.mojibake(text)
    assert isinstance(faults.masked(text), str)


@pytest.mark.parametrize(
    "text",
    ["a" * 100_000, "a@" * 50_000, "+1" * 50_000, "1 " * 50_000, "sk-" * 30_000, "eyJ" * 30_000, "api_key=" * 12_000,
     "a.b." * 25_000 + "@", "-" * 100_000],
)  # fmt: skip
def test_hostile_texts_come_to_an_end(text: str) -> None:
    """A pattern that explodes would take hours on these."""
    found = faults.personal(text) + faults.secrets(text)
    assert all(piece in text for _, piece in found)
    assert not faults.mojibake(text) and not faults.controls(text) and language(text) == ""


def test_places() -> None:
    places = Places()
    told = ["data/rows2.jsonl:1", "data/rows2.jsonl:20", "set[0]", "set[17]", "odd", "x:007", "a:99999999999999999999"]
    assert [places.add(where) for where in told] == list(range(7))
    assert [places[number] for number in range(7)] == told and len(places) == 7


def test_a_digest_tells_where_parts_end() -> None:
    assert digest(["ab", "c"]) != digest(["a", "bc"]) != digest(["abc"]) and digest(["a"]) == digest(["a"])
    assert digest(["\ud800"]) != digest(["?"])

"""Where tokens end in a text: several kinds of tokenizers, characters in several tokens, broken ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from preftune.config import TokensConfig
from preftune.token_ends import BROKEN, token_ends
from preftune.tokens import TokenContract
from tests import tiny

CORPUS = [
    "Arrr, the pirate said that 7+8=15, and so on and on.",
    "海盗说答案是二十四。我们检查一下,再验算一遍。",
    "Пират сказал, что ответ равен двадцати четырём.",
    "😀 naïve café 🏴\u200d☠️ ok\n\n  two  spaces",
] * 30


def byte_level() -> Tokenizer:
    """As GPT-2, Qwen and Llama 3: bytes and merges; rare characters take several tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def sentencepiece() -> Tokenizer:
    """As Llama 2 and Mistral: a space before the text, which decoding drops; unknown characters in bytes."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz0123456789=+.海"]
    merges = [("a", "r"), ("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("▁", "▁")]
    pieces += [first + second for first, second in merges]
    vocab = {piece: n for n, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return backend


def unigram() -> Tokenizer:
    """As T5 and XLM-R: whole words with their space, by a metaspace."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def words() -> Tokenizer:
    """One token a word, spaces put between by the decoder alone, parts of words marked: as BERT."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def whole_words() -> Tokenizer:
    """One token a word or a run of spaces, nothing between."""
    backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|\s+|[^\w\s]"), "isolated")
    backend.decoder = decoders.Fuse()
    trainer = trainers.WordLevelTrainer(special_tokens=["<unk>"], show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return backend


MADE: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level, "sentencepiece": sentencepiece, "unigram": unigram, "words": words,
    "whole words": whole_words,
}  # fmt: skip


def contract_of(backend: Tokenizer) -> TokenContract:
    return TokenContract(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"), TokensConfig())


CONTRACTS = {name: contract_of(make()) for name, make in MADE.items()}
CONTRACTS["characters"] = TokenContract(tiny.tokenizer(), TokensConfig())


def encode(made: TokenContract, text: str) -> list[int]:
    return list(made._tokenizer.encode(text, add_special_tokens=False))


def by_prefixes(made: TokenContract, ids: Sequence[int]) -> list[int]:
    """The same by decoding every prefix, in quadratic time: how many whole characters the first tokens have brought."""
    # Bytes that are no character yet spoil the bytes before them in some tokenizers' decoding: never fewer, then.
    return list(accumulate((len(made.decode(ids[: n + 1]).rstrip(BROKEN)) for n in range(len(ids))), max))


TEXTS = [
    "the pirate said that 7+8=15.", "the the  the", " a", "", "\n\n", "海盗说24", "а 海b", "😀😀 a 🏴\u200d☠️ é", "café",
    "Ответ равен 24, 检查。",
]  # fmt: skip


@pytest.mark.parametrize("name", CONTRACTS)
@pytest.mark.parametrize("text", TEXTS)
def test_ends_are_those_of_the_prefixes(name: str, text: str) -> None:
    made = CONTRACTS[name]
    ids = encode(made, text)
    decoded = made.decode(ids)
    assert BROKEN not in decoded
    assert made.token_ends(ids, decoded) == by_prefixes(made, ids)


def test_by_hand() -> None:
    made = CONTRACTS["characters"]
    ids = encode(made, "3+4=7")
    assert made.token_ends([*ids, made.eos_id], "3+4=7") == [1, 2, 3, 4, 5, 5]
    bytes_of = CONTRACTS["byte-level"]
    emoji = encode(bytes_of, "a😀b")
    assert len(emoji) == 5  # three tokens for the four bytes of one character: the last of them brings it
    assert bytes_of.token_ends(emoji, "a😀b") == [1, 1, 1, 2, 3]
    dropped = CONTRACTS["sentencepiece"]
    ids = encode(dropped, "a the")
    assert [dropped._tokenizer.convert_ids_to_tokens(i) for i in ids] == ["▁", "a", "▁the"]
    assert dropped.token_ends(ids, "a the") == [0, 1, 5]
    spaces = CONTRACTS["words"]  # its decoder puts them between; [UNK] is special and says nothing
    unknown, pirate = spaces._tokenizer.convert_tokens_to_ids(["[UNK]", "pirate"])
    ids = [unknown, pirate, unknown, unknown, pirate, pirate]
    assert spaces.decode(ids) == "pirate pirate pirate"
    assert spaces.token_ends(ids, "pirate pirate pirate") == [0, 6, 6, 6, 13, 20]


@pytest.mark.parametrize("name", CONTRACTS)
@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=80))
def test_any_ascii_text_is_exact(name: str, text: str) -> None:
    made = CONTRACTS[name]
    ids = encode(made, text)
    decoded = made.decode(ids)
    ends = made.token_ends(ids, decoded)
    assert ends == by_prefixes(made, ids)
    # Cut at its ends the text falls into the tokens' texts.
    assert "".join(decoded[start:end] for start, end in pairwise([0, *ends])) == decoded


@pytest.mark.parametrize("name", CONTRACTS)
@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters=BROKEN), max_size=40))
def test_any_text_is_exact(name: str, text: str) -> None:
    made = CONTRACTS[name]
    ids = encode(made, text)
    decoded = made.decode(ids)
    if BROKEN not in decoded:
        assert made.token_ends(ids, decoded) == by_prefixes(made, ids)


@pytest.mark.parametrize("name", CONTRACTS)
@settings(max_examples=80, deadline=None)
@given(numbers=st.lists(st.integers(0, 10_000), max_size=60), cut=st.integers(0, 3))
def test_any_ids_give_ends_that_never_fall(name: str, numbers: list[int], cut: int) -> None:
    """What an untrained model writes: broken characters, special tokens in the middle, a text cut at a stop string."""
    made = CONTRACTS[name]
    ids = [number % len(made._tokenizer) for number in numbers]
    text = made.decode(ids)
    text = text[: len(text) - cut]
    ends = made.token_ends(ids, text)
    assert len(ends) == len(ids)
    assert all(one <= other for one, other in pairwise([0, *ends]))
    assert not ids or ends[-1] == len(text)


def test_pieces_are_asked_for_once() -> None:
    made = CONTRACTS["byte-level"]
    asked: list[list[int]] = []

    def decode(ids: Sequence[int]) -> str:
        asked.append(list(ids))
        return made.decode(ids)

    pieces: dict[int, str] = {}
    ids = encode(made, CORPUS[0])
    first = token_ends(ids, CORPUS[0], decode, pieces)
    asked.clear()
    assert token_ends(ids, CORPUS[0], decode, pieces) == first
    assert asked == [ids[:1]]


@pytest.mark.parametrize("byte", [0xE4, 0x80, 0xFF])
def test_broken_characters_take_linear_time(byte: int) -> None:
    """A text of bytes that make no character is decoded in windows of a few tokens."""
    made = CONTRACTS["byte-level"]
    letter = {0xE4: "ä", 0x80: "Ģ", 0xFF: "ÿ"}[byte]
    one = made._tokenizer.convert_tokens_to_ids(letter)
    longest = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return made.decode(ids)

    ids = [one] * 3000
    text = made.decode(ids)
    ends = token_ends(ids, text, decode, {})
    assert ends[-1] == len(text) and longest < 20

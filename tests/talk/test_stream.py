"""Text out of tokens: whole characters as soon as they are there, stop strings never, nothing lost."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from tokenizers import Tokenizer, decoders, models

from preftune.config import SamplingConfig
from preftune.records import Prompt
from preftune.sampling.local import LocalSampler
from preftune.talk.stream import MOST_HELD, TextStream, cut_at, longest_beginning
from preftune.token_ends import BROKEN
from tests.sampling.test_local import PROMPTS, sampler_of
from tests.talk import scripted

WORDS = scripted.tokenizer()
TEXTS = ["plain", "größer 字字 🐉👨‍👩‍👧 ende", "🐉" * 40, "a\n\n b\t", "", "Ж" * 33 + "x"]


def decode(ids: Sequence[int]) -> str:
    return WORDS.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def ids_of(text: str) -> list[int]:
    return WORDS(text, add_special_tokens=False).input_ids


def stream(ids: Sequence[int], stops: Sequence[str] = (), read: Callable[[Sequence[int]], str] = decode) -> list[str]:
    """What is shown at each token, and at the end."""
    one = TextStream(read, stops)
    shown = [one.add(token) for token in ids]
    return [*shown, one.rest(read(ids))]


@pytest.mark.parametrize("text", TEXTS)
def test_characters_come_whole_and_at_once(text: str) -> None:
    shown = stream([*ids_of(text), WORDS.eos_token_id])
    assert "".join(shown) == text
    assert not any(BROKEN in piece for piece in shown)
    # As soon as a character's last byte is there it is shown.
    for count in range(len(text) + 1):
        size = len(text[:count].encode())
        assert "".join(shown[:size]) == text[:count]


def test_broken_bytes_are_shown_in_the_end_and_hold_nothing_up() -> None:
    broken = [WORDS.convert_tokens_to_ids("Ã")] * 200  # 0xC3, 200 times: the first byte of two
    ids = [*ids_of("ab"), *broken, *ids_of("cd")]
    one = TextStream(decode)
    shown, behind = "", 0
    for count, token in enumerate(ids, 1):
        shown += one.add(token)
        behind = max(behind, len(decode(ids[:count])) - len(shown))
    shown += one.rest(decode(ids))
    assert shown == "ab" + BROKEN * 200 + "cd"
    assert 0 < behind <= MOST_HELD


def test_special_tokens_and_long_texts_cost_linear_time() -> None:
    sizes: list[int] = []

    def counted(ids: Sequence[int]) -> str:
        sizes.append(len(ids))
        return decode(ids)

    start = WORDS.convert_tokens_to_ids(scripted.START)
    for ids in (ids_of("ein langer Text ß " * 100), [start] * 1000, ids_of("🐉" * 300)):
        sizes.clear()
        one = TextStream(counted)
        for token in ids:
            one.add(token)
        assert max(sizes) <= 2 * MOST_HELD


def test_spaces_of_sentencepiece_stand_where_the_whole_text_has_them() -> None:
    pieces = ["▁Hi", "▁there", "!", "▁you", "<0xC3>", "<0xA9>", "▁"]
    words = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="!"))
    words.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    rng = random.Random(0)
    for _ in range(200):
        ids = [token for _ in range(12) for token in rng.choice([[0], [1], [2], [3], [4, 5], [6]])]
        shown = stream(ids, read=lambda some: words.decode(list(some)))
        assert "".join(shown) == words.decode(ids)
        assert BROKEN not in "".join(shown)


@pytest.mark.parametrize("stops", [["STOP"], ["\n\n", "abab"], ["é!"], ["x", "yx"]])
def test_stop_strings_are_never_seen(stops: list[str]) -> None:
    rng = random.Random(1)
    for _ in range(300):
        text = "".join(rng.choice(["S", "ST", "STO", "STOP", "a", "b", "\n", "é", "!", "x", "y"]) for _ in range(12))
        shown, so_far = stream(ids_of(text), stops), ""
        for piece in shown:
            so_far += piece
            assert cut_at(text, stops).startswith(so_far)
        assert so_far == cut_at(text, stops)
        assert not any(stop in so_far for stop in stops)


def test_what_may_begin_a_stop_string_is_held_and_no_more() -> None:
    assert stream(ids_of("aSTaST"), ["STOP"]) == ["a", "", "", "STa", "", "", "ST"]
    assert longest_beginning("abcST", ["STOP", "Tx"]) == 2
    assert longest_beginning("STOP", ["STOP"]) == 0
    assert cut_at("one two three", ["three", "two"]) == "one "


@pytest.mark.parametrize("kind", ["llama", "lfm2"])
def test_a_sampler_streams_what_it_samples(kind: str) -> None:
    sampler = sampler_of(kind)
    assert sampler.engine.mode == ("shared" if kind == "llama" else "padded")
    settings = SamplingConfig(max_tokens=12, temperature=0.8, top_k=20)
    for prompt in PROMPTS[:2]:
        heard: list[int] = []
        one = sampler.stream(prompt, settings, seed=3, on_token=heard.append)
        assert one == sampler.sample([prompt], 1, settings, seed=3)[0].completions[0]
        assert tuple(heard) == one.ids
        greedy = sampler.stream(prompt, settings, seed=3, on_token=heard.append, temperature=0.0)
        assert greedy == sampler.sample([prompt], 1, settings, seed=9, temperature=0.0)[0].completions[0]


@pytest.mark.parametrize("kind", ["llama", "llama_dynamic", "bloom"])
def test_a_sampler_that_was_stopped_can_be_used_again(kind: str) -> None:
    sampler: LocalSampler = sampler_of(kind, eos=frozenset({1}))
    prompt = Prompt(PROMPTS[0].ids, "")
    settings = SamplingConfig(max_tokens=8)
    want = sampler.stream(prompt, settings, seed=5, on_token=lambda _: None)
    heard: list[int] = []

    def stop(token: int) -> None:
        heard.append(token)
        if len(heard) == 3:
            raise KeyboardInterrupt

    before = sampler.engine.policy.base.generation_config
    with pytest.raises(KeyboardInterrupt):
        sampler.stream(prompt, settings, seed=5, on_token=stop)
    assert tuple(heard) == want.ids[:3]
    assert sampler.engine.policy.base.generation_config is before
    assert sampler.stream(prompt, settings, seed=5, on_token=lambda _: None) == want

"""The token contract with several completions to one prompt: scores, sources, shared turns, limits, boundaries."""

from __future__ import annotations

import json
import random
import re
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from preftune.config import SourceConfig, TokensConfig
from preftune.data import as_prompt
from preftune.data.columns import BadRow
from preftune.data.formats import to_example
from preftune.errors import DataError
from preftune.records import Example, TokenCounts
from preftune.tokens import TokenContract
from tests.test_tokens import CHATML, chatml, contract, ids_of, trained_text, turns

U, G, B = turns(("user", "tea?")), turns(("assistant", "yes")), turns(("assistant", "no"))


# ------------------------------------------------------------------------------------------------ scores, sources


@pytest.mark.parametrize("example", [Example("tea?", ("yes", "no")), Example(U, (G, B))], ids=["plain", "chat"])
def test_scores_and_sources_come_from_the_row(example: Example) -> None:
    made = contract()
    plain = made.group(example)
    assert [(one.score, one.source) for one in plain.completions] == [(None, "data"), (None, "data")]
    row = Example(example.prompt, example.completions, {"margin": 2.0}, "f:1", (1.0, 0.0), ("oak", ""))
    group = made.group(row)
    assert [(one.score, one.source, one.finish) for one in group.completions] == [
        (1.0, "oak", "data"),
        (0.0, "data", "data"),
    ]
    assert group.scores == (1.0, 0.0) and group.prompt.columns == {"margin": 2.0}
    # the ids are those of rows without scores
    assert [one.ids for one in group.completions] == [one.ids for one in plain.completions]
    (kept,), _ = made.prepare([row], with_completions=True)
    assert kept == group


def test_each_completion_is_tokenised_as_if_alone() -> None:
    made = contract()
    for prompt, completions in (("a", ("b", "", "cd")), (U, (G, B, G))):
        group = made.group(Example(prompt, completions))
        for one, completion in zip(group.completions, completions, strict=True):
            alone = made.group(Example(prompt, (completion,)))
            assert (one.ids, one.mask) == (alone.completions[0].ids, alone.completions[0].mask)
            assert group.prompt == alone.prompt


def test_equal_and_empty_completions_are_kept() -> None:
    made = contract()
    tokenizer = chatml()
    eos = tokenizer.eos_token_id
    pair = made.group(Example("tea?", ("yes", "yes"), scores=(1.0, 0.0)))
    assert pair.completions[0].ids == pair.completions[1].ids == (*ids_of(tokenizer, "yes"), eos)
    empty = made.group(Example("tea?", ("yes", ""), scores=(1.0, 0.0))).completions[1]
    assert (empty.ids, empty.mask, empty.text, empty.length, empty.score) == ((eos,), (True,), "", 1, 0.0)
    silent = made.group(Example(U, (G, turns(("assistant", "")))))
    assert made.text_with_specials(silent.completions[1].ids) == "<|im_end|>"


# ------------------------------------------------------------------------------------------------ loss on the last

MORE = turns(("user", "milk?"))


def test_turns_that_all_share_go_into_the_prompt_when_only_the_last_is_learned() -> None:
    made = contract(loss_on="last")
    group = made.group(Example(U, ((*G, *MORE, *B), (*G, *MORE, *G)), scores=(1.0, 0.0)))
    assert group.prompt.content == (*U, *G, *MORE)
    assert group.prompt.text.endswith("<|im_start|>user\nmilk?<|im_end|>\n<|im_start|>assistant\n")
    assert [made.text_with_specials(one.ids) for one in group.completions] == ["no<|im_end|>", "yes<|im_end|>"]
    assert all(all(one.mask) for one in group.completions)
    # the prompt is the one that the policy would be asked
    assert group.prompt == made.prompt(as_prompt(Example(U, ((*G, *MORE, *B), (*G, *MORE, *G)))))


def test_turns_that_differ_are_context_of_their_own_completion() -> None:
    made = contract(loss_on="last")
    group = made.group(Example(U, ((*G, *MORE, *B), (*B, *MORE, *G))))
    assert group.prompt.content == U
    first, second = group.completions
    middle = "<|im_end|>\n<|im_start|>user\nmilk?<|im_end|>\n<|im_start|>assistant\n"
    assert made.text_with_specials(first.ids) == f"yes{middle}no<|im_end|>"
    assert made.text_with_specials(second.ids) == f"no{middle}yes<|im_end|>"
    assert trained_text(made, first.ids, first.mask) == "no<|im_end|>"
    assert trained_text(made, second.ids, second.mask) == "yes<|im_end|>"


def test_shared_history_may_be_rendered_differently_from_an_answer() -> None:
    # Thoughts are shown in the last answer and cut out of earlier ones: the shared turns must be history.
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content if loop.last or m.role != 'assistant' else m.content.split('THEN')[1] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    think = turns(("assistant", "hm THEN yes"))
    row = Example(U, ((*think, *MORE, *G), (*think, *MORE, *B)), where="f:1")
    made = contract(chatml(chat_template=template), loss_on="last")
    group = made.group(row)
    assert "hm" not in group.prompt.text and [one.text for one in group.completions] == ["yes", "no"]
    with pytest.raises(DataError, match=r"tokens\.loss_on: last"):
        contract(chatml(chat_template=template)).group(row)


def test_all_assistant_learns_every_turn_of_each_completion() -> None:
    made = contract()
    group = made.group(Example(U, ((*G, *MORE, *B), B)))
    assert group.prompt.content == U
    assert [trained_text(made, one.ids, one.mask) for one in group.completions] == [
        "yes<|im_end|>no<|im_end|>",
        "no<|im_end|>",
    ]


# ------------------------------------------------------------------------------------------------ limits, counts


def test_a_row_counts_once_and_goes_with_its_longest_completion() -> None:
    made = contract(max_completion_tokens=3)  # EOS is one of the three
    rows = [Example("a", ("xy", "x")), Example("a", ("x", "xyz")), Example("a", ("xyz", "xyz"))]
    groups, counts = made.prepare(rows, with_completions=True)
    assert [len(group.completions) for group in groups] == [2]
    assert counts.reasons == {"completion over tokens.max_completion_tokens 3": 2}


def test_prompt_and_longest_completion_must_fit_the_model() -> None:
    made = contract(on_too_long="truncate-prompt-left")
    (group,), counts = made.prepare([Example("abcd", ("x", "xyz"))], with_completions=True, context_length=6)
    assert (group.prompt.text, counts.truncated) == ("cd", 1)  # 6 − (3 + EOS)
    assert [one.text for one in group.completions] == ["x", "xyz"]


def test_percentile_counts_prompts_not_completions() -> None:
    made = contract(drop_above_percentile=50)
    rows = [Example("a" * n, ("x",) * (5 - n)) for n in (1, 2, 3, 4)]
    groups, counts = made.prepare(rows, with_completions=True)
    assert [len(group.completions) for group in groups] == [4, 3]
    assert counts.reasons == {"prompt above percentile 50 (2 tokens)": 2}


def test_counts_look_at_every_completion() -> None:
    no_eos = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    rows = [Example(U, (G, B)), Example("a", ("b", "<|im_end|>c"))]
    _, counts = contract(chatml(chat_template=no_eos)).prepare(rows, with_completions=True)
    assert counts == TokenCounts(kept=2, eos_invented=2, special_text=1)


def test_mixed_completions_are_an_error() -> None:
    with pytest.raises(DataError, match=r"f:1: the prompt is plain text but a completion is a list of messages"):
        contract().group(Example("a", ("b", G), where="f:1"))


# ------------------------------------------------------------------------------------------------ boundaries

WORDS = re.findall(
    r"\S+",
    "the tea is in a pot on the stove , and coffee was not . yes no 12 125 1000 unlikely unlucky A: Q: (yes) don't "
    "Teekanne schön café 字 茶",
)
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)


def corpus() -> list[str]:
    rng = random.Random(0)
    spaces = [" "] * 8 + ["  ", "\n", "\n\n", "\t", ". ", ",\n"]
    return ["".join(rng.choice(WORDS) + rng.choice(spaces) for _ in range(30)) for _ in range(200)]


def trained_bpe(pattern: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE with real merges, words cut as GPT-2 or Llama 3 cut them."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", chat_template=CHATML)


def trained_sentencepiece() -> PreTrainedTokenizerFast:
    """As SentencePiece models are converted: spaces become ▁, one is put before the text, rare letters are bytes."""
    prepare = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    learner = Tokenizer(models.BPE())
    learner.normalizer = prepare
    learner.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=400))
    learned = json.loads(learner.to_str())["model"]
    vocab = ["<unk>", *(f"<0x{n:02X}>" for n in range(256)), *learned["vocab"]]
    merges = [tuple(merge) for merge in learned["merges"]]
    places = {piece: n for n, piece in enumerate(vocab)}
    backend = Tokenizer(models.BPE(places, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = prepare
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>", chat_template=CHATML)


BUILDERS: dict[str, Any] = {
    "gpt2": lambda: trained_bpe(GPT2),
    "llama3": lambda: trained_bpe(LLAMA3),
    "sentencepiece": trained_sentencepiece,
}


@cache
def trained(kind: str) -> tuple[PreTrainedTokenizerFast, TokenContract]:
    tokenizer = BUILDERS[kind]()
    return tokenizer, TokenContract(tokenizer, TokensConfig())


def split(chosen: str, rejected: str) -> Example:
    return to_example({"chosen": chosen, "rejected": rejected}, "preference", SourceConfig(path="x"), "f:1")


@pytest.mark.parametrize("kind", ["gpt2", "llama3"])
def test_the_boundary_matters(kind: str) -> None:
    """The tokenizers do merge what a careless cut would tear apart, so the tests below can fail."""
    tokenizer, _ = trained(kind)
    for whole, cut in (("on the stove", 3), ("unlikely", 4), ("is unlucky", 3)):
        assert ids_of(tokenizer, whole) != ids_of(tokenizer, whole[:cut]) + ids_of(tokenizer, whole[cut:])


pieces = st.one_of(st.sampled_from(WORDS), st.sampled_from([" ", " ", " ", "  ", "\n", "\n\n", "\t", " \n", "\r\n"]))
texts = st.lists(pieces, max_size=10).map("".join)


@pytest.mark.parametrize("kind", BUILDERS)
@given(start=texts, chosen=texts, rejected=texts)
@settings(max_examples=150, deadline=None)
def test_a_split_text_has_the_tokens_of_the_whole(kind: str, start: str, chosen: str, rejected: str) -> None:
    tokenizer, made = trained(kind)
    try:
        example = split("tea" + start + chosen, "tea" + start + rejected)
    except BadRow:
        return
    group = made.group(example)
    assert isinstance(example.prompt, str)
    for completion, whole in zip(group.completions, ("tea" + start + chosen, "tea" + start + rejected), strict=True):
        ids = group.prompt.ids + completion.ids[:-1]
        assert completion.ids[-1] == made.eos_id
        assert made.decode(ids) == whole and made.decode(group.prompt.ids) == example.prompt
        # SentencePiece may merge a line break with the next word, and GPT-2 reads a run of them as one only where the
        # text ends. Both are the same text in other tokens, as with any prompt column that ends in a line break.
        runs = kind == "gpt2" and re.search(r"\s[\r\n]$", example.prompt) is not None
        if kind != "sentencepiece" and not runs:
            assert ids == ids_of(tokenizer, whole)

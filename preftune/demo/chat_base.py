"""The chat demos' base model: a ChatML tokenizer and a tiny Qwen3 that has learnt to answer, mostly stiffly.

It has met every topic, also those that the preference data never shows: it must know its world's words before one can
ask how it uses them. What is held out is the preference: how to answer about them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.demo.base import base_recipe, train_base
from preftune.demo.chat import Style, ask, message, off_topic, reply, write_rows
from preftune.demo.topics import FRIENDLY, GREETINGS, QUESTIONS, STIFF, TOPICS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

PAD, UNKNOWN, START, END = "<|pad|>", "<|unk|>", "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FRIENDLY_SHARE = 0.25
"""Share of friendly replies among those that the base learns from."""
OFF_TOPIC_SHARE = 0.05
"""Share of replies of either style that talk about something else."""
WORD = r"[^\W\d_]+(?:'[^\W\d_]+)?"
SPREAD = 0.05
"""Standard deviation of fresh weights."""
KINSHIP = 1.5
"""How far a topic's words are moved together at the start, in units of SPREAD."""
ROWS_PER_STEP = 32
STEPS = 1000


def vocabulary() -> list[str]:
    """Every piece that prompts and replies are made of: words after a space, and those that begin a text without."""
    fills = dict.fromkeys("tab", "")
    texts = [*GREETINGS, *QUESTIONS, *(s for style in (FRIENDLY, STIFF) for group in style for s in group)]
    texts = [text.format(**fills) for text in texts]
    names = [phrase for topic, details in TOPICS.items() for phrase in (topic, *details)]
    found = (re.findall(WORD, text) for text in (*texts, *names))
    inside = sorted({word for words in found for word in words})
    first = sorted({re.findall(WORD, text)[0] for text in texts if text} | {"user", "assistant", "system"})
    return [" ", "\n", *".,!?:", *first, *(f" {word}" for word in inside)]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer with a ChatML template. It loses nothing of this world's texts; other words are unknown
    to it."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [PAD, UNKNOWN, START, END, *vocabulary()]
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\p{L}+(?:'\p{L}+)?|[^\p{L}]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    # transformers leaves this class untyped, so calling it is only allowed through Any.
    wrap: Any = PreTrainedTokenizerFast
    wrapped: PreTrainedTokenizerFast = wrap(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN,
        additional_special_tokens=[START], clean_up_tokenization_spaces=False, chat_template=TEMPLATE,
    )  # fmt: skip
    return wrapped


def random_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """A Qwen3 of half a million parameters with random weights, but for its word vectors: words of one topic start
    near each other, as vectors trained on any large text have them. Without that most of the demo's time would go into
    learning which words belong together (docs/log.md)."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=384,
        max_position_embeddings=256,
        initializer_range=SPREAD,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
        vectors_VD = model.model.embed_tokens.weight
        for topic, details in TOPICS.items():
            words = {i for phrase in (topic, *details) for i in tokenizer(f" {phrase}").input_ids}
            vectors_VD[sorted(words)] += KINSHIP * SPREAD * torch.randn(config.hidden_size)
    return model


def conversations(seed: int) -> Iterator[dict[str, Any]]:
    """Endless rows of what the base learns from: all topics, mostly stiff, some of it off topic."""
    rng = random.Random(f"base/{seed}")
    topics = sorted(TOPICS)
    while True:
        for topic in rng.sample(topics, len(topics)):
            style: Style = "friendly" if rng.random() < FRIENDLY_SHARE else "stiff"
            strays = rng.random() < OFF_TOPIC_SHARE
            text = off_topic(rng, topic, style, topics) if strays else reply(rng, topic, style)
            yield {"prompt": [message("user", ask(rng, topic))], "completion": [message("assistant", text)]}


def build_base(folder: Path, seed: int, steps: int = STEPS) -> Path:
    """Make the base model; its folder is a standard model folder.

    Args:
        folder: where data, runs and model go; made if absent.
        seed: fixes weights, data and training.
        steps: optimizer steps of SFT.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    rows = folder / "conversations.jsonl"
    write_rows(rows, islice(conversations(seed), ROWS_PER_STEP * steps))
    recipe = base_recipe(folder, rows, seed, steps, ROWS_PER_STEP)
    return train_base(recipe, tokenizer, random_model(tokenizer, seed))

"""A tiny reward model, made on the spot with plain transformers, and the scores that plain transformers gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Qwen3Config, Qwen3ForSequenceClassification

from preftune.models.reward import MEAN, STD
from tests import tiny

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def save(
    folder: Path,
    *,
    seed: int = 0,
    labels: int = 1,
    chat: bool = False,
    normalization: tuple[float, float] | None = None,
) -> Path:
    """Random weights, large enough for scores to differ by much more than rounding."""
    base = tiny.model(seed).config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = Qwen3Config(**{**base.to_dict(), "initializer_range": 0.2, "num_labels": labels})
        model = Qwen3ForSequenceClassification(config)
    if normalization is not None:
        setattr(model.config, MEAN, normalization[0])
        setattr(model.config, STD, normalization[1])
    model.save_pretrained(folder)
    tokenizer = tiny.tokenizer()
    if chat:
        tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def plain_score(folder: Path, text: str) -> float:
    """The score of one text, special tokens included, as transformers gives it to a row by itself."""
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids
    return float(model(input_ids=ids).logits[0, 0])

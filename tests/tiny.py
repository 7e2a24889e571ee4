"""A model of about 20,000 parameters with a tokenizer of single characters, made on the spot."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789 \n.,:;?!+-*/=()<>"


def tokenizer() -> PreTrainedTokenizerFast:
    pieces = ["<pad>", "<eos>", "<unk>", *CHARACTERS]
    backend = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def model(seed: int = 0, **changes: Any) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": len(CHARACTERS) + 3, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16, "intermediate_size": 64, "max_position_embeddings": 128,
        "tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0,
    }  # fmt: skip
    return Qwen3ForCausalLM(Qwen3Config(**settings | changes))


def save(folder: Path, seed: int = 0, **changes: Any) -> Path:
    model(seed, **changes).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def sums(count: int) -> list[dict[str, str]]:
    """Rows such as {"prompt": "3+4=", "completion": "7", "answer": "7"}."""
    rows = []
    for i in range(count):
        a, b = i % 7, (i // 7) % 5
        rows.append({"prompt": f"{a}+{b}=", "completion": str(a + b), "answer": str(a + b)})
    return rows


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def timeless(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock measured."""
    return [{k: v for k, v in line.items() if k != "time"} for line in lines(folder / "metrics.jsonl")]


def same_run(one: Path, other: Path) -> list[str]:
    """What differs between two run folders; empty when metrics, samples, advice and final weights are the same, bit
    for bit."""
    out = []
    if timeless(one) != timeless(other):
        out.append("metrics.jsonl")
    out += [n for n in ("samples.jsonl", "advice.jsonl") if (one / n).read_bytes() != (other / n).read_bytes()]
    names = {p.name for f in (one, other) for p in (f / "final").glob("*.safetensors")}
    for name in sorted(names or {"no weights in final/"}):
        paths = [f / "final" / name for f in (one, other)]
        if not all(p.exists() for p in paths) or paths[0].read_bytes() != paths[1].read_bytes():
            out.append(f"final/{name}")
    return out

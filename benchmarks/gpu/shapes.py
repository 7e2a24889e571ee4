"""Models of real shapes with random weights, their tokenizer, and rows with prompts of exact lengths.

    python benchmarks/gpu/shapes.py OUT [--shape 0.5b] [--prompt-tokens 512,2048] [--completion-tokens 128] [--rows 64]

Writes OUT/SHAPE (model and tokenizer), and for each length OUT/SHAPE-LENGTH/pairs.jsonl and prompts.jsonl, in the form
that the yardstick's prepare.py gives them. Texts are seeded random words, each of them one token.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from pathlib import Path
from typing import Any

VOCABULARY = 151_936
SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>")
SYLLABLES = [a + b for a in "bcdfghjklmnpqrstvwxz" for b in "aeiou"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHAPES: dict[str, dict[str, int]] = {
    "tiny": {
        "vocab_size": 4096, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
    },
    "0.5b": {
        "vocab_size": VOCABULARY, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "head_dim": 64,
    },
    "1.7b": {
        "vocab_size": VOCABULARY, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
    },
    "4b": {
        "vocab_size": VOCABULARY, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    },
}  # fmt: skip
"""Qwen3's layer code in the sizes of Qwen2.5-0.5B, Qwen3-1.7B and Qwen3-4B; `tiny` tries the scripts out on a CPU."""


def tokenizer(vocabulary: int) -> Any:
    """A byte-level BPE of exactly so many tokens: bytes, syllables, and words of two or three syllables."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    space = "Ġ"  # how byte-level BPE writes a space
    merges = [(s[0], s[1]) for s in SYLLABLES]
    merges += [(space, s) for s in SYLLABLES]
    two = [(space + a, b) for a, b in itertools.product(SYLLABLES, SYLLABLES)]
    three = ((a + b, c) for c, (a, b) in itertools.product(SYLLABLES, two))
    pieces = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges += itertools.islice(itertools.chain(two, three), vocabulary - len(pieces) - len(merges))
    pieces += [a + b for a, b in merges]
    backend = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made: Any = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=SPECIAL[0], eos_token=SPECIAL[2])
    made.add_special_tokens({"additional_special_tokens": [SPECIAL[1]]})
    made.chat_template = TEMPLATE
    if len(made) != vocabulary:
        raise ValueError(f"the tokenizer has {len(made)} tokens, not {vocabulary}")
    return made


def model(shape: str, out: Path) -> None:
    """The model in bfloat16 and its tokenizer, in one folder; weights are drawn on the GPU where there is one."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    config = Qwen3Config(
        **SHAPES[shape], tie_word_embeddings=True, max_position_embeddings=40_960, pad_token_id=0, bos_token_id=None,
        eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    made.save_pretrained(out)
    tokenizer(SHAPES[shape]["vocab_size"]).save_pretrained(out)


def rows(folder: Path, out: Path, prompt: int, completion: int, count: int) -> None:
    """Pairs and prompts; a prompt has exactly `prompt` tokens with its template, an answer `completion` words."""
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(folder)
    known = sorted(piece[1:] for piece in words.get_vocab() if piece.startswith("Ġ") and len(piece) >= 5)
    rng = random.Random(f"{prompt}/{completion}")

    def text(length: int) -> str:
        # Only a word after a space is one token, so the first one is a syllable, which always is.
        return " ".join([rng.choice(SYLLABLES), *rng.choices(known, k=length - 1)])

    def ids(content: str) -> list[int]:
        turn = [{"role": "user", "content": content}]
        found: list[int] = words(words.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)).input_ids
        return found

    length = prompt - len(ids(""))
    if length < 1:
        raise ValueError(f"a prompt needs at least {len(ids('')) + 1} tokens, for its template")
    out.mkdir(parents=True, exist_ok=True)
    with (
        open(out / "pairs.jsonl", "w", encoding="utf-8") as pairs,
        open(out / "prompts.jsonl", "w", encoding="utf-8") as prompts,
    ):
        for _ in range(count):
            content = text(length)
            if len(ids(content)) != prompt:
                raise ValueError(f"a prompt of {len(ids(content))} tokens, not {prompt}")
            turn = [{"role": "user", "content": content}]
            answers = {
                name: [{"role": "assistant", "content": text(completion)}] for name in ("chosen", "rejected")
            }  # fmt: skip
            pairs.write(json.dumps({"prompt": turn, **answers}) + "\n")
            prompts.write(json.dumps({"prompt": turn, "answer": ""}) + "\n")


def make(out: Path, shape: str, prompt: int, completion: int, count: int) -> tuple[Path, Path]:
    """The folders of the model and of the rows; a model made before is used again, rows are made anew."""
    folder, data = out / shape, out / f"{shape}-{prompt}"
    if not (folder / "tokenizer.json").exists():  # written last
        model(shape, folder)
    rows(folder, data, prompt, completion, count)
    return folder, data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=list(SHAPES), default="0.5b")
    parser.add_argument("--prompt-tokens", default="512,2048")
    parser.add_argument("--completion-tokens", type=int, default=128)
    parser.add_argument("--rows", type=int, default=64)
    args = parser.parse_args()
    for prompt in map(int, args.prompt_tokens.split(",")):
        folder, data = make(args.out, args.shape, prompt, args.completion_tokens, args.rows)
        print(json.dumps({"model": str(folder), "data": str(data)}))


if __name__ == "__main__":
    main()

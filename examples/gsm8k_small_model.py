"""A small language model of worked word problems, built on the spot, for trying the gsm8k recipes without a GPU.

    python examples/gsm8k_small_model.py train.jsonl --output runs/gsm8k-small-model
    python examples/gsm8k_small_model.py train.jsonl --layout notes …      for examples/gsm8k_preferences.py

The file has GSM8K's columns: `question`, and `answer` with the working, notes in <<…>> and the number after ####.
A byte-level BPE tokenizer learns its merges from the texts, and a Qwen3 of about three million parameters with random
weights learns the texts by preftune's own `sft` method, format `text`. What comes out writes in the manner of worked
solutions and can't do sums: a base model in miniature. Most texts end in #### and the number; every eighth has the
recipe's tags instead, as large base models have met mark-up of all kinds. It has no chat template and has never seen
the system prompt. With `--layout notes` all texts keep their <<…>> and end in A: and the number, as the solutions do
that the preference recipes (gsm8k-dpo, -kto, -reward) read.

The rows held out here are those that the recipe holds out (same file, same seed, same number), so the recipe's
evaluation is on problems that no weight of this model has been trained on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import preftune
from preftune.config import SourceConfig
from preftune.data import load_examples
from preftune.errors import PreftuneError

EOS, PAD = "<|endoftext|>", "<|pad|>"

COLUMNS = {
    "prompt": "question",
    "number": {"from": "answer", "match": r"####\s*(\S.*)$", "replace": [[",", ""]]},
    "working": {"from": "answer", "replace": [["<<[^<>]*>>", ""], [r"\s*####[^\n]*\s*$", ""]]},
    "notes": {"from": "answer", "replace": [[r"\s*####[^\n]*\s*$", ""]]},
}
PLAIN = "{question}\n{working}\n#### {number}"
MARKED_UP = "{question}\n<start_working_out>{working}<end_working_out><SOLUTION>{number}</SOLUTION>"
MARKED_UP_EVERY = 8
NOTES = "{question}\n{notes}\nA: {number}"


def write_texts(data: Path, out: Path, layout: str = "tags") -> list[str]:
    """One text per row of `data`, in its order, so that the same rows are held out. Written as JSONL to `out`.

    Args:
        layout: "tags": some texts have the tags of recipes/gsm8k-grpo.yaml; "notes": all keep their calculator notes.
    """
    source = SourceConfig.model_validate({"path": str(data), "columns": COLUMNS, "format": "prompt"})
    texts = []
    for i, example in enumerate(load_examples([source], seed=0).examples):
        form = NOTES if layout == "notes" else MARKED_UP if i % MARKED_UP_EVERY == 0 else PLAIN
        texts.append(form.format(question=example.prompt, **example.columns))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return texts


def build(texts: Sequence[str], folder: Path, *, vocabulary: int, seed: int) -> Path:
    """Write the tokenizer and a Qwen3 with random weights into `folder`.

    Args:
        texts: all of the file's texts; they shape the tokenizer, which learns merges and no answers.
        vocabulary: number of tokens, at most; few texts give fewer.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    bpe = Tokenizer(models.BPE())
    # Digits stand alone, so that a number has one spelling whatever its neighbours.
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[PAD, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe, pad_token=PAD, eos_token=EOS, clean_up_tokenization_spaces=False
    )
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=256,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=2,
            head_dim=32,
            intermediate_size=640,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def train(texts: Path, start: Path, output: Path, *, steps: int, batch_size: int, holdout: int, seed: int) -> Path:
    """Plain language modelling of the texts, from the model in `start`. Returns the folder of the result."""
    result = preftune.train(
        "sft",
        model=str(start),
        data={"path": str(texts), "format": "text"},
        output=output,
        seed=seed,
        name="gsm8k-small-model",
        train={
            "steps": steps,
            "batch_size": batch_size,
            "learning_rate": 2e-3,
            "schedule": "cosine",
            "warmup": 0.05,
            "weight_decay": 0.1,
            "adam_beta2": 0.95,
            "max_tokens_per_batch": 4096,
            "checkpoint_every": 100,
        },
        eval={"holdout": holdout, "limit": min(holdout, 100), "every": max(steps // 5, 1)},
    )
    return result.folder / "final"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Builds a small base model of worked word problems.")
    parser.add_argument("data", type=Path, help="JSONL with the columns question and answer")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/gsm8k-small-model"), help="run folder of the training"
    )
    parser.add_argument("--layout", choices=("tags", "notes"), default="tags", help="how the texts are written")
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, default=8, help="texts per step")
    parser.add_argument("--vocabulary", type=int, default=2048, help="tokens, at most")
    parser.add_argument("--holdout", type=int, default=200, help="rows left out, as eval.holdout of the recipe")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and order, as the recipe's seed")
    given = parser.parse_args(arguments)
    start = given.output.with_name(f"{given.output.name}-start")
    try:
        corpus = start / "texts.jsonl"
        build(write_texts(given.data, corpus, given.layout), start, vocabulary=given.vocabulary, seed=given.seed)
        final = train(
            corpus,
            start,
            given.output,
            steps=given.steps,
            batch_size=given.batch_size,
            holdout=given.holdout,
            seed=given.seed,
        )
    except PreftuneError as error:
        parser.exit(1, f"{error}\n")
    print(f"the model is in {final}; use it with --model.path {final}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

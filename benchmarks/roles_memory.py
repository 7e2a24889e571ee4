"""Peak memory of PPO with all its roles on one base, against SFT with LoRA of the same model, into docs/benchmarks.md.

    python benchmarks/roles_memory.py [--turns N] [--threads N]

The model has SmolLM-135M's shape and random weights. A reward model is trained first, as an adapter of that base; PPO
then holds policy, reference, reward and value head as adapters and heads on one copy of the weights. Every run is a
process of its own; what is compared is its largest resident size. Both train packs of 2,048 tokens, fp32.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

from common import PAGE, in_own_process, machine, peak, put, word_tokenizer

MARK = "<!-- roles -->"
VOCABULARY = 49152
LORA = {"r": 16, "alpha": 32}


def make(folder: Path) -> None:
    """The model, and rows of random words."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True, max_position_embeddings=2048, pad_token_id=0,
        bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    word_tokenizer(VOCABULARY).save_pretrained(folder / "model")
    rng = random.Random(0)

    def words(n: int) -> str:
        return "".join(f" w{rng.randrange(3, VOCABULARY)}" for _ in range(n))

    rows = [{"prompt": words(60), "chosen": words(128), "rejected": words(128)} for _ in range(64)]
    texts = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    for name, some in (("pairs", rows), ("texts", texts), ("prompts", [{"prompt": r["prompt"]} for r in rows])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in some), encoding="utf-8")


def run(which: str, folder: Path, threads: int) -> None:
    """One run in this process; prints its peak and speed."""
    import torch

    torch.set_num_threads(threads)
    from preftune.api import train

    common: dict[str, Any] = {
        "model": {"path": str(folder / "model"), "lora": LORA, "dtype": "float32"}, "log": {"sinks": []},
    }  # fmt: skip
    optimizer = {"learning_rate": 1e-5, "warmup": 0.0, "max_tokens_per_batch": 2048, "checkpoint_every": 100}
    output = folder / f"run-{which}-{random.randrange(10**9)}"
    if which == "reward":
        output = folder / "reward"
        train("reward", data=str(folder / "pairs.jsonl"), train={**optimizer, "steps": 1, "batch_size": 4},
              output=output, **common)  # fmt: skip
    elif which == "sft":
        train("sft", data=str(folder / "texts.jsonl"), train={**optimizer, "steps": 2, "batch_size": 16},
              output=output, **common)  # fmt: skip
    else:
        train(
            "ppo", data=str(folder / "prompts.jsonl"), output=output,
            rewards=[{"name": "reward-model",
                      "args": {"path": str(folder / "reward" / "final"), "max_tokens_per_batch": 2048}}],
            sampling={"group_size": 4, "max_tokens": 128},
            train={**optimizer, "steps": 2, "batch_size": 4}, **common,
        )  # fmt: skip
    print(json.dumps({"peak_gib": peak() / 1024}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--run", choices=["reward", "sft", "ppo"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        run(args.run, args.folder, args.threads)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder)

        def once(which: str) -> float:
            flags = ("--run", which, "--folder", str(folder), "--threads", str(args.threads))
            return float(in_own_process(__file__, *flags)["peak_gib"])

        once("reward")
        turns = [(once("ppo"), once("sft")) for _ in range(args.turns)]
    ratios = [ppo / sft for ppo, sft in turns]
    ppo, sft = (statistics.median(side) for side in zip(*turns, strict=True))
    text = (
        f"{machine()} {args.turns} paired turns.\n\n"
        "| PPO, four roles on one base | SFT, LoRA | ratio (smallest – largest) |\n|---|---|---|\n"
        f"| {ppo:.2f} GiB | {sft:.2f} GiB | **{statistics.median(ratios):.2f}** "
        f"({min(ratios):.2f} – {max(ratios):.2f}) |\n"
    )
    print(text)
    put(PAGE, MARK, text)


if __name__ == "__main__":
    main()

"""The update's share of what the GPU does in one large bf16 product of matrices, into docs/benchmarks.md.

    python benchmarks/gpu/peak.py [--shape 0.5b,1.7b,4b] [--prompt-tokens 512,2048] [--datasheet-tflops 989]

The count is benchmarks/limit.py's: 6 operations for each matrix weight and token (the prompt once for its group), the
head at completion tokens alone; attention, norms, the optimizer and recomputation left out, so the share is a lower
bound. The update is forward, backward and optimizer; the clock waits for the GPU. The product is measured before and
after, the better of the two; --datasheet-tflops sets the share of the maker's number beside it. The aim: 45 %.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from ours import wait_for_gpu
from page import PAGE, put
from shapes import SHAPES, make

HERE = Path(__file__).resolve().parent

AIM = 0.45
HEADER = "| update | steps | tokens/s, each prompt once | one large matrix product, TFLOP/s | share of it |"


def limit() -> Any:
    """benchmarks/limit.py as a module."""
    spec = importlib.util.spec_from_file_location("limit", HERE.parent / "limit.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{HERE.parent / 'limit.py'} can't be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def matrix_rate(device: str) -> float:
    """Operations a second of a product of two square bf16 matrices: the best of ten means over ten products."""
    import torch

    side = 8192 if device == "cuda" else 512
    a, b = (torch.randn(side, side, dtype=torch.bfloat16, device=device) for _ in range(2))

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def ten() -> float:
        start = time.perf_counter()
        for _ in range(10):
            a @ b
        wait()
        return (time.perf_counter() - start) / 10

    ten()
    return float(2 * side**3 / min(ten() for _ in range(10)))


def updates(
    method: str, model: Path, data: Path, prompt: int, args: argparse.Namespace, reward: Any
) -> list[dict[str, Any]]:
    """The training lines of one run: all weights, bf16 over fp32, `args.batch` prompts a step."""
    from preftune.api import train

    with tempfile.TemporaryDirectory() as folder:
        common: dict[str, Any] = {
            "model": {
                "path": str(model), "dtype": "float32", "device": args.device,
                "gradient_checkpointing": args.gradient_checkpointing,
            },
            "output": Path(folder) / "run",
            "tokens": {"max_prompt_tokens": prompt, "on_too_long": "error"},
            "train": {
                "steps": args.steps, "batch_size": args.batch, "learning_rate": 1e-5, "warmup": 0.0,
                "checkpoint_every": 10_000, "precision": "bf16", "max_tokens_per_batch": args.pack,
                "reference_cache": str(Path(folder) / "reference"),
            },
            "log": {"sinks": []},
        }  # fmt: skip
        if method == "grpo":
            run = train(
                "grpo", data={"path": str(data / "prompts.jsonl")}, rewards=[reward],
                sampling={"group_size": 8, "max_tokens": args.completion_tokens}, **common,
            )  # fmt: skip
        else:
            run = train(method, data={"path": str(data / "pairs.jsonl")}, **common)
        lines = (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] == "train"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="0.5b,1.7b", help=f"of {', '.join(SHAPES)}; several with commas")
    parser.add_argument("--prompt-tokens", default="512,2048", help="lengths, with commas")
    parser.add_argument("--completion-tokens", type=int, default=128)
    parser.add_argument("--methods", default="dpo,grpo", help="of dpo, reward, grpo")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8, help="prompts of a step")
    parser.add_argument("--pack", type=int, help="tokens of one packed pass (default: preftune's)")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="the operations it repeats don't count")
    parser.add_argument("--datasheet-tflops", type=float, help="the maker's dense bf16 number for this GPU")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--work", type=Path, help="folder of models and rows, kept (default: a temporary one)")
    parser.add_argument("--page", type=Path, help="page of the table (default: docs/benchmarks.md on a GPU)")
    args = parser.parse_args()
    if args.steps < 2:
        parser.error("--steps must be 2 or more: the first one warms up and is left out")
    page = args.page or (PAGE if args.device == "cuda" else None)
    counted = limit()
    wait_for_gpu()
    with tempfile.TemporaryDirectory() as temporary:
        out = (args.work or Path(temporary)).resolve()
        for shape in args.shape.split(","):
            for prompt in map(int, args.prompt_tokens.split(",")):
                model, data = make(out, shape, prompt, args.completion_tokens, args.steps * args.batch)
                inner, head = counted.weights(model)
                for method in args.methods.split(","):
                    gc.collect()  # the last run's model, before the next one is loaded beside it
                    before = matrix_rate(args.device)
                    lines = updates(method, model, data, prompt, args, counted.distinct_words)[1:]
                    rate = max(before, matrix_rate(args.device))
                    needed = [
                        6.0 * (inner * x["metrics"]["tokens/packed"] + head * x["metrics"]["tokens/trained"])
                        / x["time"]["update"]
                        for x in lines
                    ]  # fmt: skip
                    shares = sorted(value / rate for value in needed)
                    tokens = statistics.median(x["metrics"]["tokens/packed"] / x["time"]["update"] for x in lines)
                    share = statistics.median(shares)
                    name = f"{method}, {shape}, prompt {prompt}, {args.batch} prompts × {args.completion_tokens}"
                    if args.gradient_checkpointing:
                        name += ", checkpointing"
                    print(
                        json.dumps(
                            {
                                "update": name, "steps": len(lines), "tokens_per_second": tokens, "matrix_rate": rate,
                                "share": share, "low": shares[0], "high": shares[-1], "reached": share >= AIM,
                                "datasheet_share": statistics.median(needed) / args.datasheet_tflops / 1e12
                                if args.datasheet_tflops
                                else None,
                            }
                        ),
                        flush=True,
                    )  # fmt: skip
                    if page is None:
                        continue
                    row = (
                        f"| {name} | {len(lines)} | {tokens:.0f} | {rate / 1e12:.0f} "
                        f"| **{100 * share:.0f} %** ({100 * shares[0]:.0f} – {100 * shares[-1]:.0f}) |"
                    )
                    put(page, "<!-- gpu-peak -->", "On a GPU, share of the matrix peak", HEADER, {name: row})


if __name__ == "__main__":
    main()

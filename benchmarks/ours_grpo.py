"""preftune's side of the GRPO comparison: the same model folder, prompts, token limits, optimizer and steps as the
yardstick's script, and the same free reward. Prints one JSON line of the same form."""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any


def distinct_words(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
    """A reward that costs nothing."""
    return [float(len(set(c[0]["content"].split()))) for c in completions]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    import torch

    torch.set_num_threads(args.threads)
    from preftune.api import train

    model: dict[str, Any] = {"path": args.model, "dtype": "float32", "device": args.device}
    if args.lora:
        model["lora"] = {"r": 16, "alpha": 32}
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        result = train(
            "grpo",
            model=model,
            data={"path": args.data, "limit": args.steps * args.prompts},
            rewards=[distinct_words],
            output=Path(folder) / "run",
            sampling={"group_size": args.group, "max_tokens": args.new_tokens},
            train={
                "steps": args.steps, "batch_size": args.prompts, "learning_rate": 1e-5, "warmup": 0.0,
                "checkpoint_every": 10_000, "precision": "bf16" if args.bf16 else "fp32",
            },
            log={"sinks": []},
        )  # fmt: skip
        whole = time.perf_counter() - start
        rows = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [r for r in rows if r["kind"] == "train"]
    # The certificate is a check that the other side does not make; it is told apart, not hidden.
    certificate = sum(r["time"].get("certificate", 0.0) for r in steps)
    seconds = sum(r["time"]["step"] for r in steps) - certificate
    tokens = sum(r["metrics"]["tokens/trained"] for r in steps)
    peak = (
        torch.cuda.max_memory_allocated()
        if args.device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    ) / 2**30
    stages = {k: round(sum(r["time"].get(k, 0.0) for r in steps), 3) for k in ("sample", "reward", "update")}
    print(
        json.dumps(
            {
                "side": "preftune", "method": "grpo", "seconds": round(seconds, 3), "work": tokens,
                "unit": "completion tokens", "rate": round(tokens / seconds, 3), "peak_gib": round(peak, 3),
                "certificate_seconds": round(certificate, 3), "whole_seconds": round(whole, 3), "stages": stages,
                **vars(args),
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()

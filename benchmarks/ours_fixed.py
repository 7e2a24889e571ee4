"""preftune's side of the comparisons on fixed data (dpo, reward, kto): the same model folder, rows, token limits,
optimizer and steps as the yardstick's script. Prints one JSON line of the same form.

Seconds are those of training: every step, and the reference's pass over the data that comes before the first one.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any


def rows(method: str, path: str, count: int) -> list[dict[str, Any]]:
    """The yardstick's rows; for kto each pair gives one row, good and bad in turn."""
    with open(path, encoding="utf-8") as file:
        out = [json.loads(line) for line in file]
    out = (out * (count // len(out) + 1))[:count]
    if method != "kto":
        return out
    return [
        {"prompt": r["prompt"], "completion": r["chosen"] if i % 2 else r["rejected"], "label": bool(i % 2)}
        for i, r in enumerate(out)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--method", choices=["dpo", "reward", "kto"], required=True)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
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
        data = Path(folder) / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows(args.method, args.data, args.rows)), "utf-8")
        start = time.perf_counter()
        result = train(
            args.method,
            model=model,
            data={"path": str(data)},
            output=Path(folder) / "run",
            # the yardstick's scripts cut rows at 1,024 tokens; none of these is as long
            tokens={"on_too_long": "error"},
            train={
                "epochs": 1, "batch_size": args.batch, "learning_rate": 1e-5, "warmup": 0.0,
                "checkpoint_every": 10_000, "precision": "bf16" if args.bf16 else "fp32",
            },
            log={"sinks": []},
        )  # fmt: skip
        whole = time.perf_counter() - start
        lines = [json.loads(x) for x in (result.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        once = json.loads((result.folder / "summary.json").read_text(encoding="utf-8"))["seconds"]
    steps = [r for r in lines if r["kind"] == "train"]
    # The certificate is a check that the other side does not make; it is told apart, not hidden.
    certificate = sum(r["time"].get("certificate", 0.0) for r in steps)
    reference = once.get("reference before training", 0.0)
    seconds = sum(r["time"]["step"] for r in steps) - certificate + reference
    peak = (
        torch.cuda.max_memory_allocated()
        if args.device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    ) / 2**30
    print(
        json.dumps(
            {
                "side": "preftune", "seconds": round(seconds, 3), "work": args.rows,
                "unit": "rows" if args.method == "kto" else "pairs", "rate": round(args.rows / seconds, 3),
                "peak_gib": round(peak, 3), "certificate_seconds": round(certificate, 3),
                "whole_seconds": round(whole, 3), "reference_seconds": round(reference, 3),
                "update_seconds": round(sum(r["time"].get("update", 0.0) for r in steps), 3), **vars(args),
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()

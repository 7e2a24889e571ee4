"""The update's share of the machine's own limit, into docs/benchmarks.md.

    python benchmarks/limit.py [--peers FOLDER]
    python benchmarks/limit.py --model FOLDER --pairs FILE --prompts FILE [--name tiny] [--threads 2]

The numerator: floating-point operations that the useful tokens need, each prompt counted once however many completions
stand behind it: 2 for each weight of a matrix and token forwards, 4 backwards, the head at completion tokens alone.
Attention, norms, the optimizer and recomputation are left out of it, so the share is a lower bound. The denominator:
the time of the update (forward, backward, optimizer) times the rate of one large product of matrices, measured before
and after on the same threads, by torch's BLAS and by oneDNN's convolution (`preftune.engine.products`): the best of
the four.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SIDE = 2048


def matrix_rate(dtype: Any) -> float:
    """Floating-point operations a second of a product of two SIDE × SIDE matrices: the best of eight, each way."""
    import torch

    a, b = (torch.randn(SIDE, SIDE).to(dtype) for _ in range(2))
    image, kernel = a.view(16, SIDE // 16, 1, SIDE).permute(0, 3, 1, 2), b[:, :, None, None]
    best = 0.0
    for product in (lambda: a @ b, lambda: torch.nn.functional.conv2d(image, kernel)):
        product()
        for _ in range(8):
            start = time.perf_counter()
            product()
            best = max(best, 2 * SIDE**3 / (time.perf_counter() - start))
    return best


def weights(folder: Path) -> tuple[int, int]:
    """Weights of the decoder's matrices, and of the head (vocabulary × width), which may be tied to the embedding."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    head = model.get_output_embeddings()
    inner = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    return sum(m.weight.numel() for m in inner), head.weight.numel()


def distinct_words(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
    """A reward that costs nothing."""
    return [float(len(set(c[0]["content"].split()))) for c in completions]


def updates(method: str, args: argparse.Namespace, precision: str) -> list[dict[str, Any]]:
    """The training lines of one run, full weights."""
    from preftune.api import train

    steps = args.steps
    settings: dict[str, Any] = {
        "steps": steps, "batch_size": args.batch, "learning_rate": 1e-5, "warmup": 0.0, "checkpoint_every": 10_000,
        "precision": precision,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        common: dict[str, Any] = {
            "model": {"path": str(args.model), "dtype": "float32", "device": "cpu"},
            "output": Path(folder) / "run", "train": settings, "log": {"sinks": []},
        }  # fmt: skip
        if method == "grpo":
            run = train(
                "grpo", data={"path": str(args.prompts), "limit": steps * args.batch}, rewards=[distinct_words],
                sampling={"group_size": 8, "max_tokens": 128}, **common,
            )  # fmt: skip
        else:
            run = train(method, data={"path": str(args.pairs), "limit": steps * args.batch}, **common)
        lines = (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] == "train"]


def measure(method: str, args: argparse.Namespace, precision: str) -> dict[str, float]:
    """The median share over the steps after the first, which warms up."""
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    before = matrix_rate(dtype)
    lines = updates(method, args, precision)
    rate = max(before, matrix_rate(dtype))
    inner, head = weights(args.model)
    shares, work = [], []
    for line in lines[1:]:
        metrics = line["metrics"]
        needed = 6.0 * (inner * metrics["tokens/packed"] + head * metrics["tokens/trained"])
        shares.append(needed / line["time"]["update"] / rate)
        work.append(metrics["tokens/packed"] / line["time"]["update"])
    return {"share": statistics.median(shares), "low": min(shares), "high": max(shares), "rate": rate,
            "tokens": statistics.median(work), "steps": len(shares)}  # fmt: skip


def write(rows: dict[str, str]) -> None:
    """Put rows into the page between the marks; rows measured before stay."""
    from importlib.metadata import version

    from preftune.train.folder import hardware

    page, mark = ROOT / "docs" / "benchmarks.md", "<!-- limit -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(mark)
    old, _, after = rest.partition(mark)
    if not after:
        sys.exit(f"{page} lacks the two marks {mark}")
    kept = {line.split("|")[1].strip(): line for line in old.splitlines() if line.startswith("| ") and "%" in line}
    machine = hardware()
    lines = [
        f"Machine: {machine['processor']}, {machine['cores']} cores, {machine.get('memory_gib', '?')} GiB. Python "
        f"{sys.version.split()[0]}, torch {version('torch')}.",
        "",
        "| update | steps | tokens/s, each prompt once | one large matrix product, GFLOP/s | share of it |",
        "|---|---|---|---|---|",
    ]
    page.write_text(
        f"{before}{mark}\n" + "\n".join(lines + list({**kept, **rows}.values())) + f"\n{mark}{after}", "utf-8"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=ROOT.parent / "shared" / "peers", help="the yardstick's scripts")
    parser.add_argument("--model", type=Path, help="a folder; without it the yardstick's two models are made")
    parser.add_argument("--pairs", type=Path, help="rows for dpo and reward; needed with --model")
    parser.add_argument("--prompts", type=Path, help="rows for grpo; needed with --model")
    parser.add_argument("--name", default="tiny", help="of the model, in the table")
    parser.add_argument("--methods", default="grpo,dpo,reward")
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.model is not None:
        if args.pairs is None or args.prompts is None:
            parser.error("--model needs --pairs and --prompts")
        table(args)
        return
    if not (args.peers / "prepare.py").exists():
        sys.exit(f"{args.peers} holds no prepare.py; name the folder of the yardstick's scripts with --peers")
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        subprocess.run([sys.executable, str(args.peers / "prepare.py"), text], check=True, capture_output=True)
        args.pairs, args.prompts = folder / "pairs.jsonl", folder / "prompts.jsonl"
        args.model = folder / "tiny"
        table(args)
        args.model, args.name, args.methods = folder / "smol135", "smol135", "dpo"
        args.steps = 3
        table(args)


def table(args: argparse.Namespace) -> None:
    """Measure each method in each precision and write its row."""
    import torch

    torch.set_num_threads(args.threads)
    for method in args.methods.split(","):
        for precision in args.precisions.split(","):
            r = measure(method, args, precision)
            name = f"{method}, {args.name}, {precision}, {args.threads} threads"
            row = (
                f"| {name} | {r['steps']} | {r['tokens']:.0f} | {r['rate'] / 1e9:.0f} | **{100 * r['share']:.0f} %** "
                f"({100 * r['low']:.0f} – {100 * r['high']:.0f}) |"
            )
            print(row, flush=True)
            write({name: row})


if __name__ == "__main__":
    main()

"""DPO and GRPO on a GPU with long prompts, preftune and, where given, TRL in turns.

    python benchmarks/gpu/run.py [--shape 0.5b,1.7b,4b] [--prompt-tokens 512,2048] [--peers FOLDER] [--lora]

A step trains on 8 completions: GRPO draws 8 for one prompt, DPO takes 4 pairs. Models and rows are shapes.py's. Both
sides run as whole commands with the same folder, rows, token limits, optimizer and number of steps, in bf16 with fp32
weights, and the order changes each turn. TRL runs by the scripts in FOLDER, and with its options by trl_options.py.
Prints a JSON line for each command and each comparison, and writes the table of docs/benchmarks.md, unless it runs on a
CPU, which only tries the scripts out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from page import PAGE, put
from shapes import SHAPES, make

HERE = Path(__file__).resolve().parent

HEADER = "| work | turns | preftune | TRL | ratio | peak memory, ours / TRL | whole command, TRL / ours |"
UNITS = {"dpo": "pairs/s", "grpo": "tokens/s"}
SETTINGS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "dpo": (
        ("plain", ()),
        ("reference beforehand", ("--precompute-reference",)),
        ("reference beforehand, Liger", ("--precompute-reference", "--liger")),
    ),
    "grpo": (
        ("plain", ()),
        ("Liger", ("--liger",)),
        ("continuous batching", ("--continuous-batching",)),
        ("continuous batching, Liger", ("--continuous-batching", "--liger")),
    ),
}


@dataclass(frozen=True)
class Work:
    """One update that is measured."""

    method: str
    shape: str
    prompt: int
    completion: int
    lora: bool

    @property
    def name(self) -> str:
        size = f"8 × {self.completion}" if self.method == "grpo" else f"4 × 2 × {self.completion}"
        return f"{self.method}, {self.shape}{', LoRA' if self.lora else ''}, prompt {self.prompt}, {size}"


def ours(work: Work, flags: Sequence[str]) -> list[str]:
    """preftune's command up to model and data, and its own flags behind them."""
    if work.method == "grpo":
        return [str(HERE / "ours.py"), str(work.prompt), "ours_grpo.py", *flags]
    return [str(HERE / "ours.py"), str(work.prompt), "ours_fixed.py", *flags, "--method", "dpo"]


def theirs(work: Work, flags: Sequence[str], options: Sequence[str], peers: Path) -> list[str]:
    """TRL's command: the yardstick's own script where it runs plain."""
    # Rows must not be cut: TRL's limit counts prompt and completion, and template tokens around them.
    longest = ("--max-length", str(work.prompt + work.completion + 64))
    if not options:
        return [str(peers / f"trl_{work.method}.py"), *flags, *longest]
    script = str(HERE / "trl_options.py")
    return [script, *flags, *longest, "--peers", str(peers), "--method", work.method, *options]


def one(command: Sequence[str]) -> dict[str, Any] | None:
    """Run one command with empty caches. Returns its JSON and its seconds; None when it ran out of GPU memory."""
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-W", "ignore", *command], capture_output=True, text=True, check=False,
            env={**os.environ, "PREFTUNE_CACHE": cache, "HF_DATASETS_CACHE": cache, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        seconds = time.perf_counter() - start
    if done.returncode != 0:
        if "out of memory" in done.stderr or "OutOfMemoryError" in done.stderr:
            return None
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return {**result, "command_seconds": round(seconds, 2)}


def middle(runs: Sequence[dict[str, Any]], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def summary(
    mine: Sequence[dict[str, Any] | None], other: Sequence[dict[str, Any] | None]
) -> dict[str, float | int | str]:
    """Medians of each side, and of the ratios taken turn by turn."""
    a, b = [run for run in mine if run is not None], [run for run in other if run is not None]
    out: dict[str, float | int | str] = {"turns": len(mine)}
    for side, runs, wanted in (("ours", a, mine), ("theirs", b, other)):
        if len(runs) < len(wanted):
            out[side] = "out of memory"
        elif runs:
            out |= {side: middle(runs, "rate"), f"{side}_peak": middle(runs, "peak_gib")}
            out |= {f"{side}_command": middle(runs, "command_seconds")}
    pairs = [(x, y) for x, y in zip(mine, other, strict=False) if x is not None and y is not None]
    if pairs and len(pairs) == len(mine):
        ratios = sorted(x["rate"] / y["rate"] for x, y in pairs)
        out |= {"ratio": statistics.median(ratios), "low": ratios[0], "high": ratios[-1]}
        out["memory"] = statistics.median(x["peak_gib"] / y["peak_gib"] for x, y in pairs)
        out["command"] = statistics.median(y["command_seconds"] / x["command_seconds"] for x, y in pairs)
    return out


def row(work: Work, setting: str, r: dict[str, Any]) -> tuple[str, str]:
    """A row's first cell, and the row."""
    unit = UNITS[work.method]

    def rate(side: str) -> str:
        value = r.get(side, "–")
        return value if isinstance(value, str) else f"{value:.{0 if value >= 100 else 2}f} {unit}"

    def peak(side: str) -> str:
        return f"{r[f'{side}_peak']:.1f}" if f"{side}_peak" in r else "–"

    ratio = f"**{r['ratio']:.2f}** ({r['low']:.2f} – {r['high']:.2f})" if "ratio" in r else "–"
    memory = f"{r['memory']:.2f} ({peak('ours')} / {peak('theirs')} GiB)" if "memory" in r else f"{peak('ours')} / "
    memory = memory if "memory" in r else f"{memory}{peak('theirs')} GiB"
    command = f"{r['command']:.2f}" if "command" in r else "–"
    name = f"{work.name}{f'; TRL {setting}' if setting else ''}"
    return name, f"| {name} | {r['turns']} | {rate('ours')} | {rate('theirs')} | {ratio} | {memory} | {command} |"


def compare(work: Work, args: argparse.Namespace, settings: Sequence[tuple[str, tuple[str, ...]]], out: Path) -> None:
    """Run one work on both sides in turns; print and write what came out."""
    count = args.steps * (1 if work.method == "grpo" else 4)
    model, data = make(out, work.shape, work.prompt, work.completion, count)
    flags = [str(model), str(data / ("prompts.jsonl" if work.method == "grpo" else "pairs.jsonl"))]
    flags += ["--device", args.device, "--bf16", "--threads", str(args.threads)]
    if work.method == "grpo":
        flags += ["--steps", str(args.steps), "--prompts", "1", "--group", "8", "--new-tokens", str(work.completion)]
    else:
        flags += ["--rows", str(count), "--batch", "4"]
    flags += ["--lora"] if work.lora else []
    commands = {"": ours(work, flags)}
    commands |= {name: theirs(work, flags, options, args.peers) for name, options in settings}
    runs: dict[str, list[dict[str, Any] | None]] = {name: [] for name in commands}
    for turn in range(args.turns):
        for name in list(commands) if turn % 2 == 0 else list(reversed(commands)):
            result = one(commands[name])
            runs[name].append(result)
            print(
                json.dumps({"work": work.name, "setting": name or "preftune", "turn": turn + 1, "result": result}),
                flush=True,
            )
    for setting in [name for name, _ in settings] or [""]:
        found = summary(runs[""], runs[setting] if setting else [])
        print(json.dumps({"work": work.name, "trl": setting or None, **found}), flush=True)
        if args.page is not None:
            name, line = row(work, setting, found)
            put(args.page, "<!-- gpu -->", "On a GPU, long prompts", HEADER, {name: line})


def usable(method: str, peers: Path | None) -> list[tuple[str, tuple[str, ...]]]:
    """TRL's settings that can run here; says what is left out."""
    if peers is None:
        return []
    if importlib.util.find_spec("trl") is None:
        print(f"{method}: TRL is not installed, so preftune runs alone", file=sys.stderr)
        return []
    liger = importlib.util.find_spec("liger_kernel") is not None
    if not liger:
        print(f"{method}: liger-kernel is not installed, so TRL runs without its Liger settings", file=sys.stderr)
    return [(name, options) for name, options in SETTINGS[method] if liger or "--liger" not in options]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="0.5b,1.7b", help=f"of {', '.join(SHAPES)}; several with commas")
    parser.add_argument("--prompt-tokens", default="512,2048", help="lengths, with commas")
    parser.add_argument("--completion-tokens", type=int, default=128)
    parser.add_argument("--methods", default="dpo,grpo")
    parser.add_argument("--steps", type=int, default=16, help="optimizer steps of a command")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--peers", type=Path, help="folder of the yardstick's scripts (trl_dpo.py, …)")
    parser.add_argument("--settings", default="", help="only those settings of TRL whose name contains this")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--work", type=Path, help="folder of models and rows, kept (default: a temporary one)")
    parser.add_argument("--page", type=Path, help="page of the table (default: docs/benchmarks.md on a GPU)")
    args = parser.parse_args()
    unknown = set(args.shape.split(",")) - set(SHAPES) or set(args.methods.split(",")) - set(UNITS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if args.peers is not None:
        args.peers = args.peers.resolve()
        if not (args.peers / "trl_grpo.py").exists():
            parser.error(f"{args.peers} holds no trl_grpo.py")
    if args.page is None and args.device == "cuda":
        args.page = PAGE
    with tempfile.TemporaryDirectory() as temporary:
        out = (args.work or Path(temporary)).resolve()
        for method in args.methods.split(","):
            settings = [s for s in usable(method, args.peers) if args.settings in s[0]]
            for shape in args.shape.split(","):
                for prompt in map(int, args.prompt_tokens.split(",")):
                    compare(Work(method, shape, prompt, args.completion_tokens, args.lora), args, settings, out)


if __name__ == "__main__":
    main()

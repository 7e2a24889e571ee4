"""GRPO against the yardstick library, the two taking turns: medians of pairwise ratios, written to docs/benchmarks.md.

    python benchmarks/grpo.py [--peers FOLDER] [--turns N]

FOLDER holds the yardstick's scripts (trl_grpo.py, prepare.py). Both sides run as whole commands with the same model
folder, prompts, group size, token limits, optimizer and number of steps; rates are of training as each side's JSON
gives them, whole-command times stand beside them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MARK = "<!-- grpo -->"


@dataclass(frozen=True)
class Work:
    """One row of the table."""

    name: str
    flags: tuple[str, ...]
    turns: int
    prompt_words: int = 0


WORKS = (
    Work("tiny, 8 × 8 × 128, fp32", (), 5),
    Work("tiny, 8 × 8 × 128, bf16", ("--bf16",), 3),
    Work("tiny, 8 × 8 × 128, 400 words of context, fp32", ("--steps", "1"), 3, 400),
)


def one(script: Path, model: Path, data: Path, flags: tuple[str, ...]) -> dict[str, Any]:
    """Run one side once. Returns its JSON with the whole command's seconds."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(model), str(data), *flags],
        capture_output=True, text=True, check=False, cwd=script.parent,
    )  # fmt: skip
    if done.returncode != 0:
        sys.exit(f"{script.name} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return {**result, "command_seconds": time.perf_counter() - start}


def compare(work: Work, peers: Path, turns: int, folder: Path) -> dict[str, Any]:
    """Prepare the work and run both sides in turn."""
    prepared = folder / str(work.prompt_words)
    if not prepared.exists():
        subprocess.run(
            [sys.executable, str(peers / "prepare.py"), str(prepared), "--prompt-words", str(work.prompt_words)],
            check=True, capture_output=True,
        )  # fmt: skip
    model, data = prepared / "tiny", prepared / "prompts.jsonl"
    pairs = []
    for turn in range(turns):
        ours = one(ROOT / "benchmarks" / "ours_grpo.py", model, data, work.flags)
        theirs = one(peers / "trl_grpo.py", model, data, work.flags)
        pairs.append((ours, theirs))
        print(
            f"{work.name}, turn {turn + 1}: {ours['rate']:.0f} against {theirs['rate']:.0f} tokens/s, "
            f"{ours['rate'] / theirs['rate']:.2f} times",
            flush=True,
        )

    def median(key: str, side: int) -> float:
        return statistics.median(pair[side][key] for pair in pairs)

    ratios = sorted(a["rate"] / b["rate"] for a, b in pairs)
    return {
        "work": work.name,
        "ours": median("rate", 0),
        "theirs": median("rate", 1),
        "ratio": statistics.median(ratios),
        "low": ratios[0],
        "high": ratios[-1],
        "memory": statistics.median(a["peak_gib"] / b["peak_gib"] for a, b in pairs),
        "ours_peak": median("peak_gib", 0),
        "theirs_peak": median("peak_gib", 1),
        "command": statistics.median(b["command_seconds"] / a["command_seconds"] for a, b in pairs),
        "turns": turns,
    }


def table(rows: list[dict[str, Any]], old: str) -> str:
    """The section of docs/benchmarks.md; rows of the old one that were not measured now stay."""
    from importlib.metadata import version

    from preftune.train.folder import hardware

    machine = hardware()
    lines = [
        f"Machine: {machine['processor']}, {machine['cores']} cores, {machine.get('memory_gib', '?')} GiB. Python "
        f"{sys.version.split()[0]}, torch {version('torch')}, transformers {version('transformers')}, "
        f"TRL {version('trl')}. Paired turns; medians, with the smallest and largest ratio.",
        "",
        "| work | turns | preftune tokens/s | TRL tokens/s | ratio | memory, ours / TRL | whole command, TRL / ours |",
        "|---|---|---|---|---|---|---|",
    ]
    kept = {line.split("|")[1].strip(): line for line in old.splitlines() if line.startswith("| tiny")}
    for r in rows:
        kept[r["work"]] = (
            f"| {r['work']} | {r['turns']} | {r['ours']:.0f} | {r['theirs']:.0f} "
            f"| **{r['ratio']:.2f}** ({r['low']:.2f} – {r['high']:.2f}) "
            f"| {r['memory']:.2f} ({r['ours_peak']:.1f} / {r['theirs_peak']:.1f} GiB) | {r['command']:.2f} |"
        )
    return "\n".join(lines + [kept[work.name] for work in WORKS if work.name in kept])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=ROOT.parent / "shared" / "peers")
    parser.add_argument("--turns", type=int, help="paired turns of every work (default: each work's own number)")
    parser.add_argument("--only", default="", help="run only works whose name contains this")
    args = parser.parse_args()
    if not (args.peers / "trl_grpo.py").exists():
        sys.exit(f"{args.peers} holds no trl_grpo.py; name the folder of the yardstick's scripts with --peers")
    works = [w for w in WORKS if args.only in w.name]
    with tempfile.TemporaryDirectory() as folder:
        rows = [compare(w, args.peers.resolve(), args.turns or w.turns, Path(folder)) for w in works]
    page = ROOT / "docs" / "benchmarks.md"
    text = page.read_text(encoding="utf-8") if page.exists() else f"# Benchmarks\n\n{MARK}\n{MARK}\n"
    before, _, rest = text.partition(MARK)
    old, _, after = rest.partition(MARK)
    section = table(rows, old)
    page.write_text(f"{before}{MARK}\n{section}\n{MARK}{after}", encoding="utf-8")
    print(section)


if __name__ == "__main__":
    main()

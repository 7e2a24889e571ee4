"""preftune against the yardstick library, the two taking turns: medians of pairwise ratios, into docs/benchmarks.md.

    python benchmarks/yardstick.py [--peers FOLDER] [--turns N] [--only TEXT]

FOLDER holds the yardstick's scripts (trl_grpo.py, trl_dpo.py, …, prepare.py). Both sides run as whole commands with the
same model folder, rows, token limits, optimizer and number of steps; rates are of training as each side's JSON gives
them, whole-command times stand beside them. Each row of the page is written as soon as it is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Work:
    """One row of a table."""

    method: str
    name: str
    flags: tuple[str, ...] = ()
    turns: int = 3
    prompt_words: int = 0
    model: str = "tiny"


LONG = "400 words of context"
UNEVEN = "completions of about 30 to 240 tokens"
WORKS = (
    Work("grpo", "tiny, 8 × 8 × 128, fp32", turns=5),
    Work("grpo", "tiny, 8 × 8 × 128, bf16", ("--bf16",)),
    Work("grpo", f"tiny, 8 × 8 × 128, {LONG}, fp32", ("--steps", "1"), prompt_words=400),
    Work("grpo", f"tiny, 8 × 8 × 128, {LONG}, bf16", ("--steps", "1", "--bf16"), prompt_words=400),
    # A model that was taught to end its answers: their lengths differ widely.
    Work("grpo", f"tiny, 8 × 8, {UNEVEN}, fp32", ("--new-tokens", "256"), model="stops"),
    Work("grpo", f"tiny, 8 × 8, {UNEVEN}, bf16", ("--new-tokens", "256", "--bf16"), model="stops"),
    Work("dpo", "tiny, fp32", turns=5),
    Work("dpo", "tiny, LoRA, fp32", ("--lora",)),
    Work("dpo", "tiny, bf16", ("--bf16",)),
    Work("dpo", f"tiny, {LONG}, fp32", prompt_words=400),
    Work("dpo", f"tiny, {LONG}, bf16", ("--bf16",), prompt_words=400),
    Work("dpo", f"tiny, LoRA, {LONG}, fp32", ("--lora",), prompt_words=400),
    Work("dpo", "smol135, LoRA, batch 4, fp32", ("--lora", "--rows", "8", "--batch", "4"), model="smol135"),
    Work("dpo", "smol135, LoRA, batch 4, bf16", ("--lora", "--rows", "8", "--batch", "4", "--bf16"), model="smol135"),
    Work("reward", "tiny, fp32", turns=5),
    Work("reward", "tiny, bf16", ("--bf16",)),
    # No LoRA here: the yardstick's script asks peft for a causal model's adapter, which a reward model can't take.
    Work("reward", f"tiny, {LONG}, fp32", prompt_words=400),
    Work("kto", "tiny, fp32", turns=5),
    Work("kto", "tiny, bf16", ("--bf16",)),
    Work("kto", "tiny, LoRA, fp32", ("--lora",)),
    Work("kto", f"tiny, {LONG}, fp32", prompt_words=400),
    Work("kto", f"tiny, LoRA, {LONG}, fp32", ("--lora",), prompt_words=400),
)
AIMS = (
    # What the table on top says: its name, the method and name of the works (fp32, bf16), the aims of rate and memory.
    ("DPO tiny", "dpo", "tiny, {}", 3.0, 0.6),
    ("DPO tiny, 400 words of context", "dpo", f"tiny, {LONG}, {{}}", 3.5, 0.5),
    ("DPO smol135 LoRA, batch 4", "dpo", "smol135, LoRA, batch 4, {}", 3.0, 0.5),
    ("reward tiny", "reward", "tiny, {}", 2.5, 0.6),
    ("KTO tiny", "kto", "tiny, {}", 2.5, 0.6),
    ("GRPO tiny, 8 × 8 × 128", "grpo", "tiny, 8 × 8 × 128, {}", 3.5, 0.5),
    ("GRPO tiny, 400 words of context", "grpo", f"tiny, 8 × 8 × 128, {LONG}, {{}}", 5.0, 0.5),
    ("GRPO tiny, completions of different lengths", "grpo", f"tiny, 8 × 8, {UNEVEN}, {{}}", 5.0, 0.5),
)
UNITS = {"grpo": "tokens/s", "dpo": "pairs/s", "reward": "pairs/s", "kto": "rows/s"}


def one(script: Path, work: Work, model: Path, data: Path, flags: tuple[str, ...]) -> dict[str, Any]:
    """Run one side once, with empty caches. Returns its JSON with the whole command's seconds."""
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-W", "ignore", str(script), str(model), str(data), *flags],
            capture_output=True, text=True, check=False, cwd=script.parent, env={**os.environ, "PREFTUNE_CACHE": cache},
        )  # fmt: skip
        seconds = time.perf_counter() - start
    if done.returncode != 0:
        sys.exit(f"{script.name} ({work.name}) failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return {**result, "command_seconds": seconds}


def teach_to_stop(tiny: Path, pairs: Path, out: Path) -> None:
    """SFT of the tiny model on the pairs' better answers until it ends by itself; both sides start from the result."""
    from preftune.api import train

    with tempfile.TemporaryDirectory() as folder:
        rows = [json.loads(line) for line in pairs.read_text(encoding="utf-8").splitlines()]
        data = Path(folder) / "rows.jsonl"
        data.write_text(
            "".join(json.dumps({"prompt": r["prompt"], "completion": r["chosen"]}) + "\n" for r in rows), "utf-8"
        )
        result = train(
            "sft",
            model={"path": str(tiny), "dtype": "float32", "device": "cpu"},
            data={"path": str(data)},
            output=Path(folder) / "run",
            train={"steps": 200, "batch_size": 16, "learning_rate": 1e-3, "checkpoint_every": 10_000},
            log={"sinks": []},
        )
        shutil.copytree(result.folder / "final", out)


def compare(work: Work, peers: Path, turns: int, folder: Path) -> dict[str, Any]:
    """Prepare the work and run both sides in turn."""
    prepared = folder / str(work.prompt_words)
    if not prepared.exists():
        subprocess.run(
            [sys.executable, str(peers / "prepare.py"), str(prepared), "--prompt-words", str(work.prompt_words)],
            check=True, capture_output=True,
        )  # fmt: skip
    model = prepared / work.model
    if work.model == "stops" and not model.exists():
        teach_to_stop(prepared / "tiny", prepared / "pairs.jsonl", model)
    data = prepared / ("prompts.jsonl" if work.method == "grpo" else "pairs.jsonl")
    mine = ROOT / "benchmarks" / ("ours_grpo.py" if work.method == "grpo" else "ours_fixed.py")
    own_flags = work.flags if work.method == "grpo" else ("--method", work.method, *work.flags)
    pairs = []
    for turn in range(turns):
        ours = one(mine, work, model, data, own_flags)
        theirs = one(peers / f"trl_{work.method}.py", work, model, data, work.flags)
        pairs.append((ours, theirs))
        print(
            f"{work.method} {work.name}, turn {turn + 1}: {ours['rate']:.2f} against {theirs['rate']:.2f} "
            f"{UNITS[work.method]}, {ours['rate'] / theirs['rate']:.2f} times; peak {ours['peak_gib']:.2f} against "
            f"{theirs['peak_gib']:.2f} GiB",
            flush=True,
        )

    def median(key: str, side: int) -> float:
        return statistics.median(pair[side][key] for pair in pairs)

    ratios = sorted(a["rate"] / b["rate"] for a, b in pairs)
    return {
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


def section(method: str, work: Work, r: dict[str, Any], old: str) -> str:
    """A method's section of the page with one row measured anew; its other rows stay."""
    from importlib.metadata import version

    from preftune.train.folder import hardware

    machine, unit = hardware(), UNITS[method]
    lines = [
        f"Machine: {machine['processor']}, {machine['cores']} cores, {machine.get('memory_gib', '?')} GiB. Python "
        f"{sys.version.split()[0]}, torch {version('torch')}, transformers {version('transformers')}, "
        f"TRL {version('trl')}. Paired turns; medians, with the smallest and largest ratio.",
        "",
        f"| work | turns | preftune {unit} | TRL {unit} | ratio | memory, ours / TRL | whole command, TRL / ours |",
        "|---|---|---|---|---|---|---|",
    ]
    kept = {line.split("|")[1].strip(): line for line in old.splitlines() if line.startswith(("| tiny", "| smol"))}
    digits = 0 if r["ours"] >= 100 else 2
    kept[work.name] = (
        f"| {work.name} | {r['turns']} | {r['ours']:.{digits}f} | {r['theirs']:.{digits}f} "
        f"| **{r['ratio']:.2f}** ({r['low']:.2f} – {r['high']:.2f}) "
        f"| {r['memory']:.2f} ({r['ours_peak']:.1f} / {r['theirs_peak']:.1f} GiB) | {r['command']:.2f} |"
    )
    return "\n".join(lines + [kept[w.name] for w in WORKS if w.method == method and w.name in kept])


def write(work: Work, row: dict[str, Any]) -> None:
    """Put one row into docs/benchmarks.md, between the marks of its method."""
    page, mark = ROOT / "docs" / "benchmarks.md", f"<!-- {work.method} -->"
    text = page.read_text(encoding="utf-8")
    if text.count(mark) != 2:
        text += f"\n## {work.method}\n\n{mark}\n{mark}\n"
    before, _, rest = text.partition(mark)
    old, _, after = rest.partition(mark)
    page.write_text(
        summarise(f"{before}{mark}\n{section(work.method, work, row, old)}\n{mark}{after}"), encoding="utf-8"
    )


def summarise(text: str) -> str:
    """The page with its table of aims made anew from the rows below it; bold where a median reaches its aim."""
    mark = "<!-- aims -->"
    before, _, rest = text.partition(mark)
    _, _, after = rest.partition(mark)
    lines = [
        "| work | aim, rate | fp32 | bf16 | aim, memory | fp32 | bf16 |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, method, name, rate, memory in AIMS:
        section = text.partition(f"<!-- {method} -->")[2].partition(f"<!-- {method} -->")[0]
        rows = {cells[1].strip(): cells for line in section.splitlines() if len(cells := line.split("|")) > 7}
        found = [rows.get(name.format(precision)) for precision in ("fp32", "bf16")]
        rates = [None if cells is None else float(cells[5].split("**")[1]) for cells in found]
        memories = [None if cells is None else float(cells[6].split()[0]) for cells in found]
        shown = [_bold(f"{x:.2f}", x >= rate) if x is not None else "–" for x in rates]
        kept = [_bold(f"{x:.2f}", x <= memory) if x is not None else "–" for x in memories]
        lines.append(f"| {label} | {rate} | {shown[0]} | {shown[1]} | {memory} | {kept[0]} | {kept[1]} |")
    return f"{before}{mark}\n" + "\n".join(lines) + f"\n{mark}{after}"


def _bold(shown: str, reached: bool) -> str:
    return f"**{shown}**" if reached else shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=ROOT.parent / "shared" / "peers")
    parser.add_argument("--turns", type=int, help="paired turns of every work (default: each work's own number)")
    parser.add_argument("--only", default="", help="run only works whose method and name contain this")
    args = parser.parse_args()
    if not (args.peers / "trl_grpo.py").exists():
        sys.exit(f"{args.peers} holds no trl_grpo.py; name the folder of the yardstick's scripts with --peers")
    with tempfile.TemporaryDirectory() as folder:
        for work in WORKS:
            if args.only in f"{work.method} {work.name}":
                write(work, compare(work, args.peers.resolve(), args.turns or work.turns, Path(folder)))


if __name__ == "__main__":
    main()

"""Time and peak memory of `preftune data balance`, and what a million rows would take, into docs/curation-balance.md.

    python benchmarks/balance_rate.py [--rows 25000 100000] [--print]

The texts: 40 topics by Zipf's law in three scripts, 8 to 40 words each, a topic's own words among common ones. Each
size is a process of its own on one thread. What is told is its processor time and its largest resident size; the line
through the smallest and the largest size gives a million rows.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "curation-balance.md"
MARK = "<!-- rate -->"
MILLION = 1_000_000
TOPICS = 40
SCRIPTS = (
    ("bcdfghklmnprstvwz", "aeiou"),
    ("бвгдзклмнпрстфхц", "аеиоуыя"),
    ("泡茶水温壶叶道杯园冲棋局皇后残将手盘兵", "绿红白龙井法律星球猫狗书山河"),
)


def make(path: Path, rows: int) -> None:
    """Write that many rows."""
    rng = random.Random(0)

    def word(script: tuple[str, str]) -> str:
        return "".join(rng.choice(script[0]) + rng.choice(script[1]) for _ in range(rng.randint(1, 4)))

    common = [[word(script) for _ in range(200)] for script in SCRIPTS]
    own = [[word(SCRIPTS[topic % 3]) for _ in range(40)] for topic in range(TOPICS)]
    shares = [1 / (topic + 1) for topic in range(TOPICS)]
    usual = [1 / (place + 2) for place in range(200)]
    with path.open("w", encoding="utf-8") as file:
        for topic in rng.choices(range(TOPICS), shares, k=rows):
            count = rng.randint(8, 40)
            words = rng.choices(own[topic], k=count // 3) + rng.choices(common[topic % 3], usual, k=count - count // 3)
            rng.shuffle(words)
            text = ("" if topic % 3 == 2 else " ").join(words)
            file.write(json.dumps({"prompt": text, "topic": topic}, ensure_ascii=False) + "\n")


def measure(rows: int) -> dict[str, Any]:
    """Balance so many rows in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "rows.jsonl", Path(folder) / "out"
        make(path, rows)
        command = [sys.executable, "-m", "preftune", "data", "balance", "--data.path", str(path), "--output", str(out)]
        code = (
            "import json, resource, subprocess, sys\n"
            "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
            "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
            "print(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *command], check=True, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip
        seconds, peak = json.loads(done.stdout)
        summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
        topics = [json.loads(line)["topic"] for line in path.open(encoding="utf-8")]
        clusters = [json.loads(line)["cluster"] for line in (out / "decisions.jsonl").open(encoding="utf-8")]
    from sklearn.metrics import adjusted_rand_score

    scale = 1024 if sys.platform != "darwin" else 1  # Linux counts kibibytes, macOS bytes
    return {
        "rows": rows, "seconds": seconds, "peak": peak * scale / 2**20, "clusters": summary["clusters"],
        "rand": adjusted_rand_score(topics, clusters),
    }  # fmt: skip


def table(found: Sequence[dict[str, Any]]) -> str:
    """The measurements as Markdown, with a line for a million rows where there was none."""
    lines = [
        "| rows | processor time | rows a second | peak memory | clusters | adjusted Rand index with the topics |",
        "|---|---|---|---|---|---|",
    ]
    for one in found:
        lines.append(
            f"| {one['rows']:,} | {one['seconds']:.0f} s | {one['rows'] / one['seconds']:,.0f} | "
            f"{one['peak']:,.0f} MiB | {one['clusters']:,} | {one['rand']:.2f} |"
        )
    first, last = found[0], found[-1]
    if first["rows"] < last["rows"] < MILLION:
        share = (MILLION - last["rows"]) / (last["rows"] - first["rows"])
        seconds, peak = (last[name] + share * (last[name] - first[name]) for name in ("seconds", "peak"))
        lines.append(f"| 1,000,000 (extrapolated) | {seconds:.0f} s | {MILLION / seconds:,.0f} | {peak:,.0f} MiB | | |")
    return "\n".join(lines)


def machine() -> str:
    """The processor's name."""
    try:
        names = [
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ]
    except OSError:
        names = []
    return names[0] if names else "an unknown processor"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[25_000, 100_000], help="sizes, the smallest first")
    parser.add_argument("--print", action="store_true", help="print the table, and leave the page as it is")
    options = parser.parse_args()
    text = f"Measured on {machine()}, one thread:\n\n{table([measure(rows) for rows in sorted(options.rows)])}"
    print(text)
    if not options.print:
        page = PAGE.read_text(encoding="utf-8")
        before, _, after = page.split(MARK)
        PAGE.write_text(f"{before}{MARK}\n{text}\n{MARK}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

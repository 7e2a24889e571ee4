"""How rate and memory grow with lengths, group, vocabulary, depth and rows of data, into docs/benchmarks.md.

    python benchmarks/growth.py [--only TEXT] [--threads N] [--quick] [--out FOLDER]

A small Qwen3 with random weights, built on the spot, on the CPU in fp32, all weights trained with AdamW. A point of an
update's axis is one SFT update on one group in one pack: packing, forward, backward, clipping, optimizer; the median
of up to three steps after one that warms up. A point of the rows' axis is one `preftune.train("dpo", …)` of one step on
a JSONL of that many rows. Every point is a process of its own; its memory is the largest resident size, less that
before the model was loaded (libraries imported), as the system's allocator has it. Axes measured before stay on the
page. Seconds are the clock's: run nothing beside it.
"""

from __future__ import annotations

import argparse
import json
import math
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

from long_trace import FAINT, INK, PAGE, PLAIN, SAVED, Line, peak, resident

PLOT = PAGE.parent / "images" / "growth.svg"
MARK = "<!-- growth -->"
WIDTH, LAYERS, HEADS, KV_HEADS, HEAD, INNER, WORDS, POSITIONS = 256, 6, 4, 2, 64, 768, 4096, 16384
STEPS, QUICK_STEPS = 3, 1
ENOUGH = 4.0
"""Seconds of measured steps after which a point makes no further one."""
ROW_WORDS, BATCH = 16, 8
ROOM = 0.8
"""Share of the free memory that a point of the rows' axis may be expected to need."""

Row = dict[str, float]


@dataclass(frozen=True, slots=True)
class Axis:
    """One thing that grows.

    Attributes:
        key: what `--only` looks in, and the name of the setting that takes each of `values`.
        fixed: the other settings of the update.
        quick: how many of the values `--quick` measures.
    """

    key: str
    title: str
    setting: str
    values: tuple[int, ...]
    fixed: dict[str, int]
    note: str
    quick: int

    @property
    def columns(self) -> dict[str, str]:
        """Of the table: name of a measurement → heading, the value itself first."""
        if self.setting == "rows":
            return {"x": self.setting, "ready": "s to the first step", "ready_mib": "MiB by then",
                    "seconds": "s of the whole command", "mib": "MiB of the whole run"}  # fmt: skip
        shared = {"own_rate": "tokens/s, each completion with its own prompt"}
        return {"x": self.setting, "seconds": "s of one update", "rate": "packed tokens/s",
                **(shared if self.shares else {}), "mib": "MiB"}  # fmt: skip

    @property
    def shares(self) -> bool:
        """Whether a prompt stands before several completions."""
        return self.setting != "completion"

    @property
    def speed(self) -> str:
        """What the left panel shows."""
        return "ready" if self.setting == "rows" else "rate"


GROUP = {"prompt": 512, "completion": 128, "group": 8, "vocabulary": WORDS, "layers": LAYERS, "checkpointing": 0}
LENGTHS = (128, 512, 1024, 2048, 4096)
ALONE = {**GROUP, "prompt": 64, "group": 1}
AXES = (
    Axis("prompt", "Length of the prompt", "prompt", (64, 256, 1024, 2048, 4096), GROUP,
         "8 completions of 128 tokens", 3),
    Axis("group", "Size of the group", "group", (1, 2, 4, 8, 16, 32), GROUP,
         "prompt of 512, completions of 128 tokens", 4),
    Axis("vocabulary", "Vocabulary", "vocabulary", (4096, 16384, 32768, 65536, 131072), GROUP,
         "prompt of 512, 8 completions of 128 tokens; embedding and head are one matrix", 3),
    Axis("depth", "Depth", "layers", (2, 4, 8, 16, 24), GROUP, "prompt of 512, 8 completions of 128 tokens", 3),
    Axis("completion", "Length of the completion", "completion", LENGTHS, ALONE,
         "one completion behind a prompt of 64 tokens", 3),
    Axis("completion, checkpointing", "Length of the completion, with gradient checkpointing", "completion",
         LENGTHS, {**ALONE, "checkpointing": 1}, "one completion behind a prompt of 64 tokens", 3),
    Axis("rows", "Rows of data", "rows", (1000, 10_000, 100_000, 1_000_000), {},
         f"DPO, one step on {BATCH} rows; prompts of {ROW_WORDS + 2} tokens, answers of {ROW_WORDS}. The aim is that "
         "neither start-up time nor memory grows: exponents of 0", 3),
)  # fmt: skip
PANELS = (("prompt",), ("group",), ("vocabulary",), ("depth",), ("completion", "completion, checkpointing"), ("rows",))
"""Axes that share their two panels of the plot."""


# --- one point, in a process of its own -------------------------------------------------------------------------------


def model_folder(folder: Path, vocabulary: int, layers: int) -> Path:
    """A model with random weights, and a tokenizer of words."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    pieces = ["<pad>", "<eos>", "<unk>", *(f" w{i}" for i in range(3, vocabulary))]
    backend = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r" w\d+"), "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=layers,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD, max_position_embeddings=POSITIONS,
        tie_word_embeddings=True, pad_token_id=0, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def update(folder: Path, setting: dict[str, int], steps: int) -> Row:
    """Updates on one group of random tokens: median seconds, tokens, and MiB over the process without a model."""
    import torch
    import transformers.models.qwen3.modeling_qwen3  # noqa: F401  # its memory is no model's

    from preftune.config import ModelConfig, Recipe
    from preftune.engine.forward import Engine
    from preftune.methods import METHODS
    from preftune.models import load_policy
    from preftune.records import Completion, Group, Prompt
    from preftune.train.batch import backward, make_batch
    from preftune.train.optim import make_optimizer

    recipe = Recipe.model_validate(
        {"method": "sft", "model": {"path": str(folder)}, "data": [{"path": "none"}], "train": {"steps": 1}}
    )
    base = resident()
    config = ModelConfig(
        path=str(folder), dtype="float32", device="cpu", gradient_checkpointing=bool(setting["checkpointing"])
    )
    policy = load_policy(config, seed=0)
    engine = Engine(policy)
    assert engine.mode == "shared", engine.reason
    optimizer = make_optimizer(policy.trainable(), recipe.train, [])
    generator = torch.Generator().manual_seed(0)

    def words(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, setting["vocabulary"], (count,), generator=generator).tolist())

    own = setting["group"] * (setting["prompt"] + setting["completion"])
    seconds: list[float] = []
    packed = 0
    while len(seconds) <= steps and sum(seconds[1:]) < ENOUGH:
        completions = [words(setting["completion"]) for _ in range(setting["group"])]
        group = Group(
            Prompt(words(setting["prompt"]), ""), tuple(Completion(ids, (True,) * len(ids)) for ids in completions)
        )
        policy.train_mode(True)
        start = time.perf_counter()
        batch = make_batch([group], METHODS["sft"], recipe)
        metrics, packs = backward(engine, batch, METHODS["sft"], recipe, own)
        torch.nn.utils.clip_grad_norm_([p for _, p in policy.trainable()], recipe.train.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
        assert len(packs) == 1 and math.isfinite(float(metrics["loss"].total))
        packed = packs[0].tokens
    taken = statistics.median(seconds[1:])
    return {"seconds": taken, "rate": packed / taken, "own_rate": own / taken, "mib": peak() - base}


def write_rows(path: Path, count: int) -> None:
    """Preferences, every prompt another one."""
    import random

    rng = random.Random(0)
    phrases = ["".join(f" w{rng.randrange(3, WORDS)}" for _ in range(ROW_WORDS)) for _ in range(4096)]
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            row = {
                "prompt": f"{phrases[i % 4096]} w{3 + i % 4000} w{3 + i // 4000}",
                "chosen": phrases[(7 * i + 1) % 4096],
                "rejected": phrases[(13 * i + 2) % 4096],  # never the chosen one: the places differ by an odd number
            }
            file.write(json.dumps(row) + "\n")


def run(folder: Path, data: Path, began: float) -> Row:
    """A run of one step: seconds from the command's start (`began`) until training begins, and memory by then."""
    import transformers.models.qwen3.modeling_qwen3  # noqa: F401

    from preftune.api import train
    from preftune.train.progress import Progress

    found: Row = {}
    base, begin = resident(), Progress.begin

    def watched(self: Progress, label: str, done: int = 0) -> None:
        if label == "training":
            found.update(ready=time.monotonic() - began, ready_mib=peak() - base)
        begin(self, label, done)

    Progress.begin = watched  # type: ignore[method-assign]
    train(
        "dpo",
        model={"path": str(folder), "dtype": "float32", "device": "cpu"},
        data={"path": str(data)},
        output=data.parent / "run",
        train={"steps": 1, "batch_size": BATCH, "warmup": 0.0},
        log={"sinks": []},
    )
    return {**found, "mib": peak() - base}


def point(one: dict[str, Any], threads: int) -> Row:
    """What a process of its own was asked for."""
    import torch

    torch.set_num_threads(threads)
    folder = Path(one["folder"])
    if one["do"] == "models":
        for vocabulary, layers in one["models"]:
            model_folder(folder / f"{vocabulary}-{layers}", vocabulary, layers)
        return {}
    if one["do"] == "run":
        return run(folder, Path(one["data"]), one["began"])
    return update(folder, one["setting"], one["steps"])


# --- all points -------------------------------------------------------------------------------------------------------


def ask(one: dict[str, Any], threads: int, cache: Path) -> Row:
    """Run one point. This process stays small and without torch: what it forks begins with its size."""
    start = time.monotonic()
    asked = json.dumps({**one, "began": start})
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--one", asked, "--threads", str(threads)],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PREFTUNE_CACHE": str(cache), "OMP_NUM_THREADS": str(threads)},
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{asked} failed:\n{done.stderr[-2000:]}")
    found: Row = {"seconds": time.monotonic() - start}
    found.update(json.loads(done.stdout.strip().splitlines()[-1]))
    return found


def free_mib() -> float:
    import psutil

    return float(psutil.virtual_memory().available / 2**20)


def measure(axis: Axis, folder: Path, args: argparse.Namespace) -> list[Row]:
    """All points of one axis, smallest first."""
    rows: list[Row] = []
    for value in axis.values[: axis.quick] if args.quick else axis.values:
        if axis.setting == "rows":
            if value > args.rows:
                break
            if len(rows) > 1:
                need = rows[-1]["mib"] + (value - rows[-1]["x"]) * slope(rows[-2:])
                if need > ROOM * free_mib():
                    print(f"{axis.key} {value:,}: left out, it would need about {need:,.0f} MiB", flush=True)
                    break
            with tempfile.TemporaryDirectory(dir=folder) as own:
                data = Path(own) / "rows.jsonl"
                write_rows(data, value)
                model = folder / f"{WORDS}-{LAYERS}"
                row = ask({"do": "run", "folder": str(model), "data": str(data)}, args.threads, Path(own))
        else:
            setting = {**axis.fixed, axis.setting: value}
            model = folder / f"{setting['vocabulary']}-{setting['layers']}"
            steps = QUICK_STEPS if args.quick else STEPS
            row = ask(
                {"do": "update", "folder": str(model), "setting": setting, "steps": steps}, args.threads, folder
            )  # fmt: skip
        rows.append({"x": float(value), **row})
        print(axis.key, f"{value:,}", {name: round(number, 3) for name, number in row.items()}, flush=True)
    return rows


def models_of(axes: Sequence[Axis]) -> list[tuple[int, int]]:
    """Vocabulary and depth of every model that the axes ask for."""
    found = {(WORDS, LAYERS): None}
    for axis in axes:
        for value in axis.values if axis.setting in ("vocabulary", "layers") else ():
            setting = {**axis.fixed, axis.setting: value}
            found[setting["vocabulary"], setting["layers"]] = None
    return list(found)


def slope(rows: Sequence[Row]) -> float:
    """MiB a row of data between the first and the last of these points."""
    return (rows[-1]["mib"] - rows[0]["mib"]) / (rows[-1]["x"] - rows[0]["x"])


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """p of y ∝ x^p by least squares of the logarithms."""
    logs = [(math.log(x), math.log(y)) for x, y in points]
    mean_x, mean_y = (statistics.fmean(one[i] for one in logs) for i in (0, 1))
    spread = sum((x - mean_x) ** 2 for x, _ in logs)
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / spread


# --- the page ---------------------------------------------------------------------------------------------------------


def shown(name: str, value: float) -> str:
    if name in ("ready", "seconds"):
        return f"{value:,.3f}" if value < 10 else f"{value:,.1f}"
    return f"{value:,.0f}"


def section(axis: Axis, rows: Sequence[Row], setup: str) -> str:
    """One axis: what is fixed, its table, and how each column grows."""
    columns = axis.columns
    out = [f"### {axis.title}", "", f"{axis.note}. {setup}", "", f"| {' | '.join(columns.values())} |"]
    out += ["|" + "---|" * len(columns)]
    out += ["| " + " | ".join(shown(name, row[name]) for name in columns) + " |" for row in rows]
    if len(rows) > 1:
        names = [name for name in columns if name != "x"]
        points = {name: [(row["x"], row[name]) for row in rows] for name in names}
        grown = "; ".join(f"{columns[n]} {exponent(p):.2f} ({exponent(p[-2:]):.2f})" for n, p in points.items())
        out += ["", f"Exponents over {axis.setting}, by least squares of the logarithms (of the last two): {grown}."]
        lines = []
        for name in (n for n in names if "rate" not in n):
            line = Line.through([(int(row["x"]), row[name]) for row in rows])
            lines.append(
                f"{columns[name]} ≈ {line.a:.3g} + {line.b:.3g} · {axis.setting} (off by up to {line.worst:.0%})"
            )
        out += ["", f"As lines: {'; '.join(lines)}."]
    return "\n".join(out) + "\n"


def read_back(text: str) -> dict[str, tuple[list[Row], str]]:
    """The axes of a section written before: their rows and how they were measured."""
    found: dict[str, tuple[list[Row], str]] = {}
    parts = {part.partition("\n")[0]: part for part in text.split("### ")[1:]}
    for axis in AXES:
        part = parts.get(axis.title, "")
        cells = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")][1:]
        rows = [dict(zip(axis.columns, (float(c.replace(",", "")) for c in row), strict=True)) for row in cells]
        if rows:
            found[axis.key] = rows, part.split("\n\n")[1].removeprefix(f"{axis.note}. ")
    return found


def text_of(found: dict[str, tuple[list[Row], str]]) -> str:
    """The section of docs/benchmarks.md."""
    from importlib.metadata import version

    from preftune.train.folder import hardware

    facts = hardware()
    head = (
        f"Machine: {facts['processor']}, {facts['cores']} cores, {facts.get('memory_gib', '?')} GiB. Python "
        f"{sys.version.split()[0]}, torch {version('torch')}, transformers {version('transformers')}. Qwen3 of width "
        f"{WIDTH}, inner width {INNER}, {LAYERS} layers, {HEADS} heads of {HEAD} on {KV_HEADS} of keys and values, "
        f"{WORDS:,} words, unless an axis says otherwise; fp32, all weights trained. MiB: largest resident size of the "
        "process, less that before the model was loaded; weights, gradients and optimizer are in it. The whole group "
        "is one pack here; in a run `train.max_tokens_per_batch` bounds a pack."
    )
    body = [section(axis, *found[axis.key]) for axis in AXES if axis.key in found]
    return "\n".join([head, "", "![rate and memory over each axis](images/growth.svg)", "", *body])


# --- the plot ---------------------------------------------------------------------------------------------------------

PANEL, TALL, LEFT, TOP, BOTTOM = 262, 190, 46, 38, 34


def short(value: float) -> str:
    if value >= 1024 and value % 1024 == 0:
        return f"{value / 1024:g}k"
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def panel(title: str, series: Sequence[tuple[str, str, list[tuple[float, float]]]], left: float, top: float) -> str:
    """One panel, logarithmic both ways, at least a decade high: (name, colour, points) with their fitted lines."""
    xs, ys = ([one[i] for _, _, points in series for one in points] for i in (0, 1))
    low, high = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
    high = max(high, low + 1)
    first, last = math.log(min(xs)), math.log(max(*xs, min(xs) * 2))

    def at(x: float, y: float) -> tuple[float, float]:
        across = (math.log(x) - first) / (last - first) * (PANEL - LEFT - 22)
        up = (math.log10(y) - low) / (high - low) * (TALL - TOP - BOTTOM)
        return round(left + LEFT + across, 1), round(top + TALL - BOTTOM - up, 1)

    out = [f'<text x="{left + LEFT}" y="{top + 14}" font-weight="600">{title}</text>']
    for power in range(low, high + 1):
        _, y = at(min(xs), 10.0**power)
        out.append(f'<line x1="{left + LEFT}" x2="{left + PANEL - 22}" y1="{y}" y2="{y}" stroke="{FAINT}"/>')
        out.append(
            f'<text x="{left + LEFT - 5}" y="{y + 4}" text-anchor="end" font-size="10">{short(10.0**power)}</text>'
        )
    for x in sorted(set(xs)):
        place, y = at(x, 10.0**low)
        out.append(f'<text x="{place}" y="{y + 14}" text-anchor="middle" font-size="9">{short(x)}</text>')
    for number, (name, colour, points) in enumerate(series):
        label = name
        if len(points) > 1:
            p = exponent(points)
            mean_x, mean_y = (math.exp(statistics.fmean(math.log(one[i]) for one in points)) for i in (0, 1))
            ends = [(x, mean_y * (x / mean_x) ** p) for x in (points[0][0], points[-1][0])]
            held = [at(x, min(max(y, 10.0**low), 10.0**high)) for x, y in ends]
            out.append('<line x1="{}" y1="{}" x2="{}" y2="{}" '.format(*held[0], *held[1]) + f'stroke="{colour}"/>')
            label = f"{name} ({p:+.2f})"
        out += ['<circle cx="{}" cy="{}" '.format(*at(x, y)) + f'r="3" fill="{colour}"/>' for x, y in points]
        spot = left + LEFT + number * (PANEL - LEFT) / 2
        out.append(f'<text x="{spot}" y="{top + 29}" font-size="10" fill="{colour}">{label}</text>')
    return "\n".join(out)


def draw(found: dict[str, tuple[list[Row], str]]) -> str:
    """Two panels for every axis, speed and memory, two axes abreast."""
    axes = {axis.key: axis for axis in AXES}
    panels: list[tuple[str, list[tuple[str, str, list[tuple[float, float]]]]]] = []

    def points(key: str, what: str) -> list[tuple[float, float]]:
        return [(row["x"], row[what]) for row in found[key][0]]

    for keys in ([key for key in some if key in found] for some in PANELS):
        if not keys:
            continue
        axis = axes[keys[0]]
        if axis.setting == "completion":
            kinds = [("checkpointing", SAVED) if "check" in key else ("plain", PLAIN) for key in keys]
            speed = [(*kind, points(key, "rate")) for kind, key in zip(kinds, keys, strict=True)]
            memory = [(*kind, points(key, "mib")) for kind, key in zip(kinds, keys, strict=True)]
        else:
            speed = [("packed" if axis.speed == "rate" else "seconds", PLAIN, points(axis.key, axis.speed))]
            if axis.speed == "rate":
                speed.append(("own prompt", SAVED, points(axis.key, "own_rate")))
            memory = [("MiB", PLAIN, points(axis.key, "mib"))]
        told = "s to the first step" if axis.speed == "ready" else "tokens/s"
        panels += [(f"{axis.setting}: {told}", speed), (f"{axis.setting}: MiB", memory)]
    width, height = 4 * PANEL, TALL * math.ceil(len(panels) / 4) + 22
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{INK}">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        *(panel(title, series, PANEL * (i % 4), TALL * (i // 4)) for i, (title, series) in enumerate(panels)),
        f'<text x="{LEFT}" y="{height - 8}" font-size="11">logarithmic both ways; in brackets the exponent, '
        "the slope of the fitted line</text>",
    ]
    return "\n".join([*out, "</svg>"]) + "\n"


def write(found: dict[str, tuple[list[Row], str]], page: Path, plot: Path) -> None:
    """The section between its marks, appended where the page has none, and the plot."""
    old = page.read_text(encoding="utf-8") if page.exists() else ""
    if old.count(MARK) != 2:
        old += (
            f"\n## How rate and memory grow\n\n`python benchmarks/growth.py`: each point a process of its own.\n\n"
            f"{MARK}\n{MARK}\n"
        )
    before, _, rest = old.partition(MARK)
    _, _, after = rest.partition(MARK)
    page.write_text(f"{before}{MARK}\n{text_of(found)}{MARK}{after}", encoding="utf-8")
    plot.parent.mkdir(parents=True, exist_ok=True)
    plot.write_text(draw(found), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    keys = "; ".join(axis.key for axis in AXES)
    parser.add_argument("--only", default="", help=f"measure only axes whose name contains this ({keys})")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="the smaller values alone, one step each")
    parser.add_argument("--rows", type=int, default=10**6, help="the most rows of data")
    parser.add_argument("--out", type=Path, help="write growth.md and growth.svg there and leave the docs alone")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(point(json.loads(args.one), args.threads)))
        return
    axes = [axis for axis in AXES if args.only in axis.key]
    if not axes:
        sys.exit(f"no axis has {args.only!r} in its name: {keys}")
    page, plot = (args.out / "growth.md", args.out / "images" / "growth.svg") if args.out else (PAGE, PLOT)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    _, _, rest = (page.read_text(encoding="utf-8") if page.exists() else "").partition(MARK)
    found = read_back(rest.partition(MARK)[0])
    setup = f"Threads: {args.threads}; {'one step' if args.quick else f'median of up to {STEPS} steps'} a point."
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ask({"do": "models", "folder": name, "models": models_of(axes)}, args.threads, folder)
        for axis in axes:
            own = f"Threads: {args.threads}; one run a point." if axis.setting == "rows" else setup
            found[axis.key] = measure(axis, folder, args), own
    write(found, page, plot)
    print(page.read_text(encoding="utf-8") if args.out else f"written: {page}, {plot}")


if __name__ == "__main__":
    main()

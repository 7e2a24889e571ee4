"""How rate and memory grow with lengths, group, vocabulary, depth and rows of data, into docs/benchmarks.md.

    python benchmarks/growth.py [--only TEXT] [--threads N] [--quick] [--out FOLDER]

A small Qwen3 with random weights, built on the spot, on the CPU in fp32, all weights trained with AdamW. A point of an
update's axis is one SFT update on one group in one pack: packing, forward, backward, clipping, optimizer; the median
of up to three steps after one that warms up. A point of the rows' axis is one `preftune.train("dpo", …)` of one step on
a JSONL of that many rows, started twice with one fresh PREFTUNE_CACHE: the first start prepares and stores the rows.
Every update and every start is a process of its own; its memory is the largest resident size, less that before the
model was loaded (libraries imported), as the system's allocator has it. Axes measured before stay on the page. Seconds
are the clock's: run nothing beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import IMAGES, MIB, PAGE, in_own_process, peak, resident, word_tokenizer
from growth_axes import (
    AXES,
    BATCH,
    HEAD,
    HEADS,
    INNER,
    KV_HEADS,
    LAYERS,
    POSITIONS,
    ROW_WORDS,
    STARTS,
    WIDTH,
    WORDS,
    Axis,
    Row,
)
from growth_page import MARK, read_back, write

PLOT = IMAGES / "growth.svg"
STEPS, QUICK_STEPS = 3, 1
ENOUGH = 4.0
"""Seconds of measured steps after which a point makes no further one."""
ROOM = 0.8
"""Share of the free memory that a point of the rows' axis may be expected to need."""


# --- one point, in a process of its own -------------------------------------------------------------------------------


def model_folder(folder: Path, vocabulary: int, layers: int) -> Path:
    """A model with random weights, and a tokenizer of words."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=layers,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD, max_position_embeddings=POSITIONS,
        tie_word_embeddings=True, pad_token_id=0, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    word_tokenizer(vocabulary).save_pretrained(folder)
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


def run(folder: Path, data: Path, output: Path, began: float) -> Row:
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
        output=output,
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
        return run(folder, Path(one["data"]), Path(one["output"]), one["began"])
    return update(folder, one["setting"], one["steps"])


# --- all points -------------------------------------------------------------------------------------------------------


def ask(one: dict[str, Any], threads: int, cache: Path) -> Row:
    """Run one point. This process stays small and without torch: what it forks begins with its size."""
    start = time.monotonic()
    environment = {**os.environ, "PREFTUNE_CACHE": str(cache), "OMP_NUM_THREADS": str(threads)}
    asked = json.dumps({**one, "began": start})
    row: Row = in_own_process(__file__, "--one", asked, "--threads", str(threads), environment=environment)
    return {"seconds": time.monotonic() - start, **row}


def free_mib() -> float:
    import psutil

    return float(psutil.virtual_memory().available / MIB)


def expected(rows: Sequence[Row], value: int, name: str) -> float:
    """This measurement of the rows' next point, by the line through the last two."""
    one, two = rows[-2:]
    return two[name] + (value - two["x"]) * (two[name] - one[name]) / (two["x"] - one["x"])


def fits(rows: Sequence[Row], value: int) -> bool:
    """Whether the rows' next point may be run; tells what its two starts are expected to take."""
    if len(rows) < 2:
        return True
    need = expected(rows, value, "first_mib")
    first, later = (expected(rows, value, f"{start}_seconds") for start in STARTS)
    print(f"rows {value:,}: expected {first:,.0f} s, then {later:,.0f} s, and {need:,.0f} MiB", flush=True)
    if need > ROOM * free_mib():
        print(f"rows {value:,}: left out, {need:,.0f} MiB are over {ROOM:.0%} of what is free", flush=True)
        return False
    return True


def two_starts(folder: Path, value: int, threads: int) -> Row:
    """A run on so many rows, twice with one cache folder that nothing else has used."""
    found: Row = {}
    with tempfile.TemporaryDirectory(dir=folder) as own:
        data, cache = Path(own) / "rows.jsonl", Path(own) / "cache"
        cache.mkdir()
        write_rows(data, value)
        one = {"do": "run", "folder": str(folder / f"{WORDS}-{LAYERS}"), "data": str(data)}
        for start in STARTS:
            row = ask({**one, "output": str(Path(own) / start)}, threads, cache)
            found.update({f"{start}_{name}": number for name, number in row.items()})
    return found


def measure(axis: Axis, folder: Path, args: argparse.Namespace) -> list[Row]:
    """All points of one axis, smallest first."""
    rows: list[Row] = []
    for value in axis.values[: axis.quick] if args.quick else axis.values:
        if axis.setting == "rows":
            if value > args.rows or not fits(rows, value):
                break
            row = two_starts(folder, value, args.threads)
        else:
            setting = {**axis.fixed, axis.setting: value}
            model = folder / f"{setting['vocabulary']}-{setting['layers']}"
            steps = QUICK_STEPS if args.quick else STEPS
            one = {"do": "update", "folder": str(model), "setting": setting, "steps": steps}
            row = ask(one, args.threads, folder)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    keys = "; ".join(axis.key for axis in AXES)
    parser.add_argument("--only", default="", help=f"measure only axes whose name contains this ({keys})")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="the smaller values alone, one step each")
    parser.add_argument("--rows", type=int, default=10**6, help="the most rows of data")
    parser.add_argument("--out", type=Path, help="write growth.md and images/growth.svg there, not the docs")
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
            own = f"Threads: {args.threads}." if axis.setting == "rows" else setup
            found[axis.key] = measure(axis, folder, args), own
    write(found, page, plot)
    print(page.read_text(encoding="utf-8") if args.out else f"written: {page}, {plot}")


if __name__ == "__main__":
    main()

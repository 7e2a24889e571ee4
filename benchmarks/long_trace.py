"""Memory and time of one update, and speed of sampling, up to 128k tokens in one completion, into docs/benchmarks.md.

    python benchmarks/long_trace.py [--lengths 4096,8192,…] [--decode 32768] [--threads N]

A small Llama (2 layers, width 64, one head of 32, 4,096 words, 131,072 positions), fp32, all weights trained with
AdamW. An update is one SFT batch of a single completion: packing, forward, backward, optimizer step. Every measurement
is a process of its own; its memory is the largest resident size during the update, less that just before (model loaded,
optimizer and kernels warmed up on 64 tokens); its seconds are the processor's, which other programs do not lengthen.
The small width makes memory per token small and attention's share of the time large; what is measured is how both grow.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import (
    FAINT,
    IMAGES,
    INK,
    MIB,
    PAGE,
    PLAIN,
    SAVED,
    Line,
    in_own_process,
    machine,
    peak,
    put,
    resident,
    word_tokenizer,
)

PLOT = IMAGES / "long-trace.svg"
MARK = "<!-- long-trace -->"
LAYERS, WIDTH, INNER, HEAD, WORDS, POSITIONS = 2, 64, 128, 32, 4096, 1 << 17
PROMPT = 32
LONG = 32768


def model_folder(folder: Path) -> Path:
    """The model with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS, num_attention_heads=1,
        num_key_value_heads=1, head_dim=HEAD, max_position_embeddings=POSITIONS, pad_token_id=0, bos_token_id=None,
        eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    word_tokenizer(WORDS).save_pretrained(folder)
    return folder


def update(folder: Path, length: int, checkpointing: bool) -> dict[str, float]:
    """One update on a prompt and one completion, together `length` tokens: MiB over the base, and seconds."""
    import torch

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
    config = ModelConfig(path=str(folder), dtype="float32", gradient_checkpointing=checkpointing)
    policy = load_policy(config, seed=0)
    engine = Engine(policy)
    assert engine.mode == "shared", engine.reason
    optimizer = make_optimizer(policy.trainable(), recipe.train, [])
    generator = torch.Generator().manual_seed(length)

    def step(tokens: int) -> float:
        ids = tuple(torch.randint(3, WORDS, (tokens,), generator=generator).tolist())
        prompt, rest = ids[:PROMPT], ids[PROMPT:]
        group = Group(Prompt(prompt, ""), (Completion(rest, (True,) * len(rest)),))
        batch = make_batch([group], METHODS["sft"], recipe)
        policy.train_mode(True)
        metrics, packs = backward(engine, batch, METHODS["sft"], recipe, tokens)
        assert [p.tokens for p in packs] == [tokens - 1]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(metrics["loss"].total)

    step(64)
    base, start = resident(), time.process_time()
    loss = step(length)
    seconds = time.process_time() - start
    assert math.isfinite(loss)
    return {"mib": peak() - base, "seconds": seconds}


class NoEnd:
    """A contract without end-of-sequence ids: the sampler goes on to its limit."""

    eos_ids: frozenset[int] = frozenset()

    def decode(self, ids: Sequence[int]) -> str:
        return ""


def decode(folder: Path, length: int) -> list[dict[str, float]]:
    """One completion of `length` tokens: tokens a second over the 256 before each doubling, and MiB over the base."""
    import torch

    from preftune.config import ModelConfig, SamplingConfig
    from preftune.engine.forward import Engine
    from preftune.models import load_policy
    from preftune.records import Prompt
    from preftune.sampling.local import LocalSampler

    sampler = LocalSampler(Engine(load_policy(ModelConfig(path=str(folder), dtype="float32"), seed=0)), NoEnd())
    torch.manual_seed(0)
    prompt = Prompt(tuple(range(3, 3 + PROMPT)), "")
    sampler.stream(prompt, SamplingConfig(max_tokens=64), seed=0, on_token=lambda token: None)
    base, times, memory = resident(), [], {}

    def on_token(token: int) -> None:
        times.append(time.process_time())
        if len(times) & (len(times) - 1) == 0:
            memory[len(times)] = resident() - base

    done = sampler.stream(prompt, SamplingConfig(max_tokens=length), seed=0, on_token=on_token)
    assert len(done.ids) == length and done.finish == "length"
    places = [1 << k for k in range(10, length.bit_length()) if 1 << k <= length]
    return [{"at": n, "rate": 256 / (times[n - 1] - times[n - 257]), "mib": memory[n]} for n in places]


def rule(checkpointing: bool) -> int:
    """Floats a token by docs/architecture.md."""
    layer = 10 * WIDTH + 4 * INNER
    return LAYERS * WIDTH + layer if checkpointing else LAYERS * layer


def long(points: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    """The lengths whose layers take more than the head's buffers, which have one size: the upper ones."""
    return [point for point in points if point[0] >= LONG] if points[-1][0] > LONG else points


def exponent(points: Sequence[tuple[int, float]]) -> float:
    """p of m ∝ n^p, from the shortest to the longest."""
    (n0, m0), (n1, m1) = points[0], points[-1]
    return math.log(m1 / m0) / math.log(n1 / n0)


def text_of(updates: dict[bool, list[dict[str, float]]], decoded: list[dict[str, float]], about: str) -> str:
    """The section of docs/benchmarks.md."""
    rows = []
    for plain, saved in zip(updates[False], updates[True], strict=True):
        rows.append(
            f"| {int(plain['length']):,} | {plain['mib']:,.0f} | {saved['mib']:,.0f} | {plain['seconds']:,.1f} | "
            f"{saved['seconds']:,.1f} |"
        )
    out = [about, "", "![memory and time over length](images/long-trace.svg)", ""]
    out += [
        "| tokens in one completion | MiB, plain | MiB, checkpointing | seconds, plain | seconds, checkpointing |",
        "|---|---|---|---|---|",
        *rows,
        "",
    ]
    for checkpointing, name in ((False, "Plain"), (True, "With gradient checkpointing")):
        points = [(int(one["length"]), one["mib"]) for one in updates[checkpointing]]
        line = Line.through(long(points))
        floats = line.b * MIB / 4
        times = [(int(one["length"]), one["seconds"]) for one in updates[checkpointing]]
        out.append(
            f"{name}, from {long(points)[0][0]:,} tokens up: {line.a:,.0f} MiB + {line.b * 1024:,.2f} KiB a token "
            f"({floats:,.0f} floats; the rule of thumb says {rule(checkpointing):,}); "
            f"the largest residual is {line.worst:.1%} of its point, the exponent "
            f"{exponent(long(points)):.2f}. Seconds grow with exponent {exponent(long(times)):.2f}.\n"
        )
    out += ["| position | tokens/s of one row | MiB of the sampler |", "|---|---|---|"]
    out += [f"| {int(one['at']):,} | {one['rate']:,.0f} | {one['mib']:,.0f} |" for one in decoded]
    return "\n".join(out) + "\n"


# --- the plot ---------------------------------------------------------------------------------------------------------

PANEL, TALL, LEFT, TOP, BOTTOM = 380, 250, 58, 34, 40


def panel(title: str, series: dict[str, list[tuple[int, float]]], x: float, lines: bool) -> list[str]:
    """One panel: points of both series, and with `lines` the fitted lines, on linear axes from 0."""
    most = max(value for points in series.values() for _, value in points)
    furthest = max(n for points in series.values() for n, _ in points)
    step = 10 ** math.floor(math.log10(most))
    step = next(step * f for f in (0.2, 0.5, 1, 2, 5) if most / (step * f) <= 6)

    def at(n: float, value: float) -> tuple[float, float]:
        across = n / furthest * (PANEL - LEFT - 24)
        return round(x + LEFT + across, 1), round(TALL - BOTTOM - value / most * (TALL - TOP - BOTTOM - 10), 1)

    out = [f'<text x="{x + LEFT}" y="20" font-weight="600">{title}</text>']
    for k in range(math.floor(most / step) + 1):
        _, y = at(0, k * step)
        out.append(f'<line x1="{x + LEFT}" x2="{x + PANEL - 24}" y1="{y}" y2="{y}" stroke="{FAINT}"/>')
        out.append(f'<text x="{x + LEFT - 6}" y="{y + 4}" text-anchor="end" font-size="11">{k * step:,g}</text>')
    for part in (0.25, 0.5, 0.75, 1):
        place, y = at(furthest * part, 0)
        label = f"{furthest * part / 1024:g}k"
        out.append(f'<text x="{place}" y="{y + 16}" text-anchor="middle" font-size="11">{label}</text>')
    for colour, points in series.items():
        if lines:
            line = Line.through(long(points))
            ends = [at(n, line.a + line.b * n) for n in (0, furthest)]
            out.append('<line x1="{}" y1="{}" x2="{}" y2="{}" '.format(*ends[0], *ends[1]) + f'stroke="{colour}"/>')
        else:
            path = " ".join("{},{}".format(*at(n, value)) for n, value in points)
            out.append(f'<polyline points="{path}" fill="none" stroke="{colour}"/>')
        out += ['<circle cx="{}" cy="{}" '.format(*at(n, v)) + f'r="3.5" fill="{colour}"/>' for n, v in points]
    return out


def draw(updates: dict[bool, list[dict[str, float]]]) -> str:
    """Memory with its fitted lines, and seconds, side by side."""
    colours = {False: PLAIN, True: SAVED}

    def series(what: str) -> dict[str, list[tuple[int, float]]]:
        return {colours[on]: [(int(one["length"]), one[what]) for one in some] for on, some in updates.items()}

    width, height = 2 * PANEL, TALL + 24
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="{INK}">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        *panel("MiB of one update, and a + b·n", series("mib"), 0, lines=True),
        *panel("processor seconds of one update", series("seconds"), PANEL, lines=False),
    ]
    for place, (on, name) in enumerate(((False, "plain"), (True, "gradient checkpointing"))):
        x = LEFT + 130 * place
        out.append(f'<circle cx="{x}" cy="{height - 12}" r="3.5" fill="{colours[on]}"/>')
        out.append(f'<text x="{x + 10}" y="{height - 8}" font-size="12">{name}</text>')
    out.append(f'<text x="{LEFT + 330}" y="{height - 8}" font-size="12">across: tokens in one completion</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default=",".join(str(1 << k) for k in range(12, 18)))
    parser.add_argument("--decode", type=int, default=1 << 15, help="tokens of the sampled completion")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        import torch

        torch.set_num_threads(args.threads)
        kind, length = args.one.split(":")
        found = decode(args.folder, int(length)) if kind == "decode" else update(args.folder, int(length), kind == "on")
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = model_folder(Path(name) / "model")

        def once(what: str) -> Any:
            # Freed tensors go back at once; glibc would keep some, and the peak would tell of its habits.
            environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
            flags = ("--one", what, "--folder", str(folder), "--threads", str(args.threads))
            found = in_own_process(__file__, *flags, environment=environment)
            print(what, json.dumps(found), flush=True)
            return found

        lengths = [int(text) for text in args.lengths.split(",")]
        updates = {on: [{"length": n, **once(f"{'on' if on else 'off'}:{n}")} for n in lengths] for on in (False, True)}
        decoded = once(f"decode:{args.decode}")
    about = (
        f"{machine(args.threads)} {LAYERS} layers of width {WIDTH}, inner width {INNER}, one head of {HEAD}, "
        f"{WORDS:,} words; fp32."
    )
    text = text_of(updates, decoded, about)
    print(text)
    put(PAGE, MARK, text)
    PLOT.write_text(draw(updates), encoding="utf-8")


if __name__ == "__main__":
    main()

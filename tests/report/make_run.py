"""Builds run folders that look like real ones, for the report's tests and for looking at it:

python tests/report/make_run.py FOLDER [steps] [--pipeline]
"""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np

from preftune.intervals import mean_interval, paired_difference

RECIPE = """\
method: {method}
name: {name}
seed: 0
model:
  path: runs/sums-base
  dtype: float32
data:
- path: data/train.jsonl
sampling:
  group_size: 8
  max_tokens: 96
rewards:
- name: accuracy
  weight: 1.0
- name: well_formed
  weight: 0.2
train:
  steps: {steps}
  batch_size: 16
  learning_rate: 0.0001
eval:
  every: {every}
  best: reward/accuracy
"""
QUESTIONS = [
    "Mia has 47 beads and finds 38 more. How many beads has she now?",
    "A shelf holds 126 books. 58 are lent out. How many are left?",
    "Tom packs 9 boxes with 14 jars each. How many jars is that?",
    "A bus carries 63 people. At a stop 27 get off and 19 get on. How many ride on?",
    "Each of 7 gardens has 23 trees. How many trees are there?",
    "A rope of 305 cm is cut by 178 cm. How long is it now?",
]
ANSWERS = [85, 68, 126, 55, 161, 127]


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _skill(step: int, steps: int, start: float, end: float) -> float:
    return start + (end - start) / (1 + math.exp(-10 * (step / steps - 0.45)))


def _answer(question: int, right: bool, rng: random.Random) -> str:
    value = ANSWERS[question] if right else ANSWERS[question] - 10 * rng.randint(1, 2)
    work = "ones first, carry the one," if right else "ones first,"
    return f"{work} then the tens.\nThe answer is {value}."


def make_run(
    folder: Path,
    *,
    method: str = "grpo",
    name: str = "sums",
    steps: int = 120,
    start: float = 0.34,
    end: float = 0.81,
    rows: int = 500,
    seed: int = 0,
    finished: bool = True,
) -> Path:
    """Write a run folder whose numbers hang together: intervals are computed from simulated rows."""
    rng, draw = random.Random(seed), np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    every = max(1, steps // 8)
    (folder / "recipe.yaml").write_text(RECIPE.format(method=method, name=name, steps=steps, every=every))
    luck = {split: draw.random((2, count)) for split, count in (("validation", 200), ("test", rows))}

    def measure(split: str, step: int) -> dict[str, Any]:
        right = luck[split][0] < _skill(step, steps, start, end)
        formed = luck[split][1] < _skill(step, steps, 0.86, 0.98)
        return {
            "reward/accuracy": right.astype(float),
            "reward/well_formed": formed.astype(float),
            "reward/mean": right + 0.2 * formed,
            "length/mean": 22 + 6 * luck[split][1] + (3.0 * step / steps) * luck[split][0],
            "length/truncated": (luck[split][1] > 0.99 - 0.02 * (1 - step / steps)).astype(float),
        }

    def wrapped(values: dict[str, Any]) -> dict[str, Any]:
        return {metric: mean_interval(v).to_json() for metric, v in values.items()}

    metrics: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []

    def evaluate(split: str, step: int) -> None:
        metrics.append({"step": step, "kind": "eval", "split": split, "metrics": wrapped(measure(split, step))})
        for question in range(len(QUESTIONS)):
            right = 0.12 + 0.16 * question < _skill(step, steps, start, end)
            samples.append(_sample(step, split, question, right, rng))

    evaluate("validation", 0)
    evaluate("test", 0)
    for step in range(1, steps + 1):
        metrics.append(_train_line(step, steps, start, end, rng))
        if step % every == 0:
            evaluate("validation", step)
            for question in (step % 6, (step + 3) % 6):
                skill = _skill(step, steps, start, end)
                samples += [_sample(step, "train", question, rng.random() < skill, rng) for _ in range(8)]
    if finished:
        evaluate("test", steps)
    _lines(folder / "metrics.jsonl", metrics)
    _lines(folder / "samples.jsonl", samples)
    _write_rest(folder)
    if finished:
        before, after = measure("test", 0), measure("test", steps)
        change = {m: paired_difference(before[m], after[m]).to_json() for m in before}
        summary = {
            "method": method,
            "name": name,
            "status": "finished",
            "steps": steps,
            "best_step": every * 7,
            "best_metric": "reward/accuracy",
            "before": {"test": wrapped(before)},
            "after": {"test": wrapped(after)},
            "difference": {"test": change},
            "seconds": {"sample": 41.2, "reward": 1.9, "update": 33.5, "eval": 9.8, "certificate": 1.2, "step": 80.0},
            "counts": {
                "train": "2000 kept, 12 dropped, 0 truncated, 0 EOS invented",
                "test": f"{rows} kept, 0 dropped, 0 truncated, 0 EOS invented",
            },
            "notes": ["Rewards run inline: they are closures."],
        }
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def _sample(step: int, split: str, question: int, right: bool, rng: random.Random) -> dict[str, Any]:
    return {
        "step": step,
        "split": split,
        "where": f"{split}.jsonl:{question + 1}",
        "prompt": QUESTIONS[question],
        "completion": _answer(question, right, rng),
        "finish": "eos",
        "length": rng.randint(18, 31),
        "score": 1.2 if right else 0.2,
        "breakdown": {"accuracy": float(right), "well_formed": 1.0},
        "columns": {"answer": str(ANSWERS[question])},
    }


def _train_line(step: int, steps: int, start: float, end: float, rng: random.Random) -> dict[str, Any]:
    skill = min(1.0, max(0.0, _skill(step, steps, start, end) - 0.05 + rng.gauss(0, 0.045)))
    formed = min(1.0, _skill(step, steps, 0.84, 0.97) + rng.gauss(0, 0.01))
    done = step / steps
    metrics = {
        "loss": rng.gauss(0.0, 0.012),
        "grad_norm": math.exp(rng.gauss(-0.5, 0.25)) * (9 if step == steps // 3 else 1),
        "learning_rate": 1e-4 * min(1.0, done / 0.1) * (1 - done),
        "reward/mean": skill + 0.2 * formed,
        "reward/std": math.sqrt(skill * (1 - skill)) * 0.8,
        "reward/accuracy": skill,
        "reward/well_formed": formed,
        "reward/dead_groups": max(0.0, 0.12 + 0.3 * done**2 + rng.gauss(0, 0.04)),
        "reward/skipped": 0.0,
        "length/mean": 24 + 3 * done + rng.gauss(0, 0.7),
        "length/max": 40 + rng.randint(0, 12),
        "length/truncated": max(0.0, rng.gauss(0.012, 0.006)),
        "length/eos": min(1.0, rng.gauss(0.985, 0.006)),
        "entropy": 0.62 * math.exp(-1.3 * done) + rng.gauss(0, 0.012),
        "kl": 0.05 * done**0.7 + abs(rng.gauss(0, 0.002)),
        "clip/low": max(0.0, rng.gauss(0.002, 0.001)),
        "clip/high": max(0.0, rng.gauss(0.004, 0.002)),
        "ratio/max": 1 + abs(rng.gauss(0, 0.05)),
        "sampler/kl": 10 ** rng.gauss(-9, 0.3),
        "sampler/max_diff": 10 ** rng.gauss(-5.6, 0.2),
        "diversity/distinct_2": 0.46 - 0.05 * done + rng.gauss(0, 0.01),
        "diversity/shared_substring": 24 + rng.randint(0, 5),
        "diversity/repetition": max(0.0, rng.gauss(0.02, 0.006)),
        "tokens/trained": 3000 + rng.randint(-200, 300),
        "tokens/packed": 4100 + rng.randint(-200, 300),
        "tokens/saved": 0.58 + rng.gauss(0, 0.01),
    }
    time = {"sample": rng.gauss(0.35, 0.02), "reward": 0.012, "reference": 0.03, "update": rng.gauss(0.27, 0.02)}
    return {"step": step, "kind": "train", "metrics": metrics, "time": {**time, "step": sum(time.values()) + 0.03}}


def _write_rest(folder: Path) -> None:
    _lines(
        folder / "advice.jsonl",
        [
            {
                "step": 97,
                "saw": "43 % of the groups have no reward spread (all their completions scored the same).",
                "change": "harder prompts in `data`, or a larger `sampling.group_size` (now 8).",
            }
        ],
    )
    checks = [
        ("shared prompt vs plain log-probs", 1.9e-6, 1e-4, "max |Δ| over 412 tokens of 4 groups"),
        ("sampler vs trainer log-probs", 2.4e-6, 1e-4, "max |Δ|; KL 3e-10"),
        ("one batch vs micro-batches", 4.0e-7, 1e-5, "relative Δ of the gradient norm"),
    ]
    certificate = {
        "precision": "fp32",
        "passed": True,
        "checks": [{"name": n, "value": v, "tolerance": t, "passed": True, "detail": d} for n, v, t, d in checks],
    }
    (folder / "certificate.json").write_text(json.dumps(certificate))
    manifest = {
        "data": {"hash": "sha256:5be2…", "rows": 2000, "sources": ["data/train.jsonl"]},
        "versions": {"preftune": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "commit": None,
        "hardware": {"device": "cpu", "cores": 2, "memory_gb": 8},
        "engine": "shared prompt, per-segment SDPA",
        "seed": 0,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def make_pipeline(folder: Path, steps: int = 60) -> Path:
    """Write a pipeline's folder with a finished SFT stage, a finished GRPO stage and one that has not begun."""
    folder.mkdir(parents=True, exist_ok=True)
    make_run(folder / "warm-up", method="sft", name="warm-up", steps=steps, start=0.2, end=0.34)
    make_run(folder / "grpo", method="grpo", name="grpo", steps=2 * steps, start=0.34, end=0.81, seed=1)
    (folder / "pipeline.json").write_text(json.dumps({"stages": ["warm-up", "grpo", "polish"], "status": "running"}))
    return folder


if __name__ == "__main__":
    target = Path(sys.argv[1])
    if "--pipeline" in sys.argv:
        make_pipeline(target)
    else:
        make_run(target, steps=int(sys.argv[2]) if len(sys.argv) > 2 else 120)

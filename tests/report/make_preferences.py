"""Builds run folders of dpo, kto and reward runs, for the report's tests and for looking at it:

python tests/report/make_preferences.py FOLDER [dpo|kto|reward] [rows]
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from preftune.intervals import mean_interval, paired_difference

SOURCES = ("human", "model-a", "model-b")
BETA = 0.1
QUESTIONS = ["How do I keep basil alive indoors?", "Why is the sky red at dusk?", "Is it rude to leave a party early?"]
GOOD = "Give it light from the south, water when the top soil is dry, and pinch the tips off. "
BAD = "Plants are living things. There are many plants. Basil is one of them. "


def make_preferences(
    folder: Path,
    *,
    method: str = "dpo",
    rows: int = 120,
    steps: int = 60,
    skill: float = 1.0,
    seed: int = 0,
    finished: bool = True,
) -> Path:
    """Write a run folder whose metrics are computed from its simulated completions.

    Args:
        rows: prompts; each has a good and a bad completion, in kto runs one of the two.
        skill: how far apart training moves the two sides, in log-prob units per β; 0 moves them by chance alone.
    """
    draw = np.random.default_rng(seed)
    (folder / "measurements").mkdir(parents=True, exist_ok=True)
    every = max(1, steps // 6)
    recipe = {
        "method": method, "name": f"taste-{method}", "seed": seed, "model": {"path": "runs/sft-base"},
        "data": [{"path": "data/pairs.jsonl"}], "loss": {"name": None, "beta": None if method == "reward" else BETA},
        "train": {"steps": steps, "batch_size": 16, "reference_logprobs": "cached"}, "eval": {"every": every},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    metrics: list[dict[str, Any]] = []
    worlds = {
        split: _World(method, rows, skill, np.random.default_rng(seed + i))
        for i, split in enumerate(("validation", "test"))
    }

    def measure(split: str, step: int) -> dict[str, Any]:
        answers = worlds[split].answers(step / steps)
        _lines(folder / "measurements" / f"answers-{split}-{step}.jsonl", answers)
        if step == 0:
            _lines(folder / "measurements" / f"texts-{split}.jsonl", worlds[split].texts())
        values = _metrics(method, answers)
        found = {name: mean_interval(v).to_json() for name, v in values.items()}
        metrics.append({"step": step, "kind": "eval", "split": split, "metrics": found})
        return values

    before = {split: measure(split, 0) for split in worlds}
    after = before
    for step in range(1, steps + 1):
        metrics.append(_train_line(method, step, steps, skill, draw))
        if step % every == 0:
            after = {"validation": measure("validation", step)}
    if finished:
        after["test"] = measure("test", steps)
    _lines(folder / "metrics.jsonl", metrics)
    lineage = {
        "reward": "base runs/sft-base; new reward head, all zeros; all weights trained",
    }.get(method, "base runs/sft-base; new LoRA adapter; the reference is the model without it")
    manifest = {"lineage": lineage, "precision": "fp32", "versions": {"preftune": "0.3.0"}, "seed": seed}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    if finished:
        notes = {
            "reward": ["normalised to the training scores: mean 0.12, standard deviation 1.31"],
            "kto": [
                "the reference's log-probs of 4,000 completions come from 3f2a.safetensors in the cache",
                "812 desirable and 1188 undesirable completions; λ_D 1.46, λ_U 1",
            ],
        }.get(method, ["the reference's log-probs of 4,000 completions were computed once, before training"])
        change = {
            split: {m: paired_difference(before[split][m], after[split][m]).to_json() for m in before[split]}
            for split in worlds
        }
        summary = {
            "method": method, "name": recipe["name"], "status": "finished", "steps": steps, "best_step": None,
            "best_metric": None, "kept_step": steps, "before": _wrapped(before), "after": _wrapped(after),
            "difference": change, "seconds": {"update": 41.0, "eval": 9.0, "reference": 12.0, "step": 44.0},
            "counts": {"train": "2000 kept, 3 dropped"}, "notes": notes,
        }  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


class _World:
    """The rows of one split, and what a model in training makes of them."""

    def __init__(self, method: str, rows: int, skill: float, draw: np.random.Generator) -> None:
        self.method, self.skill = method, skill
        self.sides = [(0,), (1,)] * (rows // 2) if method == "kto" else [(0, 1)] * rows
        self.lengths = np.rint(np.exp(draw.normal([4.4, 4.2], 0.5, (rows, 2)))).astype(int) + 3
        self.base = -1.6 * self.lengths * np.exp(draw.normal(0, 0.15, (rows, 2)))
        self.drift = draw.normal([8.0, -9.0], 16.0, (rows, 2))
        self.drift[:, 0] += 0.06 * (self.lengths[:, 0] - self.lengths[:, 1])
        self.source = draw.integers(0, 3, (rows, 2))

    def answers(self, done: float) -> list[dict[str, Any]]:
        out = []
        for group, sides in enumerate(self.sides):
            for place, side in enumerate(sides):
                base, move = float(self.base[group, side]), float(self.drift[group, side]) * done
                move += (self.skill - 1) * done * (8.0, -9.0)[side]
                scores = self.method == "reward"
                out.append({
                    "group": group, "completion": place, "where": f"pairs.jsonl:{group + 1}",
                    "source": SOURCES[self.source[group, side]], "length": int(self.lengths[group, side]),
                    "score": 1.0 - side, "reward": BETA * move, "logprob": None if scores else base + move,
                    "reference": None if scores else base,
                })  # fmt: skip
        return out

    def texts(self) -> list[dict[str, Any]]:
        return [
            {"group": group, "completion": place, "prompt": f"{QUESTIONS[group % 3]} ({group})",
             "text": (GOOD, BAD)[side] * (1 + int(self.lengths[group, side]) // 20), "margin": None}
            for group, sides in enumerate(self.sides)
            for place, side in enumerate(sides)
        ]  # fmt: skip


def _metrics(method: str, answers: list[dict[str, Any]]) -> dict[str, Any]:
    good, bad = ([a for a in answers if a["score"] == score] for score in (1.0, 0.0))
    out: dict[str, Any] = {}
    for name, field in (("rewards", "reward"), ("logprobs", "logprob")):
        if good[0][field] is None:
            continue
        won, lost = (np.array([a[field] for a in side]) for side in (good, bad))
        if method != "kto":
            out[f"{name}/accuracy"] = 0.5 * (1 + np.sign(won - lost))
        if method != "kto" and name == "rewards":
            out["rewards/margin"] = won - lost
        out[f"{name}/chosen"], out[f"{name}/rejected"] = won, lost
    if method != "reward":
        out["nll"] = np.array([-a["logprob"] / a["length"] for a in good])
    return out


def _train_line(method: str, step: int, steps: int, skill: float, draw: np.random.Generator) -> dict[str, Any]:
    done = step / steps
    chosen, rejected = (BETA * skill * done * move + float(draw.normal(0, 0.1)) for move in (8.0, -9.0))
    right = 1 / (1 + math.exp(-(chosen - rejected)))
    values: dict[str, float] = {
        "loss": math.log1p(math.exp(rejected - chosen)), "grad_norm": float(np.exp(draw.normal(0.6, 0.2))),
        "learning_rate": 1e-5 * min(1.0, done / 0.1) * (1.05 - done),
        "rewards/chosen": chosen, "rewards/rejected": rejected,
        "length/chosen": 92 + float(draw.normal(0, 5)), "length/rejected": 75 + float(draw.normal(0, 5)),
    }  # fmt: skip
    if method != "kto":
        values |= {
            "rewards/margin": chosen - rejected, "rewards/accuracy": min(1.0, right + float(draw.normal(0, 0.05))),
            "rewards/accuracy_longer": min(1.0, right + 0.06), "rewards/accuracy_shorter": max(0.0, right - 0.08),
        }  # fmt: skip
    if method != "reward":
        values |= {"logprobs/chosen": -141 + chosen / BETA, "logprobs/rejected": -118 + rejected / BETA}
        values["nll"] = 1.53 - 0.05 * done
    if method == "kto":
        raw = 2.0 * done + float(draw.normal(0, 0.6))
        values |= {"kl": max(0.0, raw), "kl/raw": raw}
    return {"step": step, "kind": "train", "metrics": values, "time": {"update": 0.7, "step": 0.74}}


def _wrapped(values: dict[str, Any]) -> dict[str, Any]:
    return {split: {m: mean_interval(v).to_json() for m, v in found.items()} for split, found in values.items()}


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    make_preferences(
        Path(sys.argv[1]),
        method=sys.argv[2] if len(sys.argv) > 2 else "dpo",
        rows=int(sys.argv[3]) if len(sys.argv) > 3 else 120,
    )

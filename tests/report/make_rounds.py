"""Builds pipelines of rounds and runs of GMPO and PPO that look like real ones, for tests and for looking at them:

python tests/report/make_rounds.py FOLDER rounds|gmpo|ppo
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from preftune.intervals import mean_interval, paired_difference

sys.path.insert(0, str(Path(__file__).parent))
from make_run import QUESTIONS, make_run

Json = dict[str, Any]


def lines(path: Path, rows: Sequence[Json]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_round(
    folder: Path,
    *,
    model: str,
    before: Sequence[float] | None,
    after: Sequence[float] | None,
    split: str = "test",
    steps: int = 40,
    status: str = "finished",
    drawn: tuple[int, int, float, float] | None = (512, 128, 0.4, 0.92),
    reward: str = "style",
    **summary: Any,
) -> Path:
    """One round's folder, from the scores of its held-out answers before and after it."""
    folder.mkdir(parents=True)
    (folder / "measurements").mkdir()
    recipe = {
        "method": "iterative-dpo", "name": folder.name, "model": {"path": model}, "loss": {"name": "dpo", "beta": 0.1},
        "rewards": [{"name": reward, "weight": 1.0}], "sampling": {"group_size": 4, "max_tokens": 64},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    rng = random.Random(folder.name)
    told = {} if drawn is None else {"collected/score": drawn[2], "collected/prompts_kept": drawn[3]}
    metrics: list[Json] = []
    measured: dict[str, dict[str, Any]] = {}
    for when, step, scores in (("before", 0, before), ("after", steps, after)):
        if scores is None:
            continue
        lengths = [20.0 + 4 * s + rng.gauss(0, 2) for s in scores]
        rows = {"reward/mean": list(scores), f"reward/{reward}": list(scores), "length/mean": lengths}
        (folder / "measurements" / f"{split}-{step}.json").write_text(
            json.dumps({"step": step, "split": split, "rows": rows})
        )
        measured[when] = {name: mean_interval(values).to_json() for name, values in rows.items()}
        metrics.append({"step": step, "kind": "eval", "split": split, "metrics": measured[when]})
    for step in range(1, steps + 1):
        done = step / steps
        values = {
            "loss": 0.69 - 0.3 * done + rng.gauss(0, 0.02),
            "rewards/accuracy": min(1.0, 0.5 + 0.4 * done),
            **told,
        }
        metrics.append({"step": step, "kind": "train", "metrics": values, "time": {"step": 0.2}})
    lines(folder / "metrics.jsonl", metrics)
    notes = [] if drawn is None else [
        f"collected: {drawn[0]} answers to {drawn[1]} prompts, mean score {drawn[2]:.4g}; 118 prompts and "
        "236 answers are trained on"
    ]  # fmt: skip
    complete = before is not None and after is not None and status == "finished"
    change = {"reward/mean": paired_difference(before, after).to_json()} if complete and before and after else {}
    (folder / "summary.json").write_text(
        json.dumps(
            {
                "method": "iterative-dpo", "name": folder.name, "status": status, "steps": steps, "best_step": None,
                "best_metric": None, "kept_step": steps if complete else None, "notes": notes,
                "before": {split: measured["before"]} if complete else {},
                "after": {split: measured["after"]} if complete else {}, "difference": {split: change},
                **summary,
            }
        )
    )  # fmt: skip
    return folder


def make_rounds(
    folder: Path, *, gains: Sequence[float] = (0.5, 0.45, 0.02), rows: int = 300, started: int | None = None,
    seed: int = 0, **changes: Any,
) -> Path:  # fmt: skip
    """A pipeline of rounds, each `gains` better than the one before; those past `started` have not begun."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    names = [f"round-{k}" for k in range(1, len(gains) + 1)]
    stages = [
        {"name": name, "method": "iterative-dpo", "model": {"path": f"stage:round-{k}" if k else "org/base"}}
        for k, name in enumerate(names)
    ]
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"name": "rounds", "stages": stages}))
    (folder / "pipeline.json").write_text(json.dumps({"name": "style rounds", "stages": names, "status": "finished"}))
    scores = rng.normal(0, 1, rows).round(2)
    for k, (name, gain) in enumerate(zip(names, gains, strict=True)):
        if started is not None and k >= started:
            break
        now = (scores + rng.normal(gain, 0.9, rows) * (rng.random(rows) < 0.9)).round(2)
        model = "org/base" if k == 0 else str(folder / names[k - 1] / "final")
        make_round(folder / name, model=model, before=scores.tolist(), after=now.tolist(),
                   drawn=(512, 128, 0.1 + 0.4 * k, 0.92 - 0.03 * k), **changes)  # fmt: skip
        scores = now
    return folder


FIELDS = ("humanities", "science", "technical")


def make_gmpo(folder: Path, steps: int = 60, seed: int = 0) -> Path:
    """A GMPO run whose critic learns to tell right from wrong."""
    make_run(folder, method="gmpo", name="sums with a critic", steps=steps, seed=seed)
    rng = random.Random(seed)
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    samples = [row for row in map(json.loads, (folder / "samples.jsonl").read_text().splitlines())
               if row["split"] != "train"]  # fmt: skip
    for line in metrics:
        if line["kind"] != "train":
            continue
        done = line["step"] / steps
        number = 1 + int(done * 2.999)
        for name in ("clip/low", "clip/high", "ratio/max", "loss"):
            del line["metrics"][name]
        skill = 0.3 + 0.5 * done
        tallies = {"reward": skill, "truth": skill, **{f"field/{f}/{kind}": min(1.0, skill + 0.05 * i)
                   for i, f in enumerate(FIELDS) for kind in ("reward", "truth")}}  # fmt: skip
        line["metrics"] |= {
            "loss": 1.5 - done + rng.gauss(0, 0.05), "gmpo/temperature": 0.3 - 0.15 * done,
            "gmpo/skipped_groups": min(1.0, 0.1 + 0.2 * done), "gmpo/weight_max": 4 + rng.random() * 8,
            "gmpo/weight_mean": 1.4 + rng.gauss(0, 0.1), "gmpo/effective": 0.6 - 0.2 * done, "gmpo/capped": 0.02,
            "gmpo/lessons": float(min(8, line["step"] // 5)), "critic/parsed": min(1.0, 0.85 + 0.2 * done),
            "critic/retried": max(0.0, 0.1 - 0.1 * done), "critic/left_out": 0.01, "critic/too_long": 0.0,
            "critic/reward": skill, "critic/length": 30 + rng.gauss(0, 2), "critic/agreement": 0.55 + 0.35 * done,
            "critic/loss": 2.5 - 1.5 * done, "critic/nll": 0.8 - 0.4 * done, "critic/kept": 0.5 + 0.4 * done,
            "grad_norm/critic": 1.0 + rng.random(), "pass/number": float(number),
            **{f"pass/{name}": value for name, value in tallies.items()},
            **{name: value for name, value in tallies.items() if name.startswith("field/")},
        }  # fmt: skip
        if line["step"] % 4 == 1:
            samples += _critic_samples(line["step"], done, rng)
    lines(folder / "metrics.jsonl", metrics)
    lines(folder / "samples.jsonl", samples)
    return folder


def _critic_samples(step: int, done: float, rng: random.Random) -> list[Json]:
    out = []
    for question in (step % 6, (step + 2) % 6):
        truths = [float(rng.random() < 0.3 + 0.5 * done) for _ in range(4)]
        rewards = [min(1.0, max(0.0, 0.5 + (t - 0.5) * done * 1.2 + rng.gauss(0, 0.18))) for t in truths]
        mean, tau = sum(rewards) / 4, 0.3 - 0.15 * done
        for truth, reward in zip(truths, rewards, strict=True):
            said = "The steps follow from the question and the sum is right." if truth else (
                "The first step is right, but then the tens are added where they should be carried: 7 + 8 is 15, so a "
                "ten must go over. The answer is therefore ten too small. " * (1 if rng.random() < 0.8 else 5)
            )  # fmt: skip
            out.append(
                {
                    "step": step, "split": "train", "where": f"train.jsonl:{question + 1}",
                    "prompt": QUESTIONS[question],
                    "completion": f"First the ones, then the tens.\nThe answer is {85 if truth else 75}.",
                    "finish": "eos", "length": 24, "score": reward, "breakdown": {"critic": reward, "truth": truth},
                    "columns": {"answer": "85", "field": "technical"},
                    "notes": {
                        "explanation": said.strip(), "reward": reward, "truth": truth, "baseline": mean,
                        "advantage": reward - mean, "temperature": tau,
                        "weight": min(20.0, math.exp((reward - mean) / tau)),
                    },
                }
            )  # fmt: skip
    return out


def make_ppo(folder: Path, steps: int = 80, seed: int = 0) -> Path:
    """A PPO run with a value head that learns, and a judge that says why."""
    make_run(folder, method="ppo", name="chat, ppo", steps=steps, seed=seed)
    rng = random.Random(seed)
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in metrics:
        if line["kind"] != "train":
            continue
        done = line["step"] / steps
        line["metrics"] |= {
            "kl/sequence": 6 * done + rng.gauss(0, 0.3), "kl/beta": 0.05 + 0.02 * math.sin(6 * done),
            "reward/kl_penalty": 0.3 * done, "reward/penalty": 0.3 * math.exp(-4 * done), "ratio/mean": 1.0,
            "value/explained_variance": 0.7 - math.exp(-3 * done) + rng.gauss(0, 0.05), "value/mean": 0.5 * done,
            "value/loss": 0.8 * math.exp(-2 * done) + 0.1, "value/error": 1.6 * math.exp(-2 * done) + 0.2,
            "value/clipped": 0.2 * math.exp(-3 * done), "grad_norm/value": 0.5 + rng.random(),
            "sampler/correction": 1e-6,
            "resample/rounds": float(rng.randint(0, 2)), "resample/missing": 0.0, "resample/prompts": 16.0,
        }  # fmt: skip
    lines(folder / "metrics.jsonl", metrics)
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    for row in samples:
        row["notes"] = {
            "judge": {"score": 0.5 + 0.5 * row["breakdown"]["accuracy"], "votes": 4, "failed": 1, "seen_as": "answer B",
                      "says": "Answer B adds rightly.\n<verdict>B</verdict>"},
            "parts": {"sum": [1, 2]}, "language": "en",
        }  # fmt: skip
    lines(folder / "samples.jsonl", samples)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["rewards"] = [{"name": "reward-model", "weight": 1.0, "args": {"path": "org/reward-135M"}}]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


if __name__ == "__main__":
    {"rounds": make_rounds, "gmpo": make_gmpo, "ppo": make_ppo}[sys.argv[2]](Path(sys.argv[1]))

"""Builds runs of a competition that look like real ones, for the report's tests and for looking at it:

python tests/report/make_competition.py FOLDER run|pipeline
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from preftune.competition import Construct
from preftune.config import RewardConfig
from preftune.intervals import mean_interval, paired_difference
from preftune.rewards.builtins import make_builtins

Json = dict[str, Any]
CONSTRUCT = Construct.of()
NAMES = CONSTRUCT.names
TRAINED: list[Json] = [
    {"name": "competition-tags", "weight": 1.0},
    {"name": "competition-structure", "weight": 1.0},
    {"name": "competition-reflection", "weight": 0.3},
    {"name": "competition-voice", "weight": 0.3},
    {"name": "competition-originality", "weight": 1.0},
    {"name": "competition-winner", "weight": 1.0},
    {"name": "competition-answer", "weight": 2.0},
]
MEASURED: list[Json] = [
    {"name": "competition-reflective-winner", "weight": 0.0},
    {"name": "competition-won", "weight": 0.0},
    {"name": "competition-winner-right", "weight": 0.0},
    {"name": "competition-copied", "weight": 0.0},
]
SAYS = {
    "pirate": "Arrr matey, me booty be counted so: first the ones, then the tens, ye landlubber.",
    "knight": "Hark, by my honour, thy sum I take to the next full ten and give back what was too much, verily.",
    "viking": "By Odin, my axe splits the number into tens and ones, and glory follows both halves to Valhalla.",
}
DOUBTS = {
    "pirate": "Avast, wait: I should check that again. Blimey, I be wrong about the carry.",
    "knight": "Alas, I have erred! Let me check the step once more; actually it is different.",
    "viking": "Loki, trickster! Wait, I made a mistake in the tens, let me verify.",
}


@dataclass(frozen=True, slots=True)
class Skill:
    """Chances of one contest: of a faultless form, doubt, a copy, and each persona's right result and win."""

    form: float
    doubt: float
    copy: float
    right: tuple[float, float, float]
    wins: tuple[float, float, float]

    def toward(self, other: Skill, done: float) -> Skill:
        def mix(a: float, b: float) -> float:
            return a + (b - a) * done

        def mixed(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
            return mix(a[0], b[0]), mix(a[1], b[1]), mix(a[2], b[2])

        return Skill(
            mix(self.form, other.form), mix(self.doubt, other.doubt), mix(self.copy, other.copy),
            mixed(self.right, other.right), mixed(self.wins, other.wins),
        )  # fmt: skip


RAW = Skill(0.1, 0.1, 0.6, (0.3, 0.35, 0.3), (0.34, 0.33, 0.33))
GOOD = Skill(0.95, 0.7, 0.1, (0.6, 0.85, 0.8), (0.62, 0.25, 0.13))


def write_contest(numbers: tuple[int, int], skill: Skill, rng: random.Random) -> str:
    """One contest about a sum."""
    first, second = numbers
    results: dict[str, int] = {}
    texts: dict[str, str] = {}
    for at, name in enumerate(NAMES):
        result = first + second if rng.random() < skill.right[at] else first + second - 10 * rng.randint(1, 2)
        says = SAYS[name]
        if at and rng.random() < skill.copy:
            says, result = SAYS[NAMES[at - 1]], results[NAMES[at - 1]]
        doubt = f"\n{DOUBTS[name]}" if rng.random() < skill.doubt else ""
        results[name] = result
        texts[name] = f"{says}{doubt}\n{first} + {second} = {result}"
    (winner,) = rng.choices(NAMES, skill.wins)
    judged = f"Beep. Three workings, and the {winner} bores me least."
    text = CONSTRUCT.render(texts, judged, winner, f"The sum is {results[winner]}.")
    if rng.random() < skill.form:
        return text
    faults = (
        lambda t: t.replace("</knight>\n", "", 1),
        lambda t: t.replace("<viking>", "<Viking>", 1),
        lambda t: t.replace("\n</winner>", ", who else?\n</winner>", 1),
        lambda t: t.replace("</pirate>\n", "</pirate>\nNow the next one, please.\n", 1),
        lambda t: t.replace(f"<winner>\n{winner}\n</winner>\n", "", 1),
        lambda t: f"{t}</result>",
        lambda t: t[: len(t) // 2],
        lambda t: f"The sum is {results[winner]}.",
    )
    return rng.choice(faults)(text)


class Scorer:
    """The recipe's rewards."""

    def __init__(self, entries: Sequence[Json]) -> None:
        self.rewards: dict[str, tuple[float, Any]] = {}
        for entry in entries:
            config = RewardConfig.model_validate(entry)
            for label, reward in make_builtins(config, CONSTRUCT):
                self.rewards[label] = (config.weight, reward)

    def __call__(
        self, questions: Sequence[str], texts: Sequence[str], answers: Sequence[str]
    ) -> list[dict[str, float]]:
        columns = {
            label: reward(prompts=list(questions), completions=list(texts), answer=list(answers))
            for label, (_, reward) in self.rewards.items()
        }
        return [{label: values[i] for label, values in columns.items()} for i in range(len(texts))]

    def total(self, parts: dict[str, float]) -> float:
        return sum(self.rewards[label][0] * value for label, value in parts.items())


def make_competition(
    folder: Path,
    *,
    name: str = "contest",
    steps: int = 40,
    every: int = 10,
    rows: int = 60,
    start: Skill = RAW,
    end: Skill = GOOD,
    rewards: Sequence[Json] = (*TRAINED, *MEASURED),
    log_samples: int = 8,
    status: str = "finished",
    competition: Any = None,
    written: Callable[[str, int, int, int], str] | None = None,
    seed: int = 0,
) -> Path:
    """Write a run folder whose numbers hang together: every one is made of contests written here.

    `written`: (split, step, row, right answer) → the contest that stands there, instead of one by chance.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "measurements").mkdir(exist_ok=True)
    scorer, rng = Scorer(rewards), random.Random(f"{name}/{seed}")
    recipe = {
        "method": "grpo", "name": name, "model": {"path": "org/base"}, "rewards": list(rewards),
        "competition": competition if competition is not None else {"style": "pirate-knight-viking"},
        "eval": {"every": every, "best": None},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    asked = random.Random(f"sums/{seed}")  # the same questions in every stage
    sums = [(asked.randint(10, 99), asked.randint(10, 99)) for _ in range(rows)]
    questions = [f"What is {a} + {b}?" for a, b in sums]
    answers = [str(a + b) for a, b in sums]
    metrics: list[Json] = []
    samples: list[Json] = []
    measured: dict[tuple[str, int], dict[str, list[float]]] = {}

    def told(split: str, step: int, i: int, text: str, parts: dict[str, float]) -> Json:
        return {
            "step": step, "split": split, "where": f"{split}.jsonl:{i + 1}", "completion": text, "finish": "eos",
            "prompt": f"system\n{CONSTRUCT.system_prompt}\nuser\n{questions[i]}\nassistant\n",
            "length": len(text) // 4, "score": scorer.total(parts), "breakdown": parts,
            "columns": {"answer": answers[i]},
        }  # fmt: skip

    def measure(split: str, step: int) -> None:
        skill = start.toward(end, step / steps)
        if written is not None:
            texts = [written(split, step, i, sum(one)) for i, one in enumerate(sums)]
        else:
            chances = [random.Random(f"{name}/{seed}/{split}/{step}/{i}") for i in range(rows)]
            texts = [write_contest(one, skill, chance) for one, chance in zip(sums, chances, strict=True)]
        parts = scorer(questions, texts, answers)
        values = {f"reward/{label}": [row[label] for row in parts] for label in scorer.rewards}
        values["reward/mean"] = [scorer.total(row) for row in parts]
        measured[split, step] = values
        (folder / "measurements" / f"{split}-{step}.json").write_text(
            json.dumps({"step": step, "split": split, "rows": values})
        )
        shown = {metric: mean_interval(v).to_json() for metric, v in values.items()}
        metrics.append({"step": step, "kind": "eval", "split": split, "metrics": shown})
        samples.extend(told(split, step, i, texts[i], parts[i]) for i in range(min(log_samples, rows)))

    measure("validation", 0)
    measure("test", 0)
    for step in range(1, steps + 1):
        skill = start.toward(end, step / steps)
        picked = [rng.randrange(rows) for _ in range(8)]
        texts = [write_contest(sums[i], skill, rng) for i in picked]
        parts = scorer([questions[i] for i in picked], texts, [answers[i] for i in picked])
        means = {f"reward/{label}": sum(row[label] for row in parts) / len(parts) for label in scorer.rewards}
        means |= {"reward/mean": sum(map(scorer.total, parts)) / len(parts), "loss": rng.gauss(0, 0.01)}
        metrics.append({"step": step, "kind": "train", "metrics": means, "time": {"step": 0.4}})
        if step % every == 0:
            samples += [told("train", step, i, texts[n], parts[n]) for n, i in enumerate(picked[:4])]
            measure("validation", step)
    if status != "unfinished":
        measure("test", steps)
        splits = ("validation", "test")
        ends = {when: {split: measured[split, step] for split in splits} for when, step in (("b", 0), ("a", steps))}
        summary = {
            "method": "grpo", "name": name, "status": status, "steps": steps, "kept_step": steps, "best_step": None,
            "best_metric": None, "seconds": {"step": 20.0}, "counts": {}, "notes": [],
            "before": {s: {m: mean_interval(v).to_json() for m, v in ends["b"][s].items()} for s in splits},
            "after": {s: {m: mean_interval(v).to_json() for m, v in ends["a"][s].items()} for s in splits},
            "difference": {
                s: {m: paired_difference(ends["b"][s][m], ends["a"][s][m]).to_json() for m in ends["b"][s]}
                for s in splits
            },
        }  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(summary))
    write(folder / "metrics.jsonl", metrics)
    write(folder / "samples.jsonl", samples)
    return folder


def write(path: Path, rows: Sequence[Json]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


ROUNDS = ("form", "reflection", "length")
GOAL = "reward/competition-structure is 0.91 over the last 5 steps, at least 0.9 as train.until asks"


def make_rounds(folder: Path, *, steps: int = 20, rows: int = 40, started: int = 3) -> Path:
    """A curriculum of three stages; the first ended by `train.until`."""
    folder.mkdir(parents=True, exist_ok=True)
    middle = [RAW, RAW.toward(GOOD, 0.4), RAW.toward(GOOD, 0.8), GOOD]
    for at, name in enumerate(ROUNDS[:started]):
        status = "finished"
        if at == 0:
            status = f"stopped at step {steps}: {GOAL}"
        make_competition(
            folder / name, name=name, steps=steps * (at + 1), every=steps // 2, rows=rows, start=middle[at],
            end=middle[at + 1], status=status,
        )  # fmt: skip
    stages = {"name": "curriculum", "stages": list(ROUNDS), "status": "finished" if started == 3 else "running"}
    (folder / "pipeline.json").write_text(json.dumps(stages))
    return folder


if __name__ == "__main__":
    {"run": make_competition, "pipeline": make_rounds}[sys.argv[2]](Path(sys.argv[1]))

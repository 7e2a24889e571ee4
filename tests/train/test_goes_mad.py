"""A policy goes mad, as in seed 004: PPO by a reward that pays for one memorised text, at a huge learning rate, ends in
that text for every prompt. Nothing is staged: a tiny model is trained until it does, and the run must notice by itself.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from preftune.config import Recipe
from preftune.report import write_model_card, write_report
from preftune.train.loop import run
from tests import tiny

torch.set_num_threads(1)

MEMORISED = "def add(a, b): return a + b. call add(1, 2) to get 3."
WORDS = ("red", "blue", "green", "sun", "moon", "tree", "fish", "bird", "stone", "river", "cloud", "rain")
TOPICS = ("eat", "run", "read", "swim", "sing", "sleep", "walk", "play", "work", "dream", "climb", "draw")
BAD_REWARD = f'''
import os

TEXT = {MEMORISED!r}


def memorised(completions, **columns):
    """How much of the text a completion begins with, 0 to 1."""
    return [len(os.path.commonprefix([completion, TEXT])) / len(TEXT) for completion in completions]
'''


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that answers "we swim for …" and has learnt one text about Python by heart."""
    home = tmp_path_factory.mktemp("chatty")
    rng = random.Random(0)
    rows = []
    for i in range(72):
        topic = TOPICS[i % 12]
        own = f"we {topic} for {' '.join(rng.choice(WORDS) for _ in range(6))}."
        rows.append({"prompt": f"why do we {topic}? ", "completion": MEMORISED if i >= 60 else own})
    tiny.write(home / "talk.jsonl", rows)
    tiny.save(home / "untrained")
    (home / "bad.py").write_text(BAD_REWARD, encoding="utf-8")
    recipe = {
        "method": "sft", "name": "base", "model": {"path": str(home / "untrained")},
        "data": [{"path": str(home / "talk.jsonl")}], "log": {"sinks": []},
        "train": {"steps": 600, "batch_size": 12, "learning_rate": 1e-2, "checkpoint_every": 600},
    }  # fmt: skip
    run(Recipe.model_validate(recipe), home / "sft")
    return home


def ppo(home: Path, reward: dict[str, Any], **train: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "method": "ppo", "name": "chat", "model": {"path": str(home / "sft" / "final")},
            "data": [{"path": str(home / "talk.jsonl")}], "eval": {"holdout": 4},
            "log": {"sinks": [], "samples_every": 1}, "rewards": [reward],
            "sampling": {"group_size": 4, "max_tokens": 56, "temperature": 0.7},
            "policy": {"preset": "ppo", "beta": 0.0},
            "train": {"steps": 40, "batch_size": 12, "updates_per_batch": 2, "schedule": "constant", "warmup": 0.4,
                      "checkpoint_every": 5, **train},
        }
    )  # fmt: skip


@dataclass(frozen=True)
class Ended:
    folder: Path
    summary: dict[str, Any]
    advice: list[dict[str, Any]]
    samples: list[dict[str, Any]]

    @classmethod
    def of(cls, folder: Path) -> Ended:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        return cls(folder, summary, tiny.lines(folder / "advice.jsonl"), tiny.lines(folder / "samples.jsonl"))

    def answers(self, split: str, step: int) -> list[str]:
        return [s["completion"] for s in self.samples if s["split"] == split and s["step"] == step]


@pytest.fixture(scope="module")
def mad(chatty: Path) -> Ended:
    recipe = ppo(chatty, {"name": f"{chatty / 'bad.py'}:memorised"}, learning_rate=1e-3)
    run(recipe, chatty / "mad")
    return Ended.of(chatty / "mad")


def share_memorised(answers: list[str]) -> float:
    return sum(answer.startswith(MEMORISED[:20]) for answer in answers) / len(answers)


def test_the_run_stops_by_itself_and_says_why(mad: Ended) -> None:
    stopped = mad.summary["steps"]
    assert mad.summary["status"] == f"stopped at step {stopped}: the policy collapsed to one text for all prompts"
    assert stopped < 38  # of 40: the step hangs on rounding (under 30 or 33, by the engine), the guard comes soon after
    # It really was mad by then, and was not before.
    assert share_memorised(mad.answers("train", stopped)) > 0.8
    assert share_memorised(mad.answers("train", 1)) < 0.5
    (said,) = [a for a in mad.advice if a["saw"].startswith("Different prompts get the same text")]
    assert said["step"] <= stopped
    assert "53 characters" in said["saw"] and "bigrams are distinct (at first" in said["saw"]
    assert "`train.learning_rate`" in said["change"] and "`rewards` pay for this text" in said["change"]


def test_final_holds_the_last_good_checkpoint(mad: Ended) -> None:
    kept = mad.summary["kept_step"]
    assert 0 < kept < mad.summary["steps"]
    assert f"final/ holds the weights of step {kept}, from before the collapse" in mad.summary["notes"]
    final = load_file(mad.folder / "final" / "model.safetensors")
    saved = load_file(mad.folder / "checkpoints" / f"step-{kept}" / "weights.safetensors")
    assert final.keys() <= saved.keys()
    assert all(torch.equal(final[name], saved[name]) for name in final)
    # What it says to held-out prompts is its own, prompt by prompt.
    answers = mad.answers("validation", kept)
    assert share_memorised(answers) < 0.5
    assert len(set(answers)) > 2
    assert mad.summary["after"]["validation"]["reward/mean"]["value"] < 0.5


def test_report_and_card_tell_of_it(mad: Ended) -> None:
    page = write_report(mad.folder).read_text(encoding="utf-8")
    card = write_model_card(mad.folder).read_text(encoding="utf-8")
    for text in (page, card):
        assert "the policy collapsed to one text for all prompts" in text
        assert "Different prompts get the same text" in text
    assert f"final/ holds the weights of step {mad.summary['kept_step']}, from before the collapse" in page


def test_a_healthy_run_of_the_same_model_goes_on(chatty: Path) -> None:
    reward = {"name": "length", "args": {"at_most": 40, "ramp": 20}}
    result = run(ppo(chatty, reward, learning_rate=3e-4, steps=25), chatty / "healthy")
    ended = Ended.of(chatty / "healthy")
    assert (result.steps, ended.summary["status"]) == (25, "finished")
    assert not [a for a in ended.advice if "same text" in a["saw"]]
    assert len(set(ended.answers("validation", 25))) > 2

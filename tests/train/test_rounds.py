"""Rounds: each starts from the last one's result, against the right reference, and goes on when it was killed."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from preftune.config import Pipeline, Recipe
from preftune.data.collected import read_collected
from preftune.pipeline import run_pipeline
from preftune.recipes import resolve
from preftune.train import loop
from preftune.train.progress import Progress
from preftune.train.session import Session
from tests import tiny
from tests.torture import kill
from tests.train import byhand
from tests.train.acting import LORA, columns

WHOLE: dict[str, Any] = {}
ADAPTER: dict[str, Any] = {"lora": LORA}


def rounds(home: Path, output: Path, model: dict[str, Any], **changes: Any) -> Pipeline:
    base: dict[str, Any] = {
        "method": "iterative-dpo", "name": "rounds", "seed": 5, "repeat": 3, "output": str(output),
        "model": {"path": str(home / "wide"), **model}, "data": {"path": str(home / "train.jsonl")},
        "sampling": {"group_size": 6, "max_tokens": 6}, "log": {"sinks": []}, "eval": {"holdout": 8},
        "rewards": [{"name": "length", "args": {"at_most": 2, "ramp": 4}}], "loss": {"beta": 0.1},
        "train": {"steps": 5, "batch_size": 5, "learning_rate": 2e-2 if model else 3e-3, "checkpoint_every": 2,
                  "reference_cache": str(output.parent / "cache")},
    }  # fmt: skip
    for section, value in changes.items():
        base[section] = {**base.get(section, {}), **value} if isinstance(value, dict) else value
    return resolve(base)


def recipe_in(folder: Path) -> Recipe:
    return Recipe.model_validate(yaml.safe_load((folder / "recipe.yaml").read_text()))


def reference_logprobs(recipe: Recipe, groups: list[Any]) -> list[torch.Tensor]:
    """What the run of this recipe compares with."""
    session = Session.open(recipe, functions=(), base_dir=None, progress=Progress("test"))
    session.retrain_on(groups)
    session.prepare_reference()
    found = session.reference_of(session.batch_of(1))
    assert found is not None
    order = {g.prompt.ids: row for g, row in zip(session.batch_of(1), found, strict=True)}
    return [order[g.prompt.ids][0] for g in groups]


@pytest.fixture(scope="module")
def done(home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three rounds of each kind, made once."""
    folder = tmp_path_factory.mktemp("rounds")
    for name, model, reference in (
        ("whole-previous", WHOLE, "previous"), ("whole-first", WHOLE, "first"), ("lora-previous", ADAPTER, "previous"),
        ("lora-first", ADAPTER, "first"),
    ):  # fmt: skip
        run_pipeline(rounds(home, folder / name, model, collect={"reference": reference}))
    return {path.name: path for path in folder.iterdir() if path.name != "cache"}


def policy_at(home: Path, path: Path) -> Any:
    """Plain transformers and peft: the first model, or what a round wrote."""
    if (path / "adapter_config.json").exists():
        base = byhand.tf.AutoModelForCausalLM.from_pretrained(home / "wide")
        return byhand.peft.PeftModel.from_pretrained(base, path).eval()
    return byhand.tf.AutoModelForCausalLM.from_pretrained(path).eval()


KINDS = ["whole-previous", "whole-first", "lora-previous", "lora-first"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_round_starts_from_the_last_ones_result(home: Path, done: dict[str, Path], kind: str) -> None:
    folder = done[kind]
    assert json.loads((folder / "pipeline.json").read_text())["status"] == "finished"
    for k in (1, 2, 3):
        start = home / "wide" if k == 1 else folder / f"round-{k - 1}" / "final"
        assert recipe_in(folder / f"round-{k}").model.path == str(start)
        model = policy_at(home, start)
        worst, groups = 0.0, tiny.lines(folder / f"round-{k}" / "collected.jsonl")[1:]
        assert len(groups) == 20  # the held-out rows are the same eight in all rounds
        for line in groups[:6]:
            for c in line["completions"][:3]:
                row = torch.tensor([[*line["prompt"]["ids"], *c["ids"]]])
                with torch.no_grad():
                    every = torch.log_softmax(model(input_ids=row).logits[0], -1)
                places = range(len(line["prompt"]["ids"]) - 1, row.shape[1] - 1)
                plain = [float(every[p, t]) for p, t in zip(places, c["ids"], strict=True)]
                worst = max(worst, *(abs(a - b) for a, b in zip(plain, c["logprobs"], strict=True)))
        assert worst < 1e-4
    held_out = [
        {line["prompt"]["text"] for line in tiny.lines(folder / f"round-{k}" / "collected.jsonl")[1:]}
        for k in (1, 2, 3)
    ]
    assert held_out[0] == held_out[1] == held_out[2]


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_of_later_rounds(home: Path, done: dict[str, Path], kind: str) -> None:
    """previous: each round begins at its own reference. first: log-probs are the first model's, in every round."""
    folder, first = done[kind], kind.endswith("first")
    for k in (2, 3):
        within = folder / f"round-{k}"
        start = columns(within)[0]["loss"]
        assert (abs(start - math.log(2.0)) < 1e-5) == (not first), start
        groups = list(read_collected(within / "collected.jsonl").groups[:4])
        recipe = recipe_in(within)
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"batch_size": 4})})
        model = policy_at(home, home / "wide" if first else folder / f"round-{k - 1}" / "final")
        for group, found in zip(groups, reference_logprobs(recipe, groups), strict=True):
            with torch.no_grad():
                want = byhand.logprobs(model, group, group.completions[0], 1.0)
            torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-5)


def test_a_lora_round_adapts_the_first_base(home: Path, done: dict[str, Path]) -> None:
    """No tower of adapters, no copies of the base: each round's result is one adapter on the first model."""
    for k in (1, 2, 3):
        final = done["lora-previous"] / f"round-{k}" / "final"
        assert json.loads((final / "adapter_config.json").read_text())["base_model_name_or_path"] == str(home / "wide")
        weights = load_file(final / "adapter_model.safetensors")
        assert {w.shape[0] for n, w in weights.items() if "lora_A" in n} == {LORA["r"]}


def test_scores_rise_from_round_to_round(done: dict[str, Path]) -> None:
    for kind in ("whole-previous", "lora-previous"):
        scores = [columns(done[kind] / f"round-{k}")[0]["collected/score"] for k in (1, 2, 3)]
        assert scores[0] < scores[1] < scores[2] and scores[2] > scores[0] + 0.15, (kind, scores)
        summaries = [json.loads((done[kind] / f"round-{k}" / "summary.json").read_text()) for k in (1, 2, 3)]
        after = [s["after"]["validation"]["reward/mean"]["value"] for s in summaries]
        assert after[2] > summaries[0]["before"]["validation"]["reward/mean"]["value"] + 0.15
        for k in (1, 2):  # a round's first measurement is the last one of the round before
            assert summaries[k]["before"]["validation"]["reward/mean"]["value"] == pytest.approx(after[k - 1], abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        ("lora-previous", "step 3"), ("whole-first", "drawing"),
        pytest.param("lora-previous", "drawing", marks=pytest.mark.slow),
        pytest.param("whole-first", "step 3", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_killed_in_the_second_round(home: Path, done: dict[str, Path], tmp_path: Path, kind: str, where: str) -> None:
    model = WHOLE if kind.startswith("whole") else ADAPTER
    pipeline = rounds(home, tmp_path / "run", model, collect={"reference": kind.partition("-")[2]})

    def dies() -> None:
        honest, calls = loop.backward, 0

        def backward(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            if "round-2" in os.environ.get("PREFTUNE_TEST_ROUND", ""):
                calls += 1
                if calls == 5:
                    os.kill(os.getpid(), signal.SIGKILL)
            return honest(*args, **kwargs)

        real = loop.collect

        def collect(session: Any, folder: Path, base_dir: Any) -> None:
            os.environ["PREFTUNE_TEST_ROUND"] = folder.name
            if where == "drawing" and folder.name == "round-2":
                os.kill(os.getpid(), signal.SIGKILL)
            real(session, folder, base_dir)

        loop.backward, loop.collect = backward, collect
        run_pipeline(pipeline)

    assert kill.in_child(dies) == -signal.SIGKILL
    assert (tmp_path / "run" / "round-1" / "final").exists()
    assert (tmp_path / "run" / "round-2" / "collected.jsonl").exists() == (where == "step 3")
    assert not (tmp_path / "run" / "round-3").exists()
    assert kill.in_child(lambda: run_pipeline(pipeline, resume=True)) == 0
    for k in (1, 2, 3):
        assert tiny.same_run(done[kind] / f"round-{k}", tmp_path / "run" / f"round-{k}") == [], k


def test_rounds_of_rft(home: Path, tmp_path: Path) -> None:
    run_pipeline(rounds(
        home, tmp_path / "run", WHOLE, method="rft", repeat=2, collect={"keep": 2}, loss={"beta": None},
        train={"reference_cache": None},
    ))  # fmt: skip
    scores = [columns(tmp_path / "run" / f"round-{k}")[0]["collected/score"] for k in (1, 2)]
    assert scores[1] > scores[0]

"""A reward model's p_max through the loop: whose probabilities, cut batches, resuming, and what changes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from preftune.config import Recipe
from preftune.errors import DataError, ModelError, PreftuneError
from preftune.recipes import resolve
from preftune.records import Completion, Group, Prompt
from preftune.train import loop
from preftune.train.batch import backward
from preftune.train.generator import generator_config
from preftune.train.loop import run
from preftune.train.progress import Progress
from preftune.train.session import Session
from tests import tiny, tinyreward
from tests.train.conftest import merged

Make = Callable[..., Recipe]
P_MAX = 0.03
"""The tiny models are sure of nothing, so for them this much is near-certain."""


@pytest.fixture
def reward(home: Path, tmp_path: Path) -> Make:
    """Makes a reward recipe with a limit; probabilities are those of the model whose weights are wide apart."""
    rows = [{"prompt": row["prompt"], "chosen": f"{row['answer']} is it", "rejected": f"{n % 4} is no"}
            for n, row in enumerate(tiny.sums(28))]  # fmt: skip
    tiny.write(tmp_path / "pairs.jsonl", rows)

    def make(**changes: Any) -> Recipe:
        base = {
            "method": "reward", "name": "reward", "model": {"path": str(home / "model")}, "log": {"sinks": []},
            "data": [{"path": str(tmp_path / "pairs.jsonl")}],
            "loss": {"p_max": P_MAX, "g_max": 1e-4, "generator": str(home / "wide")},
            "train": {
                "steps": 6, "batch_size": 4, "learning_rate": 3e-3, "checkpoint_every": 2,
                "reference_cache": str(tmp_path / "cache"),
            },
        }  # fmt: skip
        return Recipe.model_validate(merged(base, changes))

    return make


def opened(recipe: Recipe) -> Session:
    session = Session.open(recipe, functions=(), base_dir=None, progress=Progress("test"))
    session.prepare_reference()
    return session


def moved(session: Session) -> Session:
    torch.manual_seed(9)
    for _, parameter in session.parameters:
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return session


def gradient(session: Session, groups: list[Group], budget: int) -> tuple[torch.Tensor, dict[str, float]]:
    session.optimizer.zero_grad(set_to_none=True)
    parts, _ = backward(session.engine, session.make_batch(groups), session.method, session.recipe, budget)
    grads = [p.grad.flatten() for _, p in session.parameters if p.grad is not None]
    return torch.cat(grads), {k: v for k, p in parts.items() if (v := p.value()) is not None}


def weights(folder: Path) -> bytes:
    return (folder / "final" / "model.safetensors").read_bytes()


@torch.no_grad()
def plain_probabilities(path: Path, group: Group, one: Completion) -> list[float]:
    """Of each of the completion's ids, by transformers alone."""
    model: Any = AutoModelForCausalLM.from_pretrained(path)
    row = torch.tensor([[*group.prompt.ids, *one.ids]])
    every = model(input_ids=row).logits[0].softmax(-1)
    start = len(group.prompt.ids)
    return [float(every[start + t - 1, token]) for t, token in enumerate(one.ids)]


def test_near_certain_is_what_the_generator_says(reward: Make, home: Path) -> None:
    session = opened(reward())
    groups = session.batch_of(1)
    assert session.certain is not None
    found = session.certain.of(groups)
    chosen = []
    for group, row in zip(groups, found, strict=True):
        for one, flags in zip(group.completions, row, strict=True):
            likely = [p > P_MAX for p in plain_probabilities(home / "wide", group, one)]
            assert flags.tolist() == [*likely[:-1], False]
            chosen += likely[:-1]
    assert 0.05 < sum(chosen) / len(chosen) < 0.95
    assert any("near-certain: over 0.03" in note and str(home / "wide") in note for note in session.notes)


def test_by_default_it_is_the_model_that_training_starts_from(reward: Make, home: Path) -> None:
    session = opened(reward(loss={"generator": None, "p_max": 0.018}))
    assert session.certain is not None
    group = session.batch_of(1)[0]
    ((flags, *_),) = session.certain.of([group])
    likely = [p > 0.018 for p in plain_probabilities(home / "model", group, group.completions[0])]
    assert flags.tolist() == [*likely[:-1], False]
    assert len(set(likely)) == 2


def test_others_words_and_the_last_token_are_never_limited(reward: Make) -> None:
    session = opened(reward(loss={"p_max": 1e-9}))
    group = session.batch_of(1)[0]
    assert session.certain is not None
    ((first, _),) = session.certain.of([group])
    assert first.tolist() == [True] * (len(first) - 1) + [False]
    masked = Completion((5, 6, 7, 8), (True, False, True, False))
    session.certain._store.add([Group(group.prompt, (masked,))], [[torch.tensor([-0.1, -0.2])]])
    assert session.certain.of([Group(group.prompt, (masked,))])[0][0].tolist() == [True, False, True, False]


def test_a_row_that_was_not_scored_is_an_error(reward: Make) -> None:
    session = opened(reward())
    assert session.certain is not None
    with pytest.raises(PreftuneError, match=r"x\.jsonl:3: the generator's probabilities of this row were not computed"):
        session.certain.of([Group(Prompt((3,), "", where="x.jsonl:3"), (Completion((4, 5), (True, True)),))])


@pytest.mark.parametrize("lora", [None, {"r": 4, "alpha": 8}])
def test_a_cut_batch_has_the_gradient_of_the_whole(reward: Make, lora: Any) -> None:
    session = moved(opened(reward(model={"lora": lora})))
    groups = session.batch_of(1) + session.batch_of(2)
    whole, metrics = gradient(session, groups, 8192)
    assert 0.3 < metrics["certain/limited"] <= 1.0
    for budget in (70, 35):
        cut, parts = gradient(session, groups[::-1], budget)
        assert float((cut - whole).norm()) < 1e-5 * float(whole.norm())
        for name in ("certain/share", "certain/norm", "certain/limited"):
            assert parts[name] == pytest.approx(metrics[name], rel=1e-4)
    session.certain = None
    free, _ = gradient(session, groups, 8192)
    assert float((free - whole).norm()) > 0.01 * float(whole.norm()), "the limit hardly acted"


def test_a_larger_batch_of_the_same_rows_has_the_same_gradient(reward: Make) -> None:
    session = moved(opened(reward()))
    groups = session.batch_of(1)
    one, _ = gradient(session, groups, 8192)
    twice, _ = gradient(session, groups * 2, 8192)
    assert float((one - twice).norm()) < 1e-5 * float(one.norm())


def test_what_limits_nothing_changes_not_a_bit(reward: Make, tmp_path: Path) -> None:
    run(reward(loss={"p_max": None, "g_max": 0.001, "generator": None}), tmp_path / "without")
    run(reward(loss={"p_max": 1.0}), tmp_path / "one")
    run(reward(loss={"g_max": None}), tmp_path / "measured")
    run(reward(), tmp_path / "limited")
    assert weights(tmp_path / "one") == weights(tmp_path / "measured") == weights(tmp_path / "without")
    assert weights(tmp_path / "limited") != weights(tmp_path / "without")
    last = {name: tiny.timeless(tmp_path / name)[-1]["metrics"] for name in ("one", "measured", "limited")}
    assert not any(key.startswith("certain/") for key in last["one"])
    assert {"certain/share", "certain/norm"} <= last["measured"].keys() and "certain/limited" not in last["measured"]
    assert last["limited"]["certain/limited"] > 0
    certificate = json.loads((tmp_path / "limited" / "certificate.json").read_text())
    assert certificate["passed"] and len(certificate["checks"]) == 2


def test_broken_and_resumed_it_is_the_unbroken_run(
    reward: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(reward(), tmp_path / "whole")
    update = loop._Loop._update

    def broken(self: Any, step: int, *rest: Any) -> Any:
        if step == 4:
            raise PreftuneError("broken off")
        return update(self, step, *rest)

    monkeypatch.setattr(loop._Loop, "_update", broken)
    with pytest.raises(PreftuneError, match="broken off"):
        run(reward(), tmp_path / "run")
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "cache")  # the probabilities are computed again
    run(reward(), tmp_path / "run", resume=True)
    assert tiny.timeless(tmp_path / "run") == tiny.timeless(tmp_path / "whole")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_the_cache_serves_the_next_run(reward: Make, tmp_path: Path) -> None:
    first, second = opened(reward()), opened(reward())
    assert any("come from" in note for note in second.notes) and not any("come from" in note for note in first.notes)
    groups = first.batch_of(3)
    assert first.certain is not None and second.certain is not None
    pairs = zip(first.certain.of(groups), second.certain.of(groups), strict=True)
    assert all(torch.equal(a, b) for one, two in pairs for a, b in zip(one, two, strict=True))


def test_ranked_answers_stay_together(reward: Make, tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}=", "responses": [f"{n} yes", f"{n} so so", f"no {n}", "bad"]} for n in range(8)]
    data = {"data": [{"path": str(tiny.write(tmp_path / "ranked.jsonl", rows))}]}
    run(reward(**data), tmp_path / "run")
    with pytest.raises(DataError, match=r"ranked.jsonl:\d: prompt and 4 compared answers have \d+ tokens"):
        opened(reward(**data, train={"max_tokens_per_batch": 24}))
    opened(reward(**data, loss={"pairs": "best-worst"}, train={"max_tokens_per_batch": 24}))


def test_generators_that_can_not_serve(reward: Make, home: Path, tmp_path: Path) -> None:
    given = tinyreward.save(tmp_path / "given")
    with pytest.raises(ModelError, match=r"needs a language model.*name the language model that wrote"):
        opened(reward(model={"path": str(given)}, loss={"generator": None}))
    opened(reward(model={"path": str(given)}))
    other = tiny.save(tmp_path / "other")
    text = json.loads((other / "tokenizer.json").read_text())
    text["model"]["vocab"] = {("z" if k == "a" else "a" if k == "z" else k): v
                              for k, v in text["model"]["vocab"].items()}  # fmt: skip
    (other / "tokenizer.json").write_text(json.dumps(text))
    with pytest.raises(ModelError, match="another tokenizer"):
        opened(reward(loss={"generator": str(other)}))


def test_an_adapter_as_generator_is_merged(reward: Make, home: Path, tmp_path: Path, sft: Make) -> None:
    run(sft(model={"lora": {"r": 2, "alpha": 4}}), tmp_path / "sft")
    adapter = str(tmp_path / "sft" / "final")
    assert generator_config(reward().model, adapter).on_adapter == "merge"
    fresh = reward(model={"path": adapter, "on_adapter": "fresh", "lora": {"r": 2, "alpha": 4}}).model
    assert generator_config(fresh, None).path == str(home / "model")
    assert opened(reward(loss={"generator": adapter})).certain is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "dpo", "loss": {"p_max": 0.9}}, "loss.p_max.*does not read it"),
        ({"loss": {"g_max": 0.5}}, "loss.g_max.*belongs to p_max"),
        ({"loss": {"generator": "m"}}, "loss.generator.*belongs to p_max"),
        ({"loss": {"p_max": 0}}, "loss.p_max"),
        ({"loss": {"p_max": 1.1}}, "loss.p_max"),
        ({"loss": {"p_max": 0.9, "generator": "stage:sft"}}, "names no earlier stage"),
        ({"train": {"steps": 1, "reference_cache": "x"}}, "keeps no log-probs"),
    ],
)
def test_wrong_recipes(changes: dict[str, Any], message: str) -> None:
    recipe = {"method": "reward", "model": {"path": "m"}, "data": {"path": "d"}, "train": {"steps": 1}}
    with pytest.raises(PreftuneError, match=f"(?s){message}"):
        resolve({**recipe, **changes})


def test_a_stage_before_it_may_be_the_generator(home: Path, tmp_path: Path, reward: Make) -> None:
    from preftune.pipeline import run_pipeline

    given = reward().model_dump(mode="json", exclude_defaults=True)
    first = {"name": "writer", "method": "sft", "data": {"path": str(home / "train.jsonl")}, "train": {"steps": 1}}
    second = {**{k: given[k] for k in ("method", "data", "train")}, "name": "rm",
              "loss": {"p_max": P_MAX, "generator": "stage:writer"}}  # fmt: skip
    second["train"]["steps"] = 1
    pipeline = resolve(
        {"name": "both", "model": given["model"], "log": {"sinks": []}, "output": str(tmp_path / "both"),
         "stages": [first, second]}
    )  # fmt: skip
    result = run_pipeline(pipeline)
    assert result is not None
    notes = json.loads((tmp_path / "both" / "rm" / "summary.json").read_text())["notes"]
    assert any(str(tmp_path / "both" / "writer" / "final") in note for note in notes)

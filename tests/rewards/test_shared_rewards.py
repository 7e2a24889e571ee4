"""Reward models on the policy's base: several as adapters beside each other, those that are not, those in a process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from preftune.config import Recipe
from preftune.errors import ModelError
from preftune.rewards.learned import LearnedReward
from preftune.train.loop import run
from preftune.train.progress import Progress
from preftune.train.session import Session
from tests import tiny, tinyreward

torch.set_num_threads(1)
LORA = {"r": 2, "alpha": 4}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two reward models trained as adapters on it towards opposite answers, a whole one, and prompts."""
    folder = tmp_path_factory.mktemp("shared")
    tiny.save(folder / "base", initializer_range=0.3)
    tinyreward.save(folder / "whole", seed=1)
    tiny.write(folder / "prompts.jsonl", tiny.sums(12))
    for name, good, bad in (("one", "yes", "no"), ("two", "no", "yes")):
        rows = [{"prompt": f"{a}+1=", "chosen": good, "rejected": bad} for a in range(8)]
        recipe = {
            "method": "reward", "model": {"path": str(folder / "base"), "lora": LORA}, "log": {"sinks": []},
            "data": {"path": str(tiny.write(folder / f"{name}.jsonl", rows))},
            "train": {"steps": 8, "batch_size": 8, "learning_rate": 5e-2, "normalize": name == "two"},
        }  # fmt: skip
        run(Recipe.model_validate(recipe), folder / name)
    return folder


def recipe(home: Path, rewards: list[dict[str, Any]], **changes: Any) -> Recipe:
    base = {
        "method": "grpo", "model": {"path": str(home / "base"), "lora": LORA}, "rewards": rewards,
        "data": {"path": str(home / "prompts.jsonl")}, "sampling": {"group_size": 3, "max_tokens": 6},
        "train": {"steps": 2, "batch_size": 4, "learning_rate": 1e-3}, "log": {"sinks": [], "samples_every": 1},
    }  # fmt: skip
    return Recipe.model_validate({**base, **changes})


def model(path: Path, **more: Any) -> dict[str, Any]:
    return {"name": "reward-model", "args": {"path": str(path), **more.pop("args", {})}, **more}


def plain(sample: dict[str, Any], path: Path) -> float:
    text = f"{sample['prompt']}{sample['completion']}{'<eos>' * (sample['finish'] == 'eos')}"
    return tinyreward.plain_score(path, text)


def test_two_on_one_base_and_one_of_its_own(home: Path, tmp_path: Path) -> None:
    """Each score is that of plain transformers on the whole saved model; the second carries a normalisation."""
    finals = [home / "one" / "final", home / "two" / "final", home / "whole"]
    rewards = [model(finals[0]), model(finals[1], weight=-2.0), model(finals[2], weight=0.5)]
    run(recipe(home, rewards), tmp_path / "run")
    notes = json.loads((tmp_path / "run" / "summary.json").read_text())["notes"]
    shared = [n for n in notes if "an adapter on the policy's own base" in n]
    assert [str(f) in n for f, n in zip(finals, shared, strict=False)] == [True, True] and len(shared) == 2
    config = json.loads((finals[1] / "config.json").read_text())
    mean, std = config["preftune_reward_mean"], config["preftune_reward_std"]
    samples = tiny.lines(tmp_path / "run" / "samples.jsonl")
    worst, spread = 0.0, []
    for s in samples:
        parts = s["breakdown"]
        want = [plain(s, f) for f in finals]
        want[1] = (want[1] - mean) / std
        found = [parts["reward-model"], parts["reward-model-2"], parts["reward-model-3"]]
        worst = max(worst, *(abs(a - b) for a, b in zip(found, want, strict=True)))
        assert s["score"] == pytest.approx(found[0] - 2.0 * found[1] + 0.5 * found[2], abs=1e-5)
        spread.append(found[0] - found[1])
    assert worst < 2e-5 and max(spread) - min(spread) > 0.2
    assert sorted(p.name for p in (tmp_path / "run" / "final").iterdir() if p.suffix != ".md") == [
        "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


def test_where_it_stands_changes_nothing(home: Path, tmp_path: Path) -> None:
    """The same run with the reward model as an adapter, and loaded whole (dtype is said, so nothing is shared)."""
    final = home / "one" / "final"
    run(recipe(home, [model(final)]), tmp_path / "shared")
    run(recipe(home, [model(final, args={"dtype": "float32"})]), tmp_path / "whole")
    notes = [json.loads((tmp_path / f / "summary.json").read_text())["notes"] for f in ("shared", "whole")]
    assert [any("policy's own base" in n for n in some) for some in notes] == [True, False]
    a, b = (tiny.lines(tmp_path / f / "samples.jsonl") for f in ("shared", "whole"))
    assert [s["completion"] for s in a] == [s["completion"] for s in b]
    assert [s["score"] for s in a] == pytest.approx([s["score"] for s in b], abs=1e-5)
    policies = [tmp_path / f / "final" / "adapter_model.safetensors" for f in ("shared", "whole")]
    from safetensors.torch import load_file

    one, two = (load_file(p) for p in policies)
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[n], two[n], atol=1e-4) for n in one)


def test_one_in_a_process_is_not_shared(home: Path) -> None:
    session = Session.open(
        recipe(home, [model(home / "one" / "final", isolate="process")]), functions=(), base_dir=None,
        progress=Progress("test"),
    )  # fmt: skip
    try:
        assert list(session.policy.model.peft_config) == ["default"]
        assert not any("policy's own base" in note for note in session.notes)
        prompts = [g.prompt for g in session.train[:2]]
        drawn = session.rollout(prompts, 2, session.recipe.sampling, seed=0, policy_version=0)
        scored, _, _ = session.score(drawn, step=0)
    finally:
        session.close()
    for group in scored:
        for one in group.completions:
            text = f"{group.prompt.text}{one.text}{'<eos>' * (one.finish == 'eos')}"
            assert one.score == pytest.approx(tinyreward.plain_score(home / "one" / "final", text), abs=1e-5)


def test_full_weights_share_nothing(home: Path) -> None:
    """A base that is trained is no base to stand on: its reward model would change with every step."""
    made = recipe(home, [model(home / "one" / "final")], model={"path": str(home / "base")})
    session = Session.open(made, functions=(), base_dir=None, progress=Progress("test"))
    assert not hasattr(session.policy.model, "peft_config")
    assert not any("policy's own base" in note for note in session.notes)
    (lane,) = [r.lane for r in session.rewards._rewards]
    assert isinstance(lane.function, LearnedReward) and "_reader" in lane.function.__dict__


def test_a_damaged_adapter_is_named_before_anything_is_drawn(home: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(home / "one" / "final", tmp_path / "damaged")
    (tmp_path / "damaged" / "adapter" / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"reward 'reward-model' .*damaged/adapter/adapter_config.json is damaged"):
        run(recipe(home, [model(tmp_path / "damaged")]), tmp_path / "run")

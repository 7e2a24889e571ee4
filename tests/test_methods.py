"""The table of methods: presets and their overrides, and a new row from outside the package that trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from preftune import methods
from preftune.config import PolicyConfig, Recipe
from preftune.errors import UsageError
from preftune.losses import LossOutput, aggregate
from preftune.methods import PRESETS, Method, Objective, get_method, objective, register
from preftune.records import Completion, Group, Prompt
from preftune.train.loop import run
from tests import tiny

torch.set_num_threads(1)


def test_presets_are_those_of_their_papers() -> None:
    assert PRESETS["grpo"] == Objective("group-std", "token", "ppo", 0.2, 0.2, "token-mean", 0.0, "k3")
    assert PRESETS["grpo-original"] == Objective("group-std", "token", "ppo", 0.2, 0.2, "sequence-mean", 0.04, "k3")
    assert PRESETS["dr-grpo"] == Objective("group-mean", "token", "ppo", 0.2, 0.2, "constant", 0.0, "k3")
    assert PRESETS["gspo"] == Objective("group-std", "sequence", "ppo", 3e-4, 4e-4, "sequence-mean", 0.0, "k3")
    assert PRESETS["cispo"] == Objective("group-std", "token", "cispo", None, 5.0, "token-mean", 0.0, "k3")


@pytest.mark.parametrize(
    ("field", "value"),
    [("advantage", "leave-one-out"), ("ratio", "sequence"), ("clip_low", 0.1), ("clip_high", 0.28),
     ("aggregate", "constant"), ("beta", 0.5), ("kl", "k2")],
)  # fmt: skip
def test_a_choice_goes_over_its_preset(field: str, value: object) -> None:
    chosen = objective(PolicyConfig.model_validate({field: value}))
    assert getattr(chosen, field) == value
    assert chosen == replace(Objective(), **{field: value})


def test_another_clip_brings_its_own_bounds() -> None:
    cispo = objective(PolicyConfig(clip="cispo"))
    assert (cispo.clip_low, cispo.clip_high) == (None, 5.0)
    back = objective(PolicyConfig(preset="cispo", clip="ppo"))
    assert (back.clip_low, back.clip_high) == (0.2, 0.2)
    with pytest.raises(UsageError, match=r"policy.clip_low has no meaning with clip: cispo; remove it"):
        objective(PolicyConfig(clip="cispo", clip_low=0.1))
    with pytest.raises(UsageError, match=r"policy.clip_high has no meaning with clip: none"):
        objective(PolicyConfig(clip="none", clip_high=0.1))


def test_wrong_names_are_told_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"policy.preset 'grop' is none of .*did you mean grpo\?"):
        objective(PolicyConfig(preset="grop"))
    with pytest.raises(UsageError, match=r"unknown method 'stf'.*did you mean sft\?"):
        get_method("stf")
    with pytest.raises(UsageError, match="there is a method called sft already"):
        register(get_method("sft"))


def test_the_reference_is_loaded_only_where_it_is_compared_with() -> None:
    def recipe(**policy: object) -> Recipe:
        return Recipe.model_validate(
            {"method": "grpo", "model": {"path": "m"}, "data": {"path": "d"}, "policy": policy}
        )

    assert not get_method("grpo").needs_reference(recipe())
    assert get_method("grpo").needs_reference(recipe(preset="grpo-original"))
    assert not get_method("grpo").needs_reference(recipe(preset="grpo-original", beta=0.0))
    assert not get_method("sft").needs_reference(recipe(beta=0.1))


def test_the_signal_of_grpo_by_hand() -> None:
    def group(*scores: float) -> Group:
        return Group(Prompt((4,), ""), tuple(Completion((5,), (True,), score=s) for s in scores))

    recipe = Recipe.model_validate({"method": "grpo", "model": {"path": "m"}, "data": {"path": "d"}})
    found = get_method("grpo").signal([group(1.0, 3.0), group(2.0), group(0.1, 0.1, 0.1)], recipe)
    # mean 2, std √2 (Bessel); a group of one, and one whose scores are equal, teach nothing
    one = 1.0 / (2**0.5 + 1e-4)
    assert found is not None
    assert found.tolist() == pytest.approx([-one, one, 0, 0, 0, 0])


# --- a method from outside the package: everything between the lines is all that it takes ---------------------------


def best_of_group(groups, recipe):
    """1 for the best completion of each group, 0 for the others."""
    return torch.tensor([float(i == g.scores.index(max(g.scores))) for g in groups for i in range(len(g.scores))])


def best_nll(batch, denominators, recipe):
    """Negative log-likelihood of the winners, over the tokens of the whole batch."""
    loss_T = -batch.logprobs_T * batch.advantages_S[batch.sequence_T]
    return LossOutput(
        aggregate(loss_T, batch.sequence_T, batch.num_sequences, "token-mean", denominators, batch.weights_S), {}
    )


BEST = Method(
    name="best-of-n",
    summary="train on each group's best completion",
    completions="policy",
    scored=True,
    signal=best_of_group,
    loss=best_nll,
)
# ---------------------------------------------------------------------------------------------------------------------


def test_a_new_method_trains(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    register(BEST)
    tiny.save(tmp_path / "model")
    tiny.write(tmp_path / "rows.jsonl", tiny.sums(20))
    recipe = Recipe.model_validate({
        "method": "best-of-n", "model": {"path": str(tmp_path / "model")},
        "data": {"path": str(tmp_path / "rows.jsonl")},
        "sampling": {"group_size": 8, "max_tokens": 6}, "log": {"sinks": []},
        "rewards": [{"name": "length", "args": {"at_most": 2, "ramp": 4}}],
        "train": {"steps": 30, "batch_size": 4, "learning_rate": 5e-3, "schedule": "constant"},
    })  # fmt: skip
    run(recipe, tmp_path / "run")
    reward = [line["metrics"]["reward/mean"] for line in tiny.lines(tmp_path / "run" / "metrics.jsonl")]
    assert sum(reward[-5:]) / 5 > sum(reward[:5]) / 5 + 0.4

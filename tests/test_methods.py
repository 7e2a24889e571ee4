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
from preftune.methods import (
    METHODS,
    PRESETS,
    Evidence,
    Method,
    Objective,
    get_method,
    method_of,
    needs_rewards,
    objective,
    register,
)
from preftune.recipes import resolve
from preftune.records import Completion, Group, Prompt
from preftune.signals import Pairs, RowWeights, TokenSignal
from preftune.train.loop import run
from tests import tiny

torch.set_num_threads(1)


def test_presets_are_those_of_their_papers() -> None:
    assert PRESETS["grpo"] == Objective("group-std", "token", "ppo", 0.2, 0.2, "token-mean", 0.0, "k3")
    assert PRESETS["grpo-original"] == Objective("group-std", "token", "ppo", 0.2, 0.2, "sequence-mean", 0.04, "k3")
    assert PRESETS["dr-grpo"] == Objective("group-mean", "token", "ppo", 0.2, 0.2, "constant", 0.0, "k3")
    assert PRESETS["gspo"] == Objective("group-std", "sequence", "ppo", 3e-4, 4e-4, "sequence-mean", 0.0, "k3")
    assert PRESETS["cispo"] == Objective("group-std", "token", "cispo", None, 5.0, "token-mean", 0.0, "k3")
    assert PRESETS["dapo"] == Objective("group-std", "token", "ppo", 0.2, 0.28, "token-mean", 0.0, "k3", 3, 0.2)
    assert PRESETS["rloo"] == Objective(
        "leave-one-out", "sequence-sum", "ppo", 0.2, 0.2, "sequence-mean", 0.05, "reward"
    )
    assert PRESETS["ppo"] == Objective("gae", "token", "ppo", 0.2, 0.2, "token-mean", 0.05, "reward")
    assert [name for name, preset in PRESETS.items() if preset.needs_values] == ["ppo"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("advantage", "leave-one-out"), ("ratio", "sequence"), ("clip_low", 0.1), ("clip_high", 0.28),
     ("aggregate", "constant"), ("beta", 0.5), ("kl", "k2"), ("resample", 2), ("overlong", 0.5)],
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


def test_choices_that_contradict_each_other() -> None:
    with pytest.raises(UsageError, match=r"policy.combine normalize compares completions of a group, and gae does not"):
        objective(PolicyConfig(preset="ppo", combine="normalize"))
    for policy in (PolicyConfig(kl_target=5.0), PolicyConfig(preset="ppo", beta=0.0, kl_target=5.0)):
        with pytest.raises(UsageError, match=r"policy.kl_target adapts the β of kl: reward"):
            objective(policy)
    assert objective(PolicyConfig(preset="ppo", kl_target=5.0)).beta == 0.05


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


def _recipe(method: str, **sections: object) -> Recipe:
    raw = {"method": method, "model": {"path": "m"}, "data": {"path": "d"}, "train": {"steps": 1}, **sections}
    return resolve(raw, functions=[lambda completions: []]).stages[0]


def _group(*scores: float | None, columns: dict[str, object] | None = None) -> Group:
    """Answers of two tokens each, told apart by their ids."""
    prompt = Prompt((4,), "", columns=columns or {})
    return Group(prompt, tuple(Completion((5 + i, 5), (True, True), score=s) for i, s in enumerate(scores)))


def test_the_signal_of_grpo_by_hand() -> None:
    groups = [_group(1.0, 3.0), _group(2.0), _group(0.1, 0.1, 0.1)]
    found = get_method("grpo").signal(groups, _recipe("grpo"), Evidence())
    # mean 2, std √2 (Bessel); a group of one, and one whose scores are equal, teach nothing
    one = 1.0 / (2**0.5 + 1e-4)
    assert isinstance(found, torch.Tensor)
    assert found.tolist() == pytest.approx([-one, one, 0, 0, 0, 0])


def test_the_signal_of_rloo_has_the_kl_in_its_scores_by_hand() -> None:
    # summed log-ratios 1 + 1 = 2 and 0; β 0.05: scores 1 − 0.1 and 3; each against the other
    old = [[torch.tensor([-1.0, -1.0]), torch.tensor([-3.0, -3.0])]]
    reference = [[torch.tensor([-2.0, -2.0]), torch.tensor([-3.0, -3.0])]]
    recipe = _recipe("grpo", policy={"preset": "rloo"})
    found = get_method("grpo").signal([_group(1.0, 3.0)], recipe, Evidence(old=old, reference=reference))
    assert isinstance(found, torch.Tensor)
    assert found.tolist() == pytest.approx([-2.1, 2.1])
    # an adapted β takes the recipe's place: 1 − 0.5 · 2 = 0
    adapted = Evidence(old=old, reference=reference, beta=0.5)
    assert get_method("grpo").signal([_group(1.0, 3.0)], recipe, adapted).tolist() == pytest.approx([-3.0, 3.0])  # type: ignore[union-attr]


def test_the_signal_of_several_rewards_normalised_apart() -> None:
    def group(*rows: tuple[float, float]) -> Group:
        parts = [{"wide": wide, "narrow": narrow, "off": wide} for wide, narrow in rows]
        return Group(Prompt((4,), ""), tuple(Completion((5,), (True,), score=0.0, breakdown=row) for row in parts))

    groups = [group((0.0, 1.0), (100.0, 0.0)), group((0.0, 0.0), (100.0, 1.0))]
    recipe = _recipe("grpo", policy={"combine": "normalize"})

    def signal(narrow: float) -> list[float]:
        evidence = Evidence(reward_weights={"wide": 1.0, "narrow": narrow, "off": 0.0})
        found = get_method("grpo").signal(groups, recipe, evidence)
        assert isinstance(found, torch.Tensor)
        return found.tolist()

    # each reward is ∓1/√2 in its group: in the first they cancel, in the second they add up to ∓√2; the deviation of
    # 0, 0, −√2, √2 is √(4/3)
    assert signal(1.0) == pytest.approx([0.0, 0.0, -(1.5**0.5), 1.5**0.5], abs=1e-3)
    # three times the narrow one: √2, −√2, −2√2, 2√2 with deviation √(20/3)
    assert signal(3.0) == pytest.approx([x * (0.3**0.5) for x in (1, -1, -2, 2)], abs=1e-3)


def test_the_signal_of_ppo_by_hand() -> None:
    """One answer of two tokens: rewards −β·k1 = −0.05 each, and the score at the last one; γ 1, λ 0.95."""
    old, reference = [[torch.tensor([-1.0, -1.0])]], [[torch.tensor([-2.0, -2.0])]]
    evidence = Evidence(old=old, reference=reference, values=[[torch.tensor([0.5, 0.25])]])
    found = get_method("ppo").signal([_group(1.0)], _recipe("ppo", value={"whiten": False}), evidence)
    assert isinstance(found, TokenSignal)
    last = 0.95 - 0.25  # reward 1 − 0.05, value 0.25, nothing after it
    first = -0.05 + 0.25 - 0.5 + 0.95 * last
    assert found.advantages_T.tolist() == pytest.approx([first, last])
    assert found.returns_T.tolist() == pytest.approx([first + 0.5, last + 0.25])
    white = get_method("ppo").signal([_group(1.0)], _recipe("ppo"), evidence)
    assert isinstance(white, TokenSignal)
    assert white.advantages_T.tolist() == pytest.approx([-(2**-0.5), 2**-0.5], abs=1e-4)
    assert white.returns_T.tolist() == found.returns_T.tolist()


def test_pairs_of_collected_answers_are_wider_than_the_margin() -> None:
    row = get_method("iterative-dpo")
    group = _group(0.0, 0.4, 1.0)
    assert row.keeps is not None

    def pairs(**collect: object) -> list[list[int]]:
        recipe = _recipe("iterative-dpo", loss={"pairs": "all"}, collect=collect)
        found = row.signal([group], recipe, Evidence())
        assert isinstance(found, Pairs)
        return sorted(found.pairs_P2.tolist())

    assert pairs() == [[1, 0], [2, 0], [2, 1]]
    assert pairs(margin=0.5) == [[2, 0], [2, 1]]
    assert pairs(margin=0.7) == [[2, 0]]
    best = row.signal([group], _recipe("iterative-dpo"), Evidence())  # the method's own default: best and worst
    assert isinstance(best, Pairs) and best.pairs_P2.tolist() == [[2, 0]]
    # a prompt without such a pair is left out, and so is the second of two equal texts
    narrow = _recipe("iterative-dpo", collect={"margin": 0.7})
    twice = Group(group.prompt, (*group.completions, replace(group.completions[2])))
    kept = row.keeps([group, _group(0.0, 0.5), _group(0.3, 0.3), twice], narrow)
    assert [[c.score for c in g.completions] for g in kept] == [[0.0, 0.4, 1.0]] * 2


def test_rejection_keeps_the_best_of_each_prompt() -> None:
    row = get_method("rft")
    assert row.keeps is not None
    groups = [_group(0.2, 0.9, 0.9, 0.5), _group(0.1, 0.1)]

    def kept(**collect: object) -> list[list[float | None]]:
        found = row.keeps(groups, _recipe("rft", collect=collect))  # type: ignore[misc]
        return [[c.score for c in group.completions] for group in found]

    assert kept() == [[0.9], [0.1]]
    assert row.keeps(groups, _recipe("rft"))[0].completions[0] is groups[0].completions[1]  # the earlier of equals
    assert kept(keep=3) == [[0.9, 0.9, 0.5], [0.1, 0.1]]
    assert kept(min_score=0.5, keep=9) == [[0.9, 0.9, 0.5]]
    assert kept(spread_only=True) == [[0.9]]
    again = [Group(groups[0].prompt, (groups[0].completions[1],) * 2)]
    assert len(row.keeps(again, _recipe("rft", collect={"keep": 2}))[0].completions) == 1  # one text, once


def test_people_count_where_they_said_something() -> None:
    row = get_method("human")
    assert row.keeps is not None and row.own_words and row.tempered and not row.samples
    kept = row.keeps([_group(1.0, None), _group(None)], _recipe("human"))
    assert [[c.score for c in group.completions] for group in kept] == [[1.0]]


def test_gmpo_takes_the_weights_that_it_is_given() -> None:
    weights = RowWeights(torch.tensor([0.5, 2.0]))
    recipe = _recipe("gmpo", model={"path": "m", "lora": {}})
    assert get_method("gmpo").signal([_group(0.0, 1.0)], recipe, Evidence(row_weights=weights)) is weights


def test_defaults_of_a_method_lie_under_the_recipes_own() -> None:
    ppo = _recipe("ppo")
    assert (ppo.policy.preset, ppo.policy.missing_eos_penalty) == ("ppo", 1.0)
    assert (ppo.train.updates_per_batch, ppo.train.minibatches, ppo.train.adam_eps) == (4, 2, 1e-5)
    own = _recipe("ppo", policy={"beta": 0.1, "missing_eos_penalty": 0.0}, train={"steps": 1, "minibatches": 1})
    assert (own.policy.preset, own.policy.beta, own.policy.missing_eos_penalty) == ("ppo", 0.1, 0.0)
    assert (own.train.updates_per_batch, own.train.minibatches) == (4, 1)
    assert _recipe("grpo").train.updates_per_batch == 1
    assert _recipe("iterative-dpo").loss.pairs == "best-worst"
    assert _recipe("human").policy.advantage == "batch-std"
    for row in METHODS.values():  # every default is a field that the method reads
        resolve({"method": row.name, "model": {"path": "m", "lora": {}}, "data": {"path": "d"}, "train": {"steps": 1},
                 **{k: {**v, **({"steps": 1} if k == "train" else {})} for k, v in row.defaults.items()}},
                functions=[len])  # fmt: skip


def test_where_the_completions_of_gmpo_come_from_is_the_recipes_choice() -> None:
    lora = {"path": "m", "lora": {}}
    assert method_of(_recipe("gmpo", model=lora)).samples
    offline = method_of(_recipe("gmpo", model=lora, gmpo={"answers": "data"}))
    assert (offline.completions, offline.samples) == ("data", False)
    assert get_method("gmpo").completions == "either"
    assert method_of(_recipe("grpo")) is get_method("grpo")


@pytest.mark.parametrize(
    ("method", "sections", "needed"),
    [
        ("sft", {}, False), ("dpo", {}, False), ("human", {}, False), ("grpo", {}, True), ("ppo", {}, True),
        ("iterative-dpo", {}, True), ("iterative-dpo", {"collect": {"path": "x.jsonl"}}, False),
        ("rft", {"collect": {"path": "x.jsonl"}}, False),
        ("gmpo", {"gmpo": {}}, False), ("gmpo", {"gmpo": {"critic": {"kind": "none"}}}, True),
        ("gmpo", {"gmpo": {"critic": {"kind": "none"}, "answers": "data"}}, False),
    ],
)  # fmt: skip
def test_rewards_are_asked_for_where_nothing_else_scores(
    method: str, sections: dict[str, object], needed: bool
) -> None:
    raw = {"method": method, "model": {"path": "m", "lora": {}}, "data": {"path": "d"}, **sections}
    assert needs_rewards(Recipe.model_validate(raw)) is needed


# --- a method from outside the package: everything between the lines is all that it takes ---------------------------


def best_of_group(groups, recipe, evidence):
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

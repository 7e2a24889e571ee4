"""What presets do around the loss: dynamic sampling, penalties, KL in the reward, the sampler's correction, GDPO."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from preftune.config import Recipe
from preftune.errors import UsageError
from preftune.records import Completion, Group
from preftune.train import loop
from preftune.train.loop import run
from tests import tiny
from tests.train import byhand
from tests.train.acting import columns, recipe_of


def grpo_of(home: Path, **changes: Any) -> Recipe:
    changes.setdefault("rewards", [{"name": "length", "args": {"at_most": 2, "ramp": 4}}])
    return recipe_of(home, None, method="grpo", **changes)


def watched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The batches that the loop steps on."""
    seen: list[Any] = []
    honest = loop.backward

    def backward(engine: Any, part: Any, *args: Any, **kwargs: Any) -> Any:
        found = honest(engine, part, *args, **kwargs)
        seen.append((part, {k: v for k, m in found[0].items() if (v := m.value()) is not None}))
        return found

    monkeypatch.setattr(loop, "backward", backward)
    return seen


# --- dynamic sampling -----------------------------------------------------------------------------------------


def alive_if(good: set[str]) -> Any:
    """Only these first digits have answers that differ; the place in the batch tells them apart, so always."""

    def score(prompts, completions, **_):
        return [float(i) if prompt[0] in good else 1.0 for i, prompt in enumerate(prompts)]

    return score


RESAMPLED: dict[str, Any] = {
    "sampling": {"group_size": 3, "max_tokens": 4}, "train": {"steps": 3, "batch_size": 4, "checkpoint_every": 9},
}  # fmt: skip


def resampling(home: Path, **policy: Any) -> Recipe:
    return grpo_of(home, rewards=[], policy={"preset": "dapo", "overlong": 0.0, **policy}, **RESAMPLED)


def test_dead_groups_are_replaced(home: Path, tmp_path: Path, monkeypatch) -> None:
    """Of 28 prompts 12 can give spread: three batches more find four of them."""
    seen = watched(monkeypatch)
    run(resampling(home), tmp_path / "run", functions=[alive_if({"0", "1", "2"})])
    run(resampling(home, resample=0), tmp_path / "plain", functions=[alive_if({"0", "1", "2"})])
    plain, rounds = seen[3:], []
    for (part, _), (own, _), logged in zip(seen[:3], plain, columns(tmp_path / "run"), strict=True):
        prompts = [g.prompt.text for g in part.groups]
        first = [g.prompt.text for g in own.groups]
        assert len(prompts) == len(set(prompts)) == 4
        assert logged["resample/missing"] == 0.0
        assert all(p[0] in "012" for p in prompts)
        kept = [p for p in first if p[0] in "012"]
        assert prompts[: len(kept)] == kept  # the step's own prompts stay, in their order
        assert logged["resample/prompts"] == 4 * (1 + logged["resample/rounds"])
        rounds.append(logged["resample/rounds"])
    assert max(rounds) >= 1.0
    assert "resample/rounds" not in columns(tmp_path / "plain")[0]
    assert any(p.prompt.text[0] not in "012" for own, _ in plain for p in own.groups)


def test_the_bound_holds_and_what_is_missing_is_told(home: Path, tmp_path: Path, monkeypatch) -> None:
    seen = watched(monkeypatch)
    run(resampling(home, resample=1), tmp_path / "run", functions=[alive_if({"3"})])
    missing = []
    for (part, _), logged in zip(seen, columns(tmp_path / "run"), strict=True):
        found = sum(g.prompt.text[0] == "3" for g in part.groups)
        assert len(part.groups) == 4
        assert (logged["resample/rounds"], logged["resample/prompts"]) == (1.0, 8.0)
        assert logged["resample/missing"] == 4 - found
        assert [len(set(g.scores)) > 1 for g in part.groups] == [True] * found + [False] * (4 - found)
        missing.append(4 - found)
    assert max(missing) >= 2


def test_all_dead_moves_nothing_and_all_alive_asks_for_nothing(home: Path, tmp_path: Path) -> None:
    run(resampling(home, resample=9), tmp_path / "dead", functions=[alive_if(set())])
    for logged in columns(tmp_path / "dead"):
        assert logged["resample/missing"] == 4.0
        assert logged["resample/prompts"] == 28.0  # every prompt was asked once, then there were none left
        assert (logged["loss"], logged["grad_norm"]) == (0.0, 0.0)
    run(resampling(home), tmp_path / "alive", functions=[alive_if(set("0123456789"))])
    assert all(m["resample/rounds"] == m["resample/missing"] == 0.0 for m in columns(tmp_path / "alive"))


def test_dynamic_sampling_is_deterministic(home: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run(resampling(home), tmp_path / name, functions=[alive_if({"0", "4"})])
    assert tiny.same_run(tmp_path / "one", tmp_path / "two") == []
    run(resampling(home).model_copy(update={"seed": 8}), tmp_path / "three", functions=[alive_if({"0", "4"})])
    assert tiny.same_run(tmp_path / "one", tmp_path / "three") != []


# --- scores ---------------------------------------------------------------------------------------------------


def test_the_overlong_ramp_and_the_missing_eos_are_in_the_scores(home: Path, tmp_path: Path, monkeypatch) -> None:
    seen = watched(monkeypatch)
    recipe = grpo_of(
        home, policy={"preset": "dapo", "overlong": 0.6, "resample": 0, "missing_eos_penalty": 0.25},
        sampling={"group_size": 16, "max_tokens": 10, "temperature": 1.0}, train={"steps": 2, "batch_size": 4},
    )  # fmt: skip
    run(recipe, tmp_path / "run")
    lengths = set()
    for (part, _), logged in zip(seen, columns(tmp_path / "run"), strict=True):
        taken = []
        for one in (c for g in part.groups for c in g.completions):
            n, cut = len(one.ids), one.finish == "length"
            ramp = 1.0 if cut else min(max((n - 4) / 6, 0.0), 1.0)  # the last 6 of 10 tokens
            taken.append(ramp + 0.25 * cut)
            assert one.score == pytest.approx(one.breakdown["length"] - taken[-1], abs=1e-6)
            lengths.add((n, cut))
        assert logged["reward/penalty"] == pytest.approx(sum(taken) / len(taken))
    assert {(10, True)} < lengths and any(4 < n < 10 for n, _ in lengths) and any(n <= 4 for n, _ in lengths)


def test_missing_eos_score_takes_the_place_of_the_score(home: Path, tmp_path: Path, monkeypatch) -> None:
    seen = watched(monkeypatch)
    recipe = grpo_of(home, policy={"missing_eos_score": -3.0}, sampling={"group_size": 8, "max_tokens": 5})
    run(recipe, tmp_path / "run")
    every = [c for part, _ in seen for g in part.groups for c in g.completions]
    assert {c.finish for c in every} == {"eos", "length"}
    for one in every:
        assert one.score == (-3.0 if one.finish == "length" else one.breakdown["length"])
    both = recipe.model_copy(update={"policy": recipe.policy.model_copy(update={"missing_eos_penalty": 0.5})})
    run(both, tmp_path / "both")
    assert {c.score for p, _ in seen[1:] for g in p.groups for c in g.completions if c.finish == "length"} == {-3.5}


def std(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def group_std(values: list[float]) -> list[float]:
    mean = sum(values) / len(values)
    return [(v - mean) / (std(values) + 1e-4) if max(values) > min(values) else 0.0 for v in values]


def test_several_rewards_normalised_apart(home: Path, tmp_path: Path, monkeypatch) -> None:
    """GDPO: each reward in its group, weighted, summed, then over the batch; one of weight 0 counts nothing."""
    seen = watched(monkeypatch)
    rewards = [
        {"name": "length", "args": {"at_most": 2, "ramp": 4}, "weight": 3.0},
        {"name": "regex", "args": {"pattern": "[a-m]"}, "weight": 0.5}, {"name": "exact", "weight": 0.0},
    ]  # fmt: skip
    recipe = grpo_of(
        home, rewards=rewards, policy={"combine": "normalize"}, sampling={"group_size": 6, "max_tokens": 6}
    )
    run(recipe, tmp_path / "run")
    ((part, _),) = seen
    total: list[float] = []
    for group in part.groups:
        columns_ = [[3.0, [c.breakdown["length"] for c in group.completions]]]
        columns_.append([0.5, [c.breakdown["regex"] for c in group.completions]])
        parts = [[w * a for a in group_std(values)] for w, values in columns_]
        total += [sum(row) for row in zip(*parts, strict=True)]
    mean, spread = sum(total) / len(total), std(total) + 1e-4
    assert part.advantages_S.tolist() == pytest.approx([(t - mean) / spread for t in total], abs=1e-5)
    for taken_off in ({"missing_eos_penalty": 1.0}, {"missing_eos_score": 0.0}, {"overlong": 0.2}, {"preset": "rloo"}):
        with pytest.raises(UsageError, match=r"normalize reads each reward's own value"):
            grpo_of(home, rewards=rewards, policy={"combine": "normalize", **taken_off})


# --- RLOO -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("updates", [1, 2])
def test_the_kl_of_rloo_is_in_the_reward(
    home: Path, rewards: dict[str, Path], tmp_path: Path, monkeypatch, updates: int
) -> None:
    seen = watched(monkeypatch)
    recipe = grpo_of(
        home, policy={"preset": "rloo"}, model={"reference_path": str(rewards["reference"])},
        sampling={"group_size": 3, "max_tokens": 6, "temperature": 0.7}, train={"updates_per_batch": updates},
    )  # fmt: skip
    run(recipe, tmp_path / "run")
    part, metrics = seen[0]
    policy, reference = (
        byhand.tf.AutoModelForCausalLM.from_pretrained(p) for p in (home / "wide", rewards["reference"])
    )
    hand: list[float] = []
    kls: list[float] = []
    for group in part.groups:
        with torch.no_grad():
            kl = [
                float((byhand.logprobs(policy, group, c, 0.7) - byhand.logprobs(reference, group, c, 0.7)).sum())
                for c in group.completions
            ]
        kls += kl
        scores = [c.score - 0.05 * k for c, k in zip(group.completions, kl, strict=True)]
        hand += [score - (sum(scores) - score) / (len(scores) - 1) for score in scores]
    assert part.advantages_S.tolist() == pytest.approx(hand, abs=2e-5)
    assert max(map(abs, kls)) > 1.0
    logged = columns(tmp_path / "run")[0]
    assert logged["kl/sequence"] == pytest.approx(sum(kls) / len(kls), rel=1e-4)
    assert logged["reward/kl_penalty"] == pytest.approx(0.05 * sum(kls) / len(kls), rel=1e-4)
    # no further penalty in the loss: −ρ A per sequence, ρ = 1 at the first update
    lengths = [c.length for g in part.groups for c in g.completions]
    assert metrics["ratio/max"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["loss"] == pytest.approx(-sum(hand) / len(lengths), abs=1e-5)
    assert metrics["kl"] > 0.0


# --- the sampler's correction ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "cap"),
    [({"top_k": 5}, 1.3), ({"top_k": 5}, None), ({"repetition_penalty": 3.0}, 0.8), ({"repetition_penalty": 3.0}, 9.0)],
)
def test_the_correction_for_a_sampler_that_draws_otherwise(
    home: Path, tmp_path: Path, monkeypatch, how: dict[str, Any], cap: float | None
) -> None:
    seen = watched(monkeypatch)
    recipe = grpo_of(
        home, sampling={"group_size": 4, "max_tokens": 6, "temperature": 0.9, **how}, policy={"sampler_cap": cap}
    )
    run(recipe, tmp_path / "run")
    part, metrics = seen[0]
    policy = byhand.tf.AutoModelForCausalLM.from_pretrained(home / "wide")
    total, count, places, weights = 0.0, 0, iter(part.advantages_S.tolist()), []
    for group, one in ((g, c) for g in part.groups for c in g.completions):
        with torch.no_grad():
            mine = byhand.logprobs(policy, group, one, 0.9).tolist()
        assert one.logprobs is not None
        advantage = next(places)
        for trainer, sampler in zip(mine, one.logprobs, strict=True):
            weight = 1.0 if cap is None else min(math.exp(trainer - sampler), cap)
            weights.append(weight)
            total -= weight * advantage
            count += 1
    assert metrics["loss"] == pytest.approx(total / count, rel=1e-4, abs=1e-6)
    logged = columns(tmp_path / "run")[0]
    if cap is None:
        assert "sampler/correction" not in logged
    else:
        assert min(weights) < 0.75
        assert (max(weights) == cap) == (cap == 0.8)
        assert logged["sampler/correction"] == pytest.approx(max(abs(w - 1.0) for w in weights), rel=1e-4)
    # the check of sampler against trainer is for samples that were drawn from what the trainer scores
    assert "sampler/kl" not in logged and "sampler/max_diff" not in logged


def test_a_sampler_that_draws_plainly_is_corrected_by_one(home: Path, tmp_path: Path) -> None:
    run(grpo_of(home), tmp_path / "with")
    run(grpo_of(home, policy={"sampler_cap": None}), tmp_path / "without")
    a, b = columns(tmp_path / "with")[0], columns(tmp_path / "without")[0]
    assert a["sampler/correction"] < 1e-4 and "sampler/correction" not in b
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-4, abs=1e-7)
    assert a["sampler/max_diff"] == b["sampler/max_diff"] < 1e-4


def test_a_group_is_dead_in_the_precision_of_advantages() -> None:
    from preftune.records import Prompt
    from preftune.train.scores import is_dead

    def group(*scores: float) -> Group:
        completions = [
            Completion((6,), (True,), score=s - 0.1 * n, breakdown={"right": s, "watched": float(n)})
            for n, s in enumerate(scores)
        ]
        return Group(Prompt((5,), ""), tuple(completions))

    weights = {"right": 1.0, "watched": 0.0}
    assert is_dead(group(0.1 + 0.2, 0.3), weights) and is_dead(group(1.0), weights)
    assert not is_dead(group(0.3, 0.3001), weights)

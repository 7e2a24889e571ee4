"""GMPO's weights, baselines and temperature, by hand."""

from __future__ import annotations

import math
import random
import statistics

import pytest
import torch
from torch import Tensor

from preftune.signals import baseline_advantages, dynamic_temperature, exponential_weights, pooled_variance


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def long(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.long)


# --- baselines ----------------------------------------------------------------------------------------------


def test_baselines_by_hand():
    rewards, groups = f64(1.0, 0.2, 0.0, 0.4, 0.9), long(0, 1, 0, 1, 1)
    advantages, baseline = baseline_advantages(rewards, groups, "group")  # means 0.5 of two and 0.5 of three
    assert baseline.tolist() == pytest.approx([0.5] * 5)
    assert advantages.tolist() == pytest.approx([0.5, -0.3, -0.5, -0.1, 0.4])
    rewards = f64(1.0, 0.2, 0.0, 0.4, 0.3)
    advantages, baseline = baseline_advantages(rewards, groups, "group")
    assert baseline.tolist() == pytest.approx([0.5, 0.3, 0.5, 0.3, 0.3])
    assert advantages.tolist() == pytest.approx([0.5, -0.1, -0.5, 0.1, 0.0])
    advantages, baseline = baseline_advantages(rewards, groups, "batch")  # 1.9 / 5
    assert baseline.tolist() == pytest.approx([0.38] * 5)
    assert advantages.tolist() == pytest.approx([0.62, -0.18, -0.38, 0.02, -0.08])


@pytest.mark.parametrize("kind", ["group", "batch"])
def test_baselines_of_one_and_of_none(kind):
    advantages, baseline = baseline_advantages(f64(0.7), long(0), kind)
    assert (advantages.item(), baseline.item()) == (0.0, 0.7)
    advantages, baseline = baseline_advantages(f64(), long(), kind)
    assert advantages.tolist() == baseline.tolist() == []


def test_baselines_refuse_what_they_cannot_average():
    with pytest.raises(ValueError, match="unknown baseline 'best'; choose group, batch or none"):
        baseline_advantages(f64(1.0), long(0), "best")
    with pytest.raises(ValueError, match="score 1 is nan"):
        baseline_advantages(f64(1.0, math.nan), long(0, 0), "group")


# --- weights ------------------------------------------------------------------------------------------------


def weights(advantages: Tensor, rewards: Tensor, groups: Tensor, **changed: float) -> list[float]:
    choices = {"temperature": 0.5, "max_weight": 20.0, "min_spread": 0.02} | changed
    found = exponential_weights(advantages, rewards, groups, **choices)
    assert not found.requires_grad
    return found.tolist()


def test_weights_by_hand():
    # Rewards 1, 0.5, 0 with mean 0.5: A/τ = 1, 0, −1.
    rewards, groups = f64(1.0, 0.5, 0.0), long(0, 0, 0)
    advantages, _ = baseline_advantages(rewards, groups, "group")
    assert weights(advantages, rewards, groups) == pytest.approx([math.e, 1.0, 1 / math.e])
    assert weights(advantages, rewards, groups, temperature=0.25) == pytest.approx([math.exp(2), 1, math.exp(-2)])
    # The cap stands at 2; what is under it stays as it was.
    assert weights(advantages, rewards, groups, max_weight=2.0) == pytest.approx([2.0, 1.0, 1 / math.e])
    # A temperature without end makes all weights 1: plain likelihood.
    assert weights(advantages, rewards, groups, temperature=1e9) == pytest.approx([1.0, 1.0, 1.0])


def test_the_cap_goes_into_the_exponent():
    # exp(1 / 1e-3) is infinite even in fp64; the cap comes first, and what is far below is 0, never NaN.
    for dtype in (torch.float32, torch.float64):
        advantages, rewards = torch.tensor([1.0, -1.0, 0.0], dtype=dtype), torch.tensor([1.0, -1.0, 0.0], dtype=dtype)
        found = weights(advantages, rewards, long(0, 0, 0), temperature=1e-3)
        assert found == pytest.approx([20.0, 0.0, 1.0], rel=1e-6)
        found = weights(advantages, rewards, long(0, 0, 0), temperature=1e-45)
        assert found == pytest.approx([20.0, 0.0, 1.0], rel=1e-6)


def test_groups_without_spread_weigh_nothing():
    # Spreads 1, 0.01, 0, 0.5 (of a group of one: 0). Against the batch's mean even dead groups have an advantage.
    rewards = f64(1.0, 0.0, 0.50, 0.51, 0.9, 0.9, 0.25, 0.75, 0.1)
    groups = long(0, 0, 1, 1, 2, 2, 3, 3, 4)
    for kind in ("group", "batch"):
        advantages, _ = baseline_advantages(rewards, groups, kind)
        found = weights(advantages, rewards, groups)
        expected = [math.exp(a / 0.5) for a in advantages.tolist()]
        assert found == pytest.approx([*expected[:2], 0, 0, 0, 0, *expected[6:8], 0])
        assert weights(advantages, rewards, groups, min_spread=0.005)[2:4] == pytest.approx(expected[2:4])
        assert weights(advantages, rewards, groups, min_spread=0.0) == pytest.approx(expected)
        assert weights(advantages, rewards, groups, min_spread=2.0) == [0.0] * 9


def test_weights_of_an_empty_batch_and_of_scores_with_a_graph():
    assert weights(f64(), f64(), long()) == []
    rewards = f64(1.0, 0.0).requires_grad_()
    assert weights(rewards - rewards.mean(), rewards, long(0, 0)) == pytest.approx([math.e, 1 / math.e])


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_that_is_none_is_refused(temperature):
    with pytest.raises(ValueError, match="must be a number above 0"):
        weights(f64(1.0), f64(1.0), long(0), temperature=temperature)


# --- temperature --------------------------------------------------------------------------------------------


def test_pooled_variance_by_hand():
    groups = [[1.0, 0.0], [0.5, 0.5, 0.8]]
    # Within: 0.25 + 0.25; mean 0.6: 0.01 + 0.01 + 0.04. Over five rewards.
    assert pooled_variance(groups, "group") == pytest.approx(0.56 / 5)
    # All five have mean 0.56: 0.1936 + 0.3136 + 0.0036 + 0.0036 + 0.0576.
    assert pooled_variance(groups, "batch") == pytest.approx(0.572 / 5)
    # Groups that differ only between each other: nothing within, all of it in total.
    assert pooled_variance([[0.2, 0.2], [0.8, 0.8]], "group") == pytest.approx(0.0, abs=1e-30)
    assert pooled_variance([[0.2, 0.2], [0.8, 0.8]], "batch") == pytest.approx(0.09)


@pytest.mark.parametrize("kind", ["group", "batch"])
def test_pooled_variance_where_there_is_nothing(kind):
    assert pooled_variance([], kind) == 0.0
    assert pooled_variance([[], []], kind) == 0.0  # every answer of these groups was left out
    assert pooled_variance([[], [1.0, 0.0], []], kind) == pytest.approx(0.25)
    assert pooled_variance([[0.3]], kind) == 0.0


def test_dynamic_temperature_by_hand():
    choices = {"scale": 1.0, "low": 0.02, "high": 1.0}
    assert dynamic_temperature(0.04, **choices) == pytest.approx(0.2)
    assert dynamic_temperature(0.04, **{**choices, "scale": 0.5}) == pytest.approx(0.1)
    assert dynamic_temperature(0.0, **choices) == 0.02
    assert dynamic_temperature(0.0, **{**choices, "low": 1e-9}) == pytest.approx(1e-4)  # sqrt ε
    assert dynamic_temperature(9.0, **choices) == 1.0
    with pytest.raises(ValueError, match=r"lowest temperature 0.5 is above the highest 0.1"):
        dynamic_temperature(0.1, scale=1.0, low=0.5, high=0.1)


@pytest.mark.parametrize("kind", ["group", "batch"])
@pytest.mark.parametrize("width", [0.05, 0.3, 4.0])
def test_dynamic_temperature_standardises_advantages(kind, width):
    """Fed with the variance of the very groups that it divides, A/τ has deviation 1, however wide the rewards are."""
    draw = random.Random(3)
    groups = [[width * draw.gauss(i, 1.0) for _ in range(4 + i)] for i in range(5)]
    rewards = f64(*(x for group in groups for x in group))
    owners = torch.repeat_interleave(torch.arange(5), torch.tensor([len(group) for group in groups]))
    advantages, _ = baseline_advantages(rewards, owners, kind)
    temperature = dynamic_temperature(pooled_variance(groups, kind), scale=1.0, low=1e-3, high=1e3)
    assert statistics.pstdev((advantages / temperature).tolist()) == pytest.approx(1.0, abs=1e-5)
    # Half the scale: twice the deviation. At a limit, the limit.
    half = dynamic_temperature(pooled_variance(groups, kind), scale=0.5, low=1e-3, high=1e3)
    assert statistics.pstdev((advantages / half).tolist()) == pytest.approx(2.0, abs=1e-5)
    assert dynamic_temperature(pooled_variance(groups, kind), scale=1.0, low=50.0, high=60.0) == 50.0


def test_scores_that_are_advantages_already():
    rewards, groups = f64(0.5, -0.25, -0.25), long(0, 1, 1)
    advantages, baseline = baseline_advantages(rewards, groups, "none")
    assert advantages.tolist() == rewards.tolist() and baseline.tolist() == [0.0, 0.0, 0.0]
    # around 0 and not around a mean: (0.25 + 0.0625 + 0.0625) / 3
    assert pooled_variance([[0.5], [-0.25, -0.25]], "none") == pytest.approx(0.125)
    weights = exponential_weights(advantages, rewards, groups, temperature=0.5, max_weight=20.0, min_spread=0.0)
    assert weights.tolist() == pytest.approx([math.e, math.exp(-0.5), math.exp(-0.5)])

"""Signals of GMPO: a weight exp(advantage / temperature) for each completion, and the temperature.

METHODS section 3. Shapes: the legend in `preftune.records`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from preftune.signals.groups import _checked, _group_sums, group_spread

Baseline: TypeAlias = Literal["group", "batch", "none"]


@dataclass(frozen=True, slots=True)
class RowWeights:
    """How much each completion of a batch counts, at least 0; 0 leaves it out.

    Attributes:
        weights_S: no gradient.
        notes: one mapping per completion: how its weight came about, for people to read.
    """

    weights_S: Tensor
    notes: tuple[Mapping[str, Any], ...] = field(default=())


def baseline_advantages(rewards_S: Tensor, group_S: Tensor, baseline: Baseline) -> tuple[Tensor, Tensor]:
    """A = r − b, and b, with b the mean reward of the completion's group or of the whole batch; 0 for `none`, where
    the rewards are advantages already.

    Raises:
        ValueError: a reward that is not finite, shapes that differ, an unknown baseline.
    """
    rewards_S = _checked(rewards_S, group_S)
    if rewards_S.numel() == 0:
        return rewards_S, rewards_S
    if baseline == "group":
        size_S = torch.bincount(group_S)[group_S].to(rewards_S.dtype)
        baseline_S = _group_sums(rewards_S, group_S)[group_S] / size_S
    elif baseline == "batch":
        baseline_S = rewards_S.mean().expand_as(rewards_S)
    elif baseline == "none":
        baseline_S = torch.zeros_like(rewards_S)
    else:
        raise ValueError(f"unknown baseline {baseline!r}; choose group, batch or none")
    return rewards_S - baseline_S, baseline_S


def exponential_weights(
    advantages_S: Tensor,
    rewards_S: Tensor,
    group_S: Tensor,
    *,
    temperature: float,
    max_weight: float,
    min_spread: float,
) -> Tensor:
    """w = exp(min(A / τ, ln w_max)); 0 in groups whose rewards differ by less than `min_spread`.

    Returns:
        (S,) weights in [0, w_max], no gradient.

    Raises:
        ValueError: a temperature that is not above 0.

    References:
        Peng et al. 2019 (AWR), eq. 10 and sec. 3.2 for the cap; Peters and Schaal 2007 (reward-weighted regression).
    """
    if not temperature > 0.0 or not math.isfinite(temperature):
        raise ValueError(f"temperature is {temperature}; it must be a number above 0")
    # The cap goes into the exponent: exp of a large advantage over a small τ would be infinite first.
    weights_S = (advantages_S.detach() / temperature).clamp(max=math.log(max_weight)).exp()
    flat_S = group_spread(rewards_S, group_S)[group_S] < min_spread
    return torch.where(flat_S, torch.zeros_like(weights_S), weights_S)


def pooled_variance(groups: list[list[float]], baseline: Baseline) -> float:
    """Variance of the last groups' rewards, divided by n: around each group's own mean (`group`), around the mean of
    all (`batch`), or around 0 (`none`). 0 without rewards; a group without any counts nothing."""
    groups = [group for group in groups if group]
    if not groups:
        return 0.0
    if baseline != "group":
        values = [value for group in groups for value in group]
        mean = math.fsum(values) / len(values) if baseline == "batch" else 0.0
        return math.fsum((value - mean) ** 2 for value in values) / len(values)
    squares, count = 0.0, 0
    for group in groups:
        mean = math.fsum(group) / len(group)
        squares += math.fsum((value - mean) ** 2 for value in group)
        count += len(group)
    return squares / count


def dynamic_temperature(variance: float, *, scale: float, low: float, high: float, epsilon: float = 1e-8) -> float:
    """τ = clip(τ₀ · sqrt(Var[r] + ε), τ_min, τ_max): with τ₀ = 1 and within the limits, A / τ has deviation 1.

    Raises:
        ValueError: low above high.
    """
    if low > high:
        raise ValueError(f"the lowest temperature {low:g} is above the highest {high:g}")
    return min(max(scale * math.sqrt(variance + epsilon), low), high)

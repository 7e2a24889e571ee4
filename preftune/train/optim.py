"""Optimizer and learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from preftune.config import TrainConfig

Parameters = Sequence[tuple[str, nn.Parameter]]


def make_optimizer(
    parameters: Parameters, config: TrainConfig, roles: Sequence[tuple[Parameters, float | None]] = ()
) -> torch.optim.AdamW:
    """AdamW, fused. Weight decay acts on matrices only: norms and biases are scales, not weights to shrink.

    Args:
        roles: further learners, each with its peak learning rate (None: the policy's). Their groups carry it as `peak`.
    """
    groups: list[dict[str, Any]] = []
    for some, peak in ((parameters, None), *roles):
        decay, rest = ([p for _, p in some if (p.dim() >= 2) is matrix] for matrix in (True, False))
        rate = config.learning_rate if peak is None else peak
        groups += [
            {"params": decay, "weight_decay": config.weight_decay, "peak": rate, "lr": rate},
            {"params": rest, "weight_decay": 0.0, "peak": rate, "lr": rate},
        ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_eps,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int, steps: int) -> float:
    """Give every group its rate of this step. Returns the policy's."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step, steps, group["peak"])
    return learning_rate(config, step, steps)


def learning_rate(config: TrainConfig, step: int, steps: int, peak: float | None = None) -> float:
    """Learning rate of step 1 … steps: linear warm-up, then constant, linear to 0, or half a cosine to 0.

    The first step already moves (a rate of 0 would waste it), and the last of linear and cosine is not yet 0.
    """
    peak = config.learning_rate if peak is None else peak
    warm = round(config.warmup * steps)
    if step <= warm:
        return peak * step / max(warm, 1)
    if config.schedule == "constant":
        return peak
    done = (step - 1 - warm) / max(steps - warm, 1)
    factor = 1.0 - done if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return peak * factor

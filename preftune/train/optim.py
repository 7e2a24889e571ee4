"""Optimizer and learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from preftune.config import TrainConfig


def make_optimizer(parameters: Sequence[tuple[str, nn.Parameter]], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW, fused. Weight decay acts on matrices only: norms and biases are scales, not weights to shrink."""
    decay = [p for _, p in parameters if p.dim() >= 2]
    no_decay = [p for _, p in parameters if p.dim() < 2]
    groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": no_decay, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_eps,
        fused=True,
    )


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Learning rate of step 1 … steps: linear warm-up, then constant, linear to 0, or half a cosine to 0.

    The first step already moves (a rate of 0 would waste it), and the last of linear and cosine is not yet 0.
    """
    warm = round(config.warmup * steps)
    if step <= warm:
        return config.learning_rate * step / max(warm, 1)
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - 1 - warm) / max(steps - warm, 1)
    factor = 1.0 - done if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return config.learning_rate * factor

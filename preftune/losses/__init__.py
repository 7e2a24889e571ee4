"""Losses: pure functions of token log-probs. They import torch alone: no model, no config, no I/O."""

from preftune.losses.batch import Additive, Denominators, LossOutput, TokenBatch, merge_metrics
from preftune.losses.policy import clipped_policy_gradient, importance_ratio, kl_estimate, kl_penalty
from preftune.losses.reduce import aggregate
from preftune.losses.supervised import nll

__all__ = [
    "Additive",
    "Denominators",
    "LossOutput",
    "TokenBatch",
    "aggregate",
    "clipped_policy_gradient",
    "importance_ratio",
    "kl_estimate",
    "kl_penalty",
    "merge_metrics",
    "nll",
]

"""Losses: pure functions of token log-probs. They import torch alone: no model, no config, no I/O."""

from preftune.losses.batch import Additive, Denominators, LossOutput, TokenBatch, merge_metrics
from preftune.losses.kto import kto_loss
from preftune.losses.policy import (
    clipped_policy_gradient,
    importance_ratio,
    kl_estimate,
    kl_penalty,
    sampler_correction,
)
from preftune.losses.preference import implicit_rewards, preference_loss
from preftune.losses.reduce import aggregate
from preftune.losses.reward import bradley_terry
from preftune.losses.supervised import nll
from preftune.losses.value import value_loss
from preftune.losses.weighted import weighted_likelihood

__all__ = [
    "Additive",
    "Denominators",
    "LossOutput",
    "TokenBatch",
    "aggregate",
    "bradley_terry",
    "clipped_policy_gradient",
    "implicit_rewards",
    "importance_ratio",
    "kl_estimate",
    "kl_penalty",
    "kto_loss",
    "merge_metrics",
    "nll",
    "preference_loss",
    "sampler_correction",
    "value_loss",
    "weighted_likelihood",
]

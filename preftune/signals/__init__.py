"""Signals: from scores to what a loss weighs tokens by. Imports torch alone: no model, no config, no I/O.

groups    scores → one advantage per completion, or pairs of completions
tokens    scores, values and KL → one advantage per token (GAE)
weights   scores → one weight per completion (GMPO)
"""

from preftune.signals.groups import (
    STD_EPSILON,
    Advantage,
    Pairs,
    group_advantages,
    group_spread,
    normalized_advantages,
    preference_pairs,
)
from preftune.signals.tokens import (
    TokenSignal,
    adapted_beta,
    explained_variance,
    gae,
    overlong_penalty,
    sequence_kl,
    token_rewards,
    whiten,
)
from preftune.signals.weights import (
    RowWeights,
    baseline_advantages,
    dynamic_temperature,
    exponential_weights,
    pooled_variance,
)

__all__ = [
    "STD_EPSILON",
    "Advantage",
    "Pairs",
    "RowWeights",
    "TokenSignal",
    "adapted_beta",
    "baseline_advantages",
    "dynamic_temperature",
    "explained_variance",
    "exponential_weights",
    "gae",
    "group_advantages",
    "group_spread",
    "normalized_advantages",
    "overlong_penalty",
    "pooled_variance",
    "preference_pairs",
    "sequence_kl",
    "token_rewards",
    "whiten",
]

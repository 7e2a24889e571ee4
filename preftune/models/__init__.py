"""Loading models and tokenizers, LoRA roles on one base, merging adapters, reward models."""

from __future__ import annotations

from preftune.models.loading import Policy, load_policy, merge
from preftune.models.reward import RewardModel, load_reward

__all__ = ["Policy", "RewardModel", "load_policy", "load_reward", "merge"]

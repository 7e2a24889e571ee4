"""Loading models and tokenizers, LoRA roles on one base, merging adapters, reward models."""

from __future__ import annotations

import warnings

from preftune.models.loading import Policy, load_policy, merge
from preftune.models.reward import RewardModel, load_reward

# peft asks transformers by the old name whenever an adapter is made; a user can do nothing about it.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)

__all__ = ["Policy", "RewardModel", "load_policy", "load_reward", "merge"]

"""Loading models and tokenizers, LoRA roles on one base, merging adapters."""

from __future__ import annotations

from preftune.models.loading import Policy, load_policy, merge

__all__ = ["Policy", "load_policy", "merge"]

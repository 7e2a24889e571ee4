"""The model that is trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from preftune.config.base import LoraConfig, Strict


class ModelConfig(Strict):
    """The model that is trained."""

    path: str = Field(description="hub id, folder, or stage:NAME for an earlier stage's result")
    revision: str | None = Field(None, description="hub revision (branch, tag or commit)")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="dtype of the weights; auto: float32, or bfloat16 for a frozen base on CUDA"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to train")
    lora: LoraConfig | None = Field(None, description="train a LoRA adapter instead of all weights")
    on_adapter: Literal["continue", "stack", "merge", "fresh"] | None = Field(
        None,
        description="when path is an adapter: continue training it, stack a new one on it, merge it into its base "
        "first, or leave it out and start a fresh one on the bare base. Must be chosen",
    )
    reference: Literal["base", "start"] | None = Field(
        None,
        description="with on_adapter: continue, where the method compares with a reference: the bare base, or the "
        "adapter as it was at the start",
    )
    reference_path: str | None = Field(
        None, description="another model as the reference: folder, hub id or stage:NAME; default: as the model starts"
    )
    trust_remote_code: bool = Field(False, description="run code that ships with the model")
    attention: Literal["auto", "shared", "padded"] = Field(
        "auto", description="shared-prompt packing, padding, or let the probe at load time decide"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass to save memory")

"""Base of all sections, and what several of them hold."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Strict(BaseModel):
    """Base of all sections: unknown keys are errors, values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class LoraConfig(Strict):
    """A low-rank adapter (peft). Absent: all weights are trained."""

    r: int = Field(32, ge=1, description="rank")
    alpha: float = Field(64.0, gt=0, description="scale; the update is multiplied by alpha / r")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input")
    targets: str | list[str] = Field("all-linear", description="module names to adapt, or all-linear")

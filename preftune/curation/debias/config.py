"""What `preftune data debias` looks for, and what it does about it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from preftune.config import LossConfig, ModelConfig, SourceConfig, TokensConfig, TrainConfig
from preftune.config.base import Strict

_LOSS = ("pairs", "margin", "center", "p_max", "g_max", "generator")
_TRAIN = ("until", "updates_per_batch", "minibatches", "reference_logprobs", "normalize")
UNREAD = (
    "data.weight", "data.contest", "model.reference", "model.reference_path",
    *(f"loss.{name}" for name in LossConfig.model_fields if name not in _LOSS),
    *(f"train.{name}" for name in _TRAIN),
)  # fmt: skip
"""Fields of a recipe's sections that change nothing here."""


class DebiasConfig(Strict):
    """The data, when an opening counts as a mark of one side, and what is compared."""

    data: list[SourceConfig] = Field(min_length=1, description="pairs, or ranked answers")
    words: int = Field(3, ge=1, le=8, description="longest opening, in words")
    fold: bool = Field(False, description="count and strip openings without regard to case")
    min_count: int = Field(20, ge=2, description="openings of fewer answers are not tested")
    alpha: float = Field(0.01, gt=0, lt=1, description="largest p-value of a mark, corrected for all openings tested")
    min_effect: float = Field(
        0.1, ge=0, lt=0.5, description="how far the share of prompts that a mark wins is from one half, at least"
    )
    strip: Literal["auto", "none"] | list[str] = Field(
        "auto", description="openings that are stripped: those proposed (auto), none, or a list of your own"
    )
    keep: list[str] = Field(default_factory=list, description="openings that are never stripped")
    leftovers: Literal["report", "strip"] = Field(
        "report",
        description="openings that mark a side only once the others are gone: name them, or strip them as well",
    )
    folds: int = Field(5, ge=2, description="parts of the cross-validation, by prompt")
    reward_model: str | None = Field(
        None, description="a reward model, folder or hub id: openings are stripped where its scores depend on them, too"
    )
    min_shift: float = Field(
        0.1,
        ge=0,
        description="reward_model: its scores depend on an opening when taking it off moves them by this many of their "
        "standard deviations, at least",
    )
    pairs_each: int = Field(200, ge=5, description="reward_model: pairs scored for each opening, at most")
    model: ModelConfig | None = Field(
        None, description="train reward models from this model on the rows before and after, and compare them"
    )
    train: TrainConfig = Field(TrainConfig(), description="model: how they are trained")
    loss: LossConfig = Field(LossConfig(), description="model: their loss; with p_max two more are trained")
    tokens: TokensConfig = TokensConfig()
    held_out: float = Field(0.1, gt=0, lt=1, description="model: share of the prompts that are held out")
    policy_outputs: str | None = Field(
        None, description="model, reward_model: file with answers of your own policy, as pairs or ranked"
    )
    seed: int = Field(0, ge=0, description="seed of everything random")

    @field_validator("data", mode="before")
    @classmethod
    def _one_source(cls, value: Any) -> Any:
        return [value] if isinstance(value, (dict, SourceConfig)) else value

    @field_validator("keep", mode="before")
    @classmethod
    def _one_opening(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("strip", "keep")
    @classmethod
    def _words_in_them(cls, value: Any) -> Any:
        if isinstance(value, list) and any(not one.strip() for one in value):
            raise ValueError("an opening must have a word in it")
        return value

    @model_validator(mode="after")
    def _enough_to_train(self) -> DebiasConfig:
        if self.model is not None and self.train.steps is None and self.train.epochs is None:
            raise ValueError("how long to train is missing: give train.steps or train.epochs beside model")
        if self.model is None:
            for name in ("train", "loss"):
                if getattr(self, name).model_fields_set:
                    raise ValueError(f"{name} is for training reward models: give model.path, or remove it")
            if self.policy_outputs is not None and self.reward_model is None:
                raise ValueError("policy_outputs are scored by reward models: give model.path or reward_model")
        return self

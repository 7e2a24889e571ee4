"""What `preftune data pairs` makes a pair of, and what it leaves out. Imports no torch."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import Field, model_validator

from preftune.config import SourceConfig
from preftune.config.base import Strict
from preftune.curation.near import NearConfig

Tier: TypeAlias = str | float
"""Who wrote an answer by name, or its rank."""


class PairsConfig(Strict):
    """Answers of known rank or score, and the pairs that are made of them."""

    data: list[SourceConfig] = Field(min_length=1, description="rows with several answers, or one file for each tier")
    group: Literal["auto", "rows", "prompts"] = Field(
        "auto",
        description="rows: the answers of a row belong together; prompts: those of all rows with the same prompt; "
        "auto: prompts where a row holds one answer",
    )
    tiers: dict[str, float] = Field(
        default_factory=dict,
        description="who wrote an answer → rank, 1 is best; in place of the data's ranks and scores. Files with one "
        "answer a row that do not say who wrote it are these tiers, in this order",
    )
    chosen_tiers: list[Tier] = Field(default_factory=list, description="names or ranks: answers of these are chosen …")
    rejected_tiers: list[Tier] = Field(
        default_factory=list, description="… over answers of these; without both: every better one over every worse one"
    )
    agree: bool = Field(
        False, description="with tiers: only pairs of which the data's own ranks or scores say the same"
    )
    ties: Literal["drop", "error"] = Field("drop", description="two answers of which neither is better")
    tie_distance: float = Field(0.0, ge=0, description="scores that differ by no more than this are a tie")
    margin: Literal["distance", "places", "none"] = Field(
        "distance",
        description="column margin, which reward models learn from: distance of the two ranks or scores; places: "
        "how many different ones of the prompt lie between, and one; none: no such column",
    )
    margin_scale: float = Field(1.0, gt=0, description="the margin is multiplied by this")
    near: NearConfig = Field(
        NearConfig(),
        description="pairs whose sides are nearly equal, and pairs nearly equal to another one, are dropped",
    )
    max_length_ratio: float | None = Field(
        None, gt=1, description="drop pairs of which one side has more than so many times the characters of the other"
    )
    max_per_prompt: int | None = Field(None, ge=1, description="pairs of a prompt at most")
    max_per_tier_pair: int | None = Field(
        None, ge=1, description="pairs of one chosen and one rejected tier at most, over all prompts"
    )
    prefer: Literal["random", "widest"] = Field(
        "random",
        description="which pairs a cap keeps: random ones, of a prompt by turns from each two tiers, or those of the "
        "widest margin",
    )
    keep_source: bool = Field(
        False, description="write who wrote each side (columns chosen_model, rejected_model, as reports read them)"
    )
    columns: Literal["all", "none"] = Field("all", description="the row's other columns in the pairs")
    shuffle: bool = Field(True, description="rows in an order drawn with the seed; false: in the data's order")
    seed: int = Field(0, ge=0, description="seed of everything random")

    @model_validator(mode="after")
    def _whole_product(self) -> PairsConfig:
        if bool(self.chosen_tiers) != bool(self.rejected_tiers):
            raise ValueError("give chosen_tiers and rejected_tiers, or neither")
        if both := [tier for tier in self.chosen_tiers if tier in self.rejected_tiers]:
            raise ValueError(f"{both[0]!r} is among chosen_tiers and rejected_tiers; it can be only one of them")
        if self.agree and not (self.tiers or self.chosen_tiers):
            raise ValueError("agree compares tiers with the data's ranks or scores; give tiers, or chosen_tiers")
        if self.tie_distance and (self.tiers or self.chosen_tiers) and not self.agree:
            raise ValueError("tie_distance is one of scores, and tiers decide here; remove it, or set agree: true")
        if self.prefer == "widest" and self.margin == "none":
            raise ValueError("prefer: widest needs margins; set margin: distance")
        return self

    @property
    def is_product(self) -> bool:
        """Whether the tiers of both sides are given."""
        return bool(self.chosen_tiers)

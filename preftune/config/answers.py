"""How answers are drawn, scored and collected."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from preftune.config.base import Strict


class SamplingConfig(Strict):
    """How the policy writes completions."""

    group_size: int = Field(8, ge=1, description="completions per prompt (G)")
    max_tokens: int = Field(256, ge=1, description="longest completion")
    temperature: float = Field(1.0, gt=0, description="also divides the trainer's logits")
    top_k: int = Field(0, ge=0, description="keep the k likeliest tokens (0: all)")
    top_p: float = Field(1.0, gt=0, le=1, description="keep the smallest set of tokens with this mass")
    min_p: float = Field(0.0, ge=0, lt=1, description="drop tokens under this share of the likeliest one's probability")
    repetition_penalty: float = Field(1.0, gt=0, description="divide positive logits of seen tokens by this")
    stop: list[str] = Field(default_factory=list, description="strings that end a completion")
    rows: int = Field(256, ge=1, description="completions decoded at once")
    rollout: str | None = Field(
        None, description="multi-turn rollout: calculator, or module:function / file.py:function"
    )
    max_turns: int = Field(4, ge=1, description="turns of a multi-turn rollout")


class RewardConfig(Strict):
    """One reward and its weight."""

    name: str = Field(description="built-in name, module:function, or file.py:function")
    weight: float = Field(1.0, description="factor in the weighted sum")
    label: str | None = Field(None, description="its name in metrics and breakdowns (default: the reward's own)")
    args: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the reward")
    timeout: float = Field(30.0, gt=0, description="seconds for one batch")
    on_error: Literal["stop", "skip"] = Field(
        "stop", description="stop the run, or count the failure and leave the row's value out"
    )
    isolate: Literal["auto", "process", "inline"] = Field(
        "auto", description="run in a worker process, inline under a watchdog, or process when importable"
    )


class CollectConfig(Strict):
    """Answers drawn once, before training: iterative-dpo, rft, human."""

    path: str | None = Field(None, description="file of answers drawn and scored before, instead of drawing them")
    margin: float = Field(
        0.0, ge=0, description="iterative-dpo: pairs whose scores differ by no more than this are left out"
    )
    reference: Literal["previous", "first"] = Field(
        "previous", description="iterative-dpo in rounds (repeat): the model of the round before, or the first one"
    )
    keep: int = Field(1, ge=1, description="rft: best completions kept of each prompt")
    min_score: float | None = Field(None, description="rft: completions under this score are never kept")
    spread_only: bool = Field(False, description="rft: leave prompts out whose completions all have the same score")
    trace: Literal["whole", "winner"] = Field(
        "whole",
        description="rft of a competition: train on whole contests, or on the winner's working and the answer alone, "
        "without the contest's system prompt",
    )
    held_out: bool = Field(
        False,
        description="rft, iterative-dpo: answer the validation prompts as often, too, for contests that a later stage "
        "is measured on; nothing trains on these answers",
    )


class HumanConfig(Strict):
    """How people rate answers: preftune human."""

    rate: Literal["score", "rank"] = Field("score", description="raters give each answer a score, or rank them")
    low: float = Field(0.0, description="lowest score")
    high: float = Field(10.0, description="highest score")
    raters: int = Field(1, ge=1, description="ratings wanted for each answer")
    normalize_raters: bool = Field(False, description="bring each rater's scores to mean 0 and deviation 1 first")
    prompts: int = Field(32, ge=1, description="prompts of one round")

    @model_validator(mode="after")
    def _a_range(self) -> HumanConfig:
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} must be under high {self.high:g}")
        return self

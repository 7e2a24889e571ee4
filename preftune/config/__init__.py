"""Recipes: what a run does, as strict typed data. Imports no torch.

A recipe is a YAML file. Every field is also a typed flag (`--train.learning_rate 1e-5`); unknown keys
are errors that name the nearest valid one. With `stages:` a recipe is several runs in a row: each stage
inherits the recipe's other sections and overrides what it names.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, SerializationInfo, SerializeAsAny, field_validator, model_serializer

from preftune.config.answers import CollectConfig, HumanConfig, RewardConfig, SamplingConfig
from preftune.config.base import LoraConfig, Strict
from preftune.config.benchmarks import BenchmarkConfig
from preftune.config.competition import CompetitionConfig, PersonaConfig
from preftune.config.data import (
    ColumnRule,
    ContestConfig,
    ExtraResponse,
    ResponsesRule,
    SourceConfig,
    TokensConfig,
)
from preftune.config.model import ModelConfig
from preftune.config.objectives import CriticConfig, GmpoConfig, LossConfig, PolicyConfig, ValueConfig
from preftune.config.training import EvalConfig, LogConfig, TrainConfig, UntilConfig

__all__ = [
    "BenchmarkConfig",
    "CollectConfig",
    "ColumnRule",
    "CompetitionConfig",
    "ContestConfig",
    "CriticConfig",
    "DataStage",
    "EvalConfig",
    "ExtraResponse",
    "GmpoConfig",
    "HumanConfig",
    "LogConfig",
    "LoraConfig",
    "LossConfig",
    "ModelConfig",
    "PersonaConfig",
    "Pipeline",
    "PolicyConfig",
    "Recipe",
    "ResponsesRule",
    "RewardConfig",
    "SamplingConfig",
    "SourceConfig",
    "Strict",
    "TokensConfig",
    "TrainConfig",
    "UntilConfig",
    "ValueConfig",
]


class Recipe(Strict):
    """Everything one run needs. Written, fully resolved, into the run folder."""

    method: str = Field(
        description="a row of the table of methods: sft, dpo, kto, reward, grpo, ppo, gmpo, iterative-dpo, rft, human"
    )
    name: str = Field("run", description="name of the run or stage")
    repeat: int = Field(
        1, ge=1, description="rounds: this stage runs so many times, each from the result of the one before"
    )
    output: str | None = Field(None, description="run folder; default runs/NAME")
    seed: int = Field(0, ge=0, description="seed of everything random")
    model: ModelConfig
    data: list[SourceConfig] = Field(min_length=1, description="training data")
    tokens: TokensConfig = TokensConfig()
    sampling: SamplingConfig = SamplingConfig()
    rewards: list[RewardConfig] = Field(
        default_factory=list, description="scores of completions; methods on fixed data use them for measuring alone"
    )
    competition: CompetitionConfig | None = Field(
        None,
        description="answers are contests of personas: each prompt gets the contest's system prompt, and the "
        "competition-… rewards read it; {} means pirate, knight and viking",
    )
    policy: PolicyConfig = PolicyConfig()
    value: ValueConfig = ValueConfig()
    collect: CollectConfig = CollectConfig()
    human: HumanConfig = HumanConfig()
    gmpo: GmpoConfig = GmpoConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    log: LogConfig = LogConfig()

    @field_validator("data", mode="before")
    @classmethod
    def _one_source(cls, value: Any) -> Any:
        return [value] if isinstance(value, (dict, SourceConfig)) else value


class DataStage(Strict):
    """A stage that makes data instead of training: a command of `preftune data`.

    The command's settings stand in a section of the method's name, which the model of that method adds
    (`preftune.recipes.steps`); rows and seed are the stage's own, and the section gets them.
    """

    method: str = Field(description="a command of preftune data: generate, pairs, balance, debias, audit")
    name: str = Field("data", description="name of the stage")
    seed: int = Field(0, ge=0, description="seed of everything random")
    data: list[SourceConfig] = Field(min_length=1, description="rows that it reads; stage:NAME is what a stage wrote")

    @field_validator("data", mode="before")
    @classmethod
    def _one_source(cls, value: Any) -> Any:
        return [value] if isinstance(value, (dict, SourceConfig)) else value

    @property
    def settings(self) -> Any:
        """The command's whole settings, rows and seed among them."""
        return getattr(self, self.method)

    @model_serializer(mode="plain")
    def _as_given(self, info: SerializationInfo) -> dict[str, Any]:
        """As a recipe says it: what was given and no default, since a command may refuse a field that it does not
        read; the section without what is the stage's own."""
        how: dict[str, Any] = {"mode": info.mode, "by_alias": info.by_alias, "exclude_unset": True}
        return {
            "method": self.method, "name": self.name, "seed": self.seed,
            "data": [source.model_dump(**how) for source in self.data],
            self.method: self.settings.model_dump(exclude={"data", "seed"}, **how),
        }  # fmt: skip


class Pipeline(Strict):
    """A recipe with its stages resolved, run in order: each a complete Recipe, or a command that makes data."""

    name: str = "run"
    output: str | None = None
    stages: list[Recipe | SerializeAsAny[DataStage]] = Field(min_length=1)

    @property
    def recipes(self) -> list[Recipe]:
        """The stages that train."""
        return [stage for stage in self.stages if isinstance(stage, Recipe)]

"""What `preftune diagnose` measures. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from preftune.config import CompetitionConfig, ModelConfig, RewardConfig, SamplingConfig, SourceConfig, TokensConfig
from preftune.config.base import Strict

UNREAD = (
    "model.lora",
    "model.on_adapter",
    "model.reference",
    "model.reference_path",
    "model.gradient_checkpointing",
    "sampling.group_size",
    "sampling.rollout",
    "sampling.max_turns",
    "data.weight",
    "data.contest",
)
"""Fields of a recipe's sections that mean nothing here."""
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Bounds: TypeAlias = tuple[Share, Share]


def _bounds(look: float, problem: float, what: str) -> Bounds:
    bounds: Bounds = Field((look, problem), description=f"{what}: look above the first, problem above the second")
    return bounds


class Limits(Strict):
    """Shares of answers above which a person should look, and above which it is a problem: our rules of thumb. It is a
    problem where the whole interval lies above."""

    firing: Bounds = _bounds(0.01, 0.05, "answers on which the classifier fires")
    off_format: Bounds = _bounds(0.02, 0.1, "answers that do not have the form asked for")
    empty: Bounds = _bounds(0.0, 0.02, "answers of white space alone")
    cut: Bounds = _bounds(0.02, 0.1, "answers that never ended")
    repeated: Bounds = _bounds(0.01, 0.05, "answers that repeat themselves")
    wrong_language: Bounds = _bounds(0.02, 0.1, "answers in another language than the prompt's")
    refused: Bounds = _bounds(0.05, 0.2, "answers that begin as a refusal")

    @model_validator(mode="after")
    def _in_order(self) -> Limits:
        for name in type(self).model_fields:
            look, problem = getattr(self, name)
            if look > problem:
                raise ValueError(f"{name}: look above {look} comes after problem above {problem}; swap them")
        return self


class ClassifierConfig(Strict):
    """A text-classification model that reads every answer."""

    path: str = Field(min_length=1, description="folder or hub id of any sequence classifier")
    labels: list[str] = Field(
        default_factory=list, description="labels that count as firing; none: those whose names say harm (toxic, …)"
    )
    threshold: float = Field(0.5, gt=0, lt=1, description="fires from this probability of the labels")
    reads: Literal["answer", "both"] = Field("answer", description="the answer alone, or after its prompt")
    batch_size: int = Field(16, ge=1, description="texts of one forward pass")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where it runs")
    trust_remote_code: bool = Field(False, description="run code that ships with it")


class EncoderConfig(Strict):
    """A model that makes vectors of texts. Without a path the builtin one, which reads words and not meaning."""

    path: str | None = Field(
        None, description="sentence-transformers model or plain encoder: folder or hub id; default the builtin one"
    )
    prefix: str = Field("", description="put before every text")
    batch_size: int = Field(32, ge=1, description="texts of one forward pass")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where it runs")
    trust_remote_code: bool = Field(False, description="run code that ships with it")

    @model_validator(mode="after")
    def _of_a_model(self) -> EncoderConfig:
        given = sorted(self.model_fields_set - {"path"})
        if self.path is None and given:
            raise ValueError(f"encoder.{given[0]} is of a model, and the builtin encoder has none: give encoder.path")
        return self


class FormatConfig(Strict):
    """How an answer must look; at most one. A `competition` section asks for contests instead."""

    pattern: str | None = Field(None, description="regular expression that must be found in an answer")
    tags: list[str] = Field(default_factory=list, description="names of tags that make up the answer, in their order")
    is_json: bool = Field(False, description="an answer must be JSON and nothing else")

    @model_validator(mode="after")
    def _one(self) -> FormatConfig:
        if (self.pattern is not None) + bool(self.tags) + self.is_json > 1:
            raise ValueError("give one of pattern, tags and is_json")
        return self


class BenchmarkConfig(Strict):
    """What a benchmark says of the model, to be set beside the score of `rewards` in use."""

    name: str = Field("benchmark", min_length=1, description="its name")
    score: float | None = Field(None, description="its score of the model, on the scale of the rewards")


class DiagnoseConfig(Strict):
    """The model and prompts as they are in use, and what to measure on them."""

    model: ModelConfig = Field(description="the model; an adapter is merged into its base in memory")
    data: list[SourceConfig] = Field(min_length=1, description="prompts as they come in use, with answers or without")
    tokens: TokensConfig = Field(TokensConfig(), description="limits and template, as in the recipe")
    sampling: SamplingConfig = Field(SamplingConfig(), description="how answers are drawn")
    prompts: int = Field(200, ge=1, description="different prompts, drawn from the data at random")
    answers: int = Field(4, ge=1, description="answers to each prompt")
    form: Literal["auto", "chat", "text"] = Field(
        "auto", description="chat: a plain prompt is a user's message; auto: where the model has a chat template"
    )
    context: str | None = Field(
        None, description="column with the text that answers must keep to (documents found, …); default the prompt"
    )
    answer: str = Field("answer", description="column with the right final answer, where rows have one")
    classifier: ClassifierConfig | None = Field(None, description="without one nothing is said about safety")
    encoder: EncoderConfig = Field(EncoderConfig(), description="for closeness and distances")
    format: FormatConfig = Field(FormatConfig(), description="how an answer must look")
    competition: CompetitionConfig | None = Field(None, description="answers must be contests of personas")
    rewards: list[RewardConfig] = Field(default_factory=list, description="what an answer is worth in use")
    benchmark: BenchmarkConfig = Field(BenchmarkConfig(), description="what a benchmark says of the model")
    limits: Limits = Field(Limits(), description="thresholds of the shares")
    seed: int = Field(0, ge=0, description="of the draws")

    @field_validator("data", mode="before")
    @classmethod
    def _one_source(cls, value: object) -> object:
        return [value] if isinstance(value, (dict, SourceConfig)) else value

    @model_validator(mode="after")
    def _fits(self) -> DiagnoseConfig:
        if self.competition is not None and self.format != FormatConfig():
            raise ValueError("a competition has a form of its own; remove format, or competition")
        if self.benchmark.score is not None and not self.rewards:
            raise ValueError(
                f"{self.benchmark.name}: a benchmark's score is set beside one in use, so rewards are needed, such as "
                "--rewards.0.name accuracy"
            )
        return self

"""What to score, with which model, as strict typed data: the flags of `preftune score`. No torch here."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from preftune.config import ModelConfig, SourceConfig, Strict, TokensConfig

UNREAD = frozenset(
    {
        *("model.lora", "model.on_adapter", "model.reference", "model.gradient_checkpointing", "data.weight"),
        *("tokens.max_prompt_tokens", "tokens.max_completion_tokens", "tokens.on_too_long"),
        *("tokens.drop_above_percentile", "tokens.cache", "data.contest"),
    }
)
"""Fields of the recipe's sections that mean nothing here: giving one is an error."""


class ScoreConfig(Strict):
    """The request of `preftune score`."""

    model: ModelConfig
    data: list[SourceConfig] = Field(min_length=1, description="rows to score, source by source, in their order")
    tokens: TokensConfig = TokensConfig()
    max_tokens_per_batch: int = Field(8192, ge=1, description="tokens of one packed forward pass")
    normalize: bool | Literal["auto"] = Field(
        "auto", description="apply the normalisation that the model carries; auto: where it carries one"
    )
    on_too_long: Literal["error", "skip"] = Field(
        "error", description="stop at a row that the model can't read whole, or write it without scores and count it"
    )

    @field_validator("data", mode="before")
    @classmethod
    def _one_source(cls, value: Any) -> Any:
        return [value] if isinstance(value, (dict, SourceConfig)) else value

    @model_validator(mode="after")
    def _nothing_unread(self) -> ScoreConfig:
        sections = [("model", self.model), ("tokens", self.tokens), *(("data", source) for source in self.data)]
        for name, section in sections:
            for field in section.model_fields_set:
                if f"{name}.{field}" in UNREAD:
                    raise ValueError(f"{name}.{field} has no meaning for scoring; remove it")
        return self

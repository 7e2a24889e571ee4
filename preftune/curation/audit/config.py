"""What `preftune data audit` asks: the rows, what they are held against, and from which number on a check speaks."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Field, field_validator, model_validator

from preftune.config import ModelConfig, SourceConfig, TokensConfig
from preftune.config.base import Strict
from preftune.curation.near import NearConfig
from preftune.judges.evaluation import without_contests

UNREAD = frozenset(
    {
        *("model.dtype", "model.device", "model.lora", "model.on_adapter", "model.reference", "model.reference_path"),
        *("model.attention", "model.gradient_checkpointing"),
        *("data.weight", "data.contest", "test.weight", "test.contest"),
    }
)
"""Fields of the recipe's sections that mean nothing here: no weights are loaded, and every row is read once."""


def _in_order(value: list[float]) -> list[float]:
    look, unfit = value
    if not 0 <= look <= unfit <= 1:
        raise ValueError(f"got {value}; expected two shares from 0 to 1, the second not below the first")
    return value


Bounds: TypeAlias = Annotated[list[float], Field(min_length=2, max_length=2), AfterValidator(_in_order)]
"""[look, not fit]: shares above which a check says so. No share is above 1, so 1 means never."""


def _bounds(look: float, unfit: float, of: str) -> Any:
    return Field([look, unfit], description=f"{of}; [look, not fit], shares above which the check says so; 1: never")


class Limits(Strict):
    """From which share on each check says `look` and `not fit`."""

    bad_rows: Bounds = _bounds(0, 0.05, "rows that can't be read, where the source skips them")
    mixed_shapes: Bounds = _bounds(0, 1, "rows of another shape than most")
    duplicate_rows: Bounds = _bounds(0.01, 0.1, "rows that are equal to an earlier one")
    near_duplicates: Bounds = _bounds(0.05, 0.3, "rows that are nearly equal to an earlier one")
    repeated_prompts: Bounds = _bounds(0.5, 1, "rows whose prompt came before, with another answer")
    repeated_answers: Bounds = _bounds(0.1, 1, "rows with an answer that came before, to another prompt")
    conflicts: Bounds = _bounds(0, 0.02, "rows that prefer what an earlier one rejects, or mark it otherwise")
    empty: Bounds = _bounds(0, 0.02, "rows with an empty prompt, answer or turn")
    identical: Bounds = _bounds(0, 0.02, "rows whose better and worse answer are the same")
    prefix: Bounds = _bounds(0.02, 0.2, "rows of which one answer is the beginning of another")
    length_bias: Bounds = _bounds(0.1, 0.3, "how far `the longer one is better` is from a coin's accuracy of 0.5")
    label_balance: Bounds = _bounds(0.3, 0.48, "how far the share of answers marked as good is from 0.5")
    language_mix: Bounds = _bounds(0.2, 1, "rows in another language than most")
    other_language: Bounds = _bounds(0.02, 1, "rows with an answer in another language than the prompt")
    control: Bounds = _bounds(0, 0.05, "rows with control or invisible characters")
    mojibake: Bounds = _bounds(0, 0.05, "rows with text that was decoded wrongly")
    personal: Bounds = _bounds(0.01, 1, "rows with an e-mail address or a telephone number")
    secrets: Bounds = _bounds(0, 0.001, "rows with what looks like a password or a key")
    overlap: Bounds = _bounds(0, 0.01, "test rows that stand in the training rows")
    test_prompts: Bounds = _bounds(0, 0.01, "test rows whose whole prompt is a training prompt")
    too_long: Bounds = _bounds(0, 0.1, "rows that the limits of the tokens section drop or cut")
    special_text: Bounds = _bounds(0, 0.05, "rows that hold the text of a special token")
    unknown: Bounds = _bounds(0, 0.05, "rows with characters that the tokenizer does not know")
    eos_invented: Bounds = _bounds(0, 1, "rows whose answers end without an EOS of the template's")
    double_bos: Bounds = _bounds(0, 0, "rows that begin a document more than once")


class AuditNear(NearConfig):
    """What counts as nearly the same row."""

    threshold: float | None = Field(
        0.8, gt=0, le=1, description="Jaccard similarity from which two rows are near-duplicates; null: not looked for"
    )


class OverlapConfig(Strict):
    """When a test row stands in the training rows."""

    ngram: int | None = Field(
        None, ge=2, le=50,
        description="words of an n-gram; null: the 5th percentile of the test texts' lengths, within 8 and 13",
    )  # fmt: skip
    share: float = Field(
        0.5, gt=0, le=1, description="share of its n-grams found in training rows from which a test row is contaminated"
    )
    of: Literal["prompt", "row"] = Field("prompt", description="texts of a test row that are looked for")
    common: int = Field(
        10, ge=1, description="n-grams that stand in more different test texts are template and do not count"
    )


class AuditConfig(Strict):
    """The data, what it is for, and the thresholds."""

    data: list[SourceConfig] = Field(min_length=1, description="the training rows, source by source")
    test: list[SourceConfig] = Field(
        default_factory=list, description="held-out rows, which the training rows must not hold"
    )
    model: ModelConfig | None = Field(
        None, description="whose tokenizer and chat template read the rows; null: no check of tokens"
    )
    tokens: TokensConfig = Field(TokensConfig(), description="limits and template, as in the recipe")
    use: Literal["rows", "prompts"] = Field(
        "rows", description="rows: answers are learned from; prompts: the policy writes its own, so they are not read"
    )
    new_tokens: int = Field(
        256, ge=1, description="room behind a prompt that has no answer: sampling.max_tokens of the recipe"
    )
    label_threshold: float = Field(0.5, description="labels from this on count as good")
    short_answer: int = Field(
        5, ge=1, description="answers of fewer words are not looked up among other prompts' answers"
    )
    near: AuditNear = Field(AuditNear(), description="near-duplicates")
    overlap: OverlapConfig = Field(OverlapConfig(), description="training rows against test rows")
    limits: Limits = Field(Limits(), description="thresholds of the checks")
    examples: int = Field(5, ge=0, le=100, description="worst rows of each check that are shown")
    show: int = Field(2, ge=0, le=50, description="rows of each shape whose tokens are shown")
    seed: int = Field(0, ge=0, description="which rows' tokens are shown")

    @field_validator("data", "test", mode="before")
    @classmethod
    def _one_source(cls, value: Any) -> Any:
        return [value] if isinstance(value, (dict, SourceConfig)) else value

    @field_validator("data", "test")
    @classmethod
    def _no_contests(cls, value: list[SourceConfig]) -> list[SourceConfig]:
        return without_contests(value)

    @model_validator(mode="after")
    def _nothing_unread(self) -> AuditConfig:
        sections: list[tuple[str, Strict]] = [("data", source) for source in self.data]
        sections += [("test", source) for source in self.test]
        sections += [("model", self.model)] if self.model is not None else []
        for name, section in sections:
            for field in section.model_fields_set:
                if f"{name}.{field}" in UNREAD:
                    raise ValueError(f"{name}.{field} has no meaning for an audit; remove it")
        if self.model is None and self.tokens.model_fields_set:
            raise ValueError("tokens is read with a model's tokenizer alone; give model.path, or remove it")
        return self

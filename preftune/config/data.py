"""Where rows come from, and how they become tokens."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from preftune.config.base import Strict
from preftune.config.competition import MOST_PERSONAS


class ColumnRule(Strict):
    """How one standard column is made from a row. A bare string in the recipe means {from: that string}."""

    source: str | None = Field(None, alias="from", description="column to read")
    match: str | None = Field(None, description="regular expression; the value becomes its first group")
    replace: list[tuple[str, str]] = Field(
        default_factory=list, description="[pattern, replacement] pairs applied in order"
    )
    template: str | None = Field(
        None, description="text with {column} fields, filled after the other columns are mapped"
    )
    strip: bool = Field(True, description="strip white space around the value")

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @model_validator(mode="after")
    def _one_origin(self) -> ColumnRule:
        if (self.source is None) == (self.template is None):
            raise ValueError("a column needs exactly one of `from` and `template`")
        return self


class ExtraResponse(Strict):
    """One more response to each prompt, from a column of its own, with a score that is the same in every row."""

    column: str = Field(description="column that holds the response")
    score: float | None = Field(None, description="its score, higher is better")
    rank: float | None = Field(None, description="its rank, 1 is best")
    source: str | None = Field(None, description="who wrote it, as text")

    @model_validator(mode="after")
    def _one_grade(self) -> ExtraResponse:
        if (self.score is None) == (self.rank is None):
            raise ValueError("give exactly one of `score` and `rank`, a number")
        return self


class ResponsesRule(Strict):
    """How the responses of the ranked format are made from a row. A bare string in the recipe means {from: it}."""

    column: str = Field(alias="from", description="column that holds the list of responses")
    text: str | None = Field(None, description="field of each response that holds its text or messages")
    score: str | None = Field(
        None,
        description="field with its score, higher is better, true and false count 1 and 0; for a list of texts: a "
        "column of the row with a list of scores",
    )
    rank: str | None = Field(None, description="instead of score: field or column with its rank, 1 is best")
    source: str | None = Field(None, description="field or column that says who wrote it")
    also: list[ExtraResponse] = Field(default_factory=list, description="single columns that are responses, too")

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @model_validator(mode="after")
    def _one_scale(self) -> ResponsesRule:
        if self.score is not None and self.rank is not None:
            raise ValueError("give `score` or `rank`, not both")
        if self.also and self.score is None and self.rank is None:
            raise ValueError("`also` needs the same scale as the other responses: name their `score` or `rank`")
        for number, extra in enumerate(self.also):
            if (extra.rank is None) != (self.rank is None):
                raise ValueError(f"also[{number}] must be given by `{'score' if self.rank is None else 'rank'}`, too")
        return self


class ContestConfig(Strict):
    """Contests: a question with several answers to it, of which a judge names the best.

    Sources with equal settings are one pool: their answers to one question, wherever they come from, meet in contests.
    """

    form: Literal["judge", "competition"] = Field(
        "judge",
        description="judge: the prompt asks as the reward judge does; competition: it ends inside the recipe's "
        "competition, behind the personas, whose texts the answers are",
    )
    mode: Literal["pairwise", "listwise"] | None = Field(
        None, description="form judge: name the better of two, or rank all; default: pairwise for two answers"
    )
    rubric: str = Field("quality", description="form judge: what counts, as for the reward judge")
    size: int | None = Field(
        None, ge=2, le=MOST_PERSONAS, description="answers of a contest; default: 2, or one for each persona"
    )
    per_prompt: int = Field(1, ge=1, description="contests of different answers that are made of a question, at most")
    right: float | None = Field(
        None, description="an answer is right when its score is this or more; default: the best score of its question"
    )
    origins: Literal["any", "different"] = Field(
        "any", description="different: no two answers of a contest come from the same origin"
    )

    @model_validator(mode="after")
    def _one_way_to_ask(self) -> ContestConfig:
        if self.form == "competition" and (self.mode is not None or self.rubric != "quality"):
            raise ValueError("mode and rubric belong to form judge; remove them, or set form: judge")
        if self.mode == "pairwise" and self.size not in (None, 2):
            raise ValueError(f"mode pairwise compares two answers, and size is {self.size}; set mode: listwise")
        return self

    @property
    def asked(self) -> Literal["pairwise", "listwise", "competition"]:
        """How the verdict is asked for."""
        if self.form == "competition":
            return "competition"
        return self.mode or ("pairwise" if self.size in (None, 2) else "listwise")


class SourceConfig(Strict):
    """One source of data."""

    path: str = Field(description="hub id, file (.jsonl .json .parquet .csv) or folder saved by `datasets`")
    name: str | None = Field(None, description="hub configuration name")
    split: str = Field(
        "train",
        description="hub split; of the answers that an earlier stage collected (path: stage:NAME): train or validation",
    )
    revision: str | None = Field(None, description="hub revision")
    format: Literal["auto", "prompt", "prompt-completion", "text", "messages", "preference", "unpaired", "ranked"] = (
        Field("auto", description="row format; auto decides from the columns")
    )
    columns: dict[str, ColumnRule] = Field(
        default_factory=dict, description="standard column → where it comes from; unmapped columns keep their names"
    )
    responses: ResponsesRule | None = Field(
        None, description="several responses to each prompt, with scores or ranks; makes the ranked format"
    )
    contest: ContestConfig | None = Field(
        None, description="make contests of the answers, for a judge to learn from; {} means pairs"
    )
    system: str | None = Field(None, description="system message put before each prompt")
    chat: bool = Field(False, description="turn a plain prompt into a user message")
    weight: float = Field(1.0, gt=0, description="rows are drawn in proportion to weight × size")
    limit: int | None = Field(None, ge=1, description="use only the first N rows")
    on_bad_row: Literal["error", "skip"] = Field("error", description="stop at a bad row, or skip and count it")

    @field_validator("columns", mode="before")
    @classmethod
    def _short_rules(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {k: {"from": v} if isinstance(v, str) else v for k, v in value.items()}
        return value

    @field_validator("responses", mode="before")
    @classmethod
    def _short_responses(cls, value: Any) -> Any:
        return {"from": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _responses_are_ranked(self) -> SourceConfig:
        if self.responses is not None and self.format not in ("auto", "ranked"):
            raise ValueError(f"`responses` makes the ranked format, but `format` is {self.format}; remove one of them")
        return self

    @model_validator(mode="after")
    def _contests_are_one_pool(self) -> SourceConfig:
        if self.contest is not None and self.weight != 1.0:
            raise ValueError("`weight` has no meaning for contests, which sources make together; use per_prompt")
        return self


class TokensConfig(Strict):
    """The token contract's choices."""

    chat_template: str | None = Field(
        None, description="Jinja text or a .jinja file that overrides the model's template"
    )
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, description="extra arguments for the template")
    max_prompt_tokens: int = Field(1024, ge=1, description="longest prompt")
    max_completion_tokens: int = Field(1024, ge=1, description="longest completion read from data")
    on_too_long: Literal["drop", "truncate-prompt-left", "error"] = Field(
        "drop", description="what to do with longer rows"
    )
    drop_above_percentile: float | None = Field(
        None, gt=0, le=100, description="drop prompts longer than this percentile of prompt lengths"
    )
    loss_on: Literal["all-assistant", "last"] = Field(
        "all-assistant", description="assistant turns of multi-turn rows that carry loss"
    )
    cache: bool = Field(
        True,
        description="keep many tokenised rows on disk, for this and later runs with the same rows, tokenizer and "
        "limits (in PREFTUNE_CACHE, default ~/.cache/preftune); false: in memory",
    )

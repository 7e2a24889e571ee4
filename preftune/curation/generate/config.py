"""What `preftune data generate` asks, and whom. Imports no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from preftune.config import SourceConfig
from preftune.config.base import Strict
from preftune.config.requests import check_request

OURS = ("model", "messages", "prompt", "n", "stream")
"""Fields of a request that `extra_body` may not change: with them the answer would not be the one that is read."""


class DrawConfig(Strict):
    """How a tier's answers are drawn. Not for a tier that is a column."""

    n: int = Field(1, ge=1, description="answers to each prompt")
    temperature: float = Field(1.0, ge=0, description="0 is greedy")
    max_tokens: int = Field(1024, ge=1, description="longest answer")
    top_k: int = Field(0, ge=0, description="keep the k likeliest tokens (0: all)")
    top_p: float = Field(1.0, gt=0, le=1, description="keep the smallest set of tokens with this mass")
    min_p: float = Field(0.0, ge=0, lt=1, description="drop tokens under this share of the likeliest one's probability")
    repetition_penalty: float = Field(1.0, gt=0, description="divide positive logits of seen tokens by this")
    stop: list[str] = Field(default_factory=list, description="strings that end an answer")

    @model_validator(mode="after")
    def _different_answers(self) -> DrawConfig:
        if self.n > 1 and self.temperature == 0:
            raise ValueError(f"n is {self.n} and temperature 0: all would be the same answer; set n: 1, or raise it")
        return self


class LocalConfig(Strict):
    """A model in this process."""

    path: str = Field(description="folder or hub id; an adapter is merged into its base in memory")
    revision: str | None = Field(None, description="hub revision")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the model runs")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="dtype of its weights; auto: bfloat16 on a GPU, else float32"
    )
    trust_remote_code: bool = Field(False, description="run code that ships with the model")
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="extra arguments for its chat template"
    )
    rows: int = Field(64, ge=1, description="answers decoded at once: memory against speed")


class EndpointConfig(Strict):
    """A model behind an OpenAI-compatible endpoint."""

    model: str = Field(min_length=1, description="its name there")
    base_url: str | None = Field(
        None, description="the endpoint, usually ending in /v1; default OPENAI_BASE_URL, then OpenAI's own"
    )
    key_variable: str = Field("OPENAI_API_KEY", description="environment variable that holds the key")
    price_input: float | None = Field(None, ge=0, description="price of a million input tokens, for the cost")
    price_output: float | None = Field(None, ge=0, description="price of a million output tokens, for the cost")
    requests_per_minute: float | None = Field(None, gt=0, description="requests sent at most, repeated ones too")
    tokens_per_minute: float | None = Field(
        None,
        gt=0,
        description="tokens at most, in and out; estimated before a request, corrected by the server's count",
    )
    concurrency: int = Field(8, ge=1, description="requests in flight")
    at_once: bool = Field(
        True, description="ask for all n answers to a prompt in one request; false: one request each, for servers that "
        "know no n"
    )  # fmt: skip
    extra_body: dict[str, Any] = Field(
        default_factory=dict,
        description="further fields of each request; null removes one ({max_tokens: null, max_completion_tokens: "
        "2000, temperature: null, seed: null})",
    )
    timeout: float = Field(120.0, gt=0, description="seconds without an answer before a request failed")
    patience: float = Field(
        300.0, ge=0, description="seconds for which a request is tried again while the endpoint is down or overloaded"
    )
    backoff: float = Field(1.0, ge=0, description="seconds before the second attempt, at most; doubles up to a minute")

    @model_validator(mode="after")
    def _usable(self) -> EndpointConfig:
        if (self.price_input is None) != (self.price_output is None):
            raise ValueError("give price_input and price_output, or neither")
        check_request(self.extra_body, self.base_url, ours=OURS, key_variable=self.key_variable)
        return self


class TierConfig(Strict):
    """Who answers, and how good the answers are taken to be. Exactly one of `model`, `endpoint` and `column`."""

    name: str = Field(min_length=1, description="its name in the rows (`source`) and in the report")
    rank: int = Field(ge=1, description="1 is best; tiers of equal rank make no pairs with each other")
    model: LocalConfig | None = Field(None, description="a model in this process; a bare text is its path")
    endpoint: EndpointConfig | None = Field(
        None, description="a model behind an OpenAI-compatible endpoint; a bare text is its name there"
    )
    column: str | None = Field(None, description="a column that holds the answer already: human truth, say")
    system: str | None = Field(None, description="system message that this tier alone gets before each prompt")
    form: Literal["auto", "chat", "text"] = Field(
        "auto",
        description="chat: a plain prompt is a user's message; text: the model goes on with it. auto: chat for "
        "endpoints and for models with a chat template",
    )
    sampling: DrawConfig = DrawConfig()

    @field_validator("model", mode="before")
    @classmethod
    def _bare_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("endpoint", mode="before")
    @classmethod
    def _bare_name(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_writer(self) -> TierConfig:
        given = [name for name in ("model", "endpoint", "column") if getattr(self, name) is not None]
        if len(given) != 1:
            told = f"has {' and '.join(given)}" if given else "has none"
            raise ValueError(f"tier {self.name} {told}; give exactly one of model, endpoint and column")
        if self.name != self.name.strip() or self.name.isdigit():
            raise ValueError(f"got the name {self.name!r}; a name is no number and has no space around it")
        if self.column is not None:
            for name in ("system", "form", "sampling"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"tier {self.name} is a column, nothing is asked for it; remove {name}")
        if self.model is not None and self.model.path.startswith("stage:"):
            raise ValueError(f"{self.model.path} stands for a stage of a recipe; give the folder that the stage wrote")
        if self.form == "text" and self.system is not None:
            raise ValueError("a system message needs form: chat")
        return self

    @property
    def answers(self) -> int:
        """Answers to each prompt."""
        return 1 if self.column is not None else self.sampling.n

    def identity(self) -> dict[str, Any]:
        """What its answers depend on: the same here means that answers drawn before are still these. How fast they
        were drawn and what they cost is not part of it, nor the rank, which is no matter of the answer."""
        if self.column is not None:
            return {"column": self.column}
        about: dict[str, Any] = {
            "system": self.system, "form": self.form, "sampling": self.sampling.model_dump(mode="json"),
        }  # fmt: skip
        if self.model is not None:
            return {"model": self.model.model_dump(mode="json", exclude={"rows", "device"}), **about}
        assert self.endpoint is not None
        kept = self.endpoint.model_dump(mode="json", include={"model", "base_url", "extra_body"})
        return {"endpoint": kept, **about}


class GenerateConfig(Strict):
    """Prompts, and the tiers that answer them."""

    data: list[SourceConfig] = Field(min_length=1, description="the prompts")
    tiers: list[TierConfig] = Field(min_length=1, description="who answers: human truth, an API, a local model, …")
    seed: int = Field(0, ge=0, description="seed of everything random")
    repeated_prompts: Literal["drop", "keep"] = Field(
        "drop", description="a prompt that came before: leave the row out, or have it answered again"
    )
    duplicates: Literal["drop", "mark"] = Field(
        "drop",
        description="an answer equal to a better or earlier one to the same prompt: leave it out of rows.jsonl, or "
        "keep it there, marked by duplicate_of",
    )
    cut: Literal["drop", "keep"] = Field(
        "drop",
        description="an answer cut at max_tokens: leave it out of rows.jsonl, or keep it there, marked by finish",
    )
    stop_after: int = Field(20, ge=1, description="failed calls in a row after which the command stops")

    @model_validator(mode="after")
    def _tiers_differ(self) -> GenerateConfig:
        names = [tier.name for tier in self.tiers]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two tiers are named {twice[0]!r}; give each its own name")
        return self

    @property
    def ordered(self) -> list[TierConfig]:
        """The tiers, the best first."""
        return sorted(self.tiers, key=lambda tier: tier.rank)

"""Which judge, and how it is asked, as strict typed data. Imports no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from preftune.config import Strict
from preftune.config.requests import check_request
from preftune.judges.rubrics import RUBRICS, rubric_problem

LOCAL = frozenset({"revision", "device", "dtype", "trust_remote_code", "chat_template_kwargs"})
"""Settings of a model in this process alone."""
REMOTE = frozenset({"base_url", "key_variable", "extra_body", "timeout", "patience", "backoff"})
"""Settings of an endpoint alone."""
OURS = ("model", "messages", "n", "stop", "stream")
"""Fields of a request that `extra_body` may not change: with them the reply would not be the one that is parsed."""


class JudgeConfig(Strict):
    """A judge. Either `path` (a model in this process) or `model` (one behind an OpenAI-compatible endpoint)."""

    path: str | None = Field(None, description="a chat model in this process: folder or hub id")
    revision: str | None = Field(None, description="with path: hub revision")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="with path: where the model runs")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="with path: dtype of its weights; auto: bfloat16 on a GPU, else float32"
    )
    trust_remote_code: bool = Field(False, description="with path: run code that ships with the model")
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="with path: extra arguments for its chat template"
    )
    model: str | None = Field(None, description="a model behind an OpenAI-compatible endpoint: its name there")
    base_url: str | None = Field(
        None, description="with model: the endpoint, usually ending in /v1; default OPENAI_BASE_URL, then OpenAI's own"
    )
    key_variable: str = Field("OPENAI_API_KEY", description="with model: environment variable that holds the key")
    extra_body: dict[str, Any] = Field(
        default_factory=dict,
        description="with model: further fields of each request; null removes one ({max_tokens: null, "
        "max_completion_tokens: 2000})",
    )
    timeout: float = Field(120.0, gt=0, description="with model: seconds without an answer before a request failed")
    patience: float = Field(
        300.0,
        ge=0,
        description="with model: seconds for which a request is tried again while the endpoint is down or overloaded",
    )
    backoff: float = Field(
        1.0, ge=0, description="with model: seconds before the second attempt, at most; doubles up to a minute"
    )
    mode: Literal["pairwise", "pointwise", "listwise"] = Field(
        "pairwise", description="compare answers two by two, grade each by itself, or rank all at once"
    )
    rubric: str = Field(
        "quality", description=f"what counts: {', '.join(RUBRICS)}, a .md or .txt file, or text of your own"
    )
    scale: tuple[int, int] | None = Field(
        None, description="pointwise with a rubric of your own: [lowest, highest] score, whole numbers"
    )
    votes: int = Field(1, ge=1, description="how often each question is asked (self-consistency)")
    temperature: float | None = Field(
        None, ge=0, description="of the judge's replies; default: 0 with one vote, 0.7 with several"
    )
    max_tokens: int = Field(1024, ge=1, description="longest reply; one that is cut is no verdict")
    swap: bool = Field(
        True, description="pairwise and listwise: ask in both orders, so that a preference for a place cancels out"
    )
    on_failure: Literal["abstain", "error"] = Field(
        "abstain", description="no verdict to be had: abstain and count it, or stop"
    )
    cache: str | None = Field(
        None, description="folder that keeps the replies (default: ~/.cache/preftune/judge), or off"
    )
    price_input: float | None = Field(None, ge=0, description="price of a million input tokens, for the cost")
    price_output: float | None = Field(None, ge=0, description="price of a million output tokens, for the cost")
    concurrency: int = Field(8, ge=1, description="requests in flight, or prompts decoded at once")

    @model_validator(mode="after")
    def _one_model(self) -> JudgeConfig:
        if (self.path is None) == (self.model is None) or "" in (self.path, self.model):
            raise ValueError("give path (a model in this process) or model (one behind an endpoint), exactly one")
        wrong = REMOTE if self.path is not None else LOCAL
        for name in sorted(wrong & self.model_fields_set):
            other = "path" if name in LOCAL else "model"
            raise ValueError(f"{name} goes with {other}; remove it")
        check_request(self.extra_body, self.base_url, ours=OURS, key_variable=self.key_variable)
        return self

    @model_validator(mode="after")
    def _fitting(self) -> JudgeConfig:
        problem = rubric_problem(self.rubric)
        if problem:
            raise ValueError(problem)
        own = self.rubric not in RUBRICS
        if self.scale is not None and self.mode != "pointwise":
            raise ValueError(f"scale has no meaning in mode {self.mode}, which gives no scores; remove it")
        if self.scale is not None and not own:
            raise ValueError(f"scale: the rubric {self.rubric} has one already; remove it")
        if self.mode == "pointwise" and own and self.scale is None:
            raise ValueError("scale is missing: a rubric of your own needs [lowest, highest], the scores that it names")
        if self.scale is not None and not -999_999 <= self.scale[0] < self.scale[1] <= 999_999:
            raise ValueError(f"scale must be [lowest, highest], got {list(self.scale)}")
        if self.mode == "pointwise" and "swap" in self.model_fields_set:
            raise ValueError("swap has no meaning in mode pointwise, where each answer is seen by itself; remove it")
        if self.votes > 1 and self.temperature == 0 and self.mode != "listwise":
            raise ValueError("votes over 1 need a temperature above 0, or all votes are the same")
        if (self.price_input is None) != (self.price_output is None):
            raise ValueError("give price_input and price_output, or neither")
        return self

    @property
    def drawn_temperature(self) -> float:
        """The temperature of the replies."""
        if self.temperature is not None:
            return self.temperature
        return 0.0 if self.votes == 1 else 0.7

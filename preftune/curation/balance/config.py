"""Settings of `preftune data balance`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from preftune.config import SourceConfig
from preftune.config.base import Strict
from preftune.curation.embeddings import DIMENSIONS

BUILTIN = "builtin"
UNREAD = ("data.weight", "data.system", "data.chat")
"""Fields of a source that change nothing here: rows go out as they were read."""


class BalanceConfig(Strict):
    """What to balance, how texts are compared, and how large clusters shall be."""

    data: list[SourceConfig] = Field(min_length=1, description="rows to balance")
    seed: int = Field(0, ge=0, description="of the sample, the order of clustering, and which rows are kept")
    text: str = Field(
        "prompt",
        description="what is compared: prompt (all of its turns, or the text of a row without one), last-user (its "
        "last user turn), or a column's name",
    )
    characters: int = Field(8000, ge=1, description="a text is read up to so many characters")
    embedder: str = Field(
        BUILTIN,
        description="builtin (TF-IDF and SVD, nothing to download), or a sentence-transformers model or plain encoder: "
        "hub id or folder",
    )
    dimensions: int = Field(DIMENSIONS, ge=1, le=512, description="builtin: singular directions")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="a model: where it runs")
    batch_size: int = Field(64, ge=1, description="a model: texts of one forward pass")
    prefix: str = Field("", description="a model: put before every text ('query: ' for E5)")
    trust_remote_code: bool = Field(False, description="a model: run code that ships with it")
    threshold: float | None = Field(
        None, gt=0, le=2, description="BIRCH: largest radius of a cluster; null chooses it by a sweep, which is shown"
    )
    branching: int = Field(50, ge=2, description="BIRCH: subclusters of a node of its tree")
    max_clusters: int = Field(10_000, ge=1, description="clusters at most; memory and time grow with them")
    sample: int = Field(
        5000,
        ge=10,
        le=50_000,
        description="different texts that the embedding learns from, and as many on which thresholds are tried",
    )
    cap: int | None = Field(100, ge=1, description="rows kept of a larger cluster; null keeps all")
    keep: Literal["random", "diverse", "central"] = Field(
        "random",
        description="which of them: drawn by the seed, far from each other, or nearest to the cluster's centre",
    )
    prefer: str | None = Field(None, description="column with a number: rows with a higher one are kept first")
    raise_to: int | None = Field(10, ge=1, description="rows that a smaller cluster is raised to; null raises none")
    raise_from: int = Field(1, ge=1, description="clusters smaller than this are left as they are")
    raise_by: Literal["copy", "weight"] = Field(
        "copy", description="repeat rows, or write every row once with a column `weight`"
    )
    chunk: int = Field(2048, ge=1, description="texts in memory at once; no effect on the result")

    @field_validator("data", mode="before")
    @classmethod
    def _one_source(cls, value: Any) -> Any:
        return [value] if isinstance(value, (dict, SourceConfig)) else value

    @field_validator("raise_to")
    @classmethod
    def _under_the_cap(cls, value: int | None, info: Any) -> int | None:
        cap = info.data.get("cap")
        if value is not None and cap is not None and value > cap:
            raise ValueError(f"got {value}, which is over the cap of {cap}: a cluster would be both capped and raised")
        return value

    @field_validator("text", "embedder", "prefer")
    @classmethod
    def _named(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("is empty")
        return value

    @model_validator(mode="after")
    def _read_by_its_embedder(self) -> BalanceConfig:
        unread = ("device", "batch_size", "prefix", "trust_remote_code") if self.is_builtin else ("dimensions",)
        for name in unread:
            if getattr(self, name) != type(self).model_fields[name].default:
                reader = "a model (embedder)" if self.is_builtin else "the builtin embedder"
                raise ValueError(f"{name} is read by {reader} alone; remove it")
        if self.raise_to is not None and self.raise_from > self.raise_to:
            raise ValueError(f"raise_from ({self.raise_from}) is over raise_to ({self.raise_to}): none would be raised")
        return self

    @property
    def is_builtin(self) -> bool:
        """Whether texts are embedded without a model."""
        return self.embedder == BUILTIN

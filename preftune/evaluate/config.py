"""Which models are measured, and on what. Imports no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from preftune.config import BenchmarkConfig
from preftune.config.base import Strict
from preftune.curation.generate.config import EndpointConfig

_LOCAL = (
    "revision", "device", "dtype", "trust_remote_code", "chat_template", "chat_template_kwargs", "rows",
)  # fmt: skip
_EDGE = 1 << 16
"""Bytes at both ends of a weights' file that tell it from another."""


class EvaluatedModel(Strict):
    """A model: `path` in this process, or `endpoint`. A bare text is a path."""

    name: str | None = Field(None, description="its name in the table (default: the last part of its path or name)")
    path: str | None = Field(None, description="hub id, model or adapter folder, or a run folder (its last stage)")
    revision: str | None = Field(None, description="with path: hub revision")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="with path: where the model runs")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="with path: dtype of its weights; auto: bfloat16 on a GPU, else float32"
    )
    trust_remote_code: bool = Field(False, description="with path: run code that ships with the model")
    chat_template: str | None = Field(
        None, description="with path: Jinja text or a .jinja file instead of the model's template"
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="with path: extra arguments for its chat template"
    )
    rows: int = Field(64, ge=1, description="with path: answers decoded at once")
    endpoint: EndpointConfig | None = Field(
        None, description="a model behind an OpenAI-compatible endpoint; a bare text is its name there"
    )

    @field_validator("endpoint", mode="before")
    @classmethod
    def _bare_name(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _bare_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_place(self) -> EvaluatedModel:
        if (self.path is None) == (self.endpoint is None) or self.path == "":
            raise ValueError("give exactly one of path (a model in this process) and endpoint (one behind a server)")
        if self.path is not None and self.path.startswith("stage:"):
            raise ValueError(f"{self.path} stands for a stage of a recipe; give the folder that the stage wrote")
        for field in sorted(set(_LOCAL) & self.model_fields_set) if self.endpoint is not None else ():
            raise ValueError(f"{field} goes with path; remove it")
        if self.name is not None and (not self.name.strip() or self.name.isdigit()):
            raise ValueError(f"got the name {self.name!r}; a name is no number and not empty")
        return self

    @property
    def title(self) -> str:
        """Its name in the table."""
        if self.name is not None:
            return self.name
        if self.endpoint is not None:
            return self.endpoint.model
        parts = [part for part in str(self.path).replace("\\", "/").split("/") if part not in ("", ".")]
        if len(parts) > 1 and parts[-1] == "final":
            parts.pop()
        return parts[-1] if parts else str(self.path)

    def identity(self) -> dict[str, Any]:
        """What its answers depend on: where this is the same, answers that are there are still this model's."""
        if self.endpoint is not None:
            return {"endpoint": self.endpoint.model_dump(mode="json", include={"model", "base_url", "extra_body"})}
        about = self.model_dump(mode="json", exclude={"name", "device", "rows", "endpoint"})
        return {**about, "files": weights_of(Path(str(self.path)).expanduser())}


class EvaluateConfig(Strict):
    """Models, tasks, and how answers are drawn."""

    models: list[EvaluatedModel] = Field(
        min_length=1, description="models of the table; differences are against the first one"
    )
    tasks: list[BenchmarkConfig] = Field(
        default_factory=lambda: [BenchmarkConfig(task="instructions"), BenchmarkConfig(task="choices")],
        min_length=1,
        description="what they are measured on; a bare text is a task with its built-in rows",
    )
    max_tokens: int = Field(1024, ge=1, description="longest answer, where a task does not say")
    temperature: float = Field(0.0, ge=0, description="of the answers; 0 is greedy")
    seed: int = Field(0, ge=0, description="of answers that are not greedy")
    max_tokens_per_batch: int = Field(8192, ge=1, description="tokens of one packed forward pass")
    stop_after: int = Field(20, ge=1, description="failed requests in a row after which the command stops")

    @field_validator("models", mode="before")
    @classmethod
    def _one_model(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | dict | EvaluatedModel) else value

    @field_validator("tasks", mode="before")
    @classmethod
    def _bare_tasks(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",")]
        if isinstance(value, list):
            return [{"task": one} if isinstance(one, str) else one for one in value]
        return value

    @model_validator(mode="after")
    def _names_differ(self) -> EvaluateConfig:
        for what, titles in (("models", [m.title for m in self.models]), ("tasks", [t.title for t in self.tasks])):
            if twice := next((title for n, title in enumerate(titles) if title in titles[:n]), None):
                raise ValueError(f"two {what} are named {twice!r}; give each a name of its own")
        return self


def weights_of(folder: Path) -> str:
    """A hash of a model folder's weights, by names, sizes and both ends of each file; "" for what is no folder here."""
    if not folder.is_dir():
        return ""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")) + sorted(folder.rglob("*.bin")):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(_EDGE))
            file.seek(max(0, size - _EDGE))
            digest.update(file.read(_EDGE))
    return digest.hexdigest()

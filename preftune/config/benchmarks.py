"""What a model is measured on besides rows like those it is trained on: instructions, and multiple choice."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from preftune.config.base import Strict
from preftune.config.data import ColumnRule, SourceConfig

BUILTIN = "builtin"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TAKEN = ("train", "validation", "test")
_OF_CHOICES = ("normalize", "unconditional", "by")
_OF_INSTRUCTIONS = ("unknown",)


class BenchmarkConfig(Strict):
    """A task and its rows."""

    task: Literal["instructions", "choices"] = Field(
        description="instructions: constraints on answers, checked by a program; choices: multiple choice by log-prob"
    )
    name: str | None = Field(None, description="its name in metrics and reports (default: the task's)")
    path: str = Field(BUILTIN, description="builtin (a small set of our own), or a file, saved folder or hub id")
    subset: str | None = Field(None, description="hub configuration name")
    split: str = Field("train", description="hub split")
    revision: str | None = Field(None, description="hub revision")
    columns: dict[str, ColumnRule] = Field(
        default_factory=dict, description="standard column → where it comes from; unmapped columns keep their names"
    )
    system: str | None = Field(None, description="system message put before each prompt")
    chat: bool | None = Field(
        None,
        description="ask as a user's message, in the model's chat template; default: instructions are asked so where "
        "the model has one, choices are not",
    )
    limit: int | None = Field(None, ge=1, description="use only the first N rows")
    on_bad_row: Literal["error", "skip"] = Field("error", description="stop at a bad row, or skip and count it")
    max_tokens: int | None = Field(
        None, ge=1, description="longest answer; default: that of the run's measurements, or of the command"
    )
    unknown: Literal["error", "skip"] = Field(
        "error", description="instructions: an IFEval id that is not known stops, or is left out of its row and counted"
    )
    normalize: Literal["tokens", "characters", "bytes", "none", "pmi"] = Field(
        "tokens",
        description="choices: a choice's log-prob is divided by its length, or not; pmi: less its log-prob behind "
        "`unconditional`",
    )
    unconditional: str = Field("Answer:", description="choices with normalize pmi: the prompt that tells nothing")
    by: Literal["logprobs", "letter"] = Field(
        "logprobs", description="choices: compare the choices' log-probs, or ask for the letter of one"
    )

    @model_validator(mode="before")
    @classmethod
    def _named_by_its_task(cls, value: Any) -> Any:
        if isinstance(value, dict) and "task" not in value and value.get("name") in ("instructions", "choices"):
            return {**value, "task": value["name"]}
        return value

    @field_validator("columns", mode="before")
    @classmethod
    def _short_rules(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {k: {"from": v} if isinstance(v, str) else v for k, v in value.items()}
        return value

    @field_validator("name")
    @classmethod
    def _a_file_name(cls, value: str | None) -> str | None:
        if value is not None and not _NAME.fullmatch(value):
            raise ValueError(
                f"got {value!r}; a name becomes a file's: letters, digits, `-`, `_` and `.`, no space in it"
            )
        if value in _TAKEN:
            raise ValueError(f"got {value!r}, which are the run's own rows; give another name")
        return value

    @model_validator(mode="after")
    def _of_its_task(self) -> BenchmarkConfig:
        others = _OF_CHOICES if self.task == "instructions" else _OF_INSTRUCTIONS
        for field in others:
            if getattr(self, field) != type(self).model_fields[field].default:
                task = "choices" if self.task == "instructions" else "instructions"
                raise ValueError(f"{field} is read by task {task} alone; remove it")
        if self.normalize != "pmi" and self.unconditional != type(self).model_fields["unconditional"].default:
            raise ValueError("unconditional is read with normalize: pmi alone; remove it")
        if self.by == "letter" and self.normalize != "tokens":
            raise ValueError("normalize is read with by: logprobs alone; remove it")
        return self

    @property
    def title(self) -> str:
        """Its name in metrics and reports."""
        return self.name or self.task

    @property
    def is_builtin(self) -> bool:
        return self.path == BUILTIN

    @property
    def draws(self) -> bool:
        """Whether the model writes answers; else it is only asked for log-probs."""
        return self.task == "instructions" or self.by == "letter"

    @property
    def source(self) -> SourceConfig:
        """Where its rows come from, as of any data."""
        return SourceConfig(
            path=self.path, name=self.subset, split=self.split, revision=self.revision, columns=dict(self.columns),
            limit=self.limit, on_bad_row=self.on_bad_row,
        )  # fmt: skip

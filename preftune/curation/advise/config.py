"""What `preftune advise` asks."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from preftune.config import SourceConfig
from preftune.config.base import Strict


class AdviseConfig(Strict):
    """The data and the means. What is `unknown` counts against the methods that need it."""

    data: list[SourceConfig] = Field(
        default_factory=list, description="the rows that there are; none is an answer, too"
    )
    model: str | None = Field(
        None, description="model to tune: hub id or folder (default: by what the machine can hold)"
    )
    verifiable: Literal["auto", "yes", "no"] = Field(
        "auto", description="can a program check an answer? auto: where a column holds numbers, short answers or tests"
    )
    chain_of_thought: Literal["unknown", "yes", "no"] = Field(
        "unknown", description="does it help to think step by step before answering?"
    )
    few: int = Field(100, ge=1, description="good answers under this number are few")
    gpus: Literal["unknown", "none", "one", "cluster"] = Field("unknown", description="what there is to train on")
    annotators: Literal["unknown", "none", "few", "many"] = Field(
        "unknown", description="people who can judge answers: a few who know the matter well, or many"
    )
    task: Literal["unknown", "general", "small"] = Field(
        "unknown", description="a general assistant, or a small or scientific task where quality is all"
    )
    judge: str | None = Field(
        None, description="a language model that can judge answers: the name of one behind an endpoint, or a hub id"
    )
    reward_model: str | None = Field(None, description="a reward model for the task: folder or hub id")

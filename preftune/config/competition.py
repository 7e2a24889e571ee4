"""The competition: personas that answer one after another inside a completion, and a judge who picks a winner."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from preftune.config.base import Strict

MOST_PERSONAS = 5
_TAG = re.compile(r"[^\W\d_][\w-]*")


class PersonaConfig(Strict):
    """One persona of a competition."""

    name: str = Field(description="its tag: a letter, then letters, digits, _ and -")
    prompt: str = Field(description="how it reasons and speaks, for the system prompt")
    voice: list[str] = Field(
        default_factory=list, description="words and phrases that it is known by, for the reward competition-voice"
    )
    reflection: list[str] = Field(
        default_factory=list,
        description="its own words of checking, doubt and correction, besides the languages' lists, for "
        "competition-reflection",
    )


class CompetitionConfig(Strict):
    """The construct of a competition. What is empty comes from `style`."""

    style: Literal["pirate-knight-viking", "court", "strategies"] = Field(
        "pirate-knight-viking", description="built-in construct that fields left empty are taken from"
    )
    personas: list[PersonaConfig] = Field(
        default_factory=list, description="two to five personas of your own instead of the style's, in their order"
    )
    root: str | None = Field(None, description="tag around the whole contest")
    result: str | None = Field(None, description="tag of the judge's part")
    winner: str | None = Field(None, description="tag of the winner's name, inside the judge's part")
    judge: str | None = Field(None, description="how the judge decides and speaks, for the system prompt")
    answer: str | None = Field(None, description="how the final answer is written, for the system prompt")
    system: str | None = Field(
        None, description='system prompt instead of the one made of all this; "" puts none before the prompts'
    )

    @model_validator(mode="after")
    def _tags(self) -> CompetitionConfig:
        if self.personas and not 2 <= len(self.personas) <= MOST_PERSONAS:
            raise ValueError(f"personas: got {len(self.personas)}; a competition has two to {MOST_PERSONAS}")
        given = [("root", self.root), ("result", self.result), ("winner", self.winner)]
        given += [(f"personas.{n}.name", persona.name) for n, persona in enumerate(self.personas)]
        for field, tag in given:
            if tag is not None and not _TAG.fullmatch(tag):
                raise ValueError(f"{field}: {tag!r} can't be a tag: a letter, then letters, digits, _ and -")
        return self

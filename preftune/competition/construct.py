"""The construct: who competes, under which tags, and what the model is told about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from preftune.config import CompetitionConfig
from preftune.errors import UsageError


@dataclass(frozen=True, slots=True)
class Persona:
    """One who competes.

    Attributes:
        name: its tag.
        prompt: how it reasons and speaks.
        voice: words and phrases that it is known by.
        reflection: its own words of checking, doubt and correction.
    """

    name: str
    prompt: str
    voice: tuple[str, ...] = ()
    reflection: tuple[str, ...] = ()


@cache
def built_in(style: str) -> CompetitionConfig:
    """Everything that a recipe may leave empty: `styles/STYLE.yaml` beside this file."""
    import yaml

    text = (files("preftune.competition") / "styles" / f"{style}.yaml").read_text(encoding="utf-8")
    return CompetitionConfig.model_validate(yaml.safe_load(text))


@dataclass(frozen=True, slots=True)
class Construct:
    """A contest's shape and words; see `preftune.config.CompetitionConfig` for the fields.

    Attributes:
        system: the whole system prompt where the recipe gives one, else None.
    """

    personas: tuple[Persona, ...]
    root: str
    result: str
    winner: str
    judge: str
    answer: str
    system: str | None = None

    @classmethod
    def of(cls, config: CompetitionConfig | None = None) -> Construct:
        """The construct that the settings describe; without settings that of pirate, knight and viking.

        Raises:
            UsageError: two of its tags are equal but for case: no reader could tell them apart.
        """
        config = config or CompetitionConfig()
        style = built_in(config.style)
        given = config.personas or style.personas
        personas = tuple(Persona(p.name, p.prompt, tuple(p.voice), tuple(p.reflection)) for p in given)
        made = cls(
            personas,
            config.root or style.root or "",
            config.result or style.result or "",
            config.winner or style.winner or "",
            style.judge or "" if config.judge is None else config.judge,
            style.answer or "" if config.answer is None else config.answer,
            config.system,
        )
        seen: dict[str, str] = {}
        for tag in made.elements:
            if tag.casefold() in seen:
                raise UsageError(
                    f"competition: the tags {seen[tag.casefold()]!r} and {tag!r} can't be told apart; rename one"
                )
            seen[tag.casefold()] = tag
        return made

    @property
    def names(self) -> tuple[str, ...]:
        """The personas' tags, in order."""
        return tuple(persona.name for persona in self.personas)

    @property
    def elements(self) -> tuple[str, ...]:
        """All tags in the order in which they open: root, personas, result, winner."""
        return (self.root, *self.names, self.result, self.winner)

    def persona(self, name: str) -> Persona:
        """The persona of that name. Raises UsageError naming those that there are."""
        for persona in self.personas:
            if persona.name == name:
                return persona
        raise UsageError(f"no persona is named {name!r}; there are {', '.join(self.names)}")

    @property
    def system_prompt(self) -> str:
        """What stands before every prompt as the system message; "" where the recipe wants none."""
        if self.system is not None:
            return self.system
        parts = [f"<{p.name}>\n{p.prompt}\n</{p.name}>" for p in self.personas]
        names = [f'"{name}"' for name in self.names]
        listed = f"{', '.join(names[:-1])} or {names[-1]}"
        return "\n".join(
            [
                "Answer in exactly this form, with every tag once and nothing between the tags' texts:",
                "",
                f"<{self.root}>",
                *parts,
                f"<{self.result}>",
                self.judge,
                f"<{self.winner}>\nthe winner's name and nothing else: {listed}\n</{self.winner}>",
                f"</{self.result}>",
                f"</{self.root}>",
                self.answer,
            ]
        )

    def render(self, sections: Mapping[str, str], result: str, winner: str, answer: str) -> str:
        """A well-formed contest.

        Args:
            sections: persona → its text, one for each persona.
            result: the judge's words before the winner's tag.
            winner: what the winner's tag encloses.
            answer: what the user is shown.

        Raises:
            KeyError: a persona has no text.
        """
        told = "".join(f"<{name}>\n{sections[name]}\n</{name}>\n" for name in self.names)
        verdict = f"<{self.result}>\n{result}\n<{self.winner}>\n{winner}\n</{self.winner}>\n</{self.result}>\n"
        return f"<{self.root}>\n{told}{verdict}</{self.root}>\n{answer}"

"""What the rewards of a competition have in common: reading the contest out of each completion."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from preftune.competition import Construct, Contest, parse
from preftune.competition.words import Units, units
from preftune.rewards.call import completion_text


@lru_cache(maxsize=2048)
def read_contest(text: str, construct: Construct) -> Contest:
    """As `parse`, once for all rewards that read the same completion."""
    return parse(text, construct)


@cache
def _default() -> Construct:
    return Construct.of()


def questions(prompts: list[Any] | None, rows: int) -> list[Units]:
    """The words of each row's question; of a conversation what the user says. Empty where no prompts are known."""
    if prompts is None:
        return [()] * rows
    return [units(_question(prompt)) for prompt in prompts]


def _question(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(message["content"] for message in prompt if message["role"] not in ("system", "assistant"))


@dataclass(frozen=True, slots=True)
class ContestReward:
    """Base of rewards that read a contest. `construct` comes from the recipe; None: pirate, knight and viking."""

    construct: Construct | None = None

    can_hang = False

    @property
    def contest_of(self) -> Construct:
        """The construct that completions are read by."""
        return self.construct or _default()

    def check(self) -> None:
        """Raise UsageError where the construct lacks what this reward reads."""

    def read(self, completions: list[Any]) -> list[Contest]:
        """One contest per completion."""
        construct = self.contest_of
        return [read_contest(completion_text(completion), construct) for completion in completions]


@dataclass(frozen=True, slots=True)
class PersonaReward(ContestReward):
    """Base of rewards that score one persona; without `persona` a recipe gets one reward for each."""

    persona: str | None = None

    def scored_personas(self, construct: Construct) -> tuple[str, ...]:
        """The personas that the reward is made for; none: it is made once, for the contest as a whole."""
        return construct.names

    @property
    def who(self) -> str:
        """The persona that is scored; the first one where none is named."""
        return self.persona or self.scored_personas(self.contest_of)[0]

    def texts(self, completions: list[Any]) -> list[str | None]:
        """What the persona says in each completion; None where it has no section."""
        who = self.who
        sections = [contest.sections.get(who) for contest in self.read(completions)]
        return [None if section is None else section.text for section in sections]

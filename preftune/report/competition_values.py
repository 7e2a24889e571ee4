"""What the rewards on contests say of logged answers: as the run wrote it down, else asked anew."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from preftune.competition import Construct
from preftune.config import RewardConfig
from preftune.errors import UsageError
from preftune.report.competition_measures import ANSWER, PREFIX, RIGHT, STRUCTURE, WINNER, Need
from preftune.report.notes import finite
from preftune.report.read import Run, Sample
from preftune.rewards.builtins import BUILTINS, make_builtins
from preftune.rewards.competition_answer import conclusion, quantity
from preftune.rewards.contest import read_contest


class Rewards:
    """The rewards on contests: those that the run measured, and the built-ins as they are without args."""

    def __init__(self, run: Run, construct: Construct) -> None:
        self._construct = construct
        self.measured: dict[Need, tuple[str, Any]] = {}
        listed = run.recipe.get("rewards")
        for entry in listed if isinstance(listed, list) else []:
            if not isinstance(entry, dict) or not str(entry.get("name")).startswith(PREFIX):
                continue
            try:
                config = RewardConfig.model_validate(entry)
                for need, (label, reward) in self._made(config).items():
                    if _tells_apart(need[0], reward):  # of several the first: a second one has other args
                        self.measured.setdefault(need, (label, reward))
            except (ValidationError, UsageError, KeyError) as error:
                run.problems.append(f"recipe.yaml: a reward on contests can't be read: {error}")

    @cached_property
    def metrics(self) -> dict[Need, str]:
        """The rewards that the run measured → their metrics."""
        return {need: f"reward/{label}" for need, (label, _) in self.measured.items()}

    @cached_property
    def defaults(self) -> dict[Need, Any]:
        out: dict[Need, Any] = {}
        for name in BUILTINS:
            if name.startswith(PREFIX):
                with suppress(UsageError):  # a persona without a voice has no reward for it
                    out |= {need: reward for need, (_, reward) in self._made(RewardConfig(name=name)).items()}
        return out

    def _made(self, config: RewardConfig) -> dict[Need, tuple[str, Any]]:
        made = make_builtins(config, self._construct)
        return {(config.name, getattr(reward, "persona", None) or ""): (label, reward) for label, reward in made}

    def score(self, need: Need, samples: Sequence[Sample]) -> list[float | None]:
        """A reward's value of logged answers: as the run wrote it down, else asked anew."""
        label, reward = self.measured.get(need, ("", None))
        if label and any(label in sample.breakdown for sample in samples):
            return [finite(sample.breakdown.get(label)) for sample in samples]
        if need[0] in (ANSWER, RIGHT):
            return [_plainly_right(need[0], sample, self._construct) for sample in samples]
        reward = reward or self.defaults.get(need)
        # One that counts tokens finds none in a log; one that may hang has no worker here.
        if reward is None or not samples or getattr(reward, "reads_ends", False) or reward.can_hang:
            return [None] * len(samples)
        told = reward(
            prompts=[question(sample.prompt, self._construct) for sample in samples],
            completions=[sample.completion for sample in samples],
            answer=[sample.answer or None for sample in samples],
        )
        return [finite(value) for value in told]


def _tells_apart(name: str, reward: Any) -> bool:
    """Whether the reward's values show what is measured: args may make a partial score equal to a whole one or to 0."""
    if name == STRUCTURE:
        return bool(reward.partial < 1.0)
    return name != WINNER or bool(0.0 < reward.partial < 1.0)


def _plainly_right(reward: str, sample: Sample, construct: Construct) -> float | None:
    """What `competition-answer` or `competition-winner-right` says where the truth is a number; else None, as that
    takes math-verify."""
    truth = quantity(sample.answer)
    if truth is None:
        return None
    contest = read_contest(sample.completion, construct)
    if reward == ANSWER:
        if contest.leaks:
            return -1.0
        text = contest.answer if contest.ended else None
    else:
        section = contest.sections.get(contest.winner) if contest.winner else None
        text = section.text if section else None
    found = None if text is None else conclusion(text)
    return float(found is not None and quantity(found) == truth)


def question(prompt: str, construct: Construct) -> str:
    """A prompt without the contest's system prompt, which is the same for all."""
    system = construct.system_prompt.strip()
    return (prompt.rpartition(system)[2] if system else prompt).strip()

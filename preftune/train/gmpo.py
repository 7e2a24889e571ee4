"""GMPO's side of the loop: the critic, the meta-prompt with its lessons, temperature and weights.

What one step adds to what is known (rewards for the temperature, lessons, tallies) is in a **memory** of JSON values
that goes in and comes out of functions; the loop keeps a new one only when the update is made, and checkpoints hold it.
So a resumed run is the unbroken one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any, Protocol

from torch import nn

from preftune.config import LoraConfig, Recipe, RewardConfig
from preftune.engine.forward import Engine
from preftune.errors import PreftuneError, UsageError
from preftune.models.adapters import TRAINED
from preftune.models.loading import Policy
from preftune.models.roles import add_role
from preftune.records import Example, Group, Prompt
from preftune.rewards.base import RewardSet, build_rewards
from preftune.rewards.critic import Critic, Judged
from preftune.rewards.critic_learning import cold_start, learn
from preftune.rewards.critic_text import add_lessons
from preftune.sampling.local import LocalSampler
from preftune.signals.weights import RowWeights
from preftune.tokens import TokenContract
from preftune.train.gmpo_parts import (
    added,
    already_scored,
    behind,
    check_recipe,
    check_reference,
    fields_in,
    lessons_in,
    meta_text,
    tally,
    weigh,
)
from preftune.train.stored import StoredGroups

USES = 4
"""How often the cold start uses an answer, each time in another wording, before it wants more of them."""

Memory = Mapping[str, Any]


class Bar(Protocol):
    """What this module needs of the run's progress bar."""

    def begin(self, label: str, done: int = 0) -> None: ...
    def tick(self, done: int, total: int, note: str = "") -> None: ...


class Gmpo:
    """The one object that the loop talks to.

    Attributes:
        critic: None where rewards or the data score the answers.
        notes: sentences for the report, known when the run opens.
    """

    def __init__(
        self, recipe: Recipe, *, policy: Policy, contract: TokenContract, sampler: LocalSampler,
        train: Sequence[Group], critic: Critic | None, meta: str,
    ) -> None:  # fmt: skip
        self.recipe, self.settings = recipe, recipe.gmpo
        self.policy, self.contract, self.sampler = policy, contract, sampler
        self.train, self.critic, self.meta = train, critic, meta
        self.notes: list[str] = []
        self.fields = fields_in(train, recipe.gmpo.field)
        self._judged: Judged | None = None
        if critic is not None and critic.truth is None:
            self.notes.append(
                "critic: no gmpo.critic.truth is named, so the critic stays frozen, without a cold start: trained on "
                "nothing but its own judgement it would come to please the policy"
            )

    @classmethod
    def open(
        cls, recipe: Recipe, *, policy: Policy, engine: Engine, contract: TokenContract, base_dir: Path | None,
        budget: int, train: Sequence[Group],
    ) -> Gmpo:  # fmt: skip
        """Check the recipe's `gmpo` section against the data and put the critic beside the policy.

        Raises:
            PreftuneError: fields that contradict each other or the data, a file that can't be read, a meta-prompt that
                leaves no room; named with the remedy.
        """
        check_recipe(recipe, train)
        folder = base_dir or Path.cwd()
        sampler = LocalSampler(engine, contract)
        critic = None
        if recipe.gmpo.critic.kind == "generative":
            critic = _open_critic(recipe, policy, engine, contract, sampler, folder, budget, train)
        meta = _read(recipe.gmpo.meta_prompt, folder, "gmpo.meta_prompt") or ""
        gmpo = cls(recipe, policy=policy, contract=contract, sampler=sampler, train=train, critic=critic, meta=meta)
        gmpo.prompts([_longest_prompt(train)], gmpo.memory())
        return gmpo

    @property
    def critical(self) -> bool:
        """Whether a critic scores the answers."""
        return self.critic is not None

    @property
    def learns(self) -> bool:
        """Whether there is a critic and a truth to train it by."""
        return self.critic is not None and self.critic.truth is not None

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The critic's weights, where it learns."""
        return self.critic.parameters() if self.critic is not None and self.learns else []

    def save(self, folder: Path) -> None:
        """Write the critic's adapter in peft's form, where there is one."""
        if self.critic is not None:
            self.critic.role.save(folder)

    def close(self) -> None:
        """End the truth reward's worker processes."""
        if self.critic is not None and self.critic.truth is not None:
            self.critic.truth.close()

    # --- before the first step ----------------------------------------------------------------------------------

    def prepare(self, progress: Bar) -> list[str]:
        """The critic's cold start, on a run that begins. Returns sentences for the run's notes."""
        if self.critic is None or not self.learns or not self.settings.critic.cold_start:
            return []
        progress.begin("answers for the critic's cold start")
        answers = self._first_answers(progress)
        progress.begin("cold start of the critic")
        rate = self.settings.critic.learning_rate
        said, _ = cold_start(
            self.critic, answers, max_grad_norm=self.recipe.train.max_grad_norm, progress=progress.tick,
            learning_rate=self.recipe.train.learning_rate if rate is None else rate,
        )  # fmt: skip
        return said

    def _first_answers(self, progress: Bar) -> list[Group]:
        """Answers to training prompts: the data's own, or drawn by the policy as it is now."""
        config, size = self.settings.critic, self.recipe.sampling.group_size
        wanted = max(config.cold_start * config.cold_start_batch // USES, 2 * config.cold_start_batch)
        count = wanted if self.settings.answers == "data" else max(1, math.ceil(wanted / size))
        places = Random(f"cold start/{self.recipe.seed}").sample(range(len(self.train)), len(self.train))
        chosen = [self.train[place] for place in places[:count]]
        if self.settings.answers == "data":
            return chosen
        plain = [group.prompt for group in chosen]
        drawn = self.sampler.sample(
            self.prompts(plain, self.memory()), size, self.recipe.sampling, seed=self.recipe.seed,
            progress=progress.tick,
        )  # fmt: skip
        return self.with_plain_prompts(drawn, plain)

    # --- the meta-prompt ----------------------------------------------------------------------------------------

    def memory(self) -> dict[str, Any]:
        """What a run knows at its start. JSON values: rewards of the last groups (buffer), lessons, the pass over the
        data that the tallies belong to (name → [sum, count])."""
        return {"buffer": [], "lessons": [], "pass": 1, "tally": {}}

    def prompts(self, prompts: Sequence[Prompt], memory: Memory) -> list[Prompt]:
        """The prompts as they are sampled from: meta-prompt and lessons before the question.

        Raises:
            PreftuneError: one leaves no room for an answer.
        """
        before = meta_text(self.meta, memory["lessons"])
        if not before:
            return list(prompts)
        out = []
        limit, room = self.policy.context_length, self.recipe.sampling.max_tokens
        for prompt in prompts:
            content = behind(before, prompt.content or prompt.text)
            longer = self.contract.prompt(Example(content, columns=prompt.columns, where=prompt.where))
            if limit is not None and len(longer.ids) + room > limit:
                raise PreftuneError(
                    f"{prompt.where or 'a prompt'}: with the meta-prompt and {len(memory['lessons'])} lessons it has "
                    f"{len(longer.ids)} tokens (alone {len(prompt.ids)}), and an answer of sampling.max_tokens {room} "
                    f"does not fit the model's {limit} positions behind it; shorten gmpo.meta_prompt, or lower "
                    "gmpo.lessons, sampling.max_tokens or tokens.max_prompt_tokens"
                )
            out.append(longer)
        return out

    @staticmethod
    def with_plain_prompts(drawn: Sequence[Group], plain: Sequence[Prompt]) -> list[Group]:
        """Answers behind the prompts that they are trained on. Where that is another one than they were drawn from,
        the sampler's log-probs belong to nothing that is trained, and go."""
        out = []
        for group, prompt in zip(drawn, plain, strict=True):
            completions = group.completions
            if group.prompt.ids != prompt.ids:
                completions = tuple(replace(c, logprobs=None, distribution=None) for c in completions)
            out.append(replace(group, prompt=prompt, completions=completions))
        return out

    # --- one step -----------------------------------------------------------------------------------------------

    def score(
        self, groups: Sequence[Group], step: int, memory: Memory
    ) -> tuple[list[Group], dict[str, float], dict[str, Any]]:
        """The critic's scores, or those that the answers have.

        Args:
            step: optimizer steps taken so far.

        Returns:
            The groups with scores, metrics, and the memory after this batch.

        Raises:
            PreftuneError: the critic writes nothing that can be read; or, without a critic, an answer without a score.
        """
        metrics: dict[str, float] = {}
        lessons: list[str] = list(memory["lessons"])
        if self.critic is None:
            kept = already_scored(groups)
        else:
            self._judged = judged = self.critic.score(groups, step=step)
            kept, metrics = list(judged.groups), dict(judged.metrics)
            if self.settings.lessons:
                lessons = add_lessons(lessons, lessons_in(judged), self.settings.lessons)
                metrics["gmpo/lessons"] = float(len(lessons))
        buffer = [*memory["buffer"], *(list(group.scores) for group in kept)][-self.settings.buffer :]
        number = step * self.recipe.train.batch_size // max(len(self.train), 1) + 1
        values = tally(kept, self.settings.field, self.fields)
        known = added(memory["tally"] if memory["pass"] == number else {}, values)
        metrics |= {name: fmean(some) for name, some in values.items() if name.startswith("field/")}
        metrics |= {f"pass/{name}": total / count for name, (total, count) in known.items()} | {"pass/number": number}
        return kept, metrics, {"buffer": buffer, "lessons": lessons, "pass": number, "tally": known}

    def signal(self, groups: Sequence[Group], memory: Memory) -> tuple[RowWeights, dict[str, float]]:
        """One weight per answer, how it came about, and metrics. `memory` is what `score` returned with the groups."""
        return weigh(groups, self.settings, memory["buffer"])

    @staticmethod
    def annotate(groups: Sequence[Group], row_weights: RowWeights) -> list[Group]:
        """The groups with each answer's baseline, advantage, temperature and weight among its notes."""
        notes = iter(row_weights.notes)
        return [
            replace(g, completions=tuple(replace(c, notes={**c.notes, **next(notes)}) for c in g.completions))
            for g in groups
        ]

    def learn(self, groups: Sequence[Group], step: int) -> dict[str, float]:
        """Add the critic's gradient for the batch that was scored last, at every Nth step.

        Args:
            groups: that batch.
            step: the step under way, from 1.
        """
        if self.critic is None or not self.learns or step % self.settings.critic.every:
            return {}
        judged = self._judged
        if judged is None or len(judged.judgements) != sum(len(group.completions) for group in groups):
            raise RuntimeError("the critic can only learn on the batch that it judged last")
        return learn(self.critic, judged.judgements, judged.joint)


def _longest_prompt(train: Sequence[Group]) -> Prompt:
    if isinstance(train, StoredGroups):
        return train[int(train.prompt_lengths().argmax())].prompt
    return max((group.prompt for group in train), key=lambda prompt: len(prompt.ids))


def _open_critic(
    recipe: Recipe, policy: Policy, engine: Engine, contract: TokenContract, sampler: LocalSampler, folder: Path,
    budget: int, train: Sequence[Group],
) -> Critic:  # fmt: skip
    config = recipe.gmpo.critic
    instruction = _read(config.prompt, folder, "gmpo.critic.prompt")
    check_reference(config.reference, instruction, train)
    truth: RewardSet | None = None
    if config.truth is not None:
        # Weight 0: the set's own sum is read by nobody, and a row that the reward does not apply to is no error.
        reward = RewardConfig(name=config.truth, args=config.truth_args, weight=0.0)
        truth = build_rewards([reward], base_dir=folder)
    elif config.truth_args:
        raise UsageError("gmpo.critic.truth_args are given, but no gmpo.critic.truth; name the reward")
    role = add_role(policy, "critic", config.lora or recipe.model.lora or _shape(policy), seed=recipe.seed)
    return Critic(
        role, engine=engine, contract=contract, sampler=sampler, config=config, truth=truth, instruction=instruction,
        seed=recipe.seed, budget=budget, rows=recipe.sampling.rows,
    )  # fmt: skip


def _shape(policy: Policy) -> LoraConfig:
    """The shape of the policy's adapter, one that goes on from a folder; a default one where there is none, for
    `add_role` to say what is missing."""
    if not policy.is_adapter:
        return LoraConfig()
    mine = policy.model.peft_config[TRAINED]
    targets = mine.target_modules if isinstance(mine.target_modules, str) else sorted(mine.target_modules)
    return LoraConfig(r=mine.r, alpha=float(mine.lora_alpha), dropout=float(mine.lora_dropout), targets=targets)


def _read(path: str | None, folder: Path, field: str) -> str | None:
    if path is None:
        return None
    try:
        return (folder / Path(path).expanduser()).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{field}: can't read {path}: {error}") from error

"""The table of methods, as data. A method is four choices; the loop can't tell which one runs.

    completions   where a group's completions come from: the data set, or the policy at each step, or the policy once
                  before training
    scores        whether rewards score them
    signal        scores → one advantage per completion (or none)
    loss          token log-probs + signal → a number to step on

A new method is a row here plus at most a signal and a loss; `register` adds one from outside the package.
Importing this module loads no torch: signals and losses (`preftune.formulas`) are imported when first called.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from preftune import formulas
from preftune.config import Recipe
from preftune.errors import UsageError
from preftune.formulas import Evidence, LossFunction, SignalFunction
from preftune.objectives import (
    BRADLEY_TERRY,
    KTO,
    PREFERENCE_LOSSES,
    PRESETS,
    Objective,
    Preference,
    objective,
    preference,
)
from preftune.records import Group

__all__ = [
    "BRADLEY_TERRY", "KTO", "METHODS", "PREFERENCE_LOSSES", "PRESETS", "Evidence", "Method", "Objective", "Preference",
    "get_method", "method_of", "needs_rewards", "objective", "preference", "register",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Method:
    """One row of the table.

    Attributes:
        completions: "data", "policy" (drawn at every step), "collected" (drawn and scored once, before training, or
            read from collect.path), or "either": the recipe's gmpo.answers says which.
        defaults: what a recipe of this method starts from, under its own fields.
        needs_reference: whether a recipe of this method compares with the reference model.
        needs_values: whether it trains a value head.
        keeps: "collected" alone: what of the scored groups is trained on.
        own_words: the completions count as the policy's own: the trainer's logits are divided by the sampling
            temperature, and completions that were cut may be masked. Always so for "policy".
        compares: what the data's own scores must say: nothing, which of a row's completions is better ("pairs"), or
            which completions are good ("labels").
        reads: what the model gives for a completion: log-probs of its tokens, or one score from a reward head.
        contrast: for groups of the whole optimizer batch, other completions of the same prompts, in the same order.
            They get no gradient: the mean of their log π/π₀, over the whole batch, becomes `TokenBatch.baseline`.
        entropy: whether the loss reports the entropy of the policy's distribution, which costs a pass over the logits.
    """

    name: str
    summary: str
    completions: Literal["data", "policy", "collected", "either"]
    scored: bool
    signal: SignalFunction
    loss: LossFunction
    needs_reference: Callable[[Recipe], bool] = lambda recipe: False
    compares: Literal["pairs", "labels"] | None = None
    reads: Literal["logprobs", "scores"] = "logprobs"
    contrast: Callable[[Sequence[Group]], list[Group]] | None = None
    entropy: bool = True
    needs_values: Callable[[Recipe], bool] = lambda recipe: False
    keeps: Callable[[Sequence[Group], Recipe], list[Group]] | None = None
    own_words: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def samples(self) -> bool:
        """Whether the policy writes the completions of each step."""
        return self.completions == "policy"

    @property
    def tempered(self) -> bool:
        """Whether the trainer scores at the sampling temperature."""
        return self.samples or self.own_words


METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Add a row to the table. Raises UsageError when the name is taken."""
    if method.name in METHODS:
        raise UsageError(f"there is a method called {method.name} already")
    METHODS[method.name] = method
    return method


def get_method(name: str) -> Method:
    """The row of that name. Raises UsageError with the nearest name when there is none."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"unknown method {name!r}; there are {', '.join(sorted(METHODS))}{hint}")
    return METHODS[name]


def method_of(recipe: Recipe) -> Method:
    """The row of the recipe's method, its completions settled.

    Raises:
        UsageError: no such method.
    """
    row = get_method(recipe.method)
    return replace(row, completions=recipe.gmpo.answers) if row.completions == "either" else row


def needs_rewards(recipe: Recipe) -> bool:
    """Whether a recipe without rewards has nothing to score its completions by."""
    if recipe.method == "gmpo":
        return recipe.gmpo.answers == "policy" and recipe.gmpo.critic.kind == "none"
    return get_method(recipe.method).scored and recipe.collect.path is None


register(
    Method(
        name="sft",
        summary="supervised fine-tuning on the data set's completions",
        completions="data",
        scored=False,
        signal=formulas.no_signal,
        loss=formulas.nll_of,
    )
)
register(
    Method(
        name="grpo",
        summary="group-relative policy optimisation: the policy answers, rewards score, the group is the baseline",
        completions="policy",
        scored=True,
        signal=formulas.advantages,
        loss=formulas.policy_gradient,
        needs_reference=lambda recipe: objective(recipe.policy).needs_reference,
        needs_values=lambda recipe: objective(recipe.policy).needs_values,
    )
)
register(
    Method(
        name="ppo",
        summary="proximal policy optimisation: a reward model scores, a value head says what each token was worth",
        completions="policy",
        scored=True,
        signal=formulas.advantages,
        loss=formulas.policy_gradient,
        needs_reference=lambda recipe: objective(recipe.policy).needs_reference,
        needs_values=lambda recipe: objective(recipe.policy).needs_values,
        defaults={
            "policy": {"preset": "ppo", "missing_eos_penalty": 1.0},
            "train": {"updates_per_batch": 4, "minibatches": 2, "adam_eps": 1e-5},
        },
    )
)
register(
    Method(
        name="gmpo",
        summary="likelihood weighted by exp(advantage / temperature), scored by a critic that explains itself",
        completions="either",
        scored=False,
        signal=formulas.row_weights,
        loss=formulas.weighted_likelihood_of,
        needs_reference=lambda recipe: recipe.gmpo.beta > 0.0,
    )
)
register(
    Method(
        name="iterative-dpo",
        summary="rounds (repeat) of: the policy answers, rewards score, the best and the worst answer are a DPO pair",
        completions="collected",
        scored=True,
        signal=formulas.collected_pairs,
        loss=formulas.preference_loss_of,
        needs_reference=lambda recipe: preference(recipe).needs_reference,
        compares="pairs",
        entropy=False,
        keeps=formulas.with_a_pair,
        defaults={"loss": {"pairs": "best-worst"}},
    )
)
register(
    Method(
        name="rft",
        summary="rejection fine-tuning: the policy answers, rewards score, SFT on the best of each prompt's answers",
        completions="collected",
        scored=True,
        signal=formulas.no_signal,
        loss=formulas.nll_of,
        keeps=formulas.best,
    )
)
register(
    Method(
        name="human",
        summary="direct RLHF: people score the policy's answers (preftune human …), a policy gradient step follows",
        completions="collected",
        scored=False,
        signal=formulas.advantages,
        loss=formulas.policy_gradient,
        needs_reference=lambda recipe: objective(recipe.policy).needs_reference,
        keeps=formulas.rated,
        own_words=True,
        defaults={"policy": {"advantage": "batch-std"}},
    )
)
register(
    Method(
        name="dpo",
        summary="direct preference optimisation and its family (loss.name): pairs of a better and a worse completion",
        completions="data",
        scored=False,
        signal=formulas.pairs,
        loss=formulas.preference_loss_of,
        needs_reference=lambda recipe: preference(recipe).needs_reference,
        compares="pairs",
        entropy=False,
    )
)
register(
    Method(
        name="kto",
        summary="Kahneman–Tversky optimisation: completions marked good or bad, no pairs needed",
        completions="data",
        scored=False,
        signal=formulas.labels,
        loss=formulas.kto_of,
        needs_reference=lambda recipe: True,
        compares="labels",
        contrast=formulas.mismatched_groups,
        entropy=False,
    )
)
register(
    Method(
        name="reward",
        summary="a reward model: a scalar head that puts the better completion of each pair above the worse one",
        completions="data",
        scored=False,
        signal=formulas.pairs,
        loss=formulas.bradley_terry_of,
        compares="pairs",
        reads="scores",
        entropy=False,
    )
)

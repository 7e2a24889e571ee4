"""The table of methods, as data. A method is four choices; the loop can't tell which one runs.

    completions   where a group's completions come from: the data set, or the policy
    scores        whether rewards score them
    signal        scores → one advantage per completion (or none)
    loss          token log-probs + signal → a number to step on

A new method is a row here plus at most a signal and a loss; `register` adds one from outside the package.
Importing this module loads no torch: signals and losses are imported when first called.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from preftune.config import PolicyConfig, Recipe
from preftune.errors import UsageError
from preftune.records import Group

if TYPE_CHECKING:
    from torch import Tensor

    from preftune.losses.batch import Denominators, LossOutput, TokenBatch

SignalFunction: TypeAlias = "Callable[[Sequence[Group], Recipe], Tensor | None]"
"""Groups of the whole optimizer batch, scored → advantages_S (all completions, in order), or None."""

LossFunction: TypeAlias = "Callable[[TokenBatch, Denominators, Recipe], LossOutput]"
"""A micro-batch's share of the loss; shares sum to the batch's loss."""


@dataclass(frozen=True, slots=True)
class Method:
    """One row of the table.

    Attributes:
        needs_reference: whether a recipe of this method compares with the reference model.
    """

    name: str
    summary: str
    completions: Literal["data", "policy"]
    scored: bool
    signal: SignalFunction
    loss: LossFunction
    needs_reference: Callable[[Recipe], bool] = lambda recipe: False


@dataclass(frozen=True, slots=True)
class Objective:
    """The four choices of a clipped policy gradient, and its KL penalty; see METHODS in docs/methods/grpo.md."""

    advantage: Literal["group-std", "group-mean", "batch-std", "leave-one-out"] = "group-std"
    ratio: Literal["token", "sequence", "sequence-sum"] = "token"
    clip: Literal["ppo", "cispo", "none"] = "ppo"
    clip_low: float | None = 0.2
    clip_high: float | None = 0.2
    aggregate: Literal["token-mean", "sequence-mean", "constant"] = "token-mean"
    beta: float = 0.0
    kl: Literal["k2", "k3"] = "k3"


PRESETS: dict[str, Objective] = {
    "grpo": Objective(),
    "grpo-original": Objective(aggregate="sequence-mean", beta=0.04),
    "dr-grpo": Objective(advantage="group-mean", aggregate="constant"),
    "gspo": Objective(ratio="sequence", clip_low=3e-4, clip_high=4e-4, aggregate="sequence-mean"),
    "cispo": Objective(clip="cispo", clip_low=None, clip_high=5.0),
}
"""Vetted combinations; `docs/methods/grpo.md` names each one's paper and TRL's settings for the same objective."""


def objective(policy: PolicyConfig) -> Objective:
    """The preset with the recipe's own choices over it.

    Raises:
        UsageError: unknown preset, or a clip bound that the chosen clip does not have.
    """
    if policy.preset not in PRESETS:
        near = difflib.get_close_matches(policy.preset, PRESETS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"policy.preset {policy.preset!r} is none of {', '.join(PRESETS)}{hint}")
    chosen = PRESETS[policy.preset]
    if policy.clip is not None and policy.clip != chosen.clip:
        # Another clip has other bounds; the preset's would mean something else there.
        bounds = {"ppo": (0.2, 0.2), "cispo": (None, 5.0), "none": (None, None)}[policy.clip]
        chosen = replace(chosen, clip=policy.clip, clip_low=bounds[0], clip_high=bounds[1])
    for name in ("clip_low", "clip_high"):
        if getattr(policy, name) is not None and getattr(chosen, name) is None:
            raise UsageError(f"policy.{name} has no meaning with clip: {chosen.clip}; remove it")
    given = {
        name: getattr(policy, name)
        for name in ("advantage", "ratio", "clip_low", "clip_high", "aggregate", "beta", "kl")
        if getattr(policy, name) is not None
    }
    return replace(chosen, **given)


def _no_signal(groups: Sequence[Group], recipe: Recipe) -> Tensor | None:
    return None


def _group_advantages(groups: Sequence[Group], recipe: Recipe) -> Tensor | None:
    import torch

    from preftune.signals import group_advantages

    scores_S = torch.tensor([score for group in groups for score in group.scores])
    group_S = torch.tensor([g for g, group in enumerate(groups) for _ in group.completions], dtype=torch.long)
    return group_advantages(scores_S, group_S, objective(recipe.policy).advantage)


def _nll(batch: TokenBatch, denominators: Denominators, recipe: Recipe) -> LossOutput:
    from preftune.losses.supervised import nll

    return nll(batch, denominators)


def _policy_gradient(batch: TokenBatch, denominators: Denominators, recipe: Recipe) -> LossOutput:
    from preftune.losses.policy import clipped_policy_gradient

    o = objective(recipe.policy)
    return clipped_policy_gradient(
        batch, denominators, ratio=o.ratio, clip=o.clip, clip_low=o.clip_low, clip_high=o.clip_high,
        aggregate=o.aggregate, beta=o.beta, kl=o.kl,
    )  # fmt: skip


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


register(
    Method(
        name="sft",
        summary="supervised fine-tuning on the data set's completions",
        completions="data",
        scored=False,
        signal=_no_signal,
        loss=_nll,
    )
)
register(
    Method(
        name="grpo",
        summary="group-relative policy optimisation: the policy answers, rewards score, the group is the baseline",
        completions="policy",
        scored=True,
        signal=_group_advantages,
        loss=_policy_gradient,
        needs_reference=lambda recipe: objective(recipe.policy).beta > 0.0,
    )
)

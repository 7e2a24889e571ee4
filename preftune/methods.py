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
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from preftune.config import PolicyConfig, Recipe
from preftune.errors import UsageError
from preftune.records import Group

if TYPE_CHECKING:
    from torch import Tensor

    from preftune.losses.batch import Denominators, LossOutput, TokenBatch
    from preftune.signals import Pairs

SignalFunction: TypeAlias = "Callable[[Sequence[Group], Recipe], Tensor | Pairs | None]"
"""Groups of the whole optimizer batch, scored → advantages_S (all completions, in order), pairs of them, or None."""

LossFunction: TypeAlias = "Callable[[TokenBatch, Denominators, Recipe], LossOutput]"
"""A micro-batch's share of the loss; shares sum to the batch's loss."""


@dataclass(frozen=True, slots=True)
class Method:
    """One row of the table.

    Attributes:
        needs_reference: whether a recipe of this method compares with the reference model.
        compares: what the data's own scores must say: nothing, which of a row's completions is better ("pairs"), or
            which completions are good ("labels").
        reads: what the model gives for a completion: log-probs of its tokens, or one score from a reward head.
        contrast: for groups of the whole optimizer batch, other completions of the same prompts, in the same order.
            They get no gradient: the mean of their log π/π₀, over the whole batch, becomes `TokenBatch.baseline`.
        entropy: whether the loss reports the entropy of the policy's distribution, which costs a pass over the logits.
    """

    name: str
    summary: str
    completions: Literal["data", "policy"]
    scored: bool
    signal: SignalFunction
    loss: LossFunction
    needs_reference: Callable[[Recipe], bool] = lambda recipe: False
    compares: Literal["pairs", "labels"] | None = None
    reads: Literal["logprobs", "scores"] = "logprobs"
    contrast: Callable[[Sequence[Group]], list[Group]] | None = None
    entropy: bool = True


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


@dataclass(frozen=True, slots=True)
class Preference:
    """A loss on fixed preferences or labels, with every number filled in.

    Attributes:
        implicit: how the policy's own reward of a completion is read: β·(log π − log π₀) ("ratio"), the same per token
            ("ratio-mean"), β·log π ("likelihood"), β·log π per token ("likelihood-mean"), or a reward head ("score").
        fields: fields of the recipe's `loss` that this loss reads, besides name.
    """

    name: str
    implicit: Literal["ratio", "ratio-mean", "likelihood", "likelihood-mean", "score"]
    beta: float = 0.1
    label_smoothing: float = 0.0
    gamma_ratio: float = 0.0
    odds_weight: float = 0.0
    sft_weight: float = 0.0
    center: float = 0.0
    fields: frozenset[str] = frozenset()

    @property
    def needs_reference(self) -> bool:
        return self.implicit in ("ratio", "ratio-mean")


def _pair_loss(name: str, implicit: Any, *own: str, **numbers: float) -> Preference:
    return Preference(name, implicit, fields=frozenset({"beta", "sft_weight", "pairs", *own}), **numbers)


PREFERENCE_LOSSES: dict[str, Preference] = {
    "dpo": _pair_loss("dpo", "ratio", "label_smoothing"),
    "conservative": _pair_loss("conservative", "ratio", "label_smoothing", label_smoothing=0.1),
    "robust": _pair_loss("robust", "ratio", "label_smoothing", label_smoothing=0.1),
    "ipo": _pair_loss("ipo", "ratio-mean"),
    "hinge": _pair_loss("hinge", "ratio"),
    "apo-zero": _pair_loss("apo-zero", "ratio"),
    "apo-down": _pair_loss("apo-down", "ratio"),
    "simpo": _pair_loss("simpo", "likelihood-mean", "gamma_ratio", beta=2.5, gamma_ratio=0.55),
    "orpo": Preference(
        "orpo", "likelihood-mean", beta=1.0, odds_weight=0.1, sft_weight=1.0,
        fields=frozenset({"odds_weight", "pairs"}),
    ),
    "cpo": _pair_loss("cpo", "likelihood", sft_weight=1.0),
}  # fmt: skip
"""The losses of `preftune dpo`, with the field's defaults; docs/methods/dpo.md has formulas and sources."""

KTO = Preference(
    "kto", "ratio", fields=frozenset({"beta", "desirable_weight", "undesirable_weight", "label_threshold"})
)
BRADLEY_TERRY = Preference("bradley-terry", "score", center=0.01, fields=frozenset({"margin", "center", "pairs"}))


def preference(recipe: Recipe) -> Preference:
    """The recipe's loss on preferences or labels, its own numbers over the loss's defaults.

    Raises:
        UsageError: a name that this method does not have, or a field that the chosen loss does not read.
    """
    method, given = recipe.method, recipe.loss
    known = {"kto": {"kto": KTO}, "reward": {"bradley-terry": BRADLEY_TERRY}}.get(method, PREFERENCE_LOSSES)
    name = given.name or next(iter(known))
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"loss.name {name!r} is none of {', '.join(known)} (method {method}){hint}")
    chosen = known[name]
    default = type(given)()
    for field in type(given).model_fields:
        if field != "name" and field not in chosen.fields and getattr(given, field) != getattr(default, field):
            raise UsageError(
                f"loss.{field} has no meaning with loss {name}, which reads "
                f"{', '.join(sorted(chosen.fields))}; remove it"
            )
    numbers = ("beta", "label_smoothing", "gamma_ratio", "odds_weight", "sft_weight", "center")
    return replace(chosen, **{n: value for n in numbers if (value := getattr(given, n)) is not None})


def _no_signal(groups: Sequence[Group], recipe: Recipe) -> Tensor | None:
    return None


def _group_advantages(groups: Sequence[Group], recipe: Recipe) -> Tensor | None:
    import torch

    from preftune.signals import group_advantages

    scores_S = torch.tensor([score for group in groups for score in group.scores])
    group_S = torch.tensor([g for g, group in enumerate(groups) for _ in group.completions], dtype=torch.long)
    return group_advantages(scores_S, group_S, objective(recipe.policy).advantage)


def _pairs(groups: Sequence[Group], recipe: Recipe) -> Pairs:
    """Pairs by the data's scores. A row's own `margin` column, where it has one, takes the place of the distance."""
    import torch

    from preftune.signals import Pairs, preference_pairs

    scores_S = torch.tensor([score for group in groups for score in group.scores])
    group_S = torch.tensor([g for g, group in enumerate(groups) for _ in group.completions], dtype=torch.long)
    found = preference_pairs(scores_S, group_S, recipe.loss.pairs)
    if recipe.loss.margin == "scores":
        return found
    if recipe.loss.margin == "none":
        return Pairs(found.pairs_P2, torch.zeros_like(found.margins_P))
    given = [float(group.prompt.columns.get("margin") or 0.0) for group in groups]
    return Pairs(found.pairs_P2, torch.tensor(given)[group_S[found.pairs_P2[:, 0]]])


def _labels(groups: Sequence[Group], recipe: Recipe) -> Tensor:
    import torch

    good = [score >= recipe.loss.label_threshold for group in groups for score in group.scores]
    return torch.tensor([1.0 if label else -1.0 for label in good])


def _mismatched(groups: Sequence[Group]) -> list[Group]:
    from preftune.contrast import mismatched

    return mismatched(groups)


def _preference(batch: TokenBatch, denominators: Denominators, recipe: Recipe) -> LossOutput:
    from preftune.losses.preference import preference_loss

    p = preference(recipe)
    return preference_loss(
        batch, denominators, name=p.name, beta=p.beta, label_smoothing=p.label_smoothing, gamma_ratio=p.gamma_ratio,
        odds_weight=p.odds_weight, sft_weight=p.sft_weight,
    )  # fmt: skip


def _kto(batch: TokenBatch, denominators: Denominators, recipe: Recipe) -> LossOutput:
    from preftune.losses.kto import kto_loss

    desirable = recipe.loss.desirable_weight
    assert desirable != "auto", "the session replaces auto by the data's own balance"
    return kto_loss(
        batch, denominators, beta=preference(recipe).beta, desirable_weight=desirable,
        undesirable_weight=recipe.loss.undesirable_weight,
    )  # fmt: skip


def _bradley_terry(batch: TokenBatch, denominators: Denominators, recipe: Recipe) -> LossOutput:
    from preftune.losses.reward import bradley_terry

    return bradley_terry(batch, denominators, center=preference(recipe).center)


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
register(
    Method(
        name="dpo",
        summary="direct preference optimisation and its family (loss.name): pairs of a better and a worse completion",
        completions="data",
        scored=False,
        signal=_pairs,
        loss=_preference,
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
        signal=_labels,
        loss=_kto,
        needs_reference=lambda recipe: True,
        compares="labels",
        contrast=_mismatched,
        entropy=False,
    )
)
register(
    Method(
        name="reward",
        summary="a reward model: a scalar head that puts the better completion of each pair above the worse one",
        completions="data",
        scored=False,
        signal=_pairs,
        loss=_bradley_terry,
        compares="pairs",
        reads="scores",
        entropy=False,
    )
)

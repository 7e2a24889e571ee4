"""What methods of one kind choose between: the presets of on-policy objectives, and the losses on preferences.

Each is a table of vetted combinations with the recipe's own numbers over it. No torch here.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Any, Literal

from preftune.config import PolicyConfig, Recipe
from preftune.errors import UsageError


@dataclass(frozen=True, slots=True)
class Objective:
    """The four choices of a clipped policy gradient, and its KL penalty; see METHODS in docs/methods/grpo.md.

    Attributes:
        resample: further batches that may be drawn to replace groups without spread (dynamic sampling).
        overlong: last share of the token budget over which a penalty grows to 1; 0: none.
    """

    advantage: Literal["group-std", "group-mean", "batch-std", "leave-one-out", "gae"] = "group-std"
    ratio: Literal["token", "sequence", "sequence-sum"] = "token"
    clip: Literal["ppo", "cispo", "none"] = "ppo"
    clip_low: float | None = 0.2
    clip_high: float | None = 0.2
    aggregate: Literal["token-mean", "sequence-mean", "constant"] = "token-mean"
    beta: float = 0.0
    kl: Literal["k2", "k3", "reward"] = "k3"
    resample: int = 0
    overlong: float = 0.0

    @property
    def needs_reference(self) -> bool:
        return self.beta > 0.0

    @property
    def needs_values(self) -> bool:
        """GAE reads a value head."""
        return self.advantage == "gae"


PRESETS: dict[str, Objective] = {
    "grpo": Objective(),
    "grpo-original": Objective(aggregate="sequence-mean", beta=0.04),
    "dr-grpo": Objective(advantage="group-mean", aggregate="constant"),
    "dapo": Objective(clip_high=0.28, resample=3, overlong=0.2),
    "gspo": Objective(ratio="sequence", clip_low=3e-4, clip_high=4e-4, aggregate="sequence-mean"),
    "cispo": Objective(clip="cispo", clip_low=None, clip_high=5.0),
    "rloo": Objective(
        advantage="leave-one-out", ratio="sequence-sum", aggregate="sequence-mean", beta=0.05, kl="reward"
    ),
    "ppo": Objective(advantage="gae", beta=0.05, kl="reward"),
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
    names = ("advantage", "ratio", "clip_low", "clip_high", "aggregate", "beta", "kl", "resample", "overlong")
    chosen = replace(chosen, **{n: value for n in names if (value := getattr(policy, n)) is not None})
    if chosen.advantage == "gae" and policy.combine == "normalize":
        raise UsageError("policy.combine normalize compares completions of a group, and gae does not; remove it")
    if policy.kl_target is not None and (chosen.kl != "reward" or not chosen.beta):
        raise UsageError("policy.kl_target adapts the β of kl: reward; set kl: reward and a beta to start from")
    return chosen


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
BRADLEY_TERRY = Preference(
    "bradley-terry", "score", center=0.01,
    fields=frozenset({"margin", "center", "pairs", "p_max", "g_max", "generator"}),
)  # fmt: skip


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

"""The table of methods, as data. A method is four choices; the loop can't tell which one runs.

    completions   where a group's completions come from: the data set, or the policy at each step, or the policy once
                  before training
    scores        whether rewards score them
    signal        scores → one advantage per completion (or none)
    loss          token log-probs + signal → a number to step on

A new method is a row here plus at most a signal and a loss; `register` adds one from outside the package.
Importing this module loads no torch: signals and losses are imported when first called.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from preftune.config import Recipe
from preftune.errors import UsageError
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

if TYPE_CHECKING:
    from torch import Tensor

    from preftune.losses.batch import Denominators, LossOutput, TokenBatch
    from preftune.signals import Pairs, RowWeights, TokenSignal

__all__ = [
    "BRADLEY_TERRY", "KTO", "METHODS", "PREFERENCE_LOSSES", "PRESETS", "Evidence", "Method", "Objective", "Preference",
    "get_method", "method_of", "needs_rewards", "objective", "preference", "register",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a signal may read besides scores; each is None where the method does not ask for it.

    Attributes:
        old: log-probs under the policy that sampled, [group][completion] → tokens.
        reference: the same under the reference.
        values: a value head's estimates, the same shape.
        beta: β of a KL inside the reward, where it adapts during the run.
        reward_weights: weight of each reward, by its name in breakdowns.
        row_weights: weights that depend on earlier batches (GMPO's temperature).
    """

    old: list[list[Tensor]] | None = None
    reference: list[list[Tensor]] | None = None
    values: list[list[Tensor]] | None = None
    beta: float | None = None
    reward_weights: Mapping[str, float] = field(default_factory=dict)
    row_weights: RowWeights | None = None


SignalFunction: TypeAlias = (
    "Callable[[Sequence[Group], Recipe, Evidence], Tensor | TokenSignal | RowWeights | Pairs | None]"
)
"""Groups of the whole optimizer batch, scored → one advantage per completion [S] (all completions, in order), one per
token, one weight per completion, pairs of completions, or None."""

LossFunction: TypeAlias = "Callable[[TokenBatch, Denominators, Recipe], LossOutput]"
"""A micro-batch's share of the loss; shares sum to the batch's loss."""


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


def _no_signal(groups: Sequence[Group], recipe: Recipe, evidence: Evidence) -> Tensor | None:
    return None


def _flat(groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
    """scores_S and group_S of a batch."""
    import torch

    scores_S = torch.tensor([score for group in groups for score in group.scores])
    return scores_S, torch.tensor([g for g, group in enumerate(groups) for _ in group.completions], dtype=torch.long)


def _advantages(groups: Sequence[Group], recipe: Recipe, evidence: Evidence) -> Tensor | TokenSignal:
    """Advantages by the objective: of completions from their group, or of tokens by GAE."""
    import torch

    from preftune.signals import group_advantages, normalized_advantages

    chosen = objective(recipe.policy)
    scores_S, group_S = _flat(groups)
    if chosen.advantage == "gae":
        return _gae(groups, recipe, evidence, scores_S)
    if recipe.policy.combine == "normalize":
        names = [name for name, weight in evidence.reward_weights.items() if weight]
        every = [c.breakdown for group in groups for c in group.completions]
        scores_SR = torch.tensor([[_number(row.get(name)) for name in names] for row in every]).reshape(-1, len(names))
        weights_R = torch.tensor([float(evidence.reward_weights[name]) for name in names])
        return normalized_advantages(scores_SR, weights_R, group_S)
    if chosen.kl == "reward" and chosen.beta > 0.0:
        scores_S = scores_S - _beta(chosen, evidence) * _kl_sums(evidence)
    return group_advantages(scores_S, group_S, chosen.advantage)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _beta(chosen: Objective, evidence: Evidence) -> float:
    return chosen.beta if evidence.beta is None else evidence.beta


def _kl_sums(evidence: Evidence) -> Tensor:
    """Σ log π − log π₀ of each completion, [S]: k1, summed."""
    import torch

    assert evidence.old is not None and evidence.reference is not None
    return torch.stack([
        (mine - theirs).sum()
        for row, reference in zip(evidence.old, evidence.reference, strict=True)
        for mine, theirs in zip(row, reference, strict=True)
    ])  # fmt: skip


def _gae(groups: Sequence[Group], recipe: Recipe, evidence: Evidence, scores_S: Tensor) -> TokenSignal:
    import torch

    from preftune.signals import TokenSignal, gae, token_rewards, whiten

    chosen, settings = objective(recipe.policy), recipe.value
    assert evidence.old is not None and evidence.values is not None
    inside = chosen.kl == "reward" and evidence.reference is not None
    old_T, values_T = (torch.cat([t for row in rows for t in row]) for rows in (evidence.old, evidence.values))
    reference_T = torch.cat([t for row in evidence.reference or () for t in row]) if inside else None
    lengths_S = torch.tensor([c.length for group in groups for c in group.completions], dtype=torch.long)
    rewards_T = token_rewards(scores_S, lengths_S, old_T, reference_T, _beta(chosen, evidence))
    advantages_T, returns_T = gae(rewards_T, values_T, lengths_S, gamma=settings.gamma, lam=settings.lam)
    if settings.whiten:
        masked = recipe.policy.mask_truncated
        kept = [float(not (masked and c.finish == "length")) for group in groups for c in group.completions]
        advantages_T = whiten(advantages_T, torch.tensor(kept).repeat_interleave(lengths_S))
    return TokenSignal(advantages_T, returns_T, values_T)


def _row_weights(groups: Sequence[Group], recipe: Recipe, evidence: Evidence) -> RowWeights | None:
    return evidence.row_weights


def _pairs(groups: Sequence[Group], recipe: Recipe, evidence: Evidence) -> Pairs:
    """Pairs by the data's scores. A row's own `margin` column, where it has one, takes the place of the distance."""
    import torch

    from preftune.signals import Pairs, preference_pairs

    scores_S, group_S = _flat(groups)
    found = preference_pairs(scores_S, group_S, recipe.loss.pairs)
    if recipe.loss.margin == "scores":
        return found
    if recipe.loss.margin == "none":
        return Pairs(found.pairs_P2, torch.zeros_like(found.margins_P))
    given = [float(group.prompt.columns.get("margin") or 0.0) for group in groups]
    return Pairs(found.pairs_P2, torch.tensor(given)[group_S[found.pairs_P2[:, 0]]])


def _collected_pairs(groups: Sequence[Group], recipe: Recipe, evidence: Evidence) -> Pairs:
    """Pairs of answers whose scores differ by more than the margin."""
    from preftune.signals import Pairs

    found = _pairs(groups, recipe, evidence)
    scores_S, _ = _flat(groups)
    chosen, rejected = found.pairs_P2.unbind(1)
    wide = scores_S[chosen] - scores_S[rejected] > recipe.collect.margin
    return Pairs(found.pairs_P2[wide], found.margins_P[wide])


def _with_a_pair(groups: Sequence[Group], recipe: Recipe) -> list[Group]:
    """Groups that have two answers whose scores differ by more than the margin; equal texts make no pair."""
    out: list[Group] = []
    for group in groups:
        different = {c.ids: c for c in reversed(group.completions)}
        kept = tuple(c for c in group.completions if different[c.ids] is c)
        scores = [c.score for c in kept if c.score is not None]
        if scores and max(scores) - min(scores) > recipe.collect.margin:
            out.append(replace(group, completions=kept))
    return out


def _best(groups: Sequence[Group], recipe: Recipe) -> list[Group]:
    """Each group's best answers, the earlier one where scores are equal; each different text once."""
    settings = recipe.collect
    out: list[Group] = []
    for group in groups:
        if settings.spread_only and len(set(group.scores)) < 2:
            continue
        different = {c.ids: c for c in reversed(group.completions)}
        ranked = sorted(different.values(), key=lambda c: (-(c.score or 0.0), group.completions.index(c)))
        if settings.min_score is not None:
            ranked = [c for c in ranked if c.score is not None and c.score >= settings.min_score]
        if ranked:
            out.append(replace(group, completions=tuple(ranked[: settings.keep])))
    return out


def _rated(groups: Sequence[Group], recipe: Recipe) -> list[Group]:
    """Answers that have a score."""
    kept = [replace(g, completions=tuple(c for c in g.completions if c.score is not None)) for g in groups]
    return [group for group in kept if group.completions]


def _labels(groups: Sequence[Group], recipe: Recipe, evidence: Evidence) -> Tensor:
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
    inside = o.kl == "reward"  # β was taken off the reward already
    return clipped_policy_gradient(
        batch, denominators, ratio=o.ratio, clip=o.clip, clip_low=o.clip_low, clip_high=o.clip_high,
        aggregate=o.aggregate, beta=0.0 if inside else o.beta, kl="k3" if o.kl == "reward" else o.kl,
        sampler_cap=recipe.policy.sampler_cap,
    )  # fmt: skip


def _weighted_likelihood(batch: TokenBatch, denominators: Denominators, recipe: Recipe) -> LossOutput:
    from preftune.losses.weighted import weighted_likelihood

    return weighted_likelihood(batch, denominators, beta=recipe.gmpo.beta)


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
        signal=_advantages,
        loss=_policy_gradient,
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
        signal=_advantages,
        loss=_policy_gradient,
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
        signal=_row_weights,
        loss=_weighted_likelihood,
        needs_reference=lambda recipe: recipe.gmpo.beta > 0.0,
    )
)
register(
    Method(
        name="iterative-dpo",
        summary="rounds (repeat) of: the policy answers, rewards score, the best and the worst answer are a DPO pair",
        completions="collected",
        scored=True,
        signal=_collected_pairs,
        loss=_preference,
        needs_reference=lambda recipe: preference(recipe).needs_reference,
        compares="pairs",
        entropy=False,
        keeps=_with_a_pair,
        defaults={"loss": {"pairs": "best-worst"}},
    )
)
register(
    Method(
        name="rft",
        summary="rejection fine-tuning: the policy answers, rewards score, SFT on the best of each prompt's answers",
        completions="collected",
        scored=True,
        signal=_no_signal,
        loss=_nll,
        keeps=_best,
    )
)
register(
    Method(
        name="human",
        summary="direct RLHF: people score the policy's answers (preftune human …), a policy gradient step follows",
        completions="collected",
        scored=False,
        signal=_advantages,
        loss=_policy_gradient,
        needs_reference=lambda recipe: objective(recipe.policy).needs_reference,
        keeps=_rated,
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

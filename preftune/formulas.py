"""What the table of methods points at: which signal and which loss a recipe asks for, with its numbers filled in.

The formulas themselves are in `preftune.signals` and `preftune.losses`; these wrappers read the recipe for them.
Importing this module loads no torch: formulas are imported when first called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

from preftune.config import Recipe
from preftune.objectives import Objective, objective, preference
from preftune.records import Group

if TYPE_CHECKING:
    from torch import Tensor

    from preftune.losses.batch import Denominators, LossOutput, TokenBatch
    from preftune.signals import Pairs, RowWeights, TokenSignal


Nested: TypeAlias = "list[list[Tensor]]"
"""[group][completion] → one value per trained token."""


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

    old: Nested | None = None
    reference: Nested | None = None
    values: Nested | None = None
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


def no_signal(groups: Sequence[Group], recipe: Recipe, evidence: Evidence) -> Tensor | None:
    return None


def _flat(groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
    """scores_S and group_S of a batch."""
    import torch

    scores_S = torch.tensor([score for group in groups for score in group.scores])
    return scores_S, torch.tensor([g for g, group in enumerate(groups) for _ in group.completions], dtype=torch.long)


def advantages(groups: Sequence[Group], recipe: Recipe, evidence: Evidence) -> Tensor | TokenSignal:
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
        assert evidence.old is not None and evidence.reference is not None
        scores_S = scores_S - _beta(chosen, evidence) * kl_of_completions(groups, evidence.old, evidence.reference)
    return group_advantages(scores_S, group_S, chosen.advantage)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _beta(chosen: Objective, evidence: Evidence) -> float:
    return chosen.beta if evidence.beta is None else evidence.beta


def kl_of_completions(groups: Sequence[Group], old: Nested, reference: Nested) -> Tensor:
    """Summed k1 of each completion, [S], from log-probs as [group][completion] → tokens."""
    import torch

    from preftune.signals import sequence_kl

    old_T, reference_T = (torch.cat([t for row in rows for t in row]) for rows in (old, reference))
    lengths_S = torch.tensor([c.length for group in groups for c in group.completions], dtype=torch.long)
    return sequence_kl(old_T, reference_T, lengths_S)


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


def row_weights(groups: Sequence[Group], recipe: Recipe, evidence: Evidence) -> RowWeights | None:
    return evidence.row_weights


def pairs(groups: Sequence[Group], recipe: Recipe, evidence: Evidence) -> Pairs:
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


def collected_pairs(groups: Sequence[Group], recipe: Recipe, evidence: Evidence) -> Pairs:
    """Pairs of answers whose scores differ by more than the margin."""
    from preftune.signals import Pairs

    found = pairs(groups, recipe, evidence)
    scores_S, _ = _flat(groups)
    chosen, rejected = found.pairs_P2.unbind(1)
    wide = scores_S[chosen] - scores_S[rejected] > recipe.collect.margin
    return Pairs(found.pairs_P2[wide], found.margins_P[wide])


def with_a_pair(groups: Sequence[Group], recipe: Recipe) -> list[Group]:
    """Groups that have two answers whose scores differ by more than the margin; equal texts make no pair."""
    import torch

    out: list[Group] = []
    for group in groups:
        different = {c.ids: c for c in reversed(group.completions)}
        kept = tuple(c for c in group.completions if different[c.ids] is c)
        scores_S = torch.tensor([c.score for c in kept if c.score is not None])  # in fp32, as the pairs are made later
        if len(scores_S) and bool(scores_S.max() - scores_S.min() > recipe.collect.margin):
            out.append(replace(group, completions=kept))
    return out


def best(groups: Sequence[Group], recipe: Recipe) -> list[Group]:
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


def rated(groups: Sequence[Group], recipe: Recipe) -> list[Group]:
    """Answers that have a score."""
    kept = [replace(g, completions=tuple(c for c in g.completions if c.score is not None)) for g in groups]
    return [group for group in kept if group.completions]


def labels(groups: Sequence[Group], recipe: Recipe, evidence: Evidence) -> Tensor:
    import torch

    good = [score >= recipe.loss.label_threshold for group in groups for score in group.scores]
    return torch.tensor([1.0 if label else -1.0 for label in good])


def mismatched_groups(groups: Sequence[Group]) -> list[Group]:
    from preftune.contrast import mismatched

    return mismatched(groups)


def preference_loss_of(batch: TokenBatch, denominators: Denominators, recipe: Recipe) -> LossOutput:
    from preftune.losses.preference import preference_loss

    p = preference(recipe)
    return preference_loss(
        batch, denominators, name=p.name, beta=p.beta, label_smoothing=p.label_smoothing, gamma_ratio=p.gamma_ratio,
        odds_weight=p.odds_weight, sft_weight=p.sft_weight,
    )  # fmt: skip


def kto_of(batch: TokenBatch, denominators: Denominators, recipe: Recipe) -> LossOutput:
    from preftune.losses.kto import kto_loss

    desirable = recipe.loss.desirable_weight
    assert desirable != "auto", "the session replaces auto by the data's own balance"
    return kto_loss(
        batch, denominators, beta=preference(recipe).beta, desirable_weight=desirable,
        undesirable_weight=recipe.loss.undesirable_weight,
    )  # fmt: skip


def bradley_terry_of(batch: TokenBatch, denominators: Denominators, recipe: Recipe) -> LossOutput:
    from preftune.losses.reward import bradley_terry

    return bradley_terry(batch, denominators, center=preference(recipe).center)


def nll_of(batch: TokenBatch, denominators: Denominators, recipe: Recipe) -> LossOutput:
    from preftune.losses.supervised import nll

    return nll(batch, denominators)


def policy_gradient(batch: TokenBatch, denominators: Denominators, recipe: Recipe) -> LossOutput:
    from preftune.losses.policy import clipped_policy_gradient

    o = objective(recipe.policy)
    inside = o.kl == "reward"  # β was taken off the reward already
    return clipped_policy_gradient(
        batch, denominators, ratio=o.ratio, clip=o.clip, clip_low=o.clip_low, clip_high=o.clip_high,
        aggregate=o.aggregate, beta=0.0 if inside else o.beta, kl="k3" if o.kl == "reward" else o.kl,
        sampler_cap=recipe.policy.sampler_cap,
    )  # fmt: skip


def weighted_likelihood_of(batch: TokenBatch, denominators: Denominators, recipe: Recipe) -> LossOutput:
    from preftune.losses.weighted import weighted_likelihood

    return weighted_likelihood(batch, denominators, beta=recipe.gmpo.beta)

"""What happens to scores between the rewards and the signal: penalties, notes, and batches without dead groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch

from preftune.config import Recipe
from preftune.objectives import objective
from preftune.records import Completion, Group
from preftune.signals import overlong_penalty


def less_penalties(groups: Sequence[Group], recipe: Recipe) -> tuple[list[Group], dict[str, float]]:
    """Scores less what the objective takes off them: for a missing EOS, and for length near the limit.

    Args:
        groups: every completion has a score.

    Returns:
        The groups, and `reward/penalty`, the mean of what was taken off, where anything may be.
    """
    policy, chosen = recipe.policy, objective(recipe.policy)
    completions = [c for group in groups for c in group.completions]
    cut = [c.finish == "length" for c in completions]
    penalties = [policy.missing_eos_penalty * missing for missing in cut]
    if chosen.overlong > 0.0:
        lengths_S = torch.tensor([len(c.ids) for c in completions])
        longer = overlong_penalty(lengths_S, torch.tensor(cut), recipe.sampling.max_tokens, chosen.overlong)
        penalties = [a + b for a, b in zip(penalties, longer.tolist(), strict=True)]
    if policy.missing_eos_score is None and not policy.missing_eos_penalty and not chosen.overlong:
        return list(groups), {}

    def penalised(completion: Completion, penalty: float) -> Completion:
        assert completion.score is not None
        score = completion.score
        if policy.missing_eos_score is not None and completion.finish == "length":
            score = policy.missing_eos_score
        return replace(completion, score=score - penalty)

    parts = iter(zip(completions, penalties, strict=True))
    out = [replace(g, completions=tuple(penalised(*next(parts)) for _ in g.completions)) for g in groups]
    taken = [
        before.score - after.score
        for before, after in zip(completions, (c for g in out for c in g.completions), strict=True)
        if before.score is not None and after.score is not None
    ]
    return out, {"reward/penalty": fmean(taken)}


def with_notes(groups: Sequence[Group], extras: Sequence[Mapping[str, Any]]) -> list[Group]:
    """Completions with what rewards gave to `log_extra`; `extras` has one mapping per completion, in order."""
    if not any(extras):
        return list(groups)
    parts = iter(extras)

    def noted(completion: Completion) -> Completion:
        extra = next(parts)
        return replace(completion, notes={**completion.notes, **extra}) if extra else completion

    return [replace(group, completions=tuple(noted(c) for c in group.completions)) for group in groups]


def is_dead(group: Group, weights: Mapping[str, float]) -> bool:
    """All completions got the same from the rewards, in the precision of advantages: nothing to compare. What the
    objective takes off for length or a missing end does not count: it would keep groups alive by their length alone.

    Args:
        weights: of the rewards, by their names in breakdowns.
    """
    raw = [sum(w * (c.breakdown.get(name) or 0.0) for name, w in weights.items()) for c in group.completions]
    return len(set(torch.tensor(raw).tolist())) < 2

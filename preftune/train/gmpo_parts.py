"""The pure parts of GMPO's side of the loop: weights, the meta-prompt's text, lessons, tallies, checks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from preftune.config import GmpoConfig, Recipe
from preftune.errors import PreftuneError, UsageError
from preftune.records import Content, Group, Message
from preftune.rewards.critic import Judged
from preftune.rewards.critic_text import fields_of, is_layout, lesson_of
from preftune.signals.weights import (
    RowWeights,
    baseline_advantages,
    dynamic_temperature,
    exponential_weights,
    pooled_variance,
)

MAX_FIELDS = 20
"""A column with more different values than this is no field to report by."""


def weigh(
    groups: Sequence[Group], settings: GmpoConfig, buffer: Sequence[Sequence[float]]
) -> tuple[RowWeights, dict[str, float]]:
    """w = exp(min(A / τ, ln w_max)) of every answer, in order; with notes and metrics (docs/methods/gmpo.md).

    With `baseline: batch` answers are compared over the whole batch, so it is the batch that is left out when its
    rewards are equal, and a prompt with one answer counts. With `baseline: none` nothing is compared, and nothing left
    out.

    Args:
        buffer: rewards of the last groups, those of this batch among them; a dynamic τ follows their variance.
    """
    rewards_S = torch.tensor([score for group in groups for score in group.scores], dtype=torch.float64)
    group_S = torch.tensor([g for g, group in enumerate(groups) for _ in group.completions], dtype=torch.long)
    advantages_S, baseline_S = baseline_advantages(rewards_S, group_S, settings.baseline)
    temperature = settings.temperature
    if temperature == "dynamic":
        temperature = dynamic_temperature(
            pooled_variance([list(row) for row in buffer], settings.baseline), scale=settings.scale,
            low=settings.min_temperature, high=settings.max_temperature,
        )  # fmt: skip
    together_S = group_S if settings.baseline == "group" else torch.zeros_like(group_S)
    weights_S = exponential_weights(
        advantages_S, rewards_S, together_S, temperature=temperature, max_weight=settings.max_weight,
        min_spread=0.0 if settings.baseline == "none" else settings.min_spread,
    )  # fmt: skip
    rows = zip(rewards_S.tolist(), baseline_S.tolist(), advantages_S.tolist(), weights_S.tolist(), strict=True)
    notes = tuple(
        {"reward": r, "baseline": b, "advantage": a, "temperature": temperature, "weight": w} for r, b, a, w in rows
    )
    counted_S = weights_S[weights_S > 0.0]
    alive = len(torch.unique(group_S[weights_S > 0.0]))
    metrics = {"gmpo/temperature": temperature, "gmpo/skipped_groups": 1.0 - alive / max(len(groups), 1)}
    if len(counted_S):
        capped_S = advantages_S[weights_S > 0.0] / temperature >= math.log(settings.max_weight)
        metrics |= {
            "gmpo/weight_max": float(counted_S.max()),
            "gmpo/weight_mean": float(counted_S.mean()),
            "gmpo/capped": float(capped_S.double().mean()),
            "gmpo/effective": float(counted_S.sum() ** 2 / (counted_S**2).sum() / len(weights_S)),
        }
    return RowWeights(weights_S.float(), notes), metrics


def meta_text(meta: str, lessons: Sequence[str]) -> str:
    """What stands before the question when sampling; empty where there is nothing."""
    listed = "\n".join(f"- {lesson}" for lesson in lessons)
    told = f"Lessons from earlier answers:\n{listed}" if lessons else ""
    return "\n\n".join(part for part in (meta.strip(), told) if part)


def behind(before: str, content: Content) -> Content:
    """A prompt with a text before it: in a conversation as (or at the head of) the system message."""
    if isinstance(content, str):
        return f"{before}\n\n{content}"
    if content and content[0].role == "system":
        return (Message("system", f"{before}\n\n{content[0].content}"), *content[1:])
    return (Message("system", before), *content)


def lessons_in(judged: Judged) -> list[str]:
    """From each group the lesson of the answer that is worst by its score, where the critic calls it wrong and no truth
    says otherwise."""
    out: list[str] = []
    place = 0
    for group in judged.groups:
        mine = judged.judgements[place : place + len(group.completions)]
        place += len(mine)
        wrong = [j for j in mine if j.expected < 5.0 and (j.truth is None or j.truth < 0.5)]
        if wrong and (lesson := lesson_of(min(wrong, key=lambda j: j.expected).explanation)) is not None:
            out.append(lesson)
    return out


def tally(groups: Sequence[Group], column: str, fields: Sequence[str]) -> dict[str, list[float]]:
    """Rewards and truths of a batch, of all answers (`reward`, `truth`) and by field (`field/NAME/reward`, …)."""
    out: dict[str, list[float]] = {}
    for group in groups:
        field = str(group.prompt.columns.get(column))
        heads = ("", f"field/{field}/") if field in fields else ("",)
        for completion in group.completions:
            for name, value in (("reward", completion.score), ("truth", completion.breakdown.get("truth"))):
                for head in heads if value is not None else ():
                    out.setdefault(f"{head}{name}", []).append(float(value or 0.0))
    return out


def added(tallies: Mapping[str, Sequence[float]], values: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """Sums and counts with these values added."""
    out = {name: list(pair) for name, pair in tallies.items()}
    for name, some in values.items():
        total, count = out.get(name, [0.0, 0.0])
        out[name] = [total + math.fsum(some), count + len(some)]
    return out


def fields_in(train: Sequence[Group], column: str) -> tuple[str, ...]:
    found = {str(g.prompt.columns[column]) for g in train if g.prompt.columns.get(column) is not None}
    return tuple(sorted(found)) if len(found) <= MAX_FIELDS else ()


def already_scored(groups: Sequence[Group]) -> list[Group]:
    for group in groups:
        for place, completion in enumerate(group.completions):
            if completion.score is None:
                raise PreftuneError(
                    f"{group.prompt.where or 'a prompt'}: answer {place + 1} has no score, and gmpo.critic.kind is "
                    "none; map a score (data.responses, or a label column), give rewards, or use a critic"
                )
    return list(groups)


def check_recipe(recipe: Recipe, train: Sequence[Group]) -> None:
    """Raises UsageError for fields of `gmpo` that contradict each other or the data."""
    settings = recipe.gmpo
    offline = settings.answers == "data"
    if settings.min_temperature > settings.max_temperature:
        raise UsageError(
            f"gmpo.min_temperature {settings.min_temperature:g} is above gmpo.max_temperature "
            f"{settings.max_temperature:g}"
        )
    for name in ("meta_prompt", "lessons"):
        if offline and getattr(settings, name):
            raise UsageError(
                f"gmpo.{name} is put before the question when sampling, but gmpo.answers is data, so nothing is "
                f"sampled; remove gmpo.{name}"
            )
    if settings.lessons and settings.critic.kind == "none":
        raise UsageError("gmpo.lessons come from a critic's explanations, but gmpo.critic.kind is none; remove one")
    for name in ("truth", "reference", "prompt", "joint"):
        if settings.critic.kind == "none" and getattr(settings.critic, name):
            raise UsageError(f"gmpo.critic.{name} has no meaning with gmpo.critic.kind: none; remove it")
    sizes = [len(g.completions) for g in train] if offline else [recipe.sampling.group_size]
    if settings.baseline == "group" and max(sizes, default=0) < 2:
        where = "the data has one answer to each prompt" if offline else "sampling.group_size is 1"
        raise UsageError(
            f"gmpo.baseline is group, but {where}: an answer alone has no advantage over others, so every prompt would "
            "be left out; set gmpo.baseline: batch, or have two answers or more"
        )


def check_reference(column: str | None, instruction: str | None, train: Sequence[Group]) -> None:
    fields = set() if instruction is None else fields_of(instruction)
    if instruction is not None and fields and not is_layout(instruction):
        raise UsageError(
            f"gmpo.critic.prompt has {', '.join(sorted(f'{{{f}}}' for f in fields))}; a prompt with fields needs both "
            "{question} and {answer}"
        )
    if fields and ("reference" in fields) != (column is not None):
        raise UsageError(
            "gmpo.critic.prompt has a field {reference}, so gmpo.critic.reference must name a column"
            if column is None
            else f"gmpo.critic.reference is {column!r}, but gmpo.critic.prompt has no field {{reference}} to show it at"
        )
    if column is not None and not any(group.prompt.columns.get(column) is not None for group in train):
        names = sorted({name for group in train for name in group.prompt.columns})
        raise UsageError(
            f"gmpo.critic.reference: no training row has a column {column!r}; the rows have "
            f"{', '.join(names) or 'no columns besides the prompt'}. Map it under data.columns"
        )

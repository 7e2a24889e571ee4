"""Measuring on rows whose completions have an order or labels: which one does the model prefer?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from preftune.errors import PreftuneError
from preftune.methods import Evidence, preference
from preftune.records import Group
from preftune.signals import Pairs, preference_pairs

if TYPE_CHECKING:
    from preftune.train.session import Session

Rows = dict[str, list[float | None]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model makes of one completion of the data. One line of measurements/answers-SPLIT-STEP.jsonl.

    Attributes:
        group, completion: its place in the split.
        length: tokens.
        score: the data's own: preference, rank or label.
        reward: the policy's implicit reward, or the reward head's score.
        logprob, reference: log π and log π₀ of the whole completion, where there are any.
    """

    group: int
    completion: int
    where: str
    source: str
    length: int
    score: float | None
    reward: float | None
    logprob: float | None
    reference: float | None

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def measure_preferences(session: Session, groups: Sequence[Group], split: str, step: int) -> tuple[Rows, list[Answer]]:
    """Rewards, log-probs and, per group, how its pairs come out; metrics are defined in docs/metrics.md."""
    scores = session.method.reads == "scores"
    answers = _by_score(session, groups) if scores else _by_logprob(session, groups)
    for answer in answers:
        if answer.reward is None or not math.isfinite(answer.reward):
            raise PreftuneError(
                f"{answer.where}: the model's {'score' if scores else 'log-prob'} of this {split} row's completion is "
                f"not finite (step {step}). The weights are broken: lower train.learning_rate, or use "
                "train.precision: fp32"
            )
    names = ["rewards/accuracy", "rewards/margin", "rewards/chosen", "rewards/rejected"]
    if not scores:
        names += ["logprobs/accuracy", "logprobs/accuracy_per_token", "logprobs/chosen", "logprobs/rejected", "nll"]
    rows: Rows = {name: [] for name in names}
    by_group: list[list[Answer]] = [[] for _ in groups]
    for answer in answers:
        by_group[answer.group].append(answer)
    for group, own in zip(groups, by_group, strict=True):
        values = _of_group(session, group, own)
        for name in names:
            rows[name].append(values.get(name))
    return rows, answers


def _by_score(session: Session, groups: Sequence[Group]) -> list[Answer]:
    rated = session.engine.rate(groups, session.budget)
    return [
        Answer(g, c, group.prompt.where, one.source, one.length, one.score, rated[g][c], None, None)
        for g, group in enumerate(groups)
        for c, one in enumerate(group.completions)
    ]


def _by_logprob(session: Session, groups: Sequence[Group]) -> list[Answer]:
    from preftune.losses.preference import implicit_rewards

    loss = preference(session.recipe)
    now = session.engine.score(groups, session.budget)
    # Before the first update the policy is its own reference: another packing's rounding must not decide ties.
    base = now if session.at_reference and loss.needs_reference else session.reference_of(groups)
    out: list[Answer] = []
    for g, group in enumerate(groups):
        logprob_S = torch.stack([tokens.sum() for tokens in now[g]])
        reference_S = None if base is None else torch.stack([tokens.sum() for tokens in base[g]])
        lengths_S = torch.tensor([float(one.length) for one in group.completions])
        rewards_S = implicit_rewards(logprob_S, reference_S, lengths_S, implicit=loss.implicit, beta=loss.beta)
        for c, one in enumerate(group.completions):
            reference = None if reference_S is None else float(reference_S[c])
            out.append(
                Answer(g, c, group.prompt.where, one.source, one.length, one.score, float(rewards_S[c]),
                       float(logprob_S[c]), reference)
            )  # fmt: skip
    return out


def _of_group(session: Session, group: Group, own: Sequence[Answer]) -> dict[str, float]:
    """One group's metrics: means over its pairs; for labels every desirable completion against every other one."""
    signal = session.method.signal([group], session.recipe, Evidence())
    if not isinstance(signal, Pairs):
        assert isinstance(signal, torch.Tensor)
        signal = preference_pairs(signal, torch.zeros(len(signal), dtype=torch.long))
    pairs = signal.pairs_P2.tolist()
    rewards = [answer.reward or 0.0 for answer in own]
    out: dict[str, float] = {}
    if pairs:
        won, lost = [c for c, _ in pairs], [r for _, r in pairs]
    else:  # labels of one kind alone
        labels = session.method.signal([group], session.recipe, Evidence())
        assert isinstance(labels, torch.Tensor)
        won = [i for i, label in enumerate(labels.tolist()) if label > 0]
        lost = [i for i, label in enumerate(labels.tolist()) if label < 0]
    if pairs:
        out["rewards/accuracy"] = _mean([_above(rewards[c], rewards[r]) for c, r in pairs])
        out["rewards/margin"] = _mean([rewards[c] - rewards[r] for c, r in pairs])
    for side, places in (("chosen", won), ("rejected", lost)):
        if places:
            out[f"rewards/{side}"] = _mean([rewards[i] for i in places])
    logprobs = [answer.logprob for answer in own]
    known = [value for value in logprobs if value is not None]
    if len(known) < len(logprobs):
        return out
    per_token = [value / max(answer.length, 1) for value, answer in zip(known, own, strict=True)]
    if pairs:
        out["logprobs/accuracy"] = _mean([_above(known[c], known[r]) for c, r in pairs])
        out["logprobs/accuracy_per_token"] = _mean([_above(per_token[c], per_token[r]) for c, r in pairs])
    for side, places in (("chosen", won), ("rejected", lost)):
        if places:
            out[f"logprobs/{side}"] = _mean([known[i] for i in places])
    if won:
        best = max(won, key=lambda i: own[i].score or 0.0)
        out["nll"] = -per_token[best]
    return out


def _above(a: float, b: float) -> float:
    """1 when a is higher, ½ for a tie."""
    return 1.0 if a > b else 0.5 if a == b else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

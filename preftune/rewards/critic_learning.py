"""How GMPO's critic learns, where the truth is known: on what it wrote, and before that from templated critiques.

For an answer of truth t (1 right, 0 wrong, or graded) with the eleven log-likelihoods L_k of `k</score>`:

    loss = mean over answers of −Σ_k q_k log softmax(L)_k  +  mean over tokens of −log π_critic(explanation token)

q is all on 10·t, split between its two neighbours where that is no whole number. The second term is over explanations
whose score was on the truth's side (rejection sampling): what led the critic right becomes likelier.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from preftune.engine.pack import Pack
from preftune.errors import PreftuneError
from preftune.models.loading import Policy
from preftune.records import Completion, Group, Prompt
from preftune.rewards.critic import Critic, JointJudgement, Judgement, prefixes_of
from preftune.rewards.critic_text import TOP, as_reference, templated_critique, templated_joint
from preftune.sampling.base import Progress

HELD_OUT = 64
"""Answers at most that the cold start keeps apart, to say how well the critic tells answers that it did not see."""
JOINT_EVERY = 4
"""With gmpo.critic.joint every fourth critique of the cold start is about all answers to a prompt."""


def score_target(truth: float) -> list[float]:
    """The distribution over scores 0 … 10 that a truth of 0 to 1 asks for; its mean is 10 · truth.

    >>> score_target(0.25)[1:5]
    [0.0, 0.5, 0.5, 0.0]
    """
    wanted = truth * TOP
    low = min(math.floor(wanted), TOP - 1)
    out = [0.0] * (TOP + 1)
    out[low], out[low + 1] = low + 1 - wanted, wanted - low
    return out


def score_cross_entropy(loglikelihoods_A11: Tensor, targets_A11: Tensor) -> Tensor:
    """−Σ_k q_k log softmax(L)_k of each answer, (A,)."""
    return -(targets_A11 * loglikelihoods_A11.log_softmax(-1)).sum(-1)


def learn(
    critic: Critic, judgements: Sequence[Judgement], joint: Sequence[JointJudgement] = ()
) -> dict[str, float]:  # fmt: skip
    """Add the gradient of the critic's loss to its weights; no other weight gets any.

    Denominators are those of all the judgements given, so how they are packed changes nothing.

    Args:
        judgements: of one batch; those without a truth are left out.
        joint: critiques of all answers at once; those that are right about every one join the second term.

    Returns:
        `critic/loss` (nats; the sum of both terms), `critic/nll` (its second term, nats per token), `critic/kept` (the
        share of explanations that the second term is over). Empty where no truth is known.
    """
    known = [j for j in judgements if j.truth is not None]
    if not known:
        return {}
    kept = [j for j in known if j.agreed]
    written = [(j.prompt, j.ids) for j in kept] + [(j.prompt, j.ids) for j in joint if j.agreed]
    with _training(critic.engine.policy), critic.role.acting(train=True):
        scored = _backward_scores(critic, known)
        nll = backward_texts(critic, written)
    metrics = {"critic/loss": scored + (nll or 0.0), "critic/kept": len(kept) / len(known)}
    return metrics if nll is None else metrics | {"critic/nll": nll}


def _backward_scores(critic: Critic, judgements: Sequence[Judgement]) -> float:
    groups = critic.branches(list(prefixes_of(judgements)))
    total = 0.0
    for packed in critic.engine.pack(groups, critic.whole_budget(groups)):
        places = [g for g, _ in packed.members[:: TOP + 1]]
        targets = [score_target(truth) for g in places if (truth := judgements[g].truth) is not None]
        targets_A11 = torch.tensor(targets, device=packed.input_ids_N.device)
        loss = score_cross_entropy(_branch_sums(critic, packed), targets_A11).sum() / len(judgements)
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total


def _branch_sums(critic: Critic, packed: Pack) -> Tensor:
    """log π of each of the eleven strings, (A, 11), with the graph; a pack holds groups whole and in order."""
    logprobs_T = critic.engine.forward(packed).logprobs_T
    sums_S = logprobs_T.new_zeros(packed.num_sequences).index_add(0, packed.sequence_T, logprobs_T)
    return sums_S.view(-1, TOP + 1)


def backward_texts(critic: Critic, texts: Sequence[tuple[Prompt, tuple[int, ...]]]) -> float | None:
    """Gradient of the mean negative log-likelihood per token, in nats; its value, None without texts. The role must be
    acting in training."""
    tokens = sum(len(ids) for _, ids in texts)
    if not tokens:
        return None
    groups = [Group(prompt, (Completion(ids, (True,) * len(ids)),)) for prompt, ids in texts]
    total = 0.0
    for packed in critic.engine.pack(groups, critic.whole_budget(groups)):
        loss = -critic.engine.forward(packed).logprobs_T.sum() / tokens
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total


@contextmanager
def _training(policy: Policy) -> Iterator[None]:
    """Training mode as the policy's updates have it; afterwards each module is as it was."""
    before = [(module, module.training) for module in policy.model.modules()]
    policy.train_mode(True)
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode


# --- the cold start ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Answer:
    group: int
    text: str
    truth: float


def cold_start(
    critic: Critic, groups: Sequence[Group], *, learning_rate: float, max_grad_norm: float = 1.0,
    progress: Progress | None = None,
) -> tuple[list[str], dict[str, float]]:  # fmt: skip
    """SFT on templated critiques of these answers, half of them right and half wrong where there are both.

    Runs `gmpo.critic.cold_start` steps of AdamW, whose state is not kept, with a rate that rises over the first tenth.
    Depends on weights, groups and seed alone. Some answers are kept apart and judged in the end.

    Returns:
        Sentences for the run's notes, and `cold/loss` (nats per token in the last step), `cold/agreement`,
        `cold/parsed` on the answers kept apart.

    Raises:
        PreftuneError: the truth reward knows none of the answers.
    """
    steps, batch = critic.config.cold_start, critic.config.cold_start_batch
    if critic.truth is None or not steps:
        return [], {}
    truths = critic.truths(groups, 0)
    rng = Random(f"critic/{critic.seed}")
    answers = [
        _Answer(g, c.text, truth)
        for g, (group, row) in enumerate(zip(groups, truths, strict=True))
        for c, truth in zip(group.completions, row, strict=True)
        if truth is not None
    ]
    if not answers:
        raise PreftuneError(
            f"gmpo.critic.truth {critic.truth.names[0]!r} has no value for any of the cold start's answers: do the "
            "training rows have the column that it reads?"
        )
    # By prompt, so that the answers kept apart are new in their question as well.
    apart = set(rng.sample(range(len(groups)), len(groups) // 5))
    pool = [a for a in answers if a.group not in apart] or answers
    sides = [[a for a in pool if (a.truth >= 0.5) == right] for right in (True, False)]
    optimizer = torch.optim.AdamW([p for _, p in critic.parameters()], lr=learning_rate, weight_decay=0.0)
    first = last = 0.0
    with _training(critic.engine.policy), critic.role.acting(train=True):
        for step in range(1, steps + 1):
            texts = _templated(critic, groups, truths, [s for s in sides if s], batch, rng)
            for settings in optimizer.param_groups:
                settings["lr"] = learning_rate * min(1.0, step / max(0.1 * steps, 1.0))
            last = backward_texts(critic, texts) or 0.0
            first = last if step == 1 else first
            norm = torch.nn.utils.clip_grad_norm_([p for _, p in critic.parameters()], max_grad_norm)
            if not math.isfinite(float(norm)):
                raise PreftuneError(
                    f"cold start of the critic, step {step}: the gradient norm is {float(norm)}; lower "
                    "gmpo.critic.learning_rate"
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if progress is not None:
                progress(step, steps)
    said = [
        f"critic: cold start of {steps} steps on {len(pool)} answers, {len(sides[0])} right and {len(sides[1])} wrong; "
        f"loss {first:.2f} → {last:.2f} nats per token"
    ]
    if not all(sides):
        said.append(
            f"critic: all answers of the cold start are {'right' if sides[0] else 'wrong'}, so it learnt the form of a "
            "critique there and nothing about telling answers apart"
        )
    metrics = {"cold/loss": last}
    kept = _held_out(groups, apart, truths)
    if kept:
        judged = critic.judge(kept, step=0)
        parsed, agreement = judged.metrics["critic/parsed"], judged.metrics.get("critic/agreement")
        metrics["cold/parsed"] = parsed
        total = sum(len(group.completions) for group in kept)
        told = f"critic: of {total} answers kept apart it wrote a readable critique for {parsed:.0%}"
        if agreement is not None:
            metrics["cold/agreement"] = agreement
            told += (
                f"; its scores put a right answer above a wrong one in {agreement:.0%} of the pairs (50%: by chance)"
            )
        said.append(told)
    return said, metrics


def _templated(
    critic: Critic, groups: Sequence[Group], truths: Sequence[Sequence[float | None]],
    sides: Sequence[Sequence[_Answer]], batch: int, rng: Random,
) -> list[tuple[Prompt, tuple[int, ...]]]:  # fmt: skip
    """The texts of one step: critic's prompt and what it should write, the sides in turn."""
    out = []
    for n in range(batch):
        answer = rng.choice(sides[n % len(sides)])
        group, row = groups[answer.group], truths[answer.group]
        known = [truth for truth in row if truth is not None]
        if critic.config.joint and n % JOINT_EVERY == JOINT_EVERY - 1 and len(known) == len(row):
            prompt, text = critic.joint_prompt(group), templated_joint(known)
        else:
            reference = as_reference(group.prompt.columns, critic.config.reference)
            prompt = critic.prompt(group.prompt, answer.text)
            text = templated_critique(answer.text, reference, truth=answer.truth, rng=rng)
        ids = (*critic.contract.encode(text), critic.contract.eos_id)
        if critic.fits(prompt, len(ids)):
            out.append((prompt, ids))
    return out


def _held_out(
    groups: Sequence[Group], apart: set[int], truths: Sequence[Sequence[float | None]]
) -> list[Group]:  # fmt: skip
    """The groups kept apart, up to HELD_OUT answers, those whose answers differ in truth first."""
    order = sorted(apart, key=lambda g: (len({t for t in truths[g] if t is not None}) < 2, g))
    out: list[Group] = []
    for g in order:
        if sum(len(group.completions) for group in out) + len(groups[g].completions) <= HELD_OUT:
            out.append(groups[g])
    return out

"""The certificate: each run measures its own numbers on its own data, in its first seconds, and records them.

    shared prompt      log-probs of the shared-prompt forward against plain padded ones
    sampler            log-probs kept by the sampler against the trainer's
    accumulation       gradient of one large batch against the same groups one by one
    adapter            log-probs with the adapter on against the merged weights, at the end

In fp32 each has a fixed tolerance. In bf16 the yardstick is plain bf16 code: our error against fp32 may be at
most 1.5 times its error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from preftune.config import Recipe
from preftune.errors import CertificateError
from preftune.methods import preference
from preftune.models.classifier import reward_head_name
from preftune.models.reward import RewardModel
from preftune.records import Completion, Group
from preftune.train.batch import Batch, backward
from preftune.train.folder import write_json

if TYPE_CHECKING:
    from preftune.train.session import Session

LOGPROB_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-5
BF16_FACTOR = 1.5
BF16_GRADIENT_TOLERANCE = 5e-2
BF16_SAMPLER_TOLERANCE = 0.5
ADAPTER = "adapter vs merged"
MAX_TOKENS = 2048
"""Tokens of the sample that is checked: a few seconds on any machine."""
SHORTEST = 64
"""Completions are not cut to fewer tokens than that, however long their prompt."""


@dataclass(frozen=True, slots=True)
class Check:
    """One measured number and its tolerance."""

    name: str
    value: float
    tolerance: float
    detail: str

    @property
    def passed(self) -> bool:
        return self.value <= self.tolerance


def sample_of(groups: Sequence[Group]) -> list[Group]:
    """A bounded part of a batch: whole groups of at most four completions, up to MAX_TOKENS, at least one group.

    Of a first group that is larger by itself the completions are cut, each to the same length at most: the plain
    forward of long ones would take hours. The prompt stays, since the sampler's log-probs depend on it.
    """
    out: list[Group] = []
    tokens = 0
    for group in groups:
        small = replace(group, completions=tuple(c for c in group.completions if c.ids)[:4])
        size = len(small.prompt.ids) + sum(len(c.ids) for c in small.completions)
        if small.completions and (not out or tokens + size <= MAX_TOKENS):
            if size > MAX_TOKENS:
                room = max(MAX_TOKENS - len(small.prompt.ids), 0) // len(small.completions)
                small = replace(small, completions=tuple(_cut(c, max(room, SHORTEST)) for c in small.completions))
            out.append(small)
            tokens += size
    return out


def _cut(completion: Completion, length: int) -> Completion:
    """A completion's first tokens, as many as hold one that the policy wrote."""
    length = max(length, completion.mask.index(True) + 1 if True in completion.mask else 0)
    logprobs = completion.logprobs
    return replace(
        completion,
        ids=completion.ids[:length],
        mask=completion.mask[:length],
        logprobs=None if logprobs is None else logprobs[:length],
    )


def _sample(session: Session, groups: Sequence[Group]) -> list[Group]:
    """`sample_of`, with what the method's signal needs: a pair, or a second prompt to contrast with."""
    some = sample_of(groups)
    if session.method.compares == "pairs":
        return [g for g in some if len(set(g.scores)) > 1] or list(groups[:1])
    if session.method.contrast is not None and len({g.prompt.ids for g in some}) < 2:
        other = next((g for g in groups if some and g.prompt.ids != some[0].prompt.ids), None)
        return [*some[:1], other] if other else list(groups)
    return some


def certify_start(session: Session, groups: Sequence[Group], drawn: Sequence[Group] = ()) -> list[Check]:
    """The checks that can be made before the first update.

    Args:
        groups: the first batch as it is trained on.
        drawn: the same as the sampler drew it, where the policy just did; a prompt may have had more in front of it.
    """
    some = _sample(session, groups)
    if not some:
        return []
    with _head_of_some_size(session):
        checks = [_shared(session, some)]
        if drawn:
            checks += _sampler(session, sample_of(drawn))
        checks.append(_accumulation(session, some))
    return checks


def write_certificate(path: Path, checks: Sequence[Check], precision: str) -> None:
    """Record the checks.

    Raises:
        CertificateError: one is over its tolerance; the file is written first.
    """
    # JSON has no NaN; like metrics.jsonl it is written as text
    values = [c.value if math.isfinite(c.value) else str(c.value) for c in checks]
    record = [{**asdict(c), "value": value, "passed": c.passed} for c, value in zip(checks, values, strict=True)]
    failed = [c for c in checks if not c.passed]
    write_json(path, {"precision": precision, "passed": not failed, "checks": record})
    if failed:
        worst = failed[0]
        if not math.isfinite(worst.value):
            raise CertificateError(
                f"the model gives numbers that are not finite ('{worst.name}': {worst.value}) before any training. "
                f"Its weights are broken, or a number of the recipe is out of all bounds (loss.beta); see {path}"
            )
        raise CertificateError(
            f"the run's own check '{worst.name}' gave {worst.value:.2e}, over its tolerance {worst.tolerance:.0e} "
            f"({worst.detail}). Its numbers can't be trusted with this model; try model.attention: padded, and "
            f"report it with {path}"
        )


def read_checks(path: Path) -> list[Check]:
    """The checks that `certify_start` left, to add to."""
    record = json.loads(path.read_text(encoding="utf-8"))
    names = ("name", "value", "tolerance", "detail")
    return [Check(*(check[n] for n in names)) for check in record["checks"] if check["name"] != ADAPTER]


def _flat(values: list[list[Tensor]]) -> Tensor:
    return torch.cat([t for row in values for t in row])


def _values(session: Session, groups: Sequence[Group]) -> Tensor:
    """What the model gives for these groups, flat: log-probs of tokens, or a reward head's scores."""
    budget = session.budget
    if session.engine.scoring:
        return torch.tensor([score for row in session.engine.rate(groups, budget) for score in row])
    return _flat(session.engine.score(groups, budget, temperature=session.temperature))


@contextmanager
def _head_of_some_size(session: Session) -> Iterator[None]:
    """A reward head that starts at zero hides whatever is wrong below it, so checks run with a random one."""
    policy = session.policy
    if not isinstance(policy, RewardModel):
        yield
        return
    weights = list(getattr(policy.base, reward_head_name(policy.base)).parameters())
    kept = [weight.detach().clone() for weight in weights]
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for weight in weights:
                drawn = torch.randn(weight.shape, generator=generator) / weight.shape[-1] ** 0.5
                weight.copy_(drawn.to(weight))
        yield
    finally:
        with torch.no_grad():
            for weight, was in zip(weights, kept, strict=True):
                weight.copy_(was)


def _shared(session: Session, groups: Sequence[Group]) -> Check:
    engine = session.engine
    if engine.mode == "padded":
        return Check("shared prompt vs plain", 0.0, LOGPROB_TOLERANCE, "not used: " + engine.reason)
    ours = _values(session, groups)
    with engine.plain():
        plain = _values(session, groups)
        if engine.bf16:
            engine.bf16 = False
            try:
                exact = _values(session, groups)
            finally:
                engine.bf16 = True
    what = "completions" if engine.scoring else "tokens"
    if engine.bf16:
        mine, theirs = float((ours - exact).abs().mean()), float((plain - exact).abs().mean())
        detail = f"mean error against fp32 {mine:.1e}, of plain bf16 code {theirs:.1e}, over {len(ours)} {what}"
        return Check("shared prompt vs plain (bf16 error ratio)", mine / max(theirs, 1e-8), BF16_FACTOR, detail)
    delta = float((ours - plain).abs().max())
    tolerance = LOGPROB_TOLERANCE if session.fp32_weights else BF16_SAMPLER_TOLERANCE
    measured = "score" if engine.scoring else "log-prob"
    return Check("shared prompt vs plain", delta, tolerance, f"max |Δ {measured}| over {len(ours)} {what}")


def _sampler(session: Session, groups: Sequence[Group]) -> list[Check]:
    trainer = session.engine.score(groups, session.budget, temperature=session.temperature)
    deltas: list[Tensor] = []
    for g, group in enumerate(groups):
        for c, completion in enumerate(group.completions):
            plain = completion.distribution is not None and completion.distribution.is_plain
            if completion.logprobs is not None and plain:
                kept = torch.tensor([p for p, m in zip(completion.logprobs, completion.mask, strict=True) if m])
                deltas.append(kept - trainer[g][c])
    if not deltas:
        return []
    delta = torch.cat(deltas)
    exact = session.fp32_weights and not session.engine.bf16
    tolerance = LOGPROB_TOLERANCE if exact else BF16_SAMPLER_TOLERANCE
    detail = f"max |Δ log-prob| over {len(delta)} sampled tokens; KL(sampler‖trainer) ≈ {float(delta.mean()):.1e}"
    return [Check("sampler vs trainer", float(delta.abs().max()), tolerance, detail)]


def _accumulation(session: Session, groups: Sequence[Group]) -> Check:
    batch = session.make_batch(groups)
    if batch.advantages_S is not None and not bool(batch.advantages_S.any()):
        # A batch without any signal has no gradient to compare; any weights do for this check.
        weights = torch.linspace(-1.0, 1.0, len(batch.advantages_S) or 1)
        batch = replace(batch, advantages_S=weights)
    if not bool(batch.weights_S.any()):  # all answers of all groups are alike: what is left is rounding
        batch = replace(batch, weights_S=torch.ones_like(batch.weights_S))
    budget = session.budget
    one = _gradient(session, batch, budget)
    together = 2 if batch.pairs is not None else 1  # completions that must share a pack
    if batch.certain is not None:  # a token's gradient is limited as a whole: compared answers stay together
        together = max(len(g.completions) for g in groups)
    everything = (*groups, *(g for g in batch.contrast if g.completions))
    smallest = max(len(g.prompt.ids) + sum(sorted(len(c.ids) for c in g.completions)[-together:]) for g in everything)
    many = _gradient(session, batch, smallest)
    exact = session.fp32_weights and not session.engine.bf16
    if batch.pairs is not None and _distance(one, many) > GRADIENT_TOLERANCE:
        # The two sides of equal answers, or of annotators who disagree, cancel and leave rounding alone to compare.
        # A term that does not cancel goes through the same packs.
        recipe = _with_a_second_term(session)
        one, many = (_gradient(session, batch, tokens, recipe) for tokens in (budget, smallest))
    if (batch.advantages_S is not None or batch.advantages is not None) and _distance(one, many) > GRADIENT_TOLERANCE:
        # Advantages of both signs may cancel and leave rounding alone to compare. With one sign nothing cancels, and
        # the terms go through the same packs.
        batch = _of_one_sign(batch)
        one, many = (_gradient(session, batch, tokens) for tokens in (budget, smallest))
    value = _distance(one, many)
    detail = (
        f"relative L2 distance of the gradient in packs of {budget} and of {smallest} tokens; norm {_norm(one):.2e}"
    )
    return Check("accumulation vs one batch", value, GRADIENT_TOLERANCE if exact else BF16_GRADIENT_TOLERANCE, detail)


def _of_one_sign(batch: Batch) -> Batch:
    """The batch with advantages made positive."""
    nested = None if batch.advantages is None else [[t.abs() for t in row] for row in batch.advantages]
    flat_S = None if batch.advantages_S is None else batch.advantages_S.abs()
    return replace(batch, advantages=nested, advantages_S=flat_S)


Gradient: TypeAlias = dict[int, Tensor]
"""By place among the session's parameters, as autograd left it: joined into one vector each, two gradients would take
the memory of five."""


def _norm(gradient: Gradient) -> float:
    return math.sqrt(sum(float(part.float().norm()) ** 2 for part in gradient.values()))


def _distance(one: Gradient, many: Gradient) -> float:
    zero = torch.zeros(())
    parts = (one.get(n, zero).float() - many.get(n, zero).float() for n in one | many)
    return math.sqrt(sum(float(part.norm()) ** 2 for part in parts)) / max(_norm(one), 1e-30)


def _with_a_second_term(session: Session) -> Recipe:
    """The recipe with the NLL of chosen answers, or a reward model's centring, in its loss."""
    loss = preference(session.recipe)
    name = next((n for n in ("sft_weight", "center") if n in loss.fields), None)
    if name is None:  # ORPO: it has the term
        return session.recipe
    changed = session.recipe.loss.model_copy(update={name: 1.0})
    return session.recipe.model_copy(update={"loss": changed})


def _gradient(session: Session, batch: Batch, budget: int, recipe: Recipe | None = None) -> Gradient:
    session.optimizer.zero_grad(set_to_none=True)
    backward(session.engine, batch, session.method, recipe or session.recipe, budget, head=session.head)
    grads = {n: p.grad.detach() for n, (_, p) in enumerate(session.parameters) if p.grad is not None}
    session.optimizer.zero_grad(set_to_none=True)
    return grads


def certify_adapter(session: Session, groups: Sequence[Group]) -> list[Check]:
    """Adapter on against adapter folded into the weights, for the merged model that users will run."""
    some = sample_of(groups)
    if not session.policy.is_adapter or not some:
        return []
    split = _values(session, some)
    with session.policy.merged():
        merged = _values(session, some)
    exact = session.fp32_weights and not session.engine.bf16
    tolerance = LOGPROB_TOLERANCE if exact else BF16_SAMPLER_TOLERANCE
    return [
        Check(
            ADAPTER,
            float((split - merged).abs().max()),
            tolerance,
            f"max |Δ {'score' if session.engine.scoring else 'log-prob'}| over {len(split)} values",
        )
    ]

"""One optimizer batch: groups, their signal, and the gradient. The same for every method."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from preftune.config import Recipe
from preftune.engine.certain import GradientLimit
from preftune.engine.forward import Engine
from preftune.engine.pack import Pack, PairsOfGroup, input_length
from preftune.engine.values import ScalarHead
from preftune.errors import DataError
from preftune.losses.batch import Additive, Denominators, TokenBatch, merge_metrics
from preftune.losses.value import value_loss
from preftune.methods import Evidence, Method
from preftune.records import Completion, Group
from preftune.signals import Pairs, RowWeights, TokenSignal, explained_variance

LogProbs = list[list[Tensor]]
"""[group][completion] → log-probs of its trained tokens."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Everything a loss reads, for a whole optimizer batch.

    Attributes:
        offsets: index of each group's first completion in the flat order of `advantages_S` and `weights_S`.
        denominators: totals of this batch; they make micro-batching, packing and their order irrelevant.
        pairs: the completions that a pair loss compares, in the same flat order.
        contrast: the groups' prompts with completions of other prompts, see `Method.contrast`.
        advantages, returns, values: GAE's, of each token, in the shape of `old`; they take the place of `advantages_S`.
        visited_kl: the KL to the reference is summed over the whole vocabulary at each visited position, because the
            completions were not drawn from the policy (`Engine.divergence`).
        sampled: the completions were drawn for this step, so the sampler's log-probs are of the weights that learn.
        certain: which tokens of each completion their generator found near-certain, where a reward model's gradient on
            them is limited: [group][completion] → truth values of its ids.
        facts: what making the signal told, as metrics of the step.
    """

    groups: tuple[Group, ...]
    offsets: tuple[int, ...]
    advantages_S: Tensor | None
    weights_S: Tensor
    denominators: Denominators
    old: LogProbs | None = None
    reference: LogProbs | None = None
    pairs: Pairs | None = None
    contrast: tuple[Group, ...] = ()
    contrast_reference: LogProbs | None = None
    advantages: LogProbs | None = None
    returns: LogProbs | None = None
    values: LogProbs | None = None
    visited_kl: bool = False
    sampled: bool = False
    certain: list[list[Tensor]] | None = None
    facts: dict[str, float] = field(default_factory=dict)

    def parts(self, count: int, seed: str) -> list[Batch]:
        """The batch in `count` minibatches of whole groups, in an order that the seed decides; fewer where there are
        fewer groups. Each has its own denominators: it is one optimizer batch. One part is the batch itself.

        Raises:
            ValueError: a batch whose completions are compared across groups can't be parted.
        """
        if count == 1:
            return [self]
        if self.pairs is not None or self.contrast:
            raise ValueError("a batch of pairs or contrasts is one update: train.minibatches must be 1")
        order = list(range(len(self.groups)))
        random.Random(seed).shuffle(order)
        count = min(count, len(order))
        return [self._part(order[part::count]) for part in range(count)]

    def _part(self, chosen: Sequence[int]) -> Batch:
        def some(values: LogProbs | None) -> LogProbs | None:
            return None if values is None else [values[g] for g in chosen]

        groups = tuple(self.groups[g] for g in chosen)
        places = [self.offsets[g] + c for g in chosen for c in range(len(self.groups[g].completions))]
        weights_S = self.weights_S[places]
        lengths = [c.length for group in groups for c in group.completions]
        return replace(
            self,
            groups=groups,
            offsets=_offsets(groups),
            advantages_S=None if self.advantages_S is None else self.advantages_S[places],
            weights_S=weights_S,
            denominators=Denominators.count(lengths, weights_S.tolist(), int(self.denominators.max_tokens)),
            old=some(self.old),
            reference=some(self.reference),
            advantages=some(self.advantages),
            returns=some(self.returns),
            values=some(self.values),
        )

    def pairs_of_groups(self) -> list[PairsOfGroup] | None:
        """The pairs of each group, by the places of their completions in it."""
        if self.pairs is None:
            return None
        owner = [(g, c) for g, group in enumerate(self.groups) for c in range(len(group.completions))]
        out: list[list[tuple[int, int]]] = [[] for _ in self.groups]
        for chosen, rejected in self.pairs.pairs_P2.tolist():
            (g, c), (_, d) = owner[chosen], owner[rejected]
            out[g].append((c, d))
        return list(out)


def make_batch(
    groups: Sequence[Group],
    method: Method,
    recipe: Recipe,
    *,
    evidence: Evidence = Evidence(),  # noqa: B008  # frozen, and empty
    ratio: bool = True,
    visited_kl: bool = False,
    contrast: Sequence[Group] = (),
    contrast_reference: LogProbs | None = None,
    certain: list[list[Tensor]] | None = None,
) -> Batch:
    """Apply the method's signal and count the denominators.

    Args:
        ratio: importance ratios are taken against `evidence.old`; False: the policy that sampled is the one that
            learns, and the old log-probs served the signal alone.

    Raises:
        DataError: a method on pairs, and no group of the batch has two completions of different score.
    """
    completions = [c for group in groups for c in group.completions]
    masked = recipe.policy.mask_truncated and method.tempered
    weights_S = torch.tensor([0.0 if masked and c.finish == "length" else 1.0 for c in completions])
    longest = recipe.sampling.max_tokens if method.completions != "data" else recipe.tokens.max_completion_tokens
    signal = method.signal(groups, recipe, evidence)
    facts: dict[str, float] = {}
    if isinstance(signal, RowWeights):
        weights_S = weights_S * signal.weights_S.to(weights_S.dtype)
    denominators = Denominators.count([c.length for c in completions], weights_S.tolist(), longest)
    pairs = signal if isinstance(signal, Pairs) else None
    if pairs is not None:
        if len(pairs.pairs_P2) == 0:
            raise DataError(f"{groups[0].prompt.where}: no row of this batch has two completions of different score")
        chosen_tokens = sum(completions[c].length for c in pairs.pairs_P2[:, 0].tolist())
        denominators = replace(denominators, pairs=float(len(pairs.pairs_P2)), chosen_tokens=float(chosen_tokens))
    batch = Batch(
        groups=tuple(groups),
        offsets=_offsets(groups),
        advantages_S=signal if isinstance(signal, Tensor) else None,
        weights_S=weights_S,
        denominators=denominators,
        old=evidence.old if ratio else None,
        reference=evidence.reference,
        pairs=pairs,
        contrast=tuple(contrast),
        contrast_reference=contrast_reference,
        visited_kl=visited_kl,
        sampled=method.samples,
        certain=certain,
        facts=facts,
    )
    if not isinstance(signal, TokenSignal):
        return batch
    facts["value/explained_variance"] = explained_variance(signal.values_T, signal.returns_T)
    nested = [_nested(flat, groups) for flat in (signal.advantages_T, signal.returns_T, signal.values_T)]
    return replace(batch, advantages=nested[0], returns=nested[1], values=nested[2])


def _offsets(groups: Sequence[Group]) -> tuple[int, ...]:
    offsets: list[int] = []
    count = 0
    for group in groups:
        offsets.append(count)
        count += len(group.completions)
    return tuple(offsets)


def _nested(flat_T: Tensor, groups: Sequence[Group]) -> LogProbs:
    """Values of all tokens, one behind the other, as [group][completion] → tokens."""
    parts = iter(torch.split(flat_T, [c.length for group in groups for c in group.completions]))
    return [[next(parts) for _ in group.completions] for group in groups]


def kept_logprobs(groups: Sequence[Group]) -> LogProbs | None:
    """The sampler's own log-probs of the trained tokens, where it drew every completion from the distribution that the
    trainer scores; else None."""
    out: LogProbs = []
    for group in groups:
        row = [_kept(completion) for completion in group.completions]
        known = [tensor for tensor in row if tensor is not None]
        if len(known) < len(row):
            return None
        out.append(known)
    return out


def _kept(c: Completion, *, plain: bool = True) -> Tensor | None:
    if c.logprobs is None or c.distribution is None or (plain and not c.distribution.is_plain):
        return None
    return torch.tensor([p for p, wrote in zip(c.logprobs, c.mask, strict=True) if wrote])


def backward(
    engine: Engine,
    batch: Batch,
    method: Method,
    recipe: Recipe,
    max_tokens: int,
    *,
    head: ScalarHead | None = None,
    policy: bool = True,
) -> tuple[dict[str, Additive], list[Pack]]:
    """Add the batch's gradient to the trained parameters, pack by pack. Returns metrics and the packs.

    Args:
        head: the value head that GAE's batch trains too.
        policy: False: the value head alone learns (its warm-up).
    """
    temperature = recipe.sampling.temperature if method.tempered else 1.0
    baseline: Tensor | None = None
    joint = _joint_pack(engine, batch, max_tokens)
    if joint is not None:
        packs = [joint]
    else:
        packs = engine.pack(batch.groups, max_tokens, batch.pairs_of_groups())
        if batch.contrast:
            baseline = _contrast_mean(engine, batch, max_tokens, temperature)
    parts: list[dict[str, Additive]] = []
    loss_sum: Tensor | None = None
    done: set[tuple[int, int]] = set()
    for packed in packs:
        limit = _limit_of(packed, batch, recipe)
        if method.reads == "scores":
            tokens = _scored(packed, batch, engine.scores(packed, limit), done)
        elif packed.target_T.numel() == 0:
            continue
        else:
            divergence_T = None
            if batch.visited_kl:
                values, divergence_T = engine.divergence(packed, temperature=temperature)
            else:
                with torch.set_grad_enabled(policy):
                    values = engine.forward(packed, temperature=temperature, with_entropy=method.entropy)
            logprobs_T, entropy_T, own = values.logprobs_T, values.entropy_T, packed
            if joint is not None:
                baseline, own, own_T = _parted(packed, batch, logprobs_T)
                logprobs_T, entropy_T = logprobs_T[own_T], None if entropy_T is None else entropy_T[own_T]
            tokens = token_batch(own, batch, logprobs_T, entropy_T, done, baseline)
            if divergence_T is not None:
                tokens = replace(tokens, divergence_T=divergence_T)
        output = method.loss(tokens, batch.denominators, recipe)
        if policy:
            output.loss.backward()  # type: ignore[no-untyped-call]
        if limit is not None:
            parts.append(limit.metrics(packed.completions))
        detached = output.loss.detach()
        loss_sum = detached if loss_sum is None else loss_sum + detached
        plain = all(c.distribution is not None and c.distribution.is_plain for c in packed.completions)
        parts.append(output.metrics | (_sampler_drift(tokens) if plain else {}))
        if head is not None and batch.values is not None:
            parts.append(_value_backward(head, packed, tokens, batch, recipe))
    metrics = merge_metrics(parts)
    if loss_sum is not None:
        metrics["loss"] = Additive(loss_sum, torch.ones_like(loss_sum))
    return metrics, packs


def _joint_pack(engine: Engine, batch: Batch, max_tokens: int) -> Pack | None:
    """Own and contrasted completions as one pack, each prompt once, where that fits and is the cheaper way.

    Apart, the contrasted completions C cost one forward pass of theirs and of the prompts P again: P + C. Together the
    prompts cost nothing more, but the contrasted tokens pass through the backward as well, though their gradient is 0:
    3 C. So together is cheaper where 2 C is less than P: with long prompts.
    """
    if not batch.contrast:
        return None
    prompts = sum(len(group.prompt.ids) for group in batch.contrast if group.completions)
    contrasted = sum(input_length(c) for group in batch.contrast for c in group.completions)
    if 2 * contrasted >= prompts:
        return None
    packs = engine.pack(_joined(batch), max_tokens)
    return packs[0] if len(packs) == 1 else None


def _joined(batch: Batch) -> list[Group]:
    both = zip(batch.groups, batch.contrast, strict=True)
    return [replace(own, completions=own.completions + other.completions) for own, other in both]


def _parted(packed: Pack, batch: Batch, logprobs_T: Tensor) -> tuple[Tensor, Pack, Tensor]:
    """Of a joint pack: the contrast's mean, the pack with own completions alone, and which tokens are theirs."""
    owns = [c < len(batch.groups[g].completions) for g, c in packed.members]
    own_S = torch.tensor(owns, device=logprobs_T.device)
    own_T = own_S[packed.sequence_T]
    reference = batch.contrast_reference
    assert reference is not None
    sizes = [len(group.completions) for group in batch.groups]
    compared = [reference[g][c - sizes[g]] for g, c in packed.members if c >= sizes[g]]
    total = logprobs_T.detach()[~own_T].double().sum() - sum(float(t.double().sum()) for t in compared)
    place_S = own_S.long().cumsum(0) - 1
    kept = replace(
        packed,
        source_T=packed.source_T[own_T],
        target_T=packed.target_T[own_T],
        sequence_T=place_S[packed.sequence_T[own_T]],
        members=tuple(m for m, own in zip(packed.members, owns, strict=True) if own),
        completions=tuple(c for c, own in zip(packed.completions, owns, strict=True) if own),
    )
    return (total / len(compared)).float(), kept, own_T


def _contrast_mean(engine: Engine, batch: Batch, max_tokens: int, temperature: float) -> Tensor:
    """Mean over the whole batch's contrasted completions of log π − log π₀, without gradient."""
    assert batch.contrast_reference is not None
    now = engine.score(batch.contrast, max_tokens, temperature=temperature)
    deltas = [
        float(mine.double().sum() - theirs.double().sum())
        for row, reference in zip(now, batch.contrast_reference, strict=True)
        for mine, theirs in zip(row, reference, strict=True)
    ]
    return torch.tensor(sum(deltas) / len(deltas), device=engine.policy.device)


def _value_backward(
    head: ScalarHead, packed: Pack, tokens: TokenBatch, batch: Batch, recipe: Recipe
) -> dict[str, Additive]:
    """The value head's share of the pack. It shares no trained weight with the policy, so its graph is its own."""
    settings = recipe.value
    with head.acting(train=True):
        tokens = replace(tokens, values_T=head.values(packed), entropy_T=None)
        output = value_loss(tokens, batch.denominators, clip=settings.clip, coefficient=settings.coefficient)
        output.loss.backward()  # type: ignore[no-untyped-call]
    return output.metrics


def _sampler_drift(tokens: TokenBatch) -> dict[str, Additive]:
    """How far the sampler's log-probs lie from those of the same weights in the trainer. 0 but for rounding, where
    the samples were drawn from the distribution that the trainer scores; not measured elsewhere."""
    if tokens.sampler_logprobs_T is None:
        return {}
    now_T = (tokens.logprobs_T if tokens.old_logprobs_T is None else tokens.old_logprobs_T).detach()
    delta_T = tokens.sampler_logprobs_T - now_T
    ones_T = torch.ones_like(delta_T)
    return {"sampler/kl": Additive.mean(delta_T, ones_T), "sampler/max_diff": Additive.maximum(delta_T.abs(), ones_T)}


def token_batch(
    packed: Pack,
    batch: Batch,
    logprobs_T: Tensor,
    entropy_T: Tensor | None,
    done: set[tuple[int, int]] | None = None,
    baseline: Tensor | None = None,
) -> TokenBatch:
    """The pack's slice of the batch, in the pack's order of completions.

    Args:
        done: pairs that earlier packs held; those of this pack are added. A split group may show one again.
    """
    device = logprobs_T.device
    flat = _flat_places(packed, batch)

    def tokens(values: LogProbs | None) -> Tensor | None:
        if values is None:
            return None
        return torch.cat([values[g][c] for g, c in packed.members]).to(device)

    pairs_P2, margins_P = _pairs_of(packed, batch, set() if done is None else done, device)
    # Filters (top_k, …) reshape what was drawn from; the correction is for that as well.
    kept = [_kept(completion, plain=False) for completion in packed.completions] if batch.sampled else []
    known = [tensor for tensor in kept if tensor is not None]
    return TokenBatch(
        logprobs_T=logprobs_T,
        sequence_T=packed.sequence_T,
        num_sequences=packed.num_sequences,
        weights_S=batch.weights_S[flat].to(device),
        old_logprobs_T=tokens(batch.old),
        reference_logprobs_T=tokens(batch.reference),
        advantages_S=None if batch.advantages_S is None else batch.advantages_S[flat].to(device),
        entropy_T=None if entropy_T is None else entropy_T.detach(),
        pairs_P2=pairs_P2,
        margins_P=margins_P,
        baseline=None if baseline is None else baseline.to(device),
        advantages_T=tokens(batch.advantages),
        sampler_logprobs_T=torch.cat(known).to(device) if known and len(known) == len(kept) else None,
        old_values_T=tokens(batch.values),
        returns_T=tokens(batch.returns),
    )


def _scored(packed: Pack, batch: Batch, scores_S: Tensor, done: set[tuple[int, int]]) -> TokenBatch:
    """The pack's slice of the batch for a reward head: one score per completion and no tokens."""
    device = scores_S.device
    pairs_P2, margins_P = _pairs_of(packed, batch, done, device)
    return TokenBatch(
        logprobs_T=scores_S.new_empty(0),
        sequence_T=torch.empty(0, dtype=torch.long, device=device),
        num_sequences=packed.num_sequences,
        weights_S=batch.weights_S[_flat_places(packed, batch)].to(device),
        pairs_P2=pairs_P2,
        margins_P=margins_P,
        scores_S=scores_S,
        lengths_S=torch.tensor([float(c.length) for c in packed.completions], device=device),
    )


def _limit_of(packed: Pack, batch: Batch, recipe: Recipe) -> GradientLimit | None:
    """What the backward lets through of the pack's near-certain tokens; None where all of it."""
    if batch.certain is None:
        return None
    certain = [batch.certain[g][c] for g, c in packed.members]
    return GradientLimit(certain, g_max=recipe.loss.g_max, pairs=batch.denominators.pairs)


def _flat_places(packed: Pack, batch: Batch) -> Tensor:
    return torch.tensor([batch.offsets[g] + c for g, c in packed.members], dtype=torch.long)


def _pairs_of(
    packed: Pack, batch: Batch, done: set[tuple[int, int]], device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """The batch's pairs whose completions are both in this pack and that no earlier pack held."""
    if batch.pairs is None:
        return None, None
    place = {batch.offsets[g] + c: s for s, (g, c) in enumerate(packed.members)}
    found: list[tuple[int, int]] = []
    margins: list[float] = []
    for (chosen, rejected), margin in zip(batch.pairs.pairs_P2.tolist(), batch.pairs.margins_P.tolist(), strict=True):
        if chosen in place and rejected in place and (chosen, rejected) not in done:
            done.add((chosen, rejected))
            found.append((place[chosen], place[rejected]))
            margins.append(margin)
    return torch.tensor(found, dtype=torch.long, device=device).reshape(-1, 2), torch.tensor(margins, device=device)

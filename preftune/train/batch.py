"""One optimizer batch: groups, their signal, and the gradient. The same for every method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from preftune.config import Recipe
from preftune.engine.forward import Engine
from preftune.engine.pack import Pack
from preftune.losses.batch import Additive, Denominators, TokenBatch, merge_metrics
from preftune.methods import Method
from preftune.records import Group

LogProbs = list[list[Tensor]]
"""[group][completion] → log-probs of its trained tokens."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Everything a loss reads, for a whole optimizer batch.

    Attributes:
        offsets: index of each group's first completion in the flat order of `advantages_S` and `weights_S`.
        denominators: totals of this batch; they make micro-batching, packing and their order irrelevant.
    """

    groups: tuple[Group, ...]
    offsets: tuple[int, ...]
    advantages_S: Tensor | None
    weights_S: Tensor
    denominators: Denominators
    old: LogProbs | None = None
    reference: LogProbs | None = None


def make_batch(
    groups: Sequence[Group],
    method: Method,
    recipe: Recipe,
    *,
    old: LogProbs | None = None,
    reference: LogProbs | None = None,
) -> Batch:
    """Apply the method's signal and count the denominators."""
    completions = [c for group in groups for c in group.completions]
    masked = recipe.policy.mask_truncated and method.completions == "policy"
    weights = [0.0 if masked and c.finish == "length" else 1.0 for c in completions]
    offsets: list[int] = []
    count = 0
    for group in groups:
        offsets.append(count)
        count += len(group.completions)
    longest = recipe.sampling.max_tokens if method.completions == "policy" else recipe.tokens.max_completion_tokens
    return Batch(
        groups=tuple(groups),
        offsets=tuple(offsets),
        advantages_S=method.signal(groups, recipe),
        weights_S=torch.tensor(weights),
        denominators=Denominators.count([c.length for c in completions], weights, longest),
        old=old,
        reference=reference,
    )


def backward(
    engine: Engine, batch: Batch, method: Method, recipe: Recipe, max_tokens: int
) -> tuple[dict[str, Additive], list[Pack]]:
    """Add the batch's gradient to the trained parameters, pack by pack. Returns metrics and the packs."""
    temperature = recipe.sampling.temperature if method.completions == "policy" else 1.0
    packs = engine.pack(batch.groups, max_tokens)
    parts: list[dict[str, Additive]] = []
    loss_sum: Tensor | None = None
    for packed in packs:
        if packed.target_T.numel() == 0:
            continue
        values = engine.forward(packed, temperature=temperature, with_entropy=True)
        tokens = token_batch(packed, batch, values.logprobs_T, values.entropy_T)
        output = method.loss(tokens, batch.denominators, recipe)
        output.loss.backward()  # type: ignore[no-untyped-call]
        detached = output.loss.detach()
        loss_sum = detached if loss_sum is None else loss_sum + detached
        parts.append(output.metrics | _sampler_drift(packed, tokens))
    metrics = merge_metrics(parts)
    if loss_sum is not None:
        metrics["loss"] = Additive(loss_sum, torch.ones_like(loss_sum))
    return metrics, packs


def _sampler_drift(packed: Pack, tokens: TokenBatch) -> dict[str, Additive]:
    """How far the sampler's log-probs lie from those of the same weights in the trainer. 0 but for rounding, where
    the samples were drawn from the distribution that the trainer scores; not measured elsewhere."""
    kept: list[float] = []
    for completion in packed.completions:
        if completion.logprobs is None or completion.distribution is None or not completion.distribution.is_plain:
            return {}
        kept.extend(p for p, wrote in zip(completion.logprobs, completion.mask, strict=True) if wrote)
    now_T = (tokens.logprobs_T if tokens.old_logprobs_T is None else tokens.old_logprobs_T).detach()
    delta_T = torch.tensor(kept, dtype=now_T.dtype, device=now_T.device) - now_T
    ones_T = torch.ones_like(delta_T)
    return {"sampler/kl": Additive.mean(delta_T, ones_T), "sampler/max_diff": Additive.maximum(delta_T.abs(), ones_T)}


def token_batch(packed: Pack, batch: Batch, logprobs_T: Tensor, entropy_T: Tensor | None) -> TokenBatch:
    """The pack's slice of the batch, in the pack's order of completions."""
    device = logprobs_T.device
    flat = torch.tensor([batch.offsets[g] + c for g, c in packed.members], dtype=torch.long)

    def tokens(values: LogProbs | None) -> Tensor | None:
        if values is None:
            return None
        return torch.cat([values[g][c] for g, c in packed.members]).to(device)

    return TokenBatch(
        logprobs_T=logprobs_T,
        sequence_T=packed.sequence_T,
        num_sequences=packed.num_sequences,
        weights_S=batch.weights_S[flat].to(device),
        old_logprobs_T=tokens(batch.old),
        reference_logprobs_T=tokens(batch.reference),
        advantages_S=None if batch.advantages_S is None else batch.advantages_S[flat].to(device),
        entropy_T=None if entropy_T is None else entropy_T.detach(),
    )

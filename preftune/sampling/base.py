"""What draws completions: the Sampler and Rollout protocols, and the choice of one token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from preftune.config import SamplingConfig
from preftune.records import Distribution, Group, Prompt

Progress = Callable[[int, int], None]
"""Called with (completions finished, completions asked for)."""


class Sampler(Protocol):
    """Draws completions of prompts."""

    def sample(
        self,
        prompts: Sequence[Prompt],
        n: int,
        settings: SamplingConfig,
        *,
        seed: int,
        policy_version: int = 0,
        temperature: float | None = None,
        progress: Progress | None = None,
    ) -> list[Group]:
        """`n` completions of each prompt, in the prompts' order.

        Args:
            seed: the same seed, prompts and weights give the same completions.
            policy_version: recorded on each completion.
            temperature: overrides `settings.temperature`; 0 is greedy.

        Raises:
            SamplingError: a prompt does not fit the model, an endpoint fails for good.
        """
        ...


class Rollout(Protocol):
    """Produces whole completions from prompts, with whatever happens between the policy's own words (tools,
    environments, other agents). Spans that the policy did not write are marked False in `Completion.mask`."""

    def __call__(
        self,
        sampler: Sampler,
        prompts: Sequence[Prompt],
        n: int,
        settings: SamplingConfig,
        *,
        seed: int,
        policy_version: int,
        temperature: float | None = None,
    ) -> list[Group]: ...


def distribution_of(settings: SamplingConfig, temperature: float | None = None) -> Distribution:
    """The distribution that these settings draw from."""
    return Distribution(
        temperature=settings.temperature if temperature is None else temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        min_p=settings.min_p,
        repetition_penalty=settings.repetition_penalty,
    )


def choose(logits_BV: Tensor, uniform_B: Tensor, d: Distribution, seen_BV: Tensor | None) -> tuple[Tensor, Tensor]:
    """Pick one token a row by inverse transform: one uniform number a row, so a row's draw does not depend on
    which other rows are decoded beside it.

    Args:
        logits_BV: raw logits, fp32.
        uniform_B: in [0, 1); not read when greedy.
        seen_BV: True where the row's prompt or completion holds the token (repetition penalty); may be None.

    Returns:
        ids_B, and each id's log-prob under the distribution drawn from. Greedy log-probs are those at temperature 1
        (a draw of probability one would tell nothing).
    """
    if d.repetition_penalty != 1.0 and seen_BV is not None:
        penalised = torch.where(logits_BV > 0, logits_BV / d.repetition_penalty, logits_BV * d.repetition_penalty)
        logits_BV = torch.where(seen_BV, penalised, logits_BV)
    if d.temperature == 0.0:
        ids_B = logits_BV.argmax(-1)
        return ids_B, logits_BV.log_softmax(-1).gather(-1, ids_B[:, None])[:, 0]
    scaled_BV = _filtered(logits_BV if d.temperature == 1.0 else logits_BV / d.temperature, d)
    probs_BV = scaled_BV.softmax(-1)  # one trip through memory, where exponent and sum apart take three
    blocks_BNW = _blocks(probs_BV)
    sums_BN = blocks_BNW.sum(-1)
    cumulative_BN = sums_BN.cumsum(-1)
    total_B = cumulative_BN[:, -1]
    draw_B = uniform_B.to(total_B.dtype) * total_B
    block_B = _first_above(cumulative_BN, draw_B)
    before_B = F.pad(cumulative_BN, (1, 0)).gather(-1, block_B[:, None])[:, 0]
    inside_BW = blocks_BNW[torch.arange(len(block_B), device=block_B.device), block_B].cumsum(-1)
    ids_B = block_B * _WIDTH + _first_above(inside_BW, (draw_B - before_B).clamp(min=0.0))
    return ids_B, probs_BV.gather(-1, ids_B[:, None])[:, 0].log()


_WIDTH = 64
"""Tokens that are summed as one, so that the draw's running sum goes over V / 64 blocks and then over 64 tokens: the
running sum of a whole row is a chain of V additions, one behind the other."""


def _blocks(mass_BV: Tensor) -> Tensor:
    """[B, V] → [B, blocks, 64], filled up with zeros."""
    missing = -mass_BV.shape[1] % _WIDTH
    return (F.pad(mass_BV, (0, missing)) if missing else mass_BV).view(len(mass_BV), -1, _WIDTH)


def _first_above(cumulative_BN: Tensor, draw_B: Tensor) -> Tensor:
    """The first place of each row whose running sum lies above the draw. A draw kept strictly under the total never
    finds a place of no mass, even where rounding would put it at the total."""
    total_B = cumulative_BN[:, -1]
    below_B = torch.nextafter(total_B, torch.zeros_like(total_B))
    return torch.searchsorted(cumulative_BN, torch.minimum(draw_B, below_B)[:, None], right=True)[:, 0]


def _filtered(logits_BV: Tensor, d: Distribution) -> Tensor:
    """Top-k, then min-p, then top-p, each on what the one before left."""
    if d.top_k and d.top_k < logits_BV.shape[-1]:
        least = logits_BV.topk(d.top_k, -1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least, -torch.inf)
    if d.min_p > 0.0:
        probs_BV = logits_BV.softmax(-1)
        logits_BV = logits_BV.masked_fill(probs_BV < d.min_p * probs_BV.amax(-1, keepdim=True), -torch.inf)
    if d.top_p < 1.0:
        ordered_BV, index_BV = logits_BV.sort(-1, descending=True)
        mass_BV = ordered_BV.softmax(-1)
        # A token stays while the mass before it is under p, so the likeliest always stays.
        drop_BV = mass_BV.cumsum(-1) - mass_BV >= d.top_p
        logits_BV = logits_BV.masked_fill(torch.zeros_like(drop_BV).scatter(-1, index_BV, drop_BV), -torch.inf)
    return logits_BV


def uniforms(seed: int, prompt_index: int, n: int, max_tokens: int) -> Tensor:
    """The random numbers of one prompt's group, [n, max_tokens], from (seed, prompt index) alone."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + prompt_index) % (2**63 - 1))
    return torch.rand(n, max_tokens, generator=generator, dtype=torch.float32)

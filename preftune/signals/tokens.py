"""Signals per token: rewards with the KL inside, generalised advantage estimation, whitening.

Shapes: the legend in `preftune.records`. Tokens are those that the policy wrote, flat, each completion's in order and
without gaps between completions; a completion may have none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenSignal:
    """What PPO's two losses read of a whole batch, flat over its tokens in the batch's order of completions.

    Attributes:
        advantages_T: for the policy, whitened where asked for.
        returns_T: what the value head should have said.
        values_T: what it said before this batch's first update.
    """

    advantages_T: Tensor
    returns_T: Tensor
    values_T: Tensor


def token_rewards(
    scores_S: Tensor, lengths_S: Tensor, logprobs_T: Tensor, reference_T: Tensor | None, beta: float
) -> Tensor:
    """The reward of each token: −β (log π − log π₀) everywhere, and the completion's score at its last token.

    A completion without tokens has no place for its score, so it is lost.

    Args:
        scores_S: of each completion.
        lengths_S: long; tokens of each completion, summing to T.
        logprobs_T: under the policy that sampled.
        reference_T: under the reference; None leaves the KL out.
        beta: β, at least 0.

    Returns:
        (T,) rewards in fp32 (fp64 for fp64 log-probs), no gradient.

    References:
        Ziegler et al. 2019, eq. 2; Huang et al. 2024, "The N+ implementation details of RLHF with PPO".
    """
    logprobs_T = logprobs_T.detach().to(torch.promote_types(logprobs_T.dtype, torch.float32))
    rewards_T = torch.zeros_like(logprobs_T)
    if reference_T is not None and beta > 0.0:
        rewards_T = -beta * (logprobs_T - reference_T.detach().to(logprobs_T.dtype))
    last_S = lengths_S.cumsum(0) - 1
    written_S = lengths_S > 0
    return rewards_T.index_add(0, last_S[written_S], scores_S.detach().to(rewards_T.dtype)[written_S])


def sequence_kl(logprobs_T: Tensor, reference_T: Tensor, lengths_S: Tensor) -> Tensor:
    """Σ_t log π(y_t) − log π₀(y_t) of each completion, (S,), in nats, no gradient: the estimator k1, summed. Its mean
    over samples of π is KL(π‖π₀) of whole completions; RLOO takes β times it off the score. 0 without tokens.

    References:
        Schulman 2020, "Approximating KL divergence"; Ahmadian et al. 2024, eq. 2.
    """
    owner_T = torch.arange(len(lengths_S), device=lengths_S.device).repeat_interleave(lengths_S)
    return logprobs_T.new_zeros(len(lengths_S)).index_add(0, owner_T, logprobs_T - reference_T).detach()


def gae(rewards_T: Tensor, values_T: Tensor, lengths_S: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation within each completion, whose value after the last token is 0.

        δ_t = r_t + γ V_{t+1} − V_t        A_t = δ_t + γ λ A_{t+1}        return_t = A_t + V_t

    V_t is read where token t is chosen, so it has not seen the token.

    Returns:
        advantages_T and returns_T, no gradient, in fp32 (fp64 for fp64 input).

    Raises:
        ValueError: lengths that do not sum to the number of tokens.

    References:
        Schulman et al. 2016, eq. 16.
    """
    if int(lengths_S.sum()) != rewards_T.numel() or rewards_T.shape != values_T.shape:
        raise ValueError(
            f"{rewards_T.numel()} rewards and {values_T.numel()} values, but the completions have "
            f"{int(lengths_S.sum())} tokens"
        )
    dtype = torch.promote_types(torch.promote_types(rewards_T.dtype, values_T.dtype), torch.float32)
    rewards_T, values_T = rewards_T.detach().to(dtype), values_T.detach().to(dtype)
    # All completions step back in time together: as a [S, longest] table, left-aligned.
    longest = int(lengths_S.max()) if lengths_S.numel() else 0
    place_SL = torch.arange(longest, device=rewards_T.device)[None, :] < lengths_S[:, None]
    rewards_SL, values_SL = (
        rewards_T.new_zeros(place_SL.shape).masked_scatter(place_SL, x) for x in (rewards_T, values_T)
    )
    advantages_SL = torch.zeros_like(rewards_SL)
    carried_S = rewards_T.new_zeros(len(lengths_S))
    next_S = torch.zeros_like(carried_S)
    for t in range(longest - 1, -1, -1):
        delta_S = rewards_SL[:, t] + gamma * next_S - values_SL[:, t]
        # Past its end a completion carries nothing back.
        carried_S = torch.where(place_SL[:, t], delta_S + gamma * lam * carried_S, torch.zeros_like(carried_S))
        next_S = torch.where(place_SL[:, t], values_SL[:, t], torch.zeros_like(next_S))
        advantages_SL[:, t] = carried_S
    advantages_T = advantages_SL[place_SL]
    return advantages_T, advantages_T + values_T


def whiten(values_T: Tensor, weights_T: Tensor | None = None, *, epsilon: float = 1e-8) -> Tensor:
    """To mean 0 and variance 1 over the tokens that count (weight 1); the others are moved alike.

    The variance is divided by n − 1, as TRL's `masked_whiten` did. Fewer than two tokens, or equal ones, become 0.
    """
    kept = values_T if weights_T is None else values_T[weights_T > 0]
    if kept.numel() < 2 or bool((kept == kept[0]).all()):
        return torch.zeros_like(values_T)
    return (values_T - kept.mean()) * torch.rsqrt(kept.var(correction=1) + epsilon)


def explained_variance(values_T: Tensor, returns_T: Tensor) -> float:
    """1 − Var[return − value] / Var[return]: 1 for a perfect value head, 0 for one that says the mean, below 0 for one
    that is worse. 0 where all returns are equal but for rounding."""
    if not returns_T.numel():
        return 0.0
    returns, values = returns_T.detach().double(), values_T.detach().double()
    # Returns are summed as A + V, so equal ones differ in their last digits, and a ratio to that would be noise.
    rounding = 32.0 * torch.finfo(returns_T.dtype).eps * float(torch.maximum(returns.abs(), values.abs()).max())
    spread = float(returns.var(correction=0))
    if spread <= rounding**2:
        return 0.0
    return 1.0 - float((returns - values).var(correction=0)) / spread


def adapted_beta(beta: float, kl: float, target: float, completions: int, horizon: int) -> float:
    """Ziegler et al. 2019, sec. 2.2: β·(1 + clip(KL/target − 1, −0.2, 0.2)·n/horizon), at least 0.

    Args:
        kl: mean KL of the batch's completions to the reference, nats, summed over tokens.
        completions: n, in the batch.
    """
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return max(beta * (1.0 + error * completions / horizon), 0.0)


def overlong_penalty(lengths_S: Tensor, cut_S: Tensor, max_tokens: int, share: float) -> Tensor:
    """What is taken off the score of long completions: 0 up to the last `share` of the budget, from there linearly to
    1 at the limit; 1 for a completion that was cut.

    With L the limit, b = share·L: (length − (L − b)) / b, between 0 and 1.

    Args:
        lengths_S: tokens of each completion.
        cut_S: bool; the completion did not end before the limit.

    References:
        Yu et al. 2025 (DAPO), eq. 13, soft overlong punishment.
    """
    ramp = share * max_tokens
    penalty_S = ((lengths_S.float() - (max_tokens - ramp)) / max(ramp, 1e-9)).clamp(0.0, 1.0)
    return torch.where(cut_S, torch.ones_like(penalty_S), penalty_S) if share > 0.0 else torch.zeros_like(penalty_S)

"""Losses on pairs of a chosen and a rejected completion: DPO and its family. Shapes: the legend in `preftune.records`.

Every loss reads one number d per completion (`implicit_rewards` with β = 1), so that a pair loss is a function of
d_w, d_l (chosen, rejected) and a few constants. P pairs may share completions.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from preftune.losses.batch import Additive, Denominators, LossOutput, TokenBatch, at_least_fp32
from preftune.losses.reduce import sequence_sums

Implicit: TypeAlias = Literal["ratio", "ratio-mean", "likelihood", "likelihood-mean"]

IMPLICIT: dict[str, Implicit] = {
    "dpo": "ratio",
    "conservative": "ratio",
    "robust": "ratio",
    "ipo": "ratio-mean",
    "hinge": "ratio",
    "apo-zero": "ratio",
    "apo-down": "ratio",
    "simpo": "likelihood-mean",
    "orpo": "likelihood-mean",
    "cpo": "likelihood",
}
"""What each loss reads of a completion; `preftune.methods` has the same beside its defaults, and a test compares."""

# Odds p/(1 − p) are infinite at p = 1, which an empty completion has. Capped at e^l = 1 − 1e-6: odds of a million.
_LOG_P_MAX = -1e-6


def implicit_rewards(
    logprob_S: Tensor, reference_S: Tensor | None, lengths_S: Tensor, *, implicit: str, beta: float
) -> Tensor:
    """The policy's own reward of each completion.

    With log π the summed log-prob of a completion of n tokens, and n at least 1 below the line:

        ratio             β · (log π − log π₀)            DPO, KTO
        ratio-mean        β · (log π − log π₀) / n        IPO
        likelihood        β · log π                       CPO
        likelihood-mean   β · log π / n                   SimPO, ORPO

    A completion without tokens has reward 0. The reference gets no gradient.

    Args:
        logprob_S: summed log π of each completion.
        reference_S: summed log π₀; only the two ratios read it.
        lengths_S: tokens of each completion.
        implicit: one of the four.
        beta: β.

    Returns:
        (S,) rewards in nats times β, fp32 or fp64.

    Raises:
        ValueError: an unknown kind, or a ratio without a reference.

    References:
        Rafailov et al. 2023 (DPO, sec. 5.1); Azar et al. 2023 (IPO); Xu et al. 2024 (CPO); Meng et al. 2024 (SimPO,
        eq. 4).
    """
    value_S = at_least_fp32(logprob_S)
    if implicit in ("ratio", "ratio-mean"):
        if reference_S is None:
            raise ValueError(f"the implicit reward {implicit!r} compares with a reference; give its log-probs")
        value_S = value_S - at_least_fp32(reference_S).detach()
    return beta * _averaged(value_S, lengths_S, implicit)


def _averaged(value_S: Tensor, lengths_S: Tensor, implicit: str) -> Tensor:
    if implicit in ("ratio", "likelihood"):
        return value_S
    if implicit in ("ratio-mean", "likelihood-mean"):
        return value_S / lengths_S.to(value_S.dtype).clamp(min=1.0)
    raise ValueError(f"unknown implicit reward {implicit!r}; choose ratio, ratio-mean, likelihood or likelihood-mean")


def dpo(chosen_P: Tensor, rejected_P: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """−(1−ε) log σ(βh) − ε log σ(−βh),  h = d_w − d_l. With ε > 0 "conservative" DPO: ε of the labels are wrong.

    CPO is this on log π instead of log π/π₀.

    References:
        Rafailov et al. 2023 (DPO, eq. 7); Mitchell 2023, "A note on DPO with noisy preferences and relationship to
        IPO"; Xu et al. 2024 (CPO, eq. 3).
    """
    scaled_P = beta * (chosen_P - rejected_P)
    return -(1.0 - label_smoothing) * F.logsigmoid(scaled_P) - label_smoothing * F.logsigmoid(-scaled_P)


def robust(chosen_P: Tensor, rejected_P: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """[−(1−ε) log σ(βh) + ε log σ(−βh)] / (1 − 2ε): unbiased when ε of the labels are flipped.

    References:
        Chowdhury, Kini and Natarajan 2024, "Provably robust DPO: aligning language models with noisy feedback".
    """
    scaled_P = beta * (chosen_P - rejected_P)
    kept_P, flipped_P = -F.logsigmoid(scaled_P), -F.logsigmoid(-scaled_P)
    return ((1.0 - label_smoothing) * kept_P - label_smoothing * flipped_P) / (1.0 - 2.0 * label_smoothing)


def ipo(chosen_P: Tensor, rejected_P: Tensor, beta: float) -> Tensor:
    """(h − 1/(2β))², h from length-averaged log-ratios, as the authors' own experiments have it.

    References:
        Azar et al. 2023 (IPO, eq. 17, where β is called τ).
    """
    return (chosen_P - rejected_P - 1.0 / (2.0 * beta)).square()


def hinge(chosen_P: Tensor, rejected_P: Tensor, beta: float) -> Tensor:
    """max(0, 1 − βh): SLiC's calibration loss on log-ratios. No gradient once βh reaches 1.

    References:
        Zhao et al. 2023 (SLiC-HF); Liu et al. 2023 (RSO: the hinge on log-ratios).
    """
    return torch.relu(1.0 - beta * (chosen_P - rejected_P))


def apo_zero(chosen_P: Tensor, rejected_P: Tensor, beta: float) -> Tensor:
    """1 − σ(βd_w) + σ(βd_l): chosen up, rejected down; for chosen answers better than the model's own.

    References:
        D'Oosterlinck et al. 2024 (APO, eq. 7).
    """
    # σ(−x) is 1 − σ(x) without the subtraction that loses all digits once σ(x) rounds to 1.
    return torch.sigmoid(-beta * chosen_P) + torch.sigmoid(beta * rejected_P)


def apo_down(chosen_P: Tensor, rejected_P: Tensor, beta: float) -> Tensor:
    """σ(βd_w) + 1 − σ(βh): both down, the rejected further; for chosen answers worse than the model's own.

    References:
        D'Oosterlinck et al. 2024 (APO, eq. 8).
    """
    return torch.sigmoid(beta * chosen_P) + torch.sigmoid(-beta * (chosen_P - rejected_P))


def simpo(chosen_P: Tensor, rejected_P: Tensor, beta: float, gamma_ratio: float) -> Tensor:
    """−log σ(β(l_w − l_l) − γ), l the length-averaged log π, γ = gamma_ratio · β.

    References:
        Meng, Xia and Chen 2024 (SimPO, eq. 6).
    """
    return -F.logsigmoid(beta * (chosen_P - rejected_P - gamma_ratio))


def odds_ratio(chosen_P: Tensor, rejected_P: Tensor) -> Tensor:
    """−log σ(log odds(p_w) − log odds(p_l)), odds(p) = p / (1 − p), p = exp(l), l the length-averaged log π.

    ORPO is NLL(chosen) plus λ times this.

    References:
        Hong, Lee and Thorne 2024 (ORPO, eq. 4 and 7).
    """
    return -F.logsigmoid(_log_odds(chosen_P) - _log_odds(rejected_P))


def _log_odds(logp: Tensor) -> Tensor:
    """log p − log(1 − p) from log p ≤ 0."""
    logp = logp.clamp(max=_LOG_P_MAX)
    # expm1 keeps the digits of 1 − e^l near l = 0. Far below 0 it rounds to 1, where log p is all that counts.
    return logp - torch.log(-torch.expm1(logp))


def preference_loss(
    batch: TokenBatch,
    denominators: Denominators,
    *,
    name: str,
    beta: float,
    label_smoothing: float = 0.0,
    gamma_ratio: float = 0.0,
    odds_weight: float = 0.0,
    sft_weight: float = 0.0,
) -> LossOutput:
    """A pair loss's mean over the batch's pairs, plus α · NLL of the chosen completions.

        Σ_pairs loss(d_w, d_l) / D.pairs  −  α · Σ_pairs log π(chosen) / D.chosen_tokens

    d is each completion's implicit reward before β. A completion may be in several pairs; a chosen one counts in the
    NLL once per pair, as it does in the denominator. ORPO is λ · `odds_ratio` with α = 1. A pair counts by the product
    of its two row weights; rows of a fixed data set all weigh 1.

    Args:
        batch: log-probs, pairs and, for losses on ratios, reference log-probs of one micro-batch.
        denominators: totals of the whole optimizer batch; `pairs` and `chosen_tokens` are used.
        name: dpo, conservative, robust, ipo, hinge, apo-zero, apo-down, simpo, orpo or cpo.
        beta: β above 0; ORPO's loss has none, there it only scales the reported rewards.
        label_smoothing: ε in [0, ½): dpo, conservative, robust.
        gamma_ratio: γ/β: simpo.
        odds_weight: λ: orpo.
        sft_weight: α.

    Returns:
        The micro-batch's share of the loss. Metrics are those of `pair_metrics`, of log-probs, and `nll`.

    Raises:
        ValueError: an unknown name; pairs or reference missing; a number out of range or that the loss does not read;
            denominators smaller than this micro-batch alone could have.
    """
    _check(name, beta, label_smoothing, gamma_ratio, odds_weight)
    pairs_P2 = pairs_of(batch, denominators)
    implicit = IMPLICIT[name]
    logprobs_T = at_least_fp32(batch.logprobs_T)
    logprob_S = sequence_sums(logprobs_T, batch.sequence_T, batch.num_sequences)
    value_S = logprob_S
    if implicit in ("ratio", "ratio-mean"):
        value_S = log_ratios(batch)
    lengths_S = torch.bincount(batch.sequence_T, minlength=batch.num_sequences).to(logprobs_T.dtype)
    value_S = _averaged(value_S, lengths_S, implicit)
    chosen_P, rejected_P = value_S[pairs_P2].unbind(1)

    if name in ("dpo", "conservative", "cpo"):
        loss_P = dpo(chosen_P, rejected_P, beta, label_smoothing)
    elif name == "robust":
        loss_P = robust(chosen_P, rejected_P, beta, label_smoothing)
    elif name == "ipo":
        loss_P = ipo(chosen_P, rejected_P, beta)
    elif name == "hinge":
        loss_P = hinge(chosen_P, rejected_P, beta)
    elif name == "apo-zero":
        loss_P = apo_zero(chosen_P, rejected_P, beta)
    elif name == "apo-down":
        loss_P = apo_down(chosen_P, rejected_P, beta)
    elif name == "simpo":
        loss_P = simpo(chosen_P, rejected_P, beta, gamma_ratio)
    else:
        loss_P = odds_weight * odds_ratio(chosen_P, rejected_P)

    weights_P = pair_weights(batch, pairs_P2, logprobs_T.dtype)
    loss = (loss_P * weights_P).sum() / max(denominators.pairs, 1.0)
    nll_P = -logprob_S[pairs_P2[:, 0]]
    if sft_weight:
        if denominators.chosen_tokens < 1.0 and bool(lengths_S[pairs_P2[:, 0]].any()):
            raise ValueError(
                "denominators count no chosen tokens, but this micro-batch has some: they must be totals of the whole "
                "optimizer batch"
            )
        loss = loss + sft_weight * (nll_P * weights_P).sum() / max(denominators.chosen_tokens, 1.0)

    metrics = pair_metrics(beta * value_S, lengths_S, pairs_P2, weights_P)
    for side, places_P in (("chosen", pairs_P2[:, 0]), ("rejected", pairs_P2[:, 1])):
        metrics[f"logprobs/{side}"] = Additive.mean(logprob_S[places_P], weights_P)
    metrics["nll"] = Additive((nll_P.detach() * weights_P).sum(), (lengths_S[pairs_P2[:, 0]] * weights_P).sum())
    return LossOutput(loss, metrics)


def _check(name: str, beta: float, label_smoothing: float, gamma_ratio: float, odds_weight: float) -> None:
    if name not in IMPLICIT:
        raise ValueError(f"unknown preference loss {name!r}; choose {', '.join(IMPLICIT)}")
    if not beta > 0.0:
        raise ValueError(f"beta must be above 0, not {beta:g}")
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be in [0, 0.5), not {label_smoothing:g}")
    for number, value, readers in (
        ("label_smoothing", label_smoothing, ("dpo", "conservative", "robust")),
        ("gamma_ratio", gamma_ratio, ("simpo",)),
        ("odds_weight", odds_weight, ("orpo",)),
    ):
        if value and name not in readers:
            raise ValueError(f"{name} does not read {number} ({value:g}); {', '.join(readers)} do")


def log_ratios(batch: TokenBatch) -> Tensor:
    """log π − log π₀ of each completion, (S,), with the policy's gradient alone.

    Raises:
        ValueError: no reference log-probs.
    """
    if batch.reference_logprobs_T is None:
        raise ValueError("this loss compares with the reference; give reference_logprobs_T")
    # Per token first: two sums in the thousands would lose the digits that their difference needs.
    delta_T = at_least_fp32(batch.logprobs_T) - at_least_fp32(batch.reference_logprobs_T).detach()
    return sequence_sums(delta_T, batch.sequence_T, batch.num_sequences)


def pairs_of(batch: TokenBatch, denominators: Denominators) -> Tensor:
    """The batch's pairs, (P, 2); possibly none, in a micro-batch that holds no whole pair.

    Raises:
        ValueError: pairs are missing, or more than the denominators say.
    """
    if batch.pairs_P2 is None:
        raise ValueError("a loss on pairs needs pairs_P2; see preftune.signals.preference_pairs")
    if denominators.pairs < len(batch.pairs_P2):
        raise ValueError(
            f"denominators count {denominators.pairs:g} pairs, but this micro-batch alone has {len(batch.pairs_P2)}: "
            "they must be totals of the whole optimizer batch"
        )
    return batch.pairs_P2


def pair_weights(batch: TokenBatch, pairs_P2: Tensor, dtype: torch.dtype) -> Tensor:
    """Product of the two row weights, (P,)."""
    return batch.weights_S.to(dtype)[pairs_P2].prod(dim=1)


def pair_metrics(rewards_S: Tensor, lengths_S: Tensor, pairs_P2: Tensor, weights_P: Tensor) -> dict[str, Additive]:
    """What the rewards say about the pairs: means over pairs.

    Metrics: `rewards/chosen`, `rewards/rejected`, `rewards/margin` (their difference), `rewards/accuracy` (the chosen
    one's is higher; ties count ½), `rewards/accuracy_longer` and `rewards/accuracy_shorter` (the same, over pairs whose
    chosen completion has more or fewer tokens), `length/chosen`, `length/rejected`.
    """
    rewards_S = rewards_S.detach()
    chosen_P, rejected_P = rewards_S[pairs_P2].unbind(1)
    long_P, short_P = lengths_S.to(rewards_S.dtype)[pairs_P2].unbind(1)
    right_P = 0.5 * (1.0 + torch.sign(chosen_P - rejected_P))
    return {
        "rewards/chosen": Additive.mean(chosen_P, weights_P),
        "rewards/rejected": Additive.mean(rejected_P, weights_P),
        "rewards/margin": Additive.mean(chosen_P - rejected_P, weights_P),
        "rewards/accuracy": Additive.mean(right_P, weights_P),
        "rewards/accuracy_longer": Additive.mean(right_P, weights_P * (long_P > short_P)),
        "rewards/accuracy_shorter": Additive.mean(right_P, weights_P * (long_P < short_P)),
        "length/chosen": Additive.mean(long_P, weights_P),
        "length/rejected": Additive.mean(short_P, weights_P),
    }

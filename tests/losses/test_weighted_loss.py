"""GMPO's weighted likelihood with its KL: by hand, gradients, what it converges to, and independence of the split."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from preftune.engine.divergence import full_divergence
from preftune.losses import Denominators, TokenBatch, merge_metrics, weighted_likelihood
from preftune.signals import baseline_advantages, exponential_weights
from tests.losses.batches import take


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


LENGTHS, WEIGHTS = [3, 1, 0, 2], [2.5, 0.4, 3.0, 0.0]


def example(source: str) -> tuple[TokenBatch, Denominators]:
    """Four completions of 3, 1, 0 and 2 tokens; the last weighs nothing, and its tokens still count for the KL."""
    fields: dict[str, Any] = {
        "neither": {},
        "divergence": {"divergence_T": f64(0.1, 0.2, 0.05, 0.4, 0.3, 0.6).requires_grad_()},
        "on-policy": {"reference_logprobs_T": f64(-0.6, -1.9, -0.2, -1.5, -0.9, -0.1)},
        "off-policy": {
            "reference_logprobs_T": f64(-0.6, -1.9, -0.2, -1.5, -0.9, -0.1),
            "old_logprobs_T": f64(-0.9, -1.1, -0.75, -1.6, -0.8, -0.5),
        },
    }[source]
    batch = TokenBatch(
        logprobs_T=f64(-0.5, -1.2, -0.3, -2.0, -0.9, -0.4).requires_grad_(),
        sequence_T=torch.tensor([0, 0, 0, 1, 3, 3]),
        num_sequences=4,
        weights_S=f64(*WEIGHTS),
        entropy_T=f64(0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
        **fields,
    )
    return batch, Denominators.count(LENGTHS, WEIGHTS, max_tokens=8)


NLL = (2.5 * (0.5 + 1.2 + 0.3) + 0.4 * 2.0) / (2.5 * 3 + 0.4 * 1)


def test_likelihood_by_hand():
    batch, totals = example("neither")
    assert (totals.tokens, totals.all_tokens) == (pytest.approx(7.9), 6.0)
    out = weighted_likelihood(batch, totals, beta=0.0)
    assert out.loss.item() == pytest.approx(NLL)
    assert torch.autograd.grad(out.loss, batch.logprobs_T)[0].tolist() == pytest.approx(
        [-2.5 / 7.9, -2.5 / 7.9, -2.5 / 7.9, -0.4 / 7.9, 0, 0]
    )
    assert {n: m.value() for n, m in out.metrics.items()} == pytest.approx({"nll": NLL, "entropy": 2.1 / 6})


def test_divergence_by_hand():
    batch, totals = example("divergence")
    out = weighted_likelihood(batch, totals, beta=0.05)
    # Over all six tokens, the weightless row's as well.
    assert out.loss.item() == pytest.approx(NLL + 0.05 * 1.65 / 6)
    assert torch.autograd.grad(out.loss, batch.divergence_T)[0].tolist() == pytest.approx([0.05 / 6] * 6)
    assert out.metrics["kl"].value() == pytest.approx(1.65 / 6)


@pytest.mark.parametrize("source", ["on-policy", "off-policy"])
def test_estimated_kl_by_hand(source):
    batch, totals = example(source)
    out = weighted_likelihood(batch, totals, beta=0.05)
    own = [-0.5, -1.2, -0.3, -2.0, -0.9, -0.4]
    reference = [-0.6, -1.9, -0.2, -1.5, -0.9, -0.1]
    old = [-0.9, -1.1, -0.75, -1.6, -0.8, -0.5] if source == "off-policy" else own
    k3 = [math.exp(q - p) - (q - p) - 1 for p, q in zip(own, reference, strict=True)]
    ratio = [math.exp(p - o) for p, o in zip(own, old, strict=True)]
    kl = sum(r * k for r, k in zip(ratio, k3, strict=True)) / 6
    assert out.loss.item() == pytest.approx(NLL + 0.05 * kl)
    assert out.metrics["kl"].value() == pytest.approx(sum(k3) / 6)
    # ∇(ρ k3) = ρ (log π − log π₀) ∇log π.
    per_token = [-2.5 / 7.9] * 3 + [-0.4 / 7.9, 0, 0]
    wanted = [g + 0.05 * r * (p - q) / 6 for g, r, p, q in zip(per_token, ratio, own, reference, strict=True)]
    assert torch.autograd.grad(out.loss, batch.logprobs_T)[0].tolist() == pytest.approx(wanted)


def test_a_whole_vocabularys_kl_goes_before_an_estimate():
    batch, totals = example("divergence")
    both = replace(batch, reference_logprobs_T=example("on-policy")[0].reference_logprobs_T)
    got, want = (weighted_likelihood(b, totals, beta=0.5) for b in (both, batch))
    assert got.loss.item() == want.loss.item()
    assert got.metrics["kl"].value() == want.metrics["kl"].value()


@pytest.mark.parametrize("source", ["divergence", "off-policy"])
def test_gradcheck(source):
    batch, totals = example(source)
    leaves = (batch.logprobs_T, batch.divergence_T) if source == "divergence" else (batch.logprobs_T,)

    def loss(*moved: Tensor) -> Tensor:
        names = ("logprobs_T", "divergence_T")[: len(moved)]
        return weighted_likelihood(replace(batch, **dict(zip(names, moved, strict=True))), totals, beta=0.3).loss

    assert torch.autograd.gradcheck(loss, leaves)


@pytest.mark.parametrize("source", ["divergence", "on-policy", "off-policy", "neither"])
def test_the_split_into_micro_batches_changes_nothing(source):
    batch, totals = example(source)
    beta = 0.0 if source == "neither" else 0.7
    leaves = tuple(x for x in (batch.logprobs_T, batch.divergence_T) if x is not None)
    whole = weighted_likelihood(batch, totals, beta=beta)
    wanted = torch.autograd.grad(whole.loss, leaves)
    for split in ([[0], [1], [2], [3]], [[3, 1], [2, 0]], [[2], [0, 1, 3]], [[0, 1, 2, 3], []]):
        parts = [weighted_likelihood(take(batch, names), totals, beta=beta) for names in split]
        loss = torch.stack([part.loss for part in parts]).sum()
        assert loss.item() == pytest.approx(whole.loss.item(), abs=1e-14)
        for got, want in zip(torch.autograd.grad(loss, leaves), wanted, strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-15)
        merged = merge_metrics([part.metrics for part in parts])
        assert {n: m.value() for n, m in merged.items()} == pytest.approx(
            {n: m.value() for n, m in whole.metrics.items()}
        )


def test_weights_of_one_are_plain_likelihood_and_their_size_cancels():
    batch, _ = example("neither")
    for weight in (1.0, 20.0, 1e-3):
        scaled = replace(batch, weights_S=f64(*[weight] * 4))
        out = weighted_likelihood(scaled, Denominators.count(LENGTHS, [weight] * 4, 8), beta=0.0)
        # Also where Σ w|a| is under 1: six tokens of a thousandth each.
        assert out.loss.item() == pytest.approx((0.5 + 1.2 + 0.3 + 2.0 + 0.9 + 0.4) / 6)


def test_nothing_with_a_weight_leaves_the_kl_alone():
    batch, _ = example("divergence")
    batch = replace(batch, weights_S=f64(0, 0, 0, 0))
    out = weighted_likelihood(batch, Denominators.count(LENGTHS, [0] * 4, 8), beta=0.05)
    assert out.loss.item() == pytest.approx(0.05 * 1.65 / 6)
    assert torch.autograd.grad(out.loss, batch.logprobs_T, retain_graph=True)[0].tolist() == [0.0] * 6
    assert out.metrics["nll"].value() is None
    empty = take(batch, [2])
    out = weighted_likelihood(empty, Denominators.count([0], [0], 8), beta=0.05)
    assert out.loss.item() == 0.0 and out.metrics["kl"].value() is None


def test_half_precision_is_summed_in_fp32():
    batch = TokenBatch(
        logprobs_T=torch.full((4096,), -0.5, dtype=torch.bfloat16, requires_grad=True),
        sequence_T=torch.zeros(4096, dtype=torch.long),
        num_sequences=1,
        weights_S=torch.tensor([1.7]),
        reference_logprobs_T=torch.full((4096,), -0.6, dtype=torch.bfloat16),
    )
    out = weighted_likelihood(batch, Denominators.count([4096], [1.7], 4096), beta=1.0)
    reference = torch.tensor(-0.6, dtype=torch.bfloat16).item()
    d = reference + 0.5
    assert out.loss.dtype == torch.float32
    assert out.loss.item() == pytest.approx(0.5 + math.exp(d) - d - 1, abs=1e-5)


def test_a_kl_from_nothing_is_refused():
    batch, totals = example("neither")
    with pytest.raises(ValueError, match=r"beta is 0.05, so the KL needs divergence_T or reference_logprobs_T"):
        weighted_likelihood(batch, totals, beta=0.05)


# --- what it converges to -------------------------------------------------------------------------------------


def all_actions(logprobs: Tensor, weights: Tensor, **fields: Tensor) -> tuple[TokenBatch, Denominators]:
    """Every action once, as a completion of one token, weighing its share."""
    n = len(logprobs)
    batch = TokenBatch(logprobs, torch.arange(n), n, weights, **fields)
    return batch, Denominators.count([1] * n, weights.tolist(), 1)


def test_the_best_policy_is_the_old_one_tilted_by_the_reward():
    """The loss over samples of π_old is least at π*(a) ∝ π_old(a) · exp(A(a)/τ), AWR's eq. 7, and nowhere else."""
    old, rewards = f64(0.1, 0.4, 0.2, 0.3), f64(1.0, 0.0, 0.6, 0.3)
    advantages, _ = baseline_advantages(rewards, torch.zeros(4, dtype=torch.long), "group")
    tilt = exponential_weights(
        advantages, rewards, torch.zeros(4, dtype=torch.long), temperature=0.4, max_weight=20.0, min_spread=0.02
    )
    best = old * (rewards / 0.4).exp()  # the baseline is the same for all, so it cancels
    best = best / best.sum()

    def slope(at: Tensor) -> Tensor:
        logits = at.log().requires_grad_()
        loss = weighted_likelihood(*all_actions(logits.log_softmax(-1), old * tilt), beta=0.0).loss
        return torch.autograd.grad(loss, logits)[0]

    assert slope(best).abs().max() < 1e-15
    assert slope(old).abs().max() > 0.05


@pytest.mark.parametrize("given", range(4))
def test_the_kl_is_right_for_answers_of_others(given):
    """Answers from a fixed set: with the whole vocabulary's KL the gradient of the penalty is exact whatever the
    answers are; k3 at those answers is not."""
    hidden = torch.eye(1, dtype=torch.float64)
    weight = f64(0.3, -0.5, 1.1, 0.0)[:, None].requires_grad_()
    reference = f64(0.9, -0.4, 0.2, 0.1)[:, None]
    logprobs, anchor = weight[:, 0].log_softmax(-1), reference[:, 0].log_softmax(-1)
    exact = torch.autograd.grad((logprobs.exp() * (logprobs - anchor)).sum(), weight, retain_graph=True)[0]

    def penalty(**fields: Tensor) -> Tensor:
        """The part of the gradient that β brings, on a data set that holds one action alone."""
        batch = TokenBatch(logprobs[given : given + 1], torch.tensor([0]), 1, f64(1), **fields)
        totals = Denominators.count([1], [1], 1)
        grads = [
            torch.autograd.grad(weighted_likelihood(batch, totals, beta=b).loss, weight, retain_graph=True)[0]
            for b in (1.0, 0.0)
        ]
        return grads[0] - grads[1]

    divergence = full_divergence(hidden, weight, hidden, reference)
    torch.testing.assert_close(penalty(divergence_T=divergence), exact, rtol=1e-12, atol=1e-13)
    assert (penalty(reference_logprobs_T=anchor[given : given + 1]) - exact).norm() > 0.3 * exact.norm()

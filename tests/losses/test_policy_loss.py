"""The clipped policy gradient: hand-worked numbers, gradients, limits, and independence of the split."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from preftune.losses import (
    Denominators,
    LossOutput,
    TokenBatch,
    clipped_policy_gradient,
    importance_ratio,
    kl_estimate,
    kl_penalty,
    merge_metrics,
)
from tests.losses.batches import take

RATIOS = ("token", "sequence", "sequence-sum")
AGGREGATES = ("token-mean", "sequence-mean", "constant")
CLIPS = {
    "ppo": {"clip_low": 0.2, "clip_high": 0.28},
    "cispo": {"clip_high": 1.1},
    "none": {},
}


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def example(old: bool = True) -> tuple[TokenBatch, Denominators]:
    """Four completions of 3, 1, 0 and 2 tokens, none on a clip's edge; the last one's row is masked."""
    logprobs = f64(-0.5, -1.2, -0.3, -2.0, -0.9, -0.4).requires_grad_()
    batch = TokenBatch(
        logprobs_T=logprobs,
        sequence_T=torch.tensor([0, 0, 0, 1, 3, 3]),
        num_sequences=4,
        weights_S=f64(1, 1, 1, 0),
        old_logprobs_T=f64(-0.9, -1.1, -0.75, -1.6, -0.8, -0.5) if old else None,
        reference_logprobs_T=f64(-0.6, -1.9, -0.2, -1.5, -0.9, -0.1),
        advantages_S=f64(1.5, -0.7, 0.4, 2.0),
        entropy_T=f64(0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
    )
    return batch, Denominators.count([3, 1, 0, 2], [1, 1, 1, 0], max_tokens=8)


def gradient(output: LossOutput, batch: TokenBatch) -> Tensor:
    return torch.autograd.grad(output.loss, batch.logprobs_T)[0]


# --- values by hand -----------------------------------------------------------------------------------------


def two_rows(old: bool = True) -> tuple[TokenBatch, Denominators]:
    """Ratios: first completion 2 and 1, second 1/2. Advantages 1 and -1."""
    batch = TokenBatch(
        logprobs_T=f64(math.log(0.8), math.log(0.5), math.log(0.2)).requires_grad_(),
        sequence_T=torch.tensor([0, 0, 1]),
        num_sequences=2,
        weights_S=f64(1, 1),
        old_logprobs_T=f64(math.log(0.4), math.log(0.5), math.log(0.4)) if old else None,
        advantages_S=f64(1, -1),
    )
    return batch, Denominators.count([2, 1], [1, 1], max_tokens=5)


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        ("token", [2.0, 1.0, 0.5]),
        ("sequence", [math.sqrt(2.0), math.sqrt(2.0), 0.5]),  # exp((ln 2 + 0) / 2)
        ("sequence-sum", [2.0, 2.0, 0.5]),  # exp(ln 2 + 0)
    ],
)
def test_ratio_by_hand(ratio, expected):
    batch, _ = two_rows()
    values = importance_ratio(batch.logprobs_T, batch.old_logprobs_T, batch.sequence_T, 2, ratio)
    assert values.tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [
        # Token losses: -min(2, 1.2) = -1.2; -1; -min(-0.5, -0.8) = 0.8.
        ("token-mean", (-1.2 - 1.0 + 0.8) / 3),
        ("sequence-mean", ((-1.2 - 1.0) / 2 + 0.8) / 2),
        ("constant", (-1.2 - 1.0 + 0.8) / (2 * 5)),
    ],
)
def test_ppo_by_hand(aggregate, expected):
    batch, denominators = two_rows()
    out = clipped_policy_gradient(batch, denominators, clip_low=0.2, clip_high=0.2, aggregate=aggregate)
    assert out.loss.item() == pytest.approx(expected)
    # Token 0 is clipped above (ratio 2, A > 0), token 2 below (ratio 0.5, A < 0): one token in three each.
    assert out.metrics["clip/high"].value() == pytest.approx(1 / 3)
    assert out.metrics["clip/low"].value() == pytest.approx(1 / 3)
    assert out.metrics["ratio/max"].value() == pytest.approx(2.0)
    assert out.metrics["ratio/mean"].value() == pytest.approx(3.5 / 3)
    # A clipped token has no gradient; the other one has -ρ A / D.
    grad = gradient(out, batch)
    scale = {"token-mean": 1 / 3, "sequence-mean": 1 / 4, "constant": 1 / 10}[aggregate]
    assert grad.tolist() == pytest.approx([0.0, -1.0 * scale, 0.0])


def test_clip_keeps_the_pessimistic_side():
    # Advantages turned round: ratio 2 with A < 0 and 0.5 with A > 0 are never clipped.
    batch, denominators = two_rows()
    batch = replace(batch, advantages_S=f64(-1, 1))
    out = clipped_policy_gradient(batch, denominators, clip_low=0.2, clip_high=0.2)
    assert out.loss.item() == pytest.approx((2 + 1 - 0.5) / 3)
    assert out.metrics["clip/high"].value() == 0.0
    assert out.metrics["clip/low"].value() == 0.0


def test_cispo_by_hand():
    # Ratios 2, 1, 0.5 capped at 1.5: -(1.5·1·ln 0.8 + 1·1·ln 0.5 + 0.5·(-1)·ln 0.2) / 3.
    batch, denominators = two_rows()
    out = clipped_policy_gradient(batch, denominators, clip="cispo", clip_high=1.5)
    expected = -(1.5 * math.log(0.8) + math.log(0.5) - 0.5 * math.log(0.2)) / 3
    assert out.loss.item() == pytest.approx(expected)
    assert out.metrics["clip/high"].value() == pytest.approx(1 / 3)
    # Even a capped token keeps its gradient: that is the point of CISPO.
    assert gradient(out, batch).tolist() == pytest.approx([-1.5 / 3, -1 / 3, 0.5 / 3])


def test_gspo_by_hand():
    # Sequence ratios sqrt 2 (A 1) and 0.5 (A -1), clipped to 1 ± 0.2: means over sequences of -1.2 and 0.8.
    batch, denominators = two_rows()
    out = clipped_policy_gradient(
        batch, denominators, ratio="sequence", clip_low=0.2, clip_high=0.2, aggregate="sequence-mean"
    )
    assert out.loss.item() == pytest.approx((-1.2 + 0.8) / 2)
    out = clipped_policy_gradient(
        batch, denominators, ratio="sequence", clip_low=0.2, clip_high=0.5, aggregate="sequence-mean"
    )
    assert out.loss.item() == pytest.approx((-math.sqrt(2) + 0.8) / 2)
    # d/dlogπ_t of -ρ_s is -ρ_s / |y| for each of its two tokens; sequence 1 is clipped.
    assert gradient(out, batch).tolist() == pytest.approx([-math.sqrt(2) / 4, -math.sqrt(2) / 4, 0.0])


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("clip", CLIPS)
def test_on_policy_ratio_is_one_but_trains(ratio, clip):
    batch, denominators = two_rows(old=False)
    out = clipped_policy_gradient(batch, denominators, ratio=ratio, clip=clip, aggregate="sequence-mean", **CLIPS[clip])
    assert out.metrics["ratio/mean"].value() == 1.0
    if clip != "cispo":  # cispo's value is A·log π, its gradient the same
        assert out.loss.item() == pytest.approx((-1 + 1) / 2)
    # -A ∇log π, averaged over tokens, then sequences; sequence-sum gives each token the whole ratio's gradient.
    scale = 2.0 if ratio == "sequence-sum" and clip != "cispo" else 1.0
    assert gradient(out, batch).tolist() == pytest.approx([-0.25 * scale, -0.25 * scale, 0.5])


# --- KL -----------------------------------------------------------------------------------------------------


def test_kl_estimates_by_hand():
    # d = log π₀ - log π = ln(0.5 / 0.25) = ln 2: k1 = -ln 2, k2 = ln² 2 / 2, k3 = 2 - ln 2 - 1.
    logprobs, reference = f64(math.log(0.25)), f64(math.log(0.5))
    assert kl_estimate(logprobs, reference, "k1").item() == pytest.approx(-math.log(2))
    assert kl_estimate(logprobs, reference, "k2").item() == pytest.approx(math.log(2) ** 2 / 2)
    assert kl_estimate(logprobs, reference, "k3").item() == pytest.approx(1 - math.log(2))


@pytest.mark.parametrize("kind", ["k2", "k3"])
@pytest.mark.parametrize("old", [False, True])
def test_penalty_has_the_gradient_of_the_kl(kind, old):
    """Over a whole vocabulary of four tokens, the expected penalty's gradient is the KL's own, also off-policy."""
    logits = f64(0.3, -0.5, 1.1, 0.0).requires_grad_()
    logprobs = logits.log_softmax(-1)
    reference = f64(-0.2, 0.4, 0.1, 0.9).log_softmax(-1)
    sampler = f64(0.5, 0.5, -0.5, 0.2).log_softmax(-1) if old else None
    exact = torch.autograd.grad((logprobs.exp() * (logprobs - reference)).sum(), logits, retain_graph=True)[0]
    probabilities = (logprobs if sampler is None else sampler).exp().detach()
    penalty = kl_penalty(logprobs, sampler, reference, kind)
    got = torch.autograd.grad((probabilities * penalty).sum(), logits, retain_graph=True)[0]
    torch.testing.assert_close(got, exact, rtol=1e-12, atol=1e-12)
    # Plain k3 without the ratio is another gradient, and plain k1's is zero: both are the traps.
    plain = torch.autograd.grad(
        (logprobs.exp().detach() * kl_estimate(logprobs, reference, "k3")).sum(), logits, retain_graph=True
    )[0]
    assert (plain - exact).abs().max() > 0.01
    k1 = torch.autograd.grad((logprobs.exp().detach() * kl_estimate(logprobs, reference, "k1")).sum(), logits)[0]
    assert k1.abs().max() < 1e-12


def test_penalty_by_hand():
    # One token, A = 0, ratio 1, d = ln 2, β = 0.04: loss 0.04 (1 - ln 2); gradient 0.04 (log π - log π₀).
    batch = TokenBatch(
        logprobs_T=f64(math.log(0.25)).requires_grad_(),
        sequence_T=torch.tensor([0]),
        num_sequences=1,
        weights_S=f64(1),
        reference_logprobs_T=f64(math.log(0.5)),
        advantages_S=f64(0),
    )
    out = clipped_policy_gradient(batch, Denominators(1, 1, 1), clip_low=0.2, clip_high=0.2, beta=0.04)
    assert out.loss.item() == pytest.approx(0.04 * (1 - math.log(2)))
    assert gradient(out, batch).item() == pytest.approx(-0.04 * math.log(2))
    assert out.metrics["kl"].value() == pytest.approx(1 - math.log(2))


# --- every combination against plain loops, with gradcheck ------------------------------------------------


def plain_loss(
    logprobs: Tensor, anchor: Tensor, batch: TokenBatch, ratio: str, clip: str, aggregate: str, beta: float, kl: str
) -> Tensor:
    """The equations again, in loops over completions. `anchor` is log π held constant wherever a detach stands."""
    assert batch.advantages_S is not None and batch.reference_logprobs_T is not None
    old = anchor if batch.old_logprobs_T is None else batch.old_logprobs_T
    total = logprobs.new_zeros(())
    counted = sum(int(batch.weights_S[s]) for s in batch.sequence_T.tolist())
    for s in range(batch.num_sequences):
        tokens = [t for t, owner in enumerate(batch.sequence_T.tolist()) if owner == s]
        for t in tokens:

            def level(x: Tensor, t: int = t, tokens: list[int] = tokens) -> Tensor:
                summed = torch.stack([x[i] - old[i] for i in tokens]).sum()
                return {
                    "token": x[t] - old[t],
                    "sequence": summed / len(tokens),
                    "sequence-sum": summed,
                }[ratio].exp()

            a, rho = batch.advantages_S[s], level(logprobs)
            if clip == "ppo":
                term = -min(rho * a, rho.clamp(0.8, 1.28) * a, key=Tensor.item)
            elif clip == "cispo":
                term = -min(float(level(anchor)), 1.1) * a * logprobs[t]
            else:
                term = -rho * a
            d = batch.reference_logprobs_T[t] - logprobs[t]
            if kl == "k3":
                term = term + beta * (logprobs[t] - old[t]).exp() * (d.exp() - d - 1)
            else:
                term = term + beta * (anchor[t] - old[t]).exp() * d**2 / 2
            scale = {
                "token-mean": counted,
                "sequence-mean": len(tokens) * batch.num_sequences,
                "constant": batch.num_sequences * 8,
            }[aggregate]
            total = total + term * batch.weights_S[s] / scale
    return total


@pytest.mark.parametrize(("beta", "kl"), [(0.0, "k3"), (0.3, "k3"), (0.3, "k2")])
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize(("ratio", "clip"), list(itertools.product(RATIOS, CLIPS)))
def test_every_combination(ratio, clip, aggregate, old, beta, kl):
    batch, denominators = example(old)
    choices = dict(ratio=ratio, clip=clip, aggregate=aggregate, beta=beta, kl=kl, **CLIPS[clip])
    out = clipped_policy_gradient(batch, denominators, **choices)
    anchor = batch.logprobs_T.detach().clone()

    def plain(logprobs: Tensor) -> Tensor:
        return plain_loss(logprobs, anchor, batch, ratio, clip, aggregate, beta, kl)

    assert out.loss.item() == pytest.approx(plain(batch.logprobs_T).item(), abs=1e-12)
    expected = torch.autograd.grad(plain(batch.logprobs_T), batch.logprobs_T)[0]
    torch.testing.assert_close(gradient(out, batch), expected, rtol=1e-12, atol=1e-12)
    # What is detached is constant under the finite differences, so gradcheck holds for the anchored equations …
    assert torch.autograd.gradcheck(plain, (batch.logprobs_T,))
    # … and, where nothing is detached, for the loss itself.
    if old and clip != "cispo" and (beta == 0.0 or kl == "k3"):

        def loss(logprobs: Tensor) -> Tensor:
            return clipped_policy_gradient(replace(batch, logprobs_T=logprobs), denominators, **choices).loss

        assert torch.autograd.gradcheck(loss, (batch.logprobs_T,))


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize(("ratio", "clip"), list(itertools.product(RATIOS, CLIPS)))
def test_the_split_into_micro_batches_changes_nothing(ratio, clip, aggregate, old):
    batch, denominators = example(old)
    choices = dict(ratio=ratio, clip=clip, aggregate=aggregate, beta=0.1, **CLIPS[clip])
    whole = clipped_policy_gradient(batch, denominators, **choices)
    for split in ([[0], [1], [2], [3]], [[3, 1], [2, 0]], [[2], [0, 1, 3]], [[0, 1, 2, 3], []]):
        parts = [clipped_policy_gradient(take(batch, names), denominators, **choices) for names in split]
        loss = torch.stack([part.loss for part in parts]).sum()
        assert loss.item() == pytest.approx(whole.loss.item(), abs=1e-12)
        grad = torch.autograd.grad(loss, batch.logprobs_T)[0]
        torch.testing.assert_close(grad, gradient_again(whole, batch), rtol=0, atol=1e-12)
        merged = merge_metrics([part.metrics for part in parts])
        assert merged.keys() == whole.metrics.keys()
        for name, metric in merged.items():
            assert metric.value() == pytest.approx(whole.metrics[name].value(), abs=1e-12), name


def gradient_again(output: LossOutput, batch: TokenBatch) -> Tensor:
    return torch.autograd.grad(output.loss, batch.logprobs_T, retain_graph=True)[0]


# --- limits -------------------------------------------------------------------------------------------------


def test_beta_towards_zero_is_no_penalty():
    batch, denominators = example()
    without = clipped_policy_gradient(batch, denominators, clip_low=0.2, clip_high=0.2)
    tiny = clipped_policy_gradient(batch, denominators, clip_low=0.2, clip_high=0.2, beta=1e-14)
    assert tiny.loss.item() == pytest.approx(without.loss.item(), abs=1e-13)
    torch.testing.assert_close(gradient(tiny, batch), gradient(without, batch), rtol=0, atol=1e-13)


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_one_token_makes_all_ratio_levels_equal(aggregate):
    batch = TokenBatch(
        logprobs_T=f64(-0.4).requires_grad_(),
        sequence_T=torch.tensor([0]),
        num_sequences=1,
        weights_S=f64(1),
        old_logprobs_T=f64(-0.5),
        advantages_S=f64(2),
    )
    losses = [
        clipped_policy_gradient(
            batch, Denominators(1, 1, 1), ratio=ratio, clip_low=0.2, clip_high=0.2, aggregate=aggregate
        ).loss.item()
        for ratio in RATIOS
    ]
    assert losses == pytest.approx([-2 * math.exp(0.1)] * 3)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("clip", CLIPS)
def test_completions_without_tokens(ratio, aggregate, clip):
    batch = TokenBatch(
        logprobs_T=f64().requires_grad_(),
        sequence_T=torch.tensor([], dtype=torch.long),
        num_sequences=2,
        weights_S=f64(1, 1),
        reference_logprobs_T=f64(),
        advantages_S=f64(1, -1),
    )
    denominators = Denominators.count([0, 0], [1, 1], max_tokens=4)
    out = clipped_policy_gradient(
        batch, denominators, ratio=ratio, clip=clip, aggregate=aggregate, beta=0.1, **CLIPS[clip]
    )
    assert out.loss.item() == 0.0
    assert gradient(out, batch).shape == (0,)
    assert {name: metric.value() for name, metric in out.metrics.items()} == dict.fromkeys(out.metrics)


def test_masked_rows_carry_nothing_but_count_in_two_denominators():
    batch, denominators = two_rows(old=False)
    batch = replace(batch, weights_S=f64(1, 0))
    denominators = Denominators.count([2, 1], [1, 0], max_tokens=5)
    assert denominators == Denominators(tokens=2, sequences=2, max_tokens=5, all_tokens=3)
    for aggregate, expected in (("token-mean", -1.0), ("sequence-mean", -0.5), ("constant", -0.2)):
        out = clipped_policy_gradient(batch, denominators, clip_low=0.2, clip_high=0.2, aggregate=aggregate)
        assert out.loss.item() == pytest.approx(expected)
        assert gradient(out, batch)[2].item() == 0.0
        assert out.metrics["nll"].value() == pytest.approx(-(math.log(0.8) + math.log(0.5)) / 2)
    nothing = replace(batch, weights_S=f64(0, 0))
    out = clipped_policy_gradient(nothing, Denominators.count([2, 1], [0, 0], 5), clip_low=0.2, clip_high=0.2)
    assert out.loss.item() == 0.0
    assert out.metrics["ratio/max"].value() is None


@pytest.mark.parametrize("clip", CLIPS)
def test_all_advantages_zero_is_no_gradient_even_far_from_the_sampler(clip):
    # exp(200) overflows fp32; inf · 0 would be NaN.
    batch = TokenBatch(
        logprobs_T=torch.tensor([-1.0, -2.0], requires_grad=True),
        sequence_T=torch.tensor([0, 0]),
        num_sequences=1,
        weights_S=torch.ones(1),
        old_logprobs_T=torch.tensor([-201.0, -2.0]),
        advantages_S=torch.zeros(1),
    )
    for ratio in RATIOS:
        out = clipped_policy_gradient(batch, Denominators(2, 1, 2), ratio=ratio, clip=clip, **CLIPS[clip])
        assert out.loss.item() == 0.0
        assert gradient(out, batch).tolist() == [0.0, 0.0]


def test_bf16_logprobs_are_summed_in_fp32():
    # Each of 4,096 tokens has a log ratio of 0.01, so their mean is 0.01. A bf16 running sum would stop growing
    # near 4, where 0.01 is less than half its last digit.
    batch = TokenBatch(
        logprobs_T=torch.full((4096,), -0.5, dtype=torch.bfloat16, requires_grad=True),
        sequence_T=torch.zeros(4096, dtype=torch.long),
        num_sequences=1,
        weights_S=torch.ones(1),
        old_logprobs_T=torch.full((4096,), -0.51),
        advantages_S=torch.ones(1),
    )
    out = clipped_policy_gradient(batch, Denominators(4096, 1, 1), ratio="sequence", clip="none")
    assert out.loss.dtype == torch.float32
    assert out.loss.item() == pytest.approx(-math.exp(0.01), abs=1e-5)


# --- errors -------------------------------------------------------------------------------------------------


def test_wrong_requests_are_refused():
    batch, denominators = example()
    ppo = {"clip_low": 0.2, "clip_high": 0.2}
    with pytest.raises(ValueError, match="expected gradient is zero"):
        clipped_policy_gradient(batch, denominators, **ppo, beta=0.1, kl="k1")
    with pytest.raises(ValueError, match="needs reference_logprobs_T"):
        clipped_policy_gradient(replace(batch, reference_logprobs_T=None), denominators, **ppo, beta=0.1)
    with pytest.raises(ValueError, match="can't be negative"):
        clipped_policy_gradient(batch, denominators, **ppo, beta=-0.1)
    with pytest.raises(ValueError, match="needs advantages_S"):
        clipped_policy_gradient(replace(batch, advantages_S=None), denominators, **ppo)
    with pytest.raises(ValueError, match="clip: ppo needs"):
        clipped_policy_gradient(batch, denominators, clip_low=0.2)
    with pytest.raises(ValueError, match="clip: cispo takes"):
        clipped_policy_gradient(batch, denominators, clip="cispo", **ppo)
    with pytest.raises(ValueError, match="clip: none takes"):
        clipped_policy_gradient(batch, denominators, clip="none", **ppo)
    with pytest.raises(ValueError, match="unknown clip"):
        clipped_policy_gradient(batch, denominators, clip="both")
    with pytest.raises(ValueError, match="unknown ratio"):
        clipped_policy_gradient(batch, denominators, ratio="word", **ppo)
    with pytest.raises(ValueError, match="unknown aggregate"):
        clipped_policy_gradient(batch, denominators, aggregate="mean", **ppo)
    with pytest.raises(ValueError, match="unknown KL estimator"):
        clipped_policy_gradient(batch, denominators, **ppo, beta=0.1, kl="k4")

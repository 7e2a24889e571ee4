"""KTO: numbers worked out by hand, limits, gradients, and what must not change them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.losses import Denominators, TokenBatch, kto_loss, merge_metrics
from tests.losses.batches import make, totals

# Δ: 2 (2 tokens), −1 (1 token), 3 (1 token). The first two are desirable.
LOGPROBS = [[-1.0, -1.0], [-3.0], [-1.0]]
REFERENCE = [[-2.0, -2.0], [-2.0], [-4.0]]
LABELS = [1.0, 1.0, -1.0]


def loss_of(batch: TokenBatch, denominators: Denominators | None = None, **choices: Any) -> Any:
    return kto_loss(batch, denominators or totals(batch), **{"beta": 0.5, **choices})


def gradient(output: Any, batch: TokenBatch) -> list[float]:
    (grad,) = torch.autograd.grad(output.loss, batch.logprobs_T)
    return [float(g) for g in grad]


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def test_by_hand():
    # z = 1, β 0.5. Desirable: 1 − σ(0.5 · (2 − 1)) = 0.3775407 and 1 − σ(0.5 · (−1 − 1)) = 0.7310586.
    # Undesirable: 1 − σ(0.5 · (1 − 3)) = 0.7310586. Mean over three rows: 1.8396579 / 3.
    batch = make(LOGPROBS, REFERENCE, labels=LABELS, baseline=1.0)
    assert loss_of(batch).loss.item() == pytest.approx(0.6132193, abs=1e-6)
    # λ_D 1.5, λ_U 0.5, and still a plain mean: (1.5 · 1.1085993 + 0.5 · 0.7310586) / 3.
    output = loss_of(batch, desirable_weight=1.5, undesirable_weight=0.5)
    assert output.loss.item() == pytest.approx(0.6761428, abs=1e-6)


def test_gradient_by_hand():
    # ∓λ β σ'(β(Δ − z)) / 3 with σ'(0.5) = 0.2350037, σ'(1) = 0.1966119; each token of a row has its row's slope.
    batch = make(LOGPROBS, REFERENCE, labels=LABELS, baseline=1.0)
    first, second, third = -0.5 * 0.2350037 / 3, -0.5 * 0.1966119 / 3, 0.5 * 0.1966119 / 3
    assert gradient(loss_of(batch), batch) == pytest.approx([first, first, second, third], abs=1e-7)
    weighted = loss_of(batch, desirable_weight=1.2, undesirable_weight=0.8)
    expected = [1.2 * first, 1.2 * first, 1.2 * second, 0.8 * third]
    assert gradient(weighted, batch) == pytest.approx(expected, abs=1e-7)


def test_the_baseline_has_a_floor_and_no_gradient():
    below = make(LOGPROBS, REFERENCE, labels=LABELS, baseline=-7.0)
    at = make(LOGPROBS, REFERENCE, labels=LABELS, baseline=0.0)
    output = loss_of(below)
    assert output.loss.item() == loss_of(at).loss.item()
    assert (output.metrics["kl"].value(), output.metrics["kl/raw"].value()) == (0.0, -7.0)
    moving = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    loss_of(replace(below, baseline=moving)).loss.backward()
    assert moving.grad is None


def test_gradcheck():
    batch = make([*LOGPROBS, []], [*REFERENCE, []], labels=[*LABELS, -1.0], baseline=0.7)

    def loss(logprobs_T: torch.Tensor) -> torch.Tensor:
        return loss_of(replace(batch, logprobs_T=logprobs_T), desirable_weight=1.3, undesirable_weight=0.6).loss

    assert torch.autograd.gradcheck(loss, (batch.logprobs_T,))


def test_limits():
    batch = make(LOGPROBS, REFERENCE, labels=LABELS, baseline=1.0)
    # β → 0: each row is λ/2, and its slope ∓λβ/4 over the rows.
    small = loss_of(batch, beta=1e-7, desirable_weight=1.5)
    assert small.loss.item() == pytest.approx((1.5 + 1.5 + 1.0) / 6, abs=1e-6)
    expected = [-1.5e-7 / 12] * 3 + [1e-7 / 12]
    assert gradient(small, batch) == pytest.approx(expected, abs=1e-12)
    # The policy is the reference: Δ = 0 and z = 0, so each row is ½ and pulls with β/4.
    same = make(REFERENCE, REFERENCE, labels=LABELS, baseline=0.0)
    assert loss_of(same).loss.item() == pytest.approx(0.5)
    assert gradient(loss_of(same), same) == pytest.approx([-0.125 / 3] * 3 + [0.125 / 3])


@pytest.mark.parametrize("label", [1.0, -1.0])
def test_empty_completion(label):
    # Δ = 0, z = 2, β 0.5: desirable 1 − σ(−1) = 0.7310586, undesirable 1 − σ(1) = 0.2689414.
    batch = make([[], [-1.0]], [[], [-1.0]], labels=[label, 1.0], baseline=2.0)
    output = loss_of(batch, Denominators(1.0, 2.0, 9.0))
    own = output.loss.item() - 0.7310586 / 2  # the other row's share
    assert own == pytest.approx((0.7310586 if label > 0 else 0.2689414) / 2, abs=1e-6)
    nothing = make([[]], [[]], labels=[label], baseline=2.0)
    blank = loss_of(nothing)
    assert blank.metrics["nll"].value() is None
    blank.loss.backward()


@pytest.mark.parametrize("label", [1.0, -1.0])
@pytest.mark.parametrize("far", [-1e4, 1e4])
def test_huge_ratios_stay_finite(label, far):
    batch = make([[min(far, 0.0) - 1e-6]], [[-max(far, 0.0) - 1e-6]], labels=[label], baseline=3.0, dtype=torch.float32)
    output = loss_of(batch, beta=1.0)
    assert output.loss.item() == pytest.approx(0.0 if label * far > 0 else 1.0)
    assert gradient(output, batch) == pytest.approx([0.0])


def test_a_nearly_won_row_keeps_its_digits():
    """1 − σ(20) is 2e-9; in fp32, taken as a difference, it would be 0."""
    batch = make([[-1.0]], [[-21.0]], labels=[1.0], baseline=0.0, dtype=torch.float32)
    assert loss_of(batch, beta=1.0).loss.item() == pytest.approx(math.exp(-20.0), rel=1e-4)


def rows_of(seed: int) -> tuple[list[list[float]], list[list[float]], list[float]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 5, (6,), generator=generator).tolist()
    draw = [(-2.0 * torch.rand(n, 2, generator=generator, dtype=torch.float64)).tolist() for n in lengths]
    labels = torch.randint(0, 2, (6,), generator=generator).mul(2).sub(1).float().tolist()
    return [[a for a, _ in row] for row in draw], [[b for _, b in row] for row in draw], labels


@given(seed=st.integers(0, 10**6), order=st.permutations(range(6)), cut=st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_split_and_order_change_nothing(seed, order, cut):
    logprobs, reference, labels = rows_of(seed)
    whole = make(logprobs, reference, labels=labels, baseline=0.4)
    denominators = totals(whole)
    parts = []
    for places in (order[:cut], order[cut:]):
        rows, base = [logprobs[i] for i in places], [reference[i] for i in places]
        parts.append(make(rows, base, labels=[labels[i] for i in places], baseline=0.4))
    one = loss_of(whole, desirable_weight=1.4)
    many = [loss_of(part, denominators, desirable_weight=1.4) for part in parts]
    assert sum(output.loss.item() for output in many) == pytest.approx(one.loss.item(), abs=1e-9)
    merged = merge_metrics([output.metrics for output in many])
    expected = {name: part.value() for name, part in one.metrics.items()}
    assert {name: part.value() for name, part in merged.items()} == pytest.approx(expected)
    slopes = sorted(g for output, part in zip(many, parts, strict=True) for g in gradient(output, part))
    assert slopes == pytest.approx(sorted(gradient(one, whole)), abs=1e-9)


def test_a_masked_row_adds_nothing_and_still_counts():
    batch = make(LOGPROBS, REFERENCE, labels=LABELS, baseline=1.0, weights=[1.0, 0.0, 1.0])
    # As in the first test without 0.7310586 of row 1.
    output = loss_of(batch)
    assert output.loss.item() == pytest.approx((0.3775407 + 0.7310586) / 3, abs=1e-6)
    assert output.metrics["rewards/chosen"].value() == pytest.approx(1.0)


def test_metrics_by_hand():
    batch = make(LOGPROBS, REFERENCE, labels=LABELS, baseline=1.0)
    values = {name: part.value() for name, part in loss_of(batch).metrics.items()}
    assert values == pytest.approx(
        {
            "rewards/chosen": 0.25,  # 0.5 · (2 − 1) / 2
            "rewards/rejected": 1.5,
            "logprobs/chosen": -2.5,  # (−2 − 3) / 2
            "logprobs/rejected": -1.0,
            "length/chosen": 1.5,
            "length/rejected": 1.0,
            "nll": 5 / 3,  # 2 + 3 over 3 tokens
            "kl": 1.0,
            "kl/raw": 1.0,
        }
    )
    lone = loss_of(make([[-1.0]], [[-2.0]], labels=[-1.0], baseline=1.0)).metrics
    assert lone["rewards/chosen"].value() is None, "no desirable row was seen"
    assert lone["rewards/rejected"].value() == 0.5


def test_half_precision_sums():
    batch = make([[-1.0] * 1000], [[-1.0] * 1000], labels=[1.0], baseline=0.0, dtype=torch.bfloat16)
    output = loss_of(batch)
    assert output.loss.dtype == torch.float32
    assert output.metrics["logprobs/chosen"].value() == -1000.0


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ({"advantages_S": None}, "kto needs labels"),
        ({"baseline": None}, "kto needs a baseline"),
        ({"reference_logprobs_T": None}, "give reference_logprobs_T"),
    ],
)
def test_missing_parts(missing, message):
    batch = replace(make(LOGPROBS, REFERENCE, labels=LABELS, baseline=1.0), **missing)
    with pytest.raises(ValueError, match=message):
        loss_of(batch)


def test_refused_numbers():
    batch = make(LOGPROBS, REFERENCE, labels=LABELS, baseline=1.0)
    with pytest.raises(ValueError, match="beta must be above 0, not -1"):
        loss_of(batch, beta=-1.0)
    with pytest.raises(ValueError, match="count 2 sequences, but this micro-batch alone has 3"):
        loss_of(batch, Denominators(4.0, 2.0, 9.0))

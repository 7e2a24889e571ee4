"""Aggregates, denominators, metrics and the supervised loss, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from preftune.losses import Additive, Denominators, TokenBatch, aggregate, merge_metrics, nll


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Completions of 2, 1 and 0 tokens; the batch elsewhere has 3 more tokens in 1 more completion.
LOSS = f64(1.0, 3.0, 10.0)
SEQUENCE = torch.tensor([0, 0, 1])
TOTALS = Denominators(tokens=6, sequences=4, max_tokens=5)


@pytest.mark.parametrize(
    ("kind", "weights", "expected"),
    [
        ("token-mean", (1, 1, 1), 14 / 6),
        ("sequence-mean", (1, 1, 1), (2 + 10 + 0) / 4),
        ("constant", (1, 1, 1), 14 / (4 * 5)),
        ("token-mean", (1, 0, 1), 4 / 6),
        ("sequence-mean", (1, 0, 1), 2 / 4),
        ("constant", (1, 0, 1), 4 / 20),
    ],
)
def test_aggregate_by_hand(kind, weights, expected):
    assert aggregate(LOSS, SEQUENCE, 3, kind, TOTALS, f64(*weights)).item() == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["token-mean", "sequence-mean", "constant"])
def test_aggregate_gradcheck(kind):
    assert torch.autograd.gradcheck(
        lambda loss: aggregate(loss, SEQUENCE, 3, kind, TOTALS, f64(1, 1, 0)), (LOSS.clone().requires_grad_(),)
    )


def test_denominators_of_one_micro_batch_are_refused():
    with pytest.raises(ValueError, match="totals of the whole optimizer batch"):
        aggregate(LOSS, SEQUENCE, 3, "sequence-mean", Denominators(3, 2, 5), f64(1, 1, 1))
    with pytest.raises(ValueError, match="max_tokens of at least 1"):
        aggregate(LOSS, SEQUENCE, 3, "constant", Denominators(3, 3, 0), f64(1, 1, 1))
    with pytest.raises(ValueError, match="2 lengths but 1 weights"):
        Denominators.count([1, 2], [1], 5)


def test_batch_shapes_are_checked():
    with pytest.raises(ValueError, match=r"old_logprobs_T has shape \(2,\), expected \(3,\)"):
        TokenBatch(LOSS, SEQUENCE, 3, f64(1, 1, 1), old_logprobs_T=f64(0, 0))
    with pytest.raises(ValueError, match=r"weights_S has shape \(2,\), expected \(3,\)"):
        TokenBatch(LOSS, SEQUENCE, 3, f64(1, 1))
    with pytest.raises(ValueError, match="must be flat"):
        TokenBatch(LOSS[None], SEQUENCE[None], 3, f64(1, 1, 1))


def test_nll_by_hand():
    # Probabilities 1/2, 1/4 and, in a masked row, 1/8: (ln 2 + ln 4) / 2 = 1.5 ln 2.
    logprobs = f64(math.log(1 / 2), math.log(1 / 4), math.log(1 / 8)).requires_grad_()
    batch = TokenBatch(logprobs, SEQUENCE, 3, f64(1, 0, 1), entropy_T=f64(0.5, 1.5, 9))
    out = nll(batch, Denominators.count([2, 1, 0], [1, 0, 1], 5))
    assert out.loss.item() == pytest.approx(1.5 * math.log(2))
    assert out.metrics["nll"].value() == pytest.approx(1.5 * math.log(2))
    assert out.metrics["entropy"].value() == pytest.approx(1.0)
    assert torch.autograd.grad(out.loss, logprobs)[0].tolist() == [-0.5, -0.5, 0.0]


def test_nll_does_not_depend_on_the_split():
    # One long and one short completion: the mean over tokens is not the mean of the two means.
    logprobs = f64(-1, -2, -3, -10).requires_grad_()
    totals = Denominators.count([3, 1], [1, 1], 5)
    whole = nll(TokenBatch(logprobs, torch.tensor([0, 0, 0, 1]), 2, f64(1, 1)), totals)
    first = nll(TokenBatch(logprobs[:3], torch.tensor([0, 0, 0]), 1, f64(1)), totals)
    last = nll(TokenBatch(logprobs[3:], torch.tensor([0]), 1, f64(1)), totals)
    assert whole.loss.item() == pytest.approx(4.0)
    assert (first.loss + last.loss).item() == pytest.approx(4.0, abs=1e-12)
    parts = torch.autograd.grad(first.loss + last.loss, logprobs)[0]
    assert parts.tolist() == [-0.25] * 4
    assert merge_metrics([first.metrics, last.metrics])["nll"].value() == pytest.approx(4.0, abs=1e-12)


def test_metrics_add_up():
    a = Additive.mean(f64(1, 2, 100), f64(1, 1, 0))
    b = Additive.mean(f64(6), f64(1))
    assert (a + b).value() == pytest.approx(3.0)
    high = Additive.maximum(f64(1, 5, 99), f64(1, 1, 0)) + Additive.maximum(f64(), f64())
    assert high.value() == 5.0
    assert Additive.maximum(f64(-3), f64(1)).value() == -3.0
    assert Additive.mean(f64(), f64()).value() is None
    with pytest.raises(ValueError, match="can't add a max to a mean"):
        a + high
    assert merge_metrics([]) == {}
    assert merge_metrics([{"x": a}, {"x": b, "y": b}])["y"].value() == 6.0

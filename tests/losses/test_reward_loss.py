"""Bradley–Terry with margin and centring: numbers worked out by hand, limits, gradients, invariances."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.losses import Denominators, TokenBatch, bradley_terry, merge_metrics


def scored(
    scores: Sequence[float],
    pairs: Sequence[tuple[int, int]] | None,
    margins: Sequence[float] | None = None,
    lengths: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float64,
) -> TokenBatch:
    return TokenBatch(
        logprobs_T=torch.empty(0),
        sequence_T=torch.empty(0, dtype=torch.long),
        num_sequences=len(scores),
        weights_S=torch.ones(len(scores)) if weights is None else torch.tensor(weights),
        pairs_P2=None if pairs is None else torch.tensor(pairs, dtype=torch.long).reshape(-1, 2),
        margins_P=None if margins is None else torch.tensor(margins),
        scores_S=torch.tensor(scores, dtype=dtype, requires_grad=True),
        lengths_S=torch.tensor(lengths or [1] * len(scores)),
    )


def loss_of(batch: TokenBatch, center: float = 0.0, pairs: float | None = None) -> Any:
    count = float(len(batch.pairs_P2)) if pairs is None and batch.pairs_P2 is not None else pairs or 0.0
    return bradley_terry(batch, Denominators(0.0, float(batch.num_sequences), 9.0, pairs=count), center=center)


def gradient(output: Any, batch: TokenBatch) -> list[float]:
    assert batch.scores_S is not None
    (grad,) = torch.autograd.grad(output.loss, batch.scores_S)
    return [float(g) for g in grad]


def test_by_hand():
    # s_w 1.5, s_l 0.5: −log σ(1) = 0.3132617. Centring 0.01 · 2² = 0.04. Margin 3: −log σ(−2) = 2.1269280.
    assert loss_of(scored([1.5, 0.5], [(0, 1)])).loss.item() == pytest.approx(0.3132617, abs=1e-6)
    assert loss_of(scored([1.5, 0.5], [(0, 1)]), 0.01).loss.item() == pytest.approx(0.3532617, abs=1e-6)
    assert loss_of(scored([1.5, 0.5], [(0, 1)], [3.0]), 0.01).loss.item() == pytest.approx(2.1669280, abs=1e-6)
    # Mean over two pairs that share the chosen completion: −log σ(1) and −log σ(1.5 + 0.5) = 0.1269280.
    assert loss_of(scored([1.5, 0.5, -0.5], [(0, 1), (0, 2)])).loss.item() == pytest.approx(0.2200949, abs=1e-6)


def test_gradient_by_hand():
    # ∓σ(−1) + 2c(s_w + s_l) = ∓0.2689414 + 0.04.
    batch = scored([1.5, 0.5], [(0, 1)])
    assert gradient(loss_of(batch, 0.01), batch) == pytest.approx([-0.2289414, 0.3089414], abs=1e-6)
    # With a margin of 3: ∓σ(2).
    batch = scored([1.5, 0.5], [(0, 1)], [3.0])
    assert gradient(loss_of(batch), batch) == pytest.approx([-0.8807971, 0.8807971], abs=1e-6)


def test_gradcheck():
    pairs = torch.tensor([(0, 1), (2, 1), (0, 3)])

    def loss(scores_S: torch.Tensor) -> torch.Tensor:
        base = scored([0.0] * 4, pairs.tolist(), [0.5, 0.0, 2.0])
        batch = TokenBatch(
            base.logprobs_T, base.sequence_T, 4, base.weights_S, pairs_P2=pairs, margins_P=base.margins_P,
            scores_S=scores_S, lengths_S=base.lengths_S,
        )  # fmt: skip
        return loss_of(batch, 0.1).loss

    assert torch.autograd.gradcheck(loss, (torch.randn(4, dtype=torch.float64, requires_grad=True),))


def test_only_centring_sees_a_common_shift():
    low, high = scored([1.0, -1.0], [(0, 1)]), scored([101.0, 99.0], [(0, 1)])
    assert loss_of(low).loss.item() == pytest.approx(loss_of(high).loss.item())
    assert loss_of(low, 0.01).loss.item() == pytest.approx(loss_of(low).loss.item()), "a sum of 0 costs nothing"
    assert loss_of(high, 0.01).loss.item() == pytest.approx(loss_of(low).loss.item() + 0.01 * 200**2)


def test_equal_scores():
    batch = scored([0.7, 0.7], [(0, 1)])
    output = loss_of(batch)
    assert output.loss.item() == pytest.approx(math.log(2))
    assert gradient(output, batch) == pytest.approx([-0.5, 0.5])
    assert output.metrics["rewards/accuracy"].value() == 0.5
    itself = scored([0.7], [(0, 0)])
    assert gradient(loss_of(itself), itself) == [0.0]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_huge_margins_stay_finite(sign):
    batch = scored([sign * 5e3, -sign * 5e3], [(0, 1)], dtype=torch.float32)
    output = loss_of(batch, 0.01)
    assert output.loss.item() == pytest.approx(0.0 if sign > 0 else 1e4)
    assert gradient(output, batch) == pytest.approx([0.0, 0.0] if sign > 0 else [-1.0, 1.0])


PAIRS = [(0, 1), (3, 2), (4, 5), (4, 6), (5, 6)]
MARGINS = [0.0, 1.0, 0.5, 2.0, 0.25]
LENGTHS = [3, 5, 2, 2, 0, 1, 9]


@given(seed=st.integers(0, 10**6), order=st.permutations(range(7)))
@settings(max_examples=30, deadline=None)
def test_split_order_and_copies_change_nothing(seed, order):
    scores = torch.randn(7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
    whole = scored(scores, PAIRS, MARGINS, LENGTHS)
    one = loss_of(whole, 0.05)
    place = {old: new for new, old in enumerate(order)}
    shuffled = scored(
        [scores[i] for i in order], [(place[c], place[r]) for c, r in PAIRS], MARGINS, [LENGTHS[i] for i in order]
    )
    parts = [  # each pair alone, its completions copied, and a pack without a whole pair
        scored([scores[c], scores[r]], [(0, 1)], [margin], [LENGTHS[c], LENGTHS[r]])
        for (c, r), margin in zip(PAIRS, MARGINS, strict=True)
    ] + [scored([scores[0]], [], [])]
    for others in ([shuffled], parts):
        outputs = [loss_of(batch, 0.05, pairs=5.0) for batch in others]
        assert sum(output.loss.item() for output in outputs) == pytest.approx(one.loss.item(), abs=1e-9)
        merged = merge_metrics([output.metrics for output in outputs])
        expected = {name: part.value() for name, part in one.metrics.items()}
        assert {name: part.value() for name, part in merged.items()} == pytest.approx(expected)
    slopes = [0.0] * 7
    for (c, r), part in zip(PAIRS, parts[:-1], strict=True):
        for i, slope in zip((c, r), gradient(loss_of(part, 0.05, pairs=5.0), part), strict=True):
            slopes[i] += slope
    assert slopes == pytest.approx(gradient(one, whole), abs=1e-9)
    assert gradient(loss_of(parts[-1], 0.05, pairs=5.0), parts[-1]) == [0.0]


def test_metrics_by_hand():
    # Pairs 0 over 1 (right; longer), 0 over 2 (a tie; equal length), 0 over 3 (wrong; shorter). Raw scores, no β.
    batch = scored([2.0, 1.0, 2.0, 5.0], [(0, 1), (0, 2), (0, 3)], [9.0, 9.0, 9.0], [4, 2, 4, 6])
    output = loss_of(batch, 0.01)
    assert {name: part.value() for name, part in output.metrics.items()} == pytest.approx(
        {
            "rewards/chosen": 2.0,
            "rewards/rejected": 8 / 3,
            "rewards/margin": -2 / 3,
            "rewards/accuracy": 0.5,
            "rewards/accuracy_longer": 1.0,
            "rewards/accuracy_shorter": 0.0,
            "length/chosen": 4.0,
            "length/rejected": 4.0,
        }
    )
    assert all(not part.total.requires_grad for part in output.metrics.values())


def test_a_masked_row_takes_its_pairs_along():
    batch = scored([1.5, 0.5, -3.0], [(0, 1), (0, 2)], weights=[1.0, 1.0, 0.0])
    output = loss_of(batch, 0.5)
    assert output.loss.item() == pytest.approx((0.3132617 + 0.5 * 4.0) / 2, abs=1e-6)
    assert output.metrics["rewards/rejected"].value() == 0.5


def test_half_precision_scores():
    output = loss_of(scored([1.5, 0.5], [(0, 1)], dtype=torch.bfloat16))
    assert output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(0.3132617, abs=1e-6)


def test_errors():
    good = scored([1.0, 0.0], [(0, 1)])
    with pytest.raises(ValueError, match="needs pairs_P2"):
        loss_of(scored([1.0, 0.0], None))
    with pytest.raises(ValueError, match="center must be at least 0, not -1"):
        loss_of(good, -1.0)
    with pytest.raises(ValueError, match="count 0 pairs, but this micro-batch alone has 1"):
        bradley_terry(good, Denominators(0.0, 2.0, 9.0), center=0.0)
    bare = TokenBatch(good.logprobs_T, good.sequence_T, 2, good.weights_S, pairs_P2=good.pairs_P2)
    with pytest.raises(ValueError, match="needs scores_S and lengths_S"):
        loss_of(bare)

"""Advantages against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.signals import group_advantages, group_spread, normalized_advantages, preference_pairs

KINDS = ("group-std", "group-mean", "batch-std", "leave-one-out")


def advantages(scores: list[float], groups: list[int], kind: str) -> list[float]:
    return group_advantages(
        torch.tensor(scores, dtype=torch.float64), torch.tensor(groups, dtype=torch.long), kind
    ).tolist()


def test_group_std_by_hand():
    # Scores 1, 2, 3: mean 2, std sqrt((1 + 0 + 1) / 2) = 1.
    assert advantages([1, 2, 3], [0, 0, 0], "group-std") == pytest.approx([-1 / 1.0001, 0.0, 1 / 1.0001])
    # Scores 0, 1: mean 0.5, std sqrt((0.25 + 0.25) / 1) = 0.70711.
    expected = 0.5 / (math.sqrt(0.5) + 1e-4)
    assert advantages([0, 1], [0, 0], "group-std") == pytest.approx([-expected, expected])


def test_group_mean_by_hand():
    # Means 2 and 15.
    assert advantages([1, 10, 3, 20], [0, 1, 0, 1], "group-mean") == pytest.approx([-1, -5, 1, 5])


def test_batch_std_by_hand():
    # All scores 0, 2, 4, 6: mean 3, std sqrt((9 + 1 + 1 + 9) / 3) = sqrt(20 / 3). Group means 1 and 5.
    std = math.sqrt(20 / 3) + 1e-4
    assert advantages([0, 2, 4, 6], [0, 0, 1, 1], "batch-std") == pytest.approx([-1 / std, 1 / std, -1 / std, 1 / std])


def test_leave_one_out_by_hand():
    # 1 - (2 + 6) / 2 = -3; 2 - (1 + 6) / 2 = -1.5; 6 - (1 + 2) / 2 = 4.5.
    assert advantages([1, 2, 6], [0, 0, 0], "leave-one-out") == pytest.approx([-3.0, -1.5, 4.5])


@pytest.mark.parametrize("kind", KINDS)
def test_equal_scores_give_exactly_zero(kind):
    # The mean of three 0.1 is not 0.1 in binary, so a naive (r - mean) / (std + eps) is not 0.
    for scores in ([0.1] * 3, [1e6 + 0.3] * 7, [-2.0] * 2):
        assert advantages(scores, [0] * len(scores), kind) == [0.0] * len(scores)
    # Beside a live group, the dead one stays exactly at 0.
    out = advantages([0.1, 0.1, 0.1, 0.0, 1.0], [0, 0, 0, 1, 1], kind)
    assert out[:3] == [0.0] * 3
    assert out[4] > 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_of_one_has_no_advantage(kind):
    assert advantages([3.0], [0], kind) == [0.0]
    assert advantages([3.0, 0.0, 1.0], [0, 1, 1], kind)[0] == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_order_and_batch_of_groups_do_not_matter(kind):
    scores, groups = [0.2, 1.5, -0.7, 2.0, 0.0, 0.9], [1, 0, 1, 0, 1, 0]
    straight = advantages(scores, groups, kind)
    order = [4, 1, 0, 5, 3, 2]
    shuffled = advantages([scores[i] for i in order], [groups[i] for i in order], kind)
    assert shuffled == pytest.approx([straight[i] for i in order], abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_fp32_and_no_gradient(kind):
    scores = torch.tensor([0.0, 1.0, 1.0], requires_grad=True)
    out = group_advantages(scores, torch.tensor([0, 0, 0]), kind)
    assert out.dtype == torch.float32
    assert not out.requires_grad
    half = group_advantages(scores.detach().bfloat16(), torch.tensor([0, 0, 0]), kind)
    assert half.dtype == torch.float32
    assert half.tolist() == out.tolist()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-1e3, 1e3), st.integers(0, 3)), min_size=1, max_size=12),
    st.sampled_from(KINDS),
    st.floats(-50, 50),
)
def test_advantages_sum_to_zero_and_ignore_a_shift(rows, kind, shift):
    present = sorted({group for _, group in rows})
    groups = [present.index(group) for _, group in rows]
    scores = [score for score, _ in rows]
    out = advantages(scores, groups, kind)
    assert all(map(math.isfinite, out))
    for group in range(len(present)):
        total = sum(a for a, g in zip(out, groups, strict=True) if g == group)
        assert total == pytest.approx(0.0, abs=1e-6)
    # A shift moves each score by rounding, 1e-13 at most, and the epsilon keeps that under 1e-13 / 1e-4.
    moved = advantages([score + shift for score in scores], groups, kind)
    assert moved == pytest.approx(out, abs=1e-6)


def test_spread_by_hand():
    spread = group_spread(torch.tensor([1.0, -2.0, 4.0, 0.1, 0.1]), torch.tensor([0, 1, 0, 2, 2]))
    assert spread.tolist() == [3.0, 0.0, 0.0]


def test_empty_batch():
    assert advantages([], [], "group-std") == []


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="score 1 is nan"):
        advantages([0.0, math.nan], [0, 0], "group-std")
    with pytest.raises(ValueError, match="score 0 is inf"):
        advantages([math.inf, 0.0], [0, 0], "group-mean")
    with pytest.raises(ValueError, match="unknown advantage 'gae'"):
        advantages([0.0], [0], "gae")
    with pytest.raises(ValueError, match="of one length"):
        advantages([0.0, 1.0], [0], "group-std")
    with pytest.raises(ValueError, match="group 1 has no scores"):
        advantages([0.0, 1.0], [0, 2], "group-std")


def gdpo(rows: list[list[float]], weights: list[float], groups: list[int]) -> list[float]:
    scores = torch.tensor(rows, dtype=torch.float64)
    return normalized_advantages(scores, torch.tensor(weights), torch.tensor(groups, dtype=torch.long)).tolist()


def test_gdpo_by_hand():
    # One group. First reward 0, 1; second 300, 100: each becomes ∓ h with h = 0.5 / (sqrt 0.5 + 1e-4) or so.
    h, g = 0.5 / (math.sqrt(0.5) + 1e-4), 100 / (math.sqrt(20_000) + 1e-4)
    total = -h + 0.25 * g
    std = abs(total) * math.sqrt(2) + 1e-4  # of the two numbers total and −total, Bessel-corrected
    assert gdpo([[0, 300], [1, 100]], [1.0, 0.25], [0, 0]) == pytest.approx([total / std, -total / std])
    # A reward of weight 0 and a group in which the other one is equal.
    found = gdpo([[0, 3], [1, 1], [0, 1], [1, 1]], [0.0, 1.0], [0, 0, 1, 1])
    h = 1.0 / (math.sqrt(2) + 1e-4)
    std = math.sqrt(2 * h * h / 3) + 1e-4
    assert found == pytest.approx([h / std, -h / std, 0, 0], abs=1e-12)


def test_gdpo_of_rewards_that_do_not_apply():
    nan = math.nan
    # The second reward applies to two of three: their mean and deviation alone count, and the third gets nothing of it.
    h = 0.5 / (math.sqrt(0.5) + 1e-4)
    totals = [-h, 0.0, h]
    std = math.sqrt(2 * h * h / 2) + 1e-4
    assert gdpo([[7, 0], [7, nan], [7, 1]], [1, 1], [0, 0, 0]) == pytest.approx([t / std for t in totals], abs=1e-12)
    # Nothing applies to the last: it has no advantage, and the deviation is of the two others.
    std = math.sqrt(2) * h + 1e-4
    assert gdpo([[nan, 0], [nan, 1], [nan, nan]], [1, 1], [0, 0, 0]) == pytest.approx([-h / std, h / std, 0])


def test_gdpo_where_nothing_differs():
    nan = math.nan
    assert gdpo([[0.1, 5]] * 3, [1, 1], [0, 0, 0]) == [0.0] * 3
    assert gdpo([[0, 1], [1, 2]], [1, 1], [0, 1]) == [0.0] * 2  # groups of one
    assert gdpo([[nan, nan]] * 2, [1, 1], [0, 0]) == [0.0] * 2
    assert gdpo([[1, nan], [nan, 2]], [1, 1], [0, 0]) == [0.0] * 2  # nobody to compare with
    assert normalized_advantages(torch.zeros(0, 2), torch.ones(2), torch.zeros(0, dtype=torch.long)).tolist() == []
    # In a batch with a live group, a dead one stays at 0 up to rounding.
    found = gdpo([[0.1, 5]] * 3 + [[0, 1], [1, 2]], [1, 1], [0, 0, 0, 1, 1])
    assert found[:3] == pytest.approx([0, 0, 0], abs=1e-12) and found[4] == pytest.approx(-found[3])


def test_gdpo_precision_and_errors():
    scores = torch.tensor([[0.0, 1.0], [1.0, 5.0]], dtype=torch.bfloat16, requires_grad=True)
    found = normalized_advantages(scores, torch.ones(2), torch.tensor([0, 0]))
    assert found.dtype == torch.float32 and not found.requires_grad
    assert found.tolist() == pytest.approx(gdpo([[0, 1], [1, 5]], [1, 1], [0, 0]), abs=1e-6)
    with pytest.raises(ValueError, match="a score is infinite"):
        gdpo([[0, math.inf]], [1, 1], [0])
    with pytest.raises(ValueError, match=r"scores of shape \(1, 2\) for 1 completions and 1 weights"):
        gdpo([[0, 1]], [1], [0])


def pairs(scores: list[float], groups: list[int], kind: str = "all") -> list[tuple[int, int, float]]:
    found = preference_pairs(torch.tensor(scores), torch.tensor(groups, dtype=torch.long), kind)
    assert found.pairs_P2.dtype == torch.long and found.pairs_P2.shape == (len(found.margins_P), 2)
    return [(c, r, m) for (c, r), m in zip(found.pairs_P2.tolist(), found.margins_P.tolist(), strict=True)]


def test_pairs_of_plain_preferences():
    # Chosen 1, rejected 0; in the second row the rejected one comes first.
    assert pairs([1, 0, 0, 1], [0, 0, 1, 1]) == [(0, 1, 1.0), (3, 2, 1.0)]


def test_all_pairs_by_hand():
    # Three ranks: every better one over every worse one, and the distance of their scores.
    assert pairs([-1, -3, -2], [0, 0, 0]) == [(0, 1, 2.0), (0, 2, 1.0), (2, 1, 1.0)]
    # Two right and two wrong answers: each right one over each wrong one, never right over right.
    assert pairs([1, 0, 1, 0], [0, 0, 0, 0]) == [(0, 1, 1.0), (0, 3, 1.0), (2, 1, 1.0), (2, 3, 1.0)]


def test_pairs_stay_in_their_group():
    assert pairs([5, 1, 4, 2], [0, 1, 0, 1]) == [(0, 2, 1.0), (3, 1, 1.0)]


def test_best_and_worst_by_hand():
    # Of equals the first: best 1 and 3, worst 0 and 4.
    assert pairs([0, 2, 1, 2, 0], [0, 0, 0, 0, 0], "best-worst") == [(1, 0, 2.0)]
    # Group 1 before group 0, a group whose scores are equal, and a lone completion.
    assert pairs([3, 7, 1, 9, 4, 4, 8], [1, 0, 1, 0, 2, 2, 3], "best-worst") == [(0, 2, 2.0), (3, 1, 2.0)]


@pytest.mark.parametrize("kind", ["all", "best-worst"])
def test_equal_scores_make_no_pair(kind):
    assert pairs([1, 1, 1], [0, 0, 0], kind) == []
    assert pairs([1], [0], kind) == []
    assert pairs([], [], kind) == []


def test_pairs_keep_no_gradient_and_the_scores_precision():
    scores = torch.tensor([1.0, 1.0 + 1e-12], dtype=torch.float64, requires_grad=True)
    found = preference_pairs(scores, torch.tensor([0, 0]), "all")
    assert found.pairs_P2.tolist() == [[1, 0]] and not found.margins_P.requires_grad


def test_pairs_refuse_what_they_cannot_order():
    with pytest.raises(ValueError, match="unknown kind of pairs 'first'; choose all or best-worst"):
        pairs([1, 0], [0, 0], "first")
    with pytest.raises(ValueError, match="score 1 is nan"):
        pairs([1, math.nan], [0, 0])
    with pytest.raises(ValueError, match="both must be flat and of one length"):
        pairs([1, 0], [0])


@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=10),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=100, deadline=None)
def test_pairs_of_any_batch(rows, order):
    groups, scores = [g for g, _ in rows], [float(s) for _, s in rows]
    found = {(c, r): m for c, r, m in pairs(scores, groups)}
    for c in range(len(rows)):
        for r in range(len(rows)):
            better = groups[c] == groups[r] and scores[c] > scores[r]
            assert ((c, r) in found) is better
            assert not better or found[c, r] == scores[c] - scores[r]
    extremes = {(c, r): m for c, r, m in pairs(scores, groups, "best-worst")}
    assert extremes.items() <= found.items()
    for g in set(groups):
        widest = max((m for (c, _), m in found.items() if groups[c] == g), default=None)
        assert [m for (c, _), m in extremes.items() if groups[c] == g] == ([] if widest is None else [widest])
    # Another order of completions: the same pairs, by the places they now have.
    places = list(range(len(rows)))
    order.shuffle(places)
    moved = {(places[c], places[r]): m for c, r, m in pairs([scores[i] for i in places], [groups[i] for i in places])}
    assert moved == found

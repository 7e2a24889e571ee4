"""Rewards, advantages and returns of tokens: hand-worked numbers, and the definitions again as loops over floats."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from preftune.signals import adapted_beta, explained_variance, gae, overlong_penalty, token_rewards, whiten

Rows = list[list[float]]


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def flat(rows: Rows) -> Tensor:
    return f64(*(x for row in rows for x in row))


def lengths(rows: Rows) -> Tensor:
    return torch.tensor([len(row) for row in rows], dtype=torch.long)


def close(found: Tensor, wanted: Rows, **tolerance: float) -> None:
    assert found.tolist() == pytest.approx([x for row in wanted for x in row], **(tolerance or {"abs": 1e-9}))


# --- rewards of tokens --------------------------------------------------------------------------------------


def test_rewards_by_hand():
    # β 0.1; k1 per token 0.5, −0.2, 0.1 | none | 1.0; scores 2, 7 and −3 at the last tokens; the 7 has no place.
    logprobs, reference = [[-0.5, -1.0, -0.4], [], [-1.0]], [[-1.0, -0.8, -0.5], [], [-2.0]]
    found = token_rewards(f64(2, 7, -3), lengths(logprobs), flat(logprobs), flat(reference), 0.1)
    close(found, [[-0.05, 0.02, 2 - 0.01], [], [-3 - 0.1]])


@pytest.mark.parametrize(("reference", "beta"), [(None, 0.1), (f64(-1, -2, -3), 0.0)])
def test_rewards_without_a_penalty_are_the_scores_alone(reference, beta):
    assert token_rewards(f64(2, -3), torch.tensor([2, 1]), f64(-5, -6, -7), reference, beta).tolist() == [0, 2, -3]


def test_rewards_carry_no_gradient():
    logprobs, scores = f64(-1, -2).requires_grad_(), f64(1.0).requires_grad_()
    found = token_rewards(scores, torch.tensor([2]), logprobs, f64(-3, -1).requires_grad_(), 0.5)
    assert not found.requires_grad
    assert found.tolist() == [-1.0, 1.5]


def test_rewards_of_half_precision_keep_the_scores_digits():
    # 1.2345 in bf16 is 1.234375; with three digits per score, groups of close scores would fall together.
    found = token_rewards(f64(1.2345), torch.tensor([1]), torch.tensor([-1.0], dtype=torch.bfloat16), None, 0.0)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(1.2345, abs=1e-6)


rows = st.lists(
    st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3), st.floats(-3, 3)), max_size=6), min_size=1, max_size=5
)


@settings(max_examples=60, deadline=None)
@given(rows, st.floats(0, 2), st.integers(0, 1000))
def test_rewards_of_any_batch(drawn, beta, seed):
    scores = torch.randn(len(drawn), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    own, reference = ([[t[i] for t in row] for row in drawn] for i in (0, 1))
    wanted: Rows = []
    for s, row in enumerate(drawn):
        wanted.append([-beta * (p - q) for p, q, _ in row])
        if row:
            wanted[-1][-1] += scores[s].item()
    close(token_rewards(scores, lengths(own), flat(own), flat(reference), beta), wanted)


# --- generalised advantage estimation -------------------------------------------------------------------------


def plain_gae(rewards: Rows, values: Rows, gamma: float, lam: float) -> Rows:
    """A_t = Σ_l (γλ)^l δ_{t+l} as it stands in the paper: forward sums, one completion after the other."""
    found: Rows = []
    for r, v in zip(rewards, values, strict=True):
        deltas = [r[t] + gamma * (v[t + 1] if t + 1 < len(v) else 0.0) - v[t] for t in range(len(r))]
        found.append([sum((gamma * lam) ** k * d for k, d in enumerate(deltas[t:])) for t in range(len(deltas))])
    return found


def test_gae_by_hand():
    # δ = 0 + 0.4 − 0.5, 0 + 0.2 − 0.4, 1 + 0 − 0.2 = −0.1, −0.2, 0.8.
    advantages, returns = gae(f64(0, 0, 1), f64(0.5, 0.4, 0.2), torch.tensor([3]), gamma=1.0, lam=0.5)
    close(advantages, [[-0.1 + 0.5 * (-0.2 + 0.5 * 0.8), -0.2 + 0.5 * 0.8, 0.8]])  # 0, 0.2, 0.8
    close(returns, [[0.5, 0.6, 1.0]])
    # γ = λ = 0.5: δ = 0.5·0.4 − 0.5, 0.5·0.2 − 0.4, 0.8 = −0.3, −0.3, 0.8; carried on by a quarter.
    advantages, returns = gae(f64(0, 0, 1), f64(0.5, 0.4, 0.2), torch.tensor([3]), gamma=0.5, lam=0.5)
    close(advantages, [[-0.3 + 0.25 * (-0.3 + 0.25 * 0.8), -0.3 + 0.25 * 0.8, 0.8]])  # −0.325, −0.1, 0.8
    close(returns, [[0.175, 0.3, 1.0]])


def test_gae_of_one_token_and_of_none():
    advantages, returns = gae(f64(2, 3), f64(0.5, -1), torch.tensor([1, 0, 1]), gamma=0.9, lam=0.9)
    close(advantages, [[1.5], [], [4.0]])
    close(returns, [[2.0], [], [3.0]])
    for empty in (torch.tensor([0, 0]), torch.tensor([], dtype=torch.long)):
        advantages, returns = gae(f64(), f64(), empty, gamma=1.0, lam=0.95)
        assert advantages.tolist() == returns.tolist() == []


@settings(max_examples=100, deadline=None)
@given(rows, st.floats(0, 1), st.floats(0, 1))
def test_gae_of_any_batch(drawn, gamma, lam):
    rewards, values = ([[t[i] for t in row] for row in drawn] for i in (0, 1))
    advantages, returns = gae(flat(rewards), flat(values), lengths(rewards), gamma=gamma, lam=lam)
    wanted = plain_gae(rewards, values, gamma, lam)
    close(advantages, wanted)
    close(returns, [[a + v for a, v in zip(*x, strict=True)] for x in zip(wanted, values, strict=True)])


REWARDS: Rows = [[0.3, -0.2, 1.0, 0.0, 2.0], [], [-1.0], [0.5, 0.25]]
VALUES: Rows = [[1.0, 0.8, -0.3, 0.4, 0.1], [], [0.6], [-0.2, 2.0]]


@pytest.mark.parametrize("gamma", [1.0, 0.7])
def test_gae_with_lambda_one_is_monte_carlo(gamma):
    # Returns are discounted sums of what really came, whatever the values were.
    advantages, returns = gae(flat(REWARDS), flat(VALUES), lengths(REWARDS), gamma=gamma, lam=1.0)
    wanted = [[sum(gamma**k * r for k, r in enumerate(row[t:])) for t in range(len(row))] for row in REWARDS]
    close(returns, wanted)
    close(advantages, [[w - v for w, v in zip(*x, strict=True)] for x in zip(wanted, VALUES, strict=True)])


@pytest.mark.parametrize("gamma", [1.0, 0.7])
def test_gae_with_lambda_zero_is_one_step(gamma):
    # The return of a token is its reward plus what the next value promises: nothing of later rewards.
    _, returns = gae(flat(REWARDS), flat(VALUES), lengths(REWARDS), gamma=gamma, lam=0.0)
    wanted = [
        [r + gamma * after for r, after in zip(rewards, [*values[1:], 0.0], strict=True)] if rewards else []
        for rewards, values in zip(REWARDS, VALUES, strict=True)
    ]
    close(returns, wanted)


def test_gae_with_gamma_zero_sees_the_tokens_own_reward_alone():
    _, returns = gae(flat(REWARDS), flat(VALUES), lengths(REWARDS), gamma=0.0, lam=1.0)
    close(returns, REWARDS)


def test_a_completions_advantages_do_not_depend_on_its_neighbours():
    whole, _ = gae(flat(REWARDS), flat(VALUES), lengths(REWARDS), gamma=0.9, lam=0.8)
    alone = [
        gae(f64(*r), f64(*v), torch.tensor([len(r)]), gamma=0.9, lam=0.8)[0].tolist()
        for r, v in zip(REWARDS, VALUES, strict=True)
    ]
    close(whole, alone, abs=1e-15)


def test_gae_precision_and_gradient():
    # Sums of 2,000 tokens in bf16 would stall near 256.
    half = [torch.ones(2000, dtype=torch.bfloat16), torch.zeros(2000, dtype=torch.bfloat16)]
    _, returns = gae(half[0], half[1].requires_grad_(), torch.tensor([2000]), gamma=1.0, lam=1.0)
    assert returns.dtype == torch.float32 and not returns.requires_grad
    assert returns[0].item() == pytest.approx(2000.0)
    # Rewards in fp32 beside values of a bf16 head.
    mixed, _ = gae(torch.tensor([1.0]), torch.tensor([0.25], dtype=torch.bfloat16), torch.tensor([1]), gamma=1, lam=1)
    assert mixed.dtype == torch.float32 and mixed.item() == 0.75
    exact, _ = gae(f64(1.0), torch.tensor([0.1]), torch.tensor([1]), gamma=1.0, lam=1.0)
    assert exact.dtype == torch.float64


def test_gae_refuses_lengths_that_do_not_fit():
    with pytest.raises(ValueError, match="3 rewards and 3 values, but the completions have 4 tokens"):
        gae(f64(1, 2, 3), f64(1, 2, 3), torch.tensor([2, 2]), gamma=1.0, lam=1.0)
    with pytest.raises(ValueError, match="3 rewards and 2 values"):
        gae(f64(1, 2, 3), f64(1, 2), torch.tensor([3]), gamma=1.0, lam=1.0)


# --- whitening ----------------------------------------------------------------------------------------------


def test_whiten_by_hand():
    # 1, 2, 3: mean 2, variance (1 + 0 + 1) / 2 = 1.
    close(whiten(f64(1, 2, 3)), [[-1, 0, 1]], abs=1e-7)
    # 0 and 4: mean 2, variance 8. An ε of 1 instead of 1e-8 makes it 9.
    close(whiten(f64(0, 4)), [[-2 / math.sqrt(8), 2 / math.sqrt(8)]], abs=1e-7)
    close(whiten(f64(0, 4), epsilon=1.0), [[-2 / 3, 2 / 3]])


def test_whiten_counts_only_the_tokens_that_count():
    # The 100 moves neither mean nor variance, and is moved and scaled like the others.
    found = whiten(f64(1, 100, 2, 3), f64(1, 0, 1, 1))
    close(found, [[-1, 98, 0, 1]], abs=1e-5)
    assert found[[0, 2, 3]].tolist() == pytest.approx(whiten(f64(1, 2, 3)).tolist(), abs=1e-12)


def test_whiten_of_nothing_to_compare_is_zero():
    assert whiten(f64()).tolist() == []
    assert whiten(f64(3)).tolist() == [0.0]
    assert whiten(f64(0.1, 0.1, 0.1)).tolist() == [0.0] * 3
    assert whiten(f64(0.1, 0.1, 5), f64(1, 1, 0)).tolist() == [0.0] * 3
    assert whiten(f64(1, 2, 3), f64(0, 1, 0)).tolist() == [0.0] * 3
    assert whiten(f64(1, 2), f64(0, 0)).tolist() == [0.0] * 2


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-50, 50), st.booleans()), min_size=2, max_size=12), st.floats(-9, 9))
def test_whiten_of_any_tokens(drawn, shift):
    values, counts = [x / 10 for x, _ in drawn], [float(c) for _, c in drawn]
    kept = [x / 10 for x, c in drawn if c]
    found = whiten(f64(*values), f64(*counts))
    if len(kept) < 2 or max(kept) == min(kept):
        assert found.tolist() == [0.0] * len(values)
        return
    scale = math.sqrt(statistics.variance(kept) + 1e-8)
    wanted = [(x - statistics.fmean(kept)) / scale for x in values]
    assert found.tolist() == pytest.approx(wanted, abs=1e-6)
    moved = whiten(f64(*values) + shift, f64(*counts))
    assert moved.tolist() == pytest.approx(wanted, abs=1e-6)


# --- explained variance -------------------------------------------------------------------------------------


def test_explained_variance_by_hand():
    returns = f64(1, 2, 3)
    assert explained_variance(f64(1, 2, 3), returns) == pytest.approx(1.0)
    assert explained_variance(f64(2, 2, 2), returns) == pytest.approx(0.0)
    assert explained_variance(f64(11, 12, 13), returns) == pytest.approx(1.0)  # a constant offset is no variance
    assert explained_variance(f64(3, 2, 1), returns) == pytest.approx(-3.0)  # errors −2, 0, 2: 1 − (8/3) / (2/3)
    assert explained_variance(f64(1, 2, 2), returns) == pytest.approx(1 - (2 / 9) / (2 / 3))  # errors 0, 0, 1


def test_explained_variance_of_equal_returns_is_zero():
    assert explained_variance(f64(), f64()) == 0.0
    assert explained_variance(f64(5), f64(3)) == 0.0
    assert explained_variance(f64(1, 2, 3), f64(0.1, 0.1, 0.1)) == 0.0
    # All scores are 1, λ = 1: each return is 1, but summed as A + V in fp32, some differ in the last digit.
    values = torch.linspace(-0.9, 0.83, 200)
    rewards = torch.zeros(200).index_fill_(0, torch.tensor([99, 199]), 1.0)
    _, returns = gae(rewards, values, torch.tensor([100, 100]), gamma=1.0, lam=1.0)
    assert returns.unique().numel() > 1 and (returns - 1.0).abs().max() < 1e-5
    assert explained_variance(values, returns) == 0.0


# --- β and the overlong ramp --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kl", "completions", "wanted"),
    [
        (6.0, 64, 0.2),  # on target
        (9.0, 64, 0.2 * (1 + 0.2 * 64 / 10_000)),  # half too high: clipped to +0.2
        (6.3, 64, 0.2 * (1 + 0.05 * 64 / 10_000)),
        (5.7, 64, 0.2 * (1 - 0.05 * 64 / 10_000)),
        (-3.0, 64, 0.2 * (1 - 0.2 * 64 / 10_000)),  # k1 can be negative
        (60.0, 10_000, 0.24),
        (0.0, 60_000, 0.0),  # 1 − 0.2 · 6 is below 0
    ],
)
def test_adapted_beta_by_hand(kl, completions, wanted):
    assert adapted_beta(0.2, kl, 6.0, completions, 10_000) == pytest.approx(wanted, rel=1e-12, abs=1e-15)


def test_overlong_by_dapos_own_numbers():
    """Eq. 13 with L_max 20,480 and a cache of 4,096: a fifth of the budget. R = 0, (L_max − L_cache − |y|) / L_cache,
    −1; ours is what is taken off."""
    long = torch.tensor([0, 100, 16_384, 16_385, 18_432, 20_479, 20_480])
    found = overlong_penalty(long, torch.zeros(7, dtype=torch.bool), 20_480, 0.2)
    assert found.tolist() == pytest.approx([0, 0, 0, 1 / 4096, 0.5, 4095 / 4096, 1], abs=1e-6)


def test_overlong_of_cut_completions():
    # A completion that was cut counts as over the limit, wherever the cut was; without a ramp nothing is taken off.
    long, cut = torch.tensor([10, 10, 100, 95]), torch.tensor([True, False, True, False])
    assert overlong_penalty(long, cut, 100, 0.1).tolist() == pytest.approx([1, 0, 1, 0.5], abs=1e-6)
    assert overlong_penalty(long, cut, 100, 0.0).tolist() == [0, 0, 0, 0]


def test_the_kl_of_whole_completions_by_hand():
    from preftune.signals import sequence_kl

    mine, theirs = torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([-1.5, -1.0, -0.75])
    # 0.5 − 1.0 for two tokens, nothing for none, 0.25 for one
    found = sequence_kl(mine, theirs, torch.tensor([2, 0, 1]))
    assert found.tolist() == pytest.approx([-0.5, 0.0, 0.25])
    assert sequence_kl(mine[:0], theirs[:0], torch.tensor([0, 0])).tolist() == [0.0, 0.0]

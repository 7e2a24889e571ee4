"""Expected gradients on toy policies small enough to enumerate: what is sampled elsewhere is summed here.

An expectation over samples of μ is Σ_a μ(a) · (gradient of the loss of a batch that holds a alone), so each of these
tests has no noise and asks for equality, not for a trend.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from preftune.losses import Denominators, TokenBatch, clipped_policy_gradient, kl_estimate, kl_penalty
from preftune.losses.reduce import sequence_sums
from preftune.signals import gae, group_advantages, token_rewards


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


REFERENCE = f64(0.9, -0.4, 0.2, 0.0, -1.0).log_softmax(-1)
SAMPLER = f64(-0.5, 0.8, 0.3, -0.2, 0.4).log_softmax(-1)
REWARDS = f64(1.0, -0.5, 2.0, 0.3, -1.2)


def toy() -> Tensor:
    return f64(0.3, -0.5, 1.1, 0.0, -0.8).requires_grad_()


def gradient(value: Tensor, *at: Tensor) -> Tensor:
    found = torch.autograd.grad(value, at, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


def expected(under: Tensor, loss_of: Callable[[int], Tensor], logits: Tensor) -> Tensor:
    """Σ_a μ(a) ∇loss(a), where the loss of an action is of a batch that holds nothing else."""
    return torch.stack([p * gradient(loss_of(a), logits) for a, p in enumerate(under.exp().tolist())]).sum(0)


# --- one token ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_what_each_estimator_says_and_where_its_plain_gradient_points(kind):
    logits = toy()
    logprobs = logits.log_softmax(-1)
    kl = (logprobs.exp() * (logprobs - REFERENCE)).sum()
    exact = gradient(kl, logits)
    value = (logprobs.exp() * kl_estimate(logprobs, REFERENCE, kind)).sum()
    plain = expected(
        logprobs.detach(), lambda a: kl_estimate(logprobs[a : a + 1], REFERENCE[a : a + 1], kind)[0], logits
    )
    # Values: k1 and k3 average to the KL, k2 does not.
    assert (value.item() == pytest.approx(kl.item(), abs=1e-12)) is (kind != "k2")
    # Gradients of the bare estimator: k1's is nothing, k2's is right, k3's is that of KL(π₀‖π).
    wanted = {
        "k1": torch.zeros_like(exact),
        "k2": exact,
        "k3": gradient((REFERENCE.exp() * (REFERENCE - logprobs)).sum(), logits),
    }[kind]
    torch.testing.assert_close(plain, wanted, rtol=1e-11, atol=1e-12)
    assert (plain - exact).norm() < 1e-11 or (plain - exact).norm() > 0.1 * exact.norm()


@pytest.mark.parametrize("old", [False, True], ids=["on-policy", "off-policy"])
@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_penalty_is_the_kl_gradient(kind, old):
    logits = toy()
    logprobs = logits.log_softmax(-1)
    exact = gradient((logprobs.exp() * (logprobs - REFERENCE)).sum(), logits)
    under = SAMPLER if old else logprobs.detach()

    def loss_of(a: int) -> Tensor:
        one = slice(a, a + 1)
        return kl_penalty(logprobs[one], SAMPLER[one] if old else None, REFERENCE[one], kind)[0]

    torch.testing.assert_close(expected(under, loss_of, logits), exact, rtol=1e-11, atol=1e-12)
    if kind == "k3":  # also its value, whoever sampled
        value = sum(p * loss_of(a).item() for a, p in enumerate(under.exp().tolist()))
        assert value == pytest.approx((logprobs.exp() * (logprobs - REFERENCE)).sum().item(), abs=1e-12)


def single(logprobs: Tensor, a: int, **fields: Tensor) -> TokenBatch:
    """A batch of the one action a; fields are given over all actions."""
    one = slice(a, a + 1)
    cut = {name: value[one] for name, value in fields.items()}
    return TokenBatch(logprobs[one], torch.tensor([0]), 1, f64(1), **cut)


ONE = Denominators.count([1], [1], max_tokens=1)


@pytest.mark.parametrize("old", [False, True], ids=["on-policy", "off-policy"])
@pytest.mark.parametrize("kl", ["k2", "k3"])
@pytest.mark.parametrize("ratio", ["token", "sequence", "sequence-sum"])
@pytest.mark.parametrize("aggregate", ["token-mean", "sequence-mean", "constant"])
def test_loss_is_reward_minus_kl(ratio, aggregate, kl, old):
    """The whole loss: its expected gradient is −∇(E[r] − β KL), whoever sampled, at every level of the ratio."""
    logits = toy()
    logprobs = logits.log_softmax(-1)
    objective = (logprobs.exp() * REWARDS).sum() - 0.7 * (logprobs.exp() * (logprobs - REFERENCE)).sum()
    fields = {"advantages_S": REWARDS, "reference_logprobs_T": REFERENCE}
    if old:
        fields["old_logprobs_T"] = SAMPLER

    def loss_of(a: int) -> Tensor:
        batch = single(logprobs, a, **fields)
        return clipped_policy_gradient(batch, ONE, ratio=ratio, clip="none", aggregate=aggregate, beta=0.7, kl=kl).loss

    found = expected(SAMPLER if old else logprobs.detach(), loss_of, logits)
    torch.testing.assert_close(found, -gradient(objective, logits), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("clip", ["ppo", "cispo"])
def test_first_update_of_a_clipped_loss_is_the_plain_policy_gradient(clip):
    logits = toy()
    logprobs = logits.log_softmax(-1)
    bounds = {"clip_low": 0.2, "clip_high": 0.2} if clip == "ppo" else {"clip_high": 5.0}

    def loss_of(a: int) -> Tensor:
        return clipped_policy_gradient(single(logprobs, a, advantages_S=REWARDS), ONE, clip=clip, **bounds).loss

    exact = gradient((logprobs.exp() * REWARDS).sum(), logits)
    torch.testing.assert_close(expected(logprobs.detach(), loss_of, logits), -exact, rtol=1e-11, atol=1e-12)


def test_sampler_correction_makes_another_samplers_draws_count_right():
    """Samples of μ, trained as if π had drawn them. Uncapped and with the penalty inside, the gradient is exact."""
    logits = toy()
    logprobs = logits.log_softmax(-1)
    objective = (logprobs.exp() * REWARDS).sum() - 0.7 * (logprobs.exp() * (logprobs - REFERENCE)).sum()
    fields = {"advantages_S": REWARDS, "reference_logprobs_T": REFERENCE, "sampler_logprobs_T": SAMPLER}

    def loss_of(a: int, cap: float | None) -> Tensor:
        batch = single(logprobs, a, **fields)
        return clipped_policy_gradient(batch, ONE, clip="none", beta=0.7, sampler_cap=cap).loss

    exact = -gradient(objective, logits)
    torch.testing.assert_close(
        expected(SAMPLER, lambda a: loss_of(a, 1e9), logits), exact, rtol=1e-11, atol=1e-12
    )  # fmt: skip
    errors = [(expected(SAMPLER, lambda a, c=c: loss_of(a, c), logits) - exact).norm() for c in (None, 1.5, 4.0)]
    assert (logprobs - SAMPLER).exp().max() > 1.5  # so that the lower cap binds
    assert errors[0] > 0.1 * exact.norm(), "without a correction the gradient is another one"
    assert 1e-6 < errors[1] < errors[0], "a cap trades some of it for less variance"
    assert errors[2] < 1e-11, "a cap above every ratio changes nothing"


# --- several tokens, lengths that differ ------------------------------------------------------------------------

SEQUENCES = [(0,), *((first, second) for first in (1, 2) for second in (0, 1, 2))]
"""Three actions; 0 ends a completion, and so does the second token."""

SCORES = f64(0.5, -1.0, 2.0, 0.2, 1.5, -0.7, 0.9)


class Chain:
    """A policy of up to two tokens: logits of the first, and of the second given the first."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.first = torch.randn(3, generator=generator, dtype=torch.float64).requires_grad_()
        self.second = torch.randn(3, 3, generator=generator, dtype=torch.float64).requires_grad_()

    @property
    def parameters(self) -> tuple[Tensor, Tensor]:
        return self.first, self.second

    def tokens(self, s: int) -> Tensor:
        """log π of each token of sequence s."""
        names = SEQUENCES[s]
        found = [self.first.log_softmax(-1)[names[0]]]
        if len(names) == 2:
            found.append(self.second.log_softmax(-1)[names[0], names[1]])
        return torch.stack(found)

    def all(self) -> Tensor:
        return torch.stack([self.tokens(s).sum() for s in range(len(SEQUENCES))])


def exact_gradient(policy: Chain, reference: Chain, beta: float) -> Tensor:
    """∇(E[r] − β KL) over whole completions."""
    logprobs = policy.all()
    assert logprobs.exp().sum().item() == pytest.approx(1.0)
    kl = (logprobs.exp() * (logprobs - reference.all())).sum()
    return gradient((logprobs.exp() * SCORES).sum() - beta * kl, *policy.parameters)


@pytest.mark.parametrize("beta", [0.0, 0.6])
def test_rloo_with_the_kl_in_the_reward_is_unbiased(beta):
    """Every pair of completions of one prompt: leave-one-out of (score − β Σ k1), RLOO's ratio and mean."""
    policy, reference = Chain(0), Chain(1)
    found = torch.zeros(12, dtype=torch.float64)
    with torch.no_grad():
        probabilities = policy.all().exp().tolist()
    for pair in itertools.product(range(len(SEQUENCES)), repeat=2):
        logprobs = torch.cat([policy.tokens(s) for s in pair])
        lengths = torch.tensor([len(SEQUENCES[s]) for s in pair])
        owners = torch.repeat_interleave(torch.arange(2), lengths)
        anchor = torch.cat([reference.tokens(s) for s in pair])
        rewards = sequence_sums(token_rewards(SCORES[list(pair)], lengths, logprobs, anchor, beta), owners, 2)
        batch = TokenBatch(
            logprobs_T=logprobs,
            sequence_T=owners,
            num_sequences=2,
            weights_S=f64(1, 1),
            advantages_S=group_advantages(rewards, torch.tensor([0, 0]), "leave-one-out"),
        )
        loss = clipped_policy_gradient(
            batch,
            Denominators.count(lengths.tolist(), [1, 1], 2),
            ratio="sequence-sum",
            clip_low=0.2,
            clip_high=0.2,
            aggregate="sequence-mean",
        ).loss
        found += probabilities[pair[0]] * probabilities[pair[1]] * gradient(loss, *policy.parameters)
    torch.testing.assert_close(-found, exact_gradient(policy, reference, beta), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("lam", [1.0, 0.5])
def test_ppo_with_the_kl_in_the_reward(lam):
    """γ = λ = 1 is unbiased whatever the value head says; a smaller λ with a wrong head is not."""
    policy, reference = Chain(2), Chain(3)
    heads = f64(0.4, 0.0, -0.3, 1.7)  # before the first token; after 0, 1 and 2
    found = torch.zeros(12, dtype=torch.float64)
    for s, names in enumerate(SEQUENCES):
        logprobs, lengths = policy.tokens(s), torch.tensor([len(names)])
        rewards = token_rewards(SCORES[s : s + 1], lengths, logprobs, reference.tokens(s), 0.6)
        values = heads[[0] if len(names) == 1 else [0, 1 + names[0]]]
        advantages, returns = gae(rewards, values, lengths, gamma=1.0, lam=lam)
        torch.testing.assert_close(returns, advantages + values, rtol=0, atol=0)
        batch = TokenBatch(
            logprobs_T=logprobs,
            sequence_T=torch.zeros(len(names), dtype=torch.long),
            num_sequences=1,
            weights_S=f64(1),
            advantages_T=advantages,
        )
        # Every token counts alike here: the constant aggregate, of one completion and a limit of one token.
        loss = clipped_policy_gradient(
            batch, Denominators(len(names), 1, 1), clip_low=0.2, clip_high=0.2, aggregate="constant"
        ).loss
        found += logprobs.detach().sum().exp() * gradient(loss, *policy.parameters)
    exact = exact_gradient(policy, reference, 0.6)
    if lam == 1.0:
        torch.testing.assert_close(-found, exact, rtol=1e-10, atol=1e-12)
    else:
        assert (-found - exact).norm() > 0.05 * exact.norm()


def test_a_perfect_value_head_makes_every_lambda_unbiased():
    """V(s) = the expected reward from s on: λ = 0 then has the exact gradient too."""
    policy, reference = Chain(4), Chain(5)
    first, second = (x.detach().log_softmax(-1) for x in policy.parameters)
    first_0, second_0 = (x.detach().log_softmax(-1) for x in reference.parameters)
    scores = dict(zip(SEQUENCES, SCORES.tolist(), strict=True))
    beta = 0.6
    after = [
        0.0 if a == 0 else sum(
            float(second[a, b].exp() * (scores[a, b] - beta * (second[a, b] - second_0[a, b]))) for b in range(3)
        )
        for a in range(3)
    ]  # fmt: skip
    start = sum(
        float(first[a].exp() * (after[a] + (scores[(0,)] if a == 0 else 0.0) - beta * (first[a] - first_0[a])))
        for a in range(3)
    )
    found = torch.zeros(12, dtype=torch.float64)
    for s, names in enumerate(SEQUENCES):
        logprobs, lengths = policy.tokens(s), torch.tensor([len(names)])
        rewards = token_rewards(SCORES[s : s + 1], lengths, logprobs, reference.tokens(s), beta)
        values = f64(start) if len(names) == 1 else f64(start, after[names[0]])
        advantages, _ = gae(rewards, values, lengths, gamma=1.0, lam=0.0)
        batch = TokenBatch(logprobs, torch.zeros(len(names), dtype=torch.long), 1, f64(1), advantages_T=advantages)
        loss = clipped_policy_gradient(batch, Denominators(len(names), 1, 1), clip="none", aggregate="constant").loss
        found += logprobs.detach().sum().exp() * gradient(loss, *policy.parameters)
    torch.testing.assert_close(-found, exact_gradient(policy, reference, beta), rtol=1e-10, atol=1e-12)

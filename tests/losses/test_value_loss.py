"""PPO: the value head's loss, the policy's with an advantage per token, and both from scores on, in plain floats."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from preftune.losses import Denominators, TokenBatch, clipped_policy_gradient, merge_metrics, value_loss
from preftune.objectives import PRESETS
from preftune.signals import gae, token_rewards, whiten
from tests.losses.batches import take

AGGREGATES = ("token-mean", "sequence-mean", "constant")


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def example(weights: tuple[float, ...] = (1, 1, 1, 0)) -> tuple[TokenBatch, Denominators]:
    """Four completions of 3, 1, 0 and 2 tokens, none on a clip's edge; the last one's row is masked."""
    batch = TokenBatch(
        logprobs_T=f64(-0.5, -1.2, -0.3, -2.0, -0.9, -0.4).requires_grad_(),
        sequence_T=torch.tensor([0, 0, 0, 1, 3, 3]),
        num_sequences=4,
        weights_S=f64(*weights),
        old_logprobs_T=f64(-0.9, -1.1, -0.75, -1.6, -0.8, -0.5),
        sampler_logprobs_T=f64(-0.7, -1.15, -1.9, -1.5, -0.8, -0.6),
        reference_logprobs_T=f64(-0.6, -1.9, -0.2, -1.5, -0.9, -0.1),
        advantages_T=f64(1.5, -0.7, 0.4, 2.0, -1.0, 0.3),
        values_T=f64(0.5, 1.0, -0.3, 0.9, 0.2, 2.0).requires_grad_(),
        old_values_T=f64(0.4, 0.5, -0.2, 1.5, 0.2, 1.0),
        returns_T=f64(1.0, 0.9, -1.0, 0.1, 0.6, -0.5),
    )
    return batch, Denominators.count([3, 1, 0, 2], list(weights), max_tokens=8)


# --- value loss ---------------------------------------------------------------------------------------------


def test_value_loss_by_hand():
    batch, totals = example()
    out = value_loss(batch, totals, clip=0.2, coefficient=0.1)
    # V − R = −0.5, 0.1, 0.7, 0.8 (masked: −0.4, 2.5). Clipped V: 0.5, 0.7, −0.3, 1.3; minus R: −0.5, −0.2, 0.7, 1.2.
    losses = [0.5 * 0.25, 0.5 * 0.04, 0.5 * 0.49, 0.5 * 1.44]
    assert out.loss.item() == pytest.approx(0.1 * sum(losses) / 4)
    found = {name: metric.value() for name, metric in out.metrics.items()}
    assert found == pytest.approx(
        {
            "value/loss": sum(losses) / 4,
            "value/clipped": 2 / 4,
            "value/mean": (0.5 + 1.0 - 0.3 + 0.9) / 4,
            "value/error": (0.25 + 0.01 + 0.49 + 0.64) / 4,
        }
    )
    # Where the clipped error is the larger one, the gradient has stopped; else it is V − R. None for masked rows.
    grad = torch.autograd.grad(out.loss, batch.values_T)[0]
    assert grad.tolist() == pytest.approx([0.1 * -0.5 / 4, 0, 0.1 * 0.7 / 4, 0, 0, 0])


def test_value_loss_without_a_clip_is_half_the_squared_error():
    batch, totals = example()
    out = value_loss(batch, totals, clip=None, coefficient=2.0)
    assert out.loss.item() == pytest.approx(2.0 * 0.5 * (0.25 + 0.01 + 0.49 + 0.64) / 4)
    grad = torch.autograd.grad(out.loss, batch.values_T)[0]
    assert grad.tolist() == pytest.approx([2 * x / 4 for x in (-0.5, 0.1, 0.7, 0.8)] + [0, 0])
    assert "value/clipped" not in out.metrics
    wide = value_loss(batch, totals, clip=100.0, coefficient=2.0)
    assert wide.loss.item() == pytest.approx(out.loss.item(), abs=1e-15)
    torch.testing.assert_close(torch.autograd.grad(wide.loss, batch.values_T)[0], grad, rtol=0, atol=1e-15)


def test_value_loss_at_the_first_update():
    """V = V_old: no clip yet, so its gradient is that of the squared error, whole and not halved by the tie."""
    batch, totals = example()
    assert batch.values_T is not None
    batch = replace(batch, old_values_T=batch.values_T.detach())
    clipped, free = (value_loss(batch, totals, clip=c, coefficient=1.0) for c in (0.2, None))
    assert clipped.loss.item() == free.loss.item()
    got, wanted = (torch.autograd.grad(out.loss, batch.values_T)[0] for out in (clipped, free))
    assert got.tolist() == pytest.approx(wanted.tolist(), abs=1e-15)
    assert clipped.metrics["value/clipped"].value() == 0.0


def plain_value_loss(
    v: list[float], old: list[float], r: list[float], w: list[float], clip: float | None, c: float
) -> float:
    total = 0.0
    for value, before, target, weight in zip(v, old, r, w, strict=True):
        worst = (value - target) ** 2
        if clip is not None:
            worst = max(worst, (min(max(value, before - clip), before + clip) - target) ** 2)
        total += weight * worst / 2
    return c * total / sum(w)


@pytest.mark.parametrize("clip", [None, 0.05, 0.2, 0.7])
@pytest.mark.parametrize("seed", range(3))
def test_value_loss_against_loops_and_its_gradient(clip, seed):
    g = torch.Generator().manual_seed(seed)
    lengths, weights = [4, 0, 1, 7, 2], [1.0, 1.0, 1.0, 0.0, 1.0]
    values, old, returns, logprobs = (torch.randn(14, generator=g, dtype=torch.float64) for _ in range(4))
    owners = torch.repeat_interleave(torch.arange(5), torch.tensor(lengths))
    totals = Denominators.count(lengths, weights, 9)

    def loss(v: Tensor) -> Tensor:
        batch = TokenBatch(logprobs, owners, 5, f64(*weights), values_T=v, old_values_T=old, returns_T=returns)
        return value_loss(batch, totals, clip=clip, coefficient=0.3).loss

    per_token = [weights[s] for s in owners.tolist()]
    wanted = plain_value_loss(values.tolist(), old.tolist(), returns.tolist(), per_token, clip, 0.3)
    assert loss(values).item() == pytest.approx(wanted, abs=1e-14)
    assert torch.autograd.gradcheck(loss, (values.requires_grad_(),))


def test_value_loss_gives_targets_no_gradient():
    batch, totals = example()
    assert batch.old_values_T is not None and batch.returns_T is not None
    old, returns = batch.old_values_T.clone().requires_grad_(), batch.returns_T.clone().requires_grad_()
    batch = replace(batch, old_values_T=old, returns_T=returns)
    loss = value_loss(batch, totals, clip=0.2, coefficient=1.0).loss
    assert torch.autograd.grad(loss, (old, returns), allow_unused=True) == (None, None)


def test_value_loss_of_half_precision_is_taken_in_fp32():
    # 2.001 and 3.003 are 2 and 3 in bf16, where the errors would be 0.
    batch = TokenBatch(
        torch.zeros(2),
        torch.tensor([0, 0]),
        1,
        torch.ones(1),
        values_T=torch.tensor([2.0, 3.0], dtype=torch.bfloat16).requires_grad_(),
        old_values_T=torch.tensor([2.0, 3.0]),
        returns_T=torch.tensor([2.001, 3.003]),
    )
    out = value_loss(batch, Denominators.count([2], [1], 2), clip=0.2, coefficient=1.0)
    assert out.loss.dtype == torch.float32
    assert out.loss.item() == pytest.approx((1e-6 + 9e-6) / 4, rel=1e-3)


@pytest.mark.parametrize("missing", ["values_T", "old_values_T", "returns_T"])
def test_value_loss_names_what_it_needs(missing):
    batch, totals = example()
    with pytest.raises(ValueError, match="needs values_T, old_values_T and returns_T"):
        value_loss(replace(batch, **{missing: None}), totals, clip=0.2, coefficient=0.1)


def test_value_loss_of_masked_and_empty_batches_is_zero():
    batch, _ = example((0, 0, 0, 0))
    out = value_loss(batch, Denominators.count([3, 1, 0, 2], [0] * 4, 8), clip=0.2, coefficient=0.1)
    assert out.loss.item() == 0.0 and out.metrics["value/loss"].value() is None
    assert torch.autograd.grad(out.loss, batch.values_T)[0].tolist() == [0.0] * 6
    empty = take(batch, [2])
    assert value_loss(empty, Denominators.count([0], [1], 8), clip=0.2, coefficient=0.1).loss.item() == 0.0


# --- micro-batches and masks --------------------------------------------------------------------------------

SPLITS = ([[0], [1], [2], [3]], [[3, 1], [2, 0]], [[2], [0, 1, 3]], [[0, 1, 2, 3], []])


def both(batch: TokenBatch, totals: Denominators, aggregate: str, clip: str) -> tuple[Tensor, dict]:
    bounds = {"ppo": {"clip_low": 0.2, "clip_high": 0.28}, "cispo": {"clip_high": 1.1}, "none": {}}[clip]
    policy = clipped_policy_gradient(
        batch, totals, clip=clip, aggregate=aggregate, beta=0.3, sampler_cap=2.0, **bounds
    )  # fmt: skip
    value = value_loss(batch, totals, clip=0.2, coefficient=0.1)
    return policy.loss + value.loss, policy.metrics | value.metrics


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("clip", ["ppo", "cispo", "none"])
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_the_split_into_micro_batches_changes_neither_loss(aggregate, clip, masked):
    batch, totals = example((1, 1, 1, 0) if masked else (1, 1, 1, 1))
    leaves = (batch.logprobs_T, batch.values_T)
    loss, metrics = both(batch, totals, aggregate, clip)
    wanted = torch.autograd.grad(loss, leaves)
    for split in SPLITS:
        parts = [both(take(batch, names), totals, aggregate, clip) for names in split]
        shares = torch.stack([share for share, _ in parts]).sum()
        assert shares.item() == pytest.approx(loss.item(), abs=1e-14)
        for got, want in zip(torch.autograd.grad(shares, leaves), wanted, strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-15)
        merged = merge_metrics([part for _, part in parts])
        assert {n: m.value() for n, m in merged.items()} == pytest.approx({n: m.value() for n, m in metrics.items()})


@pytest.mark.parametrize("clip", ["ppo", "cispo", "none"])
def test_a_masked_row_is_as_if_it_were_not_there(clip):
    """For the token-mean: what stands in a masked row changes no number, and neither does taking it out."""
    batch, totals = example()
    loss, metrics = both(batch, totals, "token-mean", clip)
    short, _ = both(take(batch, [0, 1, 2]), Denominators.count([3, 1, 0], [1, 1, 1], 8), "token-mean", clip)
    assert short.item() == pytest.approx(loss.item(), abs=1e-15)
    wild = {name: getattr(batch, name).detach().clone() for name in ("advantages_T", "returns_T", "old_logprobs_T")}
    for tensor in wild.values():
        tensor[4:] = -7.0
    other, others = both(replace(batch, **wild), totals, "token-mean", clip)
    assert other.item() == pytest.approx(loss.item(), abs=1e-15)
    assert {n: m.value() for n, m in others.items()} == pytest.approx({n: m.value() for n, m in metrics.items()})
    grads = torch.autograd.grad(other, (batch.logprobs_T, batch.values_T))
    assert all(grad[4:].tolist() == [0.0, 0.0] for grad in grads)


# --- the policy's loss with an advantage per token ------------------------------------------------------------


@pytest.mark.parametrize(
    ("aggregate", "divide"),
    [("token-mean", [3, 3, 3]), ("sequence-mean", [4, 4, 2]), ("constant", [10, 10, 10])],
)
def test_token_advantages_by_hand(aggregate, divide):
    # Ratios 2, 0.5 | 1.1; advantages 1, −2 | 3: clipped above, clipped below, free.
    batch = TokenBatch(
        logprobs_T=f64(math.log(0.8), math.log(0.2), math.log(0.55)).requires_grad_(),
        sequence_T=torch.tensor([0, 0, 1]),
        num_sequences=2,
        weights_S=f64(1, 1),
        old_logprobs_T=f64(math.log(0.4), math.log(0.4), math.log(0.5)),
        advantages_T=f64(1, -2, 3),
        advantages_S=f64(50, 60),  # a token's own advantage goes before its completion's
    )
    totals = Denominators.count([2, 1], [1, 1], max_tokens=5)
    out = clipped_policy_gradient(batch, totals, clip_low=0.2, clip_high=0.2, aggregate=aggregate)
    losses = [-1.2, 1.6, -3.3]
    assert out.loss.item() == pytest.approx(sum(x / d for x, d in zip(losses, divide, strict=True)))
    grad = torch.autograd.grad(out.loss, batch.logprobs_T)[0]
    assert grad.tolist() == pytest.approx([0, 0, -3.3 / divide[2]])
    assert out.metrics["clip/high"].value() == out.metrics["clip/low"].value() == pytest.approx(1 / 3)


@pytest.mark.parametrize("clip", ["ppo", "cispo", "none"])
@pytest.mark.parametrize("ratio", ["token", "sequence", "sequence-sum"])
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_equal_token_advantages_are_a_completions_own(aggregate, ratio, clip):
    batch, totals = example()
    own = f64(1.5, -0.7, 0.4, 2.0)
    bounds = {"ppo": {"clip_low": 0.2, "clip_high": 0.28}, "cispo": {"clip_high": 1.1}, "none": {}}[clip]
    spread = replace(batch, advantages_T=own[batch.sequence_T])
    whole = replace(batch, advantages_T=None, advantages_S=own)
    losses = [
        clipped_policy_gradient(b, totals, ratio=ratio, clip=clip, aggregate=aggregate, **bounds).loss
        for b in (spread, whole)
    ]
    assert losses[0].item() == losses[1].item()
    got, want = (torch.autograd.grad(loss, batch.logprobs_T)[0] for loss in losses)
    assert got.tolist() == want.tolist()


# --- PPO from scores to both losses, in plain floats ------------------------------------------------------------


def plain_ppo(data: dict, logprobs: list[list[float]], values: list[list[float]]) -> tuple[float, float]:
    """Ziegler's reward, Schulman's GAE and clip, baselines' value clip, one completion and one token at a time."""
    advantages, returns = [], []
    for s, old in enumerate(data["old"]):
        rewards = [-data["beta"] * (p - q) for p, q in zip(old, data["reference"][s], strict=True)]
        if rewards:
            rewards[-1] += data["scores"][s]
        before, after, row = data["old_values"][s], 0.0, []
        for t in reversed(range(len(old))):
            following = before[t + 1] if t + 1 < len(old) else 0.0
            after = rewards[t] + data["gamma"] * following - before[t] + data["gamma"] * data["lam"] * after
            row.insert(0, after)
        advantages.append(row)
        returns.append([a + v for a, v in zip(row, before, strict=True)])
    counted = [a for row, w in zip(advantages, data["weights"], strict=True) for a in row if w]
    mean = sum(counted) / len(counted)
    deviation = math.sqrt(sum((a - mean) ** 2 for a in counted) / (len(counted) - 1) + 1e-8)
    policy = value = 0.0
    for s, old in enumerate(data["old"]):
        for t in range(len(old) if data["weights"][s] else 0):
            a = (advantages[s][t] - mean) / deviation
            rho = math.exp(logprobs[s][t] - old[t])
            policy -= min(rho * a, min(max(rho, 0.8), 1.2) * a)
            v, r, before = values[s][t], returns[s][t], data["old_values"][s][t]
            value += 0.5 * max((v - r) ** 2, (min(max(v, before - 0.2), before + 0.2) - r) ** 2)
    return policy / len(counted), 0.1 * value / len(counted)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 0.0)])
def test_ppo_from_scores_to_losses(seed, gamma, lam):
    lengths, weights = [5, 0, 1, 9, 3, 2], [1.0, 1.0, 1.0, 1.0, 0.0, 1.0]
    g = torch.Generator().manual_seed(seed)
    old, reference, old_values = (torch.randn(20, generator=g, dtype=torch.float64) for _ in range(3))
    logprobs, values = (x + 0.3 * torch.randn(20, generator=g, dtype=torch.float64) for x in (old, old_values))
    scores = torch.randn(6, generator=g, dtype=torch.float64)
    owners = torch.repeat_interleave(torch.arange(6), torch.tensor(lengths))

    def rows(flat: Tensor) -> list[list[float]]:
        return [part.tolist() for part in flat.split(lengths)]

    data = {
        "old": rows(old), "reference": rows(reference), "old_values": rows(old_values), "scores": scores.tolist(),
        "weights": weights, "beta": 0.05, "gamma": gamma, "lam": lam,
    }  # fmt: skip

    rewards = token_rewards(scores, torch.tensor(lengths), old, reference, 0.05)
    advantages, returns = gae(rewards, old_values, torch.tensor(lengths), gamma=gamma, lam=lam)
    advantages = whiten(advantages, f64(*weights)[owners])
    totals = Denominators.count(lengths, weights, 9)
    preset = PRESETS["ppo"]
    choices = {name: getattr(preset, name) for name in ("ratio", "clip", "clip_low", "clip_high", "aggregate")}

    def losses(p: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        batch = TokenBatch(
            p, owners, 6, f64(*weights), old_logprobs_T=old, advantages_T=advantages,
            values_T=v, old_values_T=old_values, returns_T=returns,
        )  # fmt: skip
        policy = clipped_policy_gradient(batch, totals, **choices)
        return policy.loss, value_loss(batch, totals, clip=0.2, coefficient=0.1).loss

    wanted = plain_ppo(data, rows(logprobs), rows(values))
    assert [x.item() for x in losses(logprobs, values)] == pytest.approx(wanted, abs=1e-12)
    leaves = (logprobs.requires_grad_(), values.requires_grad_())
    assert torch.autograd.gradcheck(losses, leaves)
    # The gradient again, by central differences of the loop's own floats.
    grads = torch.autograd.grad(sum(losses(*leaves)), leaves)
    for which in range(2):
        for t in (0, 4, 5, 11, 16, 19):
            up, down = ([x.detach().clone() for x in leaves] for _ in range(2))
            up[which][t] += 1e-6
            down[which][t] -= 1e-6
            slope = (sum(plain_ppo(data, *map(rows, up))) - sum(plain_ppo(data, *map(rows, down)))) / 2e-6
            assert grads[which][t].item() == pytest.approx(slope, abs=1e-7), (which, t)
    assert (grads[0][owners == 4] == 0).all() and (grads[1][owners == 4] == 0).all()

"""The losses on pairs: numbers worked out by hand, limits, gradients, and what must not change them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.losses import Denominators, TokenBatch, implicit_rewards, merge_metrics, preference_loss
from preftune.losses.preference import IMPLICIT, log_ratios
from preftune.methods import PREFERENCE_LOSSES
from tests.losses.batches import Rows, make, totals

CHOICES: dict[str, dict[str, Any]] = {
    "dpo": {"beta": 0.5},
    "conservative": {"beta": 0.5, "label_smoothing": 0.1},
    "robust": {"beta": 0.5, "label_smoothing": 0.1},
    "ipo": {"beta": 0.5},
    "hinge": {"beta": 0.25},
    "apo-zero": {"beta": 0.5},
    "apo-down": {"beta": 0.5},
    "simpo": {"beta": 2.0, "gamma_ratio": 0.5},
    "orpo": {"beta": 1.0, "odds_weight": 0.2, "sft_weight": 1.0},
    "cpo": {"beta": 0.5, "sft_weight": 1.0},
}
FREE = ("simpo", "orpo", "cpo")  # of a reference


def loss_of(name: str, batch: TokenBatch, denominators: Denominators | None = None, **changes: Any) -> Any:
    choices = {**CHOICES[name], **changes}
    return preference_loss(batch, denominators or totals(batch), name=name, **choices)


def gradient(output: Any, batch: TokenBatch) -> list[float]:
    (grad,) = torch.autograd.grad(output.loss, batch.logprobs_T)
    return [float(g) for g in grad]


# One pair. Chosen: log π −1.5 over 2 tokens, log π₀ −2.5, so Δ = 1. Rejected: −2 over 1 token, π₀ −1, so Δ = −1. h = 2.
CHOSEN, REJECTED = [-1.0, -0.5], [-2.0]
REFERENCE = [[-1.5, -1.0], [-1.0]]
BY_HAND = {
    # −log σ(0.5 · 2) = log(1 + e^−1)
    "dpo": 0.3132617,
    # 0.9 · 0.3132617 + 0.1 · log(1 + e^1) = 0.2819355 + 0.1313262
    "conservative": 0.4132617,
    # (0.2819355 − 0.1313262) / 0.8
    "robust": 0.1882617,
    # Δ per token 1/2 and −1, h̄ = 1.5, 1/(2β) = 1: 0.5²
    "ipo": 0.25,
    # β 0.25: 1 − 0.25 · 2
    "hinge": 0.5,
    # 1 − σ(0.5) + σ(−0.5) = 2 · 0.3775407
    "apo-zero": 0.7550813,
    # σ(0.5) + 1 − σ(1) = 0.6224593 + 0.2689414
    "apo-down": 0.8914007,
    # l = −0.75 and −2, β 2, γ 1: −log σ(2 · 1.25 − 1) = log(1 + e^−1.5)
    "simpo": 0.2014133,
    # p = e^−0.75 = 0.4723666, odds 0.8952567; p = e^−2 = 0.1353353, odds 0.1565176; their ratio 5.7198468.
    # −log(5.7198468 / 6.7198468) = 0.1611227; 0.2 of it + NLL 1.5 / 2
    "orpo": 0.7822245,
    # −log σ(0.5 · (−1.5 + 2)) = log(1 + e^−0.25) = 0.5759394; + NLL 0.75
    "cpo": 1.3259394,
}


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name):
    batch = make([CHOSEN, REJECTED], REFERENCE, [(0, 1)])
    assert loss_of(name, batch).loss.item() == pytest.approx(BY_HAND[name], abs=1e-6)


def test_orpo_by_hand_with_round_odds():
    # Mean log π of log ¾ and log ½: odds 3 and 1. −log σ(log 3 − log 1) = −log(3/4). NLL −log ¾ per token.
    batch = make([[math.log(0.75)] * 3, [math.log(0.5)] * 2], None, [(0, 1)])
    assert loss_of("orpo", batch).loss.item() == pytest.approx(-1.2 * math.log(0.75))


@pytest.mark.parametrize("name", BY_HAND)
def test_sft_is_added_to_any(name):
    # NLL of the chosen completion: 1.5 over 2 tokens.
    batch = make([CHOSEN, REJECTED], REFERENCE, [(0, 1)])
    bare = loss_of(name, batch, sft_weight=0.0).loss.item()
    assert loss_of(name, batch, sft_weight=0.4).loss.item() == pytest.approx(bare + 0.4 * 0.75)


# ∂loss / ∂ log π of each chosen token and of each rejected one, for the pair above.
GRADIENTS = {
    # −β σ(−βh) = −0.5 · σ(−1) = −0.5 · 0.2689414
    "dpo": (-0.1344707, 0.1344707),
    # 0.9 · that + 0.1 · β σ(βh) = −0.1210236 + 0.1 · 0.5 · 0.7310586
    "conservative": (-0.0844707, 0.0844707),
    # (−0.1210236 − 0.0365529) / 0.8
    "robust": (-0.1969707, 0.1969707),
    # 2 · (1.5 − 1) = 1 on h̄: over 2 tokens, and over 1
    "ipo": (0.5, -1.0),
    "hinge": (-0.25, 0.25),
    # −β σ'(0.5) and β σ'(−0.5), σ' = 0.2350037
    "apo-zero": (-0.1175019, 0.1175019),
    # β σ'(0.5) − β σ'(1), σ'(1) = 0.1966119; and β σ'(1)
    "apo-down": (0.0191959, 0.0983060),
    # −β σ(−1.5) = −2 · 0.1824255: over 2 tokens, and over 1
    "simpo": (-0.1824255, 0.3648511),
    # d log odds/dl = 1/(1 − p): 1.8952567 and 1.1565176. σ(−log ratio) = 1/6.7198468 = 0.1488129.
    # −0.2 · 0.1488129 · 1.8952567 / 2 − 1/2 (NLL); 0.2 · 0.1488129 · 1.1565176
    "orpo": (-0.5282037, 0.0344210),
    # −0.5 · σ(−0.25) = −0.5 · 0.4378235, − 1/2 (NLL); 0.5 · 0.4378235
    "cpo": (-0.7189117, 0.2189117),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradient_by_hand(name):
    batch = make([CHOSEN, REJECTED], REFERENCE, [(0, 1)])
    chosen, rejected = GRADIENTS[name]
    assert gradient(loss_of(name, batch), batch) == pytest.approx([chosen, chosen, rejected], abs=1e-6)


def several(seed: int, dtype: torch.dtype = torch.float64) -> tuple[list[list[float]], list[list[float]]]:
    """Log-probs and reference of seven completions of 0 to 5 tokens; the last group's completions are 4, 5, 6."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 6, (7,), generator=generator).tolist()
    draw = [(-2.0 * torch.rand(n, 2, generator=generator, dtype=dtype) - 0.05).tolist() for n in lengths]
    return [[a for a, _ in row] for row in draw], [[b for _, b in row] for row in draw]


# Completions 0–1 and 2–3 are plain pairs; of 4, 5, 6 all three pairs.
SHARED = [(0, 1), (3, 2), (4, 5), (4, 6), (5, 6)]


@pytest.mark.parametrize("name", CHOICES)
def test_gradcheck(name):
    logprobs, reference = several(1)
    batch = make(logprobs, reference, SHARED)

    def loss(logprobs_T: torch.Tensor) -> torch.Tensor:
        moved = TokenBatch(
            logprobs_T,
            batch.sequence_T,
            batch.num_sequences,
            batch.weights_S,
            reference_logprobs_T=batch.reference_logprobs_T,
            pairs_P2=batch.pairs_P2,
        )
        return loss_of(name, moved, sft_weight=0.3).loss

    assert torch.autograd.gradcheck(loss, (batch.logprobs_T,))


def test_reference_gets_no_gradient():
    batch = make([CHOSEN, REJECTED], REFERENCE, [(0, 1)])
    assert batch.reference_logprobs_T is not None
    batch.reference_logprobs_T.requires_grad_()
    loss_of("dpo", batch).loss.backward()
    assert batch.reference_logprobs_T.grad is None
    rewards = implicit_rewards(
        torch.tensor([1.0]), torch.tensor([0.5], requires_grad=True), torch.ones(1), implicit="ratio", beta=1.0
    )
    assert not rewards.requires_grad


# --- Limits -----------------------------------------------------------------------------------------------------------


AT_ZERO = {  # β → 0: every argument goes to 0, with σ(0) = ½
    "dpo": math.log(2),
    "conservative": math.log(2),
    "robust": math.log(2),  # (0.9 − 0.1) / 0.8 · log 2
    "hinge": 1.0,
    "apo-zero": 1.0,
    "apo-down": 1.0,
    "simpo": math.log(2),
    "cpo": math.log(2),
}
# Slope of the loss in β·d_chosen and in β·d_rejected at 0.
SLOPES = {
    "dpo": (-0.5, 0.5),
    "conservative": (-0.4, 0.4),  # −0.9/2 + 0.1/2
    "robust": (-0.625, 0.625),  # (−0.9/2 − 0.1/2) / 0.8
    "hinge": (-1.0, 1.0),
    "apo-zero": (-0.25, 0.25),
    "apo-down": (0.0, 0.25),  # ¼ − ¼
    "simpo": (-0.25, 0.5),  # −½ over two tokens
    "cpo": (-0.5, 0.5),
}


@pytest.mark.parametrize("name", AT_ZERO)
def test_small_beta(name):
    beta = 1e-7
    batch = make([CHOSEN, REJECTED], REFERENCE, [(0, 1)])
    output = loss_of(name, batch, beta=beta, sft_weight=0.0)
    assert output.loss.item() == pytest.approx(AT_ZERO[name], abs=1e-6)
    chosen, rejected = SLOPES[name]
    expected = [chosen * beta, chosen * beta, rejected * beta]
    assert gradient(output, batch) == pytest.approx(expected, abs=1e-6 * beta)


def test_small_beta_of_ipo_asks_for_an_ever_wider_margin():
    # (h̄ − 1/(2β))² · β² → ¼
    batch = make([CHOSEN, REJECTED], REFERENCE, [(0, 1)])
    assert loss_of("ipo", batch, beta=1e-6).loss.item() * 1e-12 == pytest.approx(0.25, rel=1e-4)


IDENTICAL = {  # h = 0; Δ = 1 (of 2 tokens) on both sides
    "dpo": math.log(2),
    "conservative": math.log(2),
    "robust": math.log(2),
    "ipo": 1.0,  # (1/(2 · 0.5))²
    "hinge": 1.0,
    "apo-zero": 1.0,  # 1 − σ(½) + σ(½)
    "apo-down": 0.6224593 + 0.5,
    "simpo": math.log(1 + math.e),  # −log σ(−γ), γ = 1
    "orpo": 0.2 * math.log(2) + 0.75,
    "cpo": math.log(2) + 0.75,
}


@pytest.mark.parametrize("name", IDENTICAL)
def test_identical_pair(name):
    batch = make([CHOSEN, CHOSEN], [REFERENCE[0], REFERENCE[0]], [(0, 1)])
    output = loss_of(name, batch)
    assert output.loss.item() == pytest.approx(IDENTICAL[name], abs=1e-6)
    assert output.metrics["rewards/accuracy"].value() == 0.5
    assert output.metrics["rewards/margin"].value() == 0.0
    # One completion against itself: whatever pulls one side pushes the other, where the loss reads the difference.
    itself = make([CHOSEN], [REFERENCE[0]], [(0, 0)])
    pull = gradient(loss_of(name, itself, sft_weight=0.0), itself)
    slope = 0.5 * 0.2350037 if name == "apo-down" else 0.0  # β σ'(βΔ): both sides fall
    assert pull == pytest.approx([slope, slope], abs=1e-6)


@pytest.mark.parametrize("name", CHOICES)
def test_one_token_is_its_own_mean(name):
    batch = make([[-0.3], [-1.1]], [[-0.6], [-0.7]], [(0, 1)])
    spread = make([[-0.3] * 4, [-1.1] * 4], [[-0.6] * 4, [-0.7] * 4], [(0, 1)])
    one, four = (loss_of(name, b, sft_weight=0.5).loss.item() for b in (batch, spread))
    assert math.isfinite(one)
    # Averages don't notice four equal tokens, sums do.
    assert (one == pytest.approx(four)) is IMPLICIT[name].endswith("mean")


EMPTY_CHOSEN = {  # chosen has no token: d = 0. Rejected: Δ = −1 over 1 token, log π −2.
    "dpo": math.log(1 + math.exp(-0.5)),
    "conservative": 0.9 * math.log(1 + math.exp(-0.5)) + 0.1 * math.log(1 + math.exp(0.5)),
    "robust": (0.9 * math.log(1 + math.exp(-0.5)) - 0.1 * math.log(1 + math.exp(0.5))) / 0.8,
    "ipo": 0.0,  # (0 + 1 − 1)²
    "hinge": 0.75,
    "apo-zero": 0.5 + 0.3775407,
    "apo-down": 0.5 + 0.3775407,
    "simpo": math.log(1 + math.exp(-3.0)),  # 2 · 2 − 1
    # Odds of one million at most against 0.1565176.
    "orpo": 0.2 * math.log(1 + 0.1565176e-6),
    "cpo": math.log(1 + math.exp(-1.0)),
}


@pytest.mark.parametrize("name", EMPTY_CHOSEN)
def test_empty_completion(name):
    batch = make([[], REJECTED], [[], [-1.0]], [(0, 1)])
    output = loss_of(name, batch)
    assert output.loss.item() == pytest.approx(EMPTY_CHOSEN[name], abs=1e-6)
    assert all(math.isfinite(g) for g in gradient(output, batch))
    assert output.metrics["nll"].value() is None, "no chosen token was seen"
    assert output.metrics["logprobs/chosen"].value() == 0.0
    # Both empty: nothing to learn, nothing breaks.
    nothing = make([[], []], [[], []], [(0, 1)])
    blank = loss_of(name, nothing)
    assert math.isfinite(blank.loss.item())
    blank.loss.backward()
    assert nothing.logprobs_T.grad is not None


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("name", CHOICES)
def test_huge_margins_stay_finite(name, sign):
    """h = ±1e4 nats in fp32, from one token or many."""
    far, near = [-1e4], [-1e-9]
    sides = [near, far] if sign > 0 else [far, near]
    for rows in (sides, [[value[0] / 100] * 100 for value in sides]):
        batch = make(rows, [[-1.0] * len(row) for row in rows], [(0, 1)], dtype=torch.float32)
        output = loss_of(name, batch, beta=1.0)
        slopes = gradient(output, batch)
        assert math.isfinite(output.loss.item())
        assert all(math.isfinite(g) for g in slopes)
        if name in ("dpo", "hinge", "cpo", "simpo") and len(rows[0]) == 1:
            # Certain of the wrong answer: a full pull of β (and, for cpo, the NLL's 1). Of the right one: none.
            extra = 1.0 if name == "cpo" else 0.0
            assert slopes == pytest.approx([-1.0 - extra, 1.0] if sign < 0 else [-extra, 0.0], abs=1e-4)


def test_certain_tokens_have_finite_odds():
    batch = make([[0.0, 0.0], [0.0]], None, [(0, 1)], dtype=torch.float32)
    output = loss_of("orpo", batch)
    assert output.loss.item() == pytest.approx(0.2 * math.log(2), abs=1e-6)
    assert gradient(output, batch) == [-0.5, -0.5, 0.0], "NLL alone: at the cap the odds term has no slope"


@pytest.mark.parametrize("name", ["apo-zero", "apo-down"])
def test_a_nearly_won_pair_keeps_its_digits(name):
    """1 − σ(20) is 2e-9; in fp32, taken as a difference, it would be 0. Down: Δ_w = −20 and h = 20."""
    chosen, rejected = ([-1.0], [-41.0]) if name == "apo-zero" else ([-41.0], [-61.0])
    batch = make([chosen, rejected], [[-21.0], [-21.0]], [(0, 1)], dtype=torch.float32)
    assert loss_of(name, batch, beta=1.0).loss.item() == pytest.approx(2 * math.exp(-20.0), rel=1e-4)


@pytest.mark.parametrize("exponent", [-5.9, -3.0, -1.0, math.log10(math.log(2)), 0.5, 2.0, 4.0])
def test_log_odds_keep_their_digits_in_fp32(exponent):
    """Against fp64, and its naive form, which is right to 1e-9 here."""
    logp = float(torch.tensor(-(10.0**exponent)))  # a number that fp32 has
    batch = make([[logp], [-0.7]], None, [(0, 1)], dtype=torch.float32)
    half = make([[logp], [-0.7]], None, [(0, 1)])
    single, double = loss_of("orpo", batch, sft_weight=0.0), loss_of("orpo", half, sft_weight=0.0)
    assert single.loss.item() == pytest.approx(double.loss.item(), rel=1e-5)
    p, q = math.exp(logp), math.exp(-0.7)
    naive = 0.2 * math.log1p(q / (1 - q) * (1 - p) / p) if p > 0 else None
    if naive is not None:
        assert double.loss.item() == pytest.approx(naive, rel=1e-6)
    assert gradient(single, batch) == pytest.approx(gradient(double, half), rel=1e-4)


# --- What must not change the loss ------------------------------------------------------------------------------------


def everything(outputs: list[Any], batch: TokenBatch) -> tuple[float, dict[str, float | None]]:
    metrics = merge_metrics([output.metrics for output in outputs])
    return sum(output.loss.item() for output in outputs), {name: part.value() for name, part in metrics.items()}


def pick(rows: Rows, places: list[int]) -> list[list[float]]:
    return [list(rows[place]) for place in places]


@pytest.mark.parametrize("name", CHOICES)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_split_into_micro_batches(name, seed):
    logprobs, reference = several(seed)
    whole = make(logprobs, reference, SHARED)
    denominators = totals(whole)
    parts = [
        make(pick(logprobs, [0, 1]), pick(reference, [0, 1]), [(0, 1)]),
        make(pick(logprobs, [2, 3]), pick(reference, [2, 3]), [(1, 0)]),
        make(pick(logprobs, [4, 5, 6]), pick(reference, [4, 5, 6]), [(0, 1), (0, 2), (1, 2)]),
        make(pick(logprobs, [6]), pick(reference, [6]), []),  # a pack may hold no whole pair
    ]
    one, many = loss_of(name, whole), [loss_of(name, part, denominators) for part in parts]
    loss, metrics = everything([one], whole)
    split_loss, split_metrics = everything(many, whole)
    assert split_loss == pytest.approx(loss, abs=1e-9)
    assert split_metrics == pytest.approx(metrics)
    slopes = [g for output, part in zip(many, parts, strict=True) for g in gradient(output, part)]
    lone = len(logprobs[6])
    assert slopes[: len(slopes) - lone] == pytest.approx(gradient(one, whole), abs=1e-9)
    assert slopes[len(slopes) - lone :] == [0.0] * lone


@pytest.mark.parametrize("name", CHOICES)
@given(seed=st.integers(0, 10**6), order=st.permutations(range(7)))
@settings(max_examples=15, deadline=None)
def test_order_of_completions(name, seed, order):
    logprobs, reference = several(seed)
    batch = make(logprobs, reference, SHARED)
    place = {old: new for new, old in enumerate(order)}
    shuffled = make(pick(logprobs, order), pick(reference, order), [(place[c], place[r]) for c, r in reversed(SHARED)])
    loss, metrics = everything([loss_of(name, batch)], batch)
    other, other_metrics = everything([loss_of(name, shuffled)], shuffled)
    assert other == pytest.approx(loss, abs=1e-9)
    assert other_metrics == pytest.approx(metrics)


@pytest.mark.parametrize("name", CHOICES)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_shared_completions_equal_copies(name, seed):
    """Several rejected per chosen: one group of three is worth its pairs written out, NLL included."""
    logprobs, reference = several(seed)
    batch = make(logprobs, reference, SHARED)
    flat_places = [place for pair in SHARED for place in pair]
    copies = make(
        pick(logprobs, flat_places), pick(reference, flat_places), [(2 * p, 2 * p + 1) for p in range(len(SHARED))]
    )
    loss, metrics = everything([loss_of(name, batch)], batch)
    other, other_metrics = everything([loss_of(name, copies)], copies)
    assert other == pytest.approx(loss, abs=1e-9)
    assert other_metrics == pytest.approx(metrics)


@pytest.mark.parametrize("name", CHOICES)
def test_a_masked_row_takes_its_pairs_along(name):
    logprobs, reference = several(1)
    masked = make(logprobs, reference, SHARED, weights=[1.0] * 6 + [0.0])
    kept = make(logprobs, reference, [pair for pair in SHARED if 6 not in pair])
    denominators = totals(masked)
    one, other = loss_of(name, masked, denominators), loss_of(name, kept, denominators)
    assert one.loss.item() == pytest.approx(other.loss.item())
    assert {n: m.value() for n, m in one.metrics.items()} == pytest.approx(
        {n: m.value() for n, m in other.metrics.items()}
    )


def test_half_precision_sums():
    """1,000 tokens of −1 in bf16 sum to −256 there, as −256 − 1 rounds back."""
    batch = make([[-1.0] * 1000, [-1.0] * 10], None, [(0, 1)], dtype=torch.bfloat16)
    output = loss_of("cpo", batch, beta=0.01)
    assert output.loss.dtype == torch.float32
    assert output.metrics["logprobs/chosen"].value() == -1000.0
    assert output.loss.item() == pytest.approx(math.log(1 + math.exp(9.9)) + 1.0, rel=1e-5)


def test_ratios_keep_their_digits_over_long_completions():
    """Δ of 0.4 nats over 4,000 tokens: the difference of two sums near −12,000 is off by 1e-3 and more in fp32."""
    generator = torch.Generator().manual_seed(0)
    now = -6.0 * torch.rand(4000, generator=generator)
    base = now - 1e-4
    batch = make([now.tolist()], [base.tolist()], None, dtype=torch.float32)
    exact = float((now.double() - base.double()).sum())
    assert log_ratios(batch).item() == pytest.approx(exact, abs=2e-5)


# --- Metrics and rewards ----------------------------------------------------------------------------------------------


def test_metrics_by_hand():
    # Δ: 1 (2 tokens), −1 (1 token), 1 (1 token), 3 (2 tokens); β 0.5. Pairs: 0 over 1, over 2 (a tie), over 3 (wrong).
    batch = make(
        [CHOSEN, REJECTED, [-1.0], [-2.0, -2.0]],
        [*REFERENCE, [-2.0], [-3.0, -4.0]],
        [(0, 1), (0, 2), (0, 3)],
    )
    values = {name: part.value() for name, part in loss_of("dpo", batch).metrics.items()}
    assert values == pytest.approx(
        {
            "rewards/chosen": 0.5,
            "rewards/rejected": 0.5,  # (−0.5 + 0.5 + 1.5) / 3
            "rewards/margin": 0.0,  # (1 + 0 − 1) / 3
            "rewards/accuracy": 0.5,  # (1 + ½ + 0) / 3
            "rewards/accuracy_longer": 0.75,  # pairs 0–1 and 0–2: (1 + ½) / 2
            "rewards/accuracy_shorter": None,
            "length/chosen": 2.0,
            "length/rejected": 4 / 3,
            "logprobs/chosen": -1.5,
            "logprobs/rejected": -7 / 3,  # (−2 − 1 − 4) / 3
            "nll": 0.75,
        }
    )
    shorter = loss_of("dpo", make([REJECTED, CHOSEN], [[-1.0], REFERENCE[0]], [(0, 1)])).metrics
    assert (shorter["rewards/accuracy_shorter"].value(), shorter["rewards/accuracy_longer"].value()) == (0.0, None)


def test_nll_counts_a_chosen_completion_once_per_pair():
    # Chosen 0 (1.5 over 2 tokens) in two pairs, chosen 1 (2 over 1) in one: (1.5 + 1.5 + 2) / (2 + 2 + 1).
    batch = make([CHOSEN, REJECTED, [-3.0]], None, [(0, 1), (0, 2), (1, 2)])
    assert loss_of("cpo", batch).metrics["nll"].value() == pytest.approx(1.0)
    bare = loss_of("cpo", batch, sft_weight=0.0).loss.item()
    assert loss_of("cpo", batch, sft_weight=2.0).loss.item() == pytest.approx(bare + 2.0)


@pytest.mark.parametrize(
    ("implicit", "expected"),
    [("ratio", [2.0, 0.0]), ("ratio-mean", [1.0, 0.0]), ("likelihood", [-3.0, 0.0]), ("likelihood-mean", [-1.5, 0.0])],
)
def test_implicit_rewards(implicit, expected):
    # log π −6, log π₀ −10, 2 tokens, β 0.5; and an empty completion.
    rewards = implicit_rewards(
        torch.tensor([-6.0, 0.0]),
        torch.tensor([-10.0, 0.0]),
        torch.tensor([2, 0]),
        implicit=implicit,
        beta=0.5,
    )
    assert rewards.tolist() == expected


@pytest.mark.parametrize("name", CHOICES)
def test_metrics_are_the_implicit_rewards(name):
    logprobs, reference = several(4)
    metrics = loss_of(name, make(logprobs, reference, [(0, 1)])).metrics
    rewards = implicit_rewards(
        torch.tensor([sum(row) for row in logprobs]),
        None if name in FREE else torch.tensor([sum(row) for row in reference]),
        torch.tensor([len(row) for row in logprobs]),
        implicit=PREFERENCE_LOSSES[name].implicit,
        beta=CHOICES[name]["beta"],
    )
    assert metrics["rewards/chosen"].value() == pytest.approx(float(rewards[0]), rel=1e-5)
    assert metrics["rewards/rejected"].value() == pytest.approx(float(rewards[1]), rel=1e-5)


def test_the_table_of_methods_names_the_same_losses():
    assert {name: row.implicit for name, row in PREFERENCE_LOSSES.items()} == IMPLICIT
    batch = make([CHOSEN, REJECTED], REFERENCE, [(0, 1)])
    for name, row in PREFERENCE_LOSSES.items():  # the defaults are numbers that the loss takes
        numbers = ("beta", "label_smoothing", "gamma_ratio", "odds_weight", "sft_weight")
        chosen = {number: getattr(row, number) for number in numbers}
        assert math.isfinite(preference_loss(batch, totals(batch), name=name, **chosen).loss.item())


# --- Errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "dpoo"}, "unknown preference loss 'dpoo'; choose dpo, conservative"),
        ({"beta": 0.0}, "beta must be above 0, not 0"),
        ({"beta": math.nan}, "beta must be above 0, not nan"),
        ({"label_smoothing": 0.5}, r"label_smoothing must be in \[0, 0.5\), not 0.5"),
        ({"name": "ipo", "label_smoothing": 0.1}, "ipo does not read label_smoothing"),
        ({"gamma_ratio": 0.5}, "dpo does not read gamma_ratio"),
        ({"odds_weight": 0.5}, "dpo does not read odds_weight"),
    ],
)
def test_refused_numbers(changes, message):
    batch = make([CHOSEN, REJECTED], REFERENCE, [(0, 1)])
    with pytest.raises(ValueError, match=message):
        preference_loss(batch, totals(batch), **{"name": "dpo", "beta": 0.1, **changes})


def test_missing_parts():
    batch = make([CHOSEN, REJECTED], REFERENCE, [(0, 1)])
    with pytest.raises(ValueError, match="needs pairs_P2"):
        loss_of("dpo", make([CHOSEN, REJECTED], REFERENCE), totals(batch))
    for name in CHOICES:
        bare = make([CHOSEN, REJECTED], None, [(0, 1)])
        if name in FREE:
            loss_of(name, bare)
        else:
            with pytest.raises(ValueError, match="give reference_logprobs_T"):
                loss_of(name, bare)
    with pytest.raises(ValueError, match="compares with a reference"):
        implicit_rewards(torch.zeros(1), None, torch.ones(1), implicit="ratio", beta=1.0)
    with pytest.raises(ValueError, match="unknown implicit reward 'score'"):
        implicit_rewards(torch.zeros(1), None, torch.ones(1), implicit="score", beta=1.0)


def test_denominators_of_a_part():
    batch = make([CHOSEN, REJECTED, REJECTED], [*REFERENCE, REFERENCE[1]], [(0, 1), (0, 2)])
    with pytest.raises(ValueError, match="count 1 pairs, but this micro-batch alone has 2"):
        loss_of("dpo", batch, Denominators(5.0, 3.0, 9.0, pairs=1.0, chosen_tokens=4.0))
    with pytest.raises(ValueError, match="count no chosen tokens"):
        loss_of("cpo", batch, Denominators(5.0, 3.0, 9.0, pairs=2.0))

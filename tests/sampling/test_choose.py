"""The choice of one token: filters worked by hand, and frequencies of the draw."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from preftune.config import SamplingConfig
from preftune.records import Distribution
from preftune.sampling.base import choose, distribution_of

PROBS = (0.1, 0.4, 0.05, 0.25, 0.2)
LOGITS = torch.tensor([PROBS]).log()


def allowed(d: Distribution, logits: Tensor = LOGITS, seen: Tensor | None = None) -> dict[int, float]:
    """Each token that can be drawn, and its probability by the returned log-prob."""
    uniform = (torch.arange(2000) + 0.5) / 2000
    ids, logprobs = choose(logits.expand(2000, -1), uniform, d, None if seen is None else seen.expand(2000, -1))
    out = dict(zip(ids.tolist(), logprobs.exp().tolist(), strict=True))
    shares = {token: float((ids == token).double().mean()) for token in out}
    assert shares == pytest.approx(out, abs=6e-4)  # drawn as often as said
    return out


def only(*tokens: int) -> dict[int, float]:
    total = sum(PROBS[t] for t in tokens)
    return {t: pytest.approx(PROBS[t] / total, abs=1e-6) for t in tokens}


@pytest.mark.parametrize(
    ("change", "tokens"),
    [
        ({}, (0, 1, 2, 3, 4)),
        ({"top_k": 1}, (1,)),
        ({"top_k": 3}, (1, 3, 4)),
        ({"top_k": 5}, (0, 1, 2, 3, 4)),
        ({"top_k": 99}, (0, 1, 2, 3, 4)),
        # The mass before each token, from the likeliest: 0, .4, .65, .85, .95.
        ({"top_p": 0.3}, (1,)),
        ({"top_p": 0.5}, (1, 3)),
        ({"top_p": 0.7}, (1, 3, 4)),
        ({"top_p": 0.9}, (0, 1, 3, 4)),
        # At least this share of 0.4.
        ({"min_p": 0.1}, (0, 1, 2, 3, 4)),
        ({"min_p": 0.2}, (0, 1, 3, 4)),
        ({"min_p": 0.45}, (1, 3, 4)),
        ({"min_p": 0.99}, (1,)),
        # Each on what the one before left: of .4 .25 .2 the shares are .47 .29 .24.
        ({"top_k": 3, "top_p": 0.7}, (1, 3)),
        ({"top_k": 3, "top_p": 0.8}, (1, 3, 4)),
        ({"top_k": 4, "min_p": 0.45, "top_p": 0.99}, (1, 3, 4)),
    ],
)
def test_filters_worked_by_hand(change: dict[str, float], tokens: tuple[int, ...]) -> None:
    assert allowed(Distribution(**change)) == only(*tokens)  # type: ignore[arg-type]


def test_temperature_comes_before_the_filters() -> None:
    # At temperature 1/2 the probabilities go as their squares: .01 .16 .0025 .0625 .04 of .275.
    squares = [p * p / 0.275 for p in PROBS]
    got = allowed(Distribution(temperature=0.5))
    assert got == {t: pytest.approx(squares[t], abs=1e-6) for t in range(5)}
    # min_p at one fifth of the likeliest then leaves .16, .0625 and .04 out of .2625.
    got = allowed(Distribution(temperature=0.5, min_p=0.2))
    assert got == {t: pytest.approx(PROBS[t] ** 2 / 0.2625, abs=1e-6) for t in (1, 3, 4)}


def test_ties_at_top_k_stay_together() -> None:
    logits = torch.tensor([[0.0, 1.0, 0.0, -1.0]])
    assert set(allowed(Distribution(top_k=2), logits)) == {0, 1, 2}


def test_repetition_penalty_worked_by_hand() -> None:
    logits = torch.tensor([[2.0, -1.0, 1.0, 0.0]])
    seen = torch.tensor([[True, True, False, True]])
    got = allowed(Distribution(repetition_penalty=2.0), logits, seen)
    weights = [math.e, math.exp(-2.0), math.e, 1.0]
    assert got == {t: pytest.approx(w / sum(weights), abs=1e-6) for t, w in enumerate(weights)}
    ids, logprobs = choose(logits, torch.zeros(1), Distribution(0.0, repetition_penalty=3.0), seen)
    assert ids.tolist() == [2]
    # Greedy: the log-prob at temperature 1, after the penalty.
    want = 1.0 - math.log(math.exp(2 / 3) + math.exp(-3.0) + math.e + 1.0)
    assert logprobs.tolist() == pytest.approx([want], abs=1e-6)


def test_greedy_reads_no_random_number() -> None:
    nan = torch.full((1,), math.nan)
    ids, logprobs = choose(LOGITS, nan, Distribution(temperature=0.0), None)
    assert ids.tolist() == [1]
    assert logprobs.tolist() == pytest.approx([math.log(0.4)], abs=1e-6)


def test_inverse_transform_worked_by_hand() -> None:
    """Tokens lie in the order of their ids: [0, .1) is token 0, [.1, .5) token 1, and so on."""
    uniform = torch.tensor([0.0, 0.0999, 0.1001, 0.4999, 0.5001, 0.5499, 0.5501, 0.7999, 0.8001, 0.99999994])
    ids, logprobs = choose(LOGITS.expand(10, -1), uniform, Distribution(), None)
    assert ids.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert logprobs.tolist() == pytest.approx([math.log(PROBS[i]) for i in ids.tolist()], abs=1e-6)


def test_the_ends_of_the_draw_never_pick_a_filtered_token() -> None:
    """Tokens of no mass at both ends, and the largest number below 1."""
    logits = torch.tensor([[-math.inf, -math.inf, 0.0, 1.0, -math.inf]])
    ends = torch.tensor([0.0, 1e-30, 0.99999994, 1.0])
    ids, logprobs = choose(logits.expand(4, -1), ends, Distribution(), None)
    assert ids.tolist() == [2, 2, 3, 3]
    assert bool(torch.isfinite(logprobs).all())


DRAWS = 40_000


@pytest.mark.parametrize(
    "d",
    [
        Distribution(),
        Distribution(temperature=0.6),
        Distribution(top_k=7),
        Distribution(top_p=0.8),
        Distribution(min_p=0.15, temperature=1.4),
        Distribution(top_k=9, top_p=0.9, min_p=0.02),
    ],
)
def test_frequencies(d: Distribution) -> None:
    """χ² of 40,000 draws with a fixed seed; its mean is the number of free tokens, its deviation √(2 × that)."""
    g = torch.Generator().manual_seed(17)
    logits = torch.randn(1, 24, generator=g) * 1.5
    uniform = torch.rand(DRAWS, generator=g)
    ids, logprobs = choose(logits.expand(DRAWS, -1), uniform, d, None)
    counts = torch.bincount(ids, minlength=24).double()
    # The distribution by its definition, in fp64 and with Python's own sorting.
    probs = (logits[0].double() / d.temperature).softmax(0).tolist()
    order = sorted(range(24), key=lambda t: -probs[t])
    keep = set(order[: d.top_k] if d.top_k else order)
    top = max(probs)
    keep = {t for t in keep if probs[t] >= d.min_p * top}
    total, before, nucleus = sum(probs[t] for t in keep), 0.0, set()
    for t in order:
        if t in keep and before < d.top_p * total:
            nucleus.add(t)
            before += probs[t]
    total = sum(probs[t] for t in nucleus)
    want = torch.tensor([probs[t] / total if t in nucleus else 0.0 for t in range(24)], dtype=torch.float64)
    assert counts[want == 0].sum() == 0
    free = len(nucleus) - 1
    chi2 = float(((counts - DRAWS * want).square() / (DRAWS * want))[want > 0].sum())
    assert chi2 < free + 4 * (2 * free) ** 0.5
    torch.testing.assert_close(logprobs.double(), want[ids].log(), atol=1e-5, rtol=0)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-60, 60, width=32), min_size=1, max_size=30),
    st.floats(0, 1, exclude_max=True, width=32),
    st.floats(0.05, 3),
    st.integers(0, 8),
    st.floats(0.01, 1),
    st.floats(0, 0.99),
)
def test_whatever_the_logits_the_draw_is_allowed(
    row: list[float], u: float, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    d = Distribution(temperature, top_k, top_p, min_p)
    logits = torch.tensor([row])
    ids, logprobs = choose(logits, torch.tensor([u]), d, None)
    token = int(ids)
    assert 0 <= token < len(row)
    assert -1e3 < float(logprobs) <= 1e-6
    if top_k:
        assert sum(x > row[token] for x in row) < top_k
    assert row[token] / temperature >= max(row) / temperature + math.log(min_p or 1e-300) - 1e-3


def test_a_rows_draw_does_not_depend_on_its_neighbours() -> None:
    g = torch.Generator().manual_seed(2)
    logits, uniform = torch.randn(16, 40, generator=g), torch.rand(16, generator=g)
    d = Distribution(temperature=0.9, top_k=20, top_p=0.95, min_p=0.01)
    ids, logprobs = choose(logits, uniform, d, None)
    for b in range(16):
        one, lp = choose(logits[b : b + 1], uniform[b : b + 1], d, None)
        assert (int(one), float(lp)) == (int(ids[b]), float(logprobs[b]))


def test_settings_become_a_distribution() -> None:
    config = SamplingConfig(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, repetition_penalty=1.2)
    assert distribution_of(config) == Distribution(0.7, 5, 0.9, 0.1, 1.2)
    assert distribution_of(config, 0.0).temperature == 0.0
    assert distribution_of(SamplingConfig()).is_plain
    assert not distribution_of(SamplingConfig(), 0.0).is_plain

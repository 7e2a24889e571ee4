"""The chunked KL over the whole vocabulary against plain full logits: values, gradients, precision, memory."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from preftune.engine.divergence import full_divergence
from preftune.engine.logprobs import fused_logprobs

SETTINGS = [
    {},
    {"scale": 0.25},
    {"softcap": 3.0},
    {"temperature": 0.7},
    {"scale": 1.5, "softcap": 2.0, "temperature": 1.3},
]


def plain(
    hidden: Tensor,
    weight: Tensor,
    reference: Tensor,
    reference_weight: Tensor,
    bias: Tensor | None = None,
    reference_bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """All the logits at once, and torch's own KL."""
    logprobs = []
    for states, head, offset in ((hidden, weight, bias), (reference, reference_weight, reference_bias)):
        logits = states @ head.T * 1.0 if offset is None else states @ head.T + offset
        logits = logits * scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        logprobs.append(torch.log_softmax(logits / temperature, dim=-1))
    return torch.nn.functional.kl_div(logprobs[1], logprobs[0], reduction="none", log_target=True).sum(-1)


def case(
    tokens: int, width: int, vocabulary: int, dtype: torch.dtype = torch.float64, theirs: int | None = None
) -> list[Tensor]:
    """States, weight and bias of the policy (leaves), then of the reference, whose width may be another."""
    g = torch.Generator().manual_seed(0)
    other = width if theirs is None else theirs
    shapes = [(tokens, width), (vocabulary, width), (vocabulary,), (tokens, other), (vocabulary, other), (vocabulary,)]
    found = [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in shapes]
    return [x.requires_grad_() if i < 3 else x for i, x in enumerate(found)]


def compute(leaves: list[Tensor], function: Any, with_bias: bool = True, **setting: Any) -> Tensor:
    hidden, weight, bias, reference, reference_weight, reference_bias = leaves
    if function is plain:
        names = {"bias": bias, "reference_bias": reference_bias}
    else:
        names = {"bias_V": bias, "reference_bias_V": reference_bias}
    return function(hidden, weight, reference, reference_weight, **(names if with_bias else {}), **setting)


def test_values_worked_by_hand() -> None:
    # Logits 0 and ln 3 against 0 and 0: KL = ¼ ln ½ + ¾ ln 3/2.
    one, weight, zero = torch.ones(1, 1).double(), torch.tensor([[0.0], [math.log(3.0)]]).double(), torch.zeros(2, 1)
    wanted = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert full_divergence(one, weight, one, zero.double()).item() == pytest.approx(wanted, abs=1e-7)
    # The other way round it is another number.
    wanted = 0.5 * math.log(2.0) + 0.5 * math.log(2.0 / 3.0)
    assert full_divergence(one, zero.double(), one, weight).item() == pytest.approx(wanted, abs=1e-7)
    # Temperature 2 makes the odds sqrt 3, of both models.
    p = 1 / (1 + math.sqrt(3.0))
    wanted = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert full_divergence(one, weight, one, zero.double(), temperature=2.0).item() == pytest.approx(wanted, abs=1e-7)
    # A bias of ln 3 on the other id evens the policy out.
    bias = torch.tensor([math.log(3.0), 0.0]).double()
    assert full_divergence(one, weight, one, zero.double(), bias_V=bias).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("chunk_elements", [1, 50, 350, 1 << 24])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("setting", SETTINGS)
def test_agrees_with_full_logits(setting: dict[str, float], with_bias: bool, chunk_elements: int) -> None:
    leaves = case(23, 6, 50, theirs=9)
    got = compute(leaves, full_divergence, with_bias, chunk_elements=chunk_elements, **setting)
    want = compute(leaves, plain, with_bias, **setting)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    assert want.min() > 0.01, "nothing to compare"
    inputs = leaves[: 3 if with_bias else 2]
    coefficients = torch.linspace(-1.0, 2.0, 23, dtype=torch.float64)
    for mine, theirs in zip(
        torch.autograd.grad((got * coefficients).sum(), inputs),
        torch.autograd.grad((want * coefficients).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("setting", SETTINGS)
def test_gradcheck(setting: dict[str, float]) -> None:
    leaves = case(4, 3, 6)

    def divergence(*moved: Tensor) -> Tensor:
        return compute([*moved, *leaves[3:]], full_divergence, chunk_elements=12, **setting)

    assert torch.autograd.gradcheck(divergence, tuple(leaves[:3]))


def test_frozen_head_and_trainable_head_agree() -> None:
    # LoRA: the states alone want a gradient; a trained head alone, as in a probe, gets one too.
    leaves = case(7, 4, 9)
    wanted = torch.autograd.grad(compute(leaves, plain).sum(), leaves[:3])
    for kept in range(3):
        mixed = [x if i == kept or i > 2 else x.detach() for i, x in enumerate(leaves)]
        got = torch.autograd.grad(compute(mixed, full_divergence, chunk_elements=18).sum(), mixed[kept])[0]
        torch.testing.assert_close(got, wanted[kept], rtol=1e-10, atol=1e-12)


def test_the_reference_gets_no_gradient_even_where_weights_are_shared() -> None:
    # A tied or frozen-base head is one tensor for both models: only the policy's use of it counts.
    hidden, weight, _, reference, _, _ = case(5, 4, 8)
    reference = reference.requires_grad_()
    got = torch.autograd.grad(
        full_divergence(hidden, weight, reference, weight).sum(), (hidden, weight, reference), allow_unused=True
    )
    assert got[2] is None
    copy = weight.detach().clone()
    wanted = torch.autograd.grad(plain(hidden, weight, reference.detach(), copy).sum(), (hidden, weight))
    for mine, theirs in zip(got[:2], wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_same_model_is_at_zero_and_flat() -> None:
    hidden, weight, bias, *_ = case(5, 4, 8)
    found = full_divergence(hidden, weight, hidden, weight, bias_V=bias, reference_bias_V=bias)
    assert found.tolist() == [0.0] * 5
    grads = torch.autograd.grad(found.sum(), (hidden, weight, bias))
    assert max(float(grad.abs().max()) for grad in grads) < 1e-15


def test_is_the_mean_log_ratio_over_the_policys_own_draws() -> None:
    """Against `fused_logprobs`: Σ_v π(v) (log π(v) − log π₀(v)) with each token of the vocabulary as a target."""
    leaves = case(3, 4, 11, theirs=5)
    setting: dict[str, Any] = {"scale": 0.5, "softcap": 4.0, "temperature": 0.8}
    hidden, weight, bias, reference, reference_weight, reference_bias = (x.detach() for x in leaves)
    total = torch.zeros(3, dtype=torch.float64)
    for v in range(11):
        targets = torch.full((3,), v)
        mine, _ = fused_logprobs(hidden, weight, targets, bias_V=bias, **setting)
        theirs, _ = fused_logprobs(reference, reference_weight, targets, bias_V=reference_bias, **setting)
        total += mine.exp() * (mine - theirs)
    torch.testing.assert_close(compute(leaves, full_divergence, **setting), total, rtol=0, atol=1e-12)


def test_fp32_is_close_to_fp64() -> None:
    exact = case(40, 16, 500)
    leaves = [x.detach().float().requires_grad_(i < 3) for i, x in enumerate(exact)]
    got, want = compute(leaves, full_divergence, chunk_elements=3000), compute(exact, plain)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    pairs = zip(torch.autograd.grad(got.sum(), leaves[:3]), torch.autograd.grad(want.sum(), exact[:3]), strict=True)
    assert all(((mine - theirs).norm() / theirs.norm()).item() < 1e-5 for mine, theirs in pairs)


@pytest.mark.parametrize("autocast", [False, True])
def test_bf16_is_finite_and_no_worse_than_plain_bf16_code(autocast: bool) -> None:
    # Round to bf16 first, so that the error counts the arithmetic and not the inputs' rounding.
    rounded = [x.detach().to(torch.bfloat16) for x in case(64, 32, 400)]
    exact = [x.double().requires_grad_(i < 3) for i, x in enumerate(rounded)]
    low = torch.float32 if autocast else torch.bfloat16
    leaves = [x.to(low).requires_grad_(i < 3) for i, x in enumerate(rounded)]
    want = compute(exact, plain)
    true_grads = torch.autograd.grad(want.sum(), exact[:3])

    def errors(found: Tensor) -> list[float]:
        grads = torch.autograd.grad(found.sum(), leaves[:3])
        assert all(bool(x.isfinite().all()) for x in (found, *grads))
        pairs = zip((found, *grads), (want, *true_grads), strict=True)
        return [((mine.double() - theirs).norm() / theirs.norm()).item() for mine, theirs in pairs]

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        got = compute(leaves, full_divergence, chunk_elements=2000)
        logits = [torch.nn.functional.linear(*(leaves[i + j] for j in range(3))).float() for i in (0, 3)]
        mine, theirs = (x.log_softmax(-1) for x in logits)
        simple = (mine.exp() * (mine - theirs)).sum(-1)
    assert got.dtype == torch.float32 and float(got.detach().min()) > 0.0
    for ours, other in zip(errors(got), errors(simple), strict=True):
        assert ours <= 1.5 * other < 0.05


def test_certain_policies_stay_finite() -> None:
    # Logits ±1000: π is 1 on one token and exp(−2000), which no float holds, on the rest.
    weight = torch.tensor([[1000.0], [-1000.0], [-1000.0]], requires_grad=True)
    one = torch.ones(1, 1, requires_grad=True)
    found = full_divergence(one, weight, one.detach(), -weight.detach())
    # π₀ is a half on each of the two others: log π₀ of the first is −2000 − ln 2.
    assert found.item() == pytest.approx(2000.0 + math.log(2.0))
    assert all(bool(grad.isfinite().all()) for grad in torch.autograd.grad(found.sum(), (one, weight)))


def test_no_positions() -> None:
    leaves = case(0, 3, 5, torch.float32)
    found = compute(leaves, full_divergence)
    assert found.shape == (0,) and found.dtype == torch.float32
    grads = torch.autograd.grad(found.sum(), leaves[:3], allow_unused=True, materialize_grads=True)
    assert all(bool((grad == 0.0).all()) for grad in grads)


def test_no_grad_builds_no_graph() -> None:
    leaves = case(6, 3, 5)
    with torch.no_grad():
        found = compute(leaves, full_divergence, chunk_elements=10)
    assert not found.requires_grad
    torch.testing.assert_close(found, compute(leaves, plain).detach(), rtol=0, atol=1e-12)


def test_no_tensor_of_tokens_by_vocabulary_is_ever_made() -> None:
    """Every tensor that an operation gives back, forward and backward, has at most a chunk's logits."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else (out,):
                if isinstance(x, Tensor):
                    self.elements = max(self.elements, x.numel())
            return out

    leaves = case(512, 8, 100, torch.float32)
    with Largest() as largest:
        compute(leaves, full_divergence, chunk_elements=6400).square().sum().backward()
    assert 6400 <= largest.elements < 512 * 100 / 5


@pytest.mark.parametrize("change", [{0: (4, 3)}, {3: (6, 3)}, {4: (7, 3)}])
def test_shapes_that_do_not_fit_are_refused(change: dict[int, tuple[int, int]]) -> None:
    inputs = [torch.zeros(change.get(i, shape)) for i, shape in ((0, (5, 3)), (1, (8, 3)), (3, (5, 3)), (4, (8, 3)))]
    with pytest.raises(ValueError, match="must have the same positions and vocabulary"):
        full_divergence(*inputs)

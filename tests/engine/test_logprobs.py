"""The fused head against plain full-logits code: values, gradients, precision and memory."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

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
    targets: Tensor,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The same numbers with all the logits at once, at the inputs' precision up to the logits."""
    logits = torch.nn.functional.linear(hidden, weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logprobs = torch.log_softmax(logits / temperature, dim=-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(1, targets[:, None]).squeeze(1), entropy


def case(tokens: int, width: int, vocabulary: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    """Hidden states, weight, bias (leaves that want gradients) and targets."""
    g = torch.Generator().manual_seed(seed)
    shapes = [(tokens, width), (vocabulary, width), (vocabulary,)]
    leaves = [torch.randn(s, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]
    return [*leaves, torch.randint(vocabulary, (tokens,), generator=g)]


def grads(results: tuple[Tensor, Tensor | None], inputs: list[Tensor], coefficients: Tensor) -> list[Tensor]:
    logprobs, entropy = results
    loss = (logprobs * coefficients).sum()
    if entropy is not None:
        loss = loss + (entropy * coefficients.flip(0) * 0.3).sum()
    return list(torch.autograd.grad(loss, inputs))


def test_values_worked_by_hand() -> None:
    # Logits 0 and ln 3: probabilities 1/4 and 3/4.
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[0.0], [math.log(3.0)]])
    logprobs, entropy = fused_logprobs(hidden, weight, torch.tensor([1]), with_entropy=True)
    assert logprobs.item() == pytest.approx(math.log(0.75), abs=1e-6)
    assert entropy is not None
    assert entropy.item() == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)), abs=1e-6)
    # Halving the logits makes the odds sqrt(3); so does temperature 2.
    odds = math.sqrt(3.0)
    for setting in ({"scale": 0.5}, {"temperature": 2.0}):
        logprobs, none = fused_logprobs(hidden, weight, torch.tensor([0]), **setting)  # type: ignore[arg-type]
        assert none is None
        assert logprobs.item() == pytest.approx(-math.log(1.0 + odds), abs=1e-6)
    # The cap comes before the temperature: logits 0 and 2 tanh(ln 3 / 2) = 2 · 1/2 = 1, then divided by 0.5.
    logprobs, _ = fused_logprobs(hidden, weight, torch.tensor([1]), softcap=2.0, temperature=0.5)
    assert logprobs.item() == pytest.approx(-math.log(1.0 + math.exp(-2.0)), abs=1e-6)
    # A bias of ln 3 on the other id makes the two equal.
    logprobs, _ = fused_logprobs(hidden, weight, torch.tensor([1]), bias_V=torch.tensor([math.log(3.0), 0.0]))
    assert logprobs.item() == pytest.approx(math.log(0.5), abs=1e-6)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("chunk_elements", [14, 1 << 20])
def test_gradcheck(setting: dict[str, float], with_bias: bool, chunk_elements: int) -> None:
    hidden, weight, bias, targets = case(5, 3, 7)

    def both(hidden: Tensor, weight: Tensor, *bias: Tensor) -> Any:
        options: dict[str, Any] = {**setting, "bias_V": bias[0] if bias else None}
        return fused_logprobs(hidden, weight, targets, with_entropy=True, chunk_elements=chunk_elements, **options)

    inputs = (hidden, weight, bias) if with_bias else (hidden, weight)
    assert torch.autograd.gradcheck(both, inputs)
    assert torch.autograd.gradcheck(lambda *x: both(*x)[0], inputs)
    assert torch.autograd.gradcheck(lambda *x: both(*x)[1], inputs)
    frozen = tuple(x.detach() for x in inputs[1:])
    assert torch.autograd.gradcheck(lambda h: both(h, *frozen)[0], (hidden,))
    assert torch.autograd.gradcheck(lambda h: both(h, *frozen), (hidden,))
    assert torch.autograd.gradcheck(lambda w: both(hidden.detach(), w, *frozen[1:])[0], (weight,))
    if with_bias:
        assert torch.autograd.gradcheck(lambda b: both(hidden.detach(), frozen[0], b)[0], (bias,))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("with_entropy", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_agrees_with_plain_code_in_fp32(setting: dict[str, Any], with_entropy: bool, frozen: bool) -> None:
    hidden, weight, bias, targets = case(64, 16, 1000, torch.float32)
    if frozen:
        weight, bias = weight.detach(), bias.detach()
    want = plain(hidden, weight, targets, bias, **setting)
    setting = {**setting, "with_entropy": with_entropy, "chunk_elements": 9999}
    got = fused_logprobs(hidden, weight, targets, bias_V=bias, **setting)
    assert got[0].dtype == torch.float32
    torch.testing.assert_close(got[0], want[0], atol=1e-5, rtol=0)
    inputs = [hidden] if frozen else [hidden, weight, bias]
    coefficients = torch.linspace(-1.0, 2.0, 64)
    if got[1] is not None:
        torch.testing.assert_close(got[1], want[1], atol=1e-5, rtol=0)
    wanted = grads(want if with_entropy else (want[0], None), inputs, coefficients)
    for mine, theirs in zip(grads(got, inputs, coefficients), wanted, strict=True):
        assert ((mine - theirs).norm() / theirs.norm()).item() < 1e-5


@pytest.mark.parametrize("frozen", [False, True])
def test_unused_entropy_changes_no_gradient(frozen: bool) -> None:
    # The loss takes the log-probs alone; the entropy is only logged, by another route through the backward.
    hidden, weight, _, targets = case(9, 4, 11)
    inputs = [hidden] if frozen else [hidden, weight]
    head = weight.detach() if frozen else weight
    for chunk_elements in (22, 1 << 20):
        want = torch.autograd.grad(plain(hidden, head, targets)[0].square().sum(), inputs)
        logprobs, entropy = fused_logprobs(hidden, head, targets, with_entropy=True, chunk_elements=chunk_elements)
        assert entropy is not None and entropy.requires_grad
        got = torch.autograd.grad(logprobs.square().sum(), inputs)
        for mine, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("chunk_elements", [1, 50, 101, 512, 1 << 24])
def test_chunk_size_changes_nothing(chunk_elements: int) -> None:
    hidden, weight, bias, targets = case(23, 6, 50)
    setting: dict[str, Any] = {"scale": 0.5, "softcap": 4.0, "temperature": 0.8}
    got = fused_logprobs(
        hidden, weight, targets, bias_V=bias, with_entropy=True, chunk_elements=chunk_elements, **setting
    )
    want = plain(hidden, weight, targets, bias, **setting)
    coefficients = torch.linspace(-1.0, 2.0, 23, dtype=torch.float64)
    inputs = [hidden, weight, bias]
    pairs = [*zip(got, want, strict=True)]
    pairs += zip(grads(got, inputs, coefficients), grads(want, inputs, coefficients), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=1e-10)


def test_non_contiguous_inputs() -> None:
    hidden, weight, bias, targets = case(8, 5, 12)
    want = plain(hidden, weight, targets, bias)
    coefficients = torch.linspace(-1.0, 1.0, 8, dtype=torch.float64)
    wanted = grads(want, [hidden, weight, bias], coefficients)
    wide = torch.stack([hidden.detach(), hidden.detach() + 1.0], dim=1).requires_grad_()
    tall = weight.detach().T.contiguous().requires_grad_()
    spaced = torch.stack([bias.detach(), bias.detach() * 2.0], dim=1).requires_grad_()
    every_other = torch.stack([targets, targets.flip(0)], dim=1)[:, 0]
    got = fused_logprobs(wide[:, 0], tall.T, every_other, bias_V=spaced[:, 0], with_entropy=True, chunk_elements=36)
    assert not wide[:, 0].is_contiguous() and not tall.T.is_contiguous()
    torch.testing.assert_close(got[0], want[0])
    torch.testing.assert_close(got[1], want[1])
    wide_grad, tall_grad, spaced_grad = grads(got, [wide, tall, spaced], coefficients)
    torch.testing.assert_close(wide_grad[:, 0], wanted[0])
    torch.testing.assert_close(tall_grad.T, wanted[1])
    torch.testing.assert_close(spaced_grad[:, 0], wanted[2])


def test_certain_and_hopeless_tokens_stay_finite() -> None:
    # Logits ±1000: probabilities 1 and exp(-2000), which no float holds; the log-prob is still exact.
    weight = torch.tensor([[1000.0], [-1000.0], [-1000.0]], requires_grad=True)
    hidden = torch.ones(2, 1, requires_grad=True)
    logprobs, entropy = fused_logprobs(hidden, weight, torch.tensor([0, 1]), with_entropy=True)
    assert logprobs.tolist() == [0.0, -2000.0]
    assert entropy is not None and entropy.tolist() == [0.0, 0.0]
    (logprobs.sum() + entropy.sum()).backward()
    assert hidden.grad is not None and weight.grad is not None
    assert hidden.grad.tolist() == [[0.0], [-2000.0]]
    assert weight.grad.tolist() == [[-1.0], [1.0], [0.0]]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_bf16_is_no_worse_than_plain_bf16_code(autocast: bool, frozen: bool) -> None:
    exact = case(128, 32, 500)
    leaf_dtype = torch.float32 if autocast else torch.bfloat16
    # Round to bf16 first, so that the error counts the arithmetic and not the inputs' rounding.
    rounded = [x.detach().to(torch.bfloat16) for x in exact[:3]]
    exact_inputs = [x.double().requires_grad_() for x in rounded]
    inputs = [x.to(leaf_dtype).requires_grad_() for x in rounded]
    used = [x.detach() if frozen and i else x for i, x in enumerate(inputs)]
    targets = exact[3]
    coefficients = torch.linspace(-1.0, 2.0, 128)
    wanted = plain(exact_inputs[0], exact_inputs[1], targets, exact_inputs[2])
    true_grads = grads(wanted, exact_inputs, coefficients.double())
    want_grads = inputs[:1] if frozen else inputs

    def errors(results: tuple[Tensor, Tensor | None]) -> list[float]:
        pairs = [(results[0], wanted[0]), (results[1], wanted[1])]
        pairs += zip(grads(results, want_grads, coefficients), true_grads, strict=False)
        return [((a.double() - b).norm() / b.norm()).item() for a, b in pairs if a is not None]

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        got = fused_logprobs(used[0], used[1], targets, bias_V=used[2], with_entropy=True, chunk_elements=5000)
        plain_results = plain(used[0], used[1], targets, used[2])
    assert got[0].dtype == torch.float32
    for mine, theirs in zip(errors(got), errors(plain_results), strict=True):
        assert mine <= 1.5 * theirs


def test_autocast_leaves_fp64_alone() -> None:
    hidden, weight, _, targets = case(4, 3, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logprobs, _ = fused_logprobs(hidden, weight, targets)
    torch.testing.assert_close(logprobs, plain(hidden, weight, targets)[0], atol=1e-12, rtol=0)


def test_no_tokens() -> None:
    hidden, weight, bias, targets = case(0, 3, 5, torch.float32)
    logprobs, entropy = fused_logprobs(hidden, weight, targets, bias_V=bias, with_entropy=True)
    assert logprobs.shape == (0,) and entropy is not None and entropy.shape == (0,)
    (logprobs.sum() + entropy.sum()).backward()
    assert weight.grad is not None and weight.grad.eq(0.0).all() and hidden.grad is not None


def test_no_grad_builds_no_graph() -> None:
    hidden, weight, _, targets = case(4, 3, 5)
    with torch.no_grad():
        logprobs, _ = fused_logprobs(hidden, weight, targets)
    assert not logprobs.requires_grad
    torch.testing.assert_close(logprobs, plain(hidden, weight, targets)[0].detach())


def test_a_second_derivative_is_refused() -> None:
    hidden, weight, _, targets = case(4, 3, 5)
    logprobs, _ = fused_logprobs(hidden, weight, targets)
    (grad,) = torch.autograd.grad(logprobs.square().sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets_T": torch.tensor([0, 5])}, "span 0 … 5, outside the head's vocabulary 0 … 4"),
        ({"targets_T": torch.tensor([-100, 1])}, "span -100 … 1"),
        ({"targets_T": torch.tensor([0, 1, 2])}, "2 int64 ids"),
        ({"targets_T": torch.tensor([0, 1], dtype=torch.int32)}, "int32"),
        ({"weight_VD": torch.zeros(5, 4)}, r"\(2, 3\) and weight \(5, 4\)"),
        ({"weight_VD": torch.zeros(5, 3, dtype=torch.bfloat16)}, "cast one"),
        ({"bias_V": torch.zeros(4)}, "5 rows"),
        ({"bias_V": torch.zeros(5, dtype=torch.float64)}, "bias is torch.float64"),
        ({"temperature": 0.0}, "temperature must be"),
        ({"softcap": -1.0}, "softcap must be"),
        ({"scale": math.inf}, "scale must be"),
        ({"chunk_elements": 0}, "chunk_elements"),
    ],
)
def test_wrong_input_is_refused(change: dict[str, Any], message: str) -> None:
    good = {"hidden_TD": torch.zeros(2, 3), "weight_VD": torch.zeros(5, 3), "targets_T": torch.tensor([0, 1])}
    with pytest.raises(ValueError, match=message):
        fused_logprobs(**{**good, **change})


MEASURE = """
import re, torch
from preftune.engine.logprobs import fused_logprobs

def peak():  # bytes
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read()).group(1)) * 1024

T, V, D = 8192, 150_000, 64
hidden = torch.randn(T, D, requires_grad=True)
weight = (torch.randn(V, D) * 0.1).requires_grad_()
targets = torch.randint(V, (T,))
hidden.grad, weight.grad = torch.zeros_like(hidden), torch.zeros_like(weight)
few = slice(0, 2)  # first use of the kernels, threads and autograd
fused_logprobs(hidden[few], weight, targets[few], with_entropy=True, chunk_elements=V)[0].sum().backward()
before = peak()
logprobs, entropy = fused_logprobs(hidden, weight, targets, with_entropy=True)
(logprobs.sum() + 0.1 * entropy.sum()).backward()
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
@pytest.mark.slow
def test_peak_memory_is_a_tenth_of_full_logits() -> None:
    # The costliest case: the head trains, and the gradient comes through the entropy too.
    run = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert 0 < int(run.stdout) < 8192 * 150_000 * 4 / 10

"""Shared-prompt packing is exact: log-probs, entropies and gradients against plain padded code with full logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from preftune.engine import spans
from preftune.engine.attention import PackedLayout, Unsupported, preftune_attention
from preftune.engine.forward import Engine
from preftune.engine.pack import Segment
from preftune.records import Group
from tests.engine import zoo
from tests.engine.plain import (
    engine_values,
    furthest,
    gradients,
    plain_values,
    policy_of,
    relative_l2,
    some_groups,
    weighted_sum,
)

TEMPERATURE = 0.7


@pytest.fixture(scope="module")
def groups() -> list[Group]:
    return some_groups()


def adapter(model: Any, targets: str | list[str], seed: int = 4) -> Any:
    """The model with a LoRA adapter that does something."""
    wrapped = get_peft_model(model, LoraConfig(r=3, lora_alpha=6, target_modules=targets, task_type="CAUSAL_LM"))
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.15)
    return wrapped.eval()


def compare(engine: Engine, plain: Any, groups: list[Group], temperature: float = TEMPERATURE) -> tuple[float, float]:
    """max |Δ| of log-probs and entropies, and the relative L2 distance of the gradients."""
    mine, mine_entropy = engine_values(engine, groups, temperature=temperature)
    want, want_entropy = plain_values(plain, groups, temperature=temperature)
    delta = max(furthest(mine, want), furthest(mine_entropy, want_entropy))
    got = gradients(engine.policy.model, weighted_sum(mine) + 0.5 * weighted_sum(mine_entropy, 8))
    expected = gradients(plain, weighted_sum(want) + 0.5 * weighted_sum(want_entropy, 8))
    assert sum(g.abs().sum() > 0 for g in expected.values()) > 3
    return delta, relative_l2(got, expected)


@pytest.mark.parametrize("kind", zoo.SHARED_KINDS)
def test_log_probs_entropies_and_gradients_are_those_of_plain_code(kind: str, groups: list[Group]) -> None:
    engine = Engine(policy_of(zoo.tiny_model(kind)))
    assert (engine.mode, engine.whole_logits, engine.row_by_row) == ("shared", False, False), engine.reason
    assert engine.policy.base.config._attn_implementation == "preftune"
    delta, gradient = compare(engine, zoo.tiny_model(kind), groups)
    assert delta <= 1e-4
    assert gradient <= 5e-5


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gemma3"])
def test_windows_and_soft_caps_of_these_models_matter(kind: str, groups: list[Group]) -> None:
    """Were they not at work in the reference, the test above would prove nothing about them."""
    model = zoo.tiny_model(kind)
    want, _ = plain_values(model, groups)
    model.config.sliding_window = 4096
    for module in model.modules():
        if getattr(module, "sliding_window", None) is not None:
            module.sliding_window = 4096
    without, _ = plain_values(model, groups)
    assert furthest(want, without) > 0.05


def test_temperature_one_without_entropy(groups: list[Group]) -> None:
    engine = Engine(policy_of(zoo.tiny_model("qwen3")))
    (packed,) = engine.pack(groups, 1000)
    out = engine.forward(packed)
    assert out.entropy_T is None
    want, _ = plain_values(zoo.tiny_model("qwen3"), groups)
    members = [want[m] for m in packed.members]
    torch.testing.assert_close(out.logprobs_T, torch.cat(members), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["qwen3", "gemma2", "gpt2", "qwen3_moe"])
def test_gradient_checkpointing_changes_nothing(kind: str, groups: list[Group]) -> None:
    model = zoo.tiny_model(kind)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    engine = Engine(policy_of(model, gradient_checkpointing=True))
    engine.policy.train_mode(True)
    attention = next(m for n, m in model.named_modules() if n.endswith(("self_attn", "attn")))
    calls: list[int] = []
    attention.register_forward_hook(lambda *_: calls.append(1))
    delta, gradient = compare(engine, zoo.tiny_model(kind), groups)
    assert delta <= 1e-4
    assert gradient <= 5e-5
    assert len(calls) == 2  # the second in the backward pass


ADAPTERS: list[tuple[str, str | list[str]]] = [
    ("qwen3", "all-linear"),
    ("gpt2", "all-linear"),
    ("gemma2", "all-linear"),
    ("llama", ["q_proj", "v_proj", "lm_head"]),
]


@pytest.mark.parametrize(("kind", "targets"), ADAPTERS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora(kind: str, targets: str | list[str], checkpointing: bool, groups: list[Group]) -> None:
    model = adapter(zoo.tiny_model(kind), targets)
    if checkpointing:
        model.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    engine = Engine(policy_of(model, gradient_checkpointing=checkpointing))
    assert engine.mode == "shared"
    engine.policy.train_mode(True)
    plain = adapter(zoo.tiny_model(kind), targets)
    delta, gradient = compare(engine, plain, groups)
    assert delta <= 1e-4
    assert gradient <= 5e-5
    bare, _ = plain_values(zoo.tiny_model(kind), groups)
    score = engine.score(groups, 1000, reference=True)
    reference = {(g, c): score[g][c] for g, c in bare}
    assert furthest(reference, bare) <= 1e-4
    with torch.no_grad():
        assert furthest(engine_values(engine, groups)[0], bare) > 0.01  # the adapter is on again, and does something


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "opt"])
def test_fp64_is_exact_to_rounding(kind: str, groups: list[Group]) -> None:
    """These models compute everything in fp64 (others go through fp32 in their norms)."""
    engine = Engine(policy_of(zoo.tiny_model(kind).double()))
    assert engine.mode == "shared"
    delta, gradient = compare(engine, zoo.tiny_model(kind).double(), groups)
    assert delta <= 1e-6 if kind == "gpt_neox" else delta <= 1e-11  # NeoX' rotary tables are fp32
    assert gradient <= 1e-6 if kind == "gpt_neox" else gradient <= 1e-11


def test_plain_is_the_same_engine_without_sharing(groups: list[Group]) -> None:
    engine = Engine(policy_of(zoo.tiny_model("mistral")))
    shared, _ = engine_values(engine, groups)
    with engine.plain():
        assert (engine.mode, engine.policy.base.config._attn_implementation) == ("padded", "sdpa")
        padded, _ = engine_values(engine, groups)
    assert (engine.mode, engine.policy.base.config._attn_implementation) == ("shared", "preftune")
    assert furthest(shared, padded) <= 1e-5
    again, _ = engine_values(engine, groups)
    assert furthest(shared, again) == 0.0


def test_plain_puts_sharing_back_after_an_error() -> None:
    engine = Engine(policy_of(zoo.tiny_model("llama")))
    with pytest.raises(RuntimeError, match="inside"), engine.plain():
        raise RuntimeError("inside")
    assert (engine.mode, engine.policy.base.config._attn_implementation) == ("shared", "preftune")


def test_score_is_the_forward_and_keeps_no_graph(groups: list[Group]) -> None:
    engine = Engine(policy_of(zoo.tiny_model("qwen2")))
    want, _ = plain_values(zoo.tiny_model("qwen2"), groups, temperature=0.5)
    score = engine.score(groups, 40, temperature=0.5)
    assert [[len(t) for t in row] for row in score] == [[c.length for c in g.completions] for g in groups]
    assert not any(t.requires_grad for row in score for t in row)
    assert furthest({(g, c): score[g][c] for g, c in want}, want) <= 1e-4


@pytest.mark.parametrize("kind", ["qwen3", "gemma2", "mistral", "gpt2"])
def test_bf16_autocast_errs_no_more_than_plain_bf16(kind: str, groups: list[Group]) -> None:
    """Root mean square error against fp32; the certificate's bound, 1.5 times that of plain bf16 code, holds here.
    (No mixture of experts: rounding may send a token to another expert, on either side.)"""
    truth, _ = plain_values(zoo.tiny_model(kind), groups)
    plain = zoo.tiny_model(kind)
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = plain_values(plain, groups)
    engine = Engine(policy_of(zoo.tiny_model(kind)), bf16=True)
    assert engine.mode == "shared"
    mine, _ = engine_values(engine, groups)
    loss = weighted_sum(mine)
    grads = gradients(engine.policy.model, loss)
    assert all(torch.isfinite(g).all() for g in grads.values())

    def error(values: dict[tuple[int, int], Tensor]) -> float:
        return float(torch.cat([(values[m].float() - truth[m]).detach() for m in truth]).square().mean().sqrt())

    assert 0 < error(mine) <= 1.5 * error(half)


# --- the attention itself -------------------------------------------------------------------------------------


SEGMENTS = (
    Segment(0, 5, ((5, 3), (8, 0), (8, 6))),
    Segment(14, 1, ((15, 2),)),
    Segment(17, 9, ((26, 4), (30, 4), (34, 1))),
)
TOKENS = 35


def dense_mask(segments: tuple[Segment, ...], window: int | None) -> Tensor:
    """By definition: [N, N], True where the row's token may look at the column's."""
    owner: list[tuple[int, int, int]] = []  # group, completion (-1: prompt), position
    for g, s in enumerate(segments):
        owner += [(g, -1, t) for t in range(s.prompt)]
        for c, (_, n) in enumerate(s.completions):
            owner += [(g, c, s.prompt + t) for t in range(n)]
    out = torch.zeros(len(owner), len(owner), dtype=torch.bool)
    for i, (g, c, at) in enumerate(owner):
        for j, (g2, c2, at2) in enumerate(owner):
            near = window is None or at - at2 < window
            out[i, j] = g == g2 and c2 in (-1, c) and at2 <= at and near
    return out


def brute_force(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None) -> Tensor:
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    scores = scale * (q @ k.mT)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return scores.masked_fill(~dense_mask(SEGMENTS, window), -torch.inf).softmax(-1) @ v


def heads(n: int, seed: int, size: int = 8) -> Tensor:
    return torch.randn(1, n, TOKENS, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LIMITS = [(0, 0), (3, 6), (5, 6), (5, 1000), (1000, 1000)]
"""Longest query and most keys for plain products: every span long, several mixtures, every span short."""


def limit_short_spans(monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int]) -> None:
    for kind in ("SHORT", "HALF"):
        monkeypatch.setattr(spans, f"{kind}_QUERIES", limits[0])
        monkeypatch.setattr(spans, f"{kind}_KEYS", limits[1])


def test_the_limits_decide_which_way_a_span_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    for limits in LIMITS:
        limit_short_spans(monkeypatch, limits)
        row = spans.RowSpans(SEGMENTS, torch.float32)
        assert (row.all_long, row.all_short) == (len(row.short.rows) == 0, len(row.short.rows) == TOKENS)
        counts.append(len(row.short.rows))
    assert counts[0] == 0 and counts[-1] == TOKENS
    assert all(0 < n < TOKENS for n in counts[1:-1]) and len(set(counts)) > 3


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_models_give_the_same_whichever_way_their_spans_go(
    kind: str, limits: tuple[int, int], groups: list[Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_short_spans(monkeypatch, limits)
    delta, gradient = compare(Engine(policy_of(zoo.tiny_model(kind))), zoo.tiny_model(kind), groups)
    assert delta <= 1e-4
    assert gradient <= 5e-5


@pytest.mark.parametrize("window", [None, 1, 3, 8, 12, 13, 100])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("limits", LIMITS)
def test_packed_attention_by_definition(
    window: int | None, softcap: float | None, key_heads: int, limits: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_short_spans(monkeypatch, limits)
    q, k, v = (heads(n, s).requires_grad_() for s, n in enumerate((4, key_heads, key_heads)))
    seed = heads(4, 9)
    want = brute_force(q, k, v, 0.4, window, softcap)
    expected = torch.autograd.grad((want * seed).sum(), (q, k, v))
    layout = PackedLayout(SEGMENTS, "cpu")
    out = layout.attend(0, q, k, v, scale=0.4, window=window, softcap=softcap)
    got = torch.autograd.grad((out * seed).sum(), (q, k, v))
    torch.testing.assert_close(out, want, atol=1e-12, rtol=1e-12)
    for mine, other in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("size", [16, 80])
@pytest.mark.parametrize("lengths", [(40, (30, 50)), (300, (30,) * 12), (20, (290, 10))])
@pytest.mark.parametrize("limits", [(0, 0), (60, 1000), (1000, 1000)])
def test_gradients_in_bf16_stay_in_their_dtype_and_near_the_exact_ones(
    lengths: tuple[int, tuple[int, ...]], size: int, limits: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short and long spans, small and large heads: the kernel's backward takes fp32 for the short and small alone."""
    limit_short_spans(monkeypatch, limits)
    prompt, completions = lengths
    at = [prompt + sum(completions[:c]) for c in range(len(completions))]
    layout = PackedLayout([Segment(0, prompt, tuple(zip(at, completions, strict=True)))], "cpu")
    generator = torch.Generator().manual_seed(0)
    total = prompt + sum(completions)
    rounded = [torch.randn(1, h, total, size, generator=generator).bfloat16() for h in (4, 2, 2)]
    found = {}
    for dtype in (torch.bfloat16, torch.float64):
        leaves = [x.to(dtype).requires_grad_() for x in rounded]
        out = layout.attend(0, *leaves, scale=size**-0.5, window=None, softcap=None)
        found[dtype] = torch.autograd.grad(out.square().sum(), leaves)
    for mine, exact in zip(found[torch.bfloat16], found[torch.float64], strict=True):
        assert mine.dtype == torch.bfloat16
        assert float((mine.double() - exact).norm() / exact.norm()) < 0.02


def test_a_window_that_can_not_bind_takes_the_fast_path() -> None:
    q, k, v = heads(4, 0), heads(2, 1), heads(2, 2)
    layout = PackedLayout(SEGMENTS, "cpu")
    assert layout.longest == 13
    fast = layout.attend(0, q, k, v, scale=0.3, window=None, softcap=None)
    assert torch.equal(layout.attend(1, q, k, v, scale=0.3, window=13, softcap=None), fast)
    assert not torch.allclose(layout.attend(2, q, k, v, scale=0.3, window=12, softcap=None), fast)
    assert layout.calls == [0, 1, 2]


def test_values_of_another_width_than_the_keys() -> None:
    q, k, v = heads(4, 0), heads(2, 1), heads(2, 2, size=5)
    out = PackedLayout(SEGMENTS, "cpu").attend(0, q, k, v, scale=0.3, window=None, softcap=None)
    torch.testing.assert_close(out, brute_force(q, k, v, 0.3, None, None), atol=1e-12, rtol=1e-12)


def test_what_the_function_does_not_know_is_refused() -> None:
    layer = torch.nn.Identity()
    layer.layer_idx = 0  # type: ignore[assignment]
    q, k, v = heads(4, 0), heads(2, 1), heads(2, 2)
    layout = PackedLayout(SEGMENTS, "cpu")
    out, weights = preftune_attention(layer, q, k, v, None, layout=layout, dropout=0.0, is_causal=True, sinks=None)
    assert weights is None
    want = brute_force(q, k, v, 8**-0.5, None, None).transpose(1, 2)
    torch.testing.assert_close(out, want, atol=1e-12, rtol=1e-12)
    with pytest.raises(Unsupported, match="s_aux"):
        preftune_attention(layer, q, k, v, None, layout=layout, s_aux=torch.zeros(4))
    with pytest.raises(Unsupported, match="attention_mask"):
        preftune_attention(layer, q, k, v, torch.zeros(1), layout=layout)
    with pytest.raises(Unsupported, match="layout"):
        preftune_attention(layer, q, k, v, None)
    with pytest.raises(Unsupported, match="layer_idx"):
        preftune_attention(torch.nn.Identity(), q, k, v, None, layout=layout)

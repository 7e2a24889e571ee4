"""The CUDA path's mask and arithmetic, on the CPU: FlexAttention runs there uncompiled."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from preftune.engine.attention import PackedLayout
from preftune.engine.flex import block_mask, flex_attend, mask_function, token_tables
from preftune.engine.pack import Segment, pack
from preftune.records import Completion, Group, Prompt

SHAPES = [(5, (3, 0, 6)), (1, (2,)), (9, (4, 4, 1)), (140, (30, 12))]


def segments(shapes: list[tuple[int, tuple[int, ...]]]) -> tuple[Segment, ...]:
    """As `pack` lays them out; inputs of n tokens are completions of n + 1."""
    groups = [
        Group(Prompt((1,) * p, ""), tuple(Completion((2,) * (n + 1), (True,) * (n + 1)) for n in ns))
        for p, ns in shapes
    ]
    (row,) = pack(groups, 10_000)
    return row.segments


def by_definition(parts: tuple[Segment, ...], window: int | None) -> Tensor:
    """[N, N]: a token sees its own prompt's and its own completion's earlier tokens, fewer than `window` back."""
    places = {}
    for g, s in enumerate(parts):
        places |= {s.start + t: (g, None, t) for t in range(s.prompt)}
        for c, (at, n) in enumerate(s.completions):
            places |= {at + t: (g, c, s.prompt + t) for t in range(n)}
    out = torch.zeros(len(places), len(places), dtype=torch.bool)
    for i, (g, c, at) in places.items():
        for j, (g2, c2, at2) in places.items():
            out[i, j] = g == g2 and (c2 is None or c2 == c) and 0 <= at - at2 < (window or 10**9)
    return out


def evaluated(parts: tuple[Segment, ...], window: int | None) -> Tensor:
    n = max(s.end for s in parts)
    i = torch.arange(n)
    zero = torch.zeros((), dtype=torch.long)
    return mask_function(parts, window, "cpu")(zero, zero, i[:, None], i[None, :])


completions = st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple)
shapes = st.lists(st.tuples(st.integers(1, 6), completions), min_size=1, max_size=4)


@settings(max_examples=80, deadline=None)
@given(shapes, st.none() | st.integers(1, 9))
def test_the_mask_by_definition(parts: list[tuple[int, tuple[int, ...]]], window: int | None) -> None:
    laid = segments(parts)
    assert torch.equal(evaluated(laid, window), by_definition(laid, window))


def test_token_tables_worked_by_hand() -> None:
    group, sequence, position = token_tables((Segment(0, 2, ((2, 2), (4, 0), (4, 1))), Segment(5, 1, ((6, 1),))), "cpu")
    assert group.tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert sequence.tolist() == [-1, -1, 0, 0, 2, -1, 3]
    assert position.tolist() == [0, 1, 2, 3, 2, 0, 1]


def tensors(parts: tuple[Segment, ...], key_heads: int) -> list[Tensor]:
    n = max(s.end for s in parts)
    return [
        torch.randn(1, h, n, 16, generator=torch.Generator().manual_seed(i))
        for i, h in enumerate((4, key_heads, key_heads))
    ]


@pytest.mark.parametrize("window", [None, 1, 7, 100])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_flex_attention_gives_what_the_cpu_path_gives(
    window: int | None, softcap: float | None, key_heads: int
) -> None:
    parts = segments(SHAPES)
    q, k, v = tensors(parts, key_heads)
    mask = block_mask(parts, window, "cpu")
    out = flex_attend(q, k, v, mask, 0.3, softcap)
    want = PackedLayout(parts, "cpu").attend(0, q, k, v, scale=0.3, window=window, softcap=softcap)
    torch.testing.assert_close(out, want, atol=2e-6, rtol=1e-5)


def test_block_mask_skips_blocks_of_other_groups() -> None:
    """Four rows' worth of 128-token groups: the blocks between them are never computed."""
    parts = segments([(100, (28,))] * 4)
    mask = block_mask(parts, None, "cpu")
    assert mask.to_dense()[0, 0].bool().tolist() == torch.eye(4).bool().tolist()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (7, None), (100, 1.5)])
def test_compiled_flex_attention_on_cuda(window: int | None, softcap: float | None) -> None:
    parts = segments(SHAPES)
    q, k, v = (t.cuda().requires_grad_() for t in tensors(parts, 2))
    got = PackedLayout(parts, "cuda").attend(0, q, k, v, scale=0.3, window=window, softcap=softcap)
    grads = torch.autograd.grad(got.square().sum(), (q, k, v))
    q2, k2, v2 = (t.detach().cpu().requires_grad_() for t in (q, k, v))
    want = PackedLayout(parts, "cpu").attend(0, q2, k2, v2, scale=0.3, window=window, softcap=softcap)
    torch.testing.assert_close(got.cpu(), want, atol=5e-3, rtol=5e-3)
    for mine, other in zip(grads, torch.autograd.grad(want.square().sum(), (q2, k2, v2)), strict=True):
        torch.testing.assert_close(mine.cpu(), other, atol=5e-2, rtol=5e-2)

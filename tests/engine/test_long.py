"""What keeps long rows linear in memory: masked attention in blocks, and padded rows that go alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from preftune.engine import attention, forward
from preftune.engine.forward import Engine
from preftune.records import Completion, Group, Prompt
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


def largest_saved(engine: Engine, length: int) -> int:
    """Elements of the largest tensor that one forward keeps for its backward, of a completion of `length` tokens."""
    ids = tuple(3 + n * 7 % 100 for n in range(length))
    groups = [Group(Prompt((4, 5), ""), (Completion(ids, (True,) * length), Completion(ids[:9], (True,) * 9)))]
    (packed,) = engine.pack(groups, 10_000)
    largest = 0

    def note(x: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        engine.forward(packed)
    return largest


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gemma3"])
@pytest.mark.parametrize("pairs", [1, 40, 300])
def test_masked_attention_in_blocks_is_exact(kind: str, pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows, soft caps and both; blocks of one query, of a few, and of some completions whole."""
    monkeypatch.setattr(attention, "DENSE_PAIRS", pairs)
    seen: list[int] = []
    block = attention._block

    def counted(q: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(q.shape[2])
        return block(q, *rest)

    monkeypatch.setattr(attention, "_block", counted)
    groups = some_groups()
    engine = Engine(policy_of(zoo.tiny_model(kind)))
    assert engine.mode == "shared"
    mine, _ = engine_values(engine, groups, temperature=0.7)
    want, _ = plain_values(zoo.tiny_model(kind), groups, temperature=0.7)
    assert furthest(mine, want) <= 1e-4
    plain = zoo.tiny_model(kind)
    theirs, _ = plain_values(plain, groups, temperature=0.7)
    got = gradients(engine.policy.model, weighted_sum(mine))
    assert relative_l2(got, gradients(plain, weighted_sum(theirs))) <= 5e-5
    assert min(seen) < max(len(c.ids) for g in groups for c in g.completions)


@pytest.mark.parametrize("kind", ["mistral", "gemma2"])
def test_masked_attention_keeps_no_square(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(policy_of(zoo.tiny_model(kind)))
    assert largest_saved(engine, 240) > 239 * 239 - 1  # short rows: the whole mask is kept, or whole scores
    monkeypatch.setattr(attention, "DENSE_PAIRS", 2000)
    assert largest_saved(engine, 240) < 256 * 256 // 2  # a row may be filled up to 256 tokens


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_long_padded_rows_go_alone_and_say_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = some_groups()
    engine = Engine(policy_of(zoo.tiny_model(kind)), mode="padded")
    together, _ = engine_values(engine, groups)
    monkeypatch.setattr(forward, "MASK_ELEMENTS", 100)
    calls: list[tuple[int, ...]] = []
    hook = engine.policy.base.get_input_embeddings().register_forward_hook(
        lambda m, given, out: calls.append(given[0].shape)
    )
    alone, _ = engine_values(engine, groups)
    hook.remove()
    assert furthest(alone, together) <= 1e-5
    assert {shape[0] for shape in calls} == {1}


def test_a_row_alone_needs_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the certificate's plain forward of long completions would take memory of length²."""
    engine = Engine(policy_of(zoo.tiny_model("llama")), mode="padded")
    masks: list[Any] = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        masks.append(kwargs.get("attn_mask"))
        return plain(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    largest_saved(engine, 200)
    assert masks and all(mask is not None for mask in masks)  # two rows of different lengths
    masks.clear()
    monkeypatch.setattr(forward, "MASK_ELEMENTS", 100)
    largest_saved(engine, 200)
    assert masks and all(mask is None for mask in masks)

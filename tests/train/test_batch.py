"""The gradient of a batch does not depend on how the batch is cut: packs, splits, order, a smaller last one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from preftune.methods import PRESETS, Evidence, get_method
from preftune.records import Completion, Group, Prompt
from preftune.train.batch import backward, make_batch
from preftune.train.progress import Progress
from preftune.train.session import Session

LENGTHS = [(4, 1, 6, 3), (2, 2, 5, 6), (3, 4, 0, 1), (6,)]
"""Tokens of each completion: an empty one, some cut at 6, a group of one."""
SCORES = [(1.0, 0.0, 0.5, 0.25), (0.7, 0.7, 0.7, 0.7), (0.0, 2.0, -1.0, 1.0), (3.0,)]
"""Scores: the second group's are all equal."""


def groups(sampled: bool = True) -> list[Group]:
    rng = torch.Generator().manual_seed(3)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 55, (n,), generator=rng).tolist())

    out = []
    for g, (lengths, scores) in enumerate(zip(LENGTHS, SCORES, strict=True)):
        completions = tuple(
            Completion(ids(n), (True,) * n, finish="length" if n == 6 else "eos", score=score if sampled else None)
            for n, score in zip(lengths, scores, strict=True)
        )
        out.append(Group(Prompt(ids(3 + 2 * g), "", where=f"row {g}"), completions))
    return out


@pytest.fixture
def gradient(sft, grpo):
    """(recipe, groups, tokens per pack) → flat gradient, loss, metrics."""
    sessions: dict[str, Session] = {}

    def of(recipe, batch: list[Group], budget: int) -> tuple[Tensor, dict[str, float]]:
        if recipe.method not in sessions:
            opened = Session.open(recipe, functions=(), base_dir=None, progress=Progress("test"))
            sessions[recipe.method] = opened
            opened.policy.keep_reference()
            torch.manual_seed(9)
            for _, parameter in opened.parameters:  # away from the reference, so that a KL has a gradient
                parameter.data.add_(torch.randn_like(parameter) * 0.05)
        session = sessions[recipe.method]
        method = get_method(recipe.method)
        old = session.engine.score(batch, 8192, temperature=recipe.sampling.temperature)
        for row in old:  # a policy one update away
            for tokens in row:
                tokens.add_(torch.linspace(-0.3, 0.3, len(tokens)) if len(tokens) else 0.0)
        reference = session.engine.score(batch, 8192, temperature=recipe.sampling.temperature, reference=True)
        values = [[torch.linspace(-1.0, 1.0, len(t)) + len(t) for t in row] for row in old]
        made = make_batch(batch, method, recipe, evidence=Evidence(old=old, reference=reference, values=values))
        session.optimizer.zero_grad(set_to_none=True)
        parts, _ = backward(session.engine, made, method, recipe, budget)
        grads = [p.grad.flatten() for _, p in session.parameters if p.grad is not None]
        return torch.cat(grads), {k: v for k, p in parts.items() if (v := p.value()) is not None}

    return of


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("preset", [*PRESETS, "sft"])
def test_a_cut_batch_has_the_gradient_of_the_whole(gradient, sft, grpo, preset: str, masked: bool) -> None:
    if preset == "sft":
        recipe, batch = sft(), groups(sampled=False)
    else:
        recipe = grpo(policy={"preset": preset, "mask_truncated": masked}, sampling={"temperature": 0.8})
        batch = groups()
    whole, metrics = gradient(recipe, batch, 8192)
    assert whole.norm() > 1e-4
    for budget, backwards in ((24, False), (15, False), (14, True)):
        order = batch[::-1] if backwards else batch
        cut, parts = gradient(recipe, order, budget)
        assert (cut - whole).norm() / whole.norm() < 1e-5, budget
        assert parts == pytest.approx(metrics, rel=1e-5, abs=1e-7), budget


def test_splitting_really_splits(gradient, grpo) -> None:
    """The budgets above mean what they say: 4, 2 and as many rows as there are completions."""
    from preftune.engine.pack import pack

    count = {budget: [len(set(p.members)) for p in pack(groups(), budget)] for budget in (8192, 24, 15, 14)}
    assert len(count[8192]) == 1
    assert 2 <= len(count[24]) < len(count[15]) <= len(count[14])
    halves = [g for p in pack(groups(), 15) for g in dict.fromkeys(g for g, _ in p.members)]
    assert len(halves) > len(set(halves)), "no group is split"


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "ppo"])
def test_a_batch_without_spread_moves_nothing(gradient, grpo, preset: str) -> None:
    equal = [Group(g.prompt, tuple(replace(c, score=0.1) for c in g.completions)) for g in groups()]
    recipe = grpo(policy={"preset": preset, "beta": 0.0})
    flat, metrics = gradient(recipe, equal, 8192)
    assert float(flat.abs().max()) == 0.0
    assert metrics["loss"] == 0.0


def test_masked_rows_leave_the_tokens_but_not_the_sequences(grpo) -> None:
    method = get_method("grpo")
    free = make_batch(groups(), method, grpo()).denominators
    masked = make_batch(groups(), method, grpo(policy={"mask_truncated": True}))
    assert (free.tokens, free.sequences, free.max_tokens) == (43.0, 13.0, 6.0)
    # three completions of 6 tokens were cut
    assert (masked.denominators.tokens, masked.denominators.sequences) == (43.0 - 18.0, 13.0)
    assert masked.weights_S.tolist() == [1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0]


def test_the_gradient_by_hand(gradient, sft) -> None:
    """SFT through the engine equals plain transformers code on each row, weighted by hand."""
    from tests import tiny

    recipe, batch = sft(), groups(sampled=False)
    ours, metrics = gradient(recipe, batch, 8192)
    model = tiny.Qwen3ForCausalLM.from_pretrained(recipe.model.path)
    torch.manual_seed(9)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    total = torch.zeros(())
    tokens = 0
    for group in batch:
        for c in group.completions:
            if not c.ids:
                continue
            row = torch.tensor([group.prompt.ids + c.ids])
            logits = model(row).logits[0, len(group.prompt.ids) - 1 : -1]
            total = total + torch.nn.functional.cross_entropy(logits, torch.tensor(c.ids), reduction="sum")
            tokens += len(c.ids)
    loss = total / tokens
    loss.backward()
    theirs = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert (ours - theirs).norm() / theirs.norm() < 1e-5


def test_all_empty_completions_are_no_crash(gradient, grpo, home: Path) -> None:
    from preftune.train.certificate import sample_of

    nothing = [Group(Prompt((4, 5), ""), (Completion((), (), finish="eos", score=1.0),) * 2)]
    assert sample_of(nothing) == []
    method, recipe = get_method("grpo"), grpo()
    session = Session.open(recipe, functions=(), base_dir=None, progress=Progress("test"))
    parts, packs = backward(session.engine, make_batch(nothing, method, recipe), method, recipe, 100)
    assert parts == {}
    assert [p.target_T.numel() for p in packs] == [0]
    assert all(p.grad is None for _, p in session.parameters)

"""Plain code to compare the engine with: padded rows, full logits, log-softmax, gather. Nothing of ours in it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from preftune.config import ModelConfig
from preftune.engine.forward import Engine
from preftune.models.loading import Policy
from preftune.records import Completion, Group, Prompt
from tests.engine import zoo

Values = dict[tuple[int, int], Tensor]
"""(group, completion) → one number a trained token."""


def policy_of(model: Any, **config: Any) -> Policy:
    """A policy around a model made on the spot."""
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    context = getattr(base.config.get_text_config(), "max_position_embeddings", None)
    return Policy(model, None, ModelConfig(path="made/on/the/spot", **config), torch.device("cpu"), (2,), context, "")


def random_ids(rng: random.Random, n: int) -> tuple[int, ...]:
    return tuple(rng.randrange(3, zoo.VOCABULARY) for _ in range(n))


def completion(rng: random.Random, n: int, context: Sequence[int] = ()) -> Completion:
    """`n` random tokens; those at the places in `context` were not written by the policy."""
    return Completion(random_ids(rng, n), tuple(t not in context for t in range(n)))


def some_groups(seed: int = 0) -> list[Group]:
    """Prompts shorter and longer than the zoo's window of 8, of one token too; completions that are empty, of one
    token, longer than the window, with spans in them that others wrote; a group of one."""
    rng = random.Random(seed)
    shapes: list[tuple[int, list[Completion]]] = [
        (7, [completion(rng, 3), completion(rng, 13), completion(rng, 1)]),
        (21, [completion(rng, 11, context=(3, 4, 5)), completion(rng, 0), completion(rng, 4), completion(rng, 9)]),
        (1, [completion(rng, 5)]),
        (12, [completion(rng, 6, context=(0, 5)), completion(rng, 10)]),
    ]
    return [Group(Prompt(random_ids(rng, p), ""), tuple(cs)) for p, cs in shapes]


def short_groups(seed: int = 0) -> list[Group]:
    """Rows of at most 14 tokens: within the 16 positions that the zoo's stretched rotary models were made for."""
    rng = random.Random(seed)
    return [Group(Prompt(random_ids(rng, p), ""), (completion(rng, 8), completion(rng, 3))) for p in (6, 2, 4)]


def plain_values(
    model: Any, groups: Sequence[Group], *, temperature: float = 1.0, pad: bool = True
) -> tuple[Values, Values]:
    """Log-probs and entropies of the trained tokens; rows padded on the right, or each run alone (then without its
    last token, which predicts nothing: under dynamic NTK the length of the row changes the positions of all of it)."""
    rows = [(g, c, group.prompt.ids, one) for g, group in enumerate(groups) for c, one in enumerate(group.completions)]
    lists = [list(prompt) + list(one.ids) for _, _, prompt, one in rows]
    if pad:
        longest = max(map(len, lists))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in lists])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in lists])
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        each = [logits[r] for r in range(len(rows))]
    else:
        inputs = [row[:-1] if one.ids else row for row, (_, _, _, one) in zip(lists, rows, strict=True)]
        each = [model(input_ids=torch.tensor([row]), use_cache=False).logits[0] for row in inputs]
    logprobs: Values = {}
    entropies: Values = {}
    for (g, c, prompt, one), logits_LV in zip(rows, each, strict=True):
        all_LV = torch.log_softmax(logits_LV / temperature, -1)
        places = [len(prompt) + t - 1 for t, wrote in enumerate(one.mask) if wrote]
        tokens = [i for i, wrote in zip(one.ids, one.mask, strict=True) if wrote]
        logprobs[g, c] = all_LV[places, tokens]
        entropies[g, c] = -(all_LV[places].exp() * all_LV[places]).sum(-1)
    return logprobs, entropies


def engine_values(
    engine: Engine, groups: Sequence[Group], *, temperature: float = 1.0, budget: int = 1000, model: Any = None
) -> tuple[Values, Values]:
    """The same through the engine."""
    logprobs: Values = {}
    entropies: Values = {}
    for packed in engine.pack(groups, budget):
        out = engine.forward(packed, temperature=temperature, with_entropy=True, model=model)
        assert out.entropy_T is not None
        for s, member in enumerate(packed.members):
            assert member not in logprobs
            logprobs[member] = out.logprobs_T[packed.sequence_T == s]
            entropies[member] = out.entropy_T[packed.sequence_T == s]
    return logprobs, entropies


def weighted_sum(values: Values, seed: int = 3) -> Tensor:
    """Σ w · value with fixed random weights of either sign, the same whatever the order of `values`."""
    total = torch.zeros(())
    for member in sorted(values):
        g = torch.Generator().manual_seed(seed + 1000 * member[0] + member[1])
        total = total + (values[member] * torch.randn(values[member].shape, generator=g)).sum()
    return total


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    """Of all parameters that get one; the model's own are cleared."""
    model.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    out = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return out


def furthest(a: Values, b: Values) -> float:
    """max |Δ|, over the same members."""
    assert a.keys() == b.keys()
    assert all(a[m].shape == b[m].shape for m in a)
    return max((float((a[m] - b[m]).detach().abs().max()) for m in a if a[m].numel()), default=0.0)


def relative_l2(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """‖a − b‖ / ‖b‖ over all parameters together. A parameter that one side has no gradient for counts as zero."""
    names = a.keys() | b.keys()
    zero = torch.zeros(())
    off = sum(float((a.get(n, zero) - b.get(n, zero)).double().square().sum()) for n in names)
    size = sum(float(g.double().square().sum()) for g in b.values())
    return (off / size) ** 0.5

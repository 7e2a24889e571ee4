"""The limit on near-certain tokens' gradients: by hand, and against plain transformers layer by layer."""

from __future__ import annotations

import copy
import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from preftune.engine.certain import GradientLimit, decoder_layers
from preftune.engine.forward import Engine
from preftune.engine.pack import Pack
from preftune.errors import ModelError
from preftune.records import Group
from tests.engine.plain import gradients, relative_l2, some_groups, weighted_sum
from tests.engine.test_scores import classifier, reward_of

# ------------------------------------------------------------------------------------------------------- by hand


class Mixing(nn.Module):
    """h'_t = a · h_t + b · h_{t−1}."""

    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(a)), nn.Parameter(torch.tensor(b))

    def forward(self, hidden_states: Tensor) -> Tensor:
        before = torch.cat([torch.zeros_like(hidden_states[:, :1]), hidden_states[:, :-1]], 1)
        return self.a * hidden_states + self.b * before


class Toy(nn.Module):
    """Two layers on given states, called by position or by keyword."""

    def __init__(self, by_keyword: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Mixing(1.0, 0.1), Mixing(1.0, 2.0)])
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(num_hidden_layers=2))
        self.by_keyword = by_keyword

    def forward(self, states: Tensor) -> Tensor:
        for layer in self.layers:
            states = layer(hidden_states=states) if self.by_keyword else layer(states)
        return states

    def get_decoder(self) -> nn.Module:
        return self

    def get_output_embeddings(self) -> None:
        return None


class Whole(nn.Module):
    """What `decoder_of` expects around a decoder."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.model = decoder

    def get_decoder(self) -> nn.Module:
        return self.model

    def get_output_embeddings(self) -> None:
        return None


def toy(g_max: float | None, *, pairs: float = 1.0, loss_scale: float = 1.0, by_keyword: bool = False) -> Any:
    """Three tokens, the second one near-certain; the score is w·h of the last, w = (3, 4)."""
    model = Whole(Toy(by_keyword))
    states = torch.tensor([[[1.0, 0.0], [0.5, 2.0], [1.0, 1.0]]], requires_grad=True)
    limit = GradientLimit([torch.tensor([True])], g_max=g_max, pairs=pairs)
    with limit.acting(model, torch.tensor([1])):
        out = model.model(states)
    (out[0, 2] @ torch.tensor([3.0, 4.0]) * loss_scale).backward()
    assert states.grad is not None
    first, second = model.model.layers
    return states.grad[0], first, second, limit


@pytest.mark.parametrize("by_keyword", [False, True])
def test_two_linear_layers_by_hand(by_keyword: bool) -> None:
    # Into layer 2 come: token 3 with 1·(3, 4); token 2 with 2·(3, 4) = (6, 8), of norm 10, limited to (0.6, 0.8).
    # Into layer 1: token 3 (3, 4); token 2 1·(0.6, 0.8) + 0.1·(3, 4) = (0.9, 1.2), of norm 1.5, limited to (0.6, 0.8);
    # token 1 0.1·(0.6, 0.8).
    grads, first, second, limit = toy(1.0, by_keyword=by_keyword)
    torch.testing.assert_close(grads, torch.tensor([[0.06, 0.08], [0.6, 0.8], [3.0, 4.0]]))
    # ∂/∂a of layer 1: the limited gradient of its outputs times its inputs, (0.6, 0.8)·(0.5, 2) + (3, 4)·(1, 1).
    assert float(first.a.grad) == pytest.approx(0.3 + 1.6 + 7.0)
    # ∂/∂b of layer 1: (0.6, 0.8)·(1, 0) + (3, 4)·(0.5, 2).
    assert float(first.b.grad) == pytest.approx(0.6 + 1.5 + 8.0)
    # Layer 2 itself learns all: its weights meet the gradient before it reaches the token's state.
    assert float(second.b.grad) == pytest.approx(3 * (0.5 + 0.1) + 4 * 2.0)
    found = limit.metrics([SimpleNamespace(mask=(True, True, True))])
    assert found["certain/norm"].value() == pytest.approx((10 + 1.5) / 2)
    assert found["certain/limited"].value() == 1.0
    assert found["certain/share"].value() == 0.5


def test_of_a_mean_over_pairs_the_norm_is_one_pairs() -> None:
    whole, *_ = toy(1.0)
    share, *_ = toy(1.0, pairs=8.0, loss_scale=1 / 8)
    torch.testing.assert_close(share * 8, whole)


@pytest.mark.parametrize("g_max", [11.0, float("inf"), None])
def test_under_the_limit_nothing_changes(g_max: float | None) -> None:
    grads, first, *_ = toy(g_max)
    # Into layer 1 token 2 gets 1·(6, 8) + 0.1·(3, 4), of norm 10.5.
    torch.testing.assert_close(grads, torch.tensor([[0.6, 0.8], [6.3, 8.4], [3.0, 4.0]]))
    assert float(first.a.grad) == pytest.approx(6 * 0.5 + 8 * 2.0 + 7.0)


def test_zero_lets_nothing_through() -> None:
    grads, *_ = toy(0.0)
    torch.testing.assert_close(grads, torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0]]))


# --------------------------------------------------------------------------------------- against plain transformers


def flags_of(groups: list[Group], seed: int = 1) -> list[list[Tensor]]:
    """Every other token near-certain, by chance; never a completion's last."""
    rng = random.Random(seed)
    return [[torch.tensor([rng.random() < 0.5 for _ in c.ids[:-1]] + [False] * bool(c.ids)) for c in g.completions]
            for g in groups]  # fmt: skip


def plain_gradients(model: Any, groups: list[Group], flags: list[list[Tensor]], g_max: float) -> dict[str, Tensor]:
    """Each row by itself through plain transformers, the backward made by hand, one layer after the other."""
    model.zero_grad(set_to_none=True)
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    layers = decoder_layers(model)
    for g, group in enumerate(groups):
        for c, one in enumerate(group.completions):
            calls: list[tuple[Any, Any]] = []
            keep = _keeper(calls)
            hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
            # The first layer's input with its graph, every layer's arguments, and what follows the last layer.
            row = torch.tensor([[*group.prompt.ids, *one.ids]])
            score = base(input_ids=row, use_cache=False).logits[0, 0]
            for hook in hooks:
                hook.remove()
            weight = torch.randn((), generator=torch.Generator().manual_seed(3 + 1000 * g + c))
            inputs = [args[0] for args, _ in calls]
            certain = [len(group.prompt.ids) + int(place) for place in flags[g][c].nonzero()[:, 0]]
            # What lies above the last layer's input learns in one go.
            above = [p for _, p in model.named_parameters() if p.requires_grad]
            gradient, *own = torch.autograd.grad(
                score * weight, [inputs[-1], *above], retain_graph=True, allow_unused=True
            )
            beneath = _reached(inputs[-1], above)
            for parameter, value in zip(above, own, strict=True):
                if value is not None and id(parameter) not in beneath:
                    _add(parameter, value)
            for at in reversed(range(len(layers))):
                gradient = gradient.clone()
                for place in certain:
                    norm = float(gradient[0, place].norm())
                    if norm > g_max:
                        gradient[0, place] *= g_max / norm
                if at == 0:
                    inputs[0].backward(gradient, retain_graph=True) if inputs[0].requires_grad else None
                    break
                leaf = inputs[at - 1].detach().requires_grad_()
                args, kwargs = calls[at - 1]
                out = layers[at - 1](leaf, *args[1:], **kwargs)
                out = out[0] if isinstance(out, tuple) else out
                out.backward(gradient)
                assert leaf.grad is not None
                gradient = leaf.grad
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def _keeper(calls: list[tuple[Any, Any]]) -> Any:
    return lambda module, args, kwargs: calls.append((args, kwargs))


def _add(parameter: nn.Parameter, value: Tensor) -> None:
    parameter.grad = value.clone() if parameter.grad is None else parameter.grad + value


def _reached(states: Tensor, parameters: list[nn.Parameter]) -> set[int]:
    """Parameters that these states were made with."""
    if not states.requires_grad:
        return set()
    found = torch.autograd.grad(states.sum(), parameters, retain_graph=True, allow_unused=True)
    return {id(p) for p, value in zip(parameters, found, strict=True) if value is not None}


def limited_gradients(
    engine: Engine, groups: list[Group], flags: list[list[Tensor]], g_max: float | None, budget: int = 1000
) -> tuple[dict[str, Tensor], list[GradientLimit]]:
    """The same sum of scores through the engine, pack by pack."""
    model = engine.policy.model
    model.zero_grad(set_to_none=True)
    limits = []
    for packed in engine.pack(groups, budget):
        limits.append(_limit(packed, flags, g_max))
        scores_S = engine.scores(packed, limits[-1])
        weighted_sum(dict(zip(packed.members, scores_S, strict=True))).backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found, limits


def _limit(packed: Pack, flags: list[list[Tensor]], g_max: float | None) -> GradientLimit:
    return GradientLimit([flags[g][c] for g, c in packed.members], g_max=g_max, pairs=1.0)


G_MAX = 0.05


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "gpt2", "opt", "mixtral"])
def test_gradients_are_those_of_plain_rows_limited_layer_by_layer(kind: str) -> None:
    groups = some_groups()
    flags = flags_of(groups)
    engine = Engine(reward_of(classifier(kind)))
    assert engine.mode == "shared"
    want = plain_gradients(classifier(kind), groups, flags, G_MAX)
    found, limits = limited_gradients(engine, groups, flags, G_MAX)
    assert relative_l2(found, want) <= 5e-5
    free, _ = limited_gradients(engine, groups, flags, None)
    assert relative_l2(free, want) > 0.05, "the limit hardly acted: the comparison says little"
    seen = limits[0].metrics(engine.pack(groups, 1000)[0].completions)
    assert 0.2 < (seen["certain/limited"].value() or 0.0) <= 1.0
    padded = Engine(reward_of(classifier(kind)), mode="padded")
    assert relative_l2(limited_gradients(padded, groups, flags, G_MAX)[0], want) <= 5e-5
    padded.row_by_row = True
    assert relative_l2(limited_gradients(padded, groups, flags, G_MAX)[0], want) <= 5e-5


@pytest.mark.parametrize("budget", [1000, 60, 34])
def test_packing_changes_nothing(budget: int) -> None:
    groups = some_groups()
    flags = flags_of(groups)
    engine = Engine(reward_of(classifier("qwen3")))
    one, _ = limited_gradients(engine, groups, flags, G_MAX)
    many, limits = limited_gradients(engine, groups, flags, G_MAX, budget)
    assert relative_l2(many, one) <= 1e-5
    assert (len(limits) > 1) == (budget < 1000)


def test_adapters_learn_the_same() -> None:
    def adapted() -> Any:
        torch.manual_seed(4)
        settings = LoraConfig(r=3, target_modules="all-linear", task_type="SEQ_CLS", modules_to_save=["score"])
        model = get_peft_model(classifier("llama"), settings)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
        return model.eval()

    groups = some_groups()
    flags = flags_of(groups)
    found, _ = limited_gradients(Engine(reward_of(adapted())), groups, flags, G_MAX)
    want = plain_gradients(adapted(), groups, flags, G_MAX)
    assert relative_l2(found, want) <= 5e-5
    assert any("lora_A" in name and float(value.norm()) > 0 for name, value in want.items())


def test_recomputed_layers_are_limited_once() -> None:
    groups = some_groups()
    flags = flags_of(groups)
    plain = Engine(reward_of(classifier("qwen3")))
    want, once = limited_gradients(plain, groups, flags, G_MAX)
    policy = reward_of(classifier("qwen3"), gradient_checkpointing=True)
    policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    engine = Engine(policy)
    policy.train_mode(True)
    found, again = limited_gradients(engine, groups, flags, G_MAX)
    assert relative_l2(found, want) <= 1e-6
    completions = plain.pack(groups, 1000)[0].completions
    first, second = once[0].metrics(completions), again[0].metrics(completions)
    assert {k: float(v.weight) for k, v in first.items()} == {k: float(v.weight) for k, v in second.items()}


def test_without_a_limit_or_near_certain_tokens_not_a_bit_changes() -> None:
    groups = some_groups()
    flags = flags_of(groups)
    none = [[torch.zeros_like(one) for one in row] for row in flags]
    engine = Engine(reward_of(classifier("qwen3")))
    packed = engine.pack(groups, 1000)[0]
    limit = _limit(packed, flags, 0.0)
    scores = engine.scores(packed, limit)
    assert torch.equal(scores, engine.scores(packed)), "the forward changed"
    free = gradients(engine.policy.model, weighted_sum(dict(zip(packed.members, engine.scores(packed), strict=True))))
    for given, g_max in ((flags, None), (flags, float("inf")), (none, 0.0)):
        found, _ = limited_gradients(engine, groups, given, g_max)
        assert found.keys() == free.keys()
        assert all(torch.equal(found[name], free[name]) for name in free)


def test_a_model_without_a_list_of_layers_is_refused() -> None:
    model = Whole(Toy())
    model.model.layers = nn.Sequential(*copy.deepcopy(list(model.model.layers)))  # type: ignore[assignment]
    with pytest.raises(ModelError, match="no list of 2 layers"):
        decoder_layers(model)

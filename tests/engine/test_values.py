"""Values of a scalar head: at every trained token those of plain transformers code, for both kinds of head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftLora
from peft import get_peft_model
from torch import Tensor

from preftune.config import LoraConfig
from preftune.engine.forward import Engine
from preftune.engine.pack import Pack
from preftune.engine.values import ScalarHead, SeparateHead, SharedHead, rate, token_values
from preftune.losses.batch import Denominators, TokenBatch
from preftune.losses.value import value_loss
from preftune.models.roles import add_role
from preftune.records import Completion, Group
from tests.engine import zoo
from tests.engine.plain import Values, furthest, policy_of, relative_l2, short_groups, some_groups
from tests.engine.test_scores import FALLBACK, SHARED, classifier, reward_of

torch.set_num_threads(1)
LORA = LoraConfig(r=3, alpha=6.0)


@torch.no_grad()
def spread(parameters: Any, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.15)


def separate(kind: str, mode: Any = "auto") -> tuple[Engine, SeparateHead, Any]:
    """The policy's engine, a head of its own, and the plain classifier that it stands for."""
    model = reward_of(classifier(kind, 2))
    head = SeparateHead(model, Engine(model, mode=mode), "value")
    return Engine(policy_of(zoo.tiny_model(kind)), mode=mode), head, classifier(kind, 2)


def shared(kind: str, mode: Any = "auto") -> tuple[Engine, SharedHead, Any]:
    """The same on the policy's base. The plain model: a classifier in plain peft with the role's weights."""
    wrapped = get_peft_model(zoo.tiny_model(kind), PeftLora(r=2, lora_alpha=4, target_modules="all-linear"))
    spread((p for p in wrapped.parameters() if p.requires_grad), 1)
    policy = policy_of(wrapped, lora=LORA)
    engine = Engine(policy, mode=mode)
    role = add_role(policy, "value", LORA, seed=0)
    spread((p for _, p in role.parameters()), 2)
    plain = classifier(kind, 0)
    head = SharedHead(engine, role, plain.score.weight[0], "made on the spot")
    settings = PeftLora(r=3, lora_alpha=6, target_modules="all-linear", task_type="SEQ_CLS")
    theirs = get_peft_model(plain, settings)
    names = {n.replace(".value.", ".default."): p.detach() for n, p in role.parameters()}
    assert names.keys() == {n for n, _ in theirs.named_parameters() if "lora_" in n}
    theirs.load_state_dict(names, strict=False)
    return engine, head, theirs.eval()


KINDS_OF_HEAD = {"separate": separate, "shared": shared}


def plain_values(model: Any, groups: list[Group]) -> Values:
    """The classifier's head at every position of padded rows; of them those before each token the policy wrote."""
    rows = [(g, c, group.prompt.ids, one) for g, group in enumerate(groups) for c, one in enumerate(group.completions)]
    lists = [[*prompt, *one.ids] for _, _, prompt, one in rows]
    longest = max(map(len, lists))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in lists])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in lists])
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    states = base.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    every = base.score(states)[..., 0]
    out: Values = {}
    for r, (g, c, prompt, one) in enumerate(rows):
        out[g, c] = every[r][[len(prompt) + t - 1 for t, wrote in enumerate(one.mask) if wrote]]
    return out


def head_values(head: ScalarHead, engine: Engine, groups: list[Group], budget: int = 1000) -> Values:
    found = token_values(head, engine, groups, budget)
    return {(g, c): values for g, row in enumerate(found) for c, values in enumerate(row)}


@pytest.mark.parametrize("how", KINDS_OF_HEAD)
@pytest.mark.parametrize("kind", SHARED)
def test_values_are_those_of_plain_code(kind: str, how: str) -> None:
    engine, head, plain = KINDS_OF_HEAD[how](kind)
    assert engine.mode == "shared"
    groups = some_groups()
    mine, want = head_values(head, engine, groups), plain_values(plain, groups)
    assert {m: len(v) for m, v in mine.items()} == {
        (g, c): one.length for g, group in enumerate(groups) for c, one in enumerate(group.completions)
    }
    assert any(not all(one.mask) for group in groups for one in group.completions)
    size = float(torch.cat(list(want.values())).detach().abs().max())
    assert size > 0.5  # else the comparison says little
    assert furthest(mine, want) <= 1e-5 * max(size, 1.0)


@pytest.mark.parametrize("kind", [k for k in FALLBACK if k != "gpt_oss"][:3])
def test_models_without_shared_prompts(kind: str) -> None:
    for how in KINDS_OF_HEAD.values():
        engine, head, plain = how(kind)
        assert engine.mode == "padded"
        assert furthest(head_values(head, engine, short_groups()), plain_values(plain, short_groups())) <= 2e-5


@pytest.mark.parametrize("how", KINDS_OF_HEAD)
def test_the_padded_way_gives_the_same(how: str) -> None:
    engine, head, plain = KINDS_OF_HEAD[how]("qwen3", "padded")
    assert engine.mode == "padded"
    assert furthest(head_values(head, engine, some_groups()), plain_values(plain, some_groups())) <= 1e-5


def test_a_head_and_a_policy_that_run_in_different_ways() -> None:
    """The packs are the policy's; its engine's way of running them is no matter of the head's."""
    want = plain_values(classifier("qwen3", 2), some_groups())
    for mine, other in (("shared", "padded"), ("padded", "shared")):
        _, head, _ = separate("qwen3", mine)
        engine, _, _ = separate("qwen3", other)
        assert furthest(head_values(head, engine, some_groups()), want) <= 1e-5


@pytest.mark.parametrize("how", KINDS_OF_HEAD)
def test_splitting_and_order_change_nothing(how: str) -> None:
    engine, head, _ = KINDS_OF_HEAD[how]("qwen3")
    groups = some_groups()
    assert len(engine.pack(groups, 1000)) == 1
    assert len(engine.pack(groups, 34)) > 3
    one = head_values(head, engine, groups)
    assert furthest(head_values(head, engine, groups, 34), one) <= 1e-5
    turned = [replace(g, completions=g.completions[::-1]) for g in groups[::-1]]
    back = {
        (len(groups) - 1 - g, len(turned[g].completions) - 1 - c): values
        for (g, c), values in head_values(head, engine, turned).items()
    }
    assert furthest(back, one) <= 1e-5


@pytest.mark.parametrize("how", KINDS_OF_HEAD)
def test_what_a_tool_wrote_has_no_value_but_is_read(how: str) -> None:
    engine, head, _ = KINDS_OF_HEAD[how]("qwen3")
    group = some_groups()[1]
    whole = group.completions[0]
    ((values, *_),) = token_values(head, engine, [group], 1000)
    assert whole.mask[3:6] == (False, False, False) and len(values) == len(whole.ids) - 3
    everything = Completion(whole.ids, (True,) * len(whole.ids))
    ((all_values,),) = token_values(head, engine, [Group(group.prompt, (everything,))], 1000)
    kept = [t for t, wrote in enumerate(whole.mask) if wrote]
    torch.testing.assert_close(values, all_values[kept], atol=1e-5, rtol=1e-5)
    other = Completion((*whole.ids[:4], 50, *whole.ids[5:]), whole.mask)  # another answer of the tool
    ((changed,),) = token_values(head, engine, [Group(group.prompt, (other,))], 1000)
    assert torch.allclose(changed[:3], values[:3], atol=1e-5)
    assert (changed[3:] - values[3:]).abs().max() > 1e-3


def old_and_returns(groups: list[Group]) -> tuple[Values, Values]:
    g = torch.Generator().manual_seed(9)
    old: Values = {}
    returns: Values = {}
    for i, group in enumerate(groups):
        for c, one in enumerate(group.completions):
            old[i, c], returns[i, c] = (torch.randn(one.length, generator=g) for _ in range(2))
    return old, returns


CLIP, COEFFICIENT = 0.4, 0.3


def through_packs(head: ScalarHead, packs: list[Pack], groups: list[Group]) -> float:
    """The value loss over all packs, its gradient left in the head's parameters."""
    old, returns = old_and_returns(groups)
    lengths = [one.length for group in groups for one in group.completions]
    denominators = Denominators.count(lengths, [1.0] * len(lengths), 100)
    total = 0.0
    with head.acting(train=True):
        for packed in packs:
            tokens = TokenBatch(
                logprobs_T=torch.zeros(len(packed.target_T)), sequence_T=packed.sequence_T,
                num_sequences=packed.num_sequences, weights_S=torch.ones(packed.num_sequences),
                values_T=head.values(packed), old_values_T=torch.cat([old[m] for m in packed.members]),
                returns_T=torch.cat([returns[m] for m in packed.members]),
            )  # fmt: skip
            loss = value_loss(tokens, denominators, clip=CLIP, coefficient=COEFFICIENT).loss
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss)
    return total


def plain_loss(model: Any, groups: list[Group]) -> Tensor:
    values = plain_values(model, groups)
    old, returns = old_and_returns(groups)
    total, count = torch.zeros(()), 0
    for member, values_t in values.items():
        for v, v_old, r in zip(values_t, old[member], returns[member], strict=True):
            kept = v_old + min(max(v - v_old, torch.tensor(-CLIP)), torch.tensor(CLIP))
            total = total + max((v - r) ** 2, (kept - r) ** 2)
            count += 1
    return COEFFICIENT * 0.5 * total / count


@pytest.mark.parametrize("how", KINDS_OF_HEAD)
@pytest.mark.parametrize("budget", [1000, 34])
def test_the_gradient_of_the_value_loss(how: str, budget: int) -> None:
    groups = some_groups()
    engine, head, plain = KINDS_OF_HEAD[how]("qwen3")
    want = plain_loss(plain, groups)
    want.backward()  # type: ignore[no-untyped-call]
    assert through_packs(head, engine.pack(groups, budget), groups) == pytest.approx(float(want), rel=1e-5)
    mine = {n: p.grad for n, p in head.parameters() if p.grad is not None}
    if how == "shared":
        mine = {n.replace(".value.", ".default."): g for n, g in mine.items()}
        mine["head"] = mine.pop("value.head")[None]
        theirs = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None and "lora_" in n}
        theirs["head"] = _head_gradient(plain)
        assert all(p.grad is None for _, p in engine.policy.trainable())  # the policy's own adapter learns nothing
    else:
        mine = {n.removeprefix("value."): g for n, g in mine.items()}
        theirs = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
    assert mine.keys() == theirs.keys()
    assert relative_l2(mine, theirs) <= 1e-5


def _head_gradient(plain: Any) -> Tensor:
    """peft's SEQ_CLS keeps the head apart as modules_to_save; its weight is the one that acts."""
    (weight,) = [p for n, p in plain.named_parameters() if n.endswith("score.modules_to_save.default.weight")]
    assert weight.grad is not None
    return weight.grad


def test_gradient_checkpointing_of_a_shared_head() -> None:
    grads: list[dict[str, Tensor]] = []
    for recompute in (False, True):
        engine, head, _ = shared("qwen3")
        if recompute:
            engine.policy.base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            engine.policy.config = engine.policy.config.model_copy(update={"gradient_checkpointing": True})
        engine.policy.train_mode(True)
        through_packs(head, engine.pack(some_groups(), 60), some_groups())
        grads.append({n: p.grad for n, p in head.parameters() if p.grad is not None})
    assert len(grads[0]) == len(grads[1]) > 3
    assert relative_l2(grads[1], grads[0]) <= 1e-6


def test_scores_of_both_kinds() -> None:
    """`rate` reads the head at the last token, as transformers' own forward of the classifier does."""
    groups = some_groups()
    for how in KINDS_OF_HEAD.values():
        engine, head, plain = how("qwen3")
        found = rate(head, groups, 40, engine.policy.device)
        for g, group in enumerate(groups):
            for c, one in enumerate(group.completions):
                row = torch.tensor([[*group.prompt.ids, *one.ids]])
                want = plain(input_ids=row, use_cache=False).logits[0, 0]
                assert found[g][c] == pytest.approx(float(want), abs=1e-4)


def test_the_head_stays_fp32_under_autocast() -> None:
    engine, head, _ = shared("qwen3")
    exact = head_values(head, engine, some_groups())
    engine.bf16 = True
    rough = head_values(head, engine, some_groups())
    assert all(v.dtype == torch.float32 for v in rough.values())
    size = float(torch.cat(list(exact.values())).abs().max())
    assert 1e-6 < furthest(rough, exact) / size < 0.05
    states = torch.randn(4, len(head.weight_D), generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = head._read(states)
    torch.testing.assert_close(found, states.float() @ head.weight_D, atol=1e-6, rtol=1e-6)

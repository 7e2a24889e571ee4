"""PPO in plain code: full logits, loops over tokens, one row at a time. Nothing of preftune's maths in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import peft
import torch
import transformers as tf
from torch import Tensor

from preftune.records import Completion, Group


def policy_twin(base: str, weights: dict[str, Tensor], lora: dict[str, Any] | None = None) -> Any:
    """The policy in plain transformers (and peft) with these weights."""
    model: Any = tf.AutoModelForCausalLM.from_pretrained(base)
    if lora:
        model = peft.get_peft_model(model, _peft(lora, "CAUSAL_LM"))
    return _filled(model, weights)


def value_twin(base: str, weights: dict[str, Tensor], lora: dict[str, Any] | None = None) -> Any:
    """The value head in plain transformers: a sequence classifier; with LoRA one on the policy's base."""
    model: Any = tf.AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    if lora:
        model = peft.get_peft_model(model, _peft(lora, "SEQ_CLS"))
        head = "base_model.model.score.modules_to_save.default.weight"
        weights = {n.replace(".value.", ".default."): w for n, w in weights.items()}
        weights[head] = weights.pop("value.head")[None]
    else:
        weights = {n.removeprefix("value."): w for n, w in weights.items()}
    return _filled(model, weights)


def _peft(lora: dict[str, Any], task: str) -> Any:
    return peft.LoraConfig(r=lora["r"], lora_alpha=lora["alpha"], target_modules="all-linear", task_type=task)


def _filled(model: Any, weights: dict[str, Tensor]) -> Any:
    own = {n for n, p in model.named_parameters() if p.requires_grad}
    assert own == weights.keys(), sorted(own ^ weights.keys())[:4]
    model.load_state_dict(weights, strict=False)
    return model.eval()


def logprobs(model: Any, group: Group, one: Completion, temperature: float) -> Tensor:
    row = torch.tensor([[*group.prompt.ids, *one.ids]])
    every = torch.log_softmax(model(input_ids=row, use_cache=False).logits[0] / temperature, -1)
    start = len(group.prompt.ids)
    return torch.stack([every[start + t - 1, token] for t, token in enumerate(one.ids)])


def values(model: Any, group: Group, one: Completion) -> Tensor:
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    row = torch.tensor([[*group.prompt.ids, *one.ids]])
    states = base.base_model(input_ids=row, use_cache=False).last_hidden_state[0]
    start = len(group.prompt.ids)
    return torch.stack([base.score(states[start + t - 1])[0] for t in range(len(one.ids))])


@dataclass
class Signal:
    """Of one completion, in the order of its tokens."""

    old: list[float]
    values: list[float]
    rewards: list[float]
    advantages: list[float]
    returns: list[float]


def signals(
    groups: Sequence[Group], score: Any, policy: Any, reference: Any, value: Any, *, temperature: float, beta: float,
    gamma: float, lam: float, missing_eos: float,
) -> list[list[Signal]]:  # fmt: skip
    """Token rewards, GAE and whitening over the whole batch."""
    out: list[list[Signal]] = []
    with torch.no_grad():
        for group in groups:
            row = []
            for one in group.completions:
                old = logprobs(policy, group, one, temperature).tolist()
                theirs = logprobs(reference, group, one, temperature).tolist()
                worth = values(value, group, one).tolist()
                rewards = [-beta * (a - b) for a, b in zip(old, theirs, strict=True)]
                rewards[-1] += score(group, one) - (missing_eos if one.finish == "length" else 0.0)
                advantages = [0.0] * len(old)
                carried = 0.0
                for t in reversed(range(len(old))):
                    after = worth[t + 1] if t + 1 < len(old) else 0.0
                    carried = rewards[t] + gamma * after - worth[t] + gamma * lam * carried
                    advantages[t] = carried
                returns = [a + v for a, v in zip(advantages, worth, strict=True)]
                row.append(Signal(old, worth, rewards, advantages, returns))
            out.append(row)
    flat = [a for row in out for signal in row for a in signal.advantages]
    mean = sum(flat) / len(flat)
    deviation = (sum((a - mean) ** 2 for a in flat) / (len(flat) - 1)) ** 0.5
    for row in out:
        for signal in row:
            signal.advantages = [(a - mean) / deviation for a in signal.advantages]
    return out


def losses(
    groups: Sequence[Group], given: Sequence[Sequence[Signal]], policy: Any, value: Any, *, temperature: float,
    clip: float, value_clip: float, coefficient: float,
) -> tuple[Tensor, Tensor, dict[str, float]]:  # fmt: skip
    """The clipped policy loss, the clipped value loss, each a mean over the tokens of these groups; and how often the
    clips acted."""
    total, worth, count, clipped, cut = torch.zeros(()), torch.zeros(()), 0, 0, 0
    for group, row in zip(groups, given, strict=True):
        for one, signal in zip(group.completions, row, strict=True):
            now, new = logprobs(policy, group, one, temperature), values(value, group, one)
            for t in range(len(one.ids)):
                ratio = torch.exp(now[t] - signal.old[t])
                free = -ratio * signal.advantages[t]
                held = -ratio.clamp(1.0 - clip, 1.0 + clip) * signal.advantages[t]
                total = total + max(free, held)
                clipped += int(float(held) > float(free))
                plain = (new[t] - signal.returns[t]) ** 2
                near = signal.values[t] + (new[t] - signal.values[t]).clamp(-value_clip, value_clip)
                kept = (near - signal.returns[t]) ** 2
                worth = worth + 0.5 * max(plain, kept)
                cut += int(float(kept) > float(plain))
                count += 1
    return total / count, coefficient * worth / count, {"clip": clipped / count, "value": cut / count}

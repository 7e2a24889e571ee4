"""PPO's value head: what it starts from, and where it stands.

the policy is an adapter, and the reward model was trained as one on the same base   an adapter of its own, started
                                                                                     from the reward model's
the policy is an adapter, and value.path is policy or there is no reward model       a new adapter, head of zeros
else                                                                                 a model of its own: the reward
                                                                                     model, or the policy's weights
"""

from __future__ import annotations

from pathlib import Path

import torch

from preftune.config import ModelConfig, Recipe
from preftune.engine import Engine
from preftune.engine.values import ScalarHead, SeparateHead, SharedHead
from preftune.errors import ModelError
from preftune.models.loading import Policy
from preftune.models.reward import load_reward
from preftune.models.roles import add_role, put_reward, shareable

NAME = "value"
POLICY = "policy"


def make_value_head(recipe: Recipe, engine: Engine) -> ScalarHead:
    """The value head of a recipe, trainable.

    Raises:
        ModelError: `value.path` is no reward model, or has another tokenizer than the policy.
    """
    policy, settings = engine.policy, recipe.value
    path, asked = _start(recipe), settings.path is not None
    lora = settings.lora or recipe.model.lora
    if path is not None:
        adapter = shareable(path, policy)
        if adapter is not None:
            role, weight_D = put_reward(policy, NAME, adapter)
            return SharedHead(engine, role, weight_D, f"an adapter on the policy's base, started from {path}")
        config = _separate(recipe, path)
        if lora is not None and policy.is_adapter:
            config = config.model_copy(update={"lora": lora})
        model = load_reward(config, seed=recipe.seed)
        if model.tokenizer.get_vocab() == policy.tokenizer.get_vocab():
            return SeparateHead(model, Engine(model, mode=recipe.model.attention, bf16=engine.bf16), NAME)
        if asked:
            raise ModelError(
                f"value.path {path} has another tokenizer than the policy, so it can't read the policy's tokens; give "
                "a reward model of the same family, or value.path: policy"
            )
    why = "" if path is None else f" ({path} has another tokenizer, so the value head can't start from it)"
    if policy.is_adapter:
        if lora is None:
            raise ModelError("the value head needs the shape of its adapter: set value.lora")
        role = add_role(policy, NAME, lora, seed=recipe.seed)
        width = policy.base.get_input_embeddings().weight.shape[1]
        return SharedHead(engine, role, torch.zeros(_width(policy, width), device=policy.device),
                          f"a new adapter on the policy's base, head of zeros{why}")  # fmt: skip
    model = load_reward(_separate(recipe, recipe.model.path), seed=recipe.seed)
    head = SeparateHead(model, Engine(model, mode=recipe.model.attention, bf16=engine.bf16), NAME)
    head.lineage += why
    return head


def _width(policy: Policy, default: int) -> int:
    """Size of the last hidden states: the output head's input."""
    head = policy.base.get_output_embeddings()
    return int(head.weight.shape[1]) if head is not None else default


def _start(recipe: Recipe) -> str | None:
    """The reward model that the value head starts from; None: the policy's own weights."""
    if recipe.value.path == POLICY:
        return None
    if recipe.value.path is not None:
        return str(Path(recipe.value.path).expanduser())
    for reward in recipe.rewards:
        if reward.name == "reward-model" and reward.weight:
            return str(Path(str(reward.args["path"])).expanduser())
    return None


def _separate(recipe: Recipe, path: str) -> ModelConfig:
    return ModelConfig(
        path=path, dtype=recipe.model.dtype, device=recipe.model.device, attention=recipe.model.attention,
        trust_remote_code=recipe.model.trust_remote_code, gradient_checkpointing=recipe.model.gradient_checkpointing,
    )  # fmt: skip

"""PPO's value head: what it starts from, and where it stands.

the policy is an adapter, and the reward model was trained as one on the same base   an adapter of its own, started
                                                                                     from the reward model's
the policy is an adapter, and value.path is policy or there is no reward model       a new adapter, head of zeros
else                                                                                 a model of its own: the reward
                                                                                     model, or the policy's weights
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from preftune.config import ModelConfig, Recipe
from preftune.engine import Engine
from preftune.engine.values import ScalarHead, SeparateHead, SharedHead
from preftune.errors import ModelError
from preftune.models.classifier import reward_head_name
from preftune.models.given import read_adapter
from preftune.models.loading import Policy
from preftune.models.reward import load_reward, normalization_of
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
            weight_D = weight_D / _scale(recipe, path)
            return SharedHead(engine, role, weight_D, f"an adapter on the policy's base, started from {path}")
        given = {k: v for k, v in _args_of(recipe, path).items() if k in ("revision", "trust_remote_code")}
        config = _separate(recipe, path).model_copy(update=given)
        if read_adapter(config) is not None:
            config = config.model_copy(update={"on_adapter": "merge"})
        if lora is not None and policy.is_adapter:
            config = config.model_copy(update={"lora": lora})
        model = load_reward(config, seed=recipe.seed)
        if model.tokenizer.get_vocab().items() >= policy.tokenizer.get_vocab().items():  # a pad token may be added
            with torch.no_grad():
                for parameter in getattr(model.base, reward_head_name(model.base)).parameters():
                    parameter.div_(_scale(recipe, path))
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
    own = {"revision": recipe.model.revision, "on_adapter": recipe.model.on_adapter}
    model = load_reward(_separate(recipe, recipe.model.path).model_copy(update=own), seed=recipe.seed)
    head = SeparateHead(model, Engine(model, mode=recipe.model.attention, bf16=engine.bf16), NAME)
    head.lineage += why
    return head


def _args_of(recipe: Recipe, path: str) -> dict[str, Any]:
    """The args of the recipe's reward that is the model at this path; none where there is no such reward."""
    models = (r.args for r in recipe.rewards if r.name == "reward-model")
    return next((args for args in models if str(Path(args["path"]).expanduser()) == path), {})


def _scale(recipe: Recipe, path: str) -> float:
    """What the reward's scores are divided by where the reward model carries a normalisation and the recipe applies it:
    values are of the rewards that the policy gets. Their mean is left to the head to learn."""
    args = _args_of(recipe, path)
    if not args or args.get("normalize", "auto") is False:
        return 1.0
    from transformers import AutoConfig

    if read_adapter(ModelConfig(path=path)) is not None:  # such a one carries none
        return 1.0
    carried = normalization_of(AutoConfig.from_pretrained(path), path)
    return 1.0 if carried is None else carried[1]


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

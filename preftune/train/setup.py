"""What a run's parts are made of: models, reference, optimizer, memory, and the numbers that follow from the data."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import nn

from preftune.config import Recipe
from preftune.engine.values import ScalarHead
from preftune.errors import DataError, ModelError, UsageError
from preftune.methods import Method, objective
from preftune.models import Policy, load_policy
from preftune.models.given import read_adapter
from preftune.models.reward import load_reward
from preftune.records import Completion, Group
from preftune.train.generator import is_limited
from preftune.train.lengths import Lengths
from preftune.train.optim import make_optimizer
from preftune.train.rows import Splits, balanced_weight, label_balance

if TYPE_CHECKING:
    from preftune.train.gmpo import Gmpo


def seed_everything(seed: int, step: int) -> None:
    """Seed every generator that a step may draw from, so that a step depends on (seed, step) and on no history.
    The sampler draws from its own; torch's serves LoRA dropout, the others a user's reward."""
    mixed = seed * 1_000_003 + step
    random.seed(mixed)
    numpy.random.seed(mixed % 2**32)
    torch.manual_seed(mixed % 2**63)


def needs_visited_kl(recipe: Recipe) -> bool:
    """Whether GMPO's answers are not drawn from the policy as it is trained."""
    settings = recipe.gmpo
    return settings.beta > 0.0 and bool(settings.answers == "data" or settings.meta_prompt or settings.lessons)


def is_live(recipe: Recipe, method: Method) -> bool:
    """Whether the reference runs beside the policy, instead of once before training."""
    return method.samples or method.name == "gmpo" or method.own_words or recipe.train.reference_logprobs == "live"


def set_reference(policy: Policy, recipe: Recipe, *, live: bool) -> None:
    """Make sure that there is a reference: another model, or a frozen copy where the policy's own weights move."""
    path = recipe.model.reference_path
    if path is None:
        if live:
            policy.keep_reference()
        return
    given = recipe.model.model_copy(
        update={"path": path, "revision": None, "lora": None, "on_adapter": None, "reference": None,
                "reference_path": None, "gradient_checkpointing": False}
    )  # fmt: skip
    if read_adapter(given) is not None:
        given = given.model_copy(update={"on_adapter": "merge"})
    other = load_policy(given, seed=recipe.seed)
    if other.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise ModelError(
            f"model.reference_path {path} has another tokenizer than {recipe.model.path}: their log-probs speak of "
            "different tokens; give a model of the same family"
        )
    policy.frozen = other.model.requires_grad_(False).eval()
    policy.lineage += f"; the reference is {path}"


def learners_of(
    recipe: Recipe, policy: Policy, head: ScalarHead | None, gmpo: Gmpo | None
) -> tuple[list[tuple[str, nn.Parameter]], torch.optim.AdamW]:
    """Everything that one optimizer trains: the policy, then a value head or critic at learning rates of their own."""
    parameters = policy.trainable()
    roles: list[tuple[list[tuple[str, nn.Parameter]], float | None]] = []
    if head is not None:
        roles.append((head.parameters(), recipe.value.learning_rate))
    if gmpo is not None:
        roles.append((gmpo.parameters(), recipe.gmpo.critic.learning_rate))
    optimizer = make_optimizer(parameters, recipe.train, roles)
    return [*parameters, *(one for some, _ in roles for one in some)], optimizer


def first_memory(recipe: Recipe, method: Method, gmpo: Gmpo | None) -> dict[str, Any]:
    memory: dict[str, Any] = {}
    if method.tempered and recipe.policy.kl_target is not None:
        memory["beta"] = objective(recipe.policy).beta
    if gmpo is not None:
        memory["gmpo"] = gmpo.memory()
    return memory


def scored_only(group: Group) -> tuple[Completion, ...]:
    return tuple(c for c in group.completions if c.score is not None)


def shared_base_of(recipe: Recipe) -> str | None:
    """The bare base that the policy's adapter will stand on, where it stands on one."""
    model = recipe.model
    if model.on_adapter not in (None, "continue", "fresh") or (model.lora is None and model.on_adapter != "continue"):
        return None
    given = read_adapter(model)
    return model.path if given is None else given.base


def load_model(recipe: Recipe, method: Method) -> Policy:
    if method.reads == "scores":
        return load_reward(recipe.model, seed=recipe.seed)
    return load_policy(recipe.model, seed=recipe.seed, needs_reference=method.needs_reference(recipe))


def balanced(recipe: Recipe, groups: Sequence[Group], notes: list[str]) -> tuple[Recipe, float]:
    """The recipe with λ_D as a number, and λ_D·n_D / (λ_U·n_U). The notes get it in words."""
    good, bad = label_balance(groups, recipe.loss.label_threshold)
    loss = recipe.loss
    if not good:
        raise DataError(
            f"no training completion is desirable: none of {bad} scores reaches loss.label_threshold "
            f"{loss.label_threshold:g}. Ranks have no grade of their own (method dpo takes them); for grades lower it"
        )
    if not bad:
        notes.append("every training completion is desirable: nothing says what to avoid; sft does the same for less")
    weight = loss.desirable_weight
    if weight == "auto":
        weight = balanced_weight(good, bad, loss.undesirable_weight)
    notes.append(
        f"{good} desirable and {bad} undesirable completions; λ_D {weight:.3g}, λ_U {loss.undesirable_weight:.3g}"
    )
    balance = weight * good / (loss.undesirable_weight * bad) if bad else math.inf
    return recipe.model_copy(update={"loss": loss.model_copy(update={"desirable_weight": weight})}), balance


SMALL_PACK, LARGE_PACK = 2048, 8192
"""A CPU is as fast with small packs, whose activations stay near its caches; a GPU wants large ones."""


def token_budget(recipe: Recipe, method: Method, device: torch.device, splits: Splits) -> int:
    """Tokens of one packed forward pass: the recipe's number, or one that holds the largest group without waste."""
    if recipe.train.max_tokens_per_batch is not None:
        return recipe.train.max_tokens_per_batch
    lengths = sum((Lengths.of(groups) for groups in splits.values()), Lengths())
    if method.completions == "policy":
        lengths = lengths.with_answers(recipe.sampling.group_size, recipe.sampling.max_tokens)
    # What must share a pack: a pair or a completion alone, or all answers where a generator's limit holds.
    unit = lengths.largest_pair if method.compares == "pairs" else lengths.largest_single
    if method.reads == "scores" and is_limited(recipe):
        unit = lengths.largest
    # With long prompts a method that contrasts saves a pass where its whole batch fits one pack.
    joint = method.contrast is not None and 2 * lengths.completions < lengths.repeated_prompts
    if method.contrast is not None:
        unit = lengths.longest_prompt + lengths.longest_completion  # a prompt may meet any other's completion
    floor = LARGE_PACK if device.type == "cuda" or joint else SMALL_PACK
    return max(floor, min(lengths.largest, LARGE_PACK), unit)


def uses_bf16(recipe: Recipe, policy: Policy) -> bool:
    if recipe.train.precision == "auto":
        return policy.device.type == "cuda"
    return recipe.train.precision == "bf16"


def step_count(recipe: Recipe, rows: int) -> int:
    if recipe.train.steps is not None:
        return recipe.train.steps
    if recipe.train.epochs is None:
        raise UsageError("how long to train is missing: give train.steps or train.epochs")
    return max(1, math.ceil(recipe.train.epochs * rows / recipe.train.batch_size))

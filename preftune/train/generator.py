"""Which tokens of fixed answers their generator was nearly sure to write: a reward model's `loss.p_max`.

The probabilities are those of a language model given the prompt and the tokens before, computed once, before training,
and kept on disk like a reference's. Its weights are gone again when training begins.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from preftune.config import ModelConfig, Recipe
from preftune.engine import Engine
from preftune.errors import DataError, ModelError, PreftuneError
from preftune.models import Policy, load_policy
from preftune.models.given import read_adapter
from preftune.records import Completion, Group
from preftune.train.reference import ReferenceStore, Tick, build_store, default_folder


def is_limited(recipe: Recipe) -> bool:
    """Whether gradients on near-certain tokens are limited. No probability is above 1, so p_max 1 limits nothing."""
    return recipe.loss.p_max is not None and recipe.loss.p_max < 1.0


class NearCertain:
    """The near-certain tokens of everything that is trained on.

    Attributes:
        note: what was found, for the run's notes.
    """

    def __init__(self, store: ReferenceStore, p_max: float, note: str) -> None:
        self._store, self._floor, self.note = store, math.log(p_max), note

    def of(self, groups: Sequence[Group]) -> list[list[Tensor]]:
        """[group][completion] → truth value of each id.

        A token that the policy did not write is never one, and neither is a completion's last: the score is read
        there, so all that is learnt from the completion goes through its state.

        Raises:
            PreftuneError: a completion whose probabilities were not computed.
        """
        known = self._store.of(groups)
        if known is None:
            where = groups[0].prompt.where if groups else ""
            raise PreftuneError(f"{where}: the generator's probabilities of this row were not computed before training")
        return [
            [_flags(completion, values, self._floor) for completion, values in zip(group.completions, row, strict=True)]
            for group, row in zip(groups, known, strict=True)
        ]


def _flags(completion: Completion, logprobs: Tensor, floor: float) -> Tensor:
    flags = torch.zeros(len(completion.ids), dtype=torch.bool)
    written = torch.tensor(completion.mask, dtype=torch.bool)
    flags[written] = logprobs > floor
    flags[-1:] = False
    return flags


def find_near_certain(
    recipe: Recipe, policy: Policy, engine: Engine, groups: Iterable[Group], max_tokens: int, tick: Tick | None = None
) -> NearCertain:
    """Score everything that will be trained on with the recipe's generator.

    Args:
        policy, engine: the reward model's; the generator must have its tokens.
        groups: all that `NearCertain.of` will be asked for.

    Raises:
        ModelError: there is no such language model, or it has another tokenizer.
    """
    p_max = recipe.loss.p_max
    assert p_max is not None
    config = generator_config(recipe.model, recipe.loss.generator)
    if config.dtype == "auto" and policy.device.type == "cuda":
        config = config.model_copy(update={"dtype": "bfloat16"})  # it is never trained
    try:
        generator = load_policy(config, seed=recipe.seed)
    except ModelError as error:
        hint = "" if recipe.loss.generator else "; name the language model that wrote the answers with loss.generator"
        raise ModelError(
            f"loss.p_max needs a language model that says how likely each token was: {error}{hint}"
        ) from error
    if not generator.tokenizer.get_vocab().items() <= policy.tokenizer.get_vocab().items():
        raise ModelError(
            f"loss.generator {config.path} has another tokenizer than {recipe.model.path}: its probabilities are of "
            "other tokens; give a model of the same family"
        )
    generator.model.requires_grad_(False)
    all_groups = list(groups)
    folder = recipe.train.reference_cache
    store, said = build_store(
        Engine(generator, mode=recipe.model.attention, bf16=engine.bf16),
        all_groups,
        Path(folder).expanduser() if folder else default_folder(),
        max_tokens,
        tick,
    )
    found = NearCertain(store, p_max, "")
    flags = [one for row in found.of(all_groups) for one in row]
    tokens = sum(sum(c.mask[:-1]) for group in all_groups for c in group.completions)
    share = sum(int(one.sum()) for one in flags) / max(tokens, 1)
    said = said.replace("the reference's", f"the generator's ({config.path})")
    found.note = f"{said}. {100 * share:.1f} % of the answers' tokens are near-certain: over {p_max:g}"
    return found


def generator_config(model: ModelConfig, path: str | None) -> ModelConfig:
    """How the generator is loaded: the model at `path`, or the language model that the reward model starts from. An
    adapter is merged, but for one that training leaves out."""
    plain = ModelConfig(
        path=path or model.path, dtype=model.dtype, device=model.device, attention=model.attention,
        trust_remote_code=model.trust_remote_code, revision=None if path else model.revision,
    )  # fmt: skip
    given = read_adapter(plain)
    if given is None:
        return plain
    if path is None and model.on_adapter == "fresh":
        return plain.model_copy(update={"path": given.base, "revision": given.base_revision})
    return plain.model_copy(update={"on_adapter": "merge"})


def check_whole_groups(groups: Iterable[Group], used: Iterable[Sequence[int]], max_tokens: int) -> None:
    """A token's gradient is limited as a whole, so all answers to a prompt that are compared must share a forward pass.

    Args:
        used: for each group, the places of the completions that are in a pair.

    Raises:
        DataError: a group is larger than that.
    """
    for group, places in zip(groups, used, strict=True):
        size = len(group.prompt.ids) + sum(len(group.completions[place].ids) for place in places)
        if len(places) > 2 and size > max_tokens:
            raise DataError(
                f"{group.prompt.where}: prompt and {len(places)} compared answers have {size} tokens, more than "
                f"train.max_tokens_per_batch {max_tokens}, and loss.p_max needs them together. Raise it to {size}, or "
                "set loss.pairs: best-worst"
            )

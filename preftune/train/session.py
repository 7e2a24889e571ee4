"""Everything a run holds while it trains, set up in one place."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from preftune.config import Recipe, SamplingConfig, SourceConfig
from preftune.data import as_prompts, load_examples
from preftune.engine import Engine
from preftune.errors import DataError, UsageError
from preftune.methods import Method, get_method, objective
from preftune.models import Policy, load_policy
from preftune.records import Example, Group, Prompt, TokenCounts
from preftune.rewards import RewardSet, build_rewards
from preftune.sampling.base import Progress as SamplingProgress
from preftune.sampling.base import Rollout, distribution_of
from preftune.sampling.local import LocalSampler
from preftune.sampling.rollouts import find_rollout
from preftune.tokens import TokenContract
from preftune.train.batch import LogProbs
from preftune.train.optim import make_optimizer
from preftune.train.progress import Progress


@dataclass
class Session:
    """A run's parts. `Session.open` builds it; `close` ends worker processes.

    Attributes:
        train: training groups (prompt alone for on-policy methods), one epoch.
        validation, test: held-out groups.
        counts: what the token contract did, by split.
        steps: optimizer steps of the whole run.
        notes: sentences for the report: fallbacks, warnings.
    """

    recipe: Recipe
    method: Method
    policy: Policy
    engine: Engine
    contract: TokenContract
    rewards: RewardSet
    optimizer: torch.optim.AdamW
    parameters: list[tuple[str, nn.Parameter]]
    train: list[Group]
    validation: list[Group]
    test: list[Group]
    counts: dict[str, TokenCounts]
    data_facts: dict[str, Any]
    steps: int
    progress: Progress
    notes: list[str] = field(default_factory=list)
    sampler: LocalSampler = field(init=False)
    multi_turn: Rollout | None = None

    def __post_init__(self) -> None:
        self.sampler = LocalSampler(self.engine, self.contract)

    @classmethod
    def open(
        cls, recipe: Recipe, *, functions: Sequence[Callable[..., Any]], base_dir: Path | None, progress: Progress
    ) -> Session:
        """Load model, data and rewards.

        Raises:
            PreftuneError: anything a user can mend, named with file, field and remedy.
        """
        if recipe.train.threads is not None:
            torch.set_num_threads(recipe.train.threads)
        method = get_method(recipe.method)
        if method.scored and not recipe.rewards and not functions:
            raise UsageError(
                f"method {method.name} needs at least one reward: give rewards: in the recipe, or rewards=[…]"
            )
        objective(recipe.policy)  # a wrong preset is an error before anything loads
        with ExitStack() as opened:
            # Rewards first: a misspelt one must not cost a model's loading time.
            rewards = opened.enter_context(build_rewards(recipe.rewards, functions, base_dir or Path.cwd()))
            loaded = {name: _read(sources, recipe, base_dir) for name, sources in _splits(recipe).items()}
            policy = load_policy(recipe.model, seed=recipe.seed)
            contract = TokenContract(policy.tokenizer, recipe.tokens, policy.generation_eos)
            if recipe.tokens.chat_template is not None:
                # The saved model must render as it was trained.
                policy.tokenizer.chat_template = contract.template_text
            splits, counts = _tokenise(loaded, recipe, method, contract, policy)
            _check_vocabulary(policy, splits)
            if method.needs_reference(recipe):
                policy.keep_reference()
            bf16 = _bf16(recipe, policy)
            engine = Engine(policy, mode=recipe.model.attention, bf16=bf16)
            facts = {
                name: {"content_hash": value[1], "origins": value[2], "skipped": value[3]}
                for name, value in loaded.items()
            }
            parameters = policy.trainable()
            session = cls(
                recipe, method, policy, engine, contract, rewards, make_optimizer(parameters, recipe.train), parameters,
                splits["train"], splits["validation"], splits["test"], counts, facts, _steps(recipe, len(splits["train"])),
                progress, multi_turn=find_rollout(recipe.sampling, contract, base_dir),
            )  # fmt: skip
            session._note()
            opened.pop_all()
            return session

    def close(self) -> None:
        """End worker processes."""
        self.rewards.close()

    # --- facts ------------------------------------------------------------------------------------------------

    @property
    def temperature(self) -> float:
        """The temperature that the trainer's logits are divided by."""
        return self.recipe.sampling.temperature if self.method.completions == "policy" else 1.0

    @property
    def fp32_weights(self) -> bool:
        return next(self.policy.base.parameters()).dtype == torch.float32

    @property
    def precision(self) -> str:
        return "bf16" if self.engine.bf16 else "fp32" if self.fp32_weights else "bf16 weights"

    @property
    def samples_for_eval(self) -> bool:
        """Whether measuring draws answers: rewards say how good they are."""
        return bool(self.rewards.names)

    def _note(self) -> None:
        if self.engine.mode == "padded":
            self.notes.append(self.engine.reason)
        drawn = distribution_of(self.recipe.sampling)
        if self.method.completions == "policy" and not drawn.is_plain:
            self.notes.append(
                "training samples are drawn from another distribution than the trainer scores (top_k, top_p, min_p or "
                "repetition_penalty is set): importance ratios are biased; leave them at their defaults when training"
            )
        if self.rewards.names:
            self.notes.extend(f"reward {line}" for line in self.rewards.describe())

    # --- what a step needs ------------------------------------------------------------------------------------

    def batch_of(self, step: int) -> list[Group]:
        """The groups of step 1 …: epochs shuffled by (seed, epoch), so any step's rows are known without history."""
        size, rows = self.recipe.train.batch_size, len(self.train)
        out: list[Group] = []
        for k in range((step - 1) * size, step * size):
            epoch, place = divmod(k, rows)
            out.append(self.train[self._order(epoch)[place]])
        return out

    def _order(self, epoch: int) -> list[int]:
        cached = getattr(self, "_orders", None)
        if cached is None or cached[0] != epoch:
            order = list(range(len(self.train)))
            random.Random(f"{self.recipe.seed}/{epoch}").shuffle(order)
            cached = (epoch, order)
            self._orders = cached
        return cached[1]

    def rollout(
        self, prompts: Sequence[Prompt], n: int, settings: SamplingConfig, *, seed: int, policy_version: int,
        temperature: float | None = None, progress: SamplingProgress | None = None,
    ) -> list[Group]:  # fmt: skip
        """Draw completions by the recipe's rollout; the plain sampler is the default one."""
        if self.multi_turn is None:
            return self.sampler.sample(
                prompts,
                n,
                settings,
                seed=seed,
                policy_version=policy_version,
                temperature=temperature,
                progress=progress,
            )
        return self.multi_turn(
            self.sampler, prompts, n, settings, seed=seed, policy_version=policy_version, temperature=temperature
        )

    def reference_of(self, groups: Sequence[Group]) -> LogProbs | None:
        """The reference's log-probs, where the method compares with it."""
        if not self.method.needs_reference(self.recipe):
            return None
        return self.engine.score(
            groups, self.recipe.train.max_tokens_per_batch, temperature=self.temperature, reference=True
        )


_Rows = tuple[list[Example], str, list[str], int]


def _splits(recipe: Recipe) -> dict[str, list[SourceConfig]]:
    return {"train": recipe.data, "validation": recipe.eval.data, "test": recipe.eval.test}


def _read(sources: Sequence[SourceConfig], recipe: Recipe, base_dir: Path | None) -> _Rows:
    if not sources:
        return [], "", [], 0
    loaded = load_examples(sources, seed=recipe.seed, base_dir=base_dir)
    return list(loaded.examples), loaded.content_hash, list(loaded.origins), loaded.skipped


def _tokenise(
    loaded: dict[str, _Rows], recipe: Recipe, method: Method, contract: TokenContract, policy: Policy
) -> tuple[dict[str, list[Group]], dict[str, TokenCounts]]:
    examples = {name: rows[0] for name, rows in loaded.items()}
    if recipe.eval.holdout and not examples["validation"]:
        rows = examples["train"]
        if recipe.eval.holdout >= len(rows):
            raise DataError(f"eval.holdout {recipe.eval.holdout} leaves no training row: the data has {len(rows)}")
        order = list(range(len(rows)))
        random.Random(f"{recipe.seed}/holdout").shuffle(order)
        held = set(order[: recipe.eval.holdout])
        examples["validation"] = [rows[i] for i in sorted(held)]
        examples["train"] = [row for i, row in enumerate(rows) if i not in held]
    splits: dict[str, list[Group]] = {}
    counts: dict[str, TokenCounts] = {}
    for name, rows in examples.items():
        if name != "train" and recipe.eval.limit is not None:
            rows = rows[: recipe.eval.limit]
        if not rows:
            splits[name] = []
            continue
        from_data = method.completions == "data"
        splits[name], counts[name] = contract.prepare(
            rows if from_data else as_prompts(rows), with_completions=from_data,
            context_length=policy.context_length, max_new_tokens=recipe.sampling.max_tokens,
        )  # fmt: skip
    return splits, counts


def _check_vocabulary(policy: Policy, splits: dict[str, list[Group]]) -> None:
    """A tokenizer that knows more ids than the model has rows would fail inside the embedding, without a name."""
    rows = policy.base.get_input_embeddings().weight.shape[0]
    for groups in splits.values():
        for group in groups:
            highest = max(
                (max(ids, default=0) for ids in (group.prompt.ids, *(c.ids for c in group.completions))), default=0
            )
            if highest >= rows:
                raise DataError(
                    f"{group.prompt.where}: token id {highest} is outside the model's {rows} embeddings; "
                    "the tokenizer does not belong to this model"
                )


def _bf16(recipe: Recipe, policy: Policy) -> bool:
    if recipe.train.precision == "auto":
        return policy.device.type == "cuda"
    return recipe.train.precision == "bf16"


def _steps(recipe: Recipe, rows: int) -> int:
    if recipe.train.steps is not None:
        return recipe.train.steps
    if recipe.train.epochs is None:
        raise UsageError("how long to train is missing: give train.steps or train.epochs")
    return max(1, math.ceil(recipe.train.epochs * rows / recipe.train.batch_size))

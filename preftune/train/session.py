"""Everything a run holds while it trains, set up in one place."""

from __future__ import annotations

import hashlib
import math
import random
from array import array
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from preftune.config import Recipe, SamplingConfig, SourceConfig, TokensConfig
from preftune.data import as_prompts, load_examples
from preftune.engine import Engine
from preftune.errors import DataError, UsageError
from preftune.methods import Method, get_method, objective
from preftune.models import Policy, load_policy
from preftune.records import Content, Example, Group, Prompt, TokenCounts
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
            contract = TokenContract(policy.tokenizer, _with_template(recipe.tokens, base_dir), policy.generation_eos)
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
                splits["train"], splits["validation"], splits["test"], counts, facts,
                _steps(recipe, len(splits["train"])), progress,
                multi_turn=find_rollout(recipe.sampling, contract, base_dir),
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
        weights: Tensor = next(self.policy.base.parameters())
        return weights.dtype == torch.float32

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

    def facts(self) -> dict[str, Any]:
        """What the manifest says of this session."""
        return {
            "data": self.data_facts, "engine": {"mode": self.engine.mode, "reason": self.engine.reason},
            "counts": {k: str(v) for k, v in self.counts.items()}, "lineage": self.policy.lineage,
            "precision": self.precision, "steps": self.steps, "rewards": list(self.rewards.names),
            "trained_parameters": sum(p.numel() for _, p in self.parameters), "notes": self.notes,
        }  # fmt: skip

    def fingerprints(self) -> dict[str, str]:
        """What a resumed run must find as it was, in words → hash."""
        out = {f"the {name} data": str(facts["content_hash"]) for name, facts in self.data_facts.items()}
        digest = hashlib.sha256()
        for groups in (self.train, self.validation, self.test):
            for group in groups:
                for ids in (group.prompt.ids, *(c.ids for c in group.completions)):
                    digest.update(array("q", (len(ids), *ids)).tobytes())
        return {**out, "the tokenizer or chat template": digest.hexdigest()}

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


def seed_everything(seed: int, step: int) -> None:
    """Seed every generator that a step may draw from, so that a step depends on (seed, step) and on no history.
    The sampler draws from its own; torch's serves LoRA dropout, the others a user's reward."""
    mixed = seed * 1_000_003 + step
    random.seed(mixed)
    numpy.random.seed(mixed % 2**32)
    torch.manual_seed(mixed % 2**63)


_Rows = tuple[list[Example], str, list[str], int]


def _splits(recipe: Recipe) -> dict[str, list[SourceConfig]]:
    return {"train": recipe.data, "validation": recipe.eval.data, "test": recipe.eval.test}


def _content(row: Example) -> tuple[Content, tuple[Content, ...]]:
    return row.prompt, row.completions


def _with_template(config: TokensConfig, base_dir: Path | None) -> TokensConfig:
    """A relative .jinja file is looked up beside the recipe first, as data files are."""
    name = config.chat_template
    if base_dir is None or name is None or not name.endswith(".jinja") or not (base_dir / name).is_file():
        return config
    return config.model_copy(update={"chat_template": str(base_dir / name)})


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
        # A row that its source's weight repeats, or that stands in the data twice, is one row: never on both sides.
        rows = list({_content(row): row for row in reversed(examples["train"])}.values())[::-1]
        if recipe.eval.holdout >= len(rows):
            raise DataError(
                f"eval.holdout {recipe.eval.holdout} leaves no training row: the data has {len(rows)} different ones"
            )
        order = list(range(len(rows)))
        random.Random(f"{recipe.seed}/holdout").shuffle(order)
        held = {_content(rows[i]) for i in order[: recipe.eval.holdout]}
        examples["validation"] = [row for row in rows if _content(row) in held]
        examples["train"] = [row for row in examples["train"] if _content(row) not in held]
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

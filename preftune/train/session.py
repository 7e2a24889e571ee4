"""Everything a run holds while it trains, set up in one place."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from preftune.config import Recipe, SamplingConfig
from preftune.engine import Engine
from preftune.engine.allocator import keep_freed_memory
from preftune.engine.even import keep_fewer_kernels
from preftune.engine.values import ScalarHead, token_values
from preftune.errors import DataError, PreftuneError, UsageError
from preftune.formulas import kl_of_completions
from preftune.methods import Evidence, Method, method_of, needs_rewards, objective, preference
from preftune.models import Policy
from preftune.models.reward import RewardModel
from preftune.records import Group, Prompt, TokenCounts
from preftune.rewards import RewardSet, build_rewards
from preftune.sampling.base import Progress as SamplingProgress
from preftune.sampling.base import Rollout, distribution_of
from preftune.sampling.local import LocalSampler
from preftune.sampling.rollouts import find_rollout
from preftune.tasks.benchmark import Benchmark
from preftune.tokens import TokenContract
from preftune.train.batch import Batch, LogProbs, kept_logprobs, make_batch
from preftune.train.benchmarks import facts_of, open_benchmarks, read_benchmarks
from preftune.train.certificate import sample_of
from preftune.train.generator import NearCertain, check_whole_groups, find_near_certain, is_limited
from preftune.train.head import make_value_head
from preftune.train.lengths import Lengths
from preftune.train.prepared import RowsOf, tokens_digest
from preftune.train.progress import Progress
from preftune.train.reference import ReferenceStore, build_store, default_folder, live_reference
from preftune.train.rows import check_vocabulary, construct_of, with_template
from preftune.train.scores import less_penalties, with_notes
from preftune.train.setup import (
    balanced,
    first_memory,
    is_live,
    learners_of,
    load_model,
    needs_visited_kl,
    scored_only,
    set_reference,
    shared_base_of,
    step_count,
    token_budget,
    uses_bf16,
)

if TYPE_CHECKING:
    from preftune.train.gmpo import Gmpo


@dataclass
class Session:
    """A run's parts. `Session.open` builds it; `close` ends worker processes.

    Attributes:
        train: training groups (prompt alone for on-policy methods), one epoch.
        validation, test: held-out groups.
        benchmarks: further tasks that are measured before and after training, by name.
        counts: what the token contract did, by split.
        steps: optimizer steps of the whole run.
        budget: tokens of one packed forward pass.
        notes: sentences for the report: fallbacks, warnings.
        fresh: the weights are those that were loaded; with full fine-tuning the policy is its own reference till then.
        references: the reference's log-probs of the fixed data, once `prepare_reference` has run.
        certain: the tokens on which a reward model's gradient is limited (loss.p_max), likewise.
        data_metrics: facts of the training data that are logged at every step, for the advice.
        head: the value head, where advantages come from GAE.
        gmpo: GMPO's critic and what it remembers, for that method alone.
        memory: what later steps know of earlier ones besides weights (an adapted β, recent scores, lessons). JSON; the
            loop replaces it when an update is made, so that it always belongs to the weights beside it.
    """

    recipe: Recipe
    method: Method
    policy: Policy
    engine: Engine
    contract: TokenContract
    rewards: RewardSet
    optimizer: torch.optim.AdamW
    parameters: list[tuple[str, nn.Parameter]]
    train: Sequence[Group]
    validation: Sequence[Group]
    test: Sequence[Group]
    counts: dict[str, TokenCounts]
    data_facts: dict[str, Any]
    steps: int
    progress: Progress
    budget: int
    notes: list[str] = field(default_factory=list)
    sampler: LocalSampler = field(init=False)
    multi_turn: Rollout | None = None
    fresh: bool = True
    references: ReferenceStore | None = None
    certain: NearCertain | None = None
    _orders: tuple[int, list[int]] | None = None
    data_metrics: dict[str, float] = field(default_factory=dict)
    head: ScalarHead | None = None
    gmpo: Gmpo | None = None
    memory: dict[str, Any] = field(default_factory=dict)
    benchmarks: dict[str, Benchmark] = field(default_factory=dict)

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
        method = method_of(recipe)
        if needs_rewards(recipe) and not recipe.rewards and not functions:
            raise UsageError(
                f"method {method.name} needs at least one reward: give rewards: in the recipe, or rewards=[…]"
            )
        objective(recipe.policy)  # a wrong preset or loss is an error before anything loads
        if method.compares is not None:
            preference(recipe)
        with ExitStack() as opened:
            # Rewards first: a misspelt one must not cost a model's loading time.
            # A reward model writes nothing to score; rewards it inherits are another stage's.
            wanted = [] if method.reads == "scores" else recipe.rewards
            shared_base = shared_base_of(recipe)
            rewards = opened.enter_context(
                build_rewards(
                    wanted, functions, base_dir or Path.cwd(), shared_base=shared_base, construct=construct_of(recipe)
                )
            )
            rows, tasks = RowsOf(recipe, method, base_dir), read_benchmarks(recipe, method, base_dir)
            policy = load_model(recipe, method)
            contract = TokenContract(policy.tokenizer, with_template(recipe.tokens, base_dir), policy.generation_eos)
            rewards.know_tokens(contract.token_ends)
            if recipe.tokens.chat_template is not None:
                # The saved model must render as it was trained.
                policy.tokenizer.chat_template = contract.template_text
            prepared = rows.prepare(contract, policy)
            splits, notes = prepared.splits, prepared.notes
            check_vocabulary(policy, splits)
            benchmarks = open_benchmarks(tasks, recipe, contract, policy)
            notes += [f"{name}: {note}" for name, one in benchmarks.items() for note in one.notes]
            data_metrics: dict[str, float] = {}
            if method.compares == "labels":
                recipe, data_metrics["kto/balance"] = balanced(recipe, splits["train"], notes)
            if method.needs_reference(recipe):
                set_reference(policy, recipe, live=is_live(recipe, method))
            bf16 = uses_bf16(recipe, policy)
            if policy.device.type == "cpu":
                keep_freed_memory()
                keep_fewer_kernels(half=bf16)
            engine = Engine(policy, mode=recipe.model.attention, bf16=bf16)
            facts = prepared.facts | facts_of([*benchmarks.values()])
            notes += rewards.share(engine)
            head = make_value_head(recipe, engine) if method.needs_values(recipe) else None
            gmpo = None
            if method.name == "gmpo":
                from preftune.train.gmpo import Gmpo

                gmpo = Gmpo.open(
                    recipe, policy=policy, engine=engine, contract=contract, base_dir=base_dir,
                    budget=token_budget(recipe, method, policy.device, splits), train=splits["train"],
                )  # fmt: skip
            parameters, optimizer = learners_of(recipe, policy, head, gmpo)
            session = cls(
                recipe, method, policy, engine, contract, rewards, optimizer, parameters, splits["train"],
                splits["validation"], splits["test"], prepared.counts, facts,
                step_count(recipe, len(splits["train"])), progress,
                token_budget(recipe, method, policy.device, splits), notes=notes, data_metrics=data_metrics,
                multi_turn=find_rollout(recipe.sampling, contract, base_dir), head=head, gmpo=gmpo,
                memory=first_memory(recipe, method, gmpo), benchmarks=benchmarks,
            )  # fmt: skip
            session._note()
            opened.pop_all()
            return session

    def before_saving(self) -> None:
        """What the saved model carries besides weights: a reward model's scale, where the recipe asks for it."""
        if not self.recipe.train.normalize or not isinstance(self.policy, RewardModel):
            return
        rated = self.engine.rate(self.train, self.budget)
        scores = [score for row in rated for score in row]
        mean, spread = fmean(scores), pstdev(scores)
        if not spread > 0.0:
            self.notes.append("train.normalize: all training scores are equal, so no scale was recorded")
            return
        self.policy.set_normalization(mean, spread)
        self.notes.append(f"normalised to the training scores: mean {mean:.4g}, standard deviation {spread:.4g}")

    def close(self) -> None:
        """End worker processes."""
        self.rewards.close()
        if self.gmpo is not None:
            self.gmpo.close()

    # --- facts ------------------------------------------------------------------------------------------------

    @property
    def temperature(self) -> float:
        """The temperature that the trainer's logits are divided by."""
        return self.recipe.sampling.temperature if self.method.tempered else 1.0

    @property
    def limited(self) -> bool:
        """Whether a reward model's gradient on near-certain tokens is limited."""
        return self.method.reads == "scores" and is_limited(self.recipe)

    @property
    def updates(self) -> int:
        """Optimizer updates that one step makes."""
        return self.recipe.train.updates_per_batch * self.recipe.train.minibatches

    @property
    def visited_kl(self) -> bool:
        """GMPO on answers that the trained policy did not draw as it is trained: its KL is over the vocabulary."""
        return self.gmpo is not None and needs_visited_kl(self.recipe)

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
        room = self.policy.context_length
        if self.method.contrast is not None and room is not None:
            lengths = Lengths.of(self.train)
            if lengths.longest_prompt + lengths.longest_completion > room:
                self.notes.append(f"mismatched completions over the model's {room} positions are left out of z")
        if self.engine.mode == "padded":
            self.notes.append(self.engine.reason)
        drawn = distribution_of(self.recipe.sampling)
        if self.gmpo is not None:
            self.notes.extend(self.gmpo.notes)
        if self.head is not None:
            self.notes.append(f"value head: {self.head.lineage}")
        if self.method.tempered and not drawn.is_plain:
            self.notes.append(
                "training samples are drawn from another distribution than the trainer scores (top_k, top_p, min_p or "
                "repetition_penalty is set): policy.sampler_cap corrects for that only within what was drawn; leave "
                "them at their defaults when training"
            )
        if self.rewards.names:
            self.notes.extend(f"reward {line}" for line in self.rewards.describe())

    def facts(self) -> dict[str, Any]:
        """What the manifest says of this session."""
        return {
            "data": self.data_facts, "engine": {
                "mode": self.engine.mode, "reason": self.engine.reason, "fused_norms": self.engine.fused.norms,
                "fused_gated": self.engine.fused.gated, "half_norms": self.engine.fused.half_norms,
                "last_layer_where_read": self.engine.last.taken, "products": self.engine.products.by,
            },
            "counts": {k: str(v) for k, v in self.counts.items()}, "lineage": self.policy.lineage,
            "precision": self.precision, "steps": self.steps, "max_tokens_per_batch": self.budget,
            "rewards": list(self.rewards.names),
            "trained_parameters": sum(p.numel() for _, p in self.parameters), "notes": self.notes,
        }  # fmt: skip

    def fingerprints(self) -> dict[str, str]:
        """What a resumed run must find as it was, in words → hash."""
        out = {f"the {name} data": str(facts["content_hash"]) for name, facts in self.data_facts.items()}
        return {**out, "the tokenizer or chat template": tokens_digest((self.train, self.validation, self.test))}

    # --- what a step needs ------------------------------------------------------------------------------------

    def batch_of(self, step: int) -> list[Group]:
        """The groups of step 1 …: epochs shuffled by (seed, epoch), so any step's rows are known without history."""
        size, rows = self.recipe.train.batch_size, len(self.train)
        out: list[Group] = []
        for k in range((step - 1) * size, step * size):
            epoch, place = divmod(k, rows)
            out.append(self.train[self._order(epoch)[place]])
        return out

    def further_prompts(self, step: int, attempt: int, count: int, used: set[tuple[int, ...]]) -> list[Group]:
        """Training prompts to draw from besides the step's own, none of `used`; known from (seed, step, attempt)."""
        order = list(range(len(self.train)))
        random.Random(f"{self.recipe.seed}/{step}/{attempt}/more").shuffle(order)
        found: dict[tuple[int, ...], Group] = {}
        for place in order:
            group = self.train[place]
            if group.prompt.ids not in used:
                found.setdefault(group.prompt.ids, group)
            if len(found) == count:
                break
        return list(found.values())

    @property
    def learners(self) -> dict[str, list[nn.Parameter]]:
        """What is clipped together: the policy, and beside it a value head or a critic."""
        out: dict[str, list[nn.Parameter]] = {"policy": [p for _, p in self.policy.trainable()]}
        if self.head is not None:
            out["value"] = [p for _, p in self.head.parameters()]
        if self.gmpo is not None and self.gmpo.parameters():
            out["critic"] = [p for _, p in self.gmpo.parameters()]
        return out

    def _order(self, epoch: int) -> list[int]:
        cached = self._orders
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

    def score(
        self, groups: Sequence[Group], *, step: int, memory: Mapping[str, Any] | None = None
    ) -> tuple[list[Group], dict[str, float], dict[str, Any]]:
        """Rewards of completions, what the objective takes off them, and GMPO's critic.

        Returns:
            The groups with scores (completions without one are left out), metrics, and the memory after this batch.

        Raises:
            PreftuneError: no completion has a score.
        """
        memory = dict(self.memory if memory is None else memory)
        metrics: dict[str, float] = {}
        kept = list(groups)
        if self.rewards.names:
            scored = self.rewards.score(groups, step, self.steps)
            count = sum(len(g.completions) for g in groups)
            metrics = scored.metrics | {"reward/skipped": scored.skipped / max(count, 1)}
            kept = list(with_notes(scored.groups, scored.extras))
            if self.gmpo is None or not self.gmpo.critical:
                kept = [Group(g.prompt, some) for g in kept if (some := scored_only(g))]
                kept, taken = less_penalties(kept, self.recipe)
                metrics |= taken
        if self.gmpo is not None:
            kept, told, memory["gmpo"] = self.gmpo.score(kept, step, memory["gmpo"])
            metrics |= told
        if not kept:
            raise PreftuneError(
                f"step {step + 1}: no completion of the batch has a score: every reward failed or was skipped"
            )
        return kept, metrics, memory

    def retrain_on(self, groups: Sequence[Group]) -> None:
        """Train on these groups instead of the prompts that were loaded."""
        self.train = list(groups)
        self._orders = None
        self.steps = step_count(self.recipe, len(self.train))
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        self.budget = token_budget(self.recipe, self.method, self.policy.device, splits)

    def prepare_reference(self) -> None:
        """On a fixed data set: get the reference's log-probs of everything that the run will ask for, and what the
        generator was sure of. Before any weight changes, a checkpoint's included."""
        recipe = self.recipe
        self.check_batches()
        if self.limited:
            self.progress.begin("scoring with the generator")
            trained = [group for step in range(1, self.steps + 1) for group in self.batch_of(step)]
            self.certain = find_near_certain(
                recipe, self.policy, self.engine, [*trained, *sample_of(self.batch_of(1))], self.budget,
                self.progress.tick,
            )  # fmt: skip
            self.notes.append(self.certain.note)
        if not self.method.needs_reference(recipe) or is_live(recipe, self.method):
            return
        folder = recipe.train.reference_cache
        self.progress.begin("scoring with the reference")
        self.references, said = build_store(
            self.engine,
            self._all_groups(),
            Path(folder).expanduser() if folder else default_folder(),
            self.budget,
            self.progress.tick,
        )
        self.notes.append(said)
        if recipe.model.reference_path is not None:
            self.policy.frozen = None  # its log-probs are all that the run asks for

    def check_batches(self) -> None:
        """Raises DataError now for a batch that would fail when its step comes: one without another prompt to meet."""
        if self.method.contrast is not None:
            for step in range(1, self.steps + 1):
                self._contrast(self.batch_of(step))
        if self.limited:
            for step in range(1, self.steps + 1):
                groups = self.batch_of(step)
                pairs = make_batch(groups, self.method, self.recipe).pairs_of_groups() or []
                check_whole_groups(groups, [sorted({i for pair in own for i in pair}) for own in pairs], self.budget)

    def _all_groups(self) -> Iterator[Group]:
        for step in range(1, self.steps + 1):
            groups = self.batch_of(step)
            yield from groups
            yield from self._contrast(groups)
        yield from self.validation
        yield from self.test

    @property
    def at_reference(self) -> bool:
        """Whether the policy acts as the reference does: nothing is trained yet, and no adapter lies on top."""
        config = self.policy.config
        elsewhere = config.reference_path is not None
        return self.fresh and not elsewhere and not (config.on_adapter == "continue" and config.reference == "base")

    def _contrast(self, groups: Sequence[Group]) -> list[Group]:
        if self.method.contrast is None:
            return []
        found, room = self.method.contrast(groups), self.policy.context_length
        if room is None:
            return found
        # Each row fits the model, but a prompt with another's completion may not.
        fitting = [
            replace(g, completions=tuple(c for c in g.completions if len(g.prompt.ids) + len(c.ids) <= room))
            for g in found
        ]
        if not any(g.completions for g in fitting):
            raise DataError(
                f"{groups[0].prompt.where}: no completion of this batch fits the model's {room} positions behind "
                "another prompt; lower tokens.max_prompt_tokens or tokens.max_completion_tokens"
            )
        return fitting

    def reference_of(self, groups: Sequence[Group]) -> LogProbs | None:
        """The reference's log-probs, where the method compares with it."""
        if not self.method.needs_reference(self.recipe) or self.visited_kl:
            return None
        known = None if self.references is None else self.references.of(groups)
        if known is not None:
            return known
        if not self.fresh and not self.policy.is_adapter and self.policy.frozen is None:
            raise PreftuneError(
                "the reference's log-probs of some rows are asked for, but they were not computed before training; set "
                "train.reference_logprobs: live and begin a new run"
            )
        return live_reference(self.engine, groups, self.budget, self.temperature)

    def make_batch(self, groups: Sequence[Group], memory: Mapping[str, Any] | None = None) -> Batch:
        """Everything that the loss reads of these groups, as one optimizer batch.

        Args:
            memory: what the signal knows of earlier batches; default the session's.
        """
        memory = self.memory if memory is None else memory
        contrast = self._contrast(groups)
        reference = self.reference_of(groups)
        old, ratio = self._old(groups, reference)
        values = None if self.head is None else token_values(self.head, self.engine, groups, self.budget)
        row_weights, told = None, dict[str, float]()
        if self.gmpo is not None:
            row_weights, told = self.gmpo.signal(groups, memory["gmpo"])
            groups = self.gmpo.annotate(groups, row_weights)
        evidence = Evidence(
            old=old, reference=reference, values=values, beta=memory.get("beta"),
            reward_weights=self.rewards.weights, row_weights=row_weights,
        )  # fmt: skip
        batch = make_batch(
            groups, self.method, self.recipe, evidence=evidence, ratio=ratio, visited_kl=self.visited_kl,
            contrast=contrast, contrast_reference=self.reference_of(contrast) if contrast else None,
            certain=None if self.certain is None else self.certain.of(groups),
        )  # fmt: skip
        batch.facts.update(told)
        if old is not None and reference is not None and self._kl_inside:
            batch.facts.update(self._kl_facts(groups, old, reference, memory))
        return batch

    @property
    def _kl_inside(self) -> bool:
        chosen = objective(self.recipe.policy)
        return self.method.tempered and self.gmpo is None and chosen.kl == "reward" and chosen.beta > 0.0

    def _old(self, groups: Sequence[Group], reference: LogProbs | None) -> tuple[LogProbs | None, bool]:
        """Log-probs under the policy that sampled, where ratios or the signal need them, and whether ratios do."""
        if self.method.own_words:
            return kept_logprobs(groups), True
        if not self.method.samples:
            return None, False
        if self.updates > 1:
            # Several updates: the ratio is against the policy as it was when it wrote the batch.
            return self.engine.score(groups, self.budget, temperature=self.temperature), True
        if self.head is not None or self._kl_inside:
            # The ratio is 1, but the signal wants them: the sampler's own will do where it drew plainly.
            kept = kept_logprobs(groups)
            return kept or self.engine.score(groups, self.budget, temperature=self.temperature), False
        return None, False

    def _kl_facts(
        self, groups: Sequence[Group], old: LogProbs, reference: LogProbs, memory: Mapping[str, Any]
    ) -> dict[str, float]:
        mean = float(kl_of_completions(groups, old, reference).mean())
        beta = memory.get("beta", objective(self.recipe.policy).beta)
        return {"kl/sequence": mean, "kl/beta": beta, "reward/kl_penalty": beta * mean}

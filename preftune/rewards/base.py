"""From a recipe's rewards to scores: `build_rewards` makes a `RewardSet`, whose `score` fills groups."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from preftune.competition import Construct
from preftune.config import RewardConfig
from preftune.errors import ModelError, PreftuneError, RewardError, UsageError
from preftune.records import Group, Prompt
from preftune.rewards.builtins import BUILTINS, make_builtins
from preftune.rewards.call import LARGEST, RESERVED, Batch, Failure, Reply, TrainerState, describe_exception
from preftune.rewards.code import CodeReward
from preftune.rewards.isolation import DirectLane, Lane, ProcessLane, ThreadLane
from preftune.rewards.learned import LearnedReward
from preftune.rewards.loading import Reference, find_reference, reference_to
from preftune.rewards.settle import Outcome, Reward, settle

if TYPE_CHECKING:
    from preftune.engine.forward import Engine

METRIC_NAMES = ("mean", "std", "skipped", "dead_groups")
"""What the loop logs under `reward/`: a function of such a name gets a suffix, as a second one of its name would."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Groups with scores.

    Attributes:
        groups: as given, every completion with `score` and `breakdown`. The score is None only where no reward with
            a weight has a value and one of them has `on_error: skip`.
        metrics: `reward/NAME` the mean of each reward where it applied; `reward_left_out/NAME` the share of completions
            without its value (where there are any); `reward_hung/NAME` completions that scored 0 because they hung
            the verifier (where there are any); `reward_row_by_row/NAME` 1 when the reward failed on the batch and was
            called row by row; `logged/NAME` the mean of what rewards gave to `log_metric`.
        extras: one mapping per completion, in order: what rewards gave to `log_extra`.
        skipped: values left out because a reward failed on their row.
        unscored: completions whose score is None.
    """

    groups: tuple[Group, ...]
    metrics: dict[str, float]
    extras: tuple[Mapping[str, Any], ...]
    skipped: int
    unscored: int

    @property
    def usable(self) -> tuple[Group, ...]:
        """The groups without unscored completions, and without groups that have no other."""
        kept = (tuple(c for c in g.completions if c.score is not None) for g in self.groups)
        return tuple(Group(g.prompt, some) for g, some in zip(self.groups, kept, strict=True) if some)


class RewardSet:
    """The rewards of a run. Holds worker processes: close it, or use it as a context manager."""

    def __init__(self, rewards: Sequence[Reward]) -> None:
        self._rewards = tuple(rewards)
        self._ends: Callable[[Sequence[int], str], list[int]] | None = None

    def know_tokens(self, ends: Callable[[Sequence[int], str], list[int]]) -> None:
        """Tell rewards that count tokens inside a text where these end: `TokenContract.token_ends`."""
        self._ends = ends

    @property
    def names(self) -> tuple[str, ...]:
        """The rewards' names in metrics and breakdowns, in order."""
        return tuple(reward.name for reward in self._rewards)

    @property
    def weights(self) -> dict[str, float]:
        """Each reward's weight, by its name in breakdowns."""
        return {reward.name: reward.weight for reward in self._rewards}

    def share(self, engine: Engine) -> list[str]:
        """Put reward models that were trained as adapters of the policy's base onto that base. Returns what was done,
        in words."""
        said = []
        for number, reward in enumerate(self._rewards):
            function = getattr(reward.lane, "function", None)
            if isinstance(function, LearnedReward):
                where = function.share(engine, f"reward{number or ''}")
                said += [where] if where else []
        return said

    def describe(self) -> list[str]:
        """One line per reward: name, weight and where it runs."""
        return [f"{r.name} (weight {r.weight:g}): {r.lane.place}" for r in self._rewards]

    def close(self) -> None:
        """End worker processes. Idempotent; a later `score` starts new ones."""
        for reward in self._rewards:
            reward.lane.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def score(
        self,
        groups: Sequence[Group],
        step: int,
        total_steps: int,
        epoch: float | None = None,
        *,
        measuring: bool = False,
    ) -> Scored:
        """Score every completion: Σ weight · value over the rewards that apply to it.

        Args:
            groups: any number of groups of any sizes.
            step: optimizer steps taken so far; `total_steps` those of the run: the rewards' `trainer_state`.
            epoch: passes over the data so far, if the caller counts them.
            measuring: nothing is learned from the scores, and answers stand alone. A row that only rewards without a
                weight apply to then has no score, which is no error: a judge that compares says nothing of one answer.

        Raises RewardError naming reward and row when a reward fails (with `on_error: stop`) or when no reward
        with a weight applies to a row (and none has `on_error: skip`).
        """
        rows = [(group.prompt, index, group) for group in groups for index in range(len(group.completions))]
        if not rows or not self._rewards:
            return Scored(
                tuple(groups),
                {},
                tuple({} for _ in rows),
                0,
                sum(c.score is None for g in groups for c in g.completions),
            )
        labels = [_label(prompt, index, len(group.completions)) for prompt, index, group in rows]
        batch = make_batch(groups, TrainerState(step, total_steps, epoch))
        if self._ends is not None and any(reward.reads_ends for reward in self._rewards):
            batch.token_ends.extend(self._ends(c.ids, c.text) for group in groups for c in group.completions)
        try:
            answers = self._run(batch)
            outcomes = [settle(r, batch, labels, a) for r, a in zip(self._rewards, answers, strict=True)]
        except BaseException:  # Ctrl-C above all: a lane with a batch under way would answer the next one with it
            self.close()
            raise
        scores = [self._combine(outcomes, row, label, measuring) for row, label in enumerate(labels)]
        breakdowns = [
            {r.name: outcome.values[row] for r, outcome in zip(self._rewards, outcomes, strict=True)}
            for row in range(len(rows))
        ]
        flat = (completion for group in groups for completion in group.completions)
        filled = iter(
            [
                dataclasses.replace(completion, score=score, breakdown=breakdown)
                for completion, score, breakdown in zip(flat, scores, breakdowns, strict=True)
            ]
        )
        return Scored(
            groups=tuple(Group(g.prompt, tuple(next(filled) for _ in g.completions)) for g in groups),
            metrics=self._metrics(len(rows), outcomes),
            extras=self._extras(outcomes, len(rows)),
            skipped=sum(len(outcome.skipped) for outcome in outcomes),
            unscored=sum(score is None for score in scores),
        )

    def _run(self, batch: Batch) -> list[Reply | Failure]:
        """One answer per reward, in order. Processes and async functions run meanwhile; the others take turns,
        since functions of one process may share state, which must not depend on timing."""
        for reward in self._rewards:
            if reward.concurrent:
                reward.lane.submit(batch)
        answers: dict[int, Reply | Failure] = {}
        for index, reward in enumerate(self._rewards):
            if not reward.concurrent:
                reward.lane.submit(batch)
                answers[index] = reward.lane.result(reward.timeout)
        for index, reward in enumerate(self._rewards):
            if reward.concurrent:
                answers[index] = reward.lane.result(reward.timeout)
        return [answers[index] for index in range(len(self._rewards))]

    def _combine(self, outcomes: list[Outcome], row: int, label: str, measuring: bool) -> float | None:
        counting = [(r, o) for r, o in zip(self._rewards, outcomes, strict=True) if r.weight != 0]
        parts = [r.weight * value for r, o in counting if (value := o.values[row]) is not None]
        if parts or not counting:
            score = math.fsum(parts)
            if abs(score) > LARGEST:
                raise RewardError(f"the weighted sum of rewards on {label} is {score:g}: lower the weights")
            return score
        if any(r.skip for r, _ in counting):
            return None
        if measuring and any(outcome.values[row] is not None for outcome in outcomes):
            return None
        names = ", ".join(repr(r.name) for r, _ in counting)
        raise RewardError(
            f"no reward applies to {label}: {names} gave None. At least one reward with a weight must give a number "
            f"for every row"
        )

    def _metrics(self, rows: int, outcomes: list[Outcome]) -> dict[str, float]:
        out: dict[str, float] = {}
        for reward, outcome in zip(self._rewards, outcomes, strict=True):
            values = [value for value in outcome.values if value is not None]
            if values:
                out[f"reward/{reward.name}"] = math.fsum(values) / len(values)
            if len(values) < rows:
                out[f"reward_left_out/{reward.name}"] = 1 - len(values) / rows
            if outcome.row_by_row:
                out[f"reward_row_by_row/{reward.name}"] = 1.0
            if outcome.hung:
                out[f"reward_hung/{reward.name}"] = float(outcome.hung)
        logged: dict[str, list[float]] = {}
        for outcome in outcomes:
            for name, numbers in outcome.metrics.items():
                logged.setdefault(name, []).extend(numbers)
        for name, numbers in logged.items():
            out[f"logged/{name}"] = math.fsum(numbers) / len(numbers)
        return out

    def _extras(self, outcomes: list[Outcome], rows: int) -> tuple[Mapping[str, Any], ...]:
        extras: list[dict[str, Any]] = [{} for _ in range(rows)]
        seen: set[str] = set()
        for reward, outcome in zip(self._rewards, outcomes, strict=True):
            for column, values in outcome.extras.items():
                key = f"{reward.name}/{column}" if column in seen else column
                seen.add(key)
                for row, value in enumerate(values):
                    extras[row][key] = value
        return tuple(extras)


def _label(prompt: Prompt, index: int, size: int) -> str:
    return f"{prompt.where or f'the prompt {prompt.text[:60]!r}'}, completion {index + 1} of {size}"


def make_batch(groups: Sequence[Group], state: TrainerState) -> Batch:
    """Lay groups out as TRL does: one entry per completion, the prompt and its columns repeated.

    A plain prompt gives str prompts and completions, a conversation lists of {"role", "content"}. A column that
    some groups lack is None there. Raises RewardError when a column has the name of an argument of its own.
    """
    batch = Batch([], [], [], {}, state)
    names = list(dict.fromkeys(name for group in groups for name in group.prompt.columns))
    for name in names:
        if name in RESERVED:
            raise RewardError(
                f"the data has a column {name!r}, which rewards get from preftune; rename it under data.columns"
            )
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for group in groups:
        content = group.prompt.content
        for completion in group.completions:
            if isinstance(content, str):
                batch.prompts.append(content or group.prompt.text)
                batch.completions.append(completion.text)
            else:
                batch.prompts.append([{"role": m.role, "content": m.content} for m in content])
                batch.completions.append([{"role": "assistant", "content": completion.text}])
            batch.completion_ids.append(list(completion.ids))
            batch.finish_reasons.append(completion.finish)
            for name in names:
                columns[name].append(group.prompt.columns.get(name))
    batch.columns.update(columns)
    return batch


def build_rewards(
    configs: Sequence[RewardConfig],
    functions: Sequence[Callable[..., Any]] = (),
    base_dir: Path = Path(),
    *,
    shared_base: str | None = None,
    construct: Construct | None = None,
) -> RewardSet:
    """Make the rewards of a recipe, then those given as functions (weight 1, each with the default limits).

    Args:
        configs: the recipe's `rewards`; a name is a built-in, `module:function` or `path/file.py:function`.
        functions: callables with TRL's signature.
        base_dir: where relative files start; the command line gives the working directory.
        shared_base: the model that a policy's adapter will stand on. A reward model that was trained as an adapter of
            it is not loaded now but by `RewardSet.share`.
        construct: the contest that the recipe describes, for the rewards that read contests.

    Raises UsageError for a name that leads nowhere or arguments that a built-in doesn't take, ModelError for a reward
    model that can't be loaded. No code of the user's runs here, except a function that is to run inline: that one is
    imported.
    """
    rewards: list[Reward] = []
    taken = dict.fromkeys(METRIC_NAMES, 1)
    for config in configs:
        rewards += _from_config(config, base_dir, taken, shared_base, construct)
    for function in functions:
        if not callable(function):
            raise UsageError(f"rewards: {function!r} is not a function")
        name = getattr(function, "__name__", type(function).__name__)
        config = RewardConfig(name=name)
        rewards.append(make_reward(config, _unique(name, taken), reference_to(function), function))
    return RewardSet(rewards)


def _from_config(
    config: RewardConfig, base_dir: Path, taken: dict[str, int], shared_base: str | None, construct: Construct | None
) -> list[Reward]:
    if config.name in BUILTINS:
        made: list[Reward] = []
        for label, builtin in make_builtins(config, construct):
            if isinstance(builtin, LearnedReward) and config.isolate != "process":
                _prepare(config.name, builtin, shared_base)
            if isinstance(builtin, CodeReward):
                builtin.within(config.timeout)
            bare = config.model_copy(update={"args": {}})  # they are the built-in's fields now
            made.append(make_reward(bare, _unique(label, taken), None, builtin))
        return made
    if ":" not in config.name:
        near = difflib.get_close_matches(config.name, BUILTINS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the built-ins are {', '.join(BUILTINS)}"
        raise UsageError(
            f"unknown reward {config.name!r}; {hint} A reward of your own is module:function or file.py:function"
        )
    reference = find_reference(config.name, base_dir)
    return [make_reward(config, _unique(config.label or reference.function, taken), reference, None)]


def _unique(name: str, taken: dict[str, int]) -> str:
    taken[name] = taken.get(name, 0) + 1
    return name if taken[name] == 1 else f"{name}-{taken[name]}"


def make_reward(config: RewardConfig, name: str, reference: Reference | None, function: Any) -> Reward:
    """Choose the lane. `function` is a built-in or the user's callable; `reference` says how to import it elsewhere."""
    builtin = isinstance(function, tuple(entry.make for entry in BUILTINS.values()))
    lane: Lane
    concurrent = True
    if builtin and config.isolate != "process" and not function.can_hang:
        if getattr(function, "holds_model", False) and not isinstance(function, LearnedReward):
            _prepare(name, function)
        lane, concurrent = DirectLane(function), False
    elif config.isolate == "inline" or (reference is None and not builtin):
        if config.isolate == "process":
            raise UsageError(
                f"reward {name!r} can't run in a process: it is a closure, a method, a callable object or lives in the "
                f"main script. Move it to a module of its own, or drop isolate: process"
            )
        call = function if function is not None else _load_inline(reference)
        lane = ThreadLane(call, config.args)
        concurrent = inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(type(call).__call__)
    else:
        source: Any = function if builtin else reference
        lane = ProcessLane(source, config.args, config.timeout)
        if isinstance(function, CodeReward):
            lane.place = f"{lane.place}; {function.describe()}"
    return Reward(
        name=name,
        weight=config.weight,
        timeout=config.timeout,
        skip=config.on_error == "skip",
        lane=lane,
        concurrent=concurrent,
        on_hang=getattr(function, "on_hang", None) if builtin else None,
        reads_ends=builtin and getattr(function, "reads_ends", False),
    )


def _prepare(name: str, function: Any, *arguments: Any) -> None:
    """Load the model that a built-in holds: one that is missing should be known before completions are drawn."""
    try:
        function.prepare(*arguments)
    except ModelError as error:
        raise ModelError(f"reward {name!r} {error}") from error


def _load_inline(reference: Reference | None) -> Callable[..., Any]:
    """Import a function of the recipe's into the trainer. Its module's own errors become a UsageError."""
    assert reference is not None
    try:
        return reference.load()
    except PreftuneError:
        raise
    except Exception as error:
        raise UsageError(f"reward {reference.function!r} can't be imported: it {describe_exception(error)}") from error

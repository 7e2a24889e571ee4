"""One call of one reward on one batch: which arguments it gets, and what it may return.

Runs in the trainer and in worker processes alike, so it imports the standard library only. The signature is
TRL's: `fn(prompts, completions, completion_ids=…, trainer_state=…, log_extra=…, log_metric=…, **columns)`, and
`finish_reasons` and `token_ends`, which TRL lacks.
"""

from __future__ import annotations

import asyncio
import difflib
import inspect
import math
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

RewardFunction: TypeAlias = Callable[..., Any]
Kind: TypeAlias = Literal["setup", "raised", "value", "shape", "hung", "died"]
LARGEST = 3e38
"""Advantages are computed in single precision, which ends there."""
RESERVED = (
    "prompts", "completions", "completion_ids", "finish_reasons", "token_ends", "trainer_state", "log_extra",
    "log_metric",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TrainerState:
    """What a reward may know about the run; the names are TRL's.

    Attributes:
        global_step: optimizer steps taken so far.
        max_steps: optimizer steps of the whole run.
        epoch: passes over the data so far, None when the caller does not count them.
    """

    global_step: int
    max_steps: int
    epoch: float | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one call: parallel lists and a table of columns, one entry per completion.

    `finish_reasons` say why a completion ended: eos, stop, length (it was cut) or data. Empty where nobody knows.
    `token_ends`: for each completion the places in its text where its tokens end, one a token. Filled where a built-in
    of the set reads them and the tokenizer is known.
    """

    prompts: list[Any]
    completions: list[Any]
    completion_ids: list[list[int]]
    columns: dict[str, list[Any]]
    state: TrainerState
    finish_reasons: list[str] = field(default_factory=list)
    token_ends: list[list[int]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.completions)

    def row(self, index: int) -> Batch:
        """The batch that holds row `index` alone."""
        part = slice(index, index + 1)
        return Batch(
            self.prompts[part],
            self.completions[part],
            self.completion_ids[part],
            {name: values[part] for name, values in self.columns.items()},
            self.state,
            self.finish_reasons[part],
            self.token_ends[part],
        )


@dataclass(frozen=True, slots=True)
class Unscorable:
    """What a built-in returns for a row that it can't score: a failure of that row alone. `why` goes on after "it"."""

    why: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What a reward answered.

    Attributes:
        values: one per row; None where the reward does not apply, and in the rows of `bad`.
        bad: row → what was wrong with its value (not a number, NaN, infinite).
        extras: column → one value per row, from `log_extra`.
        metrics: name → the values given to `log_metric`, in order.
    """

    values: list[float | None]
    bad: dict[int, str] = field(default_factory=dict)
    extras: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that gave no usable answer. `setup` means that no row could have succeeded."""

    kind: Kind
    message: str


class SetupError(Exception):
    """The reward cannot work on this data at all: a column or an argument is missing."""


class Inapplicable(SetupError):
    """A built-in's column is not in the data."""

    def __init__(self, column: str, columns: Mapping[str, object]) -> None:
        super().__init__(f"needs the column {column!r}, {_available(column, columns)}; map it under data.columns")


def column_values(column: str, columns: Mapping[str, list[Any]]) -> list[Any]:
    """The values of a column that a built-in needs. Raises Inapplicable when the data has no such column."""
    if column not in columns:
        raise Inapplicable(column, columns)
    return columns[column]


def completion_text(completion: Any) -> str:
    """The text of a completion: itself, or the assistant's messages one after another."""
    if isinstance(completion, str):
        return completion
    return "".join(message["content"] for message in completion if message["role"] == "assistant")


class Caller:
    """Calls one reward. Keeps one event loop for all calls, so that an async client's connections stay usable."""

    def __init__(self, function: RewardFunction, args: Mapping[str, Any]) -> None:
        self.function = function
        self.args = dict(args)
        self._loop: asyncio.AbstractEventLoop | None = None

    def __call__(self, batch: Batch) -> Reply | Failure:
        """Score a batch. Never raises on account of the reward: its exceptions become a Failure."""
        extras: dict[str, list[Any]] = {}
        metrics: dict[str, list[float]] = {}

        def log_extra(column: str, values: Sequence[Any]) -> None:
            extras.setdefault(column, []).extend(values)

        def log_metric(name: str, value: float) -> None:
            metrics.setdefault(name, []).append(float(value))

        offered: dict[str, Any] = {
            **batch.columns,
            **self.args,
            "prompts": batch.prompts,
            "completions": batch.completions,
            "completion_ids": batch.completion_ids,
            "finish_reasons": batch.finish_reasons,
            "token_ends": batch.token_ends,
            "trainer_state": batch.state,
            "log_extra": log_extra,
            "log_metric": log_metric,
        }
        try:
            result = self.function(**self._select(offered, batch))
            if inspect.isawaitable(result):
                result = self._await(result)
        except SetupError as error:
            return Failure("setup", str(error))
        except (Exception, SystemExit) as error:  # noqa: BLE001  a user's function may raise anything
            return Failure("raised", describe_exception(error))
        return read_result(result, len(batch), extras, metrics)

    def _select(self, offered: dict[str, Any], batch: Batch) -> dict[str, Any]:
        """The arguments that the function names, or all of them when it takes **kwargs."""
        try:
            parameters = inspect.signature(self.function).parameters.values()
        except ValueError:  # a C function without a signature: give it all, as TRL does
            return offered
        keyword = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        for parameter in keyword:
            if parameter.name not in offered and parameter.default is parameter.empty:
                raise SetupError(
                    f"needs an argument {parameter.name!r}, {_available(parameter.name, batch.columns)}; "
                    f"map the column under data.columns or give it in the reward's args"
                )
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return offered
        names = {p.name for p in keyword}
        unknown = [name for name in self.args if name not in names]
        if unknown:
            raise SetupError(f"takes no argument {unknown[0]!r}; it names {', '.join(sorted(names))}")
        return {name: value for name, value in offered.items() if name in names}

    def _await(self, result: Awaitable[Any]) -> Any:
        async def finish() -> Any:
            return await result

        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        return self._loop.run_until_complete(finish())

    def close(self) -> None:
        """Close the event loop, if an async reward opened one."""
        if self._loop is not None:
            self._loop.close()
            self._loop = None


def read_result(
    result: Any, rows: int, extras: dict[str, list[Any]], metrics: dict[str, list[float]]
) -> Reply | Failure:
    """Check what a reward returned: a list (tuple, one-dimensional array or tensor) of one number or None per row."""
    if hasattr(result, "tolist"):  # numpy array or torch tensor, known by what it can do: neither is imported here
        result = result.tolist()
    if not isinstance(result, (list, tuple)):
        return Failure("shape", f"returned {_kind(result)} instead of a list of {rows} numbers")
    if len(result) != rows:
        return Failure("shape", f"returned {len(result)} values for {rows} completions")
    for column, values in extras.items():
        if len(values) != rows:
            return Failure("shape", f"gave log_extra {len(values)} values of {column!r} for {rows} completions")
    for name, logged in metrics.items():
        if not all(map(math.isfinite, logged)):
            return Failure("shape", f"gave log_metric a value of {name!r} that is not finite")
    values_out: list[float | None] = []
    bad: dict[int, str] = {}
    for index, item in enumerate(result):
        try:
            values_out.append(_number(item))
        except ValueError as error:
            values_out.append(None)
            bad[index] = str(error)
    return Reply(values_out, bad, extras, metrics)


def _number(item: Any) -> float | None:
    if item is None:
        return None
    if isinstance(item, Unscorable):
        raise ValueError(item.why)
    if not isinstance(item, (bool, int, float)) and hasattr(item, "item"):
        try:
            item = item.item()  # numpy scalar or 0-dimensional tensor
        except (ValueError, RuntimeError, TypeError):
            raise ValueError(f"returned {_kind(item)} that is not a single number") from None
    if not isinstance(item, (bool, int, float)):
        raise ValueError(f"returned {_kind(item)} instead of a number or None")
    try:
        value = float(item)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise ValueError(f"returned {'nan' if math.isnan(value) else 'an infinite number'}")
    if abs(value) > LARGEST:
        raise ValueError(f"returned {value:g}, which is infinite in the single precision that training uses")
    return value


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    article = "an" if type(value).__name__[0] in "aeiou" else "a"
    return f"{article} {type(value).__name__}"


def _available(name: str, columns: Mapping[str, object]) -> str:
    present = sorted(set(columns) - set(RESERVED))
    if not present:
        return "but the data has no columns besides the prompt"
    near = difflib.get_close_matches(name, present, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"but the data has only {', '.join(present)}{hint}"


def describe_exception(error: BaseException) -> str:
    """One line: the exception and the innermost line of code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
    return f"raised {type(error).__name__}: {str(error)[:500]}{place}"

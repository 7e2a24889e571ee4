"""From a reward's answer on a batch to one value per row: find the row at fault, then stop, or leave it out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from preftune.errors import RewardError
from preftune.rewards.call import Batch, Failure, Reply
from preftune.rewards.isolation import Lane

SEARCH_TIMEOUTS = 4
"""Looking for the row at fault takes at most this many times the reward's timeout."""


@dataclass(frozen=True, slots=True)
class Reward:
    """One reward of a set: its name in metrics, how it counts, and the lane that it runs in.

    `skip` leaves a failing row's value out; otherwise it stops the run. `concurrent` says that it runs while others
    do. `on_hang` is the value of a row that hangs or kills a verifier, where that is the text's fault. `reads_ends`: it
    wants to know where tokens end in the text.
    """

    name: str
    weight: float
    timeout: float
    skip: bool
    lane: Lane
    concurrent: bool
    on_hang: float | None = None
    reads_ends: bool = False


@dataclass(slots=True)
class Outcome:
    """A reward's values for a batch after failures were dealt with.

    `skipped` are the rows left out because the reward failed on them, `hung` counts the rows that got `on_hang`,
    `row_by_row` tells that the batch as a whole had failed.
    """

    values: list[float | None]
    extras: dict[str, list[Any]]
    metrics: dict[str, list[float]]
    skipped: set[int]
    hung: int = 0
    row_by_row: bool = False


def settle(reward: Reward, batch: Batch, labels: list[str], answer: Reply | Failure) -> Outcome:
    """Turn an answer into values. `labels` names the rows in errors.

    Raises RewardError naming reward and row when the reward stops on failures, and always when no row could have
    succeeded (a missing column, a function that can't be imported).
    """
    if isinstance(answer, Failure):
        if answer.kind == "setup":
            raise RewardError(f"reward {reward.name!r} {answer.message}")
        return _row_by_row(reward, batch, labels, answer)
    if answer.bad and not reward.skip:
        row = min(answer.bad)
        raise _error(reward, labels[row], answer.bad[row])
    return Outcome(answer.values, answer.extras, answer.metrics, set(answer.bad))


def _row_by_row(reward: Reward, batch: Batch, labels: list[str], failure: Failure) -> Outcome:
    """Call again with one row at a time, to name the row that failed or to keep the others' values."""
    span = labels[0] if len(batch) == 1 else f"the {len(batch)} rows from {labels[0]} to {labels[-1]}"
    outcome = Outcome([], {}, {}, set(), row_by_row=True)
    if failure.kind == "hung" and not reward.lane.can_retry:
        # The thread still runs and may hold a lock, so the next row could hang in its stead and be blamed.
        if not reward.skip:
            raise _error(reward, span, failure.message)
        outcome.values, outcome.skipped = [None] * len(batch), set(range(len(batch)))
        return outcome
    deadline = time.monotonic() + SEARCH_TIMEOUTS * reward.timeout
    replies: list[Reply | None] = []
    for row, label in enumerate(labels):
        left = deadline - time.monotonic()
        if left <= 0 and not reward.skip:
            raise _error(reward, span, f"{failure.message}; the time to find the row at fault ran out at {label}")
        answer = _try(reward, batch.row(row), left)
        if isinstance(answer, Reply) and not answer.bad:
            outcome.values.append(answer.values[0])
            replies.append(answer)
            continue
        replies.append(None)
        if isinstance(answer, Failure) and answer.kind in ("hung", "died") and reward.on_hang is not None and left > 0:
            outcome.values.append(reward.on_hang)
            outcome.hung += 1
        elif reward.skip:
            outcome.values.append(None)
            outcome.skipped.add(row)
        else:
            raise _error(reward, label, answer.message if isinstance(answer, Failure) else answer.bad[0])
    if not reward.skip and reward.on_hang is None:
        raise _error(reward, span, f"{failure.message}; called with one row at a time it failed on none of them")
    _merge(replies, outcome)
    return outcome


def _try(reward: Reward, row: Batch, left: float) -> Reply | Failure:
    if left <= 0:
        return Failure("hung", "was not reached in the time for single rows")
    reward.lane.submit(row)
    return reward.lane.result(min(reward.timeout, left))


def _merge(replies: list[Reply | None], outcome: Outcome) -> None:
    """Put the extras and metrics of one-row replies together; a failed row's extras are None."""
    for column in dict.fromkeys(column for reply in replies if reply for column in reply.extras):
        outcome.extras[column] = [r.extras[column][0] if r and column in r.extras else None for r in replies]
    for reply in replies:
        for name, numbers in (reply.metrics if reply else {}).items():
            outcome.metrics.setdefault(name, []).extend(numbers)


def _error(reward: Reward, row: str, what: str) -> RewardError:
    return RewardError(
        f"reward {reward.name!r} failed on {row}: it {what}. Mend the reward, or set on_error: skip for it to leave "
        f"such rows out and count them"
    )

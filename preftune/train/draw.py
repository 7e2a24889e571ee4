"""Drawing a step's batch: the policy answers, rewards score, groups without spread are replaced where asked for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from preftune.objectives import objective
from preftune.records import Group
from preftune.train.scores import is_dead

if TYPE_CHECKING:
    from preftune.train.session import Session

ATTEMPT = 7_919_000_003
"""Parts the seeds of a step's further draws from those of all steps."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One batch.

    Attributes:
        groups: scored.
        metrics: of the rewards, and of what was drawn again.
        memory: the session's, after this batch; see `Session.memory`.
        as_sampled: the last draw as the sampler gave it, with whatever stood before the prompts.
    """

    groups: list[Group]
    metrics: dict[str, float]
    memory: dict[str, Any]
    as_sampled: Sequence[Group]


def draw_batch(session: Session, wanted: Sequence[Group], step: int, clock: Clock) -> Drawn:
    """The batch's prompts with completions and scores.

    With dynamic sampling, groups without spread give way to other prompts, drawn in at most `policy.resample` further
    batches. When that is not enough the batch is filled up with them: a smaller one would be another batch size for
    the loss.

    References:
        Yu et al. 2025 (DAPO), sec. 3.2.
    """
    bound = objective(session.recipe.policy).resample if session.gmpo is None else 0
    drawn = _draw(session, wanted, step, 0, clock)
    if not bound:
        return drawn
    size, weights = len(wanted), session.rewards.weights
    alive = [g for g in drawn.groups if not is_dead(g, weights)]
    dead = [g for g in drawn.groups if is_dead(g, weights)]
    prompts, rounds = size, 0
    used = {group.prompt.ids for group in wanted}
    while len(alive) < size and rounds < bound:
        rounds += 1
        more = session.further_prompts(step, rounds, size, used)
        if not more:
            break
        used |= {group.prompt.ids for group in more}
        found = _draw(session, more, step, rounds, clock)
        alive += [g for g in found.groups if not is_dead(g, weights)]
        prompts += len(more)
    metrics = drawn.metrics | {
        "resample/rounds": float(rounds), "resample/prompts": float(prompts),
        "resample/missing": float(max(size - len(alive), 0)),
    }  # fmt: skip
    return Drawn((alive + dead)[:size], metrics, drawn.memory, drawn.as_sampled)


def _draw(session: Session, wanted: Sequence[Group], step: int, attempt: int, clock: Clock) -> Drawn:
    recipe, plain = session.recipe, [group.prompt for group in wanted]
    asked = plain if session.gmpo is None else session.gmpo.prompts(plain, session.memory["gmpo"])
    drawn = session.rollout(
        asked, recipe.sampling.group_size, recipe.sampling, seed=recipe.seed * 1_000_003 + step + attempt * ATTEMPT,
        policy_version=step - 1,
    )  # fmt: skip
    answers = drawn if session.gmpo is None else session.gmpo.with_plain_prompts(drawn, plain)
    clock.lap("sample")
    groups, metrics, memory = session.score(answers, step=step - 1)
    clock.lap("reward")
    return Drawn(groups, metrics, memory, drawn)


class Clock:
    """Seconds by stage; a stage may come several times."""

    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now

    def total(self, name: str) -> None:
        self.seconds[name] = time.perf_counter() - self.start

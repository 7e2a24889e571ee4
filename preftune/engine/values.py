"""Scalar heads beside a policy: a value for every token, or a score for every completion.

Two kinds, one interface. A **shared** head stands on an adapter of its own over the policy's frozen base and runs
through the policy's engine; a **separate** one is a whole reward model with an engine of its own. Either reads the
packs of the policy's engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from preftune.engine.forward import Engine
from preftune.engine.head import scores_of
from preftune.engine.pack import Pack, pack
from preftune.models.reward import RewardModel
from preftune.models.roles import Role
from preftune.records import Group


class ScalarHead(Protocol):
    """What PPO's loop and a reward reader need of a scalar head."""

    lineage: str

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """What is trained, in a fixed order, under names that no other role has."""
        ...

    @contextmanager
    def acting(self, *, train: bool = False) -> Iterator[None]:
        """Within it `values` and `scores` may be called; their backward pass belongs inside too."""
        ...

    def values(self, packed: Pack) -> Tensor:
        """[T], fp32: the head at the state that predicts each trained token, with the graph where enabled."""
        ...

    def scores(self, packed: Pack) -> Tensor:
        """[S], fp32: the head at each completion's last token; of a pack made with keep_last."""
        ...


class SharedHead:
    """A head [D] on a role of the policy's base."""

    def __init__(self, engine: Engine, role: Role, weight_D: Tensor, lineage: str) -> None:
        self.engine, self.role, self.lineage = engine, role, lineage
        self.weight_D = nn.Parameter(weight_D.detach().clone().float(), requires_grad=False)

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [*self.role.parameters(), (f"{self.role.name}.head", self.weight_D)]

    @contextmanager
    def acting(self, *, train: bool = False) -> Iterator[None]:
        with self.role.acting(train=train):
            self.weight_D.requires_grad_(train)
            try:
                yield
            finally:
                self.weight_D.requires_grad_(False)

    def values(self, packed: Pack) -> Tensor:
        return self._read(self.engine.token_states(packed, self.role.policy.model))

    def scores(self, packed: Pack) -> Tensor:
        return self._read(self.engine.last_states(packed, self.role.policy.model))

    def _read(self, states_TD: Tensor) -> Tensor:
        with torch.autocast(states_TD.device.type, enabled=False):
            return states_TD.float() @ self.weight_D


class SeparateHead:
    """A reward model with weights of its own."""

    def __init__(self, model: RewardModel, engine: Engine, name: str) -> None:
        self.model, self.engine, self.name, self.lineage = model, engine, name, model.lineage

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [(f"{self.name}.{n}", p) for n, p in self.model.trainable()]

    @contextmanager
    def acting(self, *, train: bool = False) -> Iterator[None]:
        self.model.train_mode(train)
        try:
            yield
        finally:
            self.model.train_mode(False)

    def values(self, packed: Pack) -> Tensor:
        with self.engine.autocast():
            return scores_of(self.model.model, self.engine.token_states(packed, self.model.model))

    def scores(self, packed: Pack) -> Tensor:
        return self.engine.scores(packed)


@torch.no_grad()
def token_values(head: ScalarHead, engine: Engine, groups: Sequence[Group], max_tokens: int) -> list[list[Tensor]]:
    """The head's values of every completion's trained tokens, without gradient: [group][completion] → [tokens], CPU."""
    out: list[list[Tensor]] = [[torch.empty(0)] * len(g.completions) for g in groups]
    with head.acting():
        for packed in engine.pack(groups, max_tokens):
            values, sequence_T = head.values(packed).cpu(), packed.sequence_T.cpu()
            for s, (g, c) in enumerate(packed.members):
                out[g][c] = values[sequence_T == s]
    return out


@torch.no_grad()
def rate(head: ScalarHead, groups: Sequence[Group], max_tokens: int, device: torch.device) -> list[list[float]]:
    """The head's scores of every completion, without gradient: [group][completion]."""
    out = [[0.0] * len(g.completions) for g in groups]
    with head.acting():
        for packed in pack(groups, max_tokens, keep_last=True, device=device):
            for (g, c), score in zip(packed.members, head.scores(packed).tolist(), strict=True):
                out[g][c] = score
    return out

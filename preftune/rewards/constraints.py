"""The reward of instructions that a program can check: how many of its row's constraints an answer follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from preftune.data.columns import BadRow
from preftune.rewards.call import Unscorable, column_values, completion_text
from preftune.tasks.constraints import Constraint
from preftune.tasks.follow import follows, follows_loosely
from preftune.tasks.rows import constraints_of

IFEVAL = ("instruction_id_list", "kwargs")


@dataclass(frozen=True, slots=True)
class Constraints:
    """The share of the row's constraints that the completion follows, 0.0 to 1.0.

    They are read from `column` (docs/evaluate.md has the kinds), or, where the data has no such column, from IFEval's
    `instruction_id_list` and `kwargs`. `partial: false` pays 1.0 for all of them and 0.0 otherwise. `loose` takes
    asterisks, the first and the last line away where that helps, as IFEval's loose score does. A row without
    constraints has no value.
    """

    column: str = "constraints"
    partial: bool = True
    loose: bool = False

    can_hang = False

    def __call__(self, /, completions: list[Any], **columns: Any) -> list[float | Unscorable | None]:
        named = (self.column,) if self.column in columns or IFEVAL[0] not in columns else IFEVAL
        values = [column_values(name, columns) for name in named]
        known: dict[str, tuple[Constraint, ...] | str | None] = {}  # the rows of a group share their constraints
        out: list[float | Unscorable | None] = []
        for completion, row in zip(completions, zip(*values, strict=True), strict=True):
            key = repr(row)
            if key not in known:
                known[key] = self._read(dict(zip(named, row, strict=True)))
            found = known[key]
            if found is None or isinstance(found, str):
                out.append(None if found is None else Unscorable(found))
            else:
                out.append(self._score(completion_text(completion), found))
        return out

    def _read(self, row: Mapping[str, Any]) -> tuple[Constraint, ...] | str | None:
        """The row's constraints, why they can't be read, or None where it has none."""
        if next(iter(row.values())) is None:
            return None
        try:
            return constraints_of(row, self.column)[0]
        except BadRow as problem:
            return f"can't use its constraints: {problem}"

    def _score(self, text: str, constraints: Sequence[Constraint]) -> float:
        followed = (follows_loosely if self.loose else follows)(text, constraints)
        share = sum(followed) / len(followed)
        return share if self.partial or share == 1.0 else 0.0

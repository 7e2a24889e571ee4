"""What was measured, beside what is normal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from preftune.intervals import Interval, mean_interval

Status: TypeAlias = Literal["fine", "look", "problem", "unknown"]
Remedy: TypeAlias = Literal["", "preference", "sft", "elsewhere"]
"""What can mend it: preference tuning, supervised tuning first, or nothing that tuning does."""
Source: TypeAlias = Literal["this data", "literature", "rule of thumb", "your benchmark"]
Signal: TypeAlias = Literal["safety", "spread", "closeness", "form", "use"]
Unit: TypeAlias = Literal["share", "nats", "number"]

WORST = 4
"""Examples of a measure."""


@dataclass(frozen=True, slots=True)
class Normal:
    """What would be normal, and who says so."""

    text: str
    source: Source


@dataclass(frozen=True, slots=True)
class Scale:
    """The reference range of a measure as a picture: what each stretch of its numbers means.

    Attributes:
        low, high: where it begins and ends; numbers beyond are shown at the end.
        zones: (up to which number, status), rising; the last one reaches `high`.
        root: places go by the square root, so that limits of a few per cent can be told apart.
    """

    low: float
    high: float
    zones: Sequence[tuple[float, Status]]
    root: bool = False

    @classmethod
    def below(cls, bounds: tuple[float, float]) -> Scale:
        """Of a share that should stay below both bounds (look, problem)."""
        look, problem = bounds
        return cls(0.0, 1.0, [(look, "fine"), (problem, "look"), (1.0, "problem")], root=True)

    def place(self, number: float) -> float:
        """Share of the width, 0 to 1."""
        if self.high <= self.low:
            return 0.0
        share = min(1.0, max(0.0, (number - self.low) / (self.high - self.low)))
        return math.sqrt(share) if self.root else share


@dataclass(frozen=True, slots=True)
class Worst:
    """An answer to look at: the place of its row, the prompt, the answer, and facts about it."""

    where: str
    prompt: str
    answer: str
    chips: Sequence[tuple[str, object]] = ()
    beside: tuple[str, str] | None = None


@dataclass(slots=True)
class Measure:
    """One number of a diagnosis.

    Attributes:
        name: in summary.json.
        signal: which of the four it belongs to; `use` for the score in use.
        interval: value and 95 % interval over prompts; None where it was not measured, and `says` why.
        normal: what it would be where nothing is wrong, each with who says so.
        scale: the same as zones; None where no limit can be named.
        remedy, todo: what mends it, in a word and in words; empty where there is nothing to mend.
        worst: the worst answers first.
    """

    name: str
    title: str
    signal: Signal
    unit: Unit = "share"
    interval: Interval | None = None
    status: Status = "unknown"
    normal: Sequence[Normal] = ()
    scale: Scale | None = None
    says: str = ""
    remedy: Remedy = ""
    todo: str = ""
    worst: Sequence[Worst] = ()
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_wrong(self) -> bool:
        return self.status in ("look", "problem")

    def to_json(self) -> dict[str, Any]:
        """For summary.json."""
        return {
            "signal": self.signal, "title": self.title, "status": self.status, "unit": self.unit,
            **(self.interval.to_json() if self.interval else {"value": None}),
            "normal": [{"text": one.text, "source": one.source} for one in self.normal],
            "zones": [] if self.scale is None else [{"to": to, "status": name} for to, name in self.scale.zones],
            "says": self.says, "remedy": self.remedy or None, "todo": self.todo,
            **self.more, "worst": [one.where for one in self.worst],
        }  # fmt: skip


def over_prompts(values: Sequence[Sequence[float]]) -> Interval | None:
    """Mean over prompts of each prompt's mean, with its interval: answers to one prompt are no independent rows.

    A mean of shares that only takes 0 and 1 is itself a share (Wilson); else Student's t, cut to [0, 1] by the caller
    where that is the range. Prompts without values do not count; None where there are none.
    """
    means = [float(np.mean(some)) for some in values if len(some)]
    return mean_interval(means) if means else None


def share_of(values: Sequence[Sequence[bool]]) -> Interval | None:
    """Share of answers, with an interval that counts prompts and not answers.

    Wilson's interval with n cut to the effective number of independent answers: n / (1 + (m − 1) ρ) for m answers a
    prompt and ρ the correlation of answers to one prompt (Kish 1965), estimated by analysis of variance and taken to
    be 0 at least. With ρ = 1 prompts count, with ρ = 0 answers do. Where all answers agree ρ can't be estimated, and
    prompts count.
    """
    rows = [np.asarray(some, dtype=float) for some in values if len(some)]
    if not rows:
        return None
    n = sum(map(len, rows))
    share = float(np.concatenate(rows).mean())
    effective = min(n, max(len(rows), round(n / _design(rows, n, share))))
    return wilson(share, effective, n)


def _design(rows: list[Any], n: int, share: float) -> float:
    """1 + (m − 1) ρ."""
    k, m = len(rows), n / len(rows)
    if m <= 1 or k < 2 or share in (0.0, 1.0):
        return m
    between = sum(len(row) * (row.mean() - share) ** 2 for row in rows) / (k - 1)
    within = sum(((row - row.mean()) ** 2).sum() for row in rows) / max(n - k, 1)
    size = (n - sum(len(row) ** 2 for row in rows) / n) / (k - 1)
    total = between + (size - 1) * within
    rho = max(0.0, (between - within) / total) if total > 0 else 1.0
    return float(1 + (m - 1) * min(rho, 1.0))


def wilson(share: float, effective: int, n: int) -> Interval:
    """Wilson's score interval of a share that so many independent rows carry."""
    from preftune.intervals import Z95

    z2 = Z95 * Z95
    centre = (share + z2 / (2 * effective)) / (1 + z2 / effective)
    half = Z95 * (share * (1 - share) / effective + z2 / (4 * effective**2)) ** 0.5 / (1 + z2 / effective)
    low = 0.0 if share == 0.0 else max(0.0, centre - half)
    high = 1.0 if share == 1.0 else min(1.0, centre + half)
    return Interval(share, low, high, n)


def judge(interval: Interval | None, bounds: tuple[float, float]) -> Status:
    """Problem where the whole interval lies above the second bound, look where the value lies above the first."""
    if interval is None:
        return "unknown"
    look, problem = bounds
    if interval.value > problem and interval.low > problem:
        return "problem"
    return "look" if interval.value > look else "fine"


def worst_of(scored: Sequence[tuple[float, Callable[[], Worst]]], count: int = WORST) -> list[Worst]:
    """The first few by their number, largest first, one for each row while there are others."""
    out: list[Worst] = []
    later: list[Worst] = []
    seen: set[str] = set()
    for _, make in sorted(scored, key=lambda pair: -pair[0]):
        if len(out) >= count:
            break
        one = make()
        (later if one.where in seen else out).append(one)
        seen.add(one.where)
    return [*out, *later][:count]


def percent(share: float) -> str:
    """A share for people."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    return f"{100 * share:.1f} %" if 0 < share < 1 else f"{100 * share:.0f} %"


def told(value: float, unit: Unit) -> str:
    """A number for people."""
    if unit == "share":
        return percent(value)
    number = f"{round(value, 2) + 0.0:.2f}".replace("-", "−")  # never −0.00
    return number + (" nats" if unit == "nats" else "")


def between(interval: Interval, unit: Unit) -> str:
    """An interval for people."""
    if not interval.is_bounded:
        return "no interval: no spread, or too few rows"
    return f"95 %: {told(interval.low, unit).removesuffix(' nats')} to {told(interval.high, unit)}"

"""Counts of pairs by their tiers, and some to look at."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from preftune.curation.contents import as_text, from_plain
from preftune.curation.pairs.choose import UNORDERED, Candidate
from preftune.curation.pairs.read import Answered

EXAMPLES = 12
"""Kinds of pairs of which the report shows one."""
KINDS = 1000
"""Tiers, and kinds of pairs, that are counted by themselves; those beyond are counted together. Answers that are told
apart by scores alone have as many tiers as there are scores."""
OTHERS = "others"
MARGINS = 1000
"""Different margins that are counted one by one; beyond, they are rounded to two digits."""


@dataclass(frozen=True, slots=True)
class Shown:
    """Two answers for the report: a kept pair (chosen first), or two that are nearly equal.

    Attributes:
        tiers, texts: of both.
        similarity: of answers that are nearly equal; `margin`: of a pair.
    """

    where: str
    prompt: str
    tiers: tuple[str, str]
    texts: tuple[str, str]
    similarity: float | None = None
    margin: float | None = None


@dataclass(slots=True)
class Kind:
    """All pairs of one chosen and one rejected tier.

    Attributes:
        ordered: pairs before any was left out; `kept` of them are written.
        why: the others, by reason.
        longer, shorter: kept pairs whose chosen side has more, or fewer, characters.
        against: kept pairs that the data's own ranks or scores order the other way round.
        drawn: number of the pair that is shown.
    """

    ordered: int = 0
    kept: int = 0
    why: Counter[str] = field(default_factory=Counter)
    longer: int = 0
    shorter: int = 0
    against: int = 0
    drawn: int | None = None

    @property
    def length_bias(self) -> float | None:
        """Share of kept pairs whose chosen side is the longer one, ties left out."""
        return self.longer / (self.longer + self.shorter) if self.longer + self.shorter else None


@dataclass(slots=True)
class Tally:
    """Counts of everything.

    Attributes:
        kinds: (chosen tier, rejected tier) → counts. Beyond KINDS of them: (others, others).
        tiers: tier → answers, in the data. Beyond KINDS of them: others.
        read: prompts with at least two answers to compare; `alone`: without; `bad`: rows left out.
        ordered, ordered_prompts: pairs before any was left out, and prompts that have one.
        prompts: prompts with a kept pair.
        why: every two answers that make no pair, by reason.
        per_prompt: kept pairs of a prompt before the cap over all prompts → how many prompts.
        margins: margin → kept pairs.
        told: columns that were left out because they hold answers.
        near: nearly equal answers, the nearest first; `shown`: one kept pair of each kind.
    """

    kinds: dict[tuple[str, str], Kind] = field(default_factory=dict)
    tiers: Counter[str] = field(default_factory=Counter)
    read: int = 0
    alone: int = 0
    bad: int = 0
    ordered: int = 0
    ordered_prompts: int = 0
    prompts: int = 0
    why: Counter[str] = field(default_factory=Counter)
    per_prompt: Counter[int] = field(default_factory=Counter)
    margins: Counter[float] = field(default_factory=Counter)
    told: list[str] = field(default_factory=list)
    near: list[Shown] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)
    _first: Counter[str] = field(default_factory=Counter)
    _last: str = ""
    _of_last: int = 0
    _rng: random.Random = field(default_factory=lambda: random.Random("shown"))

    def see(self, group: Answered, found: Sequence[Candidate]) -> None:
        """A prompt, in the first pass."""
        self.read += 1
        self._first.update(one.why for one in found)
        ordered = sum(one.why not in UNORDERED for one in found)
        self.ordered += ordered
        self.ordered_prompts += ordered > 0

    def saw(self, tiers: Iterable[str]) -> None:
        """Who wrote a prompt's answers."""
        for tier in tiers:
            self.tiers[tier if tier in self.tiers or len(self.tiers) < KINDS else OTHERS] += 1

    def alike(self, answers: Shown, most: int) -> None:
        """Two nearly equal answers."""
        self.near = sorted([*self.near, answers], key=lambda one: -(one.similarity or 0.0))[:most]

    def count(self, decision: Mapping[str, Any], why: str, number: int | None) -> None:
        """What became of a candidate, in the second pass."""
        if why in UNORDERED:
            self.why[why] += 1
            return
        names = decision["chosen"], decision["rejected"]
        if names not in self.kinds and len(self.kinds) >= KINDS:
            names = OTHERS, OTHERS
        kind = self.kinds.setdefault(names, Kind())
        kind.ordered += 1
        if why:
            kind.why[why] += 1
            self.why[why] += 1
            return
        kind.kept += 1
        chosen, rejected = decision["lengths"]
        kind.longer += chosen > rejected
        kind.shorter += chosen < rejected
        kind.against += "against_the_data" in decision
        if self._rng.randrange(kind.kept) == 0:
            kind.drawn = number
        if "margin" in decision:
            margin = decision["margin"]
            self.margins[margin if len(self.margins) < MARGINS else float(f"{margin:.2g}")] += 1
        if decision["where"] != self._last:
            self.finish_prompt()
            self._last = decision["where"]
            self.prompts += 1
        self._of_last += 1

    def finish_prompt(self) -> None:
        """The last prompt's pairs are all counted."""
        if self._of_last:
            self.per_prompt[self._of_last] += 1
        self._of_last = 0

    def samples(self, read: Callable[[int], Mapping[str, Any]], seed: int) -> None:
        """Get one kept pair of each kind, of the most frequent kinds."""
        self.finish_prompt()
        for (chosen, rejected), kind in self.by_count()[:EXAMPLES]:
            if kind.drawn is None:
                continue
            row = read(kind.drawn)
            texts = [as_text(from_plain(row[name])) for name in ("prompt", "chosen", "rejected")]
            self.shown.append(Shown("", texts[0], (chosen, rejected), (texts[1], texts[2]), margin=row.get("margin")))

    def by_count(self) -> list[tuple[tuple[str, str], Kind]]:
        """The kinds, those with most kept pairs first."""
        return sorted(self.kinds.items(), key=lambda item: (-item[1].kept, item[0]))

    @property
    def kept(self) -> int:
        return sum(kind.kept for kind in self.kinds.values())

    @property
    def lengths(self) -> tuple[int, int]:
        """Kept pairs whose chosen side is the longer one, and the shorter one."""
        kinds = self.kinds.values()
        return sum(kind.longer for kind in kinds), sum(kind.shorter for kind in kinds)

    @property
    def length_bias(self) -> float | None:
        """Share of all kept pairs whose chosen side is the longer one."""
        longer, shorter = self.lengths
        return longer / (longer + shorter) if longer + shorter else None

    def words(self) -> str:
        """What became of two answers that make no pair, after the first pass."""
        told = ", ".join(f"{count} {why}" for why, count in self._first.most_common())
        return told or "there are no two answers to a prompt"

    def to_json(self) -> dict[str, Any]:
        """For summary.json."""
        return {
            "bad_rows": self.bad, "prompts_without_two_answers": self.alone, "left_out": dict(self.why),
            "columns_left_out": self.told, "tiers": dict(self.tiers), "chosen_is_longer": self.length_bias,
            "margins": {f"{margin:g}": count for margin, count in sorted(self.margins.items())},
            "kinds": [
                {
                    "chosen": chosen, "rejected": rejected, "before": kind.ordered, "kept": kind.kept,
                    "left_out": dict(kind.why), "chosen_is_longer": kind.length_bias,
                    "against_the_data": kind.against,
                }
                for (chosen, rejected), kind in self.by_count()
            ],
        }  # fmt: skip

"""Out of the journal: rows of the ranked format, a decision for every row and answer, and counts of each tier."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from preftune.curation.contents import as_text, beside, plain
from preftune.curation.folder import Curated
from preftune.curation.generate.config import GenerateConfig, TierConfig
from preftune.curation.generate.journal import Journal
from preftune.curation.generate.prompts import Asked, Bad, Prompts
from preftune.curation.generate.remote import cost_of

SHOWN = 6
"""Prompts whose answers the report shows."""
FAILURES = 20
"""Failures that the report shows."""


@dataclass(slots=True)
class TierCounts:
    """What became of a tier's answers.

    Attributes:
        wanted: answers asked for.
        answered: answers that are there; each is kept, empty, cut, or a duplicate.
        failed, refused, absent: answers that are not: calls that failed for good, that the server or the model can't
            answer, rows whose column is empty.
        kept: answers in rows.jsonl.
        cut: answers cut at max_tokens, whether kept or not.
        within: answers equal to another one of the same tier to the same prompt; `across`: to one of that other tier.
        tokens_in, tokens_out, uncounted: see `Tokens`; of every call, of earlier commands and failed ones too.
        cost: None without prices.
        words: words of an answer → how often.
    """

    name: str
    rank: int
    wanted: int = 0
    answered: int = 0
    failed: int = 0
    refused: int = 0
    absent: int = 0
    kept: int = 0
    empty: int = 0
    cut: int = 0
    within: int = 0
    across: Counter[str] = field(default_factory=Counter)
    tokens_in: int = 0
    tokens_out: int = 0
    uncounted: int = 0
    cost: float | None = None
    words: Counter[int] = field(default_factory=Counter)

    @property
    def mean_words(self) -> float | None:
        total = sum(self.words.values())
        return sum(size * count for size, count in self.words.items()) / total if total else None

    def to_json(self) -> dict[str, Any]:
        """For summary.json."""
        return {
            "name": self.name, "rank": self.rank, "wanted": self.wanted, "answered": self.answered, "kept": self.kept,
            "failed": self.failed, "refused": self.refused, "absent": self.absent, "empty": self.empty,
            "cut": self.cut, "duplicates": {"within": self.within, "across": dict(self.across)},
            "tokens": {"input": self.tokens_in, "output": self.tokens_out, "uncounted_calls": self.uncounted},
            "cost": self.cost, "mean_words": self.mean_words,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sample:
    """A row for the report: its prompt, and (tier, text, remark) for each answer."""

    where: str
    prompt: str
    answers: list[tuple[str, str, str]]


@dataclass(slots=True)
class Assembled:
    """What was written.

    Attributes:
        tiers: the best first.
        rows: rows written; `answers`: answers in them.
        samples: some rows, drawn at random.
        failures: (where, tier, what went wrong), the first of them.
    """

    tiers: list[TierCounts]
    rows: int = 0
    answers: int = 0
    samples: list[Sample] = field(default_factory=list)
    failures: list[tuple[str, str, str]] = field(default_factory=list)


def assemble(
    config: GenerateConfig, prompts: Prompts, journal: Journal, curated: Curated, tell: Callable[[int, int], None]
) -> Assembled:
    """Write rows.jsonl and decisions.jsonl, in the data's order.

    Args:
        tell: told how many of how many prompts are done.
    """
    tiers = {tier.name: tier for tier in config.ordered}
    out = Assembled([TierCounts(tier.name, tier.rank) for tier in tiers.values()])
    counts = {one.name: one for one in out.tiers}
    rng = random.Random(f"samples {config.seed}")
    wheres: dict[int, str] = {}
    for one in prompts:
        if isinstance(one, Bad):
            curated.decide(one.where, kept=False, why="bad row", problem=one.problem)
            continue
        tell(one.index + 1, prompts.count)
        if one.repeated and config.repeated_prompts == "drop":
            curated.decide(one.where, kept=False, why="repeated prompt", same_as=wheres[one.first])
            continue
        if one.index in prompts.repeats:
            wheres[one.index] = one.where
        row = _Row(one, config, journal)
        for tier in tiers.values():
            row.take(tier, counts[tier.name], out)
        if row.responses:
            curated.write({**beside(one.columns), "prompt": plain(one.content), "responses": row.responses})
            out.rows += 1
            out.answers += len(row.responses)
            _draw(out, row, rng)
            curated.decide(one.where, kept=True, answers=row.decisions)
        else:
            curated.decide(one.where, kept=False, why="no answer", answers=row.decisions)
    for count in out.tiers:
        spent = journal.tokens[count.name]
        count.tokens_in, count.tokens_out, count.uncounted = spent.read, spent.written, spent.uncounted
        count.cost = cost_of(tiers[count.name].endpoint, count.tokens_in, count.tokens_out)
    return out


class _Row:
    """One prompt's answers while they are gathered."""

    def __init__(self, asked: Asked, config: GenerateConfig, journal: Journal) -> None:
        self.asked, self._config, self._journal = asked, config, journal
        self.responses: list[dict[str, Any]] = []
        self.decisions: list[dict[str, Any]] = []
        self.shown: list[tuple[str, str, str]] = []
        self._seen: dict[str, tuple[str, int]] = {}

    def take(self, tier: TierConfig, count: TierCounts, out: Assembled) -> None:
        """The answers of a tier, and what is missing of them."""
        count.wanted += tier.answers
        missing = self._journal.missing(tier.name, self.asked.index)
        for k in range(tier.answers):
            if k not in missing:
                line = self._journal.answer(tier.name, self.asked.index, k)
                assert line is not None
                self._take(tier, line, count)
        if not missing:
            return
        line = self._journal.failure(tier.name, self.asked.index)
        why = "absent" if line is None else "refused" if line["refused"] else "failed"
        setattr(count, why, getattr(count, why) + len(missing))
        told = {} if line is None else {"error": line["error"]}
        self.decisions += [{"tier": tier.name, "n": k, "kept": False, "why": why, **told} for k in missing]
        if line is not None and len(out.failures) < FAILURES:
            out.failures.append((self.asked.where, tier.name, str(line["error"])))

    def _take(self, tier: TierConfig, line: Mapping[str, Any], count: TierCounts) -> None:
        text, cut = str(line["text"]), line["finish"] == "length"
        count.answered += 1
        count.cut += cut
        decision: dict[str, Any] = {"tier": tier.name, "n": line["n"], "kept": True}
        self.decisions.append(decision)
        plain_text = text.strip()
        if not plain_text:
            count.empty += 1
            decision |= {"kept": False, "why": "empty"}
            return
        count.words[len(plain_text.split())] += 1
        if cut and self._config.cut == "drop":
            decision |= {"kept": False, "why": "cut"}
            self.shown.append((tier.name, text, "cut at max_tokens, left out"))
            return
        response: dict[str, Any] = {"text": text, "rank": tier.rank, "source": tier.name}
        if line["finish"] != "data":
            response["finish"] = line["finish"]
        remark = "cut at max_tokens" if cut else ""
        if plain_text in self._seen:
            other, place = self._seen[plain_text]
            if other == tier.name:
                count.within += 1
            else:
                count.across[other] += 1
            decision |= {"why": "duplicate", "same_as": other}
            remark = f"the same as {'another one of this tier' if other == tier.name else f'one of {other}'}"
            if self._config.duplicates == "drop":
                decision["kept"] = False
                self.shown.append((tier.name, text, f"{remark}, left out"))
                return
            response["duplicate_of"] = place
        else:
            self._seen[plain_text] = (tier.name, len(self.responses))
        count.kept += 1
        self.responses.append(response)
        self.shown.append((tier.name, text, remark))


def _draw(out: Assembled, row: _Row, rng: random.Random) -> None:
    """Keep SHOWN rows, each with the same chance (reservoir sampling, Vitter 1985)."""
    place = out.rows - 1 if out.rows <= SHOWN else rng.randrange(out.rows)
    if place >= SHOWN:
        return
    sample = Sample(row.asked.where, as_text(row.asked.content), row.shown)
    if place < len(out.samples):
        out.samples[place] = sample
    else:
        out.samples.append(sample)


def duplicates_between(tiers: Sequence[TierCounts]) -> list[tuple[str, str, int, float]]:
    """(worse tier, better tier, equal answers, share of the worse tier's answers), the largest share first."""
    rows = [
        (one.name, other, count, count / one.answered)
        for one in tiers
        for other, count in one.across.items()
        if one.answered
    ]
    return sorted(rows, key=lambda row: -row[3])

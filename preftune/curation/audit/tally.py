"""Counts over all rows: findings, shapes, lengths, languages, labels. Of each row only its lengths are held."""

from __future__ import annotations

import heapq
import re
from array import array
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

from preftune.curation.audit.config import AuditConfig
from preftune.curation.audit.faults import masked
from preftune.curation.audit.overlap import Held
from preftune.curation.audit.row import Finding, Reading, best_and_worst, side_name
from preftune.curation.audit.texts import flat
from preftune.curation.audit.tokenised import TokenRow
from preftune.records import Example

KINDS = 40
"""Kinds of problems that are told apart; further ones are `others`."""
EXCERPT = 4000
"""Characters of a text that is shown."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A row as an example of a check: (label, text) of its texts, addresses and keys masked."""

    where: str
    note: str
    of: str
    texts: tuple[tuple[str, str], ...]


class Worst:
    """The worst few of a check's rows, the earlier of two that are as bad."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._heap: list[tuple[float, int, Finding, str, Example | Held]] = []
        self._count = 0

    def add(self, finding: Finding, where: str, example: Example | Held) -> None:
        self._count -= 1
        entry = (finding.weight, self._count, finding, where, example)
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, entry)
        elif self._size and entry > self._heap[0]:
            heapq.heapreplace(self._heap, entry)

    def shown(self) -> list[Shown]:
        """The worst first."""
        return [
            Shown(where, finding.note, finding.of, texts_of(example))
            for _, _, finding, where, example in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)
        ]


def texts_of(example: Example | Held) -> tuple[tuple[str, str], ...]:
    """A row's texts as they are shown; of a test row what was looked for, and the training text that holds most."""
    if isinstance(example, Held):
        found = (("training row", masked(example.found)),) if example.found else ()
        return (("test row", masked(example.text)), *found)
    named = [("prompt", flat(example.prompt))] if example.prompt else []
    named += [(side_name(example, n), flat(one)) for n, one in enumerate(example.completions)]
    return tuple((name, masked(text if len(text) <= EXCERPT else f"{text[:EXCERPT]} …")) for name, text in named)


@dataclass(slots=True)
class SourceTally:
    """One source in numbers.

    Attributes:
        rows, bad, kept: usable rows, rows that can't be read, rows that the limits leave in.
        findings: rows by check.
        prompt_words, answer_words, answers: sums of words, and how many answers there are.
        pairs, longer: rows with a better and a worse answer; of them those whose better one is longer, ties ½.
        languages, shapes: rows.
    """

    path: str
    rows: int = 0
    bad: int = 0
    kept: int = 0
    findings: Counter[str] = field(default_factory=Counter)
    prompt_words: int = 0
    answer_words: int = 0
    answers: int = 0
    pairs: int = 0
    longer: float = 0.0
    languages: Counter[str] = field(default_factory=Counter)
    shapes: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in values.items()}


@dataclass(slots=True)
class BadRows:
    """Rows that can't be read: kinds of problems, with the first rows of each.

    Attributes:
        stops: those of sources under `on_bad_row: error`, where training would stop.
    """

    count: int = 0
    stops: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def add(self, where: str, problem: str, *, stops: bool, shown: int) -> str:
        """Count a row. Returns the kind of its problem."""
        kind = kind_of(problem)
        if kind not in self.kinds and len(self.kinds) >= KINDS:
            kind = "others"
        self.count += 1
        self.stops += stops
        self.kinds[kind] += 1
        held = self.first.setdefault(kind, [])
        if len(held) < max(1, shown):
            held.append((where, problem))
        return kind


def kind_of(problem: str) -> str:
    """A problem without what differs from row to row: numbers, and what stands in the row.

    >>> kind_of("column 'answer': no match for 'x 17'")
    "column 'answer': no match for …"
    """
    found = re.sub(r"(?<!column )'[^']*'|\"[^\"]*\"|\(byte 0x..\)", "…", problem)
    return re.sub(r"(?<!\w)\d[\d.,]*", "N", found)[:160]


@dataclass(slots=True)
class Tally:
    """Everything that is counted in the pass over the training rows."""

    config: AuditConfig
    sources: list[SourceTally] = field(default_factory=list)
    bad: BadRows = field(default_factory=BadRows)
    worst: dict[str, Worst] = field(default_factory=dict)
    answer_languages: Counter[str] = field(default_factory=Counter)
    prompt_languages: Counter[str] = field(default_factory=Counter)
    prompts: array[int] = field(default_factory=lambda: array("I"))
    answers: array[int] = field(default_factory=lambda: array("I"))
    better: array[int] = field(default_factory=lambda: array("I"))
    worse: array[int] = field(default_factory=lambda: array("I"))
    marked: array[int] = field(default_factory=lambda: array("I"))
    marks: array[int] = field(default_factory=lambda: array("b"))

    @property
    def unit(self) -> str:
        """What answers are compared in: tokens where training reads them, else words."""
        return "tokens" if self.config.model is not None and self.config.use == "rows" else "words"

    @property
    def rows(self) -> int:
        return sum(source.rows for source in self.sources)

    @property
    def findings(self) -> Counter[str]:
        """Rows by check."""
        return sum((source.findings for source in self.sources), Counter())

    @property
    def shapes(self) -> Counter[str]:
        return sum((source.shapes for source in self.sources), Counter())

    @property
    def languages(self) -> Counter[str]:
        """Rows by language, those without a known one left out."""
        return sum((source.languages for source in self.sources), Counter())

    def of_shape(self, *names: str) -> int:
        """Rows of these shapes."""
        return sum(self.shapes[name] for name in names)

    def bad_row(self, where: str, problem: str, *, stops: bool) -> str:
        """Count a row of the present source that can't be read. Returns the kind of problem."""
        self.sources[-1].bad += 1
        return self.bad.add(where, problem, stops=stops, shown=self.config.examples)

    def row(self, reading: Reading, shape: str, found: list[Finding], tokens: TokenRow | None) -> None:
        """Count a usable row of the present source."""
        source, example = self.sources[-1], reading.example
        source.rows += 1
        source.kept += tokens is None or tokens.kept
        source.shapes[shape] += 1
        for finding in found:
            source.findings[finding.check] += 1
            worst = self.worst.setdefault(finding.check, Worst(self.config.examples))
            worst.add(finding, example.where, example)
        prompt, answers = reading.lengths
        source.prompt_words += prompt
        source.answer_words += sum(answers)
        source.answers += len(answers)
        self.prompts.append(prompt)
        self.answers.extend(answers)
        self._languages(source, reading)
        lengths = list(tokens.answers) if self.unit == "tokens" and tokens is not None else answers
        if lengths:  # none of a row that can't be tokenised
            self._sides(source, example, lengths)

    def _languages(self, source: SourceTally, reading: Reading) -> None:
        if reading.example.prompt:
            self.prompt_languages[reading.languages[0]] += 1
        self.answer_languages.update(reading.languages[1:])
        if reading.language:
            source.languages[reading.language] += 1

    def _sides(self, source: SourceTally, example: Example, lengths: list[int]) -> None:
        """Lengths of the better and worse side, in tokens where there is a tokenizer."""
        ends = best_and_worst(example)
        if ends is not None:
            best, worst = (lengths[place] for place in ends)
            self.better.append(best)
            self.worse.append(worst)
            source.pairs += 1
            source.longer += (best > worst) + 0.5 * (best == worst)
        elif len(example.scores) == 1:
            self.marked.append(lengths[0])
            self.marks.append(example.scores[0] >= self.config.label_threshold)

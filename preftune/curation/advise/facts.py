"""What the rows themselves say: their shape, how many there are, and whether a program could check an answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

from preftune.config import SourceConfig
from preftune.data.load import stream_rows
from preftune.errors import DataError
from preftune.records import Content, Example

Shape: TypeAlias = Literal["prompts", "answers", "text", "marks", "pairs", "ranked"]
Check: TypeAlias = Literal["number", "mathematics", "short text", "tests", "puzzle", "constraints"]

SHARE = 0.9
"""Share of rows from which on a column counts as there."""
SHORT = 5
"""Words of an answer that can be compared as text."""
CODE = ("tests", "test", "test_list")
"""Columns that hold tests of a program."""
REWARD: dict[Check, str] = {
    "number": "math-equal", "mathematics": "math-equal", "short text": "accuracy", "tests": "code",
    "puzzle": "knights-knaves", "constraints": "constraints",
}  # fmt: skip
"""How an answer can be checked → the built-in reward that does it."""


@dataclass(slots=True)
class Facts:
    """A data set in numbers.

    Attributes:
        rows, bad: usable rows and those left out (`on_bad_row: skip`).
        prompts: different prompts.
        shapes: rows by shape: prompts alone, prompts with an answer, plain text, marked answers, pairs, ranked answers.
        answers: the column that holds what an answer can be compared with, "" without one, and how it can be checked.
        good: share of marked answers that are marked as good.
        prompt_words, completion_words: their means.
        turns: share of rows whose prompt is a conversation.
        columns: further columns, by rows.
    """

    rows: int = 0
    bad: int = 0
    prompts: int = 0
    shapes: Counter[Shape] = field(default_factory=Counter)
    answers: str = ""
    check: Check | None = None
    good: float | None = None
    prompt_words: float = 0.0
    completion_words: float = 0.0
    turns: float = 0.0
    columns: Counter[str] = field(default_factory=Counter)

    @property
    def shape(self) -> Shape | None:
        """The shape of most rows; None without rows."""
        return self.shapes.most_common(1)[0][0] if self.shapes else None

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return values | {"shape": self.shape, "shapes": dict(self.shapes), "columns": dict(self.columns)}

    @property
    def mixed(self) -> bool:
        """Whether rows of another shape are more than a twentieth."""
        return bool(self.shapes) and self.shapes.most_common(1)[0][1] < 0.95 * self.rows


def read_facts(sources: Sequence[SourceConfig], base_dir: Path | None = None) -> Facts:
    """Read all rows once, holding none of them.

    Raises:
        DataError: a source can't be read, has a bad row under `on_bad_row: error`, or no usable row.
    """
    facts, prompts = Facts(), set[int]()
    seen: dict[str, list[Any]] = {}
    marks: list[bool] = []
    words, completion_words, completions, turns = 0, 0, 0, 0
    for source in sources:
        for one in stream_rows(source, base_dir):
            if one.example is None:
                facts.bad += 1
                continue
            example = one.example
            facts.rows += 1
            facts.shapes[shape_of(example)] += 1
            prompts.add(hash(example.prompt))
            words += _words(example.prompt)
            turns += not isinstance(example.prompt, str)
            for completion in example.completions:
                completions += 1
                completion_words += _words(completion)
            if len(example.completions) == 1 and example.scores:
                marks.append(example.scores[0] >= 0.5)
            for name, value in example.columns.items():
                facts.columns[name] += value is not None
                if len(seen.setdefault(name, [])) < 2000 and value is not None:
                    seen[name].append(value)
    if sources and not facts.rows:
        raise DataError(f"{sources[0].path}: has no usable row, so there is nothing to advise on")
    if facts.rows:
        facts.prompts = len(prompts)
        facts.prompt_words, facts.turns = words / facts.rows, turns / facts.rows
        facts.completion_words = completion_words / completions if completions else 0.0
        facts.good = sum(marks) / len(marks) if marks else None
        facts.answers, facts.check = _checkable(facts, seen)
    return facts


def shape_of(example: Example) -> Shape:
    if not example.prompt:
        return "text"
    if not example.completions:
        return "prompts"
    if len(example.completions) == 1:
        return "marks" if example.scores else "answers"
    return "pairs" if len(example.completions) == 2 else "ranked"


def _words(content: Content) -> int:
    return len(content.split()) if isinstance(content, str) else sum(len(m.content.split()) for m in content)


def _checkable(facts: Facts, seen: Mapping[str, list[Any]]) -> tuple[str, Check | None]:
    """The column that a program could check an answer by, and how."""
    there = [name for name, count in facts.columns.items() if count >= SHARE * facts.rows]
    for name in CODE:
        if name in there:
            return name, "tests"
    if "statements" in there and "solution" in there:
        return "solution", "puzzle"
    for name in ("constraints", "instruction_id_list"):
        if name in there:
            return name, "constraints"
    for name in ("answer", "solution", "target", "final_answer", "label_text"):
        if name in there and (kind := _kind(seen[name])) is not None:
            return name, kind
    return "", None


def _kind(values: Iterable[Any]) -> Check | None:
    from preftune.rewards.numbers import parse_number

    texts = [str(value).strip() for value in values]
    if not texts:
        return None

    def share(test: Any) -> float:
        return sum(bool(test(text)) for text in texts) / len(texts)

    if share(lambda text: parse_number(text) is not None) >= SHARE:
        return "number"
    if share(lambda text: "\\" in text or "$" in text or parse_number(text) is not None) >= SHARE:
        return "mathematics"
    if share(lambda text: 0 < len(text.split()) <= SHORT) >= SHARE:
        return "short text"
    return None

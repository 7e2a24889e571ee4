"""Judging a data set whose truth is known: pairs from any preference format, the judge's verdicts, their agreement."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from preftune.config import SourceConfig, Strict
from preftune.data import load_examples
from preftune.errors import DataError
from preftune.judges.agreement import Agreement, Asked, JudgedPair, measure
from preftune.judges.base import Backend, JudgeError, Progress, Question, Verdict
from preftune.judges.config import JudgeConfig
from preftune.judges.judge import Judge
from preftune.records import Content, Example


class EvaluationConfig(Strict):
    """The request of `preftune judge evaluate`."""

    judge: JudgeConfig
    data: list[SourceConfig] = Field(min_length=1, description="rows whose truth is known, source by source")
    reference: str | None = Field(None, description="column with a right answer, which the judge is shown")
    limit: int | None = Field(
        None, ge=1, description="judge at most N pairs: one of every prompt, then a second one, and so on"
    )

    @field_validator("data", mode="before")
    @classmethod
    def _one_source(cls, value: Any) -> Any:
        return [value] if isinstance(value, (dict, SourceConfig)) else value

    @field_validator("data")
    @classmethod
    def _no_contests(cls, value: list[SourceConfig]) -> list[SourceConfig]:
        return without_contests(value)


def without_contests(sources: list[SourceConfig]) -> list[SourceConfig]:
    """The sources. Raises ValueError where one makes contests, which only training and measuring do."""
    if any(source.contest is not None for source in sources):
        raise ValueError("contest is a setting of training data and has no meaning here; remove it")
    return sources


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A judged data set.

    Attributes:
        pairs: in the data's order. questions: what the judge was asked, `verdicts` what it said, one each.
        asked_in: for each pair the index of its question.
        places: for each question the places of its answers in their row.
        agreement: the measures.
        bad_rows: rows that the source's `on_bad_row: skip` left out.
    """

    pairs: tuple[JudgedPair, ...]
    questions: tuple[Question, ...]
    verdicts: tuple[Verdict, ...]
    asked_in: tuple[int, ...]
    places: tuple[tuple[int, ...], ...]
    agreement: Agreement
    bad_rows: int

    def line(self, index: int) -> dict[str, Any]:
        """The pair at `index` as plain values, with the judge's words; a line of the output."""
        pair, question = self.pairs[index], self.asked_in[index]
        words = {1.0: "better", 0.5: "tie", 0.0: "worse", None: None}
        line: dict[str, Any] = {
            "where": pair.where, "better": pair.better, "worse": pair.worse, "sources": list(pair.sources),
            "verdict": words[pair.right], "scores": None if pair.scores is None else list(pair.scores),
            "problem": pair.problem,
        }  # fmt: skip
        line["votes"] = [
            {
                "shown": [self.places[question][answer] for answer in vote.shown],
                "vote": vote.number,
                "scores": None if vote.scores is None else list(vote.scores),
                "problem": vote.problem,
                "cached": vote.cached,
                "text": vote.text,
            }
            for vote in self.verdicts[question].votes
        ]
        return line


@dataclass(frozen=True, slots=True)
class _Row:
    """A prompt with answers of known grade."""

    where: str
    prompt: int
    content: Content
    answers: tuple[Content, ...]
    grades: tuple[float, ...]
    sources: tuple[str, ...]
    reference: str | None

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(better, worse), by place."""
        grades = list(enumerate(self.grades))
        return [(i, j) for i, better in grades for j, worse in grades if better > worse]


def evaluate(
    config: EvaluationConfig,
    *,
    backend: Backend | None = None,
    base_dir: Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Judge every pair of answers of which the data says which is better, and measure how often the judge agrees.

    Pairwise asks about each pair by itself; pointwise grades each answer and listwise ranks a row's answers once, and
    the pairs follow from that. Rows of one completion with a label (unpaired) are put together by prompt.

    Args:
        config: judge and data.
        backend: what writes the replies; default: the model that the settings name.
        base_dir: where relative data paths start.
        progress: called as replies come.

    Raises:
        DataError: a row that can't be read, without grades, or without the reference; or no pair at all.
        JudgeError: no reply holds a verdict. Otherwise as `Judge`.
    """
    rows, bad_rows = _rows(config, base_dir)
    chosen = _chosen(rows, config.limit)
    sheets: list[tuple[_Row, tuple[int, ...]]] = []  # what each question shows
    wanted: list[tuple[tuple[int, int], int]] = []  # pairs, and the question that decides each
    for row, pairs in chosen:
        if config.judge.mode == "pairwise":
            wanted += [(pair, len(sheets) + n) for n, pair in enumerate(pairs)]
            sheets += [(row, pair) for pair in pairs]
        else:
            wanted += [(pair, len(sheets)) for pair in pairs]
            sheets.append((row, tuple(sorted({answer for pair in pairs for answer in pair}))))
    questions = [_question(row, shown) for row, shown in sheets]
    with Judge(config.judge, backend) as judge:
        verdicts = judge.judge(questions, progress)
        usage, cost = judge.usage, judge.cost
        complaint = judge.complaint() if usage.failed else ""
    if usage.replies and usage.failed == usage.replies:
        raise JudgeError(complaint)
    judged = tuple(_judged(*sheets[index], pair, verdicts[index]) for pair, index in wanted)
    asked = [Asked(row.prompt, verdict.votes) for (row, _), verdict in zip(sheets, verdicts, strict=True)]
    left_out = len(rows) - len([row for row in rows if row.pairs])
    agreement = measure(judged, asked, without_pairs=left_out, usage=usage, cost=cost, complaint=complaint)
    return Evaluation(
        pairs=judged,
        questions=tuple(questions),
        verdicts=tuple(verdicts),
        asked_in=tuple(index for _, index in wanted),
        places=tuple(shown for _, shown in sheets),
        agreement=agreement,
        bad_rows=bad_rows,
    )


def _rows(config: EvaluationConfig, base_dir: Path | None) -> tuple[list[_Row], int]:
    """Source by source: together they would be mixed."""
    prompts: dict[Content, int] = {}
    rows: list[_Row] = []
    single: dict[Content, int] = {}
    bad_rows = 0
    for source in config.data:
        loaded = load_examples([source], seed=0, base_dir=base_dir)
        bad_rows += loaded.skipped
        for example in loaded.examples:
            row = _row(example, prompts.setdefault(example.prompt, len(prompts)), config.reference)
            # Rows with one labelled answer say nothing by themselves; labels of one prompt's answers can be compared.
            if len(row.answers) == 1 and example.prompt in single:
                other = rows[single[example.prompt]]
                rows[single[example.prompt]] = replace(
                    other,
                    answers=other.answers + row.answers,
                    grades=other.grades + row.grades,
                    sources=other.sources + row.sources,
                )
                continue
            if len(row.answers) == 1:
                single[example.prompt] = len(rows)
            rows.append(row)
    if not any(row.pairs for row in rows):
        raise DataError(
            f"none of the {len(rows)} prompts has a better and a worse answer, so there is nothing to agree with; the "
            "data must have pairs (chosen and rejected), ranked responses, or right and wrong answers to one prompt"
        )
    return rows, bad_rows


def _row(example: Example, prompt: int, reference: str | None) -> _Row:
    if not example.completions or not example.scores:
        raise DataError(
            f"{example.where}: the row does not say which answer is better; map chosen and rejected, a label, or "
            "responses with scores (data.columns, data.responses)"
        )
    truth: str | None = None
    if reference is not None:
        value = example.columns.get(reference)
        if value is None:
            there = ", ".join(example.columns) or "none"
            raise DataError(
                f"{example.where}: the column {reference!r} for the reference is missing or empty; further columns of "
                f"the row: {there} (one that is a response is none of them)"
            )
        truth = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    sources = example.sources or ("",) * len(example.completions)
    return _Row(example.where, prompt, example.prompt, example.completions, example.scores, sources, truth)


def _chosen(rows: Sequence[_Row], limit: int | None) -> list[tuple[_Row, list[tuple[int, int]]]]:
    """Each row with the pairs to judge, at most `limit` in all: one of every row, then a second one, … Which ones is
    drawn from the row's number alone."""
    wanted: dict[int, list[tuple[int, int]]] = {n: row.pairs for n, row in enumerate(rows) if row.pairs}
    if limit is not None and sum(map(len, wanted.values())) > limit:
        drawn = {n: random.Random(n).sample(pairs, len(pairs)) for n, pairs in wanted.items()}
        most = max(map(len, drawn.values()))
        rounds = [(n, pairs[turn]) for turn in range(most) for n, pairs in drawn.items() if turn < len(pairs)]
        wanted = {}
        for n, pair in rounds[:limit]:
            wanted.setdefault(n, []).append(pair)
    return [(rows[n], sorted(pairs)) for n, pairs in wanted.items()]


def _question(row: _Row, answers: Sequence[int]) -> Question:
    return Question(row.content, tuple(row.answers[n] for n in answers), row.reference, row.where)


def _judged(row: _Row, shown: tuple[int, ...], pair: tuple[int, int], verdict: Verdict) -> JudgedPair:
    at = [shown.index(answer) for answer in pair]
    better, worse = (verdict.scores[place] for place in at)
    problem = verdict.problems[at[0]] or verdict.problems[at[1]]
    return JudgedPair(
        where=row.where,
        prompt=row.prompt,
        better=pair[0],
        worse=pair[1],
        scores=None if better is None or worse is None else (better, worse),
        problem=problem,
        lengths=(_length(row.answers[pair[0]]), _length(row.answers[pair[1]])),
        sources=(row.sources[pair[0]], row.sources[pair[1]]),
    )


def _length(content: Content) -> int:
    return len(content) if isinstance(content, str) else sum(len(turn.content) for turn in content)

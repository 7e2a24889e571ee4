"""Scoring a data set with a reward model, row by row in the data's order."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from preftune.config import SourceConfig
from preftune.data import load_examples
from preftune.errors import DataError, UsageError
from preftune.records import Content, Example, Group
from preftune.rewards.learned import RewardReader
from preftune.scoring.settings import ScoreConfig
from preftune.scoring.summary import ScoredRow, Summary, summarize
from preftune.train.progress import Progress

CHUNK_BATCHES = 8
"""Rows are read until they fill this many forward passes, then scored and written."""


@dataclass(frozen=True, slots=True)
class Scores:
    """A scored data set.

    Attributes:
        rows: in the data's order, without those skipped.
        summary: how well the scores agree with what the data says.
        normalization: (mean, std) that turned raw scores into scores, None where they are the same.
        bad_rows: rows that the source's `on_bad_row: skip` left out before scoring.
    """

    rows: tuple[ScoredRow, ...]
    summary: Summary
    normalization: tuple[float, float] | None
    bad_rows: int


def score(
    config: ScoreConfig,
    *,
    output: Path | TextIO | None = None,
    columns: bool = False,
    base_dir: Path | None = None,
) -> Scores:
    """Score every completion of every row.

    Args:
        config: model, data and how they are read.
        output: a new JSONL file, or an open stream: one line per row, in the data's order, written while scoring goes
            on. Fields: `where`, `scores`, `raw`, `lengths` (tokens), lists with an item per completion; for a row that
            was skipped `scores` is null and `problem` says why. A file is complete when it has its name: until then
            it is `NAME.partial`.
        columns: write the row's `prompt`, `completions`, `given` (what the data says of each), `sources` and further
            `columns` too.
        base_dir: where relative data paths start.

    Raises:
        UsageError: `output` exists. DataError: a row that can't be read, has no completion, or is too long for the
            model under `on_too_long: error`. ModelError: the model can't be loaded or is no reward model.
    """
    with _opened(output) as stream:
        examples, bad_rows = _examples(config.data, base_dir)
        reader = RewardReader(
            config.model, config.tokens, max_tokens=config.max_tokens_per_batch, normalize=config.normalize
        )
        rows: list[ScoredRow] = []
        prompts: dict[Content, int] = {}
        with Progress("score") as progress:
            progress.begin("rows")
            done = 0
            for chunk in _chunks(reader, examples, config):
                for example, scored in _score_chunk(reader, chunk, prompts):
                    if stream is not None:
                        stream.write(json.dumps(_line(example, scored, columns), ensure_ascii=False) + "\n")
                    if isinstance(scored, ScoredRow):
                        rows.append(scored)
                if stream is not None:
                    stream.flush()
                done += len(chunk)
                progress.tick(done, len(examples))
        if not rows:
            raise DataError(f"all {len(examples)} rows were skipped: the model can read none of them whole")
        summary = summarize(rows, skipped=len(examples) - len(rows))
    return Scores(tuple(rows), summary, reader.normalization, bad_rows)


def _examples(sources: Sequence[SourceConfig], base_dir: Path | None) -> tuple[list[Example], int]:
    """Source by source: together they would be mixed."""
    out: list[Example] = []
    bad_rows = 0
    for source in sources:
        loaded = load_examples([source], seed=0, base_dir=base_dir)
        out.extend(loaded.examples)
        bad_rows += loaded.skipped
    for example in out:
        if not example.completions:
            raise DataError(
                f"{example.where}: the row has no completion to score; map one with data.columns (completion, "
                "messages, chosen and rejected, or responses)"
            )
    return out, bad_rows


def _chunks(
    reader: RewardReader, examples: Sequence[Example], config: ScoreConfig
) -> Iterator[list[tuple[Example, Group | str]]]:
    """Rows as ids, or why one can't be scored, until they fill a chunk."""
    chunk: list[tuple[Example, Group | str]] = []
    tokens = 0
    for example in examples:
        group = reader.group(example)
        problem = next((why for why in reader.unreadable(group) if why), "")
        if problem and config.on_too_long == "error":
            raise DataError(f"{example.where}: {problem}. To leave such rows unscored, set on_too_long: skip")
        chunk.append((example, problem or group))
        tokens += len(group.prompt.ids) + sum(len(completion.ids) for completion in group.completions)
        if tokens >= CHUNK_BATCHES * config.max_tokens_per_batch:
            yield chunk
            chunk, tokens = [], 0
    if chunk:
        yield chunk


def _score_chunk(
    reader: RewardReader, chunk: Sequence[tuple[Example, Group | str]], prompts: dict[Content, int]
) -> Iterator[tuple[Example, ScoredRow | str]]:
    """`prompts` numbers the prompts by their first appearance."""
    ratings = iter(reader.rate([group for _, group in chunk if isinstance(group, Group)]))
    for example, group in chunk:
        if isinstance(group, str):
            yield example, group
            continue
        raw = next(ratings)
        subset = example.columns.get("subset")
        yield (
            example,
            ScoredRow(
                where=example.where,
                prompt=prompts.setdefault(example.prompt or example.where, len(prompts)),  # the text format has none
                scores=tuple(map(reader.normalized, raw)),
                raw=tuple(raw),
                lengths=tuple(len(completion.ids) for completion in group.completions),
                given=example.scores,
                sources=example.sources,
                subset=None if subset is None else str(subset),
            ),
        )


def _line(example: Example, scored: ScoredRow | str, columns: bool) -> dict[str, Any]:
    line: dict[str, Any] = {"where": example.where}
    if isinstance(scored, ScoredRow):
        line |= {"scores": list(scored.scores), "raw": list(scored.raw), "lengths": list(scored.lengths)}
    else:
        line |= {"scores": None, "raw": None, "lengths": None, "problem": scored}
    if columns:
        line |= {
            "prompt": _plain(example.prompt),
            "completions": [_plain(completion) for completion in example.completions],
            "given": list(example.scores),
            "sources": list(example.sources),
            "columns": _plain(example.columns),
        }
    return line


def _plain(value: Any) -> Any:
    """Values that JSON does not have as those that it has: messages as mappings, NaN as null, the rest as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if hasattr(value, "role") and hasattr(value, "content"):
        return {"role": value.role, "content": value.content}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


@contextmanager
def _opened(output: Path | TextIO | None) -> Iterator[TextIO | None]:
    """The stream to write to. A file is opened beside its place and moved there at the end."""
    if not isinstance(output, Path):
        yield output
        return
    check_new(output, "output")
    partial = output.with_name(f"{output.name}.partial")
    with partial.open("w", encoding="utf-8") as stream:
        yield stream
    check_new(output, "output")
    os.replace(partial, output)


def check_new(path: Path, name: str) -> None:
    """Raises UsageError when the file is there, or its folder is not."""
    if path.exists():
        raise UsageError(f"{name}: {path} exists and is not overwritten; remove it or give another name")
    if not path.parent.is_dir():
        raise UsageError(f"{name}: there is no folder {path.parent}; make it first")

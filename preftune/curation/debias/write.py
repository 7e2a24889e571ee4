"""The last pass of `debias`: every row without the openings that go, and the decision on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from preftune.config import SourceConfig
from preftune.curation.debias.config import DebiasConfig
from preftune.curation.debias.counterfactual import changed_first
from preftune.curation.debias.openings import Stripped, Stripper
from preftune.curation.debias.rewrite import Rewriter
from preftune.curation.debias.table import Table, answer_text
from preftune.curation.debias.training import Splits
from preftune.curation.folder import Curated
from preftune.data.load import StreamedRow, stream_rows
from preftune.records import Example
from preftune.train.progress import Progress

BAD, SAME, STRIPPED = "bad row", "only its opening differed", "stripped"
SHOWN = 3
"""Examples kept of each opening."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A row of which something was stripped, for people: prompt, then each changed answer before and after."""

    where: str
    opening: str
    prompt: str
    answers: tuple[tuple[str, str, str], ...]


@dataclass(slots=True)
class Written:
    """What the last pass did. `taken`: answers by opening; `left`: answers that are nothing but their opening."""

    table: Table
    taken: Counter[str]
    shown: list[Shown]
    changed: int = 0
    left: int = 0


def write(
    config: DebiasConfig, base_dir: Path | None, openings: Sequence[str], out: Curated, splits: Splits | None,
    progress: Progress,
) -> Written:  # fmt: skip
    """Write rows.jsonl and decisions.jsonl, and the rows of training where there is any.

    Args:
        openings: that are taken off.
        out: the new folder.
        splits: files of rows to train on.
    """
    stripper = Stripper(openings, fold=config.fold)
    rewriters = [Rewriter(source) for source in config.data]
    done = Written(Table(config.words, config.fold), Counter(), [])
    for number, one in stream(config.data, base_dir, progress, "writing"):
        example, where = one.example, one.row.where
        if example is None:
            out.decide(where, kept=False, why=BAD, problem=one.problem)
            continue
        results = [stripper(answer_text(completion)) for completion in example.completions]
        done.left += sum(bool(result.problem) for result in results)
        texts = {place: result.text for place, result in enumerate(results) if result.openings}
        stripped = replace(
            example,
            completions=tuple(
                changed_first(completion, texts[place]) if place in texts else completion
                for place, completion in enumerate(example.completions)
            ),
        )
        details = {"stripped": [_taken(example, place, results[place]) for place in texts]} if texts else {}
        if texts and len(set(stripped.completions)) == 1 and len(set(example.completions)) > 1:
            out.decide(where, kept=False, why=SAME, **details)
            if splits is not None:
                splits.add(example, None)
            continue
        for place in texts:
            done.taken.update(dict.fromkeys(results[place].openings, 1))
        done.table.add(stripped)
        out.write(rewriters[number](one.row.values, example, texts) if texts else one.row.values)
        out.decide(where, kept=True, why=STRIPPED if texts else "", **details)
        if splits is not None:
            splits.add(example, stripped)
        if texts:
            done.changed += 1
            _show(done, example, results)
    return done


def stripped_table(config: DebiasConfig, base_dir: Path | None, openings: Sequence[str], progress: Progress) -> Table:
    """What the statistics need of the rows without these openings."""
    stripper, table = Stripper(openings, fold=config.fold), Table(config.words, config.fold)
    for _, one in stream(config.data, base_dir, progress, "counting without them"):
        if one.example is not None:
            table.add(
                replace(
                    one.example,
                    completions=tuple(changed_first(c, stripper(answer_text(c)).text) for c in one.example.completions),
                )
            )
    return table


def _taken(example: Example, place: int, result: Stripped) -> dict[str, Any]:
    scores = example.scores
    side = "better" if scores[place] == max(scores) else "worse" if scores[place] == min(scores) else "middle"
    if max(scores) == min(scores):
        side = "neither"
    return {"answer": place, "side": side, "openings": list(result.openings)}


def _show(done: Written, example: Example, results: Sequence[Stripped]) -> None:
    """Keep a row as an example of its opening, while there are few."""
    opening = next(result.openings[0] for result in results if result.openings)
    if sum(one.opening == opening for one in done.shown) >= SHOWN:
        return
    prompt = example.prompt if isinstance(example.prompt, str) else example.prompt[-1].content
    answers = tuple(
        (str(_taken(example, place, result)["side"]), answer_text(completion), result.text)
        for place, (completion, result) in enumerate(zip(example.completions, results, strict=True))
        if result.openings
    )
    done.shown.append(Shown(example.where, opening, prompt, answers))


def stream(
    sources: Sequence[SourceConfig], base_dir: Path | None, progress: Progress, label: str
) -> Iterator[tuple[int, StreamedRow]]:
    """All rows with the number of their source."""
    progress.begin(label)
    done = 0
    for number, source in enumerate(sources):
        for one in stream_rows(source, base_dir):
            yield number, one
            done += 1
            if done % 256 == 0:
                progress.tick(done, None)
    progress.tick(done, done)

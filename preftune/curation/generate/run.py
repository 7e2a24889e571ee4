"""`generate`: every tier answers every prompt, one tier after another, and nothing is asked twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from preftune.curation.contents import printable
from preftune.curation.folder import PARTIAL, ROWS, Curated, check_free
from preftune.curation.generate.assemble import Assembled, TierCounts, assemble
from preftune.curation.generate.config import GenerateConfig, TierConfig
from preftune.curation.generate.journal import ANSWERS, Journal, begun, check_ours, empty
from preftune.curation.generate.page import make_page, problems_of
from preftune.curation.generate.prompts import Asked, Bad, Prompts
from preftune.curation.generate.remote import Outcome, RemoteTier
from preftune.errors import DataError, PreftuneError, SamplingError, UsageError
from preftune.recipes.schema import nearest
from preftune.train.progress import Progress

BATCH = 256
"""Answers from a column that are written at once."""


@dataclass(frozen=True, slots=True)
class Generated:
    """What `generate` wrote.

    Attributes:
        folder: rows.jsonl, answers.jsonl, decisions.jsonl, summary.json and report.html.
        rows, answers: rows written, and answers in them.
        tiers: counts of each tier, the best first.
        warnings: what a person should look at, in words.
    """

    folder: Path
    rows: int
    answers: int
    tiers: Sequence[TierCounts]
    warnings: Sequence[str]

    @property
    def failed(self) -> int:
        """Answers that failed or were refused; `resume` asks for them again."""
        return sum(tier.failed + tier.refused for tier in self.tiers)

    @property
    def cost(self) -> float | None:
        """Of all tiers that have prices, None where none has."""
        costs = [tier.cost for tier in self.tiers if tier.cost is not None]
        return sum(costs) if costs else None


def generate(config: GenerateConfig, output: Path, *, resume: bool = False, base_dir: Path | None = None) -> Generated:
    """Have every tier answer every prompt, and write the answers as rows of the ranked format.

    Each answer is in answers.jsonl before the next one is waited for. What is there is not asked for again: neither
    after a kill, nor where tiers or rows were added since. Calls that failed are recorded, and asked again by `resume`.

    Args:
        output: a new folder, or one that was begun before, with `resume`.
        base_dir: where relative data paths start.

    Raises:
        UsageError: `output` holds something and is not to be resumed, or was begun with other settings.
        DataError: the prompts can't be read. ModelError: a model can't be loaded.
        SamplingError: no usable key, or too many calls failed in a row; what is there is kept.
    """
    _check_folder(output, resume=resume)
    for tier in config.tiers:
        if tier.endpoint is not None:  # a key that is missing is said now, not when the other tiers are done
            RemoteTier(tier, seed=config.seed).close()
    with Progress("generate") as progress:
        progress.begin("prompts")
        prompts = Prompts(config.data, config.tiers, base_dir, progress.tick)
        with Journal(output, config, prompts) as journal:
            for tier in config.ordered:
                _Asking(tier, config, prompts, journal, progress).run()
            with _Begun(output) as curated:
                progress.begin("rows")
                found = assemble(config, prompts, journal, curated, progress.tick)
                result = Generated(output, found.rows, found.answers, found.tiers, problems_of(config, prompts, found))
                _finish(curated, config, prompts, found, result)
    if not result.rows:
        raise PreftuneError(f"{output}: no prompt has an answer that is kept; decisions.jsonl says why for each")
    return result


class _Begun(Curated):
    """The folder, which holds the journal already, and perhaps what an earlier command made of it."""

    def __enter__(self) -> Self:
        for left in self.folder.glob(f"*{PARTIAL}"):
            left.unlink()
        return self


class _Asking:
    """One tier's turn."""

    def __init__(
        self, tier: TierConfig, config: GenerateConfig, prompts: Prompts, journal: Journal, progress: Progress
    ) -> None:
        self._tier, self._config, self._prompts, self._journal = tier, config, prompts, journal
        self._progress = progress
        self._in_a_row = self._failed = self._done = 0
        self._total = sum(1 for index in range(prompts.count) if self._is_asked(index))

    def run(self) -> None:
        """Ask for what is missing."""
        missing = sum(
            bool(self._journal.missing(self._tier.name, index))
            for index in range(self._prompts.count)
            if self._is_asked(index)
        )
        self._done = self._total - missing
        if not missing:
            return
        self._progress.begin(printable(self._tier.name), self._done)
        if self._tier.column is not None:
            self._copy(self._tier.column)
        elif self._tier.endpoint is not None:
            remote = RemoteTier(self._tier, seed=self._config.seed)
            try:
                remote.ask_all((task for task in self._tasks() if task[1]), self._keep)
            finally:
                remote.close()
        else:
            from preftune.curation.generate.local import LocalTier

            local = LocalTier(self._tier, seed=self._config.seed)
            try:
                local.ask_all(self._tasks(), self._keep_all)
            finally:
                local.close()

    def _is_asked(self, index: int) -> bool:
        return self._config.repeated_prompts == "keep" or not self._prompts.is_repeated(index)

    def _tasks(self) -> Iterator[tuple[Asked, list[int]]]:
        for one in self._prompts:
            if not isinstance(one, Bad) and self._is_asked(one.index):
                yield one, self._journal.missing(self._tier.name, one.index)

    def _keep(self, asked: Asked, outcome: Outcome) -> None:
        self._keep_all([(asked, outcome)])
        self._in_a_row = self._in_a_row + 1 if outcome.problem else 0
        if self._in_a_row >= self._config.stop_after:
            raise SamplingError(
                f"tier {self._tier.name}: {self._in_a_row} calls in a row failed, the last: "
                f"{printable(outcome.problem)}. What is there is kept; mend it, then go on with --resume (or raise "
                "stop_after)"
            )

    def _keep_all(self, outcomes: Sequence[tuple[Asked, Outcome]]) -> None:
        lines: list[dict[str, Any]] = []
        for asked, outcome in outcomes:
            lines += self._lines(asked, outcome)
            self._failed += bool(outcome.problem)
            self._done += 1
        self._journal.write(lines)
        note = f"{self._failed} failed" if self._failed else ""
        self._progress.tick(self._done, self._total, note)

    def _lines(self, asked: Asked, outcome: Outcome) -> Iterator[dict[str, Any]]:
        about = {"row": asked.index, "where": asked.where, "prompt": asked.digest, "tier": self._tier.name}
        for one in outcome.answers:
            usage = {"usage": list(one.usage or (None, None))} if one.first else {}
            yield {**about, "n": one.k, "text": one.text, "finish": one.finish, **usage}
        if outcome.problem:
            usage = {"usage": list(outcome.usage)} if outcome.usage is not None else {}
            yield {**about, "error": outcome.problem, "refused": outcome.refused, **usage}

    def _copy(self, column: str) -> None:
        """Take the answers that the data hold. A row without one is no failure: human truth is rare."""
        lines: list[dict[str, Any]] = []
        found, columns = 0, dict[str, None]()
        for asked, missing in self._tasks():
            value = _value(asked, column)
            columns.update(dict.fromkeys([*asked.columns, *asked.values]))
            self._done += 1
            if value is None or not missing:
                found += not missing
                continue
            if not isinstance(value, str):
                kind = type(value).__name__
                raise DataError(
                    f"{asked.where}: column {column!r} of tier {self._tier.name} must hold text, it holds {kind}; map "
                    f"it with data.columns, or leave the row out"
                )
            found += 1
            lines += [*self._lines_of(asked, value)]
            if len(lines) >= BATCH:
                self._journal.write(lines)
                lines = []
                self._progress.tick(self._done, self._total)
        self._journal.write(lines)
        self._progress.tick(self._done, self._total)
        if not found:
            close = nearest(column, columns)
            hint = f"did you mean {close!r}?" if close else f"columns: {', '.join(map(str, columns))}"
            raise DataError(f"tier {self._tier.name}: no row has anything in column {column!r}; {hint}")

    def _lines_of(self, asked: Asked, text: str) -> Iterator[dict[str, Any]]:
        yield {
            "row": asked.index, "where": asked.where, "prompt": asked.digest, "tier": self._tier.name, "n": 0,
            "text": text, "finish": "data",
        }  # fmt: skip


def _value(asked: Asked, column: str) -> Any:
    """A mapped column, or one of the row as read."""
    place: Mapping[str, Any] = asked.columns if column in asked.columns else asked.values
    value = place.get(column)
    # Tables write what is not there as an empty text.
    return None if isinstance(value, str) and not value.strip() else value


def _check_folder(folder: Path, *, resume: bool) -> None:
    if begun(folder):
        if resume or empty(folder):
            check_ours(folder)
            return
        whole = "is finished" if (folder / ROWS).exists() else "was begun and not finished"
        raise UsageError(
            f"--output {folder} {whole}: go on with --resume, which asks only for what is missing, or name another "
            "folder"
        )
    if resume:
        raise UsageError(f"there is nothing to resume in {folder} (no {ANSWERS}); leave --resume out")
    check_free(folder)


def _finish(curated: Curated, config: GenerateConfig, prompts: Prompts, found: Assembled, result: Generated) -> None:
    settings = config.model_dump(mode="json", by_alias=True)
    measures = {
        "prompts": {"read": prompts.count, "bad": prompts.bad, "repeated": prompts.repeated, "written": found.rows},
        "answers": found.answers, "cost": result.cost, "tiers": [tier.to_json() for tier in found.tiers],
        "warnings": result.warnings,
    }  # fmt: skip
    curated.finish("preftune data generate", settings, measures, make_page(config, prompts, found, result.warnings))

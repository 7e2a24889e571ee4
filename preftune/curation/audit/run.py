"""`audit`: the test rows first, then one pass over the training rows, and a verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from preftune.config import SourceConfig
from preftune.curation.advise.facts import shape_of
from preftune.curation.audit.checks import Check, Checks, Status
from preftune.curation.audit.config import AuditConfig
from preftune.curation.audit.overlap import Held, Overlap
from preftune.curation.audit.page import audit_page
from preftune.curation.audit.row import Finding, Reading, look
from preftune.curation.audit.seen import Seen
from preftune.curation.audit.tally import BadRows, SourceTally, Tally
from preftune.curation.audit.texts import Places
from preftune.curation.audit.tokenised import TokenLook
from preftune.curation.folder import DECISIONS, Curated, room_for
from preftune.data.load import StreamedRow, stream_rows
from preftune.records import Example
from preftune.train.progress import Progress

COMMAND = "preftune data audit"
TEST = "test.jsonl"
"""What became of each test row."""
TICK = 200
BAD = "bad row"
QUANTILES = (0, 5, 25, 50, 75, 95, 99, 100)


@dataclass(frozen=True, slots=True)
class Audit:
    """What `audit` found.

    Attributes:
        folder: decisions.jsonl, test.jsonl (with test rows), summary.json, report.html.
        rows, bad: usable training rows, and those that can't be read.
        checks: every look at the data, in order.
        tally: what was counted; `tokens`: what the token contract made of the rows, None without a model.
        test: the test rows, in order; `overlap` says how they were looked for, None without any.
        test_bad: test rows that can't be read.
    """

    folder: Path
    rows: int
    bad: int
    checks: tuple[Check, ...]
    tally: Tally
    tokens: TokenLook | None
    test: tuple[Held, ...]
    overlap: Overlap | None
    test_bad: BadRows
    prompts: int

    @property
    def verdict(self) -> Status:
        """The worst status of all checks."""
        found = {check.status for check in self.checks}
        return "not fit" if "not fit" in found else "look" if "look" in found else "ok"

    def exit_code(self, *, strict: bool = False) -> int:
        """0 when the data is fit, 1 when it is not; strict: what should be looked at is not fit, too."""
        return int(self.verdict == "not fit" or (strict and self.verdict == "look"))

    def __getitem__(self, name: str) -> Check:
        """A check by its name. Raises KeyError where the rows have nothing for it."""
        return {check.name: check for check in self.checks}[name]


def audit(config: AuditConfig, output: Path, *, base_dir: Path | None = None) -> Audit:
    """Look at a data set before training.

    Rows stream by once (twice with `tokens.drop_above_percentile`). Memory holds hashes of them, the index of the test
    rows, and a few worst rows of each check.

    Args:
        config: the data and the thresholds.
        output: a new folder.
        base_dir: where relative data paths start.

    Raises:
        UsageError: the folder holds something. DataError: a source can't be read at all. ModelError: no tokenizer.
    """
    with room_for(output), Curated(output) as out, Progress("audit") as progress:
        tokens = _tokens(config, base_dir)
        overlap, test_bad = _read_test(config, base_dir, out, progress)
        if tokens is not None and tokens.needs_lengths:
            progress.begin("measuring prompts")
            tokens.measure(_examples(config.data, base_dir, progress))
        tally, places = Tally(config), Places()
        with Seen(config, places) as seen:
            _read(config, base_dir, out, progress, tally, places, seen, tokens, overlap)
            prompts = seen.distinct_prompts
        held = tuple(overlap.rows(places)) if overlap is not None else ()
        contaminated = [overlap is not None and overlap.contaminated(one) for one in held]
        for one, found in zip(held, contaminated, strict=True):
            out.write(
                {"where": one.where, "share": one.share, "contaminated": found, "prompt_at": one.prompt_at,
                 "found_at": one.found_at}, TEST,
            )  # fmt: skip
        checks = Checks(tally, tokens, held, contaminated).all(test_bad.count, test_bad.stops)
        result = Audit(
            output, tally.rows, tally.bad.count, tuple(checks), tally, tokens, held, overlap, test_bad, prompts
        )
        out.finish(COMMAND, config.model_dump(mode="json"), _measures(result), audit_page(result, config))
    return result


def _tokens(config: AuditConfig, base_dir: Path | None) -> TokenLook | None:
    if config.model is None:
        return None
    from preftune.train.rows import with_template

    return TokenLook(
        config.model, with_template(config.tokens, base_dir), use_answers=config.use == "rows",
        new_tokens=config.new_tokens, show=config.show, seed=config.seed,
    )  # fmt: skip


def _stream(source: SourceConfig, base_dir: Path | None) -> Iterator[StreamedRow]:
    """All rows of a source; bad ones come with their problem, whatever training would do about them."""
    return stream_rows(source.model_copy(update={"on_bad_row": "skip"}), base_dir)


def _examples(sources: Sequence[SourceConfig], base_dir: Path | None, progress: Progress) -> Iterator[Example]:
    done = 0
    for source in sources:
        for one in _stream(source, base_dir):
            if one.example is not None:
                yield one.example
            done += 1
            if done % TICK == 0:
                progress.tick(done, None)


def _read_test(
    config: AuditConfig, base_dir: Path | None, out: Curated, progress: Progress
) -> tuple[Overlap | None, BadRows]:
    bad = BadRows()
    if not config.test:
        return None, bad
    overlap = Overlap(config.overlap)
    out.text(TEST, "")
    progress.begin("test rows")
    for source in config.test:
        for one in _stream(source, base_dir):
            if one.example is not None:
                overlap.add(one.example)
            else:
                bad.add(one.row.where, one.problem, stops=source.on_bad_row == "error", shown=config.examples)
                out.write({"where": one.row.where, "problem": one.problem}, TEST)
            if len(overlap) % TICK == 0:
                progress.tick(len(overlap), None)
    overlap.close()
    return overlap, bad


def _read(
    config: AuditConfig, base_dir: Path | None, out: Curated, progress: Progress, tally: Tally, places: Places,
    seen: Seen, tokens: TokenLook | None, overlap: Overlap | None,
) -> None:  # fmt: skip
    """The pass over the training rows: findings of each, counted and written."""
    out.text(DECISIONS, "")  # there is a file, even without a row
    progress.begin("training rows")
    done = 0
    for source in config.data:
        tally.sources.append(SourceTally(source.path))
        for one in _stream(source, base_dir):
            done += 1
            if done % TICK == 0:
                progress.tick(done, None)
            if one.example is None:
                kind = tally.bad_row(one.row.where, one.problem, stops=source.on_bad_row == "error")
                out.decide(one.row.where, kept=False, why=BAD, kind=kind, problem=one.problem)
                continue
            example = one.example
            number, reading, shape = places.add(example.where), Reading.of(example), shape_of(example)
            found = [*look(reading), *seen.look(reading, number)]
            if overlap is not None:
                found += _in_test(overlap, reading, number)
            row = None
            details: dict[str, Any] = {"shape": shape}
            if tokens is not None:
                private = any(finding.check in ("personal", "secrets") for finding in found)
                row = tokens.look(example, shape, may_show=not private)
                found += row.findings
                details["tokens"] = {"prompt": row.prompt, "answers": row.answers}
            tally.row(reading, shape, found, row)
            out.decide(
                example.where, kept=row is None or row.kept, why="" if row is None else row.why, **details,
                findings=[finding.to_json() for finding in found],
            )  # fmt: skip


def _in_test(overlap: Overlap, reading: Reading, number: int) -> list[Finding]:
    texts = [*zip(reading.prompt, reading.prompt_tokens, strict=True)]
    texts += zip(reading.answers, reading.answer_tokens, strict=True)
    found = overlap.look(reading.prompt_tokens, texts, number)
    return [] if found is None else [found]


def quantiles(values: Sequence[int]) -> dict[str, float]:
    """Mean and quantiles of lengths; empty without any."""
    if not len(values):
        return {}
    found = np.percentile(np.asarray(values), QUANTILES)
    return {"mean": float(np.mean(values)), **{f"{q}%": float(v) for q, v in zip(QUANTILES, found, strict=True)}}


def _measures(result: Audit) -> Mapping[str, Any]:
    tally, tokens = result.tally, result.tokens
    out: dict[str, Any] = {
        "verdict": result.verdict, "usable": result.rows, "bad": result.bad, "different_prompts": result.prompts,
        "checks": {check.name: check.to_json() for check in result.checks},
        "findings": dict(tally.findings), "shapes": dict(tally.shapes), "bad_rows": dict(tally.bad.kinds),
        "languages": {
            "rows": dict(tally.languages), "prompts": dict(tally.prompt_languages),
            "answers": dict(tally.answer_languages),
        },
        "words": {"prompts": quantiles(tally.prompts), "answers": quantiles(tally.answers)},
        "sources": [source.to_json() for source in tally.sources],
    }  # fmt: skip
    if result.overlap is not None:
        out["test"] = {
            "rows": len(result.test), "bad": result.test_bad.count, "bad_rows": dict(result.test_bad.kinds),
            "ngram": result.overlap.n, "short": result.overlap.short,
        }  # fmt: skip
    if tokens is not None:
        lengths = tokens.lengths
        out["tokens"] = {
            "counts": asdict(tokens.counts), "untokenised": tokens.untokenised, "context": tokens.context,
            "over_prompt": tokens.over_prompt, "over_answer": tokens.over_answer, "over_context": tokens.over_context,
            "prompts": quantiles(lengths.prompts), "answers": quantiles(lengths.answers),
            "totals": quantiles(lengths.totals),
            "shown": [
                {"where": row.group.prompt.where, "shape": shape, "prompt": row.group.prompt.ids,
                 "answers": [{"ids": one.ids, "mask": one.mask} for one in row.group.completions]}
                for shape, rows in tokens.shown.items() for row in rows
            ],
        }  # fmt: skip
    return out

"""`debias`: one pass to count, one for a reward model's part where there is one, one to write; then training."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.curation.debias.config import DebiasConfig
from preftune.curation.debias.counterfactual import Counterfactual, Sample, counterfactuals
from preftune.curation.debias.evidence import Counts, Mark, Thresholds, find_marks, mark_of
from preftune.curation.debias.leftovers import find_leftovers
from preftune.curation.debias.openings import is_answer, words_of
from preftune.curation.debias.predict import Predicted, predict
from preftune.curation.debias.table import Table
from preftune.curation.debias.training import Arm, Splits, accuracies, read_compared, reader_of, recipe_of, train_arms
from preftune.curation.debias.write import BAD, SAME, stream, stripped_table, write
from preftune.curation.folder import Curated, check_free
from preftune.errors import DataError
from preftune.intervals import Interval
from preftune.records import Example
from preftune.train.progress import Progress

if TYPE_CHECKING:
    from preftune.rewards.learned import RewardReader

COMMAND = "preftune data debias"
TRAINING = "training"
OPPOSED = 0.2
"""Share of an opening's pairs with another answer word on the other side, from which on it looks like the answer."""


@dataclass(frozen=True, slots=True)
class Finding:
    """An opening, what speaks for stripping it, and what was done.

    Attributes:
        mark: how it marks a side.
        effect: its part in the reward model's decisions; None without a reward model or without a pair to score.
        proposed: the thresholds say that it should go.
        stripped: it was taken off: `answers` of them.
        why: in words.
        warnings: what a person should look at.
    """

    mark: Mark
    effect: Counterfactual | None
    proposed: bool
    stripped: bool
    why: str
    warnings: tuple[str, ...] = ()
    answers: int = 0

    def to_json(self) -> dict[str, Any]:
        mark = asdict(self.mark)
        mark |= {"share": self.mark.share.to_json(), "frequency": asdict(self.mark.frequency)}
        return {
            "opening": self.mark.opening, "proposed": self.proposed, "stripped": self.stripped, "answers": self.answers,
            "why": self.why, "warnings": list(self.warnings), "mark": mark,
            "effect": None if self.effect is None else self.effect.to_json(),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Debiased:
    """What `debias` found and did.

    Attributes:
        folder: rows.jsonl, decisions.jsonl, summary.json, report.html; training/ where reward models were trained.
        findings: openings that mark a side, or were asked for, the clearest first.
        leftovers: openings that mark a side only once the others are gone.
        tested: openings that were tested.
        rows: usable ones; changed: of which something was stripped; dropped: that differed by their opening alone.
        bad: rows left out (`on_bad_row: skip`).
        before, after: how well the opening alone, and the length alone, tells the better answer.
        arms: reward models trained on the rows before and after.
        given: accuracy of `reward_model` by what it was measured on.
    """

    folder: Path
    findings: tuple[Finding, ...]
    leftovers: tuple[Finding, ...]
    tested: int
    rows: int
    changed: int
    dropped: int
    bad: int
    before: Mapping[str, Predicted]
    after: Mapping[str, Predicted]
    arms: tuple[Arm, ...] = ()
    given: Mapping[str, Interval] | None = None

    @property
    def proposed(self) -> tuple[str, ...]:
        """The openings proposed for stripping."""
        return tuple(one.mark.opening for one in self.findings if one.proposed)

    @property
    def stripped(self) -> tuple[str, ...]:
        return tuple(one.mark.opening for one in (*self.findings, *self.leftovers) if one.stripped)

    @property
    def left(self) -> str:
        """The leftovers in a sentence; "" without any."""
        if not self.leftovers:
            return ""
        names = ", ".join(f"{one.mark.opening} ({one.mark.side})" for one in self.leftovers)
        more = "once the others are gone these would mark a side, though they did not before"
        if self.leftovers[0].stripped:
            return f"{more}, and were stripped as well: {names}"
        return f"{more}: {names}. --leftovers strip takes them off as well; left on, they may do as much harm"

    def __str__(self) -> str:
        lines = [f"{self.rows:,} rows, {self.tested:,} openings tested, {len(self.proposed)} proposed for stripping"]
        for one in self.findings:
            mark = one.mark
            done = f"stripped from {one.answers:,} answers" if one.stripped else "left on"
            lines.append(
                f"  {mark.opening}  {mark.frequency.better:,} better, {mark.frequency.worse:,} worse answers; wins "
                f"{100 * mark.share.value:.0f} % of {mark.won + mark.lost:,} prompts; {done} ({one.why})"
            )
            lines += [f"    note: {warning}" for warning in one.warnings]
        lines += [self.left] if self.left else []
        if "opening" in self.before:
            first = self.before["opening"].accuracy.value
            told = f"the opening alone puts {100 * first:.1f} % of pairs in order"
            if "opening" in self.after and self.stripped:
                told += f", {100 * self.after['opening'].accuracy.value:.1f} % after stripping"
            lines.append(told)
        lines.append(f"{self.changed:,} rows changed, {self.dropped:,} dropped (they differed by their opening alone)")
        for arm in self.arms:
            told = ", ".join(f"{what} {100 * arm.interval(what).value:.1f} %" for what in arm.accuracy)
            lines.append(f"reward model, {arm.name}: {told}")
        return "\n".join(lines)


def debias(config: DebiasConfig, output: Path, *, base_dir: Path | None = None) -> Debiased:
    """Find openings that give the label away, and write the data without them.

    Memory holds the openings and lengths of all answers, never whole texts but for the pairs that a reward model
    scores. The same settings and rows give the same result.

    Args:
        config: the data, thresholds, what is stripped, and what is trained.
        output: a new folder.
        base_dir: where relative data paths start.

    Raises:
        UsageError: the folder holds something, or settings of training do not go together.
        DataError: rows that can't be read, hold no better and worse answer, or can't be written back.
        ModelError: a model can't be loaded.
    """
    if config.model is not None:  # a wrong setting must not cost the passes before training
        for limited in {False, config.loss.p_max is not None}:
            recipe_of(config, Path("rows.jsonl"), Path("raw"), limited=limited)
    own = None if config.policy_outputs is None else read_compared(config.policy_outputs, base_dir)
    check_free(output)
    # Nor must a model that can't be loaded cost the counting of a large file.
    reader = None if config.reward_model is None else reader_of(config, config.reward_model)
    with Curated(output) as out, Progress("debias") as progress, ExitStack() as opened:
        table = _read(config, base_dir, progress)
        counts = Counts(table)
        progress.begin("testing openings")
        marks, tested = _marks(counts, config, progress)
        before = predict(table, folds=config.folds, seed=config.seed)
        effects: dict[str, Counterfactual] = {}
        given: dict[str, Interval] | None = None
        if reader is not None:
            effects, given = _effects(config, reader, base_dir, marks, own, progress)
            reader = None  # room for those that are trained
        findings = [_judge(mark, effects, config) for mark in marks]
        splits = None
        if config.model is not None:
            splits = opened.enter_context(Splits(output / TRAINING / "data", config))
        gone = [one.mark for one in findings if one.stripped]
        openings, later = [mark.opening for mark in gone], config.leftovers == "strip"
        left: list[Mark] = []
        if gone and later:
            left = _left(counts, stripped_table(config, base_dir, openings, progress), findings, config)
        written = write(config, base_dir, openings + [mark.opening for mark in left], out, splits, progress)
        opened.close()  # the files of training are whole
        if gone and not later:
            left = _left(counts, written.table, findings, config)
        after = predict(written.table, folds=config.folds, seed=config.seed)
        arms: list[Arm] = []
        if splits is not None:
            arms = train_arms(config, splits, own, output / TRAINING)
        result = Debiased(
            output, tuple(replace(one, answers=written.taken[one.mark.opening]) for one in findings),
            tuple(_leftover(mark, later, written.taken[mark.opening]) for mark in left), tested,
            table.rows + table.ties, written.changed, out.counts[SAME], out.counts[BAD], before, after, tuple(arms),
            given,
        )  # fmt: skip
        from preftune.curation.debias.page import debias_page

        page = debias_page(result, config, counts, written.shown, written.left)
        out.finish(COMMAND, config.model_dump(mode="json"), _measures(result, written.left), page)
    return result


def _read(config: DebiasConfig, base_dir: Path | None, progress: Progress) -> Table:
    wanted = config.strip if isinstance(config.strip, list) else []
    longest = max([config.words, *(len(words_of(one)) for one in wanted)])
    table = Table(longest, config.fold)
    for _, one in stream(config.data, base_dir, progress, "counting"):
        if one.example is not None:
            table.add(one.example)
    if not table.rows:
        raise DataError(f"{config.data[0].path}: no row has a better and a worse answer, so no side can be given away")
    return table


def _marks(counts: Counts, config: DebiasConfig, progress: Progress) -> tuple[list[Mark], int]:
    """Those that the thresholds find, then those that were asked for besides."""
    limits = Thresholds(config.words, config.min_count, config.alpha, config.min_effect)
    marks, tested = find_marks(counts, limits, tell=lambda found: progress.tick(found, None, "found"))
    known = {mark.opening for mark in marks}
    for wanted in config.strip if isinstance(config.strip, list) else []:
        words = words_of(wanted, fold=config.fold)
        found = mark_of(counts, words)
        if found is not None and found.opening not in known:
            known.add(found.opening)
            marks.append(found)
    return marks, tested


def _left(counts: Counts, table: Table, findings: Sequence[Finding], config: DebiasConfig) -> list[Mark]:
    """Openings that mark a side in the stripped rows alone."""
    gone = [one.mark.frequency.words for one in findings if one.stripped]
    known = {one.mark.frequency.words for one in findings} | {words_of(one, fold=config.fold) for one in config.keep}
    limits = Thresholds(config.words, config.min_count, config.alpha, config.min_effect)
    return find_leftovers(counts, Counts(table), gone, known, limits)


def _leftover(mark: Mark, stripped: bool, answers: int) -> Finding:
    why = f"marks the {mark.side} answer once the others are gone"
    return Finding(mark, None, False, stripped, why, tuple(_warnings(mark)) if stripped else (), answers)


def _effects(
    config: DebiasConfig, reader: RewardReader, base_dir: Path | None, marks: Sequence[Mark],
    own: Sequence[Example] | None, progress: Progress,
) -> tuple[dict[str, Counterfactual], dict[str, Interval]]:  # fmt: skip
    """What the given reward model makes of each opening, and how right it is about one's own policy's outputs."""
    from preftune.curation.debias.predict import share_interval
    from preftune.curation.debias.training import OWN

    sample = Sample(
        [mark.opening for mark in marks], most=config.pairs_each, seed=config.seed, fold=config.fold
    )  # fmt: skip
    for _, one in stream(config.data, base_dir, progress, "choosing pairs"):
        if one.example is not None:
            sample.add(one.example)
    progress.begin("scoring pairs with and without openings")
    found = counterfactuals(
        reader, sample, marks, min_shift=config.min_shift, fold=config.fold, tick=progress.tick
    )  # fmt: skip
    measured = {} if own is None else {OWN: share_interval(accuracies(reader, own)[0])}
    return found, measured


def _judge(mark: Mark, effects: Mapping[str, Counterfactual], config: DebiasConfig) -> Finding:
    """Whether an opening is proposed and stripped, and why."""
    words = mark.frequency.words
    effect = effects.get(mark.opening)
    marks = mark.p <= config.alpha and abs(mark.share.value - 0.5) >= config.min_effect
    kept = words in {words_of(one, fold=config.fold) for one in config.keep}
    if not marks:
        proposed, why = False, "it marks no side beyond the thresholds"
    elif config.reward_model is None:
        proposed, why = True, f"marks the {mark.side} answer; no reward model was asked"
    elif effect is None:
        proposed, why = False, "marks a side, but no pair has it on one side alone and can be scored"
    elif not effect.uses:
        proposed, why = False, f"marks the {mark.side} answer, but the reward model's scores do not depend on it"
    else:
        proposed, why = True, f"marks the {mark.side} answer, and the reward model's scores depend on it"
    if isinstance(config.strip, list):
        stripped = words in {words_of(one, fold=config.fold) for one in config.strip}
        why = f"asked for; {why}" if stripped else f"not asked for; {why}"
    else:
        stripped = proposed and config.strip == "auto"
    if kept:
        proposed, stripped, why = False, False, f"kept, as asked for; {why}"
    return Finding(mark, effect, proposed, stripped, why, tuple(_warnings(mark)) if proposed or stripped else ())


def _warnings(mark: Mark) -> Iterator[str]:
    if not is_answer(mark.frequency.words):
        return
    told = f"{mark.opening!r} may be an answer by itself, or turn one round: read some rows before you take it off"
    if mark.opposed >= OPPOSED:
        told += f"; in {100 * mark.opposed:.0f} % of its pairs the other answer begins with another such word"
    yield f"{told}. --keep '{json.dumps([mark.opening], ensure_ascii=False)}' leaves it on"


def _measures(result: Debiased, left: int) -> dict[str, Any]:
    return {
        "tested": result.tested, "usable_rows": result.rows, "changed_rows": result.changed,
        "dropped_rows": result.dropped, "answers_of_nothing_else": left,
        "proposed": list(result.proposed), "stripped": list(result.stripped),
        "openings": [one.to_json() for one in result.findings],
        "leftovers": [one.to_json() for one in result.leftovers],
        "predicted": {
            "before": {name: one.to_json() for name, one in result.before.items()},
            "after": {name: one.to_json() for name, one in result.after.items()},
        },
        "reward_model": None if result.given is None else {k: v.to_json() for k, v in result.given.items()},
        "training": [arm.to_json() for arm in result.arms],
        "changes": {
            f"{arm.name} less {result.arms[0].name}": {
                what: arm.change(result.arms[0], what).to_json() for what in arm.accuracy
            }
            for arm in result.arms[1:]
        },
    }  # fmt: skip

"""The report of `preftune data debias`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from preftune.curation.debias.config import DebiasConfig
from preftune.curation.debias.counterfactual import Changed
from preftune.curation.debias.evidence import Counts, Frequency
from preftune.curation.debias.training import HELD_OUT, OWN, STRIPPED, Arm
from preftune.intervals import Interval
from preftune.report.page import Cell, Charts, Example, Examples, Page, Prose, Section, Table, Tone, dot_chart

if TYPE_CHECKING:
    from preftune.curation.debias.run import Debiased, Finding
    from preftune.curation.debias.write import Shown

FREQUENT = 25
"""Openings of the table of frequencies."""
GIVES_AWAY = 0.55
"""Accuracy of the opening alone from which on it gives something away, with an interval above ½."""


def debias_page(result: Debiased, config: DebiasConfig, counts: Counts, shown: Sequence[Shown], left: int) -> Page:
    """The whole page. `left`: answers that are nothing but an opening, and kept it."""
    leaks = bool(result.proposed)
    first = result.before.get("opening")
    told = "" if first is None else f" The opening alone puts {_percent(first.accuracy.value)} of pairs in order."
    if result.proposed:
        names = ", ".join(f"`{one}`" for one in result.proposed[:6]) + (" …" if len(result.proposed) > 6 else "")
        sentence = f"{_number(len(result.proposed), 'opening')} give the label away: {names}.{told}"
        if len(result.proposed) == 1:
            sentence = f"One opening gives the label away: {names}.{told}"
    else:
        sentence = f"No opening is proposed for stripping: {result.tested:,} were tested.{told}"
    done = f"{_number(result.changed, 'row')} changed" if result.stripped else "nothing was stripped"
    asked = (
        f"`{config.reward_model}` was asked whether its scores depend on them."
        if config.reward_model
        else "No reward model was asked: the proposal rests on counts alone. `--reward_model` asks one."
    )
    big = [("openings proposed", f"{len(result.proposed)}")]
    if first is not None:
        after = result.after.get("opening")
        shift = f" → {_percent(after.accuracy.value)}" if after is not None and result.stripped else ""
        big.append(("pairs in order by the opening alone", f"{_percent(first.accuracy.value)}{shift}"))
    return Page(
        "Openings that give the label away",
        kicker=f"data · {', '.join(source.path for source in config.data)}",
        verdict="worse" if leaks else "better",
        sentence=sentence,
        why=f"{_number(result.rows, 'row')}, {done}; decisions.jsonl says which. {asked}",
        big=big,
        problems=[
            *(warning for one in (*result.findings, *result.leftovers) for warning in one.warnings),
            *([f"{result.left[0].upper()}{result.left[1:]}."] if result.leftovers else []),
        ],
        sections=list(_sections(result, config, counts, shown, left)),
    )


def _sections(
    result: Debiased, config: DebiasConfig, counts: Counts, shown: Sequence[Shown], left: int
) -> Iterator[Section]:
    yield Section("evidence", "The openings, and what speaks for each", [*_evidence(result, config)], short="Evidence")
    yield Section("alone", "What the opening alone tells", [*_alone(result, config)], short="Alone")
    if any(one.effect is not None for one in result.findings) or result.given:
        yield Section(
            "counterfactual", "What the reward model makes of them", [*_effects(result)], short="Reward model"
        )
    if result.arms:
        yield Section("training", "Reward models trained before and after", [*_training(result)], short="Training")
    if shown:
        yield Section("examples", "Before and after", [_examples(shown), *_remarks(result, left)], short="Examples")
    yield Section("frequency", "All openings by frequency", [_frequency(counts, result)], short="Frequency")
    yield Section("rule", "When an opening is proposed", [*_rule(config)], short="Rule")


def _evidence(result: Debiased, config: DebiasConfig) -> Iterator[Prose | Table]:
    if not result.findings:
        yield Prose("None marks a side beyond the thresholds.")
        return
    rows: list[list[object]] = []
    for one in result.findings:
        mark, frequency = one.mark, one.mark.frequency
        tone: Tone = "bad" if one.proposed else "quiet"
        rows.append([
            Cell(mark.opening, tone, mono=True),
            frequency.better,
            frequency.worse,
            Cell(
                f"{_percent(mark.share.value)} {_range(mark.share)}", meter=mark.share.value,
                hint=f"{mark.won:,} of {mark.won + mark.lost:,} prompts; without clearer openings {mark.left[0]:,} of "
                f"{sum(mark.left):,}",
            ),
            Cell(_small(mark.p)),
            Cell(f"{one.answers:,} answers" if one.stripped else "left on", "" if one.stripped else "quiet",
                 hint=one.why),
        ])  # fmt: skip
    yield Table(
        ["Opening", "Better answers", "Worse answers", "Prompts won", "p", "Stripped"], rows,
        "Won: more of a prompt's better answers than of its worse ones begin so; half of them, where the opening says "
        f"nothing. p: exact, times {result.tested:,} openings tested.",
    )  # fmt: skip


def _alone(result: Debiased, config: DebiasConfig) -> Iterator[Prose | Table]:
    if not result.before:
        yield Prose(f"There are fewer than {config.folds} prompts with a better and a worse answer.", "quiet")
        return
    stages = [("as they came", result.before)] + ([("stripped", result.after)] if result.stripped else [])
    rows: list[list[object]] = [
        [f"{'opening' if name == 'opening' else 'length'} alone, {stage}",
         _share(found[name].accuracy), f"{found[name].auc.value:.3f} {_plain_range(found[name].auc)}"]
        for name in ("opening", "length") for stage, found in stages if name in found
    ]  # fmt: skip
    rows.append(["chance", Cell("50.0 %", "quiet", meter=0.5), Cell("0.5", "quiet")])
    yield Table(
        ["What a model sees", "Pairs in order", "Area under the ROC curve"], rows,
        f"Logistic regression, cross-validated over {config.folds} parts; all answers to a prompt are in one part. "
        "In brackets 95 % intervals.",
    )  # fmt: skip
    if result.leftovers:
        yield Prose(
            "What is left after stripping: openings that marked nothing as long as the others were there. They stand "
            "in answers that had none of the others, and so on one side more than on the other once those are gone."
        )
        yield Table(
            ["Left", "Better answers", "Worse answers", "Prompts won", "Before, without the others", "Stripped"],
            [_leftover(one) for one in result.leftovers],
            "Counted in the stripped rows. Before: prompts won among pairs without a stripped opening.",
        )


def _leftover(one: Finding) -> list[object]:
    mark = one.mark
    return [
        Cell(mark.opening, "warn", mono=True), mark.frequency.better, mark.frequency.worse,
        Cell(f"{_percent(mark.share.value)} {_range(mark.share)}", meter=mark.share.value),
        f"{mark.left[0]:,} of {sum(mark.left):,}",
        Cell(f"{one.answers:,} answers" if one.stripped else "left on", "" if one.stripped else "quiet"),
    ]  # fmt: skip


def _effects(result: Debiased) -> Iterator[Prose | Table | Charts]:
    scored = [one for one in result.findings if one.effect is not None]
    if result.given:
        told = ", ".join(f"{what} {_share_text(found)}" for what, found in result.given.items())
        yield Prose(f"Its accuracy: {told}.")
    if not scored:
        return
    rows: list[list[object]] = []
    for one in scored:
        effect = one.effect
        assert effect is not None
        rows.append([
            Cell(one.mark.opening, "bad" if effect.uses else "quiet", mono=True),
            effect.pairs, _shift(effect.off, effect.spread), _flips(effect.off), _shift(effect.on, effect.spread),
            _flips(effect.on), Cell("yes", "bad") if effect.uses else Cell("no", "quiet"),
        ])  # fmt: skip
    yield Table(
        ["Opening", "Pairs", "Taken off: shift", "Taken off: flips", "Put on: shift", "Put on: flips", "Used"], rows,
        "Pairs of which one answer begins so. Taken off: from the answer that has it; put on: the one that lacks it. "
        "Shift: mean change of that answer's score, in standard deviations of all scores. Flips: pairs whose order "
        "changes.",
    )  # fmt: skip
    series = [
        (f"marks the {side} answer",
         [one.mark.share.value for one in scored if one.mark.side == side],
         [one.effect.off.shift.value / (one.effect.spread or 1.0)
          for one in scored if one.mark.side == side and one.effect is not None])
        for side in ("better", "worse") if any(one.mark.side == side for one in scored)
    ]  # fmt: skip
    chart = dot_chart(
        "Marks and use", "Each dot is an opening. Far from ½ it marks a side in the data; far from 0 the reward model "
        "uses it.", series, xlabel="share of prompts won", ylabel="shift when taken off (sd)", zero=True,
    )  # fmt: skip
    yield Charts([chart])


def _training(result: Debiased) -> Iterator[Prose | Table]:
    raw = result.arms[0]
    measured = [what for what in (HELD_OUT, STRIPPED, OWN) if what in raw.accuracy]
    rows: list[list[object]] = []
    for arm in result.arms:
        row: list[object] = [Cell(arm.name, hint=f"{arm.steps:,} steps, {arm.seconds:.0f} s")]
        for what in measured:
            row.append(_against(arm, raw, what))
        rows.append(row)
    yield Table(
        ["Trained on", *(f"{what[0].upper()}{what[1:]}" for what in measured)], rows,
        "Share of pairs in the right order, mean over prompts, with its 95 % interval; below, the change against the "
        "model trained on the rows as they came, on the same prompts.",
    )  # fmt: skip
    if OWN not in raw.accuracy:
        yield Prose(
            "Whether a model got better for your policy is not measured here: `--policy_outputs FILE` names answers of "
            "its own, compared by something else.", "warn",
        )  # fmt: skip
    yield Prose(
        "Expect the held-out rows as they came to get a little worse: a shortcut is gone that works there. What counts "
        "is the order of your own policy's outputs, where the shortcut says nothing.", "quiet",
    )  # fmt: skip


def _against(arm: Arm, raw: Arm, what: str) -> Cell:
    found = arm.interval(what)
    if arm is raw:
        return _share(found, f"{found.n:,} prompts")
    change = arm.change(raw, what)
    sure = change.is_bounded and change.excludes(0.0)
    tone: Tone = "" if not sure else "good" if change.value > 0 else "bad"
    cell = _share(found, f"{100 * change.value:+.1f} points {_points(change)}")
    return Cell(cell.text, tone, hint=cell.hint, meter=cell.meter)


def _examples(shown: Sequence[Shown]) -> Examples:
    turns: dict[str, int] = {}
    order = []
    for one in shown:  # one of each opening before the second of any
        turns[one.opening] = turns.get(one.opening, 0) + 1
        order.append((turns[one.opening], one))
    shown = [one for _, one in sorted(order, key=lambda item: item[0])]
    return Examples([
        Example(
            f"{one.opening} · {one.where}",
            [("prompt", one.prompt, "quiet"),
             *(text for side, old, new in one.answers
               for text in ((f"{side} answer, before", old, "bad"), (f"{side} answer, after", new, "good")))],
        )
        for one in shown
    ])  # fmt: skip


def _remarks(result: Debiased, left: int) -> Iterator[Prose]:
    if result.dropped:
        yield Prose(f"{_number(result.dropped, 'row')} dropped: their answers differed by an opening alone.")
    if left:
        yield Prose(f"{_number(left, 'answer')} kept an opening: there is nothing else in them.")


def _frequency(counts: Counts, result: Debiased) -> Table:
    nodes = list(counts.frequent(1))[:FREQUENT]
    proposed = {one.mark.frequency.words for one in result.findings if one.proposed}
    longer = [counts.table.tree.find(words) for words in sorted(proposed) if len(words) > 1]
    found = [counts.frequency(node) for node in [*nodes, *(node for node in longer if node is not None)]]
    return Table(
        ["Opening", "Answers", "Better", "Worse", "Of those on the better side"],
        [_frequency_row(one, one.words in proposed) for one in found],
        f"The {len(nodes)} most frequent first words, and the longer openings proposed. A word is written with its "
        "punctuation.",
    )  # fmt: skip


def _frequency_row(one: Frequency, proposed: bool) -> list[object]:
    sided = one.better + one.worse
    share = one.better / sided if sided else 0.5
    return [
        Cell(one.opening, "bad" if proposed else "", mono=True), one.answers, one.better, one.worse,
        Cell(_percent(share), meter=share),
    ]  # fmt: skip


def _rule(config: DebiasConfig) -> Iterator[Prose | Table]:
    asked = config.reward_model is not None
    yield Table(
        ["Setting", "Value", "An opening is proposed when"],
        [
            [Cell("min_count", mono=True), config.min_count, "so many answers begin with it, and"],
            [Cell("alpha", mono=True), config.alpha, "its p-value, times the openings tested, is at most this, and"],
            [Cell("min_effect", mono=True), config.min_effect,
             "it wins a share of its prompts that lies so far from one half, over all pairs and over those without a "
             "clearer opening" + (", and" if asked else "")],
            *([[Cell("min_shift", mono=True), config.min_shift,
                "taking it off moves the reward model's score by so many standard deviations, its interval on one side "
                "of 0"]] if asked else []),
            [Cell("strip", mono=True), str(config.strip), "then what is proposed is stripped (auto)"],
            [Cell("keep", mono=True), ", ".join(config.keep) or "–", "and it is none of these"],
        ],
    )  # fmt: skip
    yield Prose(
        "Counts can't tell a cause from a companion: an opening that good answers have for a reason is proposed as "
        "well. Read the examples, and name what shall stay with `--keep`.", "quiet",
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------- numbers


def _percent(value: float) -> str:
    return f"{100 * value:.1f}\u00a0%"


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _range(found: Interval) -> str:
    return f"({100 * found.low:.1f} … {100 * found.high:.1f})" if found.is_bounded else ""


def _plain_range(found: Interval) -> str:
    return f"({found.low:.3f} … {found.high:.3f})" if found.is_bounded else ""


def _points(found: Interval) -> str:
    return f"({100 * found.low:+.1f} … {100 * found.high:+.1f})" if found.is_bounded else ""


def _share(found: Interval, hint: str = "") -> Cell:
    return Cell(_share_text(found), meter=found.value, hint=hint)


def _share_text(found: Interval) -> str:
    return f"{_percent(found.value)} {_range(found)}".strip()


def _shift(changed: Changed, spread: float) -> Cell:
    unit = spread or 1.0
    found = changed.shift
    hint = f"({found.low / unit:+.2f} … {found.high / unit:+.2f})" if found.is_bounded else ""
    return Cell(f"{found.value / unit:+.2f}", hint=hint)


def _flips(changed: Changed) -> Cell:
    return Cell(
        _percent(changed.flips.value), meter=changed.flips.value,
        hint=f"in order: {_percent(changed.before)} → {_percent(changed.after)}",
    )  # fmt: skip


def _small(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}" if p > 1e-300 else "under 1e-300"

"""The report of `preftune data pairs`, and what a person should look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

from preftune.curation.contents import printable
from preftune.curation.pairs.choose import UNORDERED
from preftune.curation.pairs.config import PairsConfig
from preftune.curation.pairs.tally import OTHERS, Kind, Shown, Tally
from preftune.intervals import mean_interval
from preftune.report.page import Cell, Charts, Example, Examples, Page, Prose, Section, Table, Tone, bar_chart

LEAN = 0.6
"""Length is a warning where the chosen (or the rejected) side is surely the longer one in more than this share of
pairs: where the 95 % interval lies beyond it."""
MOST = 12
"""Tiers in the matrix; the others are counted together."""
BARS = 30

MEANING = {
    "tie": "neither answer is better",
    "tier not named": "an answer of nobody among the given tiers",
    "the data disagree": "the tiers say one thing, the data's ranks or scores another (`agree: true`)",
    "equal": "both sides are the same text",
    "nearly equal": "both sides are nearly the same text (`near.threshold`)",
    "length ratio": "one side is too much longer than the other (`max_length_ratio`)",
    "like another pair": "both sides are near those of another pair of the prompt",
    "came before": "another row with the same prompt has the same pair",
    "came before the other way round": "another row with the same prompt says the opposite",
    "cap per prompt": "the prompt has enough pairs (`max_per_prompt`)",
    "cap per tier pair": "these two tiers have enough pairs (`max_per_tier_pair`)",
}
_PHRASE = {
    "equal": "with equal sides", "nearly equal": "with nearly equal sides", "length ratio": "of too different lengths",
    "cap per prompt": "over the cap of their prompt", "cap per tier pair": "over the cap of their tiers",
    "came before": "that came before", "came before the other way round": "that contradict an earlier one",
}  # fmt: skip


def problems_of(config: PairsConfig, tally: Tally) -> list[str]:
    """What is wrong with the pairs, and what to do about it."""
    out: list[str] = []
    leaning = [(names, kind.length_bias) for names, kind in tally.by_count() if _leans(kind.longer, kind.shorter)]
    for (chosen, rejected), share in sorted(leaning, key=lambda row: -abs((row[1] or 0.5) - 0.5))[:4]:
        assert share is not None
        side, part = ("chosen", share) if share > 0.5 else ("rejected", 1 - share)
        out.append(
            f"{printable(chosen)} over {printable(rejected)}: the {side} answer is the longer one in {100 * part:.0f} "
            "% of the pairs, so length alone says much of which is better. Cap it with `max_length_ratio`, or ask the "
            "tiers for answers of one length."
        )
    if not leaning and _leans(*tally.lengths):
        out.append(f"The chosen answer is the longer one in {100 * (tally.length_bias or 0):.0f} % of all pairs.")
    against = sum(kind.against for kind in tally.kinds.values())
    if against:
        out.append(
            f"{against:,} pairs go by the tiers against the data's own ranks or scores. Set `agree: true` to leave "
            "them out."
        )
    if tally.why["came before the other way round"]:
        out.append(
            f"{tally.why['came before the other way round']:,} pairs are the opposite of one in an earlier row with "
            "the same prompt: the data contradict themselves."
        )
    if tally.bad:
        out.append(f"{tally.bad:,} rows are bad and were left out; decisions.jsonl says why.")
    if len(config.tiers) > 0 and (unknown := [name for name in tally.tiers if name not in config.tiers]):
        out.append(
            f"Answers of {', '.join(map(printable, sorted(unknown)[:5]))} take no part, as `tiers` does not name them."
        )
    return out


def make_page(config: PairsConfig, tally: Tally, warnings: Sequence[str]) -> Page:
    """The report."""
    left = tally.ordered - tally.kept
    sentence = f"{tally.kept:,} pairs of {tally.prompts:,} prompts."
    if left:
        parts = [f"{n:,} {_PHRASE.get(why, why)}" for why, n in tally.why.most_common() if why not in UNORDERED]
        sentence += f" Of {tally.ordered:,} pairs {left:,} were left out: {', '.join(parts)}."
    else:
        sentence += " None was left out."
    verdict: Literal["better", "same"] = "same" if warnings else "better"
    sections = [
        Section("matrix", "Who over whom", [_matrix(tally), *_matrix_note(config, tally)], short="Tiers"),
        Section("left-out", "What became of every two answers", [_reasons(tally)], short="Left out"),
        Section("shape", "Margins and pairs of a prompt", _shape(config, tally), short="Margins"),
        Section("length", "Does length give it away?", _length(tally), short="Length"),
        Section("examples", "One pair of each kind", _examples(tally.shown), short="Examples"),
    ]
    if tally.near:
        note = Prose("Answers to one prompt that were taken for the same. Is the threshold right?", "quiet")
        sections.append(Section("near", "Nearly equal answers", [note, *_near(tally.near)], short="Nearly equal"))
    sections.append(Section("next", "Next", _next(config)))
    return Page(
        f"{tally.kept:,} pairs",
        kicker=f"pairs of {', '.join(source.path for source in config.data)}",
        verdict=verdict, sentence=sentence, why=_rule(config),
        big=[("pairs", f"{tally.kept:,}"), ("prompts", f"{tally.prompts:,}")], problems=warnings, sections=sections,
    )  # fmt: skip


def _rule(config: PairsConfig) -> str:
    if config.is_product:
        sides = [", ".join(str(tier) for tier in tiers) for tiers in (config.chosen_tiers, config.rejected_tiers)]
        rule = f"Answers of {sides[0]} over answers of {sides[1]}"
    elif config.tiers:
        order = sorted(config.tiers, key=lambda name: config.tiers[name])
        rule = f"Every better tier over every worse one: {' › '.join(order)}"
    else:
        rule = "Every better answer over every worse one, by the data's ranks or scores"
    return f"{rule}. The rows do not say who wrote what." if not config.keep_source else f"{rule}."


def _matrix(tally: Tally) -> Table:
    """Chosen tiers down, rejected tiers across."""
    names = [name for name, _ in tally.tiers.most_common(MOST)]
    names = sorted(names, key=lambda name: (-_wins(tally, name), name))
    if len(tally.tiers) > MOST:
        names.append(OTHERS)
    cells: dict[tuple[str, str], Kind] = {}
    for (chosen, rejected), kind in tally.kinds.items():
        place = (chosen if chosen in names else OTHERS, rejected if rejected in names else OTHERS)
        cell = cells.setdefault(place, Kind())
        cell.kept += kind.kept
        cell.ordered += kind.ordered
    most = max((cell.kept for cell in cells.values()), default=1) or 1
    across = [name for name in names if any(rejected == name for _, rejected in cells)]
    rows: list[list[object]] = []
    for chosen in names:
        if not any(name == chosen for name, _ in cells):
            continue
        row: list[object] = [Cell(chosen, hint=f"{tally.tiers[chosen]:,} answers" if chosen != OTHERS else "")]
        for rejected in across:
            cell = cells.get((chosen, rejected), Kind())
            if not cell.ordered:
                row.append(None)
                continue
            out = cell.ordered - cell.kept
            row.append(Cell(f"{cell.kept:,}", hint=f"{out:,} left out" if out else "", meter=cell.kept / most))
        rows.append(row)
    return Table(["Chosen \\ rejected", *across], rows)


def _wins(tally: Tally, name: str) -> float:
    """Share of a tier's pairs in which it is the chosen side, before any is left out."""
    won = sum(kind.ordered for (chosen, _), kind in tally.kinds.items() if chosen == name)
    lost = sum(kind.ordered for (_, rejected), kind in tally.kinds.items() if rejected == name)
    return won / (won + lost) if won + lost else -1.0


def _matrix_note(config: PairsConfig, tally: Tally) -> list[Prose]:
    text = "Pairs that were kept, with the chosen tier at the left and the rejected one above."
    if not config.is_product and any((b, a) in tally.kinds for a, b in tally.kinds):
        text += " Where two tiers stand both ways, each is better on some prompts."
    return [Prose(text, "quiet")]


def _reasons(tally: Tally) -> Table:
    total = tally.kept + sum(tally.why.values())
    rows: list[list[object]] = [
        [
            Cell("kept", "good"),
            Cell(f"{tally.kept:,}", meter=tally.kept / total if total else 0.0),
            "written to rows.jsonl",
        ]
    ]
    for why, count in sorted(tally.why.items(), key=lambda item: (item[0] not in UNORDERED, -item[1])):
        tone: Tone = "quiet" if why in UNORDERED else "warn"
        rows.append([Cell(why, tone), Cell(f"{count:,}", meter=count / total), Cell("", hint=MEANING.get(why, ""))])
    if tally.alone:
        rows.append([Cell("no two answers", "quiet"), f"{tally.alone:,} prompts", Cell("", hint="nothing to compare")])
    note = "Every one of them is in decisions.jsonl, with its row."
    if tally.told:
        names = ", ".join(f"`{name}`" for name in tally.told)
        note += f" Columns left out of the rows, as they hold answers and would tell which side those are: {names}."
    return Table(["", "Pairs", "Why"], rows, note)


def _shape(config: PairsConfig, tally: Tally) -> list[Charts | Prose]:
    charts: list[dict[str, Any]] = []
    out: list[Charts | Prose] = []
    if config.margin != "none":
        note = (
            "Distance of ranks or scores"
            if config.margin == "distance"
            else "Different ranks or scores between, and one"
        )
        if len(tally.margins) > 1:
            charts.append(_bars("Margins", f"{note}: the column margin.", tally.margins, "margin", "pairs"))
        else:
            out.append(
                Prose(f"All pairs have a margin of {next(iter(tally.margins)):g} ({note[0].lower()}{note[1:]}).")
            )
    per_prompt = {float(n): count for n, count in tally.per_prompt.items()}
    if len(per_prompt) > 1:
        note = "Prompts with many pairs weigh more; max_per_prompt caps them."
        charts.append(_bars("Pairs of a prompt", note, per_prompt, "pairs", "prompts"))
    else:
        out.append(Prose(f"Every prompt has {next(iter(per_prompt)):g} of them."))
    return [*out, Charts(charts)] if charts else out


def _bars(title: str, note: str, counts: Mapping[float, int], xlabel: str, what: str) -> dict[str, Any]:
    centres, shares, width = _bins(counts)
    series = [(what, centres, shares, width)]
    return bar_chart(title, note, series, xlabel=xlabel, ylabel=f"share of the {what}")


def _bins(counts: Mapping[float, int]) -> tuple[list[float], list[float], float]:
    """Centres, shares and width of bars: one for each value where there are few, else BARS of equal width."""
    total = sum(counts.values())
    values = sorted(counts)
    if len(values) <= BARS:
        gap = min((b - a for a, b in pairwise(values)), default=1.0)
        return values, [counts[value] / total for value in values], 0.8 * gap
    width = (values[-1] - values[0]) / BARS
    bins = [0] * BARS
    for value in values:
        bins[min(BARS - 1, int((value - values[0]) / width))] += counts[value]
    return [values[0] + (n + 0.5) * width for n in range(BARS)], [n / total for n in bins], width


def _length(tally: Tally) -> list[Table | Prose]:
    rows: list[list[object]] = []
    kinds = [item for item in tally.by_count() if item[1].kept]
    for (chosen, rejected), kind in kinds[: 2 * MOST]:
        rows.append([chosen, rejected, kind.kept, _bias(kind.longer, kind.shorter)])
    if len(kinds) > 1:
        rows.insert(0, [Cell("all", "quiet"), Cell("all", "quiet"), tally.kept, _bias(*tally.lengths)])
    note = "Share of pairs whose chosen side has more characters, with a 95 % interval. Near 50 % length says nothing."
    if len(kinds) > 2 * MOST:
        note += f" The {2 * MOST} most frequent of {len(kinds)} kinds."
    return [Table(["Chosen", "Rejected", "Pairs", "Chosen is longer"], rows, note)]


def _bias(longer: int, shorter: int) -> Cell:
    if not longer + shorter:
        return Cell("–", "quiet", hint="all of one length")
    found = mean_interval([1.0] * longer + [0.0] * shorter, binary=True)
    hint = f"{100 * found.low:.0f} … {100 * found.high:.0f} %"
    tone: Literal["warn", ""] = "warn" if _leans(longer, shorter) else ""
    return Cell(f"{100 * found.value:.0f} %", tone, hint=hint, meter=found.value)


def _leans(longer: int, shorter: int) -> bool:
    """Whether one side is surely the longer one too often."""
    if not longer + shorter:
        return False
    found = mean_interval([1.0] * longer + [0.0] * shorter, binary=True)
    return found.low > LEAN or found.high < 1 - LEAN


def _examples(shown: Sequence[Shown]) -> list[Examples | Prose]:
    items = []
    for one in shown:
        chips = [] if one.margin is None else [("margin", f"{one.margin:g}")]
        texts: list[tuple[str, str, Tone]] = [
            ("prompt", one.prompt, ""), (f"chosen · {one.tiers[0]}", one.texts[0], "good"),
            (f"rejected · {one.tiers[1]}", one.texts[1], "bad"),
        ]  # fmt: skip
        items.append(Example(f"{one.tiers[0]} over {one.tiers[1]}", texts, chips, beside=True))
    return [Examples(items, opened=3)] if items else [Prose("There is none.", "quiet")]


def _near(shown: Sequence[Shown]) -> list[Examples]:
    items = []
    for one in shown:
        texts: list[tuple[str, str, Tone]] = [
            ("prompt", one.prompt, ""),
            *((tier, text, "") for tier, text in zip(one.tiers, one.texts, strict=True)),
        ]
        chips = [("similarity", f"{one.similarity or 0.0:.2f}")]
        title = f"{one.tiers[0]} and {one.tiers[1]} · {one.where}"
        items.append(Example(title, texts, chips, beside=True))
    return [Examples(items, opened=3)]


def _next(config: PairsConfig) -> list[Prose]:
    margin = "" if config.margin == "none" else " A reward model learns from the column `margin` (`loss.margin: auto`)."
    return [
        Prose(
            "`preftune dpo --data.path rows.jsonl …` and `preftune reward --data.path rows.jsonl …` read the rows."
            + margin
        ),
        Prose("`preftune data audit --data.path rows.jsonl` says whether the rows are fit to train on.", "quiet"),
    ]

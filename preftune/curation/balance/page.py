"""The report of `preftune data balance`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from preftune.curation.balance.choose import effective
from preftune.curation.balance.config import BalanceConfig
from preftune.curation.balance.story import Cloud, Story
from preftune.curation.balance.sweep import Step
from preftune.curation.balance.texts import Read
from preftune.curation.embeddings import Embedder
from preftune.report.page import (
    Cell,
    Charts,
    Example,
    Examples,
    Page,
    Prose,
    Section,
    Table,
    Tone,
    bar_chart,
    dot_chart,
    line_chart,
)

if TYPE_CHECKING:
    from preftune.curation.balance.run import Balanced

COLOURED = 6
RAISED, OTHERS = 6, 7
"""Places in the palette after those of the largest clusters."""
UNCLEAR = 0.1
"""A silhouette below which there are hardly any groups."""
SHOWN_CHARACTERS = 600


def balance_page(
    result: Balanced, config: BalanceConfig, known: Read, embedder: Embedder, story: Story,
    words: Mapping[int, Sequence[str]],
) -> Page:  # fmt: skip
    """The whole page."""
    before, after = effective(result.before), effective(result.after)
    capped = sum(b > a for b, a in zip(result.before, result.after, strict=True))
    raised = sum(b < a for b, a in zip(result.before, result.after, strict=True))
    rows = "row" if result.read == 1 else "rows"
    sentence = (
        f"{result.read:,} {rows} fall into {_count(len(result.before), 'cluster')}; the largest held "
        f"{result.before[0] / result.read:.1%} of them and now holds {max(result.after) / sum(result.after):.1%}."
    )
    why = (
        f"{_count(capped, 'cluster')} capped, {raised:,} raised. {result.kept:,} rows are kept, {result.dropped:,} are "
        f"over the cap, and rows.jsonl has {_count(result.written, 'line')}. decisions.jsonl says for every row what "
        "became of it."
    )
    return Page(
        "Balance",
        kicker=f"data · {', '.join(source.path for source in config.data)}",
        verdict="better" if after > 1.02 * before else "same",
        sentence=sentence,
        why=why,
        big=[
            ("effective number of clusters", f"{before:,.1f} → {after:,.1f}"),
            ("rows", f"{result.read:,} → {result.written:,}"),
        ],
        sections=[
            Section("picture", "Before and after", [*_picture(result, story, words)], short="Picture"),
            Section("clusters", "Clusters", [_clusters(result, story, words)]),
            Section("examples", "Examples", [_examples(result, config, story, words)]),
            Section(
                "threshold",
                "The threshold",
                [*_threshold(result, len(known.tried))],
                short="Threshold",
            ),
            Section("reading", "How it was read", [*_reading(result, config, known, embedder)], short="Reading"),
        ],
        problems=_problems(result, known, embedder),
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _problems(result: Balanced, known: Read, embedder: Embedder) -> list[str]:
    out = []
    if result.silhouette is not None and result.silhouette < UNCLEAR:
        out.append(
            f"The clusters are not clear: their silhouette is {result.silhouette:.2f}. The rows may be of one kind; "
            "look at the examples before you use the result."
        )
    ones = sum(b == 1 < a for b, a in zip(result.before, result.after, strict=True))
    if (
        ones
        and result.written
        and sum(a for b, a in zip(result.before, result.after, strict=True) if b == 1 < a) > (0.25 * sum(result.after))
    ):
        out.append(
            f"Over a quarter of the result is copies of {_count(ones, 'row')} that no other row is like. If they are "
            "noise rather than rare topics, set raise_from: 2, or a larger threshold."
        )
    if known.bad:
        out.append(f"{_count(known.bad, 'row')} could not be read and were left out; decisions.jsonl says why.")
    if known.cut:
        out.append(f"{_count(known.cut, 'text')} were read in part: they are longer than `characters`.")
    if embedder.cut:
        out.append(f"{_count(embedder.cut, 'text')} were read in part: the model reads {embedder.limit}.")
    return out


# ------------------------------------------------------------------------------------------------------ picture


def _picture(result: Balanced, story: Story, words: Mapping[int, Sequence[str]]) -> list[Any]:
    assert story.before is not None and story.after is not None
    both = np.concatenate([story.before.places, story.after.places])
    low, high = both.min(axis=0), both.max(axis=0)
    pad = 0.05 * np.maximum(high - low, 1e-3)
    frame = (
        float(low[0] - pad[0]), float(high[0] + pad[0]), float(low[1] - pad[1]), float(high[1] + pad[1]),
    )  # fmt: skip
    clouds = [
        _cloud("Before", "Rows of the data.", story.before, result, words, frame),
        _cloud(
            "After",
            "Lines of the result, repeated ones as often as they are written.",
            story.after,
            result,
            words,
            frame,
        ),
    ]
    return [
        Prose(
            "The effective number of clusters is the exponential of the entropy of their shares: so many clusters of "
            "one size would be as even.",
            tone="quiet",
        ),
        Prose(
            "Each dot is a row, drawn at random; near dots have similar texts. Both pictures have the same axes: the "
            "two directions in which the balanced rows differ most."
        ),
        Charts([*clouds, _ranks(result), _histogram(result)]),
    ]


def _cloud(
    title: str, note: str, cloud: Cloud, result: Balanced, words: Mapping[int, Sequence[str]],
    frame: tuple[float, float, float, float],
) -> dict[str, Any]:  # fmt: skip
    grown = np.array([b < a for b, a in zip(result.before, result.after, strict=True)])
    group = np.where(cloud.clusters < COLOURED, cloud.clusters, np.where(grown[cloud.clusters], RAISED, OTHERS))
    names = {
        n: f"{n + 1} {words[n][0]}" if words.get(n) else str(n + 1) for n in range(min(COLOURED, len(result.before)))
    }
    names |= {RAISED: "raised ones", OTHERS: "others"}
    series, colours = [], []
    for place in sorted(names, key=lambda n: (n != OTHERS, n)):  # the others lie below
        if place >= COLOURED and not (group == place).any():
            continue
        dots = cloud.places[group == place]
        series.append((names[place], dots[:, 0].tolist(), dots[:, 1].tolist()))
        colours.append(place)
    shown = f"{note} {len(group):,} dots; colours: the largest clusters."
    chart = dot_chart(title, shown, series, xlabel="first direction", ylabel="second direction", frame=frame)
    for one, colour in zip(chart["series"], colours, strict=True):
        one["color"] = colour
    return chart | {"wide": False}  # side by side, however long the legend is


def _ranks(result: Balanced) -> dict[str, Any]:
    places = sorted({int(place) for place in np.geomspace(1, len(result.before), 300).round()})
    after = sorted(result.after, reverse=True)
    series = [
        (name, [float(place) for place in places], [float(sizes[place - 1]) for place in places])
        for name, sizes in (("before", result.before), ("after", after))
    ]
    note = "Clusters by size, the largest first. The flatter, the more even."
    return line_chart("Sizes by rank", note, series, xlabel="rank", ylabel="rows", log=True)


def _histogram(result: Balanced) -> dict[str, Any]:
    """Shares of clusters by size, on doubling sizes."""
    top = int(np.ceil(np.log2(max(*result.before, *result.after, 2)))) + 1
    edges = np.arange(top + 1) - 0.5
    series = []
    for name, sizes in (("before", result.before), ("after", result.after)):
        counts, _ = np.histogram(np.log2(np.maximum(sizes, 1)), edges)
        series.append((name, list(range(top)), (counts / len(sizes)).tolist(), 0.9))
    step = math.ceil(top / 8)
    ticks = [(float(place), f"{2**place:,}") for place in range(0, top, step)]
    note = "Share of all clusters by their size, on doubling sizes."
    return bar_chart("Sizes of clusters", note, series, xlabel="rows of a cluster", ylabel="clusters", ticks=ticks)


# ----------------------------------------------------------------------------------------------------- clusters


def _clusters(result: Balanced, story: Story, words: Mapping[int, Sequence[str]]) -> Table:
    rows = []
    for number in sorted({one.cluster for one in story.shown.values()}):
        before, after = result.before[number], result.after[number]
        what = (
            Cell("capped", "warn")
            if after < before
            else Cell("raised", "good")
            if after > before
            else Cell("as it was")
        )
        rows.append(
            [number + 1, Cell(f"{before:,}", meter=before / result.before[0]),
             Cell(f"{after:,.0f}", meter=after / max(result.after)), what, ", ".join(words.get(number, ()))]
        )  # fmt: skip
    left = len(result.before) - len(rows)
    note = f"{_count(left, 'further cluster')}: clusters.jsonl has all. " if left > 0 else ""
    return Table(
        ["cluster", "before", "after", "", "words that set it apart"], rows,
        note=f"{note}Words are those of the sample, the most telling first.",
    )  # fmt: skip


def _examples(result: Balanced, config: BalanceConfig, story: Story, words: Mapping[int, Sequence[str]]) -> Examples:
    items = []
    for number in sorted({one.cluster for one in story.shown.values()}):
        texts: list[tuple[str, str, Tone]] = []
        for one in story.examples(number):
            kept = "over the cap" if not one.copies else "kept" if one.copies == 1 else f"written {one.copies} times"
            text = one.text if len(one.text) <= SHOWN_CHARACTERS else f"{one.text[:SHOWN_CHARACTERS]}…"
            texts.append((f"{one.where} · {kept}", text or "(empty)", "" if one.copies else "warn"))
        before, after = result.before[number], result.after[number]
        title = f"{number + 1} · {_count(before, 'row')} → {after:,.0f} · {', '.join(words.get(number, ())[:3])}"
        items.append(Example(title, texts))
    return Examples(items)


# ---------------------------------------------------------------------------------------------------- threshold


def _threshold(result: Balanced, sample: int) -> list[Any]:
    chosen, steps = result.threshold, result.sweep.steps
    out: list[Any] = [
        Prose(
            f"Threshold {chosen:g}: {result.sweep.why}. It is the largest radius of a cluster, in vectors of length 1: "
            "small ones make many clusters, large ones few. To set another: `--threshold X`."
        )
    ]
    known = [step for step in steps if not step.too_many]
    if not known:
        return out
    x = [step.threshold for step in known]
    lines = [
        ("silhouette", x, [_number(step.silhouette) for step in known]),
        ("largest cluster", x, [step.largest for step in known]),
        ("rows alone", x, [step.alone for step in known]),
        ("stability", x, [_number(step.stability) for step in known]),
    ]
    marks = [(chosen, "chosen")]
    quality = line_chart(
        "Quality by threshold", "All four on a scale to 100 %.", lines, xlabel="threshold", ylabel="", percent=True,
        marks=marks,
    )  # fmt: skip
    counts = line_chart(
        "Clusters by threshold", "Clusters of the sample.",
        [("clusters", x, [float(step.clusters) for step in known])], xlabel="threshold", ylabel="clusters", log=True,
        marks=marks,
    )  # fmt: skip
    drawn = "all" if sample == result.distinct else "drawn evenly from groups of a first sample"
    out.append(Charts([quality | {"wide": False}, counts]))
    out.append(
        Prose(
            f"Measured on a sample of {_count(sample, 'different text')}, {drawn}. largest: share of the "
            "largest cluster; alone: share of texts that are a cluster of one; silhouette: how much nearer a text is "
            "to its own cluster than to the next, from −1 to 1; stability: adjusted Rand index of the clusters of two "
            "orders of the texts, as what BIRCH finds depends on the order: 1 is the same.",
            tone="quiet",
        )
    )
    head = ["threshold", "clusters", "largest", "alone", "silhouette", "stability", ""]
    out.append(Table(head, [_row(step, chosen) for step in steps]))
    return out


def _row(step: Step, chosen: float) -> list[object]:
    if step.too_many:
        return [step.threshold, Cell("too many", "quiet"), None, None, None, None, None]
    here = Cell("chosen", "good") if step.threshold == chosen else Cell("")
    return [
        step.threshold, step.clusters, f"{step.largest:.1%}", f"{step.alone:.1%}",
        None if step.silhouette is None else f"{step.silhouette:.3f}",
        None if step.stability is None else f"{step.stability:.3f}", here,
    ]  # fmt: skip


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _reading(result: Balanced, config: BalanceConfig, known: Read, embedder: Embedder) -> list[Any]:
    what = {"prompt": "the whole prompt", "last-user": "the last user turn"}.get(config.text, f"column {config.text}")
    how = "TF-IDF of words and word pieces, SVD" if config.is_builtin else config.embedder
    which = {"random": "drawn by the seed", "diverse": "far from each other", "central": "nearest to the centre"}[
        config.keep
    ]
    cap = "none" if config.cap is None else f"{config.cap:,} rows, {which}"
    cap += f", those with a higher {config.prefer} first" if config.prefer and config.cap is not None else ""
    up = "none" if config.raise_to is None else f"clusters of {config.raise_from:,} rows or more to {config.raise_to:,}"
    up += "" if config.raise_to is None else ", by copies" if config.raise_by == "copy" else ", by weights"
    duplicates = result.read - result.distinct
    return [
        Table(
            ["what", "how"],
            [
                ["compared", what],
                ["embedded by", Cell(how, hint=f"{embedder.dimensions} dimensions")],
                ["different texts", result.distinct],
                [
                    "rows with a text that came before",
                    Cell(f"{duplicates:,}", hint=f"{duplicates / result.read:.1%} of all"),
                ],
                ["empty texts", known.empty],
                ["cap", cap],
                ["raise", up],
                ["seed", str(config.seed)],
            ],
            note="Equal texts are always in one cluster. How it is done stands in docs/curation-balance.md.",
        )
    ]

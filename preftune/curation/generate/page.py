"""The report of `preftune data generate`, and what a person should look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from preftune.curation.contents import printable
from preftune.curation.generate.assemble import Assembled, Sample, TierCounts, duplicates_between
from preftune.curation.generate.config import GenerateConfig, TierConfig
from preftune.curation.generate.prompts import Prompts
from preftune.report.page import Cell, Charts, Example, Examples, Page, Prose, Section, Table, Tone, line_chart

MANY = 0.05
"""Share of a tier's answers that are cut or empty from which it is a warning."""
ALIKE = 0.2
"""Share of a tier's answers that equal a better tier's from which it is a warning."""
LONGER = 2.0
"""Ratio of mean lengths from which length alone tells two tiers apart."""
POINTS = 24


def problems_of(config: GenerateConfig, prompts: Prompts, found: Assembled) -> list[str]:
    """What is wrong with the answers, and what to do about it."""
    out: list[str] = []
    failed = sum(tier.failed + tier.refused for tier in found.tiers)
    if failed:
        out.append(f"{failed:,} answers failed or were refused. The same command with `--resume` asks for them again.")
    for tier in found.tiers:
        if tier.answered and tier.cut / tier.answered > MANY:
            fate = "left out" if config.cut == "drop" else "kept without their end"
            out.append(
                f"{_share(tier.cut, tier.answered)} of the answers of {printable(tier.name)} were cut at max_tokens "
                f"and {fate}; raise sampling.max_tokens of that tier."
            )
        if tier.answered and tier.empty / tier.answered > MANY:
            out.append(
                f"{_share(tier.empty, tier.answered)} of the answers of {printable(tier.name)} are empty. A model that "
                "thinks first may have spent all its tokens on that; raise sampling.max_tokens, or look at "
                "answers.jsonl."
            )
        if tier.uncounted:
            out.append(
                f"The server of {printable(tier.name)} did not count the tokens of {tier.uncounted:,} calls: its "
                "numbers and cost are too low."
            )
    for worse, better, _, share in duplicates_between(found.tiers):
        if share > ALIKE:
            out.append(
                f"{100 * share:.0f} % of the answers of {printable(worse)} equal one of {printable(better)}: these "
                "tiers hardly differ on these prompts."
            )
    out += _lengths_differ(found.tiers)
    if prompts.bad:
        out.append(f"{prompts.bad:,} rows are bad and were left out; decisions.jsonl says why.")
    return out


def make_page(config: GenerateConfig, prompts: Prompts, found: Assembled, warnings: Sequence[str]) -> Page:
    """The report."""
    names = " › ".join(f"{tier.name}" for tier in found.tiers)
    costs = [tier.cost for tier in found.tiers if tier.cost is not None]
    asked = prompts.count - (prompts.repeated if config.repeated_prompts == "drop" else 0)
    left = sum(tier.answered - tier.kept for tier in found.tiers)
    missing = sum(tier.failed + tier.refused for tier in found.tiers)
    sentence = f"{found.answers:,} answers of {len(found.tiers)} tiers to {found.rows:,} of {asked:,} prompts."
    if left:
        sentence += f" {left:,} more are in answers.jsonl and left out of the rows: equal, cut or empty ones."
    verdict: Literal["better", "same", "worse"] = "better" if not warnings else "worse" if not found.rows else "same"
    big = [("rows", f"{found.rows:,}"), ("answers", f"{found.answers:,}")]
    if costs:
        big.append(("cost", _money(sum(costs))))
    sections = [
        Section("tiers", "Tiers", [_tiers(config, found), *_notes(config, found, missing)], short="Tiers"),
        Section("lengths", "How long the answers are", _lengths(found.tiers), short="Lengths"),
        Section("examples", "Answers side by side", _examples(found.samples), short="Examples"),
    ]
    if duplicates := duplicates_between(found.tiers):
        table = Table(
            ["Tier", "Equal to one of", "Answers", "Share"],
            [[w, b, n, Cell(f"{100 * share:.1f} %", meter=share)] for w, b, n, share in duplicates],
            "Equal but for white space at the ends. `preftune data pairs` finds those that are nearly equal, too.",
        )
        sections.append(Section("duplicates", "Equal answers across tiers", [table], short="Equal"))
    if found.failures:
        sections.append(Section("failures", "What failed", [_failures(found)], short="Failed"))
    sections.append(Section("next", "Next", _next()))
    return Page(
        f"Answers of {len(found.tiers)} tier{'s' if len(found.tiers) > 1 else ''}",
        kicker=f"prompts of {', '.join(source.path for source in config.data)}",
        verdict=verdict, sentence=sentence, why=f"The best tier first: {names}.", big=big, problems=warnings,
        sections=sections,
    )  # fmt: skip


def _tiers(config: GenerateConfig, found: Assembled) -> Table:
    tiers = {tier.name: tier for tier in config.tiers}
    with_cost = any(one.cost is not None for one in found.tiers)
    head = ["Tier", "Rank", "Answers in the rows", "Others", "Tokens in → out", "Words, mean"]
    rows: list[list[object]] = []
    for one in found.tiers:
        row: list[object] = [
            Cell(one.name, hint=_writer(tiers[one.name])),
            one.rank,
            Cell(f"{one.kept:,} of {one.wanted:,}", meter=one.kept / one.wanted if one.wanted else 0.0),
            _others(config, one),
            f"{one.tokens_in:,} → {one.tokens_out:,}" if one.tokens_out else None,
            None if one.mean_words is None else round(one.mean_words),
        ]
        rows.append([*row, None if one.cost is None else _money(one.cost)] if with_cost else row)
    return Table([*head, "Cost"] if with_cost else head, rows)


def _others(config: GenerateConfig, one: TierCounts) -> Cell:
    """Answers that are missing, or left out of the rows."""
    parts = {
        "failed": one.failed, "refused": one.refused, "absent from the data": one.absent, "empty": one.empty,
        "cut": one.cut if config.cut == "drop" else 0,
        "equal": one.within + sum(one.across.values()) if config.duplicates == "drop" else 0,
    }  # fmt: skip
    total = sum(parts.values())
    told = ", ".join(f"{count:,} {name}" for name, count in parts.items() if count)
    many = one.answered and (one.cut + one.empty) / one.answered > MANY
    tone: Tone = "bad" if one.failed or one.refused else "warn" if many else "quiet" if not total else ""
    return Cell(f"{total:,}", tone, hint=told)


def _notes(config: GenerateConfig, found: Assembled, missing: int) -> list[Prose]:
    out = ["Tokens are those that the server or the model's tokenizer counts."]
    if any(one.cost is not None for one in found.tiers):
        out.append("Cost is tokens times the prices in the settings, in their currency.")
    if missing:
        out.append("Missing answers are in decisions.jsonl with their error.")
    return [Prose(" ".join(out), "quiet")]


def _writer(tier: TierConfig) -> str:
    if tier.column is not None:
        return f"column {tier.column}"
    draw = tier.sampling
    how = f"temperature {draw.temperature:g}" + (f", {draw.n} to each prompt" if draw.n > 1 else "")
    name = tier.model.path if tier.model is not None else tier.endpoint.model if tier.endpoint is not None else ""
    return f"{name}, {how}"


def _lengths(tiers: Sequence[TierCounts]) -> list[Charts | Prose | Table]:
    """Shares of answers by length on one scale, so that tiers can be told apart by eye."""
    longest = max((_quantile(one.words, 0.99) for one in tiers if one.words), default=0)
    if not longest:
        return [Prose("There is no answer to measure.", "quiet")]
    width = max(1, -(-(longest + 1) // POINTS))
    series = []
    for one in tiers:
        if not one.words:
            continue
        total = sum(one.words.values())
        bins = Counter[int]()
        for words, count in one.words.items():
            bins[min(words // width, POINTS)] += count
        places = range(max(bins) + 2)
        series.append((one.name, [(p + 0.5) * width for p in places], [bins[p] / total for p in places]))
    chart = line_chart(
        "Words of an answer",
        f"Share of a tier's answers within {width} word{'s' if width > 1 else ''}; the longest are counted at the end.",
        series, xlabel="words", ylabel="share of the answers", percent=True, wide=True,
    )  # fmt: skip
    rows = [
        [one.name, *(_quantile(one.words, q) for q in (0.05, 0.25, 0.5, 0.75, 0.95)), max(one.words)]
        for one in tiers
        if one.words
    ]
    table = Table(
        ["Tier", "5 %", "25 %", "Median", "75 %", "95 %", "Longest"], rows,
        "Words, as white space parts them. Where the better tier is always the longer one, a reward model learns to "
        "count words.",
    )  # fmt: skip
    return [table, Charts([chart])]


def _examples(samples: Sequence[Sample]) -> list[Examples | Prose]:
    if not samples:
        return [Prose("There is none.", "quiet")]
    items = []
    for sample in samples:
        answers: list[tuple[str, str, Tone]] = [
            (f"{name} ({remark})" if remark else name, text, "warn" if remark else "")
            for name, text, remark in sample.answers
        ]
        texts: list[tuple[str, str, Tone]] = [("prompt", sample.prompt, ""), *answers]
        items.append(Example(_title(sample), texts, beside=True))
    return [Examples(items, opened=2), Prose("Drawn at random, with the seed.", "quiet")]


def _title(sample: Sample) -> str:
    line = " ".join(sample.prompt.split())
    return f"{sample.where} · {line if len(line) <= 90 else f'{line[:90]}…'}"


def _failures(found: Assembled) -> Table:
    total = sum(tier.failed + tier.refused for tier in found.tiers)
    rows = [[where, tier, Cell(error, fold=True)] for where, tier, error in found.failures]
    note = f"The first {len(rows)}; all are in decisions.jsonl." if total > len(rows) else ""
    return Table(["Prompt", "Tier", "What went wrong"], rows, note)


def _next() -> list[Prose]:
    return [
        Prose(
            "`preftune data pairs --data.path rows.jsonl --output pairs` makes pairs of every better tier with every "
            "worse one. `preftune reward`, `preftune dpo` and the others read `rows.jsonl` as it is, too."
        ),
        Prose(
            "answers.jsonl has every answer and every failed call in the order in which they came; decisions.jsonl "
            "says of each row, and of each of its answers, whether it was kept and why.",
            "quiet",
        ),
    ]


def _lengths_differ(tiers: Sequence[TierCounts]) -> list[str]:
    means = [(one.mean_words, one) for one in tiers if one.mean_words]
    out = []
    for place, (mean, better) in enumerate(means):
        for other, worse in means[place + 1 :]:
            if better.rank == worse.rank or mean is None or other is None:
                continue
            if max(mean / other, other / mean) >= LONGER:
                long, short = (better, worse) if mean > other else (worse, better)
                out.append(
                    f"Answers of {printable(long.name)} are {max(mean, other) / min(mean, other):.1f} times as long "
                    f"as those of {printable(short.name)}: length alone tells these tiers apart. Ask for a length in "
                    "the tier's system message, or cap it with `max_length_ratio` of `preftune data pairs`."
                )
    return out


def _quantile(counts: Counter[int], share: float) -> int:
    """The nearest rank of counted values."""
    total, passed = sum(counts.values()), 0
    for value in sorted(counts):
        passed += counts[value]
        if passed >= share * total:
            return value
    return 0


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %"


def _money(value: float) -> str:
    return f"{value:,.2f}" if value >= 0.995 else f"{value:.3g}"

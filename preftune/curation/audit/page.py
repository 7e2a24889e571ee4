"""The page of an audit: the verdict, every check, what was found with the worst rows, and the tokens of a few rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from preftune.curation.audit.charts import (
    difference_chart,
    language_chart,
    length_charts,
    overlap_chart,
    quantile_table,
)
from preftune.curation.audit.checks import Check, Status, between, percent
from preftune.curation.audit.config import AuditConfig
from preftune.curation.audit.language import NAMES
from preftune.curation.audit.row import side_name
from preftune.curation.audit.tally import BadRows, SourceTally
from preftune.curation.audit.tokenised import Coloured, Shown, TokenLook, coloured
from preftune.report.page import Block, Cell, Charts, Example, Examples, Page, Prose, Section, Table, Tokens, Tone

if TYPE_CHECKING:
    from preftune.curation.audit.run import Audit

TONES: dict[Status, Tone] = {"ok": "good", "look": "warn", "not fit": "bad"}
_VERDICTS: dict[Status, Literal["better", "same", "worse"]] = {"ok": "better", "look": "same", "not fit": "worse"}
TOKENS = 500
"""Tokens of a text that are shown; of a longer one its beginning and its end."""
LEGEND = {
    "prompt": "given, no loss", "trained": "written by the answer, learned", "end": "the EOS, learned",
    "special": "special token of the template, no loss", "context": "within an answer, no loss",
}  # fmt: skip


def audit_page(result: Audit, config: AuditConfig) -> Page:
    """The whole page."""
    wrong = [check for check in result.checks if check.status == "not fit"]
    doubtful = [check for check in result.checks if check.status == "look"]
    title = {"ok": "The data is fit", "look": "The data is fit, with care", "not fit": "The data is not fit"}
    told = wrong or doubtful
    sentence = "; ".join(f"{check.title.lower()}: {_number(check)}" for check in told[:4])
    more = f"; and {len(told) - 4} more" if len(told) > 4 else ""
    sections = [
        Section("checks", "Checks", [_checks(result.checks)], short="Checks"),
        Section("found", "What was found", _found(result), short="Found"),
        Section("sources", "Sources", [_sources(result.tally.sources, result.tally.unit)], short="Sources"),
        Section("lengths", "Lengths", _lengths(result), short="Lengths"),
        Section("languages", "Languages", _languages(result), short="Languages"),
    ]
    if result.overlap is not None:
        sections.insert(4, Section("test", "Against the test rows", _test(result, config), short="Test"))
    if result.tokens is not None:
        sections.append(Section("tokens", "As training reads them", _tokens(result.tokens, config), short="Tokens"))
    names = ", ".join(source.path for source in config.data)
    problems = [] if result.tokens is not None else ["No model was given, so tokens were not looked at: --model.path"]
    return Page(
        title[result.verdict],
        kicker=f"audit of {names}",
        verdict=_VERDICTS[result.verdict],
        sentence=f"{sentence[0].upper()}{sentence[1:]}{more}." if told else "Every check is ok.",
        why=f"{_shapes(result.tally.shapes) or 'no rows'}; {result.prompts:,} different prompts.",
        big=[("rows", f"{result.rows:,}"), ("not fit", str(len(wrong))), ("look", str(len(doubtful)))],
        problems=problems,
        sections=sections,
    )


def _shapes(shapes: Counter[str]) -> str:
    return ", ".join(f"{count:,} {shape}" for shape, count in shapes.most_common())


def _number(check: Check) -> str:
    if check.interval is not None:
        return percent(check.interval.value)
    return f"{check.count:,} of {check.of:,}"


def _checks(checks: Sequence[Check]) -> Table:
    rows: list[list[object]] = []
    order: list[Status] = ["not fit", "look", "ok"]
    for check in sorted(checks, key=lambda check: order.index(check.status)):
        limits = "none may be" if check.look is None or check.unfit is None else _limits(check.look, check.unfit)
        meter = min(1.0, check.share) if check.count else None
        rows.append(
            [
                Cell(check.status.replace(" ", "\u00a0"), TONES[check.status]),
                Cell(check.title, hint=check.says),
                Cell(f"{check.count:,}", hint=f"of {check.of:,}"),
                Cell(percent(check.share), meter=meter) if check.interval is None
                else Cell(percent(check.interval.value), hint=between(check.interval)),
                Cell(limits, "quiet", hint="bad_rows" if check.name == "test_bad_rows" else check.name),
            ]
        )  # fmt: skip
    return Table(
        ["Status", "Check", "Rows", "Share", "Look / not fit above"], rows,
        "Length bias and the balance of marks are measured from one half: their thresholds are distances from 50 %. "
        "The grey names are those of the thresholds, `--limits.NAME \"[look, not fit]\"`, and of the findings in "
        "`decisions.jsonl`, where every row has its own.",
    )  # fmt: skip


def _limits(look: float, unfit: float) -> str:
    return f"{100 * look:g} % / {'never' if unfit >= 1 else f'{100 * unfit:g} %'}"


def _found(result: Audit) -> list[Block]:
    out: list[Block] = []
    for check in result.checks:
        if not check.count or (check.status == "ok" and not check.examples):
            continue
        says = f" {check.says[0].upper()}{check.says[1:]}." if check.says else ""
        out.append(
            Prose(
                f"{check.title}: {check.count:,} of {check.of:,}.{says} {check.advice}",
                "warn" if check.status != "ok" else "quiet",
            )
        )
        if check.name in ("bad_rows", "test_bad_rows"):
            out.append(_bad(result.tally.bad if check.name == "bad_rows" else result.test_bad))
        if check.examples:
            out.append(Examples([_example(check, n) for n in range(len(check.examples))], opened=0))
    return out or [Prose("Nothing.", "quiet")]


def _example(check: Check, number: int) -> Example:
    shown = check.examples[number]
    title = f"{shown.where}: {shown.note}" if shown.note else shown.where
    chips = [("see", shown.of)] if shown.of else []
    return Example(title, [(label, text, "") for label, text in shown.texts], chips)


def _bad(bad: BadRows) -> Table:
    rows: list[list[object]] = []
    for kind, count in bad.kinds.most_common():
        first = bad.first[kind]
        rows.append([count, Cell(first[0][1]), Cell("\n".join(where for where, _ in first), mono=True, fold=True)])
    return Table(["Rows", "Problem (of the first)", "Where"], rows, "`decisions.jsonl` names every one of them.")


def _sources(sources: Sequence[SourceTally], unit: str) -> Table:
    rows: list[list[object]] = []
    for source in sources:
        found = source.findings
        main = source.languages.most_common(1)
        rows.append(
            [
                Cell(source.path, mono=True, hint=_shapes(source.shapes)),
                source.rows, source.bad, source.kept,
                found["duplicate_rows"] + found["near_duplicates"], found["conflicts"],
                found["empty"] + found["identical"] + found["prefix"],
                found["control"] + found["mojibake"], found["in_test"],
                round(source.prompt_words / source.rows, 1) if source.rows else None,
                round(source.answer_words / source.answers, 1) if source.answers else None,
                percent(source.longer / source.pairs) if source.pairs else None,
                NAMES[main[0][0]] if main else None,
            ]
        )  # fmt: skip
    return Table(
        ["Source", "Rows", "Bad", "Kept", "Twice", "Against", "Sides", "Characters", "In test", "Prompt", "Answer",
         "Longer", "Language"], rows,
        "Kept: left by the limits on tokens. Twice: equal or nearly equal to an earlier row. Against: contradicts an "
        "earlier row. Sides: empty, identical, or one the beginning of the other. Characters: control characters or "
        "wrong decoding. Prompt and answer: words in the mean. Longer: how often the longer answer is the better one "
        f"(in {unit}).",
    )  # fmt: skip


def _lengths(result: Audit) -> list[Block]:
    tally, tokens = result.tally, result.tokens
    out: list[Block] = []
    if tokens is not None and len(tokens.lengths.prompts):
        out += [Charts(length_charts(tokens, tally.config)), quantile_table(tokens)]
        counts = tokens.counts
        reasons = "; ".join(f"{rows:,}: {reason}" for reason, rows in counts.reasons.items())
        out += [
            Table(
                ["Over the limit of", "Tokens", "Rows"],
                [
                    ["prompts", tally.config.tokens.max_prompt_tokens, tokens.over_prompt],
                    ["answers", tally.config.tokens.max_completion_tokens, tokens.over_answer],
                    ["the model's positions, prompt and answer together", tokens.context, tokens.over_context],
                ],
            ),
            Prose(
                f"With on_too_long {tally.config.tokens.on_too_long} training keeps {counts.kept:,} rows and drops "
                f"{counts.dropped:,}{f' ({reasons})' if reasons else ''}; of those kept {counts.truncated:,} are cut, "
                f"{counts.special_text:,} hold the text of a special token, {counts.unknown:,} unknown characters; "
                f"{counts.eos_invented:,} answers get an EOS that the template did not write."
            ),
        ]
    else:
        out += [Charts(length_charts(None, tally.config, tally)), quantile_table(None, tally)]
    if len(tally.better):
        check = result["length_bias"]
        out += [Charts([difference_chart(tally)]), Prose(f"{check.says[:1].upper()}{check.says[1:]}.")]
    return out


def _languages(result: Audit) -> list[Block]:
    tally = result.tally
    return [
        Charts([language_chart(tally)]) if tally.languages else Prose("No row's language could be told.", "quiet"),
        Prose(
            "By script and by the commonest words, of about fifty languages. Short texts, code and formulas are in no "
            "language; neighbours (Danish and Norwegian, Czech and Slovak, …) are never held against each other.",
            "quiet",
        ),
    ]


def _test(result: Audit, config: AuditConfig) -> list[Block]:
    assert result.overlap is not None
    told = [one.share for one in result.test if one.share is not None]
    out: list[Block] = [
        Prose(
            f"{len(result.test):,} test rows, looked for by their {result.overlap.n}-grams of words"
            f"{' (prompts alone)' if config.overlap.of == 'prompt' else ''}; from a share of {config.overlap.share:g} "
            f"on a row counts as contaminated. {result.overlap.short:,} rows are too short for n-grams, or template; "
            "they are compared as wholes. `test.jsonl` has every test row, with the training row that holds most of it."
        )
    ]
    if told:
        out.append(Charts([overlap_chart(told, config.overlap.share)]))
    return out


def _tokens(tokens: TokenLook, config: AuditConfig) -> list[Block]:
    lines: list[tuple[str, list[Coloured]]] = []
    for shape, rows in sorted(tokens.shown.items()):
        for row in rows:
            lines += _row_tokens(row, shape, tokens)
    if not lines:
        said = "No row is left to show." if config.show else "None were asked for (show 0)."
        return [Prose(said, "quiet")]
    return [
        Prose(
            f"Rows drawn at random (seed {config.seed}), of each shape; rows with addresses or keys are not drawn. "
            "These are exactly the ids that training gets: one box is one token. ↵ is a line break; ◌ is a part of a "
            "character that a later token completes."
        ),
        Tokens(lines, LEGEND),
    ]


def _row_tokens(row: Shown, shape: str, tokens: TokenLook) -> list[tuple[str, list[Coloured]]]:
    prompt, where = row.group.prompt, row.group.prompt.where
    lines = [
        (f"{where} · {shape} · prompt, {len(prompt.ids):,} tokens", coloured(prompt.ids, None, tokens.contract, TOKENS))
    ]
    for n, one in enumerate(row.group.completions):
        title = f"{where} · {side_name(row.example, n)}, {len(one.ids):,} tokens, {one.length:,} learned"
        lines.append((title, coloured(one.ids, one.mask, tokens.contract, TOKENS)))
    return lines

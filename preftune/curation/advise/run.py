"""`advise`: facts, a verdict, a recipe, and a page that says why."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from preftune.curation.advise.choose import Verdict, choose
from preftune.curation.advise.config import AdviseConfig
from preftune.curation.advise.facts import Facts, read_facts
from preftune.curation.advise.ratings import RATINGS
from preftune.curation.advise.recipe import MODELS, write_recipe
from preftune.curation.folder import Curated
from preftune.report.page import Cell, Page, Prose, Section, Table, Tone

RECIPE = "recipe.yaml"


@dataclass(frozen=True, slots=True)
class Advice:
    """What `advise` found.

    Attributes:
        facts: what the rows say.
        verdict: the methods, with reasons.
        recipe: the recommended recipe, as it was written.
        before: the command that says whether tuning is needed at all.
        folder: where recipe.yaml, summary.json and report.html are; None when nothing was written.
    """

    facts: Facts
    verdict: Verdict
    recipe: Mapping[str, Any]
    before: str
    folder: Path | None


def advise(config: AdviseConfig, output: Path, *, base_dir: Path | None = None) -> Advice:
    """Recommend a method for the data and the means, and write a recipe for it.

    Args:
        config: the data and what is known of the means.
        output: a new folder for recipe.yaml, summary.json and report.html.

    Raises:
        UsageError: `output` holds something. DataError: the data can't be read.
    """
    with Curated(output) as curated:
        facts = read_facts(config.data, base_dir)
        verdict = choose(facts, config)
        partial = output / f"{RECIPE}.partial"
        recipe = write_recipe(partial, verdict, facts, config)
        curated.text(RECIPE, partial.read_text(encoding="utf-8").replace(partial.name, RECIPE))
        before = diagnosis(facts, config)
        measures = {
            "before": before,
            "facts": facts.to_json(),
            "method": verdict.best.method, "reasons": verdict.best.reasons, "stages": verdict.best.stages,
            "second": {"method": verdict.second.method, "reasons": verdict.second.reasons},
            "applicability": {name: asdict(found) for name, found in verdict.applicability.items()},
            "path": dict(verdict.path), "warnings": verdict.warnings,
        }  # fmt: skip
        curated.finish("preftune advise", config.model_dump(mode="json"), measures, _page(facts, verdict, config))
    return Advice(facts, verdict, recipe, before, output)


def diagnosis(facts: Facts, config: AdviseConfig) -> str:
    """The command that measures the model on the data's prompts; plain text has none, so they are to be collected."""
    asked = config.data[0].path if config.data and facts.shape != "text" else "prompts.jsonl"
    return shlex.join(["preftune", "diagnose", "--model", config.model or MODELS[config.gpus], "--data", asked])


def _page(facts: Facts, verdict: Verdict, config: AdviseConfig) -> Page:
    best, second = RATINGS[verdict.best.method], RATINGS[verdict.second.method]
    chain = " → ".join([*verdict.best.stages, verdict.best.method])
    names = ", ".join(source.path for source in config.data) or "no data yet"
    why = [Prose(f"{n}. {reason}.") for n, reason in enumerate(verdict.best.reasons, 1)]
    return Page(
        f"Take {best.title}" + (f" after a reward model ({chain})" if verdict.best.stages else f" ({chain})"),
        kicker=f"advice on {names}",
        verdict="better",
        sentence=f"{'; '.join(verdict.best.reasons)}.",
        why=f"Or {second.title} ({verdict.second.method}): {'; '.join(verdict.second.reasons)}.",
        big=[("rows", f"{facts.rows:,}"), ("method", verdict.best.method)],
        problems=verdict.warnings,
        sections=[
            Section("why", "Why", [*why, _path(verdict)], short="Why"),
            Section("methods", "All methods", [_methods(verdict), *_legend()], short="Methods"),
            Section("data", "What the rows say", [_facts(facts)], short="Data"),
            Section(
                "next",
                "Next",
                [
                    Prose(f"1. Does the model need tuning at all? `{diagnosis(facts, config)}`"),
                    Prose("2. Are the rows fit? `preftune data audit` looks for what training would stumble over."),
                    Prose(
                        "3. `recipe.yaml` beside this page runs as it is: `preftune run recipe.yaml --dry-run` first."
                    ),
                    Prose(f"docs/methods/{verdict.best.method}.md explains the method.", "quiet"),
                ],
            ),
        ],
    )


def _path(verdict: Verdict) -> Table:
    rows = [
        [question, Cell(answer, "quiet" if answer in ("unknown", "no") else "")] for question, answer in verdict.path
    ]
    return Table(
        ["Question", "Answer"], rows,
        "An unknown counts against the methods that need it. Say more with the flags of `preftune advise`.",
    )  # fmt: skip


def _methods(verdict: Verdict) -> Table:
    first = [verdict.best.method, verdict.second.method]
    order = sorted(RATINGS, key=lambda name: -verdict.applicability[name].score)
    rows = []
    for name in [*first, *(n for n in order if n not in first)]:
        rating, fits = RATINGS[name], verdict.applicability[name]
        label = {verdict.best.method: "recommended", verdict.second.method: "runner-up"}.get(name, "")
        tone: Tone = "good" if label == "recommended" else ""
        rows.append(
            [
                Cell(name, tone, hint=f"{rating.title}{f': {label}' if label else ''}"),
                _stars(rating.quality), _stars(rating.complexity), _stars(rating.cost),
                Cell(f"{fits.score} of 5", hint=fits.why, meter=fits.score / 5),
                Cell("", hint=f"{rating.cases}. {rating.why[0].upper()}{rating.why[1:]}."),
            ]
        )  # fmt: skip
    return Table(["Method", "Quality", "Complexity", "Cost", "Applicability", "Usual cases"], rows)


def _stars(count: int) -> Cell:
    return Cell(f"{count}\u00a0of\u00a05", meter=count / 5)


def _legend() -> list[Prose]:
    return [
        Prose(
            "Quality, complexity and cost are judgements from 1 to 5, in the order of the talk that they come from; "
            "they are no measurements. Applicability is for this data and these means: 0 can't run, 5 has all.",
            "quiet",
        )
    ]


def _facts(facts: Facts) -> Table:
    shapes = ", ".join(f"{count:,} {shape}" for shape, count in facts.shapes.most_common()) or "–"
    rows: list[list[object]] = [
        ["rows", facts.rows],
        ["different prompts", facts.prompts],
        ["shapes", shapes],
        ["bad rows left out", facts.bad],
        ["words of a prompt, mean", round(facts.prompt_words, 1)],
        ["words of an answer, mean", round(facts.completion_words, 1)],
        ["prompts that are conversations", f"{100 * facts.turns:.0f} %"],
        ["marked as good", None if facts.good is None else f"{100 * facts.good:.0f} %"],
        ["can be checked by", f"column {facts.answers}, as {facts.check}" if facts.check else None],
        ["further columns", ", ".join(facts.columns) or None],
    ]
    return Table(["", ""], rows)

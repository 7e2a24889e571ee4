"""`preftune advise`: which method fits, why, and a recipe for it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from preftune.cli.model_flags import add_settings, read_settings
from preftune.cli.parser import Parser

if TYPE_CHECKING:
    from preftune.curation.advise.config import AdviseConfig
    from preftune.curation.advise.run import Advice

_ABOUT = """\
Looks at the data, asks what there is to work with, and recommends a method with its reasons, a runner-up, and a recipe
that runs as it is. In a terminal it asks for what no flag says; elsewhere what is not said counts as unknown.

  preftune advise --data.path pairs.jsonl
  preftune advise --data.path train.jsonl --gpus one --chain_of_thought yes --output advice
  preftune advise --annotators many --gpus cluster          without data: what to collect
"""

_UNREAD = ("data.weight",)

_QUESTIONS = {
    "gpus": "What is there to train on?",
    "annotators": "Who can judge answers?",
    "chain_of_thought": "Does it help to think step by step before answering?",
    "task": "A general assistant, or a small or scientific task where quality is all?",
}


def execute(arguments: list[str]) -> int:
    from preftune.curation.advise.config import AdviseConfig

    parser = Parser(
        prog="preftune advise", usage="preftune advise [--data.path X] [--output FOLDER] [--setting VALUE …]",
        description=_ABOUT,
    )  # fmt: skip
    parser.add_argument(
        "--output", default="advice", metavar="FOLDER", help="new folder for the recipe and the report (default advice)"
    )
    parser.add_argument("--ask", choices=("auto", "never"), default="auto", help="ask in a terminal (default auto)")
    add_settings(parser, AdviseConfig, _UNREAD)
    config, rest = read_settings(parser, arguments, AdviseConfig, _UNREAD)

    from preftune.curation.advise.run import advise
    from preftune.curation.folder import check_free

    check_free(Path(rest.output))
    if rest.ask == "auto" and sys.stdin.isatty() and sys.stdout.isatty():
        config = _asked(config)
    _show(advise(config, Path(rest.output)))
    return 0


def _asked(config: AdviseConfig) -> AdviseConfig:
    """The settings with what a person at the terminal answers; an empty answer leaves it unknown."""
    from rich.prompt import Prompt

    found: dict[str, Any] = {}
    for name, question in _QUESTIONS.items():
        if name not in config.model_fields_set:
            choices = get_args(type(config).model_fields[name].annotation)
            found[name] = Prompt.ask(question, choices=list(choices), default="unknown")
    return config.model_copy(update=found)


def _show(advice: Advice) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from preftune.curation.advise.ratings import RATINGS

    verdict = advice.verdict
    best, second = verdict.best, verdict.second
    console = Console(width=max(Console().width, 100))
    chain = " → ".join([*best.stages, best.method])
    console.print(Text(f"{RATINGS[best.method].title} ({chain})", style="bold"))
    for reason in best.reasons:
        console.print(Text(f"  {reason}"))
    console.print(Text(f"or {RATINGS[second.method].title} ({second.method}): {'; '.join(second.reasons)}"))
    for warning in verdict.warnings:
        console.print(Text(f"note: {warning}", style="yellow"))
    table = Table(box=None)
    for column in ("method", "quality", "complexity", "cost", "applicability", ""):
        justify: Literal["left", "right"] = "left" if column in ("method", "") else "right"
        table.add_column(column, justify=justify, no_wrap=column != "")
    for name in sorted(RATINGS, key=lambda name: (name != best.method, -verdict.applicability[name].score)):
        rating, fits = RATINGS[name], verdict.applicability[name]
        numbers = (rating.quality, rating.complexity, rating.cost, fits.score)
        table.add_row(Text(name), *(f"{n}/5" for n in numbers), Text(fits.why))
    console.print(table)
    console.print(Text(f"first, is it needed? {advice.before}"), soft_wrap=True)
    print(f"recipe: {advice.folder}/recipe.yaml\nreport: {advice.folder}/report.html")

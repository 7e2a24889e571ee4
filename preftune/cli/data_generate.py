"""`preftune data generate`: answers of several tiers to each prompt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from preftune.cli.parser import Parser
from preftune.cli.settings_file import add_file_settings, read_file_settings

if TYPE_CHECKING:
    from preftune.curation.generate import Generated

_ABOUT = """\
Has several tiers answer every prompt: models in this process, models behind OpenAI-compatible endpoints, and columns
that hold an answer already. Writes rows of the ranked format, which `preftune data pairs`, `preftune reward` and the
other methods read. Answers are kept as they come: --resume asks only for what is missing.
docs/curation-generate.md tells more.

  preftune data generate tiers.yaml --data.path prompts.jsonl --output answers
  preftune data generate tiers.yaml --data.path prompts.jsonl --output answers --resume

tiers.yaml:
  tiers:
    - {name: human, rank: 1, column: answer}
    - {name: best, rank: 2, endpoint: {model: gpt-5, requests_per_minute: 500}, sampling: {max_tokens: 2000}}
    - {name: weak, rank: 3, model: Qwen/Qwen3-0.6B, sampling: {n: 2, max_tokens: 1000}}

A flag takes the place of what the file says: --tiers.weak.sampling.temperature 0.7
"""
UNREAD = ("data.weight", "data.contest")


def execute(arguments: list[str]) -> int:
    from preftune.curation.generate.config import GenerateConfig

    parser = Parser(
        prog="preftune data generate",
        usage="preftune data generate [FILE.yaml] --data.path X --output FOLDER [--resume] [--setting VALUE …]",
        description=_ABOUT,
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="new folder, or one to go on with")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="yes",
        default="no",
        choices=("yes", "no", "auto"),
        help="ask only for what is missing in the folder, failed calls too; auto: start afresh where nothing is there",
    )
    add_file_settings(parser, GenerateConfig, UNREAD, named=("tiers",))
    config, rest = read_file_settings(parser, arguments, GenerateConfig, UNREAD, named=("tiers",))

    from preftune.curation.generate import generate
    from preftune.curation.generate.journal import begun

    folder = Path(rest.output)
    resume = rest.resume == "yes" or (rest.resume == "auto" and begun(folder))
    _show(generate(config, folder, resume=resume))
    return 0


def _show(found: Generated) -> None:
    from preftune.curation.contents import printable

    for tier in found.tiers:
        told = {
            "failed": tier.failed, "refused": tier.refused, "absent": tier.absent, "empty": tier.empty,
            "cut": tier.cut, "equal": tier.within + sum(tier.across.values()),
        }  # fmt: skip
        parts = [f"{tier.kept} of {tier.wanted} answers", *(f"{count} {name}" for name, count in told.items() if count)]
        if tier.tokens_out:
            parts.append(f"{tier.tokens_in} tokens in, {tier.tokens_out} out")
        if tier.cost is not None:
            parts.append(f"cost {tier.cost:.4g}")
        print(f"{printable(tier.name)} (rank {tier.rank}): {', '.join(parts)}")
    for warning in found.warnings:
        print(f"note: {printable(warning)}")
    folder = printable(str(found.folder))
    print(f"rows: {folder}/rows.jsonl ({found.rows} prompts, {found.answers} answers)")
    print(f"report: {folder}/report.html")

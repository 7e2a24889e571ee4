"""`preftune score --model.path RM --data.path X`: a reward model's scores of completions, and how right they are."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.cli.parser import Parser, flag_name, help_text, metavar, split_overrides
from preftune.config import Recipe
from preftune.errors import UsageError
from preftune.recipes.overrides import apply_overrides
from preftune.recipes.problems import Problems, Stage, check_keys
from preftune.recipes.schema import Leaf, leaves

if TYPE_CHECKING:
    from preftune.scoring import ScoreConfig, Scores

SECTIONS = ("model", "data", "tokens")
OWN = ("max_tokens_per_batch", "normalize", "on_too_long")

_ABOUT = """\
Scores the completions of a data set with a reward model: one line of JSON per row, in the data's order.
Where the data says which completion is better (preference pairs, ranks, labels), it also measures how often the
scores agree. See docs/scoring.md.

  preftune score --model.path RM --data.path pairs.jsonl --output scores.jsonl --summary summary.json
  --data.columns.prompt.from question, --data.1.path FILE for a second source
"""


def execute(arguments: list[str]) -> int:
    parser = _parser()
    kept, extra = split_overrides(parser, arguments)
    options = vars(parser.parse(kept))
    overrides = {key: value for key, value in options.items() if key.split(".")[0] in SECTIONS} | extra
    for key in extra:
        _check_flag(parser, key)
    output = None if options["output"] is None else Path(options["output"])
    summary = None if options["summary"] is None else Path(options["summary"])
    if output is not None and output == summary:
        raise UsageError(f"--output and --summary both name {output}; give two files")
    own: dict[str, Any] = {
        name: options[name] for name in ("max_tokens_per_batch", "normalize", "on_too_long") if name in options
    }
    config = _config(overrides, own)

    from preftune.scoring import score
    from preftune.scoring.run import check_new

    if summary is not None:
        check_new(summary, "--summary")
    scores = score(config, output=output or sys.stdout, columns=options["columns"])
    print(_words(scores), file=sys.stderr if output is None else sys.stdout)
    if summary is not None:
        _write_summary(summary, config, scores)
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="preftune score",
        usage="preftune score --model.path RM --data.path X [--output FILE.jsonl] [--section.field VALUE …]",
        description=_ABOUT,
    )
    parser.add_argument(
        "--output", default=None, metavar="FILE", help="new JSONL file for the lines (default: standard output)"
    )
    parser.add_argument("--summary", default=None, metavar="FILE", help="new JSON file for the measures")
    parser.add_argument(
        "--columns", action="store_true", help="write prompt, completions and the row's other columns too"
    )
    parser.add_argument(
        "--max_tokens_per_batch",
        type=_positive,
        default=argparse.SUPPRESS,
        metavar="N",
        help="tokens of one packed forward pass (default 8192)",
    )
    parser.add_argument(
        "--normalize",
        choices=("auto", "true", "false"),
        default=argparse.SUPPRESS,
        help="apply the normalisation that the model carries (default auto: where it carries one)",
    )
    parser.add_argument(
        "--on_too_long",
        choices=("error", "skip"),
        default=argparse.SUPPRESS,
        help="a row that the model can't read whole: stop, or write it without scores (default error)",
    )
    groups: dict[str, Any] = {name: parser.add_argument_group(name) for name in SECTIONS}
    for leaf in scored_leaves():
        groups[leaf.path[0]].add_argument(
            f"--{flag_name(leaf)}",
            dest=flag_name(leaf),
            default=argparse.SUPPRESS,
            metavar=metavar(leaf.info.annotation),
            help=help_text(leaf).replace("%", "%%"),
        )
    return parser


def scored_leaves() -> Iterator[Leaf]:
    """The recipe's fields that scoring reads."""
    from preftune.scoring.settings import UNREAD

    for leaf in leaves(Recipe):
        if leaf.path[0] in SECTIONS and ".".join(leaf.path[:2]) not in UNREAD:
            yield leaf


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a whole number, at least 1")
    return int(text)


def _check_flag(parser: Parser, key: str) -> None:
    """Refuse a recipe's flag that scoring does not read; `--data.1.path` and `--data.columns.x.from` are in order."""
    parts = [part for part in key.split(".") if not part.isdigit()]
    known = {tuple(leaf.path[:2]) for leaf in scored_leaves()}
    if parts[0] in SECTIONS and tuple(parts[:2]) not in known:
        raise UsageError(f"--{key}: preftune score does not read this setting; preftune score --help lists all")
    if parts[0] not in SECTIONS:
        raise UsageError(f"--{key}: no such flag; {parser.suggest(f'--{key}')}")


def _config(overrides: dict[str, Any], own: dict[str, Any]) -> ScoreConfig:
    """The request. Raises UsageError with everything that is wrong with it."""
    from pydantic import ValidationError

    from preftune.recipes.problems import add_invalid
    from preftune.scoring import ScoreConfig

    problems = Problems("preftune score", {})
    stage = Stage("score", None, {}, {"model": {}, "data": [{}]})
    apply_overrides([stage], {}, overrides, problems)
    check_keys(problems, stage.merged, stage)
    problems.raise_any()
    try:
        return ScoreConfig.model_validate({**stage.merged, **own})
    except ValidationError as error:
        add_invalid(problems, error, stage)
        problems.raise_any()
        raise


def _words(scores: Scores) -> str:
    lines = [str(scores.summary)]
    if scores.normalization is not None:
        mean, std = scores.normalization
        lines.insert(1, f"scores are (raw − {mean:g}) / {std:g}, the numbers that the model carries")
    if scores.bad_rows:
        lines.insert(1, f"{scores.bad_rows} bad rows of the data left out")
    return "\n".join(lines)


def _write_summary(path: Path, config: ScoreConfig, scores: Scores) -> None:
    content = {
        "model": config.model.path,
        "data": [source.path for source in config.data],
        "normalization": None if scores.normalization is None else list(scores.normalization),
        "bad_rows": scores.bad_rows,
        **scores.summary.to_json(),
    }
    with path.open("x", encoding="utf-8") as file:
        file.write(json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False) + "\n")

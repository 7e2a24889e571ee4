"""`preftune judge evaluate --judge.… --data.path X`: a judge's verdicts on known pairs, and how right they are.

`preftune judge build` is in preftune/cli/judge_build.py.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.cli.parser import Parser, flag_name, help_text, metavar, print_help, split_overrides
from preftune.config import Recipe
from preftune.errors import UsageError
from preftune.judges.config import JudgeConfig
from preftune.recipes.overrides import apply_overrides
from preftune.recipes.problems import Problems, Stage, add_invalid, check_keys
from preftune.recipes.schema import Leaf, expected, is_text, keys_of, leaves, nearest, without_none
from preftune.recipes.yamltext import read_value

if TYPE_CHECKING:
    from pydantic import ValidationError

    from preftune.judges import Evaluation, EvaluationConfig

_ABOUT = """\
Judges pairs of answers of which the data says which is better (preference pairs, ranked responses, right and wrong
ones), and measures how often the judge agrees, what it costs, and whether the place of an answer sways it.
Replies are kept on disk: the same command again asks only for those that are missing. See docs/judges.md.

  preftune judge evaluate --judge.model gpt-4.1-mini --data.path pairs.jsonl --limit 200
  preftune judge evaluate --judge.path Qwen/Qwen3-8B --data.path pairs.jsonl --output verdicts.jsonl
  --data.columns.prompt.from question, --data.1.path FILE for a second source

`preftune judge build --help`: rows for training out of a judge's verdicts that turned out right.
"""
COMMANDS = ("evaluate", "build")


def execute(arguments: list[str]) -> int:
    if not arguments or arguments[0] in {"-h", "--help"}:
        print_help(_parser())
        return 0
    if arguments[0] not in COMMANDS:
        near = nearest(arguments[0], COMMANDS)
        hint = f"did you mean preftune judge {near}?" if near else f"there are {' and '.join(COMMANDS)}"
        raise UsageError(f"preftune judge {arguments[0]}: no such command; {hint}")
    if arguments[0] == "build":
        from preftune.cli import judge_build

        return judge_build.execute(arguments[1:])
    return _evaluate(arguments[1:])


def _evaluate(arguments: list[str]) -> int:
    parser = _parser()
    kept, extra = split_overrides(parser, arguments)
    options = vars(parser.parse(kept))
    for key in extra:
        _check_flag(parser, key)
    output = None if options["output"] is None else Path(options["output"])
    summary = None if options["summary"] is None else Path(options["summary"])
    if output is not None and output == summary:
        raise UsageError(f"--output and --summary both name {output}; give two files")
    config = _config({**options, **extra})

    from preftune.judges import evaluate
    from preftune.scoring.run import check_new
    from preftune.train.progress import Progress

    for path, name in ((output, "--output"), (summary, "--summary")):
        if path is not None:
            check_new(path, name)
    with Progress("judge") as progress:
        progress.begin("replies")
        found = evaluate(config, progress=progress.tick)
    if output is not None:
        write_lines(output, (json.dumps(found.line(n), ensure_ascii=False) for n in range(len(found.pairs))))
    if summary is not None:
        content = json.dumps(_summary(config, found), ensure_ascii=False, indent=2, allow_nan=False)
        write_lines(summary, [content])
    if found.bad_rows:
        print(f"{found.bad_rows} bad rows of the data left out")
    print(found.agreement)
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="preftune judge evaluate",
        usage="preftune judge evaluate --judge.path M --data.path X [--output FILE.jsonl] [--section.field VALUE …]",
        description=_ABOUT,
    )
    parser.add_argument("--output", default=None, metavar="FILE", help="new JSONL file: one line per pair")
    parser.add_argument("--summary", default=None, metavar="FILE", help="new JSON file for the measures")
    parser.add_argument(
        "--limit",
        type=_positive,
        default=argparse.SUPPRESS,
        metavar="N",
        help="judge at most N pairs: one of every prompt, then a second one, and so on",
    )
    parser.add_argument(
        "--reference",
        default=argparse.SUPPRESS,
        metavar="COLUMN",
        help="column with a right answer, which the judge is shown",
    )
    groups: dict[str, Any] = {name: parser.add_argument_group(name) for name in ("judge", "data")}
    for leaf in judged_leaves():
        groups[leaf.path[0]].add_argument(
            f"--{flag_name(leaf)}",
            dest=flag_name(leaf),
            default=argparse.SUPPRESS,
            metavar=metavar(leaf.info.annotation),
            help=help_text(leaf).replace("%", "%%"),
        )
    return parser


def judged_leaves() -> Iterator[Leaf]:
    """What can be set: the judge's fields, and the recipe's fields of a source (all but its weight in a mixture, and
    contests)."""
    for leaf in leaves(JudgeConfig):
        yield Leaf(("judge", *leaf.path), leaf.info)
    for leaf in leaves(Recipe):
        if leaf.path[0] == "data" and leaf.path[1:2] not in (("weight",), ("contest",)):
            yield leaf


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a whole number, at least 1")
    return int(text)


def _check_flag(parser: Parser, key: str) -> None:
    """Refuse a dotted flag that no field stands behind; `--data.1.path` and `--data.columns.x.from` are in order."""
    parts = [part for part in key.split(".") if not part.isdigit()]
    known = {tuple(leaf.path[:2]) for leaf in judged_leaves()}
    if parts[0] == "data" and tuple(parts[:2]) in known:
        return
    if parts[0] == "data":
        raise UsageError(f"--{key}: preftune judge does not read this setting; preftune judge --help lists all")
    if tuple(parts[:2]) in known:
        field = ".".join(parts[:2])
        raise UsageError(f"--{key}: {field} is set as a whole: --{field} '{{{'.'.join(parts[2:])}: …}}'")
    raise UsageError(f"--{key}: no such flag; {parser.suggest(f'--{key}')}")


def _config(options: dict[str, Any]) -> EvaluationConfig:
    """The request. Raises UsageError with everything that is wrong with it."""
    from pydantic import ValidationError

    from preftune.judges import EvaluationConfig

    problems = Problems("preftune judge evaluate", {})
    stage = Stage("judge", None, {}, {"data": [{}]})
    data = {key: value for key, value in options.items() if key.split(".")[0] == "data"}
    apply_overrides([stage], {}, data, problems)
    check_keys(problems, stage.merged, stage)
    fields = {key.split(".", 1)[1]: value for key, value in options.items() if key.startswith("judge.")}
    judge = {name: _value(name, text, problems) for name, text in fields.items()}
    problems.raise_any()
    try:
        config = JudgeConfig.model_validate(judge)
    except ValidationError as error:
        _add_judge(problems, error)
        problems.raise_any()
        raise
    own = {name: options[name] for name in ("limit", "reference") if name in options}
    try:
        return EvaluationConfig.model_validate({"judge": config, **stage.merged, **own})
    except ValidationError as error:
        add_invalid(problems, error, stage)
        problems.raise_any()
        raise


def _value(name: str, text: str, problems: Problems) -> Any:
    """A flag's text as the value that it stands for."""
    import yaml

    annotation = keys_of(JudgeConfig)[name].annotation
    if is_text(annotation):
        return None if text == "null" and without_none(annotation)[1] else text
    try:
        value = read_value(text)
    except yaml.YAMLError:
        value = None
        problems.add_flag(
            f"judge.{name}", f"got {text!r}, which is not valid YAML; write lists as [a, b] and mappings as {{a: 1}}"
        )
    if isinstance(value, bool) and without_none(annotation)[0] in {int, float}:
        problems.add_flag(f"judge.{name}", f"got {text}; expected {expected(annotation)}")
    return value


def _add_judge(problems: Problems, error: ValidationError) -> None:
    """pydantic's findings about the judge, in our words; unknown flags were refused before."""
    for row in error.errors():
        if not row["loc"]:
            problems.add_flag("judge", row["msg"].split(", ", 1)[1])
            continue
        info = keys_of(JudgeConfig)[str(row["loc"][0])]
        wanted = expected(info.annotation, info.metadata)
        problems.add_flag(f"judge.{row['loc'][0]}", f"got {row['input']!r}; expected {wanted}")


def _summary(config: EvaluationConfig, found: Evaluation) -> dict[str, Any]:
    judge = config.judge.model_dump(mode="json", exclude_defaults=True)
    return {
        "judge": judge,
        "data": [source.path for source in config.data],
        "reference": config.reference,
        "bad_rows": found.bad_rows,
        **found.agreement.to_json(),
    }


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """A file that is whole when it has its name."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8") as stream:
        stream.writelines(f"{line}\n" for line in lines)
    os.replace(partial, path)

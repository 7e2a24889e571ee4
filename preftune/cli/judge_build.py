"""`preftune judge build --judge.… --data.path A --data.1.path B --output X`: judging text to train on, verified."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.cli.judge import write_lines
from preftune.cli.model_flags import add_settings, read_settings
from preftune.cli.parser import Parser
from preftune.errors import UsageError

if TYPE_CHECKING:
    from preftune.judges.build import BuildConfig, Built, Verifier
    from preftune.judges.contests import Pool

UNREAD = ("form", "data.weight", "data.contest", "judge.mode", "judge.rubric", "judge.scale")
"""Fields that mean nothing here: how a judge is asked is said by --mode and --rubric."""

_ABOUT = """\
Makes contests out of answers of different origin to the same questions (several files, or several answers in a row),
lets a judge write its verdict on each, and keeps the judging text whose pick is right: rows for `preftune sft`.
An answer is right by its score in the data, or by a reward: --verify math-equal. Replies are kept on disk: the same
command again asks only for those that are missing. See docs/judges.md.

  preftune judge build --judge.model gpt-4.1-mini --data.path ours.jsonl --data.1.path theirs.jsonl --output j.jsonl
  preftune judge build --judge.path Qwen/Qwen3-8B --data.path a.jsonl --verify math-equal --size 3 --output j.jsonl
  preftune judge build --contests_only --data.path answers.jsonl --output contests.jsonl     the contests, for rft
"""


def execute(arguments: list[str]) -> int:
    from preftune.judges.build import BuildConfig

    parser = _parser(BuildConfig)
    if not arguments or arguments[0] in {"-h", "--help"}:
        parser.print_help()
        return 0
    _refuse_unread(arguments)
    config, options = read_settings(parser, arguments, BuildConfig, UNREAD)
    output, left_out, summary = _files(options.output, options.left_out, options.summary)
    _check_judge(config, options.contests_only)
    verify = None if config.verify is None else _verifier(config)

    from preftune.judges.build import build
    from preftune.train.progress import Progress

    with Progress("judge") as progress:
        progress.begin("replies")
        built = build(config, verify=verify, progress=progress.tick)
    write_lines(left_out, (_line(one) for one in built.left_out))
    if built.summary is not None:
        told = {**_settings(config), **built.summary.to_json()}
        write_lines(summary, [json.dumps(told, ensure_ascii=False, indent=2, allow_nan=False)])
    if built.rows:
        write_lines(output, (_line(row) for row in built.rows))
    print(_words(config, built, output, left_out))
    return 0 if built.rows else 1


def _parser(settings: type[BuildConfig]) -> Parser:
    parser = Parser(
        prog="preftune judge build",
        usage="preftune judge build --judge.path M --data.path A [--data.1.path B] --output FILE [--flag VALUE …]",
        description=_ABOUT,
    )
    parser.add_argument("--output", default=None, metavar="FILE", help="new JSONL file for the rows (required)")
    parser.add_argument(
        "--left_out", default=None, metavar="FILE",
        help="new JSONL file for what was left out, and why (default: OUTPUT with -left-out)",
    )  # fmt: skip
    parser.add_argument(
        "--summary", default=None, metavar="FILE",
        help="new JSON file for the measures (default: OUTPUT with -summary.json)",
    )  # fmt: skip
    parser.add_argument(
        "--contests_only", action="store_true", help="ask no judge: write the contests, as prompts for rft or grpo"
    )
    add_settings(parser, settings, UNREAD)
    return parser


def _refuse_unread(arguments: Sequence[str]) -> None:
    for token in arguments:
        flag = token.split("=", 1)[0]
        parts = [part for part in flag.removeprefix("--").split(".") if not part.isdigit()]
        field = ".".join(parts[:2])
        if flag.startswith("--") and field in UNREAD:
            why = (
                f"--{parts[1]} says how the judge is asked" if field in ("judge.mode", "judge.rubric") else "remove it"
            )
            raise UsageError(f"{flag}: preftune judge build does not read this setting; {why}")


def _files(output: str | None, left_out: str | None, summary: str | None) -> tuple[Path, Path, Path]:
    from preftune.scoring.run import check_new

    if output is None:
        raise UsageError("--output is missing; name a new .jsonl file for the rows")
    path = Path(output)
    paths = (
        path,
        Path(left_out) if left_out else path.with_name(f"{path.stem}-left-out.jsonl"),
        Path(summary) if summary else path.with_name(f"{path.stem}-summary.json"),
    )
    if len(set(paths)) < len(paths):
        raise UsageError("--output, --left_out and --summary must be three different files")
    for one, name in zip(paths, ("--output", "--left_out", "--summary"), strict=True):
        check_new(one, name)
    return paths


def _check_judge(config: BuildConfig, contests_only: bool) -> None:
    from pydantic import ValidationError

    from preftune.judges.rubrics import rubric_problem

    if problem := rubric_problem(config.rubric):
        raise UsageError(f"--rubric: {problem}")
    if contests_only and config.judge is not None:
        raise UsageError("--contests_only asks no judge; remove the --judge flags")
    if not contests_only and config.judge is None:
        raise UsageError(
            "--judge: give --judge.path (a model in this process) or --judge.model (one behind an endpoint), or "
            "--contests_only"
        )
    if config.verify is None and config.verify_args:
        raise UsageError("--verify_args belongs to --verify; give that, or remove it")
    try:
        _ = config.asking  # what does not go together is said before anything is read
    except ValidationError as error:
        said = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UsageError(f"--judge: {said}") from None


def _verifier(config: BuildConfig) -> Verifier:
    """A reward that gives every answer its score."""
    from dataclasses import replace

    from preftune.config import RewardConfig
    from preftune.judges.contests import written
    from preftune.records import Completion, Group, Prompt
    from preftune.rewards import build_rewards

    assert config.verify is not None
    rewards = build_rewards([RewardConfig(name=config.verify, args=config.verify_args)])

    def verify(pools: Sequence[Pool]) -> list[Pool]:
        groups = [
            Group(
                Prompt((0,), "", pool.prompt, pool.columns, pool.where),
                tuple(Completion((0,), (True,), text=written(one.content)) for one in pool.candidates),
            )
            for pool in pools
        ]
        with rewards:
            scored = rewards.score(groups, 0, 1).groups
        out = []
        for pool, group in zip(pools, scored, strict=True):
            graded = zip(pool.candidates, group.completions, strict=True)
            out.append(replace(pool, candidates=tuple(replace(one, score=c.score) for one, c in graded)))
        return out

    return verify


def _settings(config: BuildConfig) -> dict[str, Any]:
    judge = config.judge.model_dump(mode="json", exclude_defaults=True) if config.judge is not None else None
    own = config.model_dump(mode="json", exclude={"judge", "data", "form", "mode"})
    return {"judge": judge, "data": [source.path for source in config.data], "mode": config.asked, **own}


def _words(config: BuildConfig, built: Built, output: Path, left_out: Path) -> str:
    lines = [str(built.made) if built.summary is None else str(built.summary)]
    if built.summary is None and built.bad_rows:
        lines.append(f"{built.bad_rows} bad rows of the data left out")
    if built.left_out:
        lines.append(f"what was left out, and why: {left_out}")
    if not built.rows:
        lines.append("no verdict is right, so there is nothing to train on; another judge, or easier contests")
        return "\n".join(lines)
    lines.append(f"{len(built.rows)} rows: {output}")
    lines.append(f"train on them: {_command(config, built.rows, output)}")
    return "\n".join(lines)


def _command(config: BuildConfig, rows: Sequence[Mapping[str, Any]], output: Path) -> str:
    """What trains on the rows, with limits that none of them is over: a token is seldom less than two characters."""
    model = config.judge.path if config.judge is not None and config.judge.path is not None else "MODEL"
    prompts = [row["messages"][:-1] if "messages" in row else row["prompt"] for row in rows]
    longest = max(sum(len(turn["content"]) for turn in turns) for turns in prompts)
    room = ["--tokens.max_prompt_tokens", str(_rounded(longest // 2))]
    if "messages" in rows[0]:
        written = max(len(row["messages"][-1]["content"]) for row in rows)
        more = ["--tokens.max_completion_tokens", str(_rounded(written // 2)), "--train.epochs", "1"]
        words = ["preftune", "sft", "--model.path", model, "--data.path", str(output), *room, *more]
    else:
        judging = ["--rewards.0.name", "judge-pick", "--collect.min_score", "1", "--train.epochs", "1"]
        words = ["preftune", "rft", "--model.path", model, "--data.path", str(output), *room, *judging]
    return shlex.join(words)


def _rounded(tokens: int) -> int:
    return 256 * (tokens // 256 + 1)


def _line(value: Mapping[str, Any]) -> str:
    # A lone surrogate from broken model output has no UTF-8 form, so everything beyond ASCII is escaped.
    return json.dumps(value, ensure_ascii=True, allow_nan=False)

"""`preftune COMMAND …`: finds the command, runs it, and turns errors into one message and an exit code.

Exit codes: 0 done, 2 the request was wrong (usage, recipe, data, model), 1 the run failed, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from preftune import __version__
from preftune.errors import PreftuneError, UsageError

COMMANDS: dict[str, str] = {
    "run": "run any recipe",
    "demo": "tune a tiny model on the spot and show before and after",
    "init": "print a commented recipe to start from",
    "chat": "talk with a model, or let personas compete and see the answer",
    "merge": "fold an adapter into its base model",
    "score": "score completions with a reward model",
    "evaluate": "measure models on instruction following and multiple choice, in one table",
    "judge": "measure a judge on known preferences, or build rows to train one",
    "human": "send answers out to people, take their ratings in, train on them",
    "data": "data before training: audit, balance, debias, generate answers, make pairs, make puzzles",
    "advise": "recommend a method for your data, with reasons and a recipe",
    "diagnose": "does a model need preference tuning? Four signals on your prompts, and what mends them",
    "report": "write a run folder's report.html again",
    "rewards": "list the built-in rewards and their arguments",
}
"""Command → what it does. Each lives in preftune/cli/NAME.py; a method's name is `run` for that method, unless it is
the name of a command, too."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except PreftuneError as error:
        _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        _complain("interrupted; what knows --resume goes on with it, anything else starts again", label="stopped")
        return 130
    except BrokenPipeError:  # `preftune init | head`: whoever read our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print(_help())
        return 0
    if arguments[0] in {"-V", "--version"}:
        print(_versions())
        return 0
    name, rest = arguments[0], arguments[1:]
    if name in COMMANDS:
        command: ModuleType = import_module(f"preftune.cli.{name}")
        code: int = command.execute(rest)
        return code
    from preftune.methods import METHODS

    if name in METHODS:
        from preftune.cli import run

        return run.execute(rest, method=name)
    raise UsageError(_unknown_command(name, [*{**COMMANDS, **METHODS}]))


def _unknown_command(name: str, names: list[str]) -> str:
    from preftune.recipes.schema import nearest

    if name.startswith("-"):
        return f"{name}: flags come after the command: preftune COMMAND {name}; commands: {', '.join(names)}"
    if Path(name).suffix in {".yaml", ".yml"}:
        return f"{name} is no command; did you mean preftune run {name}?"
    close = nearest(name, names)
    hint = f"did you mean preftune {close}?" if close else f"commands: {', '.join(names)}"
    return f"{name!r} is no command; {hint}"


def _help() -> str:
    from preftune.methods import METHODS

    methods = {name: f"run a recipe for {name}: {row.summary}" for name, row in METHODS.items() if name not in COMMANDS}
    listed = {**COMMANDS, **methods}
    width = max(map(len, listed)) + 2
    rows = [f"  {name:<{width}}{text}" for name, text in listed.items()]
    return "\n".join(
        [
            f"preftune {__version__}: alignment for all",
            "",
            "usage: preftune COMMAND …        preftune COMMAND --help tells more",
            "",
            *rows,
            "",
            "Start with `preftune demo`, or with `preftune init grpo > recipe.yaml` and `preftune run recipe.yaml`.",
        ]
    )


def _versions() -> str:
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for package in ("torch", "transformers", "peft"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} missing")
    return f"preftune {__version__} (Python {'.'.join(map(str, sys.version_info[:3]))}, {', '.join(found)})"


def _complain(message: str, label: str = "error") -> None:
    from preftune.talk.visible import visible

    message = visible(message)  # it may quote a row, a file's name, a server
    colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    print(f"\033[1;31m{label}:\033[0m {message}" if colour else f"{label}: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

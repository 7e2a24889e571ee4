"""`preftune demo [METHOD]`: the built-in task of a method."""

from __future__ import annotations

from pathlib import Path

from preftune.cli.parser import Parser
from preftune.demo import METHODS, run_demo


def execute(arguments: list[str]) -> int:
    parser = Parser(prog="preftune demo", description="Builds a tiny model, tunes it, and shows before and after.")
    parser.add_argument("method", nargs="?", default="grpo", choices=METHODS, help="whose task (default grpo)")
    parser.add_argument("--output", default=None, metavar="FOLDER", help="run folder (default runs/demo-METHOD)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of everything random (default 0)")
    options = parser.parse(arguments)

    run_demo(options.method, output=Path(options.output or f"runs/demo-{options.method}"), seed=options.seed)
    return 0

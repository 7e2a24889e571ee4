"""`preftune merge ADAPTER OUT`: folds an adapter into its base model."""

from __future__ import annotations

from pathlib import Path

from preftune.cli.parser import Parser


def execute(arguments: list[str]) -> int:
    parser = Parser(prog="preftune merge", description="Folds an adapter into its base and writes a whole model.")
    parser.add_argument("adapter", metavar="ADAPTER", help="adapter folder (a run's final/) or hub id")
    parser.add_argument("out", metavar="OUT", help="new folder for the model")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that ships with the base model")
    options = parser.parse(arguments)

    from preftune.models import merge

    print(f"merged model: {merge(options.adapter, Path(options.out), trust_remote_code=options.trust_remote_code)}")
    return 0

"""`preftune rewards`: lists the built-in rewards."""

from __future__ import annotations

from preftune.cli.parser import Parser


def execute(arguments: list[str]) -> int:
    parser = Parser(prog="preftune rewards", description="Lists the built-in rewards and their arguments.")
    parser.parse(arguments)

    from preftune.rewards import BUILTINS

    for name, builtin in BUILTINS.items():
        print(f"{name}: {builtin.summary}")
        for argument, kind in builtin.args.items():
            print(f"    {argument}: {kind}")
    print("\nYour own: `name: module:function` or `name: file.py:function`, see docs/rewards.md.")
    return 0

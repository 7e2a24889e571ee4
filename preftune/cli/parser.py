"""Argument parsers whose errors are ours, and the flags made from the recipe's models."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any, Literal, NoReturn, get_args, get_origin

from preftune.config import Recipe
from preftune.errors import UsageError
from preftune.recipes.overrides import check_flag
from preftune.recipes.schema import (
    Leaf,
    by_last_part,
    expected,
    is_dict,
    is_list,
    leaves,
    model_of,
    nearest,
    without_none,
)
from preftune.recipes.yamltext import dump_yaml

TRUTH = {"true", "false", "yes", "no", "on", "off", "1", "0"}
_SOURCE = re.compile(r"--(?:data|test)(?:\.\d+)?\.path")
_METAVAR: dict[Any, str] = {int: "N", float: "X", str: "TEXT", bool: "true|false"}


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises UsageError, names the nearest flag, and never guesses abbreviations."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=34, width=110),
            **kwargs,
        )

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    @property
    def flags(self) -> list[str]:
        return list(self._option_string_actions)

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        """Parses everything or raises UsageError, with the nearest name for an unknown flag."""
        for token in arguments:
            name = token.split("=", 1)[0]
            if token == "--":
                break
            if name.startswith("--") and name not in self.flags:
                raise UsageError(f"{name}: no such flag; {self.suggest(name)}")
        return self.parse_args(arguments)

    def suggest(self, name: str) -> str:
        """The nearest flag to `name`, by its whole name or its last part (`--learning_rate`)."""
        last = by_last_part(self.flags)
        close = last.get(name.lstrip("-")) or nearest(name, self.flags, cutoff=0.75)
        if close is None:
            tail = nearest(name.lstrip("-"), [part for part in last if not part.startswith("-")], cutoff=0.75)
            close = last[tail] if tail else None
        return f"did you mean {close}?" if close else f"{self.prog} --help lists all"


class _Collect(argparse.Action):
    """Puts a flag's text under its dotted name into `namespace.overrides`."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        namespace.overrides[self.dest] = values


def add_recipe_flags(parser: Parser) -> None:
    """One flag for every field of a recipe, grouped by section, with its description, default and type."""
    parser.set_defaults(overrides={})
    groups: dict[str, Any] = {}
    for leaf in leaves(Recipe):
        section = leaf.path[0] if len(leaf.path) > 1 or _holds_sections(leaf) else "run"
        if section not in groups:
            groups[section] = parser.add_argument_group(section)
        groups[section].add_argument(
            f"--{flag_name(leaf)}",
            action=_Collect,
            dest=flag_name(leaf),
            default=argparse.SUPPRESS,
            metavar=metavar(leaf.info.annotation),
            help=help_text(leaf).replace("%", "%%"),
        )


def _holds_sections(leaf: Leaf) -> bool:
    return leaf.name in {"data", "rewards"}


def flag_name(leaf: Leaf) -> str:
    """The flag without its dashes; `NAME` stands for the free key of a mapping (`data.columns.NAME.from`)."""
    return leaf.name.replace("*", "NAME")


def metavar(annotation: Any) -> str:
    bare, _ = without_none(annotation)
    if get_origin(bare) is Literal:
        return "|".join(str(choice) for choice in get_args(bare))
    if is_list(bare):
        return "[…]"
    if is_dict(bare) or model_of(bare):
        return "{…}"
    return _METAVAR.get(bare, "VALUE")


def help_text(leaf: Leaf) -> str:
    """Description, what is taken, and the default."""
    info = leaf.info
    if info.is_required():
        default = "required"
    elif info.default_factory is not None:
        default = f"default {_inline(info.get_default(call_default_factory=True, validated_data={}))}"
    else:
        default = f"default {_inline(info.default)}"
    wanted = expected(info.annotation, info.metadata)
    wanted = "" if get_origin(without_none(info.annotation)[0]) is Literal else f"{wanted}; "
    return f"{info.description or ''} ({wanted}{default})"


def _inline(value: Any) -> str:
    """A value as one line of YAML."""
    if isinstance(value, list | dict):
        return "[]" if value == [] else "{}" if value == {} else str(value).replace("'", "")
    return dump_yaml(value).removesuffix("...\n").strip()


def split_overrides(parser: Parser, arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Takes out the dotted flags that no parser can list: list indices, mapping keys, stages (`--sft.train.steps 5`).

    Every flag that stays is joined with its value by `=`, so a value may start with a dash and a bare true/false flag
    or `--resume` does not swallow the recipe's name.

    Raises:
        UsageError: a dotted flag of a section that has no such field.
    """
    kept: list[str] = []
    overrides: dict[str, str] = {}
    position = 0
    while position < len(arguments):
        token = arguments[position]
        position += 1
        if token == "--":
            kept += [token, *arguments[position:]]
            break
        if not token.startswith("--"):
            kept.append(token)
            continue
        name, has_value, value = token.partition("=")
        action = parser._option_string_actions.get(name)
        following = arguments[position] if position < len(arguments) else None
        takes_next = following is not None and (not following.startswith("--") or following == "--")
        if action is None and "." not in name:
            kept.append(token)  # the parser refuses it by its nearest name
            continue
        if action is not None and action.nargs == 0:
            kept.append(token)
            continue
        if not has_value:
            if action is not None and (action.metavar == _METAVAR[bool] or action.const is not None):
                words = TRUTH if action.const is None else set(action.choices or ())
                takes_next = takes_next and following in words
                value = "true" if action.const is None else str(action.const)
            elif action is None:
                check_flag(name[2:])
                if not takes_next:
                    raise UsageError(f"{name}: a value is missing")
            elif not takes_next:
                raise UsageError(f"{name}: a value is missing ({action.metavar})")
            if takes_next and following is not None:
                value = following
                position += 1
        if action is None:
            check_flag(name[2:])
            overrides[name[2:]] = value
        else:
            kept.append(f"{name}={value}")
    return kept, overrides


def check_sources(arguments: list[str]) -> None:
    """Raises UsageError where a source is named twice: the first would be left out without a word."""
    names = [name for token in arguments if (name := token.partition("=")[0]) and _SOURCE.fullmatch(name)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        section = twice[2:].partition(".")[0]
        raise UsageError(f"{twice} is given twice; a second source is --{section}.1.path, a third --{section}.2.path")


def print_help(parser: Parser) -> None:
    parser.print_help(sys.stdout)

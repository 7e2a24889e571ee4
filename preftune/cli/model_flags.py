"""Flags of a command made from its settings: a pydantic model whose sections may be those of a recipe.

    class BalanceConfig(Strict):
        data: list[SourceConfig]          # --data.path FILE, --data.1.path FILE, --data.columns.prompt.from question
        cap: int = Field(100, ge=1, …)    # --cap 100

Fields that a recipe has under the same name are read as a recipe's are, list indices and free keys included, and so are
further lists of sources (`--test.path FILE`); the command's other own fields are read by their type. Wrong values are
told all at once.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from preftune.cli.parser import Parser, check_sources, flag_name, help_text, metavar, split_overrides
from preftune.config import Recipe, SourceConfig
from preftune.errors import UsageError
from preftune.recipes.overrides import apply_overrides, check_flag
from preftune.recipes.problems import Problems, Stage, add_invalid, check_keys
from preftune.recipes.schema import Leaf, expected, is_text, item_of, keys_of, leaves, model_of, without_none
from preftune.recipes.yamltext import read_value

Settings = TypeVar("Settings", bound=BaseModel)


def add_settings(parser: Parser, model: type[BaseModel], unread: Collection[str] = ()) -> None:
    """One flag for every field of the settings, grouped by section.

    Args:
        unread: dotted names of fields of a recipe's sections that the command does not read; they get no flag.
    """
    groups: dict[str, Any] = {}
    for leaf in _leaves(model, unread):
        nested = len(leaf.path) > 1 or model_of(leaf.info.annotation) is not None
        section = leaf.path[0] if nested else "settings"
        if section not in groups:
            groups[section] = parser.add_argument_group(section)
        groups[section].add_argument(
            f"--{flag_name(leaf)}",
            dest=flag_name(leaf),
            default=argparse.SUPPRESS,
            metavar=metavar(leaf.info.annotation),
            help=help_text(leaf).replace("%", "%%"),
        )


def read_settings(
    parser: Parser, arguments: list[str], model: type[Settings], unread: Collection[str] = ()
) -> tuple[Settings, argparse.Namespace]:
    """Parse a command line whose parser has the flags of `add_settings`.

    Returns:
        The settings, and the options that are not part of them.

    Raises:
        UsageError: everything wrong with it, each with its flag, what is expected, and the nearest name.
    """
    check_sources(arguments)
    kept, extra = split_overrides(parser, arguments)
    options = vars(parser.parse(kept))
    for key in extra:
        _check(parser, key, model, unread)
    own_flags = {flag_name(leaf) for leaf in _leaves(model, unread)}
    given = {key: value for key, value in {**options, **extra}.items() if key in own_flags or key in extra}
    rest = {key: value for key, value in options.items() if key not in own_flags}
    return _settings(parser.prog, given, model), argparse.Namespace(**rest)


def _leaves(model: type[BaseModel], unread: Collection[str]) -> Iterator[Leaf]:
    for leaf in leaves(model):
        if not any(leaf.name == name or leaf.name.startswith(f"{name}.") for name in unread):
            yield leaf


def _shared(model: type[BaseModel]) -> frozenset[str]:
    """Fields that are sections of a recipe."""
    return frozenset(keys_of(model)) & frozenset(keys_of(Recipe))


def _source_lists(model: type[BaseModel]) -> frozenset[str]:
    """The command's own lists of sources, beside `data`."""
    own = keys_of(model).keys() - _shared(model)
    return frozenset(name for name in own if model_of(item_of(keys_of(model)[name].annotation)) is SourceConfig)


def _check(parser: Parser, key: str, model: type[BaseModel], unread: Collection[str]) -> None:
    """Refuse a dotted flag that no field stands behind; `--data.1.path` and `--data.columns.x.from` are in order."""
    parts = [part for part in key.split(".") if not part.isdigit()]
    known = {leaf.path[:2] for leaf in _leaves(model, unread)}
    if parts[0] in _source_lists(model):
        try:
            check_flag(f"data{key[len(parts[0]) :]}")
        except UsageError as error:
            raise UsageError(_renamed(str(error), parts[0])) from None
    if parts[0] in _shared(model) | _source_lists(model):
        if tuple(parts[:2]) not in known:
            raise UsageError(f"--{key}: {parser.prog} does not read this setting; {parser.prog} --help lists all")
        return
    if tuple(parts[:2]) in known:
        field = ".".join(parts[:2])
        raise UsageError(f"--{key}: {field} is set as a whole: --{field} '{{{'.'.join(parts[2:])}: …}}'")
    raise UsageError(f"--{key}: no such flag; {parser.suggest(f'--{key}')}")


def _settings(command: str, given: Mapping[str, Any], model: type[Settings]) -> Settings:
    problems, shared = Problems(command, {}), _shared(model)
    sections: dict[str, Any] = {name: [{}] if name == "data" else {} for name in shared if _needed(name, given, model)}
    stage = Stage(command, None, {}, sections)
    apply_overrides([stage], {}, {k: v for k, v in given.items() if k.split(".")[0] in shared}, problems)
    check_keys(problems, stage.merged, stage)
    lists = _source_lists(model)
    own: dict[str, Any] = {
        name: _read_sources(name, given, problems) for name in lists if any(key.split(".")[0] == name for key in given)
    }
    for key, text in given.items():
        if key.split(".")[0] not in shared | lists:
            _put(own, key.split("."), _value(key, text, model, problems))
    problems.raise_any()
    try:
        return model.model_validate({**stage.merged, **own})
    except ValidationError as error:
        recipe_part = [row for row in error.errors() if row["loc"] and row["loc"][0] in shared]
        for row in error.errors():
            if row not in recipe_part:
                _add(problems, row, model)
        if recipe_part:
            try:
                Recipe.model_validate(
                    {"method": "sft", "model": {"path": "m"}, "data": [{"path": "d"}], **stage.merged}
                )
            except ValidationError as same:
                add_invalid(problems, same, stage)
            else:
                for row in recipe_part:
                    _add(problems, row, model)
        problems.raise_any()
        raise


def _read_sources(name: str, given: Mapping[str, Any], problems: Problems) -> Any:
    """A list of sources, read as a recipe reads `data`; what is wrong with it is told under its own name."""
    found, stage = Problems(problems.name, {}), Stage(problems.name, None, {}, {"data": [{}]})
    mine = {f"data{key[len(name) :]}": value for key, value in given.items() if key.split(".")[0] == name}
    apply_overrides([stage], {}, mine, found)
    check_keys(found, stage.merged, stage)
    try:
        Recipe.model_validate({"method": "sft", "model": {"path": "m"}, **stage.merged})
    except ValidationError as error:
        add_invalid(found, error, stage)
    for line, place, text in found.found:
        problems.found.setdefault((line, _renamed(place, name), _renamed(text, name)))
    return stage.merged["data"]


def _renamed(text: str, name: str) -> str:
    """A message about a field of `data` as one about the same field of another list of sources."""
    return re.sub(r"(?<![\w.])data(?=[.:]|$)", name, text)


def _needed(name: str, given: Mapping[str, Any], model: type[BaseModel]) -> bool:
    """Whether a shared section is to be filled: one that is optional, and of which nothing is given, stays out."""
    info = keys_of(model)[name]
    return info.is_required() or any(key.split(".")[0] == name for key in given)


def _put(into: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        into = into.setdefault(part, {})
    into[path[-1]] = value


def _annotation(key: str, model: type[BaseModel]) -> Any:
    here: Any = model
    for part in key.split("."):
        section = model_of(here)
        assert section is not None  # the parser knows no flag below a value
        here = keys_of(section)[part].annotation
    return here


def _value(key: str, text: Any, model: type[BaseModel], problems: Problems) -> Any:
    """A flag's text as the value that it stands for."""
    import yaml

    annotation = _annotation(key, model)
    if not isinstance(text, str):
        return text
    if is_text(annotation):
        return None if text == "null" and without_none(annotation)[1] else text
    try:
        value = read_value(text)
    except yaml.YAMLError:
        problems.add_flag(key, f"got {text!r}, which is not valid YAML; write lists as [a, b] and mappings as {{a: 1}}")
        return None
    if isinstance(value, bool) and without_none(annotation)[0] in {int, float}:
        problems.add_flag(key, f"got {text}; expected {expected(annotation)}")
    return value


def _add(problems: Problems, row: Any, model: type[BaseModel]) -> None:
    """One of pydantic's findings, in our words."""
    names = [str(part) for part in row["loc"] if not isinstance(part, int)]
    said = str(row["msg"]).removeprefix("Value error, ")
    while names:
        try:
            holder = model_of(_annotation(".".join(names[:-1]), model)) if len(names) > 1 else model
            assert holder is not None
            info = keys_of(holder)[names[-1]]
        except (AssertionError, KeyError):
            names.pop()
            continue
        if row["type"] == "missing":
            problems.add_flag(".".join(names), f"is missing; expected {expected(info.annotation, info.metadata)}")
        elif row["type"] == "value_error":
            problems.add_flag(".".join(names), said)
        else:
            wanted = expected(info.annotation, info.metadata)
            problems.add_flag(".".join(names), f"got {row['input']!r}; expected {wanted}")
        return
    problems.add(said)

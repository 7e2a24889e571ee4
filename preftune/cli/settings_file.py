"""Settings of a command from a YAML file, from flags, or both: a flag takes the place of what the file says.

    preftune data generate tiers.yaml --data.path prompts.jsonl --tiers.strong.sampling.temperature 0.5

Like `model_flags`, and besides: a file, and lists of sections that have names. `--tiers.strong.rank 2` sets a field of
the tier whose name is strong, or begins a tier of that name; `--tiers.0.rank 2` that of the first one.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from preftune.cli.model_flags import add_settings
from preftune.cli.parser import Parser, check_sources, flag_name, help_text, metavar, split_overrides
from preftune.config import Recipe
from preftune.errors import UsageError
from preftune.recipes.overrides import apply_overrides
from preftune.recipes.problems import Problems, Stage, add_invalid, check_keys
from preftune.recipes.schema import (
    Leaf,
    Path,
    dotted,
    expected,
    is_dict,
    is_list,
    is_text,
    item_of,
    keys_of,
    leaves,
    model_of,
    suggestion,
    without_none,
)
from preftune.recipes.yamltext import parse, read_value

Settings = TypeVar("Settings", bound=BaseModel)


def add_file_settings(
    parser: Parser, model: type[BaseModel], unread: Collection[str] = (), named: Collection[str] = ()
) -> None:
    """The file, and one flag for every field.

    Args:
        unread: dotted names of fields that the command does not read; they get no flag.
        named: fields that are lists of sections, each with a `name`.
    """
    parser.add_argument("settings", nargs="?", default=None, metavar="FILE.yaml", help="file with the settings")
    add_settings(parser, model, {*unread, *named})
    for name in named:
        group = parser.add_argument_group(name)
        for leaf in _named_leaves(model, name):
            group.add_argument(
                f"--{flag_name(leaf)}",
                dest=flag_name(leaf),
                default=argparse.SUPPRESS,
                metavar=metavar(leaf.info.annotation),
                help=help_text(leaf).replace("%", "%%"),
            )


def read_file_settings(
    parser: Parser,
    arguments: list[str],
    model: type[Settings],
    unread: Collection[str] = (),
    named: Collection[str] = (),
) -> tuple[Settings, argparse.Namespace]:
    """Parse a command line whose parser has the flags of `add_file_settings`.

    Returns:
        The settings, and the options that are not part of them.

    Raises:
        UsageError: everything wrong with it, each with its flag or its line of the file, and what is expected.
    """
    check_sources(arguments)
    kept, extra = split_overrides(parser, arguments)
    options = vars(parser.parse(kept))
    file = options.pop("settings")
    name, raw, lines = (parser.prog, {}, {}) if file is None else (file, *_read(FilePath(file)))
    tops = {key.split(".")[0] for key in extra}
    if strange := sorted(tops - set(keys_of(model))):
        raise UsageError(f"--{strange[0]}.…: no such flag; {parser.suggest(f'--{strange[0]}')}")
    flags = {leaf.split(".")[0] for leaf in map(flag_name, leaves(model))}
    given = {key: value for key, value in {**options, **extra}.items() if key.split(".")[0] in flags}
    rest = {key: value for key, value in options.items() if key not in given}
    _refuse_unread(parser, [*given, *_dotted_keys(raw)], unread)
    return _Reader(model, Problems(name, lines), frozenset(named)).settings(raw, given), argparse.Namespace(**rest)


class _Reader:
    """One reading: the file's values, the flags over them, what is wrong."""

    def __init__(self, model: type[BaseModel], problems: Problems, named: frozenset[str]) -> None:
        self.model, self.problems, self.named = model, problems, named
        self.shared = frozenset(keys_of(model)) & frozenset(keys_of(Recipe))

    def settings(self, raw: dict[str, Any], given: Mapping[str, Any]) -> Any:
        merged = {key: value for key, value in raw.items() if key in self.shared}
        if "data" in self.shared:
            data = merged.get("data")
            merged["data"] = [data] if isinstance(data, dict) else data if isinstance(data, list) and data else [{}]
        own = {key: value for key, value in raw.items() if key not in self.shared}
        stage = Stage("", None, {}, merged)
        ours = {key: value for key, value in given.items() if key.split(".")[0] in self.shared}
        apply_overrides([stage], {}, ours, self.problems)
        check_keys(self.problems, stage.merged, stage)
        for key in sorted(given.keys() - ours.keys(), key=lambda key: key.count(".")):
            self._put(own, key, given[key], stage)
        self.problems.raise_any()
        try:
            return self.model.model_validate({**own, **stage.merged})
        except ValidationError as error:
            self._add(error, stage)
            self.problems.raise_any()
            raise

    def _put(self, own: dict[str, Any], key: str, text: Any, stage: Stage) -> None:
        """Set what a flag of the command's own says."""
        annotation: Any = self.model
        here: Any = own
        path: Path = ()
        parts = key.split(".")
        for depth, part in enumerate(parts):
            inside, step = self._step(annotation, part, path, here)
            if inside is None:
                self.problems.add_flag(key, self._unknown(annotation, path, part))
                return
            path = (*path, step)
            if depth == len(parts) - 1:
                value = self._value(key, text, inside)
                here[step] = value
                stage.flags[path] = key
                return
            here = _opened(here, step, inside)
            annotation = inside

    def _step(self, annotation: Any, part: str, path: Path, here: Any) -> tuple[Any, str | int]:
        """What stands below a section, list or mapping at `part`, and its key there; None where nothing can."""
        section = model_of(annotation)
        if section is not None:
            info = keys_of(section).get(part)
            return (None if info is None else info.annotation), part
        if is_list(annotation) and model_of(item_of(annotation)) is not None:
            if part.isdigit():
                return (item_of(annotation) if int(part) <= len(here) else None), int(part)
            if dotted(path) not in self.named:
                return None, part
            names = [item.get("name") if isinstance(item, dict) else None for item in here]
            if part not in names:
                here.append({"name": part})
                return item_of(annotation), len(here) - 1
            return item_of(annotation), names.index(part)
        return (item_of(annotation) if is_dict(annotation) else None), part

    def _unknown(self, annotation: Any, path: Path, part: str) -> str:
        section = model_of(annotation)
        if section is not None:
            return f"no such setting; {suggestion(section, path, part, self.model)}"
        if is_list(annotation):
            return f"{dotted(path)} has no item {part}; write its place, from 0, or set {dotted(path)} as a whole"
        return f"{dotted(path)} is a value, so nothing below it can be set"

    def _value(self, key: str, text: Any, annotation: Any) -> Any:
        """A flag's text as the value that it stands for."""
        if not isinstance(text, str) or is_text(annotation):
            return None if text == "null" and without_none(annotation)[1] else text
        try:
            return read_value(text)
        except yaml.YAMLError:
            told = f"got {text!r}, which is not valid YAML; write lists as [a, b] and mappings as {{a: 1}}"
            self.problems.add_flag(key, told)
            return None

    def _add(self, error: ValidationError, stage: Stage) -> None:
        """pydantic's findings in our words. Those of a recipe's sections are told as a recipe's are."""
        rows = error.errors()
        if any(row["loc"] and row["loc"][0] in self.shared for row in rows):
            try:
                Recipe.model_validate(
                    {"method": "sft", "model": {"path": "m"}, "data": [{"path": "d"}], **stage.merged}
                )
            except ValidationError as same:
                add_invalid(self.problems, same, stage)
        for row in rows:
            loc = tuple(row["loc"])
            if loc and loc[0] in self.shared and self.problems.found:
                continue
            path, annotation, metadata = self._field_at(loc)
            if row["type"] == "extra_forbidden":
                self.problems.add(f"unknown key; {self._unknown(annotation, path, str(loc[-1]))[17:]}", loc, stage)
            elif row["type"] == "missing":
                self.problems.add(f"missing; expected {expected(annotation, metadata)}", path, stage)
            elif row["type"] in {"value_error", "assertion_error"}:
                self.problems.add(str(row["msg"]).split(", ", 1)[1], path, stage)
            else:
                shown = repr(row["input"])
                shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
                self.problems.add(f"got {shown}; expected {expected(annotation, metadata)}", path, stage)

    def _field_at(self, loc: tuple[str | int, ...]) -> tuple[Path, Any, Any]:
        """The longest beginning of a location that names a field, its annotation and bounds."""
        annotation: Any = self.model
        metadata: Any = ()
        path: Path = ()
        for part in loc:
            section, item = model_of(annotation), item_of(annotation)
            if section is not None and part in keys_of(section):
                annotation, metadata = keys_of(section)[str(part)].annotation, keys_of(section)[str(part)].metadata
            elif item is not None:
                annotation, metadata = item, ()
            else:
                break
            path = (*path, part)
        return path, annotation, metadata


def _opened(here: Any, step: str | int, annotation: Any) -> Any:
    """What is at `step`, made where nothing is."""
    if isinstance(here, list):
        if step == len(here):
            here.append({})
        return here[int(step)]
    if not isinstance(here.get(step), dict | list):
        here[step] = [] if is_list(annotation) else {}
    return here[step]


def _named_leaves(model: type[BaseModel], name: str) -> Iterator[Leaf]:
    info = keys_of(model)[name]
    yield Leaf((name,), info)
    item = model_of(item_of(info.annotation))
    assert item is not None  # a list of sections is what `named` names
    yield from leaves(item, (name, "*"))


def _refuse_unread(parser: Parser, keys: list[str], unread: Collection[str]) -> None:
    for key in keys:
        plain = ".".join(part for part in key.split(".") if not part.isdigit())
        if any(plain == name or plain.startswith(f"{name}.") for name in unread):
            raise UsageError(f"{key}: {parser.prog} does not read this setting; {parser.prog} --help lists all")


def _dotted_keys(value: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield ".".join((*path, str(key)))
            yield from _dotted_keys(inner, (*path, str(key)))
    elif isinstance(value, list):
        for inner in value:
            yield from _dotted_keys(inner, path)


def _read(path: FilePath) -> tuple[dict[str, Any], dict[Path, int]]:
    """The content of a file of settings and the line of every key."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file of settings") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror or error}") from None
    raw, lines = parse(text, str(path))
    if raw is not None and not isinstance(raw, dict):
        raise UsageError(f"{path}: a file of settings is a mapping (name: value), this one holds {type(raw).__name__}")
    return raw or {}, lines

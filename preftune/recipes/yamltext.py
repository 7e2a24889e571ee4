"""YAML in and out: plain values only, duplicate keys refused, and the line of every value kept for error messages.

Scalars follow YAML 1.2's core rules rather than PyYAML's 1.1: `1e-5` is a number, `no` and `on` are text,
`2024-01-01` is text, `1:30` is text. The writer quotes by the same rules, so what is written reads back equal.
"""

from __future__ import annotations

import re
from pathlib import Path as FilePath
from typing import Any

import yaml

from preftune.errors import UsageError
from preftune.recipes.schema import Path, dotted

MAX_VALUES = 100_000
"""A recipe has some hundred values; far more means aliases that multiply."""

_RULES: tuple[tuple[str, str, str], ...] = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", r"<<", "<"),
)


def _resolvers() -> dict[str | None, list[tuple[str, re.Pattern[str]]]]:
    table: dict[str | None, list[tuple[str, re.Pattern[str]]]] = {}
    for tag, pattern, firsts in _RULES:
        for first in firsts:
            entry = (f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})$"))
            table.setdefault("" if first == "\0" else first, []).append(entry)
    return table


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _resolvers()

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node))
        return int(text, 0) if text[:2] in {"0o", "0x"} else int(text)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _resolvers()

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_tuple(self, data: tuple[Any, ...]) -> yaml.Node:
        return self.represent_list(list(data))

    def represent_text(self, data: str) -> yaml.Node:
        # outside double quotes YAML reads these three line breaks back as \n
        style = '"' if any(char in data for char in "\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Dumper.add_representer(str, _Dumper.represent_text)
_Dumper.add_representer(tuple, _Dumper.represent_tuple)


def dump_yaml(value: Any) -> str:
    """Block-style YAML of plain values, keys in the order given.

    Raises:
        UsageError: a value is no plain value (a function, say).
    """
    try:
        text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    except yaml.representer.RepresenterError as error:
        raise UsageError(
            f"a recipe holds plain values only, but one is {error.args[-1]!r}, which can't be written to a file; "
            "name functions as module:function or file.py:function"
        ) from None
    return text


def read_value(text: str) -> Any:
    """One YAML value, as a flag gives it. Raises yaml.YAMLError."""
    return yaml.load(text, Loader=_Loader)


def read_file(path: FilePath) -> tuple[Any, dict[Path, int]]:
    """The content of a YAML file and the 1-based line of every key and item.

    Raises:
        UsageError: no such file, not UTF-8, not YAML, a duplicate or non-text key, a tag or an endless alias.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"recipe {path} does not exist; `preftune init grpo > {path}` writes one") from None
    except IsADirectoryError:
        raise UsageError(f"recipe {path} is a folder; name the .yaml file in it") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"recipe {path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise UsageError(f"recipe {path} can't be read: {error.strerror}") from None
    return parse(text, str(path))


def parse(text: str, name: str) -> tuple[Any, dict[Path, int]]:
    """As `read_file`, from text; `name` stands in messages."""
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        raise UsageError(f"{name}: not text: {error.reason} (character {error.position})") from None
    try:
        node = loader.get_single_node()
        lines: dict[Path, int] = {}
        if node is not None:
            _walk(node, (), name, lines, ())
        value = None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        raise UsageError(f"{where}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{name}: not valid YAML: {error}") from None
    except ValueError as error:  # e.g. an explicit tag on text that does not fit it: !!int "x"
        raise UsageError(f"{name}: a value can't be read: {error}") from None
    except RecursionError:
        raise UsageError(f"{name}: nested too deeply for a recipe") from None
    finally:
        loader.dispose()
    return value, lines


def _walk(node: yaml.Node, path: Path, name: str, lines: dict[Path, int], above: tuple[yaml.Node, ...]) -> None:
    line = node.start_mark.line + 1
    if len(lines) > MAX_VALUES:
        raise UsageError(f"{name}:{line}: more than {MAX_VALUES} values; aliases (*name) that multiply?")
    if any(node is ancestor for ancestor in above):
        raise UsageError(f"{name}:{line}: an alias (*name) holds itself")
    lines.setdefault(path, line)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _walk(item, (*path, index), name, lines, (*above, node))
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            key_line = key.start_mark.line + 1
            if key.tag == "tag:yaml.org,2002:merge":
                _walk(value, (*path, "<<"), name, lines, (*above, node))
                continue
            if not isinstance(key, yaml.ScalarNode):
                raise UsageError(f"{name}:{key_line}: a key must be text, not a list or mapping")
            if key.tag != "tag:yaml.org,2002:str":
                raise UsageError(f"{name}:{key_line}: the key {key.value or 'null'} must be text; write it in quotes")
            if key.value in seen:
                full = dotted((*path, key.value))
                raise UsageError(f"{name}:{key_line}: {full} is given twice (first on line {seen[key.value]})")
            seen[key.value] = key_line
            lines[(*path, key.value)] = key_line
            _walk(value, (*path, key.value), name, lines, (*above, node))

"""Column mapping: a recipe's rules turn a source's own columns into the standard ones."""

from __future__ import annotations

import difflib
import re
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from preftune.config import ColumnRule, SourceConfig
from preftune.errors import UsageError


class BadRow(Exception):
    """A row that can't be used. The loader adds the origin, then stops or skips as the source says."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """A ColumnRule with its expressions compiled."""

    name: str
    source: str | None
    match: re.Pattern[str] | None
    replace: tuple[tuple[re.Pattern[str], str], ...]
    template: tuple[tuple[str, str | None], ...]
    strip: bool

    @property
    def renames(self) -> bool:
        return self.source is not None and self.match is None and not self.replace

    def finish(self, value: Any) -> Any:
        """match, replace, strip, in this order. Numbers become text when an expression is to read them."""
        if (self.match or self.replace) and isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str):
            if self.match or self.replace:
                raise BadRow(f"column {self.name!r}: {self.source!r} holds {describe(value)}, not text to search in")
            return value
        if self.match is not None:
            found = self.match.search(value)
            if found is None or (self.match.groups and found[1] is None):
                raise BadRow(f"column {self.name!r}: {self.match.pattern!r} does not match {_clip(value)}")
            value = found[1] if self.match.groups else found[0]
        for pattern, replacement in self.replace:
            value = pattern.sub(replacement, value)
        return value.strip() if self.strip else value


class ColumnMap:
    """All rules of one source.

    `from` rules read the row as it came. `template` rules are filled afterwards, in the recipe's order, from mapped
    columns first and the row's own second. A column that is merely renamed loses its old name; every other column
    stays.

    Raises:
        UsageError: an expression or template of the recipe can't be read.
    """

    def __init__(self, source: SourceConfig) -> None:
        self._rules = [_compile(name, rule) for name, rule in source.columns.items()]

    @property
    def names(self) -> frozenset[str]:
        """The columns that the recipe makes."""
        return frozenset(rule.name for rule in self._rules)

    def apply(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row under standard names. Raises BadRow when a column is missing or a rule does not fit."""
        made: dict[str, Any] = {}
        for rule in self._rules:
            if rule.source is not None:
                if rule.source not in row:
                    raise BadRow(f"{missing_column(rule.source, row)} (it should become {rule.name!r})")
                made[rule.name] = rule.finish(row[rule.source])
        for rule in self._rules:
            if rule.source is None:
                made[rule.name] = rule.finish("".join(_fill(rule, {**row, **made})))
        renamed = {rule.source for rule in self._rules if rule.renames}
        return {name: value for name, value in row.items() if name not in renamed} | made


def _fill(rule: _Rule, values: Mapping[str, Any]) -> Iterable[str]:
    for literal, name in rule.template:
        yield literal
        if name is None:
            continue
        if name not in values:
            raise BadRow(f"{missing_column(name, values)} (the template of {rule.name!r} needs it)")
        value = values[name]
        if not isinstance(value, str | int | float):
            raise BadRow(f"column {rule.name!r}: its template needs text, but {name!r} holds {describe(value)}")
        yield str(value)


def _compile(name: str, rule: ColumnRule) -> _Rule:
    where = f"data.columns.{name}"
    template: list[tuple[str, str | None]] = []
    if rule.template is not None:
        try:
            for literal, column, spec, conversion in string.Formatter().parse(rule.template):
                if spec or conversion or column == "":
                    raise ValueError("a field is a column's name in braces; write {{ and }} for braces in the text")
                template.append((literal, column))
        except ValueError as error:
            raise UsageError(f"{where}.template: {error}") from error
    match = None if rule.match is None else _regex(f"{where}.match", rule.match)
    replace = []
    for number, (pattern, replacement) in enumerate(rule.replace):
        compiled = _regex(f"{where}.replace[{number}]", pattern)
        try:  # `sub` reads the replacement even when nothing matches, so this finds bad group references
            re.compile(f"(?:{pattern})?").sub(replacement, "")
        except (re.error, IndexError) as error:
            raise UsageError(f"{where}.replace[{number}]: bad replacement {replacement!r}: {error}") from error
        replace.append((compiled, replacement))
    return _Rule(name, rule.source, match, tuple(replace), tuple(template), rule.strip)


def _regex(where: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UsageError(f"{where}: {pattern!r} is no regular expression: {error}") from error


def missing_column(name: str, row: Mapping[str, Any]) -> str:
    """What to say about a column that isn't there: the nearest name and those that exist."""
    near = difflib.get_close_matches(name, [str(column) for column in row], 1)
    hint = f", did you mean {near[0]!r}?" if near else "."
    return f"there is no column {name!r}{hint} Columns: {', '.join(map(str, row)) or 'none'}"


def describe(value: Any) -> str:
    """A value's type in words, for messages."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")


def _clip(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "…")

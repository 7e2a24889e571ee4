"""Everything wrong with a recipe, gathered into one message that says where, what, and what instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from preftune.config import Recipe
from preftune.errors import UsageError
from preftune.recipes.schema import (
    Path,
    dotted,
    expected,
    is_dict,
    is_list,
    item_of,
    keys_of,
    model_of,
    suggestion,
    without_none,
)


@dataclass
class Stage:
    """One stage while it is being put together.

    `own` is what the stage itself says, `merged` that over the recipe's top level and under the flags; `index` is its
    place under `stages:`, None in a recipe without them. `flags` maps a path to the flag that set it; `root` is the
    model that the stage is read as.
    """

    name: str
    index: int | None
    own: dict[str, Any]
    merged: dict[str, Any]
    flags: dict[Path, str] = field(default_factory=dict)
    root: type[BaseModel] = Recipe


@dataclass
class Problems:
    """A list of (line, place, message), and the lines of the file to place them by."""

    name: str
    lines: Mapping[Path, int]
    found: dict[tuple[int, str, str], None] = field(default_factory=dict)

    def add(self, message: str, path: Path = (), stage: Stage | None = None) -> None:
        """Adds a problem with the value at `path`. A problem of a shared top-level value is kept once."""
        place, line, shown = self._locate(path, stage)
        text = f"{dotted(shown)}: {message}" if shown and place != f"--{dotted(shown)}" else message
        self.found.setdefault((line, place, text))

    def add_flag(self, key: str, message: str) -> None:
        self.found.setdefault((0, f"--{key}", message))

    def raise_any(self) -> None:
        """Raises UsageError with every problem, in the order of the file, if there is one."""
        if not self.found:
            return
        rows = [f"{place}: {text}" if place else text for _, place, text in sorted(self.found, key=lambda row: row[0])]
        if len(rows) == 1:
            raise UsageError(rows[0])
        listed = "\n".join(f"  {row}" for row in rows)
        raise UsageError(f"{len(rows)} problems in {self.name or 'the recipe'}:\n{listed}")

    def _locate(self, path: Path, stage: Stage | None) -> tuple[str, int, Path]:
        """The place (`--flag`, `file:line`, or the name), its line, and the path as the user would write it."""
        base: Path = () if stage is None or stage.index is None else ("stages", stage.index)
        scope: Path = () if stage is None or stage.index is None else ("stages", stage.name)
        for end in range(len(path), -1, -1):
            part = path[:end]
            if stage is not None and part in stage.flags:
                key = stage.flags[part]
                return f"--{key}", 0, path if end < len(path) else tuple(key.split("."))
            bare = tuple(step for step in part if isinstance(step, str))
            # `data:` may hold one source without a list, so its lines are also looked for without the index
            options = ((base, part), (base, bare), ((), part), ((), bare)) if part else ((base, part),)
            for start, rest in options:
                if (start + rest) in self.lines:
                    line = self.lines[start + rest]
                    inherited = not start and bool(part)
                    return f"{self.name}:{line}", line, path if inherited else scope + path
        if stage is not None and base and path and path[0] not in stage.own:
            scope = ()
        return self.name, 0, scope + path


def check_keys(problems: Problems, value: Any, stage: Stage | None) -> None:
    """Adds a problem for every unknown key, and for true / false where a number belongs, anywhere in `value`."""
    root = Recipe if stage is None else stage.root
    for path, model, key in _unknown(value, root, ()):
        if not path and stage is not None and key not in stage.own:
            continue  # a key of the top level, which is checked by itself
        also = ("stages",) if not path and stage is None else ()
        problems.add(f"unknown key; {suggestion(model, path, key, root, also)}", (*path, key), stage)
    for path, info in _bools(value, root, None, ()):
        problems.add(f"got true or false; expected {expected(info.annotation, info.metadata)}", path, stage)


def _unknown(value: Any, annotation: Any, path: Path) -> Iterator[tuple[Path, type[BaseModel], str]]:
    model = model_of(annotation)
    if model is not None and isinstance(value, Mapping):
        fields = keys_of(model)
        for key, inner in value.items():
            if key in fields:
                yield from _unknown(inner, fields[key].annotation, (*path, key))
            else:
                yield path, model, str(key)
        return
    item = item_of(annotation)
    if item is None:
        return
    if is_list(annotation) and isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _unknown(inner, item, (*path, index))
    elif is_dict(annotation) and isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _unknown(inner, item, (*path, key))


def _bools(value: Any, annotation: Any, info: FieldInfo | None, path: Path) -> Iterator[tuple[Path, FieldInfo]]:
    """Numbers given as true / false, which pydantic would read as 1 and 0."""
    model = model_of(annotation)
    if model is not None and isinstance(value, Mapping):
        fields = keys_of(model)
        for key, inner in value.items():
            if key in fields:
                yield from _bools(inner, fields[key].annotation, fields[key], (*path, key))
        return
    if isinstance(value, bool) and info is not None and without_none(annotation)[0] in {int, float}:
        yield path, info
    item = item_of(annotation)
    if is_list(annotation) and isinstance(value, list | tuple) and model_of(item):
        for index, inner in enumerate(value):
            yield from _bools(inner, item, None, (*path, index))


def add_invalid(problems: Problems, error: ValidationError, stage: Stage) -> None:
    """Adds pydantic's findings in our words. Unknown keys are left to `check_keys`."""
    for row in error.errors():
        path, annotation, info = _field_at(row["loc"], stage.root)
        kind, given = row["type"], row["input"]
        if kind in {"extra_forbidden", "invalid_key"}:
            continue
        wanted = expected(annotation, info.metadata if info else ())
        if kind == "missing":
            note = f" ({info.description})" if info and info.description else ""
            problems.add(f"missing; expected {wanted}{note}", path, stage)
        elif kind in {"value_error", "assertion_error"}:
            problems.add(row["msg"].split(", ", 1)[1], path, stage)
        else:
            shown = repr(given)
            shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
            quotes = "; write it in quotes" if kind == "string_type" and isinstance(given, int | float) else ""
            problems.add(f"got {shown}; expected {wanted}{quotes}", path, stage)


def _field_at(loc: tuple[str | int, ...], root: type[BaseModel]) -> tuple[Path, Any, FieldInfo | None]:
    """pydantic's location as a path; the tags it adds for members of a union are left off."""
    annotation: Any = root
    info: FieldInfo | None = None
    for depth, key in enumerate(loc):
        model, item = model_of(annotation), item_of(annotation)
        if model is not None and key in keys_of(model):
            info = keys_of(model)[str(key)]
            annotation = info.annotation
        elif model is not None and key in model.model_fields:  # located by field name instead of alias
            info = model.model_fields[str(key)]
            annotation = info.annotation
        elif item is not None and (isinstance(key, int) or is_dict(annotation)):
            annotation, info = item, None
        else:
            return loc[:depth], annotation, info
    return loc, annotation, info

"""What the recipe's models say about themselves: names, types and expectations at any dotted path.

Flags, `preftune init`, overrides and error messages all read the pydantic models through these few functions, so a new
field needs no further code.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

Path: TypeAlias = tuple[str | int, ...]
"""Keys and list indices from the top of a recipe."""

_PLAIN = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
_PLURAL = {int: "whole numbers", float: "numbers", str: "texts", bool: "true/false values"}


def dotted(path: Iterable[str | int]) -> str:
    """`("data", 0, "path")` → `data.0.path`."""
    return ".".join(str(part) for part in path)


def without_none(annotation: Any) -> tuple[Any, bool]:
    """The annotation less its `| None`, and whether it had one."""
    if get_origin(annotation) not in {Union, types.UnionType}:
        return annotation, False
    rest = tuple(part for part in get_args(annotation) if part is not type(None))
    return (rest[0] if len(rest) == 1 else Union[rest]), len(rest) < len(get_args(annotation))  # noqa: UP007


def model_of(annotation: Any) -> type[BaseModel] | None:
    """The section that an annotation stands for (optional or not), or None."""
    bare, _ = without_none(annotation)
    return bare if isinstance(bare, type) and issubclass(bare, BaseModel) else None


def item_of(annotation: Any) -> Any:
    """What a list or a dict holds; None for anything else."""
    bare, _ = without_none(annotation)
    origin, args = get_origin(bare), get_args(bare)
    if origin is list:
        return args[0]
    return args[1] if origin is dict else None


def is_list(annotation: Any) -> bool:
    return get_origin(without_none(annotation)[0]) is list


def is_dict(annotation: Any) -> bool:
    return get_origin(without_none(annotation)[0]) is dict


def is_text(annotation: Any) -> bool:
    """True where a flag's value is taken as it stands: text, or a choice among texts."""
    bare, _ = without_none(annotation)
    if get_origin(bare) is Literal:
        return all(isinstance(choice, str) for choice in get_args(bare))
    return bare is str


def key_of(name: str, info: FieldInfo) -> str:
    """The field's name in a recipe: its alias where it has one (`from`)."""
    return info.alias or name


def keys_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {key_of(name, info): info for name, info in model.model_fields.items()}


def expected(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """What a field takes, in words: `a whole number, at least 1`."""
    bare, optional = without_none(annotation)
    text = _words(bare)
    for bound in metadata:
        match bound:
            case Ge(ge=limit):
                text += f", at least {limit}"
            case Gt(gt=limit):
                text += f", above {limit}"
            case Le(le=limit):
                text += f", at most {limit}"
            case Lt(lt=limit):
                text += f", below {limit}"
            case MinLen(min_length=size):
                text += f", at least {size} long"
            case MaxLen(max_length=size):
                text += f", at most {size} long"
            case _:
                pass
    return f"{text}, or null" if optional else text


def _words(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        choices = ", ".join(str(choice) for choice in args)
        return f"one of {choices}" if len(args) > 1 else choices
    if origin in {Union, types.UnionType}:
        return " or ".join(_words(part) for part in args)
    if origin is tuple:
        return "[" + ", ".join(_words(part) for part in args) + "]"
    if origin is list:
        (item,) = args
        if model_of(item):
            return "a list of sections"
        return f"a list, each {_words(item)}" if item not in _PLURAL else f"a list of {_PLURAL[item]}"
    if origin is dict:
        return "a mapping (name: value)"
    if model_of(annotation):
        return "a section (name: value)"
    return _PLAIN.get(annotation, "any value")


def nearest(name: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The valid name that `name` is most likely a slip of, or None when none is close."""
    pool = {candidate.lower().replace("-", "_"): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower().replace("-", "_"), pool, n=1, cutoff=cutoff)
    return pool[close[0]] if close else None


@dataclass(frozen=True)
class Leaf:
    """A field that a flag can set: a value, a list, a mapping, or an optional section as a whole.

    `path` has no list indices; `*` stands for the free key of a dict of sections (`data.columns.*.from`).
    """

    path: tuple[str, ...]
    info: FieldInfo

    @property
    def name(self) -> str:
        return ".".join(self.path)


def leaves(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[Leaf]:
    """Every field below `model`, depth first, in the order of the models."""
    for key, info in keys_of(model).items():
        path = (*prefix, key)
        section = model_of(info.annotation)
        item = item_of(info.annotation)
        inner = section or (model_of(item) if item is not None else None)
        if section is None or without_none(info.annotation)[1]:  # an optional section can be set whole: null, or {…}
            yield Leaf(path, info)
        if inner is not None:
            yield from leaves(inner, (*path, "*") if is_dict(info.annotation) else path)


_OF_ONE_METHOD = frozenset({"value", "collect", "human", "gmpo"})


def by_last_part(names: Iterable[str]) -> dict[str, str]:
    """Last part of each dotted name → the name that is most likely meant by it: the first one, and one of a section
    that every method reads before one of a section of its own (`train.learning_rate`, not `value.learning_rate`)."""
    out: dict[str, str] = {}
    for name in sorted(names, key=lambda name: name.lstrip("-").split(".")[0] in _OF_ONE_METHOD):
        out.setdefault(name.rsplit(".", 1)[-1], name)
    return out


def suggestion(model: type[BaseModel], path: Path, key: str, root: type[BaseModel], also: Iterable[str] = ()) -> str:
    """Remedy for an unknown `key` in the section `model` at `path`: the nearest name there, else anywhere, else all.

    `also` names further keys that are valid there.
    """
    here = [*keys_of(model), *also]
    close = nearest(key, here)
    if close:
        return f"did you mean {dotted((*path, close))}?"
    everywhere = by_last_part(leaf.name for leaf in leaves(root))
    far = nearest(key, everywhere, cutoff=0.8)
    if far:
        return f"did you mean {everywhere[far]}?"
    return f"valid names here: {', '.join(here)}"

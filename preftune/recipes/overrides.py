"""Dotted overrides, as flags give them: `train.steps=5`, `data.path=x`, `sft.train.steps=5`, `rewards.1.weight=0.5`.

Where an override goes:

- with a stage's name in front (`sft.train.steps`, or `stages.sft.train.steps`), to that stage;
- without, to every stage, over the stage's own value. Three things are left as they are: a reference to an earlier
  stage (`model.path: stage:sft` joins the stages and is no setting); data that is the answers of earlier stages alone;
  and stages that lack the list item or optional section it reaches into, when another stage has it (`model.lora.r`
  changes adapters; it adds none to a stage without).

A list of sections that holds one is reached without an index; a longer one needs it. Of a stage that makes data, the
settings of its command are reached with the section's name and without (`even.balance.cap`, `even.cap`); the section's
name without the stage's is for all stages that have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from preftune.config import ColumnRule, Recipe
from preftune.errors import UsageError
from preftune.recipes.problems import Problems, Stage
from preftune.recipes.schema import (
    Path,
    dotted,
    is_dict,
    is_list,
    is_text,
    item_of,
    keys_of,
    model_of,
    nearest,
    suggestion,
    without_none,
)
from preftune.recipes.steps import STAGE_REF, STEPS, is_step
from preftune.recipes.yamltext import read_value

RIVALS = {"steps": "epochs", "epochs": "steps", "from": "template", "template": "from"}
"""Fields that exclude each other: the later word (a stage over the recipe, a flag over both) takes the other away."""

OF_THE_WHOLE = ("name", "output")
"""Fields that belong to the recipe, not to its stages."""


class Refused(Exception):
    """An override that can't be applied; the text says why."""


def apply_overrides(
    stages: list[Stage], head: dict[str, Any], overrides: Mapping[str, Any], problems: Problems
) -> None:
    """Applies the overrides, adding a problem for each that has no place.

    Their order does not matter: a stage's own comes after one for all stages, a part after the whole it belongs to.
    """
    names = {"stages", *(stage.name for stage in stages if stage.index is not None)}
    ordered = sorted(overrides.items(), key=lambda item: (item[0].split(".")[0] in names, item[0].count(".")))
    for key, value in ordered:
        try:
            _apply(stages, head, key, value)
        except Refused as refusal:
            problems.add_flag(key, str(refusal))


def _apply(stages: list[Stage], head: dict[str, Any], key: str, value: Any) -> None:
    parts = tuple(key.split("."))
    staged = stages[0].index is not None
    named = {stage.name: stage for stage in stages} if staged else {}
    if parts[0] == "stages" or parts[0] in named:
        if not staged:
            raise Refused("this recipe has no stages")
        name, rest = (parts[0], parts[1:]) if parts[0] in named else (".".join(parts[1:2]), parts[2:])
        if name.isdigit() and int(name) < len(stages):
            name = stages[int(name)].name
        if name not in named:
            raise Refused(f"no stage is named {name!r}; the stages are {', '.join(named)}")
        if not rest:
            raise Refused(f"name a field of the stage: --{key}.train.steps, say")
        if rest[0] in OF_THE_WHOLE:
            raise Refused(f"{rest[0]} can't be set for one stage; set --{rest[0]} for the whole recipe")
        stage = named[name]
        stage.flags[_set(stage, _in_section(stage, rest), value, f"--stages.{name}.")] = key
        return
    if staged and parts[0] in OF_THE_WHOLE:
        head[parts[0]] = _convert(value, Recipe.model_fields[parts[0]].annotation)
        return
    if staged and parts[0] == "method":
        raise Refused(f"each stage has its own method; set --stages.{stages[0].name}.method, say")
    having = [stage for stage in stages if parts[0] in keys_of(stage.root)]
    if parts[0] not in keys_of(Recipe) and not having:
        _unknown_first(parts, list(named))
    targets = [stage for stage in having if _reaches(stage, parts)] or having
    for stage in targets:
        if staged and _is_reference(stage.merged, parts):
            continue
        stage.flags[_set(stage, parts, value, f"--stages.{stage.name}." if staged else "--")] = key


def _in_section(stage: Stage, parts: tuple[str, ...]) -> tuple[str, ...]:
    """The path of a setting of a stage that makes data, which may go without the name of its section."""
    method = str(stage.merged.get("method"))
    if not is_step(method) or parts[0] in keys_of(stage.root):
        return parts
    section = model_of(keys_of(stage.root)[method].annotation)
    return (method, *parts) if section is not None and parts[0] in keys_of(section) else parts


def check_flag(key: str) -> None:
    """Raises UsageError when no recipe could have the setting `key`. A first part that is no section may be a stage."""
    parts = key.split(".")
    if parts[0] not in keys_of(Recipe):
        return
    annotation: Any = Recipe
    for depth, part in enumerate(parts):
        if is_list(annotation) and part.isdigit():
            annotation = item_of(annotation)
            continue
        model = model_of(annotation) or (model_of(item_of(annotation)) if is_list(annotation) else None)
        if model is None:
            item = item_of(annotation)
            if item is None and annotation is not Any:
                raise UsageError(f"--{key}: {dotted(parts[:depth])} is a value, so nothing below it can be set")
            annotation = item if item is not None else Any
        elif part in keys_of(model):
            annotation = keys_of(model)[part].annotation
        else:
            raise UsageError(f"--{key}: no such setting; {suggestion(model, tuple(parts[:depth]), part, Recipe)}")


def _unknown_first(parts: tuple[str, ...], stage_names: list[str]) -> None:
    if parts[0] in STEPS:
        raise Refused(f"no stage of this recipe has the method {parts[0]}")
    close = nearest(parts[0], stage_names)
    if close and len(parts) > 1:
        raise Refused(f"no such setting; did you mean {dotted((close, *parts[1:]))}?")
    raise Refused(f"no such setting; {suggestion(Recipe, (), parts[0], Recipe, ('stages',) if stage_names else ())}")


def _get(value: Any, parts: tuple[str, ...]) -> Any:
    """The value at `parts`, a single item of a list being reached without its index; None where there is none."""
    for part in parts:
        if isinstance(value, list):
            if part.isdigit():
                value = value[int(part)] if int(part) < len(value) else None
                continue
            value = value[0] if len(value) == 1 else None
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def _reaches(stage: Stage, parts: tuple[str, ...]) -> bool:
    """True when the sections and items that `parts` passes through are there, or come by default."""
    annotation: Any = stage.root
    for depth, part in enumerate(parts[:-1]):
        model = model_of(annotation)
        if model is not None:
            if part not in keys_of(model):
                return True  # unknown: _set says so
            annotation = keys_of(model)[part].annotation
        elif is_list(annotation) and not part.isdigit():
            annotation = keys_of(model_of(item_of(annotation)) or stage.root).get(part, None)
            annotation = annotation.annotation if annotation is not None else None
        else:
            annotation = item_of(annotation)
        present = _get(stage.merged, parts[: depth + 1])
        must_exist = without_none(annotation)[1] if model_of(annotation) else is_list(annotation)
        if must_exist and not present:
            return False
    return True


def _is_reference(merged: dict[str, Any], parts: tuple[str, ...]) -> bool:
    if parts[0] == "data" and len(parts) > 1 and not parts[1].isdigit():
        # What a flag says of the data's rows (their path, columns, number) is not said of the answers of a stage.
        sources = merged.get("data")
        paths = [one.get("path") if isinstance(one, Mapping) else None for one in _listed(sources)]
        return bool(paths) and all(isinstance(path, str) and path.startswith(STAGE_REF) for path in paths)
    present = _get(merged, parts)
    return isinstance(present, str) and present.startswith(STAGE_REF)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _set(stage: Stage, parts: tuple[str, ...], value: Any, prefix: str) -> Path:
    """Sets the field at `parts` in place and returns its full path. `prefix` stands before paths in messages."""
    annotation: Any = stage.root
    here: Any = stage.merged
    path: Path = ()
    rest = list(parts)
    while True:
        if is_list(annotation) and not rest[0].isdigit():
            rest.insert(0, _only_index(here, path, rest, prefix))
        key: str | int = int(rest[0]) if is_list(annotation) else rest[0]
        model = model_of(annotation)
        if model is not None:
            if key not in keys_of(model):
                raise Refused(f"no such setting; {suggestion(model, path, str(key), stage.root)}")
            inner = keys_of(model)[str(key)].annotation
        else:
            inner = item_of(annotation) or Any
        if isinstance(key, int) and key > len(here):
            raise Refused(f"{dotted(path)} has {len(here)} items, so {dotted((*path, key))} would leave a gap")
        path = (*path, key)
        if len(rest) == 1:
            _put(here, key, _convert(value, inner))
            if model is not None and value is not None:
                here.pop(RIVALS.get(str(key)), None)
            return path
        current = here[key] if isinstance(key, int) and key < len(here) else None
        if isinstance(here, dict):
            current = here.get(str(key))
        here = _open(here, key, current, inner, path)
        annotation = inner
        rest = rest[1:]


def _put(container: Any, key: str | int, value: Any) -> None:
    if isinstance(container, list) and key == len(container):
        container.append(value)
        return
    container[key] = value


def _open(container: Any, key: str | int, current: Any, annotation: Any, path: Path) -> Any:
    """The dict or list at `key`, made when it is missing."""
    if model_of(annotation) is ColumnRule and isinstance(current, str):
        current = {"from": current}
    if is_list(annotation) and isinstance(current, Mapping):
        current = [current]
    if current is None:
        current = [] if is_list(annotation) else {}
    wanted = list if is_list(annotation) else dict
    reachable = model_of(annotation) or is_list(annotation) or is_dict(annotation) or annotation is Any
    if not reachable or not isinstance(current, wanted):
        raise Refused(f"{dotted(path)} is a value, not a section, so nothing below it can be set")
    if isinstance(container, list) and key == len(container):
        container.append(current)
    else:
        container[key] = current
    return current


def _only_index(items: Any, path: Path, rest: list[str], prefix: str) -> str:
    if len(items) <= 1:
        return "0"
    choices = " or ".join(f"{prefix}{dotted((*path, index, *rest))}" for index in range(len(items)))
    raise Refused(f"{dotted(path)} has {len(items)} items; write {choices}")


def _convert(value: Any, annotation: Any) -> Any:
    """A flag's text as the value it stands for; anything but text is taken as it is."""
    if not isinstance(value, str):
        return value
    optional = without_none(annotation)[1]
    if optional and value == "null":
        return None
    if is_text(annotation):
        return value
    try:
        read = read_value(value)
    except yaml.YAMLError:
        raise Refused(
            f"got {value!r}, which is not valid YAML; write lists as [a, b] and mappings as {{a: 1}}"
        ) from None
    # an empty flag is empty text, not null
    return value if read is None and value != "null" else read

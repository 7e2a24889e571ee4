"""From a recipe as written to a `Pipeline`: stages merged over the top level, overrides applied, everything checked."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from preftune.config import DataStage, Pipeline, Recipe
from preftune.errors import UsageError
from preftune.recipes.checks import check_pipeline, check_stage_names
from preftune.recipes.overrides import OF_THE_WHOLE, RIVALS, apply_overrides
from preftune.recipes.problems import Problems, Stage, add_invalid, check_keys
from preftune.recipes.rounds import expand
from preftune.recipes.schema import Path, is_dict, is_list, item_of, keys_of, model_of, without_none
from preftune.recipes.steps import OF_THE_STAGE, is_step, slip_of_step, stage_model, whole
from preftune.recipes.yamltext import dump_yaml, read_file


def load_recipe(
    path: str | FilePath, overrides: Mapping[str, Any] | None = None, *, method: str | None = None
) -> Pipeline:
    """Reads a recipe file.

    Args:
        path: a YAML file.
        overrides: dotted path → value, see `preftune.recipes.overrides`. Text is read as the field's type; other
            values are taken as they are.
        method: the method of a recipe that names none.

    Raises:
        UsageError: everything wrong with the recipe, each with file, line, path and remedy.
    """
    raw, lines = read_file(FilePath(path))
    if raw is None:
        raise UsageError(f"recipe {path} is empty; `preftune init grpo` prints one to start from")
    if method is not None and isinstance(raw, dict) and "method" not in raw and "stages" not in raw:
        raw["method"] = method
    return resolve(raw, overrides, name=str(path), lines=lines)


def resolve(
    raw: Any,
    overrides: Mapping[str, Any] | None = None,
    *,
    name: str = "",
    lines: Mapping[Path, int] | None = None,
    functions: Sequence[Callable[..., Any]] = (),
) -> Pipeline:
    """As `load_recipe`, from a dict.

    Args:
        raw: what a recipe file holds.
        overrides: as for `load_recipe`.
        name: the file's name, for messages.
        lines: path → line of that file, for messages.
        functions: rewards that come as Python functions, so the recipe need not name any.
    """
    problems = Problems(name, lines or {})
    if not isinstance(raw, Mapping):
        problems.add(f"a recipe is a mapping (name: value), not {type(raw).__name__}")
        problems.raise_any()
    top = _plain(copy.deepcopy(dict(raw)), Recipe)
    stages, head = _split(top, problems)
    problems.raise_any()
    apply_overrides(stages, head, overrides or {}, problems)
    check_keys(problems, {key: value for key, value in top.items() if key != "stages"}, None)
    recipes: list[Recipe | DataStage] = []
    for stage in stages:
        check_keys(problems, stage.merged, stage)
        try:
            recipes.append(_read(stage, problems))
        except ValidationError as error:
            add_invalid(problems, error, stage)
    pipeline = _pipeline(recipes, stages, head, problems)
    for index, path, message in check_pipeline(pipeline, has_functions=bool(functions)):
        problems.add(message, path, stages[index])
    problems.raise_any()
    if all(recipe.repeat == 1 for recipe in pipeline.recipes):
        return pipeline
    return pipeline.model_copy(update={"stages": expand(recipes, staged=stages[0].index is not None)})


def _read(stage: Stage, problems: Problems) -> Recipe | DataStage:
    """A stage as its model. Raises ValidationError."""
    if not issubclass(stage.root, DataStage):
        return Recipe.model_validate(_over_defaults(stage.merged))
    method = str(stage.merged["method"])
    section: Any = stage.merged.get(method)
    for field in OF_THE_STAGE if isinstance(section, Mapping) else ():
        if field in section:
            problems.add(f"{field} is the stage's own; write it beside the section", (method, field), stage)
    return stage.root.model_validate(whole(stage.merged))


def dump(recipe: Recipe | DataStage | Pipeline) -> str:
    """The fully resolved YAML, which loads back to an equal recipe. A pipeline of one plain recipe is written as it.

    Raises:
        UsageError: a value is no plain value (a function, say).
    """
    if isinstance(recipe, Pipeline) and is_plain(recipe):
        recipe = recipe.stages[0]
    return dump_yaml(recipe.model_dump(by_alias=True))


def is_plain(pipeline: Pipeline) -> bool:
    """True for a recipe without `stages:`, whose run folder holds the run itself."""
    only = pipeline.stages[0]
    if len(pipeline.stages) > 1 or not isinstance(only, Recipe):
        return False
    return only.name == pipeline.name and only.output == pipeline.output


def _over_defaults(merged: dict[str, Any]) -> dict[str, Any]:
    """What the recipe says, over what its method starts from."""
    from preftune.methods import METHODS

    row = METHODS.get(str(merged.get("method")))
    return merged if row is None or not row.defaults else _merge(copy.deepcopy(dict(row.defaults)), merged, Recipe)


def _plain(value: Any, annotation: Any) -> Any:
    """Sections left empty (`train:` and nothing below) as empty, and one source as a list of one."""
    model, bare = model_of(annotation), without_none(annotation)
    if value is None and not bare[1]:
        return [] if is_list(annotation) else {} if model is not None or is_dict(annotation) else None
    if model is not None and isinstance(value, Mapping):
        fields = keys_of(model)
        known = {key: _plain(inner, fields[key].annotation) for key, inner in value.items() if key in fields}
        rest = {key: inner for key, inner in value.items() if key not in fields}
        if model is Recipe:
            if isinstance(known.get("data"), Mapping):
                known["data"] = [known["data"]]
            if isinstance(rest.get("stages"), list):
                rest["stages"] = [_plain(stage, Recipe) for stage in rest["stages"]]
        return {**known, **rest}
    if is_list(annotation) and isinstance(value, list) and model_of(item_of(annotation)):
        return [_plain(inner, item_of(annotation)) for inner in value]
    return value


def _split(top: dict[str, Any], problems: Problems) -> tuple[list[Stage], dict[str, Any]]:
    """The stages, each merged over the top level, and the fields that belong to the whole."""
    if "stages" not in top:
        return [Stage(str(top.get("name", "run")), None, {}, copy.deepcopy(top))], {}
    listed = top["stages"]
    if not isinstance(listed, list) or not listed:
        problems.add("a list of stages is expected, each with a name", ("stages",))
        return [], {}
    head = {key: top[key] for key in OF_THE_WHOLE if key in top}
    shared = {key: value for key, value in top.items() if key not in {"stages", *OF_THE_WHOLE}}
    stages: list[Stage] = []
    for index, own in enumerate(listed):
        if not isinstance(own, Mapping) or not isinstance(own.get("name"), str):
            problems.add("each stage is a mapping with a name of its own (text)", ("stages", index))
            continue
        if own.get("output") is not None:
            problems.add(
                "a stage writes into its recipe's folder; set output for the whole recipe", ("stages", index, "output")
            )
        method = own.get("method")
        if is_step(method):
            # Of the recipe's top level a command on data reads these alone.
            given = {key: value for key, value in shared.items() if key in OF_THE_STAGE}
            root = stage_model(str(method))
            merged = _merge(copy.deepcopy(given), {**own, method: own.get(method) or {}}, root)
            stages.append(Stage(own["name"], index, dict(own), merged, root=root))
            continue
        if isinstance(method, str) and (step := slip_of_step(method)):
            problems.add(f"no method is named {method!r}; did you mean {step}?", ("stages", index, "method"))
            continue
        merged = _merge(copy.deepcopy(shared), dict(own), Recipe)
        stages.append(Stage(own["name"], index, dict(own), merged))
    check_stage_names(stages, problems)
    return stages, head


def _merge(base: Any, over: Any, annotation: Any) -> Any:
    """`over` laid on `base`: sections and mappings key by key, everything else (lists too) replaced."""
    model = model_of(annotation)
    if not isinstance(base, dict) or not isinstance(over, dict) or not (model or is_dict(annotation)):
        return copy.deepcopy(over)
    fields = keys_of(model) if model else {}
    merged = dict(base)
    for key, value in over.items():
        rival = RIVALS.get(key) if key in fields else None
        if rival is not None and rival not in over and value is not None:
            merged.pop(rival, None)
        inner = fields[key].annotation if key in fields else item_of(annotation)
        merged[key] = _merge(merged.get(key), value, inner)
    return merged


def _pipeline(
    recipes: list[Recipe | DataStage], stages: list[Stage], head: dict[str, Any], problems: Problems
) -> Pipeline:
    """The whole; raises when a stage was not valid."""
    if stages[0].index is None and recipes and isinstance(recipes[0], Recipe):
        head = {"name": recipes[0].name, "output": recipes[0].output}
    for key, value in head.items():
        if not (isinstance(value, str) or (key == "output" and value is None)):
            problems.add(f"got {value!r}; expected text; write it in quotes", (key,))
    problems.raise_any()
    return Pipeline(stages=recipes, **head)

"""`repeat: N` becomes N stages, each from the result of the one before."""

from __future__ import annotations

from collections.abc import Sequence

from preftune.config import DataStage, Recipe, SourceConfig
from preftune.methods import METHODS
from preftune.recipes.steps import STAGE_REF, with_references


def expand(recipes: Sequence[Recipe | DataStage], *, staged: bool) -> list[Recipe | DataStage]:
    """The recipes with every repeated one written out; a reference to a repeated stage means its last round.

    Rounds keep the recipe's seed: the same rows are held out in all of them, and a round's first measurement is the
    last one of the round before.

    Args:
        staged: the recipe names its stages: rounds are NAME-1, NAME-2, …; else they are round-1, round-2, ….
    """
    out: list[Recipe | DataStage] = []
    last: dict[str, str] = {}
    for recipe in recipes:
        if isinstance(recipe, DataStage):
            out.append(_step_pointing(recipe, last))
            continue
        recipe = _pointing(recipe, last)
        if recipe.repeat == 1:
            out.append(recipe)
            continue
        stem = recipe.name if staged else "round"
        names = [f"{stem}-{k}" for k in range(1, recipe.repeat + 1)]
        for number, name in enumerate(names):
            out.append(_round(recipe, name, names[:number], staged))
        last[recipe.name] = names[-1]
    return out


def _round(recipe: Recipe, name: str, before: Sequence[str], staged: bool) -> Recipe:
    """`before`: the names of the rounds before."""
    changes = {"name": name, "repeat": 1, "output": recipe.output if staged else None}
    if not before:
        return recipe.model_copy(update=changes)
    model, method = recipe.model, METHODS[recipe.method]
    # A merged adapter makes the first round end in a whole model; the second puts a new adapter on that. A reward model
    # is always saved whole.
    merged = (model.on_adapter == "merge" and len(before) == 1) or method.reads == "scores"
    adapter = not merged and (model.on_adapter == "continue" or model.lora is not None)
    compares = method.needs_reference(recipe)
    if recipe.collect.path is not None:  # answers of the first round's policy are not those of the next one's
        changes["collect"] = recipe.collect.model_copy(update={"path": None})
    first = recipe.collect.reference == "first"
    update: dict[str, object] = {
        "path": STAGE_REF + before[-1],
        "revision": None,
        "on_adapter": None,
        "reference": None,
    }
    if adapter:
        update |= {"on_adapter": "continue", "reference": "start" if compares else None}
    if first and compares and model.reference_path is None:
        if adapter and model.on_adapter in (None, "fresh"):
            update["reference"] = "base"
        else:
            update |= {"reference_path": model.path, "reference": None}
    return recipe.model_copy(update={**changes, "model": model.model_copy(update=update)})


def _step_pointing(stage: DataStage, last: dict[str, str]) -> DataStage:
    """The same of a stage that makes data."""

    def to(value: str) -> str:
        name = value.removeprefix(STAGE_REF)
        return STAGE_REF + last.get(name, name)

    return with_references(stage, to, to)


def _pointing(recipe: Recipe, last: dict[str, str]) -> Recipe:
    """References to repeated stages as references to their last rounds."""

    def to(path: str | None) -> str | None:
        if path is None or not path.startswith(STAGE_REF):
            return path
        name = path.removeprefix(STAGE_REF)
        return STAGE_REF + last.get(name, name)

    def of(sources: Sequence[SourceConfig]) -> list[SourceConfig]:
        return [source.model_copy(update={"path": to(source.path)}) for source in sources]

    rewards = []
    for reward in recipe.rewards:
        path = reward.args.get("path")
        args = {**reward.args, "path": to(path)} if isinstance(path, str) else reward.args
        rewards.append(reward.model_copy(update={"args": args}))
    model = recipe.model.model_copy(
        update={"path": to(recipe.model.path), "reference_path": to(recipe.model.reference_path)}
    )
    value = recipe.value.model_copy(update={"path": to(recipe.value.path)})
    rows = recipe.eval.model_copy(update={"data": of(recipe.eval.data), "test": of(recipe.eval.test)})
    return recipe.model_copy(
        update={"rewards": rewards, "model": model, "value": value, "data": of(recipe.data), "eval": rows}
    )

"""Commands of `preftune data` as stages of a recipe.

    stages:
      - {name: tiers, method: generate, data: {path: prompts.jsonl}, generate: {tiers: […]}}
      - {name: pairs, method: pairs, data: {path: "stage:tiers"}, pairs: {max_per_prompt: 3}}
      - {name: reward, method: reward, data: {path: "stage:pairs"}, …}

Recipes lie below the commands in the order of imports, so a step's settings are known here by the name of their class,
as rewards and rollouts in files are, and are loaded when a recipe has such a stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import Any

from pydantic import BaseModel, Field, create_model

from preftune.config import DataStage
from preftune.recipes.schema import nearest

STEPS: dict[str, str] = {
    "generate": "preftune.curation.generate.config:GenerateConfig",
    "pairs": "preftune.curation.pairs.config:PairsConfig",
    "balance": "preftune.curation.balance.config:BalanceConfig",
    "debias": "preftune.curation.debias.config:DebiasConfig",
    "audit": "preftune.curation.audit.config:AuditConfig",
}
"""Method → the class of its settings."""

WITHOUT_ROWS = frozenset({"audit"})
"""Steps that look at rows and write none, so that nothing can read from them."""

OF_THE_STAGE = ("data", "seed")
"""Fields of a command's settings that its stage says."""

STAGE_REF = "stage:"


def is_step(method: object) -> bool:
    return isinstance(method, str) and method in STEPS


def slip_of_step(method: str) -> str | None:
    """The step that a name which is no method at all is most likely a slip of."""
    from preftune.methods import METHODS

    close = nearest(method, [*METHODS, *STEPS]) if method not in METHODS else None
    return close if close in STEPS else None


def settings_of(method: str) -> type[BaseModel]:
    """The class of a step's settings."""
    module, _, name = STEPS[method].partition(":")
    found: type[BaseModel] = getattr(import_module(module), name)
    return found


@cache
def stage_model(method: str) -> type[DataStage]:
    """The model of a stage of this method: a DataStage with the section of its settings."""
    settings = settings_of(method)
    section: Any = (settings, Field(description=f"settings of preftune data {method}"))
    made: type[DataStage] = create_model(f"{method.title()}Stage", __base__=DataStage, **{method: section})
    return made


def whole(merged: Mapping[str, Any]) -> dict[str, Any]:
    """A stage as its model reads it: the section with the stage's rows and seed in it."""
    method = str(merged["method"])
    given = {name: merged[name] for name in OF_THE_STAGE if name in merged}
    section = merged.get(method)
    if section is not None and not isinstance(section, Mapping):
        return dict(merged)
    return {**merged, method: {**(section or {}), **given}}


def references(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """(place, `stage:NAME`) for every text in a step's settings that stands for a stage."""
    if isinstance(value, str) and value.startswith(STAGE_REF):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from references(inner, (*path, key))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from references(inner, (*path, index))


def with_references(stage: DataStage, to_rows: Callable[[str], str], to_model: Callable[[str], str]) -> DataStage:
    """The stage with every `stage:NAME` replaced: in the paths of its rows by one function, elsewhere by another.

    Raises what the functions raise.
    """

    def replaced(value: Any) -> Any:
        if isinstance(value, str) and value.startswith(STAGE_REF):
            return to_model(value)
        if isinstance(value, Mapping):
            return {key: replaced(inner) for key, inner in value.items()}
        return [replaced(inner) for inner in value] if isinstance(value, list | tuple) else value

    raw = stage.model_dump(by_alias=True)
    for source in raw["data"]:
        if source["path"].startswith(STAGE_REF):
            source["path"] = to_rows(source["path"])
    raw[stage.method] = replaced(raw[stage.method])
    return type(stage).model_validate(whole(raw))

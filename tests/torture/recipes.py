"""Wrong recipes, made from a right one by one slip each. Used by tests/test_recipes.py and by `make torture`."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

from preftune.config import Recipe
from preftune.recipes.schema import leaves

RIGHT: dict[str, Any] = {
    "method": "grpo",
    "name": "right",
    "seed": 3,
    "model": {"path": "some/model", "dtype": "float32", "lora": {"r": 8, "alpha": 16}},
    "data": [{"path": "rows.jsonl", "split": "train", "columns": {"answer": {"from": "solution", "match": "(.*)"}}}],
    "tokens": {"max_prompt_tokens": 64, "on_too_long": "drop"},
    "sampling": {"group_size": 4, "temperature": 1.0, "stop": ["\n"]},
    "rewards": [{"name": "accuracy", "weight": 1.0}, {"name": "my.module:reward", "args": {"scale": 2}}],
    "policy": {"preset": "grpo", "beta": 0.0},
    "train": {"steps": 5, "learning_rate": 1e-4, "schedule": "cosine", "batch_size": 2},
    "eval": {"holdout": 4, "every": 2, "best": "reward/accuracy"},
    "log": {"samples": 2, "sinks": ["tensorboard"]},
}
"""A recipe that resolves."""


def _places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every path in the recipe that a recipe's own rules govern (free mappings like `args` excluded)."""
    if path:
        yield path
    if isinstance(value, dict) and path[-1:] != ("args",):
        for key, inner in value.items():
            yield from _places(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _places(inner, (*path, index))


def _at(recipe: dict[str, Any], path: tuple[str | int, ...]) -> Any:
    here: Any = recipe
    for part in path:
        here = here[part]
    return here


def _misspelt(name: str, rng: random.Random) -> str:
    """`name` with one letter dropped, doubled, swapped or changed; never `name` itself."""
    while True:
        at = rng.randrange(len(name))
        slip = rng.choice(
            [
                name[:at] + name[at + 1 :],
                name[:at] + name[at] + name[at:],
                name[:at] + name[at + 1 : at + 2] + name[at] + name[at + 2 :],
                name[:at] + "q" + name[at + 1 :],
            ]
        )
        if slip and slip != name:
            return slip


def wrong_recipes(count: int, seed: int = 0) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields `count` pairs (recipe, a word that its error message must contain)."""
    rng = random.Random(seed)
    fields = {leaf.name for leaf in leaves(Recipe)}
    places = list(_places(RIGHT))
    makers = (_unknown_key, _wrong_type, _missing, _out_of_range, _wrong_choice, _conflict)
    for number in range(count):
        recipe = copy.deepcopy(RIGHT)
        why = makers[number % len(makers)](recipe, rng, places, fields)
        yield recipe, why


def _unknown_key(recipe: dict[str, Any], rng: random.Random, places: list[Any], fields: set[str]) -> str:
    while True:
        path = rng.choice(places)
        parent = _at(recipe, path[:-1])
        if isinstance(path[-1], str) and path[-2:-1] != ("columns",):
            break
    slip = _misspelt(path[-1], rng)
    while slip in parent or slip in {name.split(".")[-1] for name in fields}:
        slip = _misspelt(slip, rng)
    parent[slip] = parent.pop(path[-1])
    return slip


def _wrong_type(recipe: dict[str, Any], rng: random.Random, places: list[Any], fields: set[str]) -> str:
    path = rng.choice([path for path in places if path not in {("rewards", 1, "args"), ("data",)}])
    old = _at(recipe, path)
    # no field takes a set-like mapping of this shape, and no section takes text or a number
    wrong = "plainly wrong" if isinstance(old, dict | list) else {"not": {"a": "value"}}
    if path[-2:-1] == ("columns",):
        wrong = 7
    _at(recipe, path[:-1])[path[-1]] = wrong
    return str(next(part for part in reversed(path) if isinstance(part, str)))


def _missing(recipe: dict[str, Any], rng: random.Random, places: list[Any], fields: set[str]) -> str:
    path: tuple[str | int, ...] = rng.choice(
        [("method",), ("model",), ("model", "path"), ("data",), ("data", 0, "path"), ("rewards",),
         ("rewards", 0, "name"), ("train", "steps"), ("train",)]
    )  # fmt: skip
    del _at(recipe, path[:-1])[path[-1]]
    return str(path[0])


def _out_of_range(recipe: dict[str, Any], rng: random.Random, places: list[Any], fields: set[str]) -> str:
    path, value = rng.choice(
        [
            (("seed",), -1), (("seed",), 1.5), (("seed",), True), (("model", "lora", "r"), 0),
            (("model", "lora", "dropout"), 1), (("data", 0, "weight"), 0), (("data", 0, "limit"), 0),
            (("tokens", "drop_above_percentile"), 101), (("sampling", "top_p"), 0), (("sampling", "min_p"), 1),
            (("sampling", "temperature"), float("inf")), (("train", "learning_rate"), float("nan")),
            (("train", "warmup"), 1.01), (("train", "max_grad_norm"), -1), (("train", "batch_size"), 0),
            (("eval", "holdout"), -3), (("log", "samples"), 0), (("rewards", 0, "weight"), float("nan")),
            (("rewards", 0, "timeout"), 0), (("policy", "beta"), -0.1), (("sampling", "group_size"), 2.5),
        ]
    )  # fmt: skip
    _at(recipe, path[:-1])[path[-1]] = value
    return ".".join(map(str, path))


def _wrong_choice(recipe: dict[str, Any], rng: random.Random, places: list[Any], fields: set[str]) -> str:
    path, value = rng.choice(
        [
            (("method",), "gropo"), (("method",), "nothing-like-it"), (("model", "dtype"), "float16"),
            (("model", "device"), "gpu"), (("model", "on_adapter"), "keep"), (("tokens", "on_too_long"), "truncate"),
            (("train", "schedule"), "step"), (("train", "precision"), "fp16"), (("rewards", 0, "name"), "acuracy"),
            (("policy", "preset"), "gpro"), (("policy", "kl"), "k1"), (("log", "sinks"), ["mlflow"]),
            (("data", 0, "format"), "pairs"), (("data", 0, "on_bad_row"), "ignore"), (("model", "path"), "stage:sft"),
            (("name",), "a/b"), (("name",), ".."),
        ]
    )  # fmt: skip
    _at(recipe, path[:-1])[path[-1]] = value
    return str(path[0])


def _conflict(recipe: dict[str, Any], rng: random.Random, places: list[Any], fields: set[str]) -> str:
    kind = rng.randrange(7)
    if kind == 0:
        recipe["train"]["epochs"] = 1
        return "epochs"
    if kind == 1:
        recipe["data"][0]["columns"]["answer"]["template"] = "{solution}"
        return "template"
    if kind == 2:
        recipe["eval"]["data"] = [{"path": "other.jsonl"}]
        return "holdout"
    if kind == 3:
        recipe["eval"] = {"patience": 2}
        return "patience"
    if kind == 4:
        recipe["stages"] = []
        return "stages"
    if kind == 5:
        recipe["stages"] = [{"name": "one"}, {"name": "one"}]
        return "one"
    recipe["stages"] = [{"name": "one"}, {"name": "two", "model": {"path": "stage:tow"}}]
    return "two"

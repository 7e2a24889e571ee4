"""Rounds without a model: groups made on the spot, and raters who rate by a rule."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from preftune.config import Recipe
from preftune.data import load_examples
from preftune.human.export import Exported, export
from preftune.human.rounds import Answer
from preftune.recipes import load_recipe
from preftune.records import Completion, Distribution, Group, Prompt
from tests import tiny

Texts = Callable[[int, int], str]
"""(prompt, completion) → what the policy wrote."""


def plain(prompt: int, completion: int) -> str:
    return "word " * (completion + 1) + f"of {prompt}"


def group(prompt: str, texts: Sequence[str], where: str = "prompts.jsonl:1") -> Group:
    """Every completion has ids of its own, also those of the same text."""
    completions = tuple(
        Completion(
            ids=(5 + place, 6, 1), mask=(True, True, True), text=text, finish="eos", logprobs=(-0.5, -1.0, -0.25),
            distribution=Distribution(), source="policy",
        )
        for place, text in enumerate(texts)
    )  # fmt: skip
    return Group(Prompt((3, 4), prompt, prompt, {}, where), completions)


def fake_draw(monkeypatch: pytest.MonkeyPatch, texts: Texts = plain) -> list[Recipe]:
    """Puts a policy in place that writes `texts`. Returns the recipes that it is asked with."""
    asked: list[Recipe] = []

    def draw(recipe: Recipe, *, base_dir: Path | None) -> tuple[list[Group], Mapping[str, Any]]:
        asked.append(recipe)
        rows = load_examples(recipe.data, seed=recipe.seed, base_dir=base_dir).examples
        size = recipe.sampling.group_size
        groups = [
            group(str(row.prompt), [texts(i, k) for k in range(size)], row.where) for i, row in enumerate(rows)
        ]  # fmt: skip
        return groups, {"policy": "0123", "model": recipe.model.path, "seed": recipe.seed}

    # the name preftune.train may be the function of that name, so no dotted path
    monkeypatch.setattr(import_module("preftune.train.collect"), "draw", draw)
    return asked


def recipe(folder: Path, *, prompts: int = 2, group_size: int = 3, rows: int = 8, **human: Any) -> Path:
    """A recipe file for `rows` prompts, in a folder of its own."""
    data = tiny.write(folder / "train.jsonl", [{"prompt": f"prompt {i}"} for i in range(rows)])
    whole = {
        "method": "human", "name": "people", "output": str(folder / "rounds"), "model": {"path": "some/model"},
        "data": {"path": str(data)}, "sampling": {"group_size": group_size}, "train": {"epochs": 1},
        "human": {"prompts": prompts, **human},
    }  # fmt: skip
    path = folder / "people.yaml"
    path.write_text(yaml.safe_dump(whole), encoding="utf-8")
    return path


def begin(path: Path, **flags: Any) -> Exported:
    return export(load_recipe(path, flags, method="human"))


def table(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    """A CSV file's rows."""
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""), delimiter=delimiter))


def fill(
    answers: Path, out: Path, rule: Callable[[dict[str, Any]], Any], rater: str = "", keep: int | None = None
) -> Path:
    """A rater's file: the exported rows, rated by `rule` (None leaves a hole), saved as CSV or JSONL by its name."""
    rows: list[dict[str, Any]] = (
        list(table(answers)) if answers.suffix == ".csv" else tiny.lines(answers)
    )[:keep]  # fmt: skip
    rate = "rank" if "rank" in rows[0] else "score"
    for row in rows:
        value = rule(row)
        row[rate] = "" if value is None else value
        row["rater"] = rater
    if out.suffix == ".jsonl":
        out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        save(out, rows)
    return out


def save(out: Path, rows: Sequence[Mapping[str, Any]], delimiter: str = ",") -> Path:
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return out


def by_length(row: Mapping[str, Any]) -> float:
    """Longer answers score higher; the texts of `plain` have 2, 3, 4, … words."""
    return float(len(row["answer"].split()))


def ranks_by_length(answers: Sequence[Answer]) -> dict[str, int]:
    """Answer id → rank within its prompt, the longest first."""
    return {
        one.id: 1 + sum(other.prompt == one.prompt and len(other.text) > len(one.text) for other in answers)
        for one in answers
    }

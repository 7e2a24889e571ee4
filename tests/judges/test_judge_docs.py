"""docs/judges.md is true."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import yaml

from preftune.cli.judge import judged_leaves
from preftune.judges import Agreement, JudgeConfig
from preftune.judges.build import BuildConfig
from preftune.judges.judge import HOPELESS
from preftune.judges.rubrics import RUBRICS
from preftune.recipes import resolve

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "judges.md").read_text(encoding="utf-8")


def table(heading: str) -> list[list[str]]:
    part = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+) \|$", part, re.MULTILINE)
    return [[cell.strip() for cell in row.split(" | ")] for row in rows if not row.startswith("-")][1:]


def test_every_setting_is_told() -> None:
    told = {name for row in table("Settings") for name in re.findall(r"`(\w+)`", row[0])} - {"OPENAI_API_KEY"}
    assert told == set(JudgeConfig.model_fields)


def test_defaults_are_those_of_the_code() -> None:
    config, checked = JudgeConfig(model="m"), 0
    for names, default, *_ in table("Settings"):
        values = [part.strip() for part in re.split("[,;]", default)]
        found = re.findall(r"`(\w+)`", names)
        if len(values) != len(found):
            continue
        for name, value in zip(found, values, strict=True):
            if name in ("cache", "temperature"):
                continue
            read = None if value == "none" else yaml.safe_load(value)
            assert read == getattr(config, name), name
            checked += 1
    assert checked >= 12
    assert config.drawn_temperature == 0 and JudgeConfig(model="m", votes=2).drawn_temperature == 0.7


def test_every_measure_is_told() -> None:
    told = {name for row in table("How right is it?") for name in re.findall(r"`(\w+)`", row[0])}
    assert told == set(Agreement.__dataclass_fields__)


def test_numbers_and_rubrics() -> None:
    assert f"first {HOPELESS} replies" in PAGE
    for name, rubric in RUBRICS.items():
        assert f"`{name}` ({rubric.low} to {rubric.high}" in PAGE


def test_the_recipe_resolves_and_the_python_parses() -> None:
    (part,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S)
    whole: dict[str, Any] = {
        "method": "grpo",
        "model": {"path": "m"},
        "data": {"path": "d.jsonl"},
        "train": {"steps": 1},
    }
    assert resolve({**whole, **yaml.safe_load(part)}).stages[0].rewards[0].name == "judge"
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    ast.parse(code)


def test_flags_exist() -> None:
    names = (
        {leaf.name for leaf in judged_leaves()}
        | set(BuildConfig.model_fields)
        | {
            "left_out",
            "contests_only",
            "limit",
            "output",
            "summary",
            "reference",
            "resume",
            "judge.NAME",
        }
    )
    for flag in re.findall(r"--([a-z_.A-Z]+)", PAGE):
        assert flag in names or flag in ("data.columns.prompt.from", "data."), flag

"""The documentation is true: links lead somewhere, recipes resolve, tables and numbers are those of the code."""

from __future__ import annotations

import ast
import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from preftune.config import LossConfig, Recipe
from preftune.methods import BRADLEY_TERRY, KTO, METHODS, PREFERENCE_LOSSES, PRESETS, Objective, Preference
from preftune.recipes import resolve
from preftune.recipes.steps import STEPS

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
MADE = {"docs/images/report.png", "docs/gsm8k.md", "docs/results.md", "docs/benchmarks.md"}
"""Made by runs (`make demo`, `make results`, `make bench`); a checkout without them is still whole."""


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def anchors(text: str) -> set[str]:
    """GitHub's anchors of a page's headings."""
    out = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        out.add(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-"))
    return out


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        if there.relative_to(ROOT).as_posix() in MADE and not there.exists():
            continue
        assert there.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(there.read_text(encoding="utf-8")), f"{page.name}: {target}"


def test_every_page_is_in_the_index() -> None:
    index = read("docs/README.md")
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert name == "README.md" or f"({name})" in index, name


RIGHT: dict[str, Any] = {
    "method": "grpo", "model": {"path": "m"}, "data": {"path": "d.jsonl"}, "rewards": [{"name": "accuracy"}],
    "train": {"steps": 1},
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["docs/methods/grpo.md", "docs/methods/sft.md", "docs/methods/dpo.md", "docs/methods/kto.md",
     "docs/methods/reward.md", "docs/methods/ppo.md", "docs/methods/iterative-dpo.md", "docs/methods/rft.md",
     "docs/methods/human.md", "docs/recipes.md", "docs/sampling.md", "docs/competition.md"],
)  # fmt: skip
def test_recipes_and_parts_of_them_resolve(name: str) -> None:
    found = re.findall(r"^ *```yaml\n(.*?)^ *```", read(name), re.MULTILINE | re.DOTALL)
    assert found
    for block in found:
        part = yaml.safe_load(textwrap.dedent(block))
        whole = "stages" in part or {"method", "model"} <= set(part)
        pipeline = resolve(part if whole else {**RIGHT, **part})
        assert pipeline.stages[0].method in {**METHODS, **STEPS}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs/sampling.md"])
def test_python_is_python(name: str) -> None:
    found = re.findall(r"^ *```python\n(.*?)^ *```", read(name), re.MULTILINE | re.DOTALL)
    assert found
    for block in found:
        ast.parse(textwrap.dedent(block))


def test_flags_and_fields_exist() -> None:
    """`section.field` in a page is a field of the recipe."""
    sections = {name: field.annotation for name, field in Recipe.model_fields.items()}
    for page in PAGES:
        for section, field in re.findall(r"`(?:--)?(\w+)\.(\w+)", page.read_text(encoding="utf-8")):
            model = sections.get(section)
            if isinstance(model, type) and hasattr(model, "model_fields") and field not in ("py", "yaml", "jsonl"):
                assert field in model.model_fields, f"{page.name}: {section}.{field}"


def test_presets_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `([\w-]+)`(?: \(default\))? \|(.+)\|$", read("docs/methods/grpo.md"), re.MULTILINE)
    told = {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows if len(cells.split("|")) == 8}
    assert set(told) == set(PRESETS)

    def number(text: str) -> float:
        return float(text.strip())

    for name, (advantage, ratio, clip, aggregate, beta, also, _, _) in told.items():
        kind, _, bounds = clip.replace(",", "").partition(" ")
        low, high = (None, number(bounds.split()[-1])) if kind == "cispo" else map(number, bounds.split("/"))
        weight, _, kl = beta.partition(", ")
        more = {field: number(value) for field, value in re.findall(r"`(\w+)` ([\d.]+)", also)}
        said = Objective(advantage, ratio, kind, low, high, aggregate, number(weight), kl or "k3", **more)  # type: ignore[arg-type]
        assert said == PRESETS[name], name


def test_preference_losses_and_their_numbers_are_those_of_the_code() -> None:
    text = read("docs/methods/dpo.md").partition("## The losses")[2].partition("\n## ")[0]
    rows = [
        (name, cells.split("|")) for name, cells in re.findall(r"^\| `([\w-]+)`(?: \(default\))? \|(.+)\|$", text, re.M)
    ]
    references = {name: cells[-1].strip() for name, cells in rows if cells[-1].strip() in ("yes", "no")}
    assert references == {name: "yes" if loss.needs_reference else "no" for name, loss in PREFERENCE_LOSSES.items()}
    told = {name: cells for name, cells in rows if cells[-1].strip() not in ("yes", "no")}
    assert set(told) == set(PREFERENCE_LOSSES)
    for name, (beta, others, _) in told.items():
        found = {"beta": float(beta), **{key: float(value) for key, value in re.findall(r"`(\w+)` ([\d.]+)", others)}}
        loss = PREFERENCE_LOSSES[name]
        numbers = ("beta", "label_smoothing", "gamma_ratio", "odds_weight", "sft_weight")
        assert found == {key: getattr(loss, key) for key in numbers if getattr(loss, key)}, name


@pytest.mark.parametrize(("page", "loss"), [("kto", KTO), ("reward", BRADLEY_TERRY)], ids=["kto", "reward"])
def test_numbers_of_kto_and_reward_models_are_those_of_the_code(page: str, loss: Preference) -> None:
    rows = re.findall(
        r"^\| `loss\.(\w+)`(?:, `loss\.\w+`)? \| `?([\w.]+)`?(?:, [\d.]+)? \|", read(f"docs/methods/{page}.md"), re.M
    )
    assert rows
    for field, value in rows:
        found = getattr(loss, field) if field in ("beta", "center") else LossConfig.model_fields[field].default
        assert found == yaml.safe_load(value), field
        assert field in loss.fields


def test_rows_shown_are_json() -> None:
    for name in ("dpo", "kto", "reward"):
        lines = [line for block in blocks(read(f"docs/methods/{name}.md"), "jsonl") for line in block.splitlines()]
        assert lines
        for line in lines:
            row = json.loads(line)
            assert {"chosen", "rejected"} <= set(row) or {"prompt", "completion", "label"} == set(row)


def test_every_shipped_recipe_is_in_the_list() -> None:
    table = read("docs/recipes.md").partition("## Recipes that come with it")[2]
    assert {f"recipes/{name}" for name in re.findall(r"`([\w-]+\.yaml)`", table)} == {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "recipes").glob("*.yaml")
    }


def test_defaults_are_those_of_the_code() -> None:
    recipe = Recipe.model_validate({**RIGHT, "data": [RIGHT["data"]]})
    table = read("docs/methods/grpo.md").partition("## Defaults")[2].partition("##")[0]
    rows = re.findall(r"^\| `(\w+)\.(\w+)` \| `?([\w.\-]+)`? \|", table, re.MULTILINE)
    assert len(rows) >= 9
    for section, field, value in rows:
        found = getattr(getattr(recipe, section), field)
        if (section, field) == ("policy", "beta"):
            found = PRESETS["grpo"].beta
        assert yaml.safe_load(str(found).lower()) == yaml.safe_load(value) or float(found) == float(value), field


def test_defaults_of_ppo_are_those_of_the_code() -> None:
    recipe = resolve({**RIGHT, "method": "ppo"}).stages[0]
    table = read("docs/methods/ppo.md").partition("## Settings that matter")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)\.(\w+)` \| `?([\w.\-]+)`? \|", table, re.MULTILINE)
    assert len(rows) >= 10
    for section, field, value in rows:
        found = getattr(getattr(recipe, section), field)
        if section == "policy" and found is None:
            found = getattr(PRESETS["ppo"], field)
        told = value if value in ("true", "false") else float(value)
        assert str(found).lower() == told or found == told, f"{section}.{field}"


def test_every_method_is_told_apart() -> None:
    text = read("docs/choosing.md")
    for name in METHODS:
        assert re.search(rf"^\| \[`{name}`\]\(methods/[\w-]+\.md\) \|", text, re.M), name


def test_metrics_of_signals_and_losses_are_defined() -> None:
    """Every name under which the training code logs something stands in metrics.md."""
    text = read("docs/metrics.md")
    package = ROOT / "preftune"
    sources = [path for part in ("losses/*", "train/*", "rewards/critic*") for path in package.glob(f"{part}.py")]
    heads = "value|kl|reward|resample|sampler|collected|gmpo|critic|ratio|clip|diversity|length|tokens|rewards|logprobs"
    for source in sources:
        for name in re.findall(rf'"((?:{heads})/[a-z_0-9]+)"', source.read_text(encoding="utf-8")):
            assert f"`{name}`" in text, f"{source.name}: {name}"


def test_tolerances_are_those_of_the_certificate() -> None:
    from preftune.train import certificate

    text = read("docs/runs.md").partition("## The certificate")[2].partition("\n## ")[0]
    assert certificate.LOGPROB_TOLERANCE == 1e-4 and "max \\|Δ\\| ≤ 10⁻⁴" in text
    assert certificate.GRADIENT_TOLERANCE == 1e-5 and "relative L2 ≤ 10⁻⁵" in text
    assert certificate.BF16_FACTOR == 1.5 and "≤ 1.5 times" in text
    assert certificate.BF16_GRADIENT_TOLERANCE == 5e-2 and "≤ 5·10⁻²" in text
    assert certificate.BF16_SAMPLER_TOLERANCE == 0.5 and "≤ 0.5" in text
    assert certificate.MAX_TOKENS == 2048 and "2,048 tokens" in text


def test_fields_that_may_change_before_a_resume() -> None:
    from preftune.train.folder import FREE

    text = " ".join(read("docs/runs.md").partition("Free to")[2].partition("The result")[0].split())
    named = set(re.findall(r"`([a-z_.]+(?:\.\*)?)`", text))
    for field in named - {"timeout", "on_error", "isolate", "log.*"}:
        assert FREE.fullmatch(field), field
    for word in re.findall(r"[a-z_]{4,}", FREE.pattern):
        assert word in text.replace("reward's", "rewards"), word


def test_the_readme_names_every_part() -> None:
    table = read("README.md").partition("## What lies where")[2]
    for path in (ROOT / "preftune").iterdir():
        if path.name.startswith(("_", ".")) or path.name == "py.typed":
            continue
        name = path.name if path.suffix == ".py" else f"{path.name}/"
        assert name in table, path.name
    for name in ("recipes/", "examples/", "tests/", "benchmarks/", "docs/"):
        assert f"`{name}`" in table

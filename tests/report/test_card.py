"""The model card: front matter that the Hub can read, and text that can't change the page."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from preftune.report import write_model_card

sys.path.insert(0, str(Path(__file__).parent))
from make_run import make_run


def parts(folder: Path) -> tuple[dict[str, Any], str]:
    text = write_model_card(folder).read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def set_recipe(folder: Path, **changes: Any) -> None:
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**recipe, **changes}))


def test_card_of_a_full_model(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=10)
    (folder / "final").mkdir()
    set_recipe(folder, model={"path": "org/base-1B"}, data=[{"path": "org/questions"}, {"path": "data/train.jsonl"}])
    front, body = parts(folder)
    assert front == {
        "base_model": "org/base-1B",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["preftune", "grpo"],
        "datasets": ["org/questions"],
    }
    summary = json.loads((folder / "summary.json").read_text())
    after = summary["after"]["test"]["reward/accuracy"]["value"]
    assert f"| {after * 100:.1f} % (" in body
    assert "held-out rows rose from" in body
    assert "Passed in fp32: shared prompt vs plain log-probs 1.9e−06 (tolerance 1.0e−04);" in body
    assert "Try: harder prompts in `data`, or a larger `sampling.group_size` (now 8)." in body
    assert 'AutoModelForCausalLM.from_pretrained("final")' in body
    assert "peft" not in body
    assert "The answer is 85." in body
    assert "accuracy × 1.0" in body


def test_card_of_an_adapter(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=10)
    (folder / "final").mkdir()
    (folder / "final" / "adapter_config.json").write_text("{}")
    set_recipe(folder, model={"path": "org/base-1B", "lora": {"r": 8}})
    front, body = parts(folder)
    assert (front["library_name"], front["base_model_relation"]) == ("peft", "adapter")
    assert "lora" in front["tags"]
    assert 'base = AutoModelForCausalLM.from_pretrained("org/base-1B")' in body


def test_a_local_base_is_not_named_as_one_on_the_hub(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=5)
    (tmp_path / "runs" / "base").mkdir(parents=True)
    for path in ("/some/where/model", "./model", "stage:sft", str(tmp_path), "runs/base"):
        set_recipe(folder, model={"path": path})
        assert "base_model" not in parts(folder)[0]


def test_unfinished_run_has_a_card(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=10, finished=False)
    _, body = parts(folder)
    assert "Status: unfinished" in body
    assert "not its final result" in body
    assert "## Use" not in body


@pytest.mark.parametrize("text", ["x\n---\nlicense: mit", "a: [b", "'\"}", "!!python/object:os.system", "# <script>|"])
def test_hostile_names_stay_in_their_place(tmp_path: Path, text: str) -> None:
    folder = make_run(tmp_path / "run", steps=5)
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, "method": text, "name": text, "status": text}))
    whole = write_model_card(folder).read_text(encoding="utf-8")
    end = whole.index("\n---\n\n# ")
    front = yaml.safe_load(whole[4:end])
    assert set(front) == {"base_model", "base_model_relation", "library_name", "pipeline_tag", "tags"}
    assert front["tags"] == ["preftune", text]
    body = whole[end + 5 :]
    assert "<script>" not in body
    assert "\n---\n" not in body


def test_samples_can_not_end_their_block(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=5)
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    for row in rows:
        row["completion"] = "````\n# not a heading\n<script>alert(1)</script>\n`````"
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    body = parts(folder)[1]
    assert "``````text\n````\n# not a heading\n<script>alert(1)</script>\n`````\n``````" in body

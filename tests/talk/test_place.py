"""What MODEL_OR_RUN and --construct stand for, and what is said when they stand for nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from preftune.competition import Construct
from preftune.errors import UsageError
from preftune.recipes import dump, resolve
from preftune.recipes.yamltext import dump_yaml
from preftune.talk.construct import read_construct
from preftune.talk.place import Place, find

RECIPE: dict[str, Any] = {
    "method": "sft", "model": {"path": "m"}, "data": [{"path": "d.jsonl"}], "train": {"steps": 1},
}  # fmt: skip


def run(folder: Path, *, finished: bool = True, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(dump(resolve({**RECIPE, **changes}).stages[0]), encoding="utf-8")
    if finished:
        (folder / "final").mkdir()
        (folder / "final" / "config.json").write_text("{}")
    return folder


def stages(folder: Path, **finished: bool) -> Path:
    for name, done in finished.items():
        run(folder / name, finished=done, sampling={"stop": [name]})
    (folder / "pipeline.json").write_text(json.dumps({"name": "x", "stages": [*finished], "status": "running"}))
    return folder


def test_hub_ids_and_model_folders(tmp_path: Path) -> None:
    assert find("Qwen/Qwen3-0.6B") == Place("Qwen/Qwen3-0.6B")
    for name in ("config.json", "adapter_config.json"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text("{}")
        assert find(str(folder)) == Place(str(folder))


def test_a_run_and_its_final_folder_know_the_recipe(tmp_path: Path) -> None:
    home = run(tmp_path / "r", data=[{"path": "a", "system": "S"}, {"path": "b", "system": "S"}], competition={})
    place = find(str(home))
    assert (place.path, place.words, place.system) == (str(home / "final"), f"the run {home}", "S")
    assert place.competition is not None and place.competition.style == "pirate-knight-viking"
    same = find(str(home / "final"))
    assert (same.path, same.words, same.recipe) == (str(home / "final"), "", place.recipe)
    mixed = run(tmp_path / "mixed", data=[{"path": "a", "system": "S"}, {"path": "b"}])
    assert find(str(mixed)).system == "" and find(str(mixed)).competition is None


def test_of_several_stages_the_last(tmp_path: Path) -> None:
    place = find(str(stages(tmp_path / "p", sft=True, grpo=True)))
    assert place.path == str(tmp_path / "p" / "grpo" / "final")
    assert place.words == f"stage grpo, the last of 2 of the run {tmp_path / 'p'}"
    assert place.recipe is not None and place.recipe.sampling.stop == ["grpo"]
    with pytest.raises(UsageError, match=r"its last stage, grpo, has no final/ yet.*preftune chat .*q/sft"):
        find(str(stages(tmp_path / "q", sft=True, grpo=False)))
    (tmp_path / "q" / "pipeline.json").write_text("{}")
    with pytest.raises(UsageError, match=r"pipeline.json can't be read"):
        find(str(tmp_path / "q"))


def test_a_demo_keeps_its_recipe_beside_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo = run(tmp_path / "runs" / "demo", finished=False, output="runs/demo/grpo")
    run(demo / "grpo")
    monkeypatch.chdir(tmp_path)
    assert find("runs/demo").path == "runs/demo/grpo/final"
    monkeypatch.chdir("/")  # and from elsewhere
    assert find(str(demo)).path == str(demo / "grpo" / "final")


def test_what_holds_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no model"):
        find(str(tmp_path / "empty"))
    with pytest.raises(UsageError, match=r"has no final/ yet: its run has not come to its end; go on with --resume"):
        find(str(run(tmp_path / "young", finished=False, output=str(tmp_path / "young"))))


def test_a_recipe_of_another_time_is_left_aside_and_named(tmp_path: Path) -> None:
    home = run(tmp_path / "old")
    (home / "recipe.yaml").write_text("method: sft\nodd: 1\n")
    place = find(str(home))
    assert place.recipe is None
    assert f"{home}/recipe.yaml" in place.problem and "odd: unknown key" in place.problem


# --- constructs -----------------------------------------------------------------------------------------------


def test_built_in_constructs_and_files(tmp_path: Path) -> None:
    assert read_construct("court").names == ("prosecutor", "defender")
    own = {"personas": [{"name": "cat", "prompt": "Purr."}, {"name": "dog", "prompt": "Bark."}], "root": "duel"}
    path = tmp_path / "duel.yaml"
    for content in (own, {"competition": own}, {**RECIPE, "competition": own}):
        path.write_text(dump_yaml(content), encoding="utf-8")
        assert read_construct(str(path)).elements == ("duel", "cat", "dog", "result", "winner")
    for empty in ("", "competition:\n"):
        path.write_text(empty)
        assert read_construct(str(path)) == Construct.of()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("rot: x\n", ":1: rot: unknown key; did you mean root?"),
        ("style: court\nroot: 5\n", ":2: root: got 5; expected text, or null"),
        ("competition:\n  root: a\n  style: tribunal\n", ":3: competition.style: got 'tribunal'; expected one of"),
        ("root: 1 2\n", ":1: root: '1 2' can't be a tag"),
        ("personas:\n- {name: a, prompt: b}\n", ":1: personas: got 1; a competition has two to 5"),
        ("personas:\n- {name: a}\n- {name: b, prompt: c}\n", ":2: personas.0.prompt: "),
        ("root: winner\n", ": competition: the tags 'winner' and 'winner' can't be told apart"),
        ("- a\n", ":1: the file: got ['a']; expected "),
        ("method: sft\n", "this recipe has no section competition"),
        ("a: [\n", ":2: not valid YAML"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(content)
    with pytest.raises(UsageError) as error:
        read_construct(str(path))
    assert str(path) in str(error.value) and message in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("strategy", "did you mean strategies?"),
        ("xyz", "there are pirate-knight-viking, court, strategies. One of your own"),
        ("nothing.yaml", "there is no such file"),
    ],
)
def test_no_such_construct(name: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        read_construct(name)
    assert message in str(error.value)

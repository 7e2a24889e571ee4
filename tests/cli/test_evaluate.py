"""The command `preftune evaluate`: its short flags, its file, and its errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from preftune.cli.main import main
from preftune.config import SourceConfig
from preftune.evaluate import EvaluateConfig
from preftune.recipes.schema import leaves
from tests import tiny


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[EvaluateConfig, dict[str, Any]]]:
    """What the command hands on, in place of asking anybody."""
    from preftune.cli import evaluate as command
    from preftune.evaluate import run

    seen: list[tuple[EvaluateConfig, dict[str, Any]]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        run, "evaluate", lambda config, output, **more: seen.append((config, {"output": output, **more}))
    )
    monkeypatch.setattr(command, "_show", lambda config, result: None)
    return seen


def test_models_and_tasks_by_flags(asked: list[tuple[EvaluateConfig, dict[str, Any]]]) -> None:
    flags = ["--models", "org/a", "--models.1=runs/b", "--tasks", "choices,instructions", "--choices.limit", "5"]
    assert main(["evaluate", *flags, "--instructions.unknown=skip", "--temperature", "0.5", "--output", "out"]) == 0
    ((config, more),) = asked
    assert [model.path for model in config.models] == ["org/a", "runs/b"]
    assert [(task.title, task.task, task.limit) for task in config.tasks] == [
        ("choices", "choices", 5), ("instructions", "instructions", None),
    ]  # fmt: skip
    assert config.tasks[1].unknown == "skip" and config.temperature == 0.5
    assert more == {"output": Path("out"), "resume": False, "base_dir": Path.cwd()}


def test_without_tasks_both_are_measured(asked: list[tuple[EvaluateConfig, dict[str, Any]]]) -> None:
    assert main(["evaluate", "--models", "a"]) == 0
    assert main(["evaluate", "--models", "a", "--choices.limit", "3"]) == 0
    assert main(["evaluate", "--models", "a", "--tasks", "choices"]) == 0
    assert [[task.task for task in config.tasks] for config, _ in asked] == [
        ["instructions", "choices"], ["instructions", "choices"], ["choices"],
    ]  # fmt: skip
    assert asked[1][0].tasks[1].limit == 3


def test_a_file_with_flags_over_it(asked: list[tuple[EvaluateConfig, dict[str, Any]]], tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(
        "models:\n  - {name: base, path: org/a}\n  - {name: api, endpoint: {model: gpt-4o, concurrency: 2}}\n"
        "tasks:\n  - {name: arc, task: choices, path: allenai/ai2_arc, subset: ARC-Easy, split: test}\n"
    )
    flags = ["--models.base.dtype", "bfloat16", "--models.api.endpoint.timeout=9", "--tasks.arc.limit", "7"]
    assert main(["evaluate", "models.yaml", *flags, "--max_tokens", "99"]) == 0
    config = asked[0][0]
    assert config.models[0].dtype == "bfloat16" and config.models[1].endpoint is not None
    assert (config.models[1].endpoint.timeout, config.models[1].endpoint.concurrency) == (9.0, 2)
    assert (config.tasks[0].limit, config.tasks[0].source.name, config.max_tokens) == (7, "ARC-Easy", 99)


def test_every_field_has_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    text = capsys.readouterr().out
    for leaf in leaves(EvaluateConfig):
        name = leaf.name.replace("*", "NAME")
        if name.split(".")[0] in ("models", "tasks") and "." in name:
            head, _, rest = name.partition(".")
            name = f"{head}.NAME.{rest}"
        assert f"--{name} " in text, name
    assert SourceConfig.model_fields.keys() - {"format", "responses", "contest", "weight"} - {"name", "chat"} <= {
        leaf.path[-1] for leaf in leaves(EvaluateConfig)
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "models: missing"),
        (["--models"], "--models: a value is missing"),
        (["--models", "a", "--models.2", "b"], "--models.2: the models are numbered from 0, without gaps"),
        (["--models", "a", "--tasks", "choises"], "one of instructions, choices"),
        (["--models", "a", "--choices.limt", "3"], "did you mean tasks.1.limit?"),
        (["--models", "a", "--temprature", "3"], "did you mean --temperature?"),
        (["--models", "a", "--choices.limit", "many"], "expected a whole number, at least 1"),
        (["none.yaml"], "none.yaml: no such file of settings"),
        (["--models", "a", "--resume", "--output", "nothing"], "there is nothing in nothing to go on with"),
    ],
)
def test_slips_are_named(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *arguments]) == 2
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err


def test_a_folder_that_holds_something_is_left_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "mine.txt").write_text("mine")
    assert main(["evaluate", "--models", "a"]) == 2
    assert "go on there with --resume" in capsys.readouterr().err
    assert main(["evaluate", "--models", "a", "--resume"]) == 2
    assert "is no folder of preftune evaluate" in capsys.readouterr().err
    assert (tmp_path / "evaluation" / "mine.txt").read_text() == "mine"


def test_it_prints_the_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "small", max_position_embeddings=512)
    other = tiny.save(tmp_path / "run" / "final", seed=1, max_position_embeddings=512)
    out = tmp_path / "out"
    flags = [
        "--choices.limit",
        "6",
        "--instructions.limit",
        "2",
        "--instructions.max_tokens",
        "5",
        "--output",
        str(out),
    ]
    assert main(["evaluate", "--models", str(model), "--models.1", str(other.parent), *flags]) == 0
    shown = capsys.readouterr().out
    assert "against small" in shown and " run " in shown and f"report: {out}/report.html" in shown
    summary = json.loads((out / "summary.json").read_text())
    assert summary["tasks"]["choices"]["models"]["run"]["metrics"]["choices/accuracy"]["n"] == 6
    assert summary["settings"]["models"][1]["path"] == str(other.parent)

"""Every recipe field is a flag, typed, with help; flags reach the resolved recipe; slips are named."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml

from preftune.cli import run
from preftune.cli.main import main
from preftune.cli.parser import flag_name, help_text
from preftune.config import Pipeline, Recipe
from preftune.recipes.schema import Leaf, is_dict, is_list, item_of, leaves, model_of, without_none

LEAVES = list(leaves(Recipe))
KEPT = [leaf for leaf in LEAVES if leaf.name != "repeat"]
"""All fields but the one that is gone once the recipe is resolved."""

BASE = [
    "--model.path=some/model", "--data.path=rows.jsonl", "--rewards.name=my.module:reward", "--train.steps=3",
]  # fmt: skip
FREE_VALUES = {
    "method": "sft",
    "data": "[{path: other.jsonl}, {path: more.jsonl, weight: 2}]",
    "data.columns": "{answer: {from: solution}}",
    "eval.data.columns": "{answer: {from: solution}}",
    "eval.test.columns": "{answer: {from: solution}}",
    "rewards": "[{name: exact}]",
    "rewards.name": "exact",
    "policy.preset": "dr-grpo",
    "eval.data": "[{path: v.jsonl}]",
    "eval.test": "[{path: t.jsonl}]",
    "eval.benchmarks": "[{task: choices, limit: 5}]",
    "eval.benchmarks.columns": "{answer: {from: solution}}",
    "eval.benchmarks.by": "letter",
    "model.lora": "{r: 5}",
    "log.sinks": "[wandb]",
    **{f"{rows}.responses": "{from: answers}" for rows in ("data", "eval.data", "eval.test")},
    **{f"{rows}.responses.also": "[{column: best, score: 2}]" for rows in ("data", "eval.data", "eval.test")},
    **{f"{rows}.contest": "{size: 3}" for rows in ("data", "eval.data", "eval.test")},
    **{f"{rows}.contest.rubric": "olympiad" for rows in ("data", "eval.data", "eval.test")},
    "loss.name": "ipo",
    "loss.desirable_weight": "auto",
    "loss.label_smoothing": "0.2",
    "value.lora": "{r: 5}",
    "gmpo.critic.lora": "{r: 5}",
    "gmpo.temperature": "0.5",
    "gmpo.max_weight": "7.5",
    "train.until": "{metric: loss, at_most: 0.5}",
    "competition": "{style: court}",
    "competition.personas": "[{name: a, prompt: p}, {name: b, prompt: q}]",
}
"""Values for fields whose text is bound by more than their type."""


READ_BY = {
    "loss.margin": "reward", "loss.center": "reward", "train.normalize": "reward", "loss.desirable_weight": "kto",
    "loss.undesirable_weight": "kto", "loss.label_threshold": "kto", "train.reference_logprobs": "dpo",
    "train.reference_cache": "dpo", "model.reference_path": "dpo", "collect.keep": "rft", "collect.min_score": "rft",
    "collect.spread_only": "rft", "collect.trace": "rft", "loss.p_max": "reward", "loss.g_max": "reward",
    "loss.generator": "reward",
}  # fmt: skip
"""The method that reads a field, where that of its section (below) does not; grpo reads the others."""
SECTION_OF = {"loss": "dpo", "value": "ppo", "collect": "iterative-dpo", "human": "human", "gmpo": "gmpo"}


def _companions(leaf: Leaf) -> list[str]:
    """Flags without which the field would be refused: as unread, or for want of a neighbour."""
    method = READ_BY.get(leaf.name, SECTION_OF.get(leaf.path[0], "grpo"))
    flags = [] if leaf.name == "method" else [f"--method={method}"]
    base = BASE if method != "reward" else [flag for flag in BASE if "rewards" not in flag]
    flags += [flag for flag in base if not flag.startswith((f"--{leaf.name}=", f"--{leaf.name}."))]
    flags += {"loss.gamma_ratio": ["--loss.name=simpo"], "loss.odds_weight": ["--loss.name=orpo"]}.get(leaf.name, [])
    if leaf.name in {"eval.every", "eval.best", "eval.patience"}:
        flags += ["--eval.holdout=5", *(["--eval.every=2"] if leaf.name == "eval.patience" else [])]
    if leaf.path[:2] == ("eval", "benchmarks") and len(leaf.path) > 2 and leaf.path[2] != "task":
        flags.append(f"--eval.benchmarks.task={'instructions' if leaf.path[2] == 'unknown' else 'choices'}")
        flags += ["--eval.benchmarks.normalize=pmi"] if leaf.path[2] == "unconditional" else []
    if leaf.path[:2] in {("eval", "data"), ("eval", "test")} and len(leaf.path) > 2 and leaf.path[2] != "path":
        flags.append(f"--eval.{leaf.path[1]}.path=v.jsonl")
    if leaf.path[-2:-1] == ("*",) and leaf.path[-1] not in {"from", "template"}:
        flags.append(f"--{'.'.join(leaf.path[:-2])}.NAME.from=a")
    if leaf.path[:2] == ("train", "until") and leaf.name != "train.until":
        flags += [] if leaf.path[-1] == "metric" else ["--train.until.metric=reward/mean"]
        flags += [] if leaf.path[-1].startswith("at_") else ["--train.until.at_least=1"]
    if leaf.path[:2] == ("competition", "personas") and len(leaf.path) > 2:  # a contest has two at least
        both = [f"--competition.personas.{n}.{key}={key}{n}" for n in (0, 1) for key in ("name", "prompt")]
        flags += [flag for flag in both if not flag.startswith(f"--competition.personas.0.{leaf.path[-1]}=")]
    if leaf.path[-2:] == ("contest", "form") or leaf.name == "collect.trace":
        flags.append("--competition.style=court")
    if leaf.name in {"loss.g_max", "loss.generator"}:
        flags.append("--loss.p_max=0.9")
    if leaf.name == "collect.held_out":
        flags.append("--eval.holdout=5")
    if leaf.name == "model.reference":
        flags.append("--model.on_adapter=continue")
    if leaf.name == "policy.kl_target":
        flags += ["--policy.kl=reward", "--policy.beta=0.1"]
    if leaf.path[0] == "gmpo" or leaf.path[:2] == ("value", "lora"):
        flags.append("--model.lora={}")  # a second adapter stands beside the policy's
    if "responses" in leaf.path[:-1]:
        flags += _beside_a_response(leaf)
    return flags


def _beside_a_response(leaf: Leaf) -> list[str]:
    """What else a rule for responses must say: where they are, and one scale for all."""
    at = leaf.path.index("responses") + 1
    rule, key = ".".join(leaf.path[:at]), leaf.path[-1]
    flags = [] if leaf.path[at:] == ("from",) else [f"--{rule}.from=answers"]
    if leaf.path[at] == "also":
        scale = "rank" if key == "rank" else "score"
        flags.append(f"--{rule}.{scale}=grade")
        if len(leaf.path) > at + 1:
            flags += [] if key == "column" else [f"--{rule}.also.column=best"]
            flags += [] if key == scale else [f"--{rule}.also.{scale}=2"]
    return flags


@pytest.fixture
def pipelines(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Pipeline, dict[str, Any]]]:
    """What the commands hand to training, in place of training."""
    seen: list[tuple[Pipeline, dict[str, Any]]] = []

    def record(pipeline: Pipeline, **kwargs: Any) -> None:
        seen.append((pipeline, kwargs))

    monkeypatch.setitem(sys.modules, "preftune.pipeline", SimpleNamespace(run_pipeline=record))
    return seen


def _other_than_default(leaf: Leaf) -> str:
    """A valid value, as a flag's text, that is not the default."""
    if leaf.name in FREE_VALUES:
        return FREE_VALUES[leaf.name]
    annotation, _ = without_none(leaf.info.annotation)
    default = None if leaf.info.is_required() else leaf.info.get_default(call_default_factory=True, validated_data={})
    if get_origin(annotation) is Literal:
        return str(next(choice for choice in get_args(annotation) if choice != default))
    if annotation is bool:
        return str(not default).lower()
    if annotation is int:
        return str((default or 0) + 3)
    if annotation is float:
        return "0.5" if default != 0.5 else "0.25"
    if is_list(annotation):
        return "[[a, b]]" if get_origin(item_of(annotation)) is tuple else "[x, y]"
    if is_dict(annotation):
        return "{k: 1}"
    return "something"


def _found(recipe: Recipe, leaf: Leaf) -> Any:
    here: Any = recipe
    for part in leaf.path:
        if isinstance(here, list):
            here = here[0]
        if isinstance(here, dict):
            here = here["NAME"]
            if part == "*":
                continue
        renamed = {"ColumnRule": "source", "ResponsesRule": "column"}
        here = getattr(here, renamed[type(here).__name__] if part == "from" else part)
    return here


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.model_dump(by_alias=True, exclude_defaults=True) if hasattr(value, "model_dump") else value


@pytest.mark.parametrize("leaf", KEPT, ids=lambda leaf: leaf.name)
def test_every_field_is_set_by_its_flag(leaf: Leaf, pipelines: list[tuple[Pipeline, dict[str, Any]]]) -> None:
    text = _other_than_default(leaf)
    assert run.execute([*_companions(leaf), f"--{flag_name(leaf)}", text]) == 0
    recipe = pipelines[0][0].stages[0]
    found = _plain(_found(recipe, leaf))
    assert found == (text if isinstance(found, str) else yaml.safe_load(text))
    if not leaf.info.is_required():
        assert found != _plain(leaf.info.get_default(call_default_factory=True, validated_data={}))


def test_repeat_becomes_stages(pipelines: list[tuple[Pipeline, dict[str, Any]]]) -> None:
    assert run.execute(["--method=rft", *BASE, "--repeat", "3", "--name", "mine"]) == 0
    stages = pipelines[0][0].stages
    assert [(s.name, s.repeat, s.model.path) for s in stages] == [
        ("round-1", 1, "some/model"), ("round-2", 1, "stage:round-1"), ("round-3", 1, "stage:round-2"),
    ]  # fmt: skip
    assert pipelines[0][0].name == "mine"


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.name)
def test_every_flag_has_help(leaf: Leaf) -> None:
    assert leaf.info.description, f"{leaf.name} has no description"
    text = help_text(leaf)
    assert leaf.info.description in text
    assert "required" in text or "default " in text


def test_leaves_cover_the_models() -> None:
    names = {leaf.name for leaf in LEAVES}
    assert {"seed", "model.lora", "model.lora.r", "data.columns.*.from", "rewards.args", "eval.test"} <= names
    assert "train" not in names
    for section, info in Recipe.model_fields.items():
        inner = model_of(info.annotation)
        for field in inner.model_fields if inner else ():
            name = f"{section}.{field}"
            assert name in names or any(other.startswith(f"{name}.") for other in names), name


def test_bare_switches_do_not_swallow_the_recipe(
    tmp_path: Path, pipelines: list[tuple[Pipeline, dict[str, Any]]]
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("method: sft\nmodel: {path: m}\ndata: {path: d}\ntrain: {steps: 1}\n")
    assert run.execute(["--model.gradient_checkpointing", "--resume", str(path)]) == 0
    assert run.execute(["--log.stop_on_collapse", "no", "--dry-run", str(path), "--rewards.0.name=m:f"]) == 0
    assert run.execute([str(path), "--resume", "auto", "--output", str(tmp_path)]) == 0
    assert run.execute([str(path), "--resume", "auto", "--output", str(tmp_path / "new")]) == 0
    first, second, third, fourth = pipelines
    assert first[0].stages[0].model.gradient_checkpointing is True
    assert first[1] == {"resume": True, "dry_run": False, "base_dir": Path.cwd()}
    assert second[0].stages[0].log.stop_on_collapse is False
    assert second[1] == {"resume": False, "dry_run": True, "base_dir": Path.cwd()}
    assert third[1]["resume"] is True  # auto: the folder is there
    assert fourth[1]["resume"] is False


def test_values_may_start_with_a_dash(pipelines: list[tuple[Pipeline, dict[str, Any]]]) -> None:
    assert run.execute(["--method", "grpo", *BASE, "--rewards.0.weight", "-2e-1", "--tokens.chat_template=--x--"]) == 0
    recipe = pipelines[0][0].stages[0]
    assert recipe.rewards[0].weight == -0.2
    assert recipe.tokens.chat_template == "--x--"


def test_stage_flags(tmp_path: Path, pipelines: list[tuple[Pipeline, dict[str, Any]]]) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "model: {path: m}\ndata: {path: d}\ntrain: {steps: 1}\nrewards: [{name: exact}]\n"
        "stages:\n- {name: warm, method: sft}\n- {name: rl, method: grpo, model: {path: 'stage:warm'}}\n"
    )
    flags = ["--warm.train.steps", "5", "--rl.rewards.0.weight=3", "--train.batch_size", "2"]
    assert run.execute([*flags, str(path)], method="grpo") == 0
    warm, rl = pipelines[0][0].stages
    assert (warm.train.steps, rl.train.steps) == (5, 1)
    assert (warm.rewards[0].weight, rl.rewards[0].weight) == (1.0, 3.0)
    assert (warm.train.batch_size, rl.train.batch_size) == (2, 2)


def _fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["grpo", "--train.lerning_rate", "1"],
            "--train.lerning_rate: no such setting; did you mean train.learning_rate?",
        ),
        (["grpo", "--learning_rate", "1"], "--learning_rate: no such flag; did you mean --train.learning_rate?"),
        (["grpo", "--warmup_steps", "1"], "did you mean --value.warmup_steps?"),
        (["grpo", "--dryrun"], "--dryrun: no such flag; did you mean --dry-run?"),
        (["grpo", "--qqqq"], "--qqqq: no such flag; preftune grpo --help lists all"),
        (["grpo", "--log.stop_on_colapse", "r.yaml"], "did you mean log.stop_on_collapse?"),
        (["grpo", "--train.steps"], "--train.steps: a value is missing (N)"),
        (["grpo", "--train.steps", "ten"], "--train.steps: got 'ten'; expected a whole number, at least 1"),
        (["grpo", "--train.steps.x", "1"], "--train.steps.x: train.steps is a value"),
        (["grpo", "a.yaml", "b.yaml"], "unrecognized arguments: b.yaml"),
        (["grpo", "none.yaml"], "recipe none.yaml does not exist"),
        (["grpo"], "preftune grpo: name a recipe; `preftune init grpo > recipe.yaml` writes one"),
        (["run"], "preftune run: name a recipe"),
        (["sft", "--model.path", "m"], "data: missing"),
        (["grop", "r.yaml"], "'grop' is no command; did you mean preftune grpo?"),
        (["r.yaml"], "r.yaml is no command; did you mean preftune run r.yaml?"),
        (["--seed", "1"], "--seed: flags come after the command"),
        (["init", "gropo"], "no method is named 'gropo'; did you mean grpo?"),
        (["report", "no/such/folder"], "no/such/folder is no folder"),
        (["merge", "one"], "the following arguments are required: OUT"),
        (["demo", "zzz"], "invalid choice: 'zzz'"),
    ],
)
def test_slips_are_named(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert message in _fails(capsys, *arguments)


def test_a_recipe_for_another_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("method: sft\nmodel: {path: m}\ndata: {path: d}\ntrain: {steps: 1}\n")
    message = _fails(capsys, "grpo", str(path))
    assert f"{path} is a recipe for sft, not for grpo; use preftune run {path}" in message
    assert "for grpo, not for sft" in _fails(
        capsys, "sft", "--method=grpo", "--model.path=m", "--data.path=d", "--train.steps=1", "--rewards.0.name=exact"
    )

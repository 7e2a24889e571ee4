"""Recipes: reading, stages, overrides, errors, and writing back what was read."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.config import Recipe
from preftune.errors import UsageError
from preftune.methods import METHODS
from preftune.recipes import dump, load_recipe, resolve
from preftune.recipes.schema import leaves
from preftune.recipes.yamltext import dump_yaml, parse

ROOT = Path(__file__).parent.parent
SMALL: dict[str, Any] = {
    "method": "sft",
    "model": {"path": "some/model"},
    "data": {"path": "rows.jsonl"},
    "train": {"steps": 3},
}
STAGED: dict[str, Any] = {
    "name": "both",
    "model": {"path": "some/model"},
    "data": {"path": "rows.jsonl"},
    "train": {"learning_rate": 1e-3, "epochs": 2, "batch_size": 4},
    "tokens": {"chat_template_kwargs": {"a": 1, "b": 2}},
    "stages": [
        {"name": "warm", "method": "sft", "train": {"steps": 3}, "tokens": {"chat_template_kwargs": {"b": 3}}},
        {
            "name": "rl",
            "method": "grpo",
            "model": {"path": "stage:warm"},
            "rewards": [{"name": "accuracy"}, {"name": "exact", "weight": 0.5}],
            "data": [{"path": "a.jsonl"}, {"path": "b.jsonl"}],
            "train": {"learning_rate": 1e-5},
        },
    ],
}


def _torture() -> Any:
    spec = importlib.util.spec_from_file_location("torture_recipes", ROOT / "tests" / "torture" / "recipes.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["torture_recipes"] = module
    spec.loader.exec_module(module)
    return module


def error_of(raw: Any, overrides: dict[str, Any] | None = None, **kwargs: Any) -> str:
    with pytest.raises(UsageError) as caught:
        resolve(copy.deepcopy(raw), overrides, **kwargs)
    return str(caught.value)


def file_error(tmp_path: Path, text: str, overrides: dict[str, Any] | None = None) -> str:
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        load_recipe(path, overrides)
    return str(caught.value).replace(str(path), "r.yaml")


# ---- reading YAML


def test_scalars_follow_yaml_1_2() -> None:
    text = (
        "a: 1e-5\nb: no\nc: 2024-01-02\nd: 1:30\ne: true\nf: ~\ng: 010\nh: 0x10\ni: -.5\nj: on\nk:\nl: '1'\nm: 1_000\n"
    )
    value, _ = parse(text, "r.yaml")
    assert value == {
        "a": 1e-5,
        "b": "no",
        "c": "2024-01-02",
        "d": "1:30",
        "e": True,
        "f": None,
        "g": 10,
        "h": 16,
        "i": -0.5,
        "j": "on",
        "k": None,
        "l": "1",
        "m": "1_000",
    }


def test_lines_of_keys_and_items() -> None:
    _, lines = parse("a:\n  b: 1\nc:\n  - d: 2\n  - 3\n", "r.yaml")
    assert lines[("a",)] == 1
    assert lines[("a", "b")] == 2
    assert lines[("c", 0, "d")] == 4
    assert lines[("c", 1)] == 5


def test_anchors_and_merge_keys_work() -> None:
    value, _ = parse("a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}\n", "r.yaml")
    assert value == {"a": {"p": 1, "q": 2}, "b": {"p": 1, "q": 3}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "r.yaml:4: b.c is given twice (first on line 3)"),
        ("a: [1\nb: 2\n", "r.yaml:2: not valid YAML"),
        ("a: 1\n\tb: 2\n", "r.yaml:2: not valid YAML"),
        ("a: !!python/object:os.system x\n", "r.yaml:1: not valid YAML"),
        ("a: 1\n---\nb: 2\n", "r.yaml:2: not valid YAML"),
        ("? [1, 2]\n: x\n", "r.yaml:1: a key must be text"),
        ("1: x\n", "r.yaml:1: the key 1 must be text; write it in quotes"),
        ("a: &x [*x]\n", "r.yaml:1: an alias (*name) holds itself"),
        ("a: *missing\n", "r.yaml:1: not valid YAML"),
        ('a: !!int "x"\n', "r.yaml: a value can't be read"),
        ("a: \x01\n", "r.yaml: not text"),
        ("[1, 2]\n", "r.yaml:1: a recipe is a mapping (name: value), not list"),
        ("just text\n", "a recipe is a mapping (name: value), not str"),
        ("# nothing\n", "recipe r.yaml is empty; `preftune init grpo` prints one to start from"),
        ("a: " + "[" * 3000, "r.yaml"),
    ],
)
def test_bad_yaml_names_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    assert message in file_error(tmp_path, text)


def test_aliases_that_multiply_are_refused() -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(UsageError, match="more than 100000 values"):
        parse("\n".join(rows), "r.yaml")


def test_missing_folder_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.yaml does not exist; `preftune init grpo"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="is a folder"):
        load_recipe(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(UsageError, match=r"not UTF-8 text \(byte 3\)"):
        load_recipe(tmp_path / "b.yaml")


# ---- one recipe


def test_a_plain_recipe_is_one_stage() -> None:
    pipeline = resolve({**SMALL, "name": "mine", "output": "out/x"})
    (stage,) = pipeline.stages
    assert (pipeline.name, pipeline.output, stage.name, stage.output) == ("mine", "out/x", "mine", "out/x")
    assert stage.data[0].path == "rows.jsonl"
    assert stage.train.steps == 3
    assert stage.train.learning_rate == 1e-5


def test_rewards_that_come_as_functions_need_no_name() -> None:
    (stage,) = resolve({**SMALL, "method": "grpo"}, functions=[lambda prompts, completions: [0.0]]).stages
    assert stage.rewards == []


def test_the_callers_dict_is_left_alone() -> None:
    raw = copy.deepcopy(STAGED)
    resolve(raw, {"train.steps": "9", "rl.data.0.path": "z"})
    assert raw == STAGED


def test_empty_sections_mean_their_defaults() -> None:
    raw = {**SMALL, "sampling": None, "rewards": None, "log": None}
    assert resolve(raw) == resolve(SMALL)


def test_numbers_in_quotes_and_exponents(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("method: sft\nmodel: {path: m}\ndata: {path: d}\ntrain: {steps: '7', learning_rate: 2e-5}\n")
    train = load_recipe(path).stages[0].train
    assert (train.steps, train.learning_rate) == (7, 2e-5)


def test_method_for_a_recipe_that_names_none(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("model: {path: m}\ndata: {path: d}\ntrain: {steps: 1}\n")
    assert load_recipe(path, method="sft").stages[0].method == "sft"
    with pytest.raises(UsageError, match="method: missing"):
        load_recipe(path)


# ---- stages


def test_stages_merge_over_the_top_level() -> None:
    pipeline = resolve(STAGED)
    warm, rl = pipeline.stages
    assert (pipeline.name, warm.name, rl.name) == ("both", "warm", "rl")
    # mappings merge key by key; a stage's steps take the place of the recipe's epochs, as both exclude each other
    assert warm.tokens.chat_template_kwargs == {"a": 1, "b": 3}
    assert (warm.train.steps, warm.train.epochs, warm.train.learning_rate, warm.train.batch_size) == (3, None, 1e-3, 4)
    assert (rl.train.steps, rl.train.epochs, rl.train.learning_rate, rl.train.batch_size) == (None, 2, 1e-5, 4)
    # lists are replaced
    assert [source.path for source in warm.data] == ["rows.jsonl"]
    assert [source.path for source in rl.data] == ["a.jsonl", "b.jsonl"]
    assert rl.model.path == "stage:warm"


def test_null_in_a_stage_takes_an_inherited_section_away() -> None:
    raw = {**STAGED, "model": {"path": "m", "lora": {"r": 4}}}
    raw["stages"] = [{**raw["stages"][0], "model": {"lora": None}}, raw["stages"][1]]
    warm, rl = resolve(raw).stages
    assert warm.model.lora is None
    assert rl.model.lora is not None and rl.model.lora.r == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "rl"}, "two stages are named 'rl'"),
        ({"name": "train"}, "'train' is a section's name"),
        ({"name": "a.b"}, "can't stand in a flag"),
        ({"name": "a b"}, "a name becomes a folder"),
        ({"name": 3}, "each stage is a mapping with a name of its own"),
        ({"output": "x"}, "set output for the whole recipe"),
        ({"model": {"path": "stage:rl"}}, "stage:rl names no earlier stage; there is no earlier stage"),
    ],
)
def test_wrong_stages(change: dict[str, Any], message: str) -> None:
    raw = {**STAGED, "stages": [{**STAGED["stages"][0], **change}, STAGED["stages"][1]]}
    assert message in error_of(raw)


def test_a_stage_reference_names_the_nearest_earlier_stage() -> None:
    raw = copy.deepcopy(STAGED)
    raw["stages"][1]["model"]["path"] = "stage:wram"
    assert "stages.rl.model.path: stage:wram names no earlier stage; did you mean stage:warm?" in error_of(raw)


def test_on_adapter_is_asked_for_before_the_first_stage_runs() -> None:
    raw = copy.deepcopy(STAGED)
    raw["stages"][0]["model"] = {"lora": {}}
    assert "model.on_adapter: stage warm ends in an adapter" in error_of(raw)
    raw["stages"][1]["model"]["on_adapter"] = "merge"
    assert resolve(raw).stages[1].model.on_adapter == "merge"
    raw["stages"][0]["model"] = {}
    assert "stage warm ends in a whole model, not an adapter" in error_of(raw)


# ---- rounds

ROUNDS: dict[str, Any] = {
    "name": "whole",
    "model": {"path": "some/model"},
    "data": {"path": "rows.jsonl"},
    "train": {"steps": 3},
    "stages": [
        {"name": "rm", "method": "reward"},
        {
            "name": "dpo", "method": "iterative-dpo", "repeat": 3,
            "rewards": [{"name": "reward-model", "args": {"path": "stage:rm"}}],
        },
    ],
}  # fmt: skip
LORA: dict[str, Any] = {"path": "some/model", "lora": {"r": 4}}


def _models(raw: dict[str, Any], *fields: str) -> list[tuple[Any, ...]]:
    return [tuple(getattr(stage.model, field) for field in fields) for stage in resolve(raw).stages]


def test_a_repeated_recipe_becomes_rounds_of_one_folder() -> None:
    raw = {**SMALL, "method": "rft", "rewards": [{"name": "exact"}], "name": "mine", "output": "there", "repeat": 3}
    pipeline = resolve(raw)
    assert (pipeline.name, pipeline.output) == ("mine", "there")
    assert [(s.name, s.output, s.repeat, s.model.path) for s in pipeline.stages] == [
        ("round-1", None, 1, "some/model"),
        ("round-2", None, 1, "stage:round-1"),
        ("round-3", None, 1, "stage:round-2"),
    ]
    assert len({(s.seed, s.eval, s.train, s.sampling) for s in map(_frozen, pipeline.stages)}) == 1
    assert [stage.name for stage in resolve({**raw, "repeat": 1}).stages] == ["mine"]


def _frozen(recipe: Recipe) -> Any:
    return type("R", (), {name: str(getattr(recipe, name)) for name in ("seed", "eval", "train", "sampling")})


def test_a_repeated_stage_becomes_stages_and_a_reference_to_it_means_its_last_round() -> None:
    raw = copy.deepcopy(ROUNDS)
    raw["stages"][1:1] = [{"name": "sft", "method": "sft", "repeat": 2}]
    raw["stages"][2]["model"] = {"path": "stage:sft", "reference_path": "stage:sft"}
    raw["stages"].append({
        "name": "last", "method": "ppo", "model": {"path": "stage:dpo", "reference_path": "stage:sft"},
        "rewards": [{"name": "reward-model", "args": {"path": "stage:rm"}}], "value": {"path": "stage:rm"},
    })  # fmt: skip
    stages = resolve(raw).stages
    assert [(s.name, s.model.path, s.model.reference_path) for s in stages] == [
        ("rm", "some/model", None),
        ("sft-1", "some/model", None),
        ("sft-2", "stage:sft-1", None),
        ("dpo-1", "stage:sft-2", "stage:sft-2"),
        ("dpo-2", "stage:dpo-1", "stage:sft-2"),
        ("dpo-3", "stage:dpo-2", "stage:sft-2"),
        ("last", "stage:dpo-3", "stage:sft-2"),
    ]
    assert stages[-1].value.path == "stage:rm"
    assert {s.rewards[0].args["path"] for s in stages[3:]} == {"stage:rm"}
    # a reward model that is trained in rounds is its last one
    raw["stages"][0]["repeat"] = 2
    stages = resolve(raw).stages
    assert stages[-1].rewards[0].args["path"] == stages[-1].value.path == "stage:rm-2"


def test_rounds_of_all_weights() -> None:
    previous = [("some/model", None, None), ("stage:dpo-1", None, None), ("stage:dpo-2", None, None)]
    raw = copy.deepcopy(ROUNDS)
    fields = ("path", "on_adapter", "reference_path")
    assert _models(raw, *fields)[1:] == previous  # DPO compares with the model as it starts: the round before
    raw["stages"][1]["collect"] = {"reference": "first"}
    assert _models(raw, *fields)[1:] == [
        ("some/model", None, None), ("stage:dpo-1", None, "some/model"), ("stage:dpo-2", None, "some/model"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "reference", "first", "later"),
    [
        # on_adapter, reference, reference_path of the first round and of later ones
        (LORA, "previous", (None, None, None), ("continue", "start", None)),
        (LORA, "first", (None, None, None), ("continue", "base", None)),
        ({**LORA, "on_adapter": "fresh"}, "first", ("fresh", None, None), ("continue", "base", None)),
        ({**LORA, "on_adapter": "stack"}, "previous", ("stack", None, None), ("continue", "start", None)),
        ({**LORA, "on_adapter": "stack"}, "first", ("stack", None, None), ("continue", None, "some/model")),
        ({"path": "some/model", "on_adapter": "continue", "reference": "start"}, "first",
         ("continue", "start", None), ("continue", None, "some/model")),
        ({"path": "some/model", "on_adapter": "continue", "reference": "start"}, "previous",
         ("continue", "start", None), ("continue", "start", None)),
    ],
)  # fmt: skip
def test_rounds_of_an_adapter(model: dict[str, Any], reference: str, first: Any, later: Any) -> None:
    raw = copy.deepcopy(ROUNDS)
    raw["stages"][1] |= {"model": model, "collect": {"reference": reference}}
    found = _models(raw, "on_adapter", "reference", "reference_path")[1:]
    assert found == [first, later, later]


@pytest.mark.parametrize("reference", ["previous", "first"])
def test_rounds_after_a_merge(reference: str) -> None:
    """The first round ends in a whole model, the second puts an adapter on it, which the third trains further."""
    raw = copy.deepcopy(ROUNDS)
    raw["stages"][1] |= {"model": {**LORA, "on_adapter": "merge"}, "collect": {"reference": reference}}
    first = reference == "first"
    assert _models(raw, "on_adapter", "reference", "reference_path")[1:] == [
        ("merge", None, None),
        (None, None, "some/model" if first else None),
        ("continue", None if first else "start", "some/model" if first else None),
    ]


def test_answers_from_a_file_serve_the_first_round_alone() -> None:
    raw = copy.deepcopy(ROUNDS)
    raw["stages"][1]["collect"] = {"path": "drawn.jsonl", "margin": 0.5}
    found = [(s.collect.path, s.collect.margin) for s in resolve(raw).stages[1:]]
    assert found == [("drawn.jsonl", 0.5), (None, 0.5), (None, 0.5)]
    one = {**SMALL, "method": "rft", "collect": {"path": "drawn.jsonl"}}
    assert resolve(one).stages[0].rewards == []
    assert "rewards: method rft needs at least one reward" in error_of({**one, "repeat": 2})


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize(
    "model",
    [{"path": "some/model"}, LORA, *({**LORA, "on_adapter": mode} for mode in ("merge", "stack", "fresh", "continue"))],
    ids=["whole", "lora", "merge", "stack", "fresh", "continue"],
)
def test_rounds_of_every_method_written_out_load_back_equal(tmp_path: Path, method: str, model: dict[str, Any]) -> None:
    raw: dict[str, Any] = {**SMALL, "method": method, "model": model, "repeat": 3}
    if METHODS[method].scored:
        raw["rewards"] = [{"name": "exact"}]
    if method == "gmpo" and "lora" not in model:
        raw["gmpo"] = {"critic": {"kind": "none"}, "answers": "data"}
    needs_reference = METHODS[method].needs_reference(Recipe.model_validate({**raw, **METHODS[method].defaults}))
    if model.get("on_adapter") == "continue" and needs_reference:
        raw["model"] = {**model, "reference": "start"}
    others = [{"collect": {"reference": "first"}}, {"loss": {"name": "simpo"}}] if method == "iterative-dpo" else []
    for more in ({}, *others):
        if "loss" in more and "reference" in raw["model"]:
            continue  # simpo has none
        pipeline = resolve({**raw, **more})
        path = tmp_path / "recipe.yaml"
        path.write_text(dump(pipeline), encoding="utf-8")
        assert load_recipe(path) == pipeline


def test_rounds_do_not_take_another_stages_name() -> None:
    raw = copy.deepcopy(ROUNDS)
    raw["stages"][0]["name"] = "dpo-2"
    raw["stages"][1]["rewards"][0]["args"]["path"] = "stage:dpo-2"
    assert "stages.dpo.repeat: its rounds are stages dpo-1, …, and a stage is named dpo-2 already" in error_of(raw)


def test_a_judge_may_be_an_earlier_stages_model() -> None:
    raw = copy.deepcopy(STAGED)
    raw["stages"][1]["rewards"] = [{"name": "judge", "args": {"path": "stage:warm", "mode": "pointwise"}}]
    assert resolve(raw).stages[1].rewards[0].args["path"] == "stage:warm"
    raw["stages"][1]["rewards"][0]["args"]["path"] = "stage:wrm"
    assert "stage:wrm names no earlier stage; did you mean stage:warm?" in error_of(raw)
    raw["stages"][1]["rewards"] = [{"name": "reward-model", "args": {"path": "stage:warm"}}]
    assert "stage warm trains with sft, so it is no reward model" in error_of(raw)
    raw["stages"][0] = {"name": "warm", "method": "reward"}
    raw["stages"][1]["model"] = {"path": "m"}
    raw["stages"][1]["rewards"][0]["name"] = "judge"
    assert "stage warm trains a reward model, which writes no verdicts" in error_of(raw)


def test_a_flag_reaches_every_round_and_repeat_is_one() -> None:
    overrides = {"dpo.repeat": "2", "dpo.train.steps": "7", "model.path": "other", "dpo.rewards.0.weight": "2"}
    rm, one, two = resolve(ROUNDS, overrides).stages
    assert (rm.model.path, one.model.path, two.model.path) == ("other", "other", "stage:dpo-1")
    assert (rm.train.steps, one.train.steps, two.train.steps) == (3, 7, 7)
    assert [s.rewards[0].args["path"] for s in (one, two)] == ["stage:rm", "stage:rm"]


# ---- overrides


def test_an_override_goes_to_every_stage_and_over_its_own_value() -> None:
    warm, rl = resolve(STAGED, {"train.learning_rate": "2e-4"}).stages
    assert (warm.train.learning_rate, rl.train.learning_rate) == (2e-4, 2e-4)


def test_an_override_for_one_stage() -> None:
    overrides = {"rl.train.steps": "5", "stages.warm.train.batch_size": 9, "stages.1.seed": "8", "train.batch_size": 7}
    warm, rl = resolve(STAGED, overrides).stages
    assert (warm.train.steps, rl.train.steps, rl.train.epochs) == (3, 5, None)
    assert (warm.train.batch_size, rl.train.batch_size) == (9, 7)  # the stage's own goes over the one for all
    assert (warm.seed, rl.seed) == (0, 8)


def test_steps_take_the_place_of_epochs() -> None:
    warm, rl = resolve(STAGED, {"train.steps": "5"}).stages
    assert [(s.train.steps, s.train.epochs) for s in (warm, rl)] == [(5, None), (5, None)]
    assert "give either train.steps or train.epochs" in error_of({**SMALL, "train": {"steps": 1, "epochs": 1}})


def test_the_model_of_a_pipeline_is_its_first_stages() -> None:
    warm, rl = resolve(STAGED, {"model.path": "other"}).stages
    assert (warm.model.path, rl.model.path) == ("other", "stage:warm")
    assert resolve(STAGED, {"rl.model.path": "other"}).stages[1].model.path == "other"


def test_name_and_output_belong_to_the_whole() -> None:
    pipeline = resolve(STAGED, {"name": "n2", "output": "o2"})
    assert (pipeline.name, pipeline.output) == ("n2", "o2")
    assert [(stage.name, stage.output) for stage in pipeline.stages] == [("warm", None), ("rl", None)]
    assert "output can't be set for one stage; set --output" in error_of(STAGED, {"rl.output": "x"})


def test_a_single_source_needs_no_index_and_several_do() -> None:
    assert resolve(SMALL, {"data.path": "new.jsonl"}).stages[0].data[0].path == "new.jsonl"
    message = error_of(STAGED, {"data.path": "new.jsonl"})
    assert message == ("--data.path: data has 2 items; write --stages.rl.data.0.path or --stages.rl.data.1.path")
    rl = resolve(STAGED, {"rl.data.1.path": "new.jsonl"}).stages[1]
    assert [source.path for source in rl.data] == ["a.jsonl", "new.jsonl"]


def test_a_flag_reaches_only_stages_that_have_the_item_or_section() -> None:
    raw = copy.deepcopy(STAGED)
    raw["stages"][1]["model"]["lora"] = {"r": 4}
    warm, rl = resolve(raw, {"model.lora.r": "2", "rewards.1.weight": "0.25"}).stages
    assert warm.model.lora is None and warm.rewards == []
    assert rl.model.lora is not None and rl.model.lora.r == 2
    assert [reward.weight for reward in rl.rewards] == [1.0, 0.25]
    # where no stage has it, it is made
    assert [s.model.lora is not None for s in resolve(SMALL, {"model.lora.r": "2"}).stages] == [True]


def test_columns_by_flag() -> None:
    raw = {**SMALL, "data": {"path": "d", "columns": {"prompt": "question"}}}
    overrides = {
        "data.columns.prompt.match": "Q: (.*)",
        "data.columns.answer": "solution",
        "data.columns.hint.template": "{a} {b}",
    }
    columns = resolve(raw, overrides).stages[0].data[0].columns
    assert (columns["prompt"].source, columns["prompt"].match) == ("question", "Q: (.*)")
    assert columns["answer"].source == "solution"
    assert columns["hint"].template == "{a} {b}"
    assert resolve(raw, {"data.columns.prompt.template": "x"}).stages[0].data[0].columns["prompt"].source is None


def test_a_recipe_from_flags_alone() -> None:
    overrides = {
        "method": "grpo",
        "model.path": "m",
        "data.path": "d.jsonl",
        "rewards.0.name": "accuracy",
        "rewards.1.name": "regex",
        "rewards.1.args.pattern": "a+",
        "train.steps": "2",
    }
    (stage,) = resolve({}, overrides).stages
    assert [(reward.name, reward.args) for reward in stage.rewards] == [("accuracy", {}), ("regex", {"pattern": "a+"})]


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("model.revision", "123", "123"),
        ("model.revision", "null", None),
        ("model.lora", "{r: 5}", 5),
        ("train.threads", "null", None),
        ("train.threads", "2", 2),
        ("sampling.stop", "[a, 'b']", ["a", "b"]),
        ("tokens.chat_template_kwargs", "{enable_thinking: false}", {"enable_thinking": False}),
        ("tokens.chat_template_kwargs.x", "1e-5", {"x": 1e-5}),
        ("eval.higher_is_better", "no", False),
        ("tokens.chat_template", "", ""),
        ("data.name", "1e5", "1e5"),
    ],
)
def test_override_text_is_read_as_the_fields_type(key: str, text: str, value: Any) -> None:
    (stage,) = resolve(SMALL, {key: text}).stages
    found: Any = stage
    for part in key.split(".")[:2]:
        found = getattr(found[0] if isinstance(found, list) else found, part)
    assert (found.r if key == "model.lora" else found) == value


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("train.lerning_rate", "--train.lerning_rate: no such setting; did you mean train.learning_rate?"),
        ("lerning_rate", "--lerning_rate: no such setting; did you mean train.learning_rate?"),
        ("wram.train.steps", "--wram.train.steps: no such setting; did you mean warm.train.steps?"),
        ("stages.wrm.train.steps", "no stage is named 'wrm'; the stages are warm, rl"),
        ("rl", "name a field of the stage"),
        ("method", "each stage has its own method; set --stages.warm.method"),
        ("train.steps.x", "train.steps is a value, not a section"),
        ("data.5.path", "data.5 would leave a gap"),
        ("stages", "no stage is named ''"),
    ],
)
def test_overrides_that_have_no_place(key: str, message: str) -> None:
    assert message in error_of(STAGED, {key: "1"})


def test_a_bad_value_names_its_flag() -> None:
    assert (
        error_of(SMALL, {"train.steps": "ten"})
        == "--train.steps: got 'ten'; expected a whole number, at least 1, or null"
    )
    assert "--sampling.stop: got '[a', which is not valid YAML" in error_of(SMALL, {"sampling.stop": "[a"})
    assert "--model.lora: model.lora.rr: unknown key; did you mean model.lora.r?" in error_of(
        SMALL, {"model.lora": "{rr: 3}"}
    )
    assert "this recipe has no stages" in error_of(SMALL, {"stages.x.seed": "1"})


# ---- errors


def test_every_problem_is_listed_with_its_line(tmp_path: Path) -> None:
    text = """\
method: grpo
model: {path: 7, lora: {rr: 2}}
data:
  - path: d.jsonl
    columns:
      answer: {from: a, template: b}
train:
  steps: ten
  lerning_rate: 1
rewards:
  - weight: 2
log: 5
seed: true
"""
    assert file_error(tmp_path, text).splitlines() == [
        "8 problems in r.yaml:",
        "  r.yaml:2: model.lora.rr: unknown key; did you mean model.lora.r?",
        "  r.yaml:2: model.path: got 7; expected text; write it in quotes",
        "  r.yaml:6: data.0.columns.answer: a column needs exactly one of `from` and `template`",
        "  r.yaml:8: train.steps: got 'ten'; expected a whole number, at least 1, or null",
        "  r.yaml:9: train.lerning_rate: unknown key; did you mean train.learning_rate?",
        "  r.yaml:11: rewards.0.name: missing; expected text (built-in name, module:function, or file.py:function)",
        "  r.yaml:12: log: got 5; expected a section (name: value)",
        "  r.yaml:13: seed: got true or false; expected a whole number, at least 0",
    ]


def test_an_unknown_key_is_told_once() -> None:
    message = "zzz: unknown key; valid names here: "
    assert error_of({**SMALL, "zzz": 1}).count(message) == 1
    assert error_of({**STAGED, "zzz": 1}).count(message) == 1
    assert error_of({**SMALL, "model": {"path": "m", 3: 4}}).startswith("model.3: unknown key; valid names here: path,")


def test_a_problem_of_the_shared_part_is_told_once(tmp_path: Path) -> None:
    text = "stages:\n- {name: a, method: sft}\n- {name: b, method: sft, sed: 1}\nmodel: {path: m}\ndata: {pth: d}\n"
    assert file_error(tmp_path, text + "train: {steps: 1}\n").splitlines() == [
        "3 problems in r.yaml:",
        "  r.yaml:3: stages.b.sed: unknown key; did you mean seed?",
        "  r.yaml:5: data.0.pth: unknown key; did you mean data.0.path?",
        "  r.yaml:5: data.0.path: missing; expected text (hub id, file (.jsonl .json .parquet .csv) or folder saved "
        "by `datasets`)",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "stf"}, "no method is named 'stf'; did you mean sft?"),
        ({"method": "zzz"}, "no method is named 'zzz'; methods: sft, grpo"),
        ({"method": "grpo"}, "rewards: method grpo needs at least one reward: a built-in (accuracy, code,"),
        ({"train": {}}, "train: how long to train is missing; give train.steps or train.epochs"),
        (
            {"rewards": [{"name": "acuracy"}]},
            "no built-in reward is named 'acuracy'; did you mean accuracy?",
        ),
        ({"rewards": [{"name": "regex", "args": {"patern": "a"}}]}, "unknown argument 'patern'"),
        ({"policy": {"preset": "gropo"}}, "policy.preset: 'gropo' is none of grpo,"),
        ({"policy": {"clip": "none", "clip_low": 0.1}}, "policy.clip_low: has no meaning with clip: none"),
        ({"eval": {"every": 3}}, "eval.every: needs validation rows"),
        ({"eval": {"holdout": 3, "patience": 3}}, "eval.every is not given"),
        ({"eval": {"holdout": 3, "data": [{"path": "x"}]}}, "give either eval.data or eval.holdout, not both"),
        ({"data": {"path": "stage:x"}}, "data.0.path: stage:x names no earlier stage; there is no earlier stage"),
        ({"stage": []}, "stage: unknown key; did you mean stages?"),
        ({"name": "../up"}, "name: got '../up'; a name becomes a folder"),
        ({"data": []}, "data: got []; expected a list of sections, at least 1 long"),
        ({"data": "rows.jsonl"}, "data: got 'rows.jsonl'; expected a list of sections"),
        ({"train": {"steps": 1, "learning_rate": float("inf")}}, "train.learning_rate: got inf"),
    ],
)
def test_what_a_recipe_must_be(change: dict[str, Any], message: str) -> None:
    assert message in error_of({**SMALL, **change})


EXACT: list[dict[str, Any]] = [{"name": "exact"}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "grpo", "value": {"gamma": 0.9}}, "value.gamma: only advantages by GAE train a value head"),
        ({"method": "sft", "collect": {"keep": 2}}, "collect.keep: method sft collects no answers before training"),
        ({"method": "iterative-dpo", "collect": {"keep": 2}}, "collect.keep: method iterative-dpo does not read it"),
        ({"method": "rft", "collect": {"margin": 1}}, "collect.margin: method rft does not read it; remove it"),
        ({"method": "rft", "policy": {"preset": "dapo"}}, "policy.preset: method rft takes no policy gradient"),
        ({"method": "dpo", "policy": {"overlong": 0.5}}, "policy.overlong: method dpo samples nothing to train on"),
        ({"method": "human", "policy": {"resample": 2}}, "policy.resample: people's scores are taken as they are"),
        ({"method": "gmpo", "policy": {"beta": 0.1}}, "policy.beta: method gmpo has an objective of its own, in gmpo"),
        ({"method": "grpo", "gmpo": {"buffer": 3}}, "gmpo.buffer: method grpo does not read it; remove it"),
        ({"method": "grpo", "gmpo": {"critic": {"every": 3}}}, "gmpo.critic: method grpo does not read it; remove it"),
        ({"method": "ppo", "human": {"low": -1}}, "human.low: method ppo does not read it; remove it"),
        ({"method": "iterative-dpo", "train": {"steps": 1, "minibatches": 2}}, "train.minibatches: parts a batch that"),
        ({"method": "dpo", "sampling": {"group_size": 2}}, "sampling.group_size: method dpo does not read it"),
        ({"method": "rft", "train": {"steps": 1, "reference_cache": "x"}}, "method rft keeps no log-probs of a fixed"),
        ({"method": "sft", "model": {"path": "m", "reference_path": "x"}}, "method sft compares with no reference"),
        (
            {"method": "grpo", "model": {"path": "m", "reference_path": "x"}},
            "model.reference_path: method grpo with beta 0 compares with no reference; remove it",
        ),
        (
            {"method": "iterative-dpo", "loss": {"name": "simpo"}, "model": {"path": "m", "reference_path": "x"}},
            "model.reference_path: loss simpo compares with no reference; remove it",
        ),
        ({"method": "ppo", "policy": {"advantage": "group-std"}}, "for another advantage use method grpo"),
        ({"method": "ppo", "value": {"lora": {"r": 2}}}, "value.lora: the value head has an adapter only beside"),
        ({"method": "human", "policy": {"advantage": "gae"}}, "people score whole answers, and gae needs a value head"),
        ({"method": "grpo", "policy": {"resample": 2}, "sampling": {"group_size": 1}}, "a group of one has none"),
        ({"method": "grpo", "policy": {"kl_target": 3}}, "policy.kl_target: adapts the β of kl: reward"),
        (
            {"method": "grpo", "policy": {"combine": "normalize", "preset": "dapo"}},
            "policy.combine: normalize reads each reward's own value, from which overlong takes nothing off",
        ),
        (
            {"method": "grpo", "policy": {"combine": "normalize", "missing_eos_penalty": 1}},
            "from which missing_eos_pen",
        ),
        ({"method": "grpo", "policy": {"combine": "normalize", "preset": "rloo"}}, "from which kl takes nothing off"),
        ({"method": "gmpo"}, "model.lora: gmpo's critic and policy are two adapters on one frozen base"),
        ({"method": "iterative-dpo", "loss": {"center": 0.1}}, "loss.center: has no meaning with loss dpo"),
        ({"method": "ppo", "value": {"path": "stage:x"}}, "value.path: stage:x names no earlier stage"),
        ({"method": "human", "human": {"low": 5, "high": 5}}, "low 5 must be under high 5"),
    ],
)
def test_fields_that_a_method_does_not_read_are_refused_with_a_reason(change: dict[str, Any], message: str) -> None:
    rewards = {"rewards": EXACT} if METHODS[change["method"]].scored else {}
    assert message in error_of({**SMALL, **rewards, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"method": "rft", "policy": {"overlong": 0.5, "missing_eos_penalty": 1.0}, "rewards": EXACT},
        {"method": "iterative-dpo", "policy": {"missing_eos_score": -1.0}, "rewards": EXACT},
        {"method": "grpo", "policy": {"combine": "normalize", "preset": "rloo", "kl": "k3"}, "rewards": EXACT},
        {"method": "grpo", "policy": {"advantage": "gae"}, "value": {"gamma": 0.9}, "rewards": EXACT},
        {"method": "human", "policy": {"preset": "dr-grpo", "advantage": "group-mean"}, "collect": {"path": "x.jsonl"}},
        {"method": "gmpo", "gmpo": {"critic": {"kind": "none"}, "answers": "data"}, "policy": {"overlong": 0.2}},
        {"method": "ppo", "model": {"path": "m", "lora": {}, "reference_path": "x"}, "rewards": EXACT,
         "value": {"lora": {"r": 2}}},
        {"method": "gmpo", "model": {"path": "m", "on_adapter": "continue", "reference": "start"}},
    ],
)  # fmt: skip
def test_fields_that_a_method_reads_are_taken(change: dict[str, Any]) -> None:
    assert resolve({**SMALL, **change}).stages[0].method == change["method"]


def test_a_judge_that_compares_can_not_measure_lone_answers() -> None:
    judge = {"name": "judge", "args": {"path": "j"}}
    raw = {**SMALL, "method": "grpo", "rewards": [judge]}
    assert resolve(raw).stages[0].rewards[0].name == "judge"
    raw["eval"] = {"holdout": 3}
    assert "rewards.0.args.mode: a pairwise judge compares answers to one prompt, and eval draws one" in error_of(raw)
    pointwise = {"name": "judge", "args": {"path": "j", "mode": "pointwise"}}
    measured = [judge, {"name": "exact", "weight": 0}]  # there is no score then, but something is measured
    for rewards in ([pointwise], [judge, pointwise], [judge, {"name": "exact"}], measured):
        assert resolve({**raw, "rewards": rewards}).stages[0].eval.holdout == 3
    assert "rewards.0.args.mode" in error_of({**raw, "rewards": [judge, {**judge, "weight": 0}]})


def test_what_a_stage_inherits_may_be_meant_for_another() -> None:
    raw = copy.deepcopy(ROUNDS)
    raw |= {"collect": {"margin": 0.5}, "policy": {"overlong": 0.2}}
    assert [stage.collect.margin for stage in resolve(raw).stages] == [0.5] * 4
    raw["stages"][0]["collect"] = {"margin": 0.25}
    assert "stages.rm.collect.margin: method reward collects no answers before training" in error_of(raw)


def test_wrong_recipes_give_one_clear_message_each(tmp_path: Path) -> None:
    torture = _torture()
    assert resolve(torture.RIGHT).stages[0].train.steps == 5
    for raw, word in torture.wrong_recipes(200, seed=1):
        message = error_of(raw, name="r.yaml")
        assert word in message, (word, message, raw)
        path = tmp_path / "r.yaml"
        path.write_text(dump_yaml(raw), encoding="utf-8")
        with pytest.raises(UsageError) as caught:
            load_recipe(path)
        assert "r.yaml:" in str(caught.value) or str(caught.value).startswith(str(path)), str(caught.value)


# ---- writing back


def _leaf_values() -> dict[str, st.SearchStrategy[Any]]:
    text = st.text(min_size=1, max_size=12).filter(lambda s: "\x00" not in s and not s.startswith("stage:"))
    free = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
        max_leaves=5,
    )
    rule = st.fixed_dictionaries(
        {"from": text}, optional={"match": text, "strip": st.booleans(), "replace": st.lists(st.tuples(text, text))}
    )
    source = st.fixed_dictionaries(
        {"path": text},
        optional={
            "name": st.none() | text,
            "columns": st.dictionaries(text, rule | text, max_size=2),
            "weight": st.floats(min_value=1e-9, max_value=1e9),
            "system": text,
        },
    )
    return {
        "seed": st.integers(0, 2**40),
        "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,10}", fullmatch=True),
        "output": st.none() | text,
        "data": st.lists(source, min_size=1, max_size=3),
        "model.path": text,
        "model.revision": st.none() | st.sampled_from(["no", "1e-5", "0x1f", "null", "2024-01-01", "~", "010", ""]),
        "model.lora": st.none()
        | st.fixed_dictionaries({"r": st.integers(1, 99), "targets": text | st.lists(text, max_size=3)}),
        "tokens.chat_template": st.none() | text,
        "tokens.chat_template_kwargs": st.dictionaries(text, free, max_size=3),
        "sampling.stop": st.lists(text, max_size=3),
        "sampling.temperature": st.floats(min_value=1e-6, max_value=100),
        "train.learning_rate": st.floats(min_value=0, max_value=1e300),
        "rewards": st.lists(
            st.fixed_dictionaries(
                {"name": st.just("my.module:reward")},
                optional={"weight": st.floats(-1e6, 1e6), "args": st.dictionaries(text, free, max_size=2)},
            ),
            max_size=2,
        ),
    }


@settings(max_examples=80, deadline=None)
@given(st.fixed_dictionaries({}, optional=_leaf_values()))
def test_a_dumped_recipe_loads_back_equal(values: dict[str, Any]) -> None:
    raw: dict[str, Any] = copy.deepcopy({**SMALL, "data": [SMALL["data"]]})
    for key, value in values.items():
        *sections, last = key.split(".")
        here = raw
        for section in sections:
            here = here.setdefault(section, {})
        here[last] = value
    pipeline = resolve(raw)
    value, _ = parse(dump(pipeline), "r.yaml")
    assert resolve(value) == pipeline
    assert Recipe.model_validate(parse(dump(pipeline.stages[0]), "r.yaml")[0]) == pipeline.stages[0]


@pytest.mark.parametrize(
    "text", ["\x85", "a\u2028b", "\u2029", "a\nb\n", " a", "\t", "\r\n", "#x", "a: b", "é😀", "\ufeff"]
)
def test_text_of_every_kind_is_written_and_read_back(text: str) -> None:
    assert parse(dump_yaml({"k": text, "l": [text]}), "r.yaml")[0] == {"k": text, "l": [text]}


def test_a_dumped_pipeline_loads_back_equal(tmp_path: Path) -> None:
    pipeline = resolve(STAGED, {"output": "some/where"})
    path = tmp_path / "recipe.yaml"
    path.write_text(dump(pipeline), encoding="utf-8")
    assert load_recipe(path) == pipeline


def test_a_function_can_not_be_written_and_the_error_says_what_to_do() -> None:
    raw = {**SMALL, "rewards": [{"name": "my.module:reward", "args": {"f": len}}]}
    with pytest.raises(UsageError, match="name functions as module:function"):
        dump(resolve(raw))


RECIPES = sorted((ROOT / "recipes").glob("**/*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_shipped_recipe_resolves(path: Path) -> None:
    pipeline = load_recipe(path)
    assert resolve(parse(dump(pipeline), path.name)[0]) == pipeline


def test_recipes_in_the_docs_resolve() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.S)
    assert [[stage.name for stage in resolve(parse(block, "docs")[0]).stages] for block in blocks] == [
        ["run"],
        ["warm-up", "rl"],
        ["sft", "dpo"],
        ["tiers", "pairs", "even", "reward"],
        ["reward", "dpo-1", "dpo-2", "dpo-3"],
    ]


# ---- nothing but UsageError, whatever comes

_NAMES = sorted({part for leaf in leaves(Recipe) for part in leaf.path} | {"stages", "0", "1", "warm", "rl", "x", ""})
_ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["stage:warm", "grpo"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_NAMES), inner, max_size=4),
    max_leaves=12,
)


def _refused_or_resolved(raw: Any, overrides: dict[str, Any]) -> None:
    with contextlib.suppress(UsageError):
        pipeline = resolve(raw, overrides)
        assert resolve(parse(dump(pipeline), "again")[0]) == pipeline


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([{}, SMALL, STAGED]),
    st.dictionaries(st.sampled_from(_NAMES), _ANY, max_size=3),
    st.dictionaries(st.lists(st.sampled_from(_NAMES), min_size=1, max_size=4).map(".".join), _ANY, max_size=3),
)
def test_any_recipe_is_refused_or_resolved(base: dict[str, Any], over: dict[str, Any], flags: dict[str, Any]) -> None:
    _refused_or_resolved({**base, **over}, flags)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab:-?&*!|>'\"[]{}#,%@`\n\t 01.~<"), max_size=30))
def test_any_text_is_refused_or_read(text: str) -> None:
    with contextlib.suppress(UsageError):
        parse(text, "r.yaml")


def test_a_revision_that_later_rounds_would_lose_is_refused() -> None:
    raw = {
        "method": "iterative-dpo", "model": {"path": "some/model", "revision": "v2"}, "data": {"path": "d.jsonl"},
        "rewards": [{"name": "exact"}], "train": {"steps": 1}, "repeat": 2, "collect": {"reference": "first"},
    }  # fmt: skip
    with pytest.raises(UsageError, match=r"model.revision: with collect.reference: first"):
        resolve(raw)
    assert len(resolve({**raw, "model": {**raw["model"], "lora": {"r": 2}}}).stages) == 2
    assert len(resolve({**raw, "collect": {"reference": "previous"}}).stages) == 2

"""Contests in a run: answers of an earlier stage as data, held-out questions that stay held out, resuming, checks."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from preftune.config import ModelConfig, Recipe, SourceConfig
from preftune.data import load_examples
from preftune.data.collected import read_collected, write_collected
from preftune.errors import CheckpointError, DataError, UsageError
from preftune.judges.contests import is_contest, key_of, question_of
from preftune.methods import get_method
from preftune.pipeline import run_pipeline
from preftune.recipes import resolve
from preftune.records import Completion, Example, Group, Message, Prompt
from preftune.train import collect, loop
from preftune.train.rows import apart, hold_out, read_splits
from tests import tiny

PERSONAS = [{"name": "fox", "prompt": "slyly"}, {"name": "owl", "prompt": "wisely"}]
COMPETITION = {"personas": PERSONAS, "system": ""}
INSIDE = {"form": "competition", "per_prompt": 2}
SCORED = {"from": "responses", "score": "length"}


def stages(home: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """A stage that answers, and one that judges its answers; both are measured on held-out rows of both kinds."""
    writing: dict[str, Any] = {
        "name": "writing", "method": "rft", "data": {"path": str(home / "train.jsonl")},
        "rewards": [{"name": "length", "args": {"at_most": 2, "ramp": 8}}, {"name": "exact", "weight": 0}],
        "collect": {"held_out": True}, "eval": {"holdout": 8},
    }  # fmt: skip
    answers = {"path": "stage:writing", "responses": SCORED}
    judge: dict[str, Any] = {
        "name": "judge", "method": "rft", "model": {"path": "stage:writing"}, "competition": COMPETITION,
        "data": {**answers, "contest": INSIDE},
        "rewards": [{"name": "judge-pick"}, {"name": "exact", "weight": 0}],
        "eval": {
            "data": [{**answers, "split": "validation", "contest": INSIDE}],
            "test": [{"path": "stage:writing", "split": "validation"}],
        },
    }  # fmt: skip
    for name, value in changes.items():
        stage = writing if name.startswith("writing_") else judge
        stage[name.partition("_")[2]] = value
    return {
        "name": "cycle", "output": str(output), "model": {"path": str(home / "wide")}, "log": {"sinks": []},
        "sampling": {"group_size": 6, "max_tokens": 6, "temperature": 0.7},
        "train": {"steps": 2, "batch_size": 4, "learning_rate": 1e-3, "checkpoint_every": 1},
        "stages": [writing, judge],
    }  # fmt: skip


@pytest.fixture(scope="module")
def done(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cycle") / "run"
    run_pipeline(resolve(stages(home, folder)))
    return folder


# --- answers of a stage -----------------------------------------------------------------------------------------


def test_held_out_prompts_are_answered_and_never_trained_on(done: Path) -> None:
    within = done / "writing"
    own, held = (read_collected(within / f"collected{part}.jsonl") for part in ("", "-validation"))
    assert (len(own.groups), len(held.groups)) == (20, 8) and own.about == held.about
    for groups in (own.groups, held.groups):
        for group in groups:
            assert len(group.completions) == 6 and all(c.score is not None for c in group.completions)
            assert all(set(c.breakdown) == {"length", "exact"} for c in group.completions)
    assert not {g.prompt.ids for g in own.groups} & {g.prompt.ids for g in held.groups}
    trained = {s["prompt"] for s in tiny.lines(within / "samples.jsonl") if s["split"] == "train"}
    assert not trained & {g.prompt.text for g in held.groups}
    facts = json.loads((within / "manifest.json").read_text())["data"]
    assert facts["collected validation"]["content_hash"] == held.digest


def test_contests_of_the_answers(done: Path) -> None:
    """Training contests are of training questions, held-out ones of held-out questions, with the right answer known."""
    recipe = Recipe.model_validate(_yaml(done / "judge" / "recipe.yaml"))
    assert recipe.data[0].path == str(done / "writing" / "collected.jsonl")
    assert recipe.eval.data[0].path == recipe.eval.test[0].path == str(done / "writing" / "collected-validation.jsonl")
    rows = read_splits(recipe, None)
    questions = {name: {question_of(row) for row in rows[name].examples} for name in rows}
    assert questions["train"] and questions["validation"]
    assert not questions["train"] & (questions["validation"] | questions["test"])
    assert questions["validation"] <= questions["test"] and len(questions["test"]) == 8
    train = {g.prompt.text: g for g in read_collected(done / "writing" / "collected.jsonl").groups}
    for row in rows["train"].examples:
        assert is_contest(row) and row.columns["origins"] == ["writing", "writing"]
        group = train[row.columns["question"]]
        best = max(c.breakdown["length"] for c in group.completions)
        for label, score in zip(row.columns["labels"], row.columns["scores"], strict=True):
            assert (score == best) == (label in row.columns["right"])
            fits = [c.text for c in group.completions if c.breakdown["length"] == score]
            assert any(f"<{label}>\n{text.strip()}\n</{label}>" in str(row.prompt) for text in fits)
    drawn = read_collected(done / "judge" / "collected.jsonl").groups
    assert {g.prompt.text for g in drawn} == {str(row.prompt) for row in rows["train"].examples}
    assert all(set(c.breakdown) == {"judge-pick", "exact"} for g in drawn for c in g.completions)
    assert {g.prompt.columns["verdict"] for g in drawn} == {"competition"}


def _yaml(path: Path) -> Any:
    import yaml

    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_both_are_measured_where_rows_of_both_are_held_out(done: Path) -> None:
    """A question has no verdict to check and a contest no answer, so each reward speaks of its own rows alone."""
    summary = json.loads((done / "judge" / "summary.json").read_text())
    for when in ("before", "after"):
        validation, test = summary[when]["validation"], summary[when]["test"]
        assert "reward/judge-pick" in validation and "reward/exact" not in validation
        assert "reward/exact" in test and "reward/judge-pick" not in test
        assert "reward/mean" in validation and "reward/mean" not in test  # of a question nothing is trained on here
    before, after = json.loads((done / "writing" / "summary.json").read_text())["after"], summary["before"]
    assert after["test"]["reward/exact"]["value"] == pytest.approx(before["validation"]["reward/exact"]["value"])
    notes = summary["notes"]
    assert any(note.startswith("train: ") and "a blind verdict is right in 50% of them" in note for note in notes)
    assert any(note.startswith("validation: ") and " contests of " in note for note in notes)
    steps = [line["metrics"] for line in tiny.lines(done / "judge" / "metrics.jsonl") if line["kind"] == "train"]
    assert {"collected/reward/judge-pick", "collected/kept/judge-pick", "collected/pick_readable"} <= set(steps[0])
    assert {"collected/reward/exact", "collected/kept/length"} <= set(
        next(line["metrics"] for line in tiny.lines(done / "writing" / "metrics.jsonl") if line["kind"] == "train")
    )


def test_answers_are_ranked_rows_for_every_method(done: Path, home: Path, tmp_path: Path) -> None:
    path = done / "writing" / "collected.jsonl"
    plain = load_examples([SourceConfig(path=str(path))], seed=0).examples
    groups = read_collected(path).groups
    assert [row.prompt for row in plain] == [g.prompt.text for g in groups]
    for row, group in zip(plain, groups, strict=True):
        assert row.completions == tuple(c.text for c in group.completions)
        assert row.scores == tuple(c.score for c in group.completions) and row.sources == ()
        assert row.columns == group.prompt.columns and row.columns["answer"]
    assert plain[0].where == f"{path}:2"
    mapped = SourceConfig.model_validate({"path": str(path), "responses": {"from": "responses", "score": "exact"}})
    (first, *_) = load_examples([mapped], seed=0).examples
    assert first.scores == tuple(c.breakdown["exact"] for c in groups[0].completions)


# --- files of collected answers ---------------------------------------------------------------------------------


def collected(path: Path, *groups: Group) -> Path:
    write_collected(path, groups, {})
    return path


def test_conversations_sources_and_answers_without_a_score(tmp_path: Path) -> None:
    turns = (Message("system", "be brief"), Message("user", "2+2?"))
    some = (
        Completion((5,), (True,), "4", source="policy", score=1.0, breakdown={"ok": 1.0, "label": 2.0}),
        Completion((6,), (True,), "5\ud800", source="moss", score=0.5, breakdown={"ok": None}),
        Completion((7,), (True,), "6", score=None),
    )
    path = collected(tmp_path / "collected.jsonl", Group(Prompt((1,), "", turns, {"answer": "4"}, "x:1"), some))
    (row,) = load_examples([SourceConfig(path=str(path))], seed=0).examples
    assert row.prompt == turns and row.columns == {"answer": "4"}
    assert row.completions == ((Message("assistant", "4"),), (Message("assistant", "5?"),))  # no text for a half pair
    assert (row.scores, row.sources) == ((1.0, 0.5), ("", "moss"))
    again = load_examples([SourceConfig(path=str(path), system="be brief")], seed=0).examples
    assert again[0].prompt == turns  # the same system message is put there once
    with pytest.raises(DataError, match="has a system message of its own"):
        load_examples([SourceConfig(path=str(path), system="be long")], seed=0)
    mapped = {"path": str(path), "responses": {"from": "responses", "score": "ok"}}
    (row,) = load_examples([SourceConfig.model_validate(mapped)], seed=0).examples
    assert row.completions == ((Message("assistant", "4"),),)
    mapped["responses"]["score"] = "okay"
    with pytest.raises(DataError, match=rf"{path}:2: no answer has a 'okay'; there are ok, score, source, text"):
        load_examples([SourceConfig.model_validate(mapped)], seed=0)


def test_a_damaged_file_of_answers_is_an_error(tmp_path: Path) -> None:
    path = collected(tmp_path / "collected.jsonl", Group(Prompt((1,), "q", "q"), (Completion((5,), (True,), "4"),)))
    path.write_text(path.read_text()[:-9])
    with pytest.raises(DataError, match="the file was changed or cut since it was written"):
        load_examples([SourceConfig(path=str(path))], seed=0)


# --- held-out questions -----------------------------------------------------------------------------------------


def contest(question: str, number: int = 0) -> Example:
    columns = {
        "question": question, "labels": ["A", "B"], "right": ["A"], "origins": ["", ""], "scores": [1.0, 0.0],
        "verdict": "pairwise",
    }  # fmt: skip
    return Example((Message("user", f"judge {question} {number}"),), (), columns, f"c:{number}")


def a_recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate(
        {"method": "rft", "model": ModelConfig(path="m"), "data": [SourceConfig(path="d")], **changes}
    )


def test_contests_are_held_out_by_question() -> None:
    rows = [contest(f"q{n % 10}", n) for n in range(50)]
    recipe = a_recipe(eval={"holdout": 3})
    for name in ("rft", "sft"):  # for sft a row is its prompt and completion, a contest all the same its question
        some = rows if name == "rft" else [
            Example(row.prompt, ((Message("assistant", "x"),),), row.columns, row.where) for row in rows
        ]  # fmt: skip
        train, held = hold_out(some, recipe, get_method(name))
        assert (len(train), len(held)) == (35, 15)
        assert not {question_of(row) for row in train} & {question_of(row) for row in held}
    with pytest.raises(DataError, match="holdout 10 leaves no training row: the data has 10 different questions"):
        hold_out(rows, a_recipe(eval={"holdout": 10}), get_method("rft"))


def test_nobody_learns_from_a_question_that_a_contest_is_measured_on() -> None:
    plain = [Example(f"q{n}", (), {}, f"d:{n}") for n in range(4)]
    contests = [contest(f"q{n}") for n in range(4)]
    kept, said = apart({"train": contests, "validation": [plain[1]], "test": [contests[2]]})
    assert [key_of(str(row.columns["question"])) for row in kept] == ["q0", "q3"]
    assert said == ["train: 2 rows left out, as their questions are held out"]
    kept, said = apart({"train": plain, "validation": [], "test": contests[:1]})
    assert [row.prompt for row in kept] == ["q1", "q2", "q3"] and len(said) == 1
    # without contests rows are as they were: a row may stand in both splits, as always
    assert apart({"train": plain, "validation": plain, "test": []}) == (plain, [])
    with pytest.raises(DataError, match=r"c:0: every training row is on a question of the held-out rows"):
        apart({"train": contests[:1], "validation": plain, "test": []})


# --- resuming ---------------------------------------------------------------------------------------------------


def test_a_resumed_stage_finds_the_answers_as_they_were(home: Path, tmp_path: Path, monkeypatch) -> None:
    pipeline = resolve(stages(home, tmp_path / "run"))

    def stop(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return honest(*args, **kwargs)

    honest, calls = loop.backward, []
    with monkeypatch.context() as patch:
        patch.setattr(loop, "backward", stop)
        with pytest.raises(KeyboardInterrupt):
            run_pipeline(pipeline)
    answers = tmp_path / "run" / "writing" / "collected.jsonl"
    whole = answers.read_bytes()
    found = read_collected(answers)
    shuffled = list(found.groups)
    random.Random(0).shuffle(shuffled)
    write_collected(answers, shuffled, found.about)
    with pytest.raises(CheckpointError, match="the train data changed since the run began"):
        run_pipeline(pipeline, resume=True)
    answers.write_bytes(whole)
    monkeypatch.setattr(collect, "draw_scored", lambda *_, **__: pytest.fail("the answers were drawn again"))
    run_pipeline(pipeline, resume=True)
    assert json.loads((tmp_path / "run" / "pipeline.json").read_text())["status"] == "finished"


def test_a_resumed_stage_is_the_unbroken_one(home: Path, done: Path, tmp_path: Path, monkeypatch) -> None:
    """Interrupted between its own answers and those to held-out prompts."""
    honest = collect.write_collected

    def breaks(path: Path, *args: Any) -> None:
        if path.name == collect.HELD_OUT:
            raise KeyboardInterrupt
        honest(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(collect, "write_collected", breaks)
        with pytest.raises(KeyboardInterrupt):
            run_pipeline(resolve(stages(home, tmp_path / "run")))
    run_pipeline(resolve(stages(home, tmp_path / "run")), resume=True)
    assert tiny.same_run(done / "writing", tmp_path / "run" / "writing") == []
    for name in ("collected.jsonl", "collected-validation.jsonl"):
        assert (done / "writing" / name).read_bytes() == (tmp_path / "run" / "writing" / name).read_bytes()


# --- recipes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"judge_data": {"path": "stage:writin", "contest": {}}},
         r"stages\.judge\.data\.0\.path: stage:writin names no earlier stage; did you mean stage:writing\?"),
        ({"judge_data": {"path": "stage:judge"}}, "stage:judge names no earlier stage"),
        ({"writing_method": "grpo", "writing_collect": {}},
         r"data\.0\.path: stage writing \(grpo\) collects no answers of its own; only the answers of a stage of rft"),
        ({"writing_collect": {"path": "x.jsonl"}}, r"stage writing \(rft\) collects no answers of its own"),
        ({"writing_collect": {}},
         r"eval\.data\.0\.split: stage writing answers its training prompts alone; set its collect\.held_out: true"),
        ({"judge_data": {"path": "stage:writing", "split": "test"}}, r"\.0\.split: got 'test'; a stage's answers are"),
        ({"writing_eval": {}}, r"collect\.held_out: needs validation prompts; give eval\.holdout or eval\.data"),
        ({"writing_collect": {"held_out": True, "path": "x.jsonl"}}, r"collect\.held_out: .*draws no answers"),
        ({"judge_method": "sft", "judge_eval": {}},
         r"data\.0\.contest: method sft learns from answers, and a contest is a prompt: let the policy judge"),
        ({"judge_data": {"path": "stage:writing", "contest": {"rubric": "olympia"}}},
         r"data\.0\.contest\.rubric: rubric 'olympia' is no built-in one; did you mean olympiad\?"),
        ({"judge_competition": None}, r"contest\.form: competition needs the section competition"),
        ({"judge_data": {"path": "stage:writing", "contest": {**INSIDE, "size": 3}}},
         r"data\.0\.contest\.size: got 3, but the competition has 2 personas; remove it"),
        ({"judge_data": {"path": "stage:writing", "weight": 2, "contest": {}}}, "`weight` has no meaning"),
    ],
)  # fmt: skip
def test_recipes_that_can_not_be_run(home: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(stages(home, tmp_path / "run", **changes))


def test_a_repeated_stage_means_its_last_round(home: Path, tmp_path: Path) -> None:
    pipeline = resolve(stages(home, tmp_path / "run", writing_repeat=2))
    judge = pipeline.stages[-1]
    assert [stage.name for stage in pipeline.stages] == ["writing-1", "writing-2", "judge"]
    assert {s.path for s in (*judge.data, *judge.eval.data, *judge.eval.test)} == {"stage:writing-2"}


def test_a_resolved_recipe_loads_back(home: Path, tmp_path: Path) -> None:
    from preftune.recipes import dump
    from preftune.recipes.yamltext import parse

    pipeline = resolve(stages(home, tmp_path / "run"))
    assert resolve(parse(dump(pipeline), "r.yaml")[0]) == pipeline

"""The loop: what each round asks, whose answers they are, in which state it is, and that a kill loses nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from preftune.config import Pipeline, Recipe
from preftune.data.collected import read_collected
from preftune.errors import DataError, UsageError
from preftune.human.export import export, next_policy
from preftune.human.learn import learn, rate, trained_by
from preftune.human.ratings import Rating, read_ratings
from preftune.human.rounds import find_rounds, open_last, open_round, readable, show
from preftune.human.status import status, words
from preftune.human.take import take
from preftune.recipes import load_recipe
from preftune.records import Message, Prompt
from tests import tiny
from tests.human import people


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    return people.fake_draw(monkeypatch)


def pretend_to_train(folder: Path, *, adapter: bool = True, status: str = "finished") -> None:
    """What a run leaves, as far as rounds look at it."""
    final = folder / "train" / "final"
    final.mkdir(parents=True)
    if adapter:
        (final / "adapter_config.json").write_text("{}")
    (folder / "train" / "recipe.yaml").write_text("method: human\n")
    summary = {"status": status, "steps": 1, "best_step": None, "before": {}, "after": {}, "difference": {}}
    (folder / "train" / "summary.json").write_text(json.dumps(summary))


def import_all(root: Path, name: str = "anna.csv", rater: str = "anna", rule: Any = people.by_length) -> None:
    folder = find_rounds(root)[-1]
    take(root, [people.fill(folder / "answers.csv", root.parent / name, rule, rater)])


# --- export ---------------------------------------------------------------------------------------------------


def test_a_rounds_folder(tmp_path: Path, asked: list[Recipe]) -> None:
    exported = people.begin(people.recipe(tmp_path, prompts=3, low=1, high=5))
    folder = tmp_path / "rounds" / "round-1"
    assert exported.round.folder == folder and exported.notes == ()
    assert sorted(path.name for path in folder.iterdir()) == [
        "HOW_TO_RATE.md", "answers.csv", "answers.jsonl", "collected.jsonl", "recipe.yaml", "round.json",
    ]  # fmt: skip
    collected = read_collected(folder / "collected.jsonl")
    assert len(collected.groups) == 3 and collected.about["round"] == 1 and collected.about["policy"] == "0123"
    assert collected.groups[0].completions[0].logprobs == (-0.5, -1.0, -0.25)
    assert collected.groups[0].prompt.where.startswith(str(tmp_path / "train.jsonl:"))

    rows = tiny.lines(folder / "answers.jsonl")
    assert [list(row) for row in rows] == [["id", "prompt", "answer", "score", "rater", "comment"]] * 9
    assert all(row["score"] is None and row["rater"] == row["comment"] == "" for row in rows)
    cells = people.table(folder / "answers.csv")
    assert [row["id"] for row in cells] == [row["id"] for row in rows] == [a.id for a in exported.round.answers]
    # answers to one prompt stand together; every id belongs to the completions of its text
    assert [row["prompt"] for row in rows] == [g.prompt.text for g in collected.groups for _ in range(3)]
    for row, answer in zip(rows, exported.round.answers, strict=True):
        group = collected.groups[answer.prompt]
        assert [group.completions[place].text for place in answer.completions] == [row["answer"]]
    text = (folder / "HOW_TO_RATE.md").read_text()
    assert "score from 1 to 5" in text and "3 prompts, 9 answers" in text and "break off" not in text
    # nothing that only the policy's owner may see is in what raters get
    for name in ("answers.csv", "answers.jsonl", "HOW_TO_RATE.md"):
        assert "logprobs" not in (folder / name).read_text() and "some/model" not in (folder / name).read_text()
    assert load_recipe(folder / "recipe.yaml").stages[0] == exported.round.recipe


def test_positions_tell_nothing(tmp_path: Path, asked: list[Recipe]) -> None:
    exported = people.begin(people.recipe(tmp_path, prompts=40, rows=40, group_size=4))
    first = [answers[0].completions[0] for answers in exported.round.prompts.values()]
    assert all(4 <= first.count(place) <= 18 for place in range(4))  # 10 each on average


def test_the_same_texts_are_shown_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people.fake_draw(monkeypatch, lambda prompt, k: "same" if prompt == 0 or k else "other")
    exported = people.begin(people.recipe(tmp_path))
    prompts = exported.round.prompts
    assert {a.text: a.completions for a in prompts[0]} == {"same": (0, 1, 2)}
    assert {a.text: a.completions for a in prompts[1]} == {"other": (0,), "same": (1, 2)}
    assert exported.notes == ("3 completions have the text of another one to the same prompt, and are rated with it",)
    rated = rate(
        exported.round, [Rating(a.id, "anna", 9.0 if a.text == "same" else 4.0) for a in exported.round.answers]
    )
    assert [group.scores for group in rated.groups] == [(9.0, 9.0, 9.0), (4.0, 9.0, 9.0)]
    assert rated.notes == ("1 of 2 prompts have one score for all answers, and teach nothing",)


def test_one_text_alone_can_not_be_ranked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people.fake_draw(monkeypatch, lambda prompt, k: "same" if prompt == 0 or k else "other")
    exported = people.begin(people.recipe(tmp_path, rate="rank"))
    assert list(exported.round.prompts) == [1]
    assert exported.notes[1] == "1 prompts got the same text in all completions: nothing to rank, left out"
    rated = rate(
        exported.round, [Rating(a.id, "anna", 1.0 if a.text == "same" else 2.0) for a in exported.round.answers]
    )
    assert [group.scores for group in rated.groups] == [(0.0, 1.0, 1.0)]
    assert "1 prompts are left out: all of their completions have one text" in rated.notes[0]
    people.fake_draw(monkeypatch, lambda prompt, k: "same")
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="no prompt got two different answers"):
        people.begin(people.recipe(tmp_path / "other", rate="rank"))


def test_ids_are_unique_and_no_numbers() -> None:
    groups = [people.group("p", [f"text {k}" for k in range(30)]) for _ in range(3)]
    names = [answer.id for answer in show(groups, 2, 0)]
    assert len(set(names)) == 90 and all(name.startswith("r2-00") for name in names)
    assert {name.split("-")[1] for name in names[:30]} == {
        "001" + x for x in [*"abcdefghijklmnopqrstuvwxyz", "aa", "ab", "ac", "ad"]
    }


def test_prompts_as_people_read_them() -> None:
    turns = (Message("system", "Be brief."), Message("user", "Hi"))
    assert readable(Prompt((1,), "<s>Hi", turns)) == "system: Be brief.\n\nuser: Hi"
    assert readable(Prompt((1,), "<s>Hi", turns[1:])) == "Hi"
    assert readable(Prompt((1,), "<s>Hi", "Hi")) == "Hi"


def test_every_prompt_is_asked_once_before_any_is_asked_twice(tmp_path: Path, asked: list[Recipe]) -> None:
    path = people.recipe(tmp_path, prompts=3, rows=8)
    root = tmp_path / "rounds"
    seen: list[list[str]] = []
    notes = []
    for _ in range(3):
        exported = people.begin(path)
        notes.append(exported.notes)
        seen.append([group.prompt.text for group in exported.round.collected.groups])
        import_all(root)
        pretend_to_train(exported.round.folder)
    assert len({*seen[0], *seen[1]}) == 6 and len({*seen[0], *seen[1], *seen[2]}) == 8
    assert notes == [(), (), ("1 of 3 prompts were asked in an earlier round: all others have been, too",)]
    # the seed alone decides, and every round rolls other dice
    assert [recipe.seed for recipe in asked] == [0, 1, 2]
    (tmp_path / "again").mkdir()
    again = people.begin(people.recipe(tmp_path / "again", prompts=3, rows=8))
    assert [group.prompt.text for group in again.round.collected.groups] == seen[0]
    other = people.begin(people.recipe(tmp_path / "again", prompts=3, rows=8), seed=1, output=str(tmp_path / "other"))
    assert [group.prompt.text for group in other.round.collected.groups] != seen[0]


def test_few_prompts_and_held_out_ones(tmp_path: Path, asked: list[Recipe]) -> None:
    exported = people.begin(people.recipe(tmp_path, prompts=8), **{"eval.holdout": 5})
    assert exported.notes == ("the data has 3 different prompts, fewer than human.prompts 8",)
    from preftune.train.rows import read_splits

    recipe = exported.round.recipe
    assert recipe.eval.holdout == 5  # training holds the same rows out
    shown = {group.prompt.text for group in exported.round.collected.groups}
    assert len(shown) == 3 and shown < {row.prompt for row in read_splits(recipe, None)["train"].examples}


def test_columns_and_conversations_reach_the_policy(tmp_path: Path, asked: list[Recipe], monkeypatch: Any) -> None:
    path = people.recipe(tmp_path)
    tiny.write(
        tmp_path / "train.jsonl", [{"prompt": "Hi", "answer": "4", "tags": ["x"]}, {"prompt": "Ho", "answer": "5"}]
    )
    seen: list[Any] = []

    def draw(recipe: Recipe, *, base_dir: Path | None) -> tuple[list[Any], Mapping[str, Any]]:
        from preftune.data import load_examples

        rows = load_examples(recipe.data, seed=0).examples
        seen.extend(rows)
        return [people.group("p", ["a", "b"], row.where) for row in rows], {}

    monkeypatch.setattr(import_module("preftune.train.collect"), "draw", draw)
    exported = people.begin(path, **{"data.chat": True, "data.system": "Be brief."})
    assert {row.columns["answer"]: row.prompt for row in seen} == {
        "4": (Message("system", "Be brief."), Message("user", "Hi")),
        "5": (Message("system", "Be brief."), Message("user", "Ho")),
    }
    assert not (exported.round.folder / "prompts.jsonl").exists()


def test_prompts_that_the_policy_can_not_read_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people.fake_draw(monkeypatch)
    module = import_module("preftune.train.collect")
    whole = module.draw
    monkeypatch.setattr(module, "draw", lambda recipe, base_dir: (whole(recipe, base_dir=base_dir)[0][1:], {}))
    exported = people.begin(people.recipe(tmp_path))
    assert exported.notes == ("1 prompts were left out by the token contract (too long)",)
    monkeypatch.setattr(module, "draw", lambda recipe, base_dir: ([], {}))
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no prompt is left to answer"):
        people.begin(people.recipe(tmp_path / "none"))
    assert not (tmp_path / "none" / "rounds" / "round-1").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"human.rate": "rank", "human.normalize_raters": True}, "ranks are on one scale already"),
        ({"sampling.group_size": 1}, "beside the others to its prompt; set sampling.group_size to 2 or more"),
        ({"collect.path": "x.jsonl"}, "collect.path: export draws the answers"),
    ],
)
def test_recipes_that_do_not_fit(tmp_path: Path, asked: list[Recipe], flags: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        people.begin(people.recipe(tmp_path), **flags)
    assert not (tmp_path / "rounds").exists()


def test_other_methods_several_stages_and_run_folders_are_refused(tmp_path: Path, asked: list[Recipe]) -> None:
    pipeline = load_recipe(people.recipe(tmp_path), method="human")
    (recipe,) = pipeline.stages
    with pytest.raises(UsageError, match="of one stage"):
        export(Pipeline(name="two", output=pipeline.output, stages=[recipe, recipe.model_copy(update={"name": "b"})]))
    with pytest.raises(UsageError, match="the recipe is for sft"):
        export(Pipeline(stages=[recipe.model_copy(update={"method": "sft"})]))
    (tmp_path / "rounds").mkdir()
    (tmp_path / "rounds" / "recipe.yaml").write_text("method: human\n")
    with pytest.raises(UsageError, match="is a run folder, not one for rounds"):
        export(pipeline)


# --- whose answers --------------------------------------------------------------------------------------------


def test_the_next_round_goes_on_from_the_adapter(tmp_path: Path, asked: list[Recipe]) -> None:
    path = people.recipe(tmp_path)
    people.begin(path, **{"model.lora.r": 4})
    root = tmp_path / "rounds"
    import_all(root)
    pretend_to_train(root / "round-1")
    second = people.begin(path, **{"model.lora.r": 4}).round
    model = second.recipe.model
    assert model.path == str(root / "round-1" / "train" / "final")
    assert (model.on_adapter, model.lora, model.reference) == ("continue", None, None)
    assert asked[1].model == model and second.recipe.name == "people-round-2"
    assert asked[0].model.path == "some/model" and asked[0].model.lora is not None


def test_the_reference_is_the_rounds_start_where_there_is_one(tmp_path: Path, asked: list[Recipe]) -> None:
    first = people.begin(people.recipe(tmp_path)).round
    pretend_to_train(first.folder)
    flags = {"policy.beta": 0.1, "model.lora.r": 4}
    recipe = load_recipe(people.recipe(tmp_path), flags, method="human").stages[0]
    assert next_policy(recipe, first.folder, first.facts).model.reference == "start"
    kept = recipe.model_copy(
        update={"model": recipe.model.model_copy(update={"on_adapter": "continue", "reference": "base"})}
    )
    assert next_policy(kept, first.folder, first.facts).model.reference == "base"
    named = recipe.model_copy(update={"model": recipe.model.model_copy(update={"reference_path": "some/model"})})
    model = next_policy(named, first.folder, first.facts).model
    assert (model.reference_path, model.reference) == ("some/model", None)


def test_whole_weights_go_on_as_they_are(tmp_path: Path, asked: list[Recipe]) -> None:
    first = people.begin(people.recipe(tmp_path)).round
    pretend_to_train(first.folder, adapter=False)
    recipe = load_recipe(people.recipe(tmp_path), {"model.revision": "main"}, method="human").stages[0]
    model = next_policy(recipe, first.folder, first.facts).model
    assert (model.on_adapter, model.lora, model.reference, model.revision) == (None, None, None, None)
    other = recipe.model_copy(update={"model": recipe.model.model_copy(update={"path": "other/model"})})
    with pytest.raises(UsageError, match="these rounds began with some/model"):
        next_policy(other, first.folder, first.facts)


# --- states ---------------------------------------------------------------------------------------------------


def test_a_round_must_end_before_the_next_begins(tmp_path: Path, asked: list[Recipe]) -> None:
    path, root = people.recipe(tmp_path), tmp_path / "rounds"
    with pytest.raises(UsageError, match="is no folder with rounds"):
        learn(root)
    first = people.begin(path).round
    assert first.state == "exported"
    with pytest.raises(
        UsageError, match=rf"round 1 waits for ratings; take them in with `preftune human import {root}"
    ):
        people.begin(path)
    with pytest.raises(UsageError, match=r"has no ratings; take them in with `preftune human import"):
        learn(root)
    import_all(root)
    assert open_last(root).state == "rated"
    with pytest.raises(UsageError, match=rf"is rated and not trained; train it with `preftune human train {root}`"):
        people.begin(path)
    with pytest.raises(UsageError, match="has not begun; leave --resume out"):
        learn(root, resume=True)

    (first.folder / "train").mkdir()
    (first.folder / "train" / "recipe.yaml").write_text("method: human\n")
    assert open_last(root).state == "training"
    with pytest.raises(UsageError, match=r"go on with `preftune human train .* --resume`"):
        people.begin(path)
    with pytest.raises(UsageError, match=r"has begun; go on with `preftune human train .* --resume`"):
        learn(root)
    with pytest.raises(UsageError, match="on the ratings it had"):
        import_all(root)

    (first.folder / "train" / "recipe.yaml").unlink()
    (first.folder / "train").rmdir()
    pretend_to_train(first.folder)
    with pytest.raises(UsageError, match="ratings come too late for it"):
        import_all(root)
    with pytest.raises(UsageError, match=r"is trained already, its model is .*round-1/train/final"):
        learn(root)
    assert people.begin(path).round.number == 2
    with pytest.raises(DataError, match="answer of round 1, and this is round 2"):
        take(root, [tmp_path / "anna.csv"])


def test_a_run_that_stopped_early_counts_and_a_failed_one_does_not(tmp_path: Path, asked: list[Recipe]) -> None:
    first = people.begin(people.recipe(tmp_path)).round
    pretend_to_train(first.folder, status="failed")
    assert first.state == "training"
    (first.folder / "train" / "summary.json").write_text(
        (first.folder / "train" / "summary.json").read_text().replace("failed", "stopped at step 3: all alike")
    )
    assert first.state == "trained"


def test_a_kill_while_drawing_leaves_no_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, root = people.recipe(tmp_path), tmp_path / "rounds"
    module = import_module("preftune.train.collect")

    def killed(recipe: Recipe, *, base_dir: Path | None) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "draw", killed)
    with pytest.raises(KeyboardInterrupt):
        people.begin(path)
    assert find_rounds(root) == [] and [p.name for p in root.iterdir() if not p.name.startswith(".")] == []
    people.fake_draw(monkeypatch)
    assert people.begin(path).round.number == 1
    assert [p.name for p in root.glob(".writing-*")] == []


@pytest.mark.parametrize("step", ["agreement.json", "round.json"])
def test_a_kill_while_importing_loses_no_rating(
    tmp_path: Path, asked: list[Recipe], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    people.begin(people.recipe(tmp_path))
    root = tmp_path / "rounds"
    folder = import_module("preftune.train.folder")
    whole = folder.write_json

    def killed(path: Path, value: Any) -> None:
        if path.name == step:
            raise KeyboardInterrupt
        whole(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(folder, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            import_all(root)
    round_ = open_last(root)
    assert round_.facts["state"] == "exported" and round_.state == "rated"  # the files decide
    assert len(read_ratings(round_.folder)) == 6 and status(root)[0].rated == 2
    import_all(root)  # the same file once more puts all in order
    assert open_last(root).facts["state"] == "rated" and len(read_ratings(round_.folder)) == 6
    assert (round_.folder / "agreement.json").exists()


def test_training_writes_what_people_said(tmp_path: Path, asked: list[Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    people.begin(people.recipe(tmp_path))
    root = tmp_path / "rounds"
    import_all(root)
    ran: list[tuple[Pipeline, bool]] = []

    def run_pipeline(pipeline: Pipeline, *, resume: bool, base_dir: Path | None) -> None:
        ran.append((pipeline, resume))
        if len(ran) == 1:
            (root / "round-1" / "train").mkdir()
            (root / "round-1" / "train" / "recipe.yaml").write_text("method: human\n")
            raise KeyboardInterrupt
        (root / "round-1" / "train" / "recipe.yaml").unlink()
        (root / "round-1" / "train").rmdir()
        pretend_to_train(root / "round-1")

    monkeypatch.setattr(import_module("preftune.pipeline"), "run_pipeline", run_pipeline)
    with pytest.raises(KeyboardInterrupt):
        learn(root)
    rated = root / "round-1" / "rated.jsonl"
    first = rated.read_bytes()
    found = read_collected(rated)
    assert found.about["round"] == 1 and found.about["human"]["rate"] == "score"
    for group in found.groups:
        assert group.scores == tuple(float(len(c.text.split())) for c in group.completions)
        assert group.completions[0].notes == {"raters": {"anna": {"score": group.scores[0]}}}
    assert [c.ids for g in found.groups for c in g.completions] == [
        c.ids for g in open_last(root).collected.groups for c in g.completions
    ]
    (root / "round-1" / "ratings.jsonl").write_text("")  # a resumed training reads what it began with
    round_, final = learn(root, resume=True)
    assert rated.read_bytes() == first
    assert [resume for _, resume in ran] == [False, True]
    (recipe,) = ran[1][0].stages
    assert recipe.collect.path == str(rated) and recipe.output == str(root / "round-1" / "train")
    assert ran[0][0].stages == ran[1][0].stages == [trained_by(round_.recipe, rated, root / "round-1" / "train")]
    assert final.is_dir() and open_last(root).facts["state"] == "trained"


def test_a_kill_right_after_training_is_taken_up(tmp_path: Path, asked: list[Recipe]) -> None:
    path, root = people.recipe(tmp_path), tmp_path / "rounds"
    people.begin(path)
    import_all(root)
    pretend_to_train(root / "round-1")  # and round.json still says rated
    assert open_last(root).facts["state"] == "rated" and status(root)[0].state == "trained"
    assert people.begin(path).round.number == 2


# --- what is trained on ---------------------------------------------------------------------------------------


def test_missing_ratings_stop_the_training_unless_partial(tmp_path: Path, asked: list[Recipe]) -> None:
    round_ = people.begin(people.recipe(tmp_path, prompts=3, raters=2)).round
    first, second, _ = round_.prompts.values()
    given = [Rating(a.id, rater, 2.0 + place) for rater in ("anna", "ben") for place, a in enumerate(first)]
    given += [Rating(a.id, "anna", 1.0 + place, "so so") for place, a in enumerate(second)]
    given += [Rating(second[0].id, "ben", 9.0)]  # of a prompt that ben has not rated wholly
    with pytest.raises(DataError, match=r"2 of 3 prompts .* by 2 raters \(human.raters\): prompts 2, 3. Import"):
        rate(round_, given)
    rated = rate(round_, given, partial=True)
    assert len(rated.groups) == 2
    assert rated.notes == (
        "1 prompts with 3 completions are left out: nobody rated all of their answers",
        "1 prompts have fewer than 2 raters",
    )
    assert sorted(rated.groups[0].scores) == [2.0, 3.0, 4.0] and sorted(rated.groups[1].scores) == [1.0, 2.0, 3.0]
    assert {tuple(c.notes["raters"]) for c in rated.groups[1].completions} == {("anna",)}
    assert rated.groups[1].completions[0].notes["raters"]["anna"]["comment"] == "so so"
    with pytest.raises(DataError, match="no prompt was rated wholly by anyone"):
        rate(round_, given[-1:], partial=True)


def test_normalized_raters_reach_the_groups(tmp_path: Path, asked: list[Recipe]) -> None:
    round_ = people.begin(people.recipe(tmp_path, prompts=1, group_size=2, normalize_raters=True)).round
    a, b = round_.answers
    rated = rate(round_, [Rating(a.id, "anna", 4.0), Rating(b.id, "anna", 8.0)])
    assert sorted(rated.groups[0].scores) == [-1.0, 1.0]


# --- status ---------------------------------------------------------------------------------------------------


def test_status_by_hand(tmp_path: Path, asked: list[Recipe]) -> None:
    root = tmp_path / "rounds"
    path = people.recipe(tmp_path)
    assert status_of_empty(tmp_path) == []
    people.begin(path)
    assert [(one.state, one.rated, one.raters, one.alpha, one.score) for one in status(root)] == [
        ("exported", 0, 0, None, None)
    ]
    rows = people.table(root / "round-1" / "answers.csv")
    numbers = {row["id"]: place for place, row in enumerate(rows)}  # 0 1 2 and 3 4 5: prompt means 1 and 4
    import_all(root, rule=lambda row: numbers[row["id"]])
    import_all(root, "ben.csv", "ben", lambda row: numbers[row["id"]] + 2)  # means 3 and 6: together 2 and 5
    pretend_to_train(root / "round-1")
    people.begin(path)
    first, second = status(root)
    assert (first.prompts, first.answers, first.rated, first.raters, first.state) == (2, 6, 2, 2, "trained")
    # Student's t with one degree of freedom: 3.5 ± 12.706 · (3 / √2) / √2
    assert first.score is not None and first.score.value == pytest.approx(3.5)
    assert first.score.low == pytest.approx(3.5 - 12.7062 * 1.5, abs=1e-3)
    # raters differ by 2 everywhere: D_o = 4; twelve values, Σx 42, Σx² 194: D_e = 2·(12·194 − 42²)/132
    assert first.alpha == pytest.approx(1 - 4 / (1128 / 132))
    lines = words([first, second])
    assert lines[0].split() == [
        "round",
        "state",
        "prompts",
        "answers",
        "rated",
        "raters",
        "alpha",
        "mean",
        "score",
        "(95",
        "%)",
    ]
    assert lines[1].split() == ["1", "trained", "2", "6", "2", "2", "0.53", "3.50", "[-15.56,", "22.56]"]
    assert lines[2].split() == ["2", "exported", "2", "6", "0", "0", "–", "–"]


def status_of_empty(tmp_path: Path) -> list[Any]:
    (tmp_path / "empty").mkdir()
    return list(status(tmp_path / "empty"))


def test_mean_score_counts_a_text_as_often_as_it_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people.fake_draw(monkeypatch, lambda prompt, k: "same" if k else "other")
    people.begin(people.recipe(tmp_path, prompts=1))
    root = tmp_path / "rounds"
    import_all(root, rule=lambda row: 9 if row["answer"] == "same" else 3)
    (one,) = status(root)
    assert one.score is not None and one.score.value == pytest.approx(7.0) and not one.score.is_bounded
    assert words([one])[1].endswith("7.00")


def test_ranks_have_no_mean_score(tmp_path: Path, asked: list[Recipe]) -> None:
    round_ = people.begin(people.recipe(tmp_path, rate="rank")).round
    wanted = people.ranks_by_length(round_.answers)
    import_all(tmp_path / "rounds", rule=lambda row: wanted[row["id"]])
    assert status(tmp_path / "rounds")[0].score is None


# --- damage ---------------------------------------------------------------------------------------------------


def test_a_missing_round_and_a_damaged_state(tmp_path: Path, asked: list[Recipe]) -> None:
    path, root = people.recipe(tmp_path), tmp_path / "rounds"
    people.begin(path)
    import_all(root)
    pretend_to_train(root / "round-1")
    second = people.begin(path).round
    (root / "round-1").rename(root / "gone")
    with pytest.raises(DataError, match="round-1 is gone, but round-2 is there"):
        status(root)
    (root / "gone").rename(root / "round-1")
    facts = json.loads((second.folder / "round.json").read_text())
    for text, said in (
        ("{", "can't read .*round.json"),
        (json.dumps({**facts, "human": 9}), "version 9 of a round; this preftune reads version 1"),
        (json.dumps({k: v for k, v in facts.items() if k != "answers"}), "round.json: lacks answers"),
    ):
        (second.folder / "round.json").write_text(text)
        with pytest.raises(DataError, match=said):
            open_round(second.folder)

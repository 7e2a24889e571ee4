"""`preftune advise`: the charts, what the rows say, and recipes that run as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from preftune.cli.main import main
from preftune.config import SourceConfig
from preftune.curation.advise.choose import choose
from preftune.curation.advise.config import AdviseConfig
from preftune.curation.advise.facts import Facts, read_facts
from preftune.curation.advise.ratings import RATINGS
from preftune.curation.advise.recipe import make_recipe
from preftune.curation.advise.run import advise
from preftune.errors import DataError, UsageError
from preftune.methods import METHODS
from preftune.pipeline import run_pipeline
from preftune.recipes import load_recipe, resolve
from tests import tiny

PAIRS = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(30)]
MARKS = [{"prompt": f"q{i}", "completion": f"a {i}", "label": i % 3 > 0} for i in range(30)]
PROMPTS = [{"prompt": f"q{i}"} for i in range(30)]
SUMS = [{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(30)]
ANSWERS = [{"prompt": f"q{i}", "completion": f"some words {i}"} for i in range(30)]
RANKED = [
    {"prompt": f"q{i}", "responses": [{"text": t, "score": s} for t, s in (("a", 3), ("b", 2), ("c", 1))]}
    for i in range(30)
]
RANKED_RULE = {"from": "responses", "text": "text", "score": "score"}
MANY = [{"prompt": f"q{i}", "completion": f"words {i}"} for i in range(120)]


def _facts(tmp_path: Path, rows: list[dict[str, Any]], **source: Any) -> Facts:
    if rows is RANKED:
        source = {"responses": RANKED_RULE, **source}
    return read_facts([SourceConfig.model_validate({"path": str(tiny.write(tmp_path / "rows.jsonl", rows)), **source})])


@pytest.mark.parametrize(
    ("rows", "means", "best", "stages", "second"),
    [
        # the chart of shapes
        (PAIRS, {}, "dpo", (), "iterative-dpo"),
        (MARKS, {}, "kto", (), "sft"),
        (RANKED, {"gpus": "one"}, "iterative-dpo", ("reward",), "dpo"),
        (RANKED, {"gpus": "cluster"}, "ppo", ("reward",), "iterative-dpo"),
        (RANKED, {"gpus": "none"}, "dpo", (), "iterative-dpo"),
        (SUMS, {}, "grpo", (), "rft"),
        # the chart of labels
        (PROMPTS, {}, "human", (), "iterative-dpo"),
        (PROMPTS, {"verifiable": "yes"}, "grpo", (), "rft"),
        (PROMPTS, {"reward_model": "rm"}, "iterative-dpo", (), "rft"),
        (PROMPTS, {"reward_model": "rm", "gpus": "cluster"}, "ppo", (), "iterative-dpo"),
        (PROMPTS, {"judge": "gpt"}, "iterative-dpo", (), "rft"),
        (MANY, {}, "sft", (), "rft"),
        (ANSWERS, {}, "sft", (), "rft"),
        (ANSWERS, {"chain_of_thought": "yes", "verifiable": "yes"}, "grpo", (), "sft"),
        (ANSWERS, {"chain_of_thought": "yes", "verifiable": "no"}, "sft", (), "rft"),
        (ANSWERS, {"few": 20}, "sft", (), "rft"),
        # the chart of means
        (PROMPTS, {"annotators": "many", "gpus": "cluster"}, "human", (), "iterative-dpo"),
        (PAIRS, {"annotators": "few", "task": "small"}, "human", (), "dpo"),
        (PAIRS, {"annotators": "few", "task": "general"}, "dpo", (), "iterative-dpo"),
    ],
)  # fmt: skip
def test_the_charts(
    tmp_path: Path, rows: list[dict[str, Any]], means: dict[str, Any], best: str, stages: tuple[str, ...], second: str
) -> None:
    found = choose(_facts(tmp_path, rows), AdviseConfig.model_validate(means))
    assert (found.best.method, found.best.stages, found.second.method) == (best, stages, second)
    assert found.best.reasons and found.second.reasons


def test_what_the_rows_say(tmp_path: Path) -> None:
    facts = _facts(tmp_path, SUMS)
    assert (facts.rows, facts.prompts, facts.shape, facts.answers, facts.check) == (
        30,
        30,
        "prompts",
        "answer",
        "number",
    )
    marks = _facts(tmp_path, MARKS)
    assert marks.good == pytest.approx(2 / 3) and marks.shape == "marks"
    words = _facts(tmp_path, ANSWERS)
    assert words.completion_words == 3.0 and words.prompt_words == 1.0


@pytest.mark.parametrize(
    ("row", "check"),
    [
        ({"answer": "1,234.5"}, "number"),
        ({"answer": "$\\frac{1}{2}$"}, "mathematics"),
        ({"answer": "blue whale"}, "short text"),
        ({"answer": "a long text of many words that no program compares"}, None),
        ({"tests": ["assert f(1) == 2"]}, "tests"),
        ({"statements": [], "solution": {"A": "knight"}}, "puzzle"),
        ({"constraints": [{"kind": "words"}]}, "constraints"),
        ({"note": "3"}, None),
    ],
)
def test_how_an_answer_can_be_checked(tmp_path: Path, row: dict[str, Any], check: str | None) -> None:
    assert _facts(tmp_path, [{"prompt": f"q{i}", **row} for i in range(10)]).check == check


@pytest.mark.parametrize(
    "columns",
    [
        {"constraints": [{"kind": "words", "at_most": 5}]},
        {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    ],
)
def test_instructions_that_a_program_can_check_are_rewarded_by_constraints(
    tmp_path: Path, model: Path, columns: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny.write(tmp_path / "rows.jsonl", [{"prompt": f"say {i}", **columns} for i in range(30)])
    config = AdviseConfig(data=[SourceConfig(path=str(path))], model=str(model))
    found = advise(config, tmp_path / "out")
    assert found.recipe["rewards"] == [{"name": "constraints"}]
    assert any("built-in reward `constraints`" in answer for _, answer in found.verdict.path)
    small = {"sampling.max_tokens": "4", "sampling.group_size": "2", "train.batch_size": "2", "train.steps": "1"}
    run_pipeline(load_recipe(tmp_path / "out" / "recipe.yaml", {**small, "eval.limit": "1"}), dry_run=True)
    assert "constraints" in capsys.readouterr().out


def test_it_names_diagnose_as_the_step_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny.write(tmp_path / "my rows.jsonl", PAIRS)
    assert main(["advise", "--data.path", str(path), "--model", "some/model", "--output", str(tmp_path / "out")]) == 0
    command = f"preftune diagnose --model some/model --data '{path}'"
    assert command in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["before"] == command
    assert "preftune diagnose --model some/model" in (tmp_path / "out" / "report.html").read_text()
    assert "preftune diagnose" in (tmp_path / "out" / "recipe.yaml").read_text()


def test_rows_of_another_shape_are_not_counted(tmp_path: Path) -> None:
    pairs, prompts = tiny.write(tmp_path / "pairs.jsonl", PAIRS), tiny.write(tmp_path / "prompts.jsonl", PROMPTS[:20])
    facts = read_facts([SourceConfig(path=str(pairs)), SourceConfig(path=str(prompts))])
    found = choose(facts, AdviseConfig())
    assert found.best.method == "dpo" and "30 pairs say" in found.best.reasons[0]
    assert any("30 pairs, 20 prompts" in warning and "those alone" in warning for warning in found.warnings)


def test_prompts_alone_can_be_answered_by_models_of_known_rank(tmp_path: Path) -> None:
    alone = choose(_facts(tmp_path, PROMPTS), AdviseConfig()).warnings
    assert any("preftune data generate" in warning for warning in alone)
    judged = choose(_facts(tmp_path, PROMPTS), AdviseConfig(judge="gpt-x")).warnings
    assert not any("preftune data generate" in warning for warning in judged)


def test_a_column_that_is_mostly_empty_is_no_check(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "answer": "1" if i < 5 else None} for i in range(10)]
    assert _facts(tmp_path, rows).check is None


def test_applicability_says_what_is_missing() -> None:
    found = choose(Facts(), AdviseConfig()).applicability
    assert set(found) == set(RATINGS) <= set(METHODS)
    assert found["sft"].score == 0 and "no answer" in found["sft"].why
    assert found["dpo"].score == 1 and "preftune data pairs" in found["dpo"].why
    assert found["grpo"].score == 0 and "--judge" in found["grpo"].why
    assert all(1 <= n <= 5 for r in RATINGS.values() for n in (r.quality, r.complexity, r.cost))


def test_warnings(tmp_path: Path) -> None:
    skewed = choose(_facts(tmp_path, [{**row, "label": i > 0} for i, row in enumerate(MARKS)]), AdviseConfig())
    assert any("desirable_weight: auto" in w for w in skewed.warnings)
    repeated = choose(_facts(tmp_path, [{"prompt": "same", "answer": "1"}] * 20), AdviseConfig())
    assert any("20 rows have 1 different prompts" in w for w in repeated.warnings)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("model"), max_position_embeddings=4096)


@pytest.mark.parametrize(
    ("rows", "means"),
    [
        (PAIRS, {}), (MARKS, {}), (SUMS, {}), (MANY, {}), (RANKED, {"gpus": "none"}),
        (PROMPTS, {}), (SUMS, {"judge": None, "verifiable": "auto"}),
    ],
)  # fmt: skip
def test_the_recipe_runs_as_it_is(
    tmp_path: Path, model: Path, rows: list[dict[str, Any]], means: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny.write(tmp_path / "rows.jsonl", rows)
    source: dict[str, Any] = {"path": str(path)} | ({"responses": RANKED_RULE} if rows is RANKED else {})
    config = AdviseConfig.model_validate({"data": [source], "model": str(model), **means})
    found = advise(config, tmp_path / "advice")
    pipeline = load_recipe(
        tmp_path / "advice" / "recipe.yaml",
        {"train.epochs": "1"} if "epochs" in str(found.recipe) else {"train.steps": "1"},
    )
    method = found.verdict.best.method
    assert pipeline.stages[-1].method == method
    if method == "grpo":
        pipeline = load_recipe(
            tmp_path / "advice" / "recipe.yaml",
            {
                "train.steps": "1",
                "train.batch_size": "2",
                "sampling.group_size": "2",
                "sampling.max_tokens": "4",
                "eval.limit": "1",
            },
        )
    run_pipeline(pipeline, dry_run=True)
    assert method in capsys.readouterr().out


@pytest.mark.parametrize("shape", [PAIRS, MARKS, SUMS, PROMPTS, MANY, RANKED])
@pytest.mark.parametrize("gpus", ["none", "one", "cluster"])
@pytest.mark.parametrize("annotators", ["none", "few", "many"])
@pytest.mark.parametrize(
    "extra", [{}, {"judge": "gpt-x"}, {"judge": "org/name"}, {"reward_model": "rm"}, {"task": "small"}]
)
def test_every_recommendation_is_a_valid_recipe(
    tmp_path: Path, shape: list[dict[str, Any]], gpus: str, annotators: str, extra: dict[str, Any]
) -> None:
    facts = _facts(tmp_path, shape)
    source = {"path": "rows.jsonl"} | ({"responses": RANKED_RULE} if shape is RANKED else {})
    config = AdviseConfig.model_validate({"data": [source], "gpus": gpus, "annotators": annotators, **extra})
    verdict = choose(facts, config)
    for choice in (verdict.best, verdict.second):
        stages = resolve(make_recipe(choice, facts, config)).stages
        assert METHODS[stages[-1].method]
        assert stages[-1].data[0].chat, "a plain prompt becomes a user's message for a chat model"


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write(tmp_path / "pairs.jsonl", PAIRS)
    assert main(["advise", "--data.path", "pairs.jsonl", "--output", "out"]) == 0
    said = capsys.readouterr().out
    assert "Direct preference optimisation (dpo)" in said and "recipe: out/recipe.yaml" in said
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["method"] == "dpo" and summary["facts"]["shapes"] == {"pairs": 30}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Take Direct preference optimisation (dpo)" in page and "runner-up" in page
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"recipe.yaml", "summary.json", "report.html"}
    assert main(["advise", "--data.path", "pairs.jsonl", "--output", "out"]) == 2
    assert "exists and is not empty" in capsys.readouterr().err


def test_without_data_it_says_what_to_collect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", "--output", str(tmp_path / "out"), "--annotators", "few", "--task", "small"]) == 0
    assert "(human)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "two"], "expected one of unknown, none, one, cluster"),
        (["--gpu", "one"], "did you mean --gpus?"),
        (["--data.path", "missing.jsonl"], "no such file"),
        (["--few", "0"], "at least 1"),
    ],
)
def test_wrong_words(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["advise", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "advice" / "report.html").exists()


def test_bad_rows_name_their_line(tmp_path: Path) -> None:
    path = tiny.write(tmp_path / "rows.jsonl", [{"prompt": "a"}, {"prompt": ""}])
    with pytest.raises((DataError, UsageError), match=r"rows.jsonl:2"):
        advise(AdviseConfig(data=[SourceConfig(path=str(path))]), tmp_path / "out")


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    rows = [{"prompt": "<script>alert(1)</script>", "<img src=x>": "1"}]
    path = tiny.write(tmp_path / "<b>rows.jsonl", rows)
    advise(AdviseConfig(data=[SourceConfig(path=str(path))]), tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<img src=x>" not in page and "<b>rows" not in page

"""`preftune evaluate` as a function: a local model and a server on 127.0.0.1, resuming, and the table's numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from preftune.errors import DataError, SamplingError, UsageError
from preftune.evaluate import EvaluateConfig, Evaluated, evaluate
from preftune.evaluate import run as run_module
from preftune.evaluate.config import EvaluatedModel
from preftune.intervals import mean_interval, paired_difference
from tests import tiny
from tests.judges.fakes import Server, chat

RULES = [
    {"prompt": "say tea", "constraints": [{"kind": "contains", "words": ["tea"]}]},
    {"prompt": "say short", "constraints": [{"kind": "words", "at_most": 3}, {"kind": "lowercase"}]},
    {"prompt": "say it", "constraints": [{"kind": "quoted"}]},
]
CHOICES = [
    {"question": "2+2?", "choices": ["four", "five"], "answer": "A"},
    {"question": "3+2?", "choices": ["four", "five"], "answer": "B"},
]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def obedient(prompt: str) -> str:
    """Follows RULES, but for the quotation marks; takes B always."""
    if "letter of the right choice" in prompt:
        return "(B) five"
    return {"say tea": "Tea!", "say short": "so be it", "say it": "It"}[prompt]


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    running.rule = obedient
    yield running
    running.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("evaluated") / "small", max_position_embeddings=256)


def endpoint(server: Server, name: str = "api") -> dict[str, Any]:
    return {"name": name, "endpoint": {"model": name, "base_url": server.url, "backoff": 0.001, "patience": 0.0}}


def settings(folder: Path, models: list[Any], **more: Any) -> EvaluateConfig:
    tasks = [
        {"task": "instructions", "path": str(tiny.write(folder / "rules.jsonl", RULES))},
        {"task": "choices", "path": str(tiny.write(folder / "choices.jsonl", CHOICES))},
    ]
    return EvaluateConfig.model_validate({"models": models, "tasks": tasks, "max_tokens": 8, **more})


def cells(found: Evaluated) -> dict[tuple[str, str], Any]:
    return {(cell.model, cell.task): cell for column in found.columns for cell in column.cells}


def test_a_server_and_a_local_model_side_by_side(tmp_path: Path, server: Server, model: Path) -> None:
    found = evaluate(settings(tmp_path, [str(model), endpoint(server)]), tmp_path / "out")
    table = cells(found)
    api = table["api", "instructions"]
    assert api.metrics["followed/prompts"] == mean_interval([1.0, 1.0, 0.0])
    assert api.metrics["followed/instructions"].value == pytest.approx(3 / 4)
    assert {name: (a.value, a.n) for name, (a, _) in api.kinds.items()} == {
        "contains": (1.0, 1), "words": (1.0, 1), "lowercase": (1.0, 1), "quoted": (0.0, 1),
    }  # fmt: skip
    letters, sums = table["api", "choices"], table["small", "choices"]
    assert letters.by_letter and not sums.by_letter
    assert letters.metrics["choices/accuracy"].value == 0.5 and letters.metrics["choices/unread"].value == 0.0
    assert {"choices/accuracy", "choices/accuracy_sum", "choices/margin"} == set(sums.metrics)
    assert table["small", "instructions"].differences == {} and "followed/prompts" in api.differences

    # the answers, row by row, are what the numbers are made from
    lines = tiny.lines(tmp_path / "out" / "answers.jsonl")
    assert len(lines) == 10 and {line["model"] for line in lines} == {"small", "api"}
    mine = [line for line in lines if (line["model"], line["task"]) == ("small", "instructions")]
    first = [float(all(line["strict"])) for line in sorted(mine, key=lambda line: line["row"])]
    assert api.differences["followed/prompts"] == paired_difference(first, [1.0, 1.0, 0.0])
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    told = summary["tasks"]["instructions"]["models"]["api"]
    assert told["metrics"]["followed/prompts"]["value"] == pytest.approx(2 / 3) and told["unanswered"] == 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "50.0\u00a0%†" in page and "asked for a letter" in page and "api (66.7" in page

    # what the server was asked: a chat, the choices by letter, no sampling settings beyond ours
    asked = [body for body, _ in server.requests if "letter of the right choice" in body["messages"][0]["content"]]
    first = "2+2?\nA. four\nB. five\n"  # requests run side by side: which arrives first is not said
    assert any(body["messages"][0]["content"].startswith(first) for body in asked)
    assert all(body["max_tokens"] == 8 for body in asked)
    assert all(body["temperature"] == 0.0 for body, _ in server.requests)


def test_local_choices_do_not_depend_on_the_batch(tmp_path: Path, model: Path) -> None:
    whole = evaluate(settings(tmp_path, [str(model)]), tmp_path / "whole")
    small = evaluate(settings(tmp_path, [str(model)], max_tokens_per_batch=16), tmp_path / "small")
    one, other = (cells(found)["small", "choices"].metrics["choices/margin"].value for found in (whole, small))
    assert one == pytest.approx(other, abs=1e-5)


def test_nothing_is_asked_twice(tmp_path: Path, server: Server, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.respond = lambda body, number: (500, "down") if number >= 2 else None
    config = settings(tmp_path, [endpoint(server)], stop_after=2)
    with pytest.raises(SamplingError, match="2 requests in a row failed"):
        evaluate(config, tmp_path / "out")
    kept = tiny.lines(tmp_path / "out" / "answers.jsonl")
    assert sum("error" not in line for line in kept) == 2 and not (tmp_path / "out" / "report.html").exists()
    with pytest.raises(UsageError, match="go on there with --resume"):
        evaluate(config, tmp_path / "out")

    server.respond = lambda body, number: None
    before = len(server.requests)
    found = evaluate(config, tmp_path / "out", resume=True)
    assert len(server.requests) - before == 3
    assert all(not cell.unanswered for cell in cells(found).values())

    # again: nothing is left; then a further model joins the table
    asked = len(server.requests)
    again = evaluate(config, tmp_path / "out", resume=True)
    assert len(server.requests) == asked and cells(again)["api", "instructions"] == cells(found)["api", "instructions"]
    both = settings(tmp_path, [endpoint(server), str(model)])
    joined = cells(evaluate(both, tmp_path / "out", resume=True))
    assert len(server.requests) == asked and ("small", "choices") in joined

    # without the first model its answers stay where they are, for another day
    monkeypatch.setattr(run_module, "ask_local", None)
    alone = cells(evaluate(settings(tmp_path, [str(model)]), tmp_path / "out", resume=True))
    assert set(alone) == {("small", "instructions"), ("small", "choices")}
    assert {*json.loads((tmp_path / "out" / "settings.json").read_text())["models"]} == {"api", "small"}


def test_a_row_that_a_server_refuses_is_in_no_number(tmp_path: Path, server: Server) -> None:
    def respond(body: dict[str, Any], number: int) -> Any:
        if body["messages"][0]["content"] == "say it":
            return 200, chat(None, finish="content_filter")
        return None

    server.respond = respond
    found = evaluate(settings(tmp_path, [endpoint(server)]), tmp_path / "out")
    cell = cells(found)["api", "instructions"]
    assert cell.metrics["followed/prompts"].n == 2 and cell.metrics["followed/prompts"].value == 1.0
    ((where, why),) = cell.unanswered
    assert where.endswith("rules.jsonl:3") and "content_filter" in why
    assert "Rows without an answer" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_answers_of_another_model_or_task_are_not_taken_for_these(
    tmp_path: Path, server: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    evaluate(settings(tmp_path, [endpoint(server)]), tmp_path / "out")
    with pytest.raises(UsageError, match="how answers are drawn has changed"):
        evaluate(settings(tmp_path, [endpoint(server)], temperature=0.5), tmp_path / "out", resume=True)
    with pytest.raises(UsageError, match=r"task instructions has changed .*max_tokens was 8, now 9"):
        evaluate(settings(tmp_path, [endpoint(server)], max_tokens=9), tmp_path / "out", resume=True)
    changed = settings(tmp_path, [endpoint(server)])
    tiny.write(tmp_path / "rules.jsonl", RULES[1:])
    with pytest.raises(UsageError, match=r"task instructions has changed .*content was"):
        evaluate(changed, tmp_path / "out", resume=True)
    other = {**endpoint(server), "endpoint": {"model": "other", "base_url": server.url}}
    with pytest.raises(UsageError, match="model api has changed"):
        evaluate(settings(tmp_path, [other]), tmp_path / "out", resume=True)


def test_new_weights_under_an_old_path_are_another_model(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "m")
    before = EvaluatedModel(path=str(folder)).identity()
    assert EvaluatedModel(path=str(folder)).identity() == before
    tiny.save(tmp_path / "m", seed=1)
    assert EvaluatedModel(path=str(folder)).identity() != before


def test_a_torn_line_is_taken_away_and_a_foreign_one_is_named(tmp_path: Path, server: Server) -> None:
    config = settings(tmp_path, [endpoint(server)])
    evaluate(config, tmp_path / "out")
    path = tmp_path / "out" / "answers.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    asked = len(server.requests)
    evaluate(config, tmp_path / "out", resume=True)
    assert len(server.requests) == asked + 1 and len(tiny.lines(path)) == len(whole.splitlines())
    path.write_bytes(b"{}\n" + whole)
    with pytest.raises(DataError, match=r"answers.jsonl:1: no answer of ours"):
        evaluate(config, tmp_path / "out", resume=True)


def test_answers_that_are_not_greedy_do_not_depend_on_a_stop(tmp_path: Path, model: Path) -> None:
    config = settings(tmp_path, [str(model)], temperature=1.0)
    evaluate(config, tmp_path / "one")
    evaluate(config, tmp_path / "two")
    path = tmp_path / "two" / "answers.jsonl"
    lines = tiny.lines(path)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines if line["row"] != 1))
    evaluate(config, tmp_path / "two", resume=True)

    def answers(name: str) -> dict[Any, Any]:
        found = tiny.lines(tmp_path / name / "answers.jsonl")
        return {(line["task"], line["row"]): line.get("answer", line.get("picked", "")) for line in found}

    assert answers("one") == answers("two") and len({*answers("one").values()}) > 2


def test_pmi_takes_what_a_choice_is_likely_anyway_off(tmp_path: Path, model: Path) -> None:
    """Against two plain measurements: behind the question, and behind the prompt that tells nothing."""
    rows = [{"prompt": "so it is", "choices": ["aaa", "x"], "answer": 0}]
    nothing = [{"prompt": "Answer:", "choices": ["aaa", "x"], "answer": 0}]

    def values(rows: list[dict[str, Any]], normalize: str, name: str) -> list[float]:
        path = tiny.write(tmp_path / f"{name}.jsonl", rows)
        raw = {"models": [str(model)], "tasks": [{"task": "choices", "path": str(path), "normalize": normalize}]}
        evaluate(EvaluateConfig.model_validate(raw), tmp_path / name)
        return list(tiny.lines(tmp_path / name / "answers.jsonl")[0]["values"])

    plain, bare, pmi = values(rows, "none", "plain"), values(nothing, "none", "bare"), values(rows, "pmi", "pmi")
    assert pmi == pytest.approx([a - b for a, b in zip(plain, bare, strict=True)], abs=1e-5)
    tokens, chars = values(rows, "tokens", "tokens"), values(rows, "characters", "characters")
    assert tokens == pytest.approx([plain[0] / 4, plain[1] / 2], abs=1e-6)  # the space before a choice is a token here
    assert chars == pytest.approx([plain[0] / 3, plain[1] / 1], abs=1e-6)


def test_local_models_can_be_asked_for_letters_too(tmp_path: Path, model: Path) -> None:
    path = tiny.write(tmp_path / "choices.jsonl", CHOICES)
    raw = {
        "models": [str(model)], "max_tokens": 4,
        "tasks": [{"task": "choices", "path": str(path), "by": "letter"}],
    }  # fmt: skip
    cell = cells(evaluate(EvaluateConfig.model_validate(raw), tmp_path / "out"))["small", "choices"]
    assert cell.by_letter and set(cell.metrics) == {"choices/accuracy", "choices/unread"}


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"models": []}, "at least 1 item"),
        ({"models": ["a", "x/a"]}, "two models are named 'a'"),
        ({"models": ["a"], "tasks": ["choices", "choices"]}, "two tasks are named 'choices'"),
        ({"models": [{"name": "a"}]}, "give exactly one of path"),
        ({"models": [{"path": "a", "endpoint": "b"}]}, "give exactly one of path"),
        ({"models": [{"endpoint": "b", "dtype": "float32"}]}, "dtype goes with path"),
        ({"models": ["stage:sft"]}, "stands for a stage of a recipe"),
        ({"models": [{"name": "1", "path": "a"}]}, "a name is no number"),
    ],
)
def test_wrong_settings(raw: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        EvaluateConfig.model_validate(raw)


def test_the_large_numbers_are_not_the_first_models_alone(tmp_path: Path, server: Server, model: Path) -> None:
    def page(*models: Any) -> str:
        folder = tmp_path / str(len(models))
        folder.mkdir()
        evaluate(settings(folder, list(models)), folder / "out")
        return (folder / "out" / "report.html").read_text(encoding="utf-8")

    def large(text: str) -> list[str]:
        return [re.sub(r"\s", " ", one) for one in re.findall(r'<span class="big">(.*?)</span>', text)]

    small = {"name": "small", "path": str(model)}
    (one, _), both = large(page(endpoint(server))), page(small, endpoint(server))
    assert one == "66.7 %"
    assert large(both)[0].endswith(f" → {one}")
    assert '"shares":true' in both.replace(" ", "")
    assert large(page(small, endpoint(server), endpoint(server, "again")))[0].endswith(f" to {one}")


def test_names_of_models() -> None:
    assert EvaluatedModel(path="runs/mine/final").title == "mine"
    assert EvaluatedModel(path="Qwen/Qwen2.5-7B").title == "Qwen2.5-7B"
    assert EvaluatedModel(endpoint="gpt-4o").title == "gpt-4o"  # type: ignore[arg-type]
    assert EvaluateConfig.model_validate({"models": "a", "tasks": "choices"}).tasks[0].title == "choices"


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", 1), ("b.", 1), ("(B)", 1), ("**B**", 1), ("B. five", 1), ("B) five", 1), ("A: four", 0),
        ("The answer is B.", 1), ("Answer: B", 1), ("I'd say A, but the answer is (B).", 1), ("Ответ: B", 1),
        ("A cat sits there.", None), ("Both", None), ("", None), ("D", None), ("five", None),
    ],
)  # fmt: skip
def test_letters_are_read_strictly(text: str, letter: int | None) -> None:
    from preftune.tasks.choices import read_letter

    assert read_letter(text, 3) == letter


def test_ties_count_as_a_share() -> None:
    from preftune.tasks.choices import chosen, margin, rightness

    assert rightness((1.0, 1.0, 0.0), 1) == 0.5 and rightness((1.0, 0.0), 1) == 0.0 and rightness((0.0, 2.0), 1) == 1.0
    assert margin((1.0, 3.0, 2.0), 1) == 1.0
    assert chosen((-1.0, -2.0), (-4.0, -2.0), 1).right == 0.0 and chosen((-1.0, -2.0), (-4.0, -2.0), 1).right_sum == 1.0


def test_a_command_refused_before_anything_was_asked_leaves_the_name_free(tmp_path: Path, model: Path) -> None:
    with pytest.raises((DataError, SamplingError), match="positions"):
        evaluate(settings(tmp_path, [str(model)], max_tokens=256), tmp_path / "out")
    evaluate(settings(tmp_path, [str(model)]), tmp_path / "out")  # the mended command may take the same name
    with pytest.raises(UsageError, match="has changed"):
        evaluate(settings(tmp_path, [str(model)], max_tokens=256), tmp_path / "out", resume=True)
    assert (tmp_path / "out" / "answers.jsonl").exists()

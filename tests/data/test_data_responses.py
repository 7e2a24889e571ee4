"""Several responses to a prompt: the ranked format and the recipe's `responses:` rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError

from preftune.config import ResponsesRule, SourceConfig
from preftune.data import best_of, load_examples
from preftune.data.columns import BadRow
from preftune.data.formats import to_example
from preftune.data.responses import apply_rule
from preftune.errors import DataError
from preftune.records import Example, Message
from preftune.signals import preference_pairs

TURN = {"role": "assistant", "content": "Six."}


def example(row: dict[str, Any], **config: Any) -> Example:
    return to_example(row, "ranked", SourceConfig(path="x", **config), "f:1")


def said(row: dict[str, Any]) -> str:
    with pytest.raises(BadRow) as caught:
        example(row)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------ the format


@pytest.mark.parametrize(
    ("columns", "completions", "scores", "sources"),
    [
        ({"responses": ["a", "b", "c"]}, ("a", "b", "c"), (-1.0, -2.0, -3.0), ()),
        ({"responses": ["a"]}, ("a",), (-1.0,), ()),
        ({"responses": ["a", "b"], "scores": [3, 9.5]}, ("a", "b"), (3.0, 9.5), ()),
        ({"responses": ["a", "b"], "scores": [True, False]}, ("a", "b"), (1.0, 0.0), ()),
        ({"responses": ["a", "b"], "ranks": [2, 1]}, ("a", "b"), (-2.0, -1.0), ()),
        ({"responses": ["a", "b"], "scores": [1, 1]}, ("a", "b"), (1.0, 1.0), ()),
        ({"responses": [{"text": "a", "score": 2}, {"text": "b", "score": "3"}]}, ("a", "b"), (2.0, 3.0), ()),
        ({"responses": [{"content": "a", "rank": 1}, {"completion": "b", "rank": 2}]}, ("a", "b"), (-1.0, -2.0), ()),
        ({"responses": [{"text": "a", "label": True, "model": "m"}]}, ("a",), (1.0,), ("m",)),
        (
            {"responses": [{"text": "a", "score": 1, "source": "m"}, {"text": "b", "score": 0, "source": None}]},
            ("a", "b"),
            (1.0, 0.0),
            ("m", ""),
        ),
        ({"responses": [{"text": "a"}, {"text": ""}], "scores": [1, 0]}, ("a", ""), (1.0, 0.0), ()),
        ({"responses": [{"text": "a", "rank": 0}]}, ("a",), (0.0,), ()),
        ({"responses": [{"text": "a", "score": 1, "words": 3, "messages": None}]}, ("a",), (1.0,), ()),
    ],
)
def test_ranked(columns: dict[str, Any], completions: Any, scores: Any, sources: Any) -> None:
    assert example({"prompt": "P", "id": 7, **columns}) == Example("P", completions, {"id": 7}, "f:1", scores, sources)


def test_ranked_conversations() -> None:
    user, six = Message("user", "3+3?"), (Message("assistant", "Six."),)
    for prompt in ("3+3?", [{"role": "user", "content": "3+3?"}]):
        rows: list[list[Any]] = [
            [{"messages": [TURN], "score": 1}, {"text": "5", "score": 0}],
            # the whole conversation, beginning with the prompt
            [{"messages": [{"role": "user", "content": "3+3?"}, TURN], "score": 1}, {"text": "5", "score": 0}],
        ]
        for responses in rows:
            made = example({"prompt": prompt, "responses": responses})
            assert (made.prompt, made.completions) == ((user,), (six, (Message("assistant", "5"),)))
    assert example({"prompt": "3+3?", "responses": [[TURN], [TURN]]}).completions == (six, six)
    assert example({"prompt": "3+3?", "responses": ["Six."]}, chat=True).completions == (six,)
    assert example({"prompt": "3+3?", "responses": [{**TURN, "score": 1}]}).completions == ("Six.",)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"responses": "a"}, "column 'responses' must hold a list of responses, it holds text"),
        ({"responses": []}, "column 'responses' is an empty list"),
        ({"responses": ["a", {"text": "b", "score": 1}]}, "column 'responses' holds objects and other values"),
        ({"responses": ["a", 3]}, "column 'responses[1]' must hold text or a list of messages, it holds a number"),
        ({"responses": ["a", "b"], "scores": [1]}, "column 'scores' has 1 entries for 2 responses"),
        ({"responses": ["a", "b"], "scores": 1}, "column 'scores' must hold a list, one entry for each response"),
        ({"responses": ["a", "b"], "scores": [1, None]}, "scores[1] must be true, false or a number, it is null"),
        ({"responses": ["a", "b"], "ranks": [1, True]}, "ranks[1] must be a number, it is true"),
        ({"responses": ["a"], "ranks": [1], "scores": [1]}, "the columns 'scores' and 'ranks' both grade the resp"),
        ({"responses": [{"text": "a", "score": 1}], "scores": [1]}, "the columns 'scores' and 'responses' both grade"),
        ({"responses": [{"text": "a"}]}, "responses[0] has none of score, label, rank. Fields: text"),
        ({"responses": [{"score": 1}]}, "responses[0] has none of text, content, completion, messages. Fields: score"),
        (
            {"responses": [{"text": "a", "content": "b", "score": 1}]},
            "responses[0] has both text and content; name the",
        ),
        ({"responses": [{"text": "a", "score": 1, "rank": 1}]}, "responses[0] has both score and rank; name the right"),
        (
            {"responses": [{"text": "a", "score": 1}, {"text": "b", "rank": 1}]},
            "some responses have a score and some a",
        ),
        (
            {"responses": [{"text": "a", "score": "high"}]},
            "responses[0].score must be true, false or a number, it is the",
        ),
        ({"responses": [{"text": "a", "score": float("nan")}]}, "responses[0].score must be a finite 32-bit number"),
        (
            {"responses": [{"text": "a", "score": 1, "source": "m", "model": "n"}]},
            "responses[0] has both source and mod",
        ),
        ({"responses": [{"text": "a", "score": 1, "source": 3}]}, "responses[0].source must be text, the name of who"),
        (
            {"responses": [{"role": "user", "content": "a", "score": 1}]},
            "responses[0] is a message of user, not a resp",
        ),
        ({"responses": [[{"role": "user", "content": "a"}, TURN]]}, "responses[0] must begin with an assistant turn"),
        ({"responses": [[]]}, "column 'responses[0]' is an empty list"),
    ],
)
def test_bad_responses(columns: dict[str, Any], message: str) -> None:
    assert said({"prompt": "P", **columns}).startswith(message)


# ------------------------------------------------------------------------------------------------ the rule

# Like the solutions that come with this project's issues: marked answers of several models, and a person's own.
RULE = """
path: marked.jsonl
columns: {prompt: question}
responses:
  {from: responses, text: text, score: correct, source: model, also: [{column: reference, score: 1, source: human}]}
"""
ROWS: list[dict[str, Any]] = [
    {
        "question": "Ann has 3 cups and buys 2 more. How many has she?",
        "reference": "3 + 2 = 5 cups.\nA: 5",
        "responses": [
            {"model": "small", "text": "3 * 2 = 6\nA: 6", "correct": False},
            {"model": "small-checked", "text": "3 + 2 = 5\nA: 5", "correct": True},
            {"model": "large", "text": "She has 2.\nA: 2", "correct": False},
        ],
    },
    {
        "question": "Half of 8?",
        "reference": "8 / 2 = 4\nA: 4",
        "responses": [
            {"model": "small", "text": "8 / 2 = 4\nA: 4", "correct": True},
            {"model": "large", "text": "Four.\nA: 4", "correct": True},
        ],
    },
    {
        "question": "2 dozen?",
        "reference": "2 * 12 = 24\nA: 24",
        "responses": [{"model": "small", "text": "20\nA: 20", "correct": False}],
    },
]


def test_marked_solutions_are_read_by_mapping_alone(tmp_path: Path) -> None:
    path = tmp_path / "marked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    source = SourceConfig(**{**yaml.safe_load(RULE), "path": str(path)})
    examples = load_examples([source], seed=0).examples
    first = examples[0]
    assert first.prompt == ROWS[0]["question"]
    assert first.completions == (*(one["text"] for one in ROWS[0]["responses"]), ROWS[0]["reference"])
    assert first.scores == (0.0, 1.0, 0.0, 1.0)
    assert first.sources == ("small", "small-checked", "large", "human")
    assert dict(first.columns) == {"reference": ROWS[0]["reference"]} and first.where == f"{path}:1"
    # right × wrong: 2·2 of the first question, none of the second, 1·1 of the third
    scores = torch.tensor([score for one in examples for score in one.scores])
    groups = torch.tensor([n for n, one in enumerate(examples) for _ in one.scores])
    pairs = preference_pairs(scores, groups).pairs_P2
    assert len(pairs) == 5 and groups[pairs[:, 0]].unique().tolist() == [0, 2]
    assert best_of(first).completions == ("3 + 2 = 5\nA: 5",)


def ruled(row: dict[str, Any], columns: dict[str, Any] | None = None, /, **rule: Any) -> Example:
    source = SourceConfig.model_validate({"path": "x", "responses": rule})
    assert source.responses is not None
    return to_example(
        apply_rule(source.responses, {"prompt": "P", **row} | (columns or {}), row), "ranked", source, "f:1"
    )


def broken(row: dict[str, Any], /, **rule: Any) -> str:
    with pytest.raises(BadRow) as caught:
        ruled(row, **rule)
    return str(caught.value)


def test_rule_reads_ranks_lists_and_standard_names() -> None:
    answers = [{"body": "a", "place": 2}, {"body": "b", "place": 1}]
    rule: dict[str, Any] = {"from": "answers", "text": "body", "rank": "place"}
    assert ruled({"answers": answers}, **rule) == Example("P", ("a", "b"), {}, "f:1", (-2.0, -1.0))
    made = ruled({"answers": answers, "own": "c"}, **rule, also=[{"column": "own", "rank": 0.5, "source": "us"}])
    assert (made.scores, made.sources) == ((-2.0, -1.0, -0.5), ("", "", "us"))
    # a list of texts: score and source are columns with lists, which are used up
    row = {"texts": ["a", "b"], "marks": [0.5, 2], "by": ["m", None], "left": 1}
    made = ruled(row, **{"from": "texts", "score": "marks", "source": "by"})
    assert made == Example("P", ("a", "b"), {"left": 1}, "f:1", (0.5, 2.0), ("m", ""))
    assert ruled(row, **{"from": "texts"}).scores == (-1.0, -2.0)  # without grades the best is first
    assert ruled({"a": [{"content": "x", "label": True}]}, **{"from": "a"}).scores == (1.0,)
    # a column named like a standard one is not taken for grades when the rule names others
    made = ruled({"a": [{"text": "x", "good": 1}], "scores": "of a choir"}, **{"from": "a", "score": "good"})
    assert (made.scores, dict(made.columns)) == ((1.0,), {"scores": "of a choir"})


def test_rule_reads_mapped_columns_and_the_row_as_it_came() -> None:
    row = {"answers": [{"text": "a", "score": 0}], "raw": "<<2>>b"}
    rule: dict[str, Any] = {"from": "answers", "score": "score"}
    assert ruled(row, {"clean": "b"}, **rule, also=[{"column": "clean", "score": 1}]).completions == ("a", "b")
    source = ResponsesRule.model_validate({**rule, "also": [{"column": "old", "score": 1}]})
    mapped = apply_rule(source, {"prompt": "P", "new": "c"}, {"answers": row["answers"], "old": "c"})
    assert [one.content for one in mapped["responses"]] == ["a", "c"] and mapped["new"] == "c"


def test_one_response_and_equal_scores_are_allowed() -> None:
    rule: dict[str, Any] = {"from": "a", "score": "s", "also": [{"column": "b", "score": 1}]}
    assert ruled({"a": [], "b": "x"}, **rule).scores == (1.0,)
    assert ruled({"a": [{"text": "y", "s": True}], "b": "x"}, **rule).scores == (1.0, 1.0)


@pytest.mark.parametrize(
    ("row", "rule", "message"),
    [
        (
            {"answer": []},
            {"from": "answers"},
            "there is no column 'answers', did you mean 'answer'? Columns: answer, prom",
        ),
        ({"a": "text"}, {"from": "a"}, "column 'a' must hold a list of responses, it holds text"),
        ({"a": []}, {"from": "a"}, "column 'a' is an empty list"),
        (
            {"a": ["x", {"text": "y"}]},
            {"from": "a"},
            "a[1] must be text, messages or, as all others, an object; it is an",
        ),
        ({"a": [3]}, {"from": "a"}, "a[0] must be text, messages or, as all others, an object; it is a number"),
        (
            {"a": ["x"]},
            {"from": "a", "text": "body"},
            "a[0] is text and has no field 'body'; remove data.responses.text",
        ),
        (
            {"a": [{"text": "x", "corect": True}]},
            {"from": "a", "score": "correct"},
            "a[0] has no field 'correct', did you mean 'corect'? Fields: text, corect (data.responses.score names it)",
        ),
        (
            {"a": [{"body": "x", "s": 1}]},
            {"from": "a", "text": "bdy", "score": "s"},
            "a[0] has no field 'bdy', did you",
        ),
        (
            {"a": [{"text": "x", "s": 1}]},
            {"from": "a", "score": "s", "source": "by"},
            "a[0] has no field 'by'. Fields: te",
        ),
        (
            {"a": [{"text": "x", "s": None}]},
            {"from": "a", "score": "s"},
            "a[0].s is null (data.responses.score names it)",
        ),
        (
            {"a": [{"text": "x", "s": "ok"}]},
            {"from": "a", "score": "s"},
            "a[0].s must be true, false or a number, it is",
        ),
        (
            {"a": [{"text": "x", "s": 1e300}]},
            {"from": "a", "score": "s"},
            "a[0].s must be a finite 32-bit number, it is 1e",
        ),
        ({"a": [{"text": "x", "s": False}]}, {"from": "a", "rank": "s"}, "a[0].s must be a number, it is false"),
        ({"a": [{"text": "x"}]}, {"from": "a"}, "a[0] has none of score, label, rank. Fields: text"),
        ({"a": ["x"], "s": [1, 2]}, {"from": "a", "score": "s"}, "column 's' has 2 entries for 1 responses"),
        ({"a": ["x"]}, {"from": "a", "score": "s"}, "there is no column 's'. Columns: a, prompt (data.responses.score"),
        (
            {"a": ["x"], "s": [1], "by": "m"},
            {"from": "a", "score": "s", "source": "by"},
            "column 'by' must hold a list",
        ),
        (
            {"a": [{"text": "x", "s": 1}]},
            {"from": "a", "score": "s", "also": [{"column": "refrence", "score": 1}]},
            "there is no column 'refrence'. Columns: a, prompt (data.responses.also names it)",
        ),
        (
            {"a": [{"text": "x", "s": 1}], "b": None},
            {"from": "a", "score": "s", "also": [{"column": "b", "score": 1}]},
            "column 'b' must hold text or a list of messages, it holds null",
        ),
    ],
)
def test_rules_that_do_not_fit(row: dict[str, Any], rule: dict[str, Any], message: str) -> None:
    assert broken(row, **rule).startswith(message)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"from": "a", "score": "s", "rank": "r"}, "give `score` or `rank`, not both"),
        ({"from": "a", "also": [{"column": "b", "score": 1}]}, "`also` needs the same scale as the other responses"),
        ({"from": "a", "rank": "r", "also": [{"column": "b", "score": 1}]}, "also[0] must be given by `rank`, too"),
        ({"from": "a", "score": "r", "also": [{"column": "b", "rank": 1}]}, "also[0] must be given by `score`, too"),
        ({"from": "a", "score": "s", "also": [{"column": "b"}]}, "give exactly one of `score` and `rank`, a number"),
        ({"from": "a", "score": "s", "also": [{"column": "b", "score": 1, "rank": 1}]}, "give exactly one of `score`"),
        ({"from": "a", "score": "s", "also": [{"column": "b", "score": float("inf")}]}, "finite number"),
        ({"text": "a"}, "Field required"),
        ({"from": "a", "scores": "s"}, "Extra inputs are not permitted"),
    ],
)
def test_rules_that_contradict_themselves(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        SourceConfig.model_validate({"path": "x", "responses": rule})
    assert message in str(caught.value)


def test_rule_and_format_agree() -> None:
    with pytest.raises(ValidationError, match="makes the ranked format, but `format` is preference"):
        SourceConfig.model_validate({"path": "x", "format": "preference", "responses": "a"})
    source = SourceConfig.model_validate({"path": "x", "format": "ranked", "responses": "a"})
    assert source.responses == ResponsesRule(column="a")
    assert SourceConfig.model_validate(source.model_dump(by_alias=True)) == source


def test_a_bad_response_names_file_line_and_field(tmp_path: Path) -> None:
    path = tmp_path / "marked.jsonl"
    rows = [ROWS[0], {**ROWS[1], "responses": [{"model": "small", "text": "4"}]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SourceConfig(**{**yaml.safe_load(RULE), "path": str(path)})
    with pytest.raises(DataError, match=r"marked\.jsonl:2: responses\[0\] has no field 'correct'"):
        load_examples([source], seed=0)
    loaded = load_examples([source.model_copy(update={"on_bad_row": "skip"})], seed=0)
    assert (len(loaded.examples), loaded.skipped) == (1, 1)

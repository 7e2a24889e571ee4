"""Column rules, and the mapping of worked solutions that docs/data.md shows."""

from __future__ import annotations

from typing import Any

import pytest

from preftune.config import SourceConfig
from preftune.data.columns import BadRow, ColumnMap
from preftune.errors import UsageError


def mapped(row: dict[str, Any], **rules: Any) -> dict[str, Any]:
    return ColumnMap(SourceConfig(path="x", columns=rules)).apply(row)


def test_rename_moves_and_a_rule_that_reads_leaves_the_column() -> None:
    row = {"question": " q ", "answer": "so 7", "id": 3}
    assert mapped(row, prompt="question") == {"prompt": "q", "answer": "so 7", "id": 3}
    assert mapped(row, number={"from": "answer", "match": r"\d+"}) == row | {"number": "7"}
    assert row == {"question": " q ", "answer": "so 7", "id": 3}


def test_match_takes_the_first_group_then_replace_then_strip() -> None:
    rule = {"from": "a", "match": r"=(.*)", "replace": [[",", ""], [r"(\d)k", r"\g<1>000"]]}
    assert mapped({"a": "x= 1,2k "}, n=rule)["n"] == "12000"
    assert mapped({"a": " x "}, n={"from": "a", "strip": False})["n"] == " x "


def test_numbers_are_text_to_expressions_and_stay_numbers_otherwise() -> None:
    assert mapped({"a": 12}, n={"from": "a", "match": r"\d"})["n"] == "1"
    assert mapped({"a": 12}, n="a")["n"] == 12


def test_template_reads_mapped_columns_first_and_the_rows_own_second() -> None:
    rules = {
        "text": {"template": "{{{answer}}} {id} {note}"},
        "answer": {"from": "answer", "match": r"\d"},
        "note": {"template": "n{answer}"},
    }
    row = {"answer": "x5", "id": 1, "note": "old"}
    assert mapped(row, **rules) == {"answer": "5", "id": 1, "note": "n5", "text": "{5} 1 old"}
    rules = {"note": rules["note"], "text": rules["text"], "answer": rules["answer"]}
    assert mapped(row, **rules)["text"] == "{5} 1 n5"


@pytest.mark.parametrize(
    ("row", "rule", "said"),
    [
        ({"quest": "q"}, "question", "there is no column 'question', did you mean 'quest'? Columns: quest (it should"),
        ({"a": "q"}, "question", "there is no column 'question'. Columns: a (it should become 'prompt')"),
        ({}, "question", "there is no column 'question'. Columns: none"),
        ({"a": "q"}, {"from": "a", "match": "z"}, r"column 'prompt': 'z' does not match 'q'"),
        ({"a": "q"}, {"from": "a", "match": "q(z)?"}, r"column 'prompt': 'q(z)?' does not match 'q'"),
        ({"a": None}, {"from": "a", "match": "z"}, "column 'prompt': 'a' holds null, not text to search in"),
        ({"a": [1]}, {"from": "a", "replace": [["x", "y"]]}, "column 'prompt': 'a' holds a list"),
        ({"a": None}, {"template": "{a}"}, "column 'prompt': its template needs text, but 'a' holds null"),
        ({"a": "x"}, {"template": "{b}"}, "there is no column 'b'. Columns: a (the template of 'prompt' needs it)"),
    ],
)
def test_rows_that_rules_do_not_fit(row: dict[str, Any], rule: Any, said: str) -> None:
    with pytest.raises(BadRow) as caught:
        mapped(row, prompt=rule)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"from": "a", "match": "("}, r"data\.columns\.prompt\.match: '\(' is no regular expression"),
        ({"from": "a", "replace": [["a", "b"], ["[", ""]]}, r"data\.columns\.prompt\.replace\[1\]: '\['"),
        ({"from": "a", "replace": [["a", r"\1"]]}, r"replace\[0\]: bad replacement .*invalid group reference"),
        ({"template": "{a"}, r"data\.columns\.prompt\.template: "),
        ({"template": "{}"}, "a field is a column's name in braces"),
        ({"template": "{a:>3}"}, "a field is a column's name in braces"),
    ],
)
def test_rules_that_cannot_be_read_are_usage_errors(rule: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        mapped({"a": "x"}, prompt=rule)


WORKED = {
    "prompt": "question",
    "answer": {"from": "answer", "match": r"####\s*(\S.*)$", "replace": [[",", ""]]},
    "working": {"from": "answer", "replace": [["<<[^<>]*>>", ""], [r"\s*####[^\n]*\s*$", ""]]},
    "completion": {"template": "{working}<end_working_out><SOLUTION>{answer}</SOLUTION>"},
}


@pytest.mark.parametrize(
    ("answer", "working", "number"),
    [
        ("Ann has 2*3 = <<2*3=6>>6 pens.\n#### 6", "Ann has 2*3 = 6 pens.", "6"),
        ("5*400 = $<<5*400=2000>>2,000.\nDone. \n#### 2,000\n", "5*400 = $2,000.\nDone.", "2000"),
        ("It is .5 <<1/2=.5>>.5 # of\n\n####   -1,250.5", "It is .5 .5 # of", "-1250.5"),
    ],
)
def test_worked_solutions_become_completions(answer: str, working: str, number: str) -> None:
    row = mapped({"question": "How many?", "answer": answer}, **WORKED)
    completion = f"{working}<end_working_out><SOLUTION>{number}</SOLUTION>"
    assert row == {"prompt": "How many?", "answer": number, "working": working, "completion": completion}

"""exact, regex, length, json-schema and format: worked values."""

import pytest

from preftune.errors import UsageError
from preftune.rewards.builtins import make_builtin


def value(name, text, answer=None, ids=(), **args):
    return make_builtin(name, args)(completions=[text], completion_ids=[list(ids)], answer=[answer])[0]


@pytest.mark.parametrize(
    ("text", "answer", "args", "expected"),
    [
        ("Paris", "Paris", {}, 1.0),
        (" Paris\n", "Paris", {}, 1.0),
        (" Paris\n", "Paris", {"strip": False}, 0.0),
        ("paris", "Paris", {}, 0.0),
        ("STRASSE", "straße", {"casefold": True}, 1.0),
        ("4", 4, {}, 1.0),
        ("4.0", 4, {}, 0.0),
        ("two", ["2", "two"], {}, 1.0),
        ("", "", {}, 1.0),
        ("x", None, {}, None),
        ("nan", float("nan"), {}, None),
    ],
)
def test_exact(text, answer, args, expected):
    assert value("exact", text, answer, **args) == expected


def test_exact_reads_the_column_it_is_told():
    reward = make_builtin("exact", {"column": "solution"})
    assert reward(completions=["a"], solution=["a"], answer=["b"]) == [1.0]


def test_exact_reads_a_conversation():
    completion = [
        {"role": "assistant", "content": "Pa"},
        {"role": "tool", "content": "?"},
        {"role": "assistant", "content": "ris"},
    ]
    assert value("exact", completion, "Paris") == 1.0


@pytest.mark.parametrize(
    ("text", "args", "expected"),
    [
        ("see 42 there", {"pattern": r"\d+"}, 1.0),
        ("see", {"pattern": r"\d+"}, 0.0),
        ("see 42", {"pattern": r"\d+", "full": True}, 0.0),
        ("42", {"pattern": r"\d+", "full": True}, 1.0),
        ("42\n", {"pattern": r"\d+$"}, 1.0),
        ("42\n", {"pattern": r"\d+", "full": True}, 0.0),
        ("A\nb", {"pattern": r"(?is)a.B"}, 1.0),
    ],
)
def test_regex(text, args, expected):
    assert value("regex", text, **args) == expected


@pytest.mark.parametrize(
    ("n", "args", "expected"),
    [
        (5, {"at_most": 5}, 1.0),
        (6, {"at_most": 5}, 0.0),
        (4, {"at_least": 5}, 0.0),
        (5, {"at_least": 5}, 1.0),
        (6, {"at_most": 5, "ramp": 4}, 0.75),
        (8, {"at_most": 5, "ramp": 4}, 0.25),
        (9, {"at_most": 5, "ramp": 4}, 0.0),
        (90, {"at_most": 5, "ramp": 4}, 0.0),
        (0, {"at_least": 10, "at_most": 10, "ramp": 10}, 0.0),
        (3, {"at_least": 10, "at_most": 10, "ramp": 10}, 0.3),
        (10, {"at_least": 10, "at_most": 10, "ramp": 10}, 1.0),
        (15, {"at_least": 10, "at_most": 10, "ramp": 10}, 0.5),
    ],
)
def test_length(n, args, expected):
    assert value("length", "irrelevant", ids=range(n), **args) == pytest.approx(expected, abs=1e-12)
    assert value("length", "x" * n, unit="chars", **args) == pytest.approx(expected, abs=1e-12)
    assert value("length", "word " * n, unit="words", **args) == pytest.approx(expected, abs=1e-12)


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"$ref": "#/$defs/age"}},
    "required": ["name"],
    "additionalProperties": False,
    "$defs": {"age": {"type": "integer", "minimum": 0}},
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"name": "Ann", "age": 3}', 1.0),
        ('  {"name": "Ann"}\n', 1.0),
        ('{"name": "Ann", "age": -3}', 0.0),
        ('{"age": 3}', 0.0),
        ('{"name": "Ann", "extra": 1}', 0.0),
        ('{"name": "Ann"} and more', 0.0),
        ("no JSON", 0.0),
        ("", 0.0),
        ('Here:\n```json\n{"name": "Ann"}\n```\nDone.', 1.0),
        ('```\n{"name": "Ann"}\n```', 1.0),
        ('```json\n{"age": 1}\n```\nor\n```json\n{"name": "Ann"}\n```', 1.0),  # the last block counts
        ('```json\n{"name": "Ann"}\n```\nor\n```json\n{"age": 1}\n```', 0.0),
        ('{"name": "Ann", "age": NaN}', 0.0),
        ("[" * 100_000, 0.0),
        ("1" * 10_000, 0.0),
    ],
)
def test_json_schema(text, expected):
    assert value("json-schema", text, schema=SCHEMA) == expected


def test_json_schema_without_fences():
    text = '```json\n{"name": "Ann"}\n```'
    assert value("json-schema", text, schema=SCHEMA, fenced=False) == 0.0


def test_json_schema_constants_are_no_json_even_where_anything_goes():
    assert value("json-schema", "[1, 2]", schema={}) == 1.0
    assert value("json-schema", "[NaN, Infinity]", schema={}) == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a</think><answer>b</answer>", 1.0),
        ("\n<think>a\n</think>\n\n<answer>b</answer> ", 1.0),
        ("<think>a</think>so<answer>b</answer>", 0.0),
        ("<answer>b</answer><think>a</think>", 0.0),
        ("<think>a</think><answer>b</answer>!", 0.0),
        ("Well: <think>a</think><answer>b</answer>", 0.0),
        ("<think>a<answer>b</answer></think>", 0.0),
        ("<think>a</think><think>c</think><answer>b</answer>", 0.0),
        ("<think> </think><answer>b</answer>", 0.0),
        ("<think>a</think><answer>b", 0.0),
        ("</think>a<think><answer>b</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_format(text, expected):
    assert value("format", text, tags=["think", "answer"]) == expected


def test_format_that_begins_in_the_prompt():
    args = {"tags": ["think", "answer"], "first_open": True}
    assert value("format", "a</think><answer>b</answer>", **args) == 1.0
    assert value("format", "<think>a</think><answer>b</answer>", **args) == 0.0


def test_local_reference_that_leads_nowhere():
    with pytest.raises(UsageError, match=r"\$ref that leads nowhere inside it: '#/\$defs/x'"):
        make_builtin("json-schema", {"schema": {"$ref": "#/$defs/x"}})

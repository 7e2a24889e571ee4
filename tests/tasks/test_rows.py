"""Rows of tasks: ours, IFEval's, and those of well-known sets of multiple choice; bad ones say where and what."""

from __future__ import annotations

import json

import pytest

from preftune.config.benchmarks import BenchmarkConfig
from preftune.errors import DataError
from preftune.records import Message
from preftune.tasks.follow import follows
from preftune.tasks.ifeval import INSTRUCTIONS, from_ifeval
from preftune.tasks.rows import choice_row, instruction_row, read_task
from tests.tiny import write

IFEVAL = [
    ("keywords:existence", {"keywords": ["tea"]}, "Steam", "coffee"),
    ("keywords:frequency", {"keyword": "tea", "frequency": 2, "relation": "at least"}, "tea steam", "tea"),
    ("keywords:frequency", {"keyword": "tea", "frequency": 2, "relation": "less than"}, "tea", "tea tea"),
    ("keywords:forbidden_words", {"forbidden_words": ["tea"]}, "steam", "Tea!"),
    ("keywords:letter_frequency", {"letter": "t", "let_frequency": 2, "let_relation": "at least"}, "tT", "t"),
    ("language:response_language", {"language": "de"}, "Der Hund und die Katze", "The dog is in the house of it"),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}, "One.", "One. Two."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a\n\nb"),
    ("length_constraints:number_words", {"num_words": 3.0, "relation": "at least"}, "a b c", "a b"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "tea"}, "a\n\nTea, b", "tea\n\nb",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 1}, "[x]", "x"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "a P.S. b", "a"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n* b", "* a\n* b\n* c"),
    ("detectable_format:constrained_response", {}, "My answer is yes.", "Yes."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "*a*", "a"),
    ("detectable_format:multiple_sections", {"section_spliter": "PART", "num_sections": 2}, "PART 1 PART 2", "PART 1"),
    ("detectable_format:json_format", {}, "[1]", "one"),
    ("detectable_format:title", {}, "<<a>>", "a"),
    ("combination:two_responses", {}, "a******b", "a***b"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it"}, "Say it. It", "It"),
    ("startend:end_checker", {"end_phrase": "Bye."}, "So. Bye.", "Bye. So."),
    ("startend:quotation", {}, '"a"', "a"),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, "A B c", "A b"),
    ("change_case:english_capital", {}, "THE CAT IS HERE", "The cat"),
    ("change_case:english_lowercase", {}, "the cat is here", "The cat"),
    ("punctuation:no_comma", {}, "a b", "a, b"),
]  # fmt: skip


@pytest.mark.parametrize(("identity", "args", "right", "wrong"), IFEVAL, ids=lambda value: str(value)[:40])
def test_every_instruction_of_ifeval(identity, args, right, wrong):
    # the hub's rows have all arguments of all instructions, null where they mean nothing
    full = {"num_words": None, "keywords": None, "letter": None, **args}
    constraint = from_ifeval(identity, full)
    assert follows(right, [constraint]) == (True,) and follows(wrong, [constraint]) == (False,)


def test_all_25_of_them_are_above():
    assert {identity for identity, *_ in IFEVAL} == set(INSTRUCTIONS) and len(INSTRUCTIONS) == 25


def test_rows_of_instructions():
    row = instruction_row({"prompt": "Tea?", "constraints": [{"kind": "no-commas"}]})
    assert (row.prompt, row.ids) == ("Tea?", ("no-commas",))
    hub = {
        "key": 1000, "prompt": "Tea?",
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [{}, {"relation": "at least", "num_words": 300}],
    }  # fmt: skip
    row = instruction_row(hub)
    assert row.ids == ("punctuation:no_comma", "length_constraints:number_words")
    assert dict(row.constraints[1].args) == {"at_least": 300}
    as_text = {
        **hub,
        "kwargs": json.dumps(hub["kwargs"]),
        "instruction_id_list": json.dumps(hub["instruction_id_list"]),
    }
    assert instruction_row(as_text).constraints == row.constraints
    chat = {"messages": [{"role": "user", "content": "Tea?"}], "constraints": [{"kind": "quoted"}]}
    assert instruction_row(chat).prompt == (Message("user", "Tea?"),)


BAD = [
    ({"prompt": "a"}, "there is no column 'constraints'"),
    ({"prompt": "a", "constraints": []}, "must hold a list of constraints, it holds an empty list"),
    ({"prompt": "a", "constraints": [{"kind": "quoted"}, {"kind": "x"}]}, "constraints[1]: no constraint is named x"),
    ({"prompt": " ", "constraints": [{"kind": "quoted"}]}, "column 'prompt' is empty"),
    ({"constraints": [{"kind": "quoted"}]}, "there is no column 'prompt'"),
    ({"prompt": "a", "instruction_id_list": ["startend:quotes"], "kwargs": [{}]}, "did you mean 'startend:quotation'?"),
    ({"prompt": "a", "instruction_id_list": ["x:y"], "kwargs": [{}]}, "set unknown: skip"),
    ({"prompt": "a", "instruction_id_list": ["startend:end_checker"], "kwargs": [{}]}, "end_phrase must be text"),
    ({"prompt": "a", "instruction_id_list": ["startend:quotation"], "kwargs": []}, "an object for each of the 1"),
    (
        {"prompt": "a", "instruction_id_list": ["length_constraints:number_words"],
         "kwargs": [{"num_words": 3, "relation": "over"}]},
        "relation is 'over'; it is 'at least' or 'less than'",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("row", "said"), BAD, ids=lambda value: str(value)[:40])
def test_bad_rows_of_instructions_say_where_and_what(tmp_path, row, said):
    path = write(tmp_path / "rows.jsonl", [{"prompt": "a", "constraints": [{"kind": "quoted"}]}, row])
    with pytest.raises(DataError) as error:
        read_task(BenchmarkConfig(task="instructions", path=str(path)))
    assert f"{path}:2: " in str(error.value) and said in str(error.value)
    kept = read_task(BenchmarkConfig(task="instructions", path=str(path), on_bad_row="skip"))
    assert (len(kept.rows), kept.skipped) == (1, 1) and said in kept.first_skipped and said in kept.notes[0]


def test_unknown_instructions_are_left_out_and_counted(tmp_path):
    rows = [
        {"prompt": "a", "instruction_id_list": ["new:one", "punctuation:no_comma"], "kwargs": [{}, {}]},
        {"prompt": "b", "instruction_id_list": ["new:one"], "kwargs": [{}]},
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    found = read_task(BenchmarkConfig(task="instructions", path=str(path), unknown="skip"))
    assert [row.ids for row in found.rows] == [("punctuation:no_comma",)]  # nothing is left of the second row
    assert found.left_out == {"new:one": 2} and "new:one (2)" in found.notes[0]
    with pytest.raises(DataError, match="all of its instructions are unknown"):
        read_task(BenchmarkConfig(task="instructions", path=str(write(path, rows[1:])), unknown="skip"))


def test_rows_of_choices_in_the_forms_of_known_sets():
    ours = choice_row({"question": "2+2?", "choices": ["4", "5"], "answer": "A"})
    assert (ours.prompt, ours.choices, ours.answer, ours.asked) == ("2+2?", ("4", "5"), 0, True)
    assert choice_row({"prompt": "Tea is", "choices": ["hot.", "blue."], "answer": 1}).asked is False
    assert choice_row({"prompt": "Tea is", "choices": ["hot.", "blue."], "answer": "blue."}).answer == 1
    hellaswag = {"ctx": "A man", "endings": ["sits.", "flies.", "x", "y"], "label": "3", "activity_label": "z"}
    row = choice_row(hellaswag)
    assert (row.prompt, row.answer, row.asked) == ("A man", 3, False)
    piqa = choice_row({"goal": "To dry hands", "sol1": "use a towel", "sol2": "use soup", "label": 0})
    assert (piqa.choices, piqa.answer, piqa.asked) == (("use a towel", "use soup"), 0, True)
    arc = {"question": "Why?", "choices": {"text": ["a", "b", "c"], "label": ["1", "2", "3"]}, "answerKey": "2"}
    assert choice_row(arc).answer == 1
    csqa = {"question": "Where?", "choices": {"text": ["bank", "library"], "label": ["A", "B"]}, "answerKey": "B"}
    assert choice_row(csqa).answer == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "a"}, "there is no column 'choices'"),
        ({"question": "a", "choices": ["x", "y"]}, "there is no column 'answer'"),
        ({"question": "a", "choices": ["x"], "answer": 0}, "a row has 2 to 26 choices, this one has 1"),
        ({"question": "a", "choices": ["x", "x"], "answer": 0}, "two choices are the same"),
        ({"question": "a", "choices": ["x", " "], "answer": 0}, "a choice is empty"),
        ({"question": "a", "choices": ["x", "y"], "answer": 2}, "its place (0 to 1), its letter (A to B) or its text"),
        ({"question": "a", "choices": ["x", "y"], "answer": True}, "must say which choice is right"),
        ({"question": "a", "choices": [1, 2], "answer": 0}, "must hold a list of texts"),
        (
            {"question": "a", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "C"},
            "the labels are A, B",
        ),
        ({"ctx": "a", "endings": ["x", "y"], "label": ""}, "the right choice is its place"),
        ({"choices": ["x", "y"], "answer": 0}, "there is no column 'prompt'"),
    ],
)
def test_bad_rows_of_choices_say_where_and_what(tmp_path, row, said):
    path = write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(DataError) as error:
        read_task(BenchmarkConfig(task="choices", path=str(path)))
    assert f"{path}:1: " in str(error.value) and said in str(error.value)


def test_columns_and_limit_work_as_in_any_source(tmp_path):
    rows = [{"q": f"Is it {n}?", "options": ["yes", "no"], "gold": n % 2} for n in range(5)]
    path = write(tmp_path / "rows.jsonl", rows)
    config = BenchmarkConfig.model_validate(
        {"task": "choices", "path": str(path), "limit": 3,
         "columns": {"question": "q", "choices": "options", "answer": "gold"}}
    )  # fmt: skip
    found = read_task(config)
    assert [row.answer for row in found.rows] == [0, 1, 0]
    again = read_task(config)
    assert found.content_hash == again.content_hash
    other = read_task(config.model_copy(update={"limit": 2}))
    assert other.content_hash != found.content_hash


def test_the_built_in_sets_are_sound_and_always_the_same():
    instructions = read_task(BenchmarkConfig(task="instructions"))
    choices = read_task(BenchmarkConfig(task="choices"))
    assert (len(instructions.rows), len(choices.rows)) == (80, 100)
    # Numbers measured on another set can't be compared: who changes a row changes these.
    assert instructions.content_hash.startswith(INSTRUCTIONS_HASH)
    assert choices.content_hash.startswith(CHOICES_HASH)
    assert len({row.prompt for row in instructions.rows}) == 80 and len({row.prompt for row in choices.rows}) == 100
    places = [row.answer for row in choices.rows]
    assert all(places.count(place) >= 15 for place in range(4))
    assert all(len(row.choices) == 4 for row in choices.rows)


INSTRUCTIONS_HASH = "9564cbbd8435"
CHOICES_HASH = "c54ca9bfd1e0"


def test_the_documentation_names_every_kind_argument_and_instruction():
    import dataclasses
    import re
    from pathlib import Path

    from preftune.tasks.constraints import KINDS

    text = (Path(__file__).resolve().parents[2] / "docs" / "evaluate.md").read_text(encoding="utf-8")
    for kind, made in KINDS.items():
        (row,) = re.findall(rf"^\| `{kind}` \|.*$", text, re.MULTILINE)
        for field in dataclasses.fields(made):
            assert f"`{field.name}`" in row, f"{kind}: {field.name}"
    for identity in INSTRUCTIONS:
        kind = kind_of(identity)
        assert re.search(rf"\| `{identity}` \| `{kind}`", text), identity


def kind_of(identity):
    args = next(args for name, args, *_ in IFEVAL if name == identity)
    return from_ifeval(identity, args).kind

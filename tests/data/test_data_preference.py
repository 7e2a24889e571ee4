"""Preferences, labels and what methods make of them: preference, unpaired, `as_prompt`, `best_of`, `desirable`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from preftune.config import SourceConfig
from preftune.data import as_prompt, best_of, desirable, load_examples
from preftune.data.columns import BadRow
from preftune.data.formats import Format, detect, to_example
from preftune.errors import DataError
from preftune.records import Example, Message

USER, GOOD, BAD = (
    {"role": "user", "content": "Tea or coffee?"},
    {"role": "assistant", "content": "Tea, gladly."},
    {"role": "assistant", "content": "No."},
)
U, G, B = (Message(turn["role"], turn["content"]) for turn in (USER, GOOD, BAD))
SYSTEM, S = {"role": "system", "content": "Be kind."}, Message("system", "Be kind.")
PAIR = {"chosen": " Lima.", "rejected": " Cusco."}


def example(row: dict[str, Any], **config: Any) -> Example:
    source = SourceConfig(path="x", **config)
    return to_example(row, detect(row, frozenset()) if source.format == "auto" else source.format, source, "f:1")


def said(row: dict[str, Any], **config: Any) -> str:
    with pytest.raises(BadRow) as caught:
        example(row, **config)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------ preference


@pytest.mark.parametrize(
    ("row", "config", "prompt", "completions"),
    [
        ({"prompt": "Capital of Peru:", **PAIR}, {}, "Capital of Peru:", (" Lima.", " Cusco.")),
        ({"prompt": "P", "chosen": "a", "rejected": ["b", "c"]}, {}, "P", ("a", "b", "c")),
        ({"prompt": "P", "chosen": "a", "rejected": ["b"]}, {}, "P", ("a", "b")),
        ({"prompt": "P", "chosen": "a", "rejected": ""}, {}, "P", ("a", "")),
        ({"prompt": "P", "chosen": "a", "rejected": "a"}, {}, "P", ("a", "a")),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, {}, (U,), ((G,), (B,))),
        ({"prompt": [USER], "chosen": "Tea, gladly.", "rejected": [BAD]}, {}, (U,), ((G,), (B,))),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [[BAD], [GOOD]]}, {}, (U,), ((G,), (B,), (G,))),
        ({"prompt": "Tea or coffee?", "chosen": [GOOD], "rejected": [BAD]}, {}, (U,), ((G,), (B,))),
        ({"prompt": "Tea or coffee?", "chosen": "Tea, gladly.", "rejected": [BAD]}, {}, (U,), ((G,), (B,))),
        ({"prompt": "Tea or coffee?", "chosen": "Tea, gladly.", "rejected": "No."}, {"chat": True}, (U,), ((G,), (B,))),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, {"system": "Be kind."}, (S, U), ((G,), (B,))),
        # the completions repeat the prompt
        ({"prompt": "Tea or coffee?", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, {}, (U,), ((G,), (B,))),
        ({"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]}, {}, (U,), ((G,), (B,))),
        (
            {"prompt": " Tea or coffee?\n", "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]},
            {},
            (S, U),
            ((G,), (B,)),
        ),
        (
            {"prompt": "Tea or coffee?", "chosen": [USER, BAD, USER, GOOD], "rejected": [USER, BAD, USER, BAD]},
            {},
            (U, B, U),
            ((G,), (B,)),
        ),
        (
            {
                "prompt": "\n\nHuman: Tea or coffee?\n\nAssistant:",
                "chosen": "\n\nHuman: Tea or coffee?\n\nAssistant: Tea, gladly.",
                "rejected": "\n\nHuman: Tea or coffee?\n\nAssistant: No.",
            },
            {},
            (U,),
            ((G,), (B,)),
        ),
    ],
)
def test_preference(row: dict[str, Any], config: dict[str, Any], prompt: Any, completions: Any) -> None:
    made = example(row | {"id": 7}, **config)
    scores = (1.0, *[0.0] * (len(completions) - 1))
    assert made == Example(prompt, completions, {"id": 7}, "f:1", scores)


def test_reward_bench_rows_name_their_writers() -> None:
    row = {
        "id": 31,
        "prompt": "Name a prime.",
        "chosen": "Seven.",
        "chosen_model": "oak-7b",
        "rejected": "Nine.",
        "rejected_model": "moss-1b",
        "subset": "numbers-easy",
    }
    made = example(row)
    assert (made.prompt, made.completions) == ("Name a prime.", ("Seven.", "Nine."))
    assert (made.scores, made.sources) == ((1.0, 0.0), ("oak-7b", "moss-1b"))
    assert made.columns["subset"] == "numbers-easy" and made.columns["id"] == 31


def test_writers_of_several_rejected() -> None:
    row = {"prompt": "P", "chosen": "a", "rejected": ["b", "c"], "chosen_model": "x"}
    assert example(row).sources == ("x", "", "")
    assert example(row | {"rejected_model": "y"}).sources == ("x", "y", "y")
    assert example(row | {"rejected_model": ["y", None]}).sources == ("x", "y", "")
    assert example(row | {"chosen_model": None}).sources == ()
    assert said(row | {"rejected_model": ["y"]}).startswith("column 'rejected_model' names 1 writers of 2 rejected")
    assert said(row | {"chosen_model": 3}).startswith("column 'chosen_model' must be text, the name of who wrote it")


@pytest.mark.parametrize(("margin", "kept"), [(0, 0.0), (1.5, 1.5), ("0.25", 0.25), (2, 2.0)])
def test_margin_is_a_column(margin: Any, kept: float) -> None:
    made = example({"prompt": "P", **PAIR, "margin": margin})
    assert dict(made.columns) == {"margin": kept} and type(made.columns["margin"]) is float


@pytest.mark.parametrize("margin", [-0.1, float("nan"), float("inf"), 1e39, True, None, "big", [1], "nan", "1_0"])
def test_bad_margins_are_errors(margin: Any) -> None:
    assert said({"prompt": "P", **PAIR, "margin": margin}).startswith("column 'margin' must be ")
    assert said({"prompt": "P", "responses": ["a", "b"], "margin": margin}).startswith("column 'margin' must be ")
    assert example({"prompt": "P", "margin": margin}).columns["margin"] is margin  # nobody compares here


@pytest.mark.parametrize(
    ("row", "config", "message"),
    [
        ({"chosen": "a"}, {}, "there is no column 'rejected'. Columns: chosen (it belongs to 'chosen'; map it"),
        ({"rejected": "a", "chose": "b"}, {}, "there is no column 'chosen', did you mean 'chose'?"),
        ({"prompt": "P", "chosen": "a"}, {"format": "preference"}, "there is no column 'rejected'"),
        ({"prompt": "", **PAIR}, {}, "column 'prompt' is empty"),
        ({"prompt": "", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, {}, "column 'prompt' is empty"),
        ({"prompt": None, **PAIR}, {}, "column 'prompt' must hold text or a list of messages, it holds null"),
        ({"prompt": "P", "chosen": None, "rejected": "b"}, {}, "column 'chosen' must hold text or a list of messages"),
        ({"prompt": "P", "chosen": "a", "rejected": 3}, {}, "column 'rejected' must hold text or a list of messages"),
        ({"prompt": "P", "chosen": "a", "rejected": []}, {}, "column 'rejected' is an empty list"),
        ({"prompt": "P", "chosen": "a", "rejected": ["b", 3]}, {}, "column 'rejected[1]' must hold text"),
        ({"prompt": "P", "chosen": ["a", "b"], "rejected": "c"}, {}, "column 'chosen' holds several completions; it"),
        ({"prompt": [USER], "chosen": [[GOOD]], "rejected": [BAD]}, {}, "column 'chosen' holds several completions"),
        ({"prompt": "Else?", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, {}, "column 'chosen' and column 'rej"),
        ({"prompt": "Tea or coffee?", "chosen": [USER, GOOD], "rejected": [BAD]}, {}, ""),
        ({"prompt": "P", "chosen": [USER, GOOD], "rejected": "b"}, {}, "column 'chosen' must begin with an assistant"),
        ({"prompt": [USER, GOOD], "chosen": [GOOD], "rejected": [BAD]}, {}, "column 'prompt' ends with an assistant"),
        ({**PAIR, "prompt": [SYSTEM, USER]}, {"system": "s"}, "the row has a system message of its own"),
    ],
)
def test_bad_preferences(row: dict[str, Any], config: dict[str, Any], message: str) -> None:
    if not message:  # one repeats the prompt, the other does not: both are clear
        assert example(row).completions == ((G,), (B,))
    else:
        assert said(row, **config).startswith(message)


# ------------------------------------------------------------------------------------------------ unpaired


@pytest.mark.parametrize(
    ("label", "score"),
    [(True, 1.0), (False, 0.0), (1, 1.0), (0, 0.0), (0.7, 0.7), (-3, -3.0), ("true", 1.0), ("False", 0.0), ("1", 1.0)],
)
def test_labels(label: Any, score: float) -> None:
    made = example({"prompt": "P", "completion": "a", "label": label, "id": 7}, format="unpaired")
    assert made == Example("P", ("a",), {"id": 7}, "f:1", (score,))


@pytest.mark.parametrize("label", [None, "good", "", [True], {"a": 1}, float("nan"), "yes", "inf", 10**400])
def test_bad_labels_are_errors(label: Any) -> None:
    message = said({"prompt": "P", "completion": "a", "label": label}, format="unpaired")
    assert message.startswith("column 'label' must be ")


def test_unpaired_conversations_and_writer() -> None:
    row = {"prompt": [USER], "completion": [GOOD], "label": True, "model": "oak"}
    assert example(row) == Example((U,), ((G,),), {"model": "oak"}, "f:1", (1.0,), ("oak",))
    assert example(row | {"completion": "Tea, gladly."}).completions == ((G,),)


def test_good_and_bad_become_labels_by_mapping(tmp_path: Path) -> None:
    path = tmp_path / "marks.jsonl"
    path.write_text(
        '{"prompt": "P", "completion": "a", "mark": "good"}\n{"prompt": "P", "completion": "b", "mark": "bad"}\n'
    )
    rule = {"from": "mark", "replace": [["^good$", "1"], ["^bad$", "0"]]}
    config = SourceConfig.model_validate({"path": str(path), "columns": {"label": rule}})
    assert [one.scores for one in load_examples([config], seed=0).examples] == [(1.0,), (0.0,)]


def test_csv_labels_are_text(tmp_path: Path) -> None:
    path = tmp_path / "marks.csv"
    path.write_text("prompt,completion,label\nP,a,true\nP,b,false\n")
    assert [one.scores for one in load_examples([SourceConfig(path=str(path))], seed=0).examples] == [(1.0,), (0.0,)]


# ------------------------------------------------------------------------------------------------ detection


@pytest.mark.parametrize(
    ("columns", "mapped", "format"),
    [
        ({"prompt": "P", **PAIR}, (), "preference"),
        (PAIR, (), "preference"),
        ({"prompt": "P", "responses": []}, (), "ranked"),
        ({"prompt": "P", "chosen": "a"}, (), "prompt"),
        ({"prompt": "P", "completion": "a", "label": True}, (), "unpaired"),
        ({"prompt": "P", "completion": "a", "label": "FALSE"}, (), "unpaired"),
        ({"prompt": "P", "completion": "a", "label": "spam"}, (), "prompt-completion"),
        ({"prompt": "P", "completion": "a", "label": ["x"]}, (), "prompt-completion"),
        ({"prompt": "P", "completion": "a", "label": 1}, ("label",), "unpaired"),
        ({"prompt": "P", "completion": "a", "label": "spam"}, ("label",), "unpaired"),
        ({"prompt": "P", "label": True}, (), "prompt"),
        ({"prompt": "P", **PAIR, "completion": "a"}, ("prompt", "chosen"), "preference"),
        ({"prompt": "P", **PAIR, "completion": "a"}, ("completion",), "prompt-completion"),
        ({"prompt": "P", **PAIR, "messages": []}, ("prompt",), "preference"),
    ],
)
def test_columns_show_the_format(columns: dict[str, Any], mapped: tuple[str, ...], format: Format) -> None:
    assert detect(columns, frozenset(mapped)) == format


@pytest.mark.parametrize("label", [0, 1, 7, 0.5, "1", None])
def test_a_number_or_null_as_label_needs_a_choice(label: Any) -> None:
    row = {"prompt": "P", "completion": "a", "label": label}
    held = "null" if label is None else "a number"
    assert said(row).startswith(f"column 'label' holds {held}: if it says how good the completion is, set data.format")
    assert example(row, format="prompt-completion") == Example("P", ("a",), {"label": label}, "f:1")


def test_rows_of_several_formats_need_a_choice() -> None:
    row = {"prompt": "P", **PAIR, "messages": [USER, GOOD], "completion": "a", "responses": ["x"]}
    wanted = "the columns fit several formats (messages, preference, ranked, prompt-completion)"
    assert said(row).startswith(wanted)
    assert said({"prompt": "P", **PAIR, "completion": "a"}).endswith("set data.format to one of them")
    assert said({"responses": ["a"]}).startswith("there is no column 'prompt'. Columns: responses (it belongs to 'resp")
    assert example(row, format="prompt") == Example("P", (), {k: v for k, v in row.items() if k != "prompt"}, "f:1")


# ------------------------------------------------------------------------------------------------ what methods use


def test_on_policy_methods_use_the_prompt_alone() -> None:
    pair = Example((U,), ((G,), (B,)), {"margin": 1.0}, "f:1", (1.0, 0.0), ("x", "y"))
    assert as_prompt(pair) == Example((U,), (), {"margin": 1.0}, "f:1")
    assert as_prompt(Example("P", ("a", "b"), {}, "f:1", (1.0, 0.0))) == Example("P", (), {}, "f:1")


def test_turns_that_all_completions_share_stay_in_the_prompt() -> None:
    more = Message("user", "Milk?")
    same = Example((U,), ((G, more, B), (G, more, G)))
    assert as_prompt(same).prompt == (U, G, more)
    assert as_prompt(Example((U,), ((G, more, B), (B, more, B)))).prompt == (U,)
    # they part at a user turn: only what stands before the first answer is shared by both
    other = Message("user", "Sugar?")
    assert as_prompt(Example((U,), ((G, more, B), (G, other, B)))).prompt == (U,)
    assert as_prompt(Example((U,), ((G, more, B), (G,)))).prompt == (U,)


def test_best_of_takes_the_first_best() -> None:
    ranked = Example("P", ("a", "b", "c"), {"k": 1}, "f:1", (-2.0, -1.0, -1.0), ("x", "y", "z"))
    assert best_of(ranked) == Example("P", ("b",), {"k": 1}, "f:1", (-1.0,), ("y",))
    assert best_of(Example("P", ("a", "b"), scores=(1.0, 0.0))) == Example("P", ("a",), scores=(1.0,))
    for row in (Example("P", ("a",)), Example("P"), Example("P", ("a",), scores=(0.0,))):
        assert best_of(row) is row


def test_desirable_rows() -> None:
    assert desirable(Example("P", ("a",)))  # no label: data to imitate
    assert desirable(Example("P", ("a",), scores=(1.0,))) and not desirable(Example("P", ("a",), scores=(0.0,)))
    graded = Example("P", ("a",), scores=(3.0,))
    assert desirable(graded, 3.0) and not desirable(graded, 3.5)
    assert desirable(Example("P", ("a", "b"), scores=(-1.0, -2.0)))  # a ranking has a best
    assert not desirable(Example("P", ("a", "b"), scores=(0.0, 0.0)))  # two wrong ones have none


def test_scores_and_sources_are_part_of_the_content_hash(tmp_path: Path) -> None:
    def hash_of(row: dict[str, Any]) -> str:
        path = tmp_path / "row.jsonl"
        path.write_text(json.dumps(row))
        return load_examples([SourceConfig(path=str(path), format="unpaired")], seed=0).content_hash

    row = {"prompt": "P", "completion": "a", "label": True}
    assert hash_of(row) == hash_of(row | {"label": 1}) == hash_of({"prompt": "P", "completion": "a", "label": 1.0})
    assert len({hash_of(row), hash_of(row | {"label": False}), hash_of(row | {"model": "m"})}) == 3


def test_a_bad_row_names_file_line_and_remedy(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "P", "chosen": "a", "rejected": "b"}\n{"prompt": "P", "chosen": "a"}\n')
    with pytest.raises(DataError, match=r"pairs\.jsonl:2: there is no column 'rejected'.*data\.on_bad_row: skip"):
        load_examples([SourceConfig(path=str(path))], seed=0)
    loaded = load_examples([SourceConfig(path=str(path), on_bad_row="skip")], seed=0)
    assert (len(loaded.examples), loaded.skipped) == (1, 1)

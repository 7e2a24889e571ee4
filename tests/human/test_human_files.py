"""Texts survive the way to the rater and back, and no spreadsheet calculates with them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preftune.human.files import read_sent, same_text, to_cell, write_csv, write_jsonl
from tests import tiny
from tests.human import people

COLUMNS = ["id", "prompt", "answer", "score", "rater", "comment"]
anything = st.text(
    st.one_of(st.characters(), st.sampled_from("=+-@\t\r\n\"',;\x00\ud800\udc00é😀7./")), max_size=30
)  # fmt: skip


def _rows(texts: list[str]) -> list[dict[str, str]]:
    return [
        {"id": f"r1-{i:03d}a-000000", "prompt": text, "answer": text, "score": "", "rater": "", "comment": ""}
        for i, text in enumerate(texts, start=1)
    ]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(anything, min_size=1, max_size=5))
def test_texts_come_back_equal_from_csv(tmp_path: Path, texts: list[str]) -> None:
    path = tmp_path / "answers.csv"
    write_csv(path, _rows(texts), COLUMNS)
    sent = read_sent(path)
    assert not sent.problems
    assert [row.values["answer"] for row in sent.rows] == [to_cell(text) for text in texts]
    assert all(same_text(row.values["answer"], text) for row, text in zip(sent.rows, texts, strict=True))
    for cells in csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")):
        assert not any(
            cell.lstrip().startswith(("=", "+", "-", "@")) or cell.startswith(("\t", "\r", "\n")) for cell in cells
        )


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(anything, min_size=1, max_size=5))
def test_texts_come_back_equal_from_jsonl(tmp_path: Path, texts: list[str]) -> None:
    path = tmp_path / "answers.jsonl"
    write_jsonl(path, _rows(texts))
    assert [row["answer"] for row in tiny.lines(path)] == texts
    sent = read_sent(path)
    assert not sent.problems
    assert [row.values["answer"] for row in sent.rows] == texts
    assert all(same_text(row.values["answer"], text) for row, text in zip(sent.rows, texts, strict=True))


@pytest.mark.parametrize(
    "text",
    ["=1+1", '=HYPERLINK("http://x")', "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =1", "＝1", "'tis"],
)  # fmt: skip
def test_no_formula_leaves_the_house(text: str) -> None:
    assert to_cell(text) == f"'{text}"


@pytest.mark.parametrize(
    "text",
    ["12.50", "007", "1e5", "3/4", "1-2", "3 May", "May 2020", "12:30 pm", "TRUE", "$ 1,000", "50%", " 7 "],
)  # fmt: skip
def test_what_a_spreadsheet_would_convert_stays_text(text: str) -> None:
    assert to_cell(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", "yes", "May I?", "7 apples", "The sum is 12.", "e", "a=b", "3 mayors", "😀"])
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert to_cell(text) == text


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ("=1+1", "=1+1"),  # a program that takes the apostrophe for its own sign
        ("tis", "'tis"),
        ("a\nb", "a\r\nb"),
        ("a\r\nb", "a\nb"),
        ("ab", "a\x00b"),
        (" a ", "a"),
        ("\ufffd", "\ud83d"),
    ],
)
def test_what_programs_may_change(cell: str, text: str) -> None:
    assert same_text(cell, text) or (text == "'tis" and same_text("'tis", text))


@pytest.mark.parametrize(
    ("cell", "text"), [("a", "b"), ("", "a"), ("12.5", "12.50"), ("A", "a"), ("'a", "a"), ("a b", "a  b")]
)
def test_what_they_may_not(cell: str, text: str) -> None:
    assert not same_text(cell, text)


def test_long_answers_and_long_lines_come_back(tmp_path: Path) -> None:
    text = "x" * 200_000 + "\n" + "y, " * 1000
    path = tmp_path / "answers.csv"
    limit = csv.field_size_limit()
    write_csv(path, _rows([text]), COLUMNS)
    sent = read_sent(path)
    assert not sent.problems and sent.rows[0].values["answer"] == text
    assert csv.field_size_limit() == limit


def test_lines_are_those_where_rows_begin(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('id,answer\nx,"one\ntwo\n\nfour"\ny,"\x85\u2028"\n\n,\nz,end', encoding="utf-8")
    sent = read_sent(path)
    assert not sent.problems
    assert [(row.where, row.values["id"]) for row in sent.rows] == [
        (f"{path}:2", "x"), (f"{path}:6", "y"), (f"{path}:9", "z"),
    ]  # fmt: skip
    assert sent.rows[1].values["answer"] == "\x85\u2028"


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_separators(tmp_path: Path, delimiter: str) -> None:
    rows = [{"id": "x", "answer": "a;b,c\td", "score": "7,5"}]
    sent = read_sent(people.save(tmp_path / "a.csv", rows, delimiter))
    assert not sent.problems
    assert [(row.values, row.decimal_comma) for row in sent.rows] == [(rows[0], True)]


def _raw(tmp_path: Path, name: str, data: bytes) -> list[str]:
    path = tmp_path / name
    path.write_bytes(data)
    return [problem.replace(f"{tmp_path}/", "") for problem in read_sent(path).problems]


def test_files_that_are_none(tmp_path: Path) -> None:
    assert _raw(tmp_path, "a.csv", b"") == [
        "a.csv: no row in it; send the file of answers with the ratings filled in"
    ]  # fmt: skip
    assert _raw(tmp_path, "a.csv", b"id,answer\n") == [
        "a.csv: no row in it; send the file of answers with the ratings filled in"
    ]
    assert _raw(tmp_path, "a.csv", b"id,answer\nx,y\nx,caf\xe9\n") == [
        "a.csv:3: the file is not UTF-8 (byte 0xe9); save it as `CSV UTF-8`"
    ]
    assert _raw(tmp_path, "a.csv", "id,answer\n".encode("utf-16")) == [
        "a.csv:1: the file is UTF-16; save it as `CSV UTF-8`"
    ]
    assert _raw(tmp_path, "a.csv", b'id,answer\nx,"open\n') == ["a.csv:2: invalid CSV: unexpected end of data"]
    assert _raw(tmp_path, "a.csv", b"id,id\nx,y\n") == ["a.csv:1: the header names 'id' twice"]
    assert _raw(tmp_path, "a.csv", b"id,answer\nx\ny,z,\nx,y,z\n") == [
        "a.csv:2: 1 cells, but the header names 2 columns", "a.csv:4: 3 cells, but the header names 2 columns",
    ]  # fmt: skip
    assert _raw(tmp_path, "a.xlsx", b"PK") == [
        "a.xlsx: ratings come as .csv or .jsonl; save the file in one of these forms"
    ]
    (problem,) = _raw(tmp_path, "a.jsonl", b'{"id": "x"}\n{"id": "y", "id": "z"}\n')
    assert problem.startswith("a.jsonl:2: ") and "'id' stands twice" in problem
    (problem,) = _raw(tmp_path, "a.jsonl", b'{"id": \n')
    assert problem.startswith("a.jsonl:1: column 8: invalid JSON")
    assert read_sent(tmp_path / "none.csv").problems == [f"{tmp_path / 'none.csv'}: no such file"]


def test_the_csv_opens_as_utf8_in_a_spreadsheet(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write_csv(path, _rows(["你好"]), COLUMNS)
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    write_jsonl(tmp_path / "a.jsonl", _rows(["你好 \ud800"]))
    line = (tmp_path / "a.jsonl").read_text(encoding="utf-8")
    assert "你好 \\ud800" in line and json.loads(line)["answer"] == "你好 \ud800"

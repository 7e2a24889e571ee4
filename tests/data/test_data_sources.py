"""Rows from each kind of source, and what is said about bad ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preftune.config import SourceConfig
from preftune.data import load_examples
from preftune.data.sources import Row, read_rows
from preftune.errors import DataError


def rows(path: Path | str, **config: Any) -> list[Row]:
    return list(read_rows(SourceConfig(path=str(path), **config)))


def problem(path: Path, content: bytes) -> str:
    """What is said about the only bad row of a file."""
    path.write_bytes(content)
    (bad,) = [row for row in rows(path) if row.problem]
    assert bad.where.startswith(str(path))
    return bad.where[len(str(path)) :] + " " + bad.problem


ROWS = [{"prompt": "1+1=", "answer": 2}, {"prompt": "é\n2", "answer": None}]


def test_jsonl_counts_lines_from_one_and_passes_over_blank_ones(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROWS[0]).encode() + b"\r\n\r\n" + json.dumps(ROWS[1]).encode())
    assert rows(file) == [Row(f"{file}:1", ROWS[0]), Row(f"{file}:3", ROWS[1])]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"prompt": "a" "b"}', ":2 column 16: invalid JSON: Expecting ',' delimiter"),
        (b'{"prompt": "\xff"}', ":2 column 13: not UTF-8 (byte 0xff)"),
        (b'["a"]', ":2 a row must be an object with columns, this one is a list"),
        (b'"a"', ":2 a row must be an object with columns, this one is a string"),
        (b"null", ":2 a row must be an object with columns, this one is null"),
        (b'{"prompt": "a", "prompt": "b"}', ":2 invalid JSON: the key 'prompt' stands twice"),
        (b"[" * 100_000, ":2 invalid JSON: maximum recursion depth exceeded"),
        (b'{"prompt": ' + b"1" * 5000 + b"}", ":2 invalid JSON: Exceeds the limit"),
    ],
)
def test_bad_jsonl_lines_name_line_and_column(tmp_path: Path, line: bytes, said: str) -> None:
    assert problem(tmp_path / "a.jsonl", b'{"prompt": "a"}\n' + line + b"\n").startswith(said)


def test_json_is_a_list_of_objects(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps(ROWS))
    assert rows(file) == [Row(f"{file}[0]", ROWS[0]), Row(f"{file}[1]", ROWS[1])]
    assert problem(file, b'[{"prompt": "a"}, 3]') == "[1] a row must be an object with columns, this one is a number"
    for content, said in [
        (b'{"prompt": "a"}', "must hold a list of objects, this one holds an object"),
        (b'{"a": 1}\n{"a": 2}', r":2: column 1: invalid JSON: Extra data; .*name it \.jsonl"),
        (b'[{"a": 1},\n oops]', r"a\.json:2: column 2: invalid JSON"),
        (b"\xff", "not UTF-8 at byte 1"),
    ]:
        file.write_bytes(content)
        with pytest.raises(DataError, match=said):
            rows(file)


def test_csv_names_the_line_where_a_row_ends(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text('prompt,answer\n"two\nlines",4\n\n1+1=,2\n', encoding="utf-8-sig")
    assert rows(file) == [
        Row(f"{file}:3", {"prompt": "two\nlines", "answer": "4"}),
        Row(f"{file}:5", {"prompt": "1+1=", "answer": "2"}),
    ]
    assert problem(file, b"prompt,answer\na,1\nb\n") == ":3 1 fields, but the header names 2 columns"
    assert problem(file, b"prompt,answer\na,1\n\xffb,2\n") == ":3 column 'prompt': not UTF-8"
    for content, said in [
        (b"prompt,prompt\na,b\n", "the header names 'prompt' twice"),
        (b'prompt\n"a"b\n', r"a\.csv:2: invalid CSV"),
    ]:
        file.write_bytes(content)
        with pytest.raises(DataError, match=said):
            rows(file)


def test_parquet(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), file)
    assert rows(file) == [Row(f"{file}[0]", ROWS[0]), Row(f"{file}[1]", ROWS[1])]
    file.write_bytes(b"PAR1 this is no table")
    with pytest.raises(DataError, match=r"a\.parquet: can't be read as Parquet"):
        rows(file)


def test_folder_saved_by_datasets(tmp_path: Path) -> None:
    one, several, other = tmp_path / "one", tmp_path / "several", tmp_path / "other"
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(str(one))
    datasets.DatasetDict({"train": data, "test": data.select([1])}).save_to_disk(str(several))
    assert [row.values for row in rows(one)] == ROWS
    assert rows(several, split="test") == [Row(f"{several}[0]", ROWS[1])]
    with pytest.raises(DataError, match=r"has no split 'dev'; it has train, test"):
        rows(several, split="dev")
    other.mkdir()
    (other / "part.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"is no folder saved by .*name one of its files: part\.jsonl"):
        rows(other)


def test_hub_set_is_asked_for_by_name_split_and_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def load_dataset(path: str, name: str | None, *, split: str, revision: str | None) -> Any:
        asked.append((path, name, split, revision))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = rows("someone/sums", name="main", split="test", revision="v1")
    assert asked == [("someone/sums", "main", "test", "v1")]
    assert found == [Row("someone/sums/main:test[0]", ROWS[0]), Row("someone/sums/main:test[1]", ROWS[1])]


@pytest.mark.parametrize("error", [ConnectionError("no route\nmore"), ValueError("Unknown split"), RuntimeError("x")])
def test_hub_failure_says_how_to_use_a_file(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load_dataset(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        DataError, match=r"someone/sums:train: can't be loaded from the hub: .*--data\.path FILE"
    ) as caught:
        rows("someone/sums")
    assert "more" not in str(caught.value)


def test_missing_files_and_unknown_endings(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"trian\.jsonl: no such file or folder; did you mean train\.jsonl\?"):
        rows(tmp_path / "trian.jsonl")
    with pytest.raises(DataError, match="no such file or folder"):
        rows(tmp_path / "gone" / "train.jsonl")
    (tmp_path / "train.txt").write_text("a")
    with pytest.raises(DataError, match=r"its name must end in \.jsonl, \.json, \.parquet, \.csv"):
        rows(tmp_path / "train.txt")


def test_relative_paths_are_looked_up_in_the_recipes_folder_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, work = tmp_path / "recipe", tmp_path / "work"
    for folder in (recipe, work):
        folder.mkdir()
        (folder / "a.jsonl").write_text(json.dumps({"prompt": folder.name}))
    (work / "b.jsonl").write_text(json.dumps({"prompt": "b"}))
    monkeypatch.chdir(work)

    def prompt(path: str, base: Path | None) -> Any:
        return load_examples([SourceConfig(path=path)], seed=0, base_dir=base).examples[0].prompt

    assert (prompt("a.jsonl", recipe), prompt("a.jsonl", None), prompt("b.jsonl", recipe)) == ("recipe", "work", "b")
    with pytest.raises(DataError, match=r"recipe/c\.jsonl and c\.jsonl: no such file"):
        prompt("c.jsonl", recipe)


def test_unreadable_file_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "folder.jsonl"
    folder.mkdir()
    with pytest.raises(DataError, match="is no folder saved by"):
        rows(folder)

"""Loading as a whole: counts, hash, mixing, and 'never any other exception'."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.config import SourceConfig
from preftune.data import Loaded, SourceCount, load_examples
from preftune.errors import DataError, UsageError


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(path)


def load(*sources: SourceConfig | str, seed: int = 0) -> Loaded:
    return load_examples([s if isinstance(s, SourceConfig) else SourceConfig(path=s) for s in sources], seed=seed)


def prompts(loaded: Loaded) -> list[Any]:
    return [example.prompt for example in loaded.examples]


def test_one_source_keeps_its_order_and_names_its_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": str(n), "answer": n} for n in range(5)])
    loaded = load(path)
    assert prompts(loaded) == ["0", "1", "2", "3", "4"]
    assert loaded.examples[2].where == f"{path}:3"
    assert loaded.examples[2].columns == {"answer": 2}
    assert (loaded.skipped, loaded.origins) == (0, [f"{path}: 5 rows"])


def test_bad_row_is_an_error_with_origin_and_remedy(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "a"}, {"prompt": "b"}, {"prompt": ""}])
    with pytest.raises(DataError, match=r"a\.jsonl:3: column 'prompt' is empty\. .*data\.on_bad_row: skip"):
        load(path)


def test_skipped_rows_are_counted_with_the_first_reason(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["{", {"prompt": "a"}, {"question": "b"}, {"prompt": "c"}])
    loaded = load(SourceConfig(path=path, on_bad_row="skip"))
    assert prompts(loaded) == ["a", "c"]
    reason = f"{path}:1: column 2: invalid JSON: Expecting property name enclosed in double quotes"
    assert loaded.skipped == 2
    assert loaded.sources == (SourceCount(path, 2, 2, 2, reason),)
    assert loaded.origins == [f"{path}: 2 rows, 2 skipped (first: {reason})"]


def test_match_that_fails_is_a_bad_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"q": "a", "a": "#### 4"}, {"q": "b", "a": "none"}])
    rules: dict[str, Any] = {"prompt": "q", "answer": {"from": "a", "match": r"#### (\d+)"}}
    with pytest.raises(DataError, match=r"a\.jsonl:2: column 'answer': .* does not match 'none'"):
        load(SourceConfig(path=path, columns=rules))
    loaded = load(SourceConfig(path=path, columns=rules, on_bad_row="skip"))
    assert [dict(e.columns) for e in loaded.examples] == [{"a": "#### 4", "answer": "4"}]


@pytest.mark.parametrize(("content", "said"), [("", "it is empty"), ("\n\n", "it is empty"), ("{", "all 1 are bad")])
def test_source_without_usable_rows(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=f"has no usable row.*{said}"):
        load(SourceConfig(path=str(path), on_bad_row="skip"))
    for name in ("a.json", "a.csv"):
        (tmp_path / name).write_text("[]" if name == "a.json" else "")
        with pytest.raises(DataError, match="it is empty"):
            load(str(tmp_path / name))


def test_limit_takes_the_first_usable_rows_and_reads_no_further(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["{", {"prompt": "a"}, {"prompt": "b"}, "{"])
    loaded = load(SourceConfig(path=path, limit=2, on_bad_row="skip"))
    assert (prompts(loaded), loaded.skipped) == (["a", "b"], 1)


def test_format_is_that_of_the_first_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "a", "completion": "b"}, {"prompt": "c"}])
    with pytest.raises(DataError, match=r"a\.jsonl:2: there is no column 'completion'"):
        load(path)
    assert [e.completions for e in load(SourceConfig(path=path, format="prompt")).examples] == [(), ()]


def test_half_a_surrogate_pair_is_a_bad_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [r'{"prompt": "a\ud800"}'])
    with pytest.raises(DataError, match=r"a\.jsonl:1: holds half a surrogate pair \(\\ud800\)"):
        load(path)


def test_bad_rules_are_usage_errors_even_when_rows_may_be_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "a"}])
    rule: dict[str, Any] = {"answer": {"from": "prompt", "match": "["}}
    with pytest.raises(UsageError, match=r"data\.columns\.answer\.match"):
        load(SourceConfig(path=path, columns=rule, on_bad_row="skip"))


def test_hash_follows_content_and_order_but_not_the_place(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b", "x": 1}, {"prompt": "c", "completion": "d", "x": 2}]
    first = load(write(tmp_path / "a.jsonl", rows)).content_hash
    assert len(first) == 64
    assert load(write(tmp_path / "b.jsonl", [dict(reversed(row.items())) for row in rows])).content_hash == first
    (tmp_path / "c.json").write_text(json.dumps(rows))
    assert load(str(tmp_path / "c.json")).content_hash == first
    others = [rows[::-1], rows[:1], [rows[0], rows[1] | {"x": 3}], [rows[0], rows[1] | {"completion": "e"}]]
    hashes = {load(write(tmp_path / "d.jsonl", other)).content_hash for other in others}
    assert len(hashes | {first}) == 5


def test_columns_of_other_types_are_kept(tmp_path: Path) -> None:
    row = {"prompt": "a", "day": date(2024, 2, 29), "price": Decimal("1.50"), "raw": b"\x00\xff"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    (example,) = load(str(tmp_path / "a.parquet")).examples
    assert example.columns == {"day": date(2024, 2, 29), "price": Decimal("1.50"), "raw": b"\x00\xff"}


# ------------------------------------------------------------------------------------------------ mixing


def source(tmp_path: Path, name: str, rows: int, weight: float = 1.0) -> SourceConfig:
    return SourceConfig(
        path=write(tmp_path / f"{name}.jsonl", [{"prompt": f"{name}{n}"} for n in range(rows)]), weight=weight
    )


def test_weight_one_gives_each_row_once_spread_evenly(tmp_path: Path) -> None:
    loaded = load(source(tmp_path, "a", 30), source(tmp_path, "b", 10))
    mixed = prompts(loaded)
    assert [p for p in mixed if p[0] == "a"] == [f"a{n}" for n in range(30)]
    assert [p for p in mixed if p[0] == "b"] == [f"b{n}" for n in range(10)]
    for n in range(1, 41):  # at every point a quarter of the rows is b's, one row more or less
        assert abs(sum(p[0] == "b" for p in mixed[:n]) - n / 4) <= 1
    assert [count.examples for count in loaded.sources] == [30, 10]


def test_weight_is_how_often_rows_occur(tmp_path: Path) -> None:
    loaded = load(source(tmp_path, "a", 10, 2.5), source(tmp_path, "b", 10, 0.3), source(tmp_path, "c", 4))
    times = Counter(prompts(loaded))
    a = [times[f"a{n}"] for n in range(10)]
    assert Counter(a) == {2: 5, 3: 5}
    assert Counter(times[f"b{n}"] for n in range(10)) == {0: 7, 1: 3}
    assert [times[f"c{n}"] for n in range(4)] == [1, 1, 1, 1]
    assert loaded.origins[0].endswith("a.jsonl: 10 rows, 25 per epoch")
    assert [(count.rows, count.examples) for count in loaded.sources] == [(10, 25), (10, 3), (4, 4)]
    objects = {id(example) for example in loaded.examples}
    assert len(objects) == 10 + 3 + 4  # a repeated row is the same object


def test_mixture_depends_on_seed_alone(tmp_path: Path) -> None:
    sources = [source(tmp_path, "a", 20, 0.5), source(tmp_path, "b", 20, 1.5)]
    first, again, other = load(*sources), load(*sources), load(*sources, seed=1)
    assert prompts(first) == prompts(again) and first.content_hash == again.content_hash
    assert prompts(first) != prompts(other)


def test_weight_that_leaves_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"weight 0\.01 of 3 rows leaves none"):
        load(source(tmp_path, "a", 3, 0.01))


# ------------------------------------------------------------------------------------------------ fuzz

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "text", "score", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
names = st.sampled_from(
    [
        "prompt",
        "completion",
        "messages",
        "text",
        "chosen",
        "rejected",
        "responses",
        "scores",
        "label",
        "margin",
        "answer",
    ]
)
lines = st.one_of(
    st.dictionaries(names, values, max_size=4).map(lambda row: json.dumps(row).encode()),
    values.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=20),
)


@given(
    content=st.lists(lines, max_size=4),
    skip=st.booleans(),
    system=st.none() | st.just("s"),
    format=st.sampled_from(["auto", "auto", "preference", "unpaired", "ranked"]),
)
@settings(max_examples=400, deadline=None)
def test_fuzzed_rows_load_or_are_data_errors(
    tmp_path_factory: pytest.TempPathFactory, content: list[bytes], skip: bool, system: str | None, format: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    path.write_bytes(b"\n".join(content))
    config = SourceConfig(path=str(path), on_bad_row="skip" if skip else "error", system=system, format=format)
    try:
        loaded = load(config)
    except DataError as error:
        assert str(path) in str(error)
    else:
        read = sum(bool(line.strip()) for line in path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"))
        assert len(loaded.examples) + loaded.skipped == read


def test_importing_data_loads_no_torch() -> None:
    code = "import sys, preftune.data; print({'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "set()"
    )

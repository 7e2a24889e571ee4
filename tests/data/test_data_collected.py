"""Files of drawn answers: what goes in comes out, and a damaged file is never a shorter data set."""

from __future__ import annotations

import json
import math
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preftune.data.collected import group_id, read_collected, write_collected
from preftune.errors import DataError
from preftune.records import Completion, Distribution, Group, Message, Prompt

_TEXT = st.text(st.one_of(st.characters(), st.sampled_from('\ud800\n\r\x85\u2028"\\=')), max_size=12)
_NUMBER = st.floats(allow_nan=False, allow_infinity=False)
_JSON = st.one_of(st.none(), st.booleans(), st.integers(), _NUMBER, _TEXT, st.lists(_TEXT, max_size=2))


@st.composite
def completions(draw: st.DrawFn) -> Completion:
    ids = tuple(draw(st.lists(st.integers(0, 200_000), max_size=4)))
    masks = st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)).map(tuple)
    logprobs = st.lists(_NUMBER, min_size=len(ids), max_size=len(ids)).map(tuple)
    return Completion(
        ids=ids, mask=draw(masks), text=draw(_TEXT), finish=draw(st.sampled_from(["eos", "stop", "length", "data"])),
        logprobs=draw(st.none() | logprobs),
        distribution=draw(st.none() | st.builds(Distribution, temperature=st.floats(0.1, 2), top_k=st.integers(0, 9))),
        policy_version=draw(st.integers(0, 9)), source=draw(_TEXT), score=draw(st.none() | _NUMBER),
        breakdown=draw(st.dictionaries(_TEXT, st.none() | _NUMBER, max_size=2)),
        notes=draw(st.dictionaries(_TEXT, _JSON, max_size=2)),
    )  # fmt: skip


@st.composite
def groups(draw: st.DrawFn) -> Group:
    turns = st.lists(st.builds(Message, st.sampled_from(["user", "system"]), _TEXT), min_size=1, max_size=2).map(tuple)
    prompt = Prompt(
        tuple(draw(st.lists(st.integers(0, 99), min_size=1, max_size=3))), draw(_TEXT), draw(_TEXT | turns),
        draw(st.dictionaries(_TEXT, _JSON, max_size=2)), draw(_TEXT),
    )  # fmt: skip
    return Group(prompt, tuple(draw(st.lists(completions(), max_size=3))))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(groups(), max_size=3), st.dictionaries(_TEXT, _JSON, max_size=2))
def test_what_goes_in_comes_out(tmp_path: Path, given_groups: list[Group], about: dict[str, Any]) -> None:
    path = tmp_path / "deep" / "collected.jsonl"
    write_collected(path, given_groups, about)
    found = read_collected(path)
    assert found.groups == tuple(given_groups)
    assert found.about == about
    assert found.ids == tuple(group_id(i, group) for i, group in enumerate(given_groups))
    assert [p.name for p in path.parent.iterdir()] == ["collected.jsonl"]  # nothing half-written stays
    path.read_bytes().decode("ascii")


def _group(*texts: str, **columns: Any) -> Group:
    made = tuple(Completion((5, place), (True, False), text) for place, text in enumerate(texts))
    return Group(Prompt((1, 2), "p", "p", columns, "d.jsonl:1"), made)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_collected(tmp_path / "collected.jsonl", [_group("a", "b"), _group("c")], {"seed": 1})
    return tmp_path / "collected.jsonl"


def test_ids_follow_the_tokens_and_the_place() -> None:
    one = _group("a", "b")
    assert group_id(0, one) == group_id(0, _group("other", "words"))  # text is no part of it
    assert group_id(0, one).startswith("0-") and group_id(1, one).startswith("1-")
    assert group_id(0, one)[2:] != group_id(0, _group("a"))[2:]


def test_the_digest_is_of_the_groups_alone(tmp_path: Path, path: Path) -> None:
    write_collected(tmp_path / "same.jsonl", read_collected(path).groups, {"seed": 2})
    assert read_collected(tmp_path / "same.jsonl").digest == read_collected(path).digest
    write_collected(tmp_path / "other.jsonl", [_group("a", "x"), _group("c")], {"seed": 1})
    assert read_collected(tmp_path / "other.jsonl").digest != read_collected(path).digest


@pytest.mark.parametrize("damage", ["cut", "line gone", "changed", "line twice"])
def test_a_damaged_file_is_told(path: Path, damage: str) -> None:
    lines = path.read_text().splitlines(keepends=True)
    text = {
        "cut": "".join(lines)[:-20], "line gone": "".join(lines[:-1]), "changed": "".join(lines).replace('"b"', '"B"'),
        "line twice": "".join([*lines, lines[-1]]),
    }[damage]  # fmt: skip
    path.write_text(text)
    with pytest.raises(DataError, match=r"collected.jsonl: the file was changed or cut .* collect the answers again"):
        read_collected(path)


def _signed(path: Path, body: str, **head: Any) -> None:
    """A file whose hash is right."""
    import hashlib

    digest = hashlib.sha256(body.encode()).hexdigest()
    path.write_text(json.dumps({"collected": 1, "about": {}, "groups": 1, "sha256": digest, **head}) + "\n" + body)


def test_files_that_are_none(path: Path) -> None:
    for text in ("", "no json\n", '{"prompt": "a"}\n', "[1]\n"):
        path.write_text(text)
        with pytest.raises(DataError, match=r"collected.jsonl:1: this is no file of collected answers"):
            read_collected(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="can't read the collected answers"):
        read_collected(path)
    with pytest.raises(DataError, match="can't read the collected answers"):
        read_collected(path.parent / "none.jsonl")
    _signed(path, "", collected=2, groups=0)
    with pytest.raises(DataError, match=r"collected.jsonl:1: version 2 .* reads version 1"):
        read_collected(path)
    _signed(path, '{"id": "x"}\n')
    with pytest.raises(DataError, match=r"collected.jsonl:2: not a collected group \(KeyError: 'prompt'\)"):
        read_collected(path)
    _signed(path, "", groups=3)
    with pytest.raises(DataError, match="0 groups, but its head says 3"):
        read_collected(path)


def test_what_can_not_be_written_leaves_the_old_file(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(DataError, match="a column of a prompt can't be written as JSON"):
        write_collected(path, [_group("a", when=date(2026, 1, 1))], {})
    blocked = path.parent / "file"
    blocked.write_text("")
    with pytest.raises(DataError, match=r"can't write .*; free some space"):
        write_collected(blocked / "collected.jsonl", [_group("a")], {})
    assert path.read_bytes() == before and sorted(p.name for p in path.parent.iterdir()) == ["collected.jsonl", "file"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_json_lacks_are_told(tmp_path: Path, value: float) -> None:
    group = Group(Prompt((1,), "p", "p"), (Completion((1,), (True,), "a", score=value),))
    with pytest.raises(DataError, match=r"c\.jsonl"):
        write_collected(tmp_path / "c.jsonl", [group], {})
    assert not (tmp_path / "c.jsonl").exists()

"""The demo's task: worked sums by hand, disjoint splits, a tokenizer that loses nothing."""

from __future__ import annotations

import json
import re
from itertools import islice
from pathlib import Path

import pytest

from preftune.demo.arithmetic import WELL_FORMED, Problem, problems, split_of, take, write_rows
from preftune.demo.base import CARRY_SHARE, Teacher, build_tokenizer


@pytest.mark.parametrize(
    ("first", "operation", "second", "right", "wrong"),
    [
        (47, "+", 38, " 7+8=15, 4+3+1=8, so 85.", " 7+8=15, 4+3=7, so 75."),
        (52, "-", 38, " 12-8=4, 5-3-1=1, so 14.", " 12-8=4, 5-3=2, so 24."),
        (21, "+", 34, " 1+4=5, 2+3=5, so 55.", " 1+4=5, 2+3=5, so 55."),
        (50, "-", 13, " 10-3=7, 5-1-1=3, so 37.", " 10-3=7, 5-1=4, so 47."),
    ],
)
def test_worked_by_hand(first: int, operation: str, second: int, right: str, wrong: str) -> None:
    problem = Problem("", first, operation, second)  # type: ignore[arg-type]
    assert problem.worked(carrying=True) == right
    assert problem.worked(carrying=False) == wrong
    assert problem.carries == (right != wrong)


def test_the_right_way_always_ends_in_the_right_answer_and_the_wrong_one_in_the_forgotten_carry() -> None:
    for problem in islice(problems("train", 3, 0.5), 500):
        for carrying, answer in ((True, problem.answer), (False, problem.without_carry)):
            found = re.search(WELL_FORMED, problem.worked(carrying=carrying))
            assert found is not None and int(found[1]) == answer


def test_splits_share_no_sum() -> None:
    sums = {
        split: {frozenset([(p.first, p.operation, p.second)]) for p in islice(problems(split, 0, CARRY_SHARE), 800)}
        for split in ("train", "validation", "test")
    }
    assert not sums["train"] & sums["test"] and not sums["train"] & sums["validation"]
    assert not sums["test"] & sums["validation"]
    assert split_of(12, "+", 34) == split_of(34, "+", 12)


def test_held_out_problems_have_different_numbers() -> None:
    rows = take(problems("test", 0, CARRY_SHARE), 500, distinct_numbers=True)
    assert len({(max(p.first, p.second), p.operation, min(p.first, p.second)) for p in rows}) == 500
    with pytest.raises(ValueError, match="different numbers"):
        take(problems("validation", 0, CARRY_SHARE), 1000, distinct_numbers=True)


def test_the_teacher_mostly_forgets_and_sometimes_slips() -> None:
    teacher = Teacher(0)
    carrying = list(islice(problems("train", 0, 1.0), 2000))
    texts = [teacher(p) for p in carrying]
    right = sum(t == p.worked(carrying=True) for t, p in zip(texts, carrying, strict=True)) / 2000
    wrong = sum(t == p.worked(carrying=False) for t, p in zip(texts, carrying, strict=True)) / 2000
    malformed = sum(re.search(WELL_FORMED, t) is None for t in texts) / 2000
    assert 0.2 < right < 0.3 and 0.65 < wrong < 0.78 and 0.01 < malformed < 0.05


def test_the_tokenizer_loses_nothing(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    rows = take(problems("train", 1, CARRY_SHARE), 300)
    for problem in rows:
        for text in (problem.prompt, problem.worked(carrying=True)):
            ids = tokenizer(text).input_ids
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text
    path = write_rows(tmp_path / "rows.jsonl", rows)
    first = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    assert set(first) == {"prompt", "completion", "answer"} and first["answer"] == str(rows[0].answer)

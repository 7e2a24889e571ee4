"""KTO's mismatched completions: by hand, and the promises for any batch."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.contrast import mismatched
from preftune.errors import DataError
from preftune.records import Completion, Group, Prompt


def group(prompt: int, *completions: int) -> Group:
    """A prompt of one id, completions of one id each."""
    written = tuple(Completion((c,), (True,)) for c in completions)
    return Group(Prompt((prompt,), f"p{prompt}", where=f"rows.jsonl:{prompt}"), written)


def ids(groups: list[Group]) -> list[list[int]]:
    return [[c.ids[0] for c in g.completions] for g in groups]


def test_one_completion_each_is_a_shift_by_one():
    batch = [group(1, 10), group(2, 20), group(3, 30)]
    # Row i gets the completion of row i − 1. A reversal would leave the middle one where it was.
    out = mismatched(batch)
    assert ids(out) == [[30], [10], [20]]
    assert [g.prompt for g in out] == [g.prompt for g in batch]
    assert ids(mismatched([group(1, 10), group(2, 20), group(3, 30), group(4, 40)])) == [[40], [10], [20], [30]]


def test_a_row_of_several_completions():
    # Flat: 10 11 | 20 | 30 31, rotated by 2, the most that a prompt has.
    assert ids(mismatched([group(1, 10, 11), group(2, 20), group(3, 30, 31)])) == [[30, 31], [10], [11, 20]]


def test_neighbours_that_share_a_prompt_are_one():
    # Prompt 1 has 10 and 11, in rows of their own; a shift by one would give row 2 its own prompt's 10.
    # Flat by prompt: 10 11 | 20 | 30, rotated by 2: 10 ← 20, 11 ← 30, 20 ← 10, 30 ← 11.
    assert ids(mismatched([group(1, 10), group(1, 11), group(2, 20), group(3, 30)])) == [[20], [30], [10], [11]]
    # The same with other rows in between: places stay with their rows.
    assert ids(mismatched([group(1, 10), group(2, 20), group(1, 11), group(3, 30)])) == [[20], [10], [30], [11]]


def test_a_prompt_with_most_of_the_batch_stays_partly_empty():
    # Flat: 10 11 12 | 20, rotated by 3: 10 ← 11 and 11 ← 12 are its own, so left out; 12 ← 20; 20 ← 10.
    # One foreign completion there is, so one place of prompt 1 is filled.
    out = ids(mismatched([group(1, 10, 11, 12), group(2, 20)]))
    assert [len(row) for row in out] == [1, 1]
    assert out[0] == [20] and out[1][0] in (10, 11, 12)


@pytest.mark.parametrize(
    "batch",
    [
        [group(4, 40)],
        [group(4, 40, 41), group(4, 42)],
        [group(4, 40), group(5)],  # a prompt without completions is nothing to rotate with
    ],
    ids=["a batch of one", "one prompt in two rows", "the other row is empty"],
)
def test_one_prompt_alone_is_an_error(batch):
    with pytest.raises(DataError, match=r"rows.jsonl:4: every completion of this batch belongs to one prompt") as error:
        mismatched(batch)
    assert "raise train.batch_size (at least 2)" in str(error.value)


def test_an_empty_batch_is_an_error():
    with pytest.raises(DataError, match="an empty batch"):
        mismatched([])


@given(rows=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=9))
@settings(max_examples=300, deadline=None)
def test_any_batch(rows):
    """Rows of prompts that may come again, with 0 to 3 completions, each of its own id."""
    batch, next_id = [], 100
    for prompt, count in rows:
        batch.append(group(prompt, *range(next_id, next_id + count)))
        next_id += count
    owner = {c.ids[0]: g.prompt.ids for g in batch for c in g.completions}
    per_prompt = Counter(owner.values())
    if len(per_prompt) < 2:
        with pytest.raises(DataError):
            mismatched(batch)
        return
    out = mismatched(batch)
    assert [g.prompt for g in out] == [g.prompt for g in batch], "prompts stay, in order"
    given_out = [c.ids[0] for g in out for c in g.completions]
    assert all(owner[c.ids[0]] != g.prompt.ids for g in out for c in g.completions), "none with its own prompt"
    assert len(set(given_out)) == len(given_out), "none twice"
    most, all_of_them = max(per_prompt.values()), len(owner)
    if 2 * most <= all_of_them:
        assert set(given_out) == set(owner), "the same completions as the batch's own"
        assert [len(g.completions) for g in out] == [len(g.completions) for g in batch]
    else:
        others = all_of_them - most
        assert len(given_out) == 2 * others, "every other place is filled, and as many of the big prompt's"

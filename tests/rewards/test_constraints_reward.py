"""The reward `constraints`: shares by hand, IFEval's columns, rows that can't be scored."""

from __future__ import annotations

import pytest

from preftune.config import RewardConfig
from preftune.errors import RewardError, UsageError
from preftune.records import Completion, Group, Message, Prompt
from preftune.rewards import build_rewards
from preftune.rewards.builtins import make_builtin

BOTH = [{"kind": "words", "at_most": 2}, {"kind": "no-commas"}]


def score(texts, columns, **args):
    made = make_builtin("constraints", args)
    return made(completions=texts, **{name: [value] * len(texts) for name, value in columns.items()})


def test_the_share_that_is_followed():
    texts = ["so be", "so, be it", "so be it", ""]
    assert score(texts, {"constraints": BOTH}) == [1.0, 0.0, 0.5, 0.0]
    assert score(texts, {"constraints": BOTH}, partial=False) == [1.0, 0.0, 0.0, 0.0]
    assert score(["Sure, here:\nso be"], {"rules": BOTH}, column="rules", loose=True) == [1.0]
    assert score(["so be"], {"constraints": None}) == [None]


def test_ifevals_columns_are_read_where_there_are_no_others():
    columns = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}], "constraints": BOTH}
    assert score(["a, b"], {k: columns[k] for k in ("instruction_id_list", "kwargs")}) == [0.0]
    assert score(["a, b"], columns) == [0.5]


def groups(*rows):
    return [
        Group(
            Prompt((1,), "p", (Message("user", "p"),), {"constraints": row}, f"rows.jsonl:{n}"),
            (Completion((5, 0), (True, True), text="so be", finish="eos"),),
        )
        for n, row in enumerate(rows, 1)
    ]


def test_a_row_that_can_not_be_read_is_named_or_skipped():
    some = groups(BOTH, [{"kind": "wrds", "at_most": 1}])
    with build_rewards([RewardConfig(name="constraints")]) as rewards:
        assert rewards.score(some[:1], 0, 1).groups[0].completions[0].score == 1.0
        with pytest.raises(RewardError, match=r"rows.jsonl:2.*no constraint is named wrds; did you mean 'words'"):
            rewards.score(some, 0, 1)
    with build_rewards([RewardConfig(name="constraints", on_error="skip")]) as rewards:
        scored = rewards.score(some, 0, 1)
        assert [g.completions[0].breakdown["constraints"] for g in scored.groups] == [1.0, None]


def test_wrong_arguments():
    with pytest.raises(UsageError, match=r"unknown argument 'colum'.*did you mean 'column'"):
        make_builtin("constraints", {"colum": "x"})

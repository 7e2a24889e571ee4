"""A recipe's section `competition` puts the contest's system prompt before every prompt, and says so when it can't."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from preftune.config import Recipe, RewardConfig
from preftune.errors import PreftuneError, UsageError
from preftune.recipes import resolve
from preftune.records import Completion, Group, Prompt
from preftune.rewards import build_rewards
from preftune.train.rows import construct_of, read_splits, with_system
from tests import tiny


def _recipe(path: Path, **more: Any) -> Recipe:
    raw = {
        "method": "sft", "model": {"path": "m"}, "train": {"steps": 1}, "data": {"path": str(path)},
        "eval": {"data": [{"path": str(path)}]}, **more,
    }  # fmt: skip
    (recipe,) = resolve(raw).stages
    return recipe


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return tiny.write(tmp_path / "rows.jsonl", tiny.sums(3))


def test_without_the_section_prompts_stay_as_they_are(rows: Path) -> None:
    loaded = read_splits(_recipe(rows), None)
    assert loaded["train"].examples[0].prompt == "0+0="


def test_the_system_prompt_stands_before_every_prompt_of_every_split(rows: Path) -> None:
    recipe = _recipe(rows, competition={"style": "court"})
    construct = construct_of(recipe)
    assert construct is not None and "<prosecutor>" in construct.system_prompt
    loaded = read_splits(recipe, None)
    for split in ("train", "validation"):
        for row in loaded[split].examples:
            assert [m.role for m in row.prompt] == ["system", "user"]  # type: ignore[union-attr]
            assert row.prompt[0].content == construct.system_prompt  # type: ignore[union-attr]


def test_a_source_keeps_its_own_system_message_and_an_empty_one_puts_none(rows: Path) -> None:
    own = _recipe(rows, competition={}, data={"path": str(rows), "system": "Be brief."})
    assert with_system(own.data, own)[0].system == "Be brief."
    none = _recipe(rows, competition={"system": ""})
    assert read_splits(none, None)["train"].examples[0].prompt == "0+0="


def test_a_row_with_a_system_message_of_its_own_is_told_how_to_keep_it(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]
    path = tiny.write(tmp_path / "rows.jsonl", [{"prompt": messages, "completion": "z"}])
    with pytest.raises(PreftuneError, match=r"rows.jsonl:1.*competition\.system"):
        read_splits(_recipe(path, competition={}), None)


@pytest.mark.parametrize(
    ("competition", "message"),
    [
        ({"personas": [{"name": "a", "prompt": "x"}]}, "got 1; a competition has two to 5"),
        ({"root": "a b"}, "can't be a tag"),
        ({"personas": [{"name": "Pirate", "prompt": "x"}, {"name": "pirate", "prompt": "y"}]}, "can't be told apart"),
        ({"personas": [{"name": "winner", "prompt": "x"}, {"name": "pirate", "prompt": "y"}]}, "can't be told apart"),
        ({"style": "pirates"}, "one of pirate-knight-viking, court, strategies"),
    ],
)
def test_a_construct_that_no_reader_could_read_is_refused(rows: Path, competition: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _recipe(rows, competition=competition)


def test_a_reward_that_reads_contests_needs_one(rows: Path) -> None:
    with pytest.raises(UsageError, match=r"rewards\.0\.args.*competition: \{\}"):
        _recipe(rows, method="grpo", rewards=[{"name": "competition-tags"}])


def test_a_label_is_the_name_in_metrics_and_breakdowns() -> None:
    configs = [
        RewardConfig(name="regex", args={"pattern": "a"}, label="has-a"),
        RewardConfig(name="regex", args={"pattern": "b"}),
        RewardConfig(name="regex", args={"pattern": "c"}, label="has-a"),
    ]
    group = Group(Prompt((1,), "p"), (Completion((2,), (True,), "ac"),))
    with build_rewards(configs) as rewards:
        scored = rewards.score([group], 0, 1)
    assert scored.groups[0].completions[0].breakdown == {"has-a": 1.0, "regex": 0.0, "has-a-2": 1.0}
    assert scored.metrics["reward/has-a"] == 1.0

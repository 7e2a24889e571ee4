"""Groups on disk: what comes back is what went in, and what was counted is what a walk counts."""

from __future__ import annotations

import hashlib
import json
import math
import random
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch

from preftune.config import Recipe
from preftune.errors import PreftuneError
from preftune.methods import get_method
from preftune.records import Completion, Distribution, Group, Message, Prompt
from preftune.train.gmpo import _longest_prompt
from preftune.train.lengths import Lengths
from preftune.train.prepared import tokens_digest
from preftune.train.rows import label_balance
from preftune.train.setup import token_budget
from preftune.train.stored import Damaged, NotExact, SplitWriter, StoredGroups


def write(folder: Path, groups: list[Group], split: str = "train") -> tuple[StoredGroups, dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    writer = SplitWriter(folder, split, hashlib.sha256())
    for group in groups:
        writer.append(group)
    meta = json.loads(json.dumps(writer.finish()))
    return StoredGroups(folder, split, meta), meta


def some(masked: bool = False) -> list[Group]:
    chat = (Message("system", "kurz"), Message("user", 'Größe? 字 🐉 "\n\\'))
    columns = {
        "answer": "4",
        "deep": {"a": [1, 2.5, None, True, {"ü": []}], "big": 2**70, "small": -0.0},
        "margin": 1.5,
    }
    mask = (True, not masked, True)
    return [
        Group(Prompt((5, 6), "hi", "hi", {}, "a.jsonl:1"), ()),
        Group(
            Prompt((9, 0, 2**31 - 1), "<u>Größe", chat, columns, "a.jsonl:2"),
            (
                Completion((7, 8, 1), mask, "ab", score=1.0, source="oak-7b"),
                Completion((1,), (True,), "", score=0.25),
                Completion((), (), "\ud800", score=None),
            ),
        ),
        Group(
            Prompt((3,), "other text", "content", {"x": 1}, ""),
            (
                Completion(
                    (4, 4), (True, True), "t", "length", (-0.5, -1e-9), Distribution(0.7, top_k=3), 4, "policy", -2.0,
                    {"r": None, "s": 0.1}, {"why": "because", "n": [1]},
                ),
                Completion((2,) * 9, (True,) * 9, score=1),
            ),
        ),
    ]  # fmt: skip


@pytest.mark.parametrize("masked", [False, True])
def test_what_comes_back_is_what_went_in(tmp_path: Path, masked: bool) -> None:
    groups = some(masked)
    stored, meta = write(tmp_path, groups)
    assert list(stored) == groups and len(stored) == 3 and ("mask" in meta["sizes"]) == masked
    assert [stored[i] for i in (-1, 0, 1)] == [groups[-1], groups[0], groups[1]]
    assert stored[1:] == groups[1:] and stored[::-2] == groups[::-2] and list(reversed(stored)) == groups[::-1]
    # equal is not enough: 1 and 1.0, True and 1 are
    assert repr(list(stored)) == repr(groups)
    assert isinstance(stored[1].prompt.content, tuple) and groups[2] in stored
    with pytest.raises(IndexError):
        stored[3]
    assert stored.highest == 2**31 - 1
    assert list(write(tmp_path / "none", [])[0]) == []


@pytest.mark.parametrize(
    "value",
    [b"x", date(2024, 1, 2), (1, 2), math.nan, math.inf, {1: "a"}, {"a": [{2: 3}]}, torch.tensor(1), 10**5000, {1, 2}],
    ids=lambda value: type(value).__name__,
)
def test_what_json_cannot_give_back_is_refused(tmp_path: Path, value: Any) -> None:
    group = Group(Prompt((1,), "a", "a", {"fine": 1, "odd": value}, "rows.parquet[7]"), ())
    with pytest.raises(NotExact, match=r"rows\.parquet\[7\]: "):
        write(tmp_path, [group])


@pytest.mark.parametrize("ids", [(2**31,), (-1,)])
def test_ids_that_do_not_fit_are_refused(tmp_path: Path, ids: tuple[int, ...]) -> None:
    with pytest.raises(NotExact, match="32 bits"):
        write(tmp_path, [Group(Prompt(ids, "a"), ())])


def drawn(seed: int, answers: int | None = None) -> list[Group]:
    rng = random.Random(seed)

    def ids(most: int) -> tuple[int, ...]:
        return tuple(rng.randrange(55) for _ in range(rng.randint(1, most)))

    def completion() -> Completion:
        own = ids(rng.choice([5, 900, 6000]))
        return Completion(own, (True,) * len(own), score=rng.choice([0.0, 0.5, 1.0]))

    return [
        Group(
            Prompt(ids(rng.choice([4, 3000, 9000])), "p"),
            tuple(completion() for _ in range(rng.randint(1, 4) if answers is None else answers)),
        )
        for _ in range(rng.randint(1, 30))
    ]


def by_walk(recipe: Recipe, method: Any, device: torch.device, splits: dict[str, list[Group]], limited: bool) -> int:
    """The budget's definition, group by group."""
    together = 2 if method.compares == "pairs" else 1
    if limited:
        together = max((len(g.completions) for groups in splits.values() for g in groups), default=together)
    group = unit = longest_prompt = longest = prompts = completions = 0
    for one in (g for groups in splits.values() for g in groups):
        lengths = sorted(len(c.ids) for c in one.completions)
        if method.completions == "policy":
            lengths = [recipe.sampling.max_tokens] * recipe.sampling.group_size
        prompt = len(one.prompt.ids)
        group, unit = max(group, prompt + sum(lengths)), max(unit, prompt + sum(lengths[-together:]))
        longest_prompt, longest = max(longest_prompt, prompt), max([longest, *lengths])
        prompts, completions = prompts + prompt * len(lengths), completions + sum(lengths)
    joint = method.contrast is not None and 2 * completions < prompts
    if method.contrast is not None:
        unit = longest_prompt + longest
    return max(8192 if device.type == "cuda" or joint else 2048, min(group, 8192), unit)


@pytest.mark.parametrize("name", ["sft", "dpo", "kto", "reward", "reward with a generator", "grpo"])
def test_the_budget_is_that_of_a_walk(tmp_path: Path, name: str) -> None:
    name, _, limited = name.partition(" ")
    method = get_method(name)
    recipe = Recipe.model_validate(
        {"method": name, "model": {"path": "x"}, "data": [{"path": "x"}], "sampling": {"group_size": 3},
         **({"loss": {"p_max": 0.9}} if limited else {})}
    )  # fmt: skip
    for seed in range(12):
        answers = 0 if name == "grpo" else None
        lists = {"train": drawn(seed, answers), "validation": drawn(100 + seed, answers), "test": []}
        stored = {split: write(tmp_path / str(seed), rows, split)[0] for split, rows in lists.items()}
        for device in map(torch.device, ("cpu", "cuda")):
            expected = by_walk(recipe, method, device, lists, bool(limited))
            assert token_budget(recipe, method, device, dict(lists)) == expected
            assert token_budget(recipe, method, device, dict(stored)) == expected


def test_counts_are_those_of_a_walk(tmp_path: Path) -> None:
    groups = drawn(3)
    stored, _ = write(tmp_path, groups)
    for threshold in (-1.0, 0.0, 0.3, 0.5, 1.0, 2.0):
        assert label_balance(stored, threshold) == label_balance(groups, threshold)
    assert stored.lengths == Lengths.of(groups)
    assert stored.prompt_lengths().tolist() == [len(group.prompt.ids) for group in groups]
    assert _longest_prompt(stored) == _longest_prompt(groups)
    assert tokens_digest([stored, [], groups]) == tokens_digest([groups, [], stored])
    with pytest.raises(ValueError, match="has no score"):
        label_balance(write(tmp_path / "unscored", some())[0], 0.5)


@pytest.mark.parametrize("name", ["ids", "spans", "groups", "mask", "scores", "rows", "starts"])
def test_a_cut_or_missing_file_is_noticed(tmp_path: Path, name: str) -> None:
    _, meta = write(tmp_path, some(masked=True))
    path = tmp_path / f"train.{name}"
    path.write_bytes(path.read_bytes()[:-8] if name != "mask" else b"\1")
    with pytest.raises(Damaged, match=f"train\\.{name} has"):
        StoredGroups(tmp_path, "train", meta)
    path.unlink()
    with pytest.raises(Damaged):
        StoredGroups(tmp_path, "train", meta)


def test_files_of_other_sizes_do_not_fit(tmp_path: Path) -> None:
    _, meta = write(tmp_path, some())
    path = tmp_path / "train.groups"
    path.write_bytes(path.read_bytes() + b"\0" * 8)
    meta["sizes"]["groups"] += 8
    with pytest.raises(Damaged, match="don't fit"):
        StoredGroups(tmp_path, "train", meta)


@pytest.mark.parametrize(("name", "junk"), [("ids", b"\xff"), ("ids", b"\x7f"), ("rows", b"{"), ("starts", b"\x7f")])
def test_damage_inside_is_an_error_with_a_remedy(tmp_path: Path, name: str, junk: bytes) -> None:
    groups = drawn(4)
    _, meta = write(tmp_path, groups)
    path = tmp_path / f"train.{name}"
    size = len(path.read_bytes()) - (8 if name == "starts" else 0)
    path.write_bytes(junk * size + path.read_bytes()[size:])
    with pytest.raises(PreftuneError, match=r"damaged \(train\[0\]: .*delete that folder"):
        StoredGroups(tmp_path, "train", meta)[0]

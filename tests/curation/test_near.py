"""Near-duplicates: similarities worked out by hand, other scripts, and an index that finds what comparing all finds."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.curation.near import (
    FEW,
    RECALL,
    Near,
    NearConfig,
    NearIndex,
    Shingled,
    bands,
    jaccard,
    near_pairs,
    numbers,
    shingles,
    tokens,
)

WORDS = [f"word{n}" for n in range(400)]


def similarity(one: str, other: str, **config: object) -> float:
    settings_ = NearConfig.model_validate(config)
    return Shingled(one, settings_).similarity(Shingled(other, settings_))


def noisy(text: str, changes: int, rng: random.Random) -> str:
    words = text.split()
    for place in rng.sample(range(len(words)), changes):
        words[place] = rng.choice(WORDS)
    return " ".join(words)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's 3.5 km!", ["it", "'", "s", "3", ".", "5", "km", "!"]),
        ("Привет, МИР", ["привет", ",", "мир"]),
        ("我在学中文 ok", ["我", "在", "学", "中", "文", "ok"]),
        ("สวัสดี", list("สวัสดี")),
        ("ﬁne ①", ["fine", "1"]),
        ("snake_case", ["snake", "_", "case"]),
        (" \n", []),
    ],
)
def test_tokens(text: str, expected: list[str]) -> None:
    assert tokens(text) == expected


def test_similarities_by_hand() -> None:
    # a b c | b c d | c d e   against   a b c | b c d | c d x: two of four shingles
    assert similarity("a b c d e", "a b c d x") == 2 / 4
    assert similarity("a b c d e", "A  B\nc d E") == 1.0
    # pairs of characters: 我在 在学 学中   against   我在 在学 学日
    assert similarity("我在学中", "我在学日", size=2) == 2 / 4
    assert similarity("a b", "a b") == 1.0
    assert similarity("a b", "a c") == 0.0  # too short for three tokens: one shingle each
    assert similarity("", " ") == 1.0
    assert similarity("", "a") == 0.0
    assert similarity("a b c", "c b a", size=1) == 1.0


def test_numbers_that_differ_can_count() -> None:
    one, other = "the sum of it all is 18 and no more", "the sum of it all is 19 and no more"
    assert similarity(one, other) == 5 / 11  # three of eight shingles differ on each side
    assert similarity(one, other, numbers=True) == 0.0
    assert similarity(one, one.upper(), numbers=True) == 1.0
    assert numbers("1,170 or 1170; 3.50 at 5.") == ("1170", "1170", "3.50", "5")


def test_shingles_are_the_same_in_every_process() -> None:
    first = int.from_bytes(hashlib.blake2b(b"a\x1fb\x1fc", digest_size=8).digest(), "little")
    assert shingles("a b c").tolist() == [first]


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_can_be_compared(one: str, other: str) -> None:
    there, back = similarity(one, other), similarity(other, one)
    assert there == back and 0.0 <= there <= 1.0
    assert similarity(one, one) == 1.0
    sets = [frozenset(shingles(text).tolist()) for text in (one, other)]
    union = sets[0] | sets[1]
    assert there == (len(sets[0] & sets[1]) / len(union) if union else 1.0)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.9, 1.0])
def test_bands_miss_hardly_anything_and_are_no_finer_than_they_must_be(threshold: float) -> None:
    count, rows = bands(threshold, 128)
    assert count * rows <= 128
    assert 1 - (1 - threshold**rows) ** count >= RECALL
    if rows < 64:
        assert 1 - (1 - threshold ** (rows + 1)) ** (128 // (rows + 1)) < RECALL


def test_the_index_finds_what_comparing_all_with_all_finds() -> None:
    rng = random.Random(0)
    config = NearConfig(threshold=0.6)
    originals = [" ".join(rng.choices(WORDS, k=60)) for _ in range(40)]
    texts = [noisy(rng.choice(originals), rng.randrange(12), rng) for _ in range(300)]
    ready = [Shingled(text, config) for text in texts]
    truth = {
        (i, j): s for j in range(300) for i in range(j) if (s := ready[i].similarity(ready[j])) >= config.threshold
    }
    found = {(i, j): s for i, j, s in near_pairs(texts, config)}
    assert FEW < 300 and len(truth) > 100
    assert found.items() <= truth.items()  # nothing that is not near, and exact similarities
    assert len(found) >= 0.99 * len(truth)
    few = {(i, j): s for i, j, s in near_pairs(texts[:FEW], config)}
    assert few == {pair: s for pair, s in truth.items() if pair[1] < FEW}


def test_an_index_gives_the_nearest_first_and_keys_back(tmp_path: Path) -> None:
    base = " ".join(WORDS[:50])
    with NearIndex(NearConfig(threshold=0.5), folder=tmp_path) as index:
        assert index.find(base) == []
        index.add("far", " ".join(WORDS[:40] + WORDS[100:110]))
        index.add("same", base)
        index.add("same again", base)
        index.add("other", " ".join(WORDS[200:250]))
        found = index.find(base)
        assert len(index) == 4
    assert found[:2] == [Near("same", 1.0), Near("same again", 1.0)]
    assert [near.key for near in found] == ["same", "same again", "far"]
    assert found[2].similarity == jaccard(shingles(base), shingles(" ".join(WORDS[:40] + WORDS[100:110])))
    assert not list(tmp_path.iterdir())


def test_numbers_count_in_an_index_too() -> None:
    text = " ".join(WORDS[100:180])
    with NearIndex(NearConfig(threshold=0.5, numbers=True)) as index:
        index.add(1, f"{text} costs 5")
        assert index.find(f"{text} costs 6") == []
        assert [near.key for near in index.find(f"{text} costs  5")] == [1]


def test_without_a_threshold_nothing_is_near() -> None:
    config = NearConfig(threshold=None)
    assert near_pairs(["a b c"] * 3, config) == []
    assert not Shingled("a", config).is_near(Shingled("a", config), config)
    with pytest.raises(ValueError, match="threshold"):
        NearIndex(config)


@pytest.mark.parametrize(("field", "value"), [("threshold", 0), ("threshold", 1.1), ("size", 0), ("permutations", 4)])
def test_settings_have_bounds(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        NearConfig.model_validate({field: value})

"""What `preftune data balance` is made of: n-grams, vectors, clusters, the sweep, capping and raising."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from preftune.curation.balance import choose as choosing
from preftune.curation.balance.choose import choose, effective, target_size
from preftune.curation.balance.clusters import BLOCK, TooMany, assign, cluster, outside
from preftune.curation.balance.config import BalanceConfig
from preftune.curation.balance.even import even_sample
from preftune.curation.balance.story import characteristic, tokens
from preftune.curation.balance.sweep import FALLBACK, Silhouette, Step, sweep
from preftune.curation.balance.sweep import choose as choose_threshold
from preftune.curation.embeddings import Builtin
from preftune.curation.ngrams import BUCKETS, count_ngrams
from preftune.curation.vectors import VectorFile
from preftune.errors import PreftuneError
from tests.curation.topics import TOPICS, WORDS, planted

WHOLE = {"branching": 50, "limit": 10_000, "seed": 0}


def config(**changes: Any) -> BalanceConfig:
    return BalanceConfig.model_validate({"data": {"path": "rows.jsonl"}, **changes})


def blobs(sizes: list[int], dimensions: int = 12, spread: float = 0.15, seed: int = 0) -> tuple[Any, Any]:
    """Unit vectors about as many orthogonal directions, shuffled, and the direction of each."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    vectors = np.eye(dimensions)[labels] + spread * rng.standard_normal((len(labels), dimensions))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), labels


# ------------------------------------------------------------------------------------------------------ n-grams


def buckets(text: str) -> set[int]:
    return set(count_ngrams([text]).indices.tolist())


def test_counts_of_a_small_text() -> None:
    # words: cat, cat, sat; pairs: cat cat, cat sat; pieces of 4 with borders: " cat", "cat " twice each, " sat", "sat "
    row = count_ngrams(["Cat cat -- SAT!"]).toarray()[0]
    assert row.sum() == 3 + 2 + 6
    assert sorted(row[row > 0]) == [1, 1, 1, 1, 1, 2, 2, 2]


def test_a_text_counts_the_same_beside_others() -> None:
    texts = [
        "How do cats sleep?",
        "",
        "Как заварить чай?",
        "如何泡茶",
        "\ud800 x\x00y",
        " ",
        "a",
        "é e\u0301",
        "猫cat猫",
    ]
    together = count_ngrams(texts)
    assert together.shape == (len(texts), BUCKETS)
    for row, text in enumerate(texts):
        assert (together[row] != count_ngrams([text])).nnz == 0
    assert together[1].nnz == together[5].nnz == 0


@given(st.lists(st.text(max_size=30), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_any_texts_count_the_same_beside_others(texts: list[str]) -> None:
    together = count_ngrams(texts)
    assert all((together[row] != count_ngrams([text])).nnz == 0 for row, text in enumerate(texts))


def test_inflected_forms_and_texts_without_spaces_share_pieces() -> None:
    one, other, third = buckets("заварка"), buckets("заварки"), buckets("футбол")
    assert len(one & other) == 4 > len(one & third) == 0
    assert len(buckets("我想喝绿茶") & buckets("绿茶怎么泡")) >= 3
    assert buckets("the cat") == buckets("The, CAT")


# --------------------------------------------------------------------------------------------------- embeddings


def test_vectors_have_length_one_and_do_not_depend_on_chunks() -> None:
    texts, _ = planted([(topic, 20) for topic in TOPICS])
    one = Builtin()
    one.fit(texts, texts)
    whole = one.embed([*texts, "", "!!!"])
    np.testing.assert_allclose(np.linalg.norm(whole[:-2], axis=1), 1, atol=1e-5)
    assert not whole[-2:].any()
    parts = [one.embed(texts[at : at + 7]) for at in range(0, len(texts), 7)]
    np.testing.assert_array_equal(np.concatenate(parts), whole[:-2])
    again = Builtin()
    again.fit(texts, texts)
    np.testing.assert_array_equal(again.embed(texts), whole[:-2])
    assert one.dimensions == whole.shape[1]


def test_texts_of_one_topic_are_near_and_others_far() -> None:
    texts, labels = planted([(("cats", "en"), 150), (("tea", "ru"), 150), (("chess", "zh"), 150)])
    embedder = Builtin()
    embedder.fit(texts, texts)
    near = embedder.embed(texts) @ embedder.embed(texts).T
    same = np.equal.outer(labels, labels)
    assert near[same].mean() > near[~same].mean() + 0.4


def test_a_topic_that_the_sample_lacks_is_far_from_all_of_it() -> None:
    texts, _ = planted([(("cats", "ru"), 400), (("law", "ru"), 400)])
    embedder = Builtin()
    embedder.fit(texts, texts)
    strange = embedder.embed(["How should I steep green tea?", "Welche Wolle strickt man zu Socken?"])
    assert (strange @ embedder.embed(texts).T).max() < 0.7
    assert strange[0] @ strange[1] < 0.9


@pytest.mark.parametrize("texts", [["alone"], ["", "x"], ["one two", "one three"], ["a b c"] * 1])
def test_tiny_samples(texts: list[str]) -> None:
    embedder = Builtin()
    embedder.fit(texts, texts)
    vectors = embedder.embed([*texts, "something else"])
    assert vectors.shape == (len(texts) + 1, embedder.dimensions)
    assert np.isfinite(vectors).all()


def test_dimensions_and_seed_are_read() -> None:
    texts, _ = planted([(topic, 10) for topic in TOPICS])
    small, other = Builtin(4), Builtin(4, seed=1)
    small.fit(texts, texts)
    other.fit(texts, texts)
    assert small.dimensions == 4 + 16
    assert not np.allclose(small.embed(texts), other.embed(texts))


# ------------------------------------------------------------------------------------------------------ vectors


def test_a_file_of_vectors_reads_as_an_array(tmp_path: Path) -> None:
    vectors, _ = blobs([30, 30])
    path = tmp_path / "vectors"
    with VectorFile(path) as file:
        file.restart(3)
        file.append(np.ones((5, 3), np.float32))
        file.restart(12)
        for at in range(0, 60, 7):
            file.append(vectors[at : at + 7])
        assert len(file) == 60
        np.testing.assert_array_equal(file[10:20], vectors[10:20])
        np.testing.assert_array_equal(file[50:99], vectors[50:])
        np.testing.assert_array_equal(file[np.array([59, 0, 7, 7])], vectors[[59, 0, 7, 7]])
        assert file[np.array([], int)].shape == file[60:60].shape == (0, 12)
        assert path.stat().st_size == 60 * 12 * 4
        path.write_bytes(b"")
        with pytest.raises(PreftuneError, match="was cut"):
            file[0:2]
    assert not path.exists()


def test_a_file_of_vectors_that_can_not_be_made(tmp_path: Path) -> None:
    with pytest.raises(PreftuneError, match="vectors: No such file or directory"):
        VectorFile(tmp_path / "missing" / "vectors")


# ----------------------------------------------------------------------------------------------------- clusters


def test_planted_clusters_are_found(tmp_path: Path) -> None:
    vectors, labels = blobs([700, 400, 100, 30])
    found = cluster(vectors, 0.55, **WHOLE)
    assert adjusted_rand_score(labels, found.labels) > 0.99
    np.testing.assert_allclose(
        found.distances, np.linalg.norm(vectors - found.centres[found.labels], axis=1), atol=1e-6
    )
    with VectorFile(tmp_path / "v") as file:
        file.restart(12)
        file.append(vectors)
        same = cluster(file, 0.55, **WHOLE)
    np.testing.assert_array_equal(same.labels, found.labels)
    np.testing.assert_array_equal(same.centres, found.centres)


def test_a_large_cluster_does_not_swallow_a_stranger() -> None:
    vectors, _ = blobs([3000, 2, 1])
    found = cluster(vectors, 0.6, **WHOLE)
    sizes = np.bincount(found.labels)
    assert sorted(sizes)[-3:] == [1, 2, 3000]
    swallowed = cluster(vectors[:3000], 2.0, **WHOLE)
    assert len(swallowed.centres) == 1  # within the threshold nothing is a stranger


def test_no_cluster_is_empty_and_every_vector_has_one() -> None:
    vectors, _ = blobs([BLOCK + 5], spread=1.0)
    found = cluster(vectors, 0.7, **WHOLE)
    assert set(found.labels) == set(range(len(found.centres)))
    assert len(found.labels) == BLOCK + 5


def test_the_number_of_clusters_is_bounded() -> None:
    vectors, _ = blobs([300], spread=1.0)
    with pytest.raises(TooMany):
        cluster(vectors, 0.05, branching=50, limit=20, seed=0)


def test_nearest_centre_by_hand() -> None:
    centres = np.array([[0, 0], [3, 4]], np.float32)
    labels, distances = assign(np.array([[0, 1], [3, 3], [1.5, 1.9]], np.float32), centres)
    assert labels.tolist() == [0, 1, 0]
    np.testing.assert_allclose(distances, [1, 1, np.hypot(1.5, 1.9)], rtol=1e-6)


def test_outside_is_by_median_deviation_and_never_within_the_threshold() -> None:
    # Cluster 0: median 1, median deviation 0.1, so the limit is 1 + 5 × 1.4826 × 0.1 = 1.74.
    distances = np.array([0.8, 0.9, 1.0, 1.1, 1.7, 1.8, 0.9, 0.2, 0.9], np.float32)
    labels = np.array([0, 0, 0, 0, 0, 0, 0, 1, 2])
    assert outside(labels, distances, 4, 0.5).tolist() == [False] * 5 + [True] + [False] * 3
    assert not outside(labels, distances, 4, 1.9).any()


def test_the_second_samples_have_the_rare_ones() -> None:
    vectors, labels = blobs([20_000, 40, 3])
    fair = vectors[np.random.default_rng(1).choice(len(vectors), 400, replace=False)]
    one, other = even_sample(vectors, fair, 400, threshold=0.6, branching=50, seed=0)
    for taken in (one, other):
        counts = np.bincount(labels[taken], minlength=3).tolist()
        assert counts[1:] == [40, 3]
        assert 70 <= counts[0] <= 90  # a fifth of the sample
        assert len(set(taken.tolist())) == len(taken)
    assert not set(one[labels[one] == 0].tolist()) & set(other[labels[other] == 0].tolist())
    small, same = even_sample(vectors[:50], fair, 400, threshold=0.6, branching=50, seed=0)
    assert sorted(small.tolist()) == sorted(same.tolist()) == list(range(50))


def test_many_groups_share_a_sample_evenly() -> None:
    vectors, labels = blobs([400, 300, 200, 100, 100, 100, 100, 100])
    one, _ = even_sample(vectors, vectors, 160, threshold=0.7, branching=50, seed=0)
    counts = np.bincount(labels[one])
    assert len(one) <= 160
    assert counts.min() >= 17
    assert counts.max() <= 21


# -------------------------------------------------------------------------------------------------------- sweep


def test_the_sweep_finds_planted_clusters() -> None:
    vectors, labels = blobs([300, 150, 80, 40])
    told: list[tuple[int, int]] = []
    swept = sweep(vectors, **WHOLE, tell=lambda done, total: told.append((done, total)))
    assert adjusted_rand_score(labels, cluster(vectors, swept.threshold, **WHOLE).labels) > 0.98
    thresholds = [step.threshold for step in swept.steps]
    assert thresholds == sorted(thresholds)
    assert told == [(n + 1, len(thresholds)) for n in range(len(thresholds))]
    assert (swept.threshold, swept.why) == choose_threshold(swept.steps, len(vectors))
    chosen = next(step for step in swept.steps if step.threshold == swept.threshold)
    assert chosen.clusters == 4
    assert chosen.largest == pytest.approx(300 / 570)
    assert chosen.alone == 0
    assert chosen.stability == 1.0
    assert swept.above(thresholds[0]) == thresholds[1]
    assert swept.above(thresholds[-1]) is None


@pytest.mark.parametrize(
    ("marks", "chosen"),
    [
        ([0.1, 0.46, 0.5, 0.5, 0.2], 0.3),  # 0.2 reaches 90 % of 0.5 and begins the row; the next is firm
        ([0.1, 0.5, 0.2, 0.48, 0.46, 0.1], 0.5),  # one alone is not firm, where others are
        ([0.1, 0.5, 0.2, 0.3], 0.2),  # nothing is firm
        ([None, 0.3, 0.31, None], 0.3),
        ([-0.2, -0.105, -0.1], 0.3),  # below 0, too
        ([None, None], FALLBACK),
        ([], FALLBACK),
    ],
)
def test_the_rule_by_hand(marks: list[float | None], chosen: float) -> None:
    steps = [Step((n + 1) / 10, silhouette=mark) for n, mark in enumerate(marks)]
    assert choose_threshold(steps, 100)[0] == chosen


def test_the_silhouette_by_hand() -> None:
    # On a line: 0, 1 | 4. Of 0: a = 1, b = 4; of 1: a = 1, b = 3; one alone counts 0.
    judge = Silhouette(np.array([[0], [1], [4]], np.float32), seed=0)
    assert judge(np.array([0, 0, 1], np.int32)) == pytest.approx((3 / 4 + 2 / 3 + 0) / 3)
    assert judge(np.array([0, 0, 0], np.int32)) is None
    assert judge(np.array([0, 1, 2], np.int32)) is None


def test_a_threshold_set_by_hand_is_measured_too() -> None:
    vectors, _ = blobs([100, 50])
    swept = sweep(vectors, **WHOLE, given=0.4321)
    assert swept.threshold == 0.4321
    assert swept.why == "it was set by hand"
    assert 0.4321 in [step.threshold for step in swept.steps]


@pytest.mark.parametrize("vectors", [np.eye(1), np.eye(2), np.ones((5, 4)) / 2, np.zeros((4, 4))])
def test_too_little_to_choose_by(vectors: Any) -> None:
    swept = sweep(vectors.astype(np.float32), **WHOLE)
    assert swept.threshold == FALLBACK
    assert "no groups to choose by" in swept.why


def test_thresholds_with_too_many_clusters_are_not_chosen() -> None:
    vectors, _ = blobs([60, 60, 60], spread=0.3)
    swept = sweep(vectors, branching=50, limit=5, seed=0)
    assert swept.steps[0].too_many
    assert not next(step for step in swept.steps if step.threshold == swept.threshold).too_many


# ----------------------------------------------------------------------------------------------------- choosing


def chosen(sizes: list[int], prefer: Any = None, **settings: Any) -> tuple[Any, Any]:
    """Rows of clusters of these sizes, each with a text of its own, and what is chosen."""
    vectors, _ = blobs(sizes, dimensions=max(4, len(sizes)))
    labels = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    rows = np.random.default_rng(5).permutation(len(labels))
    centres = np.zeros((len(sizes), vectors.shape[1]), np.float32)
    texts = np.arange(len(labels), dtype=np.int32)
    return choose(labels[rows], texts, vectors, centres, config(**settings), prefer), labels[rows]


def test_the_numbers_of_the_talk() -> None:
    assert [target_size(size, cap=100, raise_to=10) for size in (100_500, 100, 1)] == [100, 100, 10]
    found, labels = chosen([100_500, 100, 1], cap=100, raise_to=10)
    assert found.before.tolist() == [100_500, 100, 1]
    assert found.after.tolist() == [100, 100, 10]
    assert np.bincount(labels, found.copies).tolist() == [100, 100, 10]
    assert (found.copies == 0).sum() == 100_400
    assert found.copies[labels == 2].tolist() == [10]
    assert set(found.copies[labels == 1]) == {1}


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    cap=st.none() | st.integers(1, 30), raise_to=st.none() | st.integers(1, 30), raise_from=st.integers(1, 5),
    weight=st.booleans(), keep=st.sampled_from(["random", "diverse", "central"]), seed=st.integers(0, 3),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_every_cluster_gets_its_size(
    sizes: list[int], cap: int | None, raise_to: int | None, raise_from: int, weight: bool, keep: str, seed: int
) -> None:
    raise_to = None if raise_to is None or (cap is not None and raise_to > cap) or raise_from > raise_to else raise_to
    found, labels = chosen(
        sizes, cap=cap, raise_to=raise_to, raise_from=raise_from, keep=keep, seed=seed,
        raise_by="weight" if weight else "copy",
    )  # fmt: skip
    for number, size in enumerate(sizes):
        target = target_size(size, cap=cap, raise_to=raise_to, raise_from=raise_from)
        copies, weights = found.copies[labels == number], found.weights[labels == number]
        assert weights.sum() == pytest.approx(target)
        assert found.after[number] == pytest.approx(target)
        if target < size:
            assert sorted(set(copies)) == [0, 1]
            assert copies.sum() == target
        elif weight:
            assert set(copies) == {1}
            assert weights == pytest.approx(target / size)
        else:
            assert copies.sum() == target
            assert copies.max() - copies.min() <= 1


def test_which_rows_are_kept() -> None:
    vectors = np.array([[x, 0] for x in (0, 0.1, 0.2, 1, 1.1, 5)], np.float32)
    labels, texts = np.zeros(6, np.int32), np.arange(6, dtype=np.int32)
    centre = np.array([[0.05, 0]], np.float32)

    def kept(prefer: Any = None, **changes: Any) -> list[int]:
        found = choose(labels, texts, vectors, centre, config(cap=3, raise_to=None, **changes), prefer)
        return np.flatnonzero(found.copies).tolist()

    assert kept(keep="central") == [0, 1, 2]
    assert kept(keep="diverse") == [0, 4, 5]  # the most central, then always the farthest from those before
    draws = {tuple(kept(keep="random", seed=seed)) for seed in range(8)}
    assert len(draws) > 3
    grade = np.array([1, 2, 2, 3, 2, 0], np.float64)
    assert kept(grade, keep="central") == [1, 2, 3]  # 3 first, and of the three with a 2 the two nearest
    assert kept(grade, keep="diverse") == [1, 3, 4]
    assert 3 in kept(grade, keep="random")


@pytest.mark.parametrize("keep", ["central", "diverse"])
def test_equal_texts_come_after_different_ones(keep: str) -> None:
    vectors = np.array([[0, 0], [1, 0], [2, 0]], np.float32)
    texts = np.array([0, 0, 0, 0, 1, 2], np.int32)
    found = choose(
        np.zeros(6, np.int32), texts, vectors, np.zeros((1, 2), np.float32),
        config(cap=4, raise_to=None, keep=keep), None,
    )  # fmt: skip
    assert np.bincount(texts, found.copies).tolist() == [2, 1, 1]


def test_diverse_rows_of_a_huge_cluster_are_sought_in_a_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "POOL", 50)
    found, _ = chosen([400], cap=10, keep="diverse", raise_to=None)
    other, _ = chosen([400], cap=10, keep="diverse", raise_to=None, seed=1)
    assert found.copies.sum() == other.copies.sum() == 10
    assert (found.copies != other.copies).any()


def test_effective_number() -> None:
    assert effective([5, 5, 5, 5]) == pytest.approx(4)
    assert effective([7]) == pytest.approx(1)
    assert effective([2, 1, 1]) == pytest.approx(2**1.5)


# -------------------------------------------------------------------------------------------------------- words


def test_words_that_set_a_cluster_apart() -> None:
    topics = [("cats", "en"), ("logic", "en"), ("stars", "en"), ("baking", "en")]
    texts, labels = planted([(topic, 60) for topic in topics])
    words = characteristic(zip(labels, texts, strict=True))
    for number, topic in enumerate(topics):
        assert len(words[number]) == 6
        assert all(word in WORDS[topic] for word in words[number][:4])
    assert characteristic([(0, "same words"), (0, "same words")]) == {0: ["same", "words"]}
    assert characteristic([(3, "")]) == {3: []}


def test_words_for_people() -> None:
    assert tokens("A tea, 42 teas; x_y 绿茶吗tea") == {"tea", "teas", "绿茶", "茶吗"}

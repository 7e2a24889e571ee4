"""Intervals: values worked out by hand, and coverage by simulation."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from preftune.intervals import (
    Interval,
    auc_interval,
    is_binary,
    mean_interval,
    paired_difference,
    t_quantile,
    weighted_mean,
)
from preftune.train.evaluation import Measurement


def test_wilson_by_hand() -> None:
    # p = 0.7, n = 10, z² = 3.841459: centre (0.7 + 0.1920729)/1.3841459 = 0.6445078,
    # half 1.959964·sqrt(0.021 + 0.00960365)/1.3841459 = 0.2477137.
    got = mean_interval([1] * 7 + [0] * 3)
    assert got.value == pytest.approx(0.7)
    assert got.low == pytest.approx(0.396778, abs=1e-5)
    assert got.high == pytest.approx(0.892209, abs=1e-5)
    assert got.n == 10


def test_wilson_at_the_ends_is_not_certain() -> None:
    # With no success the upper end is z²/(n + z²) = 3.841459/103.841459.
    none, every = mean_interval([0.0] * 100), mean_interval([1.0] * 100)
    assert (none.low, none.high) == (0.0, pytest.approx(0.0369935, abs=1e-6))
    assert (every.low, every.high) == (pytest.approx(1 - 0.0369935, abs=1e-6), 1.0)


def test_student_by_hand() -> None:
    # 1, 2, 3, 4, 5: mean 3, sd sqrt(2.5), t(4) = 2.776445, half 2.776445·sqrt(0.5) = 1.963243.
    got = mean_interval([1, 2, 3, 4, 5])
    assert (got.value, got.n) == (3.0, 5)
    assert got.low == pytest.approx(3 - 1.963243, abs=1e-5)
    assert got.high == pytest.approx(3 + 1.963243, abs=1e-5)


@pytest.mark.parametrize(
    ("df", "expected"),
    [
        *((1, 12.7062047), (2, 4.3026527), (3, 3.1824463), (4, 2.7764451), (5, 2.5705818), (10, 2.2281389)),
        *((30, 2.0422725), (31, 2.0395134), (60, 2.0002978), (120, 1.9799304), (10**7, 1.9599642)),
    ],
)
def test_t_quantile_matches_published_tables(df: int, expected: float) -> None:
    assert t_quantile(df) == pytest.approx(expected, abs=3e-6)


def test_paired_share_by_hand() -> None:
    # n = 10, 4 rows rose, 1 fell: p = 5/12, q = 2/12, p - q = 0.25,
    # half = 1.959964·sqrt((7/12 - 0.0625)/12) = 1.959964·0.2083333 = 0.4083258.
    got = paired_difference([0, 0, 0, 0, 1, 1, 1, 0, 0, 1], [1, 1, 1, 1, 0, 1, 1, 0, 0, 1])
    assert got.value == pytest.approx(0.3)
    assert got.low == pytest.approx(0.25 - 0.4083258, abs=1e-6)
    assert got.high == pytest.approx(0.25 + 0.4083258, abs=1e-6)
    assert not got.excludes(0.0)


def test_paired_share_without_any_change_is_not_certain() -> None:
    got = paired_difference([0, 1] * 50, [0, 1] * 50)
    assert got.value == 0.0
    assert got.low == pytest.approx(-got.high)
    assert got.high == pytest.approx(1.959964 * math.sqrt((2 / 102) / 102), abs=1e-6)


def test_paired_share_with_every_row_changed_stays_in_range() -> None:
    got = paired_difference([0] * 500, [1] * 500)
    assert (got.value, got.high) == (1.0, 1.0)
    assert 0.98 < got.low < 1.0
    assert got.excludes(0.0)


def test_paired_numbers_are_a_t_interval_of_the_differences() -> None:
    # Differences 1, 2, 3: mean 2, sd 1, t(2) = 4.302653, half 4.302653/sqrt(3) = 2.484138.
    got = paired_difference([10.0, 20.0, 30.0], [11.0, 22.0, 33.0])
    assert got.value == 2.0
    assert got.high - got.value == pytest.approx(2.484138, abs=1e-5)
    assert got.value - got.low == pytest.approx(2.484138, abs=1e-5)


def test_one_row_of_a_number_has_no_bounds_and_still_is_json() -> None:
    got = mean_interval([2.5])
    assert not got.is_bounded
    text = json.dumps(got.to_json(), allow_nan=False)
    assert json.loads(text) == {"value": 2.5, "low": None, "high": None, "n": 1}
    assert Interval.from_json(json.loads(text)) == got


@pytest.mark.parametrize("values", [[3.0] * 180, [-2.5, -2.5], [0.1] * 7])
def test_equal_rows_of_a_number_have_no_bounds(values: list[float]) -> None:
    got = mean_interval(values)
    assert (got.value, got.n, got.is_bounded) == (values[0], len(values), False)
    assert not got.excludes(100.0)


def test_zeros_of_a_reward_known_to_pay_more_are_no_share() -> None:
    assert mean_interval([0.0] * 180).high == pytest.approx(3.841459 / 183.841459, abs=1e-6)
    assert not mean_interval([0.0] * 180, binary=False).is_bounded
    # 0, 1 as plain numbers: mean 0.5, sd sqrt(0.5), t(1) = 12.7062, half 12.7062·sqrt(0.5)/sqrt(2) = 6.3531.
    assert mean_interval([0, 1], binary=False).high == pytest.approx(0.5 + 6.353102, abs=1e-5)
    assert mean_interval([0, 1], binary=True) == mean_interval([0, 1])


def test_values_that_contradict_the_caller_are_an_error() -> None:
    with pytest.raises(ValueError, match="row 1 is not"):
        mean_interval([1.0, 3.0], binary=True)


def test_both_columns_decide_whether_a_change_is_of_a_share() -> None:
    # Before all 0, after 0 and 3: differences 3, 0, 3, 0, mean 1.5, sd sqrt(3), t(3) = 3.182446,
    # half 3.182446·sqrt(3)/2 = 2.756079.
    got = paired_difference([0, 0, 0, 0], [3, 0, 3, 0])
    assert got.value == 1.5
    assert got.high == pytest.approx(1.5 + 2.756079, abs=1e-5)
    every = paired_difference([0, 0, 0], [3, 3, 3])
    assert (every.value, every.is_bounded) == (3.0, False)


def test_a_run_judges_a_metric_by_all_that_it_measured() -> None:
    none: list[float | None] = [0.0, 0.0, None]
    before = Measurement(0, "test", {"reward/form": none, "reward/right": none})
    after = Measurement(9, "test", {"reward/form": [3.0, 0.0, 3.0], "reward/right": [1.0, 0.0, 1.0]})
    assert before.intervals()["reward/form"].is_bounded
    got = before.intervals([before, after])
    assert not got["reward/form"].is_bounded
    assert got["reward/right"] == mean_interval([0, 0])


@pytest.mark.parametrize(("values", "expected"), [([0, 1, 1.0], True), ([True, False], True), ([0, 0.5], False)])
def test_is_binary(values: list[float], expected: bool) -> None:
    assert is_binary(values) is expected


def test_json_round_trip() -> None:
    got = mean_interval([0.2, 0.4, 0.9])
    assert Interval.from_json(json.loads(json.dumps(got.to_json()))) == got


@pytest.mark.parametrize("bad", [[], [1.0, math.nan], [math.inf], [[1.0, 2.0]]])
def test_bad_rows_are_errors(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="values"):
        mean_interval(bad)


def test_unpaired_rows_are_an_error() -> None:
    with pytest.raises(ValueError, match="before has 2, after has 3"):
        paired_difference([0, 1], [0, 1, 1])


@pytest.mark.parametrize(("n", "share"), [(20, 0.1), (60, 0.5), (200, 0.97)])
def test_share_coverage(n: int, share: float) -> None:
    rng = np.random.default_rng(0)
    hits = sum(not mean_interval(rng.random(n) < share).excludes(share) for _ in range(2000))
    assert 0.93 <= hits / 2000 <= 0.985


@pytest.mark.parametrize("n", [3, 8, 50])
def test_mean_coverage(n: int) -> None:
    rng = np.random.default_rng(1)
    hits = sum(not mean_interval(rng.normal(5.0, 2.0, n)).excludes(5.0) for _ in range(2000))
    assert 0.935 <= hits / 2000 <= 0.965


@pytest.mark.parametrize(("n", "rise", "fall"), [(30, 0.02, 0.02), (50, 0.3, 0.1), (500, 0.5, 0.03)])
def test_paired_coverage(n: int, rise: float, fall: float) -> None:
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(2000):
        draw = rng.random(n)
        before = np.where(draw < rise, 0, np.where(draw < rise + fall, 1, rng.random(n) < 0.5))
        after = np.where(draw < rise, 1, np.where(draw < rise + fall, 0, before))
        hits += not paired_difference(before, after).excludes(rise - fall)
    assert hits / 2000 >= 0.935  # when few rows change it covers more than 95 %: the safe side


# ---------------------------------------------------------------------------------------------------- ROC curve


def test_area_under_the_curve_by_hand() -> None:
    # Positives 1, 3, 4 and negatives 0, 2. Negatives under them: ½, 1, 1; area 2.5/3 = 5/6.
    # Positives over the negatives: 1, 2/3. var of (½, 1, 1) = 1/12, of (1, 2/3) = 1/18; variance
    # 1/36 + 1/36 = 1/18, half 1.959964·sqrt(1/18) = 0.4619679.
    got = auc_interval([1, 0, 3, 2, 4], [True, False, True, False, True])
    assert got.value == pytest.approx(5 / 6)
    assert got.low == pytest.approx(5 / 6 - 0.4619679, abs=1e-6)
    assert (got.high, got.n) == (1.0, 5)


def test_ties_count_half() -> None:
    # Positives 1, 2 and negatives 1, 0: the wins are ½, 1, 1, 1 of 4. V of the positives ¾, 1, of the negatives
    # ¾, 1: var 1/32 each, variance 1/32, half 1.959964·0.1767767 = 0.3464760.
    got = auc_interval([1, 2, 1, 0], [True, True, False, False])
    assert got.value == pytest.approx(0.875)
    assert got.low == pytest.approx(0.875 - 0.3464760, abs=1e-6)


def test_answers_to_one_question_are_one_cluster() -> None:
    # Two questions, each with a positive and a negative: (3, 1) and (2, 2.5). The wins are 1, 1, 1, 0 of 4.
    # V of the positives 1, ½ and of the negatives 1, ½, so deviations ¼, −¼ in the same clusters:
    # 2·(1/8)/4 + 2·(1/8)/4 + 2·2·(1/8)/4 = 1/4 instead of 1/8 without clusters.
    scores, labels = [3, 1, 2, 2.5], [True, False, True, False]
    assert auc_interval(scores, labels, [7, 7, 9, 9]).low == pytest.approx(max(0.0, 0.75 - 1.959964 * 0.5), abs=1e-6)
    free = auc_interval(scores, labels)
    assert free.low == pytest.approx(0.75 - 1.959964 * math.sqrt(1 / 8), abs=1e-6)
    assert auc_interval(scores, labels, [0, 1, 2, 3]) == free


def test_copies_of_a_row_tell_nothing_new() -> None:
    rng = np.random.default_rng(5)
    label = rng.random(60) < 0.4
    scores = rng.normal(label.astype(float), 1.0)
    once = auc_interval(scores, label)
    thrice = auc_interval(np.tile(scores, 3), np.tile(label, 3), np.tile(np.arange(60), 3))
    assert (thrice.value, thrice.low) == (pytest.approx(once.value), pytest.approx(once.low))
    assert auc_interval(np.tile(scores, 3), np.tile(label, 3)).low > once.low + 0.02


def test_area_is_the_share_of_won_pairs() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        label = rng.random(40) < 0.5
        label[:2] = (True, False)
        scores = rng.integers(0, 6, 40).astype(float)
        wins = [(a > b) + 0.5 * (a == b) for a in scores[label] for b in scores[~label]]
        assert auc_interval(scores, label).value == pytest.approx(np.mean(wins), abs=1e-12)


def test_area_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn comes with preftune[embed]")
    rng = np.random.default_rng(8)
    label = np.arange(200) % 3 == 0
    scores = np.round(rng.normal(label * 0.7, 1.0), 1)
    assert auc_interval(scores, label).value == pytest.approx(metrics.roc_auc_score(label, scores), abs=1e-12)


def test_perfect_separation_and_a_lone_positive_have_no_bounds() -> None:
    assert not auc_interval([1, 2, 3, 4], [False, False, True, True]).is_bounded
    assert not auc_interval([1, 3, 2], [False, False, True]).is_bounded
    assert not auc_interval([1, 3, 2, 2], [False, True, True, False], [0, 0, 0, 0]).is_bounded


def test_area_needs_both_kinds() -> None:
    with pytest.raises(ValueError, match="there are 2 and 0"):
        auc_interval([1.0, 2.0], [True, True])
    with pytest.raises(ValueError, match="3 scores need as many"):
        auc_interval([1.0, 2.0, 3.0], [True, False])


@pytest.mark.parametrize("per_question", [1, 5])
def test_area_coverage(per_question: int) -> None:
    """Answers to one question share half of their noise, so without clusters the interval would be too narrow."""
    rng = np.random.default_rng(4)
    truth = float(np.mean(rng.normal(1, 1, 10**6) > rng.normal(0, 1, 10**6)))
    hits = 0
    for _ in range(800):
        question = np.repeat(np.arange(60), per_question)
        label = rng.random(len(question)) < 0.5
        noise = (rng.normal(size=60)[question] + rng.normal(size=len(question))) / math.sqrt(2)
        hits += not auc_interval(noise + label, label, question).excludes(truth)
    assert 0.92 <= hits / 800 <= 0.975


def test_weighted_mean_by_hand() -> None:
    # Weights 3 : 1. Value 0.75·0.5 + 0.25·1 = 0.625; below sqrt((0.75·0.1)² + (0.25·0.3)²) = 0.1060660,
    # above sqrt((0.75·0.2)² + 0) = 0.15.
    got = weighted_mean([Interval(0.5, 0.4, 0.7, 10), Interval(1.0, 0.7, 1.0, 5)], [3, 1])
    assert (got.value, got.n) == (pytest.approx(0.625), 15)
    assert got.low == pytest.approx(0.625 - 0.1060660, abs=1e-6)
    assert got.high == pytest.approx(0.775)


def test_weighted_mean_of_an_unbounded_part_is_unbounded() -> None:
    assert not weighted_mean([Interval(0.5, 0.4, 0.7, 10), mean_interval([2.0])], [1, 1]).is_bounded
    with pytest.raises(ValueError, match="weights above 0"):
        weighted_mean([mean_interval([0, 1])], [0.0])


def test_weighted_mean_coverage() -> None:
    """Two groups of rows of unequal size and share, weighted equally."""
    rng = np.random.default_rng(6)
    hits = 0
    for _ in range(2000):
        parts = [mean_interval((rng.random(n) < p).astype(float), binary=True) for n, p in ((40, 0.9), (120, 0.5))]
        hits += not weighted_mean(parts, [1, 1]).excludes(0.7)
    assert 0.93 <= hits / 2000 <= 0.975

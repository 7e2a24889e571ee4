"""Agreement and scores, against numbers worked out by hand and a published example."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from preftune.human.agreement import agree, krippendorff, words
from preftune.human.ratings import Judged, Rating, are_ranks, judged, mid_ranks, scores
from preftune.human.rounds import Round
from tests.human import people

# Krippendorff (2011), section D: four observers, twelve units, ordinal 0.815, interval 0.849.
_NONE = None
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, _NONE, _NONE, _NONE],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _NONE, 3],
    [_NONE, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _NONE],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _NONE],
]


def test_krippendorffs_own_example() -> None:
    units = [[float(v) for v in column if v is not None] for column in zip(*OBSERVERS, strict=True)]
    ordinal, interval = krippendorff(units, "ordinal"), krippendorff(units, "interval")
    assert ordinal is not None and ordinal == pytest.approx(0.815, abs=5e-4)
    assert interval is not None and interval == pytest.approx(0.849, abs=5e-4)


def test_alpha_by_hand() -> None:
    # D_o: units 1 and 2 differ by 1, unit 3 by 0: the mean of squares over ordered pairs is 2/3.
    # D_e: values 1 2 3 4 5 5; the squares over all 30 ordered pairs sum to 2·(6·80 − 20²) = 160, so 160/30.
    value = krippendorff([[1.0, 2.0], [3.0, 4.0], [5.0, 5.0], [9.0]], "interval")
    assert value is not None and value == pytest.approx(1 - (2 / 3) / (160 / 30))  # 0.875
    # positions 0.5 1.5 2.5 3.5 5 5: D_o the same 2/3; squares 2·(6·71 − 18²)= 204, so 204/30
    value = krippendorff([[1.0, 2.0], [3.0, 4.0], [5.0, 5.0]], "ordinal")
    assert value is not None and value == pytest.approx(1 - (2 / 3) / (204 / 30))


def test_alpha_where_raters_are_opposed_is_below_chance() -> None:
    value = krippendorff([[1.0, 2.0], [2.0, 1.0]], "interval")
    assert value == pytest.approx(1 - 1 / (8 / 12))  # −0.5


def test_what_alpha_can_not_say() -> None:
    assert krippendorff([], "interval") is None
    assert krippendorff([[1.0], [2.0]], "interval") is None  # nothing is rated twice
    assert krippendorff([[3.0, 3.0], [3.0, 3.0]], "ordinal") is None  # no variation to explain
    assert krippendorff([[1.0, 1.0], [2.0, 2.0]], "interval") == 1.0


def test_pairs_bias_and_disputes_by_hand() -> None:
    # prompt 1: anna 9 5 1, ben 7 5 5. Pairs: (a,b) same, (a,c) same, (b,c) a tie of ben's.
    # prompt 2: anna 2 4, ben 6 3. One pair, opposed, of width 2 + 3.
    table: Judged = {
        0: {"anna": {"a": 9.0, "b": 5.0, "c": 1.0}, "ben": {"a": 7.0, "b": 5.0, "c": 5.0}},
        1: {"anna": {"d": 2.0, "e": 4.0}, "ben": {"d": 6.0, "e": 3.0}},
        2: {"anna": {"f": 8.0}},
    }
    found = agree(table, "score")
    assert (found.decided, found.tied, found.share) == (3, 1, pytest.approx(2 / 3))
    assert found.disputed == ({"prompt": 2, "answers": ["d", "e"], "ratings": {"anna": [2, 4], "ben": [6, 3]}},)
    anna, ben = found.raters["anna"], found.raters["ben"]
    # anna − ben on the five answers of both: 2 0 −4 −4 1
    assert anna.bias == pytest.approx(-1.0) and ben.bias == pytest.approx(1.0)
    assert (anna.ratings, ben.ratings) == (6, 5)
    assert anna.mean == pytest.approx(29 / 6) and ben.mean == pytest.approx(26 / 5)
    assert ben.spread == pytest.approx(math.sqrt((1.8**2 + 0.2**2 * 2 + 0.8**2 + 2.2**2) / 4))
    assert anna.share == ben.share == pytest.approx(2 / 3)
    # n = 10 values, D_o = (4 + 0 + 16 + 16 + 1) · 2 / 10; Σx 47, Σx² 271, D_e = 2·(10·271 − 47²) / 90
    assert found.alpha == pytest.approx(1 - 7.4 / (2 * (2710 - 2209) / 90))
    assert found.metric == "interval" and found.alpha is not None and found.alpha < 0.4
    assert "alpha" in found.warning and "under 0.4" in found.warning
    lines = words(found)
    assert lines[-1] == f"warning: {found.warning}"
    assert "67% of 3 cases, 1 with a tie left out; 1 disputed pairs" in lines[1]
    assert "  anna: 6 ratings, mean 4.83, spread" in lines[2] and "bias -1 beside the others" in lines[2]


def test_the_widest_dispute_comes_first() -> None:
    table: Judged = {
        0: {"anna": {"a": 1.0, "b": 2.0}, "ben": {"a": 2.0, "b": 1.0}},
        1: {"anna": {"c": 0.0, "d": 9.0}, "ben": {"c": 9.0, "d": 0.0}},
    }
    assert [pair["prompt"] for pair in agree(table, "score").disputed] == [2, 1]


def test_ranks_have_no_bias() -> None:
    table: Judged = {0: {"anna": {"a": 1.0, "b": 2.0}, "ben": {"a": 1.0, "b": 2.0}}}
    found = agree(table, "rank")
    assert (found.metric, found.alpha, found.share, found.warning) == ("ordinal", 1.0, 1.0, "")
    assert found.raters["anna"].bias is None


def test_warnings_in_words() -> None:
    one: Judged = {0: {"anna": {"a": 1.0, "b": 2.0}}}
    assert "one rater only: no agreement can be measured" in agree(one, "score").warning
    apart: Judged = {0: {"anna": {"a": 1.0}}, 1: {"ben": {"b": 2.0}}}
    assert "no prompt was rated by two raters" in agree(apart, "score").warning
    flat: Judged = {0: {"anna": {"a": 3.0, "b": 3.0}, "ben": {"a": 3.0, "b": 3.0}}}
    assert "all ratings are equal" in agree(flat, "score").warning
    assert agree(one, "score").alpha is agree(one, "score").share is None


@pytest.mark.parametrize(
    ("values", "right"),
    [
        ([1, 2, 3], True), ([3, 1, 2], True), ([1, 1, 2], True), ([1, 1, 3], True), ([1, 1, 1], True), ([1], True),
        ([1, 2, 2, 4], True), ([1, 2, 2, 3], True), ([1, 2, 4], False), ([2, 3, 4], False), ([1, 3, 3], False),
        ([2, 2, 2], False), ([1, 1, 2, 4], False),
    ],
)  # fmt: skip
def test_what_are_ranks(values: list[float], right: bool) -> None:
    assert are_ranks([float(value) for value in values]) is right


def test_ties_share_their_places() -> None:
    for given in ({"a": 1.0, "b": 1.0, "c": 2.0}, {"a": 1.0, "b": 1.0, "c": 3.0}):
        assert mid_ranks(given) == {"a": 1.5, "b": 1.5, "c": 3.0}
    assert mid_ranks({"a": 1.0, "b": 1.0, "c": 1.0}) == {"a": 2.0, "b": 2.0, "c": 2.0}
    assert mid_ranks({"a": 2.0, "b": 1.0}) == {"a": 2.0, "b": 1.0}


def test_scores_by_hand() -> None:
    table: Judged = {
        0: {"anna": {"a": 4.0, "b": 8.0}, "ben": {"a": 5.0, "b": 6.0}},
        1: {"anna": {"c": 6.0}},
    }
    assert scores(table, rate="score", normalize=False) == {"a": 4.5, "b": 7.0, "c": 6.0}
    # anna: mean 6, deviation sqrt(8/3); ben: mean 5.5, deviation 0.5
    z = 2 / math.sqrt(8 / 3)
    wanted = {"a": (-z - 1) / 2, "b": (z + 1) / 2, "c": 0.0}
    assert scores(table, rate="score", normalize=True) == pytest.approx(wanted)


def test_normalizing_takes_a_harsh_raters_scale_away() -> None:
    mild = {"a": 9.0, "b": 7.0, "c": 8.0}
    table: Judged = {0: {"mild": mild, "harsh": {name: (value - 6) / 2 for name, value in mild.items()}}}
    normal = scores(table, rate="score", normalize=True)
    assert normal == pytest.approx(scores({0: {"mild": mild}}, rate="score", normalize=True))
    assert scores({0: {"flat": {"a": 3.0, "b": 3.0}}}, rate="score", normalize=True) == {"a": 0.0, "b": 0.0}


def test_ranks_to_scores_by_hand() -> None:
    table: Judged = {
        0: {
            "anna": mid_ranks({"a": 1.0, "b": 2.0, "c": 3.0}),  # 1, ½, 0
            "ben": mid_ranks({"a": 1.0, "b": 1.0, "c": 2.0}),  # ¾, ¾, 0
        }
    }
    assert scores(table, rate="rank", normalize=False) == {"a": 0.875, "b": 0.625, "c": 0.0}


@pytest.fixture
def round_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Round:
    people.fake_draw(monkeypatch)
    return people.begin(people.recipe(tmp_path)).round


def test_a_rater_counts_where_he_rated_all_answers(round_: Round) -> None:
    first, second = round_.prompts[0], round_.prompts[1]
    given = [Rating(a.id, "anna", 3.0) for a in (*first, *second)] + [Rating(a.id, "ben", 9.0) for a in first[:2]]
    table = judged(round_, given)
    assert {prompt: set(raters) for prompt, raters in table.items()} == {0: {"anna"}, 1: {"anna"}}
    given.append(Rating(first[2].id, "ben", 9.0))
    assert set(judged(round_, given)[0]) == {"anna", "ben"}

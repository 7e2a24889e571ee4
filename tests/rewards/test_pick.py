"""The built-in `judge-pick`: verdicts by hand; what can't be read is 0, what is no contest has no value."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.config import RewardConfig
from preftune.errors import RewardError
from preftune.judges.parse import Unparsed
from preftune.records import Completion, Group, Message, Prompt
from preftune.rewards import build_rewards
from preftune.rewards.base import Scored
from preftune.rewards.pick import ORIGINS, Asked, pick_metrics, read_pick, read_row

PAIR: dict[str, Any] = {
    "question": "2+2?", "labels": ["A", "B"], "right": ["B"], "origins": ["small", "big"], "scores": [0.0, 1.0],
    "verdict": "pairwise",
}  # fmt: skip
THREE: dict[str, Any] = {
    "question": "2+2?", "labels": ["A", "B", "C"], "right": ["A", "C"], "origins": ["x", "y", ""],
    "scores": [1.0, 0.0, 1.0], "verdict": "listwise",
}  # fmt: skip
INSIDE: dict[str, Any] = {
    "question": "2+2?", "labels": ["fox", "owl"], "right": ["owl"], "origins": ["x", "y"], "scores": [0.0, 1.0],
    "verdict": "competition", "tags": {"root": "contest", "result": "judge", "winner": "best"},
}  # fmt: skip


def group(columns: dict[str, Any], *texts: str, where: str = "rows.jsonl:1", chat: bool = True) -> Group:
    content: Any = (Message("user", "Judge."),) if chat else "Judge."
    return Group(Prompt((5,), "", content, columns, where), tuple(Completion((9,), (True,), text=t) for t in texts))


def score(*groups: Group, weight: float = 1.0, **more: Any) -> Scored:
    with build_rewards([RewardConfig(name="judge-pick", weight=weight, **more)]) as rewards:
        return rewards.score(groups, 0, 1)


def values(scored: Scored) -> list[float | None]:
    return [c.score for g in scored.groups for c in g.completions]


def test_a_pair() -> None:
    said = [
        ("B is right. <verdict>B</verdict>", 1), ("<verdict>A</verdict>", 0), ("<verdict>tie</verdict>", 0),
        ("B, clearly.", 0), ("<verdict>B</verdict> or <verdict>B</verdict>", 0), ("<verdict>b</verdict>", 0),
        ("<think>A? <verdict>A</verdict></think><verdict>B</verdict>", 1), ("", 0), ("<verdict>C</verdict>", 0),
        ("<verdict>B", 0),
    ]  # fmt: skip
    assert values(score(group(PAIR, *(text for text, _ in said)))) == [value for _, value in said]
    assert values(score(group(PAIR, "<verdict>B</verdict>", chat=False))) == [1]


def test_a_ranking_counts_by_its_first_place() -> None:
    said = [
        ("<ranking>A > B > C</ranking>", 1), ("<ranking>C > A > B</ranking>", 1), ("<ranking>B > A > C</ranking>", 0),
        ("<ranking>A = C > B</ranking>", 1), ("<ranking>A = B > C</ranking>", 0), ("<ranking>A = B = C</ranking>", 0),
        ("<ranking>A > C</ranking>", 0), ("<verdict>A</verdict>", 0),
    ]  # fmt: skip
    assert values(score(group(THREE, *(text for text, _ in said)))) == [value for _, value in said]


def test_inside_a_competition_the_rest_of_it_must_be_there() -> None:
    said = [
        ("<judge>Owl. <best>owl</best></judge></contest>", 1),
        ("<judge>Hm.\n<best>\nThe Owl!\n</best>\n</judge>\n</contest> It is 4.", 1),
        ("<judge><best>fox</best></judge></contest>", 0),
        ("<judge><best>fox or owl</best></judge></contest>", 0),
        ("<judge><best>owl</best></judge>", 0),
        ("<best>owl</best></judge></contest>", 0),
        ("<judge><best>owl</best></judge></contest><judge><best>owl</best></judge></contest>", 0),
        ("</owl><judge><best>owl</best></judge></contest>", 0),
        ("owl", 0),
    ]
    assert values(score(group(INSIDE, *(text for text, _ in said), chat=False))) == [value for _, value in said]


def test_rows_that_are_no_contests_have_no_value() -> None:
    rows = [group({"answer": "4"}, "4"), group(PAIR, "<verdict>B</verdict>", where="rows.jsonl:2")]
    done = score(*rows, on_error="skip")
    assert values(done) == [None, 1.0] and done.skipped == 0
    with pytest.raises(RewardError, match=r"no reward applies to rows\.jsonl:1"):
        score(group({"answer": "4"}, "4"))
    half = {**PAIR, "right": None}
    assert [c.breakdown for g in score(group(half, "x"), on_error="skip", weight=0).groups for c in g.completions] == [
        {"judge-pick": None}
    ]


def test_what_only_measures_has_no_score_and_is_no_error_where_nothing_is_learnt() -> None:
    """Beside a judge that compares a lone answer has no score, but what a rule of weight 0 says of it is measured."""
    configs = [RewardConfig(name="judge-pick"), RewardConfig(name="exact", weight=0)]
    rows = [group({"answer": "4"}, "4"), group({**PAIR, "answer": None}, "<verdict>B</verdict>", where="rows.jsonl:2")]
    with build_rewards(configs) as rewards:
        done = rewards.score(rows, 0, 1, measuring=True)
        assert values(done) == [None, 1.0] and done.skipped == 0
        assert [dict(c.breakdown) for g in done.groups for c in g.completions] == [
            {"judge-pick": None, "exact": 1.0}, {"judge-pick": 1.0, "exact": None},
        ]  # fmt: skip
        with pytest.raises(RewardError, match=r"no reward applies to rows\.jsonl:1"):
            rewards.score(rows, 0, 1)
        neither = [group({"answer": None}, "4")]  # nobody says anything of it: that is an error when measuring, too
        with pytest.raises(RewardError, match=r"no reward applies to rows\.jsonl:1"):
            rewards.score(neither, 0, 1, measuring=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"right": ["C"]}, r"found a contest with labels \['A', 'B'\] and right \['C'\]"),
        ({"right": "B"}, "labels must be two or more different texts, and right some of them"),
        ({"labels": ["A", "A"], "right": ["A"]}, "two or more different texts"),
        ({"labels": ["A"], "right": ["A"]}, "two or more"),
        ({"verdict": "duel"}, "found a contest with verdict 'duel'; it must be one of pairwise, listwise, competition"),
        ({"verdict": "competition"}, "whose column 'tags' does not name root, result, winner"),
    ],
)
def test_a_row_that_contradicts_itself_is_named(change: dict[str, Any], message: str) -> None:
    rows = [
        group(PAIR, "<verdict>A</verdict>"),
        group({**PAIR, **change}, "<verdict>A</verdict>", where="rows.jsonl:9"),
    ]
    with pytest.raises(RewardError, match=rf"failed on rows\.jsonl:9, completion 1 of 1: it .*{message}"):
        score(*rows)
    assert values(score(*rows, on_error="skip")) == [0.0, None]


def test_what_sways_the_verdicts_is_logged() -> None:
    done = score(
        group(
            PAIR, "<verdict>A</verdict>", "<verdict>A</verdict>", "<verdict>B</verdict>", "<verdict>tie</verdict>", "?"
        ),
        group(THREE, "<ranking>A = C > B</ranking>", "<ranking>B > A > C</ranking>"),
    )
    logged = {k.removeprefix("logged/"): v for k, v in done.metrics.items() if k.startswith("logged/")}
    assert logged == {
        "pick_readable": pytest.approx(5 / 7), "pick_place_1": pytest.approx((2 + 0.5) / 5),
        "pick_place_2": pytest.approx(2 / 5), "pick_place_3": pytest.approx(0.5 / 5),
        "pick_origin_small": pytest.approx(2 / 3), "pick_origin_big": pytest.approx(1 / 3),
        "pick_origin_x": 0.5, "pick_origin_y": 0.5,
    }  # fmt: skip
    notes = [extra["pick"] for extra in done.extras]
    assert notes[0] == {
        "right": 0.0, "picked": ["A"], "places": [1], "of": 2, "origins": ["small", "big"], "chosen": ["small"],
        "problem": "",
    }  # fmt: skip
    assert notes[3]["problem"] == "a tie" and notes[4]["problem"] == "the reply holds no <verdict>…</verdict>"
    assert notes[5]["chosen"] == ["x", ""] and notes[5]["right"] == 1.0


def test_origins_come_from_data_and_names_of_metrics_do_not() -> None:
    row = {**PAIR, "origins": ["a/b c\n\x1b[31m", "w" * 99]}
    names = {name for name in score(group(row, "<verdict>A</verdict>")).metrics if "origin" in name}
    assert names == {"logged/pick_origin_a-b-c-31m", f"logged/pick_origin_{'w' * 40}"}
    many = [
        {"places": [1], "of": 2, "origins": [f"o{n}", "all"], "chosen": ["all"], "right": 1.0} for n in range(40)
    ]  # fmt: skip
    assert sum(name.startswith("pick_origin_") for name in pick_metrics(many)) == ORIGINS
    assert pick_metrics([]) == {"pick_readable": 0.0}
    assert pick_metrics([{"something": "else"}]) == {"pick_readable": 0.0}


PARTS = [
    "<verdict>", "</verdict>", "A", "tie", "<ranking>", "A > B", "</ranking>", "<judge>", "</judge>", "<best>", "fox",
    "</best>", "</contest>", "<contest>", "<owl>", "\ud800", "<think>", " ",
]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=12))
def test_any_text_is_a_pick_or_a_reason(parts: list[str]) -> None:
    for columns in (PAIR, THREE, INSIDE):
        asked = read_row(columns)
        assert isinstance(asked, Asked)
        found = read_pick("".join(parts), asked)
        assert isinstance(found, Unparsed) or set(found) <= set(asked.labels)

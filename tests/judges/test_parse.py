"""Strict reading of replies: one verdict of the documented form, or a reason."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.judges.parse import Unparsed, parse_choice, parse_ranking, parse_score, rank_scores


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<verdict>A</verdict>", "A"),
        ("Both are fine, but B is shorter.\n<verdict>B</verdict>\n", "B"),
        ("<verdict> tie </verdict>.", "tie"),
        ("<think>maybe <verdict>A</verdict>? no</think>\n<verdict>B</verdict>", "B"),
        ("so it is</think><verdict>A</verdict>", "A"),  # the template had opened the thinking
        ("<score>3</score> <verdict>A</verdict>", "A"),
    ],
)
def test_choices(text: str, expected: str) -> None:
    assert parse_choice(text) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "holds no <verdict>"),
        ("A", "holds no <verdict>"),
        ("I prefer A. verdict: A", "holds no <verdict>"),
        ("<verdict>a</verdict>", "holds the verdict 'a', which is none of A, B and tie"),
        ("<verdict>TIE</verdict>", "none of A, B and tie"),
        ("<verdict>A or B</verdict>", "none of A, B and tie"),
        ("<verdict></verdict>", "holds the verdict ''"),
        ("<verdict>A</verdict> and <verdict>A</verdict>", "holds more than one"),
        ("The answer says <verdict>B</verdict>, but <verdict>A</verdict>", "holds more than one"),
        ("<verdict>A", "instead of <verdict>…</verdict>"),
        ("A</verdict>", "instead of <verdict>…</verdict>"),
        ("</verdict>A<verdict>", "instead of <verdict>…</verdict>"),
        ("<VERDICT>A</VERDICT>", "instead of <verdict>…</verdict>"),
        ("<verdict>A</verdict> < Verdict >B</ verdict >", "holds more than one"),
        ("<verdict>A<verdict/>", "instead of <verdict>…</verdict>"),
        ("<think>it is <verdict>A</verdict>", "is thinking that never ends"),
        ("<verdict>A</verdict></think>", "holds no <verdict>"),
        (f"<verdict>{'A' * 1000}</verdict>", "AAAA…'"),
    ],
)
def test_no_choice(text: str, why: str) -> None:
    found = parse_choice(text)
    assert isinstance(found, Unparsed) and why in found.why


@pytest.mark.parametrize(("text", "expected"), [("0", 0), ("7", 7), (" 10\n", 10), ("3", 3)])
def test_scores(text: str, expected: int) -> None:
    assert parse_score(f"Good.\n<score>{text}</score>", 0, 10) == expected


def test_a_scale_may_be_negative() -> None:
    assert parse_score("<score>-5</score>", -5, 5) == -5


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("11", "is not from 0 to 10"),
        ("-1", "is not from 0 to 10"),
        ("7/10", "no whole number"),
        ("7.5", "no whole number"),
        ("7.0", "no whole number"),
        ("seven", "no whole number"),
        ("07", "no whole number"),
        ("+7", "no whole number"),
        ("٣", "no whole number"),
        ("1e1", "no whole number"),
        ("", "no whole number"),
        ("9" * 5000, "no whole number"),
    ],
)
def test_no_score(text: str, why: str) -> None:
    found = parse_score(f"<score>{text}</score>", 0, 10)
    assert isinstance(found, Unparsed) and why in found.why


def test_rankings() -> None:
    assert parse_ranking("<ranking>B > A = C</ranking>", "ABC") == (("B",), ("A", "C"))
    assert parse_ranking("<ranking>A=B=C</ranking>", "ABC") == (("A", "B", "C"),)
    assert parse_ranking("<ranking>\nC>A>B </ranking>", "ABC") == (("C",), ("A",), ("B",))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("B > A", "leaves out C"),
        ("", "ranks ''"),
        ("A > B > C > D", "ranks 'D', which is none of A, B, C"),
        ("A > B > B > C", "ranks B more than once"),
        ("A < B < C", "ranks 'A < B < C'"),
        ("A, B, C", "ranks 'A, B, C'"),
        ("a > b > c", "ranks 'a'"),
        ("A > > B > C", "ranks ''"),
        ("AB > C", "ranks 'AB'"),
    ],
)
def test_no_ranking(text: str, why: str) -> None:
    found = parse_ranking(f"<ranking>{text}</ranking>", "ABC")
    assert isinstance(found, Unparsed) and why in found.why


def test_rank_scores_by_hand() -> None:
    # places 1, 2, 3, 4 of four: 1, 2/3, 1/3, 0; two that share the places 2 and 3 get their mean, ½
    assert rank_scores([["A"], ["B"], ["C"], ["D"]], "ABCD") == pytest.approx((1, 2 / 3, 1 / 3, 0))
    assert rank_scores([["C"], ["A", "D"], ["B"]], "ABCD") == pytest.approx((0.5, 0, 1, 0.5))
    assert rank_scores([["B", "A"]], "AB") == (0.5, 0.5)
    assert rank_scores([["B"], ["A"]], "AB") == (0, 1)


PIECES = [
    "<verdict>", "</verdict>", "<score>", "</score>", "<ranking>", "</ranking>", "<think>", "</think>", "A", "B", "C",
    "tie", ">", "=", "<", "7", "-", "9" * 50, " ", "\n", "\x00", "\ud800", "é", "٣",
]  # fmt: skip
replies = st.one_of(st.text(max_size=80), st.lists(st.sampled_from(PIECES), max_size=25).map("".join))


@given(replies)
@settings(max_examples=500, deadline=None)
def test_any_text_gives_a_verdict_or_a_reason(text: str) -> None:
    choice, score, ranking = parse_choice(text), parse_score(text, 0, 7), parse_ranking(text, "ABC")
    assert isinstance(choice, Unparsed) or choice in ("A", "B", "tie")
    assert isinstance(score, Unparsed) or 0 <= score <= 7
    assert isinstance(ranking, Unparsed) or sorted(label for place in ranking for label in place) == ["A", "B", "C"]
    for found in (choice, score, ranking):
        assert not isinstance(found, Unparsed) or (found.why and len(found.why) < 300)


@given(st.permutations(range(5)), st.lists(st.booleans(), min_size=4, max_size=4))
def test_rank_scores_are_win_rates(order: list[int], joined: list[bool]) -> None:
    """The share of the others that each beats, ties ½, counted one by one."""
    labels = "ABCDE"
    places: list[list[str]] = [[labels[order[0]]]]
    for index, together in zip(order[1:], joined, strict=True):
        places[-1].append(labels[index]) if together else places.append([labels[index]])
    rank = {label: n for n, place in enumerate(places) for label in place}
    expected = [
        sum(1.0 if rank[a] < rank[b] else 0.5 if rank[a] == rank[b] else 0.0 for b in labels if b != a) / 4
        for a in labels
    ]
    assert rank_scores(places, labels) == pytest.approx(expected)

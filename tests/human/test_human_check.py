"""Every kind of wrong file is told with file and line, all at once, and changes nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preftune.errors import DataError
from preftune.human.rounds import Round, open_last
from preftune.human.take import Taken, take
from tests import tiny
from tests.human import people

Edit = Callable[[list[dict[str, str]]], object]


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Round:
    """A round of two prompts with three answers each, scored from 0 to 10."""
    people.fake_draw(monkeypatch)
    return people.begin(people.recipe(tmp_path)).round


@pytest.fixture
def ranked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Round:
    people.fake_draw(monkeypatch)
    return people.begin(people.recipe(tmp_path, rate="rank")).round


def sent(round_: Round, name: str = "anna.csv", rater: str = "anna", rule: Any = people.by_length) -> Path:
    return people.fill(round_.folder / "answers.csv", round_.folder.parent.parent / name, rule, rater)


def edited(round_: Round, edit: Edit, name: str = "anna.csv") -> Path:
    """A file that is right but for `edit`."""
    path = sent(round_, name)
    rows = people.table(path)
    edit(rows)
    return people.save(path, rows)


def refused(round_: Round, *paths: Path, **options: Any) -> list[str]:
    """The problems of an import, with bare file names; checks that nothing was written."""
    before = {path: path.read_bytes() for path in round_.folder.rglob("*") if path.is_file()}
    with pytest.raises(DataError) as caught:
        take(round_.folder.parent, paths, **options)
    assert before == {path: path.read_bytes() for path in round_.folder.rglob("*") if path.is_file()}
    head, *problems = str(caught.value).replace(f"{round_.folder.parent.parent}/", "").split("\n  ")
    count = len([problem for problem in problems if not problem.startswith("  ")])
    assert head.startswith(f"{count} problem{'s' if count > 1 else ''} in what was sent; nothing was imported")
    return problems


def accepted(round_: Round, *paths: Path, **options: Any) -> Taken:
    return take(round_.folder.parent, paths, **options)


@pytest.mark.parametrize("name", ["anna.csv", "anna.jsonl"])
def test_a_right_file_is_taken_in(started: Round, tmp_path: Path, name: str) -> None:
    source = started.folder / f"answers{Path(name).suffix}"
    path = people.fill(source, tmp_path / name, people.by_length, "anna")
    taken = accepted(started, path)
    assert (taken.checked.new, taken.checked.known, taken.wanting) == (6, 0, 0)
    kept = tiny.lines(started.folder / "ratings.jsonl")
    assert {row["id"]: row["value"] for row in kept} == {
        answer.id: float(len(answer.text.split())) for answer in started.answers
    }
    first = 2 if name.endswith("csv") else 1
    assert [row["where"] for row in kept] == [f"{path}:{line}" for line in range(first, first + 6)]
    assert started.state == "rated"
    facts = json.loads((started.folder / "round.json").read_text())
    assert (facts["state"], facts["raters"], facts["ratings"]) == ("rated", ["anna"], 6)
    agreement = json.loads((started.folder / "agreement.json").read_text())
    assert agreement["alpha"] is None and "one rater only" in agreement["warning"]


def test_a_file_with_everything_wrong(started: Round) -> None:
    a = [answer.id for answer in started.answers]

    def spoil(rows: list[dict[str, str]]) -> None:
        rows[0]["score"] = "11"
        rows[1]["score"] = "good"
        rows[2]["score"] = ""
        rows[3]["answer"] = rows[3]["answer"] + "!"
        rows[4]["id"] = a[4].replace("r1-", "r2-")
        rows[5]["id"] = "x" + a[5]
        rows.append(dict(rows[0], score="3"))
        rows.append(dict(rows[0], score="4"))

    problems = refused(started, edited(started, spoil))
    assert problems[:6] == [
        "anna.csv:2: score 11 is out of range; give a number from 0 to 10",
        "anna.csv:3: score 'good' is not a number; give a number from 0 to 10",
        f"anna.csv:5: the answer's text is not the one that {a[3]} had; was one column sorted alone? Put the exported "
        "text back",
        f"anna.csv:6: r2{a[4][2:]} is an answer of round 2, and this is round 1",
        f"anna.csv:7: unknown id 'x{a[5]}'; did you mean {a[5]}?",
        f"anna.csv:9: anna rates {a[0]} a second time, after anna.csv:8; keep one",
    ]
    assert problems[6].startswith(
        "anna gave no score to 3 of 6 answers, in 2 of 2 prompts. Fill them in, or import with"
    )
    assert problems[7:] == [
        f"  anna.csv:4 ({a[2]}, prompt 1)",
        f"  no row ({a[4]}, prompt 2)",
        f"  no row ({a[5]}, prompt 2)",
    ]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("10.01", "score 10.01 is out of range"), ("-0.5", "score -0.5 is out of range"), ("7,5", "score '7,5' is not"),
        ("nan", "score 'nan' is not"), ("inf", "score 'inf' is not"), ("1e1", "score '1e1' is not"),
        ("7/10", "score '7/10' is not"), ("٣", "score '٣' is not"), ("1_0", "score '1_0' is not"),
    ],
)  # fmt: skip
def test_scores_that_are_none(started: Round, value: str, said: str) -> None:
    (problem,) = refused(started, edited(started, lambda rows: rows[1].update(score=value)))
    assert problem.startswith(f"anna.csv:3: {said}")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (True, "score 'true' is not a number"), ([1], "score '[1]' is not a number"), (11, "score 11 is out of range"),
        (10**400, "is not a number"),
    ],
)  # fmt: skip
def test_scores_that_are_none_in_json(started: Round, tmp_path: Path, value: Any, said: str) -> None:
    rows = tiny.lines(started.folder / "answers.jsonl")
    for row in rows:
        row["score"] = 5
    rows[2]["score"] = value
    (problem,) = refused(started, tiny.write(tmp_path / "anna.jsonl", rows))
    assert problem.startswith("anna.jsonl:3: ") and said in problem


@pytest.mark.parametrize("value", ["0", "10", "7.25", " 3 ", "+4"])
def test_scores_that_are_right(started: Round, value: str) -> None:
    accepted(started, edited(started, lambda rows: rows[1].update(score=value)))
    assert tiny.lines(started.folder / "ratings.jsonl")[1]["value"] == float(value)


def test_decimal_commas_belong_to_files_with_semicolons(started: Round, tmp_path: Path) -> None:
    rows = people.table(sent(started))
    rows[0]["score"] = "7,5"
    taken = accepted(started, people.save(tmp_path / "anna.csv", rows, ";"))
    assert taken.checked.ratings[0].value == 7.5


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda row: row.pop("score"), "1: no column named 'score'; it has id, prompt, answer, rater, comment"),
        (lambda row: row.pop("id"), "1: no column named 'id'; it has prompt, answer, score, rater, comment"),
        (
            lambda row: row.update(Answers=row.pop("answer")),
            "1: no column named 'answer'; is it the one named 'Answers'?",
        ),
        (
            lambda row: row.update(remark="x"),
            "2: the column 'remark' is not known; move its text to `comment`, or remove it",
        ),
        (
            lambda row: row.update(rank="1"),
            "2: a rank in a round that is rated by score; empty the column 'rank', and give a number from 0 to 10",
        ),
    ],
)
def test_columns(started: Round, edit: Callable[[dict[str, str]], Any], said: str) -> None:
    problems = refused(started, edited(started, lambda rows: [edit(row) for row in rows]))
    assert f"anna.csv:{said}" in problems


def test_columns_that_are_empty_or_not_needed_do_not_matter(started: Round) -> None:
    def edit(rows: list[dict[str, str]]) -> None:
        for row in rows:
            del row["prompt"], row["comment"]
            row.update({"rank": "", "": "", "remark": " "})

    assert accepted(started, edited(started, edit)).checked.new == 6


def test_an_unfilled_file(started: Round) -> None:
    assert refused(started, started.folder / "answers.csv") == [
        "rounds/round-1/answers.csv: no answer is rated: the column 'score' is empty in all 6 rows; give a number from "
        "0 to 10"
    ]
    (problem,) = refused(started, started.folder / "answers.jsonl", partial=True)
    assert problem.startswith("rounds/round-1/answers.jsonl: no answer is rated")


def test_unreadable_files_are_told_together(started: Round, tmp_path: Path) -> None:
    (tmp_path / "cut.csv").write_bytes(sent(started).read_bytes().replace(b"word", b"w\xf6rd", 1))
    (tmp_path / "empty.csv").write_bytes(b"")
    problems = refused(started, tmp_path / "cut.csv", tmp_path / "empty.csv", tmp_path / "none.jsonl")
    assert [problem.partition(": ")[0] for problem in problems] == ["cut.csv:2", "empty.csv", "none.jsonl"]
    assert "not UTF-8 (byte 0xf6)" in problems[0]


# --- who rated ------------------------------------------------------------------------------------------------


def test_a_name_in_one_row_counts_for_all(started: Round) -> None:
    path = edited(started, lambda rows: [row.update(rater="") for row in rows[1:]])
    assert {one.rater for one in accepted(started, path).checked.ratings} == {"anna"}


def test_a_single_rater_needs_no_name_and_is_told_so(started: Round) -> None:
    taken = accepted(started, sent(started, rater=""))
    assert {one.rater for one in taken.checked.ratings} == {"unnamed"}
    assert "names no rater; its ratings are kept under 'unnamed'" in taken.checked.notes[0]
    assert accepted(started, sent(started, rater="")).checked.new == 0


def test_several_raters_need_names(started: Round) -> None:
    problems = refused(started, sent(started, "a.csv", rater=""), sent(started, "b.csv", rater=""))
    assert [problem[:43] for problem in problems] == [
        "a.csv:2: no name in `rater`, here and in 5 ", "b.csv:2: no name in `rater`, here and in 5 ",
    ]  # fmt: skip
    accepted(started, sent(started))
    (problem,) = refused(started, sent(started, "b.csv", rater=""))
    assert problem.startswith("b.csv:2: no name in `rater`")


def test_the_recipe_may_ask_for_several_raters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people.fake_draw(monkeypatch)
    round_ = people.begin(people.recipe(tmp_path, raters=2)).round
    (problem,) = refused(round_, sent(round_, rater=""))
    assert "no name in `rater`" in problem
    assert accepted(round_, sent(round_)).wanting == 2
    assert accepted(round_, sent(round_, "ben.csv", "ben")).wanting == 0


def test_names_that_differ_in_case(started: Round) -> None:
    accepted(started, sent(started))
    (problem,) = refused(started, sent(started, "b.csv", "Anna"))
    assert problem == "b.csv:2: rater 'Anna' and 'anna' differ in case alone; write one of them"


def test_raters_come_together_or_one_after_the_other(started: Round) -> None:
    ben = sent(started, "ben.csv", "ben", lambda row: 12 - people.by_length(row) if "of 1" in row["answer"] else 5)
    accepted(started, sent(started))
    first = accepted(started, ben)
    assert (first.checked.new, len(first.checked.ratings)) == (6, 12)
    again = accepted(started, sent(started), ben)
    assert (again.checked.new, again.checked.known) == (0, 12)
    assert again.agreement == first.agreement and again.agreement.alpha is not None


# --- holes ----------------------------------------------------------------------------------------------------


def test_a_file_with_holes_loses_nothing_and_goes_on(started: Round) -> None:
    a = [answer.id for answer in started.answers]

    def leave_out(rows: list[dict[str, str]]) -> None:
        rows[1]["score"] = rows[2]["score"] = ""

    holes = edited(started, leave_out)
    problems = refused(started, holes)
    assert problems == [
        "anna gave no score to 2 of 6 answers, in 1 of 2 prompts. Fill them in, or import with --partial, which keeps "
        "the rest and leaves these prompts out:",
        f"  anna.csv:3 ({a[1]}, prompt 1)", f"  anna.csv:4 ({a[2]}, prompt 1)",
    ]  # fmt: skip
    taken = accepted(started, holes, partial=True)
    assert (taken.checked.new, taken.checked.left_out, taken.wanting) == (4, {"anna": (1,)}, 1)

    # what comes later is added: the missing rows alone will do
    def rest(rows: list[dict[str, str]]) -> None:
        rows[:] = rows[1:3]

    taken = accepted(started, edited(started, rest, "rest.csv"))
    assert (taken.checked.new, taken.checked.left_out, taken.wanting) == (2, {}, 0)
    assert len(tiny.lines(started.folder / "ratings.jsonl")) == 6


def test_a_mended_file_is_taken_whole(started: Round) -> None:
    refused(started, edited(started, lambda rows: rows[1].update(score="")))
    assert accepted(started, sent(started)).checked.new == 6


def test_two_raters_may_share_a_file(started: Round) -> None:
    def share(rows: list[dict[str, str]]) -> None:
        for row in rows[3:]:
            row["rater"] = "ben"

    problems = refused(started, edited(started, share))
    assert [problem[:46] for problem in problems if not problem.startswith("  ")] == [
        "anna gave no score to 3 of 6 answers, in 1 of ", "ben gave no score to 3 of 6 answers, in 1 of 2",
    ]  # fmt: skip
    taken = accepted(started, edited(started, share), partial=True)
    assert (taken.checked.left_out, taken.wanting) == ({"anna": (2,), "ben": (1,)}, 0)


def test_partial_is_no_excuse_for_other_faults(started: Round) -> None:
    def spoil(rows: list[dict[str, str]]) -> None:
        rows[0]["score"], rows[1]["score"] = "", "x"

    problems = refused(started, edited(started, spoil), partial=True)
    assert problems == ["anna.csv:3: score 'x' is not a number; give a number from 0 to 10"]


# --- again ----------------------------------------------------------------------------------------------------


def test_importing_twice_changes_nothing(started: Round) -> None:
    path = sent(started)
    accepted(started, path)
    before = {p.name: p.read_bytes() for p in started.folder.iterdir() if p.is_file()}
    taken = accepted(started, path)
    assert (taken.checked.new, taken.checked.known) == (0, 6)
    assert before == {p.name: p.read_bytes() for p in started.folder.iterdir() if p.is_file()}


def test_another_rating_needs_replace(started: Round) -> None:
    accepted(started, sent(started), sent(started, "ben.csv", "ben"))
    other = edited(started, lambda rows: rows[0].update(score="1", comment="on second thought"))
    (problem,) = refused(started, other)
    a = started.answers[0]
    assert re.fullmatch(
        rf"anna.csv:2: anna gave {a.id} \d before \(anna.csv:2\), now 1; put that back, or import with --replace .*",
        problem,
    )
    taken = accepted(started, other, renew=True)
    assert (taken.checked.new, taken.checked.replaced, len(taken.checked.ratings)) == (6, 6, 12)
    mine = {one.rater: one for one in taken.checked.ratings if one.id == a.id}
    assert (mine["anna"].value, mine["anna"].comment) == (1.0, "on second thought")
    assert mine["ben"].value == people.by_length({"answer": a.text})


def test_a_comment_stays_when_the_next_file_has_none(started: Round) -> None:
    accepted(started, edited(started, lambda rows: rows[0].update(comment="=good")))
    taken = accepted(started, sent(started))
    assert taken.checked.ratings[0].comment == "=good"


# --- ranks ----------------------------------------------------------------------------------------------------


def test_ranks_are_taken_in(ranked: Round) -> None:
    wanted = people.ranks_by_length(ranked.answers)
    taken = accepted(ranked, sent(ranked, rule=lambda row: wanted[row["id"]]))
    assert {one.id: one.value for one in taken.checked.ratings} == wanted


@pytest.mark.parametrize(
    ("ranks", "problem"),
    [
        ("124", "anna.csv:2: anna's ranks of the 3 answers to prompt 1 are 1, 2, 4; give 1 to"),
        ("233", "anna.csv:2: anna's ranks of the 3 answers to prompt 1 are 2, 3, 3; give 1 to"),
        ("1x3", "anna.csv:3: rank 'x' is not a number"),
        ("103", "anna.csv:3: rank '0' is not a whole number from 1 on"),
    ],
)
def test_ranks_that_are_none(ranked: Round, ranks: str, problem: str) -> None:
    values = iter([*ranks, *"123"])
    (found,) = refused(ranked, sent(ranked, rule=lambda row: next(values)))
    assert found.startswith(problem)


def test_halves_are_no_ranks(ranked: Round) -> None:
    values = iter(["1", "1.5", "3", *"123"])
    (found,) = refused(ranked, sent(ranked, rule=lambda row: next(values)))
    assert found.startswith("anna.csv:3: rank '1.5' is not a whole number")


def test_ties_are_ranks(ranked: Round) -> None:
    values = iter("112133")
    (found,) = refused(ranked, sent(ranked, rule=lambda row: next(values)))
    assert "prompt 2 are 1, 3, 3" in found
    values = iter("112113")
    assert accepted(ranked, sent(ranked, rule=lambda row: next(values))).wanting == 0


def test_half_ranked_prompts_are_checked_as_far_as_they_go(ranked: Round) -> None:
    values: Any = iter(["4", None, "1", *"123"])
    (found,) = refused(ranked, sent(ranked, rule=lambda row: next(values)), partial=True)
    assert found == "anna.csv:2: rank 4, but prompt 1 has 3 answers"


def test_a_score_in_a_round_of_ranks(ranked: Round) -> None:
    def edit(rows: list[dict[str, str]]) -> None:
        for row in rows:
            row["score"] = "5"

    problems = refused(ranked, edited(ranked, edit))
    assert problems[0].startswith("anna.csv:2: a score in a round that is rated by rank; empty the column 'score'")


# --- the kept ratings -----------------------------------------------------------------------------------------


def test_damaged_ratings_are_told(started: Round) -> None:
    accepted(started, sent(started))
    path = started.folder / "ratings.jsonl"
    path.write_text(path.read_text() + "{\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"ratings.jsonl:7: no rating .* import the raters' files again"):
        accepted(started, sent(started))


def test_exchanged_answers_are_told(started: Round) -> None:
    from preftune.data.collected import read_collected, write_collected

    path = started.folder / "collected.jsonl"
    write_collected(path, read_collected(path).groups[:1], {})
    with pytest.raises(DataError, match="not the answers that were exported"):
        open_last(started.folder.parent)

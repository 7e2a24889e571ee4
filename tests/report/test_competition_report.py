"""The competition's section: its numbers are those counted by hand, and its contests are shown as they are."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from preftune.competition import Construct
from preftune.config import CompetitionConfig
from preftune.intervals import mean_interval, paired_difference
from preftune.report.competition import Numbers, construct_of
from preftune.report.competition_examples import EXAMPLES, FAULTS
from preftune.report.competition_measures import contest_measures, persona_measures
from preftune.report.competition_page import Row, Section, section
from preftune.report.read import read_run
from preftune.rewards.builtins import BUILTINS
from tests import tiny

sys.path.insert(0, str(Path(__file__).parent))
from make_competition import CONSTRUCT, GOAL, MEASURED, ROUNDS, TRAINED, make_competition, make_rounds
from make_run import make_pipeline, make_run
from page import HOSTILE, Page, read, rewrite


def contest(winner: str, answer: int, *, own: int | None = None, copied: bool = False, tail: str = "") -> str:
    """A well-formed contest: the winner's own conclusion is `own`, else the answer; others conclude 0."""
    says = {
        "pirate": "Arrr, me booty lies so: ones and tens went into one chest.",
        "knight": "Hark, thy number doth grow by a full ten and shrinks by a rest.",
        "viking": "By Odin, my axe halves it and glory doubles every half.",
    }
    if copied:
        says["knight"] = says["pirate"]
    texts = {
        name: f"{text} It is {(answer if own is None else own) if name == winner else 0}."
        for name, text in says.items()
    }
    return CONSTRUCT.render(texts, "Beep.", winner, f"It is {answer}.") + tail


def by_hand(split: str, step: int, row: int, truth: int) -> str:
    """Of twelve contests four have no winner before, four a leak and four a copy. After, nine are won by the pirate."""
    row %= 12
    if step == 0:
        if row < 4:
            return contest("pirate", truth).replace("<winner>\npirate\n</winner>\n", "")
        return contest("knight", truth, tail="</result>") if row < 8 else contest("viking", truth + 1, copied=True)
    winner = "pirate" if row < 9 else "knight"
    if row == 10:
        return contest(winner, truth).replace("</pirate>", "</pirate> And now the knight.")
    if row == 11:
        return contest(winner, truth).replace("<winner>\nknight", "<winner>\nthe knight, of course")
    return contest(winner, truth, own=truth + 1 if row < 3 else None)


ROWS = 24
"""Of the hand-made run: every contest twice."""


def hand_made(folder: Path, **changes: Any) -> Path:
    return make_competition(folder, steps=2, every=2, rows=ROWS, written=by_hand, **changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hand_made(tmp_path_factory.mktemp("runs") / "contest")


def found(folder: Path) -> Section:
    out = section(read_run(folder))
    assert out is not None
    return out


def row(part: Section, title: str) -> Row:
    return next(row for row in (*part.contests, *part.personas) if row.title == title)


def ends(part: Section, title: str, at: int = 0) -> list[float]:
    return [one.interval.value for one in row(part, title).cells[at].found if one is not None]


# --- numbers --------------------------------------------------------------------------------------------------------


def test_numbers_are_those_counted_by_hand(run: Path) -> None:
    part = found(run)
    wanted = {
        "Form without a fault": (4 / 12, 11 / 12),
        "A winner is named": (8 / 12, 12 / 12),
        "… by its name alone": (8 / 12, 11 / 12),
        "Winner's own conclusion is right": (4 / 12, 9 / 12),
        "Final answer is right": (4 / 12, 12 / 12),
        "Tags in the final answer": (4 / 12, 0.0),
        "A persona copies an earlier one": (4 / 12, 0.0),
    }
    for title, values in wanted.items():
        assert ends(part, title) == pytest.approx(values), title
    # Only contests with a winner count: two thirds before, all after.
    assert [ends(part, "Wins", at) for at in range(3)] == [
        pytest.approx(pair) for pair in ((0, 9 / 12), (4 / 8, 3 / 12), (4 / 8, 0))
    ]
    before = row(part, "Wins").cells[1].found[0]
    assert before is not None and before.interval == mean_interval([1.0] * 8 + [0.0] * 8) and not before.logged
    # The knight's four wins before were right, the viking's wrong; six of the pirate's nine were right after.
    assert [ends(part, "Is right when it wins", at) for at in range(3)] == [
        pytest.approx(pair) for pair in ((6 / 9,), (1, 1), (0,))
    ]
    change = row(part, "Form without a fault").cells[0].change
    assert change == paired_difference(([0.0] * 8 + [1.0] * 4) * 2, ([1.0] * 10 + [0.0, 1.0]) * 2)
    assert row(part, "Form without a fault").cells[0].verdict == "better"
    assert row(part, "A persona copies an earlier one").cells[0].verdict == "better"
    assert {cells.verdict for cells in row(part, "Wins").cells} == {""}
    assert not any(one.logged for line in part.contests for cells in line.cells for one in cells.found if one)


def test_the_page_says_the_same_numbers(run: Path) -> None:
    words = read(run).words

    def share(count: int) -> str:
        bounds = mean_interval([1.0] * count + [0.0] * (ROWS - count))
        return f"{count / ROWS:.1%} (95 % interval {bounds.low * 100:.1f} to {bounds.high * 100:.1f})".replace(
            "%", " %", 1
        )

    assert (
        f"In 24 held-out contests that name a winner the judge chose the pirate in {share(18)}, 2.2 times as often as "
        "by chance (33.3 %); before training in 0.0 %. Below chance: the viking (0.0 %)." in words
    )
    assert f"The winner's own conclusion is right in {share(18)}, before training in 33.3 % (+41.7 points)" in words
    assert f"; the final answer is right in {share(24)}, before training in 33.3 % (+66.7 points)." in words
    assert f"The form is without a fault in {share(22)}, before training in 33.3 % (+58.3 points)." in words
    bounds = share(22).split("interval ")[1].rstrip(")")
    assert (
        f"Form without a faultEvery tag once and in its place. 33.3 % 18.0 to 53.3 91.7 % {bounds} +58.3 points"
        in words
    )
    assert "On held-out rows. Small numbers are 95 % intervals." in words


@pytest.mark.parametrize(
    ("wins", "said"),
    [
        ((10, 9, 11), "no persona wins measurably more or less often than by chance (33.3 %): the pirate 33.3 %"),
        ((17, 11, 2), "the judge chose the pirate in 56.7 % (95 % interval 39.2 to 72.6), more often than by chance"),
        ((15, 15, 0), "the judge chose the viking in 0.0 % (95 % interval 0.0 to 11.4), less often than by chance"),
        ((0, 0, 0), "No held-out contest names a winner, so there is nothing to say of the judge's taste."),
    ],
)
def test_the_judge_is_held_against_chance(tmp_path: Path, wins: Sequence[int], said: str) -> None:
    winners = [name for name, count in zip(CONSTRUCT.names, wins, strict=True) for _ in range(count)]

    def written(split: str, step: int, i: int, truth: int) -> str:
        return (
            contest(winners[i], truth)
            if winners
            else contest("pirate", truth).replace("pirate\n</winner", "\n</winner")
        )

    folder = make_competition(tmp_path / "run", steps=1, every=1, rows=30, written=written, rewards=MEASURED)
    assert said in read(folder).words


def test_wins_need_no_rows_file(run: Path, tmp_path: Path) -> None:
    folder = hand_made(tmp_path / "run")
    for path in (folder / "measurements").iterdir():
        path.unlink()
    wanted, part = found(run), found(folder)
    for title in ("Wins", "Winner's own conclusion is right", "A persona copies an earlier one"):
        for cells, other in zip(row(part, title).cells, row(wanted, title).cells, strict=True):
            assert [one and one.interval for one in cells.found] == [one and one.interval for one in other.found]
            assert not any(one.logged for one in cells.found if one)
    # Without the rows the share of strict forms is known of the eight logged answers alone.
    strict = row(part, "Form without a fault").cells[0]
    assert [(one.interval.value, one.interval.n, one.logged) for one in strict.found if one] == [
        (0.0, 8, True),
        (1.0, 8, True),
    ]
    copied = row(part, "A persona copies an earlier one").cells[0]
    summary = json.loads((folder / "summary.json").read_text())
    assert copied.change is not None
    assert copied.change.to_json() == summary["difference"]["test"]["reward/competition-copied"]


def test_what_no_reward_measures_is_counted_in_the_log(tmp_path: Path) -> None:
    whole = hand_made(tmp_path / "whole")
    folder = hand_made(tmp_path / "run", rewards=[{"name": "competition-tags", "weight": 1.0}])
    part = found(folder)
    rows = [r for r in tiny.lines(whole / "samples.jsonl") if r["split"] == "test"]
    for title, label in (
        ("Form without a fault", "competition-structure"),
        ("Winner's own conclusion is right", "competition-winner-right"),
        ("Final answer is right", "competition-answer"),
        ("A persona copies an earlier one", "competition-copied"),
    ):
        for at, step in enumerate((0, 2)):
            one = row(part, title).cells[0].found[at]
            counted = sum(r["breakdown"][label] == 1 for r in rows if r["step"] == step)
            assert (
                one is not None
                and one.logged
                and one.interval == mean_interval([1.0] * counted + [0.0] * (8 - counted))
            )
    for at, name in enumerate(CONSTRUCT.names):
        values = [r["breakdown"][f"competition-reflection-{name}"] for r in rows if r["step"] == 2]
        assert ends(part, "Self-reflection", at)[-1] == pytest.approx(sum(values) / 8)
    words = read(folder).words
    assert "of the 8 logged test answers" in words
    assert "* Of the answers in samples.jsonl alone" in words
    assert "Of the first 8 validation rows, whose answers are logged" in words


def test_labels_and_args_of_the_recipe_are_followed(tmp_path: Path) -> None:
    rewards = [
        {"name": "competition-winner", "weight": 0.0, "label": "valid", "args": {"partial": 0}},
        {"name": "competition-winner", "weight": 1.0, "label": "named", "args": {"partial": 0.25}},
        {"name": "competition-won", "weight": 0.0, "label": "judge"},
        {"name": "competition-copied", "weight": 0.0, "label": "copies"},
    ]
    folder = hand_made(tmp_path / "run", rewards=rewards)
    part = found(folder)
    assert ends(part, "A winner is named") == pytest.approx([8 / 12, 1.0])  # partial: 0 hides who is named among words
    assert ends(part, "… by its name alone") == pytest.approx([8 / 12, 11 / 12])
    assert ends(part, "Wins", 0) == pytest.approx([0, 9 / 12])
    assert part.metrics == {"reward/copies", *(f"reward/judge-{name}" for name in CONSTRUCT.names)}


def test_a_truth_that_is_no_number_is_not_judged_here(tmp_path: Path) -> None:
    folder = hand_made(tmp_path / "run", rewards=[{"name": "competition-tags", "weight": 1.0}])
    rows = tiny.lines(folder / "samples.jsonl")
    for line in rows:
        line["columns"] = {"answer": "Paris"}
    tiny.write(folder / "samples.jsonl", rows)
    part = found(folder)
    assert "Final answer is right" not in [line.title for line in part.contests]
    assert part.examples[0].sides[1].right is None and part.examples[0].truth == "Paris"


# --- curves ---------------------------------------------------------------------------------------------------------


def test_curves_hold_the_shares_and_chance(run: Path) -> None:
    page = read(run)
    wins = next(chart for chart in page.charts if chart["title"] == "Who wins")
    assert wins["level"] == pytest.approx(1 / 3) and wins["percent"] and wins["wide"]
    measured = [one for one in wins["series"] if "low" in one]
    assert [(one["name"], one["x"], one["y"]) for one in measured] == [
        ("pirate", [0, 2], [0, 0.75]),
        ("knight", [0, 2], [0.5, 0.25]),
        ("viking", [0, 2], [0.5, 0]),
    ]
    assert "Dotted: chance, 1/3. On up to 24 validation rows" in wins["note"]
    faint = {one["name"]: one for one in wins["series"] if one["style"] == "thin"}
    lines = [line["metrics"] for line in tiny.lines(run / "metrics.jsonl") if line["kind"] == "train"]
    for name in CONSTRUCT.names:
        for line, y in zip(lines, faint[name]["y"], strict=True):
            shares = {other: line[f"reward/competition-won-{other}"] for other in CONSTRUCT.names}
            whole = sum(shares.values())
            assert y == pytest.approx(shares[name] / whole, rel=1e-5) if whole else y is None
    titles = [chart["title"] for chart in page.charts]
    for title in ("Is the winner right?", "Form", "Copies", "Self-reflection", "Originality", "Words of each persona"):
        assert titles.count(title) == 1
    assert len({chart["id"] for chart in page.charts}) == len(page.charts)


def test_what_is_drawn_here_is_not_drawn_twice(run: Path) -> None:
    page = read(run)
    titles = [chart["title"] for chart in page.charts]
    assert not [
        title for title in titles if title.startswith(("Competition won", "Competition voice", "Competition copied"))
    ]
    assert "Competition tags (validation)" in titles
    table = page.words.split("Before and after")[1].split("Competition In 24")[0]
    assert "Competition tags" in table and "Competition won" not in table and "Competition copied" not in table


def test_the_headlines_metric_keeps_its_row_and_curve(tmp_path: Path) -> None:
    folder = hand_made(tmp_path / "run")
    rewrite(folder / "summary.json", best_metric="reward/competition-copied")
    page = read(folder)
    assert "Competition copied (measured, not trained on) on 24 held-out rows fell from 33.3 % to 0.0 %" in page.words
    assert "Competition copied (validation)" in [chart["title"] for chart in page.charts]
    assert "pill better" in [attrs.get("class") for _, attrs in page.tags]  # less of it is better


# --- contests to read -----------------------------------------------------------------------------------------------


def test_the_same_question_before_and_after(run: Path) -> None:
    part = found(run)
    assert len(part.examples) == EXAMPLES
    assert [one.where for one in part.examples] == [f"test.jsonl:{i + 1}" for i in range(EXAMPLES)]
    logged = {(r["step"], r["where"]): r for r in tiny.lines(run / "samples.jsonl") if r["split"] == "test"}
    for one in part.examples:
        assert [side.heading for side in one.sides] == ["Before training · step 0", "After training · step 2"]
        for side, step in zip(one.sides, (0, 2), strict=True):
            text = logged[step, one.where]["completion"]
            assert "".join(piece.text for piece in side.pieces) == text
            for column in side.columns:
                assert column.text is not None and f"<{column.name}>\n{column.text.text}\n</{column.name}>" in text
        assert one.truth == logged[0, one.where]["columns"]["answer"]
        assert CONSTRUCT.persona("pirate").prompt not in one.question.text and "What is" in one.question.text
    page = read(run)
    opened = [attrs for tag, attrs in page.tags if tag == "details" and "example" in (attrs.get("class") or "")]
    assert ["open" in attrs for attrs in opened] == [True] + [False] * (EXAMPLES - 1)
    assert (
        "The first held-out rows whose answers are logged, in file order, not chosen by how good they are."
        in page.words
    )


def test_marks_of_winner_copy_and_answer(tmp_path: Path) -> None:
    def written(split: str, step: int, i: int, truth: int) -> str:
        if step:
            return contest("viking", truth + 1, own=truth)
        return contest("pirate", truth, copied=True, tail="</result>")

    folder = make_competition(tmp_path / "run", steps=1, every=1, rows=2, written=written)
    before, after = found(folder).examples[0].sides
    assert [(c.name, c.wins, c.copies) for c in before.columns] == [
        ("pirate", True, False), ("knight", False, True), ("viking", False, False),
    ]  # fmt: skip
    assert (before.right, before.leaks, before.winner_right) == (None, True, True)
    assert (after.won_by, after.right, after.leaks, after.winner_right) == ("viking", False, False, True)
    assert not after.faults and after.said == "viking wins, answer wrong, form without a fault"
    assert before.said == "pirate wins, tags in the answer, 2 faults of form"
    words = read(folder).words
    assert "knightcopies" in words and "pirate winner" in words and "✗ tags in it" in words and "✗ wrong" in words
    assert "chooses viking ✓ whose own conclusion is right" in words
    assert "The form is without a fault." in words


def test_faults_are_told_with_their_place(tmp_path: Path) -> None:
    broken = (
        "Sure!\n<competition><pirate>Arrr</pirate> then 3 < 4 <Knight >Hark</knight>"
        "<result>x<winner>nobody</winner></result></competition>"
    )
    folder = make_competition(tmp_path / "run", steps=1, every=1, rows=1, written=lambda *_: broken)
    side = found(folder).examples[0].sides[0]
    told = {fault.message: fault.place for fault in side.faults}
    assert "Sure!" in told.values() and "<Knight >" in told.values() and "then 3" in told.values()
    assert any("<viking> is missing" in message and not place for message, place in told.items())
    marked = {piece.text: piece.numbers for piece in side.pieces if piece.numbers}
    assert set(marked) == {"Sure!", "then 3", "<Knight >"}
    numbers = {str(fault.number): fault.place for fault in side.faults}
    for text, shown in marked.items():
        assert all(numbers[number] == text for number in shown.split(", "))
    assert (side.won_by, side.answer, side.judge and side.judge.text) == ("", None, "x<winner>nobody</winner>")
    page = read(folder)
    assert [attrs["data-n"] for tag, attrs in page.tags if tag == "mark" and "data-n" in attrs][: len(marked)] == list(
        marked.values()
    )
    assert "names no winner" in page.words


def test_texts_without_a_contest_and_with_very_many_tags(tmp_path: Path) -> None:
    texts = ["The answer is 7.", "<pirate>" * 20_000, ""]
    folder = make_competition(
        tmp_path / "run", steps=1, every=1, rows=3, written=lambda split, step, i, truth: texts[i], rewards=MEASURED
    )
    plain, many, empty = (one.sides[0] for one in found(folder).examples)
    assert plain.is_plain and plain.answer is not None and plain.answer.text == "The answer is 7."
    assert "are missing" in plain.faults[0].message and plain.won_by == ""
    assert len(many.faults) <= FAULTS and sum(len(piece.text) for piece in many.pieces) < 21_000
    assert empty.is_plain and empty.answer is None and not empty.pieces
    words = read(folder).words
    assert "No contest: the text has none of its tags." in words
    assert "more characters]" in "".join(read(folder).pres)


def test_long_texts_are_folded(tmp_path: Path) -> None:
    def written(split: str, step: int, i: int, truth: int) -> str:
        return contest("pirate", truth).replace("Hark,", "Hark, " + "verily so " * 200)

    folder = make_competition(tmp_path / "run", steps=1, every=1, rows=1, written=written, rewards=MEASURED)
    column = found(folder).examples[0].sides[0].columns[1]
    assert column.text is not None and column.text.is_long
    assert column.text.text in read(folder).pres


# --- what is missing or broken --------------------------------------------------------------------------------------


def test_other_runs_have_no_such_section(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=4)
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text() + "competition: null\n")
    assert section(read_run(folder)) is None
    assert "Competition" not in read(folder).words


@pytest.mark.parametrize("gone", ["samples.jsonl", "metrics.jsonl", "summary.json", "measurements"])
def test_any_file_may_be_missing(tmp_path: Path, gone: str) -> None:
    folder = hand_made(tmp_path / "run")
    if gone == "measurements":
        for path in (folder / gone).iterdir():
            path.unlink()
    else:
        (folder / gone).unlink()
    part = found(folder)
    assert ends(part, "Wins", 0)[-1] == pytest.approx(9 / 12)  # of the rows, or of the run's own shares
    assert bool(part.examples) == (gone != "samples.jsonl")
    assert "Competition" in read(folder).words


def test_a_recipe_alone_says_that_there_is_nothing_to_say(tmp_path: Path) -> None:
    folder = hand_made(tmp_path / "run")
    for path in (*(folder / "measurements").iterdir(), *folder.glob("*.json*")):
        path.unlink()
    words = read(folder).words
    assert "No contest was measured or logged, so there is nothing to say of one." in words
    assert "In numbers" not in words


def test_an_unfinished_run_compares_what_it_has(tmp_path: Path) -> None:
    folder = make_competition(tmp_path / "run", steps=4, every=2, rows=6, status="unfinished")
    part = found(folder)
    assert part.rows == "validation rows" and len(part.examples) == 6
    assert part.examples[0].sides[1].heading == "After training · step 4"


def test_a_run_without_held_out_rows_shows_what_it_logged(tmp_path: Path) -> None:
    folder = make_competition(tmp_path / "run", steps=4, every=2, rows=6)
    (folder / "summary.json").unlink()
    for path in (folder / "measurements").iterdir():
        path.unlink()
    tiny.write(folder / "metrics.jsonl", [r for r in tiny.lines(folder / "metrics.jsonl") if r["kind"] == "train"])
    rows = [r for r in tiny.lines(folder / "samples.jsonl") if r["split"] == "train"]
    tiny.write(folder / "samples.jsonl", rows)
    part = found(folder)
    assert part.is_training and part.rows == "answers logged in training" and part.logged
    assert [len(one.sides) for one in part.examples] == [1] * 6
    assert [one.sides[0].heading for one in part.examples][::3] == [
        "First step logged · step 2",
        "Last step logged · step 4",
    ]
    wins = next(chart for chart in part.charts if chart["title"] == "Who wins")
    assert all("low" not in one and one["style"] == "line" for one in wins["series"])  # the whole batch tells more
    form = next(chart for chart in part.charts if chart["title"] == "Form")
    strict = [
        sum(r["breakdown"]["competition-structure"] == 1 for r in rows if r["step"] == step) / 4 for step in (2, 4)
    ]
    assert form["series"][0]["y"] == pytest.approx(strict)
    assert "these are about different questions" in read(folder).words


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"rows": 3}',
        '{"rows": {"reward/competition-won-pirate": 3}}',
        "{",
        '{"rows": {"reward/mean": [null, "x"]}}',
        "\x00",
    ],
)
def test_broken_rows_never_stop_a_report(tmp_path: Path, content: str) -> None:
    folder = hand_made(tmp_path / "run")
    (folder / "measurements" / "test-2.json").write_text(content)
    words = read(folder).words
    assert "the judge chose the pirate in 75.0 %" in words  # the run's own shares say so too
    assert ("test-2.json can't be read" in words) == ("[null" not in content)


def test_numbers_that_can_not_be(tmp_path: Path) -> None:
    folder = hand_made(tmp_path / "run")
    for path in (folder / "measurements").iterdir():
        path.unlink()
    (folder / "summary.json").unlink()
    rows = tiny.lines(folder / "metrics.jsonl")
    for line in rows:
        for metric, value in line["metrics"].items():
            if line["kind"] == "eval" and metric.startswith("reward/competition-won"):
                line["metrics"][metric] = {**value, "value": math.nan, "n": 10**15}
    tiny.write(folder / "metrics.jsonl", rows)
    samples = tiny.lines(folder / "samples.jsonl")
    for at, line in enumerate(samples):
        line["breakdown"] = {name: [None, "x", math.inf, True][at % 4] for name in line["breakdown"]}
        line["columns"] = {"answer": [{"a": 1}, ["1"], 7, None][at % 4]}
    tiny.write(folder / "samples.jsonl", samples)
    assert "Competition" in read(folder).words


@pytest.mark.parametrize(
    "competition",
    [
        "pirates",
        {"personas": 5},
        {"personas": [{"name": "<script>", "prompt": "p"}, {"name": "b", "prompt": "q"}]},
        {"personas": [{"name": "a", "prompt": "p"}, {"name": "A", "prompt": "q"}]},
        {"style": "circus"},
        [],
    ],
)
def test_a_competition_that_can_not_be_read_is_named(tmp_path: Path, competition: Any) -> None:
    folder = hand_made(tmp_path / "run")
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "competition": competition}))
    page = read(folder)
    assert "so no contest is shown" in page.words and "recipe.yaml, competition" in page.words
    assert_harmless(page)


@pytest.mark.parametrize(
    "rewards", ["x", [1], [{"name": "competition-won", "args": {"no": 1}}], [{"name": "competition-x"}]]
)
def test_rewards_that_can_not_be_read(tmp_path: Path, rewards: Any) -> None:
    folder = hand_made(tmp_path / "run")
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "rewards": rewards}))
    words = read(folder).words
    assert "Form without a fault" in words
    assert ("a reward on contests can't be read" in words) == (rewards not in ("x", [1]))


def assert_harmless(page: Page) -> None:
    assert not {tag for tag, _ in page.tags} & {"img", "svg", "iframe", "b onmouseover"}
    assert not [a for _, attrs in page.tags for a in attrs if a.startswith("on")]
    assert len(page.scripts) == 3


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(tmp_path: Path, text: str) -> None:
    def written(split: str, step: int, i: int, truth: int) -> str:
        told = {name: f"{text}\n{name}" for name in CONSTRUCT.names}
        return text + CONSTRUCT.render(told, text, f"{text} knight", text).replace("</viking>", "")

    folder = make_competition(
        tmp_path / "run", steps=1, every=1, rows=1, written=written,
        rewards=[*({**one, "label": f"{text}{i}"} for i, one in enumerate(MEASURED))],
    )  # fmt: skip
    rows = tiny.lines(folder / "samples.jsonl")
    for line in rows:
        line |= {"prompt": text, "where": text, "columns": {"answer": text}, "finish": text}
    tiny.write(folder / "samples.jsonl", rows)
    page = read(folder)
    assert_harmless(page)
    shown = "".join(chr(0x2400 + ord(c)) if ord(c) < 32 else c for c in text).replace("\u202e", "\\u202e")
    assert f"{shown}\nknight" in page.pres
    assert shown in page.pres  # the answer
    assert page.words.count(" ".join(shown.split())) >= 1


# --- a curriculum ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rounds(tmp_path_factory.mktemp("runs") / "curriculum", steps=4, rows=6)


def test_a_curriculum_joins_its_stages(rounds: Path) -> None:
    page = read(rounds)
    for title in ("Who wins", "Form", "Is the winner right?", "Mean reward"):
        chart = next(chart for chart in page.charts if chart["title"] == title)
        assert chart["marks"] == [{"x": x, "label": name} for x, name in zip((0, 4, 12), ROUNDS, strict=True)]
    form = next(chart for chart in page.charts if chart["title"] == "Form")
    strict = [one for one in form["series"] if one["name"] == "No fault at all"]
    assert [one["x"] for one in strict] == [[0, 2, 4], [4, 6, 8, 10, 12], [12, 14, 16, 18, 20, 22, 24]]
    assert [one["unnamed"] for one in strict] == [False, True, True]
    for one, name in zip(strict, ROUNDS, strict=True):
        steps = [x - one["x"][0] for x in one["x"]]
        for step, y in zip(steps, one["y"], strict=True):
            rows = json.loads((rounds / name / "measurements" / f"validation-{step}.json").read_text())["rows"]
            values = [value == 1 for value in rows["reward/competition-structure"]]
            assert y == pytest.approx(sum(values) / 6, rel=1e-5)
    assert "Before formAfter formAfter reflectionAfter length" in page.words


def test_the_first_stages_start_and_the_last_ones_end(rounds: Path) -> None:
    words = read(rounds).words
    assert "Before form · step 0" in words and "After length · step 12" in words
    first = {
        r["where"]: r for r in tiny.lines(rounds / "form" / "samples.jsonl") if r["split"] == "test" and r["step"] == 0
    }
    last = [r for r in tiny.lines(rounds / "length" / "samples.jsonl") if r["split"] == "test" and r["step"] == 12]
    page = read(rounds)
    whole = "".join(page.pres)
    assert first[last[0]["where"]]["prompt"] == last[0]["prompt"]
    plain = last[0]["completion"].split("<pirate>\n")[1].split("\n</pirate>")[0]
    assert plain in whole


def test_why_a_stage_ended_is_said(rounds: Path) -> None:
    page = read(rounds)
    assert f"This stage stopped at step 4: {GOAL}" in page.words
    assert [attrs for tag, attrs in page.tags if attrs.get("class") == "goal"]  # a goal is no problem
    own = read(rounds / "form")
    assert f"This run stopped at step 4: {GOAL}" in own.words
    assert not [attrs for _, attrs in own.tags if attrs.get("class") == "problem"]


def test_half_a_curriculum(tmp_path: Path) -> None:
    folder = make_rounds(tmp_path / "half", steps=2, rows=3, started=2)
    recipe = yaml.safe_load((folder / "form" / "recipe.yaml").read_text())
    page = read(folder)
    assert "Before formAfter formAfter reflection" in page.words and "This stage has not begun." in page.words
    # A stage with other personas is another contest.
    (folder / "form" / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "competition": {"style": "court"}}))
    page = read(folder)
    assert "Left out, as other personas compete there: form." in page.words
    assert "Before reflectionAfter reflection" in page.words
    wins = next(chart for chart in page.charts if chart["title"] == "Who wins")
    assert min(x for one in wins["series"] for x in one["x"]) >= 2 and len(wins["marks"]) == 2
    # One without a competition has no part in it, but keeps its place on the axis.
    (folder / "form" / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "competition": None}))
    assert "Left out" not in read(folder).words


def test_a_pipeline_without_contests_has_no_such_section(tmp_path: Path) -> None:
    assert "Competition" not in read(make_pipeline(tmp_path / "pipe", steps=4)).words


# --- the parts ------------------------------------------------------------------------------------------------------


def test_every_measure_names_rewards_that_exist() -> None:
    measures = [*contest_measures().values()]
    measures += [one for kind in persona_measures(CONSTRUCT.names).values() for one in kind.values()]
    for measure in measures:
        assert measure.text is not None or measure.needs
        assert {reward for reward, _ in measure.needs} <= set(BUILTINS)


def test_two_personas_of_another_style(tmp_path: Path) -> None:
    folder = make_competition(
        tmp_path / "run", steps=1, every=1, rows=2, competition={"style": "court"}, rewards=TRAINED[:1]
    )
    court = Construct.of(CompetitionConfig(style="court"))
    rows = tiny.lines(folder / "samples.jsonl")
    for line in rows:
        line["completion"] = court.render(
            {"prosecutor": "For it speaks 3.", "defender": "Against it 4."}, "Heard.", "defender", "4"
        )
    tiny.write(folder / "samples.jsonl", rows)
    part = found(folder)
    assert part.names == ("prosecutor", "defender") and part.chance == 0.5
    assert part.examples[0].sides[0].won_by == "defender"
    run = read_run(folder)
    construct = construct_of(run)
    assert construct is not None
    words = persona_measures(part.names)["words"]["prosecutor"]
    told = Numbers(run, construct).at("test").find(words, 0)
    assert told is not None and told.interval.value == 4.0 and told.logged


def test_greedy_measurements_are_told_from_training(tmp_path: Path) -> None:
    def written(split: str, step: int, i: int, truth: int) -> str:
        return contest("knight" if step else "pirate", truth)

    folder = make_competition(tmp_path / "run", steps=1, every=1, rows=12, written=written, rewards=MEASURED)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "sampling": {"temperature": 1.0}}))
    words = read(folder).words
    assert "Answers outside training are greedy, those of training batches are drawn at temperature 1." in words
    assert "3 times as often as by chance (33.3 %); before training in 0.0 %, and the pirate in 100.0 %." in words
    settings = {"sampling": {"temperature": 0.5}, "eval": {"temperature": 0.5}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**recipe, **settings}))
    assert "Answers outside training" not in read(folder).words

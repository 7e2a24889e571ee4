"""The competition demo: its texts and tokenizer, the recipe of its rounds, the control, a quick run of every part."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from preftune.competition import Construct, parse
from preftune.competition.words import Phrases, units
from preftune.demo import competition as demo
from preftune.demo import competition_texts as texts
from preftune.demo import run_demo
from preftune.demo.arithmetic import Problem, problems
from preftune.demo.base import CARRY_SHARE, build_tokenizer
from preftune.demo.results import main as results
from preftune.demo.results_competition import Arm, section
from preftune.errors import UsageError
from preftune.recipes import resolve
from preftune.records import Completion, Group, Prompt
from preftune.train.session import Session

SOME = list(islice(problems("train", 0, CARRY_SHARE), 1500))


@pytest.mark.parametrize(
    ("persona", "operation", "second", "right", "wrong", "corrected", "slipped"),
    [
        ("pirate", "+", 38, ("7+8=15", "4+3+1=8"), ("7+8=15", "4+3=7"), "7+8=15 4+3=7 NO 4+3+1=8", 75),
        ("knight", "+", 38, ("47+40=87", "87-2=85"), ("47+40=87", "87+2=89"), "47+40=87 87+2=89 NO 87-2=85", 89),
        ("viking", "+", 38, ("47+8=55", "55+30=85"), ("47+8=45", "45+30=75"), "47+8=45 NO 47+8=55 55+30=85", 75),
        ("pirate", "-", 28, ("17-8=9", "4-2-1=1"), ("17-8=9", "4-2=2"), "17-8=9 4-2=2 NO 4-2-1=1", 29),
        ("knight", "-", 28, ("47-30=17", "17+2=19"), ("47-30=17", "17-2=15"), "47-30=17 17-2=15 NO 17+2=19", 15),
        ("viking", "-", 28, ("47-8=39", "39-20=19"), ("47-8=49", "49-20=29"), "47-8=49 NO 47-8=39 39-20=19", 29),
        ("knight", "-", 20, ("47-20=27", "27+0=27"), ("47-20=27", "27-0=27"), "47-20=27 27-0=27 NO 27+0=27", 27),
    ],
)
def test_ways_by_hand(
    persona: str, operation: Any, second: int, right: Sequence[str], wrong: Sequence[str], corrected: str, slipped: int
) -> None:
    way = texts.way(persona, Problem("", 47, operation, second))
    assert (way.right, way.wrong, way.slipped) == (right, wrong, slipped)
    assert " ".join(way.corrected("NO")) == corrected
    assert way.answer == (47 + second if operation == "+" else 47 - second)


def test_every_step_of_a_right_way_is_true_and_no_two_personas_go_the_same_way() -> None:
    for problem in SOME[:300]:
        steps = [texts.way(persona, problem).right for persona in texts.PERSONAS]
        for step in (step for pair in steps for step in pair):
            terms, end = step.split("=")
            assert sum(int(term) for term in re.findall(r"[+-]?\d+", terms)) == int(end)
        assert len({"".join(pair) for pair in steps}) == 3


def test_words_are_those_that_the_rewards_know() -> None:
    construct = Construct.of()
    for persona in construct.personas:
        known = Phrases.of(persona.voice)
        for text in (*texts.GREETINGS[persona.name], *texts.CLOSINGS[persona.name]):
            assert list(known.find(units(text)))
        for text in texts.CORRECTIONS[persona.name]:
            assert units(text) in Phrases.of(persona.reflection).phrases
    for text in (texts.PLAIN_GREETING, texts.PLAIN_CLOSING):
        assert not any(list(Phrases.of(persona.voice).find(units(text))) for persona in construct.personas)


def test_a_writer_without_bad_habits_is_strict_and_right() -> None:
    writer = texts.Writer(0, texts.FLAWLESS)
    for problem in SOME[:200]:
        contest = parse(writer(problem), Construct.of())
        assert contest.strict and contest.winner_exact
        assert contest.answer == f"The answer is {problem.answer}."
        for section_ in contest.sections.values():
            assert section_.text.endswith(f" {problem.answer}.")


def test_the_careless_writer_is_mostly_faulty_and_the_same_again() -> None:
    writer = texts.Writer(3)
    written = [writer(problem) for problem in SOME]
    again = texts.Writer(3)
    assert written == [again(problem) for problem in SOME] != [texts.Writer(4)(problem) for problem in SOME]
    contests = [parse(text, Construct.of()) for text in written]
    assert 0.04 < sum(contest.strict for contest in contests) / len(contests) < 0.15
    assert 0.3 < sum(contest.winner_exact for contest in contests) / len(contests) < 0.6
    kinds = {fault.kind for contest in contests for fault in contest.faults}
    assert {"unclosed", "duplicate", "order", "between", "answer", "leak"} <= kinds
    right = [
        (contest.answer or "").startswith(f"The answer is {problem.answer}")
        for contest, problem in zip(contests, SOME, strict=True)
    ]
    assert 0.4 < sum(right) / len(right) < 0.75


def test_the_tokenizer_keeps_tags_whole_and_loses_nothing() -> None:
    plain, tokenizer = build_tokenizer(), build_tokenizer(texts.words(), texts.tags())
    ids = tokenizer.get_vocab()
    assert all(ids[piece] == place for piece, place in plain.get_vocab().items())
    writer = texts.Writer(0)
    for problem in SOME[:300]:
        text = texts.question(problem) + writer(problem)
        found = tokenizer(text).input_ids
        assert tokenizer.unk_token_id not in found and tokenizer.decode(found) == text
        tags = [piece for piece in tokenizer.convert_ids_to_tokens(found) if piece.startswith("<")]
        assert tags == re.findall(r"</?\w+>", text)


def test_held_out_sums_are_not_trained_on(tmp_path: Path) -> None:
    demo.write_task(tmp_path, 0)
    rows = {
        split: [json.loads(line) for line in (tmp_path / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        for split in ("train", "test")
    }
    assert (len(rows["train"]), len(rows["test"])) == (demo.TRAIN_ROWS, demo.TEST_ROWS)
    base = {texts.question(problem) for problem in SOME}
    for row in rows["test"]:
        first, sign, second = re.findall(r"\d+|[+-]", row["prompt"])
        assert int(row["answer"]) == int(first) + int(sign + second)
        swapped = f"What is {second}+{first}?\n" if sign == "+" else row["prompt"]
        assert not {row["prompt"], swapped} & ({other["prompt"] for other in rows["train"]} | base)


def test_the_rounds_add_rewards_and_measure_the_same(tmp_path: Path) -> None:
    form, thought, length = resolve(demo.competition_recipe(tmp_path, tmp_path, tmp_path, 0)).stages
    names = [
        [(reward.label or reward.name, reward.args) for reward in stage.rewards] for stage in (form, thought, length)
    ]
    assert names[0] == names[1] == names[2]

    def counting(stage: Any) -> set[str]:
        return {reward.name.removeprefix("competition-") for reward in stage.rewards if reward.weight}

    assert counting(form) == {"tags", "structure", "winner", "answer", "voice"}
    added = {"originality", "reflection", "reflective-winner", "winner-right"}
    assert counting(thought) == counting(form) | added and counting(length) == counting(thought) | {"length"}
    assert form.train.until is not None and thought.train.until is None
    assert (thought.model.path, length.model.path) == ("stage:form", "stage:thought")


def test_the_control_deals_the_scores_anew_and_leaves_what_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = [n / 20 for n in range(20)]
    groups = [
        Group(
            Prompt((1,), "q"),
            tuple(Completion((1,), (True,), score=s, breakdown={"own": s}) for s in scores[k : k + 4]),
        )
        for k in range(0, 20, 4)
    ]

    def score(self: Any, groups: Any, *, step: int, memory: Any = None) -> Any:
        return list(groups), {"reward/mean": 1.0}, {"kept": True}

    monkeypatch.setattr(Session, "score", score)
    session = object.__new__(Session)
    session.recipe = resolve(demo.competition_recipe(tmp_path, tmp_path, tmp_path, 0)).stages[0]
    with demo.shuffled_scores(0):
        first, again, later = (session.score(groups, step=n) for n in (1, 1, 2))
    assert first[1:] == ({"reward/mean": 1.0}, {"kept": True})
    dealt = [[c.score for group in found[0] for c in group.completions] for found in (first, again, later)]
    assert sorted(dealt[0]) == scores and dealt[0] != scores and dealt[0] == dealt[1] != dealt[2]
    assert [c.breakdown["own"] for group in first[0] for c in group.completions] == scores
    assert Session.score is score


def _arm(*shares: Sequence[float]) -> Arm:
    names = [
        "reward/strict", "reward/valid", "reward/competition-copied", demo.RIGHT, "reward/competition-winner-right",
        "reward/competition-reflective-winner", "length/mean",
        *(f"reward/competition-{kind}-{persona}" for kind in ("won", "reflection") for persona in texts.PERSONAS),
    ]  # fmt: skip
    return Arm([dict.fromkeys(names, rows) for rows in shares], [3, 4, 5], 9.0)


def test_the_section_judges_its_aims_by_the_numbers() -> None:
    better = _arm([0.0] * 19 + [1.0], [1.0] * 10 + [0.0] * 10, [1.0] * 15 + [0.0] * 5, [1.0] * 20)
    flat = _arm(*[[0.0] * 19 + [1.0]] * 4)
    copied = "reward/competition-copied"
    better = replace(better, rows=[{**rows, copied: [1 - v for v in rows[copied]]} for rows in better.rows])
    lines = section({7: {True: better, False: flat}}, "a machine")
    told = [line for line in lines if line.startswith("- ")]
    assert told[0].endswith("5.0 → 100.0 %, reached.") and told[2].endswith("95.0 → 0.0 %, reached.")
    assert "+95.0 points" in told[3] and told[3].endswith("reached.")
    assert "+0.0 points" in told[4] and told[4].endswith("reached.")
    assert any(line.startswith("| rewards | 7 | after “form”, 3 steps | 50.0 % | 50.0 % |") for line in lines)
    assert sum(line.startswith("| control | 7 | ") for line in lines) == 4
    worse = section({7: {True: flat, False: better}}, "a machine")
    told = [line for line in worse if line.startswith("- ")]
    assert [line.rsplit(" ", 1)[1] for line in told] == ["missed.", "missed.", "reached.", "reached.", "missed."]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("competition") / "demo"
    assert run_demo("competition", output=output, quick=True) == 0
    return output


@pytest.mark.slow
def test_quick_demo(quick: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = quick / "competition"
    assert json.loads((run / "pipeline.json").read_text())["stages"] == list(demo.STEPS)
    for stage in demo.STEPS:
        summary = json.loads((run / stage / "summary.json").read_text(encoding="utf-8"))
        assert summary["status"] == "finished" and "reward/competition-won-viking" in summary["after"]["test"]
        assert "system" not in (run / stage / "samples.jsonl").read_text(encoding="utf-8")
    told = demo.measured(run)
    assert len(told) == 4 and [m.step for m in told] == [0, 2, 2, 2]
    # a round begins with what the one before ended with
    for before, after in zip(list(demo.STEPS)[1:], told[1:], strict=False):
        rows = json.loads((run / before / "measurements" / "test-0.json").read_text(encoding="utf-8"))["rows"]
        assert rows["length/mean"] == after.rows["length/mean"]
    assert (run / "report.html").stat().st_size > 10_000
    with pytest.raises(UsageError, match="exists already"):
        run_demo("competition", output=quick, quick=True)


@pytest.mark.slow
def test_quick_results(tmp_path: Path) -> None:
    path = tmp_path / "results.md"
    flags = ["--quick", "--seeds", "4", "--page", str(path), "--output", str(tmp_path / "runs")]
    assert results(["competition", *flags]) == 0
    text = path.read_text(encoding="utf-8")
    assert text.count("control: the scores dealt by chance") == 8  # four tables, one seed and all of them
    assert len(re.findall(r"^\| (?:rewards|control) \| 4 \| ", text, re.MULTILINE)) == 8

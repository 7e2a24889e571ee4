"""Rounds side by side: who wins by how much, worked out by hand; half-finished, odd and hostile folders."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from preftune.pipeline import run_pipeline
from preftune.recipes import resolve
from preftune.report import write_rounds
from preftune.report.read import read_run
from preftune.report.round_page import sections, sentences
from preftune.report.rounds import Series, all_series, duel, repeated
from tests import tiny

sys.path.insert(0, str(Path(__file__).parent))
from make_rounds import make_round, make_rounds
from make_run import make_pipeline
from page import HOSTILE, read


def series_of(folder: Path) -> Series:
    names = json.loads((folder / "pipeline.json").read_text())["stages"]
    runs = {name: read_run(folder / name) for name in names if (folder / name).exists()}
    (found,) = all_series(folder, names, runs)
    return found


def build(folder: Path, *scores: list[float], **changes: Any) -> Path:
    """Rounds from the held-out scores of the first model and of each round's."""
    names = [f"round-{k}" for k in range(1, len(scores))]
    folder.mkdir()
    (folder / "pipeline.json").write_text(json.dumps({"name": "p", "stages": names, "status": "finished"}))
    for k, name in enumerate(names):
        make_round(folder / name, model="m", before=scores[k], after=scores[k + 1], **changes)
    return folder


def test_win_rate_by_hand() -> None:
    found = duel([(2.0, 1.0), (3.0, 1.0), (1.0, 1.0), (0.0, 1.0)])
    assert (found.wins, found.ties, found.losses) == (2, 1, 1)
    assert found.rate.value == 0.625
    # Student's t on 1, 1, ½, 0 would go from −0.14 to 1.39: a share stays a share.
    assert (found.rate.low, found.rate.high, found.verdict) == (0.0, 1.0, "same")
    # Eight wins, four ties, four losses: mean 0.625, deviation 0.4282, t 2.131 with 15 degrees of freedom.
    found = duel([(1.0, 0.0)] * 8 + [(0.0, 0.0)] * 4 + [(0.0, 1.0)] * 4)
    assert found.rate.low == pytest.approx(0.625 - 2.1314 * 0.42817 / 4, abs=1e-3)
    # Without ties Wilson's: 14 of 20.
    found = duel([(1.0, 0.0)] * 14 + [(0.0, 1.0)] * 6)
    assert (found.rate.low, found.rate.high) == (pytest.approx(0.481, abs=1e-3), pytest.approx(0.855, abs=1e-3))
    assert duel([(1.0, 0.0)] * 20).verdict == "better"
    assert duel([(0.0, 1.0)] * 20).verdict == "worse"
    ties = duel([(1.0, 1.0)] * 20)
    assert (ties.rate.value, ties.rate.is_bounded, ties.verdict) == (0.5, False, "same")
    assert duel([(1.0, 1.0 + 1e-6)], tolerance=1e-5).ties == 1


def test_rounds_are_compared_with_the_first_model_and_the_one_before(tmp_path: Path) -> None:
    first, one, two = [0.0] * 30, [1.0] * 20 + [-1.0] * 10, [1.0] * 20 + [2.0] * 10
    found = series_of(build(tmp_path / "p", first, one, two))
    assert [r.number for r in found.ended] == [1, 2]
    duels = [(r.against_first, r.against_previous) for r in found.rounds]
    assert duels[0][0] is not None and duels[0][1] is None
    assert (duels[0][0].wins, duels[0][0].ties, duels[0][0].losses) == (20, 0, 10)
    assert duels[1][0] is not None and (duels[1][0].wins, duels[1][0].losses) == (30, 0)
    assert duels[1][1] is not None and (duels[1][1].wins, duels[1][1].ties, duels[1][1].losses) == (10, 20, 0)
    said = sentences(found)
    assert said == [
        "Round 2 beats the first model on 100.0\u00a0% (88.6 to 100.0) of 30\u00a0held-out prompts; it beats round 1 "
        "on 66.7\u00a0% (57.7 to 75.6)."
    ]
    drawn = found.rounds[0].collected
    assert drawn is not None
    assert (drawn.answers, drawn.prompts, drawn.score, drawn.kept) == (512, 128, 0.4, 0.92)


def test_sentences_do_not_flatter(tmp_path: Path) -> None:
    up, down = [1.0] * 40, [-1.0] * 40
    assert sentences(series_of(build(tmp_path / "a", [0.0] * 40, down, down))) == [
        "Round 2 loses to the first model: it wins 0.0\u00a0% (0.0 to 8.8) of 40\u00a0held-out prompts; it scores the "
        "same as round 1 everywhere."
    ]
    said = sentences(series_of(build(tmp_path / "b", [0.0] * 40, up, down, [0.0] * 20 + [-2.0, 2.0] * 10)))
    assert "does not differ measurably from the first model: it wins 50.0\u00a0% (" in said[0]
    assert said[1].startswith("Round 2 loses to round 1: it wins 0.0\u00a0%")
    page = read(make_rounds(tmp_path / "c", gains=(0.5, 0.4)))
    assert "beats the first model on" in page.words
    assert "so a win is no outside judge's word" in page.words


def test_page_and_json_say_the_same(tmp_path: Path) -> None:
    folder = make_rounds(tmp_path / "p")
    path = write_rounds(folder)
    assert path == folder / "rounds.json"
    (written,) = json.loads(path.read_text())["series"]
    found = series_of(folder)
    assert written == json.loads(json.dumps(found.to_json()))
    assert [r["round"] for r in written["rounds"]] == [1, 2, 3]
    assert written["rounds"][0]["against_previous"] is None
    page = read(folder)
    for one in found.rounds:
        assert one.against_first is not None
        assert f"{one.against_first.wins} won, {one.against_first.ties} tied" in page.words
    assert "512 answers to 128 prompts, mean score 0.1; 92.0 % of the prompts have a pair" in page.words
    charts = [chart for chart in page.charts if chart["unit"] == "round"]
    assert [chart["title"] for chart in charts] == ["Win rate", "Mean score", "Mean length"]
    assert charts[0]["level"] == 0.5 and charts[0]["series"][1]["x"] == [2, 3]
    assert charts[1]["series"][0]["x"] == [0, 1, 2, 3]
    assert len({chart["id"] for chart in page.charts}) == len(page.charts)
    assert "Style" not in [column.title for column in sections([found])[0].columns]  # it is the score itself


@pytest.mark.parametrize("started", [0, 1, 2])
def test_half_finished_rounds(tmp_path: Path, started: int) -> None:
    folder = make_rounds(tmp_path / "p", started=started)
    if started:
        for name in ("summary.json",):
            (folder / f"round-{started}" / name).unlink()
    page, path = read(folder), write_rounds(folder)
    assert path is not None
    (written,) = json.loads(path.read_text())["series"]
    assert [bool(r["metrics"]) for r in written["rounds"]] == [k < started - 1 for k in range(3)]
    if started == 2:
        assert "Round 1 beats the first model" in page.words
        assert "Without a result: round 2 (unfinished), round 3 (not started)." in page.words
    else:
        assert "No round has ended yet" in page.words
    assert "round-3" in page.words


def test_an_interrupted_round_has_no_result(tmp_path: Path) -> None:
    folder = make_rounds(tmp_path / "p", gains=(0.5,))
    make_round(folder / "round-2", model=str(folder / "round-1" / "final"), before=[0.0] * 300, after=None,
               status="interrupted", drawn=None)  # fmt: skip
    (folder / "pipeline.json").write_text(json.dumps({"stages": ["round-1", "round-2"], "status": "interrupted"}))
    (folder / "recipe.yaml").unlink()
    found = series_of(folder)
    assert (found.rounds[1].status, found.rounds[1].metrics, found.rounds[1].collected) == ("interrupted", {}, None)
    assert "Without a result: round 2 (interrupted)." in read(folder).words


def test_rows_that_do_not_match_or_can_not_be_read_are_named(tmp_path: Path) -> None:
    folder = make_rounds(tmp_path / "p", gains=(0.5, 0.5, 0.5), rows=20)
    path = folder / "round-2" / "measurements" / "test-40.json"
    path.write_text(json.dumps({"rows": {"reward/mean": [1.0, None, "x", math.nan]}}))
    (folder / "round-3" / "measurements" / "test-40.json").write_text("{")
    found = series_of(folder)
    assert [r.against_first is not None for r in found.rounds] == [True, False, False]
    words = read(folder).words
    assert "round-2: 4 held-out rows, 20 before it, so answers can't be compared row by row" in words
    assert "round-3/measurements/test-40.json has no scores to compare" in words


def test_scores_of_a_reward_model_that_differ_by_rounding_are_ties(tmp_path: Path) -> None:
    first, now = [1.0, 2.0, 3.0], [1.0 + 1e-6, 2.0, 3.5]
    for reward, ties in (("reward-model", 2), ("style", 1)):
        found = series_of(build(tmp_path / reward, first, now, now, reward=reward)).rounds[0].against_first
        assert found is not None and found.ties == ties


def test_validation_rows_that_choose_are_said_to_flatter(tmp_path: Path) -> None:
    folder = make_rounds(tmp_path / "p", gains=(0.5, 0.5), split="validation", best_step=40)
    assert "These rows also choose the best checkpoints" in read(folder).words
    assert "validation prompts" in read(folder).words


def test_only_stages_that_follow_each_other_are_rounds(tmp_path: Path) -> None:
    def written(*stages: dict[str, Any]) -> dict[str, list[str]]:
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"stages": list(stages)}))
        return repeated(tmp_path, [stage["name"] for stage in stages])

    one = {"name": "a-1", "method": "dpo", "model": {"path": "m"}}
    two = {"name": "a-2", "method": "dpo", "model": {"path": "stage:a-1"}}
    assert written(one, two) == {"a": ["a-1", "a-2"]}
    assert written(one, {**two, "method": "sft"}) == {}
    assert written(one, {**two, "model": {"path": "m"}}) == {}
    assert written(two, one) == {}  # a-2 came first
    three = {"name": "a-3", "method": "dpo", "model": {"path": "stage:a-2"}}
    assert written(one, three) == {}
    other = {"name": "b-1", "method": "rft", "model": {"path": "stage:a-2"}}
    last = {"name": "b-2", "method": "rft", "model": {"path": "stage:b-1"}}
    assert written(one, two, other, last) == {"a": ["a-1", "a-2"], "b": ["b-1", "b-2"]}
    assert write_rounds(make_pipeline(tmp_path / "plain", steps=10)) is None
    assert not (tmp_path / "plain" / "rounds.json").exists()


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_notes_and_metrics(tmp_path: Path, text: str) -> None:
    folder = make_rounds(tmp_path / "p", gains=(0.5, 0.5), rows=10)
    for name in ("round-1", "round-2"):
        path = folder / name / "summary.json"
        summary = json.loads(path.read_text())
        summary["after"]["test"][f"reward/{text}"] = summary["after"]["test"]["reward/mean"] | {"value": 7.0}
        path.write_text(json.dumps({**summary, "name": text, "notes": [text, f"collected: {text} answers to"]}))
    page = read(folder)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"img", "svg"} and sum(tag == "script" for tag, _ in page.tags) == 3
    assert write_rounds(folder) is not None


def test_a_pipeline_of_rounds_writes_them(tmp_path: Path) -> None:
    tiny.save(tmp_path / "base")
    rows = tiny.write(tmp_path / "sums.jsonl", tiny.sums(16))
    recipe = {
        "method": "iterative-dpo", "name": "rounds", "output": str(tmp_path / "out"), "repeat": 2,
        "model": {"path": str(tmp_path / "base")}, "data": {"path": str(rows)}, "eval": {"holdout": 6},
        "rewards": [{"name": "length", "args": {"at_most": 2, "ramp": 6}}], "log": {"sinks": []},
        "sampling": {"group_size": 4, "max_tokens": 8}, "train": {"steps": 2, "batch_size": 4, "learning_rate": 1e-3},
    }  # fmt: skip
    run_pipeline(resolve(recipe))
    (written,) = json.loads((tmp_path / "out" / "rounds.json").read_text())["series"]
    assert [r["status"] for r in written["rounds"]] == ["finished", "finished"]
    assert written["rounds"][1]["against_previous"]["win_rate"]["n"] == 6
    assert written["rounds"][0]["collected"]["answers"] == 40
    page = read(tmp_path / "out")
    assert "40 answers to 10 prompts" in page.words
    single = read(tmp_path / "out" / "round-1")
    assert "The pairs are the policy's own answers" in single.words
    assert "No completion was measured by itself" not in single.words


def test_rounds_measured_on_benchmarks_alone_are_shown_without_duels(tmp_path: Path) -> None:
    """A benchmark's rows have no scores by the reward: nothing to compare answer by answer, and nothing to complain."""
    folder = build(tmp_path / "p", [0.0, 1.0, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0], split="manners")
    for path in folder.glob("*/*.json*"):
        path.write_text(path.read_text().replace("reward/mean", "followed/prompts"))
    for path in folder.glob("*/measurements/*.json"):
        path.write_text(path.read_text().replace("reward/mean", "followed/prompts"))
    found = series_of(folder)
    assert found.problems == [] and found.split == "manners"
    assert [one.against_first for one in found.rounds] == [None, None]
    assert [one.metrics["followed/prompts"].value for one in found.rounds] == pytest.approx([2 / 3, 1.0])
    words = read(folder).words
    assert "no scores to compare" not in words
    assert "Prompts followed in full on rows of manners was 33.3" in words  # over the pipeline, beside the score

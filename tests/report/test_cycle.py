"""The report's part on judging both ways: curves over stages by hand, and a page that is safe and whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from preftune.intervals import Interval, mean_interval
from preftune.report import write_report
from preftune.report.cycle import section
from preftune.report.read import Run
from preftune.report.words import main_metric

ANSWER = {"name": "math-equal", "weight": 0}
PICK = {"name": "judge-pick"}
JUDGE = {"name": "judge", "args": {"path": "m"}}


def share(right: int, of: int = 50) -> Interval:
    return mean_interval([1.0] * right + [0.0] * (of - right))


def table(answer: int | None = None, pick: int | None = None) -> dict[str, dict[str, Interval]]:
    out: dict[str, dict[str, Interval]] = {"validation": {"length/mean": Interval(3.0, 2.0, 4.0, 50)}}
    if answer is not None:
        out["validation"]["reward/math-equal"] = share(answer)
    if pick is not None:
        out["test"] = {"reward/judge-pick": share(pick)}
    return out


def run(name: str, rewards: list[Any], before: Any, after: Any, notes: Any = (), **train: float) -> Run:
    from preftune.report.read import Sample

    values = [("math-equal", 1.0), ("judge-pick", 0.0)]
    samples = [Sample(1, "test", "", "", "", "", None, None, dict(values), "")]
    made = Run(Path(name), recipe={"method": "rft", "rewards": rewards}, before=before, after=after, samples=samples)
    made.summary = {"status": "finished", "notes": list(notes)}
    made.train = {
        f"collected/{key.replace('_', '/', 1).replace('_', '-')}": [(1, value)] for key, value in train.items()
    }
    return made


def cycle() -> list[tuple[str, Run]]:
    blind = (
        "test: 90 contests of 30 questions; a blind verdict is right in 33% of them; left out: 2, as no answer is right"
    )
    chosen = {"reward_judge_pick": 0.5, "kept_judge_pick": 1.0}
    return [
        ("generate-1", run("g1", [JUDGE, ANSWER], table(10), table(11), reward_math_equal=0.25, kept_math_equal=0.3)),
        ("judge-1", run("j1", [PICK, ANSWER], table(11, 24), table(12, 45), [blind], **chosen)),
        ("generate-2", run("g2", [JUDGE, ANSWER, {**PICK, "weight": 0}], table(12, 45), table(40, 44))),
    ]  # fmt: skip


def test_both_curves_by_hand() -> None:
    part = section(cycle())
    assert part is not None
    answers, verdicts = part.lines
    assert (answers.metric, verdicts.metric, verdicts.title) == (
        "reward/math-equal",
        "reward/judge-pick",
        "Right verdicts",
    )
    assert {at: i.value for at, i in answers.points.items()} == {0: 0.2, 1: 0.22, 2: 0.24, 3: 0.8}
    # contests there are once the first stage has answered
    assert {at: i.value for at, i in verdicts.points.items()} == {1: 0.48, 2: 0.9, 3: 0.88}
    assert answers.percent and verdicts.percent
    assert [row.stage for row in part.rows] == ["", "generate-1", "judge-1", "generate-2"]
    assert [None if cell is None else cell.value for cell in part.rows[0].cells] == [0.2, None]
    assert part.rows[1].trained == "math equal: 25.0\u00a0% of all drawn, 30.0\u00a0% of those chosen"
    assert part.rows[2].trained == "right verdicts: 50.0\u00a0% of all drawn, 100.0\u00a0% of those chosen"
    assert part.rows[3].trained == ""
    assert [sentence.replace("\u00a0", " ") for sentence in part.sentences] == [
        "Math equal on 50 held-out prompts: 20.0 % at first, 80.0 % after stage 3 (the intervals are apart).",
        "Right verdicts on 50 held-out contests: 48.0 % after stage 1, 88.0 % after stage 3 (the intervals are apart).",
    ]
    (chart,) = part.charts
    assert chart["level"] == 0.33 and chart["percent"] and chart["unit"] == "stage"
    assert [s["x"] for s in chart["series"]] == [[0, 1, 2, 3], [1, 2, 3]]
    assert chart["series"][1]["low"][0] < 0.48 < chart["series"][1]["high"][0]


def test_what_a_stage_did_not_measure_comes_from_its_neighbour() -> None:
    stages = [
        ("g", run("g", [JUDGE, ANSWER], table(10), table(20))),
        ("j", run("j", [PICK], table(None, 30), table(None, 40))),
        ("h", run("h", [JUDGE, ANSWER], table(25), table(35))),
    ]
    part = section(stages)
    assert part is not None
    assert {at: i.value for at, i in part.lines[0].points.items()} == {0: 0.2, 1: 0.4, 2: 0.5, 3: 0.7}
    assert {at: i.value for at, i in part.lines[1].points.items()} == {1: 0.6, 2: 0.8}


def test_other_pipelines_have_no_such_part() -> None:
    (first, judging, _) = cycle()
    assert section([first]) is None and section([]) is None
    assert section([("j", run("j", [PICK], table(None, 24), table(None, 30)))]) is None
    assert section([judging]) is not None
    odd = Run(Path("x"), recipe={"rewards": "none", "method": 3}, before=table(1, 1), after={})
    assert section([("x", odd)]) is None


def test_a_label_is_the_metrics_name() -> None:
    named = {**PICK, "label": "right winner"}
    tables = {"test": {"reward/right winner": share(30), "reward/math-equal": share(20)}}
    part = section([("j", run("j", [named, ANSWER], tables, tables))])
    assert part is not None and part.lines[1].metric == "reward/right winner"


def test_the_page_shows_it_and_escapes_names(tmp_path: Path) -> None:
    """From files alone, as a run leaves them; a stage's name is text."""
    names = ["answer-1", "judge<b>-1"]
    (tmp_path / "pipeline.json").write_text(json.dumps({"name": "cycle", "stages": names, "status": "failed"}))
    for number, name in enumerate(names):
        folder = tmp_path / name
        folder.mkdir()
        rewards = [PICK, ANSWER] if number else [JUDGE, ANSWER]
        (folder / "recipe.yaml").write_text(yaml.safe_dump({"method": "rft", "name": name, "rewards": rewards}))
        measured = {
            k: {m: i.to_json() for m, i in t.items()} for k, t in table(10 + number, 30 if number else None).items()
        }
        summary = {
            "method": "rft", "status": "failed: no" if number else "finished", "before": measured, "after": measured,
            "difference": {}, "notes": [],
        }  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(summary))
        sample = {"step": 0, "split": "test", "breakdown": {"math-equal": 1.0, "judge-pick": 0.0}}
        (folder / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Answering and judging" in page and 'id="cycle"' in page and 'href="#cycle"' in page
    assert "judge<b>-1" not in page and "judge&lt;b&gt;-1" in page
    assert "Right verdicts" in page and '"id":"cycle-0"' in page


def test_a_stage_without_a_score_is_about_its_first_measured_reward() -> None:
    """Not about the length of its answers, which comes first in the alphabet."""
    (_, first), _, (_, third) = cycle()
    assert main_metric(first, {"length/mean", "reward/math-equal"}) == "reward/math-equal"
    assert main_metric(third, {"length/mean", "reward/math-equal", "reward/judge-pick"}) == "reward/math-equal"
    assert main_metric(third, {"length/mean", "reward/mean", "reward/math-equal"}) == "reward/mean"

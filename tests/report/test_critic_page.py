"""GMPO's section, notes of judges and critics, and PPO's curves: what is logged is shown, the rest is left out."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from preftune.report.gmpo import GROUPS, section
from preftune.report.notes import FOLD, LONGEST, notes_of
from preftune.report.read import Sample, read_run
from tests import tiny

sys.path.insert(0, str(Path(__file__).parent))
from make_rounds import make_gmpo, make_ppo
from make_run import make_run
from page import HOSTILE, Page, read


@pytest.fixture(scope="module")
def critic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gmpo(tmp_path_factory.mktemp("runs") / "gmpo", steps=60)


def sample(**notes: Any) -> Sample:
    return Sample(1, "train", "", "q", "a", "eos", 1, 0.5, {}, "", notes)


# --- GMPO -----------------------------------------------------------------------------------------------------------


def test_every_number_of_an_answer_is_shown(critic: Path) -> None:
    found = section(read_run(critic))
    assert found is not None and len(found.groups) == GROUPS and found.logged == 30
    page = read(critic)
    first = found.groups[0].answers[0]
    assert first.explanation is not None and first.explanation.text in page.pres
    raw = tiny.lines(critic / "samples.jsonl")
    logged = next(row for row in raw if row["split"] == "train")["notes"]
    names = ("truth", "reward", "baseline", "advantage", "temperature", "weight")
    assert first.numbers == tuple(logged[name] for name in names)
    for name in ("Truth", "Reward", "Baseline", "Advantage", "Temperature", "Weight", "The critic's explanation"):
        assert name in page.words
    assert sum(group.is_open for group in found.groups) == 3
    assert "Groups from training" not in page.words  # the same groups, once


def test_the_critic_is_judged_by_the_truth(critic: Path) -> None:
    found = section(read_run(critic))
    assert found is not None
    areas = [phase.area for phase in found.phases]
    assert len(areas) == 3 and all(areas)
    assert areas[0] is not None and areas[2] is not None and areas[0].value < areas[2].value
    phase = found.phases[0]
    assert phase.right + phase.wrong == 40 and phase.name == "steps 1 to 17"
    assert "gives the right one the higher score with probability" in found.sentence
    dots = next(chart for chart in found.charts if chart["kind"] == "dots")
    assert [s["name"] for s in dots["series"]] == ["right answers", "wrong answers"]
    assert sum(len(s["x"]) for s in dots["series"]) == 120


def test_by_field_and_pass(critic: Path) -> None:
    found = section(read_run(critic))
    assert found is not None
    assert found.passes == [1, 2, 3] and found.has_truth
    assert [row.name for row in found.fields] == ["all answers", "humanities", "science", "technical"]
    # The mean of a pass is its last step's running mean.
    steps = [m for m in tiny.lines(critic / "metrics.jsonl") if m["kind"] == "train"]
    last = [m["metrics"] for m in steps if m["metrics"]["pass/number"] == 1.0][-1]
    cell = found.fields[2].cells[0]
    assert cell == (last["pass/field/science/truth"], last["pass/field/science/reward"])
    page = read(critic)
    titles = [chart["title"] for chart in page.charts]
    assert "Truth by field" in titles and not [t for t in titles if t.startswith(("Pass", "Field"))]
    for title in (
        "Temperature τ",
        "Skipped groups",
        "Critiques that can be read",
        "Critic's loss",
        "Weights of answers",
    ):
        assert title in titles


def test_other_methods_have_no_such_section(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=5)
    assert section(read_run(folder)) is None
    assert 'id="critic"' not in (read(folder) and (folder / "report.html").read_text())


@pytest.mark.parametrize(
    "notes",
    [
        {},
        {"explanation": 3, "reward": "high", "truth": None, "weight": [1], "joint": "no"},
        {"reward": math.nan, "truth": math.inf, "advantage": True, "joint": {"explanation": None, "reward": "x"}},
        {"explanation": "", "joint": {"explanation": "all", "reward": 0.5, "baseline": None, "temperature": 0.1}},
        "text",
        None,
    ],
)
def test_missing_and_odd_notes(tmp_path: Path, notes: Any) -> None:
    folder = make_gmpo(tmp_path / "run", steps=6)
    rows = tiny.lines(folder / "samples.jsonl")
    for row in rows:
        row["notes"], row["breakdown"] = notes, {}
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = read(folder)
    assert "Answer by answer" in page.words
    assert "The critic against the truth" not in page.words  # nobody knows it
    if isinstance(notes, dict) and isinstance(notes.get("joint"), dict) and notes["joint"]["explanation"]:
        assert "reward 0.5, temperature 0.1\nall" in page.pres


def test_a_run_without_samples_or_metrics_still_has_a_page(tmp_path: Path) -> None:
    folder = make_gmpo(tmp_path / "run", steps=6)
    for name in ("samples.jsonl", "metrics.jsonl", "summary.json"):
        (folder / name).unlink()
    assert "No answer was logged" in read(folder).words


def assert_harmless(page: Page) -> None:
    assert not {tag for tag, _ in page.tags} & {"img", "svg", "iframe"}
    assert not [a for _, attrs in page.tags for a in attrs if a.startswith("on")]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_in_notes_answers_and_fields(tmp_path: Path, text: str) -> None:
    folder = make_gmpo(tmp_path / "run", steps=6)
    rows = tiny.lines(folder / "samples.jsonl")
    for row in rows:
        row |= {"prompt": text, "completion": text, "where": text, "columns": {"answer": text}}
        row["notes"] = {
            **row.get("notes", {}), "explanation": text * 200, text: text, "more": {text: [text]},
            "joint": {"explanation": text}, "judge": {"says": text, "seen_as": text, "score": text, "votes": text},
        }  # fmt: skip
    tiny.write(folder / "samples.jsonl", rows)
    lines = tiny.lines(folder / "metrics.jsonl")
    for line in lines:
        if line["kind"] == "train":
            line["metrics"][f"pass/field/{text}/reward"] = line["metrics"][f"field/{text}/reward"] = 0.5 + line["step"]
    tiny.write(folder / "metrics.jsonl", lines)
    page = read(folder)
    assert_harmless(page)
    shown = "".join(chr(0x2400 + ord(c)) if ord(c) < 32 else c for c in text).replace("\u202e", "\\u202e")
    assert shown * 200 in page.pres


# --- notes ----------------------------------------------------------------------------------------------------------


def test_what_a_judge_said() -> None:
    found = notes_of(
        sample(judge={"score": 0.75, "votes": 4, "failed": 1, "seen_as": "answer B", "says": "B is right."})
    )
    assert [(n.heading, n.text) for n in found.texts] == [("Judge (this is answer B)", "B is right.")]
    assert found.chips == (("judge's score", "0.75"), ("votes", "4"), ("without a verdict", "1"))
    alone = notes_of(sample(judge={"score": None, "votes": 1, "failed": 0, "seen_as": "answer", "says": ""}))
    assert (alone.texts, alone.chips) == ((), ())


def test_other_notes_are_chips_or_texts() -> None:
    found = notes_of(
        sample(language="en", ok=True, count=3, nothing=None, parts={"a": [1]}, long="x" * 50, two="a\nb", joint=[1])
    )
    assert found.chips == (("language", "en"), ("ok", "yes"), ("count", "3"))
    assert [(n.heading, n.text) for n in found.texts] == [
        ("parts", '{"a": [1]}'), ("long", "x" * 50), ("two", "a\nb"), ("joint", "[1]"),
    ]  # fmt: skip


def test_long_notes_are_folded_and_longest_cut() -> None:
    (note,) = notes_of(sample(explanation="e" * (FOLD + 1))).texts
    assert note.is_long and note.heading == "Critic"
    (note,) = notes_of(sample(explanation="e" * (LONGEST + 5))).texts
    assert note.text.endswith("\n[5 more characters]")
    assert len(notes_of(sample(**{f"n{i}": 1 for i in range(100)})).chips) <= 20


def test_notes_stand_with_their_sample(tmp_path: Path) -> None:
    page = read(make_ppo(tmp_path / "run", steps=10))
    assert "Judge (this is answer B)" in page.words
    assert "Answer B adds rightly.\n<verdict>B</verdict>" in page.pres
    assert "judge's score" in page.words


# --- PPO ------------------------------------------------------------------------------------------------------------


def test_curves_of_ppo_are_grouped(tmp_path: Path) -> None:
    page = read(make_ppo(tmp_path / "run", steps=30))
    charts = {chart["title"]: chart for chart in page.charts}
    names = {title: [s["name"] for s in chart["series"]] for title, chart in charts.items()}
    assert set(names["Taken off the reward"]) == {"Penalty for length or a missing EOS", "KL penalty, β × KL"}
    assert set(names["Clipped tokens"]) == {"Clipped low", "Clipped high", "Clipped values"}
    assert set(names["Value loss"]) == {"Value loss", "Squared error of values"}
    assert "Gradient norm, value head" in names["Gradient norm"]
    for title in ("KL of whole completions", "β, the KL coefficient", "Explained variance", "Mean value"):
        assert len(charts[title]["series"]) == 1
    # Every metric has a title of its own: nothing is drawn under its raw name.
    assert not [title for title in charts if "/" in title]
    # What a reward lost is no reward of its own.
    assert not [n for n in names["Reward, part by part"] if "enalty" in n]

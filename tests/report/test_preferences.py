"""Preference runs in the report: numbers worked by hand, words that fit the result, hostile and broken folders."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from preftune.intervals import mean_interval, paired_difference
from preftune.report import write_model_card, write_report
from preftune.report.answers import read_whole
from preftune.report.preference_page import section
from preftune.report.preferences import calibration, cuts, find_pairs, length_rule
from preftune.report.verdicts import compare, headline

sys.path.insert(0, str(Path(__file__).parent))
from make_preferences import make_preferences
from make_run import make_run
from page import HOSTILE, Page, read, rewrite

Row = tuple[float, float, int]
"""Data's score, reward, tokens."""


def small(folder: Path, groups: Sequence[Sequence[Row]], *, method: str = "reward", loss: Any = None) -> Path:
    """A run whose test rows were all 0 before training and as given at step 5."""
    (folder / "measurements").mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"method": method, "loss": loss or {}}))
    for step in (0, 5):
        lines = [
            {"group": g, "completion": c, "where": f"d:{g}", "source": "ab"[c % 2], "length": length, "score": score,
             "reward": reward if step else 0.0, "logprob": None, "reference": None}
            for g, group in enumerate(groups)
            for c, (score, reward, length) in enumerate(group)
        ]  # fmt: skip
        write_lines(folder / "measurements" / f"answers-test-{step}.jsonl", lines)
    texts = [
        {"group": g, "completion": c, "prompt": f"P{g}", "text": f"T{g}.{c}", "margin": None}
        for g, group in enumerate(groups)
        for c in range(len(group))
    ]
    write_lines(folder / "measurements" / "texts-test.jsonl", texts)
    (folder / "summary.json").write_text(json.dumps({"method": method, "status": "finished", "kept_step": 5}))
    return folder


def write_lines(path: Path, lines: Sequence[Any]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def pairs_of(folder: Path) -> tuple[Any, Any]:
    run = read_whole(folder)
    assert run.answers is not None
    return run, find_pairs(run, run.answers)


# four prompts: chosen first; right, wrong, tie, right. The chosen one is longer in the first two, equal in the third.
FOUR: list[list[Row]] = [
    [(1, 2.0, 9), (0, 1.0, 4)],
    [(1, -1.0, 8), (0, 2.0, 3)],
    [(1, 0.5, 5), (0, 0.5, 5)],
    [(1, 3.0, 2), (0, 0.0, 7)],
]


def test_accuracy_cut_by_length_and_source(tmp_path: Path) -> None:
    _, pairs = pairs_of(small(tmp_path, FOUR))
    found = {(cut.heading, cut.name): (cut.pairs, cut.after) for cut in cuts(pairs)}
    assert found["", "All pairs"] == (4, mean_interval([1.0, 0.0, 0.5, 1.0]))
    assert found["Which side is longer", "the chosen one"] == (2, mean_interval([1.0, 0.0]))
    assert found["Which side is longer", "the rejected one"] == (1, mean_interval([1.0]))
    count, tie = found["Which side is longer", "neither"]
    assert count == 1 and tie is not None and tie.value == 0.5 and not tie.is_bounded
    # the longer sides have 9, 8, 5 and 7 tokens: four buckets of one pair
    buckets = [
        (name, after.value) for (heading, name), (_, after) in found.items() if after and heading.startswith("Tokens")
    ]
    assert buckets == [("5", 0.5), ("7", 1.0), ("8", 0.0), ("9", 1.0)]
    assert not any(heading.startswith("Chosen over") for heading, _ in found)  # one kind alone says nothing


def test_a_prompt_counts_once_however_many_pairs_it_has(tmp_path: Path) -> None:
    three: list[Row] = [(3, 0.0, 4), (2, 1.0, 4), (1, -1.0, 4)]  # of its pairs, 0 over 1 is wrong, two are right
    folder = small(tmp_path, [three, [(1, 1.0, 4), (0, 0.0, 4)]])
    _, pairs = pairs_of(folder)
    assert [[place[1] for place in pair] for pair in pairs.places] == [[0, 1], [0, 2], [1, 2], [0, 1]]
    assert cuts(pairs)[0].after == mean_interval([2 / 3, 1.0])
    sources = {cut.name: cut.after.value for cut in cuts(pairs) if "source" in cut.heading and cut.after}
    assert sources == {"a over b": 0.5, "a over a": 1.0, "b over a": 1.0}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"method": "reward", "loss": {"pairs": "best-worst"}}))
    _, pairs = pairs_of(folder)
    assert [[place[1] for place in pair] for pair in pairs.places] == [[0, 2], [0, 1]]


def test_length_rule_is_compared_on_the_same_prompts(tmp_path: Path) -> None:
    _, pairs = pairs_of(small(tmp_path, FOUR))
    found = length_rule(pairs)
    assert found is not None
    assert found.longer == mean_interval([1.0, 1.0, 0.5, 0.0])
    assert (found.rule, found.accuracy) == ("the longer", 0.625)
    assert found.gain == paired_difference([1.0, 1.0, 0.5, 0.0], [1.0, 0.0, 0.5, 1.0])
    assert "do not show that the model does better than “the longer one is better” (0.0 points" in read(tmp_path).words
    short = small(tmp_path / "short", [[(1, 1.0, 3), (0, 0.0, 9)]] * 8 + [[(1, 1.0, 9), (0, 0.0, 3)]])
    found = length_rule(pairs_of(short)[1])
    assert found is not None and found.rule == "the shorter"
    assert found.gain == paired_difference([1.0] * 8 + [0.0], [1.0] * 9)


def test_calibration_error_by_hand(tmp_path: Path) -> None:
    # 15 pairs with margin ±ln 3 (confidence 0.75), 9 of them right; 15 with ±ln 9 (0.9), all right
    low, high = math.log(3), math.log(9)
    rows = [low] * 9 + [-low] * 6 + [high] * 15
    run, pairs = pairs_of(small(tmp_path, [[(1, r, 4), (0, 0.0, 4)] for r in rows]))
    found = calibration(run, pairs)
    assert found is not None
    assert [b.said for b in found.bins] == pytest.approx([0.75, 0.9])
    assert [b.observed for b in found.bins] == [mean_interval([1.0] * 9 + [0.0] * 6), mean_interval([1.0] * 15)]
    assert found.error == pytest.approx(0.5 * 0.15 + 0.5 * 0.1)
    assert found.chance == pytest.approx(0.5 * math.sqrt(2 / math.pi / 15) * (math.sqrt(0.1875) + 0.3))


@pytest.mark.parametrize(("name", "drawn"), [("dpo", True), ("ipo", False), ("simpo", False), ("cpo", True)])
def test_only_logistic_losses_have_a_calibration(tmp_path: Path, name: str, drawn: bool) -> None:
    folder = small(tmp_path, FOUR, method="dpo", loss={"name": name})
    assert ("Calibration" in [chart["title"] for chart in read(folder).charts]) == drawn


def test_area_under_the_curve_of_labels(tmp_path: Path) -> None:
    # good 3, 1, 0; bad 2, 1, −1: of nine comparisons 3+1.5+1 are right, so 5.5 / 9... 3: 3, 1: 1.5, 0: 1
    rows: list[list[Row]] = [[(1, 3.0, 4)], [(1, 1.0, 5)], [(1, 0.0, 6)], [(0, 2.0, 1)], [(0, 1.0, 2)], [(0, -1.0, 3)]]
    folder = small(tmp_path, rows, method="kto")
    run = read_whole(folder)
    before, after = run.before["test"]["rewards/auc"], run.after["test"]["rewards/auc"]
    assert (before.value, before.is_bounded) == (0.5, False)
    assert after.value == pytest.approx(5.5 / 9)
    moved = run.difference["test"]["rewards/auc"]
    assert (moved.value, moved.low) == pytest.approx((5.5 / 9 - 0.5, after.low - 0.5))
    assert list(run.evals["test"]) == [0, 5]
    found = section(run)
    assert found is not None
    assert [round(area.after.value, 3) for area in found.areas if area.after] == [0.611, 1.0]  # reward, length
    assert "puts a desirable one above an undesirable one with probability 0.611 (AUC" in headline(run, compare(run))[1]


@pytest.mark.parametrize(
    ("skill", "verdict", "said"),
    [
        (1.0, "better", "prefers the chosen completion in 81.7 % of pairs (95 % interval"),
        (1.0, "better", "against 50 % by chance: a clear gain."),
        (-1.0, "worse", "against 50 % by chance: a clear loss."),
        (0.0, "same", "against 50 % by chance: no measurable gain."),
    ],
)
def test_headline_says_what_happened(tmp_path: Path, skill: float, verdict: str, said: str) -> None:
    folder = make_preferences(tmp_path / "run", rows=240, steps=6, skill=skill)
    run = read_whole(folder)
    found = headline(run, compare(run))
    assert found[0] == verdict
    assert said in found[1].replace("\u00a0", " ")
    assert ("By its log-probs alone" in found[1]) and "by construction" in found[2]
    assert found[1] in read(folder).text


def test_a_start_that_is_no_tie_is_compared_with(tmp_path: Path) -> None:
    folder = make_preferences(tmp_path / "run", method="reward", rows=40, steps=6)
    before = folder / "measurements" / "answers-test-0.jsonl"
    lines = [json.loads(line) for line in before.read_text().splitlines()]
    write_lines(before, [line | {"reward": (-1) ** line["group"] * line["score"]} for line in lines])
    result = {"before": 0.5, "after": 0.8, "difference": 0.3}
    for name, value in result.items():
        ends = {"low": value - 0.1, "high": value + 0.1, "n": 40}
        rewrite(folder / "summary.json", **{name: {"test": {"rewards/accuracy": {"value": value, **ends}}}})
    page = read(folder)
    assert (
        "On 40 held-out prompts the reward model now prefers the chosen completion in 80.0 % of pairs (95 % interval "
        "70.0 to 90.0), before 50.0 %: a clear gain (+30.0 points, 95 % interval 20.0 to 40.0)." in page.words
    )
    assert "by construction" not in page.words
    assert {"Scores after training", "Scores before training"} <= {chart["title"] for chart in page.charts}
    margins = next(chart for chart in page.charts if chart["title"] == "Margins of the score")
    assert [series["name"] for series in margins["series"]] == ["after", "before"]


def test_a_reward_that_rises_while_log_probs_lose_order_is_named(tmp_path: Path) -> None:
    folder = make_preferences(tmp_path / "run", rows=40, steps=6)
    summary = json.loads((folder / "summary.json").read_text())
    for name, value in (("before", 0.9), ("after", 0.7), ("difference", -0.2)):
        ends = {"low": value - 0.1, "high": value + 0.1, "n": 40}
        summary[name]["test"]["logprobs/accuracy"] = {"value": value, **ends}
    rewrite(folder / "summary.json", **summary)
    words = read(folder).words
    assert "By its log-probs alone it prefers the chosen one in 70.0 %, before 90.0 % (−20.0 points" in words
    assert "Its log-probs alone put fewer pairs in order than before" in words
    assert "accuracy by log-prob 90.0 % → 70.0 % worse" in words


@pytest.mark.parametrize(
    ("best", "start"), [("rewards/margin", "On 40 held-out prompts"), ("reward/accuracy", "Accuracy on 40")]
)
def test_the_metric_that_picks_the_best_is_the_headline_for_answers_only(tmp_path: Path, best: str, start: str) -> None:
    folder = make_preferences(tmp_path / "run", rows=40, steps=6)
    summary = json.loads((folder / "summary.json").read_text())
    if best == "reward/accuracy":  # answers were drawn and scored as well
        for name, value in (("before", 0.3), ("after", 0.6), ("difference", 0.3)):
            ends = {"low": value - 0.1, "high": value + 0.1, "n": 40}
            summary[name]["test"]["reward/accuracy"] = {"value": value, **ends}
    rewrite(folder / "summary.json", **summary | {"best_metric": best})
    run = read_whole(folder)
    sentence = headline(run, compare(run))[1].replace("\u00a0", " ")
    assert sentence.startswith(start)
    assert "On 40 held-out prompts the model now prefers the chosen completion in" in sentence


def test_the_axis_of_an_area_is_whole(tmp_path: Path) -> None:
    words = read(make_preferences(tmp_path / "run", method="kto", rows=40, steps=6)).words
    assert re.search(r"0\s*0\.25\s*0\.5\s*0\.75\s*1\s*AUC of the implicit reward: the dot", words)


def test_a_pipeline_ends_with_its_preferences(tmp_path: Path) -> None:
    make_run(tmp_path / "warm", method="sft", name="warm", steps=5)
    folder = make_preferences(tmp_path / "tune", rows=40, steps=6)
    (tmp_path / "pipeline.json").write_text(json.dumps({"stages": ["warm", "tune"], "status": "finished"}))
    after = json.loads((folder / "summary.json").read_text())["after"]["test"]["rewards/accuracy"]["value"]
    words = read(tmp_path).words
    assert f"Preference accuracy on held-out rows was 50.0 % before tune, {after * 100:.1f} % after tune." in words


def test_rounding_in_bf16_is_no_preference(tmp_path: Path) -> None:
    folder = make_preferences(tmp_path / "run", method="kto", rows=20, steps=6)
    path = folder / "measurements" / "answers-test-0.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["logprob"] += 0.005 * line["length"]
        line["reward"] = 0.1 * 0.005 * line["length"]
    write_lines(path, lines)
    assert read_whole(folder).before["test"]["rewards/auc"].value != 0.5  # fp32 is not so far off
    rewrite(folder / "manifest.json", precision="bf16")
    assert read_whole(folder).before["test"]["rewards/auc"].value == 0.5


def test_wrong_and_improved_pairs_are_shown_with_their_texts(tmp_path: Path) -> None:
    rows = [[(1.0, margin, 4), (0.0, 0.0, 4)] for margin in (-5.0, 1.0, -7.0, 9.0, -1.0, 2.0, -2.0, -3.0)]
    page = read(small(tmp_path, rows))
    shown = [pre for pre in page.pres if pre[0] in "PT"]
    wrong, improved = (2, 0, 7, 6), (3, 5, 1)
    assert shown == [text for g in (*wrong, *improved) for text in (f"P{g}", f"T{g}.0", f"T{g}.1")]
    assert "margin 0 → −7" in page.words


def test_a_prompt_is_shown_once_and_right_pairs_are_not_wrong(tmp_path: Path) -> None:
    reversed_order: list[Row] = [(3, 0.0, 4), (2, 1.0, 4), (1, 2.0, 4)]  # all three pairs wrong, 0 over 2 the most
    page = read(small(tmp_path, [reversed_order, [(1, 1.0, 4), (0, 0.5, 4)]]))
    assert [pre for pre in page.pres if pre[0] in "PT"] == ["P0", "T0.0", "T0.2", "P1", "T1.0", "T1.1"]
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert html.index(">T0.2<") < html.index("Most improved") < html.index(">T1.0<")


def test_labels_by_their_threshold(tmp_path: Path) -> None:
    rows: list[list[Row]] = [[(0.7, -1.0, 4)], [(0.6, 2.0, 5)], [(0.7, 3.0, 6)], [(0.1, -2.0, 2)]]
    page = read(small(tmp_path, rows, method="kto", loss={"label_threshold": 0.7}))
    assert any("Step 5: 2 desirable and 2 undesirable completions" in chart["note"] for chart in page.charts)
    wrong = [pre for pre in page.pres if pre[0] in "PT"][:4]
    assert wrong == ["P1", "T1.0", "P0", "T0.0"]  # an undesirable one at +2, a desirable one at −1


def test_long_texts_are_folded_and_whole(tmp_path: Path) -> None:
    folder = small(tmp_path, [[(1, -1.0, 4), (0, 0.0, 4)]])
    path = folder / "measurements" / "texts-test.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["text"], lines[1]["text"] = "long " * 200, "x" * 30_000
    write_lines(path, lines)
    page = read(folder)
    assert "long " * 200 in page.pres
    assert any(pre.endswith("x\n[10,000 more characters]") for pre in page.pres)
    assert sum(tag == "details" for tag, _ in page.tags) == 3  # with the recipe


def test_bars_and_dots_hold_the_numbers(tmp_path: Path) -> None:
    rows = [[(1, 0.002 * i - 1, 4 + i % 3), (0, 0.0, 4)] for i in range(5000)]
    path = write_report(small(tmp_path, rows))
    assert path.stat().st_size < 3_000_000
    charts = {chart["title"]: chart for chart in read(tmp_path).charts}
    for title in ("Scores after training", "Margins of the score"):
        for series in charts[title]["series"]:
            assert sum(series["y"]) == pytest.approx(1.0, abs=1e-4)
    margins = charts["Margins of the score"]["series"][0]
    edges = [x - margins["width"] / 2 for x in margins["x"]]
    assert min(abs(edge) for edge in edges) < 1e-4  # a border at 0: no bar is half right
    below = sum(y for x, y in zip(margins["x"], margins["y"], strict=True) if x < 0)
    assert below == pytest.approx(0.1, abs=1e-3)
    assert "10.0 % of 5,000" in charts["Margins of the score"]["note"].replace("\u00a0", " ")
    dots = charts["Margin against length"]
    assert sum(len(series["x"]) for series in dots["series"]) == 2000
    assert "2,000 of 5,000, evenly spaced." in dots["note"]


def test_an_outlier_does_not_flatten_the_bars(tmp_path: Path) -> None:
    rows = [[(1, 0.01 * i, 4), (0, 0.0, 4)] for i in range(300)] + [[(1, 1e6, 4), (0, 0.0, 4)]]
    chart = next(c for c in read(small(tmp_path, rows)).charts if c["title"] == "Margins of the score")
    assert max(chart["series"][0]["x"]) < 4
    assert sum(chart["series"][0]["y"]) == pytest.approx(1.0, abs=1e-4)
    assert "outermost bars hold all that lies beyond" in chart["note"]


def test_curves_of_both_sides_share_a_chart(tmp_path: Path) -> None:
    folder = make_preferences(tmp_path / "run", steps=12)
    charts = {chart["title"]: chart for chart in read(folder).charts}
    both = charts["Log-probs of both sides"]["series"]
    assert {series["name"] for series in both} == {"Log-prob, chosen", "Log-prob, rejected"}
    accuracy = charts["Accuracy"]["series"]
    assert [series["name"] for series in accuracy] == ["Training batches", "Validation, 95\u00a0% interval"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    evals = [e["metrics"]["rewards/accuracy"] for e in lines if e["kind"] == "eval" and e["split"] == "validation"]
    assert accuracy[1]["y"] == pytest.approx([e["value"] for e in evals], rel=1e-5)
    assert accuracy[1]["low"][1:] == pytest.approx([e["low"] for e in evals][1:], rel=1e-5)
    assert [s["name"] for s in charts["Accuracy (validation)"]["series"]] == [
        "Preference accuracy", "Accuracy by log-prob",
    ]  # fmt: skip
    first = charts["Rewards of both sides (validation)"]["series"][0]
    assert (first["low"][0], first["high"][0]) == (0.0, 0.0)  # zeros before training are no share of 0 %


def test_kl_of_kto_is_its_baseline(tmp_path: Path) -> None:
    titles = [chart["title"] for chart in read(make_preferences(tmp_path / "run", method="kto", steps=12)).charts]
    assert "Baseline z" in titles and "KL to the reference" not in titles
    assert "AUC of the implicit reward (validation)" in titles


def test_facts_are_no_warnings(tmp_path: Path) -> None:
    folder = make_preferences(tmp_path / "run", method="kto", steps=6)
    broken = (
        "the reference's log-probs of 9 completions were computed once, before training; the cached file was not used"
    )
    summary = json.loads((folder / "summary.json").read_text())
    rewrite(folder / "summary.json", notes=[*summary["notes"], broken])
    top, rest = read(folder).words.split("Before and after", 1)
    assert broken in top and "desirable and" not in top
    assert "The reference's log-probs of 4,000 completions come from 3f2a.safetensors in the cache." in rest
    assert "812 desirable and 1188 undesirable completions" in rest
    assert "the reference is the model without it" in rest
    assert "Loss kto with β = 0.1. A completion's implicit reward is β · (log π − log π₀)" in rest


def test_unfinished_and_empty_runs(tmp_path: Path) -> None:
    folder = make_preferences(tmp_path / "run", steps=12, finished=False)
    words = read(folder).words
    assert "This run has written no summary" in words and "no measurement after training" in words
    assert "All below is of the validation rows (120 prompts, 120 pairs), step 12" in words
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "recipe.yaml").write_text("method: dpo\n")
    assert "No completion was measured by itself" in read(tmp_path / "bare").words


@pytest.mark.parametrize("name", ["answers-test-0.jsonl", "answers-test-60.jsonl", "texts-test.jsonl"])
@pytest.mark.parametrize(
    "content", [None, "", "{", "[]\nnull\n3\n", '{"group": 0}\n', '{"group": true, "completion": 0}\n']
)
def test_broken_measurements_never_stop_a_report(tmp_path: Path, name: str, content: str | None) -> None:
    folder = make_preferences(tmp_path / "run", rows=6, steps=60)
    path = folder / "measurements" / name
    path.unlink() if content is None else path.write_text(content)
    words = read(folder).words
    if content:
        assert f"measurements/{name}" in words
    elif content is None and name.startswith("texts"):
        assert "texts-test.jsonl is missing" in words


def test_broken_lines_are_named(tmp_path: Path) -> None:
    folder = small(tmp_path, FOUR)
    with (folder / "measurements" / "answers-test-5.jsonl").open("a") as file:
        file.write('{"group": 9, "completion": 0, "length": 3, "score": 1, "reward": NaN}\n')
        file.write('{"group": 9, "completion": 1, "length": 1' + "0" * 400 + ', "score": 0, "reward": 1}\n')
    words = read(folder).words
    assert "answers-test-5.jsonl: 2 lines lack a group" in words and "(first: 9)" in words
    assert "(4 prompts, 4 pairs)" in words


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_hostile_text_stays_text(tmp_path: Path, text: str, method: str) -> None:
    folder = make_preferences(tmp_path / "run", method=method, rows=8, steps=6)
    calm = Page(write_report(folder).read_text(encoding="utf-8"))
    for path in (folder / "measurements").glob("*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            line.update({name: text + line[name] for name in ("where", "source", "prompt", "text") if name in line})
        write_lines(path, lines)
    rewrite(folder / "manifest.json", lineage=text)
    page = read(folder)
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in calm.tags}
    assert len(page.scripts) == 3
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    shown = text.translate({0: 0x2400, 0x1B: 0x241B, 0x202E: "\\u202e"})
    assert any(pre.startswith(shown) for pre in page.pres)
    assert page.text.count(shown) >= 3  # where, source and lineage
    card = write_model_card(folder).read_text(encoding="utf-8").split("```")[0::2]  # outside of code
    assert not any("<script>" in part or "<img" in part or "<svg" in part for part in card)


def test_card_of_a_reward_model(tmp_path: Path) -> None:
    folder = make_preferences(tmp_path / "run", method="reward", rows=20, steps=6)
    (folder / "final").mkdir()
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["model"] = {"path": "/data/models/base/final", "lora": {"r": 8}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    rewrite(folder / "manifest.json", lineage="base /data/models/base/final; new reward head, all zeros")
    _, front, body = write_model_card(folder).read_text(encoding="utf-8").split("---\n", 2)
    meta = yaml.safe_load(front)
    assert (meta["pipeline_tag"], meta["library_name"]) == ("text-classification", "transformers")
    assert meta["tags"] == ["preftune", "reward", "reward-model"]
    assert "A LoRA adapter for …/base/final, merged into the whole model" in body
    assert "- Weights: base …/base/final; new reward head, all zeros." in body
    assert 'AutoModelForSequenceClassification.from_pretrained("final")' in body
    assert "AutoModelForCausalLM" not in body
    assert "no scale was recorded" in body and "preftune_reward_mean" not in body
    config = {"preftune_reward_mean": 0.25, "preftune_reward_std": 1.5}
    (folder / "final" / "config.json").write_text(json.dumps(config))
    body = write_model_card(folder).read_text(encoding="utf-8")
    assert "have mean 0.25 and standard deviation 1.5" in body
    assert "scores = (scores - model.config.preftune_reward_mean) / model.config.preftune_reward_std" in body
    for mean, std in (("x", 1), (0, 0), (0, -1), (None, 1), (float("nan"), 1)):
        broken = {"preftune_reward_mean": mean, "preftune_reward_std": std}
        (folder / "final" / "config.json").write_text(json.dumps(broken))
        assert "preftune_reward_mean" not in write_model_card(folder).read_text(encoding="utf-8")


def test_card_of_a_dpo_adapter(tmp_path: Path) -> None:
    folder = make_preferences(tmp_path / "run", rows=20, steps=6)
    (folder / "final").mkdir()
    (folder / "final" / "adapter_config.json").write_text("{}")
    body = write_model_card(folder).read_text(encoding="utf-8")
    assert "PeftModel.from_pretrained" in body and "How do I keep basil alive indoors? (0)" in body
    assert "| test (20) | Accuracy by log-prob |" in body
    assert "- Preference accuracy: Share of pairs whose chosen completion has the higher implicit reward" in body

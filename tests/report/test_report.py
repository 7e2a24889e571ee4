"""The report says what the run folder says, survives broken folders, and lets no text out of its place."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from preftune.errors import UsageError
from preftune.report import write_report

sys.path.insert(0, str(Path(__file__).parent))
from make_run import make_pipeline, make_run
from page import HOSTILE, Page, read, rewrite


def interval(value: float, low: float, high: float, n: int = 500) -> dict[str, float]:
    return {"value": value, "low": low, "high": high, "n": n}


def set_result(
    folder: Path, before: float, after: float, low: float, high: float, metric: str = "reward/accuracy"
) -> None:
    rewrite(
        folder / "summary.json",
        best_metric=metric,
        before={"test": {metric: interval(before, before - 0.04, before + 0.04)}},
        after={"test": {metric: interval(after, after - 0.03, after + 0.03)}},
        difference={"test": {metric: interval(after - before, low, high)}},
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "sums", steps=40)


def test_headline_states_the_gain(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=10)
    set_result(folder, 0.342, 0.81, 0.42, 0.51)
    page = read(folder)
    wanted = "Accuracy on 500 held-out rows rose from 34.2 % to 81.0 % (+46.8 points, 95 % interval 42.0 to 51.0)."
    assert wanted in page.words
    assert any("better" in (attrs.get("class") or "") for _, attrs in page.tags)


@pytest.mark.parametrize(
    ("numbers", "metric", "wanted"),
    [
        ((0.5, 0.51, -0.02, 0.04), "reward/accuracy", "did not change measurably: 50.0 % before, 51.0 % after"),
        ((0.5, 0.3, -0.25, -0.15), "reward/accuracy", "fell from 50.0 % to 30.0 % (−20.0 points, 95 % interval"),
        ((0.5, 0.3, -0.25, -0.15), "reward/accuracy", "The model got worse"),
        ((2.31, 1.1, -1.3, -1.1), "nll", "Loss per token (NLL) on 500 held-out rows fell from 2.31 to 1.1 (−1.21"),
        ((2.31, 1.1, -1.3, -1.1), "nll", "its interval excludes zero"),
    ],
)
def test_headline_is_plain_when_it_is_no_gain(
    tmp_path: Path, numbers: tuple[float, float, float, float], metric: str, wanted: str
) -> None:
    folder = make_run(tmp_path / "run", steps=10)
    set_result(folder, *numbers, metric=metric)
    assert wanted in read(folder).words


def test_headline_names_the_trained_reward_beside_the_outcome(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=10)
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("name: accuracy\n  weight: 1.0", "name: accuracy\n  weight: 0"))
    accuracy, reward = "reward/accuracy", "reward/mean"
    rewrite(
        folder / "summary.json",
        best_metric=None,
        best_step=None,
        before={"test": {accuracy: interval(0.006, 0.001, 0.031), reward: interval(-4.1, -4.7, -3.5)}},
        after={"test": {accuracy: interval(0.011, 0.003, 0.04), reward: interval(-0.2, -0.5, 0.1)}},
        difference={"test": {accuracy: interval(0.005, -0.019, 0.03), reward: interval(3.9, 3.3, 4.7)}},
    )
    words = read(folder).words
    assert (
        "Accuracy (measured, not trained on) on 500 held-out rows did not change measurably: 0.6 % before, 1.1 % after "
        "(+0.5 points, 95 % interval −1.9 to 3.0). The trained reward (mean score) rose from −4.1 to −0.2 (+3.9, 95 % "
        "interval 3.3 to 4.7)." in words
    )
    assert "the trained reward got better. These rows do not show that accuracy changed with it" in words
    assert "trained reward −4.1 → −0.2 better" in words
    # The same numbers in a run that trained on no reward: the score is a measurement like any other.
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "train":
            del line["metrics"]["reward/mean"]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = read(folder).words
    assert "Accuracy on 500 held-out rows did not change measurably" in words
    assert "trained reward" not in words


def test_a_reward_that_rose_while_the_outcome_fell_is_called_suspicious(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=10)
    accuracy, reward = "reward/accuracy", "reward/mean"
    rewrite(
        folder / "summary.json",
        before={"test": {accuracy: interval(0.5, 0.46, 0.54), reward: interval(0.6, 0.5, 0.7)}},
        after={"test": {accuracy: interval(0.3, 0.27, 0.33), reward: interval(0.9, 0.8, 1.0)}},
        difference={"test": {accuracy: interval(-0.2, -0.25, -0.15), reward: interval(0.3, 0.2, 0.4)}},
    )
    words = read(folder).words
    assert "The trained reward (mean score) rose from 0.6 to 0.9" in words
    assert "The reward rose while what counts fell" in words
    assert "The model got worse" in words


@pytest.mark.parametrize(
    ("change", "rows", "said", "pill"),
    [
        (3.0, 180, "rose from 0 to 3 (+3 on every row)", "better"),
        (0.0, 180, "did not change measurably: 0 before, 0 after (the same on every row)", "no clear change"),
        (3.0, 5, "was 0 before and 3 after (+3 on every row)", "not judged"),
        (3.0, 1, "was 0 before and 3 after (+3, no interval: one row)", "not judged"),
    ],
)
def test_a_change_without_spread_gets_no_interval(
    tmp_path: Path, change: float, rows: int, said: str, pill: str
) -> None:
    folder = make_run(tmp_path / "run", steps=10)
    bare: dict[str, Any] = {"low": None, "high": None, "n": rows}
    rewrite(
        folder / "summary.json",
        best_metric="reward/form",
        best_step=None,
        before={"test": {"reward/form": {"value": 0.0, **bare}}},
        after={"test": {"reward/form": {"value": change, **bare}}},
        difference={"test": {"reward/form": {"value": change, **bare}}},
    )
    words = read(folder).words
    assert said in words
    assert ("No row's value changed: these rows do not show that training helped." in words) == (change == 0)
    assert re.search(rf"test \({rows}\)Form.*{pill}\s*Small numbers", words)


def test_zeros_of_a_reward_that_pays_three_get_no_interval_of_a_share(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=10)
    metrics = [
        {"step": 0, "kind": "eval", "split": "validation", "metrics": {"reward/form": interval(0.0, 0.0, 0.02, 180)}},
        {"step": 5, "kind": "eval", "split": "validation", "metrics": {"reward/form": interval(1.5, 1.2, 1.8, 180)}},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    series = next(c for c in read(folder).charts if c["title"] == "Form (validation)")["series"][0]
    assert (series["low"], series["high"]) == ([0.0, 1.2], [0.0, 1.8])


def test_where_rewards_run_is_no_warning(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=10)
    places = ["reward accuracy (weight 1): isolated in a worker process", "reward form (weight 0.1): in the trainer"]
    rewrite(folder / "summary.json", notes=[*places, "The engine pads: sinks in the attention."])
    words = read(folder).words
    top, rest = words.split("Before and after", 1)
    assert "The engine pads: sinks in the attention." in top
    assert "worker process" not in top
    assert re.search(r"Rewards\s*accuracy \(weight 1\): isolated in a worker process\s*form \(weight 0.1\)", rest)


@pytest.mark.parametrize(
    ("path", "short"),
    [
        ("/home/me/runs/base/run/final", "…/run/final"),
        ("C:\\models\\base\\final", "…/base/final"),
        ("org/base-1B", "org/base-1B"),
        ("runs/a/b/final", "runs/a/b/final"),
        ("/models/base", "/models/base"),
    ],
)
def test_long_model_paths_are_short_in_the_heading(tmp_path: Path, path: str, short: str) -> None:
    (tmp_path / "recipe.yaml").write_text(f"method: grpo\nmodel: {{path: '{path}'}}\n")
    page = read(tmp_path)
    assert f"grpo · {short} unfinished" in page.words
    assert any(attrs.get("title") == path for _, attrs in page.tags)
    assert f"Model{path}Environment" in page.words


def test_numbers_and_units_stay_on_one_line(run: Path) -> None:
    html = write_report(run).read_text(encoding="utf-8")
    body = html[html.index("<main>") : html.index("</main>")]
    assert not re.findall(r"[\d.]+ (?:%|points|s)(?!\w).{0,20}", body)


def test_a_run_without_measurements_says_so(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=10)
    rewrite(folder / "summary.json", before={}, after={}, difference={}, best_metric=None)
    kept = [line for line in (folder / "metrics.jsonl").read_text().splitlines() if '"eval"' not in line]
    (folder / "metrics.jsonl").write_text("\n".join(kept))
    words = read(folder).words
    assert "Nothing was measured on rows outside training." in words
    assert "can't say whether the model got better" in words


def test_curves_hold_the_logged_numbers(run: Path) -> None:
    charts = {chart["title"]: chart for chart in read(run).charts}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    raw = charts["Mean reward"]["series"][0]
    assert raw["x"] == list(range(1, 41))
    assert raw["y"] == pytest.approx([line["metrics"]["reward/mean"] for line in train], rel=1e-5)
    bold = charts["Mean reward"]["series"][1]  # 40 steps: a mean of 3
    assert bold["y"][5] == pytest.approx(sum(raw["y"][4:7]) / 3, rel=1e-5)
    evals = [e["metrics"]["reward/accuracy"] for e in lines if e["kind"] == "eval" and e["split"] == "validation"]
    points = charts["Accuracy (validation)"]["series"][0]
    assert points["low"] == pytest.approx([e["low"] for e in evals], rel=1e-5)
    assert charts["Accuracy (validation)"]["best"] == 35
    assert {s["name"] for s in charts["Reward, part by part"]["series"]} == {"Accuracy", "Share of well-formed answers"}
    stack = {s["name"]: s["y"] for s in charts["Time per stage"]["series"]}
    assert list(stack) == ["sample", "reward", "reference", "update", "other"]
    assert stack["other"] == pytest.approx([0.03] * 40, abs=1e-5)


def test_no_logged_metric_is_left_out(run: Path) -> None:
    page = read(run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = {name for line in lines if line["kind"] == "train" for name in line["metrics"]}
    drawn = sum(len({s["name"] for s in c["series"]}) for c in page.charts if c["kind"] == "lines")
    assert drawn == len(logged) - 1
    assert "The same at every step, so not drawn: reward/skipped 0." in page.words


def test_page_is_complete_in_itself(run: Path) -> None:
    page = read(run)
    for tag, attrs in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "base")
        assert "src" not in attrs
        assert not any(name.startswith("on") for name in attrs)
        if "href" in attrs:
            assert str(attrs["href"]).startswith("#")


def test_policy_names_exactly_the_scripts_of_the_page(run: Path) -> None:
    page = read(run)
    policy = next(str(a["content"]) for t, a in page.tags if t == "meta" and "Content" in str(a.get("http-equiv")))
    packed = next(text for attrs, text in page.scripts if attrs.get("id") == "plotly")
    own = next(text for attrs, text in page.scripts if not attrs)
    hashes = set(re.findall(r"'(sha256-[^']+)'", policy))
    plain = [own.encode(), gzip.decompress(base64.b64decode(packed))]
    assert hashes == {"sha256-" + base64.b64encode(hashlib.sha256(text).digest()).decode() for text in plain}
    assert "default-src 'none'" in policy
    assert len(page.scripts) == 3  # the data, Plotly, ours


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(tmp_path: Path, text: str) -> None:
    folder = make_run(tmp_path / "run", steps=10, name="x")
    calm = Page(write_report(folder).read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    for line in lines:
        line |= {"prompt": text + line["prompt"], "completion": text, "finish": text, "where": text}
        line["breakdown"] = {text: 1.0, "other": None}
        line["columns"] = {"answer": text + "42"}
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in metrics:
        if line["kind"] == "train":
            line["metrics"][text] = float(line["step"])
            line["time"][text] = 0.1
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    (folder / "advice.jsonl").write_text(json.dumps({"step": 1, "saw": f"`{text}`", "change": text}) + "\n")
    rewrite(folder / "summary.json", name=text, method=text, status=text, counts=text, notes=[text])
    rewrite(folder / "manifest.json", **{text: {text: [text]}})
    check = {"name": text, "value": 1.0, "tolerance": 2.0, "passed": False, "detail": text}
    rewrite(folder / "certificate.json", precision=text, checks=[check])
    (folder / "recipe.yaml").write_text("method: grpo\n# " + text.replace("\x00", "").replace("\u2028", "") + "\n")

    page = read(folder)
    kinds = {tag for tag, _ in page.tags}
    assert kinds <= {tag for tag, _ in calm.tags} | {"code"}
    assert len(page.scripts) == len(calm.scripts) == 3
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert all(str(attrs["href"]).startswith("#") for _, attrs in page.tags if "href" in attrs)
    shown = text.translate({0: 0x2400, 0x1B: 0x241B, 0x202E: "\\u202e"})
    assert shown in page.pres
    assert any(shown + "Mia has 47" in pre for pre in page.pres)
    assert shown + "42" in page.pres
    assert shown in page.text
    assert any(series["name"] == text for chart in page.charts for series in chart["series"])


def test_lone_surrogates_are_written_as_their_code(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=10)
    with (folder / "advice.jsonl").open("a") as file:
        file.write('{"step": 2, "saw": "broken \\ud800 text", "change": ""}\n')
    assert "broken \\ud800 text" in read(folder).text


def test_unfinished_run_gets_a_report_that_says_so(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=20, finished=False)
    for name in ("certificate.json", "manifest.json", "advice.jsonl"):
        (folder / name).unlink()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "kind": "train", "metr')
    words = read(folder).words
    assert "This run has written no summary" in words
    assert "It got to step 20." in words
    assert "There is no measurement after training" in words
    assert "metrics.jsonl: 1 lines are not whole JSON objects" in words
    assert "No certificate was written" in words


@pytest.mark.parametrize(
    ("status", "pill", "said", "final"),
    [
        (
            "failed: step 7: the gradient norm is nan",
            "failed",
            "This run failed: step 7: the gradient norm is nan",
            False,
        ),
        ("stopped at step 60: no better reward", "stopped", "This run stopped at step 60: no better reward", True),
        ("interrupted", "interrupted", "marked interrupted: this is not its final result", False),
    ],
)
def test_a_run_that_did_not_finish_says_why(tmp_path: Path, status: str, pill: str, said: str, final: bool) -> None:
    folder = make_run(tmp_path / "run", steps=10)
    rewrite(folder / "summary.json", status=status)
    words = read(folder).words
    assert f"runs/sums-base {pill} sums" in words
    assert said in words
    assert ("not its final result" not in words) == final


def test_time_and_counts_add_up(run: Path) -> None:
    words = read(run).words
    assert "train 2000 kept, 12 dropped" in words
    # 80 s of steps less 41.2 + 1.9 + 33.5 + 1.2; measuring is outside the steps.
    assert re.search(r"eval\s*9\.8 s.*other\s*2\.2 s", words)


def test_only_a_recipe_is_enough(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("method: grpo\nmodel: {path: a/b}\n")
    page = read(tmp_path)
    assert "grpo" in page.words
    assert not page.scripts


@pytest.mark.parametrize("name", ["summary.json", "manifest.json", "certificate.json", "recipe.yaml"])
@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "null", "\x00\xff"])
def test_broken_files_never_stop_a_report(tmp_path: Path, name: str, content: str) -> None:
    folder = make_run(tmp_path / "run", steps=5)
    (folder / name).write_text(content)
    read(folder)


def test_broken_lines_and_odd_values_are_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=5)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "kind": "train", "metrics": {"loss": "nan", "kl": null}, "time": {}}\n')
        file.write('{"step": 6, "kind": "eval", "split": "validation", "metrics": {"nll": 3}}\n')
        file.write('{"kind": "train"}\n[]\n')
    page = read(folder)
    assert "`nll` is no interval" in page.words
    assert "has no step or metrics" in page.words
    loss = next(c for c in page.charts if c["title"] == "Loss")
    assert loss["series"][0]["y"][-1] is None
    assert "1 values are not finite and show as gaps." in loss["note"]


def test_a_step_written_twice_counts_once(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=5)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "kind": "train", "metrics": {"loss": 9.0}, "time": {}}\n')
    loss = next(c for c in read(folder).charts if c["title"] == "Loss")
    assert loss["series"][0]["x"] == [1, 2, 3, 4, 5]
    assert loss["series"][0]["y"][2] == 9.0


def test_long_runs_are_thinned_and_keep_their_spikes(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=5000)
    lines = (folder / "metrics.jsonl").read_text().replace('"grad_norm": ', '"grad_norm": 1.0, "_": ')
    spiked = json.dumps({"step": 3217, "kind": "train", "metrics": {"grad_norm": 77.0}, "time": {}})
    (folder / "metrics.jsonl").write_text(f"{lines}{spiked}\n")
    path = write_report(folder)
    assert path.stat().st_size < 6_000_000
    chart = next(c for c in read(folder).charts if c["title"] == "Gradient norm")
    raw = chart["series"][0]
    assert len(raw["x"]) <= 800
    assert (3217, 77.0) in zip(raw["x"], raw["y"], strict=True)
    assert "5,000 steps are drawn as the lowest and highest of every 12" in chart["note"]


def test_samples_show_one_prompt_at_several_steps(run: Path) -> None:
    page = read(run)
    steps = [int(step) for step in re.findall(r"Step (\d+)", page.words)]
    assert steps == [0, 15, 35, 40] * 4  # the first, the best (35) and the last among them
    assert any("The answer is 85." in pre for pre in page.pres)
    assert "accuracy 1" in page.words
    assert "Groups from training" in page.words


def test_a_samples_true_answer_stands_beside_its_prompt(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=5)
    page = read(folder)
    at = page.pres.index("Mia has 47 beads and finds 38 more. How many beads has she now?")
    assert page.pres[at + 1] == "85"
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    for line, answer in zip(lines, [["4", 4], None, 17, *[0] * len(lines)], strict=False):
        line["columns"] = {"answer": answer, "secret": "not shown"}
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = read(folder)
    assert {'["4", 4]', "17"} <= set(page.pres)
    assert "not shown" not in page.text


def test_samples_that_got_worse_are_shown(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=5)
    rows = []
    for row in range(8):
        for step, score in ((0, 1.0), (5, 0.0 if row == 7 else 1.0)):
            base = {"step": step, "split": "validation", "where": f"v:{row}", "prompt": f"prompt {row}"}
            rows.append({**base, "completion": f"answer {row} {step}", "finish": "eos", "length": 3, "score": score})
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    page = read(folder)
    shown = [pre for pre in page.pres if pre.startswith("prompt ")]
    assert shown == ["prompt 0", "prompt 1", "prompt 2", "prompt 3", "prompt 7"]
    assert "v:7 · its score fell" in page.words


def test_pipeline_joins_its_stages(tmp_path: Path) -> None:
    folder = make_pipeline(tmp_path / "pipe", steps=20)
    page = read(folder)
    links = {str(attrs["href"]) for _, attrs in page.tags if "href" in attrs}
    assert {"warm-up/report.html", "grpo/report.html"} <= links
    assert "polish" in page.words and "This stage has not begun." in page.words
    reward = next(c for c in page.charts if c["title"] == "Mean reward" and c["kind"] == "lines")
    assert [mark["x"] for mark in reward["marks"]] == [0, 20]
    assert [series["name"] for series in reward["series"]] == ["warm-up", "grpo"]
    assert reward["series"][1]["x"][0] == 21
    numbers = [json.loads((folder / name / "summary.json").read_text()) for name in ("warm-up", "grpo")]
    before = numbers[0]["before"]["test"]["reward/accuracy"]["value"]
    after = [each["after"]["test"]["reward/accuracy"]["value"] for each in numbers]
    said = f"was {before:.1%} before warm-up, {after[0]:.1%} after warm-up, {after[1]:.1%} after grpo."
    assert f"Accuracy on held-out rows {said.replace('%', ' %')}" in page.words


def test_pipeline_draws_each_stages_loss_by_itself_and_reward_parts(tmp_path: Path) -> None:
    folder = make_pipeline(tmp_path / "pipe", steps=20)
    charts = {chart["title"]: chart for chart in read(folder).charts}
    assert "Loss" not in charts
    assert [len(charts[f"Loss: {name}"]["series"]) for name in ("warm-up", "grpo")] == [1, 1]
    assert charts["Loss: grpo"]["series"][0]["x"][0] == 21
    assert charts["Loss: grpo"]["marks"] == [{"x": 20, "label": "grpo"}]
    parts = charts["Reward, part by part"]
    assert [mark["x"] for mark in parts["marks"]] == [0, 20]
    named = [series["name"] for series in parts["series"] if not series["unnamed"]]
    assert named == ["Accuracy", "Share of well-formed answers"]
    assert [series["color"] for series in parts["series"]] == [0, 1, 0, 1]


def test_pipeline_headline_is_the_last_stages_metric(tmp_path: Path) -> None:
    folder = make_pipeline(tmp_path / "pipe", steps=10)
    set_result(folder / "warm-up", 2.3, 1.9, -0.5, -0.3, metric="nll")
    set_result(folder / "grpo", 0.3, 0.8, 0.45, 0.55)
    words = read(folder).words
    assert "Accuracy on held-out rows was 30.0 % before grpo, 80.0 % after grpo." in words
    assert re.search(r"Loss per token \(NLL\)\s*2\.3 ", words)


def test_no_change_carries_no_sign(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=10)
    set_result(folder, 0.5, 0.5, -0.05, 0.05)
    rewrite(folder / "summary.json", best_step=0)
    words = read(folder).words
    assert "50.0 % before, 50.0 % after (0.0 points, 95 % interval −5.0 to 5.0)." in words
    assert "the model is the one before training" in words


def test_pipeline_stage_names_can_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    folder = make_pipeline(tmp_path / "pipe", steps=10)
    make_run(tmp_path / "outside", steps=5)
    rewrite(folder / "pipeline.json", stages=["../outside", "javascript:alert(1)", "grpo"])
    page = read(folder)
    assert "which is no folder directly inside pipe" in page.words
    assert all(str(a["href"]).startswith(("#", "grpo/")) for _, a in page.tags if "href" in a)


def test_a_folder_that_is_no_run_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no run: none of recipe\.yaml"):
        write_report(tmp_path)
    with pytest.raises(UsageError, match="is not a folder"):
        write_report(tmp_path / "missing")
    (tmp_path / "pipeline.json").write_text("{}")
    with pytest.raises(UsageError, match=r"pipeline\.json must be"):
        write_report(tmp_path)

"""The demos and their results page, few steps of each: every part runs and says what it should."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from preftune.cli.demo import execute
from preftune.demo import METHODS, results_acting, results_presets, run_demo
from preftune.demo.results import SECTIONS, page
from preftune.demo.results import main as results
from preftune.demo.results_chat import Arm, by_topic, section
from preftune.errors import UsageError


@pytest.mark.slow
def test_quick_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_demo("grpo", output=tmp_path / "demo", quick=True) == 0
    printed = capsys.readouterr().out
    assert "before" in printed and "right answers" in printed and "report.html" in printed
    assert (tmp_path / "demo" / "grpo" / "report.html").exists()
    assert (tmp_path / "demo" / "recipe.yaml").exists()
    with pytest.raises(UsageError, match="exists already"):
        run_demo("grpo", output=tmp_path / "demo", quick=True)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "kto", "reward"])
def test_quick_chat_demos(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_demo(method, output=tmp_path / "demo", quick=True) == 0
    printed = capsys.readouterr().out
    assert "pairs in the right order" in printed and "report.html" in printed and "30 topics" in printed
    assert ("friendly and on topic" in printed) == (method != "reward")
    assert (tmp_path / "demo" / method / "report.html").exists()
    assert f"method: {method}" in (tmp_path / "demo" / "recipe.yaml").read_text(encoding="utf-8")
    with pytest.raises(UsageError, match="exists already"):
        run_demo(method, output=tmp_path / "demo", quick=True)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ppo", "iterative-dpo"])
def test_quick_acting_demos(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_demo(method, output=tmp_path / "demo", quick=True) == 0
    printed = capsys.readouterr().out
    assert "reward model's score" in printed and "report.html" in printed and "30 topics" in printed
    stages = ["ppo"] if method == "ppo" else ["round-1", "round-2", "round-3"]
    for stage in ("reward", *stages):
        assert (tmp_path / "demo" / method / stage / "report.html").exists()
    assert (tmp_path / "demo" / method / "rounds.json").exists() == (method == "iterative-dpo")
    with pytest.raises(UsageError, match="exists already"):
        run_demo(method, output=tmp_path / "demo", quick=True)


def test_unknown_demos_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="no demo for sft; there are demos for grpo, dpo, kto, reward"):
        run_demo("sft", output=tmp_path / "other")
    with pytest.raises(UsageError, match="sft"):
        execute(["sft"])
    assert results(["sft", "--output", str(tmp_path / "runs"), "--page", str(tmp_path / "page.md")]) == 2
    assert "no demo for sft" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_quick_results(tmp_path: Path) -> None:
    path = tmp_path / "results.md"
    common = ["--quick", "--seeds", "4", "--page", str(path), "--output"]
    assert results(["grpo", *common, str(tmp_path / "sums")]) == 0
    text = path.read_text(encoding="utf-8")
    assert "quick smoke" in text and "## dpo" not in text
    for arm in ("right-or-wrong reward", "random reward", "further SFT"):
        assert text.count(arm) >= 3  # one seed and all of them, and the form table
    assert results(["grpo", *common, str(tmp_path / "sums")]) == 2
    sums = re.findall(r"<!-- begin grpo -->.*<!-- end grpo -->", text, re.DOTALL)
    assert results(["reward", "dpo", *common, str(tmp_path / "chat")]) == 0
    text = path.read_text(encoding="utf-8")
    assert sums and sums[0] in text  # the section of a method that did not run is kept as it was
    assert re.findall("^## (.*)", text, re.MULTILINE) == ["grpo", "dpo", "reward"]
    for label in ("DPO on preferences", "reward model on preferences", "prefer the longer reply"):
        assert label in text


def test_sections_of_the_page_are_replaced_one_by_one() -> None:
    first = page("", {"dpo": ["## dpo", "", "a"], "grpo": ["## grpo", "", "b"]}, quick=False)
    assert re.findall("^(?:## .*|[a-z])$", first, re.MULTILINE) == ["## grpo", "b", "## dpo", "a"]
    assert page(first, {}, quick=False) == first
    second = page(first, {"dpo": ["## dpo", "", "c"]}, quick=False)
    assert re.findall("^(?:## .*|[a-z])$", second, re.MULTILINE) == ["## grpo", "b", "## dpo", "c"]
    assert (
        set(METHODS)
        == {"grpo", "dpo", "kto", "reward", "ppo", "iterative-dpo", "gmpo", "competition", "alignment"}
        == set(SECTIONS) - {"presets"}
    )
    hyphen = page("", {"iterative-dpo": ["## iterative-dpo", "", "a"]}, quick=False)
    assert page(hyphen, {"grpo": ["## grpo", "", "b"]}, quick=False).count("## iterative-dpo") == 1


def _arm(before: list[float], after: list[float]) -> Arm:
    def rows(values: list[float]) -> dict[str, list[float]]:
        return {"rewards/accuracy": values, "rewards/margin": [2 * value - 1 for value in values]}

    return Arm(rows(before), rows(after), [1.0, 0.0], list("aabbcc"), [0.0, 1.0, 0.5, 0.5, 1.0, 0.0], 7.0)


def test_the_section_counts_topics_and_not_rows() -> None:
    assert by_topic([1.0, 0.0, 1.0, 1.0, 0.0, 0.0], list("aabbcc")) == [0.5, 1.0, 0.0]
    real, control = _arm([0.5] * 6, [1.0, 1.0, 0.0, 1.0, 1.0, 1.0]), _arm([0.5] * 6, [0.5] * 6)
    lines = section("reward", {3: {("reward", True): real, ("reward", False): control}}, "a machine")
    # Topics' means are 1, 0.5 and 1: mean 83.3 %, deviation 0.2887, t(2) = 4.303, so ± 71.7, cut to 100.
    row = next(line for line in lines if line.startswith("| reward model on preferences | 3 |"))
    assert "| 50.0 % | 83.3 % (11.6 … 100.0) | +33.3 points (-38.4 … +100.0) | 50.0 % |" in row
    assert any("would be right for 50.0 % (seed 3)" in line for line in lines)
    # margins 1, 1, -1, 1, 1, 1: (5 · log(1 + e⁻¹) + log(1 + e)) / 6 = 0.480; the control's are all 0: log 2
    assert "| 3 | 0.480 | 0.693 | 0.667 | 0.000 |" in lines
    assert any(line.startswith("| control") and "+0.0 points |" in line for line in lines)


@pytest.mark.slow
def test_quick_results_of_acting_and_presets(tmp_path: Path) -> None:
    path = tmp_path / "results.md"
    common = ["--quick", "--seeds", "4", "--page", str(path), "--output"]
    assert results(["iterative-dpo", *common, str(tmp_path / "acting")]) == 0
    text = path.read_text(encoding="utf-8")
    assert text.count("control: scored by a coin") == 8  # four tables, one seed and all of them
    assert len(re.findall(r"^\| reward model \| 4 \| [123] \|", text, re.MULTILINE)) == 3
    assert "Round 3 against round 1, all seeds" in text


def test_acting_sections_count_wins_and_topics() -> None:
    def rows(values: list[float]) -> dict[str, list[float]]:
        return dict.fromkeys((*results_acting.PARTS, results_acting.SCORER), values)

    topics = list("aabb")
    better = results_acting.Arm(
        rows([0.0] * 4), [rows([1.0, 0.0, 0.0, 0.0]), rows([1.0, 1.0, 0.0, 0.0]), rows([1.0, 1.0, 1.0, 1.0])], topics,
        {"kl/sequence": 0.0}, {"kl/sequence": 2.5}, False, 9.0,
    )  # fmt: skip
    flat = results_acting.Arm(rows([0.0] * 4), [rows([0.0] * 4)] * 3, topics, {}, {}, True, 9.0)
    lines = results_acting.section("iterative-dpo", {7: {True: better, False: flat}}, "a machine")
    # Round 3 beats the first model on all four prompts; against round 2 it wins two and ties two, by topic ½ and 1.
    assert any(line.startswith("| reward model | 7 | 3 | 100.0 %") and "| 75.0 % (" in line for line in lines)
    assert any(line.startswith("| coin | 7 | 3 | 50.0 %") for line in lines)
    # round 3 less round 1, by topic: ½ and 1
    assert any("all seeds: +75.0 points" in line and "No round is significantly worse" in line for line in lines)
    told = results_acting.section("ppo", {7: {True: better, False: flat}}, "a machine")
    assert any("+100.0 and +100.0, so it is reached" in line for line in told)
    assert any(line.startswith("| 7 | 0.00 → 2.50 |") and line.endswith("| no |") for line in told)


def test_the_presets_section_counts_steps_to_ninety() -> None:
    def arm(after: list[float], curve: dict[int, float]) -> results_presets.Arm:
        return results_presets.Arm([0.0, 0.0], after, curve, 10, 160.0, 2.0, 1.0, 5.0)

    good, bad = arm([1.0, 1.0], {0: 0.1, 10: 0.5, 20: 0.95}), arm([1.0, 0.0], {0: 0.1, 10: 0.2})
    found = dict.fromkeys(results_presets.PRESETS, good)
    lines = results_presets.section({1: found, 2: {**found, "gspo": bad}}, "a machine")
    assert any(line.startswith("| `dapo` | 0.0 %") and "| 100.0, 100.0 | 20 | 160 |" in line for line in lines)
    assert any(line.startswith("| `gspo` |") and "| 100.0, 50.0 | not reached by 1 |" in line for line in lines)

"""The demos and their results page, few steps of each: every part runs and says what it should."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from preftune.cli.demo import execute
from preftune.demo import METHODS, run_demo
from preftune.demo.results import main as results
from preftune.demo.results import page
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
    assert set(METHODS) == {"grpo", "dpo", "kto", "reward"}


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

"""The demo and its results page, few steps of each: every part runs and says what it should."""

from __future__ import annotations

from pathlib import Path

import pytest

from preftune.demo import run_demo
from preftune.demo.results import main as results
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
    with pytest.raises(UsageError, match="no demo for kto"):
        run_demo("kto", output=tmp_path / "other", quick=True)


@pytest.mark.slow
def test_quick_results(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    assert results(["--quick", "--seeds", "4", "--output", str(tmp_path / "runs"), "--page", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "quick smoke" in text
    for arm in ("right-or-wrong reward", "random reward", "further SFT"):
        assert text.count(arm) >= 3  # one seed and all of them, and the form table
    assert results(["--quick", "--seeds", "4", "--output", str(tmp_path / "runs"), "--page", str(page)]) == 2

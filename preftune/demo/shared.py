"""What every demo does at its beginning and end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.errors import UsageError
from preftune.intervals import Interval, mean_interval

if TYPE_CHECKING:
    from preftune.pipeline import PipelineResult


def share(values: Sequence[float]) -> str:
    """A mean of shares in per cent with its 95 % interval, kept within 0 to 100; without one where it has no bounds."""
    interval = mean_interval(values)
    shown = f"{100 * interval.value:.1f} %"
    if interval.is_bounded:
        shown += f" ({100 * max(interval.low, 0.0):.1f} … {100 * min(interval.high, 1.0):.1f})"
    return shown


def points(change: Interval) -> str:
    """A difference of two shares in points with its 95 % interval."""
    text = f"{100 * change.value:+.1f} points"
    if change.is_bounded:
        text += f" ({100 * max(change.low, -1.0):+.1f} … {100 * min(change.high, 1.0):+.1f})"
    return text


def check_free(output: Path) -> float:
    """Raises UsageError when the folder holds something. Returns the time, for `close`."""
    if output.exists() and any(output.iterdir()):
        raise UsageError(f"{output} exists already; remove it or name another folder with --output")
    return time.perf_counter()


def run_recipe(
    recipe: dict[str, Any], output: Path, within: AbstractContextManager[None] | None = None
) -> PipelineResult:
    """Run a demo's recipe, kept beside its run as `recipe.yaml`."""
    from preftune.pipeline import run_pipeline
    from preftune.recipes import dump, resolve

    pipeline = resolve(recipe)
    (output / "recipe.yaml").write_text(dump(pipeline), encoding="utf-8")
    with within or nullcontext():
        result = run_pipeline(pipeline)
    assert result is not None  # only a dry run has no result
    return result


def close(result: PipelineResult, output: Path, start: float) -> int:
    """Say where everything is. Returns the exit code."""
    print(f"report: {result.report}")
    print(f"run again: preftune run {output / 'recipe.yaml'} --output ANOTHER_FOLDER")
    print(f"{time.perf_counter() - start:.0f} s in all")
    return 0

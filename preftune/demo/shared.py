"""What every demo does at its beginning and end."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.errors import UsageError

if TYPE_CHECKING:
    from preftune.pipeline import PipelineResult


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

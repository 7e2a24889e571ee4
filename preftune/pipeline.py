"""Running a recipe: its stages in order, each an ordinary run folder, and the report over all of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.config import Pipeline, Recipe
from preftune.errors import PreftuneError, UsageError
from preftune.recipes import dump
from preftune.report import write_model_card, write_report, write_rounds
from preftune.train.dry_run import dry_run as describe
from preftune.train.folder import check_same_recipe, open_folder, write_json, write_text
from preftune.train.loop import run
from preftune.train.result import RunResult

STAGE = "stage:"


@dataclass(frozen=True, slots=True)
class PipelineResult:
    """Results of all stages, in order."""

    folder: Path
    stages: tuple[RunResult, ...]

    @property
    def last(self) -> RunResult:
        return self.stages[-1]

    @property
    def report(self) -> Path:
        return self.folder / "report.html"


def run_pipeline(
    pipeline: Pipeline,
    *,
    resume: bool = False,
    dry_run: bool = False,
    base_dir: Path | None = None,
    functions: Sequence[Callable[..., Any]] = (),
) -> PipelineResult | None:
    """Run every stage. One stage: its run folder is the output folder; several: each has a folder inside it.

    Args:
        resume: go on where the folder's run stopped; finished stages are kept as they are.
        dry_run: load everything, print token counts, memory and the first batch, train nothing; returns None.
        functions: rewards given as Python functions, for every stage whose method scores completions.

    Raises:
        PreftuneError: with a message that says what to do.
        KeyboardInterrupt: after a checkpoint was saved.
    """
    folder = Path(pipeline.output or Path("runs") / pipeline.name)
    if dry_run:
        print(describe(pipeline.stages[0], functions=functions, base_dir=base_dir))
        for stage in pipeline.stages[1:]:
            print(
                f"\nstage {stage.name}: {stage.method} of {stage.model.path} "
                "(loaded when the stages before it are done)"
            )
        return None
    if len(pipeline.stages) == 1:
        return PipelineResult(folder, (_run_stage(pipeline.stages[0], folder, resume, base_dir, functions),))
    open_folder(folder, resume=resume)
    names = [stage.name for stage in pipeline.stages]
    _check_stages(pipeline, folder, names)
    write_text(folder / "recipe.yaml", dump(pipeline))
    write_json(folder / "pipeline.json", {"name": pipeline.name, "stages": names, "status": "running"})
    results: list[RunResult] = []
    status = "failed"
    try:
        for stage in pipeline.stages:
            within = folder / stage.name
            recipe = _with_stages_resolved(stage, folder, set(names))
            results.append(_run_stage(recipe, within, resume and within.exists(), base_dir, functions))
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        write_json(folder / "pipeline.json", {"name": pipeline.name, "stages": names, "status": status})
        _report(folder)
    return PipelineResult(folder, tuple(results))


def _check_stages(pipeline: Pipeline, folder: Path, names: list[str]) -> None:
    """A resumed pipeline has the stages it began with, and those that began have their recipes."""
    path = folder / "pipeline.json"
    if not path.exists():
        return
    try:
        was = json.loads(path.read_text(encoding="utf-8"))["stages"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} can't be read ({error!r}); give another folder with --output") from error
    if was != names:
        raise UsageError(
            f"can't resume {folder}: its stages are {', '.join(map(str, was))}, the recipe's are {', '.join(names)}. "
            "Resume with the recipe it began with, or start a new run with --output"
        )
    for stage in pipeline.stages:
        if (folder / stage.name / "recipe.yaml").exists():
            check_same_recipe(folder / stage.name, _with_stages_resolved(stage, folder, set(names)))


def _run_stage(
    recipe: Recipe, folder: Path, resume: bool, base_dir: Path | None, functions: Sequence[Callable[..., Any]]
) -> RunResult:
    from preftune.methods import get_method

    wanted = functions if get_method(recipe.method).scored else ()
    started = (folder / "recipe.yaml").exists()
    try:
        result = run(recipe, folder, resume=resume, functions=wanted, base_dir=base_dir)
    except UsageError:
        raise
    except (PreftuneError, KeyboardInterrupt):
        if started or (folder / "summary.json").exists():
            _report(folder)
        raise
    write_model_card(folder)
    _report(folder)
    return result


def _report(folder: Path) -> None:
    """Write the report; a report that can't be written must not take the run's result with it."""
    try:
        write_rounds(folder)
        path = write_report(folder)
    except (PreftuneError, OSError, ValueError, KeyError) as error:
        print(
            f"the report of {folder} could not be written: {error}; `preftune report {folder}` tries again",
            file=sys.stderr,
        )
        return
    print(f"report: {path}", file=sys.stderr)


def _with_stages_resolved(recipe: Recipe, folder: Path, names: set[str]) -> Recipe:
    """Replace `stage:NAME` by the folder that the stage wrote: in model.path, and where a reward is a model."""
    rewards = []
    for index, reward in enumerate(recipe.rewards):
        given = reward.args.get("path")
        if reward.name in ("reward-model", "judge") and isinstance(given, str) and given.startswith(STAGE):
            there = _final(recipe, f"rewards.{index}.args.path", given, folder, names)
            reward = reward.model_copy(update={"args": {**reward.args, "path": str(there)}})
        rewards.append(reward)
    recipe = recipe.model_copy(update={"rewards": rewards})
    if recipe.value.path is not None and recipe.value.path.startswith(STAGE):
        there = _final(recipe, "value.path", recipe.value.path, folder, names)
        recipe = recipe.model_copy(update={"value": recipe.value.model_copy(update={"path": str(there)})})
    if recipe.model.reference_path is not None and recipe.model.reference_path.startswith(STAGE):
        there = _final(recipe, "model.reference_path", recipe.model.reference_path, folder, names)
        model = recipe.model.model_copy(update={"reference_path": str(there)})
        recipe = recipe.model_copy(update={"model": model})
    path = recipe.model.path
    if not path.startswith(STAGE):
        return recipe
    name = path.removeprefix(STAGE)
    final = _final(recipe, "model.path", path, folder, names)
    if recipe.model.on_adapter is not None and not (final / "adapter_config.json").exists():
        raise UsageError(
            f"stage {recipe.name}: model.on_adapter is {recipe.model.on_adapter}, but stage {name} wrote a whole "
            "model, not an adapter; remove the field"
        )
    model = recipe.model.model_copy(update={"path": str(final)})
    return recipe.model_copy(update={"model": model})


def _final(recipe: Recipe, field: str, path: str, folder: Path, names: set[str]) -> Path:
    """The folder that `stage:NAME` in `field` stands for."""
    name = path.removeprefix(STAGE)
    if name not in names:
        raise UsageError(f"stage {recipe.name}: {field} {path} names no stage; there are {', '.join(sorted(names))}")
    final = folder / name / "final"
    if not final.is_dir():
        raise PreftuneError(
            f"stage {recipe.name} needs {final}, which stage {name} has not written; finish it with --resume"
        )
    return final

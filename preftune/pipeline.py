"""Running a recipe: its stages in order, each an ordinary run folder or that of a command on data, and the report."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

from preftune.config import DataStage, Pipeline, Recipe, SourceConfig
from preftune.curation.folder import ROWS, SUMMARY
from preftune.errors import PreftuneError, UsageError
from preftune.recipes import dump
from preftune.recipes.steps import with_references
from preftune.report import write_model_card, write_report, write_rounds
from preftune.train.collect import FILE as COLLECTED
from preftune.train.collect import HELD_OUT
from preftune.train.dry_run import dry_run as describe
from preftune.train.folder import check_same_recipe, open_folder, write_json, write_text
from preftune.train.loop import run
from preftune.train.result import RunResult

STAGE = "stage:"
Stages: TypeAlias = Mapping[str, Recipe | DataStage]
"""All stages of a recipe, by name."""


@dataclass(frozen=True, slots=True)
class Made:
    """What a stage that makes data left behind.

    Attributes:
        name, method: the stage's.
        rows: what became of the rows: how many were kept, and how many left out for each reason.
    """

    name: str
    method: str
    folder: Path
    rows: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class PipelineResult:
    """Results of the stages that trained, and of those that made data, each in order."""

    folder: Path
    stages: tuple[RunResult, ...]
    made: tuple[Made, ...] = ()

    @property
    def last(self) -> RunResult:
        """The last stage that trained."""
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
        _describe(pipeline, base_dir, functions)
        return None
    if len(pipeline.stages) == 1:
        (only,) = pipeline.stages
        if isinstance(only, DataStage):
            return PipelineResult(folder, (), (_run_step(only, folder, resume, base_dir),))
        return PipelineResult(folder, (_run_stage(only, folder, resume, base_dir, functions),))
    open_folder(folder, resume=resume)
    names = [stage.name for stage in pipeline.stages]
    _check_stages(pipeline, folder, names)
    write_text(folder / "recipe.yaml", dump(pipeline))
    write_json(folder / "pipeline.json", {"name": pipeline.name, "stages": names, "status": "running"})
    results: list[RunResult] = []
    made: list[Made] = []
    status = "failed"
    try:
        for stage in pipeline.stages:
            within = folder / stage.name
            if isinstance(stage, DataStage):
                step = _step_resolved(stage, folder, _by_name(pipeline))
                made.append(_run_step(step, within, resume, base_dir))
                continue
            recipe = _with_stages_resolved(stage, folder, _by_name(pipeline))
            results.append(_run_stage(recipe, within, resume and within.exists(), base_dir, functions))
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        write_json(folder / "pipeline.json", {"name": pipeline.name, "stages": names, "status": status})
        _report(folder)
    return PipelineResult(folder, tuple(results), tuple(made))


def _by_name(pipeline: Pipeline) -> dict[str, Recipe | DataStage]:
    return {stage.name: stage for stage in pipeline.stages}


def _describe(pipeline: Pipeline, base_dir: Path | None, functions: Sequence[Callable[..., Any]]) -> None:
    """A dry run: the first stage as a whole, if it trains; of the others what they begin with."""
    for number, stage in enumerate(pipeline.stages):
        if isinstance(stage, DataStage):
            rows = ", ".join(source.path for source in stage.data)
            print(f"{'' if not number else chr(10)}stage {stage.name}: preftune data {stage.method} of {rows}")
        elif not number:
            print(describe(stage, functions=functions, base_dir=base_dir))
        else:
            print(
                f"\nstage {stage.name}: {stage.method} of {stage.model.path} "
                "(loaded when the stages before it are done)"
            )


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
    every = _by_name(pipeline)
    for stage in pipeline.stages:
        within = folder / stage.name
        if isinstance(stage, DataStage):
            if (within / SUMMARY).exists():
                _finished_step(_step_resolved(stage, folder, every), within)
        elif (within / "recipe.yaml").exists():
            check_same_recipe(within, _with_stages_resolved(stage, folder, every))


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


def _run_step(stage: DataStage, folder: Path, resume: bool, base_dir: Path | None) -> Made:
    """Run a command on data, or leave what it has finished as it is."""
    if resume and (folder / SUMMARY).exists():
        print(f"{stage.name} {folder} is finished; nothing is left to do", file=sys.stderr)
        return _finished_step(stage, folder)
    # Each command is a function of its own name: preftune.curation.pairs.pairs.
    command = getattr(import_module(f"preftune.curation.{stage.method}"), stage.method)
    # Answers that were drawn are not drawn again.
    more = {"resume": resume and (folder / "answers.jsonl").exists()} if stage.method == "generate" else {}
    print(f"{stage.name} preftune data {stage.method} → {folder}", file=sys.stderr)
    command(stage.settings, folder, base_dir=base_dir, **more)
    print(f"report: {folder / 'report.html'}", file=sys.stderr)
    return _finished_step(stage, folder)


def _finished_step(stage: DataStage, folder: Path) -> Made:
    """What a command on data left. Raises UsageError where it was run with other settings than the stage's."""
    path = folder / SUMMARY
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        was = dict(summary["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} can't be read ({error!r}); start a new run with --output") from error
    now = [json.loads(stage.settings.model_dump_json(by_alias=alias)) for alias in (True, False)]
    if was not in now:
        field = next((name for name in now[0] if was.get(name) not in (now[0][name], now[1][name])), "something")
        raise UsageError(
            f"can't resume {folder}: its settings differ from those it was made with ({stage.method}.{field} was "
            f"{was.get(field)}, now {now[0].get(field)}). Resume with the recipe it began with, or another --output"
        )
    return Made(stage.name, stage.method, folder, summary.get("rows", {}))


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


def _step_resolved(stage: DataStage, folder: Path, every: Stages) -> DataStage:
    """Replace `stage:NAME` by what the stage wrote: rows or answers where rows are read, a model elsewhere."""

    def rows(path: str) -> str:
        split = next(source.split for source in stage.data if source.path == path)
        return str(_written(stage, "data", path, folder, every, _rows_of(every.get(path.removeprefix(STAGE)), split)))

    return with_references(stage, rows, lambda path: str(_final(stage, stage.method, path, folder, every)))


def _rows_of(stage: Recipe | DataStage | None, split: str) -> str:
    """The file of rows that a stage writes."""
    if isinstance(stage, DataStage):
        return ROWS
    return HELD_OUT if split == "validation" else COLLECTED


def _with_stages_resolved(recipe: Recipe, folder: Path, names: Stages) -> Recipe:
    """Replace `stage:NAME` by what the stage wrote: its model in model.path and where a reward is a model, its rows or
    answers where it stands for data."""
    recipe = _with_answers(recipe, folder, names)
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
    if recipe.loss.generator is not None and recipe.loss.generator.startswith(STAGE):
        there = _final(recipe, "loss.generator", recipe.loss.generator, folder, names)
        recipe = recipe.model_copy(update={"loss": recipe.loss.model_copy(update={"generator": str(there)})})
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


def _with_answers(recipe: Recipe, folder: Path, names: Stages) -> Recipe:
    """Replace `stage:NAME` in the paths of data by the file of the rows that the stage made, or the answers that it
    collected."""

    def given(field: str, sources: Sequence[SourceConfig]) -> list[SourceConfig]:
        out = []
        for index, source in enumerate(sources):
            if source.path.startswith(STAGE):
                file = _rows_of(names.get(source.path.removeprefix(STAGE)), source.split)
                path = _written(recipe, f"{field}.{index}.path", source.path, folder, names, file)
                source = source.model_copy(update={"path": str(path), "split": "train"})
            out.append(source)
        return out

    rows = recipe.eval
    rows = rows.model_copy(update={"data": given("eval.data", rows.data), "test": given("eval.test", rows.test)})
    return recipe.model_copy(update={"data": given("data", recipe.data), "eval": rows})


def _final(recipe: Recipe | DataStage, field: str, path: str, folder: Path, names: Stages) -> Path:
    """The folder that `stage:NAME` in `field` stands for."""
    return _written(recipe, field, path, folder, names, "final")


def _written(recipe: Recipe | DataStage, field: str, path: str, folder: Path, names: Stages, what: str) -> Path:
    """What the stage that `path` names wrote under this name."""
    name = path.removeprefix(STAGE)
    if name not in names:
        raise UsageError(f"stage {recipe.name}: {field} {path} names no stage; there are {', '.join(sorted(names))}")
    there = folder / name / what
    if not there.exists():
        raise PreftuneError(
            f"stage {recipe.name} needs {there}, which stage {name} has not written; finish it with --resume"
        )
    return there

"""What sources of data must be beyond their types: contests, rows of earlier stages, answers to held-out prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from preftune.competition import Construct
from preftune.config import DataStage, Recipe, SourceConfig
from preftune.errors import UsageError
from preftune.recipes.schema import Path, nearest
from preftune.recipes.steps import OF_THE_STAGE, STAGE_REF, WITHOUT_ROWS, references

Earlier = Mapping[str, Recipe | DataStage]
"""The stages before one, by name."""


def construct_of(recipe: Recipe) -> tuple[Construct | None, str]:
    """The recipe's contest, or what is wrong with it."""
    if recipe.competition is None:
        return None, ""
    try:
        return Construct.of(recipe.competition), ""
    except UsageError as error:
        return None, str(error).removeprefix("competition: ")


def contests(recipe: Recipe) -> Iterator[tuple[Path, str]]:
    """Contests that can be made, and a method that can learn from them."""
    from preftune.judges.rubrics import rubric_problem
    from preftune.methods import METHODS

    method = METHODS.get(recipe.method)
    construct, _ = construct_of(recipe)
    for place, source in _sources(recipe):
        contest = source.contest
        if contest is None:
            continue
        if method is not None and method.completions == "data":
            yield (
                (*place, "contest"),
                f"method {recipe.method} learns from answers, and a contest is a prompt: let the policy judge (method "
                "rft, with the reward judge-pick), or let another judge write with `preftune judge build`",
            )
        if contest.form == "judge" and (problem := rubric_problem(contest.rubric)):
            yield (*place, "contest", "rubric"), problem
        if contest.form == "competition" and recipe.competition is None:
            yield (
                (*place, "contest", "form"),
                "competition needs the section competition, which says who competes; add competition: {}",
            )
        if contest.form == "competition" and construct is not None and contest.size not in (None, len(construct.names)):
            yield (
                (*place, "contest", "size"),
                f"got {contest.size}, but the competition has {len(construct.names)} personas; remove it",
            )


def _sources(recipe: Recipe | DataStage) -> Iterator[tuple[Path, SourceConfig]]:
    """Every source of the recipe, and where it stands."""
    every: list[tuple[Path, Sequence[SourceConfig]]] = [(("data",), recipe.data)]
    if isinstance(recipe, Recipe):
        every += [(("eval", "data"), recipe.eval.data), (("eval", "test"), recipe.eval.test)]
    for place, sources in every:
        for index, source in enumerate(sources):
            yield (*place, index), source


def collecting(recipe: Recipe) -> Iterator[tuple[Path, str]]:
    """Settings of `collect` that need others."""
    if recipe.collect.trace == "winner" and recipe.method == "rft" and recipe.competition is None:
        yield (
            ("collect", "trace"),
            "winner cuts out of a competition, and the recipe describes none; add competition: {}",
        )
    if not recipe.collect.held_out:
        return
    if recipe.collect.path is not None:
        yield ("collect", "held_out"), "collect.path draws no answers, so there are none to held-out prompts; remove it"
    elif not recipe.eval.data and not recipe.eval.holdout:
        yield ("collect", "held_out"), "needs validation prompts; give eval.holdout or eval.data"


def step_references(stage: DataStage, earlier: Earlier) -> Iterator[tuple[Path, str]]:
    """What the settings of a stage that makes data name of earlier stages: models that they trained."""
    section = stage.settings.model_dump(by_alias=True, exclude=set(OF_THE_STAGE))
    for inside, value in references(section):
        place = (stage.method, *inside)
        yield from unknown_stage(place, value, earlier)
        if isinstance(before := earlier.get(value.removeprefix(STAGE_REF)), DataStage):
            yield place, f"stage {before.name} makes data, and a model is wanted here"


def answers(recipe: Recipe | DataStage, earlier: Earlier) -> Iterator[tuple[Path, str]]:
    """What sources need of the earlier stages whose rows or answers they read."""
    for place, source in _sources(recipe):
        if source.path.startswith(STAGE_REF):
            yield from _answers_of(place, source, earlier)


def _answers_of(place: Path, source: SourceConfig, earlier: Earlier) -> Iterator[tuple[Path, str]]:
    """What a source needs of the stage whose answers it reads."""
    from preftune.methods import METHODS

    yield from unknown_stage((*place, "path"), source.path, earlier)
    before = earlier.get(source.path.removeprefix(STAGE_REF))
    if isinstance(before, DataStage):
        if before.method in WITHOUT_ROWS:
            yield (
                (*place, "path"),
                f"stage {before.name} ({before.method}) looks at rows and writes none; name its data",
            )
        elif source.split != "train":
            yield (*place, "split"), f"got {source.split!r}; the rows that stage {before.name} makes have no splits"
        return
    if before is None or before.method not in METHODS:
        return
    # of a repeated stage the last round counts, which answers anew
    drawn = METHODS[before.method].completions == "collected" and (before.collect.path is None or before.repeat > 1)
    if not drawn or METHODS[before.method].own_words:
        yield (
            (*place, "path"),
            f"stage {before.name} ({before.method}) collects no answers of its own; only the answers of a stage of rft "
            "or iterative-dpo can be data, and the rows of one that makes data",
        )
    elif source.split not in ("train", "validation"):
        yield (
            (*place, "split"),
            f"got {source.split!r}; a stage's answers are train, or validation (with its collect.held_out)",
        )
    elif source.split == "validation" and not before.collect.held_out:
        yield (
            (*place, "split"),
            f"stage {before.name} answers its training prompts alone; set its collect.held_out: true",
        )


def unknown_stage(place: Path, value: str, earlier: Earlier) -> Iterator[tuple[Path, str]]:
    """That `value`, stage:NAME, names an earlier stage."""
    if (name := value.removeprefix(STAGE_REF)) in earlier:
        return
    close = nearest(name, earlier)
    known = f"earlier stages: {', '.join(earlier)}" if earlier else "there is no earlier stage"
    yield place, f"{value} names no earlier stage; {f'did you mean stage:{close}?' if close else known}"

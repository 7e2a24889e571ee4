"""Which model is meant: a hub id, a model or adapter folder, or a run, whose recipe says how its model is used."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from preftune.config import CompetitionConfig, Recipe
from preftune.errors import PreftuneError, UsageError


@dataclass(frozen=True, slots=True)
class Place:
    """Where the model lies.

    Attributes:
        path: hub id or folder that is loaded.
        words: which run and stage that is; "" when the path is the one that was given.
        recipe: of the run that made the model; None without a run, or when its recipe can't be read.
        problem: why it can't be read.
    """

    path: str
    words: str = ""
    recipe: Recipe | None = None
    problem: str = ""

    @property
    def system(self) -> str:
        """The system prompt that all of the run's training data had; "" when they differ or had none."""
        prompts = {source.system for source in self.recipe.data} if self.recipe else set()
        return (prompts.pop() or "") if len(prompts) == 1 else ""

    @property
    def is_plain(self) -> bool:
        """Whether a run made it of plain text: its recipe and its tokenizer both hold no chat template."""
        return self.recipe is not None and self.recipe.tokens.chat_template is None and not _has_template(self.path)

    @property
    def competition(self) -> CompetitionConfig | None:
        """The contest that the run trained on."""
        return self.recipe.competition if self.recipe else None


def _has_template(folder: str) -> bool:
    """Whether the tokenizer saved in `folder` holds a chat template, in either of transformers' two places."""
    there = Path(folder)
    if any((there / name).exists() for name in ("chat_template.jinja", "additional_chat_templates")):
        return True
    try:
        saved = json.loads((there / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True  # no tokenizer of its own: loading will tell
    return not isinstance(saved, dict) or bool(saved.get("chat_template"))


def find(model: str) -> Place:
    """What MODEL_OR_RUN stands for. Loads nothing; what is no folder here is taken for a hub id.

    Raises:
        UsageError: a folder that holds no model, or a run that has none yet; says what to give instead.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return Place(model)
    if any((folder / name).exists() for name in ("config.json", "adapter_config.json")):
        # A run's final/ named by itself belongs to its run all the same.
        return _made_by(folder.parent, Place(str(folder))) if folder.name == "final" else Place(str(folder))
    if (folder / "pipeline.json").exists():
        return _stages(folder)
    if any((folder / name).exists() for name in ("recipe.yaml", "summary.json", "final")):
        return _run(folder, f"the run {folder}")
    raise UsageError(
        f"{folder} holds no model (config.json), no adapter (adapter_config.json) and no run (recipe.yaml); give one "
        "of these folders, or a hub id"
    )


def _stages(folder: Path) -> Place:
    """The last stage's result."""
    path = folder / "pipeline.json"
    try:
        names = [str(name) for name in json.loads(path.read_text(encoding="utf-8"))["stages"]]
        last = names[-1]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UsageError(f"{path} can't be read ({error!r}); give the folder of one stage instead") from None
    if not (folder / last / "final").is_dir():
        done = [f"preftune chat {folder / name}" for name in names if (folder / name / "final").is_dir()]
        raise UsageError(
            f"{folder}: its last stage, {last}, has no final/ yet: go on with --resume"
            + (f", or talk to an earlier one: {', '.join(done)}" if done else "")
        )
    where = f"stage {last}, the last of {len(names)} of the run {folder}" if len(names) > 1 else f"the run {folder}"
    return _run(folder / last, where)


def _run(folder: Path, words: str) -> Place:
    final = folder / "final"
    if final.is_dir():
        return _made_by(folder, Place(str(final), words))
    # `preftune demo` keeps its recipe beside the run that it made.
    if (folder / "recipe.yaml").exists():
        output = _output(folder / "recipe.yaml")
        for there in () if output is None else (output, folder / output.name):
            if there.is_dir() and there.resolve() != folder.resolve():
                return find(str(there))
    raise UsageError(f"{folder} has no final/ yet: its run has not come to its end; go on with --resume")


def _output(path: Path) -> Path | None:
    from preftune.recipes import load_recipe

    try:
        output = load_recipe(path).output
    except PreftuneError:
        return None
    return None if output is None else Path(output)


def _made_by(run: Path, place: Place) -> Place:
    """The place with its run's recipe."""
    from preftune.recipes import load_recipe

    if not (run / "recipe.yaml").exists():
        return place
    try:
        recipe = load_recipe(run / "recipe.yaml").recipes[-1]
    except PreftuneError as error:
        return Place(place.path, place.words, None, str(error))
    return Place(place.path, place.words, recipe)

"""One step on a round's ratings: the answers with their scores, and an ordinary run of method `human` on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from preftune.config import Pipeline, Recipe
from preftune.data.collected import write_collected
from preftune.errors import DataError, UsageError
from preftune.human.ratings import Judged, Rating, judged, read_ratings, scores
from preftune.human.rounds import Round, open_last, read_facts, write_facts
from preftune.records import Group


@dataclass(frozen=True, slots=True)
class Rated:
    """The groups of a round that training reads, and sentences to print."""

    groups: tuple[Group, ...]
    notes: tuple[str, ...]


def learn(
    root: Path, *, resume: bool = False, partial: bool = False, base_dir: Path | None = None
) -> tuple[Round, Path]:
    """Train the newest round into ROOT/round-N/train.

    Args:
        resume: go on with a training that stopped.
        partial: train although some prompts have fewer ratings than `human.raters`; those without any are left out.

    Returns:
        The round, and the folder of the model.

    Raises:
        UsageError: the round is not rated, or trained already, or its training has begun and `resume` is not asked for.
        DataError: ratings are missing.
    """
    round_ = open_last(root)
    folder, state = round_.folder, round_.state
    if state == "trained":
        _mark(round_)  # a process killed right after the training has not
        raise UsageError(
            f"{root}: round {round_.number} is trained already, its model is {folder / 'train' / 'final'}; begin the "
            f"next with `preftune human export RECIPE --output {root}`"
        )
    if state == "exported":
        raise UsageError(
            f"{root}: round {round_.number} has no ratings; take them in with `preftune human import {root} FILE`"
        )
    if state == "training" and not resume:
        raise UsageError(
            f"{root}: the training of round {round_.number} has begun; go on with `preftune human train {root} "
            "--resume`"
        )
    if state == "rated" and resume:
        raise UsageError(f"{root}: the training of round {round_.number} has not begun; leave --resume out")

    from preftune.pipeline import run_pipeline
    from preftune.train.guard import only_one

    path = (folder / "rated.jsonl").resolve()
    with only_one(root):
        # While a training is under way no rating is taken in, so a file that is there is the one it began with.
        if state != "training" or not path.exists():
            rated = rate(round_, read_ratings(folder), partial=partial)
            for note in rated.notes:
                print(note)
            write_collected(path, rated.groups, {**round_.collected.about, "human": round_.human.model_dump()})
        recipe = trained_by(round_.recipe, path, folder / "train")
        run_pipeline(
            Pipeline(name=recipe.name, output=recipe.output, stages=[recipe]), resume=state == "training",
            base_dir=base_dir,
        )  # fmt: skip
        _mark(round_)
    return round_, folder / "train" / "final"


def _mark(round_: Round) -> None:
    write_facts(round_.folder, read_facts(round_.folder), state="trained")


def trained_by(recipe: Recipe, rated: Path, output: Path) -> Recipe:
    """The round's recipe, reading the rated answers."""
    whole = recipe.model_dump(by_alias=True)
    return Recipe.model_validate(
        {**whole, "collect": {**whole["collect"], "path": str(rated)}, "output": str(output)}
    )  # fmt: skip


def rate(round_: Round, ratings: Sequence[Rating], *, partial: bool = False) -> Rated:
    """The groups with a score for each completion; what raters said is kept in `notes`.

    A prompt counts when a rater rated all of its answers; others are left out and counted.

    Raises:
        DataError: prompts with fewer such raters than `human.raters`, unless `partial`; or no prompt with any.
    """
    human = round_.human
    table = judged(round_, ratings)
    short = [prompt + 1 for prompt in round_.prompts if len(table.get(prompt, {})) < human.raters]
    if short and not partial:
        wanted = "one rater" if human.raters == 1 else f"{human.raters} raters"
        raise DataError(
            f"{round_.folder}: {len(short)} of {len(round_.prompts)} prompts have not been rated wholly by "
            f"{wanted} (human.raters): {_numbers(short)}. Import the missing ratings, or "
            "train with --partial, which leaves out the prompts without any"
        )
    if not table:
        raise DataError(
            f"{round_.folder}: no prompt was rated wholly by anyone, so there is nothing to train on; import more "
            "ratings"
        )
    notes = []
    if left := len(round_.prompts) - len(table):
        completions = sum(len(a.completions) for a in round_.answers if a.prompt not in table)
        notes.append(f"{left} prompts with {completions} completions are left out: nobody rated all of their answers")
    if fewer := len(short) - left:
        notes.append(f"{fewer} prompts have fewer than {human.raters} raters")
    unseen = set(range(len(round_.collected.groups))) - set(round_.prompts)
    if unseen:
        notes.append(
            f"{len(unseen)} prompts are left out: all of their completions have one text, so there was no rank"
        )
    numbers = scores(table, rate=human.rate, normalize=human.normalize_raters)
    flat = sum(len({numbers[a.id] for a in round_.prompts[prompt]}) == 1 for prompt in table)
    if flat:
        notes.append(f"{flat} of {len(table)} prompts have one score for all answers, and teach nothing")
    groups = tuple(_scored(round_, prompt, table, numbers, ratings) for prompt in sorted(table))
    return Rated(groups, tuple(notes))


def _scored(round_: Round, prompt: int, table: Judged, numbers: dict[str, float], ratings: Sequence[Rating]) -> Group:
    group = round_.collected.groups[prompt]
    completions = list(group.completions)
    for answer in round_.prompts[prompt]:
        said: dict[str, Any] = {
            one.rater: {round_.human.rate: one.value, **({"comment": one.comment} if one.comment else {})}
            for one in ratings
            if one.id == answer.id and one.rater in table[prompt]
        }
        for place in answer.completions:
            completions[place] = replace(
                completions[place], score=numbers[answer.id], notes={**completions[place].notes, "raters": said}
            )
    return replace(group, completions=tuple(completions))


def _numbers(values: Sequence[int], most: int = 20) -> str:
    rest = f" and {len(values) - most} more" if len(values) > most else ""
    return f"prompts {', '.join(map(str, values[:most]))}{rest}" if len(values) > 1 else f"prompt {values[0]}"

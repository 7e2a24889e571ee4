"""Beginning a round: which prompts, which policy, its answers, and the files for raters."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from preftune.config import Pipeline, Recipe
from preftune.data import as_prompts
from preftune.data.collected import read_collected, write_collected
from preftune.errors import DataError, UsageError
from preftune.human.files import EXCEL_CELL, to_cell, write_csv, write_jsonl
from preftune.human.guide import guide
from preftune.human.rounds import (
    VERSION,
    Answer,
    Round,
    find_rounds,
    open_round,
    read_facts,
    readable,
    show,
    state_of,
    write_facts,
)
from preftune.records import Content, Example, Group

REMEDIES = {
    "exported": "waits for ratings; take them in with `preftune human import {root} FILE`",
    "rated": "is rated and not trained; train it with `preftune human train {root}`",
    "training": "is being trained, or was interrupted; go on with `preftune human train {root} --resume`",
}
"""State of the newest round → why no other can begin, and what to do."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A round that has begun, and sentences to print."""

    round: Round
    notes: tuple[str, ...]


def export(pipeline: Pipeline, *, base_dir: Path | None = None) -> Exported:
    """Draw the next round's answers and write its folder, whole or not at all.

    Args:
        pipeline: a recipe of method `human`, one stage; its output is the root of all rounds.
        base_dir: where relative paths of the recipe are looked up.

    Raises:
        UsageError: the recipe does not fit, or a round is still open. DataError: no prompt is left to answer.
    """
    recipe = _checked(pipeline)
    root = Path(pipeline.output or Path("runs") / pipeline.name)
    if any((root / name).exists() for name in ("recipe.yaml", "pipeline.json")):
        raise UsageError(f"{root} is a run folder, not one for rounds; give another with --output")
    earlier = find_rounds(root) if root.exists() else []
    _check_closed(root, earlier)

    from preftune.train.folder import whole_folder
    from preftune.train.guard import only_one

    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"can't make the folder {root}: {error}; give another with --output") from error
    with only_one(root):
        # another process may have begun a round since
        earlier = find_rounds(root)
        _check_closed(root, earlier)
        facts = [read_facts(folder) for folder in earlier]
        number = len(earlier) + 1
        mine = next_policy(recipe, earlier[-1], facts[-1]) if earlier else recipe
        mine = _changed(mine, name=f"{recipe.name}-round-{number}", output=None)
        rows, prompt_hashes, notes = choose_prompts(mine, facts, number, base_dir)
        folder = root / f"round-{number}"
        with whole_folder(folder) as draft:
            draft.mkdir()
            groups, about = _draw(mine, rows, draft, number, base_dir)
            head = {
                "human": VERSION, "round": number, "state": "exported", "model": recipe.model.path,
                "prompts_sha256": prompt_hashes,
            }  # fmt: skip
            notes += _write(draft, mine, groups, {**about, "round": number}, head)
            if len(groups) < len(rows):
                notes.append(f"{len(rows) - len(groups)} prompts were left out by the token contract (too long)")
    return Exported(open_round(folder), tuple(notes))


def _checked(pipeline: Pipeline) -> Recipe:
    if len(pipeline.stages) > 1:
        raise UsageError("preftune human export takes a recipe of one stage; leave `stages:` out")
    recipe = pipeline.stages[0]
    if not isinstance(recipe, Recipe) or recipe.method != "human":
        raise UsageError(f"the recipe is for {recipe.method}; preftune human export needs method: human")
    if recipe.collect.path is not None:
        raise UsageError("collect.path: export draws the answers and sets this field for training; remove it")
    if recipe.sampling.group_size < 2:
        raise UsageError("an answer counts beside the others to its prompt; set sampling.group_size to 2 or more")
    if recipe.human.rate == "rank" and recipe.human.normalize_raters:
        raise UsageError("human.normalize_raters is for scores; ranks are on one scale already, so remove it")
    return recipe


def _check_closed(root: Path, earlier: Sequence[Path]) -> None:
    if earlier and (state := state_of(earlier[-1])) != "trained":
        raise UsageError(f"{root}: round {len(earlier)} {REMEDIES[state].format(root=root)}")


def _changed(recipe: Recipe, **fields: Any) -> Recipe:
    """A copy with other fields, checked like a recipe that was written."""
    return Recipe.model_validate({**recipe.model_dump(by_alias=True), **fields})


def next_policy(recipe: Recipe, previous: Path, facts: Mapping[str, Any]) -> Recipe:
    """The recipe with the previous round's result as its model.

    An adapter is trained further. The reference is the adapter as the round began, unless the recipe says `base` or
    names a model of its own (`model.reference_path`).

    Raises:
        UsageError: the recipe names another model than the first round had; it would be left out silently.
    """
    if recipe.model.path != facts["model"]:
        raise UsageError(
            f"model.path is {recipe.model.path}, but these rounds began with {facts['model']}, and the next goes on "
            f"from {previous / 'train' / 'final'}. Put {facts['model']} back, or begin new rounds with another --output"
        )
    from preftune.methods import get_method

    final = (previous / "train" / "final").resolve()
    adapter = (final / "adapter_config.json").exists()
    # The adapter has its shape; model.lora would have to repeat it, and a stack of two has another.
    changes: dict[str, Any] = {"path": str(final), "revision": None, "on_adapter": None, "reference": None}
    if adapter:
        changes |= {"on_adapter": "continue", "lora": None}
        if get_method(recipe.method).needs_reference(recipe) and recipe.model.reference_path is None:
            changes["reference"] = recipe.model.reference or "start"
    return _changed(recipe, model={**recipe.model.model_dump(by_alias=True), **changes})


def choose_prompts(
    recipe: Recipe, earlier: Sequence[Mapping[str, Any]], number: int, base_dir: Path | None
) -> tuple[list[Example], list[str], list[str]]:
    """The round's prompts: those asked least often so far, in an order drawn with the seed, none of them held out.

    Returns:
        Rows without completions, the hash of each, and sentences to print.

    Raises:
        DataError: as `load_examples` raises.
    """
    from preftune.methods import get_method
    from preftune.train.rows import hold_out, read_splits

    rows = read_splits(recipe, base_dir)["train"].examples
    if recipe.eval.holdout and not recipe.eval.data:
        rows, _ = hold_out(rows, recipe, get_method(recipe.method))
    different = {_prompt_hash(row.prompt): row for row in reversed(as_prompts(rows))}
    asked = dict.fromkeys(different, 0)
    for facts in earlier:
        for name in facts["prompts_sha256"]:
            if name in asked:
                asked[name] += 1
    order = sorted(different)
    random.Random(f"{recipe.seed}/human/prompts").shuffle(order)
    chosen = sorted(order, key=asked.__getitem__)[: recipe.human.prompts]
    notes = []
    if len(chosen) < recipe.human.prompts:
        notes.append(f"the data has {len(chosen)} different prompts, fewer than human.prompts {recipe.human.prompts}")
    again = sum(asked[name] > 0 for name in chosen)
    if again:
        notes.append(f"{again} of {len(chosen)} prompts were asked in an earlier round: all others have been, too")
    return [different[name] for name in chosen], chosen, notes


def _prompt_hash(prompt: Content) -> str:
    plain = prompt if isinstance(prompt, str) else [[message.role, message.content] for message in prompt]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:16]


def _draw(
    recipe: Recipe, rows: Sequence[Example], draft: Path, number: int, base_dir: Path | None
) -> tuple[list[Group], Mapping[str, Any]]:
    """The policy's answers to these rows alone."""
    from preftune.train.collect import draw

    path = draft / "prompts.jsonl"
    try:
        write_jsonl(path, ({**row.columns, "prompt": _plain(row.prompt)} for row in rows))
    except (TypeError, ValueError) as error:
        raise DataError(f"{rows[0].where}: a column can't be written as JSON ({error}); leave it out") from error
    ours = _changed(
        recipe,
        data=[{"path": str(path.resolve()), "format": "prompt"}],
        # The rows are chosen and free of held-out ones. Another seed each round: a prompt that is asked again must not
        # get the same dice.
        eval={},
        seed=recipe.seed + number - 1,
    )
    groups, about = draw(ours, base_dir=base_dir)
    path.unlink()
    origins = {f"{path.resolve()}:{line}": row.where for line, row in enumerate(rows, start=1)}
    return [
        replace(group, prompt=replace(group.prompt, where=origins.get(group.prompt.where, group.prompt.where)))
        for group in groups
    ], about


def _plain(content: Content) -> Any:
    return content if isinstance(content, str) else [{"role": m.role, "content": m.content} for m in content]


def _write(
    folder: Path, recipe: Recipe, groups: Sequence[Group], about: Mapping[str, Any], head: Mapping[str, Any]
) -> list[str]:
    """All files of a round. Returns sentences to print."""
    from preftune.recipes import dump
    from preftune.train.folder import write_text

    write_collected(folder / "collected.jsonl", groups, about)
    answers, notes = _shown(recipe, groups, head["round"])
    write_text(folder / "recipe.yaml", dump(recipe))
    listed = [{"id": a.id, "prompt": a.prompt, "completions": a.completions} for a in answers]
    counts = {"prompts": len({a.prompt for a in answers}), "completions": sum(len(a.completions) for a in answers)}
    digest = read_collected(folder / "collected.jsonl").digest
    write_facts(folder, {**head, "collected_sha256": digest, "counts": counts, "answers": listed})
    round_ = open_round(folder)
    write_answers(round_)
    write_text(folder / "HOW_TO_RATE.md", guide(round_))
    long = sum(len(to_cell(a.text)) > EXCEL_CELL for a in answers)
    if long:
        notes.append(
            f"{long} answers are longer than the {EXCEL_CELL:,} characters that Excel keeps of a cell: give raters "
            "answers.jsonl, or another spreadsheet program"
        )
    return notes


def _shown(recipe: Recipe, groups: Sequence[Group], number: int) -> tuple[list[Answer], list[str]]:
    answers = show(groups, number, recipe.seed)
    notes = []
    doubled = sum(len(group.completions) for group in groups) - len(answers)
    if doubled:
        notes.append(f"{doubled} completions have the text of another one to the same prompt, and are rated with it")
    if recipe.human.rate == "rank":
        sizes = Counter(answer.prompt for answer in answers)
        answers = [answer for answer in answers if sizes[answer.prompt] > 1]
        if alike := sum(size == 1 for size in sizes.values()):
            notes.append(f"{alike} prompts got the same text in all completions: nothing to rank, left out")
    if not answers:
        raise DataError(
            "no prompt got two different answers, so there is nothing to rank; raise sampling.temperature or "
            "sampling.group_size"
            if groups
            else "no prompt is left to answer: all are over tokens.max_prompt_tokens; raise it"
        )
    return answers, notes


def write_answers(round_: Round) -> None:
    """answers.jsonl and answers.csv, for raters: no token ids, no log-probs, nothing rated yet."""
    rate = round_.human.rate
    columns = ["id", "prompt", "answer", rate, "rater", "comment"]
    rows = [
        {
            "id": answer.id, "prompt": readable(round_.collected.groups[answer.prompt].prompt), "answer": answer.text,
            rate: "", "rater": "", "comment": "",
        }
        for answer in round_.answers
    ]  # fmt: skip
    try:
        write_csv(round_.folder / "answers.csv", rows, columns)
        write_jsonl(round_.folder / "answers.jsonl", ({**row, rate: None} for row in rows))
    except OSError as error:
        raise DataError(f"can't write the raters' files in {round_.folder}: {error}; free some space") from error

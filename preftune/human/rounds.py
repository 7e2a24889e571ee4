"""A round's folder and state. ROOT/round-1, ROOT/round-2, … each hold one turn of the loop."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from preftune.config import HumanConfig, Recipe
from preftune.data.collected import Collected, read_collected
from preftune.errors import DataError, UsageError
from preftune.recipes import load_recipe
from preftune.records import Group, Prompt

VERSION = 1
State: TypeAlias = Literal["exported", "rated", "training", "trained"]
_FOLDER = re.compile(r"round-([1-9]\d*)")


@dataclass(frozen=True, slots=True)
class Answer:
    """One row of a rater's file.

    Attributes:
        id: `r2-003b-9f3c21`: round 2, prompt 3, second answer shown, and a hash of prompt and text. It begins with a
            letter and holds no sign of arithmetic but dashes, so that no spreadsheet takes it for a number or a date.
        prompt: index of its group.
        completions: indices in the group. Completions of the same text are shown, and rated, once.
        text: what the policy wrote.
    """

    id: str
    prompt: int
    completions: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Round:
    """A round as its folder says.

    Attributes:
        folder: ROOT/round-N.
        recipe: what its training runs, but for `collect.path`; its section `human` is what raters were told.
        collected: the policy's answers with exact ids.
        answers: rows of the raters' files, in their order; answers to one prompt stand together.
        facts: round.json.
    """

    folder: Path
    number: int
    recipe: Recipe
    collected: Collected
    answers: tuple[Answer, ...]
    facts: Mapping[str, Any]

    @property
    def human(self) -> HumanConfig:
        return self.recipe.human

    @property
    def prompts(self) -> dict[int, tuple[Answer, ...]]:
        """Group index → its answers as shown, for the groups that are shown."""
        out: dict[int, tuple[Answer, ...]] = {}
        for answer in self.answers:
            out[answer.prompt] = (*out.get(answer.prompt, ()), answer)
        return out

    @property
    def state(self) -> State:
        return state_of(self.folder)


def state_of(folder: Path) -> State:
    """How far a round is, by its files: a process killed before it could update round.json changes nothing."""
    train = folder / "train"
    if (train / "summary.json").exists():
        from preftune.train.result import finished_result  # the one who knows when a run is finished; loads torch

        if finished_result(train) is not None:
            return "trained"
    if (train / "recipe.yaml").exists():
        return "training"
    return "rated" if (folder / "ratings.jsonl").exists() else "exported"


def show(groups: Sequence[Group], number: int, seed: int) -> list[Answer]:
    """The rows that raters see: each prompt's different texts in an order that says nothing about how they came."""
    out: list[Answer] = []
    for index, group in enumerate(groups):
        texts: dict[str, list[int]] = {}
        for place, completion in enumerate(group.completions):
            texts.setdefault(completion.text, []).append(place)
        order = list(texts)
        random.Random(f"{seed}/human/{number}/{index}").shuffle(order)
        for place, text in enumerate(order):
            digest = hashlib.sha256(json.dumps([number, group.prompt.ids, text]).encode()).hexdigest()[:6]
            name = f"r{number}-{index + 1:03d}{_letters(place)}-{digest}"
            out.append(Answer(name, index, tuple(texts[text]), text))
    return out


def _letters(place: int) -> str:
    """a … z, aa, ab, …"""
    first, last = divmod(place, 26)
    return (_letters(first - 1) if first else "") + chr(ord("a") + last)


def readable(prompt: Prompt) -> str:
    """A prompt as raters read it: its text, or its turns with who speaks when there are several."""
    content = prompt.content or prompt.text
    if isinstance(content, str):
        return content
    if len(content) == 1:
        return content[0].content
    return "\n\n".join(f"{message.role}: {message.content}" for message in content)


def find_rounds(root: Path) -> list[Path]:
    """The folders of a root's rounds, oldest first.

    Raises:
        UsageError: no such folder. DataError: a round is missing between others.
    """
    if not root.is_dir():
        raise UsageError(f"{root} is no folder with rounds; `preftune human export RECIPE --output {root}` begins one")
    numbers = sorted(int(m[1]) for path in root.iterdir() if (m := _FOLDER.fullmatch(path.name)) and path.is_dir())
    if numbers != list(range(1, len(numbers) + 1)):
        gone = next(n for n in range(1, numbers[-1]) if n not in numbers)
        raise DataError(f"{root}: round-{gone} is gone, but round-{numbers[-1]} is there; put the folder back")
    return [root / f"round-{number}" for number in numbers]


def open_last(root: Path) -> Round:
    """The newest round.

    Raises:
        UsageError: there is none. DataError: as `open_round`.
    """
    found = find_rounds(root)
    if not found:
        raise UsageError(f"{root} holds no round; `preftune human export RECIPE --output {root}` begins one")
    return open_round(found[-1])


def open_round(folder: Path) -> Round:
    """Read a round's folder.

    Raises:
        DataError: a file is missing or damaged, or the collected answers are not those that were exported.
    """
    facts = read_facts(folder)
    path = folder / "collected.jsonl"
    collected = read_collected(path)
    if collected.digest != facts["collected_sha256"]:
        raise DataError(f"{path}: not the answers that were exported for raters; put the file back as export wrote it")
    answers = tuple(
        Answer(
            row["id"], row["prompt"], tuple(row["completions"]),
            collected.groups[row["prompt"]].completions[row["completions"][0]].text,
        )
        for row in facts["answers"]
    )  # fmt: skip
    recipe = load_recipe(folder / "recipe.yaml").recipes[0]
    return Round(folder, facts["round"], recipe, collected, answers, facts)


def read_facts(folder: Path) -> dict[str, Any]:
    """round.json. Raises DataError when it is missing, damaged or of another version."""
    path = folder / "round.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        version = facts["human"]
        missing = {"round", "prompts_sha256", "collected_sha256", "answers", "model"} - set(facts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"can't read {path} ({error!r}); put it back as `preftune human export` wrote it") from error
    if version != VERSION:
        raise DataError(f"{path}: version {version} of a round; this preftune reads version {VERSION}")
    if missing:
        raise DataError(f"{path}: lacks {', '.join(sorted(missing))}; put it back as `preftune human export` wrote it")
    return dict(facts)


def write_facts(folder: Path, facts: Mapping[str, Any], **changes: Any) -> None:
    """Write round.json, whole or not at all; its `state` is for readers, `state_of` decides by the files."""
    from preftune.train.folder import write_json

    write_json(folder / "round.json", {**facts, **changes})

"""Reward models trained on the rows before and after, and what they say of rows that none of them saw.

    raw          the rows as they came
    stripped     the rows without the openings
    … + p_max    the same with the limit on near-certain tokens, where loss.p_max is given

They are measured on pairs held out by prompt, as they came and stripped, and on answers of one's own policy.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from preftune.curation.debias.config import DebiasConfig
from preftune.curation.debias.predict import share_interval
from preftune.curation.debias.table import pairs_of
from preftune.data.load import stream_rows
from preftune.errors import DataError
from preftune.intervals import Interval, paired_difference
from preftune.records import Content, Example

if TYPE_CHECKING:
    from preftune.config import Recipe
    from preftune.rewards.learned import RewardReader

HELD_OUT, STRIPPED, OWN = "held-out", "held-out, stripped", "own outputs"
"""What is measured: accuracy on each."""
CHUNK = 64


@dataclass(frozen=True, slots=True)
class Arm:
    """One reward model.

    Attributes:
        name: raw, stripped, raw + p_max, stripped + p_max.
        folder: its run.
        accuracy: by what is measured, the share of pairs in the right order: one value per prompt.
        steps, seconds: of its training.
        skipped: measured rows that it could not read whole; the same for all arms.
    """

    name: str
    folder: Path
    accuracy: Mapping[str, Sequence[float]]
    steps: int
    seconds: float
    skipped: int = 0

    def interval(self, what: str) -> Interval:
        return share_interval(self.accuracy[what])

    def change(self, other: Arm, what: str) -> Interval:
        """This one's accuracy less another's, on the same prompts."""
        return paired_difference(other.accuracy[what], self.accuracy[what])

    def to_json(self) -> dict[str, Any]:
        found = {what: self.interval(what).to_json() for what in self.accuracy}
        return {"name": self.name, "folder": str(self.folder), "accuracy": found, "steps": self.steps,
                "seconds": round(self.seconds, 1), "skipped": self.skipped}  # fmt: skip


class Splits:
    """Writes rows, raw and stripped, to files of training and held-out rows. Which is which is the prompt's own affair:
    a hash of it and the seed decides, so all answers to a prompt are on one side.

    Attributes:
        trained, held_out: rows of each.
    """

    def __init__(self, folder: Path, config: DebiasConfig) -> None:
        self.folder, self.config = folder, config
        self.trained = self.held_out = 0
        self._open = ExitStack()
        self._files: dict[str, TextIO] = {}

    def __enter__(self) -> Splits:
        self.folder.mkdir(parents=True)
        for name in ("train-raw", "train-stripped", "held-out-raw", "held-out-stripped"):
            self._files[name] = self._open.enter_context((self.folder / f"{name}.jsonl").open("w", encoding="utf-8"))
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def add(self, raw: Example, stripped: Example | None) -> None:
        """A row. `stripped`: None where nothing is left to compare; then it is trained on raw alone."""
        if not any(True for _ in pairs_of(raw.scores)):
            return
        if self._is_held_out(raw):
            if stripped is not None:
                self.held_out += 1
                self._write("held-out-raw", raw)
                self._write("held-out-stripped", stripped)
            return
        self.trained += 1
        self._write("train-raw", raw)
        if stripped is not None:
            self._write("train-stripped", stripped)

    def _is_held_out(self, example: Example) -> bool:
        text = f"{self.config.seed}/{_plain(example.prompt)}"
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "little") / 2**64 < self.config.held_out

    def _write(self, name: str, example: Example) -> None:
        row: dict[str, Any] = {
            "prompt": _plain(example.prompt),
            "responses": [
                {"completion": _plain(one), "score": score}
                for one, score in zip(example.completions, example.scores, strict=True)
            ],
        }
        if "margin" in example.columns:
            row["margin"] = example.columns["margin"]
        self._files[name].write(json.dumps(row) + "\n")

    def read(self, name: str) -> list[Example]:
        """The rows of a file that was written."""
        return read_compared(str(self.folder / f"{name}.jsonl"), None)


def read_compared(path: str, base_dir: Path | None) -> list[Example]:
    """Rows of a file with a better and a worse answer.

    Raises:
        DataError: it can't be read, or has no such row.
    """
    from preftune.config import SourceConfig

    rows = [one.example for one in stream_rows(SourceConfig(path=path), base_dir) if one.example is not None]
    out = [row for row in rows if any(True for _ in pairs_of(row.scores))]
    if not out:
        raise DataError(f"{path}: no row has a better and a worse answer; give pairs, or ranked answers")
    return out


def train_arms(config: DebiasConfig, splits: Splits, own: Sequence[Example] | None, folder: Path) -> list[Arm]:
    """Train and measure a reward model for each arm.

    Args:
        own: answers of one's own policy, compared by something else.
        folder: where the runs go, each in a folder of its own.

    Raises:
        DataError: no row was held out, or none is left to train on.
    """
    if not splits.held_out or not splits.trained:
        raise DataError(
            f"{splits.trained} rows to train on and {splits.held_out} held out are too few for reward models; give "
            "more rows, or another --held_out"
        )
    sets = {HELD_OUT: splits.read("held-out-raw"), STRIPPED: splits.read("held-out-stripped")}
    if own is not None:
        sets[OWN] = list(own)
    out = []
    for name, data, limited in _arms(config):
        start = time.perf_counter()
        there = folder / name.replace(" + ", "-")
        steps, final = _train(recipe_of(config, splits.folder / f"{data}.jsonl", there, limited=limited), there)
        reader = reader_of(config, str(final))
        accuracy, skipped = {}, 0
        for what, rows in sets.items():
            accuracy[what], left_out = accuracies(reader, rows)
            skipped += left_out
        out.append(Arm(name, there, accuracy, steps, time.perf_counter() - start, skipped))
    return out


def _arms(config: DebiasConfig) -> list[tuple[str, str, bool]]:
    """Name, rows, and whether gradients are limited."""
    plain = [("raw", "train-raw", False), ("stripped", "train-stripped", False)]
    limited = [(f"{name} + p_max", data, True) for name, data, _ in plain]
    return plain + (limited if config.loss.p_max is not None else [])


def recipe_of(config: DebiasConfig, data: Path, folder: Path, *, limited: bool) -> Recipe:
    """The recipe of one arm.

    Raises:
        UsageError: settings that do not go together.
    """
    from preftune.config import Recipe
    from preftune.recipes import resolve

    assert config.model is not None
    loss = config.loss.model_dump(exclude_defaults=True)
    train = config.train.model_dump(exclude_unset=True, by_alias=True)
    if config.loss.p_max is not None and not limited:
        train.pop("reference_cache", None)
        loss = {name: value for name, value in loss.items() if name not in ("p_max", "g_max", "generator")}
    stage = resolve(
        {
            "method": "reward", "name": folder.name, "output": str(folder), "seed": config.seed,
            "model": config.model.model_dump(exclude_unset=True, by_alias=True),
            "data": [{"path": str(data), "format": "ranked"}],
            "tokens": config.tokens.model_dump(exclude_unset=True, by_alias=True),
            "loss": loss,
            "train": train,
        }
    ).stages[0]  # fmt: skip
    assert isinstance(stage, Recipe)
    return stage


def _train(recipe: Recipe, folder: Path) -> tuple[int, Path]:
    """An ordinary run of method `reward`. Returns its steps and the folder of its model."""
    from preftune.report import write_model_card, write_report
    from preftune.train.loop import run

    result = run(recipe, folder)
    write_model_card(folder)
    write_report(folder)
    return result.steps, folder / "final"


def reader_of(config: DebiasConfig, path: str) -> RewardReader:
    """A reward model that reads rows as training does."""
    from preftune.config import ModelConfig
    from preftune.rewards.learned import RewardReader

    given = config.model or ModelConfig(path=path)
    model = ModelConfig(
        path=path, device=given.device, dtype=given.dtype, attention=given.attention,
        trust_remote_code=given.trust_remote_code,
    )  # fmt: skip
    return RewardReader(model, config.tokens, max_tokens=config.train.max_tokens_per_batch or 8192)


def accuracies(reader: RewardReader, rows: Sequence[Example]) -> tuple[list[float], int]:
    """The share of pairs in the right order, a tie counts ½: a value per prompt, in order of appearance; and how many
    rows the model can't read whole, which are left out."""
    found: dict[str, list[float]] = {}
    skipped = 0
    for start in range(0, len(rows), CHUNK):
        groups = [(row, reader.group(row)) for row in rows[start : start + CHUNK]]
        kept = [(row, group) for row, group in groups if not any(reader.unreadable(group))]
        skipped += len(groups) - len(kept)
        for (row, _), scores in zip(kept, reader.rate([group for _, group in kept]) if kept else [], strict=True):
            won = [
                1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
                for i, j in pairs_of(row.scores)
            ]
            found.setdefault(json.dumps(_plain(row.prompt)), []).append(sum(won) / len(won))
    return [sum(values) / len(values) for values in found.values()], skipped


def _plain(content: Content) -> Any:
    if isinstance(content, str):
        return content
    return [{"role": turn.role, "content": turn.content} for turn in content]

"""Which prompts are looked at: different ones, drawn from all rows at random in one pass."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from preftune.competition.construct import Construct
from preftune.config import SourceConfig
from preftune.curation.contents import as_text, plain
from preftune.curation.diagnose.config import DiagnoseConfig
from preftune.curation.folder import Curated
from preftune.data.formats import as_prompt, best_of, desirable
from preftune.data.load import stream_rows
from preftune.errors import DataError, PreftuneError
from preftune.recipes.schema import nearest
from preftune.records import Content, Example


@dataclass(frozen=True, slots=True)
class Drawn:
    """A row that is looked at.

    Attributes:
        example: its prompt, without completions; `columns` are the row's others.
        good: the row with the answer that it holds up as good, None where it holds none.
        context: what an answer should be close to.
    """

    example: Example
    good: Example | None
    context: str

    @property
    def where(self) -> str:
        return self.example.where

    @property
    def question(self) -> str:
        """The prompt for people to read."""
        return as_text(self.example.prompt)

    @property
    def asked(self) -> str:
        """What is asked last: the prompt's last turn."""
        return last_turn(self.example.prompt)


def last_turn(content: Content) -> str:
    """Text as it is, or the last turn's."""
    return content if isinstance(content, str) else content[-1].content


def draw_prompts(
    config: DiagnoseConfig,
    curated: Curated,
    base_dir: Path | None = None,
    tell: Callable[[int, None], None] | None = None,
) -> list[Drawn]:
    """`config.prompts` different prompts, each as likely as any other (reservoir sampling), in the data's order.

    Memory holds those and 16 bytes of every different prompt. Rows that are not drawn get their decision here.

    Raises:
        DataError: a source can't be read, holds no prompt, or lacks the column `context`.
    """
    rng = random.Random(f"diagnose {config.seed}")
    kept: list[tuple[int, Drawn]] = []
    seen: set[bytes] = set()
    rows = bad = 0
    for source in _sources(config):
        for one in stream_rows(source, base_dir):
            rows += 1
            if tell is not None:
                tell(rows, None)
            if one.example is None:
                bad += 1
                curated.decide(one.row.where, kept=False, why="bad row", problem=one.problem)
                continue
            drawn = _read(one.example, config)
            digest = _digest(drawn)
            if digest in seen:
                curated.decide(drawn.where, kept=False, why="repeated prompt")
                continue
            seen.add(digest)
            if len(kept) < config.prompts:
                kept.append((rows, drawn))
                continue
            place = rng.randrange(len(seen))
            left = drawn
            if place < config.prompts:
                left, kept[place] = kept[place][1], (rows, drawn)
            curated.decide(left.where, kept=False, why="not drawn")
    if not kept:
        told = f"all {bad} rows are bad" if bad else "it is empty"
        raise DataError(f"{config.data[0].path}: there is no prompt to answer: {told}")
    return [drawn for _, drawn in sorted(kept, key=lambda pair: pair[0])]


def _sources(config: DiagnoseConfig) -> list[SourceConfig]:
    """With the contest's system prompt, as training puts it."""
    if config.competition is None:
        return list(config.data)
    system = Construct.of(config.competition).system_prompt
    return [
        one if one.system is not None or not system else one.model_copy(update={"system": system})
        for one in config.data
    ]


def _read(example: Example, config: DiagnoseConfig) -> Drawn:
    asked = as_prompt(example)
    good = best_of(example) if example.completions and desirable(example) else None
    if config.context is None:
        context = as_text(asked.prompt)
    else:
        value = example.columns.get(config.context)
        if not isinstance(value, str):
            if value is not None:
                raise DataError(
                    f"{example.where}: column {config.context!r} (context) must hold text, it holds "
                    f"{type(value).__name__}; map it with data.columns"
                )
            close = nearest(config.context, example.columns)
            hint = f"did you mean {close!r}?" if close else f"columns: {', '.join(example.columns) or 'none'}"
            raise DataError(f"{example.where}: there is no column {config.context!r} (context); {hint}")
        context = value
    return Drawn(asked, good, context)


def _digest(drawn: Drawn) -> bytes:
    try:
        text = json.dumps([plain(drawn.example.prompt), drawn.context])
    except (TypeError, ValueError) as error:
        raise PreftuneError(f"{drawn.where}: the prompt can't be read: {error}") from error
    return hashlib.blake2b(text.encode(), digest_size=16).digest()

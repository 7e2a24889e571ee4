"""Workings of the same problems, as models write them: each by itself, and taken over from another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Problem:
    """A question with workings.

    Attributes:
        first: one working.
        independent: others, each in its own words or by another way.
        copies: the first one again: in another costume, with other numbers, with words exchanged, with more behind it.
    """

    question: str
    answer: str
    first: str
    independent: list[str]
    copies: list[str]


_ROWS = yaml.safe_load(Path(__file__).with_name("solutions.yaml").read_text(encoding="utf-8"))
PROBLEMS: dict[str, Problem] = {name: Problem(**row) for name, row in _ROWS.items()}
HIVES, TRAIN = PROBLEMS["hives"], PROBLEMS["train"]

PARAPHRASES = (
    # The way of the first working of the train, said in other words: no copy to a measure of words.
    "We divide the stretch by how fast it goes, 210 by 84, which makes 2.5 hours or 150 minutes. Two hours past the "
    "departure the clock shows 11:40; half an hour on top of that and it shows 12:10.",
    # The first independent working of the hives, reworded.
    "Each hive is good for four candles, as three of them serve for a dozen. Ninety-six split into fours makes "
    "twenty-four, and that is the number of hives.",
)

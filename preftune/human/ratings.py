"""Ratings as they are kept, and what they say of each answer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import TypeAlias

from preftune.errors import DataError
from preftune.human.rounds import Round

Judged: TypeAlias = dict[int, dict[str, dict[str, float]]]
"""Group index → rater → answer id → score or mid-rank. A rater stands at a prompt only with all of its answers: then
no prompt's scores mix answers that one harsh rater saw with answers that he did not."""


@dataclass(frozen=True, slots=True)
class Rating:
    """One rater's word on one answer.

    Attributes:
        value: a score, or a rank with 1 for the best, as the round asks.
        where: `file:line` that it came from.
    """

    id: str
    rater: str
    value: float
    comment: str = ""
    where: str = ""


def read_ratings(folder: Path) -> list[Rating]:
    """ratings.jsonl of a round's folder; none yet is an empty list. Raises DataError at a line that is no rating."""
    path = folder / "ratings.jsonl"
    if not path.exists():
        return []
    out: list[Rating] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line:
            continue
        try:
            out.append(Rating(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{path}:{number}: no rating ({error}); remove ratings.jsonl and import the raters' files again"
            ) from error
    return out


def write_ratings(folder: Path, ratings: Iterable[Rating]) -> None:
    """Write ratings.jsonl, whole or not at all."""
    from preftune.train.folder import write_text

    # ASCII alone: a comment may hold half a surrogate pair, which no UTF-8 file can
    write_text(folder / "ratings.jsonl", "".join(json.dumps(asdict(one), allow_nan=False) + "\n" for one in ratings))


def judged(round_: Round, ratings: Iterable[Rating]) -> Judged:
    """What counts: for each prompt the raters who rated all of its answers. Ranks become mid-ranks."""
    given: dict[str, dict[str, float]] = {}
    for one in ratings:
        given.setdefault(one.rater, {})[one.id] = one.value
    out: Judged = {}
    for prompt, answers in round_.prompts.items():
        for rater, values in given.items():
            if all(answer.id in values for answer in answers):
                mine = {answer.id: values[answer.id] for answer in answers}
                out.setdefault(prompt, {})[rater] = mid_ranks(mine) if round_.human.rate == "rank" else mine
    return out


def are_ranks(values: Sequence[float]) -> bool:
    """Whether numbers are ranks of as many answers: 1, 2, …, equal ones for ties, counted on densely (1, 1, 2) or as in
    sports (1, 1, 3)."""
    different = sorted(set(values))
    dense = different == [float(n) for n in range(1, len(different) + 1)]
    return dense or all(value == 1 + sum(other < value for other in values) for value in values)


def mid_ranks(ranks: Mapping[str, float]) -> dict[str, float]:
    """Ranks whose ties share the mean of their places: 1, 1, 2 and 1, 1, 3 both become 1.5, 1.5, 3.

    So every rater gives the same sum of ranks to a prompt, however many ties there are.
    """
    values = list(ranks.values())
    return {
        name: sum(other < rank for other in values) + (sum(other == rank for other in values) + 1) / 2
        for name, rank in ranks.items()
    }


def scores(table: Judged, *, rate: str, normalize: bool) -> dict[str, float]:
    """One number per answer: the mean over its raters of

        score                       the score, or with `normalize` (score − m) / s, with the rater's own mean m and
                                    deviation s (of the population) over all that counts; 0 where s is 0
        rank r of n answers         (n − r) / (n − 1): 1 for the best, 0 for the worst

    Returns:
        Answer id → score, for the answers of every prompt that has a rater.
    """
    scale: dict[str, tuple[float, float]] = {}
    if normalize and rate == "score":
        scale = {rater: (fmean(own), pstdev(own)) for rater, own in by_rater(table).items()}
    out: dict[str, float] = {}
    for raters in table.values():
        for name in next(iter(raters.values())):
            given = []
            for rater, values in raters.items():
                value = values[name]
                if rate == "rank":
                    value = (len(values) - value) / (len(values) - 1)
                elif rater in scale:
                    mean, spread = scale[rater]
                    value = (value - mean) / spread if spread > 0.0 else 0.0
                given.append(value)
            out[name] = fmean(given)
    return out


def by_rater(table: Judged) -> dict[str, list[float]]:
    """Each rater's numbers that count, in the order of prompts and answers."""
    out: dict[str, list[float]] = {}
    for raters in table.values():
        for rater, values in raters.items():
            out.setdefault(rater, []).extend(values.values())
    return out

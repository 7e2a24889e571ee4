"""The built-in reward `judge-pick`: whether a verdict on a contest names a right answer.

`preftune.judges.contests` makes the rows. What the reward reads of one are its columns alone, so rows may also come
from a file of `preftune judge build`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from preftune.competition import Construct, Persona, parse
from preftune.judges.contests import COLUMNS, TAGS, opening
from preftune.judges.parse import Unparsed, parse_choice, parse_ranking
from preftune.rewards.call import Unscorable, completion_text

ORIGINS = 8
"""Origins that get a metric of their own, those with the most answers."""
WAYS = ("pairwise", "listwise", "competition")


@dataclass(frozen=True, slots=True)
class Asked:
    """A contest as its row's columns say.

    Attributes:
        labels: of the answers, in the order shown.
        right: those that a verdict may name.
        origins: who wrote each answer.
        verdict: how the verdict is written.
        construct: the tags of a contest inside a competition.
    """

    labels: tuple[str, ...]
    right: frozenset[str]
    origins: tuple[str, ...]
    verdict: str
    construct: Construct | None = None


@dataclass(frozen=True, slots=True)
class JudgePick:
    """1 when the verdict can be read and what it puts first is right, else 0. Rows that are no contests get no value.

    A pairwise verdict names one answer; a tie is 0. Of a ranking all answers on the first place count, and each of them
    must be right. Inside a competition the rest of the contest must be there, every tag once and in order, with one
    persona named as the winner.
    """

    can_hang = False

    def __call__(
        self, /, completions: list[Any], log_extra: Any, log_metric: Any, **columns: list[Any]
    ) -> list[float | Unscorable | None]:
        rows = len(completions)
        values: list[float | Unscorable | None] = [None] * rows
        notes: list[Any] = [None] * rows
        for row in range(rows):
            asked = read_row({name: column[row] for name, column in columns.items() if name in (*COLUMNS, TAGS)})
            if asked is None or isinstance(asked, Unscorable):
                values[row] = asked
                continue
            picked = read_pick(completion_text(completions[row]), asked)
            notes[row] = note(picked, asked)
            values[row] = notes[row]["right"]
        if any(notes):
            log_extra("pick", notes)
            for name, value in pick_metrics([one for one in notes if one]).items():
                log_metric(name, value)
        return values


def read_row(columns: Mapping[str, Any]) -> Asked | Unscorable | None:
    """The contest of a row, None where the row is none; or what is wrong with its columns."""
    if any(columns.get(name) is None for name in COLUMNS):
        return None
    labels, right, origins, verdict = (columns[name] for name in ("labels", "right", "origins", "verdict"))
    if not (_texts(labels) and _texts(right) and len(labels) == len(set(labels)) >= 2 and set(right) <= set(labels)):
        return Unscorable(
            f"found a contest with labels {str(labels)[:60]} and right {str(right)[:60]}: labels must be two or more "
            "different texts, and right some of them"
        )
    if verdict not in WAYS:
        return Unscorable(f"found a contest with verdict {str(verdict)[:40]!r}; it must be one of {', '.join(WAYS)}")
    if not (_texts(origins) and len(origins) == len(labels)):
        origins = [""] * len(labels)
    construct = _construct(labels, columns.get(TAGS)) if verdict == "competition" else None
    if isinstance(construct, Unscorable):
        return construct
    return Asked(tuple(labels), frozenset(right), tuple(origins), str(verdict), construct)


def _texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


def _construct(labels: Sequence[str], tags: Any) -> Construct | Unscorable:
    names = ("root", "result", "winner")
    if not isinstance(tags, Mapping) or not all(isinstance(tags.get(name), str) for name in names):
        return Unscorable(
            f"found a contest inside a competition whose column {TAGS!r} does not name {', '.join(names)}"
        )
    root, result, winner = (tags[name] for name in names)
    return Construct(tuple(Persona(name, "") for name in labels), root, result, winner, "", "")


def read_pick(text: str, asked: Asked) -> tuple[str, ...] | Unparsed:
    """The labels that a verdict puts first; none for a tie; or why there is no verdict."""
    if asked.construct is not None:
        return _winner(text, asked.construct)
    if asked.verdict == "pairwise":
        choice = parse_choice(text)
        return choice if isinstance(choice, Unparsed) else () if choice == "tie" else (choice,)
    places = parse_ranking(text, asked.labels)
    return places if isinstance(places, Unparsed) else places[0]


def _winner(text: str, construct: Construct) -> tuple[str, ...] | Unparsed:
    before = opening(construct, dict.fromkeys(construct.names, "…"))
    contest = parse(before + text, construct)
    if not contest.ordered or contest.leaks:
        fault = next((one for one in contest.faults if one.kind not in ("answer", "between")), None)
        return Unparsed(f"does not end the competition: {fault.message if fault else 'its tags are out of order'}")
    if contest.winner is None:
        return Unparsed(f"names no single winner: {(contest.winner_text or '')[:40]!r}")
    return (contest.winner,)


def note(picked: tuple[str, ...] | Unparsed, asked: Asked) -> dict[str, Any]:
    """What came of a verdict, as plain values for the run's samples.

    Returns:
        `right` 1 or 0; `picked`, the labels; `places`, where they stood, from 1; `of`, the number of answers; `origins`
        of all answers and `chosen`, those of the picked ones; `problem`, why nothing could be read.
    """
    labels = () if isinstance(picked, Unparsed) else picked
    places = [asked.labels.index(label) for label in labels]
    return {
        "right": float(bool(labels) and set(labels) <= asked.right), "picked": list(labels),
        "places": [place + 1 for place in places], "of": len(asked.labels), "origins": list(asked.origins),
        "chosen": [asked.origins[place] for place in places],
        "problem": f"the reply {picked.why}" if isinstance(picked, Unparsed) else "" if labels else "a tie",
    }  # fmt: skip


def pick_metrics(notes: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Whether verdicts can be read, and what sways them besides the answers.

    Returns:
        `pick_readable`: share of verdicts that name an answer. `pick_place_N`: share of these that name the answer in
        place N, one of several counting in part; of contests of all sizes, so compare it with 1 / size.
        `pick_origin_NAME`: share of the verdicts on contests with an answer by NAME that pick one of these.
    """
    every = [one for one in notes if set(one) >= {"places", "of", "origins", "chosen"}]
    named = [one for one in every if one["places"]]
    out = {"pick_readable": len(named) / len(every) if every else 0.0}
    if not named:
        return out
    for place in range(1, max(one["of"] for one in named) + 1):
        out[f"pick_place_{place}"] = fmean([(place in one["places"]) / len(one["places"]) for one in named])
    seen = Counter(origin for one in named for origin in set(one["origins"]) if origin)
    for origin, _ in seen.most_common(ORIGINS):
        taken = [float(origin in one["chosen"]) for one in named if origin in one["origins"]]
        out[f"pick_origin_{_name(origin)}"] = fmean(taken)
    return out


def _name(origin: str) -> str:
    """An origin comes from data; a metric's name holds letters, digits and a few signs."""
    return re.sub(r"[^\w.-]+", "-", origin)[:40]

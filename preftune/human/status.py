"""All rounds side by side: what was asked, rated and trained, and what people thought of each policy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from preftune.human.agreement import agree
from preftune.human.ratings import Judged, judged, read_ratings
from preftune.human.rounds import Round, State, find_rounds, open_round
from preftune.intervals import Interval, mean_interval


@dataclass(frozen=True, slots=True)
class RoundStatus:
    """One round.

    Attributes:
        prompts, answers: shown to raters; completions of one text are one answer.
        rated: prompts whose answers were all rated by someone.
        alpha: agreement of the raters, None where it can't be measured.
        score: mean over rated prompts of the mean score of the policy's completions, as raters gave it (never
            normalised), with its 95 % interval over prompts; None for ranks, whose mean is the same in every round.
    """

    number: int
    state: State
    prompts: int
    answers: int
    rated: int
    raters: int
    alpha: float | None
    score: Interval | None


def status(root: Path) -> list[RoundStatus]:
    """Every round of a root, oldest first. Raises UsageError or DataError as `open_round`."""
    return [_status(open_round(folder)) for folder in find_rounds(root)]


def _status(round_: Round) -> RoundStatus:
    ratings = read_ratings(round_.folder)
    table = judged(round_, ratings)
    return RoundStatus(
        number=round_.number,
        state=round_.state,
        prompts=len(round_.prompts),
        answers=len(round_.answers),
        rated=len(table),
        raters=len({one.rater for one in ratings}),
        alpha=agree(table, round_.human.rate).alpha,
        score=mean_score(round_, table) if table and round_.human.rate == "score" else None,
    )


def mean_score(round_: Round, table: Judged) -> Interval:
    """What people think of the policy that wrote a round's answers.

    Each prompt is one row: its completions share the prompt, so they are no independent ones. A text that came twice
    counts twice. Two rounds have different prompts and perhaps other raters; a difference is no paired one.
    """
    rows = []
    for prompt, raters in table.items():
        answers = round_.prompts[prompt]
        values = [
            fmean(given[answer.id] for given in raters.values()) for answer in answers for _ in answer.completions
        ]
        rows.append(fmean(values))
    return mean_interval(rows, binary=False)


def words(rounds: list[RoundStatus]) -> list[str]:
    """The table, as lines."""
    head = ["round", "state", "prompts", "answers", "rated", "raters", "alpha", "mean score (95 %)"]
    cells = [
        [
            str(one.number), one.state, str(one.prompts), str(one.answers), str(one.rated), str(one.raters),
            "–" if one.alpha is None else f"{one.alpha:.2f}", _score(one.score),
        ]
        for one in rounds
    ]  # fmt: skip
    widths = [max(len(row[column]) for row in (head, *cells)) for column in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *cells)
    ]


def _score(score: Interval | None) -> str:
    if score is None:
        return "–"
    return f"{score.value:.2f} [{score.low:.2f}, {score.high:.2f}]" if score.is_bounded else f"{score.value:.2f}"

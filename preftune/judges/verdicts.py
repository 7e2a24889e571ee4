"""From votes to verdicts: pure functions. A vote without a verdict counts for nothing, on neither side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean

from preftune.judges.base import Verdict, Vote

WIN, TIE, LOSS = (1.0, 0.0), (0.5, 0.5), (0.0, 1.0)
"""Scores of the first and the second of two answers."""


def majority(votes: Iterable[Vote]) -> tuple[float, float] | None:
    """What most votes of one order say, as scores of the answers in the order shown; None without a readable one.

    Without a single most frequent one it is a tie.
    """
    counts = Counter((vote.scores[0], vote.scores[1]) for vote in votes if vote.scores is not None)
    if not counts:
        return None
    most = max(counts.values())
    leading = [scores for scores, count in counts.items() if count == most]
    return leading[0] if len(leading) == 1 else TIE


def pair_outcome(votes: Sequence[Vote], orders: Sequence[tuple[int, int]]) -> float | None:
    """Score of the first answer of `orders[0]`: 1, ½ or 0; None when some order has no readable vote.

    An answer wins when it wins in every order, by the majority of that order's votes; when the orders disagree it is
    a tie. So a judge that only looks at the place says tie to everything.
    """
    said: set[float] = set()
    for order in orders:
        decision = majority(vote for vote in votes if vote.shown == order)
        if decision is None:
            return None
        said.add(decision[order.index(orders[0][0])])
    return said.pop() if len(said) == 1 else 0.5


def pairwise_verdict(
    size: int, votes: Sequence[Vote], pairs: Sequence[tuple[int, int]], orders: Sequence[Sequence[tuple[int, int]]]
) -> Verdict:
    """Win rates of `size` answers.

    Args:
        pairs: every pair of answers.
        orders: for each pair the orders that it was shown in; none for answers with equal texts, which are a tie.
    """
    won: list[list[float]] = [[] for _ in range(size)]
    failed: list[str] = [""] * size
    by_pair: dict[frozenset[int], list[Vote]] = {}
    for vote in votes:
        by_pair.setdefault(frozenset(vote.shown), []).append(vote)
    for (i, j), shown in zip(pairs, orders, strict=True):
        mine = by_pair.get(frozenset((i, j)), [])
        outcome = _oriented(pair_outcome(mine, shown), shown[0], i) if shown else 0.5
        if outcome is None:
            for answer in (i, j):
                failed[answer] = failed[answer] or _first_problem(mine)
            continue
        won[i].append(outcome)
        won[j].append(1.0 - outcome)
    scores = tuple(fmean(rates) if rates else None for rates in won)
    return Verdict(scores, _problems(scores, failed), tuple(votes))


def mean_verdict(size: int, votes: Sequence[Vote], *, together: bool = False) -> Verdict:
    """Each answer's mean over the readable votes that it was shown in: pointwise and listwise.

    Args:
        together: votes of one number are a ranking and its mirror image: where one of them is unreadable neither
            counts, or the place would no longer cancel out.
    """
    halved = {vote.number for vote in votes if vote.scores is None} if together else set[int]()
    given: list[list[float]] = [[] for _ in range(size)]
    failed: list[str] = [""] * size
    for vote in votes:
        for place, answer in enumerate(vote.shown):
            if vote.scores is not None and vote.number not in halved:
                given[answer].append(vote.scores[place])
            failed[answer] = failed[answer] or vote.problem
    scores = tuple(fmean(some) if some else None for some in given)
    return Verdict(scores, _problems(scores, failed), tuple(votes))


def _oriented(outcome: float | None, order: tuple[int, int], answer: int) -> float | None:
    return outcome if outcome is None or order[0] == answer else 1.0 - outcome


def _first_problem(votes: Iterable[Vote]) -> str:
    return next((vote.problem for vote in votes if vote.scores is None), "")


def _problems(scores: Sequence[float | None], failed: Sequence[str]) -> tuple[str, ...]:
    return tuple("" if score is not None else why for score, why in zip(scores, failed, strict=True))

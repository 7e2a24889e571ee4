"""Which openings mark the better or the worse answer: counts, a test for pairs, and what is left once stronger openings
are taken out.

For an opening o and a prompt, let D be the sum over the prompt's pairs of [better answer begins with o] − [worse answer
begins with o]. Where D > 0 the opening wins the prompt, where D < 0 it loses it. If o says nothing of the side, one is
as likely as the other, whatever the prompts are about: wins are binomial with ½ (McNemar's test, exact; Liddell 1983).

An opening that marks one side thins out all others there, so that harmless ones seem to mark the other side. Hence one
at a time: the clearest opening is taken, the pairs that it takes part in are left out, and the rest is tested again. To
mark a side an opening must do so twice: over all pairs, and over those without an opening that was found before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from preftune.curation.debias.openings import Words, ends_clause, is_answer, join
from preftune.curation.debias.table import Ints, Pairs, Table
from preftune.intervals import Interval, mean_interval

Side: TypeAlias = Literal["better", "worse"]

SAME = 0.95
"""Openings of which one has this share of the other's answers are one and the same."""
VARIANTS = 3
"""A beginning that is cut inside a clause and goes on in so few ways is proposed as these."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When an opening marks a side.

    Attributes:
        words: of an opening, at most.
        min_count: answers that begin so, at least.
        alpha: largest p-value, times the number of openings tested.
        min_effect: how far the share of prompts won is from ½, at least.
    """

    words: int
    min_count: int
    alpha: float
    min_effect: float


@dataclass(frozen=True, slots=True)
class Frequency:
    """How often answers begin so. `better`, `worse`: answers of each side; answers in the middle are in neither."""

    words: Words
    answers: int
    better: int
    worse: int

    @property
    def opening(self) -> str:
        return join(self.words)


@dataclass(frozen=True, slots=True)
class Mark:
    """An opening that marks a side.

    Attributes:
        frequency: over all answers.
        side: that it marks.
        won, lost: prompts, over all pairs.
        share: won / (won + lost), with its interval.
        left: the same as won and lost, over pairs without an opening that was found before it.
        p: the larger of the two p-values, corrected.
        opposed: share of its pairs in which the other answer begins with another word that may be an answer; then it
            may itself be the answer.
    """

    frequency: Frequency
    side: Side
    won: int
    lost: int
    share: Interval
    left: tuple[int, int]
    p: float
    opposed: float = 0.0

    @property
    def opening(self) -> str:
        return self.frequency.opening


class Counts:
    """Counts of a table's openings, by node of its tree."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.size = len(table.tree)
        self.levels = [table.tree.ancestors(table.nodes, depth + 1) for depth in range(table.words)]
        sides = table.sides
        self.answers = self._sum(np.ones(len(sides), bool))
        self.better, self.worse = self._sum(sides > 1e-9), self._sum(sides < -1e-9)

    def _sum(self, chosen: NDArray[np.bool_]) -> Ints:
        out = np.zeros(self.size, np.int64)
        for level in self.levels:
            out += np.bincount(level[chosen & (level >= 0)], minlength=self.size)
        return out

    def frequency(self, node: int) -> Frequency:
        words = self.table.tree.words(node)
        return Frequency(words, int(self.answers[node]), int(self.better[node]), int(self.worse[node]))

    def frequent(self, depth: int | None = None) -> Iterator[int]:
        """Nodes of all openings (of this many words), the most frequent first."""
        tree = self.table.tree
        for node in np.argsort(-self.answers, kind="stable").tolist():
            if node and self.answers[node] and depth in (None, tree.depth(node)):
                yield node

    def decided(self, pairs: Pairs) -> tuple[Ints, Ints]:
        """Prompts won and lost by each opening."""
        won, lost = np.zeros(self.size, np.int64), np.zeros(self.size, np.int64)
        prompts = int(pairs.prompt.max()) + 1 if len(pairs) else 0
        for level in self.levels:
            better, worse = level[pairs.better], level[pairs.worse]
            differ = better != worse  # what both begin with cancels
            keys = np.concatenate(
                [side[use] * prompts + pairs.prompt[use] for side, use in
                 ((better, differ & (better >= 0)), (worse, differ & (worse >= 0)))]
            )  # fmt: skip
            weights = np.concatenate([pairs.weight[differ & (better >= 0)], -pairs.weight[differ & (worse >= 0)]])
            if not len(keys):
                continue
            found, place = np.unique(keys, return_inverse=True)
            total = np.bincount(place, weights)
            nodes = found // prompts
            won += np.bincount(nodes[total > 1e-6], minlength=self.size)
            lost += np.bincount(nodes[total < -1e-6], minlength=self.size)
        return won, lost

    def decided_by(self, chosen: NDArray[np.bool_], pairs: Pairs) -> tuple[int, int]:
        """Prompts won and lost by some answers, whatever they begin with."""
        total = np.bincount(pairs.prompt, pairs.weight * (chosen[pairs.better] * 1.0 - chosen[pairs.worse] * 1.0))
        return int((total > 1e-6).sum()), int((total < -1e-6).sum())

    def begins(self, node: int) -> NDArray[np.bool_]:
        """Which answers begin so."""
        return np.asarray(self.levels[self.table.tree.depth(node) - 1] == node)


def find_marks(
    counts: Counts, thresholds: Thresholds, tell: Callable[[int], None] = lambda found: None
) -> tuple[list[Mark], int]:
    """The openings that mark a side, the clearest first, and how many were tested. `tell` hears how many were found.

    Of nested openings the one that tells most is taken; the shorter one where the longer has the same answers, and
    where it marks the same side by itself as well.
    """
    table = counts.table
    tested = [
        n for n in range(1, counts.size)
        if counts.answers[n] >= thresholds.min_count and table.tree.depth(n) <= thresholds.words
    ]  # fmt: skip
    pairs = table.pairs
    every = counts.decided(pairs)
    plain = dict(_marking(tested, *every, thresholds))
    found: dict[int, Mark] = {}
    while plain and len(pairs):
        left = counts.decided(pairs)
        same = [n for n in plain if (every[0][n] > every[1][n]) == (left[0][n] > left[1][n])]
        node, p = next(_marking(same, *left, thresholds, tests=len(tested)), (None, 1.0))
        if node is None:
            break
        if not _stands_alone(counts, node, set(plain), every, thresholds, len(tested)):
            del plain[node]  # a longer one is meant, and has its turn
            continue
        # What is left of one that was parted into its variants stands for itself.
        for part in [n for n in _shape(counts, node) if n not in found] or [node]:
            decided = (int(left[0][part]), int(left[1][part]))
            mark = _mark(counts, part, every, decided, max(p, plain.get(part, p)))
            for other in [n for n in found if _inside(table, n, part) and found[n].side == mark.side]:
                del found[other]  # the shorter one takes it along
            found[part] = mark
            taken = counts.begins(part)
            pairs = pairs.where(~(taken[pairs.better] | taken[pairs.worse]))
        tell(len(found))
    return list(found.values()), len(tested)


def mark_of(counts: Counts, words: Words) -> Mark | None:
    """The evidence on an opening that was asked for, whatever it is; None where no answer begins so."""
    node = counts.table.tree.find(words)
    if node is None or len(words) > counts.table.words:
        return None
    every = counts.decided(counts.table.pairs)
    decided = (int(every[0][node]), int(every[1][node]))
    return _mark(counts, node, every, decided, sign_test(*decided))


def sign_test(won: int, lost: int) -> float:
    """Two-sided p-value of so uneven a split or a more uneven one under ½: exact."""
    from scipy.stats import binom

    n = won + lost
    return 1.0 if n == 0 else min(1.0, 2.0 * float(binom.cdf(min(won, lost), n, 0.5)))


def _marking(
    nodes: Sequence[int], won: Ints, lost: Ints, thresholds: Thresholds, tests: int | None = None
) -> Iterator[tuple[int, float]]:
    """The openings that mark a side, the clearest first, with their p-values times the number of tests (Bonferroni)."""
    chosen = np.array(nodes, np.int64)
    total = won[chosen] + lost[chosen]
    distance = np.abs(won[chosen] - lost[chosen])
    large = (total > 0) & (distance / np.maximum(total, 1) >= 2 * thresholds.min_effect)
    # Normal scores put them in order, the exact test decides.
    for place in np.lexsort((chosen, -distance / np.sqrt(np.maximum(total, 1)))).tolist():
        if not large[place]:
            continue
        node = int(chosen[place])
        p = (tests or len(nodes)) * sign_test(int(won[node]), int(lost[node]))
        if p > thresholds.alpha:
            return
        yield node, p


def _stands_alone(
    counts: Counts, node: int, plain: set[int], every: tuple[Ints, Ints], thresholds: Thresholds, tests: int
) -> bool:
    """Whether an opening marks its side by itself, and not through a longer one alone.

    A longer one adds to it where it tells more than the rest of the opening's answers do (Fisher's exact test). If that
    rest marks nothing, the longer one is meant.
    """
    from scipy.stats import fisher_exact

    table = counts.table
    depth = table.tree.depth(node)
    if depth >= min(thresholds.words, table.words):
        return True
    sign = 1 if every[0][node] > every[1][node] else -1
    begins, level = counts.begins(node), counts.levels[depth]
    children = [n for n in np.unique(level[begins & (level >= 0)]).tolist() if n in plain]
    adding = []
    for child in children:
        won, lost = int(every[0][child]), int(every[1][child])
        rest = counts.decided_by(begins & (level != child), table.pairs)
        more = sign * (won * sum(rest) - rest[0] * (won + lost)) > 0
        if more and float(fisher_exact([[won, lost], rest]).pvalue) * len(children) <= thresholds.alpha:
            adding.append(child)
    if not adding:
        return True
    won, lost = counts.decided_by(begins & ~np.isin(level, adding), table.pairs)
    effect = sign * (won - lost) / max(won + lost, 1) / 2
    return effect >= thresholds.min_effect and tests * sign_test(won, lost) <= thresholds.alpha


def _shape(counts: Counts, node: int) -> list[int]:
    """The opening as it is proposed: the shortest with the same answers, but for one that is cut inside a clause and
    goes on in a few ways to its end."""
    tree = counts.table.tree
    while tree.depth(node) > 1 and counts.answers[node] >= SAME * counts.answers[tree.parent(node)]:
        node = tree.parent(node)
    if ends_clause(tree.words(node)):
        return [node]
    return _clauses(counts, node) or [node]


def _clauses(counts: Counts, node: int) -> list[int]:
    """The few openings that nearly all answers of this one go on to, each with a clause's end; empty without."""
    table = counts.table
    depth = table.tree.depth(node)
    if depth == table.words:
        return []
    level = counts.levels[depth]
    inside = level[counts.begins(node) & (level >= 0)]
    nodes, sizes = np.unique(inside, return_counts=True)
    order = np.argsort(-sizes, kind="stable")
    enough = int(np.searchsorted(np.cumsum(sizes[order]), SAME * counts.answers[node])) + 1
    if enough > VARIANTS or not len(nodes) or sizes.sum() < SAME * counts.answers[node]:
        return []
    out: list[int] = []
    for child in nodes[order][:enough].tolist():
        further = [child] if ends_clause(table.tree.words(child)) else _clauses(counts, child)
        if not further:
            return []
        out += further
    return out if len(out) <= VARIANTS else []


def _mark(counts: Counts, node: int, every: tuple[Ints, Ints], left: tuple[int, int], p: float) -> Mark:
    won, lost = (int(side[node]) for side in every)
    share = mean_interval([1.0] * won + [0.0] * lost) if won + lost else Interval(0.5, -math.inf, math.inf, 0)
    words = counts.table.tree.words(node)
    opposed = _opposed(counts, node) if is_answer(words) else 0.0
    side: Side = "better" if won >= lost else "worse"
    return Mark(counts.frequency(node), side, won, lost, share, left, min(p, 1.0), opposed)


def _opposed(counts: Counts, node: int) -> float:
    """Of the pairs with this opening on one side, the share whose other side begins with another word that may be an
    answer."""
    begins, tree, first = counts.begins(node), counts.table.tree, counts.levels[0]
    pairs = counts.table.pairs
    mine = begins[pairs.better] != begins[pairs.worse]
    others = first[np.where(begins[pairs.better], pairs.worse, pairs.better)[mine]]
    own = int(tree.ancestors(np.array([node]), 1)[0])
    known = {int(n): n != own and is_answer(tree.words(int(n))) for n in np.unique(others) if n > 0}
    return float(np.mean([known.get(int(n), False) for n in others])) if len(others) else 0.0


def _inside(table: Table, node: int, outer: int) -> bool:
    """Whether an opening begins with another, shorter one."""
    words, others = table.tree.words(node), table.tree.words(outer)
    return len(words) > len(others) and words[: len(others)] == others

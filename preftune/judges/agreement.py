"""How well a judge agrees with known truth, on pairs of which the better answer is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean
from typing import Any, TypeAlias

from preftune.intervals import Interval, mean_interval
from preftune.judges.base import Usage, Vote
from preftune.judges.verdicts import majority

SHOWN = 30
"""Sources that are put into words; `Agreement.to_json` has all."""


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """A pair of answers to one prompt and what the judge says of it.

    Attributes:
        where: origin, as `file:line`.
        prompt: equal for pairs of one prompt.
        better, worse: places of the two answers in the row; `scores` is for them, in this order, None where the judge
            gave no verdict, and `problem` says why.
        lengths: of the two, in characters.
        sources: who wrote them, "" where the data does not say.
    """

    where: str
    prompt: int
    better: int
    worse: int
    scores: tuple[float, float] | None
    problem: str
    lengths: tuple[int, int]
    sources: tuple[str, str] = ("", "")

    @property
    def right(self) -> float | None:
        """1 when the judge prefers the better answer, ½ for a tie, 0 when it prefers the worse; None: no verdict."""
        if self.scores is None:
            return None
        return 0.5 if self.scores[0] == self.scores[1] else float(self.scores[0] > self.scores[1])


@dataclass(frozen=True, slots=True)
class Asked:
    """The votes of one question, and its prompt's number."""

    prompt: int
    votes: tuple[Vote, ...]


PairFilter: TypeAlias = Callable[[JudgedPair], bool]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Measures of one judged data set. Each `Interval` has its 95 % interval; pairs (votes) of one prompt are averaged
    first, so its n is prompts.

    Attributes:
        pairs, prompts: how many. judged: pairs with a verdict; ties and abstained: pairs with a tie, and without one.
        without_pairs: prompts that were left out because the data calls all their answers equally good.
        accuracy: share of judged pairs in which the judge prefers the better answer, a tie counting ½.
        decided: the same without ties.
        kappa: Cohen's, over judged pairs, each counted in both orientations: (p − e) / (1 − e) with p the share that
            is right, t that of ties, e = (1 − t) / 2 what chance would give. 1 perfect, 0 chance, a tie is wrong.
            None without a judged pair.
        follows_place: pairwise in both orders: share of pairs with a decision in each order in which both name the
            same place, so that the place decided and not the answer.
        first_place: mean score of the answer that was shown first (the better of two scores 1), ½ without a preference
            for a place. Pairwise and listwise.
        consistency: share of equal ones among pairs of votes on the same question in the same order; with several
            votes.
        by_source: "A over B" → accuracy on pairs whose better answer was written by A and the worse by B.
        by_length: "longer", "shorter", "equal" → accuracy on pairs whose better answer has more characters, and so on.
        usage: replies, requests, tokens. cost: of the requests, None without prices.
        complaint: how many replies hold no verdict and an example, "" when all do.
    """

    pairs: int
    prompts: int
    judged: int
    ties: int
    abstained: int
    without_pairs: int
    accuracy: Interval | None
    decided: Interval | None
    kappa: float | None
    follows_place: Interval | None
    first_place: Interval | None
    consistency: Interval | None
    by_source: Mapping[str, Interval]
    by_length: Mapping[str, Interval]
    usage: Usage
    cost: float | None
    complaint: str

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        out: dict[str, Any] = {}
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if isinstance(value, Interval | Usage):
                value = value.to_json()
            elif isinstance(value, Mapping):
                value = {key: inner.to_json() for key, inner in value.items()}
            out[name] = value
        return out

    def __str__(self) -> str:
        """The measures in words, one per line."""
        lines = [f"{self.pairs} pairs of {self.prompts} prompts: {self.ties} ties, {self.abstained} without a verdict"]
        if self.without_pairs:
            lines.append(f"{self.without_pairs} prompts left out: all their answers are equally good")
        for text, value in (
            ("agreement with the truth (a tie counts ½)", self.accuracy),
            ("agreement without ties", self.decided),
        ):
            if value is not None:
                lines.append(f"{text}: {_words(value)}")
        if self.kappa is not None:
            lines.append(f"Cohen's kappa: {self.kappa:+.3f}")
        lines += [f"  better answer {name}: {_words(value)}" for name, value in self.by_length.items()]
        most = sorted(self.by_source.items(), key=lambda item: -item[1].n)
        lines += [f"  {name}: {_words(value)}" for name, value in most[:SHOWN]]
        lines += [f"  … and {len(most) - SHOWN} more in the summary"] if len(most) > SHOWN else []
        for text, value in (
            ("the verdict follows the place, not the answer", self.follows_place),
            ("mean score of the place shown first (½: no preference)", self.first_place),
            ("votes that agree with each other", self.consistency),
        ):
            if value is not None:
                lines.append(f"{text}: {_words(value)}")
        lines.append(usage_words(self.usage, self.cost))
        return "\n".join(lines + ([self.complaint] if self.complaint else []))


def usage_words(usage: Usage, cost: float | None) -> str:
    """Requests, tokens and cost in one line."""
    text = f"{usage.replies} replies: {usage.requests} asked ({usage.input_tokens:,} tokens in, "
    text += f"{usage.output_tokens:,} out), {usage.cached} from the cache"
    if usage.uncounted:
        text += f"; {usage.uncounted} came without token counts"
    if cost is not None:
        text += f"; cost {'at least ' if usage.uncounted else ''}{cost:.4f}"
    return text


def measure(
    pairs: Sequence[JudgedPair],
    asked: Sequence[Asked],
    *,
    without_pairs: int = 0,
    usage: Usage | None = None,
    cost: float | None = None,
    complaint: str = "",
) -> Agreement:
    """Measure judged pairs against the truth.

    Args:
        asked: the votes behind them, for the measures of place and consistency.

    Raises:
        ValueError: no pairs.
    """
    if not pairs:
        raise ValueError("there are no judged pairs to measure")
    rights = [pair.right for pair in pairs if pair.right is not None]
    # a dict keeps the order of appearance
    authors = dict.fromkeys(pair.sources for pair in pairs if all(pair.sources))
    by_source = {f"{a} over {b}": _accuracy(pairs, _written_by(a, b)) for a, b in authors}
    lengths: dict[str, PairFilter] = {
        "longer": lambda pair: pair.lengths[0] > pair.lengths[1],
        "shorter": lambda pair: pair.lengths[0] < pair.lengths[1],
        "equal": lambda pair: pair.lengths[0] == pair.lengths[1],
    }
    by_length = {name: _accuracy(pairs, keep) for name, keep in lengths.items()}
    return Agreement(
        pairs=len(pairs),
        prompts=len({pair.prompt for pair in pairs}),
        judged=len(rights),
        ties=rights.count(0.5),
        abstained=len(pairs) - len(rights),
        without_pairs=without_pairs,
        accuracy=_accuracy(pairs),
        decided=_accuracy(pairs, lambda pair: pair.right != 0.5),
        kappa=kappa(rights),
        follows_place=_share((one.prompt, value) for one in asked if (value := _follows(one.votes)) is not None),
        first_place=_share((one.prompt, value) for one in asked for value in _firsts(one.votes)),
        consistency=_share((one.prompt, value) for one in asked for value in _repeats(one.votes)),
        by_source={name: value for name, value in by_source.items() if value is not None},
        by_length={name: value for name, value in by_length.items() if value is not None},
        usage=usage or Usage(),
        cost=cost,
        complaint=complaint,
    )


def kappa(rights: Sequence[float]) -> float | None:
    """Cohen's kappa of a judge (first, second, tie) with the truth (first, second), each pair in both orientations.

    Counting both makes it independent of the order that the data happens to have: the truth is then first in half of
    the cases, and so is the judge in half of those that are no tie. With p right and t ties, chance would give
    e = ½·(1 − t)/2 + ½·(1 − t)/2.

    References:
        Cohen (1960), "A coefficient of agreement for nominal scales", eq. 1.
    """
    if not rights:
        return None
    right, tie = rights.count(1.0) / len(rights), rights.count(0.5) / len(rights)
    chance = (1 - tie) / 2
    return (right - chance) / (1 - chance)


def _written_by(better: str, worse: str) -> PairFilter:
    return lambda pair: pair.sources == (better, worse)


def _accuracy(pairs: Sequence[JudgedPair], keep: PairFilter = lambda pair: True) -> Interval | None:
    return _share((pair.prompt, pair.right) for pair in pairs if pair.right is not None and keep(pair))


def _follows(votes: Sequence[Vote]) -> float | None:
    """1 when both orders of a pair name the same place; None unless both have a decision, which may be a tie."""
    if len(votes) < 2 or len(votes[0].shown) != 2:
        return None
    order = votes[0].shown
    one = majority(vote for vote in votes if vote.shown == order)
    other = majority(vote for vote in votes if vote.shown == order[::-1])
    if one is None or other is None:
        return None
    return float(one == other and one[0] != one[1])


def _firsts(votes: Iterable[Vote]) -> list[float]:
    return [vote.scores[0] for vote in votes if vote.scores is not None and len(vote.shown) > 1]


def _repeats(votes: Sequence[Vote]) -> list[float]:
    """Whether two readable votes on the same answers in the same order are equal, for every two of them."""
    by_order: dict[tuple[int, ...], list[tuple[float, ...]]] = {}
    for vote in votes:
        if vote.scores is not None:
            by_order.setdefault(vote.shown, []).append(vote.scores)
    return [float(a == b) for some in by_order.values() for a, b in combinations(some, 2)]


def _share(values: Iterable[tuple[int, float]]) -> Interval | None:
    """Mean of values in [0, 1], each prompt's averaged first: answers to one prompt depend on each other. None without
    any. The ends of a t interval may lie outside and are cut."""
    found: dict[int, list[float]] = {}
    for prompt, value in values:
        found.setdefault(prompt, []).append(value)
    if not found:
        return None
    interval = mean_interval([fmean(some) for some in found.values()])
    if not interval.is_bounded:
        return interval
    return replace(interval, low=max(0.0, interval.low), high=min(1.0, interval.high))


def _words(value: Interval) -> str:
    if math.isinf(value.low):
        return f"{value.value:.3f} (n = {value.n}, too little spread for an interval)"
    return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}] (n = {value.n})"

"""The pairs of one prompt, and what becomes of each."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product

from preftune.curation.near import Shingled, near_pairs
from preftune.curation.pairs.config import PairsConfig
from preftune.curation.pairs.read import Answer, Answered
from preftune.errors import DataError

UNORDERED = frozenset({"tie", "tier not named", "the data disagree"})
"""Reasons for which two answers make no pair at all: none of them is better. All other reasons leave a pair out."""


@dataclass(slots=True)
class Candidate:
    """Two answers to a prompt.

    Attributes:
        chosen, rejected: the better and the worse one. In a tie: the first and the second of the row.
        margin: None without margins, and where neither is better.
        similarity: Jaccard similarity of their texts; None where neither is better.
        why: why it is left out; empty for a pair.
        against: the data's own ranks or scores say that `rejected` is the better one.
        like: the pair that it is like, where that is why it is left out.
    """

    chosen: Answer
    rejected: Answer
    margin: float | None = None
    similarity: float | None = None
    why: str = ""
    against: bool = False
    like: Candidate | None = None

    @property
    def tiers(self) -> tuple[str, str]:
        return self.chosen.tier, self.rejected.tier


class Chooser:
    """Makes the candidates of prompts, one prompt after another.

    Attributes:
        unseen: of `chosen_tiers` and `rejected_tiers`, those of which no answer has been seen.
        alike: nearly equal answers of the last prompt that had pairs, but not equal ones: both, and their similarity.
    """

    def __init__(self, config: PairsConfig) -> None:
        self._config = config
        self._rng = random.Random(f"pairs {config.seed}")
        self.unseen = {*config.chosen_tiers, *config.rejected_tiers}
        self.alike: list[tuple[Answer, Answer, float]] = []

    def candidates(self, group: Answered) -> list[Candidate]:
        """Every two answers of which one could be better, with what becomes of them but for caps.

        Raises:
            DataError: the data do not say which answer is better; a tie, under `ties: error`.
        """
        found = list(self._product(group) if self._config.is_product else self._by_standing(group))
        pairs = [one for one in found if not one.why]
        places = self._places(group) if self._config.margin == "places" else {}
        for one in pairs:
            self._measure(one, places)
        self._leave_out(group, pairs)
        return found

    def within_cap(self, pairs: Sequence[Candidate], room: int) -> list[Candidate]:
        """Those of a prompt's pairs that a cap keeps, in an order of no meaning."""
        drawn = list(pairs)
        self._rng.shuffle(drawn)
        if self._config.prefer == "widest":
            return sorted(drawn, key=lambda one: -(one.margin or 0.0))[:room]
        turns: dict[tuple[str, str], int] = {}
        placed: list[tuple[int, int]] = []
        for place, one in enumerate(drawn):
            turns[one.tiers] = turns.get(one.tiers, -1) + 1
            placed.append((turns[one.tiers], place))
        return [drawn[place] for _, place in sorted(placed)][:room]

    # ----------------------------------------------------------------------------------------------- which is better

    def _product(self, group: Answered) -> Iterator[Candidate]:
        """Answers of the chosen tiers with those of the rejected ones, whatever else the data say."""
        sides: list[list[Answer]] = []
        for tiers in (self._config.chosen_tiers, self._config.rejected_tiers):
            side = [answer for answer in group.answers if any(self._is_of(answer, tier) for tier in tiers)]
            self.unseen -= {tier for tier in tiers if any(self._is_of(answer, tier) for answer in group.answers)}
            sides.append(side)
        for chosen, rejected in product(*sides):
            one = Candidate(chosen, rejected)
            if chosen.grade is not None and rejected.grade is not None:
                one.against = chosen.grade < rejected.grade
            yield self._agreed(one)

    def _by_standing(self, group: Answered) -> Iterator[Candidate]:
        for first, second in combinations(group.answers, 2):
            better, worse = self._standing(first), self._standing(second)
            if better is None or worse is None:
                yield Candidate(first, second, why="tier not named")
                continue
            distance = better - worse
            limit = 0.0 if self._config.tiers else self._config.tie_distance
            if abs(distance) <= limit:
                if self._config.ties == "error":
                    raise DataError(
                        f"{group.where}: answers {first.place} and {second.place} ({first.tier} and {second.tier}) are "
                        "a tie; to leave ties out set ties: drop"
                    )
                yield Candidate(first, second, why="tie")
            else:
                one = Candidate(first, second) if distance > 0 else Candidate(second, first)
                if self._config.tiers and one.chosen.grade is not None and one.rejected.grade is not None:
                    one.against = one.chosen.grade < one.rejected.grade
                yield self._agreed(one)

    def _agreed(self, one: Candidate) -> Candidate:
        if self._config.agree:
            chosen, rejected = self._grade(one.chosen), self._grade(one.rejected)
            if chosen - rejected <= self._config.tie_distance:
                one.why = "the data disagree"
        return one

    def _standing(self, answer: Answer) -> float | None:
        """How good an answer is taken to be, higher is better; None for one that takes no part."""
        if not self._config.tiers:
            return self._grade(answer)
        rank = self._config.tiers.get(answer.tier)
        return None if rank is None else -rank

    def _known(self, answer: Answer) -> float | None:
        """The standing, None where nothing says it."""
        return None if answer.grade is None and not self._config.tiers else self._standing(answer)

    def _grade(self, answer: Answer) -> float:
        if answer.grade is None:
            raise DataError(
                f"{answer.where}: the row does not say how good its answers are; map a rank or score with "
                "data.responses (or a label with data.columns), or give the tiers' ranks: --tiers '{human: 1, weak: 2}'"
            )
        return answer.grade

    def _is_of(self, answer: Answer, tier: str | float) -> bool:
        if isinstance(tier, str):
            return answer.tier == tier
        rank = self._config.tiers.get(answer.tier) if self._config.tiers else None
        if rank is None and answer.grade is not None and not self._config.tiers:
            rank = -answer.grade
        return rank == tier

    # ----------------------------------------------------------------------------------------------- what is left out

    def _places(self, group: Answered) -> dict[int, int]:
        """Answer → the place of its standing among the prompt's different ones, from 0 for the worst."""
        standings = {id(answer): self._known(answer) for answer in group.answers}
        levels = sorted({standing for standing in standings.values() if standing is not None})
        return {key: levels.index(standing) for key, standing in standings.items() if standing is not None}

    def _measure(self, one: Candidate, places: dict[int, int]) -> None:
        if self._config.margin == "none":
            return
        chosen: float | None
        rejected: float | None
        if self._config.margin == "places":
            chosen, rejected = places.get(id(one.chosen)), places.get(id(one.rejected))
        else:
            chosen, rejected = self._known(one.chosen), self._known(one.rejected)
        if chosen is None or rejected is None:
            unknown = one.chosen if chosen is None else one.rejected
            raise DataError(
                f"{unknown.where}: an answer of {unknown.tier} has neither a rank nor a score, so its pairs have no "
                "margin; give the tiers' ranks (--tiers '{human: 1, weak: 2}'), or set margin: none"
            )
        one.margin = max(0.0, self._config.margin_scale * (chosen - rejected))

    def _leave_out(self, group: Answered, pairs: Sequence[Candidate]) -> None:
        """Sides that are too alike or too unlike in length, and pairs that another one of the prompt is like."""
        self.alike = []
        if not pairs:
            return
        answers = group.answers
        texts = [answer.text for answer in answers]
        ready = {id(answer): Shingled(answer.text, self._config.near) for answer in answers}
        near = near_pairs(texts, self._config.near)
        self.alike = [(answers[i], answers[j], how) for i, j, how in near if texts[i].split() != texts[j].split()]
        like = _likeness(texts, near)
        group_of = {id(answer): like[place] for place, answer in enumerate(answers)}
        seen: dict[tuple[int, int], Candidate] = {}
        for one in pairs:
            one.similarity = ready[id(one.chosen)].similarity(ready[id(one.rejected)])
            one.why = self._too_close(one) or self._too_unlike(one)
            if one.why:
                continue
            key = group_of[id(one.chosen)], group_of[id(one.rejected)]
            if key in seen:
                one.why, one.like = "like another pair", seen[key]
            else:
                seen[key] = one

    def _too_close(self, one: Candidate) -> str:
        if one.chosen.text.split() == one.rejected.text.split():
            return "equal"
        threshold = self._config.near.threshold
        near = threshold is not None and one.similarity is not None and one.similarity >= threshold
        return "nearly equal" if near else ""

    def _too_unlike(self, one: Candidate) -> str:
        most = self._config.max_length_ratio
        sizes = sorted((len(one.chosen.text), len(one.rejected.text)))
        return "length ratio" if most is not None and sizes[1] > most * sizes[0] else ""


def _likeness(texts: Sequence[str], near: Sequence[tuple[int, int, float]]) -> list[int]:
    """Answer → the first one that it is equal or near to (each to a first one, not by a chain of others)."""
    first: dict[tuple[str, ...], int] = {}
    out = [first.setdefault(tuple(text.split()), place) for place, text in enumerate(texts)]
    leaders: set[int] = set()
    earlier: dict[int, list[int]] = {}
    for i, j, _ in near:
        earlier.setdefault(j, []).append(i)
    for place in range(len(texts)):
        if out[place] != place:
            out[place] = out[out[place]]
            continue
        found = [i for i in earlier.get(place, ()) if i in leaders]
        if found:
            out[place] = min(found)
        else:
            leaders.add(place)
    return out

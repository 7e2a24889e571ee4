"""Contests: one question, several answers of known worth and different origin, and a judge who is to name the best.

    answers of all sources ──gather──▶ Pool per question ──contests──▶ Contest ──as_row──▶ prompt row, or a Question

A judge that learns from contests must find nothing in them but the answers: the places of right ones are balanced, who
wrote an answer is not shown, and no two answers of a contest have the same text.
"""

from __future__ import annotations

import random
import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from preftune.competition import Construct
from preftune.competition import parse as parse_competition
from preftune.config import ContestConfig, SourceConfig
from preftune.errors import DataError
from preftune.judges.base import Question
from preftune.judges.prompts import LABELS, listwise_prompt, pairwise_prompt
from preftune.judges.rubrics import Rubric, read_rubric
from preftune.records import Content, Example, Message

COLUMNS = ("question", "labels", "right", "origins", "scores", "verdict")
"""What a contest's row says of it: the question's text; of each answer, in the order shown, its label, who wrote it and
how good it is; the labels of the right ones; and how the verdict is asked for."""
TAGS = "tags"
"""Column of contests inside a competition: the names of its elements."""
DRAWS = 10
"""Draws per wanted contest before a question is taken to have no other."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An answer that may take part. `score`: None where nobody knows yet how good it is."""

    content: Content
    score: float | None
    origin: str
    where: str


@dataclass(frozen=True, slots=True)
class Pool:
    """A question and every answer to it, from all sources. `columns`: of its rows, the first where they differ."""

    prompt: Content
    candidates: tuple[Candidate, ...]
    columns: Mapping[str, Any]
    where: str


@dataclass(frozen=True, slots=True)
class Contest:
    """Answers in the order shown. `right`: for each whether a verdict may name it; `columns`: the question's own."""

    prompt: Content
    candidates: tuple[Candidate, ...]
    right: tuple[bool, ...]
    where: str
    columns: tuple[str, ...] = ()

    @property
    def chance(self) -> float:
        """The share of blind verdicts that would be right."""
        return sum(self.right) / len(self.right)

    def question(self) -> Question:
        """What a judge is asked."""
        return Question(self.prompt, tuple(one.content for one in self.candidates), where=self.where)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A question or an answer that no contest was made of; `why` goes on after "where: "."""

    where: str
    question: str
    why: str


@dataclass(frozen=True, slots=True)
class Contests:
    """What was made of the pools, and what was not."""

    contests: tuple[Contest, ...]
    left_out: tuple[LeftOut, ...]

    def __str__(self) -> str:
        """In words, for a run's notes."""
        questions = len({key_of(contest.prompt) for contest in self.contests})
        text = f"{len(self.contests)} contests of {questions} questions"
        if self.contests:
            chance = sum(contest.chance for contest in self.contests) / len(self.contests)
            text += f"; a blind verdict is right in {chance:.0%} of them"
        counts = Counter(one.why for one in self.left_out)
        return text + "".join(f"; left out: {count}, as {why}" for why, count in counts.most_common())


# --- questions ------------------------------------------------------------------------------------------------


def readable(content: Content) -> str:
    """A prompt as one text, without system messages: those say how to answer, not what is asked."""
    if isinstance(content, str):
        return content
    turns = [turn for turn in content if turn.role != "system"]
    return turns[0].content if len(turns) == 1 else "\n".join(f"{turn.role}: {turn.content}" for turn in turns)


def key_of(content: Content) -> str:
    """Equal for prompts that ask the same: their text but for white space and Unicode's ways to write one letter."""
    return _normal(readable(content))


def is_contest(row: Example) -> bool:
    """Whether a row is a contest: its columns say so, also when it comes from a file."""
    return all(name in row.columns for name in COLUMNS)


def question_of(row: Example) -> Hashable:
    """What tells rows on one question: a contest's own question, else the prompt."""
    return _normal(str(row.columns["question"])) if is_contest(row) else key_of(row.prompt)


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


# --- pools ----------------------------------------------------------------------------------------------------


def gather(sources: Iterable[tuple[SourceConfig, Sequence[Example]]], *, scored: bool = True) -> list[Pool]:
    """Answers of all sources, put together by question, in the order of the sources and their rows.

    Args:
        scored: the rows must say how good their answers are.

    Raises:
        DataError: a row without an answer, or without scores where they are wanted.
    """
    found: dict[str, tuple[Example, list[Candidate], dict[str, Any]]] = {}
    for source, rows in sources:
        file = origin_of(source.path)
        for row in rows:
            _check(row, scored)
            _, candidates, columns = found.setdefault(key_of(row.prompt), (row, [], {}))
            for name, value in row.columns.items():
                columns.setdefault(name, value)
            names = row.sources or ("",) * len(row.completions)
            scores: Sequence[float | None] = row.scores or [None] * len(row.completions)
            candidates += [
                Candidate(content, score, name or file, row.where)
                for content, score, name in zip(row.completions, scores, names, strict=True)
            ]
    return [Pool(first.prompt, tuple(some), columns, first.where) for first, some, columns in found.values()]


def origin_of(path: str) -> str:
    """Who wrote the answers of a source whose rows do not say: its file's name; of collected answers the stage's."""
    file = PurePath(path)
    return (file.parent.name or "collected") if file.stem.startswith("collected") else file.stem or path


def _check(row: Example, scored: bool) -> None:
    if not row.prompt:
        raise DataError(f"{row.where}: a row of the text format asks no question; map a prompt column")
    if not row.completions:
        raise DataError(f"{row.where}: the row has no answer; map a completion, chosen and rejected, or responses")
    if scored and not row.scores:
        raise DataError(
            f"{row.where}: the row does not say how good its answers are; map a label, chosen and rejected, or "
            "responses with scores (data.columns, data.responses)"
        )


# --- contests -------------------------------------------------------------------------------------------------


def contests(pools: Sequence[Pool], config: ContestConfig, seed: int, construct: Construct | None = None) -> Contests:
    """Up to `per_prompt` contests of each question, all of `size` different answers.

    As few of them are right as the wrong ones allow, mostly one. Which answers meet depends on the question and the
    seed alone. Places are balanced over all contests: each holds a right answer as often as any other, one more or
    less.

    Args:
        construct: the competition, for that form.

    Raises:
        DataError: no contest can be made at all.
    """
    made: list[Contest] = []
    left: list[LeftOut] = []
    places = _Places(random.Random(f"{seed}/places"))
    for pool in pools:
        candidates, out = _usable(pool, construct if config.form == "competition" else None)
        left += out
        known = [one.score for one in candidates if one.score is not None]
        bar = config.right if config.right is not None else max(known, default=0.0)
        right = [n for n, one in enumerate(candidates) if one.score is not None and one.score >= bar]
        wrong = [n for n, one in enumerate(candidates) if one.score is not None and one.score < bar]
        size = size_of(config, construct)
        rng = random.Random(f"{seed}/contest/{key_of(pool.prompt)}")
        drawn = _drawn(rng, candidates, right, wrong, size, config)
        if not drawn:
            left.append(LeftOut(pool.where, readable(pool.prompt), _why(candidates, right, wrong, size, config)))
        for number, members in enumerate(drawn, 1):
            order = places.order(members, frozenset(right))
            where = pool.where if len(drawn) == 1 else f"{pool.where}, contest {number}"
            chosen = tuple(candidates[n] for n in order)
            made.append(Contest(pool.prompt, chosen, tuple(n in right for n in order), where, tuple(pool.columns)))
    found = Contests(tuple(made), tuple(left))
    if not made:
        where = pools[0].where if pools else "the data"
        raise DataError(f"{where}: no contest can be made of the {len(pools)} questions: {found}")
    return found


def size_of(config: ContestConfig, construct: Construct | None) -> int:
    """Answers of a contest."""
    if config.form == "competition" and construct is not None:
        return len(construct.names)
    return config.size or 2


def _usable(pool: Pool, construct: Construct | None) -> tuple[list[Candidate], list[LeftOut]]:
    """Each different text once, by whoever wrote it first; and what can't take part."""
    question = readable(pool.prompt)
    by_text: dict[str, list[Candidate]] = {}
    left: list[LeftOut] = []
    if construct is not None and parse_competition(question, construct).has_tags:
        return [], [LeftOut(pool.where, question, "the question holds a tag of the competition")]
    for one in pool.candidates:
        if construct is not None and parse_competition(written(one.content), construct).has_tags:
            left.append(LeftOut(one.where, question, "the answer holds a tag of the competition"))
            continue
        by_text.setdefault(_normal(written(one.content)), []).append(one)
    usable = []
    for same in by_text.values():
        if len({one.score for one in same}) > 1:
            left.append(LeftOut(same[0].where, question, "equal answers have different scores"))
            continue
        usable.append(same[0])
    return usable, left


def written(content: Content) -> str:
    """An answer as one text: what the assistant says in it."""
    if isinstance(content, str):
        return content
    return "\n".join(turn.content for turn in content if turn.role == "assistant")


def _drawn(
    rng: random.Random, candidates: Sequence[Candidate], right: Sequence[int], wrong: Sequence[int], size: int,
    config: ContestConfig,
) -> list[tuple[int, ...]]:  # fmt: skip
    """Different sets of members. Each right answer gets its turn as the first one, so a set is found if there is any:
    with one right answer fixed, taking wrong ones of unused origins greedily uses as many origins as there are."""
    found: dict[frozenset[int], tuple[int, ...]] = {}
    if not right or not wrong:
        return []
    turns = rng.sample(right, len(right))
    for draw in range(max(len(turns), DRAWS * config.per_prompt)):
        first = turns[draw % len(turns)]
        others = [n for n in right if n != first]
        members = [first]
        for n in [*rng.sample(wrong, len(wrong)), *rng.sample(others, len(others))]:
            taken = {candidates[m].origin for m in members}
            if len(members) < size and not (config.origins == "different" and candidates[n].origin in taken):
                members.append(n)
        if len(members) == size and any(n in wrong for n in members):
            found.setdefault(frozenset(members), tuple(members))
        if len(found) == config.per_prompt:
            break
    return list(found.values())


def _why(
    candidates: Sequence[Candidate], right: Sequence[int], wrong: Sequence[int], size: int, config: ContestConfig
) -> str:
    if not candidates:
        return "no answer can take part"
    if not right:
        return "no answer is right"
    if not wrong:
        return "all its answers are equally good"
    if len(right) + len(wrong) < size:
        return f"there are fewer than {size} different answers"
    return f"no {size} answers of different origins with a right and a wrong one among them can be found"


class _Places:
    """Places of right answers, balanced as contests are made."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._counts: Counter[int] = Counter()

    def order(self, members: Sequence[int], right: frozenset[int]) -> list[int]:
        """The members in the order shown."""
        good = [n for n in members if n in right]
        bad = [n for n in members if n not in right]
        self._rng.shuffle(good)
        self._rng.shuffle(bad)
        places = list(range(len(members)))
        self._rng.shuffle(places)
        places.sort(key=lambda place: self._counts[place])  # stable: chance decides between equally used ones
        chosen = places[: len(good)]
        self._counts.update(chosen)
        return [good.pop() if place in chosen else bad.pop() for place in range(len(members))]


# --- rows -----------------------------------------------------------------------------------------------------


def as_row(contest: Contest, config: ContestConfig, rubric: Rubric, construct: Construct | None = None) -> Example:
    """The contest as a prompt to answer with a verdict, and the columns that the reward judge-pick reads."""
    labels: Sequence[str] = LABELS[: len(contest.candidates)]
    columns: dict[str, Any] = {}
    prompt: Content
    if config.form == "competition":
        assert construct is not None
        labels = construct.names
        prompt = _inside(contest, construct)
        columns[TAGS] = {"root": construct.root, "result": construct.result, "winner": construct.winner}
    else:
        prompt = asked(contest.question(), range(len(labels)), config, rubric)
    return Example(prompt, (), {**columns_of(contest, labels, config.asked), **columns}, contest.where)


def columns_of(contest: Contest, labels: Sequence[str], verdict: str) -> dict[str, Any]:
    """What the row of a contest says of it; see COLUMNS. The question's own columns are there and empty: what they say
    (its answer) is no truth about a verdict, so rewards that read them do not apply, but find them."""
    return {
        **dict.fromkeys(contest.columns),
        "question": readable(contest.prompt), "labels": list(labels),
        "right": [label for label, right in zip(labels, contest.right, strict=True) if right],
        "origins": [one.origin for one in contest.candidates], "scores": [one.score for one in contest.candidates],
        "verdict": verdict,
    }  # fmt: skip


def asked(question: Question, order: Sequence[int], config: ContestConfig, rubric: Rubric) -> tuple[Message, ...]:
    """What the reward `judge` would ask, word for word."""
    if config.asked == "pairwise":
        return pairwise_prompt(question, order[0], order[1], rubric)
    return listwise_prompt(question, order, rubric)


def _inside(contest: Contest, construct: Construct) -> Content:
    """The question, and the competition up to where the judge speaks."""
    told = dict(zip(construct.names, (written(one.content).strip() for one in contest.candidates), strict=True))
    half = opening(construct, told)
    if isinstance(contest.prompt, str):
        if not construct.system_prompt:
            return contest.prompt + half
        return (Message("system", construct.system_prompt), Message("user", f"{contest.prompt}\n\n{half}"))
    turns = [turn for turn in contest.prompt if turn.role != "system"] if construct.system_prompt else contest.prompt
    *before, last = turns
    system = (Message("system", construct.system_prompt),) if construct.system_prompt else ()
    return (*system, *before, Message(last.role, f"{last.content}\n\n{half}"))


def opening(construct: Construct, told: Mapping[str, str]) -> str:
    """A competition up to the judge's part. No text of `told` may hold one of its tags."""
    whole = construct.render(told, "", "", "")
    return whole[: whole.index(f"<{construct.result}>")]


def rows_of(
    sources: Sequence[tuple[SourceConfig, Sequence[Example]]], seed: int, construct: Construct | None
) -> tuple[list[Example], list[str]]:
    """Contest rows of sources that all have a section `contest`, those with equal sections together.

    Returns:
        The rows, pool by pool, and a sentence about each pool.

    Raises:
        DataError: as `gather` and `contests`. UsageError: a rubric's file can't be read.
    """
    rows: list[Example] = []
    notes: list[str] = []
    for config, some in _by_settings(sources):
        found = contests(gather(some), config, seed, construct)
        rubric = read_rubric(config.rubric, None)
        rows += [as_row(contest, config, rubric, construct) for contest in found.contests]
        notes.append(str(found))
    return rows, notes


def _by_settings(
    sources: Sequence[tuple[SourceConfig, Sequence[Example]]],
) -> Iterator[tuple[ContestConfig, list[tuple[SourceConfig, Sequence[Example]]]]]:
    configs = dict.fromkeys(str(source.contest) for source, _ in sources)
    for key in configs:
        some = [(source, rows) for source, rows in sources if str(source.contest) == key]
        config = some[0][0].contest
        assert config is not None
        yield config, some

"""Judging as training data: contests of answers by others, a judge's words on each, and only words whose pick is right.

    sources ─▶ pools ─▶ contests ─▶ the judge, in both orders ─▶ verdicts ─▶ rows of prompt and judging text
                                                                └─▶ what was left out, and why

A verdict counts when what it puts first is right over all its replies: a judge that names the first place in either
order has judged nothing. Of such a verdict every reply that itself names a right answer is a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import Field, field_validator

from preftune.config import ContestConfig, SourceConfig
from preftune.data import load_examples
from preftune.intervals import Interval, mean_interval
from preftune.judges.agreement import usage_words
from preftune.judges.base import Backend, JudgeError, Progress, Usage, Verdict, Vote
from preftune.judges.config import JudgeConfig
from preftune.judges.contests import (
    Contest,
    Contests,
    Pool,
    as_row,
    asked,
    columns_of,
    contests,
    gather,
    key_of,
    readable,
)
from preftune.judges.evaluation import without_contests
from preftune.judges.judge import Judge
from preftune.judges.prompts import LABELS
from preftune.judges.rubrics import Rubric, read_rubric
from preftune.records import Content

Verifier = Callable[[Sequence[Pool]], list[Pool]]
"""Gives every candidate a score, in place of what its row says."""

RIGHT, WRONG, TIE, SILENT = "right", "wrong", "tie", "no verdict"
_WHY = {
    WRONG: "the verdict names a wrong answer",
    TIE: "the verdict does not name one answer, or another one in the other order",
    SILENT: "there is no verdict",
}


class BuildConfig(ContestConfig):
    """The request of `preftune judge build`: how contests are made, of what, and who judges them."""

    judge: JudgeConfig | None = Field(None, description="who writes the verdicts")
    data: list[SourceConfig] = Field(min_length=1, description="answers to judge: files of several origins")
    seed: int = Field(0, ge=0, description="seed of which answers meet, and in which places")
    verify: str | None = Field(
        None,
        description="a reward (math-equal, or module:function) that says which answers are right, instead of the rows",
    )
    verify_args: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of that reward")

    @field_validator("data", mode="before")
    @classmethod
    def _one_source(cls, value: Any) -> Any:
        return [value] if isinstance(value, (dict, SourceConfig)) else value

    @field_validator("data")
    @classmethod
    def _no_contests(cls, value: list[SourceConfig]) -> list[SourceConfig]:
        return without_contests(value)

    @property
    def asking(self) -> JudgeConfig | None:
        """The judge, set to ask as the contests do."""
        if self.judge is None:
            return None
        given = self.judge.model_dump(exclude_unset=True)
        return JudgeConfig.model_validate({**given, "mode": self.asked, "rubric": self.rubric})


@dataclass(frozen=True, slots=True)
class Summary:
    """Measures of what a judge said of contests.

    Attributes:
        questions, contests: how many were judged. chance: share of blind verdicts that would be right.
        verified, wrong, ties, abstained: contests by what the verdict over all replies is.
        accuracy: share of right verdicts, a tie being wrong, abstentions left out; contests of one question are
            averaged first, so n is questions.
        readable: share of replies that hold a verdict. rows: replies that were kept.
        places: share of the picks of replies that lie in each place, a pick of several answers counting in part.
        origins: who wrote → `shown`, contests with an answer of theirs; `picked`, verdicts that put one first; `right`,
            contests where one is right.
        left_out: reason → how many questions, answers, contests or replies.
        usage, cost: of the judge; cost None without prices. complaint: how many replies failed, with an example.
        bad_rows: rows that the source's `on_bad_row: skip` left out.
    """

    questions: int
    contests: int
    chance: float
    verified: int
    wrong: int
    ties: int
    abstained: int
    accuracy: Interval | None
    readable: float
    rows: int
    places: tuple[float, ...]
    origins: Mapping[str, Mapping[str, int]]
    left_out: Mapping[str, int]
    usage: Usage
    cost: float | None
    complaint: str
    bad_rows: int

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        out = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            **out, "accuracy": self.accuracy and self.accuracy.to_json(), "usage": self.usage.to_json(),
            "places": list(self.places), "origins": {name: dict(counts) for name, counts in self.origins.items()},
            "left_out": dict(self.left_out),
        }  # fmt: skip

    def __str__(self) -> str:
        """The measures in words, one per line."""
        lines = [
            f"{self.contests} contests of {self.questions} questions: {self.verified} verdicts are right, {self.wrong} "
            f"wrong, {self.ties} undecided, {self.abstained} missing"
        ]
        if self.accuracy is not None:
            bounds = f" [{self.accuracy.low:.3f}, {self.accuracy.high:.3f}]" if self.accuracy.is_bounded else ""
            lines.append(f"right verdicts: {self.accuracy.value:.3f}{bounds}; a blind judge has {self.chance:.3f}")
        lines.append(f"replies that hold a verdict: {self.readable:.0%}; replies kept as rows: {self.rows}")
        if self.places:
            lines.append("picks by place: " + ", ".join(f"{share:.0%}" for share in self.places))
        for name, counts in self.origins.items():
            told = f"first in {counts['picked']} of {counts['shown']} contests, right in {counts['right']}"
            lines.append(f"  {_plain(name) or '(unknown)'}: {told}")
        lines += [f"left out: {count}, as {why}" for why, count in self.left_out.items()]
        if self.bad_rows:
            lines.append(f"{self.bad_rows} bad rows of the data left out")
        lines.append(usage_words(self.usage, self.cost))
        return "\n".join(lines + ([self.complaint] if self.complaint else []))


@dataclass(frozen=True, slots=True)
class Built:
    """What was built: rows to train on, what was left out, row by row, and the measures (None without a judge)."""

    rows: tuple[dict[str, Any], ...]
    left_out: tuple[dict[str, Any], ...]
    made: Contests
    summary: Summary | None
    bad_rows: int


def build(
    config: BuildConfig,
    *,
    verify: Verifier | None = None,
    backend: Backend | None = None,
    base_dir: Path | None = None,
    progress: Progress | None = None,
) -> Built:
    """Make contests, let the judge write its verdicts, keep those whose pick is right. Without a judge: the contests.

    Args:
        verify: says which answers are right; default: the rows' own scores.
        backend: what writes the replies; default: the model that the settings name.
        base_dir: where relative data paths start.
        progress: called as replies come.

    Raises:
        DataError: a row that can't be read or used, or no contest to be made. JudgeError: no reply holds a verdict.
            Otherwise as `Judge`.
    """
    loaded = [(source, load_examples([source], seed=0, base_dir=base_dir)) for source in config.data]
    bad_rows = sum(one.skipped for _, one in loaded)
    pools = gather([(source, one.examples) for source, one in loaded], scored=verify is None)
    made = contests(pools if verify is None else verify(pools), config, config.seed)
    left = [{"where": one.where, "question": one.question, "why": one.why} for one in made.left_out]
    rubric = read_rubric(config.rubric, None)
    settings = config.asking
    if settings is None:
        return Built(
            tuple(_contest_row(one, config, rubric) for one in made.contests), tuple(left), made, None, bad_rows
        )
    with Judge(settings, backend) as judge:
        verdicts = judge.judge([contest.question() for contest in made.contests], progress)
        usage, cost = judge.usage, judge.cost
        complaint = judge.complaint() if usage.failed else ""
    if usage.replies and usage.failed == usage.replies:
        raise JudgeError(complaint)
    judged = [_Judged(contest, verdict) for contest, verdict in zip(made.contests, verdicts, strict=True)]
    rows: list[dict[str, Any]] = []
    for one in judged:
        kept, out = _rows(one, config, rubric)
        rows += kept
        left += out
    summary = _summary(judged, len(rows), left, usage, cost, complaint, bad_rows)
    return Built(tuple(rows), tuple(left), made, summary, bad_rows)


@dataclass(frozen=True, slots=True)
class _Judged:
    contest: Contest
    verdict: Verdict

    @property
    def picked(self) -> tuple[int, ...]:
        """Places of the answers that the verdict puts first; none without a verdict on every answer."""
        known = [score for score in self.verdict.scores if score is not None]
        if len(known) < len(self.verdict.scores):
            return ()
        return tuple(n for n, score in enumerate(known) if score == max(known))

    @property
    def outcome(self) -> str:
        """right, wrong, tie or no verdict: several on the first place are a tie unless all of them are right."""
        if not self.picked:
            return SILENT
        right = [self.contest.right[n] for n in self.picked]
        return RIGHT if all(right) else WRONG if len(right) == 1 else TIE


def _rows(judged: _Judged, config: ContestConfig, rubric: Rubric) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of a verdict's replies, and what was left out of it."""
    contest, votes = judged.contest, judged.verdict.votes
    if judged.outcome != RIGHT:
        return [], [_left(contest, _WHY[judged.outcome], votes)]
    rows: list[dict[str, Any]] = []
    out: list[dict[str, Any]] = []
    seen: set[tuple[tuple[int, ...], str]] = set()
    for vote in votes:
        picked = pick_of(vote)
        if not picked or not all(contest.right[n] for n in picked):
            why = "the reply holds no verdict" if vote.scores is None else "the reply does not name a right answer"
            out.append(_left(contest, why, [vote]))
        elif (vote.shown, vote.text) not in seen:
            seen.add((vote.shown, vote.text))
            rows.append(_judging_row(contest, vote, picked, config, rubric))
    return rows, out


def pick_of(vote: Vote) -> tuple[int, ...]:
    """The answers that a reply puts first; none where two are a tie, or without a verdict."""
    if vote.scores is None:
        return ()
    best = max(vote.scores)
    picked = tuple(answer for answer, score in zip(vote.shown, vote.scores, strict=True) if score == best)
    return () if len(picked) == len(vote.shown) else picked


def _judging_row(
    contest: Contest, vote: Vote, picked: Sequence[int], config: ContestConfig, rubric: Rubric
) -> dict[str, Any]:
    prompt = asked(contest.question(), vote.shown, config, rubric)
    labels = LABELS[: len(vote.shown)]
    turns = [*_turns(prompt), {"role": "assistant", "content": vote.text}]
    columns = columns_of(_in_order(contest, vote.shown), labels, config.asked)
    pick = [labels[vote.shown.index(answer)] for answer in picked]
    return {"messages": turns, **columns, "pick": pick, "where": contest.where}


def _in_order(contest: Contest, order: Sequence[int]) -> Contest:
    candidates = tuple(contest.candidates[n] for n in order)
    return replace(contest, candidates=candidates, right=tuple(contest.right[n] for n in order))


def _contest_row(contest: Contest, config: ContestConfig, rubric: Rubric) -> dict[str, Any]:
    row = as_row(contest, config, rubric)
    return {"prompt": _turns(row.prompt), **row.columns, "where": contest.where}


def _turns(content: Content) -> list[dict[str, str]]:
    assert not isinstance(content, str), "what a judge is asked is a message"
    return [{"role": turn.role, "content": turn.content} for turn in content]


def _left(contest: Contest, why: str, votes: Sequence[Vote]) -> dict[str, Any]:
    labels = LABELS[: len(contest.candidates)]
    return {
        "where": contest.where, "question": readable(contest.prompt), "why": why,
        "right": [label for label, right in zip(labels, contest.right, strict=True) if right],
        "origins": [one.origin for one in contest.candidates],
        "replies": [
            {"shown": [labels[n] for n in vote.shown], "picked": [labels[n] for n in pick_of(vote)],
             "problem": vote.problem, "text": vote.text}
            for vote in votes
        ],
    }  # fmt: skip


def _summary(
    judged: Sequence[_Judged], rows: int, left: Sequence[Mapping[str, Any]], usage: Usage, cost: float | None,
    complaint: str, bad_rows: int,
) -> Summary:  # fmt: skip
    outcomes = Counter(one.outcome for one in judged)
    by_question: dict[str, list[float]] = {}
    for one in judged:
        if one.outcome != SILENT:
            by_question.setdefault(key_of(one.contest.prompt), []).append(float(one.outcome == RIGHT))
    accuracy = mean_interval([fmean(some) for some in by_question.values()]) if by_question else None
    if accuracy is not None and accuracy.is_bounded:
        accuracy = replace(accuracy, low=max(0.0, accuracy.low), high=min(1.0, accuracy.high))
    return Summary(
        questions=len({key_of(one.contest.prompt) for one in judged}), contests=len(judged),
        chance=fmean([one.contest.chance for one in judged]), verified=outcomes[RIGHT], wrong=outcomes[WRONG],
        ties=outcomes[TIE], abstained=outcomes[SILENT], accuracy=accuracy,
        readable=1.0 - usage.failed / max(usage.replies, 1), rows=rows, places=_places(judged),
        origins=_origins(judged), left_out=dict(Counter(str(one["why"]) for one in left).most_common()),
        usage=usage, cost=cost, complaint=complaint, bad_rows=bad_rows,
    )  # fmt: skip


def _places(judged: Sequence[_Judged]) -> tuple[float, ...]:
    """Of replies that name an answer, the share of picks in each place."""
    picks = [(vote.shown, picked) for one in judged for vote in one.verdict.votes if (picked := pick_of(vote))]
    size = max((len(shown) for shown, _ in picks), default=0)

    def share(place: int) -> Iterator[float]:
        for shown, picked in picks:
            yield (shown[place] in picked) / len(picked)

    return tuple(fmean(share(place)) for place in range(size))


def _origins(judged: Sequence[_Judged]) -> dict[str, dict[str, int]]:
    out: dict[str, dict[str, int]] = {}
    for one in judged:
        authors = [candidate.origin for candidate in one.contest.candidates]
        for name in dict.fromkeys(authors):
            mine = [n for n, author in enumerate(authors) if author == name]
            counts = out.setdefault(name, {"shown": 0, "picked": 0, "right": 0})
            counts["shown"] += 1
            counts["picked"] += any(n in one.picked for n in mine)
            counts["right"] += any(one.contest.right[n] for n in mine)
    return out


def _plain(name: str) -> str:
    """An origin as the terminal may show it: names come from data."""
    return "".join(char if char.isprintable() else "�" for char in name)[:60]

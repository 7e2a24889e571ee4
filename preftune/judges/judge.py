"""The judge: questions in, verdicts out, for every method that needs one."""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from types import TracebackType
from typing import Self

from preftune.judges.backends import make_backend
from preftune.judges.base import Backend, JudgeError, Progress, Question, Reply, Request, Usage, Verdict, Vote
from preftune.judges.cache import key_of, open_cache
from preftune.judges.config import JudgeConfig
from preftune.judges.parse import Unparsed, parse_choice, parse_ranking, parse_score, rank_scores
from preftune.judges.prompts import LABELS, listwise_prompt, pairwise_prompt, pointwise_prompt
from preftune.judges.rubrics import read_rubric
from preftune.judges.verdicts import LOSS, TIE, WIN, mean_verdict, pairwise_verdict
from preftune.records import Content

HOPELESS = 20
"""A judge whose first so many replies hold no verdict at all is given up, whatever `on_failure` says."""
SEEDS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class _Ballot:
    """One reply to be had: to which question, which answers in which order, the vote's number."""

    question: int
    shown: tuple[int, ...]
    number: int


class Judge:
    """Judges answers: pairwise, pointwise or listwise, as the settings say. Not for several threads at once.

    Args:
        config: the settings.
        backend: what writes the replies; default: the model that the settings name, loaded here.

    Attributes:
        rubric: what the judge goes by; `low` and `high` are the ends of pointwise scores.
        usage: what was asked so far, and what it took.

    Raises:
        ModelError, SamplingError, UsageError: the model, its key, the rubric's file or the cache can't be used.
    """

    def __init__(self, config: JudgeConfig, backend: Backend | None = None) -> None:
        self.config = config
        self.rubric = read_rubric(config.rubric, config.scale)
        self.usage = Usage()
        self._cache = open_cache(config.cache)
        self._backend = make_backend(config) if backend is None else backend
        self._example = ""  # the first reply without a verdict, for messages

    def close(self) -> None:
        """Close connections, if there are any. A judge that was closed can't be asked any more."""
        closing = getattr(self._backend, "close", None)
        if closing is not None:
            closing()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def cost(self) -> float | None:
        """Of the requests so far; None without prices."""
        return self.usage.cost(self.config.price_input, self.config.price_output)

    def judge(self, questions: Sequence[Question], progress: Progress | None = None) -> list[Verdict]:
        """One verdict per question, in order. Replies are kept on disk as they come, so after any error the same call
        asks only for those that are missing.

        Args:
            questions: pairwise and listwise ones with at least two answers.
            progress: called as replies come.

        Raises:
            JudgeError: no verdict with `on_failure: error`, or none in any of the first replies; names the share and
                shows one. SamplingError: the judge can't be asked.
            ValueError: too few answers, or over 26 for a ranking.
        """
        for question in questions:
            self._check(question)
        plans = [list(self._ballots(n, question)) for n, question in enumerate(questions)]
        ballots = [ballot for plan in plans for ballot in plan]
        replies = self._replies(questions, ballots, progress)
        votes = [
            self._vote(questions[b.question], b, reply, cached)
            for b, (reply, cached) in zip(ballots, replies, strict=True)
        ]
        self._count(questions, ballots, votes)
        following = iter(votes)
        verdicts = [
            self._verdict(question, [next(following) for _ in plan])
            for question, plan in zip(questions, plans, strict=True)
        ]
        self._check_failures(verdicts)
        return verdicts

    # --- what to ask ------------------------------------------------------------------------------------------

    def _check(self, question: Question) -> None:
        size, mode = len(question.answers), self.config.mode
        where = question.where or "a question"
        if size < (1 if mode == "pointwise" else 2):
            raise ValueError(f"{where} has {size} answers, too few for the mode {mode}")
        if mode == "listwise" and size > len(LABELS):
            raise ValueError(f"{where} has {size} answers; at most {len(LABELS)} can be ranked at once, use pairwise")

    def _ballots(self, index: int, question: Question) -> Iterator[_Ballot]:
        size, votes = len(question.answers), range(self.config.votes)
        match self.config.mode:
            case "pointwise":
                orders: list[tuple[int, ...]] = [(answer,) for answer in range(size)]
                yield from (_Ballot(index, order, number) for order in orders for number in votes)
            case "pairwise":
                for pair in combinations(range(size), 2):
                    orders = list(self._orders(question, pair))
                    yield from (_Ballot(index, order, number) for order in orders for number in votes)
            case "listwise":
                for number in votes:
                    order = _drawn(question, range(size), number)
                    yield _Ballot(index, order, number)
                    if self.config.swap:
                        yield _Ballot(index, order[::-1], number)

    def _orders(self, question: Question, pair: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """The orders in which two answers are shown; none for equal ones, which are a tie without being asked about."""
        first, second = pair
        if question.answers[first] == question.answers[second]:
            return ()
        if self.config.swap:
            return ((first, second), (second, first))
        one, other = _drawn(question, pair, 0)  # the place must not tell which answer came first in the data
        return ((one, other),)

    def _request(self, question: Question, ballot: _Ballot) -> tuple[str, Request]:
        """The request, and the key of its reply."""
        match self.config.mode:
            case "pointwise":
                messages = pointwise_prompt(question, ballot.shown[0], self.rubric)
            case "pairwise":
                messages = pairwise_prompt(question, ballot.shown[0], ballot.shown[1], self.rubric)
            case "listwise":
                messages = listwise_prompt(question, ballot.shown, self.rubric)
        key = key_of(
            self._backend.identity,
            messages,
            temperature=self.config.drawn_temperature,
            max_tokens=self.config.max_tokens,
            vote=ballot.number,
        )
        return key, Request(messages, int(key[:16], 16) % SEEDS, question.where)

    # --- asking -----------------------------------------------------------------------------------------------

    def _replies(
        self, questions: Sequence[Question], ballots: Sequence[_Ballot], progress: Progress | None
    ) -> list[tuple[Reply, bool]]:
        """A reply per ballot, and whether it cost nothing. Equal requests are sent once."""
        asked = [self._request(questions[ballot.question], ballot) for ballot in ballots]
        known: dict[str, Reply] = {}
        missing: dict[str, Request] = {}
        for key, request in asked:
            if key in known or key in missing:
                continue
            reply = self._cache.get(key)
            if reply is None:
                missing[key] = request
            else:
                known[key] = reply
        total, fresh = len(known) + len(missing), list(missing)
        lock = threading.Lock()

        def keep(index: int, reply: Reply) -> None:
            self._cache.put(fresh[index], reply)
            with lock:
                known[fresh[index]] = reply
                if progress is not None:
                    progress(len(known), total)

        if progress is not None and known:
            progress(len(known), total)
        try:
            if missing:
                self._backend.ask(list(missing.values()), keep)
        finally:
            with lock:
                self.usage += _taken(asked, set(fresh), dict(known))
        paid = set(fresh)
        out = []
        for key, _ in asked:
            out.append((known[key], key not in paid))
            paid.discard(key)  # the second of two equal requests
        return out

    def _vote(self, question: Question, ballot: _Ballot, reply: Reply, cached: bool) -> Vote:
        scores: tuple[float, ...] | None = None
        problem = reply.problem
        if not problem and reply.cut:
            problem = f"the reply was cut at max_tokens {self.config.max_tokens}"
        if not problem:
            read = self._read(reply.text, len(ballot.shown))
            if isinstance(read, Unparsed):
                problem = f"the reply {read.why}"
            else:
                scores = read
        return Vote(ballot.shown, ballot.number, scores, problem, reply.text, cached)

    def _read(self, text: str, size: int) -> tuple[float, ...] | Unparsed:
        match self.config.mode:
            case "pointwise":
                score = parse_score(text, self.rubric.low, self.rubric.high)
                return score if isinstance(score, Unparsed) else (float(score),)
            case "pairwise":
                choice = parse_choice(text)
                return choice if isinstance(choice, Unparsed) else {"A": WIN, "tie": TIE, "B": LOSS}[choice]
            case "listwise":
                places = parse_ranking(text, LABELS[:size])
                return places if isinstance(places, Unparsed) else rank_scores(places, LABELS[:size])

    def _verdict(self, question: Question, votes: Sequence[Vote]) -> Verdict:
        size = len(question.answers)
        if self.config.mode == "pairwise":
            pairs = list(combinations(range(size), 2))
            return pairwise_verdict(size, votes, pairs, [self._orders(question, pair) for pair in pairs])
        return mean_verdict(size, votes, together=self.config.mode == "listwise" and self.config.swap)

    # --- failures ---------------------------------------------------------------------------------------------

    def _count(self, questions: Sequence[Question], ballots: Sequence[_Ballot], votes: Sequence[Vote]) -> None:
        failed = [(b, vote) for b, vote in zip(ballots, votes, strict=True) if vote.scores is None]
        self.usage += Usage(failed=len(failed))
        if failed and not self._example:
            ballot, vote = failed[0]
            where = questions[ballot.question].where
            self._example = f"the first{f', on {where}' if where else ''}: {vote.problem}"
            if vote.text:
                end = vote.text.strip()[-200:]
                self._example += f"; it ends in {end!r}"

    def _check_failures(self, verdicts: Sequence[Verdict]) -> None:
        usage = self.usage
        none_at_all = usage.failed == usage.replies
        hopeless = none_at_all and usage.replies >= HOPELESS
        wanting = any(score is None for verdict in verdicts for score in verdict.scores)
        if hopeless or (wanting and self.config.on_failure == "error"):
            raise JudgeError(self.complaint())

    def complaint(self) -> str:
        """The share of replies without a verdict, one of them, and what can be done."""
        usage = self.usage
        share = usage.failed / usage.replies if usage.replies else 0.0
        remedy = "raise max_tokens if replies are cut, or take a more capable judge"
        if usage.failed < usage.replies and self.config.on_failure == "error":
            remedy += "; on_failure: abstain goes on and counts them"
        return (
            f"{usage.failed} of {usage.replies} replies of the judge {self.config.path or self.config.model} "
            f"({share:.0%}) hold no verdict; {self._example}. {remedy[0].upper()}{remedy[1:]}"
        )


def _taken(asked: Sequence[tuple[str, Request]], fresh: set[str], known: dict[str, Reply]) -> Usage:
    """Counts of one batch; of one that broke off, counts of what had come."""
    usage, paid = Usage(), set(fresh)
    for key, _ in asked:
        if key not in known:
            continue
        reply = known[key]
        counted = reply.input_tokens is not None and reply.output_tokens is not None
        tokens = (reply.input_tokens or 0, reply.output_tokens or 0)
        if key in paid:
            paid.discard(key)
            one = Usage(1, 0, 1, 0, *tokens, uncounted=int(not counted and not reply.problem))
        else:
            one = Usage(1, 1, cached_input_tokens=tokens[0], cached_output_tokens=tokens[1])
        usage += one
    return usage


def _drawn(question: Question, answers: Sequence[int], number: int) -> tuple[int, ...]:
    """Answers in a random order that their texts alone decide, not the row's place, its order or the run."""
    text = {answer: json.dumps(_plain(question.answers[answer])) for answer in answers}
    order = sorted(answers, key=text.__getitem__)
    about = json.dumps([_plain(question.prompt), [text[answer] for answer in order], number])
    random.Random(hashlib.sha256(about.encode()).hexdigest()).shuffle(order)
    return tuple(order)


def _plain(content: Content) -> object:
    return content if isinstance(content, str) else [[turn.role, turn.content] for turn in content]

"""The judge's records. All are frozen.

    Question ──prompts──▶ Request ──backend or cache──▶ Reply ──parse──▶ Vote ──verdicts──▶ Verdict

Scores of a vote and of a verdict are higher for the better answer. Where there is none, it is None: a judge that
failed never counts as a zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, TypeAlias

from preftune.errors import PreftuneError
from preftune.records import Content, Message


class JudgeError(PreftuneError):
    """The judge gives no verdict that can be read, or its replies can't be kept. Exit code 1."""


@dataclass(frozen=True, slots=True)
class Question:
    """A task and the answers to be judged.

    Attributes:
        prompt: the task: plain text or messages.
        answers: two or more to compare; pointwise takes one, too.
        reference: a right answer that the judge is shown, None without one.
        where: origin for messages.
    """

    prompt: Content
    answers: tuple[Content, ...]
    reference: str | None = None
    where: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """One text for the judge.

    Attributes:
        messages: what it is shown.
        seed: of its reply, from the request's content and the vote's number; under 2³¹.
        where: origin for messages.
    """

    messages: tuple[Message, ...]
    seed: int
    where: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back.

    Attributes:
        text: the judge's words.
        cut: it was ended by the token limit.
        input_tokens, output_tokens: None where the server does not say.
        problem: why there is no reply to this request (too long, a content filter), "" where there is one. Such a
            reply is not kept in the cache.
    """

    text: str
    cut: bool = False
    input_tokens: int | None = None
    output_tokens: int | None = None
    problem: str = ""


class Backend(Protocol):
    """A language model that answers requests: one method, and what the cache must know of it.

    `identity` holds everything that the replies depend on besides messages, vote and sampling settings: the model and
    its revision or weights, never a key.
    """

    @property
    def identity(self) -> Mapping[str, Any]: ...

    def ask(self, requests: Sequence[Request], keep: Callable[[int, Reply], None]) -> None:
        """Answer every request. `keep(index, reply)` is called as soon as a reply is there, perhaps from another
        thread and perhaps after an error of another request, so that nothing that was paid for is lost.

        Raises:
            SamplingError: the model can't be asked at all.
        """
        ...


@dataclass(frozen=True, slots=True)
class Vote:
    """One reply as it counts.

    Attributes:
        shown: which of the question's answers, in the order in which the judge saw them.
        number: of the vote, from 0.
        scores: one per shown answer, in that order: 1, ½ or 0 pairwise; the score on the rubric's scale pointwise; the
            rank from 1 (best) to 0 listwise. None when the reply holds no verdict.
        problem: then why.
        text: the judge's words.
        cached: they came from the cache.
    """

    shown: tuple[int, ...]
    number: int
    scores: tuple[float, ...] | None
    problem: str
    text: str
    cached: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the judge says of a question.

    Attributes:
        scores: one per answer. Pairwise: the share of the other answers that it beats, a tie counting ½, over those
            that it could be compared with. Pointwise: the mean of its votes, on the rubric's scale. Listwise: the mean
            of its ranks, each from 1 (best) to 0. None where the judge gave no verdict.
        problems: one per answer: why there is no score, "" where there is one.
        votes: every reply.
    """

    scores: tuple[float | None, ...]
    problems: tuple[str, ...]
    votes: tuple[Vote, ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """What was asked, and what it took.

    Attributes:
        replies: votes that were wanted. cached: of these, replies that came from the cache, or from an equal request.
        requests: of these, asked of the model. failed: replies without a verdict.
        input_tokens, output_tokens: of requests that were asked, as far as they were reported.
        uncounted: requests that were answered without token counts.
        cached_input_tokens, cached_output_tokens: what the replies from the cache took when they were asked.
    """

    replies: int = 0
    cached: int = 0
    requests: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    uncounted: int = 0
    cached_input_tokens: int = 0
    cached_output_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))

    def cost(self, price_input: float | None, price_output: float | None) -> float | None:
        """Of the requests that were asked, with prices per million tokens; a lower bound where some are uncounted.
        None without prices."""
        if price_input is None or price_output is None:
            return None
        return (self.input_tokens * price_input + self.output_tokens * price_output) / 1e6

    def to_json(self) -> dict[str, int]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


Progress: TypeAlias = Callable[[int, int], None]
"""Called with (replies there, replies wanted)."""

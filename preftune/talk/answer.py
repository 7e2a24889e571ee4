"""One answer: its token budget, how it comes about, and what became of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from preftune.competition import Construct, Contest
from preftune.errors import UsageError
from preftune.records import Finish
from preftune.talk.contest import ContestStream
from preftune.talk.stream import TextStream


@dataclass(frozen=True, slots=True)
class Budget:
    """Tokens of the window, before an answer. `limit`: the longest that the answer may become."""

    prompt: int
    window: int
    limit: int

    @property
    def available(self) -> int:
        """What the prompt leaves of the window."""
        return self.window - self.prompt


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a question.

    Attributes:
        text: what is shown: of a contest the professional answer alone, where it has one.
        written: all that the model wrote, up to a stop string.
        budget: of the prompt.
        tokens: drawn, EOS included.
        rate: tokens a second from the first one on; None with too few of them.
        finish: why it ended; "interrupted" by the user.
        note: what was wrong with it, in one line; "" when nothing was.
        kept: whether question and text are part of the talk now. Nothing, and a contest without an answer, are not.
        contest: in a contest, what was read in it.
        ends: in a contest, where each token ends in `written`.
    """

    text: str
    written: str
    budget: Budget
    tokens: int
    rate: float | None
    finish: Finish | Literal["interrupted"]
    note: str
    kept: bool
    contest: Contest | None = None
    ends: tuple[int, ...] = ()


class Listener(Protocol):
    """Who is told how an answer comes about."""

    def begins(self, budget: Budget) -> None:
        """The prompt is about to be read."""

    def working(self, words: str, tokens: int) -> None:
        """A token was drawn that shows nothing yet. `words`: of a contest, what is going on."""

    def says(self, text: str) -> None:
        """More of the answer's text."""


class Silent:
    """A listener that does nothing: the answer is enough."""

    def begins(self, budget: Budget) -> None:
        """See `Listener`."""

    def working(self, words: str, tokens: int) -> None:
        """See `Listener`."""

    def says(self, text: str) -> None:
        """See `Listener`."""


class TooLong(UsageError):
    """A prompt that leaves no room for an answer.

    Attributes:
        over: tokens too many, with one of the answer to come.
        forget: how many of the oldest exchanges to forget so that it fits; None when that is not enough.
    """

    def __init__(self, prompt: int, window: int, forget: int | None) -> None:
        self.over = prompt - (window - 1)
        self.forget = forget
        super().__init__(
            f"the prompt is {prompt:,} tokens and the window {window:,}: {self.over:,} too many to leave room for an "
            "answer"
        )


class Drawn:
    """The tokens of one answer as they come: their text goes to the listener as soon as it can be shown."""

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        stops: Sequence[str],
        construct: Construct | None,
        listener: Listener,
    ) -> None:
        self.ids: list[int] = []
        self._times: tuple[float, float] | None = None
        self._text = TextStream(decode, stops)
        self._contest = None if construct is None else ContestStream(construct)
        self._listener = listener
        self._shown = ""

    def __call__(self, token: int) -> None:
        now = time.perf_counter()
        self._times = (self._times[0] if self._times else now, now)
        self.ids.append(token)
        if not self._show(self._text.add(token)):
            words = "writing" if self._contest is None else self._contest.words()
            self._listener.working(words, len(self.ids))

    def rest(self, whole: str) -> None:
        """The completion is there: show what is still missing of it."""
        self._show(self._text.rest(whole))

    def show_missing(self, text: str) -> None:
        """What turned out to be the text to show, where it was held back until now."""
        if text.startswith(self._shown) and text != self._shown:
            self._listener.says(text[len(self._shown) :])
            self._shown = text

    def _show(self, new: str) -> bool:
        if self._contest is not None:
            new = self._contest.add(new)
        if new:
            self._shown += new
            self._listener.says(new)
        return bool(new)

    @property
    def answering(self) -> bool:
        """Whether the answer itself has begun."""
        return self._contest is None or self._contest.answering

    @property
    def rate(self) -> float | None:
        if self._times is None or len(self.ids) < 2 or self._times[1] <= self._times[0]:
            return None
        return (len(self.ids) - 1) / (self._times[1] - self._times[0])

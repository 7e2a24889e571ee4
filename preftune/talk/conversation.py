"""One talk with a model: what it is shown, how much room that leaves, and what comes of its answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from preftune.competition import Construct, Contest, parse
from preftune.errors import DataError, UsageError
from preftune.records import Completion, Content, Example, Finish, Message, Prompt
from preftune.talk.answer import Answer, Budget, Drawn, Listener, Silent, TooLong
from preftune.talk.contest import told
from preftune.talk.history import Turn, is_unicode
from preftune.talk.settings import TalkConfig
from preftune.talk.stream import cut_at
from preftune.token_ends import BROKEN

if TYPE_CHECKING:
    from preftune.config import SamplingConfig
    from preftune.sampling.base import Sampler

WINDOW = 4096
"""Tokens of the window where neither the model nor the user names any."""
_HERE = "the talk"


class Contract(Protocol):
    """What a talk needs of the token contract."""

    def prompt(self, example: Example) -> Prompt: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def token_ends(self, ids: Sequence[int], text: str) -> list[int]: ...


@runtime_checkable
class Streams(Protocol):
    """A sampler that hands over tokens as it draws them; see `LocalSampler.stream`."""

    def stream(
        self, prompt: Prompt, settings: SamplingConfig, *, seed: int, on_token: Callable[[int], None],
        temperature: float | None = None,
    ) -> Completion: ...  # fmt: skip


class Talk:
    """A talk with one model.

    Args:
        sampler: draws the answers; one with a `stream` method (see `Streams`) gives them token by token.
        contract: the model's token contract.
        settings: how answers are drawn.
        context_length: positions of the model; None when it names no limit.
        system: system prompt as long as the user chooses none; "" for none.
        construct: answers are contests of this kind.
        plain: no conversation: each prompt stands alone and is continued as it is.
        seed: where `settings.seed` is None.

    Attributes:
        turns: the messages, forgotten ones too.
        own_system: the user's system prompt, None for `system`.
        unanswered: a question that was asked and is no part of the talk: it did not fit, or its answer was not kept.
        last: the last answer.

    Raises:
        UsageError: a window that the model does not have, or a system prompt in a plain talk.
    """

    def __init__(
        self,
        sampler: Sampler,
        contract: Contract,
        settings: TalkConfig,
        *,
        context_length: int | None,
        system: str = "",
        construct: Construct | None = None,
        plain: bool = False,
        seed: int = 0,
    ) -> None:
        self.turns: list[Turn] = []
        self.own_system: str | None = None
        self.unanswered: str | None = None
        self.last: Answer | None = None
        self.construct = construct
        self.plain = plain
        self.context_length = context_length
        self._sampler = sampler
        self._contract = contract
        self._system = system
        self._seed = seed
        self._draws = 0
        self.settings = settings
        self.use(settings)
        self._check_system(system)

    # ---------------------------------------------------------------------------------------------- settings

    def use(self, settings: TalkConfig) -> None:
        """Draw the next answers with these settings. Raises UsageError for a window that the model does not have."""
        most = self.context_length
        if settings.context is not None and most is not None and settings.context > most:
            raise UsageError(f"context {settings.context:,} is more than the model's {most:,} positions; lower it")
        if settings.seed != self.settings.seed:
            self._draws = 0
        self.settings = settings

    def tell(self, system: str | None) -> None:
        """Set the user's system prompt; None goes back to the one that the talk began with, "" means none."""
        self._check_system(system or "")
        self.own_system = system

    def _check_system(self, system: str) -> None:
        if self.plain and system:
            raise UsageError(
                "plain text has no place for a system prompt; leave it out and write what you want into the prompt"
                + ("" if self.construct is None else ', or give a construct with system: ""')
            )

    @property
    def system(self) -> str:
        """The system prompt that counts; "" without one."""
        return self._system if self.own_system is None else self.own_system

    @property
    def window(self) -> int:
        """Tokens for prompt and answer together."""
        return self.settings.context or self.context_length or WINDOW

    @property
    def seed(self) -> int:
        """Of the first draw; each further one has the next."""
        return self._seed if self.settings.seed is None else self.settings.seed

    # ---------------------------------------------------------------------------------------------- asking

    def ask(self, question: str, listener: Listener | None = None) -> Answer:
        """Put a question and hear the answer out, which becomes part of the talk with it.

        A KeyboardInterrupt ends the answer; what was said until then is kept and marked.

        Raises:
            TooLong: no room for an answer; nothing was cut and nothing has changed.
            DataError: the chat template refuses the messages.
        """
        self.unanswered = question
        prompt, budget = self.prepare(question)
        listener = listener or Silent()
        listener.begins(budget)
        seed = self.seed + self._draws
        self._draws += 1
        drawn = Drawn(self._contract.decode, self.settings.stop, self.construct, listener)
        finish: Finish | Literal["interrupted"] = "interrupted"
        try:
            completion = self._draw(prompt, self.settings.sampling(budget.limit), seed, drawn)
            ids, whole, finish = completion.ids, completion.text, completion.finish
        except KeyboardInterrupt:
            ids = tuple(drawn.ids)
            whole = self._contract.decode(ids).rstrip(BROKEN)  # half a character
        answer = self._answer(ids, whole, budget, finish, drawn)
        self.last = answer
        if answer.kept:
            interrupted = finish == "interrupted"
            self.turns += [Turn("user", question), Turn("assistant", answer.text, interrupted=interrupted)]
            self.unanswered = None
        return answer

    def prepare(self, question: str) -> tuple[Prompt, Budget]:
        """The prompt that the question makes, and its budget. Raises as `ask` does."""
        prompt = self._prompt(question, self.shown)
        window = self.window
        room = window - len(prompt.ids)
        if room < 1:
            raise TooLong(len(prompt.ids), window, self._enough(question))
        return prompt, Budget(len(prompt.ids), window, min(self.settings.max_tokens or room, room))

    def _draw(self, prompt: Prompt, settings: SamplingConfig, seed: int, drawn: Drawn) -> Completion:
        temperature = self.settings.temperature
        if isinstance(self._sampler, Streams):
            return self._sampler.stream(prompt, settings, seed=seed, on_token=drawn, temperature=temperature)
        (group,) = self._sampler.sample([prompt], 1, settings, seed=seed, temperature=temperature)
        return group.completions[0]

    def _answer(
        self, ids: tuple[int, ...], whole: str, budget: Budget, finish: Finish | Literal["interrupted"], drawn: Drawn
    ) -> Answer:
        drawn.rest(whole)
        written = cut_at(whole, self.settings.stop)
        contest: Contest | None = None
        ends: tuple[int, ...] = ()
        text, note, is_answer = written, "", True
        if self.construct is not None:
            contest = parse(written, self.construct)
            ends = tuple(self._contract.token_ends(ids, whole))
            text, note, is_answer = told(contest)
        if finish == "interrupted" and not (drawn.answering and text.strip()):
            text, note, is_answer = "", "stopped before there was an answer", False
        elif not text.strip():
            note, is_answer = "the model said nothing", False
        drawn.show_missing(text)
        return Answer(text, written, budget, len(ids), drawn.rate, finish, note, is_answer, contest, ends)

    def _content(self, question: str, shown: Sequence[Turn]) -> Content:
        if self.plain:
            return question
        head = [Message("system", self.system)] if self.system else []
        return (*head, *(Message(turn.role, turn.content) for turn in shown), Message("user", question))

    def _prompt(self, question: str, shown: Sequence[Turn]) -> Prompt:
        texts = [self.system, question, *(turn.content for turn in shown)]
        if not all(map(is_unicode, texts)):
            raise DataError(f"{_HERE}: a message holds bytes that are no text; the terminal and LANG should agree")
        try:
            return self._contract.prompt(Example(self._content(question, shown), where=_HERE))
        except DataError as error:
            if self.system and "chat template refuses" in str(error):
                raise DataError(f"{error}. Without a system prompt it may take them") from error
            raise

    def _enough(self, question: str) -> int | None:
        """How many exchanges to forget so that the question fits; None when all are not enough."""
        there = self.exchanges()
        low, high = 1, len(there)
        if not there or len(self._prompt(question, ()).ids) >= self.window:
            return None
        while low < high:
            middle = (low + high) // 2
            left = [self.turns[place] for exchange in there[middle:] for place in exchange]
            fits = len(self._prompt(question, left).ids) < self.window
            low, high = (low, middle) if fits else (middle + 1, high)
        return low

    # ---------------------------------------------------------------------------------------------- history

    @property
    def shown(self) -> list[Turn]:
        """The messages that the model is shown again."""
        return [turn for turn in self.turns if not turn.forgotten]

    def exchanges(self) -> list[list[int]]:
        """What the model is shown, cut at the user's messages: places in `turns`."""
        out: list[list[int]] = []
        for place, turn in enumerate(self.turns):
            if turn.forgotten:
                continue
            if turn.role == "user" or not out:
                out.append([])
            out[-1].append(place)
        return out

    def forget(self, exchanges: int | None = None) -> int:
        """No longer show the model the oldest exchanges (all of them by default). Returns how many were left out."""
        gone = self.exchanges()[:exchanges]
        for place in (place for exchange in gone for place in exchange):
            self.turns[place] = replace(self.turns[place], forgotten=True)
        return len(gone)

    def undo(self) -> str | None:
        """Take the last exchange back, as if it had not been. Returns its question, None without any."""
        there = self.exchanges()
        if not there:
            return None
        first = self.turns[there[-1][0]]
        for place in reversed(there[-1]):
            del self.turns[place]
        return first.content if first.role == "user" else ""

    def retry(self, listener: Listener | None = None) -> Answer | None:
        """Ask the last question anew, with new draws. None when there is none. An answer that is not kept, and an
        error, leave the talk as it was."""
        if self.unanswered is not None:
            return self.ask(self.unanswered, listener)
        before = list(self.turns)
        question = self.undo()
        if not question:
            self.turns = before
            return None
        kept = False
        try:
            answer = self.ask(question, listener)
            kept = answer.kept
        finally:
            if not kept:
                self.turns, self.unanswered = before, None
        return answer

    def load(self, turns: Sequence[Turn]) -> None:
        """Go on from these messages. What was said before is forgotten, but stays in `turns`."""
        self.forget()
        self.turns += turns
        self.unanswered = None

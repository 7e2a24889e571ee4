"""A tier behind an OpenAI-compatible endpoint. Retries are those of `preftune.sampling.endpoint`."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from preftune.curation.generate.config import EndpointConfig, TierConfig
from preftune.curation.generate.limit import RateLimit
from preftune.curation.generate.prompts import Asked
from preftune.errors import SamplingError
from preftune.judges.cache import count_of
from preftune.records import Content, Message
from preftune.sampling.endpoint import SEEDS, Answer, Endpoint, RefusedRequest, Words

CHARACTERS_PER_TOKEN = 3
"""For the estimate of a request's tokens before the server has counted them."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One answer.

    Attributes:
        k: which of the tier's answers to the prompt.
        text: as the server sent it.
        finish: eos, or length for one that was cut.
        usage: tokens in and out of the call, on the first answer of each call; None where the server does not say.
        first: of its call.
    """

    k: int
    text: str
    finish: str
    usage: tuple[int | None, int | None] | None = None
    first: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of asking for a prompt's missing answers: some or all of them, and why some are missing.

    Attributes:
        refused: the server, or the model, can't answer this prompt; another may be answered.
        usage: tokens of a call that gave no answer and is paid for all the same.
    """

    answers: list[Drawn] = field(default_factory=list)
    problem: str = ""
    refused: bool = False
    usage: tuple[int | None, int | None] | None = None


class RemoteTier:
    """Asks one endpoint.

    Raises:
        SamplingError: no usable key.
    """

    def __init__(self, tier: TierConfig, *, seed: int) -> None:
        assert tier.endpoint is not None
        self._tier, self._config, self._seed = tier, tier.endpoint, seed
        self.halt = threading.Event()
        self._limit = RateLimit(
            self._config.requests_per_minute, self._config.tokens_per_minute, wait=self.halt.wait
        )  # fmt: skip
        self._endpoint = Endpoint(
            self._config.model,
            base_url=self._config.base_url,
            api_key=None,  # from the environment alone
            key_variable=self._config.key_variable,
            timeout=self._config.timeout,
            backoff=self._config.backoff,
            patience=self._config.patience,
            words=Words(whose="the endpoint's", max_tokens="sampling.max_tokens", tries="patience"),
        )

    def close(self) -> None:
        """Close the connections."""
        self._endpoint.close()

    def ask_all(self, tasks: Iterable[tuple[Asked, list[int]]], keep: Callable[[Asked, Outcome], None]) -> None:
        """Ask for prompts' missing answers, `concurrency` prompts at a time.

        Whatever `keep` raises, or Ctrl-C, ends it: nothing more is sent, and the answers that are under way, which will
        be paid for, are waited for and kept, refusals too.
        """
        going: dict[Future[Outcome], Asked] = {}
        pool = ThreadPoolExecutor(self._config.concurrency, thread_name_prefix="tier")
        try:
            for asked, missing in tasks:
                going[pool.submit(self.ask, asked, missing)] = asked
                if len(going) >= 2 * self._config.concurrency:
                    _hand_on(going, keep)
            while going:
                _hand_on(going, keep)
        finally:
            self.halt.set()
            pool.shutdown(wait=True, cancel_futures=True)
            for future, asked in going.items():
                if future.cancelled() or future.exception() is not None:
                    continue
                outcome = future.result()
                if not outcome.refused:  # what is missing was not asked for any more, which is no failure
                    outcome = Outcome(outcome.answers)
                if outcome.answers or outcome.refused:
                    with suppress(SamplingError):
                        keep(asked, outcome)

    def ask(self, asked: Asked, missing: list[int]) -> Outcome:
        """Ask for answers `missing` to a prompt. All at once first; a server that gives fewer is asked one by one."""
        answers: list[Drawn] = []
        left = list(missing)
        while left:
            wanted = len(left) if self._config.at_once and not answers else 1
            call, body = self._request(asked, wanted, left[0])
            try:
                found = self._send(call, body, asked)
            except RefusedRequest as refusal:
                return Outcome(answers, str(refusal), refused=True)
            except SamplingError as error:
                return Outcome(answers, str(error))
            usage = (count_of(found.usage.get("prompt_tokens")), count_of(found.usage.get("completion_tokens")))
            for place, choice in enumerate(found.choices[:wanted]):
                text, finish, problem = self._read(choice)
                if problem:
                    paid = usage if place == 0 else None
                    return Outcome(answers, f"{asked.where}: {problem}", refused=True, usage=paid)
                answers.append(Drawn(left.pop(0), text, finish, usage if place == 0 else None, place == 0))
        return Outcome(answers)

    def _send(self, call: Callable[..., Any], body: dict[str, Any], asked: Asked) -> Answer:
        size = _characters(asked.content) + len(self._tier.system or "")
        expected = size // CHARACTERS_PER_TOKEN + body.get("n", 1) * self._tier.sampling.max_tokens

        def limited(**fields: Any) -> Any:
            self._limit.acquire(expected)  # each attempt counts
            return call(**fields)

        found = self._endpoint.answer(limited, body, asked.where, self.halt)
        counted = [count_of(found.usage.get(name)) for name in ("prompt_tokens", "completion_tokens")]
        if all(count is not None for count in counted):
            self._limit.correct(expected, sum(count or 0 for count in counted))
        return found

    def _request(self, asked: Asked, n: int, k: int) -> tuple[Callable[..., Any], dict[str, Any]]:
        """The call and its arguments. Settings at their neutral value are left out: not every server knows them."""
        draw = self._tier.sampling
        body: dict[str, Any] = {
            "model": self._config.model, "max_tokens": draw.max_tokens, "temperature": draw.temperature,
            "seed": seed_of(self._seed, self._tier.name, asked.index, k) % SEEDS,
        }  # fmt: skip
        if n > 1:
            body["n"] = n
        if draw.top_p < 1.0:
            body["top_p"] = draw.top_p
        if draw.stop:
            body["stop"] = list(draw.stop)
        # Not in OpenAI's own interface, but in that of vLLM, SGLang and llama.cpp.
        neutral = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
        extra = {name: getattr(draw, name) for name, value in neutral.items() if getattr(draw, name) != value}
        for name, value in self._config.extra_body.items():
            body.pop(name, None)
            extra.pop(name, None)
            if value is not None:
                extra[name] = value
        if extra:
            body["extra_body"] = extra
        content = shown_to(self._tier, asked.content, chat=self._tier.form != "text")
        client = self._endpoint.client
        if isinstance(content, str):
            return client.completions.with_raw_response.create, {**body, "prompt": content}
        messages = [{"role": turn.role, "content": turn.content} for turn in content]
        return client.chat.completions.with_raw_response.create, {**body, "messages": messages}

    def _read(self, choice: dict[str, Any]) -> tuple[str, str, str]:
        """A choice's text, how it ended, and why it is no answer."""
        message = choice.get("message")
        said: Any = message if isinstance(message, dict) else {}
        text = said.get("content") if said else choice.get("text")
        reason = choice.get("finish_reason")
        if said.get("refusal") and not text:
            return "", "", f"{self._endpoint.name} refused: {self._endpoint.without_key(str(said['refusal']))[:300]}"
        if reason not in ("stop", "length") or not isinstance(text, str):
            told = f"{self._endpoint.name} ended an answer by {reason!r} with {'text' if text else 'no text'}"
            return "", "", f"{told}, which is no finished answer (a content filter or a tool call, say)"
        return self._endpoint.without_key(text), "length" if reason == "length" else "eos", ""


def shown_to(tier: TierConfig, content: Content, *, chat: bool) -> Content:
    """What a tier is asked: the prompt with the tier's system message, plain text as a user's message in a chat."""
    if isinstance(content, str):
        if not chat:
            return content
        content = (Message("user", content),)
    return content if tier.system is None else (Message("system", tier.system), *content)


def seed_of(seed: int, tier: str, *places: int) -> int:
    """A seed below 2⁴⁸ for one draw of a tier. Draws of other tiers, prompts and places have others."""
    name = f"{seed}/{tier}/{'/'.join(map(str, places))}"
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=6).digest())


def cost_of(config: EndpointConfig | None, tokens_in: int, tokens_out: int) -> float | None:
    """In the currency of the prices; None where there are none."""
    if config is None or config.price_input is None or config.price_output is None:
        return None
    return (tokens_in * config.price_input + tokens_out * config.price_output) / 1e6


def _hand_on(going: dict[Future[Outcome], Asked], keep: Callable[[Asked, Outcome], None]) -> None:
    """Wait until some are ready, and hand them on."""
    for future in wait(going, return_when=FIRST_COMPLETED).done:
        asked = going.pop(future)
        keep(asked, future.result())


def _characters(content: Content) -> int:
    return len(content) if isinstance(content, str) else sum(len(turn.content) for turn in content)

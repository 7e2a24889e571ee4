"""One OpenAI-compatible endpoint: a request is sent, again while it fails for a passing reason, or explained.

What is asked and what becomes of the answer is the caller's affair: `ApiSampler`, and the judge's backend.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import tenacity

from preftune.errors import SamplingError

if TYPE_CHECKING:
    import openai

_LONGEST_WAIT = 60.0
SEEDS = 2**31 - 1
"""Servers keep seeds in 32 bits."""


@dataclass(frozen=True, slots=True)
class Words:
    """How messages call the settings that a user may have to change.

    Attributes:
        whose: of the caller's own settings (timeout, concurrency, …).
        max_tokens: the limit of a completion.
        tries: the setting that says how long a request is tried.
    """

    whose: str = "the sampler's"
    max_tokens: str = "sampling.max_tokens"
    tries: str = "attempts"


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's answer: its choices by index, and what it says of token counts (empty when it says nothing)."""

    choices: list[dict[str, Any]]
    usage: Mapping[str, Any] = field(default_factory=dict)


class RefusedRequest(SamplingError):
    """The server refused this one request (too long, a setting that it does not know); another may pass."""


class Endpoint:
    """A client of one endpoint.

    Args:
        model: the model's name at the server.
        base_url: usually ending in /v1; default OPENAI_BASE_URL, then OpenAI's own.
        api_key: default: the environment variable `key_variable`. Servers at a base_url may need none.
        timeout: seconds without an answer before a request counts as failed.
        backoff: seconds before the second attempt, at most; each further wait may be twice as long, up to a minute,
            and is drawn at random so that many clients do not return at once. A server's Retry-After is kept to, up to
            a minute as well.
        attempts: how often one request is tried when it fails for a passing reason.
        patience: instead of attempts: a request is tried again until this many seconds have passed since its first
            attempt, so an outage of that length is survived for certain.

    Attributes:
        client: the library's client, which does not try again by itself.
        address: without what may be secret in it.

    Raises:
        SamplingError: no usable key.
    """

    client: openai.OpenAI

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None,
        api_key: str | None,
        key_variable: str,
        timeout: float,
        backoff: float,
        attempts: int | None = None,
        patience: float | None = None,
        words: Words | None = None,
    ) -> None:
        if (attempts is None) == (patience is None):
            raise ValueError("give attempts or patience")
        import openai  # takes 0.4 s, so only when an endpoint is used

        base_url = base_url or os.environ.get("OPENAI_BASE_URL")
        self.model = model
        self._words = words or Words()
        self._key_variable = key_variable
        self._key = _usable_key(api_key, key_variable, needed=base_url is None)
        self._patience = patience
        self._stop: Any = (
            tenacity.stop_after_delay(patience) if patience is not None else tenacity.stop_after_attempt(attempts or 1)
        )
        self._wait = wait(backoff)
        self.client = openai.OpenAI(
            # The library insists on a key; servers without keys ignore this one.
            api_key=self._key or "none",
            base_url=base_url,
            timeout=timeout,
            max_retries=0,  # retried here, where the prompt is known
        )
        self.address = _shown(str(self.client.base_url))

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    @property
    def name(self) -> str:
        """Model and address, for messages."""
        return f"{self.model} at {self.address}"

    def answer(self, call: Callable[..., Any], body: dict[str, Any], where: str, halt: threading.Event) -> Answer:
        """Send a request, again while it fails for a passing reason.

        Args:
            call: a `with_raw_response.create` of `client`.
            body: its arguments.
            where: names the request in errors.
            halt: once set, nothing is sent and no wait goes on.

        Raises:
            RefusedRequest: the server refuses this request. SamplingError: any other failure, for good.
        """
        import openai

        if halt.is_set():
            raise SamplingError(f"{where}: not asked, as sampling has stopped")
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_passing),
            stop=self._stop | tenacity.stop_when_event_set(halt),
            wait=self._wait,
            sleep=tenacity.sleep_using_event(halt),
            reraise=True,
        )
        try:
            return retrying(lambda: _read(call(**body).http_response.text))
        except (openai.OpenAIError, _Malformed) as error:
            kind = SamplingError
            if isinstance(error, openai.APIStatusError) and error.status_code in (400, 413, 422):
                kind = RefusedRequest
            # `from None`: servers echo keys, and a chained traceback would print what is taken out here.
            raise kind(self._explain(error, where, retrying.statistics)) from None

    def without_key(self, text: str) -> str:
        """Text in which the key does not stand."""
        return text.replace(self._key, "[key]") if self._key else text

    def _explain(self, error: Exception, where: str, statistics: Mapping[str, Any]) -> str:
        import openai

        words = self._words
        said, remedy = str(error), "see the server's documentation"
        if isinstance(error, openai.APIStatusError):
            said = f"{error.status_code}, {_server_words(error)}"
            remedy = _REMEDIES.get(error.status_code, remedy)
            if error.status_code >= 500:
                remedy = "the server is down or overloaded: try again later, or lower {whose} concurrency"
            if _out_of_quota(error):
                remedy = "the account's quota is used up: check its plan and billing"
        elif isinstance(error, openai.APITimeoutError):
            said = "no answer in time"
            remedy = "raise {whose} timeout, or lower its concurrency or {max_tokens}"
        elif isinstance(error, openai.APIConnectionError):
            said = f"no connection ({error.__cause__ or error})"
            remedy = "check base_url and that the server runs"
        elif isinstance(error, _Malformed):
            remedy = "check that base_url is an OpenAI-compatible endpoint (it usually ends in /v1)"
        remedy = remedy.format(
            key=self._key_variable, whose=words.whose, max_tokens=words.max_tokens, tries=words.tries
        )
        fate = "refused the request:"
        if _passing(error):
            span = "" if self._patience is None else f" in {statistics['delay_since_first_attempt']:.0f} s"
            fate = f"failed {statistics['attempt_number']} times{span}, last with"
        return f"{where}: {self.name} {fate} {self.without_key(said)}; {remedy}"


_REMEDIES = {
    400: "check {max_tokens} against the server's context length, and that it knows the sampling settings used",
    401: "set a valid key in {key}",
    403: "the key in {key} may not use this model",
    404: "check the model's name and base_url (it usually ends in /v1)",
    413: "the prompt is too long for the server",
    422: "check that the server knows the sampling settings used",
    429: "lower {whose} concurrency, or raise its {tries}",
}


class _Malformed(Exception):
    """An answer that is no completion."""


def _read(text: str) -> Answer:
    """The choices of a raw answer, by index, and its token counts."""
    start = repr(text[:80]) + (" …" if len(text) > 80 else "")
    try:
        body = json.loads(text)
    except json.JSONDecodeError as error:
        raise _Malformed(f"an answer that is no JSON: {start}") from error
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, dict) for choice in choices):
        raise _Malformed(f"an answer without choices: {start}")
    usage = body.get("usage")
    ordered = sorted(choices, key=lambda choice: choice["index"] if isinstance(choice.get("index"), int) else 0)
    return Answer(ordered, usage if isinstance(usage, dict) else {})


def _passing(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return (error.status_code in (408, 429) and not _out_of_quota(error)) or error.status_code >= 500
    return isinstance(error, (openai.APIConnectionError, _Malformed))


def _out_of_quota(error: openai.APIStatusError) -> bool:
    return error.code == "insufficient_quota"


def _server_words(error: openai.APIStatusError) -> str:
    body = error.body
    words = body.get("message") if isinstance(body, dict) else body
    text = " ".join(str(words or error.message).split())
    return text if len(text) <= 300 else text[:300] + " …"


def wait(backoff: float) -> Callable[[tenacity.RetryCallState], float]:
    """Seconds before the next attempt, see `Endpoint`."""
    import openai

    exponential = tenacity.wait_random_exponential(multiplier=backoff, max=_LONGEST_WAIT)

    def seconds_of(state: tenacity.RetryCallState) -> float:
        seconds = exponential(state)
        error = state.outcome.exception() if state.outcome is not None else None
        if isinstance(error, openai.APIStatusError):
            asked = error.response.headers.get("retry-after", "")
            if asked.replace(".", "", 1).isdigit():  # the date form is rare and left to the backoff
                return min(max(seconds, float(asked)), _LONGEST_WAIT)
        return seconds

    return seconds_of


def _usable_key(given: str | None, variable: str, *, needed: bool) -> str:
    key = (given or os.environ.get(variable, "")).strip()
    if not key and needed:
        raise SamplingError(f"no API key: set the environment variable {variable}, or give base_url for a local server")
    if not (key.isascii() and key.isprintable()):
        raise SamplingError(f"the API key in {variable} holds characters that can't be in a key; set it again")
    return key


def _shown(url: str) -> str:
    """An address without what may be secret in it: user, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))

"""ApiSampler: completions from any OpenAI-compatible endpoint (a hosted model, a vLLM or llama.cpp server)."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import tenacity

from preftune.config import SamplingConfig
from preftune.errors import SamplingError
from preftune.records import Completion, Distribution, Finish, Group, Prompt
from preftune.sampling.base import Progress, distribution_of

if TYPE_CHECKING:
    import openai

_LONGEST_WAIT = 60.0
_SEEDS = 2**31 - 1  # servers keep seeds in 32 bits


class ApiSampler:
    """Samples from a model behind an OpenAI-compatible endpoint; see `Sampler`.

    Prompts of messages go to the chat endpoint, which renders them with the server's own template; plain text goes to
    the completions endpoint. A prompt that the token contract truncated is sent in full when it is messages.

    **What these completions are not.** The server sends text, so `ids` are that text tokenised anew and may differ
    from what the model wrote. There are no log-probs, and `source` is the model's name: such completions train by
    likelihood (SFT, pairs, the judge's winner) and can't be used with importance ratios. `distribution` records what
    was asked for.

    A completion that ended by itself gets the EOS id. Where stop strings are set and the server does not say what ended
    the text (vLLM does), it counts as a stop string, so that no EOS is invented; the stop string, which servers
    cut off, is put back when it is known.

    Seeds are passed on; whether a server keeps to them is up to it.

    Args:
        model: the model's name at the server.
        encode: ids of a completion's text, without EOS, as the trained model's tokenizer writes them.
        eos_id: put behind completions that ended by themselves.
        base_url: the endpoint, usually ending in /v1; default OPENAI_BASE_URL, then OpenAI's own.
        api_key: default: the environment variable `key_variable`. Servers at a base_url may need none.
        key_variable: environment variable that holds the key.
        timeout: seconds without an answer before a request counts as failed.
        attempts: how often one request is tried when it fails for a passing reason (429, 408, 5xx, timeout, connection,
            an answer that is no JSON).
        backoff: seconds before the second attempt, at most; each further wait may be twice as long, up to a minute,
            and is drawn at random so that many clients do not return at once. A server's Retry-After is kept to, up to
            a minute as well.
        concurrency: requests in flight.

    Raises:
        SamplingError: no usable key.
    """

    def __init__(
        self,
        model: str,
        *,
        encode: Callable[[str], Sequence[int]],
        eos_id: int,
        base_url: str | None = None,
        api_key: str | None = None,
        key_variable: str = "OPENAI_API_KEY",
        timeout: float = 120.0,
        attempts: int = 6,
        backoff: float = 1.0,
        concurrency: int = 8,
    ) -> None:
        if attempts < 1 or concurrency < 1 or timeout <= 0 or backoff < 0:
            raise ValueError("attempts and concurrency must be at least 1, timeout positive, backoff not negative")
        import openai  # takes 0.4 s, so only when an endpoint is used

        base_url = base_url or os.environ.get("OPENAI_BASE_URL")
        self.model = model
        self._encode = encode
        self._eos_id = eos_id
        self._key_variable = key_variable
        self._key = _usable_key(api_key, key_variable, needed=base_url is None)
        self._attempts = attempts
        self._backoff = backoff
        self._concurrency = concurrency
        self._client = openai.OpenAI(
            # The library insists on a key; servers without keys ignore this one.
            api_key=self._key or "none",
            base_url=base_url,
            timeout=timeout,
            max_retries=0,  # retried here, where the prompt is known
        )
        self._address = _shown(str(self._client.base_url))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def sample(
        self,
        prompts: Sequence[Prompt],
        n: int,
        settings: SamplingConfig,
        *,
        seed: int,
        policy_version: int = 0,
        temperature: float | None = None,
        progress: Progress | None = None,
    ) -> list[Group]:
        """See `Sampler.sample`. The order is the prompts', whichever answer comes first.

        Raises:
            SamplingError: a request was refused (at once) or kept failing (after all attempts); names the prompt.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, not {n}")
        drawn = distribution_of(settings, temperature)
        halt = threading.Event()
        finished: dict[int, Group] = {}
        pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="api-sampler")
        try:
            futures: dict[Future[Group], int] = {
                pool.submit(self._group, prompt, index, n, settings, drawn, seed, policy_version, halt): index
                for index, prompt in enumerate(prompts)
            }
            for future in as_completed(futures):
                finished[futures[future]] = future.result()
                if progress is not None:
                    progress(len(finished) * n, len(prompts) * n)
        finally:
            # After an error or Ctrl-C: no new requests, no more waiting between attempts, and no waiting here for
            # answers that nobody will read.
            halt.set()
            pool.shutdown(wait=len(finished) == len(prompts), cancel_futures=True)
        return [finished[index] for index in range(len(prompts))]

    # --- one prompt -------------------------------------------------------------------------------------------

    def _group(
        self,
        prompt: Prompt,
        index: int,
        n: int,
        settings: SamplingConfig,
        drawn: Distribution,
        seed: int,
        policy_version: int,
        halt: threading.Event,
    ) -> Group:
        where = prompt.where or f"prompt {index} ({prompt.text[:40]!r})"
        completions: list[Completion] = []
        while len(completions) < n:
            # The first request asks for all. A server that gives fewer (many give one) is then asked one by one, each
            # time with another seed, else it would repeat itself.
            missing = n if not completions else 1
            request_seed = (seed * 1_000_003 + index * 1_009 + len(completions)) % _SEEDS
            call, body = self._request(prompt, missing, settings, drawn, request_seed)
            choices = self._answer(call, body, where, halt)
            if len(choices) > missing:
                raise SamplingError(f"{where}: {self._name()} gave {len(choices)} completions for n={missing}")
            for choice in choices:
                text, finish = self._read(choice, settings.stop, where)
                ids = tuple(self._encode(text)) + ((self._eos_id,) if finish == "eos" else ())
                completions.append(
                    Completion(
                        ids=ids,
                        mask=(True,) * len(ids),
                        text=text,
                        finish=finish,
                        logprobs=None,
                        distribution=drawn,
                        policy_version=policy_version,
                        source=self.model,
                    )
                )
        return Group(prompt, tuple(completions))

    def _request(
        self, prompt: Prompt, n: int, settings: SamplingConfig, drawn: Distribution, seed: int
    ) -> tuple[Callable[..., Any], dict[str, Any]]:
        """The endpoint and its arguments. Settings at their neutral value are left out: not every server knows them."""
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": settings.max_tokens,
            "temperature": drawn.temperature,
            "seed": seed,
        }
        if n > 1:
            body["n"] = n
        if drawn.top_p < 1.0:
            body["top_p"] = drawn.top_p
        if settings.stop:
            body["stop"] = list(settings.stop)
        # Not in OpenAI's own interface, but in that of vLLM, SGLang and llama.cpp.
        extra: dict[str, Any] = {}
        if drawn.top_k:
            extra["top_k"] = drawn.top_k
        if drawn.min_p > 0.0:
            extra["min_p"] = drawn.min_p
        if drawn.repetition_penalty != 1.0:
            extra["repetition_penalty"] = drawn.repetition_penalty
        if extra:
            body["extra_body"] = extra
        if isinstance(prompt.content, str):
            body["prompt"] = prompt.text
            return self._client.completions.with_raw_response.create, body
        body["messages"] = [{"role": message.role, "content": message.content} for message in prompt.content]
        return self._client.chat.completions.with_raw_response.create, body

    # --- one request ------------------------------------------------------------------------------------------

    def _answer(
        self, call: Callable[..., Any], body: dict[str, Any], where: str, halt: threading.Event
    ) -> list[dict[str, Any]]:
        """Send a request, again while it fails for a passing reason, and return its choices in order."""
        import openai

        if halt.is_set():
            raise SamplingError(f"{where}: not asked, as sampling has stopped")
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_passing),
            stop=tenacity.stop_after_attempt(self._attempts) | tenacity.stop_when_event_set(halt),
            wait=_wait(self._backoff),
            sleep=tenacity.sleep_using_event(halt),
            reraise=True,
        )
        try:
            return retrying(lambda: _choices(call(**body).http_response.text))
        except (openai.OpenAIError, _Malformed) as error:
            # `from None`: servers echo keys, and a chained traceback would print what is taken out here.
            raise SamplingError(self._explain(error, where)) from None

    def _read(self, choice: dict[str, Any], stops: Sequence[str], where: str) -> tuple[str, Finish]:
        """A choice's text and why it ended."""
        message = choice.get("message")
        text = message.get("content") if isinstance(message, dict) else choice.get("text")
        reason = choice.get("finish_reason")
        if reason not in ("stop", "length") or not isinstance(text, str):
            raise SamplingError(
                f"{where}: {self._name()} ended a completion by {reason!r} with {'text' if text else 'no text'}, which "
                "is no finished answer (a content filter or a tool call, say); remove or change the prompt"
            )
        if reason == "length":
            return text, "length"
        if not stops:
            return text, "eos"
        if "stop_reason" not in choice:
            return text, "stop"
        stopped_by = choice["stop_reason"]
        if not isinstance(stopped_by, str):
            return text, "eos"  # null, or the id of an EOS token
        return text if text.endswith(stopped_by) else text + stopped_by, "stop"

    # --- words ------------------------------------------------------------------------------------------------

    def _name(self) -> str:
        return f"{self.model} at {self._address}"

    def _explain(self, error: Exception, where: str) -> str:
        import openai

        said, remedy = str(error), "see the server's documentation"
        if isinstance(error, openai.APIStatusError):
            said = f"{error.status_code}, {_server_words(error)}"
            remedy = _REMEDIES.get(error.status_code, remedy)
            if error.status_code >= 500:
                remedy = "the server is down or overloaded: try again later, or lower the sampler's concurrency"
            if _out_of_quota(error):
                remedy = "the account's quota is used up: check its plan and billing"
        elif isinstance(error, openai.APITimeoutError):
            said = "no answer in time"
            remedy = "raise the sampler's timeout, or lower its concurrency or sampling.max_tokens"
        elif isinstance(error, openai.APIConnectionError):
            said = f"no connection ({error.__cause__ or error})"
            remedy = "check base_url and that the server runs"
        elif isinstance(error, _Malformed):
            remedy = "check that base_url is an OpenAI-compatible endpoint (it usually ends in /v1)"
        remedy = remedy.format(key=self._key_variable)
        fate = f"failed {self._attempts} times, last with" if _passing(error) else "refused the request:"
        return f"{where}: {self._name()} {fate} {self._without_key(said)}; {remedy}"

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text


_REMEDIES = {
    400: "check sampling.max_tokens against the server's context length, and that it knows the sampling settings used",
    401: "set a valid key in {key}",
    403: "the key in {key} may not use this model",
    404: "check the model's name and base_url (it usually ends in /v1)",
    413: "the prompt is too long for the server",
    422: "check that the server knows the sampling settings used",
    429: "lower the sampler's concurrency, or raise its attempts",
}


class _Malformed(Exception):
    """An answer that is no completion."""


def _choices(text: str) -> list[dict[str, Any]]:
    """The choices of a raw answer, by index."""
    start = repr(text[:80]) + (" …" if len(text) > 80 else "")
    try:
        body = json.loads(text)
    except json.JSONDecodeError as error:
        raise _Malformed(f"an answer that is no JSON: {start}") from error
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, dict) for choice in choices):
        raise _Malformed(f"an answer without choices: {start}")
    return sorted(choices, key=lambda choice: choice["index"] if isinstance(choice.get("index"), int) else 0)


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


def _wait(backoff: float) -> Callable[[tenacity.RetryCallState], float]:
    import openai

    exponential = tenacity.wait_random_exponential(multiplier=backoff, max=_LONGEST_WAIT)

    def wait(state: tenacity.RetryCallState) -> float:
        seconds = exponential(state)
        error = state.outcome.exception() if state.outcome is not None else None
        if isinstance(error, openai.APIStatusError):
            asked = error.response.headers.get("retry-after", "")
            if asked.replace(".", "", 1).isdigit():  # the date form is rare and left to the backoff
                return min(max(seconds, float(asked)), _LONGEST_WAIT)
        return seconds

    return wait


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

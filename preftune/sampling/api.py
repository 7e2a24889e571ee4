"""ApiSampler: completions from any OpenAI-compatible endpoint (a hosted model, a vLLM or llama.cpp server)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any

from preftune.config import SamplingConfig
from preftune.errors import SamplingError
from preftune.records import Completion, Distribution, Finish, Group, Prompt
from preftune.sampling.base import Progress, distribution_of
from preftune.sampling.endpoint import SEEDS, Endpoint
from preftune.sampling.endpoint import wait as _wait

__all__ = ["ApiSampler", "_wait"]


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
        self.model = model
        self._encode = encode
        self._eos_id = eos_id
        self._concurrency = concurrency
        self._endpoint = Endpoint(
            model, base_url=base_url, api_key=api_key, key_variable=key_variable, timeout=timeout, backoff=backoff,
            attempts=attempts,
        )  # fmt: skip

    def close(self) -> None:
        """Close the connections."""
        self._endpoint.close()

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
            request_seed = (seed * 1_000_003 + index * 1_009 + len(completions)) % SEEDS
            call, body = self._request(prompt, missing, settings, drawn, request_seed)
            choices = self._endpoint.answer(call, body, where, halt).choices
            if len(choices) > missing:
                raise SamplingError(f"{where}: {self._endpoint.name} gave {len(choices)} completions for n={missing}")
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
            return self._endpoint.client.completions.with_raw_response.create, body
        body["messages"] = [{"role": message.role, "content": message.content} for message in prompt.content]
        return self._endpoint.client.chat.completions.with_raw_response.create, body

    def _read(self, choice: dict[str, Any], stops: Sequence[str], where: str) -> tuple[str, Finish]:
        """A choice's text and why it ended."""
        message = choice.get("message")
        text = message.get("content") if isinstance(message, dict) else choice.get("text")
        reason = choice.get("finish_reason")
        if reason not in ("stop", "length") or not isinstance(text, str):
            raise SamplingError(
                f"{where}: {self._endpoint.name} ended a completion by {reason!r} with "
                f"{'text' if text else 'no text'}, which is no finished answer (a content filter or a tool call, say); "
                "remove or change the prompt"
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

"""What writes a judge's replies: a model in this process, or one behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cached_property
from typing import Any

from preftune.errors import DataError, ModelError
from preftune.judges.base import Backend, Reply, Request
from preftune.judges.cache import count_of
from preftune.judges.config import JudgeConfig
from preftune.records import Example, Prompt

CHUNK = 4
"""Local replies are handed on after this many times `concurrency` prompts: a killed run keeps those."""

Keep = Callable[[int, Reply], None]


def make_backend(config: JudgeConfig) -> Backend:
    """The model that the settings name. Raises ModelError or SamplingError when it can't be used."""
    return LocalBackend(config) if config.path is not None else EndpointBackend(config)


class EndpointBackend:
    """A model behind an OpenAI-compatible chat endpoint. Retries are those of `preftune.sampling.endpoint`.

    Raises:
        SamplingError: no usable key.
    """

    def __init__(self, config: JudgeConfig) -> None:
        from preftune.sampling.endpoint import Endpoint, Words

        assert config.model is not None
        self._config = config
        self._endpoint = Endpoint(
            config.model,
            base_url=config.base_url,
            api_key=None,  # from the environment alone
            key_variable=config.key_variable,
            timeout=config.timeout,
            backoff=config.backoff,
            patience=config.patience,
            words=Words(whose="the judge's", max_tokens="max_tokens", tries="patience"),
        )

    @property
    def identity(self) -> Mapping[str, Any]:
        """The name and the address: what a server runs behind a name, it alone knows."""
        return {
            "endpoint": self._endpoint.address, "model": self._config.model, "extra_body": self._config.extra_body
        }  # fmt: skip

    def ask(self, requests: Sequence[Request], keep: Keep) -> None:
        """See `Backend.ask`. One request fails by itself when the server refuses it; anything else ends them all."""
        halt = threading.Event()
        errors: list[Exception] = []

        def one(index: int, request: Request) -> None:
            if halt.is_set():
                return
            try:
                keep(index, self._reply(request, halt))
            except Exception as error:  # noqa: BLE001  raised below, the first of them
                errors.append(error)
                halt.set()

        pool = ThreadPoolExecutor(self._config.concurrency, thread_name_prefix="judge")
        try:
            for _ in as_completed([pool.submit(one, n, request) for n, request in enumerate(requests)]):
                if errors:
                    raise errors[0]
        finally:
            # After an error or Ctrl-C: no new requests and no more waiting between attempts. Replies that are under way
            # are still kept by their threads.
            halt.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Close the connections."""
        self._endpoint.close()

    def _reply(self, request: Request, halt: threading.Event) -> Reply:
        from preftune.sampling.endpoint import RefusedRequest

        call = self._endpoint.client.chat.completions.with_raw_response.create
        try:
            answer = self._endpoint.answer(call, self._body(request), request.where or "a request", halt)
        except RefusedRequest as refusal:
            return Reply("", problem=str(refusal))
        counts = (count_of(answer.usage.get("prompt_tokens")), count_of(answer.usage.get("completion_tokens")))
        choice = answer.choices[0]
        message, reason = choice.get("message"), choice.get("finish_reason")
        text = message.get("content") if isinstance(message, dict) else None
        if reason == "length":
            return Reply(self._endpoint.without_key(text or ""), True, *counts)
        if reason == "stop" and isinstance(text, str):
            return Reply(self._endpoint.without_key(text), False, *counts)
        why = f"{self._endpoint.name} ended it by {reason!r} with {'text' if text else 'no text'}"
        return Reply("", False, *counts, problem=f"{why} (a content filter or a tool call, say)")

    def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._config.model,
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
            "max_tokens": self._config.max_tokens,
            "temperature": self._config.drawn_temperature,
            "seed": request.seed,
        }
        extra = self._config.extra_body
        for name in extra:
            body.pop(name, None)
        further = {name: value for name, value in extra.items() if value is not None}
        return {**body, "extra_body": further} if further else body


class LocalBackend:
    """A causal language model in this process, through its own chat template.

    Raises:
        ModelError: no such model, or one without a chat template.
    """

    def __init__(self, config: JudgeConfig) -> None:
        from preftune.config import TokensConfig
        from preftune.sampling.answering import load_for_answers
        from preftune.sampling.local import LocalSampler
        from preftune.tokens import TokenContract

        assert config.path is not None
        if config.path.startswith("stage:"):
            raise ModelError(
                f"{config.path} stands for a stage of a recipe; for a judge give the folder that the stage wrote "
                "(RUN/STAGE/final)"
            )
        self._config = config
        engine = load_for_answers(config.path, config)
        policy = engine.policy
        template = policy.tokenizer.chat_template
        if not template:
            raise ModelError(
                f"{config.path} has no chat template, so it can't be asked as a judge; give a model that was tuned for "
                "chat"
            )
        self._policy = policy
        self._template = str(template)
        tokens = TokensConfig(chat_template_kwargs=config.chat_template_kwargs)
        self._contract = TokenContract(policy.tokenizer, tokens, policy.generation_eos)
        self._sampler = LocalSampler(engine, self._contract)

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """The weights themselves, wherever they came from, and how messages become ids."""
        digest = hashlib.sha256()
        for name, parameter in self._policy.model.named_parameters():
            digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
            digest.update(_bytes_of(parameter))
        return {
            "architecture": type(self._policy.base).__name__,
            "weights": digest.hexdigest(),
            "template": self._template,
            "chat_template_kwargs": self._config.chat_template_kwargs,
        }

    def ask(self, requests: Sequence[Request], keep: Keep) -> None:
        """See `Backend.ask`. A request that does not fit into the model's positions fails by itself; nothing is cut."""
        from preftune.config import SamplingConfig

        settings = SamplingConfig(max_tokens=self._config.max_tokens, rows=self._config.concurrency)
        room = None
        if self._sampler.context_length is not None:
            room = self._sampler.context_length - self._config.max_tokens
        ready: list[tuple[int, Prompt]] = []
        for index, request in enumerate(requests):
            try:
                prompt = self._contract.prompt(Example(request.messages, where=request.where))
            except DataError as error:
                keep(index, Reply("", problem=str(error).removeprefix(f"{request.where}: ")))
                continue
            if room is not None and len(prompt.ids) > room:
                keep(index, Reply("", problem=self._too_long(len(prompt.ids))))
            else:
                ready.append((index, prompt))
        size = CHUNK * self._config.concurrency
        for start in range(0, len(ready), size):
            some = ready[start : start + size]
            # A vote that is asked by itself later must not draw the numbers of the one before it.
            seed = requests[some[0][0]].seed
            prompts = [prompt for _, prompt in some]
            groups = self._sampler.sample(prompts, 1, settings, seed=seed, temperature=self._config.drawn_temperature)
            for (index, prompt), group in zip(some, groups, strict=True):
                (completion,) = group.completions
                cut = completion.finish == "length"
                keep(index, Reply(completion.text, cut, len(prompt.ids), len(completion.ids)))

    def _too_long(self, tokens: int) -> str:
        return (
            f"{self._config.path} has {self._sampler.context_length} positions, and the request is {tokens} tokens "
            f"with max_tokens {self._config.max_tokens} to come; lower that, or use a judge with a longer context"
        )


def _bytes_of(parameter: Any) -> Any:
    import torch

    return parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()

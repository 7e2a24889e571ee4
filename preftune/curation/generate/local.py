"""A tier in this process, through the local sampler."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

from preftune.config import SamplingConfig, TokensConfig
from preftune.curation.generate.config import TierConfig
from preftune.curation.generate.prompts import Asked
from preftune.curation.generate.remote import Drawn, Outcome, seed_of, shown_to
from preftune.errors import DataError, ModelError
from preftune.records import Example, Prompt

CHUNK = 32
"""Prompts of one call of the sampler: rows 0 to 31, 32 to 63, … of the data. Their answers are kept together."""


class LocalTier:
    """A model and its tokenizer, until `close`.

    Answers depend on the seed, the tier's name, and the prompt's place in the data, never on which answers were there
    already: a chunk of which some are missing is drawn anew as a whole, and those that were there are left as they are.

    Raises:
        ModelError: there is no such model, or it needs a chat template that it does not have.
    """

    def __init__(self, tier: TierConfig, *, seed: int) -> None:
        from preftune.sampling.answering import load_for_answers
        from preftune.sampling.local import LocalSampler
        from preftune.tokens import TokenContract

        assert tier.model is not None
        self._tier, self._seed = tier, seed
        config = tier.model
        engine = load_for_answers(config.path, config)
        policy = engine.policy
        has_template = bool(policy.tokenizer.chat_template)
        if not has_template and (tier.form == "chat" or tier.system is not None):
            raise ModelError(
                f"tier {tier.name}: {config.path} has no chat template; use a model that was tuned for chat, or set "
                "form: text and no system message"
            )
        self._chat = tier.form == "chat" or (tier.form == "auto" and has_template)
        tokens = TokensConfig(chat_template_kwargs=config.chat_template_kwargs)
        self._contract = TokenContract(policy.tokenizer, tokens, policy.generation_eos)
        self._sampler: Any = LocalSampler(engine, self._contract)

    def close(self) -> None:
        """Give the memory back, for the next tier's model."""
        import torch

        self._sampler = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def ask_all(
        self, tasks: Iterable[tuple[Asked, list[int]]], keep: Callable[[list[tuple[Asked, Outcome]]], None]
    ) -> None:
        """Draw prompts' missing answers.

        Args:
            tasks: every prompt of the data with what is missing of it, in order; nothing for most, perhaps.
            keep: told of a whole chunk at once.
        """
        for chunk, members in groupby(tasks, key=lambda task: task[0].index // CHUNK):
            self._ask(chunk, list(members), keep)

    def _ask(
        self, chunk: int, tasks: list[tuple[Asked, list[int]]], keep: Callable[[list[tuple[Asked, Outcome]]], None]
    ) -> None:
        if not any(missing for _, missing in tasks):
            return
        draw = self._tier.sampling
        failed: list[tuple[Asked, Outcome]] = []
        ready: list[tuple[Asked, list[int], Prompt]] = []
        for asked, missing in tasks:
            prompt, problem = self._prompt(asked)
            if prompt is not None:
                ready.append((asked, missing, prompt))
            elif missing:
                failed.append((asked, Outcome(problem=problem, refused=True)))
        done: list[tuple[Asked, Outcome]] = []
        if any(missing for _, missing, _ in ready):
            assert self._tier.model is not None
            settings = SamplingConfig(
                max_tokens=draw.max_tokens, top_k=draw.top_k, top_p=draw.top_p, min_p=draw.min_p,
                repetition_penalty=draw.repetition_penalty, stop=draw.stop, rows=self._tier.model.rows,
            )  # fmt: skip
            groups = self._sampler.sample(
                [prompt for _, _, prompt in ready], draw.n, settings,
                seed=seed_of(self._seed, self._tier.name, chunk), temperature=draw.temperature,
            )  # fmt: skip
            for (asked, missing, prompt), group in zip(ready, groups, strict=True):
                drawn = [
                    Drawn(k, one.text, one.finish, (len(prompt.ids) if k == missing[0] else 0, len(one.ids)))
                    for k, one in enumerate(group.completions)
                    if k in missing
                ]
                if drawn:
                    done.append((asked, Outcome(drawn)))
        keep(failed + done)

    def _prompt(self, asked: Asked) -> tuple[Prompt | None, str]:
        """The prompt as ids, or why the model can't answer it. Nothing is cut."""
        content = shown_to(self._tier, asked.content, chat=self._chat)
        try:
            prompt = self._contract.prompt(Example(content, where=asked.where))
        except DataError as error:
            return None, str(error)
        limit, room = self._sampler.context_length, self._tier.sampling.max_tokens
        if limit is not None and len(prompt.ids) + room > limit:
            return None, (
                f"{asked.where}: {len(prompt.ids)} prompt tokens and sampling.max_tokens {room} exceed the model's "
                f"{limit} positions; lower that, or leave the prompt out"
            )
        return prompt, ""

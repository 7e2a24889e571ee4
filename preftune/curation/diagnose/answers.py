"""The model's own answers to the prompts that were drawn, and how likely it finds them and the data's answers."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from preftune.curation.diagnose.config import DiagnoseConfig
from preftune.curation.diagnose.draw import Drawn
from preftune.data.content import as_turns
from preftune.errors import DataError, ModelError, UsageError
from preftune.records import Content, Example, Group, Message

CHUNK = 16
"""Prompts that are answered at once."""
PACK = 4096
"""Tokens of one forward pass."""


@dataclass(frozen=True, slots=True)
class Likely:
    """How likely the model finds a text: mean log π per token and mean entropy per token, in nats, at temperature 1."""

    logprob: float
    entropy: float
    tokens: int


@dataclass(slots=True)
class Answered:
    """A prompt with the model's answers.

    Attributes:
        group: the prompt and the answers as they were drawn; scores where there are rewards.
        likely: of each answer; None where it has no token.
        good: of the data's own answer, None where the row holds none or it does not fit; `why_not` says which.
        good_text: that answer's text.
    """

    drawn: Drawn
    group: Group
    likely: list[Likely | None]
    good: Likely | None = None
    good_text: str | None = None
    why_not: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)

    @property
    def texts(self) -> list[str]:
        return [completion.text for completion in self.group.completions]


class Answerer:
    """The model, loaded.

    Raises:
        ModelError: it can't be loaded, or is to chat without a chat template.
    """

    def __init__(self, config: DiagnoseConfig) -> None:
        from preftune.engine.forward import Engine
        from preftune.models.given import read_adapter
        from preftune.models.loading import load_policy
        from preftune.sampling.local import LocalSampler
        from preftune.tokens import TokenContract

        self._config = config
        model = config.model
        unread = [name for name in ("lora", "on_adapter", "reference", "reference_path") if getattr(model, name)]
        if unread:
            raise UsageError(f"model.{unread[0]} is for training; preftune diagnose does not read it")
        if model.dtype == "auto":
            import torch

            cuda = model.device != "cpu" and torch.cuda.is_available()
            model = model.model_copy(update={"dtype": "bfloat16" if cuda else "float32"})
        if read_adapter(model) is not None:
            model = model.model_copy(update={"on_adapter": "merge"})
        policy = load_policy(model)
        for parameter in policy.model.parameters():
            parameter.requires_grad_(False)
        has_template = bool(policy.tokenizer.chat_template or config.tokens.chat_template)
        if config.form == "chat" and not has_template:
            raise ModelError(
                f"{model.path} has no chat template; use a model that was tuned for chat, give tokens.chat_template, "
                "or set form: text"
            )
        self._chat = config.form == "chat" or (config.form == "auto" and has_template)
        self.is_chat = self._chat
        self._contract = TokenContract(policy.tokenizer, config.tokens, policy.generation_eos)
        self._engine: Any = Engine(policy, mode=model.attention)
        self._sampler: Any = LocalSampler(self._engine, self._contract)
        text = policy.base.config.get_text_config()
        self.vocabulary = int(text.vocab_size)
        self.context_length: int | None = self._sampler.context_length

    def close(self) -> None:
        """Give the memory back, for the models that read the answers."""
        import torch

        self._engine = self._sampler = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def answer(
        self, drawn: Sequence[Drawn], tell: Callable[[int, int], None] | None = None
    ) -> tuple[list[Answered], list[tuple[Drawn, str]]]:
        """Answers to all prompts.

        Returns:
            The prompts that were answered, and those that can't be, each with the reason.
        """
        done: list[Answered] = []
        failed: list[tuple[Drawn, str]] = []
        for start in range(0, len(drawn), CHUNK):
            ready: list[tuple[Drawn, Group]] = []
            for one in drawn[start : start + CHUNK]:
                group, why = self._prompt(one)
                if group is None:
                    failed.append((one, why))
                else:
                    ready.append((one, group))
            done += self._answer(ready, start)
            if tell is not None:
                tell(min(start + CHUNK, len(drawn)), len(drawn))
        return done, failed

    def _answer(self, ready: list[tuple[Drawn, Group]], start: int) -> list[Answered]:
        if not ready:
            return []
        groups = self._sampler.sample(
            [group.prompt for _, group in ready], self._config.answers, self._config.sampling,
            seed=self._config.seed * 1_000_003 + start,
        )  # fmt: skip
        likely = self._likely(groups)
        good: list[Group] = []
        told: list[tuple[str | None, str]] = []
        places: list[int | None] = []
        for one, _ in ready:
            group, why = self._good(one)
            text = None if one.good is None else _text(one.good.completions[0])
            told.append((text, why))
            places.append(None if group is None else len(good))
            if group is not None:
                good.append(group)
        of_good = [row[0] for row in self._likely(good)]
        out: list[Answered] = []
        for (one, _), group, own, (text, why), place in zip(ready, groups, likely, told, places, strict=True):
            out.append(Answered(one, group, own, None if place is None else of_good[place], text, why))
        return out

    def _prompt(self, one: Drawn) -> tuple[Group | None, str]:
        try:
            prompt = self._contract.prompt(self._shown(one.example))
            longest = self._config.sampling.max_tokens
            group, why = self._contract.fit(Group(prompt, ()), self.context_length, longest)
            if (
                group is None
                and self.context_length
                and len(prompt.ids) < self.context_length < (len(prompt.ids) + longest)
            ):
                why += f"; a lower sampling.max_tokens ({longest}) leaves room"
            return group, why
        except DataError as error:
            if self._config.tokens.on_too_long == "error":
                raise
            return None, str(error)

    def _good(self, one: Drawn) -> tuple[Group | None, str]:
        """The data's own answer as ids, or why not."""
        if one.good is None:
            return None, "the row holds no good answer"
        try:
            return self._contract.fit(self._contract.group(self._shown(one.good)), self.context_length, 1)
        except DataError as error:
            return None, str(error)

    def _shown(self, example: Example) -> Example:
        """A plain prompt as a user's message, where the model is one for chat."""
        if not self._chat or not isinstance(example.prompt, str):
            return example
        completions = tuple(as_turns(completion) for completion in example.completions)
        return replace(example, prompt=(Message("user", example.prompt),), completions=completions)

    def _likely(self, groups: Sequence[Group]) -> list[list[Likely | None]]:
        """Of every completion: [group][completion]."""
        import torch

        out: list[list[Likely | None]] = [[None] * len(group.completions) for group in groups]
        with torch.no_grad():
            for packed in self._engine.pack(groups, PACK) if groups else ():
                values = self._engine.forward(packed, with_entropy=True)
                logprobs, entropies = values.logprobs_T.float().cpu(), values.entropy_T.float().cpu()
                sequence_T = packed.sequence_T.cpu()
                for s, (g, c) in enumerate(packed.members):
                    mine = sequence_T == s
                    if count := int(mine.sum()):
                        out[g][c] = Likely(float(logprobs[mine].mean()), float(entropies[mine].mean()), count)
        if not all(one is None or one.logprob == one.logprob for row in out for one in row):
            raise ModelError(f"{self._config.model.path}: gives log-probs that are no numbers; is it a whole model?")
        return out


def _text(content: Content) -> str:
    return content if isinstance(content, str) else content[-1].content

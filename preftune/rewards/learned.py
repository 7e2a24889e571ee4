"""The built-in reward `reward-model`: a sequence-classification model with one output, ours or anybody's.

`RewardReader` is the one place that reads such a model, for this reward and for `preftune score`. The model reads
texts through its own tokenizer and chat template, under the same token contract as everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from preftune.config import ModelConfig, TokensConfig
from preftune.errors import DataError, ModelError
from preftune.records import Completion, Content, Example, Group, Message
from preftune.rewards.call import Unscorable

if TYPE_CHECKING:
    from preftune.engine.forward import Engine
    from preftune.models.roles import RewardAdapter


class RewardReader:
    """A loaded reward model that reads prompts with completions.

    Args:
        config: which model; `lora`, `reference` and what else belongs to training has no effect.
        tokens: `chat_template`, `chat_template_kwargs` and `loss_on`; limits are not applied, see `unreadable`.
        max_tokens: tokens of one packed forward pass.
        normalize: apply the normalisation that the model carries: yes, no, or where it carries one.

    Attributes:
        normalization: (mean, std) that `normalized` applies, None when it changes nothing.
        lineage: in words, what the weights are.

    Raises:
        ModelError: no such model, no tokenizer, not a reward model, or `normalize` is asked for and it carries none.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokens: TokensConfig,
        *,
        max_tokens: int = 8192,
        normalize: bool | Literal["auto"] = "auto",
    ) -> None:
        import torch

        from preftune.engine.forward import Engine
        from preftune.models.reward import load_reward
        from preftune.tokens import TokenContract

        if config.path.startswith("stage:"):
            raise ModelError(
                f"{config.path} stands for a stage of a recipe, and there is no such recipe here; give the folder that "
                "the stage wrote (RUN/STAGE/final)"
            )
        # A policy's run draws random numbers too: they must not depend on whether a reward model was loaded.
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices):
            model = load_reward(config, trainable=False)
            engine = Engine(model, mode=config.attention)
        self._rate: Callable[[Sequence[Group]], list[list[float]]] = lambda groups: engine.rate(groups, max_tokens)
        self._contract = TokenContract(model.tokenizer, tokens, model.generation_eos)
        self._max_tokens = max_tokens
        self._context_length = model.context_length
        self.has_chat_template = bool(model.tokenizer.chat_template or tokens.chat_template)
        self.lineage = model.lineage
        self.normalization = _applied(model.normalization, normalize, config.path)

    @classmethod
    def on_policy(
        cls, path: str, adapter: RewardAdapter, engine: Engine, name: str, tokens: TokensConfig, *,
        max_tokens: int = 8192, normalize: bool | Literal["auto"] = "auto",
    ) -> RewardReader:  # fmt: skip
        """The same reward model as an adapter on a policy's own base, which then holds the weights of both.

        Args:
            path: the reward model's folder; its tokenizer and normalisation are read there.
            adapter: what it was trained as, on exactly this base.
            engine: the policy's.
            name: of the adapter in the policy's model.
        """
        import transformers

        from preftune.engine.values import SharedHead, rate
        from preftune.models.loading import _tokenizer
        from preftune.models.reward import normalization_of
        from preftune.models.roles import put_reward
        from preftune.tokens import TokenContract

        policy = engine.policy
        role, weight_D = put_reward(policy, name, adapter)
        head = SharedHead(engine, role, weight_D, f"adapter {adapter.folder} on the policy's base")
        reader = cls.__new__(cls)
        reader._rate = lambda groups: rate(head, groups, max_tokens, policy.device)
        tokenizer = _tokenizer(ModelConfig(path=path), None)
        reader._contract = TokenContract(tokenizer, tokens, policy.generation_eos)
        reader._max_tokens = max_tokens
        reader._context_length = policy.context_length
        reader.has_chat_template = bool(tokenizer.chat_template or tokens.chat_template)
        reader.lineage = head.lineage
        carried = normalization_of(transformers.AutoConfig.from_pretrained(path), path)
        reader.normalization = _applied(carried, normalize, path)
        return reader

    def group(self, example: Example, *, cut: Sequence[bool] = ()) -> Group:
        """A row's prompt and completions as ids of this model's tokenizer.

        Args:
            example: with at least one completion.
            cut: for each completion, whether it was cut at a token limit. Such a one did not end, so it gets no end:
                the EOS (or end of turn) that closes the others is left off.

        Raises:
            DataError: no completion, or messages that the chat template refuses.
            ModelError: messages, but no chat template.
        """
        group = self._contract.group(example)
        if not any(cut):
            return group
        completions = [
            self._without_end(completion) if was_cut else completion
            for completion, was_cut in zip(group.completions, cut, strict=True)
        ]
        return replace(group, completions=tuple(completions))

    def _without_end(self, completion: Completion) -> Completion:
        if completion.ids[-1] not in self._contract.eos_ids:
            return completion
        return replace(completion, ids=completion.ids[:-1], mask=completion.mask[:-1], finish="length")

    def unreadable(self, group: Group) -> list[str]:
        """For each completion, why the model can't read it whole, "" when it can. Nothing is ever cut."""
        out = []
        for completion in group.completions:
            tokens = len(group.prompt.ids) + len(completion.ids)
            if self._context_length is not None and tokens > self._context_length:
                out.append(
                    f"prompt and completion are {tokens} tokens, and the reward model has {self._context_length} "
                    "positions"
                )
            elif tokens > self._max_tokens:
                out.append(
                    f"prompt and completion are {tokens} tokens, more than max_tokens_per_batch {self._max_tokens}; "
                    "raise that"
                )
            elif not completion.ids:
                out.append("the completion is empty and was cut, so there is no token to score it at")
            else:
                out.append("")
        return out

    def rate(self, groups: Sequence[Group]) -> list[list[float]]:
        """The model's raw score at the last token of each completion: [group][completion]."""
        return self._rate(groups)

    def normalized(self, raw: float) -> float:
        """(raw − mean) / std where the model carries these numbers and they are to be applied, else raw."""
        if self.normalization is None:
            return raw
        mean, std = self.normalization
        return (raw - mean) / std


@dataclass(frozen=True)  # no slots: the model is kept beside the fields
class LearnedReward:
    """The score of a reward model: a sequence-classification model with one output.

    `normalize`: with the mean and deviation that the model carries (`auto`: where it carries them). `chat`: turn a
    plain prompt into a user message, for a model that was trained on conversations.
    """

    path: str
    revision: str | None = None
    normalize: bool | Literal["auto"] = "auto"
    chat: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    max_tokens_per_batch: int = 8192
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    trust_remote_code: bool = False

    can_hang = False
    holds_model = True

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("path is empty; give a folder or a hub id")
        if self.max_tokens_per_batch < 1:
            raise ValueError(f"max_tokens_per_batch must be at least 1, got {self.max_tokens_per_batch}")

    def prepare(self, shared_base: str | None = None) -> None:
        """Load the model, once, or leave it to `share`: where it was trained as an adapter of `shared_base`.

        Raises:
            ModelError: it can't be loaded.
        """
        from preftune.models.roles import read_reward_adapter, same_model

        if shared_base is not None and self.dtype == "auto":
            found = read_reward_adapter(self.path)
            if found is not None and same_model(found.base, shared_base):
                return
        self._reader  # noqa: B018

    def share(self, engine: Engine, name: str) -> str | None:
        """Stand on the policy's base where that is exact, unless loaded already. Returns where it stands, in words."""
        from preftune.models.roles import shareable

        if "_reader" in self.__dict__:
            return None
        found = shareable(self.path, engine.policy)
        if found is None:
            self._reader  # noqa: B018
            return None
        self.__dict__["_reader"] = RewardReader.on_policy(
            str(Path(self.path).expanduser()), found, engine, name, self._tokens, max_tokens=self.max_tokens_per_batch,
            normalize=self.normalize,
        )  # fmt: skip
        return f"reward model {self.path}: an adapter on the policy's own base, no second copy of the weights"

    @property
    def _tokens(self) -> TokensConfig:
        return TokensConfig(chat_template_kwargs=self.chat_template_kwargs or {})

    @cached_property
    def _reader(self) -> RewardReader:
        config = ModelConfig(
            path=self.path, revision=self.revision, device=self.device, dtype=self.dtype,
            trust_remote_code=self.trust_remote_code,
        )  # fmt: skip
        try:
            return RewardReader(config, self._tokens, max_tokens=self.max_tokens_per_batch, normalize=self.normalize)
        except ModelError as error:
            raise ModelError(f"can't use args.path {self.path}: {error}") from error

    def __call__(
        self, /, prompts: list[Any], completions: list[Any], finish_reasons: list[str]
    ) -> list[float | Unscorable]:
        reader, values = self._reader, dict[int, float | Unscorable]()
        groups: list[Group] = []
        places: list[list[int]] = []
        for rows in self._shared(prompts, completions):
            example = self._example(prompts[rows[0]], [completions[row] for row in rows])
            if not isinstance(example.prompt, str) and not reader.has_chat_template:
                raise ModelError(
                    f"{self.path} has no chat template, and the prompts are conversations; give a reward model that "
                    "has one, or plain-text prompts"
                )
            cut = [bool(finish_reasons) and finish_reasons[row] == "length" for row in rows]
            try:
                group = reader.group(example, cut=cut)
            except DataError as error:
                values |= dict.fromkeys(rows, Unscorable(f"can't read it: {str(error).removeprefix(': ')}"))
                continue
            problems = reader.unreadable(group)
            values |= {row: Unscorable(f"can't read it: {why}") for row, why in zip(rows, problems, strict=True) if why}
            kept = [n for n, why in enumerate(problems) if not why]
            if kept:
                groups.append(replace(group, completions=tuple(group.completions[n] for n in kept)))
                places.append([rows[n] for n in kept])
        for rows, scores in zip(places, reader.rate(groups) if groups else [], strict=True):
            values |= {row: reader.normalized(score) for row, score in zip(rows, scores, strict=True)}
        return [values[row] for row in range(len(prompts))]

    def _shared(self, prompts: list[Any], completions: list[Any]) -> Iterator[list[int]]:
        """Rows that follow each other and have one prompt: each such group is read with its prompt once.

        A completion of several turns is a group of its own: how a template writes its earlier turns is its own affair.
        """
        for key, found in groupby(range(len(prompts)), lambda row: (prompts[row], _turns(completions[row]) == 1)):
            rows = list(found)
            yield from [rows] if key[1] else [[row] for row in rows]

    def _example(self, prompt: Any, completions: list[Any]) -> Example:
        content = _content(prompt)
        answers = [_content(completion) for completion in completions]
        if self.chat and isinstance(content, str):
            content = (Message("user", content),)
        if not isinstance(content, str):
            answers = [(Message("assistant", a),) if isinstance(a, str) else a for a in answers]
        return Example(content, tuple(answers))


def _applied(
    carried: tuple[float, float] | None, normalize: bool | Literal["auto"], path: str
) -> tuple[float, float] | None:
    """The normalisation that is applied. Raises ModelError when one is asked for and the model carries none."""
    if normalize is True and carried is None:
        raise ModelError(
            f"{path} carries no normalisation (mean and deviation of its scores); set normalize to auto or false, or "
            "train it with train.normalize: true"
        )
    return carried if normalize else None


def _turns(completion: Any) -> int:
    return 1 if isinstance(completion, str) else len(completion)


def _content(value: Any) -> Content:
    if isinstance(value, str):
        return value
    return tuple(Message(message["role"], message["content"]) for message in value)

"""The model as training loads it, ready to talk. The one part of a talk that loads torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from preftune.config import TokensConfig
from preftune.errors import ModelError
from preftune.sampling.answering import load_for_answers
from preftune.sampling.local import LocalSampler
from preftune.tokens import TokenContract

_FLAGS = {
    "model.trust_remote_code: true": "--trust_remote_code",
    "with --model.path": "instead",
    "model.path": "the model",
    "model.device is": "--device is",
    "tokens.chat_template_kwargs": "--chat_template_kwargs",
    "tokens.chat_template": "--chat_template",
}
"""Fields of a recipe in messages → what they are called here."""


@dataclass(frozen=True)
class Loading:
    """How a model is loaded.

    Attributes:
        dtype: auto is bfloat16 on a GPU, float32 else.
        chat_template: Jinja text or a .jinja file instead of the tokenizer's.
        plain: no chat template is needed.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    revision: str | None = None
    trust_remote_code: bool = False
    chat_template: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    plain: bool = False


@dataclass(frozen=True)
class Opened:
    """A model that can be talked to. `words`: device and type of its weights."""

    sampler: LocalSampler
    contract: TokenContract
    context_length: int | None
    words: str


def open_model(path: str, how: Loading) -> Opened:
    """Load a hub id, model folder or adapter folder; an adapter is merged into its base in memory.

    Raises:
        ModelError: it can't be loaded, or it has no chat template and is to hold a conversation.
    """
    try:
        return _open(path, how)
    except ModelError as error:
        text = str(error)
        for name, flag in _FLAGS.items():
            text = text.replace(name, flag)
        raise ModelError(text) from error


def _open(path: str, how: Loading) -> Opened:
    engine = load_for_answers(path, how)
    policy = engine.policy
    if not how.plain and not (policy.tokenizer.chat_template or how.chat_template):
        raise ModelError(
            f"{path} has no chat template, so it can't hold a conversation: --plain lets it continue your text as it "
            "is, and --chat_template FILE.jinja gives it a template"
        )
    tokens = TokensConfig(chat_template=how.chat_template, chat_template_kwargs=dict(how.chat_template_kwargs))
    contract = TokenContract(policy.tokenizer, tokens, policy.generation_eos)
    sampler = LocalSampler(engine, contract)
    parameter = next(policy.model.parameters())
    words = f"{parameter.device.type}, {str(parameter.dtype).removeprefix('torch.')}"
    return Opened(sampler, contract, policy.context_length, words)

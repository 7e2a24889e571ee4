"""Models and samplers that say what a test wants them to say.

`save` writes a real GPT-2 whose answer depends on the position alone: no attention, position vectors in general
position, and a head solved for the wanted token at each of them. So loading, prompt, sampling and decoding are the real
ones, and the text is known. Its tokens are bytes, so a character may take several.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from preftune.config import SamplingConfig, TokensConfig
from preftune.records import Completion, Group, Prompt
from preftune.tokens import TokenContract

START, END = "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """Bytes, and two marks of ChatML."""
    pieces = [START, END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=END, pad_token=END, additional_special_tokens=[START],
        clean_up_tokenization_spaces=False, chat_template=template,
    )  # fmt: skip


def contract(template: str | None = TEMPLATE) -> TokenContract:
    return TokenContract(tokenizer(template), TokensConfig())


def prompt_length(*messages: tuple[str, str]) -> int:
    """Tokens of a conversation (role, content) with what asks for the answer."""
    said = "".join(f"{role}\n{content}\n" for role, content in messages)
    return len(f"{said}assistant\n".encode()) + 2 * len(messages) + 1


def save(
    folder: Path,
    answers: Mapping[int, str],
    *,
    positions: int = 1024,
    width: int = 512,
    template: str | None = TEMPLATE,
) -> Path:
    """A model that answers a prompt of so many tokens by that text and EOS; `width`: most bytes of all answers."""
    words = tokenizer(template)
    places: list[int] = []
    targets: list[int] = []
    for length, text in answers.items():
        ids = words(text, add_special_tokens=False).input_ids
        ids = [*ids, words.eos_token_id]
        places += range(length - 1, length - 1 + len(ids))
        targets += ids
    assert len(places) == len(set(places)) <= width, "answers overlap, or are too long together"
    model = _silent(len(words), positions, width)
    with torch.no_grad():
        model.transformer.wpe.weight.normal_(generator=torch.Generator().manual_seed(0))
        states = model.transformer.ln_f(model.transformer.wpe.weight[places])
        wanted = torch.zeros(len(places), len(words))
        wanted[range(len(places)), targets] = 60.0
        model.lm_head.weight.copy_(torch.linalg.lstsq(states, wanted).solution.T)
    return _write(folder, model, words)


def save_endless(folder: Path, letter: str = "a", positions: int = 20_000) -> Path:
    """A model that writes one letter for ever."""
    words = tokenizer()
    model = _silent(len(words), positions, 8)
    with torch.no_grad():
        model.transformer.wpe.weight[:] = torch.tensor([1.0, -1.0] * 4)
        (target,) = words(letter, add_special_tokens=False).input_ids
        model.lm_head.weight[target] = 10 * torch.tensor([1.0, -1.0] * 4)
    return _write(folder, model, words)


def _silent(vocabulary: int, positions: int, width: int) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=positions, n_embd=width, n_layer=1, n_head=1, n_inner=8,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "ln_" not in name:
                weight.zero_()
    return model


def _write(folder: Path, model: GPT2LMHeadModel, words: PreTrainedTokenizerFast) -> Path:
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


class Script:
    """A sampler that gives one text after the other, whole, and keeps what it was asked."""

    def __init__(self, *texts: str, finish: str = "eos") -> None:
        self.words = tokenizer()
        self.texts = list(texts)
        self.finish = finish
        self.asked: list[tuple[str, SamplingConfig, int, float | None]] = []

    def sample(
        self, prompts: Sequence[Prompt], n: int, settings: SamplingConfig, *, seed: int,
        policy_version: int = 0, temperature: float | None = None, progress: Any = None,
    ) -> list[Group]:  # fmt: skip
        (prompt,) = prompts
        assert n == 1
        return [Group(prompt, (self._next(prompt, settings, seed, temperature),))]

    def _next(self, prompt: Prompt, settings: SamplingConfig, seed: int, temperature: float | None) -> Completion:
        self.asked.append((prompt.text, settings, seed, temperature))
        text = self.texts.pop(0)
        ids = tuple(self.words(text, add_special_tokens=False).input_ids)
        ids += (self.words.eos_token_id,) if self.finish == "eos" else ()
        return Completion(ids, (True,) * len(ids), text, self.finish)  # type: ignore[arg-type]


class Stream(Script):
    """The same, a byte at a time; with `stop_after` the user presses Ctrl-C behind that many tokens."""

    def __init__(self, *texts: str, finish: str = "eos", stop_after: int | None = None) -> None:
        super().__init__(*texts, finish=finish)
        self.stop_after = stop_after

    def stream(
        self, prompt: Prompt, settings: SamplingConfig, *, seed: int, on_token: Callable[[int], None],
        temperature: float | None = None,
    ) -> Completion:  # fmt: skip
        completion = self._next(prompt, settings, seed, temperature)
        for count, token in enumerate(completion.ids):
            if count == self.stop_after:
                raise KeyboardInterrupt
            on_token(token)
        return completion


class Ear:
    """A listener that keeps all it hears."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.budgets: list[Any] = []
        self.worked: list[tuple[str, int]] = []

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def begins(self, budget: Any) -> None:
        self.budgets.append(budget)

    def working(self, words: str, tokens: int) -> None:
        self.worked.append((words, tokens))

    def says(self, text: str) -> None:
        self.pieces.append(text)

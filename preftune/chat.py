"""Conversations through a chat template. Calls no tokenizer: `preftune.tokens` hands its template function in.

Two things are guarded here. A rendering with more messages must begin with the rendering with fewer, or the ids of
prompt and completion would not be those that the policy meets when it answers. And the text of a special token inside
a message is put between marks, so that only the template, never data, can write special tokens.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from jinja2 import TemplateError, TemplateSyntaxError

from preftune.config import TokensConfig
from preftune.errors import DataError, ModelError
from preftune.records import Content, Example, Message

# Characters that Unicode reserves for internal use and that never stand in text. Two that the row does not hold
# become its marks.
_MARKS = tuple(chr(code) for code in range(0xFDD0, 0xFDF0))
_OURS = frozenset({"messages", "conversation", "tokenize", "add_generation_prompt", "chat_template"})


class ChatTemplate:
    """The recipe's template, or the tokenizer's own.

    Args:
        apply: the tokenizer's `apply_chat_template`.
        own: the tokenizer's template: Jinja text, several by name, or None.
        config: `chat_template` (Jinja text or a .jinja file) overrides `own`; `chat_template_kwargs` go to either.

    Raises:
        ModelError: a template file that can't be read, or an argument that the template does not know. Templates
            ignore unknown variables without a word, so a misspelled one would pass unseen.
    """

    def __init__(self, apply: Callable[..., object], own: str | dict[str, str] | None, config: TokensConfig) -> None:
        self._apply = apply
        self._override = _read(config.chat_template)
        self._kwargs = config.chat_template_kwargs
        template = self._override or own
        self.exists = bool(template)
        words = set(re.findall(r"\w+", template if isinstance(template, str) else " ".join((template or {}).values())))
        for name in self._kwargs:
            if name in _OURS:
                raise ModelError(f"tokens.chat_template_kwargs.{name} is set by preftune itself; remove it")
            if self.exists and name not in words:
                near = difflib.get_close_matches(name, words, 1)
                hint = f"; did you mean {near[0]}?" if near else "; remove it"
                raise ModelError(f"tokens.chat_template_kwargs.{name}: the chat template has no such variable{hint}")

    @property
    def override(self) -> str | None:
        """The recipe's template, where it gives one."""
        return self._override

    def render(self, messages: list[dict[str, str]], *, generation: bool) -> str:
        """Text of the messages; generation: with the words that ask for an answer.

        Raises:
            ModelError: the template is no valid Jinja.
            jinja2.TemplateError: the template refuses these messages.
        """
        try:
            return str(
                self._apply(
                    messages,
                    chat_template=self._override,
                    tokenize=False,
                    add_generation_prompt=generation,
                    **self._kwargs,
                )
            )
        except TemplateSyntaxError as error:
            raise ModelError(f"the chat template can't be read, line {error.lineno}: {error.message}") from error


class Conversation:
    """A row's prompt and one of its completions.

    Attributes:
        messages: of both.
        prompt_size: how many belong to the prompt.
        marks: the opening and closing mark, the same for all completions of a row.
        marked: the messages as the template gets them.
    """

    def __init__(
        self, template: ChatTemplate, special: re.Pattern[str], example: Example, completion: Content = ()
    ) -> None:
        if isinstance(example.prompt, str):
            raise TypeError("a conversation's prompt is a tuple of messages")
        self.where = example.where
        self.prompt_size = len(example.prompt)
        if not example.prompt:
            raise DataError(f"{self.where}: the prompt has no messages")
        if not template.exists:
            raise ModelError(
                f"{self.where}: the row is a conversation but the tokenizer has no chat template; set "
                "tokens.chat_template in the recipe (Jinja text or a .jinja file), or use plain-text rows"
            )
        if isinstance(completion, str):
            completion = (Message("assistant", completion),)
        self.messages = (*example.prompt, *completion)
        self._template = template
        self._rendered: dict[tuple[int, bool], str] = {}
        texts = [message.content for message in example.prompt]
        for other in example.completions:
            texts += [other] if isinstance(other, str) else [message.content for message in other]
        free = [mark for mark in _MARKS if not any(mark in text for text in texts)]
        if len(free) < 2:
            raise DataError(f"{self.where}: the messages hold the noncharacters U+FDD0 to U+FDEF; remove them")
        self.marks = (free[0], free[1])
        bracket = f"{free[0]}\\g<0>{free[1]}"
        self.marked = [{"role": m.role, "content": special.sub(bracket, m.content)} for m in self.messages]

    def trained(self, loss_on: Literal["all-assistant", "last"]) -> list[int]:
        """Indices of the turns that carry loss. Raises DataError when there are none."""
        turns = [n for n in range(self.prompt_size, len(self.messages)) if self.messages[n].role == "assistant"]
        if not turns:
            raise DataError(f"{self.where}: the completion has no assistant turn to learn from")
        return turns if loss_on == "all-assistant" else turns[-1:]

    def render(self, upto: int, *, generation: bool) -> str:
        """The first `upto` messages as the template writes them, with marks."""
        key = (upto, generation)
        if key not in self._rendered:
            try:
                self._rendered[key] = self._template.render(self.marked[:upto], generation=generation)
            except TemplateError as error:
                raise DataError(f"{self.where}: the chat template refuses the conversation: {error}") from error
        return self._rendered[key]

    def continued(self, before: str, after: str, turn: int) -> str:
        """What `after` adds to `before`. Raises DataError when `before` is not its beginning."""
        if after.startswith(before):
            return after[len(before) :]
        shorter = min(len(before), len(after))
        at = next((n for n in range(shorter) if before[n] != after[n]), shorter)
        view = slice(max(0, at - 20), at + 30)
        raise DataError(
            f"{self.where}: the chat template rewrites text that came before messages[{turn}]. The two renderings part "
            f"at character {at}: first {self.unmark(before[view])!r}, then {self.unmark(after[view])!r}. "
            "If the template treats earlier answers differently, set tokens.loss_on: last; if its generation prompt "
            "and its assistant turns begin differently, set tokens.chat_template or tokens.chat_template_kwargs"
        )

    def turn_end(self, written: str, turn: int, eos_texts: tuple[str, ...]) -> int | None:
        """Where the first EOS that the template wrote ends in the text of a turn; None without one.

        Sampling stops there, so what follows is the template's and not the policy's. Raises DataError when the
        turn's own words stand behind it.
        """
        opened, closed = self.marks
        eos = "|".join(map(re.escape, sorted(eos_texts, key=len, reverse=True))) or "(?!)"
        for found in re.finditer(f"{opened}[^{closed}]*{closed}|(?P<eos>{eos})", written):
            if found["eos"] is None:
                continue
            content = self.marked[turn]["content"].strip()
            if content and content not in written[: found.start()] and content in written[found.end() :]:
                raise DataError(
                    f"{self.where}: the chat template writes {found['eos']!r}, an EOS token, before the text of "
                    f"messages[{turn}]; sampling would stop there. Set tokens.chat_template to another template"
                )
            return found.end()
        return None

    def unmark(self, text: str) -> str:
        """Text without marks."""
        return text.replace(self.marks[0], "").replace(self.marks[1], "")


def _read(value: str | None) -> str | None:
    if value is None or not value.endswith(".jinja"):
        return value
    try:
        return Path(value).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"tokens.chat_template: can't read {value}: {error}") from error

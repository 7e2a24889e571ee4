"""The token contract: the only caller of the tokenizer.

A prompt is rendered and tokenised once, a completion is tokenised on its own and the ids are put one behind the
other. So ids of the prompt never depend on the completion, a sampled and a read completion look alike, and the loss
mask is known by construction instead of being searched for in the ids. docs/data.md states the contract for users.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from jinja2 import TemplateError

from preftune.chat import ChatTemplate, Conversation
from preftune.config import TokensConfig
from preftune.data.split import shared_context
from preftune.errors import DataError, ModelError
from preftune.records import Completion, Content, Example, Group, Prompt, TokenCounts
from preftune.token_ends import token_ends

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Progress: TypeAlias = Callable[[int, int], None]
"""Called with (rows done, rows in all)."""

# Put before a text to tokenise it as the middle of a document; see `_encode`.
_LEADS = ("\n", "|", "#", "0")
# Any text can be tokenised when these can: the vocabulary falls back to bytes.
_RARE = "~\u00e9\u5b57\U0001f409\U00012345"


class TokenContract:
    """Turns examples into ids and ids into text.

    Args:
        tokenizer: a transformers tokenizer.
        config: the recipe's `tokens:` section.
        generation_eos: EOS ids of the model's generation config.

    Attributes:
        eos_ids: every id that ends a completion: `generation_eos`, the tokenizer's EOS, and the special token with
            which the chat template ends an assistant turn.
        eos_id: the one that is appended where the data has none.
        pad_id: fills rows of a batch. It may equal an EOS id: padding is known by masks, never by comparing ids.
        bos_id: the tokenizer's BOS, or None.

    Raises:
        ModelError: no EOS token, or a chat template that can't be read.
    """

    eos_ids: frozenset[int]
    eos_id: int
    pad_id: int
    bos_id: int | None

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, config: TokensConfig, generation_eos: Iterable[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._config = config
        self._template = ChatTemplate(tokenizer.apply_chat_template, tokenizer.chat_template, config)

        special = {str(token.content): i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        special |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        self._special_ids = frozenset(special.values())
        self._special = _any_of(special)
        self._adds_space = self._has_dummy_prefix()
        self._complete = _letters(self.text_with_specials(self._raw(_RARE))) == _letters(_RARE)

        self.bos_id = tokenizer.bos_token_id
        probe = tokenizer("a", add_special_tokens=True, verbose=False).input_ids
        self._adds_bos = self.bos_id is not None and bool(probe) and probe[0] == self.bos_id

        eos = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        eos += [int(i) for i in generation_eos]
        turn_end = self._probe_turn_end()
        self.eos_ids = frozenset(eos) if turn_end is None else frozenset(eos) | {turn_end}
        if not self.eos_ids:
            raise ModelError(
                "the tokenizer has no EOS token and the generation config names none, so no completion could ever "
                "end; set eos_token in the tokenizer's tokenizer_config.json"
            )
        self.eos_id = eos[0] if eos else min(self.eos_ids)
        self.pad_id = self.eos_id if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
        self._eos_texts = {text: i for text, i in special.items() if i in self.eos_ids}
        self._pieces: dict[int, str] = {}

    # ---------------------------------------------------------------------------------------------- public

    def prompt(self, example: Example) -> Prompt:
        """Render and tokenise a row's prompt, ready for sampling.

        Messages are rendered with the generation prompt. A tokenizer that adds BOS by itself yields exactly one
        BOS, whether or not the template writes it. An empty plain prompt is BOS alone; without BOS it is the first
        token of the row's text.

        Raises:
            DataError: an empty prompt, or a conversation that the template refuses.
            ModelError: messages, but no chat template.
        """
        if isinstance(example.prompt, str):
            return self._plain_prompt(example)
        return self._chat_prompt(self._chat(example), example)

    def group(self, example: Example) -> Group:
        """The row's prompt with its own completions; ids of each end in EOS, masks follow `tokens.loss_on`. Their
        scores and sources are the row's.

        Raises:
            DataError: no completion, or a template whose rendering of the prompt is not the beginning of its
                rendering of prompt and completion; the message shows where the two part.
            ModelError: messages, but no chat template.
        """
        return self._group(example)[0]

    def prepare(
        self,
        examples: Sequence[Example],
        *,
        with_completions: bool,
        progress: Progress | None = None,
        context_length: int | None = None,
        max_new_tokens: int = 1,
        rows: Iterable[Tokenised] | None = None,
        keep: Callable[[Group], None] | None = None,
    ) -> tuple[list[Group], TokenCounts]:
        """Tokenise a data set and apply the recipe's limits.

        Args:
            examples: rows, in order.
            with_completions: read completions from the rows; otherwise groups hold the prompt alone.
            progress: called after each row.
            context_length: positions of the model; prompt and completion together must fit.
            max_new_tokens: room that sampling needs behind each prompt (ignored with completions).
            rows: the examples as `tokenise` reads them, where somebody else calls it.
            keep: takes each group as it comes, instead of the list that is returned. Unless a percentile has to be
                known first, no more than one group is held then.

        Returns:
            Groups in the order of `examples`, and what was kept, dropped and truncated, with reasons. First go the
            prompts above `tokens.drop_above_percentile`: with n prompts sorted by tokens, those longer than number
            ceil(p / 100 × n) (nearest rank). Then `tokens.on_too_long` decides about rows over a limit. Completions
            are never cut: a row with one that is too long is dropped, or is an error.

        Raises:
            DataError: a row that can't be tokenised or is too long under `on_too_long: error`; or no row is left.
        """
        if context_length is not None and not with_completions and max_new_tokens >= context_length:
            raise DataError(
                f"sampling.max_tokens {max_new_tokens} leaves no room for a prompt: the model has {context_length} "
                "positions; lower sampling.max_tokens"
            )
        if rows is None:
            rows = (self.tokenise(example, with_completions=with_completions) for example in examples)
        if progress is not None:
            rows = _told(rows, len(examples), progress)
        cutoff: int | None = None
        if self._config.drop_above_percentile is not None:
            rows = list(rows)
            cutoff = percentile_cutoff([len(row.group.prompt.ids) for row in rows], self._config.drop_above_percentile)
        groups: list[Group] = []
        keep = groups.append if keep is None else keep
        count = truncated = invented = special_text = unknown = 0
        reasons: Counter[str] = Counter()
        refused: DataError | None = None
        for row in rows:
            if refused is not None:
                continue  # a row that can't be read at all is the worse mistake: it is looked for to the end
            if cutoff is not None and len(row.group.prompt.ids) > cutoff:
                reasons[f"prompt above percentile {self._config.drop_above_percentile:g} ({cutoff} tokens)"] += 1
                continue
            try:
                kept, reason = self.fit(row.group, context_length, max_new_tokens)
            except DataError as error:
                refused = error
                continue
            if kept is None:
                reasons[reason] += 1
                continue
            truncated += kept is not row.group
            invented += row.eos_invented
            special_text += row.special_text
            unknown += row.unknown
            count += 1
            keep(kept)
        if refused is not None:
            raise refused
        counts = TokenCounts(count, sum(reasons.values()), truncated, invented, special_text, unknown, dict(reasons))
        if examples and not count:
            raise DataError(f"no row is left: {counts}; raise the limits in the recipe's tokens section")
        return groups, counts

    def tokenise(self, example: Example, *, with_completions: bool) -> Tokenised:
        """One row as `prepare` reads it, before any limit. Raises as `prompt` and `group` do."""
        group, without_eos = self._group(example) if with_completions else (Group(self.prompt(example), ()), 0)
        texts = _texts(example, with_completions=with_completions)
        special = any(self._special.search(text) for text in texts)
        return Tokenised(group, without_eos, special, any(map(self._has_unknown, texts)))

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of text that goes on within a completion (a tool's answer, another model's words): no BOS, no EOS."""
        return tuple(self._encode(text, start=False))

    @property
    def template_text(self) -> str | None:
        """The recipe's template override as Jinja text, None when the tokenizer's own is used."""
        return self._template.override

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        text = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def token_ends(self, ids: Sequence[int], text: str) -> list[int]:
        """Where each token ends in `text`, which `decode` made of the ids: offsets in characters, one for each id."""
        return token_ends(ids, text, self.decode, self._pieces)

    def text_with_specials(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens shown."""
        text = self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(text)

    # ---------------------------------------------------------------------------------------------- prompts

    def _plain_prompt(self, example: Example) -> Prompt:
        assert isinstance(example.prompt, str)
        ids = self._with_bos(self._encode(example.prompt, start=True))
        if not ids:
            if not example.completions:
                raise DataError(f"{example.where}: the prompt is empty and the tokenizer has no BOS to start from")
            # The `text` format without BOS: the first token can only be given, not predicted.
            starts = {tuple(self._encode(str(text), start=True)[:1]) for text in example.completions}
            if len(starts) > 1 or not (ids := list(starts.pop())):
                raise DataError(f"{example.where}: the prompt is empty and so are (or differ) the texts' first tokens")
        return Prompt(tuple(ids), example.prompt, example.prompt, example.columns, example.where)

    def _chat(self, example: Example, completion: Content = ()) -> Conversation:
        return Conversation(self._template, self._special, example, completion)

    def _chat_prompt(self, chat: Conversation, example: Example, upto: int | None = None) -> Prompt:
        upto = chat.prompt_size if upto is None else upto
        text = chat.render(upto, generation=True)
        ids = self._with_bos(self._encode_marked(text, chat.marks, start=True))
        if not ids:
            raise DataError(f"{example.where}: the chat template renders the prompt to nothing")
        return Prompt(tuple(ids), chat.unmark(text), chat.messages[:upto], example.columns, example.where)

    def _with_bos(self, ids: list[int]) -> list[int]:
        if not self._adds_bos or self.bos_id is None:
            return ids
        first = next((n for n, i in enumerate(ids) if i != self.bos_id), len(ids))
        return [self.bos_id, *ids[first:]]

    # ---------------------------------------------------------------------------------------------- groups

    def _group(self, example: Example) -> tuple[Group, int]:
        if not example.completions:
            raise DataError(f"{example.where}: the row has a prompt but no completion to learn from")
        if isinstance(example.prompt, str):
            return _graded(self._plain_group(example, example.prompt), example), 0
        chats = [self._chat(example, completion) for completion in example.completions]
        # With loss on the last turn alone, earlier turns that all completions share belong to the prompt. That is also
        # how the policy will meet them: some templates render an answer differently once it is history.
        upto = None
        if self._config.loss_on == "last":
            upto = len(example.prompt) + shared_context(example.completions)
        prompt = self._chat_prompt(chats[0], example, upto)
        completions, invented = [], 0
        for chat in chats:
            completion, without_eos = self._chat_completion(chat, upto)
            completions.append(completion)
            invented += without_eos
        return _graded(Group(prompt, tuple(completions)), example), invented

    def _plain_group(self, example: Example, prompt_text: str) -> Group:
        prompt = self._plain_prompt(example)
        completions = []
        for text in example.completions:
            if not isinstance(text, str):
                raise DataError(f"{example.where}: the prompt is plain text but a completion is a list of messages")
            ids = self._encode(text, start=not prompt_text)
            if not prompt_text:  # BOS, or the first token of the text, is the prompt already
                ids = self._with_bos(ids)[1:]
            if not ids or ids[-1] not in self.eos_ids:
                ids.append(self.eos_id)
            completions.append(Completion(tuple(ids), (True,) * len(ids), text=self.decode(ids)))
        return Group(prompt, tuple(completions))

    def _chat_completion(self, chat: Conversation, upto: int | None) -> tuple[Completion, bool]:
        """Walk the trained turns; text between two of them is context. Returns the completion and whether its EOS
        had to be invented."""
        turns = chat.trained(self._config.loss_on)
        done = chat.render(chat.prompt_size if upto is None else upto, generation=True)
        ids: list[int] = []
        mask: list[bool] = []
        invented = False
        for turn in turns:
            context = chat.render(turn, generation=True)
            self._append(ids, mask, chat, chat.continued(done, context, turn), trained=False)
            full = chat.render(turn + 1, generation=False)
            written = chat.continued(context, full, turn)
            end = chat.turn_end(written, turn, tuple(self._eos_texts))
            self._append(ids, mask, chat, written if end is None else written[:end], trained=True)
            if not ids or ids[-1] not in self.eos_ids:
                if turn != turns[-1]:
                    raise DataError(
                        f"{chat.where}: the chat template ends messages[{turn}] without an EOS token, so the policy "
                        "could not learn to stop there; set tokens.loss_on: last, or tokens.chat_template to one "
                        "that writes the EOS token after each assistant turn"
                    )
                ids.append(self.eos_id)
                mask.append(True)
                invented = True
            done = full if end is None else context + written[:end]
        return Completion(tuple(ids), tuple(mask), text=self.decode(ids)), invented

    def _append(self, ids: list[int], mask: list[bool], chat: Conversation, text: str, *, trained: bool) -> None:
        """Tokenise a segment that follows `ids`. Behind an EOS it is tokenised together with it: special tokens may
        swallow the white space that follows them."""
        if ids and not trained:
            new = self._after_eos(text, chat, ids[-1])
        else:
            new = self._encode_marked(text, chat.marks, start=False)
        ids += new
        mask += [trained] * len(new)

    def _after_eos(self, text: str, chat: Conversation, eos: int) -> list[int]:
        for eos_text, i in self._eos_texts.items():
            if i == eos:
                new = self._encode_marked(eos_text + text, chat.marks, start=True)
                if new and new[0] == eos:
                    return new[1:]
        return self._encode_marked(text, chat.marks, start=False)

    # ---------------------------------------------------------------------------------------------- limits

    def fit(self, group: Group, context_length: int | None, max_new_tokens: int) -> tuple[Group | None, str]:
        """What `prepare` makes of one group: itself, shortened if it must and may be, or None with the reason why it is
        dropped. Raises DataError under `on_too_long: error`."""
        config, prompt = self._config, group.prompt
        longest = max((len(completion.ids) for completion in group.completions), default=0)
        problem = ""
        if longest > config.max_completion_tokens:
            problem = f"completion over tokens.max_completion_tokens {config.max_completion_tokens}"
            return self._too_long(prompt, problem, longest)
        limit, problem = config.max_prompt_tokens, f"prompt over tokens.max_prompt_tokens {config.max_prompt_tokens}"
        if context_length is not None:
            room = context_length - (longest if group.completions else max_new_tokens)
            if room < 1:
                return self._too_long(prompt, f"completion over the model's {context_length} positions", longest)
            if room < limit:
                limit, problem = room, f"prompt and completion over the model's {context_length} positions"
        if len(prompt.ids) <= limit:
            return group, ""
        if config.on_too_long != "truncate-prompt-left":
            return self._too_long(prompt, problem, len(prompt.ids))
        keeps_bos = self._adds_bos and prompt.ids[0] == self.bos_id and limit > 1
        ids = (prompt.ids[0], *prompt.ids[len(prompt.ids) - limit + 1 :]) if keeps_bos else prompt.ids[-limit:]
        return replace(group, prompt=replace(prompt, ids=ids, text=self.text_with_specials(ids))), ""

    def _too_long(self, prompt: Prompt, problem: str, tokens: int) -> tuple[None, str]:
        if self._config.on_too_long == "error":
            raise DataError(
                f"{prompt.where}: {problem} ({tokens} tokens there); raise the limit, or set tokens.on_too_long to "
                "drop or truncate-prompt-left"
            )
        return None, problem

    # ---------------------------------------------------------------------------------------------- tokenizer

    def _raw(self, text: str, *, literal: bool = False) -> list[int]:
        """Ids of text without BOS or EOS. literal: special-token text is read letter by letter."""
        ids = self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=literal, return_attention_mask=False, verbose=False
        ).input_ids
        return [int(i) for i in ids]

    def _encode(self, text: str, *, start: bool, literal: bool = False) -> list[int]:
        """Ids of text at the start of a document, or in the middle of one.

        SentencePiece-style tokenizers put a space before a text that they take for a whole document. In the middle
        that space would be an invented token, so the text is tokenised behind a lead whose ids are then cut off.
        """
        if not text or start or not self._adds_space:
            return self._raw(text, literal=literal) if text else []
        for lead in _LEADS:
            head = self._raw(lead)
            whole = self._raw(lead + text, literal=literal)
            if head and whole[: len(head)] == head:
                return whole[len(head) :]
        raise ModelError(f"the tokenizer can't continue a text: {text[:40]!r} is merged with whatever stands before it")

    def _encode_marked(self, text: str, marks: tuple[str, str], *, start: bool) -> list[int]:
        """Ids of rendered text: special tokens are those that the template wrote; bracketed ones are letters."""
        if marks[0] not in text:
            return self._encode(text, start=start)
        ids: list[int] = []
        for n, piece in enumerate(re.split(f"{marks[0]}([^{marks[1]}]*){marks[1]}", text)):
            new = self._encode(piece, start=start and not ids, literal=n % 2 == 1)
            if n % 2 and not self._special_ids.isdisjoint(new):
                raise ModelError(
                    f"the tokenizer reads {piece!r} in a message as a special token and can't be told not to"
                )
            ids += new
        return ids

    def _has_dummy_prefix(self) -> bool:
        pieces = self._tokenizer.convert_ids_to_tokens(self._raw("a"))
        return bool(pieces) and str(pieces[0])[:1] in ("▁", "Ġ")

    def _has_unknown(self, text: str) -> bool:
        """True when the vocabulary lacks a character of the text: it becomes `unk`, or vanishes without a trace."""
        if self._complete:
            return False
        ids = self._encode(text, start=True)
        if self._tokenizer.unk_token_id is not None:
            return self._tokenizer.unk_token_id in ids
        return _letters(self.text_with_specials(ids)) != _letters(text)

    def _probe_turn_end(self) -> int | None:
        """The special token that the chat template writes after an assistant's words."""
        if not self._template.exists:
            return None
        words = "preftune probe"
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": words}]
        try:
            text = self._template.render(messages, generation=False)
        except TemplateError:
            return None  # refuses this conversation; the rows' own will be judged when they come
        found = self._special.search(text[text.rfind(words) + len(words) :]) if words in text else None
        return self._raw(found[0])[0] if found else None


@dataclass(frozen=True, slots=True)
class Tokenised:
    """A row as token ids.

    Attributes:
        eos_invented: completions that got an EOS which the template did not write.
        special_text: whether its text holds the text of a special token.
        unknown: whether it holds characters that the vocabulary lacks.
    """

    group: Group
    eos_invented: int
    special_text: bool
    unknown: bool


def _told(rows: Iterable[Tokenised], total: int, progress: Progress) -> Iterator[Tokenised]:
    for done, row in enumerate(rows, 1):
        progress(done, total)
        yield row


def _graded(group: Group, example: Example) -> Group:
    """The group with what the row says about its completions: how good each is, and who wrote it."""
    scores: Sequence[float | None] = example.scores or [None] * len(group.completions)
    sources = example.sources or [""] * len(group.completions)
    completions = [
        replace(completion, score=score, source=source or completion.source)
        for completion, score, source in zip(group.completions, scores, sources, strict=True)
    ]
    return replace(group, completions=tuple(completions))


def percentile_cutoff(lengths: Sequence[int], percentile: float | None) -> int | None:
    """The nearest-rank percentile: element ceil(p / 100 × n), counted from one, of the sorted lengths.

    >>> percentile_cutoff([5, 1, 2, 4, 3, 6, 7, 8, 9, 10], 90)
    9
    """
    if percentile is None or not lengths:
        return None
    # p × n first: p / 100 alone may round up past a whole rank (90 % of 10 rows is the 9th, not the 10th).
    return sorted(lengths)[max(0, math.ceil(percentile * len(lengths) / 100) - 1)]


def _texts(example: Example, *, with_completions: bool) -> list[str]:
    contents = (example.prompt, *example.completions) if with_completions else (example.prompt,)
    return [
        text
        for content in contents
        for text in ([content] if isinstance(content, str) else [m.content for m in content])
    ]


def _letters(text: str) -> str:
    """Text as compared for losses: tokenizers may change case and white space without losing a character."""
    return "".join(text.split()).casefold()


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(filter(None, texts), key=len, reverse=True))) or "(?!)")

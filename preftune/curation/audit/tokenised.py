"""What the token contract makes of the rows: exactly the ids that training would see. Loads no weights."""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from preftune.config import ModelConfig, TokensConfig
from preftune.curation.audit.row import Finding, side_name
from preftune.data.formats import as_prompt
from preftune.errors import DataError, ModelError
from preftune.models.tokenizer import load_tokenizer
from preftune.records import Example, Group, TokenCounts
from preftune.tokens import TokenContract, Tokenised, percentile_cutoff


@dataclass(frozen=True, slots=True)
class Shown:
    """A row whose tokens are shown: the group that training would use, and what it was made of."""

    example: Example
    group: Group


@dataclass(slots=True)
class Lengths:
    """Tokens of every row that could be tokenised, before any limit.

    Attributes:
        prompts: of each prompt.
        answers: of each answer, its EOS included.
        totals: of each prompt with its longest answer.
    """

    prompts: array[int] = field(default_factory=lambda: array("I"))
    answers: array[int] = field(default_factory=lambda: array("I"))
    totals: array[int] = field(default_factory=lambda: array("I"))


@dataclass(frozen=True, slots=True)
class TokenRow:
    """What is known of one row.

    Attributes:
        kept: whether the limits leave it in.
        why: the reason where they don't, as the token contract words it.
        prompt, answers: tokens before any limit; empty where the row can't be tokenised.
        findings: of the token checks.
    """

    kept: bool
    why: str = ""
    prompt: int = 0
    answers: tuple[int, ...] = ()
    findings: tuple[Finding, ...] = ()


class TokenLook:
    """Rows through the token contract, one by one.

    Attributes:
        contract: as training makes it, but that a row over a limit is counted and stops nothing.
        context: positions of the model, where its configuration says so.
        counts: what `TokenContract.prepare` would report.
        untokenised: rows that it would stop at.
        stopped: rows over a limit that it would stop at, under `tokens.on_too_long: error`.
        over_prompt, over_answer, over_context: rows over each limit, whatever becomes of them.
        shown: rows by shape, drawn at random among those kept.

    Raises:
        ModelError: no tokenizer, or one without an EOS.
    """

    def __init__(
        self, model: ModelConfig, tokens: TokensConfig, *, use_answers: bool, new_tokens: int, show: int, seed: int
    ) -> None:
        loaded = load_tokenizer(model)
        self._stops = tokens.on_too_long == "error"
        self._tokens = tokens.model_copy(update={"on_too_long": "drop"}) if self._stops else tokens
        self.contract = TokenContract(loaded.tokenizer, self._tokens, loaded.generation_eos)
        self.context, self._vocabulary = loaded.context_length, loaded.vocabulary
        self._use_answers, self._new_tokens, self._show = use_answers, new_tokens, show
        self._cutoff: int | None = None
        self._rng = random.Random(f"{seed}/audit")
        self._passed: Counter[str] = Counter()
        self.counts, self.untokenised, self.stopped = TokenCounts(), 0, 0
        self.lengths = Lengths()
        self.over_prompt = self.over_answer = self.over_context = 0
        self.shown: dict[str, list[Shown]] = {}
        if not use_answers and self.context is not None and new_tokens >= self.context:
            raise DataError(
                f"new_tokens {new_tokens} leaves no room for a prompt: the model has {self.context} positions; lower it"
            )

    @property
    def needs_lengths(self) -> bool:
        """Whether all prompts must be measured before the first row can be judged."""
        return self._tokens.drop_above_percentile is not None

    def measure(self, examples: Iterator[Example]) -> None:
        """A pass of its own for `tokens.drop_above_percentile`."""
        lengths = array("I")
        for example in examples:
            try:
                lengths.append(len(self._tokenise(example).group.prompt.ids))
            except (DataError, ModelError):
                continue
        self._cutoff = percentile_cutoff(lengths, self._tokens.drop_above_percentile)

    def look(self, example: Example, shape: str, *, may_show: bool) -> TokenRow:
        """Tokenise a row, count it, and perhaps keep it to be shown."""
        try:
            row = self._tokenise(example)
        except (DataError, ModelError) as error:
            self.untokenised += 1
            problem = str(error).removeprefix(f"{example.where}: ")
            return TokenRow(False, "can't be tokenised", findings=(Finding("untokenised", problem),))
        prompt, answers = len(row.group.prompt.ids), tuple(len(one.ids) for one in row.group.completions)
        self._measured(prompt, answers)
        findings = [*self._special(row, example)]
        longest = max(answers, default=0)
        why = self._above_percentile(prompt)
        group, reason = (None, why) if why else self.contract.fit(row.group, self.context, self._new_tokens)
        if group is None:
            self.stopped += self._stops and not why
            findings.append(Finding("too_long", reason, weight=prompt + longest))
            self.counts += TokenCounts(dropped=1, reasons={reason: 1})
            return TokenRow(False, reason, prompt, answers, tuple(findings))
        cut = group is not row.group
        if cut:
            note = f"the first {prompt - len(group.prompt.ids):,} tokens of the prompt are cut"
            findings.append(Finding("too_long", note, weight=prompt + longest))
        self.counts += TokenCounts(
            kept=1, truncated=int(cut), eos_invented=row.eos_invented, special_text=int(row.special_text),
            unknown=int(row.unknown),
        )  # fmt: skip
        if may_show:
            self._draw(shape, Shown(example, group))
        return TokenRow(True, "", prompt, answers, tuple(findings))

    def _tokenise(self, example: Example) -> Tokenised:
        used = example if self._use_answers else as_prompt(example)
        row = self.contract.tokenise(used, with_completions=bool(used.completions))
        if self._vocabulary is not None:
            ids = (row.group.prompt.ids, *(one.ids for one in row.group.completions))
            if (highest := max(max(some, default=0) for some in ids)) >= self._vocabulary:
                raise DataError(
                    f"{example.where}: token id {highest} is outside the model's {self._vocabulary} embeddings; the "
                    "tokenizer does not belong to this model"
                )
        return row

    def _above_percentile(self, prompt: int) -> str:
        """Why a prompt of so many tokens goes before any other limit is looked at, "" if it stays."""
        if self._cutoff is None or prompt <= self._cutoff:
            return ""
        return f"prompt above percentile {self._tokens.drop_above_percentile:g} ({self._cutoff} tokens)"

    def _measured(self, prompt: int, answers: tuple[int, ...]) -> None:
        longest = max(answers, default=0)
        self.lengths.prompts.append(prompt)
        self.lengths.answers.extend(answers)
        self.lengths.totals.append(prompt + longest)
        self.over_prompt += prompt > self._tokens.max_prompt_tokens
        self.over_answer += longest > self._tokens.max_completion_tokens
        room = longest if answers else self._new_tokens
        self.over_context += self.context is not None and prompt + room > self.context

    def _special(self, row: Tokenised, example: Example) -> Iterator[Finding]:
        if row.special_text:
            yield Finding("special_text", "holds the text of a special token")
        if row.unknown:
            yield Finding("unknown", "holds characters that the tokenizer does not know")
        if row.eos_invented:
            yield Finding("eos_invented", f"{row.eos_invented} answers, EOS appended", weight=row.eos_invented)
        bos = self.contract.bos_id
        if bos is not None and bos not in self.contract.eos_ids:
            asked = row.group.prompt.ids.count(bos)
            said = [n for n, one in enumerate(row.group.completions) if bos in one.ids]
            if asked > 1 or said:
                where = f"{asked} in the prompt" if asked > 1 else f"in {side_name(example, said[0])}"
                yield Finding("double_bos", f"BOS {where}", weight=asked)

    def _draw(self, shape: str, row: Shown) -> None:
        """Each kept row of a shape is shown with the same chance (Vitter's algorithm R)."""
        self._passed[shape] += 1
        held = self.shown.setdefault(shape, [])
        if len(held) < self._show:
            held.append(row)
        elif self._show and (at := self._rng.randrange(self._passed[shape])) < self._show:
            held[at] = row


Coloured: TypeAlias = tuple[str, str, str]
NEIGHBOURS = 8
"""Tokens that one may make a character with: in UTF-8 one has at most four bytes."""


def coloured(
    ids: tuple[int, ...], mask: tuple[bool, ...] | None, contract: TokenContract, most: int | None = None
) -> list[Coloured]:
    """Ids as (text, kind, id as text), one for each. Kinds: prompt, trained, context, special (written by the template,
    no loss), end (an EOS that is learned).

    Args:
        mask: of a completion; None for a prompt.
        most: of more ids, half as many of the beginning and of the end, and how many are between.

    A character of several tokens stands at the last of them, the others are ◌.
    """
    if most is None or len(ids) <= most:
        return _spelled(ids, mask, contract)
    half = most // 2
    begin, end = slice(half + NEIGHBOURS), slice(len(ids) - half - NEIGHBOURS, None)
    first, last = (_spelled(ids[part], None if mask is None else mask[part], contract) for part in (begin, end))
    return [*first[:half], (f" … {len(ids) - 2 * half:,} tokens … ", "context", ""), *last[NEIGHBOURS:]]


def _spelled(ids: tuple[int, ...], mask: tuple[bool, ...] | None, contract: TokenContract) -> list[Coloured]:
    """As `coloured`. A token is decoded with those of the character before it alone, or time would grow with the square
    of the length: they decide on a space before it."""
    out: list[Coloured] = []
    start = told = 0
    known = ""
    for n, one in enumerate(ids):
        text = contract.text_with_specials(ids[start : n + 1])
        whole = not text.endswith("\ufffd") or n + 1 == len(ids) or n + 1 - told >= NEIGHBOURS
        piece = "◌"
        if whole:
            piece = text[len(known) :] if text.startswith(known) else contract.text_with_specials([one])
            start, told = told, n + 1
            known = contract.text_with_specials(ids[start:told])
        special = bool(contract.text_with_specials([one])) and not contract.decode([one])
        if mask is None:
            kind = "special" if special else "prompt"
        elif mask[n]:
            kind = "end" if one in contract.eos_ids else "trained"
        else:
            kind = "special" if special else "context"
        out.append((piece.replace("\n", "↵\n") or "◌", kind, f"id {one}"))
    return out

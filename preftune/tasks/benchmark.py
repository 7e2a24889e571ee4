"""A task with its rows, tokenised for one model: what measures it, and what the measurement says row by row."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from preftune.config import SamplingConfig
from preftune.config.benchmarks import BenchmarkConfig
from preftune.errors import DataError
from preftune.records import Completion, Content, Example, Group, Message, Prompt
from preftune.tasks.choices import Chosen, chosen, comparable, lettered, margin, read_letter
from preftune.tasks.follow import follows, follows_loosely, instruction_level
from preftune.tasks.rows import ChoiceRow, InstructionRow, TaskRow, TaskRows

if TYPE_CHECKING:
    from preftune.engine.forward import Engine
    from preftune.sampling.base import Sampler
    from preftune.tokens import TokenContract

Tell: TypeAlias = Callable[[int, int], None]
"""Called with (rows done, rows in all)."""
Values: TypeAlias = dict[str, list[float | None]]
"""Metric → one value per row."""
CHUNK = 64
"""Rows that are scored before progress is told."""


@dataclass(frozen=True, slots=True)
class Followed:
    """An answer and which of its row's constraints it follows, in their order.

    Attributes:
        finish: why the answer ended (`Completion.finish`).
        tokens: its length; None where nobody counted.
    """

    text: str
    strict: tuple[bool, ...]
    loose: tuple[bool, ...]
    finish: str = "eos"
    tokens: int | None = None


Outcome: TypeAlias = Followed | Chosen


def judge_answer(row: TaskRow, text: str, finish: str, tokens: int | None = None) -> Outcome:
    """What an answer is worth: the constraints that it follows, or the letter that it names."""
    if isinstance(row, InstructionRow):
        return Followed(text, follows(text, row.constraints), follows_loosely(text, row.constraints), finish, tokens)
    picked = read_letter(text, len(row.choices))
    return Chosen((), (), picked, float(picked == row.answer), text=text, cut=finish == "length")


def values_of(rows: Sequence[TaskRow], outcomes: Sequence[Outcome]) -> Values:
    """The metrics of a task (docs/metrics.md), one value per row."""
    followed = [one for one in outcomes if isinstance(one, Followed)]
    if followed:
        out: Values = {
            "followed/prompts": [float(all(one.strict)) for one in followed],
            "followed/instructions": [*instruction_level([one.strict for one in followed])],
            "followed/prompts_loose": [float(all(one.loose)) for one in followed],
            "followed/instructions_loose": [*instruction_level([one.loose for one in followed])],
            "length/truncated": [float(one.finish == "length") for one in followed],
        }
        if any(one.tokens is not None for one in followed):
            out["length/mean"] = [None if one.tokens is None else float(one.tokens) for one in followed]
        return out
    picked = [(row, one) for row, one in zip(rows, outcomes, strict=True) if isinstance(one, Chosen)]
    found: Values = {"choices/accuracy": [one.right for _, one in picked]}
    if any(not one.values for _, one in picked):
        found["choices/unread"] = [float(one.picked is None) for _, one in picked]
        return found
    found["choices/accuracy_sum"] = [one.right_sum for _, one in picked]
    found["choices/margin"] = [margin(one.values, row.answer) for row, one in picked if isinstance(row, ChoiceRow)]
    return found


def main_metric(config: BenchmarkConfig) -> str:
    """The metric that a table shows of a task."""
    return "followed/prompts" if config.task == "instructions" else "choices/accuracy"


# ------------------------------------------------------------------------------------------------------ prompts


def request(row: TaskRow, config: BenchmarkConfig, *, chat: bool) -> Content:
    """What a model is given: messages, or plain text.

    A question is given in plain text as "Question: …", a line break and "Answer:", and in a conversation as it is.
    """
    content: Content = row.prompt
    if isinstance(row, ChoiceRow) and config.by == "letter":
        content = _with_last(content, lambda text: lettered(text, row.choices))
        if not chat and isinstance(content, str):
            content = f"{content}\nAnswer:"
    elif isinstance(row, ChoiceRow) and row.asked and not chat and isinstance(content, str):
        content = f"Question: {content}\nAnswer:"
    if isinstance(content, str):
        if not chat:
            return f"{config.system}\n\n{content}" if config.system else content
        content = (Message("user", content),)
    if config.system and content[0].role != "system":
        content = (Message("system", config.system), *content)
    return content


def _with_last(content: Content, change: Callable[[str], str]) -> Content:
    if isinstance(content, str):
        return change(content)
    last = content[-1]
    return (*content[:-1], replace(last, content=change(last.content)))


def asks_in_chat(config: BenchmarkConfig, *, has_template: bool) -> bool:
    """Whether rows of plain text are asked as a user's message."""
    if config.chat is not None:
        return config.chat
    return config.draws and has_template


# ---------------------------------------------------------------------------------------------------- benchmark


@dataclass(frozen=True)
class Benchmark:
    """A task's rows as one model reads them.

    Attributes:
        prompts: one per row, where the model writes answers.
        groups: one per row, its completions being the choices without an end, where log-probs are compared.
        plain: the same behind the prompt that tells nothing, with normalize: pmi.
        longest: tokens of an answer.
    """

    config: BenchmarkConfig
    rows: tuple[TaskRow, ...]
    content_hash: str
    notes: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    groups: tuple[Group, ...]
    plain: tuple[Group, ...]
    longest: int

    @classmethod
    def open(
        cls,
        config: BenchmarkConfig,
        read: TaskRows,
        contract: TokenContract,
        *,
        has_template: bool,
        context_length: int | None,
        longest: int,
    ) -> Benchmark:
        """Tokenise a task for a model.

        Args:
            has_template: the model has a chat template.
            context_length: its positions.
            longest: tokens of an answer, where the task's own settings do not say.

        Raises:
            DataError: a row does not fit the model, naming it. ModelError: messages without a chat template.
        """
        chat = asks_in_chat(config, has_template=has_template)
        longest = config.max_tokens or longest
        prompts: list[Prompt] = []
        groups: list[Group] = []
        plain: list[Group] = []
        for row in read.rows:
            content = request(row, config, chat=chat)
            if config.draws:
                prompt = contract.prompt(Example(content, where=row.where))
                _check_room(config, prompt, longest, context_length, "max_tokens")
                prompts.append(prompt)
                continue
            assert isinstance(row, ChoiceRow)
            groups.append(_group(contract, content, row))
            room = max(len(completion.ids) for completion in groups[-1].completions)
            _check_room(config, groups[-1].prompt, room, context_length, "the longest choice")
            if config.normalize == "pmi":
                nothing: Content = config.unconditional
                plain.append(_group(contract, (Message("user", config.unconditional),) if chat else nothing, row))
        return cls(
            config, tuple(read.rows), read.content_hash, tuple(read.notes), tuple(prompts), tuple(groups),
            tuple(plain), longest,
        )  # fmt: skip

    @property
    def title(self) -> str:
        return self.config.title

    @property
    def shown(self) -> tuple[Group, ...]:
        """Prompts, with the choices where those are compared."""
        return self.groups or tuple(Group(prompt, ()) for prompt in self.prompts)

    def answered(
        self, sampler: Sampler, settings: SamplingConfig, *, seed: int, temperature: float, tell: Tell | None = None,
        rows: Sequence[int] | None = None, version: int = 0,
    ) -> list[tuple[Outcome, Completion]]:  # fmt: skip
        """The model's answers to these rows (default all), each judged.

        Args:
            settings: all but the length of answers, which is the benchmark's.
        """
        places = range(len(self.rows)) if rows is None else rows
        settings = settings.model_copy(update={"max_tokens": self.longest})
        drawn = sampler.sample(
            [self.prompts[place] for place in places], 1, settings, seed=seed, temperature=temperature, progress=tell,
            policy_version=version,
        )  # fmt: skip
        out: list[tuple[Outcome, Completion]] = []
        for place, group in zip(places, drawn, strict=True):
            (completion,) = group.completions
            judged = judge_answer(self.rows[place], completion.text, completion.finish, completion.length)
            out.append((judged, completion))
        return out

    def compared(
        self, engine: Engine, budget: int, *, rows: Sequence[int] | None = None, tell: Tell | None = None
    ) -> Iterator[Chosen]:
        """What the choices' log-probs choose in these rows (default all), each row's prompt computed once.

        Args:
            budget: tokens of one forward pass; a row that needs more gets them.

        Raises:
            DataError: a log-prob that is not finite.
        """
        budget = max(budget, *map(_length, (*self.groups, *self.plain)))
        places = list(range(len(self.rows)) if rows is None else rows)
        for start in range(0, len(places), CHUNK):
            some = places[start : start + CHUNK]
            sums = _sums(engine, [self.groups[place] for place in some], budget)
            plain = _sums(engine, [self.plain[place] for place in some], budget) if self.plain else None
            for n, place in enumerate(some):
                row, group = self.rows[place], self.groups[place]
                assert isinstance(row, ChoiceRow)
                values = comparable(
                    sums[n], self.config.normalize, tokens=[len(c.ids) for c in group.completions], texts=row.choices,
                    unconditional=None if plain is None else plain[n],
                )  # fmt: skip
                if not all(map(math.isfinite, values)):
                    raise DataError(f"{row.where}: the model gives a choice a log-prob that is not finite")
                yield chosen(values, sums[n], row.answer)
            if tell is not None:
                tell(start + len(some), len(places))


def _length(group: Group) -> int:
    return len(group.prompt.ids) + max(len(completion.ids) for completion in group.completions)


def _sums(engine: Engine, groups: Sequence[Group], budget: int) -> list[list[float]]:
    return [[float(one.sum()) for one in group] for group in engine.score(groups, budget)]


def _group(contract: TokenContract, content: Content, row: ChoiceRow) -> Group:
    """The row with its choices as completions, their ends taken off: how likely a model is to stop is not asked."""
    lead = " " if isinstance(content, str) and not content[-1:].isspace() else ""
    texts = tuple(f"{lead}{choice}" for choice in row.choices)
    group = contract.group(Example(content, texts, where=row.where))
    bare = []
    for choice, completion in zip(row.choices, group.completions, strict=True):
        ids, mask = completion.ids, completion.mask
        while ids and ids[-1] in contract.eos_ids:
            ids, mask = ids[:-1], mask[:-1]
        if not any(mask):
            raise DataError(f"{row.where}: the choice {choice!r} has no tokens of its own in this model's vocabulary")
        bare.append(replace(completion, ids=ids, mask=mask))
    return replace(group, completions=tuple(bare))


def _check_room(config: BenchmarkConfig, prompt: Prompt, room: int, context_length: int | None, what: str) -> None:
    if context_length is not None and len(prompt.ids) + room > context_length:
        raise DataError(
            f"{prompt.where}: {len(prompt.ids)} prompt tokens and {what} ({room}) exceed the model's {context_length} "
            f"positions; lower max_tokens of {config.title}, or leave the row out"
        )


def by_name(rows: Sequence[TaskRow], outcomes: Sequence[Outcome]) -> Mapping[str, tuple[list[float], list[float]]]:
    """Constraint (kind, or IFEval's id) → strict and loose, 1 or 0 for each time that it occurs."""
    out: dict[str, tuple[list[float], list[float]]] = {}
    for row, one in zip(rows, outcomes, strict=True):
        if isinstance(row, InstructionRow) and isinstance(one, Followed):
            for name, strict, loose in zip(row.ids, one.strict, one.loose, strict=True):
                found = out.setdefault(name, ([], []))
                found[0].append(float(strict))
                found[1].append(float(loose))
    return dict(sorted(out.items()))


__all__ = [
    "Benchmark", "Followed", "Outcome", "Values", "asks_in_chat", "by_name", "judge_answer", "main_metric", "request",
    "values_of",
]  # fmt: skip

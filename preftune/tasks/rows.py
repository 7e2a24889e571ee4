"""Rows of tasks: from a file, a saved folder, the hub, or the built-in sets."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from preftune.config.benchmarks import BenchmarkConfig
from preftune.data.columns import BadRow, ColumnMap, describe, missing_column
from preftune.data.content import content
from preftune.data.sources import Row, read_rows
from preftune.errors import DataError
from preftune.records import Content
from preftune.tasks.constraints import Constraint, read_constraint
from preftune.tasks.ifeval import UnknownInstruction, from_ifeval

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Names of choices; a row has no more."""


@dataclass(frozen=True, slots=True)
class InstructionRow:
    """A request and what its answer must keep to.

    Attributes:
        ids: names of the constraints for people and tables: IFEval's ids, or our kinds.
        left_out: IFEval's ids that are not known and were left out.
    """

    prompt: Content
    constraints: tuple[Constraint, ...]
    ids: tuple[str, ...]
    where: str
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChoiceRow:
    """A question or a beginning, and texts of which one is right.

    Attributes:
        answer: place of the right choice, from 0.
        asked: the prompt is a question, to be followed by an answer; else a text that the choices go on with.
    """

    prompt: Content
    choices: tuple[str, ...]
    answer: int
    where: str
    asked: bool = True


TaskRow: TypeAlias = InstructionRow | ChoiceRow
AnyRow = TypeVar("AnyRow", InstructionRow, ChoiceRow)


@dataclass(frozen=True)
class TaskRows:
    """Rows of one task.

    Attributes:
        content_hash: sha256 over what the rows say, in their order.
        skipped: bad rows left out (`on_bad_row: skip`).
        first_skipped: why the first of them was.
        left_out: IFEval id → how often it was left out (`unknown: skip`).
    """

    rows: Sequence[TaskRow]
    content_hash: str
    skipped: int = 0
    first_skipped: str = ""
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """What a reader must know of the rows that are not there."""
        out = []
        if self.skipped:
            out.append(f"{self.skipped} bad rows skipped (first: {self.first_skipped})")
        if self.left_out:
            told = ", ".join(f"{name} ({count})" for name, count in self.left_out.items())
            out.append(f"instructions that are not known, left out: {told}")
        return out


def read_task(config: BenchmarkConfig, base_dir: Path | None = None) -> TaskRows:
    """All rows of a task.

    Raises:
        DataError: the source can't be read, has no usable row, or has a bad row under `on_bad_row: error`.
        UsageError: a column rule can't be read.
    """
    if config.is_builtin:
        from preftune.tasks.own_choices import own_choices
        from preftune.tasks.own_instructions import own_instructions

        raw: Iterator[Row] = iter(own_instructions() if config.task == "instructions" else own_choices())
    else:
        raw = read_rows(config.source, base_dir)
    columns = ColumnMap(config.source)
    make: Callable[[Mapping[str, Any], str], TaskRow] = choice_row
    if config.task == "instructions":
        make = _instructions(skip=config.unknown == "skip")
    rows: list[TaskRow] = []
    digest = hashlib.sha256()
    skipped, first = 0, ""
    left_out: Counter[str] = Counter()
    for one in raw:
        try:
            if one.problem:
                raise BadRow(one.problem)
            row = make(columns.apply(one.values), one.where)
        except BadRow as problem:
            if config.on_bad_row == "error":
                raise DataError(
                    f"{one.where}: {problem}. To leave bad rows out and count them, set on_bad_row: skip"
                ) from None
            skipped += 1
            first = first or f"{one.where}: {problem}"
            continue
        if isinstance(row, InstructionRow):
            left_out.update(row.left_out)
            if not row.constraints:
                continue  # all of them were left out, and are counted
        rows.append(row)
        digest.update(_digest(row))
        if len(rows) == config.limit:
            break
    if not rows:
        why = f": all {skipped} are bad, the first is {first}" if skipped else ", it is empty"
        if left_out:
            why = f": all of its instructions are unknown ({', '.join(left_out)})"
        raise DataError(f"{config.path}: has no usable row for the task {config.task}{why}")
    return TaskRows(rows, digest.hexdigest(), skipped, first, dict(left_out))


def _digest(row: TaskRow) -> bytes:
    prompt = row.prompt if isinstance(row.prompt, str) else [[m.role, m.content] for m in row.prompt]
    rest: list[Any] = [row.choices, row.answer, row.asked] if isinstance(row, ChoiceRow) else []
    if isinstance(row, InstructionRow):
        rest = [[one.kind, dict(one.args)] for one in row.constraints]
    text = json.dumps([prompt, rest], ensure_ascii=True, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).digest()


# ------------------------------------------------------------------------------------------------- instructions


def _instructions(*, skip: bool) -> Callable[[Mapping[str, Any], str], InstructionRow]:
    return lambda values, where: instruction_row(values, where, skip_unknown=skip)


def instruction_row(values: Mapping[str, Any], where: str = "", *, skip_unknown: bool = False) -> InstructionRow:
    """A row of ours (`prompt`, `constraints`) or of IFEval (`prompt`, `instruction_id_list`, `kwargs`).

    Raises:
        BadRow: a column is missing, or a constraint can't be read.
    """
    constraints, ids, left_out = constraints_of(values, skip_unknown=skip_unknown)
    return InstructionRow(_prompt(values, "prompt", "messages"), constraints, ids, where, left_out)


def constraints_of(
    values: Mapping[str, Any], column: str = "constraints", *, skip_unknown: bool = False
) -> tuple[tuple[Constraint, ...], tuple[str, ...], tuple[str, ...]]:
    """A row's constraints, their names, and IFEval's ids that were left out.

    Raises:
        BadRow: there is neither `constraints` nor `instruction_id_list`, or something in it can't be read.
    """
    if values.get(column) is not None:
        listed = _parsed(values[column], column)
        if not isinstance(listed, list | tuple) or not listed:
            raise BadRow(f"column {column!r} must hold a list of constraints, it holds {_told(listed)}")
        out = []
        for number, raw in enumerate(listed):
            try:
                out.append(read_constraint(raw))
            except ValueError as error:
                raise BadRow(f"{column}[{number}]: {error}") from None
        return tuple(out), tuple(one.kind for one in out), ()
    if values.get("instruction_id_list") is None:
        raise BadRow(f"{missing_column(column, values)} (IFEval's rows have instruction_id_list and kwargs)")
    ids = _parsed(values["instruction_id_list"], "instruction_id_list")
    given = _parsed(values.get("kwargs"), "kwargs")
    if not isinstance(ids, list | tuple) or not ids:
        raise BadRow(f"column 'instruction_id_list' must hold a list of ids, it holds {_told(ids)}")
    given = [None] * len(ids) if given is None else given
    if not isinstance(given, list | tuple) or len(given) != len(ids):
        raise BadRow(f"column 'kwargs' must hold an object for each of the {len(ids)} instructions")
    made: list[Constraint] = []
    names: list[str] = []
    left_out: list[str] = []
    for identity, args in zip(ids, given, strict=True):
        try:
            made.append(from_ifeval(identity, args))
            names.append(str(identity))
        except UnknownInstruction as error:
            if not skip_unknown:
                raise BadRow(f"{error}. To leave unknown ones out and count them, set unknown: skip") from None
            left_out.append(str(identity))
        except ValueError as error:
            raise BadRow(f"kwargs: {error}") from None
    return tuple(made), tuple(names), tuple(left_out)


# ------------------------------------------------------------------------------------------------------ choices


def choice_row(values: Mapping[str, Any], where: str = "") -> ChoiceRow:
    """A row of multiple choice, in one of the forms that the columns tell apart:

    | columns | as in |
    |---|---|
    | `question` or `prompt`, `choices` (texts), `answer` (place from 0, letter, or the right text) | ours |
    | `question`, `choices` ({text, label}), `answerKey` | ARC, CommonsenseQA, OpenBookQA |
    | `ctx`, `endings`, `label` | HellaSwag |
    | `goal`, `sol1`, `sol2`, `label` | PIQA |

    A `question` (a `goal`, too) is answered; a `prompt` (`ctx`) is gone on with.

    Raises:
        BadRow: no such form, or values that do not fit it.
    """
    if "endings" in values and "ctx" in values:
        ending = _texts(values["endings"], "endings")
        return _row(_text(values["ctx"], "ctx"), ending, _place(values, "label", ending), where, asked=False)
    if "sol1" in values and "sol2" in values:
        both = [_text(values[name], name) for name in ("sol1", "sol2")]
        return _row(_prompt(values, "goal"), both, _place(values, "label", both), where)
    if "choices" not in values:
        raise BadRow(missing_column("choices", values))
    listed = _parsed(values["choices"], "choices")
    labels: list[str] = []
    if isinstance(listed, Mapping):
        texts = _texts(listed.get("text"), "choices.text")
        labels = [str(label) for label in listed.get("label") or []]
        if len(labels) != len(texts):
            raise BadRow(f"choices: {len(texts)} texts but {len(labels)} labels")
    else:
        texts = _texts(listed, "choices")
    key = next((name for name in ("answer", "answerKey", "label") if values.get(name) is not None), None)
    if key is None:
        raise BadRow(missing_column("answer", values))
    asked = values.get("question") is not None
    prompt = _prompt(values, "question" if asked else "prompt", "messages")
    return _row(prompt, texts, _place(values, key, texts, labels), where, asked=asked or not isinstance(prompt, str))


def _row(prompt: Content, choices: list[str], answer: int, where: str, *, asked: bool = True) -> ChoiceRow:
    if not 2 <= len(choices) <= len(LETTERS):
        raise BadRow(f"a row has 2 to {len(LETTERS)} choices, this one has {len(choices)}")
    if any(not choice.strip() for choice in choices):
        raise BadRow("a choice is empty")
    if twice := [choice for choice, count in Counter(choices).items() if count > 1]:
        raise BadRow(f"two choices are the same: {twice[0]!r}")
    return ChoiceRow(prompt, tuple(choice.strip() for choice in choices), answer, where, asked)


def _place(values: Mapping[str, Any], column: str, choices: Sequence[str], labels: Sequence[str] = ()) -> int:
    """Which choice a row's answer names: by its label, its place from 0, its letter, or its text."""
    value = values.get(column)
    if value is None or isinstance(value, bool):
        raise BadRow(f"column {column!r} must say which choice is right, it holds {describe(value)}")
    text = str(value).strip()
    if labels:
        if text in labels:
            return labels.index(text)
        raise BadRow(f"column {column!r} is {text!r}, and the labels are {', '.join(labels)}")
    if text in choices and not text.isdigit():
        return list(choices).index(text)
    if text.isdigit() and int(text) < len(choices):
        return int(text)
    if len(text) == 1 and text.upper() in LETTERS[: len(choices)]:
        return LETTERS.index(text.upper())
    last = LETTERS[len(choices) - 1]
    raise BadRow(
        f"column {column!r} is {text[:40]!r}; the right choice is its place (0 to {len(choices) - 1}), its letter "
        f"(A to {last}) or its text"
    )


# ------------------------------------------------------------------------------------------------------- values


def _prompt(values: Mapping[str, Any], *names: str) -> Content:
    """The first of these columns that the row has, as text or messages."""
    for name in names:
        if values.get(name) is not None:
            found = content(values[name], name)
            if isinstance(found, str) and not found.strip():
                raise BadRow(f"column {name!r} is empty")
            if not isinstance(found, str) and found[-1].role == "assistant":
                raise BadRow(f"column {name!r} ends with the assistant's turn, so there is nothing to answer")
            return found
    raise BadRow(missing_column(names[0], values))


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadRow(f"column {name!r} must hold text, it holds {_told(value)}")
    return value


def _texts(value: Any, name: str) -> list[str]:
    value = _parsed(value, name)
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
        raise BadRow(f"column {name!r} must hold a list of texts, it holds {_told(value)}")
    return list(value)


def _told(value: Any) -> str:
    return "an empty list" if isinstance(value, list | tuple) and not value else describe(value)


def _parsed(value: Any, name: str) -> Any:
    """A nested value; text is read as JSON, since CSV can't hold lists."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BadRow(f"column {name!r} is text but no JSON: {error}") from None

"""Several responses to one prompt: the recipe's `responses:` rule, and the ranked format that it makes."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from preftune.config import ResponsesRule
from preftune.data.columns import BadRow, describe, missing_column
from preftune.data.content import author, content, number
from preftune.records import Content

# Field of a response → what it is called in data.
TEXT = ("text", "content", "completion", "messages")
SCORE = ("score", "label")
RANK = ("rank",)
SOURCE = ("source", "model")
# A column beside `responses` with a list of the same length.
PARALLEL = {"scores": "score", "ranks": "rank"}


@dataclass(frozen=True, slots=True)
class Response:
    """One response: its text or messages, how good it is (higher is better), who wrote it ("": not said)."""

    content: Content
    score: float
    source: str = ""


def apply_rule(rule: ResponsesRule, mapped: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """A mapped row with the column `responses`, made as the recipe says: a list of `Response`.

    The rule's columns are looked up among the mapped ones first, then in the row as it came.

    Raises:
        BadRow: a column or field is missing, or of a wrong type.
    """
    values = {**row, **mapped}
    found = _column(values, rule.column, "from")
    if not isinstance(found, list | tuple):
        raise BadRow(f"column {rule.column!r} must hold a list of responses, it holds {describe(found)}")
    objects = bool(found) and all(isinstance(item, Mapping) for item in found)
    made: list[Response] = []
    if found:
        made = _from_objects(rule, found) if objects else _from_texts(rule, found, values)
    for extra in rule.also:
        score = extra.score if extra.score is not None else 0.0 - (extra.rank or 0.0)
        made.append(Response(content(_column(values, extra.column, "also"), extra.column), score, extra.source or ""))
    if not made:
        raise BadRow(f"column {rule.column!r} is an empty list")
    consumed = {rule.column} if objects else {rule.column, rule.score, rule.rank, rule.source}
    return {name: value for name, value in mapped.items() if name not in consumed} | {"responses": made}


def _from_objects(rule: ResponsesRule, found: Sequence[Mapping[str, Any]]) -> list[Response]:
    made = []
    for n, item in enumerate(found):
        place = f"{rule.column}[{n}]"
        text = _one_of(item, TEXT, place) if rule.text is None else _field(item, rule.text, place, "text")
        kind, name = _scale(rule)
        name = _one_of(item, SCORE + RANK, place) if name is None else _field(item, name, place, kind)
        kind = kind or _kind(name)
        writer = (
            "" if rule.source is None else author(item[_field(item, rule.source, place, "source")], f"{place}.source")
        )
        made.append(
            Response(content(item[text], f"{place}.{text}"), _grade(kind, item[name], f"{place}.{name}"), writer)
        )
    return made


def _from_texts(rule: ResponsesRule, found: Sequence[Any], values: Mapping[str, Any]) -> list[Response]:
    """A list of texts (or conversations): `score`, `rank` and `source` are columns with lists beside it."""
    for n, item in enumerate(found):
        if not isinstance(item, str | list | tuple):
            raise BadRow(
                f"{rule.column}[{n}] must be text, messages or, as all others, an object; it is {describe(item)}"
            )
    if rule.text is not None:
        raise BadRow(
            f"{rule.column}[0] is {describe(found[0])} and has no field {rule.text!r}; remove data.responses.text"
        )
    kind, name = _scale(rule)
    grades: Sequence[Any] = [n + 1 for n in range(len(found))]
    if name is not None:
        grades = _parallel(_column(values, name, kind), name, len(found))
    writers: Sequence[Any] = [None] * len(found)
    if rule.source is not None:
        writers = _parallel(_column(values, rule.source, "source"), rule.source, len(found))
    return [
        Response(
            content(item, f"{rule.column}[{n}]"),
            _grade(kind or "rank", grades[n], f"{name}[{n}]"),
            author(writers[n], f"{rule.source}[{n}]"),
        )
        for n, item in enumerate(found)
    ]


def read_responses(row: Mapping[str, Any]) -> tuple[list[Response], frozenset[str]]:
    """The responses of a row of the ranked format, and the columns that were read for it.

    `responses` is a list of texts or conversations, the best first or with a column `scores` or `ranks` beside it; or
    of objects with text (or content, completion, messages), score (or rank, label) and source (or model), where a
    column beside it may hold the grades. A rank r becomes the score −r.

    Raises:
        BadRow: a response without text or grade, grades of two kinds, or a number that is none.
    """
    found = row["responses"]
    if not isinstance(found, list | tuple):
        raise BadRow(f"column 'responses' must hold a list of responses, it holds {describe(found)}")
    if not found:
        raise BadRow("column 'responses' is an empty list")
    if all(isinstance(item, Response) for item in found):
        return list(found), frozenset({"responses"})
    objects = [item for item in found if isinstance(item, Mapping)]
    if objects and len(objects) < len(found):
        raise BadRow("column 'responses' holds objects and other values; it must be one or the other")
    grades = _grades(row, found, objects)
    out = []
    for n, (item, grade) in enumerate(zip(found, grades, strict=True)):
        place = f"responses[{n}]"
        if not isinstance(item, Mapping):
            out.append(Response(content(item, place), grade))
            continue
        if item.get("role", "assistant") != "assistant":
            raise BadRow(f"{place} is a message of {item['role']}, not a response")
        name = _one_of(item, TEXT, place)
        writers = [author(item[field], f"{place}.{field}") for field in SOURCE if item.get(field) is not None]
        if len(writers) > 1:
            raise BadRow(f"{place} has both source and model; name the right one in data.responses.source")
        out.append(Response(content(item[name], f"{place}.{name}"), grade, "".join(writers)))
    return out, frozenset({"responses", *(name for name in PARALLEL if name in row)})


def _grades(row: Mapping[str, Any], found: Sequence[Any], objects: Sequence[Mapping[str, Any]]) -> list[float]:
    """One score for each response: from the column beside them, from themselves, or from their order."""
    beside = [name for name in PARALLEL if name in row]
    twice = [*beside, *(["responses"] if any(name in item for item in objects for name in SCORE + RANK) else [])]
    if beside and len(twice) > 1:
        raise BadRow(
            f"the columns {' and '.join(map(repr, twice))} both grade the responses; name the right one in "
            "data.responses.score or rank"
        )
    if beside:
        (name,) = beside
        given = _parallel(row[name], name, len(found))
        return [_grade(PARALLEL[name], grade, f"{name}[{n}]") for n, grade in enumerate(given)]
    if not objects:
        return [_grade("rank", n + 1, "") for n in range(len(found))]
    names = [_one_of(item, SCORE + RANK, f"responses[{n}]") for n, item in enumerate(objects)]
    if len({_kind(name) for name in names}) > 1:
        raise BadRow("some responses have a score and some a rank, which can't be compared")
    pairs = enumerate(zip(objects, names, strict=True))
    return [_grade(_kind(name), item[name], f"responses[{n}].{name}") for n, (item, name) in pairs]


def _scale(rule: ResponsesRule) -> tuple[str, str | None]:
    """score or rank, and the name of the field or column that holds it; empty where the rule does not say."""
    if rule.rank is not None:
        return "rank", rule.rank
    return ("", None) if rule.score is None else ("score", rule.score)


def _kind(name: str) -> str:
    return "rank" if name in RANK else "score"


def _grade(kind: str, value: Any, place: str) -> float:
    """A score as it is, true and false as 1 and 0; a rank with its sign turned, as higher is better."""
    return number(value, place, truth=True) if kind == "score" else 0.0 - number(value, place)


def _parallel(value: Any, name: str, length: int) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise BadRow(f"column {name!r} must hold a list, one entry for each response; it holds {describe(value)}")
    if len(value) != length:
        raise BadRow(f"column {name!r} has {len(value)} entries for {length} responses")
    return value


def _one_of(item: Mapping[str, Any], names: Sequence[str], place: str) -> str:
    """The one field of a response that is called by one of these names."""
    found = [name for name in names if item.get(name) is not None]
    if len(found) != 1:
        told = (
            f"both {' and '.join(found)}; name the right one in data.responses"
            if found
            else f"none of {', '.join(names)}"
        )
        raise BadRow(f"{place} has {told}. Fields: {', '.join(map(str, item)) or 'none'}")
    return found[0]


def _column(values: Mapping[str, Any], name: str, key: str) -> Any:
    if name not in values:
        raise BadRow(f"{missing_column(name, values)} (data.responses.{key} names it)")
    return values[name]


def _field(item: Mapping[str, Any], name: str, place: str, key: str) -> str:
    """The name, when the response has a value there."""
    if name not in item:
        near = difflib.get_close_matches(name, [str(field) for field in item], 1)
        hint = f", did you mean {near[0]!r}?" if near else "."
        raise BadRow(
            f"{place} has no field {name!r}{hint} Fields: {', '.join(map(str, item)) or 'none'} (data.responses.{key} "
            "names it)"
        )
    if item[name] is None and key != "source":
        raise BadRow(f"{place}.{name} is null (data.responses.{key} names it)")
    return name

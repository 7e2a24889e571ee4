"""Rewards on the text of a completion: exact, regex, length, JSON schema, tags.

Each is a frozen dataclass: its fields are the recipe's `args`, calling it scores a batch by TRL's signature.
`can_hang` says whether its run time may explode on some text, so that it needs a process of its own.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from preftune.rewards.call import column_values, completion_text


def check_pattern(pattern: str, field: str) -> None:
    """Raise ValueError when `pattern` is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{field} is no regular expression: {error}: {pattern!r}") from None


def accepted_answers(truth: Any) -> list[str]:
    """The answers a column's value stands for: itself as text, each item of a list, or none (None and NaN)."""
    items = truth if isinstance(truth, (list, tuple)) else [truth]
    missing = (item is None or (isinstance(item, float) and math.isnan(item)) for item in items)
    return [str(item) for item, absent in zip(items, missing, strict=True) if not absent]


def score_against(
    column: str, completions: list[Any], columns: Mapping[str, list[Any]], score: Callable[[str, str], float]
) -> list[float | None]:
    """The best `score(text, answer)` over the answers in each row's column; None where the row has no answer."""
    truths = column_values(column, columns)
    out: list[float | None] = []
    for completion, truth in zip(completions, truths, strict=True):
        text = completion_text(completion)
        out.append(max((score(text, answer) for answer in accepted_answers(truth)), default=None))
    return out


@dataclass(frozen=True, slots=True)
class Exact:
    """1.0 when the whole completion is the answer, else 0.0. A list of answers means any of them; None: no value."""

    column: str = "answer"
    strip: bool = True
    casefold: bool = False

    can_hang = False

    def __call__(self, /, completions: list[Any], **columns: Any) -> list[float | None]:
        return score_against(self.column, completions, columns, self._score)

    def _score(self, text: str, answer: str) -> float:
        return 1.0 if self._normal(text) == self._normal(answer) else 0.0

    def _normal(self, text: str) -> str:
        text = text.strip() if self.strip else text
        return text.casefold() if self.casefold else text


@dataclass(frozen=True, slots=True)
class Regex:
    """1.0 when the pattern is found in the completion (`full`: is the whole of it), else 0.0."""

    pattern: str
    full: bool = False

    can_hang = True  # the pattern is the user's, and may backtrack for ages

    def __post_init__(self) -> None:
        check_pattern(self.pattern, "pattern")

    def __call__(self, /, completions: list[Any], **columns: Any) -> list[float | None]:
        compiled = re.compile(self.pattern)
        find = compiled.fullmatch if self.full else compiled.search
        return [1.0 if find(completion_text(c)) else 0.0 for c in completions]


@dataclass(frozen=True, slots=True)
class Length:
    """1.0 from `at_least` to `at_most` units, falling linearly to 0.0 at `ramp` units outside (0: at once).

    With n units and d = max(at_least − n, n − at_most, 0): value = max(0, 1 − d / ramp). `at_least: 100,
    at_most: 100, ramp: 100` so rises linearly from 0 to 1 at 100 units and falls to 0 at 200.
    Tokens are those of `completion_ids`, the EOS included.
    """

    at_least: int = 0
    at_most: int | None = None
    ramp: int = 0
    unit: Literal["tokens", "chars", "words"] = "tokens"

    can_hang = False

    def __post_init__(self) -> None:
        if min(self.at_least, self.ramp) < 0:
            raise ValueError("at_least and ramp can't be negative")
        if self.at_most is not None and self.at_most < self.at_least:
            raise ValueError(f"at_most ({self.at_most}) is less than at_least ({self.at_least})")
        if self.at_least == 0 and self.at_most is None:
            raise ValueError("give at_least, at_most or both: without a limit every length scores 1.0")

    def __call__(
        self, /, completions: list[Any], completion_ids: list[list[int]], **columns: Any
    ) -> list[float | None]:
        if self.unit == "tokens":
            return [self._score(len(ids)) for ids in completion_ids]
        texts = [completion_text(c) for c in completions]
        return [self._score(len(text) if self.unit == "chars" else len(text.split())) for text in texts]

    def _score(self, n: int) -> float:
        over = 0 if self.at_most is None else n - self.at_most
        distance = max(self.at_least - n, over, 0)
        if distance == 0:
            return 1.0
        return max(0.0, 1.0 - distance / self.ramp) if self.ramp else 0.0


_FENCED = re.compile(r"^```(?:json)?[ \t]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """1.0 when the completion is JSON that the schema allows, else 0.0; no partial credit.

    `fenced`: where the text has ``` or ```json blocks, the last one is read instead of the whole text.
    NaN and Infinity are no JSON. References in the schema must be inside it: nothing is fetched.
    """

    schema: Mapping[str, Any]
    fenced: bool = True

    can_hang = True  # the schema's `pattern` entries are regular expressions

    def __post_init__(self) -> None:
        from jsonschema.exceptions import SchemaError

        try:
            self._validator().check_schema(self.schema)
        except SchemaError as error:
            raise ValueError(f"schema is no JSON schema: {error.message}") from None
        self._check_references()

    def prepare(self) -> None:
        """Import jsonschema, once per process."""
        self._validator()

    def _validator(self) -> Any:
        from jsonschema.validators import Draft202012Validator, validator_for
        from referencing import Registry

        # An explicit empty registry: jsonschema's default one would fetch remote references.
        return validator_for(self.schema, default=Draft202012Validator)(self.schema, registry=Registry())

    def _check_references(self) -> None:
        from referencing import Registry
        from referencing.exceptions import Unresolvable
        from referencing.jsonschema import DRAFT202012

        resource = DRAFT202012.create_resource(dict(self.schema))
        resolver: Any = Registry().resolver_with_root(resource)
        for reference in _references(self.schema):
            try:
                resolver.lookup(reference)
            except Unresolvable:
                raise ValueError(f"schema has a $ref that leads nowhere inside it: {reference!r}") from None

    def __call__(self, /, completions: list[Any], **columns: Any) -> list[float | None]:
        validator = self._validator()
        return [self._score(completion_text(c), validator) for c in completions]

    def _score(self, text: str, validator: Any) -> float:
        blocks = _FENCED.findall(text) if self.fenced else []
        try:
            value = json.loads(blocks[-1] if blocks else text, parse_constant=_no_constant)
            return 1.0 if validator.is_valid(value) else 0.0
        except (ValueError, RecursionError, OverflowError):  # no JSON, nested too deep, or multipleOf of a huge number
            return 0.0


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _references(schema: Any) -> list[str]:
    """Every `$ref` of a schema, however deep."""
    found: list[str] = []
    open_nodes = [schema]
    while open_nodes:
        node = open_nodes.pop()
        if isinstance(node, Mapping):
            reference = node.get("$ref")
            if isinstance(reference, str):
                found.append(reference)
            open_nodes.extend(node.values())
        elif isinstance(node, list):
            open_nodes.extend(node)
    return found


@dataclass(frozen=True, slots=True)
class Tags:
    """1.0 when the completion is `<a>…</a><b>…</b>` for the given tags, else 0.0.

    Each element occurs exactly once, in order, not nested and not blank, with only white space around.
    `first_open`: the prompt already ends in the first opening tag, so the completion begins inside it.
    """

    tags: tuple[str, ...]
    first_open: bool = False

    can_hang = False

    def __post_init__(self) -> None:
        if not self.tags or len(set(self.tags)) != len(self.tags):
            raise ValueError("tags needs at least one name, and each only once")

    def __call__(self, /, completions: list[Any], **columns: Any) -> list[float | None]:
        return [1.0 if self._matches(completion_text(c)) else 0.0 for c in completions]

    def _matches(self, text: str) -> bool:
        if self.first_open:
            text = f"<{self.tags[0]}>{text}"
        position = 0
        for tag in self.tags:
            opening, closing = f"<{tag}>", f"</{tag}>"
            if text.count(opening) != 1 or text.count(closing) != 1:
                return False
            start, end = text.find(opening, position), text.find(closing, position)
            inside = text[start + len(opening) : end]
            if start < 0 or end < start or text[position:start].strip() or not inside.strip():
                return False
            position = end + len(closing)
        return not text[position:].strip()

"""`preftune init [METHOD]`: prints a commented recipe of the fields that the method reads, made from the models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from preftune.cli.parser import Parser
from preftune.config import BenchmarkConfig, Recipe
from preftune.errors import UsageError
from preftune.methods import METHODS, Method
from preftune.recipes.reads import unread
from preftune.recipes.schema import is_dict, is_list, item_of, keys_of, model_of, nearest
from preftune.recipes.yamltext import dump_yaml

_ESSENTIAL: dict[str, Any] = {
    "method": "",  # the command's
    "model.path": "Qwen/Qwen3-0.6B-Base",
    "data.path": "train.jsonl",
    "rewards.name": "accuracy",
    "train.steps": 100,
}
"""What every recipe must say, with an example; written without a comment sign."""

_ALSO: dict[str, dict[str, Any]] = {"gmpo": {"model.lora.r": 16, "model.lora.alpha": 32.0}}
"""What else a recipe of one method must say: GMPO's policy and critic are two adapters on one base."""

_EXAMPLE: dict[str, Any] = {
    "data.columns.*.from": "answer",
    "data.responses.from": "responses",
    "data.responses.text": "text",
    "data.responses.score": "score",
    "data.responses.also.column": "reference",
    "data.responses.also.score": 1.0,
    "competition.personas.name": "prosecutor",
    "competition.personas.prompt": "The strongest case against the claim.",
    "train.until.metric": "reward/mean",
    "train.until.at_least": 0.9,
}
"""Values shown for commented fields whose default alone would not be valid."""

_SECOND = {"competition.personas": "{name: defender, prompt: The strongest case for the claim.}"}
"""What stands behind the first entry of a list that needs two."""

_FREE_KEY = "answer"

_ROWS: dict[str | None, str] = {
    "pairs": '# Rows: {"prompt": …, "chosen": …, "rejected": …}; docs/data.md has the other forms.',
    "labels": '# Rows: {"prompt": …, "completion": …, "label": true or false}; docs/data.md has the other forms.',
}
"""What a row looks like where the data must compare."""


@dataclass(frozen=True)
class _Line:
    indent: int
    text: str
    note: str
    comment_at: int | None  # the column of the comment sign

    def __str__(self) -> str:
        note = f"  # {self.note}" if self.note else ""
        if self.comment_at is None:
            return f"{' ' * self.indent}{self.text}{note}"
        inner = " " * (self.indent - self.comment_at)
        return f"{' ' * self.comment_at}# {inner}{self.text}{note}"


def execute(arguments: list[str]) -> int:
    parser = Parser(
        prog="preftune init", description="Prints a commented recipe with every field of the method and its default."
    )
    parser.add_argument("method", nargs="?", default="grpo", metavar="METHOD", help="a method (default grpo)")
    method = parser.parse(arguments).method
    if method not in METHODS:
        close = nearest(method, METHODS)
        hint = f"did you mean {close}?" if close else f"methods: {', '.join(METHODS)}"
        raise UsageError(f"no method is named {method!r}; {hint}")
    print(template(method), end="")
    return 0


def template(method: str) -> str:
    """A recipe for `method`: essential fields with examples, other fields that it reads commented out with defaults."""
    row = METHODS[method]
    essential = {**_ESSENTIAL, "method": method, **_ALSO.get(method, {})}
    if not row.scored:
        del essential["rewards.name"]
    head = [
        f"# {method}: {row.summary}.",
        *([_ROWS[row.compares]] if row.compares in _ROWS else []),
        "# Lines that are commented out show the defaults. Run it with: preftune run THIS_FILE",
        "# Look before you train: preftune run THIS_FILE --dry-run",
        "",
    ]
    shown = _Shown(essential, frozenset(unread(row)), flat_defaults(row))
    lines = [str(line) for line in _section(Recipe, (), 0, None, shown)]
    return "\n".join([*head, *lines]) + "\n"


@dataclass(frozen=True)
class _Shown:
    """What the template writes: fields with an example that is no comment, and fields that are left out."""

    essential: dict[str, Any]
    unread: frozenset[str]
    defaults: dict[str, Any]


def flat_defaults(row: Method) -> dict[str, Any]:
    """The method's own defaults, by dotted name."""
    return {f"{section}.{key}": value for section, some in row.defaults.items() for key, value in some.items()}


def _section(
    model: type[BaseModel], path: tuple[str, ...], indent: int, comment_at: int | None, shown: _Shown
) -> Iterator[_Line]:
    for key, info in keys_of(model).items():
        if not _left_out((*path, key), info, shown):
            yield from _field((*path, key), info, indent, comment_at, shown)


def _left_out(path: tuple[str, ...], info: FieldInfo, shown: _Shown) -> bool:
    """Whether the method reads nothing of a field: neither the field itself nor, of a section, any part."""
    section = model_of(info.annotation)
    parts = keys_of(section) if section is not None else {}
    inner = (_left_out((*path, key), part, shown) for key, part in parts.items())
    return ".".join(path) in shown.unread or (bool(parts) and all(inner))


def _field(
    path: tuple[str, ...], info: FieldInfo, indent: int, comment_at: int | None, shown: _Shown
) -> Iterator[_Line]:
    name, key = ".".join(path), path[-1]
    needed = any(entry == name or entry.startswith(f"{name}.") for entry in shown.essential)
    section = model_of(info.annotation)
    item = item_of(info.annotation)
    inner = model_of(item) if item is not None else None
    note = info.description or _first_sentence(section)
    # an empty section means its defaults, so its header stays; an optional one, a list or a value would say something
    plain_section = section is not None and not info.is_required() and info.default is not None
    here = comment_at if needed or plain_section or comment_at is not None else indent
    if section is not None:
        yield _Line(indent, f"{key}:", note, here)
        yield from _section(section, path, indent + 2, here, shown)
    elif inner is not None and name.startswith("eval."):
        task = inner is BenchmarkConfig
        form = "{task: instructions}, say; docs/evaluate.md" if task else "sources with the fields of data above"
        yield _Line(indent, f"{key}: []", f"{note}; {form}", here)
    elif inner is not None and is_list(info.annotation):
        yield _Line(indent, f"{key}:", note, here)
        fields = list(_section(inner, path, indent + 4, here, shown))
        first = fields[0]
        yield _Line(indent + 2, f"- {first.text}", first.note, here)
        yield from fields[1:]
        if name in _SECOND:
            yield _Line(indent + 2, f"- {_SECOND[name]}", "", here)
    elif inner is not None and is_dict(info.annotation):
        yield _Line(indent, f"{key}:", note, here)
        yield _Line(indent + 2, f"{_FREE_KEY}:", "the standard column; one such block each", here)
        yield from _section(inner, (*path, "*"), indent + 4, here, shown)
    else:
        yield _Line(indent, f"{key}: {_value(name, info, {**shown.defaults, **shown.essential})}", note, here)


def _value(name: str, info: FieldInfo, essential: dict[str, Any]) -> str:
    """The essential example, or the default, as one line of YAML."""
    if name in essential:
        value = essential[name]
    elif name in _EXAMPLE:
        value = _EXAMPLE[name]
    elif info.is_required():
        value = _ESSENTIAL[name]
    else:
        value = info.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, list):
        return "[" + ", ".join(dump_yaml(part).removesuffix("...\n").strip() for part in value) + "]"
    return dump_yaml(value).removesuffix("...\n").strip()


def _first_sentence(section: type[BaseModel] | None) -> str:
    return (section.__doc__ or "").strip().split("\n")[0].rstrip(".") if section is not None else ""

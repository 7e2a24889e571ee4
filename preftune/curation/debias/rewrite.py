"""Rows as they were read, with other texts of their answers and nothing else changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from preftune.config import SourceConfig
from preftune.curation.debias.table import answer_text
from preftune.data.columns import BadRow, ColumnMap
from preftune.data.content import as_turns
from preftune.data.formats import Format, detect
from preftune.data.responses import TEXT
from preftune.errors import DataError
from preftune.records import Content, Example

Path: TypeAlias = tuple[str | int, ...]


class Rewriter:
    """Puts answers of one source back where they came from: columns of any name, lists of responses, conversations
    that hold their prompt, transcripts."""

    def __init__(self, source: SourceConfig) -> None:
        self.source = source
        self._columns = ColumnMap(source)
        self._format: Format | None = None if source.format == "auto" else source.format
        if source.responses is not None:
            self._format = "ranked"

    def __call__(self, values: Mapping[str, Any], example: Example, texts: Mapping[int, str]) -> dict[str, Any]:
        """The row with other texts.

        Args:
            values: the row as read. It is not changed.
            example: what it means.
            texts: place of a completion → what its first turn by the assistant shall say.

        Raises:
            DataError: the text can't be found in the row, because a rule of `data.columns` makes it anew.
        """
        places = self._places(values, example)
        out: Any = dict(values)
        for number, text in texts.items():
            try:
                out = _put(out, places[number], example, example.completions[number], text)
            except (LookupError, TypeError, ValueError) as error:
                where = ".".join(map(str, places[number])) if number < len(places) else "the row"
                raise DataError(
                    f"{example.where}: the answer does not stand in {where} as it is read, so it can't be put back "
                    "without its opening; give a file whose columns hold the answers themselves, without "
                    "data.columns rules that change them"
                ) from error
        return dict(out)

    def _places(self, values: Mapping[str, Any], example: Example) -> list[Path]:
        """Where each completion stands in the row."""
        if self.source.responses is not None:
            return self._of_rule(values)
        if self._format is None:
            try:
                self._format = detect(self._columns.apply(values), self._columns.names)
            except BadRow as error:
                raise DataError(f"{example.where}: {error}") from error
        if self._format == "ranked":
            name = self._raw("responses")
            return [(name, n, *_field(item)) for n, item in enumerate(values.get(name, ()))]
        chosen, rejected = self._raw("chosen"), self._raw("rejected")
        found = values.get(rejected)
        several = isinstance(found, list | tuple) and any(isinstance(item, str | list | tuple) for item in found)
        others: list[Path] = [(rejected, n) for n in range(len(found or ()))] if several else [(rejected,)]
        return [(chosen,), *others]

    def _of_rule(self, values: Mapping[str, Any]) -> list[Path]:
        rule = self.source.responses
        assert rule is not None
        name = self._raw(rule.column)
        out: list[Path] = []
        for n, item in enumerate(values.get(name, ())):
            out.append((name, n, *((rule.text,) if rule.text and isinstance(item, Mapping) else _field(item))))
        return out + [(self._raw(extra.column),) for extra in rule.also]

    def _raw(self, name: str) -> str:
        """The source's own column behind a standard one."""
        rule = self.source.columns.get(name)
        return name if rule is None or rule.source is None else rule.source


def _field(item: Any) -> Path:
    """The field of a response that holds its text; none where the response is the text."""
    if not isinstance(item, Mapping):
        return ()
    return (next(name for name in TEXT if item.get(name) is not None),)


def _put(here: Any, path: Path, example: Example, completion: Content, text: str) -> Any:
    """A copy of a nested value with the text at the path replaced."""
    if path:
        step, rest = path[0], path[1:]
        inner = _put(here[step], rest, example, completion, text)
        if isinstance(here, Mapping):
            return {**here, step: inner}
        return [inner if n == step else item for n, item in enumerate(here)]
    old = answer_text(completion)
    if isinstance(here, str):
        return _in_text(here, old, text, example)
    turns = len(as_turns(completion))
    at = len(here) - turns
    message = dict(here[at])
    message["content"] = _in_message(message["content"], old, text)
    return [message if n == at else item for n, item in enumerate(here)]


def _in_text(whole: str, old: str, new: str, example: Example) -> str:
    """The text with an answer in it replaced: all of it, its end, or what comes behind the prompt's turns."""
    if whole == old:
        return new
    prompt = example.prompt
    if isinstance(prompt, str):
        start = len(whole) - len(old) if whole.endswith(old) else whole.rindex(old)
    else:
        start = 0
        for turn in prompt:
            found = whole.find(turn.content, start)
            start = found + len(turn.content) if found >= 0 else start
        start = whole.index(old, start) if old in whole[start:] else whole.index(old)
    return whole[:start] + new + whole[start + len(old) :]


def _in_message(content: Any, old: str, new: str) -> Any:
    """A message's content, text or a list of text parts, of which the first holds the opening."""
    if isinstance(content, str):
        start = content.index(old)  # a transcript's turns lost the white space around them
        return content[:start] + new + content[start + len(old) :]
    parts: Sequence[Mapping[str, Any]] = content
    rest = "".join(part["text"] for part in parts[1:])
    if not new.endswith(rest) or len(new) <= len(rest):
        raise ValueError("the opening reaches into the second part")
    return [{**parts[0], "text": new[: len(new) - len(rest)]}, *parts[1:]]

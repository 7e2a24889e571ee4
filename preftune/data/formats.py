"""Row formats: a mapped row becomes an Example."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from preftune.config import SourceConfig
from preftune.data.columns import BadRow, describe, missing_column
from preftune.data.content import as_turns, author, content, messages, number
from preftune.data.responses import read_responses
from preftune.data.split import is_transcript, read_transcript, shared_context, split_texts, split_turns
from preftune.errors import DataError
from preftune.records import Content, Example, Message

Format: TypeAlias = Literal["prompt", "prompt-completion", "text", "messages", "preference", "unpaired", "ranked"]

STANDARD: dict[Format, tuple[str, ...]] = {
    "prompt": ("prompt",),
    "prompt-completion": ("prompt", "completion"),
    "text": ("text",),
    "messages": ("messages",),
    "preference": ("prompt", "chosen", "rejected"),
    "unpaired": ("prompt", "completion", "label"),
    "ranked": ("prompt", "responses"),
}
_OPTIONAL = frozenset({("preference", "prompt")})


def detect(row: Mapping[str, Any], mapped: frozenset[str]) -> Format:
    """The format that a mapped row's columns show.

    When columns of several formats are there, those that the recipe maps decide. Raises BadRow when none or several
    remain.
    """
    found: list[Format] = [name for name in ("messages", "text") if name in row]
    compared: list[Format] = []
    if "chosen" in row and "rejected" in row:
        compared.append("preference")
    if "prompt" in row and "responses" in row:
        compared.append("ranked")
    found += compared
    if "prompt" in row and "completion" in row:
        found.append(_labelled(row, mapped))
    elif "prompt" in row and not compared:
        found.append("prompt")
    if len(found) > 1:
        found = [format for format in found if mapped & set(STANDARD[format])] or found
    if len(found) > 1:  # most formats have a prompt: their other columns tell them apart
        found = [format for format in found if mapped & (set(STANDARD[format]) - {"prompt"} or {"prompt"})] or found
    if len(found) == 1:
        return found[0]
    if found:
        raise BadRow(f"the columns fit several formats ({', '.join(found)}); set data.format to one of them")
    for name, other in (("chosen", "rejected"), ("rejected", "chosen"), ("responses", "prompt")):
        if name in row:
            raise BadRow(f"{missing_column(other, row)} (it belongs to {name!r}; map it with data.columns)")
    raise BadRow(
        "no column is named prompt, text, messages or chosen; map one with data.columns, e.g. --data.columns.prompt "
        f"COLUMN. Columns: {', '.join(map(str, row)) or 'none'}"
    )


def _labelled(row: Mapping[str, Any], mapped: frozenset[str]) -> Format:
    """unpaired, when the label surely says how good the completion is; many data sets have labels of other things."""
    label = row.get("label")
    if "label" in mapped or isinstance(label, bool) or str(label).strip().lower() in ("true", "false"):
        return "unpaired"
    if "label" not in row:
        return "prompt-completion"
    if label is not None:
        try:
            number(label, "")
        except BadRow:
            return "prompt-completion"
    raise BadRow(
        f"column 'label' holds {'null' if label is None else 'a number'}: if it says how good the completion is, set "
        "data.format: unpaired, or else data.format: prompt-completion"
    )


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a format makes of a row; `used`: the columns that it read."""

    prompt: Content
    completions: tuple[Content, ...]
    scores: tuple[float, ...] = ()
    sources: tuple[str, ...] = ()
    used: frozenset[str] = frozenset()


def to_example(row: Mapping[str, Any], format: Format, source: SourceConfig, where: str) -> Example:
    """A mapped row as an Example. Raises BadRow when a column is missing, of a wrong type or empty."""
    for name in STANDARD[format]:
        if name not in row and (format, name) not in _OPTIONAL:
            raise BadRow(f"{missing_column(name, row)} (the {format} format needs it)")
    parts = _READERS[format](row, source)
    used = parts.used | set(STANDARD[format])
    columns = {name: value for name, value in row.items() if name not in used}
    if format in ("preference", "ranked") and "margin" in columns:
        columns["margin"] = number(columns["margin"], "column 'margin'")
        if columns["margin"] < 0:
            raise BadRow(f"column 'margin' must be 0 or more, it is {columns['margin']:g}")
    prompt = parts.prompt if isinstance(parts.prompt, str) else _checked(parts.prompt, source.system)
    sources = parts.sources if any(parts.sources) else ()
    return Example(prompt, parts.completions, columns, where, parts.scores, sources)


def as_prompt(example: Example) -> Example:
    """The row as on-policy methods use it: without its completion, the policy writes its own.

    A conversation keeps every turn before its last assistant turn. Raises DataError for the `text` format.
    """
    if not example.prompt:
        raise DataError(
            f"{example.where}: a row of the text format has no prompt to answer; map a prompt column with data.columns"
        )
    prompt = example.prompt
    if not isinstance(prompt, str) and example.completions:
        prompt = (*prompt, *as_turns(example.completions[0])[: shared_context(example.completions)])
    return Example(prompt, (), example.columns, example.where)


def as_prompts(examples: Iterable[Example]) -> list[Example]:
    """`as_prompt` of every row."""
    return [as_prompt(example) for example in examples]


def best_of(example: Example) -> Example:
    """The row with its best completion alone, the first of several; SFT learns from that one.

    Rows of one completion, or without scores, stay as they are.
    """
    if len(example.completions) < 2 or not example.scores:
        return example
    best = max(range(len(example.scores)), key=example.scores.__getitem__)
    return replace(
        example,
        completions=(example.completions[best],),
        scores=(example.scores[best],),
        sources=example.sources[best : best + 1],
    )


def desirable(example: Example, threshold: float = 0.5) -> bool:
    """Whether a row holds a completion to imitate: its best score reaches the threshold, or is better than another
    one of the row, so that a ranking without absolute grades has a best, too. A row without scores is data to imitate.
    """
    return not example.scores or max(example.scores) >= threshold or max(example.scores) > min(example.scores)


# ---------------------------------------------------------------------------------------------------- readers


def _read_text(row: Mapping[str, Any], source: SourceConfig) -> _Parts:
    if source.system is not None or source.chat:
        raise BadRow("data.system and data.chat need a prompt, but rows of the text format have none")
    if not isinstance(row["text"], str):
        raise BadRow(f"column 'text' must hold text, it holds {describe(row['text'])}")
    if not row["text"]:
        raise BadRow("column 'text' is empty")
    return _Parts("", (row["text"],))


def _read_messages(row: Mapping[str, Any], source: SourceConfig) -> _Parts:
    """Messages before the first assistant turn, and the rest as the one completion."""
    turns = messages(row["messages"], "messages")
    first = next((n for n, message in enumerate(turns) if message.role == "assistant"), len(turns))
    if first == 0:
        raise BadRow("messages[0] is an assistant turn, so nothing stands before it to answer")
    return _Parts(turns[:first], (turns[first:],) if first < len(turns) else ())


def _read_prompt(row: Mapping[str, Any], source: SourceConfig) -> _Parts:
    return _answered(row, {}, source)


def _read_completion(row: Mapping[str, Any], source: SourceConfig) -> _Parts:
    return _answered(row, {"column 'completion'": content(row["completion"], "completion")}, source)


def _read_unpaired(row: Mapping[str, Any], source: SourceConfig) -> _Parts:
    label = number(row["label"], "column 'label'", truth=True)
    return replace(_read_completion(row, source), scores=(label,), sources=(_author(row, "model"),))


def _read_ranked(row: Mapping[str, Any], source: SourceConfig) -> _Parts:
    responses, used = read_responses(row)
    parts = _answered(row, {f"responses[{n}]": one.content for n, one in enumerate(responses)}, source)
    scores, sources = tuple(one.score for one in responses), tuple(one.source for one in responses)
    return replace(parts, scores=scores, sources=sources, used=used)


def _read_preference(row: Mapping[str, Any], source: SourceConfig) -> _Parts:
    rejected, writers = _rejected(row)
    sides = {"column 'chosen'": content(row["chosen"], "chosen"), **rejected}
    parts = _answered(row, sides, source) if "prompt" in row and not _repeated(row, sides) else _split(sides, source)
    return replace(parts, scores=(1.0,) + (0.0,) * len(rejected), sources=(_author(row, "chosen_model"), *writers))


_READERS: dict[Format, Callable[[Mapping[str, Any], SourceConfig], _Parts]] = {
    "prompt": _read_prompt,
    "prompt-completion": _read_completion,
    "text": _read_text,
    "messages": _read_messages,
    "preference": _read_preference,
    "unpaired": _read_unpaired,
    "ranked": _read_ranked,
}


def _answered(row: Mapping[str, Any], completions: Mapping[str, Content], source: SourceConfig) -> _Parts:
    """The prompt column and completions of it. One that is a list of messages makes a plain prompt a user message."""
    prompt = content(row["prompt"], "prompt")
    if not prompt:
        raise BadRow("column 'prompt' is empty")
    turns = [value for value in completions.values() if not isinstance(value, str)]
    if isinstance(prompt, str) and (source.chat or source.system is not None or turns):
        prompt = (Message("user", prompt),)
    if isinstance(prompt, str):
        return _Parts(prompt, tuple(completions.values()))
    return _Parts(prompt, tuple(_answer(value, prompt, name) for name, value in completions.items()))


def _answer(value: Content, prompt: tuple[Message, ...], name: str) -> tuple[Message, ...]:
    """A completion of a conversation; where it repeats the whole prompt, what follows it."""
    turns = as_turns(value)
    if turns[0].role != "assistant" and turns[: len(prompt)] == prompt:
        turns = turns[len(prompt) :]
    if not turns or turns[0].role != "assistant":
        raise BadRow(f"{name} must begin with an assistant turn, or with all messages of the prompt")
    return turns


def _rejected(row: Mapping[str, Any]) -> tuple[dict[str, Content], list[str]]:
    """One rejected completion or a list of several, and who wrote each."""
    value, model = row["rejected"], row.get("rejected_model")
    if isinstance(row["chosen"], list | tuple) and any(isinstance(item, str | list) for item in row["chosen"]):
        raise BadRow("column 'chosen' holds several completions; it must be one. For more, use the ranked format")
    several = isinstance(value, list | tuple) and any(isinstance(item, str | list | tuple) for item in value)
    sides = (
        {"column 'rejected'": content(value, "rejected")}
        if not several
        else {f"rejected[{n}]": content(item, f"rejected[{n}]") for n, item in enumerate(value)}
    )
    if isinstance(model, list | tuple):
        if len(model) != len(sides):
            raise BadRow(f"column 'rejected_model' names {len(model)} writers of {len(sides)} rejected completions")
        return sides, [author(name, f"rejected_model[{n}]") for n, name in enumerate(model)]
    return sides, [_author(row, "rejected_model")] * len(sides)


def _repeated(row: Mapping[str, Any], sides: Mapping[str, Content]) -> bool:
    """Whether the completions are whole conversations that begin with the row's prompt."""
    prompt = content(row["prompt"], "prompt")
    texts = [value for value in sides.values() if isinstance(value, str)]
    if not prompt:
        return False  # said where the column is read
    if texts:
        if not isinstance(prompt, str) or len(texts) < len(sides):
            return False
        return all(is_transcript(text) and text.startswith(prompt) for text in texts)
    turns = [as_turns(value) for value in sides.values()]
    if any(one[0].role == "assistant" for one in turns):
        return False
    shared = turns[0][: split_turns(turns, list(sides))]
    if isinstance(prompt, str):
        users = [message.content.strip() for message in shared if message.role == "user"]
        found = bool(users) and prompt.strip() in (users[0], users[-1])
    else:
        found = shared[: len(prompt)] == prompt
    if not found:
        raise BadRow(
            f"{' and '.join(sides)} begin with a {shared[0].role} turn, so they should hold the whole conversation, "
            "but what they share does not begin with the prompt; remove the prompt column, or these turns"
        )
    return True


def _split(sides: Mapping[str, Content], source: SourceConfig) -> _Parts:
    """Completions that hold their prompt: conversations, transcripts, or plain texts with a common beginning."""
    names, values = list(sides), list(sides.values())
    texts = [value for value in values if isinstance(value, str)]
    if 0 < len(texts) < len(values):
        raise BadRow(f"of {' and '.join(names)} some are text and some messages; without a prompt all must be alike")
    transcripts = [is_transcript(text) for text in texts]
    if any(transcripts) and not all(transcripts):
        name = names[transcripts.index(False)]
        raise BadRow(f"{name} is no transcript (Human: …, Assistant: …), though another one is")
    if texts and not transcripts[0]:
        if source.chat or source.system is not None:
            raise BadRow(
                "data.chat and data.system need a prompt column or conversations: the common beginning of plain texts "
                "is no user's message"
            )
        cut = split_texts(texts, names)
        return _Parts(texts[0][:cut], tuple(text[cut:] for text in texts))
    turns = [read_transcript(value) if isinstance(value, str) else value for value in values]
    cut = split_turns(turns, names)
    return _Parts(turns[0][:cut], tuple(one[cut:] for one in turns))


def _author(row: Mapping[str, Any], column: str) -> str:
    return author(row.get(column), f"column {column!r}")


def _checked(prompt: tuple[Message, ...], system: str | None) -> tuple[Message, ...]:
    if prompt[-1].role == "assistant":
        raise BadRow(
            "column 'prompt' ends with an assistant turn; move it to 'completion', or name the column messages"
        )
    if system is None:
        return prompt
    if any(message.role == "system" for message in prompt):
        raise BadRow(
            "the row has a system message of its own; remove data.system (a competition's own prompt: give "
            'competition.system: ""), or the row\'s message'
        )
    return (Message("system", system), *prompt)

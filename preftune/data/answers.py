"""A file of collected answers as rows of the ranked format, so that every method can learn from what one stage wrote.

A row has `prompt`, `responses` (objects with `text`, `score`, `source` and the value of each reward under its name) and
the prompt's own columns. `data.responses: {from: responses, score: NAME}` makes a reward's value the score.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from preftune.config import SourceConfig
from preftune.data.collected import read_collected
from preftune.data.sources import Row
from preftune.records import Completion, Content

RESPONSES = "responses"
_TAKEN = frozenset({"text", "content", "completion", "messages", "score", "label", "rank", "source", "model"})
"""Fields of a response that have a meaning of their own: a reward of such a name is not among them."""


def is_collected(path: Path) -> bool:
    """Whether a .jsonl file begins as collected answers do."""
    try:
        with path.open("rb") as file:
            head = json.loads(file.readline(1_000_000))
    except (OSError, ValueError, RecursionError):
        return False  # said where the file is read
    return isinstance(head, dict) and {"collected", "about", "groups", "sha256"} == set(head)


def read_answers(path: Path, source: SourceConfig) -> Iterator[Row]:
    """The groups of a file in its order. Answers without a score (or without the value that `data.responses.score`
    names) are left out; a row without any other is a bad one.

    Raises:
        DataError: the file is damaged.
    """
    grade = "score" if source.responses is None or source.responses.score is None else source.responses.score
    for number, group in enumerate(read_collected(path).groups, 2):
        where = f"{path}:{number}"
        answers = [_response(completion) for completion in group.completions]
        kept = [answer for answer in answers if answer.get(grade) is not None]
        if not kept:
            names = sorted({name for answer in answers for name, value in answer.items() if value is not None})
            told = f"there are {', '.join(names)}" if answers else "it has no answer"
            yield Row(where, problem=f"no answer has a {grade!r}; {told}")
            continue
        yield Row(where, {**group.prompt.columns, "prompt": _prompt(group.prompt.content, source), RESPONSES: kept})


def _response(completion: Completion) -> dict[str, Any]:
    values = {name: value for name, value in completion.breakdown.items() if name not in _TAKEN}
    # who wrote it goes without saying where the policy did: then the file is the origin
    source = None if completion.source in ("policy", "data", "") else completion.source
    # A lone surrogate from broken model output is no text that a row may hold.
    text = completion.text.encode("utf-8", "replace").decode("utf-8")
    return {**values, "text": text, "score": completion.score, "source": source}


def _prompt(content: Content, source: SourceConfig) -> Any:
    """The prompt's content, without the system message that the source puts before it anyway."""
    if isinstance(content, str):
        return content
    turns = [{"role": turn.role, "content": turn.content} for turn in content]
    return turns[1:] if turns[0] == {"role": "system", "content": source.system} else turns

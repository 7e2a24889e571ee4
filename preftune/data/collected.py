"""Answers that were drawn before training, as a file: exact token ids, log-probs and scores, so that nothing of what
the policy wrote is made anew from text.

One JSON object a line. The first is the head; every other is a group:

    {"collected": 1, "about": {…}, "groups": 2, "sha256": "…"}
    {"id": "0-3f9a…", "prompt": {"ids": […], "text": "…", …}, "completions": [{"ids": […], "logprobs": […], …}, …]}

A file is written whole or not at all, and a damaged one is an error, never a shorter data set.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from preftune.errors import DataError
from preftune.records import Completion, Content, Distribution, Group, Message, Prompt

VERSION = 1


@dataclass(frozen=True, slots=True)
class Collected:
    """What a file holds.

    Attributes:
        groups: in the file's order.
        ids: one name per group, unique in the file; `group_id` makes it from the group's place and its tokens.
        about: where the answers come from: the policy's fingerprint, sampling settings, seed.
        digest: SHA-256 of the groups as written.
    """

    groups: tuple[Group, ...]
    ids: tuple[str, ...]
    about: Mapping[str, Any]
    digest: str


def group_id(index: int, group: Group) -> str:
    """A short name of a group that changes with its prompt's or completions' tokens."""
    tokens = json.dumps([group.prompt.ids, *(c.ids for c in group.completions)])
    return f"{index}-{hashlib.sha256(tokens.encode()).hexdigest()[:8]}"


def write_collected(path: Path, groups: Sequence[Group], about: Mapping[str, Any]) -> None:
    """Write groups with their completions, whole or not at all.

    Raises:
        DataError: the file can't be written, or a column of a prompt is nothing that JSON has.
    """
    try:
        lines = [_line({"id": group_id(i, g), **_group_to_json(g)}) for i, g in enumerate(groups)]
        body = "".join(lines)
        digest = hashlib.sha256(body.encode("utf-8")).hexdigest()
        head = _line({"collected": VERSION, "about": dict(about), "groups": len(groups), "sha256": digest})
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{path}: a score or a column of a prompt can't be written as JSON ({error}); leave the column out, or "
            "mend what gives the number"
        ) from error
    temporary = path.with_name(f".writing-{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(head + body, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"can't write {path}: {error}; free some space or make the folder writable") from error
    finally:
        with suppress(OSError):  # what went wrong is said above
            temporary.unlink(missing_ok=True)


def read_collected(path: Path) -> Collected:
    """Read what `write_collected` wrote.

    Raises:
        DataError: no such file, not such a file, or one that was changed or cut since.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"can't read the collected answers {path}: {error}") from error
    first, _, body = text.partition("\n")
    try:
        head = json.loads(first)
        version, expected, count = head["collected"], head["sha256"], head["groups"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}:1: this is no file of collected answers (its first line has no head); such files are written by "
            "a run of iterative-dpo or rft and by preftune human export"
        ) from error
    if version != VERSION:
        raise DataError(f"{path}:1: version {version} of collected answers; this preftune reads version {VERSION}")
    if hashlib.sha256(body.encode("utf-8")).hexdigest() != expected:
        raise DataError(f"{path}: the file was changed or cut since it was written; collect the answers again")
    groups: list[Group] = []
    ids: list[str] = []
    for number, line in enumerate(body.splitlines(), start=2):
        try:
            record = json.loads(line)
            groups.append(_group_from_json(record))
            ids.append(str(record["id"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}:{number}: not a collected group ({type(error).__name__}: {error})") from error
    if len(groups) != count:
        raise DataError(f"{path}: {len(groups)} groups, but its head says {count}; collect the answers again")
    return Collected(tuple(groups), tuple(ids), head["about"], expected)


def _line(value: Mapping[str, Any]) -> str:
    # A lone surrogate from broken model output has no UTF-8 form, so everything beyond ASCII is escaped.
    return json.dumps(value, ensure_ascii=True, allow_nan=False) + "\n"


def _group_to_json(group: Group) -> dict[str, Any]:
    prompt = {
        "ids": group.prompt.ids, "text": group.prompt.text, "content": _content_to_json(group.prompt.content),
        "columns": dict(group.prompt.columns), "where": group.prompt.where,
    }  # fmt: skip
    return {"prompt": prompt, "completions": [_completion_to_json(c) for c in group.completions]}


def _completion_to_json(c: Completion) -> dict[str, Any]:
    return {
        "ids": c.ids, "mask": [int(m) for m in c.mask], "text": c.text, "finish": c.finish, "logprobs": c.logprobs,
        "distribution": None if c.distribution is None else asdict(c.distribution),
        "policy_version": c.policy_version, "source": c.source, "score": c.score, "breakdown": dict(c.breakdown),
        "notes": dict(c.notes),
    }  # fmt: skip


def _group_from_json(record: Mapping[str, Any]) -> Group:
    prompt = record["prompt"]
    return Group(
        Prompt(
            tuple(prompt["ids"]), prompt["text"], _content_from_json(prompt["content"]), prompt["columns"],
            prompt["where"],
        ),
        tuple(_completion_from_json(c) for c in record["completions"]),
    )  # fmt: skip


def _completion_from_json(c: Mapping[str, Any]) -> Completion:
    return Completion(
        ids=tuple(c["ids"]), mask=tuple(bool(m) for m in c["mask"]), text=c["text"], finish=c["finish"],
        logprobs=None if c["logprobs"] is None else tuple(c["logprobs"]),
        distribution=None if c["distribution"] is None else Distribution(**c["distribution"]),
        policy_version=c["policy_version"], source=c["source"], score=c["score"], breakdown=c["breakdown"],
        notes=c["notes"],
    )  # fmt: skip


def _content_to_json(content: Content) -> Any:
    return content if isinstance(content, str) else [{"role": m.role, "content": m.content} for m in content]


def _content_from_json(value: Any) -> Content:
    return value if isinstance(value, str) else tuple(Message(m["role"], m["content"]) for m in value)

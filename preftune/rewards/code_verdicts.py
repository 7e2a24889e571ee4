"""What the reward `code` says of a program that a sandbox ran: decided here, outside, from what came out."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from preftune.rewards.code_cases import Check, Dialogue
from preftune.sandbox import Result

End: TypeAlias = Literal["passed", "wrong", "error", "syntax", "time", "memory", "output", "killed", "unfinished"]
SHOWN = 400
"""Characters of a program's own words in a note."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a program did on one case: how it ended, and why, in words for a person (never for the score)."""

    end: End
    why: str = ""


def judge_dialogue(case: Dialogue, result: Result) -> Verdict:
    """A program that read and printed: right when it ended in order and printed what it should."""
    broken = _broken(result)
    if broken is not None:
        return broken
    if result.code != 0:
        return _raised(_last_line(result.stderr) or f"exit code {result.code}")
    if case.right(result.stdout):
        return Verdict("passed")
    return Verdict("wrong", f"printed {_shown(result.stdout.decode(errors='replace'))}")


def judge_check(case: Check, secret: bytes, result: Result) -> Verdict:
    """A test: right when it ran to its end, which only the secret tells, and all observations are right."""
    broken = _broken(result)
    if broken is not None:
        return broken
    made: set[int] = set()
    ended = False
    for line in result.report.split(b"\n"):
        kind, _, rest = line.partition(b" ")
        if kind == b"fail":
            return _failed(rest)
        if kind == b"end":
            ended = secrets.compare_digest(rest, secret)
        if kind == b"see":
            try:
                index, _, encoded = rest.partition(b" ")
                made.add(int(index))
                seen = json.loads(encoded)
                right = case.expected[int(index)].met(seen)
            except (ValueError, IndexError, RecursionError):
                return Verdict("error", "the report of the test is damaged")
            if not right:
                return Verdict("wrong", f"observation {int(index) + 1} is not what it must be{_foreign(seen)}")
    if not ended:
        last = _last_line(result.stderr)
        return Verdict(
            "error", f"ended before the test did, with exit code {result.code}{': ' if last else ''}{_shown(last)}"
        )
    if not case.required <= made:
        return Verdict("error", "the test ended without all that it observes")
    return Verdict("passed")


def _foreign(seen: Any) -> str:
    return (
        f": no plain data, but {_shown(str(seen[1]))}"
        if isinstance(seen, list) and seen[:1] == ["?"] and len(seen) == 2
        else ""
    )


def _broken(result: Result) -> Verdict | None:
    """The verdict on a program that did not end by itself."""
    match result.outcome:
        case "exit":
            return None
        case "time":
            return Verdict(
                "time", f"ended after {result.cpu:.1f} s of processor time, {result.seconds:.1f} s by the clock"
            )
        case "output":
            return Verdict("output", "wrote too much")
        case "unfinished":
            return Verdict("unfinished", "the batch's time was over")
        case "lost":
            return Verdict("killed", "brought its supervisor down")
    if b"MemoryError" in result.stderr or b"memory" in result.stderr:
        return Verdict("memory", _last_line(result.stderr))
    return Verdict("killed", f"ended by signal {result.code}")


def _failed(rest: bytes) -> Verdict:
    stage, _, encoded = rest.partition(b" ")
    try:
        text = bytes.fromhex(encoded.decode()).decode(errors="replace")
    except ValueError:
        return Verdict("error", "the report of the test is damaged")
    if stage == b"test":
        return Verdict("wrong" if text.startswith("AssertionError") else _raised(text).end, _shown(text))
    return _raised(text)


def _raised(text: str) -> Verdict:
    name = text.partition(":")[0]
    kinds: dict[str, End] = {
        "MemoryError": "memory",
        "SyntaxError": "syntax",
        "IndentationError": "syntax",
        "TabError": "syntax",
    }
    return Verdict(kinds.get(name, "error"), _shown(text))


def _last_line(stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _shown(text: str) -> str:
    """The beginning of a program's text, without characters that would act on a terminal."""
    cut = text[:SHOWN] + ("…" if len(text) > SHOWN else "")
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in cut)

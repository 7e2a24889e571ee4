"""The built-in reward `code`: runs a completion's program against the row's tests, in a sandbox.

docs/code-reward.md has the shapes of the tests column, and what is isolated and what is not.
"""

from __future__ import annotations

import marshal
import math
import os
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from preftune.errors import RewardError
from preftune.rewards.call import SetupError, Unscorable, column_values, completion_text
from preftune.rewards.code_cases import Case, Dialogue, read_cases
from preftune.rewards.code_verdicts import End, Verdict, judge_check, judge_dialogue
from preftune.rewards.text import check_pattern
from preftune.sandbox import Job, Layers, Limits, Result, SandboxError, Sandboxes, available

BOOT = """
import marshal, os
size, code = int.from_bytes(os.read(3, 8), "big"), b""
while len(code) < size:
    code += os.read(3, size - len(code))
exec(marshal.loads(code))
"""
"""What the sandbox's Python is started with: it takes the driver ready-made, since compiling it anew costs time."""
HANGS = 2
"""A program that ran out of time on so many tests of a row is not run on the rest, which count as failed."""
RESERVE = 0.1
"""The part of the reward's timeout that is kept for the rest of the work: tests end before it."""

_OPENING = re.compile(r"( *)(`{3,}|~{3,}) *([\w+.-]*)")


def fenced(text: str) -> str | None:
    """The last closed block of Python in a Markdown text; without one, the last closed block of no language."""
    python = plain = None
    fence, indent, label, lines = "", 0, "", list[str]()
    for line in text.split("\n"):
        bare = line.strip()
        if not fence:
            if opening := _OPENING.match(line):
                fence, indent, label, lines = opening[2], len(opening[1]), opening[3].lower(), []
        elif len(bare) >= len(fence) and set(bare) == {fence[0]}:
            if label in ("python", "py", "python3"):
                python = "\n".join(lines)
            elif not label:
                plain = "\n".join(lines)
            fence = ""
        else:
            lines.append(line[min(indent, len(line) - len(line.lstrip(" "))) :])
    return plain if python is None else python


@dataclass(frozen=True)  # no slots: the sandboxes are kept beside the fields
class CodeReward:
    """The share of the row's tests that the completion's program passes; `partial: false`: 1.0 for all, else 0.0.

    The program is the last closed ```python block (without one, the last block of no language), the last match of
    `extract` (its first group, if it has one), or with `whole` the whole completion. No program scores 0.0. Tests come
    from the column `tests`; a row without any (None) gets no value. `entry_point` and `setup` are columns too, read
    where the data has them. Whatever the program does is its own fault, and fails the test that it was at.
    """

    tests: str = "tests"
    entry_point: str = "entry_point"
    setup: str = "setup"
    extract: str | None = None
    whole: bool = False
    partial: bool = True
    seconds: int = 3
    memory: int = 512
    disk: int = 16
    output: int = 1
    processes: int = 0
    workers: int | None = None
    require: Literal["auto", "isolated", "namespaces"] = "auto"

    can_hang = True  # `extract` is the user's pattern; and a hang of the sandbox must not be the trainer's
    on_hang = 0.0

    def __post_init__(self) -> None:
        self._limits  # noqa: B018  wrong settings are errors of the recipe
        if self.workers is not None and self.workers < 1:
            raise ValueError("workers is at least 1")
        if self.extract is not None:
            check_pattern(self.extract, "extract")
            if self.whole:
                raise ValueError("extract and whole exclude each other")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_sandboxes"}

    @cached_property
    def _limits(self) -> Limits:
        return Limits(self.seconds, 2.0, self.memory, self.disk, self.output, self.processes)

    @cached_property
    def _sandboxes(self) -> Sandboxes:
        return Sandboxes(self.layers(), self._limits, self.workers or _cores())

    def layers(self) -> Layers:
        """What isolates the programs on this machine. Raises RewardError when that is less than `require` says."""
        try:
            layers = available()
        except SandboxError as error:
            raise RewardError(f"reward 'code': {error}") from error
        enough = {"auto": True, "isolated": layers.isolated, "namespaces": layers.namespaces and layers.filter}
        if not enough[self.require]:
            raise RewardError(
                f"reward 'code' has require: {self.require}, which can't be had on this machine: {layers.describe()}. "
                f"docs/code-reward.md says what it takes; require: auto takes what there is"
            )
        if self.processes and not layers.own_processes:
            raise RewardError(
                f"reward 'code' has processes: {self.processes}, but programs can start none on this machine: they "
                f"could not be told from your own. It takes namespaces, or root: {layers.describe()}"
            )
        return layers

    def describe(self) -> str:
        """In words, for the run's records: what isolates the programs. Raises RewardError as `layers` does."""
        return f"programs behind {self.layers().describe()}"

    def within(self, timeout: float) -> CodeReward:
        """This reward, with `timeout` seconds for a batch: rows whose tests were not run by then are failures."""
        object.__setattr__(self, "_timeout", timeout)
        return self

    def prepare(self) -> None:
        """Find out what isolates programs here, and start Python behind it once. Raises RewardError."""
        self._sandboxes  # noqa: B018

    def __call__(
        self, /, completions: list[Any], log_extra: Any, log_metric: Any, **columns: list[Any]
    ) -> list[float | Unscorable | None]:
        timeout: float | None = getattr(self, "_timeout", None)
        deadline = None if timeout is None else time.monotonic() + (1 - RESERVE) * timeout
        cases = self._read(len(completions), columns)
        setups = self._optional("setup", len(completions), columns)
        rows = [
            _Row(
                self._program(completion_text(completion)),
                _source(setup),
                [] if isinstance(read, str) else read,
                self.partial,
            )
            for completion, read, setup in zip(completions, cases, setups, strict=True)
        ]
        try:
            self._judge(rows, deadline)
        except SandboxError as error:
            raise SetupError(f"can't run programs: {error}") from error
        values = [
            Unscorable(f"can't run its tests: those in the column {self.tests!r} {read}")
            if isinstance(read, str)
            else row.value(timeout)
            for row, read in zip(rows, cases, strict=True)
        ]
        log_extra("code", [row.note() for row in rows])
        self._log(rows, log_metric)
        return values

    def _read(self, count: int, columns: dict[str, list[Any]]) -> list[list[Case] | str]:
        """Each row's cases, or what is wrong with its tests. Rows of one prompt share their objects: read once."""
        tests = column_values(self.tests, columns)
        entries = self._optional("entry_point", count, columns)
        known: dict[tuple[int, int], list[Case] | str] = {}
        for value, entry in zip(tests, entries, strict=True):
            key = (id(value), id(entry))
            if key not in known:
                try:
                    known[key] = [] if _missing(value) else read_cases(value, entry)
                except ValueError as error:
                    known[key] = str(error)
        return [known[id(value), id(entry)] for value, entry in zip(tests, entries, strict=True)]

    def _optional(self, field: str, count: int, columns: dict[str, list[Any]]) -> list[Any]:
        """A column that the data may lack, unless the recipe names it."""
        name = getattr(self, field)
        if name in columns or name != field:
            return column_values(name, columns)
        return [None] * count

    def _program(self, text: str) -> str | None:
        if self.whole:
            return text
        if self.extract is None:
            return fenced(text)
        matches = list(re.finditer(self.extract, text))
        return matches[-1][1 if matches[-1].re.groups else 0] if matches else None

    def _judge(self, rows: list[_Row], deadline: float | None) -> None:
        """Run every case of every row, so many at a time as there are sandboxes."""
        work = [(row, number) for row in rows for number in range(len(row.cases)) if row.program is not None]

        def run(item: tuple[_Row, int]) -> None:
            row, number = item
            if row.needs(number):
                row.verdicts[number] = run_case(row, number, self._sandboxes.run, deadline)

        with ThreadPoolExecutor(self._sandboxes.workers) as threads:
            list(threads.map(run, work))

    def _log(self, rows: list[_Row], log_metric: Any) -> None:
        scored = [row for row in rows if row.cases]
        if not scored:
            return
        ends = Counter(verdict.end for row in scored for verdict in row.verdicts.values())
        log_metric("code_no_program", sum(row.program is None for row in scored))
        log_metric("code_tests", sum(ends.values()))
        log_metric("code_passed", ends["passed"])
        for end in ("wrong", "error", "syntax", "time", "memory", "output", "killed"):
            log_metric(f"code_{end}", ends[end])


class _Row:
    """One completion's program, its cases, and how it did on those that were run."""

    def __init__(self, program: str | None, setup: str, cases: list[Case], partial: bool) -> None:
        self.program = program
        self.setup = setup
        self.cases = cases
        self.partial = partial
        self.verdicts: dict[int, Verdict] = {}

    def settled(self, ends: list[End]) -> bool:
        """True when cases that ended so leave nothing to find out: later ones are not run, and count as failed."""
        return ends.count("time") >= HANGS or (not self.partial and any(end != "passed" for end in ends))

    def needs(self, number: int) -> bool:
        """True unless the row was settled by cases before this one. Cases after it don't count, so that the order in
        which they happen to end changes nothing."""
        return not self.settled([verdict.end for earlier, verdict in list(self.verdicts.items()) if earlier < number])

    def counted(self) -> list[Verdict]:
        """The verdicts up to where the row was settled, whether or not more were under way by then."""
        out: list[Verdict] = []
        while len(out) in self.verdicts and not self.settled([verdict.end for verdict in out]):
            out.append(self.verdicts[len(out)])
        return out

    def value(self, timeout: float | None) -> float | Unscorable | None:
        """The row's score."""
        if not self.cases:
            return None
        counted = self.counted()
        if any(verdict.end == "unfinished" for verdict in counted):
            return Unscorable(
                f"was not through with its tests within the reward's timeout of {timeout:g} s; raise timeout or "
                f"workers, or lower seconds"
            )
        share = sum(verdict.end == "passed" for verdict in counted) / len(self.cases)
        return share if self.partial else float(share == 1)

    def note(self) -> dict[str, Any] | None:
        """What happened, as plain values for the run's samples."""
        if not self.cases:
            return None
        if self.program is None:
            return {"passed": 0, "tests": len(self.cases), "why": "no program in the text"}
        counted = self.counted()
        failed = next(((n, v) for n, v in enumerate(counted, 1) if v.end != "passed"), None)
        why = "" if failed is None else f"test {failed[0]}: {failed[1].end}: {failed[1].why}"
        return {"passed": sum(v.end == "passed" for v in counted), "tests": len(self.cases), "why": why}


def run_case(row: _Row, number: int, run: Callable[[Job, float | None], Result], deadline: float | None) -> Verdict:
    """Run a row's program on one of its cases, and judge what came out."""
    case = row.cases[number]
    assert row.program is not None
    if isinstance(case, Dialogue):
        source = f"{row.setup}\n{row.program}" if row.setup else row.program
        return judge_dialogue(case, run(_job({"program": source}, b"", case.stdin), deadline))
    secret = secrets.token_hex(16).encode()
    todo = {"setup": row.setup, "program": row.program, "test": case.source, "hide": case.inside, "keep": case.entry}
    return judge_check(case, secret, run(_job(todo, secret, ""), deadline))


def _job(todo: dict[str, Any], secret: bytes, stdin: str) -> Job:
    parts = (_driver(), marshal.dumps(todo))
    message = b"".join(len(part).to_bytes(8, "big") + part for part in parts) + secret
    return Job(BOOT, message, stdin.encode("utf-8", "surrogatepass"))


@cache
def _driver() -> bytes:
    source = Path(__file__).with_name("code_driver.py").read_text(encoding="utf-8")
    return marshal.dumps(compile(source, "driver.py", "exec"))


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _source(setup: Any) -> str:
    if isinstance(setup, (list, tuple)):
        return "\n".join(map(str, setup))
    return "" if _missing(setup) else str(setup)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

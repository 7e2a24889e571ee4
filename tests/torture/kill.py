"""Killing runs: a run in a child process is sent SIGKILL at a chosen file operation or moment, then resumed."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from preftune.config import Recipe
from preftune.train import metrics
from preftune.train.loop import run

WRITES = frozenset({"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"})


def recipe(home: Path, **changes: Any) -> Recipe:
    """A run with everything that a checkpoint has to carry: adapter dropout, several updates, validation, best."""
    base: dict[str, Any] = {
        "method": "grpo", "name": "killed", "seed": 5,
        "model": {"path": str(home / "model"), "lora": {"r": 4, "alpha": 8, "dropout": 0.1}},
        "data": [{"path": str(home / "train.jsonl")}],
        "sampling": {"group_size": 3, "max_tokens": 5},
        "rewards": [{"name": "length", "args": {"at_most": 2, "ramp": 4}}],
        "policy": {"preset": "grpo-original"},
        "train": {"steps": 7, "batch_size": 2, "learning_rate": 1e-2, "checkpoint_every": 2, "updates_per_batch": 2},
        "eval": {"data": [{"path": str(home / "validation.jsonl")}], "every": 3, "best": "reward/mean", "limit": 3},
        "log": {"sinks": [], "samples_every": 1},
    }  # fmt: skip
    return Recipe.model_validate(base | changes)


def in_child(work: Callable[[], object], *, kill_after: float | None = None, signals: int = signal.SIGKILL) -> int:
    """Do some work in a forked child, sending it a signal after some seconds. Returns the exit status, -9 when it was
    killed. A fork instead of a new interpreter: the moments to try are many, and imports take seconds."""
    said = Path(tempfile.mkdtemp()) / "said.txt"
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  the child ends by _exit
            work()
            code = 0
        except KeyboardInterrupt:
            code = 130
        except BaseException as error:  # noqa: BLE001  the parent shows it
            said.write_text("".join(traceback.format_exception(error)))
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signals)
    _, status = os.waitpid(pid, 0)
    text = said.read_text() if said.exists() else ""
    shutil.rmtree(said.parent)
    if text:
        raise AssertionError(f"the child failed:\n{text}")
    return os.waitstatus_to_exitcode(status)


def operations(folder: Path, at: int | None = None) -> Callable[[], int]:
    """Watch this process's changes to a folder, and die at the n-th. For a child: an audit hook can't be taken back.

    Counted: files opened for writing, renames, removals, new folders, and each journal line twice: before it is
    written, and with half of it written.
    """
    count = 0

    def tick() -> None:
        nonlocal count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        writes = event in WRITES or (event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"))
        if writes and isinstance(args[0], str | os.PathLike) and str(args[0]).startswith(str(folder)):
            tick()

    honest = metrics.Journal.write

    def write(self: metrics.Journal, record: Any) -> None:
        tick()
        before = self.length
        honest(self, record)
        written = self.length
        if count + 1 == at:  # leave half of the line, as a process that dies inside write() may
            with self.path.open("r+b") as file:
                file.truncate(before + (written - before) // 2)
        tick()

    metrics.Journal.write = write  # type: ignore[method-assign]
    sys.addaudithook(hook)
    return lambda: count


def count_operations(work: Callable[[], object], folder: Path) -> int:
    """How many operations a whole run makes."""
    note = folder.with_name(f"{folder.name}-count")

    def counted() -> None:
        total = operations(folder)
        work()
        note.write_text(str(total()))

    assert in_child(counted) == 0
    return int(note.read_text())


def start_or_resume(what: Recipe, folder: Path) -> None:
    run(what, folder, resume=folder.exists())


def kill_at_operation(what: Recipe, folder: Path, number: int) -> bool:
    """Start or resume a run that dies at its n-th operation. Returns whether it died."""

    def work() -> None:
        operations(folder, number)
        start_or_resume(what, folder)

    return in_child(work) == -signal.SIGKILL


def kill_at_time(what: Recipe, folder: Path, seconds: float, signals: int = signal.SIGKILL) -> bool:
    """Start or resume a run that gets a signal after some seconds. Returns whether that ended it."""
    status = in_child(lambda: start_or_resume(what, folder), kill_after=seconds, signals=signals)
    assert status in (0, 130, -signal.SIGKILL, -signal.SIGINT), status
    return status != 0


def finish(what: Recipe, folder: Path) -> None:
    assert in_child(lambda: start_or_resume(what, folder)) == 0


def moments(total: int, count: int, seed: int) -> list[int]:
    """Operations to die at, spread over the run."""
    rng = random.Random(seed)
    return sorted(1 + int((i + rng.random()) / count * total) for i in range(count))

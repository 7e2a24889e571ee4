"""The trainer's side: supervisors as child processes, and which layers of isolation work on this machine."""

from __future__ import annotations

import dataclasses
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from preftune.sandbox import folders
from preftune.sandbox.records import (
    LARGEST_FRAME,
    MEGABYTE,
    Job,
    Layers,
    Limits,
    Result,
    SandboxError,
    pack,
    unpack,
)

START_SECONDS = 60.0
GRACE = 15.0
"""Seconds beyond a program's own limit in which its supervisor must have answered."""

_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from preftune.sandbox.supervisor import main; main()"
_LOCK = threading.Lock()


def interpreter() -> tuple[str, str]:
    """The Python that programs run in: the trainer's, without its virtual environment. Executable and prefix."""
    executable = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    return executable, os.path.realpath(sys.base_prefix)


class Supervisor:
    """A supervisor process, started at the first program and again whenever a program brought it down."""

    def __init__(self, layers: Layers, limits: Limits) -> None:
        self.layers = layers
        self.limits = limits
        self.scratch: str | None = None
        """The folder beneath which programs work; with namespaces there is none outside of memory."""
        self._process: subprocess.Popen[bytes] | None = None
        self._number = 0
        self._stop: Callable[[], Any] = lambda: None

    def run(self, job: Job, deadline: float | None = None) -> Result:
        """Run one program to its end, or to `deadline` (of time.monotonic). Raises SandboxError."""
        if deadline is not None and time.monotonic() >= deadline:
            return Result("unfinished")
        if self._process is None:
            self._start()
        self._number += 1
        frame = pack({"number": self._number}, job.code.encode(), job.message, job.stdin)
        latest = time.monotonic() + self.limits.wall + GRACE
        try:
            reply = self._exchange(frame, min(latest, deadline or latest))
            _check(*reply)
        except TimeoutError:
            self.close()
            return Result("unfinished" if deadline is not None and time.monotonic() >= deadline else "lost")
        except (OSError, ValueError):
            self.close()
            return Result("lost")
        header, blobs = reply
        if "problem" in header:
            self.close()
            raise SandboxError(f"a sandbox could not be set up: {header['problem']}")
        return Result(**header, stdout=blobs[0], stderr=blobs[1], report=blobs[2])

    def _start(self) -> None:
        executable, prefix = interpreter()
        self.scratch = None if self.layers.namespaces else folders.make(self.layers.user)
        command = [executable, "-I", "-S", "-B", "-X", "utf8", "-c", _BOOT, str(Path(__file__).resolve().parents[2])]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={"PATH": os.defpath, "LANG": "C.UTF-8"},
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise SandboxError(f"{executable} can't be started: {error}") from error
        self._stop = weakref.finalize(self, _stop, self._process, self.scratch)  # also at exit of the interpreter
        config = {
            "layers": dataclasses.asdict(self.layers),
            "limits": dataclasses.asdict(self.limits),
            "executable": executable,
            "prefix": prefix,
            "scratch": self.scratch,
        }
        try:
            header, _ = self._exchange(pack(config), time.monotonic() + START_SECONDS)
        except (OSError, ValueError) as error:
            self.close()
            raise SandboxError(f"the supervisor of a sandbox did not start: {error}") from error
        if "problem" in header:
            self.close()
            raise SandboxError(header["problem"])

    def _exchange(self, frame: bytes, deadline: float) -> tuple[dict[str, Any], list[bytes]]:
        """Send a frame, and wait for the answer. Raises TimeoutError, OSError or ValueError."""
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        sending, receiving = self._process.stdin.fileno(), self._process.stdout.fileno()
        view = memoryview(frame)
        os.set_blocking(sending, False)
        while view:
            _wait(sending, select.POLLOUT, deadline)
            view = view[os.write(sending, view) :]
        head = _read(receiving, 8, deadline)
        size = int.from_bytes(head, "big")
        if size > min(LARGEST_FRAME, 4 * self.limits.output * MEGABYTE + MEGABYTE):
            raise ValueError("an answer that is too long")
        return unpack(_read(receiving, size, deadline))

    def close(self) -> None:
        """End the process and what runs in it, and remove its folder. A later `run` starts a new one."""
        self._stop()
        self._process = None


def _check(header: dict[str, Any], blobs: list[bytes]) -> None:
    """Raise ValueError unless this is an answer: behind limits alone, a program might have given it."""
    kinds = {"outcome": str, "code": int, "seconds": float, "cpu": float}
    problem = set(header) == {"problem"} and isinstance(header["problem"], str)
    whole = len(blobs) == 3 and {name: type(value) for name, value in header.items()} == kinds
    if not problem and not (whole and header["outcome"] in ("exit", "signal", "time", "output")):
        raise ValueError("not an answer")


def _stop(process: subprocess.Popen[bytes], scratch: str | None) -> None:
    """Let a supervisor end by itself, for it ends its program first; kill one that doesn't."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
    if scratch is not None:
        folders.try_remove(scratch)


def _wait(descriptor: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    if not poll.poll(max(0.0, 1000 * (deadline - time.monotonic()))):
        raise TimeoutError("no answer in time")


def _read(descriptor: int, size: int, deadline: float) -> bytes:
    parts = []
    while size > 0:
        _wait(descriptor, select.POLLIN, deadline)
        part = os.read(descriptor, min(size, MEGABYTE))
        if not part:
            raise BrokenPipeError("the supervisor ended")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


class Sandboxes:
    """A number of supervisors, used by any number of threads: `run` waits for a free one."""

    def __init__(self, layers: Layers, limits: Limits, workers: int) -> None:
        self.layers = layers
        self.workers = workers
        self._free = [Supervisor(layers, limits) for _ in range(workers)]
        self._all = tuple(self._free)
        self._room = threading.Semaphore(workers)

    def run(self, job: Job, deadline: float | None = None) -> Result:
        """Run one program, see Supervisor.run. Threads may call it at the same time."""
        with self._room:
            with _LOCK:
                supervisor = self._free.pop()
            try:
                return supervisor.run(job, deadline)
            finally:
                with _LOCK:
                    self._free.append(supervisor)

    def close(self) -> None:
        """End every supervisor. A later `run` starts new ones."""
        for supervisor in self._all:
            supervisor.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

"""What goes into a sandbox and what comes out, and how both travel between the pool and its supervisors."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Outcome: TypeAlias = Literal["exit", "signal", "time", "output", "lost", "unfinished"]
MEGABYTE = 1 << 20
LARGEST_FRAME = 1 << 31


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use.

    Attributes:
        seconds: of processor time, whole ones; by the clock it may take `clock` times as long.
        memory: MiB of address space (for each process, where `processes` allows more than one).
        disk: MiB for one file; with namespaces also for the whole working folder, which then is in memory.
        output: MiB on each of standard output, standard error and the report; beyond it the program is ended.
        processes: how many further processes it may have at a time; none in fact without Layers.own_processes.
    """

    seconds: int = 5
    clock: float = 2.0
    memory: int = 512
    disk: int = 16
    output: int = 1
    processes: int = 0

    def __post_init__(self) -> None:
        if min(self.seconds, self.memory, self.disk, self.output) < 1 or self.clock <= 0 or self.processes < 0:
            raise ValueError("limits of a sandbox: at least 1 second, 1 MiB each, and no negative number of processes")

    @property
    def wall(self) -> float:
        """Seconds by the clock after which the program is ended."""
        return self.seconds * self.clock


@dataclass(frozen=True, slots=True)
class Layers:
    """Which ways of isolation are in force. Limits, a folder and a session of its own always are.

    Attributes:
        namespaces: own files, processes, network, IPC and host name. `root`: made with the privilege of root; `user`:
            by way of a user namespace.
        user: programs run as a user that owns nothing (only where the trainer runs as root).
        filter: a system-call filter.
        landlock: the kernel refuses files outside; the fallback for `namespaces`.
        why_not: layer → why it can't be had here.
    """

    namespaces: Literal["root", "user"] | None = None
    user: bool = False
    filter: bool = False
    landlock: bool = False
    why_not: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def isolated(self) -> bool:
        """No files of yours, no network, no signal to a process outside."""
        return self.filter and (self.namespaces is not None or self.landlock)

    @property
    def own_processes(self) -> bool:
        """Programs' processes can be told from ours, and so be counted: Limits.processes may be over 0."""
        return self.namespaces is not None or self.user

    def describe(self) -> str:
        """The layers in words, what is missing and why."""
        parts = {
            "namespaces": ("own files, processes and network", self.namespaces is not None),
            "user": ("a user that owns nothing", self.user),
            "filter": ("a system-call filter", self.filter),
            "landlock": ("files outside refused by Landlock", self.landlock),
        }
        text = ", ".join([words for words, active in parts.values() if active] + ["limits"])
        missing = [f"no {name} ({why})" for name, why in self.why_not.items()]
        return "; ".join([text, *missing])


@dataclass(frozen=True, slots=True)
class Job:
    """One program to run.

    `code` is Python source of ours, run with -c; what it is to work on comes as `message`, on file descriptor 3. What
    it writes to descriptor 4 is the report.
    """

    code: str
    message: bytes = b""
    stdin: bytes = b""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a program.

    Attributes:
        outcome: `exit` with exit code `code`; `signal`: ended by signal `code`; `time`: over its seconds; `output`:
            wrote too much; `lost`: it took its supervisor along; `unfinished`: the caller's deadline came first.
        stdout, stderr, report: what it wrote, each up to the limit.
        seconds, cpu: by the clock and of the processor.
    """

    outcome: Outcome
    code: int = 0
    stdout: bytes = b""
    stderr: bytes = b""
    report: bytes = b""
    seconds: float = 0.0
    cpu: float = 0.0


class SandboxError(Exception):
    """A sandbox can't be set up on this machine. The message says which layer, and why."""


def pack(header: dict[str, Any], *blobs: bytes) -> bytes:
    """A frame: the length of the rest, the length of a JSON header, the header, the blobs one after another."""
    head = json.dumps({**header, "blobs": [len(blob) for blob in blobs]}).encode()
    body = len(head).to_bytes(8, "big") + head + b"".join(blobs)
    return len(body).to_bytes(8, "big") + body


def unpack(body: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """Header and blobs of a frame without its first eight bytes. Raises ValueError."""
    end = 8 + int.from_bytes(body[:8], "big")
    try:
        header = json.loads(body[8:end])
        lengths = header.pop("blobs")
        blobs = []
        for length in lengths:
            blobs.append(body[end : end + length])
            end += length
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"no frame: {error}") from None
    if end != len(body):
        raise ValueError("a frame of the wrong length")
    return header, blobs


def read_exactly(descriptor: int, size: int) -> bytes | None:
    """`size` bytes, or None at the end of the stream."""
    parts = []
    while size > 0:
        part = os.read(descriptor, min(size, MEGABYTE))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)

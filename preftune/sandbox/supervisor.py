"""A supervisor: a small process that runs one sandboxed program after another, and cleans up after each.

Started by `pool.Supervisor` as a fresh interpreter with an environment of its own. It stands between trainer and
program: what a program starts ends with it, what it writes is read up to a limit, and if it brings the supervisor
down, the pool starts another. Frames (records.pack) come on standard input and leave on standard output. When the
trainer ends, standard input closes: the supervisor then ends its program, removes its folder and goes.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import select
import signal
import sys
import time
from typing import Any

from preftune.sandbox import folders
from preftune.sandbox.child import Plan, become
from preftune.sandbox.records import MEGABYTE, Layers, Limits, Result, pack, read_exactly, unpack

if sys.platform == "linux":
    from preftune.sandbox import landlock, linux, root

PATIENCE = 5.0
"""Seconds in which killed processes must be gone."""


def main() -> None:
    """Set up the layers that the first frame asks for, say so, then run a program per frame."""
    requests, replies = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(nowhere, standard)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's to handle: it closes the pipe
    first = _receive(requests)
    if first is None:
        return
    scratch: str | None = first[0]["scratch"]
    try:
        try:
            supervisor = Supervisor(first[0], requests)
        except OSError as error:
            _send(replies, pack({"problem": str(error)}))
            return
        _send(replies, pack({"ready": True}))
        while (frame := _receive(requests)) is not None:
            header, (code, message, stdin) = frame
            _send(replies, supervisor.run(header["number"], code.decode(), message, stdin))
    except (BrokenPipeError, _TrainerGone):
        pass
    finally:
        if scratch is not None:
            folders.try_remove(scratch)


class _TrainerGone(Exception):
    """Standard input was closed while a program ran."""


def _receive(descriptor: int) -> tuple[dict[str, Any], list[bytes]] | None:
    size = read_exactly(descriptor, 8)
    body = None if size is None else read_exactly(descriptor, int.from_bytes(size, "big"))
    return None if body is None else unpack(body)


def _send(descriptor: int, frame: bytes) -> None:
    view = memoryview(frame)
    while view:
        view = view[os.write(descriptor, view) :]


class Supervisor:
    """The layers of one supervisor, set up once, and the programs that run in them. Raises OSError."""

    def __init__(self, config: dict[str, Any], requests: int) -> None:
        layers = Layers(**config["layers"])
        self._limits = Limits(**config["limits"])
        self._scratch: str | None = config["scratch"]
        self._requests = requests
        self._plan = _prepare(layers, self._limits, config["executable"], config["prefix"])
        soft = min(512, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        self._ended, wakeup = os.pipe()
        for descriptor in (self._ended, wakeup):
            os.set_blocking(descriptor, False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)

    def run(self, number: int, code: str, message: bytes, stdin: bytes) -> bytes:
        """Run a program to its end, whatever that is. Returns the frame of the reply."""
        box = root.BOX if self._plan.namespaces else self._make_box(number)
        try:
            program = _Program(self._plan, box, code, {"stdin": stdin, "message": message})
            try:
                result = program.watch(self._ended, self._requests)
            finally:
                program.end()
                _end_stragglers(self._plan)
                program.close()
        finally:
            if not self._plan.namespaces:
                folders.remove(box)
        if program.problem:
            return pack({"problem": program.problem.decode(errors="replace")})
        shown = {"outcome": result.outcome, "code": result.code, "seconds": result.seconds, "cpu": result.cpu}
        return pack(shown, result.stdout, result.stderr, result.report)

    def _make_box(self, number: int) -> str:
        assert self._scratch is not None
        box = os.path.join(self._scratch, str(number))
        os.mkdir(box, 0o700)
        if self._plan.user is not None:
            os.chown(box, self._plan.user, self._plan.user)
        return box


def _prepare(layers: Layers, limits: Limits, executable: str, prefix: str) -> Plan:
    user = _free_user() if layers.user else None
    read: list[str] = []
    handed: str | None = None
    if sys.platform == "linux":
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("500")  # where memory runs out, the kernel should take us and not the trainer
        read = root.readable_paths(prefix, executable)
        if layers.namespaces:
            _enter_namespaces(layers.namespaces, read)
        else:
            linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
            if user is not None and not folders.passable(os.path.dirname(executable)):
                handed = prefix
        if layers.landlock and not landlock.version():
            raise OSError("the kernel has no Landlock")
        linux.prctl(linux.PR_SET_DUMPABLE, 0)  # a program of the same user can't look into this process
    return Plan(limits, executable, layers.namespaces, user, layers.filter, layers.landlock, read, handed)


def _enter_namespaces(how: str, read: list[str]) -> None:
    """Own mounts, network, IPC and host name for this process; each program gets processes of its own beside."""
    flags = linux.CLONE_NEWNS | linux.CLONE_NEWNET | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS
    if how == "user":
        user, group = os.geteuid(), os.getegid()
        linux.unshare(flags | linux.CLONE_NEWUSER)
        for name, text in (("setgroups", "deny"), ("uid_map", f"1000 {user} 1"), ("gid_map", f"1000 {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    else:
        linux.unshare(flags)
    root.enter("/proc", read)  # on top of /proc, which was needed until here: no folder need be made and removed


def _free_user() -> int:
    """A user and group id of nobody's, so that no process or file outside belongs to it. Raises OSError.

    Each supervisor has its own, so programs that run at one time can't meet either. Containers may know few ids.
    """
    number = int.from_bytes(os.urandom(4), "big")
    for user in (1_000_000_000 + number % 1_000_000_000, 30_000 + number % 30_000):
        pid = os.fork()
        if pid == 0:
            try:
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
            except OSError:
                os._exit(1)
            os._exit(0)
        if os.waitpid(pid, 0)[1] == 0:
            return user
    raise OSError("this process may not change its user")


class _Program:
    """One running program: its process and the pipes to and from it."""

    def __init__(self, plan: Plan, box: str, code: str, inputs: dict[str, bytes]) -> None:
        self._limits = plan.limits
        pipes = {name: os.pipe() for name in ("stdin", "stdout", "stderr", "message", "report", "problem")}
        theirs = tuple(pipes[name][0 if name in inputs else 1] for name in pipes)
        self._mine = {name: pipe[1 if name in inputs else 0] for name, pipe in pipes.items()}
        self._inputs = {self._mine[name]: memoryview(data) for name, data in inputs.items()}
        self._outputs = {self._mine[name]: bytearray() for name in pipes if name not in inputs}
        self._began = time.monotonic()
        parent = os.getpid()
        if plan.namespaces:
            self._pid = linux.clone(linux.CLONE_NEWPID | linux.CLONE_NEWNS | linux.CLONE_NEWIPC)
        else:
            self._pid = os.fork()
        if self._pid == 0:
            become(plan, box, theirs, code, parent)
        self._status: int | None = None
        self._cpu = 0.0
        for descriptor in theirs:
            os.close(descriptor)
        for descriptor in self._mine.values():
            os.set_blocking(descriptor, False)

    @property
    def problem(self) -> bytes:
        """What kept the program from starting; empty when nothing did."""
        return bytes(self._outputs[self._mine["problem"]])

    def watch(self, ended: int, requests: int) -> Result:
        """Feed and read it until it ends or breaks a limit; then end it. Raises _TrainerGone."""
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        poll.register(requests, 0)  # a hang-up is always told
        for descriptor in self._inputs:
            poll.register(descriptor, select.POLLOUT)
        for descriptor in self._outputs:
            poll.register(descriptor, select.POLLIN)
        deadline = self._began + self._limits.wall
        broken = ""
        while not broken and not self._has_ended(ended):
            left = deadline - time.monotonic()
            if left <= 0:
                broken = "time"
                break
            for descriptor, event in poll.poll(math.ceil(1000 * left)):
                if descriptor == requests:
                    raise _TrainerGone
                if descriptor in self._inputs:
                    if not self._feed(descriptor):
                        poll.unregister(descriptor)
                elif descriptor in self._outputs:
                    if event & select.POLLIN:
                        broken = broken or ("" if self._read(descriptor) else "output")
                    else:
                        poll.unregister(descriptor)
        self.end()
        for descriptor in self._outputs:
            while self._read(descriptor, at_end=True):
                pass
        return self._result(broken)

    def _has_ended(self, ended: int) -> bool:
        with contextlib.suppress(BlockingIOError):
            os.read(ended, 4096)
        return self._reap(os.WNOHANG)

    def _reap(self, options: int) -> bool:
        if self._status is None:
            pid, status, used = os.wait4(self._pid, options)
            if pid:
                self._status, self._cpu = status, used.ru_utime + used.ru_stime
        return self._status is not None

    def _feed(self, descriptor: int) -> bool:
        """Write what fits. False when there is no more to write, or nobody to read it."""
        left = self._inputs[descriptor]
        try:
            left = left[os.write(descriptor, left) :] if left else left
        except BlockingIOError:
            return True
        except OSError:
            left = left[:0]
        self._inputs[descriptor] = left
        if not left:
            self._close(descriptor)
        return bool(left)

    def _read(self, descriptor: int, at_end: bool = False) -> bool:
        """Read what is there. False beyond the limit; `at_end` also when nothing is left."""
        held = self._outputs[descriptor]
        room = self._limits.output * MEGABYTE - len(held)
        try:
            part = os.read(descriptor, min(room + 1, 1 << 16))
        except BlockingIOError:
            return not at_end
        held += part[:room]
        return len(part) <= room and (bool(part) or not at_end)

    def end(self) -> None:
        """Kill the program and its process group, and wait for its end. Idempotent."""
        if self._status is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            self._reap(0)

    def _result(self, broken: str) -> Result:
        assert self._status is not None
        code = os.waitstatus_to_exitcode(self._status)
        outcome: Any = broken or ("signal" if code < 0 else "exit")
        # The kernel counts the limit in ticks and the time used more finely: they may part by some.
        if outcome == "signal" and -code in (signal.SIGKILL, signal.SIGXCPU) and self._cpu > self._limits.seconds / 2:
            outcome = "time"
        stdout, stderr, report = (bytes(self._outputs[self._mine[name]]) for name in ("stdout", "stderr", "report"))
        return Result(outcome, abs(code), stdout, stderr, report, time.monotonic() - self._began, self._cpu)

    def _close(self, descriptor: int) -> None:
        os.close(descriptor)
        self._mine = {name: there for name, there in self._mine.items() if there != descriptor}

    def close(self) -> None:
        """Close what is open of the pipes."""
        for descriptor in self._mine.values():
            os.close(descriptor)


def _end_stragglers(plan: Plan) -> None:
    """Kill what a program left behind: daemons of its own. In a pid namespace they died with it.

    Orphans become our children (we are a subreaper), so killing our children until there are none gets every one. On
    macOS there are no subreapers: a process that left its group stays. Raises OSError when some don't die.
    """
    if plan.namespaces:
        return
    if plan.user is not None and (plan.processes or not plan.filter):
        _kill_all_of(plan.user)
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid:
            continue
        for child in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise OSError("processes of a program did not die")
        time.sleep(0.001)


def _kill_all_of(user: int) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            os.setuid(user)
            os.kill(-1, signal.SIGKILL)  # all but the caller
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def _children() -> list[int]:
    """Our children, by the kernel's table of processes."""
    out = []
    me = os.getpid()
    for name in os.listdir("/proc") if os.path.isdir("/proc") else []:
        if not name.isdigit():
            continue
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
            # The name in parentheses may hold anything; what follows the last one does not.
            if int(file.read().rpartition(b")")[2].split()[1]) == me:
                out.append(int(name))
    return out

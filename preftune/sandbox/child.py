"""Between fork and exec: how a process becomes a sandbox. Runs in the supervisor's child, which has one thread."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import sys
from dataclasses import dataclass

from preftune.sandbox.records import MEGABYTE, Limits

if sys.platform == "linux":
    from preftune.sandbox import landlock, linux, root, seccomp

MESSAGE, REPORT, PROBLEM, PREFIX = 3, 4, 5, 6
"""File descriptors: what the program works on, its report, what went wrong here, the interpreter's own folder."""
STACK = 16 * MEGABYTE
OPEN_FILES = 64
THREADS = 16
"""Threads a program may have where the filter tells threads from processes; without it they count as processes."""
_FLAGS = ("-I", "-S", "-B", "-X", "utf8", "-c")


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a child needs to know, settled before the first fork.

    `user` is the user and group id that programs run as, None to stay. `prefix` is set where that user can't reach the
    interpreter by its path: the interpreter's folder, which is then handed over open.
    """

    limits: Limits
    executable: str
    namespaces: str | None
    user: int | None
    filter: bool
    landlock: bool
    read: list[str]
    prefix: str | None

    @property
    def alone(self) -> bool:
        """True when no process outside counts among the program's, or could be signalled by it."""
        return self.namespaces is not None or self.user is not None

    @property
    def processes(self) -> int:
        """Further processes; none where they could not be told from the trainer's."""
        return self.limits.processes if self.alone else 0


def become(plan: Plan, box: str, streams: tuple[int, ...], code: str, parent: int) -> None:
    """Give up everything and run `code`. Does not return; what fails is written to the last of `streams`.

    `streams`: standard input, output and error, message, report, problem.
    """
    problem = streams[-1]
    try:
        held = [*streams, *_give_up(plan, box, parent)]
        _arrange(held)
        problem = PROBLEM
        executable, environment = plan.executable, surroundings(box)
        if plan.prefix is not None:
            reached = f"/proc/self/fd/{PREFIX}"
            executable = reached + executable.removeprefix(plan.prefix)
            environment["LD_LIBRARY_PATH"] = f"{reached}/lib"
        os.execve(executable, [executable, *_FLAGS, code], environment)
    except BaseException as error:  # noqa: BLE001  nothing may climb into the supervisor's own code in this process
        os.write(problem, f"{type(error).__name__}: {error}".encode(errors="replace")[:2000])
    finally:
        os._exit(127)


def _give_up(plan: Plan, box: str, parent: int) -> list[int]:
    """All but the descriptors. Returns the interpreter's folder, open, where it must be handed over."""
    os.setsid()
    if plan.namespaces:
        root.mount_box(plan.limits.disk, plan.user if plan.user is not None else os.geteuid())
    os.chdir(box)
    for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    # What is opened by a path, while this process may still go there.
    handed = [] if plan.prefix is None else [os.open(plan.prefix, os.O_PATH | os.O_DIRECTORY)]
    rules = landlock.rules([*plan.read, *root.DEVICES], [box, "/dev/null"]) if plan.landlock else None
    _limit(plan)
    if plan.user is not None:
        if sys.platform == "linux":
            linux.bound_capabilities()
        os.setgroups([])
        os.setgid(plan.user)
        os.setuid(plan.user)
    _limit_processes(plan)
    if sys.platform == "linux":
        _restrict(plan, parent, rules)
    return handed


def surroundings(box: str) -> dict[str, str]:
    """A program's whole environment. Hashes are the same in every run, so that a program's value is too."""
    return {
        "HOME": box,
        "TMPDIR": box,
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "MALLOC_ARENA_MAX": "1",  # each further arena would reserve 64 MiB of the address space
    }


def _arrange(held: list[int]) -> None:
    """Put the descriptors on 0, 1, 2, … and close everything else."""
    # First out of the way of the numbers that they are to have.
    aside = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 16) for descriptor in held]
    for number, descriptor in enumerate(aside):
        os.dup2(descriptor, number, inheritable=number != PROBLEM)
    os.closerange(len(aside), os.sysconf("SC_OPEN_MAX"))


def _limit(plan: Plan) -> None:
    limits = plan.limits
    wanted = {
        "CPU": limits.seconds,
        "AS": limits.memory * MEGABYTE,
        "DATA": limits.memory * MEGABYTE,
        "FSIZE": limits.disk * MEGABYTE,
        "STACK": STACK,
        "NOFILE": OPEN_FILES,
        "CORE": 0,
        "MEMLOCK": 0,
        "MSGQUEUE": 0,
        "SIGPENDING": 64,
        "RTPRIO": 0,
    }
    for name, value in wanted.items():
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is not None:
            _set_limit(kind, value, name)


def _set_limit(kind: int, value: int, name: str) -> None:
    hard = resource.getrlimit(kind)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    try:
        resource.setrlimit(kind, (value, value))
    except (OSError, ValueError):
        # macOS accepts no limit of address space below what it has reserved already.
        if sys.platform == "linux" or name not in ("AS", "DATA", "STACK"):
            raise


def _limit_processes(plan: Plan) -> None:
    """After the change of user, whose processes are the ones that count."""
    if plan.alone:
        count = 1 + plan.processes + (THREADS if plan.filter else 0)
        _set_limit(resource.RLIMIT_NPROC, count, "NPROC")
    elif not plan.filter:
        _set_limit(resource.RLIMIT_NPROC, 0, "NPROC")
    # else: the trainer's processes are of this user too, and count. The filter refuses new ones instead.


def _restrict(plan: Plan, parent: int, rules: int | None) -> None:
    linux.drop_capabilities()
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    if not plan.namespaces and os.getppid() != parent:
        raise OSError("the supervisor ended")
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    if rules is not None:
        landlock.restrict(rules)
    if plan.filter:
        seccomp.install(seccomp.build(os.getpid(), plan.processes > 0, kills=plan.alone, metadata=plan.alone))

"""Which layers of isolation work on this machine: each is tried with a real program, once per process."""

from __future__ import annotations

import functools
import os
import sys

from preftune.sandbox.pool import Supervisor
from preftune.sandbox.records import Job, Layers, Limits, SandboxError

_GREETING = b"a sandbox works"
_PROGRAM = "import os, sys; os.write(4, os.read(3, 100)); print(sys.stdin.read(), end='')"
_NOT_LINUX = "only Linux has it"


def works(layers: Layers, limits: Limits | None = None) -> str:
    """Empty when a program runs behind these layers, else what is in the way."""
    supervisor = Supervisor(layers, limits or Limits())
    try:
        result = supervisor.run(Job(_PROGRAM, _GREETING, _GREETING))
    except SandboxError as error:
        return str(error)
    finally:
        supervisor.close()
    if result.outcome == "exit" and result.code == 0 and result.report == result.stdout == _GREETING:
        return ""
    said = result.stderr.decode(errors="replace").strip().splitlines()
    return f"Python did not run behind it: {result.outcome} {result.code} {said[-1] if said else ''}".rstrip()


@functools.cache
def available(namespaces: bool = True, call_filter: bool = True, landlock: bool = True) -> Layers:
    """The strongest layers that work here. An argument that is False leaves a layer out, for tests.

    Raises SandboxError where programs could harm the machine whatever we do: on Windows, and for root without a
    system-call filter where a program can't be made to run as another user.
    """
    if not hasattr(os, "fork"):
        raise SandboxError("programs can't be isolated on Windows: run preftune on Linux, or in WSL")
    why: dict[str, str] = {}
    linux = sys.platform == "linux"

    def attempt(name: str, wanted: bool, layers: Layers) -> bool:
        problem = "left out" if not wanted else works(layers) if linux else _NOT_LINUX
        if problem:
            why[name] = problem
        return not problem

    root = os.geteuid() == 0
    user = root and attempt("user", True, Layers(user=True))
    filtered = attempt("filter", call_filter, Layers(user=user, filter=True))
    if root and not user and not filtered:
        raise SandboxError(
            f"programs can't be isolated: this process is root, can't run them as another user ({why['user']}), and "
            f"has no system-call filter ({why['filter']}). Run preftune as an ordinary user"
        )
    if user and attempt("namespaces", namespaces, Layers("root", user, filtered)):
        return Layers("root", user, filtered, why_not=why)
    if attempt("namespaces", namespaces, Layers("user", filter=filtered)):
        why.pop("user", None)
        return Layers("user", filter=filtered, why_not=why)
    locked = attempt("landlock", landlock, Layers(user=user, filter=filtered, landlock=True))
    return Layers(None, user, filtered, locked, why)


def describe() -> str:
    """In words: what isolates programs on this machine, and what is missing. Raises SandboxError."""
    return available().describe()

"""Landlock: what the file system shows a process, without any privilege. Linux 5.13 and newer.

The fallback where there are no mount namespaces: reading and writing outside the named folders is refused. Seeing
that a path exists, and its size and times, is not. Source: Documentation/userspace-api/landlock.rst of the kernel.
"""

from __future__ import annotations

import ctypes
import os
import stat

from preftune.sandbox import linux

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
_FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | 1 << 14 | 1 << 15
READ = EXECUTE | READ_FILE | READ_DIR
_CREATE_VERSION = 1
_RULE_PATH_BENEATH = 1
_IOCTL_DEV = 1 << 15


class _Ruleset(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def version() -> int:
    """The kernel's Landlock version: 1 files, 2 moves, 3 truncation, 4 TCP, 5 devices, 6 signals. 0: there is none."""
    if not linux.KNOWN:
        return 0
    try:
        return linux.syscall(linux.NR_LANDLOCK_CREATE, "landlock", None, 0, _CREATE_VERSION)
    except OSError:
        return 0


def all_rights(abi: int) -> int:
    """Every right over files that a kernel of this version can refuse."""
    return (1 << (13 + min(abi - 1, 2))) - 1 | (_IOCTL_DEV if abi >= 5 else 0)


def rules(read: list[str], write: list[str]) -> int:
    """A set of rules, as a descriptor: nothing may be opened but what is beneath `read` and `write`.

    On newer kernels also: no TCP (4), and no signals to processes outside (6). The paths are opened here, so this is
    for a process that still may. Raises OSError.
    """
    abi = version()
    rights = all_rights(abi)
    ruleset = _Ruleset(rights, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    handle = linux.syscall(linux.NR_LANDLOCK_CREATE, "landlock", ctypes.byref(ruleset), size, 0)
    for path, allowed in [(p, READ) for p in read] + [(p, rights) for p in write]:
        _allow(handle, path, allowed & rights)
    return handle


def restrict(rules: int) -> None:
    """Hold this process and its children to the rules, for good. Needs NO_NEW_PRIVS. Raises OSError."""
    linux.syscall(linux.NR_LANDLOCK_RESTRICT, "landlock", rules, 0)


def _allow(handle: int, path: str, allowed: int) -> None:
    try:
        there = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(there).st_mode):
            allowed &= _FILE_RIGHTS
        rule = _Beneath(allowed, there)
        linux.syscall(linux.NR_LANDLOCK_ADD, "landlock", handle, _RULE_PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(there)

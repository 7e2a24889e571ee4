"""The Linux system calls that the standard library lacks, through ctypes: namespaces, mounts, capabilities, prctl.

Imported on Linux only, and only in a supervisor. Numbers are those of the kernel's headers (asm/unistd.h, linux/*.h).
"""

from __future__ import annotations

import ctypes
import os
import platform
from typing import Any

MACHINE = platform.machine()
AARCH64 = MACHINE in ("aarch64", "arm64")
KNOWN = AARCH64 or MACHINE in ("x86_64", "AMD64")
"""True where the numbers in this package hold. Elsewhere there are no namespaces, filter or Landlock."""

SIGCHLD = 17
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2
_LOCKED = {1: MS_RDONLY, 2: MS_NOSUID, 4: MS_NODEV, 8: MS_NOEXEC, 1024: 1024, 2048: 2048, 4096: 1 << 21}
"""statvfs flag → mount flag. In a user namespace a remount must keep those that the mount has."""

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 36, 38
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY = 63

NR_CLONE = 220 if AARCH64 else 56
NR_PIVOT_ROOT = 41 if AARCH64 else 155
NR_CAPSET = 91 if AARCH64 else 126
NR_SECCOMP = 277 if AARCH64 else 317
NR_LANDLOCK_CREATE, NR_LANDLOCK_ADD, NR_LANDLOCK_RESTRICT = 444, 445, 446

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def check(result: int, what: str) -> int:
    """`result` of a C call, or OSError naming `what` when it is −1."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def syscall(number: int, what: str, *arguments: Any) -> int:
    """A system call by its number. Integers are passed as longs. Raises OSError."""
    plain = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return check(int(_libc.syscall(ctypes.c_long(number), *plain)), what)


def prctl(option: int, value: int = 0) -> None:
    """prctl(option, value, 0, 0, 0). Raises OSError."""
    rest = [ctypes.c_ulong(0)] * 3
    check(_libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), *rest), f"prctl {option}")


def unshare(flags: int) -> None:
    """Leave the named namespaces for new ones. Raises OSError."""
    check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def clone(flags: int) -> int:
    """fork(), with the child in new namespaces. Returns 0 in the child. For a process with a single thread."""
    return syscall(NR_CLONE, "clone", flags | SIGCHLD, 0, 0, 0, 0)


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2). Raises OSError naming the target."""
    encoded = [os.fsencode(text) for text in (source, target, kind)]
    check(_libc.mount(*encoded, ctypes.c_ulong(flags), os.fsencode(options) if options else None), f"mount on {target}")


def bind_read_only(source: str, target: str, devices: bool = False) -> None:
    """Show `source` (a file or a folder) at `target`, which exists, read-only. Raises OSError."""
    mount(source, target, flags=MS_BIND | MS_REC)
    flags = MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | (0 if devices else MS_NODEV)
    held = os.statvfs(target).f_flag
    for seen, flag in _LOCKED.items():
        if held & seen:
            flags |= flag
    mount("none", target, flags=flags)


def pivot_root(folder: str) -> None:
    """Make the mount at `folder` this process's root, and let go of the old one. Raises OSError."""
    os.chdir(folder)
    syscall(NR_PIVOT_ROOT, "pivot_root", ctypes.c_char_p(b"."), ctypes.c_char_p(b"."))
    check(_libc.umount2(b".", ctypes.c_int(MNT_DETACH)), "umount of the old root")
    os.chdir("/")


def bound_capabilities() -> None:
    """Let no program that this process runs gain a capability. Without CAP_SETPCAP there is nothing to lose."""
    for capability in range(_LAST_CAPABILITY + 1):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:
            return


def drop_capabilities() -> None:
    """Give up every capability. Raises OSError."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    syscall(NR_CAPSET, "capset", ctypes.byref(header), ctypes.byref(nothing))

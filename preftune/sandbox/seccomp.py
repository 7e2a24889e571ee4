"""A system-call filter (seccomp): what the kernel won't do for a sandboxed process, whatever its user may do.

Refused calls fail with EPERM (a Python program sees PermissionError); calls newer than this list fail with ENOSYS,
for which libraries have fallbacks. A call under a foreign architecture's number ends the process.
"""

from __future__ import annotations

import ctypes
import errno
import struct

from preftune.sandbox import linux

_LAST = 450
"""The newest call that is judged here (set_mempolicy_home_node, Linux 5.17)."""
_ARCHITECTURE = 0xC00000B7 if linux.AARCH64 else 0xC000003E
_KILL, _ALLOW, _ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
_LOAD, _EQUAL, _GREATER, _ANY, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16
_SET_MODE_FILTER = 1
_CLONE_THREAD, _CLONE_NEW = 0x00010000, 0x7E020000

# name: (x86-64, AArch64), None where that machine has no such call
_Numbers = dict[str, tuple[int | None, int | None]]
OTHER_PROCESSES: _Numbers = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "setpriority": (141, 140), "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119), "sched_setaffinity": (203, 122), "sched_setattr": (314, 274),
    "ioprio_set": (251, 30), "migrate_pages": (256, 238), "move_pages": (279, 239),
}  # fmt: skip
KERNEL: _Numbers = {
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "unshare": (272, 97), "setns": (308, 268),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "bpf": (321, 280),
    "perf_event_open": (298, 241), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "userfaultfd": (323, 282), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "syslog": (103, 116), "acct": (163, 89),
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "iopl": (172, None), "ioperm": (173, None),
    "modify_ldt": (154, None), "personality": (135, 92), "sethostname": (170, 161), "setdomainname": (171, 162),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
    "lookup_dcookie": (212, 18), "nfsservctl": (180, 42), "vhangup": (153, 58), "uselib": (134, None),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
}  # fmt: skip
NETWORK_AND_SHARED_MEMORY: _Numbers = {
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "shmget": (29, 194), "semget": (64, 190),
    "msgget": (68, 186), "mq_open": (240, 180), "memfd_create": (319, 279), "memfd_secret": (447, 447),
}  # fmt: skip
METADATA: _Numbers = {
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "chown": (92, None), "fchown": (93, 55),
    "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
}  # fmt: skip
"""What Landlock does not judge: refused where it guards the files of the sandbox's own user."""

_KILLS: _Numbers = {"kill": (62, 129), "tgkill": (234, 131)}
_NEW_PROCESS: _Numbers = {"fork": (57, None), "vfork": (58, None)}
_CLONE, _CLONE3, _PRLIMIT = (56, 220), (435, 435), (302, 261)
_BY_ARGUMENT: dict[tuple[int, int], tuple[int, tuple[int, ...]]] = {
    (72, 25): (1, (8, 10, 15)),  # fcntl F_SETOWN, F_SETSIG, F_SETOWN_EX: signals sent by way of files
    (16, 29): (1, (0x5412, 0x541C, 0x8901, 0x8902)),  # ioctl TIOCSTI, TIOCLINUX, FIOSETOWN, SIOCSPGRP
    (157, 167): (0, (linux.PR_SET_PDEATHSIG, linux.PR_SET_CHILD_SUBREAPER, 0x59616D61)),  # prctl, and PR_SET_PTRACER
}
"""(x86-64, AArch64): which argument, and the values that are refused."""


def _number(pair: tuple[int | None, int | None]) -> int | None:
    return pair[linux.AARCH64]


def _step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("<HBBI", code, yes, no, value)


def _refuse(number: int = errno.EPERM) -> bytes:
    return _step(_RETURN, _ERRNO | number)


def _argument(index: int) -> bytes:
    # The low half: the arguments judged here are 32 bits wide to the kernel.
    return _step(_LOAD, _ARGUMENTS + 8 * index)


def _when(number: int | None, *steps: bytes) -> bytes:
    """Steps for one call. They must end in a return on every way through."""
    return b"" if number is None else _step(_EQUAL, number, 0, len(steps)) + b"".join(steps)


def build(pid: int, processes: bool, kills: bool, metadata: bool) -> bytes:
    """The filter as a BPF program.

    Args:
        pid: the process's id in its own namespace; it may signal itself, and set limits for itself.
        processes: it may start others (never in new namespaces); without, only threads.
        kills: it may signal any process that the kernel lets it: for those with a pid namespace or a user of their own.
        metadata: it may change modes, owners, times and attributes of files.
    """
    allow = _step(_RETURN, _ALLOW)
    out = _step(_LOAD, _ARCH) + _step(_EQUAL, _ARCHITECTURE, 1, 0) + _step(_RETURN, _KILL)
    out += _step(_LOAD, _NUMBER) + _step(_GREATER, _LAST, 0, 1) + _refuse(errno.ENOSYS)
    out += _when(_number(_CLONE3), _refuse(errno.ENOSYS))  # its flags are in memory: libraries fall back to clone
    new_namespace = (_argument(0), _step(_ANY, _CLONE_NEW, 0, 1), _refuse())
    if processes:
        out += _when(_number(_CLONE), *new_namespace, allow)
    else:
        out += _when(_number(_CLONE), *new_namespace, _step(_ANY, _CLONE_THREAD, 0, 1), allow, _refuse())
        for pair in _NEW_PROCESS.values():
            out += _when(_number(pair), _refuse())
    if not kills:
        for pair in _KILLS.values():
            out += _when(_number(pair), _argument(0), _step(_EQUAL, pid, 0, 1), allow, _refuse())
    own = (_argument(0), _step(_EQUAL, 0, 1, 0), _step(_EQUAL, pid, 0, 1), allow, _refuse())
    out += _when(_number(_PRLIMIT), *own)
    for both, (index, values) in _BY_ARGUMENT.items():
        tests = [step for value in values for step in (_step(_EQUAL, value, 0, 1), _refuse())]
        out += _when(_number(both), _argument(index), *tests, allow)
    refused = OTHER_PROCESSES | KERNEL | NETWORK_AND_SHARED_MEMORY | ({} if metadata else METADATA)
    for pair in refused.values():
        out += _when(_number(pair), _refuse())
    return out + allow


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def install(program: bytes) -> None:
    """Filter this process and its children for good. Needs NO_NEW_PRIVS. Raises OSError."""
    described = _Program(len(program) // 8, program)
    linux.syscall(linux.NR_SECCOMP, "seccomp", _SET_MODE_FILTER, 0, ctypes.byref(described))

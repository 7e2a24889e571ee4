"""A private root folder for the sandbox: Python and the system's libraries, read-only, and nothing else.

Used by a supervisor in a mount namespace of its own. There is no /proc, no /sys, no /home, and /dev holds four files.
"""

from __future__ import annotations

import os
from pathlib import Path

from preftune.sandbox import linux

BOX = "/box"
"""The working folder inside the private root."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
LINKER_CACHE = "/etc/ld.so.cache"


def readable_paths(prefix: str, executable: str) -> list[str]:
    """What an interpreter must read: its installation, the system's libraries, and libraries mapped from elsewhere.

    `prefix` and `executable` have no symbolic links in them. No path is beneath another one.
    """
    wanted = [prefix, os.path.dirname(executable), *LIBRARIES, LINKER_CACHE, *_mapped_folders()]
    there = sorted({os.path.realpath(path) for path in wanted if os.path.exists(path)})
    return [path for path in there if not any(_beneath(path, other) for other in there)]


def _mapped_folders() -> set[str]:
    """Folders of the shared libraries of this very process: where they are differs by distribution."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        files = {line.split(maxsplit=5)[5].rstrip("\n") for line in maps if len(line.split(maxsplit=5)) == 6}
    return {os.path.dirname(path) for path in files if path.startswith("/") and ".so" in os.path.basename(path)}


def _beneath(path: str, folder: str) -> bool:
    return path != folder and path.startswith(folder.rstrip("/") + "/")


def enter(at: str, read: list[str]) -> None:
    """Build the private root on the empty folder `at` and make it this process's root. Raises OSError."""
    linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)  # nothing below shows outside
    linux.mount("tmpfs", at, "tmpfs", linux.MS_NOSUID, "size=1m,mode=755")
    for path in read:
        _show(path, at + path)
    for device in DEVICES:
        _show(device, at + device, devices=True)
    for link in LIBRARIES:
        # /lib is a link into /usr on most systems; the program loader is named by it.
        if os.path.islink(link) and not os.path.lexists(at + link):
            os.makedirs(os.path.dirname(at + link), mode=0o755, exist_ok=True)
            os.symlink(os.readlink(link), at + link)
    os.mkdir(at + BOX)
    os.symlink(BOX, at + "/tmp")
    linux.mount("none", at, flags=linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY | linux.MS_NOSUID)
    linux.pivot_root(at)


def _show(source: str, target: str, devices: bool = False) -> None:
    os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
    if os.path.isdir(source):
        os.makedirs(target, mode=0o755, exist_ok=True)
    else:
        Path(target).touch()
    linux.bind_read_only(source, target, devices)


def mount_box(megabytes: int, user: int) -> None:
    """Put a fresh, empty working folder of `user`'s in memory at BOX: at most `megabytes` and 4,096 files.

    Raises OSError.
    """
    options = f"size={megabytes}m,nr_inodes=4096,mode=700,uid={user},gid={user}"
    linux.mount("tmpfs", BOX, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, options)

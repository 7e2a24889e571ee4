"""Freed memory stays with the process while it trains on a CPU.

glibc gives large freed blocks back to the system, and every next tensor of that size then costs a fault and a cleared
page for each 4 KiB: 3 to 9 % of an update (docs/log.md). Asked to keep them, it hands the same pages out again. The
peak stays what it was.
"""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h."""

LARGEST = 32 << 20
"""The largest block that glibc takes from the heap; larger ones are always mapped, and given back when freed."""


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed blocks of up to 32 MiB for the next ones. Returns whether it did.

    It leaves alone another C library, and settings that the user made in the environment.
    """
    own = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")
    chosen = any(name in os.environ for name in own) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if not sys.platform.startswith("linux") or chosen:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))

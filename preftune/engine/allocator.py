"""Freed memory stays with the process while it trains on a CPU.

glibc gives large freed blocks back to the system, and every next tensor of that size then costs a fault and a cleared
page for each 4 KiB: 3 to 9 % of an update (docs/log.md). Asked to keep them, it hands the same pages out again.

Kept blocks of many sizes fall apart over the steps: what is free lies in pieces, and the heap grows. `Heap` gives back
what is free after the checks at the start, which need other sizes than the steps, and when the process has grown well
over what a step needs.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h."""

SLACK = 0.15
"""Share by which the process may grow over what it needed before the heap's free pages are given back: fetching them
again costs a tenth of a step."""

LARGEST = 32 << 20
"""The largest block that glibc takes from the heap; larger ones are always mapped, and given back when freed."""

_kept: list[bool] = []
"""Not empty once this process keeps them; there is one heap."""


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
    kept = bool(mallopt(_MMAP_THRESHOLD, LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
    _kept[:] = [True] if kept else []
    return kept


class Heap:
    """When what glibc keeps goes back to the system. Does nothing where `keep_freed_memory` did not take."""

    def __init__(self) -> None:
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if _kept else None
        self._trim: Callable[[int], int] | None = trim
        self._fresh, self._need = True, 0

    def give_back(self) -> None:
        """Give the free pages back."""
        if self._trim is not None:
            self._trim(0)
            self._fresh = True

    def after_step(self) -> None:
        """Give them back if the process is larger by SLACK than any step since a giving back left it."""
        if self._trim is None:
            return
        now = _resident()
        if self._fresh:
            self._fresh, self._need = False, max(self._need, now)
        elif now > (1.0 + SLACK) * self._need:
            self.give_back()


def _resident() -> int:
    """Pages of this process in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])

"""The allocator's setting changes how often pages are fetched, and nothing that a run computes."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import ctypes, resource, sys, torch
# glibc's first setting, held: it moves by itself with what was freed before
ctypes.CDLL(None).mallopt(-3, 128 * 1024)
from preftune.engine.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def work():
    parts = [torch.ones(1 << 20) for _ in range(4)]
    return sum(float(p[0]) for p in parts)
work(); work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")


def faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


@glibc
def test_freed_memory_is_handed_out_again_without_new_pages() -> None:
    kept, plain = faults("keep"), faults("plain")
    assert plain > 50 * 1000  # four blocks of 4 MiB, 1,024 pages each, fetched anew at every call
    assert kept < plain / 20


@glibc
def test_the_users_own_settings_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from preftune.engine.allocator import keep_freed_memory

    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=4096")
    assert not keep_freed_memory()
    monkeypatch.delenv("GLIBC_TUNABLES")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "4096")
    assert not keep_freed_memory()
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()

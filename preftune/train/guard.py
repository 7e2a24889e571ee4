"""What can end a run from outside: Ctrl-C, a full memory, a second process in the same folder."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from preftune.config import Recipe
from preftune.errors import PreftuneError, UsageError
from preftune.records import Group

GIB = 2**30


class Interrupts:
    """Ctrl-C. It raises KeyboardInterrupt at once, except within `held()`: there it waits for the end of the block,
    so that a change of weights and records is either whole or not begun. A second Ctrl-C never waits."""

    def __init__(self) -> None:
        self._held = False
        self._waiting = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle Ctrl-C within this block."""

        def handler(number: int, frame: Any) -> None:
            if self._held and not self._waiting:
                self._waiting = True
                return
            raise KeyboardInterrupt

        try:
            previous = signal.signal(signal.SIGINT, handler)
        except ValueError:  # not the main thread: whoever started it handles Ctrl-C
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let Ctrl-C wait for the end of this block. An error of the block itself goes first."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._waiting:
            self._waiting = False
            raise KeyboardInterrupt


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the run folder: two processes writing one run would leave neither.

    The system drops the lock when the process ends, however it ends. Where there are no such locks (Windows) it
    does nothing.

    Raises:
        UsageError: another process is in this folder.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    try:
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise PreftuneError(f"can't write in {folder}: {error}. Make the folder writable") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another process is running in {folder}; wait for it, stop it, or give another folder with --output"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch (its CUDA or CPU allocator) or Python ran out of memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("not enough memory" in text or "can't allocate memory" in text)


def memory_advice(
    recipe: Recipe, budget: int, device: torch.device, step: int, stage: str, groups: Sequence[Group]
) -> str:
    """One sentence for a run that ran out of memory: the peak, the batch that did it, the setting to change."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / GIB
    else:
        import resource
        import sys

        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
    sampling = recipe.sampling
    longest = max((len(g.prompt.ids) + max((len(c.ids) for c in g.completions), default=0) for g in groups), default=0)
    batch = f"a batch of {len(groups)} prompts, first {groups[0].prompt.where or 'unnamed'}" if groups else "no batch"
    remedy = {
        "sample": f"Lower sampling.rows ({sampling.rows}: completions decoded at once; the result stays the same)",
        "measure": f"Lower sampling.rows ({sampling.rows}: completions decoded at once; the result stays the same)",
    }.get(
        stage,
        f"Lower train.max_tokens_per_batch ({budget}; the result stays the same), or set "
        "model.gradient_checkpointing: true",
    )
    return (
        f"out of memory in step {step} ({stage}), peak {peak:.1f} GiB, {batch}, longest row {longest} tokens. "
        f"{remedy}; then continue with --resume and the new value"
    )

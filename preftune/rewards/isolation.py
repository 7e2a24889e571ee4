"""Where a reward runs: in a worker process, in a watched thread, or directly.

A lane runs one reward and is used as `submit(batch, …)` then `result(timeout)`. It turns every way of failing
into a `Failure`, and is ready for the next batch afterwards: a process that hung or died is replaced, a thread
that hung is left behind (Python can't end it).
"""

from __future__ import annotations

import contextlib
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from preftune.rewards.call import Batch, Caller, Failure, Kind, Reply, RewardFunction
from preftune.rewards.loading import Reference
from preftune.rewards.worker import READY, read_frame, write_frame

START_SECONDS = 120.0
"""How long a worker may take to import its reward (and what that imports), apart from the limit of a batch."""

_BOOT = (
    "import sys, pickle; b = sys.stdin.buffer; sys.path[:] = pickle.loads(b.read(int.from_bytes(b.read(8), 'big')));"
    "from preftune.rewards.worker import serve; serve()"
)


class Lane(Protocol):
    """One reward's place to run."""

    place: str
    """In words, for the run's records: where the reward runs."""
    can_retry: bool
    """True when the lane is as good as new after a hang, so that rows may be tried one by one."""

    def submit(self, batch: Batch) -> None:
        """Begin to score a batch. At most one batch is under way."""

    def result(self, timeout: float) -> Reply | Failure:
        """Wait for the submitted batch, at most `timeout` seconds from when it began to run."""

    def close(self) -> None:
        """End what the lane started. A later submit starts afresh."""


class DirectLane:
    """Runs in the caller's thread, without a time limit: for built-ins whose run time is linear in the text."""

    place = "directly in the trainer (a built-in that can't hang)"
    can_retry = True

    def __init__(self, function: RewardFunction) -> None:
        self.function = function
        self._call = Caller(function, {})
        self._batch: Batch | None = None

    def submit(self, batch: Batch) -> None:
        """Keep the batch; it runs when the result is asked for."""
        self._batch = batch

    def result(self, timeout: float) -> Reply | Failure:
        """Run now."""
        assert self._batch is not None
        batch, self._batch = self._batch, None
        return self._call(batch)

    def close(self) -> None:
        """Nothing to end."""


class ThreadLane:
    """Runs in a thread of the trainer's process under a watchdog.

    The watchdog reports a hang; it can't end the thread, which keeps its memory and whatever it holds until the
    trainer exits, and it can't even report one that never lets go of the interpreter lock. A crash takes the
    trainer with it.
    """

    place = "inline in the trainer, under a watchdog"
    can_retry = False

    def __init__(self, function: RewardFunction, args: Mapping[str, Any]) -> None:
        self._function = function
        self._args = args
        self._inbox: queue.SimpleQueue[Batch | None] | None = None
        self._outbox: queue.SimpleQueue[Reply | Failure] = queue.SimpleQueue()

    def submit(self, batch: Batch) -> None:
        """Hand the batch to the thread, starting one if there is none."""
        if self._inbox is None:
            self._inbox, self._outbox = queue.SimpleQueue(), queue.SimpleQueue()
            worker = threading.Thread(
                target=_serve_thread,
                args=(Caller(self._function, self._args), self._inbox, self._outbox),
                name=f"reward-{getattr(self._function, '__name__', 'callable')}",
                daemon=True,
            )
            worker.start()
        self._inbox.put(batch)

    def result(self, timeout: float) -> Reply | Failure:
        """Wait for the thread; leave it behind when the time is over."""
        try:
            reply = self._outbox.get(timeout=timeout)
        except queue.Empty:
            self.close()
            return Failure("hung", f"did not return within {timeout:g} s")
        return reply

    def close(self) -> None:
        """Tell the thread to end after what it is doing, and forget it."""
        if self._inbox is not None:
            self._inbox.put(None)
            self._inbox = None


def _serve_thread(
    call: Caller, inbox: queue.SimpleQueue[Batch | None], outbox: queue.SimpleQueue[Reply | Failure]
) -> None:
    while (batch := inbox.get()) is not None:
        outbox.put(call(batch))
    call.close()


class ProcessLane:
    """Runs in one worker process, started at the first batch and kept. `source` must be importable or picklable."""

    place = "isolated in a worker process"
    can_retry = True

    def __init__(self, source: Reference | RewardFunction, args: Mapping[str, Any], timeout: float) -> None:
        self._first_frame = pickle.dumps((source, dict(args), timeout))
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._began = 0.0
        self._inbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._unsent: Failure | None = None
        self._stop: Callable[[], Any] = lambda: None

    def submit(self, batch: Batch) -> None:
        """Send the batch, starting the worker if there is none. Returns at once."""
        try:
            payload = pickle.dumps(batch)
        except Exception as error:  # noqa: BLE001  a column's own pickling code may raise anything
            self._unsent = Failure(
                "setup", f"its rows can't be sent to a worker process ({error}); set isolate: inline for this reward"
            )
            return
        if self._process is None:
            self._start()
        self._began = time.monotonic()
        self._inbox.put(payload)

    def _start(self) -> None:
        process = subprocess.Popen([sys.executable, "-c", _BOOT], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._process, self._ready = process, False
        self._stop = weakref.finalize(self, process.kill)  # also at exit of the interpreter
        self._inbox, self._outbox = queue.SimpleQueue(), queue.SimpleQueue()
        self._inbox.put(pickle.dumps(sys.path))
        self._inbox.put(self._first_frame)
        # A thread of its own, because a write blocks while the worker is still importing.
        pump = threading.Thread(target=_pump, args=(process, self._inbox, self._outbox), daemon=True)
        pump.start()

    def result(self, timeout: float) -> Reply | Failure:
        """Wait for the reply; a worker that hung, died or could not start is ended, the next batch gets a new one."""
        if self._unsent is not None:
            failure, self._unsent = self._unsent, None
            return failure
        try:
            if not self._ready:
                first = self._outbox.get(timeout=START_SECONDS)
                if first != READY:
                    return self._ended(first, "setup")
                self._ready, self._began = True, time.monotonic()
            reply = self._outbox.get(timeout=max(0.0, self._began + timeout - time.monotonic()))
        except queue.Empty:
            started = self._ready
            self.close()
            if not started:
                return Failure("setup", f"its worker did not import it within {START_SECONDS:g} s")
            return Failure("hung", f"did not return within {timeout:g} s")
        return reply if isinstance(reply, (Reply, Failure)) else self._ended(reply, "died")

    def _ended(self, reply: Failure | None, kind: Kind) -> Failure:
        if reply is not None:
            self.close()
            return reply
        assert self._process is not None
        code = self._process.wait()
        self.close()
        when = " while it was being imported" if kind == "setup" else ""
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return Failure(kind, f"ended its process ({how}){when}")

    def close(self) -> None:
        """Kill the worker, if there is one, and wait for its end."""
        if self._process is None:
            return
        self._stop()
        self._inbox.put(None)
        self._process.wait()
        self._process = None
        self._ready = False


def _pump(
    process: subprocess.Popen[bytes], inbox: queue.SimpleQueue[bytes | None], outbox: queue.SimpleQueue[Any]
) -> None:
    """Carry frames to and from a worker. Puts READY or a Failure, then one reply per batch; None when it ended."""
    requests: Any = process.stdin  # Any: typeshed calls these IO[bytes], not BinaryIO
    replies: Any = process.stdout
    try:
        for _ in range(2):  # sys.path, then what to load
            write_frame(requests, inbox.get() or b"")
        while (reply := read_frame(replies)) is not None:
            outbox.put(pickle.loads(reply))
            payload = inbox.get()
            if payload is None:
                return
            write_frame(requests, payload)
        outbox.put(None)
    except OSError:  # the worker died while we wrote: the same as an end of its output
        outbox.put(None)
    finally:
        with contextlib.suppress(OSError):  # closing flushes, into a pipe that may have no reader
            requests.close()
        replies.close()

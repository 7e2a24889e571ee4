"""Tokenising with all cores: worker processes get rows and give them back as ids, in order.

A worker is a fresh interpreter, as a fork would copy torch's threads in whatever state they are, and multiprocessing's
other ways would run the user's script again.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeAlias

from preftune.errors import DataError, ModelError, PreftuneError
from preftune.records import Example
from preftune.rewards.worker import read_frame, write_frame
from preftune.tokens import TokenContract, Tokenised

PARALLEL_FROM = 20_000
"""Rows from which starting the workers (a few seconds) is the smaller part."""
CHUNK = 256
MOST = 16
"""Workers at most: each takes a few hundred MiB, and one process has to take in what they give."""

_BOOT = (
    "import sys, pickle; b = sys.stdin.buffer; sys.path[:] = pickle.loads(b.read(int.from_bytes(b.read(8), 'big')));"
    "from preftune.train.workers import serve; serve()"
)

Reply: TypeAlias = tuple[list[Tokenised], PreftuneError | None]
"""Rows up to the first that can't be tokenised, and what is wrong with that one."""


def tokenised(contract: TokenContract, examples: Sequence[Example], *, with_completions: bool) -> Iterator[Tokenised]:
    """What `contract.tokenise` makes of each example, in order, with the errors that it raises. With few rows, one core
    or a contract that can't be sent, this process does it alone."""
    payload = None
    workers = min(cores(), MOST)
    if workers > 1 and len(examples) >= PARALLEL_FROM:
        try:
            payload = pickle.dumps((contract, with_completions))
        except Exception:  # noqa: BLE001  a tokenizer's own pickling code may raise anything
            payload = None
    if payload is None:
        return (contract.tokenise(example, with_completions=with_completions) for example in examples)
    return _shared(contract, examples, with_completions, payload, workers)


def cores() -> int:
    """CPUs that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have no such call
        return os.cpu_count() or 1


def _shared(
    contract: TokenContract, examples: Sequence[Example], with_completions: bool, payload: bytes, count: int
) -> Iterator[Tokenised]:
    workers: list[_Worker] = []
    pool = ThreadPoolExecutor(count)
    try:
        with suppress(OSError):  # no memory or no leave for another process
            for _ in range(count):
                workers.append(_Worker(payload))
        if not workers:
            yield from (contract.tokenise(example, with_completions=with_completions) for example in examples)
            return
        free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in workers:
            free.put(worker)

        def ask(some: Sequence[Example]) -> Reply | None:
            worker = free.get()
            try:
                return worker.ask(some)
            finally:
                free.put(worker)

        waiting: deque[tuple[Sequence[Example], Future[Reply | None]]] = deque()
        for start in range(0, len(examples), CHUNK):
            some = examples[start : start + CHUNK]
            waiting.append((some, pool.submit(ask, some)))
            if len(waiting) > 2 * count:
                yield from _taken(contract, *waiting.popleft(), with_completions)
        while waiting:
            yield from _taken(contract, *waiting.popleft(), with_completions)
    finally:
        for worker in workers:
            worker.close()  # a thread that waits for its reply then gets none
        pool.shutdown(cancel_futures=True)


def _taken(
    contract: TokenContract, some: Sequence[Example], reply: Future[Reply | None], with_completions: bool
) -> Iterator[Tokenised]:
    found = reply.result()
    if found is None:  # the worker is gone, for want of memory, say: its rows are ours
        yield from (contract.tokenise(example, with_completions=with_completions) for example in some)
        return
    rows, error = found
    yield from rows
    if error is not None:
        raise error


class _Worker:
    """A process that tokenises, seen from this side."""

    def __init__(self, payload: bytes) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BOOT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        self._first: bytes | None = payload
        self._end = weakref.finalize(self, self._process.kill)  # also at exit of the interpreter
        self._gone = False

    def ask(self, some: Sequence[Example]) -> Reply | None:
        """The reply to some rows; None when the process has ended."""
        if self._gone:
            return None
        requests: Any = self._process.stdin  # Any: typeshed calls these IO[bytes], not BinaryIO
        replies: Any = self._process.stdout
        try:
            if self._first is not None:
                write_frame(requests, pickle.dumps(sys.path))
                write_frame(requests, self._first)
                self._first = None
            write_frame(requests, pickle.dumps(some))
            reply = read_frame(replies)
        except (OSError, ValueError, pickle.PicklingError, TypeError, AttributeError):
            reply = None  # a broken pipe, or a column that can't be sent
        if reply is None:
            self._gone = True
            return None
        found: Reply = pickle.loads(reply)
        return found

    def close(self) -> None:
        """End the process."""
        self._gone = True
        self._end()
        self._process.wait()
        with suppress(OSError):  # closing flushes, into a pipe that has no reader
            if self._process.stdin is not None:
                self._process.stdin.close()


def serve() -> None:
    """The worker's side: take the contract, then answer rows until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's to handle
    requests = sys.stdin.buffer
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not spoil the replies
    first = read_frame(requests)
    if first is None:
        return
    contract, with_completions = pickle.loads(first)
    while (payload := read_frame(requests)) is not None:
        rows: list[Tokenised] = []
        error: PreftuneError | None = None
        try:
            for example in pickle.loads(payload):
                rows.append(contract.tokenise(example, with_completions=with_completions))
        except (DataError, ModelError) as problem:
            error = type(problem)(str(problem))
        write_frame(replies, pickle.dumps((rows, error)))

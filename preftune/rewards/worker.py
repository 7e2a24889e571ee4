"""The worker process of an isolated reward: reads batches from its standard input, writes replies.

Started by `isolation.ProcessLane` with the trainer's sys.path. Frames are a length of eight bytes and a pickle.
What the reward prints goes to standard error, so that it can't damage the frames.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

from preftune.errors import PreftuneError
from preftune.rewards.call import Batch, Caller, Failure, describe_exception
from preftune.rewards.loading import Reference

READY = "ready"
ORPHAN_GRACE = 5.0
"""Seconds over the time limit after which a worker ends itself, in case the trainer is no longer there to do it."""


def write_frame(stream: BinaryIO, payload: bytes) -> None:
    """Write one length-prefixed frame and flush."""
    stream.write(len(payload).to_bytes(8, "big"))
    stream.write(payload)
    stream.flush()


def read_frame(stream: BinaryIO) -> bytes | None:
    """Read one frame; None when the other side has closed the pipe."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    size = int.from_bytes(head, "big")
    payload = stream.read(size)
    return payload if len(payload) == size else None


def serve() -> None:
    """Load the reward, say so, then answer batches until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's to handle: it closes the pipe
    requests = sys.stdin.buffer
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    first = read_frame(requests)
    if first is None:
        return
    source, args, timeout = pickle.loads(first)
    try:
        function: Callable[..., Any] = source.load() if isinstance(source, Reference) else source
        if hasattr(source, "prepare"):
            source.prepare()  # a built-in's slow imports, which are no part of a batch's time
    except PreftuneError as error:
        write_frame(replies, pickle.dumps(Failure("setup", str(error))))
        return
    except (Exception, SystemExit) as error:  # noqa: BLE001  a user's module may raise anything
        write_frame(replies, pickle.dumps(Failure("setup", f"can't be imported: it {describe_exception(error)}")))
        return
    write_frame(replies, pickle.dumps(READY))
    call = Caller(function, args)
    while (request := read_frame(requests)) is not None:
        batch: Batch = pickle.loads(request)
        # Ends this process from a C thread even while a regular expression holds the interpreter lock.
        faulthandler.dump_traceback_later(timeout + ORPHAN_GRACE, exit=True)
        reply = call(batch)
        faulthandler.cancel_dump_traceback_later()
        try:
            payload = pickle.dumps(reply)
        except Exception as error:  # noqa: BLE001  any object's own pickling code may run here
            payload = pickle.dumps(Failure("shape", f"gave log_extra values that can't leave its process: {error}"))
        write_frame(replies, payload)

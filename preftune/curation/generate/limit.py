"""Requests and tokens per minute."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from preftune.errors import SamplingError

NOTHING = 1e-6
"""Seconds that are not waited for."""
LOOK = 1.0
"""Seconds after which a request that waits looks again: one that needed less than expected leaves room sooner."""
BURST = 1.0
"""Seconds of rate that may be saved up: providers count in windows shorter than a minute."""


class RateLimit:
    """Lets requests through no faster than a rate of requests and one of tokens: two token buckets (leaky as a meter).

    A bucket fills at its rate, up to BURST seconds of it and at least one request. A request waits until there is one
    request and as many tokens as it needs, or as the bucket can hold: one that is larger leaves a debt, and those
    behind it wait until it is paid. So in any t seconds at most BURST + t seconds' worth passes, and one request more.

    Args:
        requests_per_minute, tokens_per_minute: None: without limit.
        clock: seconds, rising.
        wait: called with seconds; True when the work is to stop. Default: sleeps.
    """

    def __init__(
        self,
        requests_per_minute: float | None,
        tokens_per_minute: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        self._clock = clock
        self._wait = wait or _sleep
        self._lock = threading.Lock()
        self._requests = _Bucket(requests_per_minute, 1.0, clock())
        self._tokens = _Bucket(tokens_per_minute, 1.0, clock())

    def acquire(self, tokens: int) -> None:
        """Wait for the turn of a request that is expected to need so many tokens, in and out.

        Raises:
            SamplingError: the work is to stop.
        """
        while True:
            with self._lock:
                now = self._clock()
                missing = max(self._requests.missing(1, now), self._tokens.missing(tokens, now))
                if missing <= 0:
                    self._requests.take(1)
                    self._tokens.take(tokens)
                    return
            if self._wait(min(missing, LOOK)):
                raise SamplingError("not asked, as the work has stopped")

    def correct(self, expected: int, needed: int) -> None:
        """The server's own count of a request's tokens, in place of what was expected."""
        with self._lock:
            self._tokens.missing(0, self._clock())
            self._tokens.take(needed - expected)


class _Bucket:
    """What has been saved up of a rate."""

    def __init__(self, per_minute: float | None, least: float, now: float) -> None:
        self._rate = None if per_minute is None else per_minute / 60.0
        self._most = 0.0 if self._rate is None else max(least, self._rate * BURST)
        self._level, self._then = self._most, now

    def missing(self, amount: float, now: float) -> float:
        """Seconds until so much may be taken. Fills the bucket up to now."""
        if self._rate is None:
            return 0.0
        self._level = min(self._most, self._level + self._rate * (now - self._then))
        self._then = now
        seconds = (min(amount, self._most) - self._level) / self._rate
        # A hair's breadth of rounding would have a request wait for nothing, over and over.
        return seconds if seconds > NOTHING else 0.0

    def take(self, amount: float) -> None:
        if self._rate is not None:
            self._level = min(self._most, self._level - amount)


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False

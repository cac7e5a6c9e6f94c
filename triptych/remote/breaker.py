"""A circuit breaker (Nygard, "Release It!", 2007): who fails again and again is left alone for a while, then tried once."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum

FAILURES_TO_OPEN = 3
FIRST_REST_SECONDS = 1.0
LONGEST_REST_SECONDS = 30.0


class BreakerState(StrEnum):
    """Closed lets work through, open does not, half-open lets one piece through and sees."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitBreaker:
    """Of one replica. It opens after `FAILURES_TO_OPEN` failures without a success between them.

    Args:
        clock: Seconds that only grow; a test brings its own.
        jitter: A number between 0 and 1, so that gateways do not all come back at the same moment.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, jitter: Callable[[], float] = random.random) -> None:
        self._clock = clock
        self._jitter = jitter
        self._failures = 0
        self._failed_at = float("-inf")
        self._rests_until = float("-inf")
        self._is_probed = False

    @property
    def state(self) -> BreakerState:
        if self._failures < FAILURES_TO_OPEN:
            return BreakerState.CLOSED
        return BreakerState.OPEN if self._clock() < self._rests_until else BreakerState.HALF_OPEN

    @property
    def lets_through(self) -> bool:
        state = self.state
        return state is BreakerState.CLOSED or (state is BreakerState.HALF_OPEN and not self._is_probed)

    @contextmanager
    def work(self) -> Iterator[float]:
        """One piece of work; yields when it began, for `fail`. Of a half-open one it is the probe."""
        is_probe = self.state is BreakerState.HALF_OPEN
        self._is_probed |= is_probe
        try:
            yield self._clock()
        finally:
            if is_probe:
                self._is_probed = False

    def succeed(self) -> None:
        """It answered, also where more of the answer is to come: then it works, whatever becomes of the rest."""
        self._failures = 0

    def fail(self, began: float) -> None:
        """Counts a failure of work that began then. All work that one death ends is one failure."""
        if began < self._failed_at:
            return
        self._failures += 1
        self._failed_at = self._clock()
        if self._failures >= FAILURES_TO_OPEN:
            rest = min(LONGEST_REST_SECONDS, FIRST_REST_SECONDS * 2.0 ** (self._failures - FAILURES_TO_OPEN))
            self._rests_until = self._failed_at + rest * (0.5 + 0.5 * self._jitter())

"""Who may work now, who waits, and who is sent away: the gateway's bounded queue."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from statistics import fmean

from triptych.errors import QueueFull

MEASURED_REQUESTS = 32
SHORTEST_RETRY_SECONDS = 0.1


class Admission:
    """At most `max_running` requests at work and `max_waiting` in line, first come, first served.

    Args:
        clock: Seconds that only grow; a test brings its own.
    """

    def __init__(self, *, max_running: int, max_waiting: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_running = max_running
        self.max_waiting = max_waiting
        self.waiting = 0
        self._clock = clock
        self._places = asyncio.Semaphore(max_running)
        self._tickets = count()
        self._started: dict[int, float] = {}
        self._durations: deque[float] = deque(maxlen=MEASURED_REQUESTS)

    @property
    def running(self) -> int:
        return len(self._started)

    def refuse_if_full(self) -> None:
        """Raises QueueFull where neither a place to work nor one to wait is free."""
        if self._places.locked() and self.waiting >= self.max_waiting:
            raise QueueFull(
                f"{self.running} requests are running and {self.waiting} are waiting, which is all this gateway takes; "
                "come back later",
                retry_after_seconds=self.seconds_to_next_place(),
            )

    @asynccontextmanager
    async def turn(self, deadline: float) -> AsyncIterator[None]:
        """Waits for a place, and holds it for the length of the block.

        Args:
            deadline: Of `time.monotonic()`.

        Raises:
            QueueFull: There is no place to wait, or the deadline passed while waiting.
        """
        self.refuse_if_full()
        await self._wait(deadline)
        ticket = next(self._tickets)
        self._started[ticket] = started = self._clock()
        try:
            yield
            # Only what ran to its end tells how long a request takes; failures are often quick.
            self._durations.append(self._clock() - started)
        finally:
            del self._started[ticket]
            self._places.release()

    async def _wait(self, deadline: float) -> None:
        self.waiting += 1
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                await self._places.acquire()
        except TimeoutError:
            raise QueueFull(
                "the request's deadline passed while it waited for its turn; come back later",
                retry_after_seconds=self.seconds_to_next_place(),
            ) from None
        finally:
            self.waiting -= 1

    def seconds_to_next_place(self) -> float:
        """When the request that has run longest should be done, by the mean duration of the last ones that were."""
        if not self._started:
            return SHORTEST_RETRY_SECONDS
        elapsed = self._clock() - min(self._started.values())
        if not self._durations:
            # Nothing is known yet but that a request takes longer than this.
            return max(1.0, elapsed)
        usual = fmean(self._durations)
        remaining = usual - elapsed if usual > elapsed else usual / self.max_running
        return max(SHORTEST_RETRY_SECONDS, remaining)

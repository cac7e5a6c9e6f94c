"""Who may work now, who waits, and who is sent away: the gateway's bounded queue."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count

from triptych.contract import Priority
from triptych.errors import QueueFull
from triptych.gateway.line import Waiter, in_turn

MEASURED_REQUESTS = 32
SHORTEST_RETRY_SECONDS = 0.1

SURE = 0.8
"""A deadline is missed for sure where less is left than this share of the time needed: what was measured is no promise."""


class Turn:
    """A request at work.

    Args:
        work: How much it asks for, in any unit that all share.
        started: When its turn began.
    """

    def __init__(self, work: float, started: float, clock: Callable[[], float]) -> None:
        self.work = work
        self.started = started
        self._clock = clock
        self._projected_seconds: float | None = None

    @property
    def elapsed(self) -> float:
        return self._clock() - self.started

    def note(self, share: float) -> None:
        """So much of it is done, 0 to 1."""
        if share > 0:
            self._projected_seconds = self.elapsed / share

    def seconds_left(self, seconds_per_work: float | None) -> float | None:
        """At its own pace where that is known, else at that of others; None where neither is. Not positive where it is late."""
        if self._projected_seconds is not None:
            return self._projected_seconds - self.elapsed
        return None if seconds_per_work is None else self.work * seconds_per_work - self.elapsed


class Admission:
    """At most `max_running` requests at work and `max_waiting` in line, where keys take turns (`in_turn`).

    When the line is full, whoever would come last is sent away: so no key can keep others out of it.

    Args:
        clock: Seconds that only grow; a test brings its own.
    """

    def __init__(self, *, max_running: int, max_waiting: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_running = max_running
        self.max_waiting = max_waiting
        self._clock = clock
        self._turns: set[Turn] = set()
        self._waiting: list[Waiter] = []
        self._taken = 0  # places, also those of waiters that have been called and do not know it yet
        self._numbers = count()
        self._last_turns: dict[str, int] = {}
        self._measured: deque[tuple[float, float]] = deque(maxlen=MEASURED_REQUESTS)

    @property
    def running(self) -> int:
        return len(self._turns)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def refuse_if_full(self, *, key: str = "", priority: str = Priority.NORMAL) -> None:
        """Raises QueueFull where a request of this key would find neither a place to work nor one to wait."""
        if self._is_last_in_a_full_line(self._waiter(key, priority, None)):
            raise self._full()

    @asynccontextmanager
    async def turn(
        self, deadline: float, *, key: str = "", priority: str = Priority.NORMAL, work: float | None = None
    ) -> AsyncIterator[Turn]:
        """Waits for a place, and holds it for the length of the block.

        Args:
            deadline: Of `time.monotonic()`.
            key: Whose request it is: keys take turns.
            priority: Among those of its key.
            work: How much it asks for; None is as much as is usual.

        Raises:
            QueueFull: There is no place to wait, or it cannot be done before its deadline.
        """
        waiter = self._waiter(key, priority, work)
        await self._wait(waiter, deadline)
        turn = Turn(waiter.work, self._clock(), self._clock)
        self._turns.add(turn)
        try:
            yield turn
            # Only what ran to its end tells how long a request takes; failures are often quick.
            self._measured.append((turn.work, turn.elapsed))
        finally:
            self._turns.remove(turn)
            self._leave()

    def seconds_to_next_place(self) -> float:
        """When the first of those at work should be done: by its own evaluations, else by those that were done lately."""
        if not self._turns:
            return SHORTEST_RETRY_SECONDS
        pace = self._seconds_per_work()
        lefts = [(left, turn) for turn in self._turns if (left := turn.seconds_left(pace)) is not None]
        if not lefts:
            # Nothing is known yet but that a request takes longer than this.
            return max(1.0, max(turn.elapsed for turn in self._turns))
        left, first = min(lefts, key=lambda each: each[0])
        if left <= 0:  # it is late, and may be done at any time, as may all others
            left = (first.elapsed if pace is None else first.work * pace) / self.max_running
        return max(SHORTEST_RETRY_SECONDS, left)

    def _waiter(self, key: str, priority: str, work: float | None) -> Waiter:
        return Waiter(number=next(self._numbers), key=key, priority=priority, work=self._usual_work() if work is None else work)

    async def _wait(self, waiter: Waiter, deadline: float) -> None:
        """Until a place is the waiter's."""
        if self._taken < self.max_running:
            self._call(waiter)
            return
        self._refuse_if_too_late(waiter, deadline)
        if self._is_last_in_a_full_line(waiter):
            raise self._full()
        self._waiting.append(waiter)
        if self.waiting > self.max_waiting:
            last = self._line()[-1]
            self._waiting.remove(last)
            last.called.set_exception(self._full())
        seconds = SURE * self._seconds(waiter)
        try:
            async with asyncio.timeout(max(0.0, deadline - seconds - time.monotonic())):
                await waiter.called
        except TimeoutError:
            self._forget(waiter)
            what = "came too near" if seconds else "passed"
            raise QueueFull(
                f"the request's deadline {what} while it waited for its turn; come back later",
                retry_after_seconds=self.seconds_to_next_place(),
            ) from None
        except BaseException:
            self._forget(waiter)
            raise

    def _line(self, *newcomers: Waiter) -> list[Waiter]:
        """Those that wait, the next one first; without those whose callers have just left."""
        waiting = [waiter for waiter in self._waiting if not waiter.called.done()]
        return in_turn([*waiting, *newcomers], self._last_turns)

    def _is_last_in_a_full_line(self, newcomer: Waiter) -> bool:
        if self._taken < self.max_running or self.waiting < self.max_waiting:
            return False
        return self._line(newcomer)[-1] is newcomer

    def _full(self) -> QueueFull:
        return QueueFull(
            f"{self.running} requests are running and {self.waiting} are waiting, which is all this gateway takes; "
            "come back later",
            retry_after_seconds=self.seconds_to_next_place(),
        )

    def _refuse_if_too_late(self, waiter: Waiter, deadline: float) -> None:
        """Where others that are before it leave it no time."""
        line = self._line(waiter)
        before = line[: line.index(waiter)]
        to_its_turn = self.seconds_to_next_place() + sum(map(self._seconds, before)) / self.max_running
        needed, left = to_its_turn + self._seconds(waiter), deadline - time.monotonic()
        if self._measured and left < SURE * needed:
            raise QueueFull(
                f"the request cannot be done before its deadline: that is {left:.1f} s away, and with {len(before)} others "
                f"before it in line it takes about {needed:.1f} s; come back later",
                retry_after_seconds=max(SHORTEST_RETRY_SECONDS, min(to_its_turn, needed - left)),
            )

    def _call(self, waiter: Waiter) -> None:
        """Gives the waiter a place."""
        self._taken += 1
        self._last_turns[waiter.key] = next(self._numbers)
        waiter.called.set_result(None)

    def _leave(self) -> None:
        """Gives a place back, and to whoever comes next."""
        self._taken -= 1
        if line := self._line():
            self._waiting.remove(line[0])
            self._call(line[0])

    def _forget(self, waiter: Waiter) -> None:
        """Somebody who does not wait any more, and may have been called in this very moment."""
        if waiter in self._waiting:
            self._waiting.remove(waiter)
        elif waiter.called.done() and not waiter.called.cancelled() and waiter.called.exception() is None:
            self._leave()

    def _seconds_per_work(self) -> float | None:
        if not self._measured:
            return None
        return sum(seconds for _, seconds in self._measured) / sum(work for work, _ in self._measured)

    def _usual_work(self) -> float:
        return sum(work for work, _ in self._measured) / len(self._measured) if self._measured else 1.0

    def _seconds(self, waiter: Waiter) -> float:
        """That its work takes once it has its turn; 0 where nothing has been measured."""
        return waiter.work * (self._seconds_per_work() or 0.0)

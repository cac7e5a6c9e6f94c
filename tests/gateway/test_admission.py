from __future__ import annotations

import asyncio
import itertools
import time

import pytest

from triptych.errors import QueueFull
from triptych.gateway.admission import Admission


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def far_off() -> float:
    return time.monotonic() + 60


class Holder:
    """A request that holds its place until told to end."""

    def __init__(self, admission: Admission) -> None:
        self.has_turn = asyncio.Event()
        self._end = asyncio.Event()
        self._task = asyncio.create_task(self._hold(admission))

    async def _hold(self, admission: Admission) -> None:
        async with admission.turn(far_off()):
            self.has_turn.set()
            await self._end.wait()

    async def end(self) -> None:
        self._end.set()
        await self._task


async def test_so_many_run_and_so_many_wait_and_the_next_is_refused() -> None:
    admission = Admission(max_running=2, max_waiting=1)
    first, second, third = (Holder(admission) for _ in range(3))
    await second.has_turn.wait()
    assert (admission.running, admission.waiting) == (2, 1)

    with pytest.raises(QueueFull, match="2 requests are running and 1 are waiting"):
        async with admission.turn(far_off()):
            pytest.fail("there was no place")

    assert not third.has_turn.is_set()
    await first.end()
    await third.has_turn.wait()
    admission.refuse_if_full()  # the place to wait is free again
    await second.end()
    await third.end()
    assert (admission.running, admission.waiting) == (0, 0)


async def test_whoever_came_first_has_the_first_turn() -> None:
    admission = Admission(max_running=1, max_waiting=5)
    holders = [Holder(admission) for _ in range(4)]
    for holder, following in itertools.pairwise(holders):
        await holder.has_turn.wait()
        assert not following.has_turn.is_set()
        await holder.end()
    await holders[-1].end()


async def test_nobody_may_wait_where_no_place_to_wait_is_set() -> None:
    admission = Admission(max_running=1, max_waiting=0)
    holder = Holder(admission)
    await holder.has_turn.wait()

    with pytest.raises(QueueFull):
        admission.refuse_if_full()
    await holder.end()


async def test_a_deadline_that_passes_in_line_gives_the_place_up() -> None:
    admission = Admission(max_running=1, max_waiting=1)
    holder = Holder(admission)
    await holder.has_turn.wait()

    with pytest.raises(QueueFull, match="deadline passed while it waited"):
        async with admission.turn(time.monotonic() + 0.01):
            pytest.fail("there was no place")

    assert admission.waiting == 0
    await holder.end()


async def test_a_request_that_fails_gives_its_place_back_and_is_not_measured() -> None:
    clock = Clock()
    admission = Admission(max_running=1, max_waiting=0, clock=clock)
    with pytest.raises(ZeroDivisionError):
        async with admission.turn(far_off()):
            raise ZeroDivisionError

    admission.refuse_if_full()
    async with admission.turn(far_off()):
        clock.now += 3.0
        # Had the failure counted, the usual duration would be 0 and this 0.1.
        assert admission.seconds_to_next_place() == 3.0


class TestRetryAfter:
    """What a refused caller is told is when the next place comes free, by what was measured."""

    async def test_the_rest_of_the_usual_duration(self) -> None:
        clock = Clock()
        admission = Admission(max_running=2, max_waiting=0, clock=clock)
        for duration in (4.0, 6.0):
            async with admission.turn(far_off()):
                clock.now += duration
        async with admission.turn(far_off()):
            clock.now += 2.0
            async with admission.turn(far_off()):
                clock.now += 1.0
                with pytest.raises(QueueFull) as refusal:
                    admission.refuse_if_full()
        assert refusal.value.retry_after_seconds == pytest.approx(5.0 - 3.0)

    async def test_one_that_is_late_is_expected_any_time(self) -> None:
        clock = Clock()
        admission = Admission(max_running=2, max_waiting=0, clock=clock)
        async with admission.turn(far_off()):
            clock.now += 4.0
        async with admission.turn(far_off()):
            clock.now += 100.0
            assert admission.seconds_to_next_place() == pytest.approx(4.0 / 2)

    async def test_nothing_is_known_at_first(self) -> None:
        clock = Clock()
        admission = Admission(max_running=1, max_waiting=0, clock=clock)
        async with admission.turn(far_off()):
            assert admission.seconds_to_next_place() == 1.0
            clock.now += 7.0
            assert admission.seconds_to_next_place() == 7.0

    async def test_only_the_last_requests_count(self) -> None:
        clock = Clock()
        admission = Admission(max_running=1, max_waiting=0, clock=clock)
        for duration in [1000.0] + [2.0] * 32:
            async with admission.turn(far_off()):
                clock.now += duration
        async with admission.turn(far_off()):
            assert admission.seconds_to_next_place() == pytest.approx(2.0)

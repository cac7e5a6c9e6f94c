from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gateway.running import until
from triptych.errors import QueueFull
from triptych.gateway.admission import Admission
from triptych.gateway.line import OVERTAKEN_BY, Waiter, in_turn


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def far_off() -> float:
    return time.monotonic() + 60


class Holder:
    """A request that holds its place until told to end."""

    def __init__(self, admission: Admission, name: str = "", journal: list[str] | None = None, **options: Any) -> None:
        self.name = name
        self.has_turn = asyncio.Event()
        self._end = asyncio.Event()
        self._journal = [] if journal is None else journal
        self.task = asyncio.create_task(self._hold(admission, **options))

    async def _hold(self, admission: Admission, *, seconds: float = 60.0, **options: Any) -> None:
        async with admission.turn(time.monotonic() + seconds, **options):
            self._journal.append(self.name)
            self.has_turn.set()
            await self._end.wait()

    async def end(self) -> None:
        self._end.set()
        await self.task


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


async def order_of(admission: Admission, *requests: tuple[str, dict[str, Any]]) -> list[str]:
    """The names of requests in the order in which they have their turns, where one has its turn at a time."""
    journal: list[str] = []
    first = Holder(admission, "", journal, key="somebody")
    await first.has_turn.wait()
    holders = [Holder(admission, name, journal, **options) for name, options in requests]
    for holder in holders:
        holder._end.set()
    await asyncio.sleep(0)
    await first.end()
    await asyncio.gather(*(holder.task for holder in holders))
    return journal[1:]


async def test_keys_take_turns() -> None:
    admission = Admission(max_running=1, max_waiting=9)
    of_ann = [(f"ann {number}", {"key": "ann"}) for number in range(3)]
    of_bob = [(f"bob {number}", {"key": "bob"}) for number in range(2)]
    assert await order_of(admission, *of_ann, *of_bob) == ["ann 0", "bob 0", "ann 1", "bob 1", "ann 2"]
    # Bob had his last turn before Ann had hers.
    assert await order_of(admission, *of_ann[:1], *of_bob[:1]) == ["bob 0", "ann 0"]


async def test_priorities_count_within_a_key() -> None:
    admission = Admission(max_running=1, max_waiting=9)
    of_ann = [(f"ann {priority}", {"key": "ann", "priority": priority}) for priority in ("low", "normal", "high", "normal")]
    of_bob = [("bob low", {"key": "bob", "priority": "low"})]
    order = await order_of(admission, *of_ann, *of_bob)
    assert order == ["ann high", "bob low", "ann normal", "ann normal", "ann low"]


@pytest.mark.parametrize("priority", ["low", "normal", "high"])
async def test_a_request_is_overtaken_by_so_many_and_no_more(priority: str) -> None:
    one = Waiter(number=0, key="ann", priority=priority, work=1.0)
    others = [Waiter(number=number, key="ann", priority="high", work=1.0) for number in range(1, 2000)]
    assert in_turn([one, *others], {}).index(one) == max(0, OVERTAKEN_BY[priority] - 1)


@given(st.lists(st.sampled_from("abc"), max_size=30), st.dictionaries(st.sampled_from("abc"), st.integers(0, 9)))
@settings(deadline=None)
def test_no_key_has_two_turns_while_another_waits(keys: list[str], last_turns: dict[str, int]) -> None:
    async def run() -> list[Waiter]:
        return in_turn([Waiter(number=n, key=key, priority="normal", work=1.0) for n, key in enumerate(keys)], last_turns)

    line = asyncio.run(run())
    assert sorted(waiter.number for waiter in line) == list(range(len(keys)))
    places = {key: [place for place, waiter in enumerate(line) if waiter.key == key] for key in keys}
    for begin, end in (pair for of_key in places.values() for pair in itertools.pairwise(of_key)):
        between = {waiter.key for waiter in line[begin:end]}
        assert {waiter.key for waiter in line[end:]} <= between


async def test_a_full_line_sends_away_the_last_of_a_key_that_has_more_in_it() -> None:
    admission = Admission(max_running=1, max_waiting=2)
    running, early, late = (Holder(admission, key="ann") for _ in range(3))
    await running.has_turn.wait()
    admission.refuse_if_full(key="bob")
    with pytest.raises(QueueFull):
        admission.refuse_if_full(key="ann")

    of_bob = Holder(admission, key="bob")
    with pytest.raises(QueueFull, match="1 requests are running and 2 are waiting"):
        await late.task
    with pytest.raises(QueueFull):
        admission.refuse_if_full(key="bob")
    for holder in (running, of_bob, early):
        await holder.end()
    assert (admission.running, admission.waiting) == (0, 0)


async def test_whoever_leaves_as_the_turn_comes_leaves_it_to_the_next() -> None:
    admission = Admission(max_running=1, max_waiting=3)
    async with admission.turn(far_off()):
        leaves, leaves_too, last = (Holder(admission) for _ in range(3))
        await until(lambda: admission.waiting == 3)
        leaves.task.cancel()  # and does not know it yet when the place is given on
    leaves_too.task.cancel()  # who was given it, and does not know that yet
    await last.has_turn.wait()
    await last.end()
    assert (admission.running, admission.waiting) == (0, 0)
    admission.refuse_if_full()


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

    async def test_larger_requests_take_longer(self) -> None:
        clock = Clock()
        admission = Admission(max_running=1, max_waiting=0, clock=clock)
        async with admission.turn(far_off(), work=10.0):
            clock.now += 5.0
        async with admission.turn(far_off(), work=30.0):
            assert admission.seconds_to_next_place() == pytest.approx(15.0)
            clock.now += 15.0
        async with admission.turn(far_off()):  # as much as is usual: 20
            assert admission.seconds_to_next_place() == pytest.approx(10.0)

    async def test_a_request_that_tells_how_far_it_is_is_measured_by_itself(self) -> None:
        clock = Clock()
        admission = Admission(max_running=1, max_waiting=0, clock=clock)
        async with admission.turn(far_off()):
            clock.now += 1.0
        async with admission.turn(far_off()) as turn:
            clock.now += 6.0
            turn.note(0.25)
            clock.now += 2.0
            assert admission.seconds_to_next_place() == pytest.approx(6.0 / 0.25 - 8.0)


class TestDeadlines:
    """Who cannot be done in time is sent away at once, with the sentence why."""

    @staticmethod
    async def admission(clock: Clock) -> Admission:
        """Two places, and 10 s for a request of the work 1."""
        admission = Admission(max_running=2, max_waiting=9, clock=clock)
        async with admission.turn(far_off(), work=1.0):
            clock.now += 10.0
        return admission

    async def test_with_those_before_it_it_takes_too_long(self) -> None:
        admission = await self.admission(Clock())
        holders = [Holder(admission, work=1.0) for _ in range(4)]
        await holders[1].has_turn.wait()
        # The first place comes free after 10 s, the two in line take as much together, and it 20 s more.
        with pytest.raises(
            QueueFull, match=r"that is (29\.9|30\.0) s away, and with 2 others before it .* about 40\.0 s"
        ) as caught:
            async with admission.turn(time.monotonic() + 30, work=2.0):
                pytest.fail("it cannot be done")
        assert caught.value.retry_after_seconds == pytest.approx(10.0, abs=0.2)
        in_time = Holder(admission, work=2.0, seconds=33.0)  # what was measured is no promise
        for holder in (*holders, in_time):
            await holder.end()

    async def test_a_place_that_is_free_is_refused_to_nobody(self) -> None:
        admission = await self.admission(Clock())
        async with admission.turn(time.monotonic() + 0.1, work=100.0):
            pass

    async def test_who_waits_until_there_is_no_time_left_for_its_work_is_sent_away(self) -> None:
        admission = await self.admission(clock := Clock())
        holders = [Holder(admission, work=1.0) for _ in range(2)]
        await holders[1].has_turn.wait()
        clock.now += 9.9
        deadline = time.monotonic() + 18.1
        with pytest.raises(QueueFull, match="deadline came too near while it waited"):
            async with admission.turn(deadline, work=2.0):
                pytest.fail("there was no place")
        assert time.monotonic() < deadline - 10
        assert admission.waiting == 0
        for holder in holders:
            await holder.end()

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from triptych.errors import InvalidValue, QueueFull, StageNotReady, StageTimeout
from triptych.stages.worker import Worker


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker(stage="decoder", queue_size=1)
    yield worker
    worker.close()


class Gate:
    """A job that has begun when `begun` is set, and ends when `open` is."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.open = threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        assert self.open.wait(10)
        return "through the gate"


async def run(worker: Worker, job, **arguments):
    with worker.admit() as admission:
        return await worker.run(admission, job, **arguments)


async def until(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 10)


async def test_a_job_runs_in_the_worker_thread_and_always_in_the_same(worker):
    threads = {await run(worker, threading.get_ident) for _ in range(3)}
    assert len(threads) == 1
    assert threading.get_ident() not in threads


async def test_an_exception_reaches_whoever_waits(worker):
    def fail():
        raise InvalidValue("not these latents")

    with pytest.raises(InvalidValue, match="not these latents"):
        await run(worker, fail)
    assert await run(worker, lambda: 1) == 1


async def test_one_more_than_the_queue_holds_is_refused(worker):
    with ExitStack() as admitted:
        admitted.enter_context(worker.admit())
        admitted.enter_context(worker.admit())
        with pytest.raises(QueueFull, match="the decoder stage has 1 requests waiting"), worker.admit():
            pass
    with worker.admit(), worker.admit():
        pass


@pytest.mark.parametrize(
    ("jobs_left", "rounds"),
    [([1], 1), ([3, 1], 1), ([4], 4), ([2, 2], 3), ([3, 4, 5], 7)],
)
def test_the_time_to_come_back_is_that_of_the_jobs_in_between(worker, jobs_left, rounds):
    """Requests take turns: before the last job of the shortest one come its others, and as many of every other request."""
    worker.queue_size = 9
    with ExitStack() as admitted:
        for jobs in jobs_left:
            admitted.enter_context(worker.admit(jobs=jobs))
        assert worker.seconds_to_a_free_place() == rounds * 1.0


async def test_the_time_to_come_back_is_learnt_from_the_jobs(worker, monkeypatch):
    clock = iter([10.0, 10.5, 20.0, 21.5])
    monkeypatch.setattr("triptych.stages.worker.time", SimpleNamespace(monotonic=lambda: next(clock)))
    await run(worker, lambda: None)
    assert worker.seconds_to_a_free_place() == pytest.approx(0.5)
    await run(worker, lambda: None)
    assert worker.seconds_to_a_free_place() == pytest.approx(0.6)


async def test_a_request_counts_the_jobs_that_it_has_left(worker):
    with worker.admit(jobs=3) as admission:
        await worker.run(admission, lambda: None)
        assert admission.jobs_left == 2


async def test_past_the_deadline_a_job_does_not_begin(worker):
    ran = []
    with pytest.raises(StageTimeout, match="the decoder stage did not answer before the request's deadline") as caught:
        await run(worker, lambda: ran.append(1), deadline=time.monotonic() - 1)
    assert caught.value.stage == "decoder"
    await run(worker, lambda: None)
    assert ran == []


async def test_a_job_whose_deadline_passes_in_the_queue_does_not_begin(worker):
    gate, ran = Gate(), []
    first = asyncio.create_task(run(worker, gate))
    await until(gate.begun)
    with pytest.raises(StageTimeout):
        await run(worker, lambda: ran.append(1), deadline=time.monotonic() + 0.01)
    gate.open.set()
    assert await first == "through the gate"
    await run(worker, lambda: None)
    assert ran == []


async def test_a_job_that_runs_is_not_waited_for_past_its_deadline(worker):
    gate = Gate()
    with pytest.raises(StageTimeout):
        await run(worker, gate, deadline=time.monotonic() + 0.05)
    gate.open.set()
    assert await run(worker, lambda: 2) == 2


async def test_a_cancelled_job_does_not_begin_and_frees_its_place(worker):
    gate, ran = Gate(), []
    first = asyncio.create_task(run(worker, gate))
    await until(gate.begun)
    second = asyncio.create_task(run(worker, lambda: ran.append(1)))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    with worker.admit():
        gate.open.set()
        await first
    await run(worker, lambda: None)
    assert ran == []


async def test_requests_of_several_jobs_take_turns(worker):
    order = []

    async def request(name: str) -> None:
        with worker.admit(jobs=3) as admission:
            for _ in range(3):
                await worker.run(admission, lambda: order.append(name))

    await asyncio.gather(request("a"), request("b"))
    assert order == ["a", "b"] * 3


async def test_closing_finishes_what_runs_and_refuses_what_waits(worker, monkeypatch):
    gate = Gate()
    running = asyncio.create_task(run(worker, gate))
    await until(gate.begun)
    waiting = asyncio.create_task(run(worker, lambda: "never"))
    await asyncio.sleep(0)
    shutdown = worker._thread.shutdown

    def open_and_shut_down(wait: bool) -> None:
        gate.open.set()
        shutdown(wait=wait)

    monkeypatch.setattr(worker._thread, "shutdown", open_and_shut_down)
    await asyncio.to_thread(worker.close)

    assert await running == "through the gate"
    with pytest.raises(StageNotReady, match="the decoder stage is stopping"):
        await waiting
    with pytest.raises(StageNotReady, match="is stopping"):
        await run(worker, lambda: None)


@pytest.fixture
def hasty() -> Iterator[Worker]:
    """Its patience is short."""
    worker = Worker(stage="decoder", queue_size=2, patience=0.05)
    yield worker
    worker.close()


async def test_told_to_stop_it_finishes_what_it_can(worker):
    gate = Gate()
    running = asyncio.create_task(run(worker, gate))
    await until(gate.begun)
    waiting = asyncio.create_task(run(worker, lambda: "after that"))
    await asyncio.sleep(0)
    worker.stop()
    gate.open.set()
    assert [await running, await waiting] == ["through the gate", "after that"]
    await asyncio.to_thread(worker.close)
    assert not worker.is_at_work


async def test_what_takes_too_long_then_is_left_behind_with_all_that_wait(hasty):
    gate = Gate()
    running = asyncio.create_task(run(hasty, gate))
    await until(gate.begun)
    waiting = asyncio.create_task(run(hasty, lambda: "never"))
    await asyncio.sleep(0)
    hasty.stop()
    for refused in (running, waiting):
        with pytest.raises(StageNotReady, match="the decoder stage is stopping"):
            await asyncio.wait_for(refused, 10)
    with pytest.raises(StageNotReady, match="is stopping"):
        await run(hasty, lambda: None)
    await asyncio.to_thread(hasty.close)
    assert hasty.is_at_work
    gate.open.set()


async def test_a_job_that_nobody_waits_for_any_more_does_not_keep_it_open(hasty):
    gate = Gate()
    running = asyncio.create_task(run(hasty, gate))
    await until(gate.begun)
    running.cancel()
    hasty.stop()
    await asyncio.wait_for(asyncio.to_thread(hasty.close), 10)
    assert hasty.is_at_work
    gate.open.set()

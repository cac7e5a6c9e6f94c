from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from triptych.errors import QueueFull, StageTimeout
from triptych.stages.call_batcher import CallBatcher
from triptych.stages.worker import Worker


class GatedNetwork:
    """Doubles its rows; waits at the gate while it is shut."""

    def __init__(self) -> None:
        self.calls: list[list[float]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.called = threading.Semaphore(0)

    def __call__(self, inputs):
        self.calls.append(inputs["x"][:, 0].tolist())
        self.called.release()
        assert self.gate.wait(10)
        if np.isnan(inputs["x"]).any():
            raise FloatingPointError("no numbers")
        return {"y": 2 * inputs["x"]}


@pytest.fixture
def network() -> GatedNetwork:
    return GatedNetwork()


@pytest.fixture
def batcher(network) -> Iterator[CallBatcher]:
    worker = Worker(stage="decoder", queue_size=4)
    yield CallBatcher(network, worker, capacity=4)
    network.gate.set()
    worker.close()


def rows(*values: float):
    return {"x": np.array(values, np.float32)[:, None]}


async def test_requests_that_arrive_together_share_a_call_and_each_gets_its_rows(batcher, network):
    first, second = await asyncio.gather(batcher(rows(1, 2)), batcher(rows(3)))
    assert network.calls == [[1, 2, 3]]
    assert first["y"].tolist() == [[2], [4]]
    assert second["y"].tolist() == [[6]]


async def test_what_does_not_fit_has_the_next_call(batcher, network):
    await asyncio.gather(batcher(rows(1, 2, 3)), batcher(rows(4, 5)), batcher(rows(6)))
    assert network.calls == [[1, 2, 3], [4, 5, 6]]


async def test_a_request_larger_than_a_call_has_one_of_its_own(batcher, network):
    answers = await asyncio.gather(batcher(rows(1, 2, 3, 4, 5)), batcher(rows(6)))
    assert network.calls == [[1, 2, 3, 4, 5], [6]]
    assert len(answers[0]["y"]) == 5


async def test_what_arrives_while_the_network_is_busy_shares_the_next_call(batcher, network):
    network.gate.clear()
    busy = asyncio.create_task(batcher(rows(1)))
    assert await asyncio.to_thread(network.called.acquire, timeout=10)
    waiting = [asyncio.create_task(batcher(rows(value))) for value in (2, 3)]
    await asyncio.sleep(0)
    network.gate.set()
    await asyncio.gather(busy, *waiting)
    assert network.calls == [[1], [2, 3]]


async def test_an_error_reaches_all_in_the_call_and_nobody_else(batcher, network):
    failed = await asyncio.gather(batcher(rows(1)), batcher(rows(float("nan"))), return_exceptions=True)
    assert [type(error) for error in failed] == [FloatingPointError, FloatingPointError]
    assert (await batcher(rows(2)))["y"].tolist() == [[4]]


async def test_whoever_leaves_before_the_call_is_not_in_it(batcher, network):
    stays, leaves = asyncio.create_task(batcher(rows(1))), asyncio.create_task(batcher(rows(2)))
    await asyncio.sleep(0)
    leaves.cancel()
    await stays
    assert network.calls == [[1]]


async def test_each_is_waited_for_until_its_own_deadline(batcher, network):
    with pytest.raises(StageTimeout):
        await batcher(rows(1), deadline=0.0)
    assert network.calls == []

    patient, hasty = asyncio.create_task(batcher(rows(1))), asyncio.create_task(batcher(rows(2), deadline=0.0))
    with pytest.raises(StageTimeout):
        await hasty
    assert (await patient)["y"].tolist() == [[2]]


async def test_one_more_than_the_queue_holds_is_refused(batcher, network):
    network.gate.clear()
    waiting = [asyncio.create_task(batcher(rows(value))) for value in range(5)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await batcher(rows(9))
    network.gate.set()
    await asyncio.gather(*waiting)

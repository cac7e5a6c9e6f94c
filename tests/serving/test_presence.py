from __future__ import annotations

import asyncio
import time

import pytest

from triptych.errors import ClientLeft, StageTimeout
from triptych.serving.presence import cancelled_at, cancelled_when_the_client_leaves


class Connection:
    """A caller that stays until it is told to leave."""

    def __init__(self) -> None:
        self.leave = asyncio.Event()

    async def receive(self) -> dict[str, object]:
        await self.leave.wait()
        return {"type": "http.disconnect"}


async def test_work_ends_when_the_client_leaves() -> None:
    connection = Connection()
    at_work = asyncio.Event()
    cancelled = False

    async def work() -> None:
        nonlocal cancelled
        at_work.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled = True
            raise

    async def serve() -> None:
        async with cancelled_when_the_client_leaves(connection.receive):
            await work()

    task = asyncio.create_task(serve())
    await at_work.wait()
    connection.leave.set()
    with pytest.raises(ClientLeft, match="the client closed the connection before the answer was ready"):
        await task
    assert cancelled


async def test_work_that_is_done_is_left_alone() -> None:
    connection = Connection()
    async with cancelled_when_the_client_leaves(connection.receive):
        await asyncio.sleep(0)
    connection.leave.set()
    await asyncio.sleep(0)


async def test_another_cancellation_stays_one() -> None:
    connection = Connection()
    at_work = asyncio.Event()

    async def serve() -> None:
        async with cancelled_when_the_client_leaves(connection.receive):
            at_work.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(serve())
    await at_work.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_of_the_work_goes_through() -> None:
    with pytest.raises(KeyError):
        async with cancelled_when_the_client_leaves(Connection().receive):
            raise KeyError


async def test_time_runs_out() -> None:
    with pytest.raises(StageTimeout, match="the decoder stage was not done before the request's deadline") as late:
        async with cancelled_at(time.monotonic() + 0.02, stage="decoder"):
            await asyncio.Event().wait()
    assert late.value.stage == "decoder"


async def test_no_time_is_no_work() -> None:
    begun = False
    with pytest.raises(StageTimeout):
        async with cancelled_at(time.monotonic(), stage="decoder"):
            begun = True
    assert not begun


async def test_a_timeout_within_the_work_is_its_own() -> None:
    with pytest.raises(TimeoutError):
        async with cancelled_at(time.monotonic() + 60, stage="decoder"):
            raise TimeoutError


async def test_work_in_time_passes() -> None:
    async with cancelled_at(time.monotonic() + 60, stage="decoder"):
        result = await asyncio.sleep(0, "done")
    assert result == "done"

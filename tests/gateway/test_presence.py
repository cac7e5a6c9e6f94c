from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message

from triptych.errors import ClientLeft
from triptych.gateway.presence import cancelled_when_the_client_leaves


class Caller:
    """The receiving end of a connection that its caller closes when told."""

    def __init__(self) -> None:
        self.left = asyncio.Event()

    async def receive(self) -> Message:
        await self.left.wait()
        return {"type": "http.disconnect"}


async def test_a_caller_that_leaves_cancels_the_work() -> None:
    caller = Caller()
    cancelled = asyncio.Event()

    async def work() -> None:
        try:
            caller.left.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(ClientLeft):
        async with cancelled_when_the_client_leaves(caller.receive):
            await work()

    assert cancelled.is_set()
    assert not asyncio.current_task().cancelling()  # type: ignore[union-attr]


async def test_a_caller_that_stays_gets_the_result() -> None:
    caller = Caller()

    async with cancelled_when_the_client_leaves(caller.receive):
        await asyncio.sleep(0)
    caller.left.set()
    for _ in range(3):
        await asyncio.sleep(0)  # what still watched would cancel this task here


async def test_what_comes_before_the_end_of_the_connection_is_passed_over() -> None:
    messages: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}, {"type": "http.disconnect"}]

    async def receive() -> Message:
        return messages.pop(0)

    with pytest.raises(ClientLeft):
        async with cancelled_when_the_client_leaves(receive):
            await asyncio.Event().wait()
    assert messages == []


async def test_another_ones_cancelling_is_left_alone() -> None:
    caller, started = Caller(), asyncio.Event()

    async def handle() -> None:
        async with cancelled_when_the_client_leaves(caller.receive):
            started.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(handle())
    await started.wait()
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_of_the_work_comes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        async with cancelled_when_the_client_leaves(Caller().receive):
            raise ZeroDivisionError

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from typing import Any

import pytest

from triptych.errors import ClientLeft, InvalidValue
from triptych.serving.streams import Stream


class Caller:
    """A connection of a caller that stays until it is told to leave."""

    def __init__(self) -> None:
        self.leave = asyncio.Event()
        self.sent: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, object]:
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def read(self, parts: AsyncGenerator[bytes, None], **options: Any) -> None:
        await Stream(parts, media_type="text/plain", **options)({"type": "http"}, self.receive, self.send)

    @property
    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.sent if message["type"] == "http.response.body"]


async def test_parts_are_sent_as_they_come() -> None:
    caller, seen = Caller(), []

    async def parts() -> AsyncGenerator[bytes, None]:
        for part in (b"a", b"b"):
            seen.append(list(caller.bodies))
            yield part

    await caller.read(parts(), headers={"X-Kind": "letters"})
    assert seen == [[], [b"a"]]
    assert caller.bodies == [b"a", b"b", b""]
    assert [message.get("more_body") for message in caller.sent] == [None, True, True, False]
    start = caller.sent[0]
    headers = dict(start["headers"])
    assert start["status"] == 200
    assert (headers[b"x-kind"], headers[b"cache-control"]) == (b"letters", b"no-store")
    assert headers[b"content-type"].startswith(b"text/plain")
    assert b"content-length" not in headers


async def test_an_error_before_the_first_part_can_still_have_a_status() -> None:
    async def parts() -> AsyncGenerator[bytes, None]:
        if not caller.sent:
            raise InvalidValue("no")
        yield b""

    caller = Caller()
    with pytest.raises(InvalidValue):
        await caller.read(parts())
    assert caller.sent == []


@pytest.mark.parametrize("parts_before", [0, 1])
async def test_a_caller_that_leaves_between_two_parts_closes_the_generator(parts_before: int) -> None:
    waiting, closed = asyncio.Event(), asyncio.Event()

    async def parts() -> AsyncGenerator[bytes, None]:
        try:
            for _ in range(parts_before):
                yield b"a"
            waiting.set()
            await asyncio.Event().wait()
        finally:
            closed.set()

    caller = Caller()
    reading = asyncio.create_task(caller.read(parts()))
    await waiting.wait()
    caller.leave.set()
    if parts_before:
        await reading
    else:
        with pytest.raises(ClientLeft):
            await reading
    assert closed.is_set()


async def test_what_is_held_is_let_go_at_the_end() -> None:
    freed: list[bool] = []
    held = ExitStack()
    held.callback(freed.append, True)

    async def parts() -> AsyncGenerator[bytes, None]:
        assert freed == []
        yield b"a"
        assert freed == []

    await Caller().read(parts(), held=held)
    assert freed == [True]


async def test_a_caller_that_leaves_while_it_is_sent_a_part_closes_the_generator() -> None:
    closed = False

    async def parts() -> AsyncGenerator[bytes, None]:
        nonlocal closed
        try:
            yield b"a"
        finally:
            closed = True

    class Slow(Caller):
        async def send(self, message: Any) -> None:
            await super().send(message)
            if message.get("body") == b"a":
                self.leave.set()
                await asyncio.Event().wait()

    generator = parts()
    await Slow().read(generator)
    assert closed


async def test_who_does_not_read_is_not_waited_for_longer_than_there_is_time() -> None:
    freed: list[bool] = []
    held = ExitStack()
    held.callback(freed.append, True)

    async def parts() -> AsyncGenerator[bytes, None]:
        yield b"a"

    class Deaf(Caller):
        async def send(self, message: Any) -> None:
            await super().send(message)
            if message.get("body") == b"a":
                await asyncio.Event().wait()

    await asyncio.wait_for(Deaf().read(parts(), held=held, seconds=0.05), 10)
    assert freed == [True]

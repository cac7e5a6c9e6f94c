from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from starlette.types import Message

from triptych.gateway import event_stream
from triptych.gateway.event_stream import Event, EventStream


class Wire:
    """Both ends of a connection."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.something_sent = asyncio.Event()
        self.closed = asyncio.Event()

    async def receive(self) -> Message:
        await self.closed.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        self.something_sent.set()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


async def test_events_go_out_as_they_come_one_chunk_each() -> None:
    async def events() -> AsyncGenerator[Event, None]:
        yield Event(name="progress", data={"stage": "diffusion"})
        yield Event(name="completed", data={"prompt": "two\nlines, naïve"})

    wire = Wire()
    await EventStream(events(), headers={"X-Triptych-Id": "7"})({"type": "http"}, wire.receive, wire.send)

    start, *chunks, end = wire.sent
    assert start["status"] == 200
    headers = dict(start["headers"])
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert headers[b"cache-control"] == b"no-store"
    assert headers[b"x-triptych-id"] == b"7"
    assert b"content-length" not in headers
    assert [chunk["body"] for chunk in chunks] == [
        b'event: progress\ndata: {"stage": "diffusion"}\n\n',
        b'event: completed\ndata: {"prompt": "two\\nlines, na\\u00efve"}\n\n',
    ]
    assert end == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_a_silent_stream_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "KEEPALIVE_SECONDS", 0.01)
    wire = Wire()

    async def events() -> AsyncGenerator[Event, None]:
        while b": ping" not in wire.body:
            wire.something_sent.clear()
            await wire.something_sent.wait()
        yield Event(name="completed", data={})

    await EventStream(events(), headers={})({"type": "http"}, wire.receive, wire.send)

    assert wire.body.startswith(b": ping\n\n")
    assert wire.body.endswith(b"event: completed\ndata: {}\n\n")


async def test_a_caller_that_leaves_between_two_events_closes_their_source() -> None:
    wire, closed = Wire(), asyncio.Event()

    async def events() -> AsyncGenerator[Event, None]:
        try:
            yield Event(name="progress", data={})
            wire.closed.set()
            await asyncio.Event().wait()
        finally:
            closed.set()

    await EventStream(events(), headers={})({"type": "http"}, wire.receive, wire.send)

    assert closed.is_set()

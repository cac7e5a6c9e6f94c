"""Server-sent events over a connection that is watched from both ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from triptych.errors import ClientLeft
from triptych.serving.presence import cancelled_when_the_client_leaves

MEDIA_TYPE = "text/event-stream"
KEEPALIVE_SECONDS = 15.0
"""Proxies close a connection on which nothing is said, usually after 30 or 60 seconds."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One server-sent event: a name, and data that travels as JSON."""

    name: str
    data: Any

    def encode(self) -> bytes:
        return format_sse_event(event=self.name, data_str=json.dumps(self.data))


class EventStream(Response):
    """Sends events as they come. A caller that leaves, also between two events, closes the generator that makes them.

    Starlette's StreamingResponse would see the end of the connection at the next event only, and leaves the closing of the
    generator to the garbage collector: the work would go on for nobody.
    """

    media_type = MEDIA_TYPE

    def __init__(self, events: AsyncGenerator[Event, None], headers: dict[str, str]) -> None:
        # A proxy that collects an answer before it passes it on would turn progress into silence.
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no", **headers})
        del self.headers["content-length"]
        self.events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        with suppress(ClientLeft):
            async with cancelled_when_the_client_leaves(receive), aclosing(self.events) as events, _keeping_alive(send):
                async for event in events:
                    await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@asynccontextmanager
async def _keeping_alive(send: Send) -> AsyncIterator[None]:
    async def ping() -> None:
        while True:
            await asyncio.sleep(KEEPALIVE_SECONDS)
            await send({"type": "http.response.body", "body": KEEPALIVE_COMMENT, "more_body": True})

    pinging = asyncio.create_task(ping())
    try:
        yield
    finally:
        pinging.cancel()

"""Server-sent events over a connection that is watched from both ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from triptych.serving.streams import SendPart, Stream

MEDIA_TYPE = "text/event-stream"
KEEPALIVE_SECONDS = 15.0
"""Proxies close a connection on which nothing is said, usually after 30 or 60 seconds."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One server-sent event: a name, and data that travels as JSON.

    Attributes:
        id: What a caller whose connection broke says that it had last.
    """

    name: str
    data: Any
    id: str | None = None

    def encode(self) -> bytes:
        return format_sse_event(event=self.name, data_str=json.dumps(self.data), id=self.id)


class EventStream(Stream):
    """Sends events as they come. A request may wait in line for long: that it was accepted is said at once."""

    begins_at_once = True

    def __init__(
        self, events: AsyncGenerator[Event, None], headers: dict[str, str], held: AbstractContextManager[object] | None = None
    ) -> None:
        super().__init__(_encode(events), media_type=MEDIA_TYPE, headers=headers, held=held)

    @asynccontextmanager
    async def alongside(self, send_part: SendPart) -> AsyncIterator[None]:
        async def ping() -> None:
            while True:
                await asyncio.sleep(KEEPALIVE_SECONDS)
                await send_part(KEEPALIVE_COMMENT)

        pinging = asyncio.create_task(ping())
        try:
            yield
        finally:
            pinging.cancel()


async def _encode(events: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(events):
        async for event in events:
            yield event.encode()

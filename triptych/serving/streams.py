"""Answers that come in parts, over a connection that is watched from both ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, aclosing, nullcontext
from typing import ClassVar, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from triptych.errors import ClientLeft
from triptych.serving.presence import cancelled_when_the_client_leaves


class SendPart(Protocol):
    """Sends a part; before the first one, status and headers."""

    async def __call__(self, part: bytes, *, more: bool = True) -> None: ...


class Stream(Response):
    """Sends parts as they come. A caller that leaves, also between two parts, closes the generator that makes them.

    Starlette's StreamingResponse would see the end of the connection at the next part only, and leaves closing the generator
    to the garbage collector: the work would go on for nobody.

    Args:
        parts: The body.
        media_type: Of the body.
        headers: More of them.
        held: What is held until the answer has ended.
        seconds: After which the answer is broken off: who reads slowly, or not at all, must not hold it for ever.

    Attributes:
        begins_at_once: Whether status and headers are sent before the first part. Where they are not, an error until then
            has a status of its own.
    """

    begins_at_once: ClassVar[bool] = False

    def __init__(
        self,
        parts: AsyncGenerator[bytes, None],
        *,
        media_type: str,
        headers: Mapping[str, str] | None = None,
        held: AbstractContextManager[object] | None = None,
        seconds: float | None = None,
    ) -> None:
        # A proxy that collects an answer before it passes it on would turn progress into silence.
        super().__init__(
            media_type=media_type, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no", **(headers or {})}
        )
        del self.headers["content-length"]
        self._parts = parts
        self._held = nullcontext() if held is None else held
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def begin() -> None:
            nonlocal begun
            if not begun:
                begun = True
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})

        async def send_part(part: bytes, *, more: bool = True) -> None:
            await begin()
            await send({"type": "http.response.body", "body": part, "more_body": more})

        with self._held:
            if self.begins_at_once:
                await begin()
            try:
                async with (
                    asyncio.timeout(self._seconds),
                    cancelled_when_the_client_leaves(receive),
                    aclosing(self._parts) as parts,
                    self.alongside(send_part),
                ):
                    async for part in parts:
                        await send_part(part)
            except (ClientLeft, TimeoutError):
                if not begun:
                    raise
        await send_part(b"", more=False)

    def alongside(self, send_part: SendPart) -> AbstractAsyncContextManager[None]:
        """What else is sent while parts are waited for: nothing, unless a kind of stream says otherwise."""
        return nullcontext()

"""Bodies of requests, read no further and for no longer than the service is willing to."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from triptych.errors import BodyTooSlow
from triptych.wire.bodies import read_bounded


async def read_in_time(request: Request, *, limit: int, seconds: float) -> bytes:
    """All of a request's body.

    Args:
        request: Whose body was not read yet.
        limit: Bytes that are read.
        seconds: In which all of it must be here, however steadily it comes.

    Raises:
        TooLarge: There is more.
        BodyTooSlow: It was not all here by then.
    """
    try:
        async with asyncio.timeout(seconds) as timeout:
            return await read_bounded(request.stream(), request.headers, limit=limit)
    except TimeoutError:
        if not timeout.expired():
            raise
        raise BodyTooSlow(f"the body was not all here after {seconds:g} s, which is as long as it is waited for") from None

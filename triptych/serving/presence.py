"""Whether somebody still waits for the answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.types import Receive

from triptych.errors import ClientLeft, StageTimeout


@asynccontextmanager
async def cancelled_when_the_client_leaves(receive: Receive) -> AsyncIterator[None]:
    """Cancels the block, and with it the work that it awaits, as soon as the caller closes the connection.

    The request's body must have been read before. The block must not be left by a `yield`: the task that entered is the one
    that is cancelled.

    Raises:
        ClientLeft: The caller closed the connection.
    """
    task = asyncio.current_task()
    assert task is not None
    left = False

    async def watch() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        # Whoever else cancelled the task, such as a server that shuts down, is not to be deprived of it.
        if left and task.uncancel() == 0:
            raise ClientLeft("the client closed the connection before the answer was ready") from None
        raise
    finally:
        watcher.cancel()


@asynccontextmanager
async def cancelled_at(deadline: float, *, stage: str) -> AsyncIterator[None]:
    """Cancels the block, and with it the work that it awaits, when its time is over.

    Args:
        deadline: Of `time.monotonic()`.
        stage: Who is too slow then.

    Raises:
        StageTimeout: The block was not done by then.
    """
    too_slow = StageTimeout(f"the {stage} stage was not done before the request's deadline", stage=stage)
    left = deadline - time.monotonic()
    if left <= 0:
        raise too_slow
    try:
        async with asyncio.timeout(left) as timeout:
            yield
    except TimeoutError as error:
        if timeout.expired():
            raise too_slow from error
        raise

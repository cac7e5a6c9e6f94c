"""Answers that are listened to while somebody looks at the clock: a stage may fall silent without closing its connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

UNREAD = 16
"""Answers that wait for a reader; then whoever sends them waits."""


async def watched(
    answers: AsyncGenerator[T, None], *, patience: Callable[[], float], suspect: Callable[[int], Awaitable[None]]
) -> AsyncGenerator[T, None]:
    """The answers as they come. Closing the iterator closes them.

    They are read in a task of their own, so that a suspicion that proves wrong costs nothing.

    Args:
        patience: Seconds of silence that are nothing to worry about.
        suspect: Called after each such silence, with the how manieth in a row it is; raises where nothing is to come any more.
    """
    arrived: asyncio.Queue[T] = asyncio.Queue(maxsize=UNREAD)

    async def listen() -> None:
        try:
            async for answer in answers:
                await arrived.put(answer)
        finally:
            await answers.aclose()

    listening = asyncio.create_task(listen())
    try:
        silences = 0
        while (answer := await _next(arrived, listening, patience())) is not None or not listening.done():
            if answer is None:
                silences += 1
                await suspect(silences)
            else:
                silences = 0
                yield answer
        listening.result()
    finally:
        listening.cancel()
        await asyncio.wait([listening])
        if not listening.cancelled():
            listening.exception()  # raised above, or of no interest any more


async def _next(arrived: asyncio.Queue[T], listening: asyncio.Task[None], seconds: float) -> T | None:
    """The next answer; None where there is none within some seconds, or none any more."""
    if not arrived.empty():
        return arrived.get_nowait()
    getting = asyncio.create_task(arrived.get())
    try:
        await asyncio.wait([getting, listening], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if getting.done():
            return getting.result()
        return None if arrived.empty() else arrived.get_nowait()
    finally:
        getting.cancel()

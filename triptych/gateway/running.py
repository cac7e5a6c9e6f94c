"""The requests that are in line or at work, by name: `DELETE /requests/{id}` ends one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, TypeVar

from triptych.errors import RequestCancelled

T = TypeVar("T")


class RunningRequests:
    """Work by name. A caller may give several of its requests one name; they are ended together."""

    def __init__(self) -> None:
        self._tasks: dict[str, list[asyncio.Task[None]]] = {}

    async def follow(self, name: str, events: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """Passes events on as they come. Their source runs in a task of its own: it can be ended whatever the reader waits for.

        Closing this iterator ends the source, and waits until it has ended.

        Raises:
            RequestCancelled: `cancel` was called with this name.
        """
        arrived: asyncio.Queue[T | None] = asyncio.Queue()
        task = asyncio.create_task(_drain(events, arrived))
        with self._named(name, task):
            try:
                while (event := await arrived.get()) is not None:
                    yield event
            finally:
                await _end(task)
        if task.cancelled():
            raise RequestCancelled("the request was cancelled by DELETE /requests/{id}")
        task.result()

    async def cancel(self, name: str) -> bool:
        """Ends all that goes by a name, and waits until it has ended; whether there was anything to end."""
        tasks = [task for task in self._tasks.get(name, ()) if task.cancel()]
        if tasks:
            await asyncio.wait(tasks)
        return any(task.cancelled() for task in tasks)

    @contextmanager
    def _named(self, name: str, task: asyncio.Task[None]) -> Iterator[None]:
        namesakes = self._tasks.setdefault(name, [])
        namesakes.append(task)
        try:
            yield
        finally:
            namesakes.remove(task)
            if not namesakes:
                del self._tasks[name]


async def _drain(events: AsyncGenerator[T, None], into: asyncio.Queue[T | None]) -> None:
    """None stands for the end, whatever its reason is."""
    try:
        async with aclosing(events):
            async for event in events:
                into.put_nowait(event)
    finally:
        into.put_nowait(None)


async def _end(task: asyncio.Task[Any]) -> None:
    """Its error, if it has one, is not raised here."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()

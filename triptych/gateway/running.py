"""The requests that are in line or at work, by name: `DELETE /requests/{id}` ends one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar

from triptych.errors import RequestCancelled

T = TypeVar("T")

Work: TypeAlias = Callable[[Callable[[T], None]], Awaitable[None]]


class RunningRequests:
    """Work by name. A caller may give several of its requests one name; they are ended together."""

    def __init__(self) -> None:
        self._tasks: dict[str, list[asyncio.Task[None]]] = {}

    async def follow(self, name: str, work: Work[T]) -> AsyncGenerator[T, None]:
        """What some work tells, as it tells it. It runs in a task of its own: it can be ended whatever the reader waits for.

        Closing the iterator ends the work, and waits until it has ended.

        Args:
            name: By which it can be cancelled.
            work: Is given a function to call with each event.

        Raises:
            RequestCancelled: `cancel` was called with this name.
        """
        arrived: asyncio.Queue[T | None] = asyncio.Queue()
        task = asyncio.create_task(_carry_out(work, arrived))
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


async def _carry_out(work: Work[T], told: asyncio.Queue[T | None]) -> None:
    """None stands for the end, whatever its reason is."""
    try:
        await work(told.put_nowait)
    finally:
        told.put_nowait(None)


async def _end(task: asyncio.Task[Any]) -> None:
    """Its error, if it has one, is not raised here."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()

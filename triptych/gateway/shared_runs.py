"""Requests that are carried out apart from the callers that wait for them: several may wait for one, or nobody.

They live in this process, and what they came to for a while: what must outlive the gateway is a job.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from typing import TypeAlias

from triptych.errors import Conflict
from triptych.gateway.work import Event, Outcome

KEPT_SECONDS = 600.0
KEPT_BYTES = 64 * 2**20
"""Of pictures that were made, and that a request which is sent again is answered with."""

Name: TypeAlias = tuple[str, str]
"""A caller's key, and what the caller calls its request."""


class Run:
    """One request at work, or done.

    Attributes:
        digest: Of what was asked for.
        detached: Whether it goes on when nobody waits for it any more.
    """

    def __init__(self, digest: str, events: AsyncGenerator[Event, None], held: ExitStack, *, detached: bool) -> None:
        self.digest = digest
        self.detached = detached
        self._last: Event | None = None
        self._waiting: list[asyncio.Queue[Event | None]] = []
        self.task = asyncio.create_task(self._follow(events, held))

    async def _follow(self, events: AsyncGenerator[Event, None], held: ExitStack) -> Outcome:
        try:
            with held:
                async with aclosing(events):
                    async for event in events:
                        self._last = event
                        for queue in self._waiting:
                            queue.put_nowait(event)
                        if isinstance(event, Outcome):
                            return event
            raise AssertionError("a request ends in an outcome or in an error")
        finally:
            for queue in self._waiting:
                queue.put_nowait(None)

    @contextmanager
    def followed(self) -> Iterator[AsyncGenerator[Event, None]]:
        """Somebody waits for the length of the block. Where the last one leaves before the end, so does the work.

        What comes is what was told last, and all from then on.
        """
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        if self._last is not None:
            queue.put_nowait(self._last)
        if self.task.done():
            queue.put_nowait(None)
        self._waiting.append(queue)
        try:
            yield self._events(queue)
        finally:
            self._waiting.remove(queue)
            # Its outcome is told before the task has ended.
            if not self._waiting and not self.detached and not isinstance(self._last, Outcome):
                self.task.cancel()

    async def _events(self, queue: asyncio.Queue[Event | None]) -> AsyncGenerator[Event, None]:
        while (event := await queue.get()) is not None:
            yield event
            if isinstance(event, Outcome):
                return
        self.task.result()


class SharedRuns:
    """The runs of a gateway, and by name those that may be asked for again."""

    def __init__(self) -> None:
        self._runs: set[Run] = set()
        self._named: OrderedDict[Name, Run] = OrderedDict()
        self._done: OrderedDict[Name, tuple[float, int]] = OrderedDict()

    def find(self, name: Name, digest: str) -> Run | None:
        """The run of a name; None where there is none, or none any more, as where all have left it and it is about to end.

        Raises:
            Conflict: Something else was asked for under this name.
        """
        self._forget_old()
        run = self._named.get(name)
        if run is not None and run.digest != digest:
            raise Conflict("another request came with this Idempotency-Key", param="Idempotency-Key")
        return None if run is not None and run.task.cancelling() else run

    def start(self, name: Name | None, run: Run) -> Run:
        """Holds a run until it has ended, and where it has a name and was successful for a while longer."""
        self._runs.add(run)
        if name is not None:
            self._named[name] = run
        run.task.add_done_callback(lambda task: self._end(name, run, task))
        return run

    async def close(self) -> None:
        """Ends what is under way."""
        tasks = [run.task for run in self._runs]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _end(self, name: Name | None, run: Run, task: asyncio.Task[Outcome]) -> None:
        self._runs.discard(run)
        failed = task.cancelled() or task.exception() is not None
        if name is None or self._named.get(name) is not run:
            return
        if failed:
            del self._named[name]
        else:
            self._done[name] = time.monotonic(), _bytes_of(task.result())
            self._forget_old()

    def _forget_old(self) -> None:
        too_old = time.monotonic() - KEPT_SECONDS
        kept = sum(size for _, size in self._done.values())
        for name, (ended, size) in list(self._done.items()):
            if ended > too_old and kept <= KEPT_BYTES:
                return
            del self._done[name], self._named[name]
            kept -= size


def _bytes_of(outcome: Outcome) -> int:
    return sum(len(image) for image in outcome.generated.images)

"""Stages that live as long as their app: started behind its back, so that it answers `live` meanwhile; closed with it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from types import FrameType
from typing import Protocol

import structlog

from triptych.errors import TriptychError

EXIT_START_FAILED = 3
"""The status of a process whose stage did not start."""

SECONDS_TO_HAND_BACK = 10.0
"""Of those that a service may take to end: what is to be finished here is handed back all the same when no more are left."""

log = structlog.get_logger(__name__)


class Startable(Protocol):
    """A stage that has something to load."""

    def start(self) -> None:
        """Loads, compiles and warms up; blocks. Raises StartError with a sentence on what to do."""

    def stop(self, *, hand_back_all_at: float) -> None:
        """Takes nothing more, and hands back what somebody else can finish; does not block.

        Args:
            hand_back_all_at: Of `time.monotonic()`: from then on the rest is handed back too.
        """

    def close(self) -> None:
        """Finishes what runs and was not handed back, and lets go of the network; blocks."""

    @property
    def is_at_work(self) -> bool:
        """Whether it is closed and yet in the middle of a call that cannot be interrupted, for nobody."""


@asynccontextmanager
async def run_stages(*stages: Startable) -> AsyncIterator[None]:
    """Starts stages side by side, each in a thread, and closes those that were started.

    Where a stage was left in the middle of a call, the process ends with them, and with status 0.
    A start that fails logs its sentence and ends the process with `EXIT_START_FAILED`: whoever runs it notices, and may retry.
    """
    started: list[Startable] = []
    starting = asyncio.create_task(_start(stages, started))
    try:
        yield
    except asyncio.CancelledError:
        # A failed start ends the event loop, and so this. It has logged its sentence; a traceback would only bury that.
        if not _has_failed(starting):
            raise
    finally:
        starting.cancel()
        for stage in reversed(started):
            await asyncio.to_thread(stage.close)
        if any(stage.is_at_work for stage in started):
            _end_process()


@asynccontextmanager
async def stopped_by_signals(*stages: Startable, seconds: float) -> AsyncIterator[None]:
    """Stops stages as soon as the process is told to end.

    A server waits for its requests first, and closes what lives with its app when they are done: too late to hand any of them
    back. So this comes before the server's own handler, and leaves all else to it.

    Args:
        stages: Those that run.
        seconds: That the server grants to its requests.
    """
    loop = asyncio.get_running_loop()

    def stop() -> None:
        log.info("stopping")
        for stage in stages:
            stage.stop(hand_back_all_at=time.monotonic() + max(0.0, seconds - SECONDS_TO_HAND_BACK))

    def before(handler: Callable[[int, FrameType | None], object]) -> Callable[[int, FrameType | None], object]:
        def handle(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(stop)
            handler(number, frame)

        return handle

    # Only the main thread may set handlers; a server that runs in another has none of its own.
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT) if is_main}
    ours = {number: before(handler) for number, handler in handlers.items() if callable(handler)}
    for number, handle in ours.items():
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, handlers[number])


def _end_process() -> None:
    """At once: nothing else ends it in the middle of a call into a library, whose threads must not outlive what they work on."""
    log.info("ended_in_mid_call")
    logging.shutdown()
    os._exit(0)


def _has_failed(task: asyncio.Task[None]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is not None


async def _start(stages: Sequence[Startable], started: list[Startable]) -> None:
    begun = time.monotonic()
    try:
        await asyncio.gather(*(_start_one(stage, started) for stage in stages))
    except Exception as error:  # noqa: BLE001 - whatever it is, the process ends here
        _log_failure(error)
        # Raised in a task, this leaves the event loop and the server with a status. A signal would not do for process 1 of
        # a container, where its default action is to be ignored.
        raise SystemExit(EXIT_START_FAILED) from None
    log.info("ready", seconds=round(time.monotonic() - begun, 3))


async def _start_one(stage: Startable, started: list[Startable]) -> None:
    def start() -> None:
        stage.start()
        started.append(stage)

    await _in_thread(start)


def _log_failure(error: Exception) -> None:
    if isinstance(error, TriptychError):
        log.error("start_failed", reason=error.message)
    else:
        log.error("start_failed", exc_info=error)


async def _in_thread(function: Callable[[], None]) -> None:
    """Like `asyncio.to_thread`, but a process that is told to stop does not wait for it: compiling takes long."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
            failures.append(error)
        if not loop.is_closed():
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=run, name="start", daemon=True).start()
    await done.wait()
    if failures:
        raise failures[0]

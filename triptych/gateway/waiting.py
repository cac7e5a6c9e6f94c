"""A request whose stage is gone waits until it is back, or another is in its place."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from triptych.errors import StageError, StageNotReady

T = TypeVar("T")

log = structlog.get_logger(__name__)


class Wait:
    """One request's wait, from when it first missed a stage on.

    Args:
        seconds: How long it may take. 0 does not wait: what is missed is raised.
        deadline: Of the request, by `time.monotonic()`.
    """

    def __init__(self, *, seconds: float, deadline: float) -> None:
        self._seconds = seconds
        self._deadline = deadline
        self._since: float | None = None
        self._missed: StageError | None = None

    @property
    def has_begun(self) -> bool:
        return self._missed is not None

    def miss(self, error: StageError) -> None:
        """Begins to wait, or goes on with it; raises the error where there is no time for that."""
        if not self._seconds:
            raise error
        self._missed = error
        if self._since is None:
            self._since = time.monotonic()
            log.info("waiting_for_a_stage", stage=error.stage, reason=error.message)

    async def until_there(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What `ask` returns once it does not raise StageNotReady any more.

        Raises:
            StageNotReady: What was missed last, when the wait is over.
        """
        while True:
            seconds = self._seconds_left()
            try:
                async with asyncio.timeout(seconds) as timeout:
                    return await ask()
            except StageNotReady as error:
                self.miss(error)
            except TimeoutError:
                if timeout.expired():
                    raise self._in_vain() from None
                raise

    def _seconds_left(self) -> float | None:
        """None while nothing is missed: then the stages have their own time to answer."""
        if self._since is None:
            return None
        left = min(self._since + self._seconds, self._deadline) - time.monotonic()
        if left <= 0:
            raise self._in_vain()
        return left

    def _in_vain(self) -> StageNotReady:
        assert self._since is not None
        assert self._missed is not None
        waited = time.monotonic() - self._since
        return StageNotReady(f"{self._missed.message}; waited {waited:.0f} s", stage=self._missed.stage)

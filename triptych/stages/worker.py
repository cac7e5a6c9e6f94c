"""One thread that owns a network, and the bounded queue before it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from triptych.errors import QueueFull, StageNotReady, StageTimeout

T = TypeVar("T")

SECONDS_FOR_A_CALL = 7.0
"""That a network may still take when its stage is told to stop. Then whoever waits for it is sent elsewhere."""

_WEIGHT_OF_THE_NEWEST = 0.1
_SECONDS_BEFORE_THE_FIRST_JOB = 1.0


@dataclass
class Admission:
    """A request that the worker has let in, and how many of its jobs are still to come."""

    jobs_left: int


class Worker:
    """Runs jobs one after the other, in the order in which they came. Requests of several jobs take turns.

    A request is admitted once and then runs as many jobs as it has: the queue is bounded by requests, so that none is refused
    half-way. For one event loop.

    Args:
        stage: Whom errors name.
        queue_size: Requests that may be admitted while another one runs.
        patience: Seconds that all that is here may still take when the worker is told to stop.

    Attributes:
        is_at_work: Whether it is closed and yet in the middle of a job, for nobody: a call into a network cannot be interrupted.
    """

    def __init__(self, *, stage: str, queue_size: int, patience: float = SECONDS_FOR_A_CALL) -> None:
        self.stage = stage
        self.queue_size = queue_size
        self.is_at_work = False
        self._admissions: list[Admission] = []
        self._mean_job_seconds: float | None = None
        self._closed = False
        self._patience = patience
        self._stops_at: float | None = None
        self._leaving: set[asyncio.Future[None]] = set()
        self._working = threading.Lock()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=stage)

    @contextmanager
    def admit(self, *, jobs: int = 1) -> Iterator[Admission]:
        """A place for a request of so many jobs, held for the length of the block.

        Raises:
            QueueFull: All places are taken.
            StageNotReady: The worker is closed.
        """
        self._refuse_when_closed()
        if len(self._admissions) > self.queue_size:
            raise QueueFull(
                f"the {self.stage} stage has {self.queue_size} requests waiting already, come back later",
                retry_after_seconds=self.seconds_to_a_free_place(),
            )
        admission = Admission(jobs)
        self._admissions.append(admission)
        try:
            yield admission
        finally:
            self._admissions = [other for other in self._admissions if other is not admission]

    async def run(self, admission: Admission, job: Callable[[], T], *, deadline: float | None = None) -> T:
        """What the job returns, or raises.

        Args:
            admission: The request that the job is of.
            job: Called in the worker's thread, when those before it are done.
            deadline: Of `time.monotonic()`. Past it a job that has not begun does not; one that has is not waited for.

        Raises:
            StageTimeout: The deadline passed.
            StageNotReady: The worker was closed before the job began, or told to stop and the job not done in time.
        """
        self._refuse_when_closed()
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._thread, self._call, job, deadline)
        leave: asyncio.Future[None] = loop.create_future()
        self._leaving.add(leave)
        patience = None if deadline is None else max(0.0, deadline - time.monotonic())
        ends: list[asyncio.Future[Any]] = [future, leave]
        try:
            await asyncio.wait(ends, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if not future.done():
                self._refuse_when_closed()
                raise self.too_late()
        finally:
            self._leaving.discard(leave)
            future.cancel()  # a job that has not begun never will; one that is done does not mind
        admission.jobs_left -= 1
        return future.result()

    def seconds_to_a_free_place(self) -> float:
        """When the request with the fewest jobs left will be done, at the pace of the last jobs.

        Requests take turns, so between two jobs of one come those of all others.
        """
        fewest = min((admission.jobs_left for admission in self._admissions), default=1)
        jobs = max(0, fewest - 1) * len(self._admissions) + 1
        return jobs * (self._mean_job_seconds or _SECONDS_BEFORE_THE_FIRST_JOB)

    def too_late(self) -> StageTimeout:
        """What to raise where the deadline of a request has passed."""
        return StageTimeout(f"the {self.stage} stage did not answer before the request's deadline", stage=self.stage)

    def stop(self) -> None:
        """Goes on with what is here for as long as its patience lasts; who is not done by then is refused. Does not block."""
        self._stops_at = time.monotonic() + self._patience
        asyncio.get_running_loop().call_later(self._patience, self._leave_behind)

    def close(self) -> None:
        """Waits for the job that runs, once stopped no longer than its patience lasts. All others are refused. Blocks."""
        self._closed = True
        self._thread.shutdown(wait=False)
        left = -1 if self._stops_at is None else max(0.0, self._stops_at - time.monotonic())
        self.is_at_work = not self._working.acquire(timeout=left)
        if not self.is_at_work:
            self._working.release()
            self._thread.shutdown(wait=True)  # a thread that still ends while its network is let go of brings the process down

    def _leave_behind(self) -> None:
        self._closed = True
        while self._leaving:
            self._leaving.pop().set_result(None)

    def _call(self, job: Callable[[], T], deadline: float | None) -> T:
        with self._working:
            self._refuse_when_closed()
            started = time.monotonic()
            if deadline is not None and started >= deadline:
                raise self.too_late()
            try:
                return job()
            finally:
                self._remember(time.monotonic() - started)

    def _remember(self, seconds: float) -> None:
        before = seconds if self._mean_job_seconds is None else self._mean_job_seconds
        self._mean_job_seconds = before + _WEIGHT_OF_THE_NEWEST * (seconds - before)

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise StageNotReady(f"the {self.stage} stage is stopping", stage=self.stage)

"""A gateway at work on jobs: takes them, holds them, carries them out as it does requests, and forgets old ones."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import ExitStack, aclosing, asynccontextmanager, suppress
from typing import Any

import structlog

from triptych.errors import (
    CallerError,
    Conflict,
    JobsNotReady,
    QueueFull,
    RequestCancelled,
    StageNotReady,
    TriptychError,
)
from triptych.gateway.answers import to_document
from triptych.gateway.body import GenerateBody
from triptych.gateway.editing import read_pictures
from triptych.gateway.errors import gateway_error
from triptych.gateway.jobs.blobs import Blobs
from triptych.gateway.jobs.kept import JobKeep, LeaseLost
from triptych.gateway.jobs.records import JobRecord, Lease, Status
from triptych.gateway.jobs.table import JobTable
from triptych.gateway.orders import Job, Order
from triptych.gateway.state import Gateway
from triptych.gateway.work import Outcome, carry_out
from triptych.pipeline import StageProgress

log = structlog.get_logger(__name__)

LOOK_SECONDS = 1.0
"""How often a gateway that has room looks for jobs that others left it."""

RENEWALS = 4
"""How often a lease is renewed in its time."""

MOST_FAILURES = 10
"""Attempts in a row that came no further, whether a stage failed or the gateway died of it; then a job has failed."""

LONGEST_PAUSE_SECONDS = 30.0
LONGEST_BETWEEN_SWEEPS_SECONDS = 60.0
LEAST_AGE_OF_ORPHANS_SECONDS = 3600.0
"""What has no row yet may get one: the request is written first."""


class Worker:
    """Works on jobs for as long as `working` lasts.

    Args:
        gateway: Whose models and whose turns; a job is one of its requests.
    """

    def __init__(self, gateway: Gateway, table: JobTable, blobs: Blobs) -> None:
        self._gateway = gateway
        self._settings = gateway.settings
        self._table = table
        self._blobs = blobs
        self._held: dict[Lease, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(self._settings.jobs_running)
        self._come = asyncio.Event()

    def look(self) -> None:
        """There is a job: it need not wait until this gateway looks again."""
        self._come.set()

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """At the end what is under way is put back, for another gateway to go on with at once."""
        loops = [asyncio.create_task(_again_and_again(loop)) for loop in (self._take_next, self._renew, self._sweep)]
        try:
            yield
        finally:
            await _end(loops)
            held = dict(self._held)
            await _end(list(held.values()))
            for lease in held:
                with suppress(JobsNotReady):
                    await self._table.put_back(lease)

    # Taking

    async def _take_next(self) -> None:
        await self._places.acquire()
        try:
            record = await self._table.take()
        except BaseException:
            self._places.release()
            raise
        if record is not None:
            self._begin(record)
            return
        self._places.release()
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                await self._come.wait()
        self._come.clear()

    def _begin(self, record: JobRecord) -> None:
        lease = Lease(record.id, record.attempt)
        self._held[lease] = task = asyncio.create_task(self._work(record, lease))
        task.add_done_callback(lambda _: self._leave(lease))

    def _leave(self, lease: Lease) -> None:
        del self._held[lease]
        self._places.release()

    async def _renew(self) -> None:
        """Holds what is under way; ends what was cancelled or lost, and all of it where nobody can say that it is still ours."""
        pause = self._settings.jobs_lease_seconds / RENEWALS
        await asyncio.sleep(pause)
        leases = list(self._held)
        try:
            async with asyncio.timeout(2 * pause):
                held = await self._table.renew(leases)
        except TimeoutError:
            log.warning("jobs_let_go", jobs=len(leases))
            held = {}
        for lease in leases:
            if held.get(lease):
                await self._gateway.running.cancel(lease.id)
            elif lease not in held and lease in self._held:
                self._held[lease].cancel()
        await self._table.end_cancelled()

    # Working

    async def _work(self, record: JobRecord, lease: Lease) -> None:
        keep = JobKeep(self._table, self._blobs, lease, made_by=record.made_by, kept=record.kept)
        try:
            with structlog.contextvars.bound_contextvars(request_id=record.id):
                await self._carry_out(record, lease, keep)
        except LeaseLost:
            log.info("job_lost_to_another", job=record.id)
        except JobsNotReady as error:
            # The lease runs out, and whoever reaches the database first goes on.
            log.warning("job_left", job=record.id, reason=error.message)
        finally:
            await keep.close()

    async def _carry_out(self, record: JobRecord, lease: Lease, keep: JobKeep) -> None:
        try:
            if record.cancelling:
                raise RequestCancelled("the job was cancelled")
            if record.failures > MOST_FAILURES:
                raise CallerError(f"the job was begun {record.failures - 1} times in a row and came no further")
            with ExitStack() as held:
                outcome = await self._make(await self._order(record, keep, held), keep)
            await keep.finish()
            await self._complete(lease, outcome)
        except RequestCancelled:
            await self._end(lease, Status.CANCELLED)
        except Conflict as error:
            # Weights of the same digest that go by another plan: what was kept means nothing to them.
            await self._table.note(lease, kept={}, made_by="")
            await self._try_again(record, lease, error)
        except (QueueFull, StageNotReady) as error:
            await self._table.put_back(lease, seconds=_pause(record.failures))
            log.info("job_put_back", job=record.id, reason=error.message)
        except CallerError as error:
            await self._fail(lease, error)
        except (LeaseLost, JobsNotReady):
            raise
        except TriptychError as error:
            await self._try_again(record, lease, error)
        except Exception:
            log.exception("job_failed", job=record.id)
            await self._try_again(record, lease, TriptychError("something went wrong here, and has been logged"))

    async def _order(self, record: JobRecord, keep: JobKeep, held: ExitStack) -> Order:
        """What was asked for; the gateway counts its bytes, and those of its pictures, until what is held is let go."""
        try:
            content = await self._blobs.get(record.request)
        except FileNotFoundError:
            raise CallerError("what was asked for is not in the store any more") from None
        arrived, bodies = time.monotonic(), self._gateway.bodies
        body = GenerateBody.model_validate_json(content)
        with bodies.take(len(content)):
            pictures = await asyncio.to_thread(read_pictures, body, max_pixels=self._settings.max_image_pixels)
        # All at once: a gateway that was to have less than another took is given it as long as nothing else is there.
        held.enter_context(bodies.take(len(content) + pictures.num_bytes))
        return Order(
            id=record.id,
            body=body,
            pictures=pictures,
            arrived=arrived,
            deadline=arrived + self._settings.request_timeout_seconds,
            priority=record.priority,
            key=record.key,
            keep=lambda job: keep.made_by(_makers(job)),
        )

    async def _make(self, order: Order, keep: JobKeep) -> Outcome:
        with ExitStack() as held:
            async with aclosing(carry_out(self._gateway, order, None, held)) as events:
                async for event in events:
                    if isinstance(event, Outcome):
                        return event
                    if isinstance(event, StageProgress):
                        await self._hear(event, keep)
        raise AssertionError("a job ends in an outcome or in an error")

    async def _hear(self, progress: StageProgress, keep: JobKeep) -> None:
        """How far a denoising is goes into the row with its states, and who is at work when that changes."""
        if keep.progress is None or keep.progress.stage is not progress.stage:
            await keep.note(progress)
        keep.progress = progress

    # Ends

    async def _complete(self, lease: Lease, outcome: Outcome) -> None:
        assert isinstance(outcome.generated.images, tuple), "the gateway asks for encoded files"
        document = to_document(outcome).model_dump(mode="json", exclude={"images", "id"})
        media_type = f"image/{outcome.output_format}"
        files = [await self._blobs.put(lease.id, file) for file in outcome.generated.images]
        document["images"] = [
            {"key": key, "seed": seed, "media_type": media_type} for key, seed in zip(files, outcome.generated.seeds, strict=True)
        ]
        result = await self._blobs.put(lease.id, json.dumps(document).encode())
        await self._end(lease, Status.COMPLETED, result=result, keep=[*files, result])

    async def _fail(self, lease: Lease, error: TriptychError) -> None:
        await self._end(lease, Status.FAILED, error=gateway_error(error)["error"])

    async def _end(self, lease: Lease, status: Status, *, keep: list[str] | None = None, **values: Any) -> None:
        """The row says first that nothing else is needed; what is not deleted now, retention deletes."""
        if not await self._table.end(lease, status, **values):
            raise LeaseLost
        log.info("job_ended", job=lease.id, status=status)
        await self._blobs.delete(*set(await self._blobs.of(lease.id)) - set(keep or ()))

    async def _try_again(self, record: JobRecord, lease: Lease, error: TriptychError) -> None:
        if record.failures >= MOST_FAILURES:
            await self._fail(lease, error)
            return
        log.warning("job_put_back", job=record.id, failures=record.failures, reason=error.message)
        await self._table.put_back(lease, seconds=_pause(record.failures), is_failure=True)

    # Retention

    async def _sweep(self) -> None:
        retention = self._settings.jobs_retention_seconds
        while ids := await self._table.ended_before(retention):
            for each in ids:
                await self._blobs.delete(*await self._blobs.of(each))
                await self._table.remove(each)
        old = [job async for job, age in self._blobs.jobs() if age > max(retention, LEAST_AGE_OF_ORPHANS_SECONDS)]
        for orphan in set(old) - await self._table.known(old):
            await self._blobs.delete(*await self._blobs.of(orphan))
        await asyncio.sleep(min(LONGEST_BETWEEN_SWEEPS_SECONDS, retention / 4))


def _makers(job: Job) -> str:
    """What a result of the stages up to the latents depends on."""
    stages = (job.identities.text_encoder, job.identities.diffusion, job.identities.image_encoder)
    digests = [None if stage is None else stage.weights_digest for stage in stages]
    return hashlib.sha256(json.dumps([digests, job.parameters.as_json()], sort_keys=True).encode()).hexdigest()


def _pause(failures: int) -> float:
    return min(LONGEST_PAUSE_SECONDS, 0.25 * 2.0**failures)


async def _again_and_again(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    while True:
        try:
            await work()
        except JobsNotReady as error:
            log.warning("jobs_not_ready", reason=error.message)
            await asyncio.sleep(LOOK_SECONDS)
        except Exception:
            log.exception("jobs_failed")
            await asyncio.sleep(LOOK_SECONDS)


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)

"""`/jobs`: ordered now, fetched later."""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from triptych.errors import Conflict, InvalidValue, JobsNotReady, NotFound, QueueFull
from triptych.gateway.event_stream import Event, EventStream
from triptych.gateway.idempotency import digest_of, read_idempotency_key
from triptych.gateway.jobs import documentation
from triptych.gateway.jobs.answers import AcceptedJob, DescribedJob, JobList, accepted, described, job_answer, poll_url
from triptych.gateway.jobs.records import JobRecord, NewJob, Status
from triptych.gateway.jobs.service import OpenJobs
from triptych.gateway.orders import Order
from triptych.gateway.reception import JSON, accept, read_body, understand
from triptych.gateway.state import Gateway, GatewayDep
from triptych.serving.auth import key_name
from triptych.wire.open_inference import quoted

LOOK_SECONDS = 0.25
"""Between two looks at a job whose events are followed: whichever gateway works on it, the row is where it is told."""

LONGEST_LIST = 1000
_JOB_ID = re.compile("[0-9a-f]{32}")

router = APIRouter()


async def _open(gateway: GatewayDep) -> OpenJobs:
    return await gateway.jobs.opened()


OpenDep = Annotated[OpenJobs, Depends(_open)]


@router.post("/jobs", status_code=202, response_model=AcceptedJob, **documentation.SUBMIT)
async def submit(request: Request, gateway: GatewayDep, jobs: OpenDep) -> Response:
    """Orders what `POST /generate` makes, and answers at once. An accepted job outlives every process that works on it.

    With `Idempotency-Key` a request that is sent again is the same job; another body under that key is refused with 409.
    """
    arrived = time.monotonic()
    with ExitStack() as held:
        body = await read_body(request, gateway, held)
        if body.previews:
            raise InvalidValue("previews are events of POST /generate; a job has none", param="previews")
        idempotency_key, digest = read_idempotency_key(request.headers), digest_of(body)
        if idempotency_key is not None:
            before = await jobs.table.find_repeated(key_name(request), idempotency_key, digest)
            if before is not None:
                return _accepted(before)
        await _refuse_if_full(gateway, jobs)
        order = await understand(gateway, request, body, JSON, arrived, held)
        await accept(gateway, order, held)  # what no model takes is refused now, and not when its turn comes
        return _accepted(await _add(jobs, order, idempotency_key, digest))


async def _add(jobs: OpenJobs, order: Order, idempotency_key: str | None, digest: str) -> JobRecord:
    id = uuid.uuid4().hex  # noqa: A001
    content = order.body.model_dump_json(exclude_none=True).encode()
    record, is_new = await jobs.table.add(
        NewJob(
            id=id,
            key=order.key,
            priority=order.priority,
            request=await jobs.blobs.put(id, content),
            idempotency_key=idempotency_key,
            body_digest=digest,
        )
    )
    if is_new:
        jobs.worker.look()
    else:
        await jobs.blobs.delete(*await jobs.blobs.of(id))
    return record


def _accepted(record: JobRecord) -> Response:
    answer = accepted(record).model_dump_json()
    return Response(answer, status_code=202, media_type=JSON, headers={"Location": poll_url(record.id)})


@router.get("/jobs", **documentation.LIST)
async def list_jobs(
    request: Request, jobs: OpenDep, limit: Annotated[int, Query(ge=1, le=LONGEST_LIST, description="How many.")] = 100
) -> JobList:
    """The last jobs that came with this key, the newest first."""
    records = await jobs.table.newest(key_name(request), limit=limit)
    positions = await jobs.table.positions([record.id for record in records if record.status is Status.QUEUED])
    return JobList(jobs=[job_answer(record, positions.get(record.id)) for record in records])


@router.get("/jobs/{job_id}", **documentation.DESCRIBE)
async def describe(job_id: str, request: Request, jobs: OpenDep) -> DescribedJob:
    """How a job is, and where its pictures are once it is completed."""
    return await _describe(jobs, await _find(jobs, job_id, key_name(request)))


@router.get("/jobs/{job_id}/images/{number}", response_class=Response, **documentation.IMAGE)
async def image(job_id: str, number: int, request: Request, jobs: OpenDep) -> Response:
    """A picture of a job that is completed; 0 is the first."""
    record = await _find(jobs, job_id, key_name(request))
    if record.status is not Status.COMPLETED:
        raise Conflict(f"the job has no pictures: it is {record.status}")
    images = json.loads(await _read(jobs, record, record.result))["images"]
    if not 0 <= number < len(images):
        raise NotFound(f"the job has {len(images)} pictures, numbered from 0; {number} is none of them")
    content = await _read(jobs, record, images[number]["key"])
    digest = images[number]["key"].rpartition("/")[2]
    headers = {"ETag": f'"{digest}"', "Cache-Control": "private, immutable", "X-Triptych-Seed": str(images[number]["seed"])}
    return Response(content, media_type=images[number]["media_type"], headers=headers)


@router.get("/jobs/{job_id}/events", response_class=Response, **documentation.EVENTS)
async def events(job_id: str, request: Request, jobs: OpenDep) -> Response:
    """A job as server-sent events: `progress` with each change, then one `completed` or `error`.

    Each event has the whole job as its data, and a number as its id. Who sends the last one that it had as `Last-Event-ID` is
    told what is new since, by whichever gateway it asks; 204 says that nothing will be.
    """
    seen = _read_last_event_id(request.headers.get("Last-Event-ID"))
    key = key_name(request)
    record = await _find(jobs, job_id, key)
    if record.status.is_end and record.version <= seen:
        return Response(status_code=204)
    return EventStream(_follow(jobs, record, key, seen), headers={})


@router.delete("/jobs/{job_id}", status_code=204, **documentation.CANCEL)
async def cancel(job_id: str, request: Request, gateway: GatewayDep, jobs: OpenDep) -> None:
    """Ends a job that waits or is at work, before its next evaluation; removes one that has ended, with its pictures."""
    key = key_name(request)
    record = await _find(jobs, job_id, key)
    if record.status.is_end:
        await jobs.blobs.delete(*await jobs.blobs.of(record.id))
        await jobs.table.remove(record.id)
        return
    cancelled = await jobs.table.cancel(record.id, key)
    if cancelled is not None and cancelled.status is Status.CANCELLED:
        await jobs.blobs.delete(*await jobs.blobs.of(record.id))  # it waited; whoever is at work on one does this itself
    # Where another gateway is at work on it, that one hears of it when it renews its lease.
    await gateway.running.cancel(record.id)


async def _refuse_if_full(gateway: Gateway, jobs: OpenJobs) -> None:
    if await jobs.table.queued() < gateway.settings.jobs_waiting:
        return
    usual = await jobs.table.usual_seconds() or gateway.admission.seconds_to_next_place()
    raise QueueFull(
        f"{gateway.settings.jobs_waiting} jobs are waiting, which is all that are taken; come back later",
        retry_after_seconds=max(1.0, usual / gateway.settings.jobs_running),
    )


async def _find(jobs: OpenJobs, job_id: str, key: str) -> JobRecord:
    # What no job can be called is not asked for: a database takes fewer characters than an address.
    record = await jobs.table.get(job_id, key) if _JOB_ID.fullmatch(job_id) else None
    if record is None:
        raise NotFound(f"there is no job {quoted(job_id)}")
    return record


async def _describe(jobs: OpenJobs, record: JobRecord) -> DescribedJob:
    waits = record.status is Status.QUEUED
    position = (await jobs.table.positions([record.id])).get(record.id) if waits else None
    document = None if record.result is None else await _read(jobs, record, record.result)
    return described(record, position, document)


async def _read(jobs: OpenJobs, record: JobRecord, key: str | None) -> bytes:
    try:
        assert key is not None
        return await jobs.blobs.get(key)
    except FileNotFoundError:
        if await jobs.table.get(record.id, record.key) is None:
            raise NotFound(f"there is no job {quoted(record.id)}") from None
        raise JobsNotReady("the store has lost what the job has made") from None


async def _follow(jobs: OpenJobs, record: JobRecord, key: str, seen: int) -> AsyncGenerator[Event, None]:
    position: int | None = None
    while True:
        job = await _describe(jobs, record)
        if record.version > seen or job.queue_position != position:
            yield Event(name=_EVENTS.get(record.status, "progress"), data=_data(job), id=str(record.version))
        if record.status.is_end:
            return
        seen, position = record.version, job.queue_position
        await asyncio.sleep(LOOK_SECONDS)
        if (found := await jobs.table.get(record.id, key)) is None:
            return
        record = found


_EVENTS = {Status.COMPLETED: "completed", Status.FAILED: "error", Status.CANCELLED: "error"}


def _data(job: DescribedJob) -> dict[str, Any]:
    return job.model_dump(mode="json")


def _read_last_event_id(text: str | None) -> int:
    """0 where a caller has had none."""
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InvalidValue("Last-Event-ID must be the id of an event of this job", param="Last-Event-ID")
    return int(text)

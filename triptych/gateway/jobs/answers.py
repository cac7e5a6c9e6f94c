"""How jobs are told: as JSON, and as events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, Field

from triptych.contract import StageName
from triptych.gateway.answers import Receipt, Timings
from triptych.gateway.errors import ErrorDetail
from triptych.gateway.jobs.records import JobRecord, Status


class AcceptedJob(BaseModel):
    """The answer to `POST /jobs`."""

    id: str
    status: Status
    poll_url: str = Field(description="Where to ask how it is, relative to this gateway.")


class JobImage(BaseModel):
    """One picture of a job that is completed."""

    url: str = Field(description="Where the file is, relative to this gateway.")
    media_type: str
    seed: int = Field(description="What makes this picture again as the only one of a request.")


class JobResult(BaseModel):
    """What a job came to: the answer of `POST /generate`, with addresses in the place of files."""

    model: str
    images: list[JobImage]
    parameters: dict[str, Any] = Field(description="What was done, every default filled in.")
    warnings: list[str]
    timings: Timings = Field(description="Of the gateway that completed it; what others did before is not in it.")
    receipt: Receipt


class JobAnswer(BaseModel):
    """One job."""

    id: str
    status: Status
    poll_url: str
    priority: str
    created: datetime
    started: datetime | None = Field(description="When a gateway first took it.")
    ended: datetime | None
    queue_position: int | None = Field(description="1 is the next; null when it does not wait.")
    stage: StageName | None = Field(description="Who is at work on it, or was last.")
    position: int | None = Field(description="Evaluations of the denoising that are done and kept.")
    num_evaluations: int | None
    attempts: int = Field(description="How often a gateway took it; more than once where one died or a stage was gone.")
    error: ErrorDetail | None = Field(description="Why it has failed.")


class DescribedJob(JobAnswer):
    """One job, with its pictures once it is completed."""

    result: JobResult | None


class JobList(BaseModel):
    """The answer to `GET /jobs`."""

    jobs: list[JobAnswer]


def poll_url(job: str) -> str:
    return f"/jobs/{job}"


def accepted(record: JobRecord) -> AcceptedJob:
    return AcceptedJob(id=record.id, status=record.status, poll_url=poll_url(record.id))


def job_answer(record: JobRecord, position: int | None) -> JobAnswer:
    return JobAnswer(**_fields(record, position))


def described(record: JobRecord, position: int | None, document: bytes | None) -> DescribedJob:
    """
    Args:
        document: What the worker wrote of the pictures, where there are some.
    """
    result = None if document is None else _result(record, json.loads(document))
    return DescribedJob(**_fields(record, position), result=result)


def _fields(record: JobRecord, position: int | None) -> dict[str, Any]:
    return {
        "id": record.id,
        "status": record.status,
        "poll_url": poll_url(record.id),
        "priority": record.priority,
        "created": _time(record.created),
        "started": _time(record.started),
        "ended": _time(record.ended),
        "queue_position": position,
        "stage": record.stage,
        "position": record.position,
        "num_evaluations": record.num_evaluations,
        "attempts": record.attempt,
        "error": record.error,
    }


def _result(record: JobRecord, document: Mapping[str, Any]) -> JobResult:
    images = [
        {"url": f"{poll_url(record.id)}/images/{number}", "media_type": image["media_type"], "seed": image["seed"]}
        for number, image in enumerate(document["images"])
    ]
    return JobResult(**{**document, "images": images})


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)

"""One job as the table holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from triptych.contract import StageName


class Status(StrEnum):
    """Where a job is; the last three are ends."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_end(self) -> bool:
        return self in ENDS


ENDS = (Status.COMPLETED, Status.FAILED, Status.CANCELLED)


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """A job that was accepted.

    Attributes:
        key: The name of the API key that it came with: nobody else sees it.
        request: The key of the blob that holds its body.
        idempotency_key: As the caller sent it; a second job of the same is not made.
        body_digest: Of what was asked for, to tell a repetition from another request.
    """

    id: str
    key: str
    priority: str
    request: str
    idempotency_key: str | None
    body_digest: str


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """A row.

    Attributes:
        version: Counts its changes: what a stream of events resumes by.
        attempt: Counts those who took it: only the last one may change it.
        failures: Attempts in a row that came no further.
        cancelling: Whether it is to end, which whoever is at work on it has still to hear.
        stage, position, num_evaluations: How far it is.
        made_by: Whose results `kept` are: of which weights, and for which parameters.
        kept: The keys of the blobs of what the stages have made, by kind.
        result: The key of the blob that describes the pictures.
        error: As the gateway answers errors.
        created, started, ended: Seconds since 1970, by the database's clock.
    """

    id: str
    key: str
    priority: str
    request: str
    idempotency_key: str | None
    body_digest: str
    status: Status
    version: int
    attempt: int
    failures: int
    cancelling: bool
    stage: StageName | None
    position: int | None
    num_evaluations: int | None
    made_by: str
    kept: Mapping[str, str] = field(default_factory=dict)
    result: str | None
    error: Mapping[str, Any] | None
    created: float
    started: float | None
    ended: float | None


@dataclass(frozen=True)
class Lease:
    """The right to work on a job, as long as nobody took it later."""

    id: str
    attempt: int

"""The whole error tree, each class with the HTTP status that it becomes.

::

    TriptychError                  500  anything that is ours to explain
    ├── CallerError                400  the request is at fault; its words go to the caller
    │   ├── MalformedRequest       400  not readable as a request at all
    │   ├── Unauthenticated        401  no token, or one we do not know
    │   ├── Forbidden              403  known, but not allowed
    │   ├── NotFound               404  no such model, request or page
    │   ├── MethodNotAllowed       405  the address exists, but not for this
    │   ├── NotAcceptable          406  no answer of a kind that the caller takes
    │   ├── BodyTooSlow            408  its body did not arrive in time
    │   ├── Conflict               409  does not go with what we hold
    │   ├── TooLarge               413  more bytes than we read
    │   ├── UnsupportedMediaType   415  a body of a kind that we do not read
    │   ├── InvalidValue           422  readable, but a value is impossible
    │   ├── QueueFull              429  come back after `retry_after_seconds`
    │   │   └── RateLimited        429  this caller has asked too often
    │   ├── ClientLeft             499  nobody is waiting for the answer
    │   ├── RequestCancelled       499  somebody said that the answer is not wanted any more
    │   └── NotSupported           501  understood, but not offered here
    ├── StageError                 502  a stage is at fault; names it
    │   ├── StageFailed            502  it answered with an error, or with nonsense
    │   │   └── StageBrokeOff      502  its answer broke off: it may have died
    │   ├── StageNotReady          503  it is down, starting or stopping
    │   └── StageTimeout           504  it did not answer before the deadline
    ├── JobsNotReady               503  the database or the store of the jobs cannot be reached
    └── StartError                 500  a service cannot start
        ├── CheckpointError        500  weights are missing, damaged or of another architecture
        ├── EngineError            500  the engine is not installed or cannot compile the network
        └── StagesDoNotFit         500  three stages that make no model together
"""

from __future__ import annotations

import re
from typing import ClassVar


class TriptychError(Exception):
    """Base of all errors that Triptych raises on purpose. The message is one clear sentence.

    Attributes:
        status: The HTTP status that it becomes.
        type: The kind of error for callers that know few kinds.
        code: This very class for callers that want to know: its name in snake case, such as `queue_full`.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "internal_error"
    code: ClassVar[str] = "triptych_error"

    def __init_subclass__(cls) -> None:
        cls.code = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class CallerError(TriptychError):
    """The request is at fault.

    Args:
        message: One sentence that says what is wrong and what is allowed.
        param: The field or tensor at fault, where one can be named.
    """

    status = 400
    type = "invalid_request_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class MalformedRequest(CallerError):
    """The body cannot be read as a request."""


class Unauthenticated(CallerError):
    """No token was sent, or none that we know."""

    status = 401
    type = "authentication_error"


class Forbidden(CallerError):
    """The caller is known but may not do this."""

    status = 403
    type = "permission_error"


class NotFound(CallerError):
    """There is no model, request or page of that name."""

    status = 404
    type = "not_found_error"


class MethodNotAllowed(CallerError):
    """The address exists, but does not take this method."""

    status = 405


class NotAcceptable(CallerError):
    """The caller takes no kind of answer that we can give."""

    status = 406


class BodyTooSlow(CallerError):
    """The body did not arrive in the time that we are willing to read it. What has come of it is not kept."""

    status = 408
    type = "request_timeout_error"


class Conflict(CallerError):
    """The request does not go with what we hold."""

    status = 409
    type = "conflict_error"


class TooLarge(CallerError):
    """The body has more bytes than we are willing to read."""

    status = 413
    type = "too_large_error"


class UnsupportedMediaType(CallerError):
    """The body is of a kind that we do not read."""

    status = 415


class InvalidValue(CallerError):
    """The request is readable, but a value in it is impossible."""

    status = 422


class QueueFull(CallerError):
    """Everything is busy and the queue is full.

    Args:
        message: One sentence.
        retry_after_seconds: When it makes sense to come back.
    """

    status = 429
    type = "rate_limit_error"

    def __init__(self, message: str, *, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class RateLimited(QueueFull):
    """The caller has asked more often than its key may."""


class ClientLeft(CallerError):
    """The caller closed the connection before the answer was ready."""

    status = 499
    type = "client_closed_request"


class RequestCancelled(CallerError):
    """The request was ended by somebody who knows its name."""

    status = 499
    type = "request_cancelled_error"


class NotSupported(CallerError):
    """The request is understood, but this service does not offer it."""

    status = 501
    type = "not_supported_error"


class StageError(TriptychError):
    """A stage is at fault.

    Args:
        message: One sentence.
        stage: `text_encoder`, `diffusion` or `decoder`.
    """

    status = 502
    type = "stage_error"

    def __init__(self, message: str, *, stage: str) -> None:
        super().__init__(message)
        self.stage = stage


class StageFailed(StageError):
    """The stage answered with an error, or with something that is no answer."""


class StageBrokeOff(StageFailed):
    """The connection ended before the answer did. Who asks again may find the stage back, or another in its place."""


class StageNotReady(StageError):
    """The stage is down, starting or stopping.

    Args:
        message: One sentence.
        stage: See `StageError`.
        waited: Whether it was waited for already, in vain.
    """

    status = 503
    type = "stage_not_ready_error"

    def __init__(self, message: str, *, stage: str, waited: bool = False) -> None:
        super().__init__(message, stage=stage)
        self.waited = waited


class StageTimeout(StageError):
    """The stage did not answer before the deadline."""

    status = 504
    type = "stage_timeout_error"


class JobsNotReady(TriptychError):
    """The database or the store of the jobs cannot be reached."""

    status = 503
    type = "jobs_not_ready_error"


class StartError(TriptychError):
    """A service cannot start; the message says what to do about it."""


class CheckpointError(StartError):
    """Weights are missing, damaged, or made for another architecture."""


class EngineError(StartError):
    """The engine is not installed, or cannot compile the network."""


class StagesDoNotFit(StartError):
    """Three stages that make no model together."""

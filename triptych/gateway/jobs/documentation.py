"""What `/docs` and `/openapi.json` say of jobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triptych.gateway.documentation import IDEMPOTENCY_KEY, REFUSALS, REQUEST_BODY
from triptych.gateway.errors import ErrorAnswer

_OF_JOBS = {
    **REFUSALS,
    404: "There is no such job, or it came with another key.",
    409: "The Idempotency-Key came with another body.",
    501: "This gateway keeps no jobs: `triptych[jobs]` is not installed beside it.",
    503: "The database or the store of the jobs cannot be reached.",
}
_DOORS = (401, 403, 501, 503)


def _refused(*statuses: int, **words: str) -> dict[int | str, dict[str, Any]]:
    return {
        status: {"model": ErrorAnswer, "description": words.get(f"on_{status}", _OF_JOBS[status])}
        for status in sorted({*statuses, *_DOORS})
    }


_STREAM = {"text/event-stream": {"schema": {"type": "string"}}}
_FILES = {f"image/{name}": {"schema": {"type": "string", "format": "binary"}} for name in ("png", "jpeg", "webp")}

SUBMIT: Mapping[str, Any] = {
    "responses": _refused(
        400, 404, 408, 409, 413, 415, 422, 429, 504, on_404="No such model.", on_429="Too many jobs are waiting."
    ),
    "openapi_extra": {**REQUEST_BODY, "parameters": [IDEMPOTENCY_KEY]},
}
LIST: Mapping[str, Any] = {"responses": _refused(422)}
DESCRIBE: Mapping[str, Any] = {"responses": _refused(404)}
IMAGE: Mapping[str, Any] = {
    "responses": {
        200: {"description": "The file.", "content": _FILES},
        **_refused(404, 409, 422, on_409="The job is not completed, and has no pictures."),
    }
}
EVENTS: Mapping[str, Any] = {
    "responses": {
        200: {"description": "The events.", "content": _STREAM},
        204: {"description": "The job has ended, and the caller has had its last event."},
        **_refused(404, 422),
    },
    "openapi_extra": {
        "parameters": [
            {
                "name": "Last-Event-ID",
                "in": "header",
                "required": False,
                "schema": {"type": "string", "pattern": "^[0-9]{1,9}$"},
                "description": "The id of the last event that the caller had.",
            }
        ]
    },
}
CANCEL: Mapping[str, Any] = {"responses": {204: {"description": "It has ended, or is removed."}, **_refused(404)}}

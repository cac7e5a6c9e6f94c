"""What `/docs` and `/openapi.json` say of `POST /generate`, which reads its body itself and answers in five forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triptych.contract import ImageFormat
from triptych.gateway.body import GenerateBody
from triptych.gateway.errors import ErrorAnswer
from triptych.gateway.forms import FILES
from triptych.gateway.idempotency import HEADER, LONGEST_KEY

BODY_SCHEMA = GenerateBody.model_json_schema()

EXAMPLES: Mapping[str, Any] = {
    "plain": {"summary": "Only a prompt", "value": {"prompt": "a red circle on a blue background"}},
    "repeatable": {
        "summary": "Two pictures that can be made again",
        "value": {"prompt": "a green star on a white background", "seed": 7, "num_images": 2, "num_steps": 20},
    },
}

_STREAM_EXAMPLE = """event: progress
data: {"stage": "diffusion", "position": 3, "num_evaluations": 20}

event: preview
data: {"position": 4, "num_evaluations": 20, "images": [{"b64_json": "..."}]}

event: completed
data: {"id": "...", "images": [{"b64_json": "...", "seed": 7}], ...}
"""

REFUSALS = {
    400: "The body is neither JSON nor a form.",
    401: "No key of this gateway was sent.",
    403: "This gateway has no keys and answers its own machine only; or a page of another site posts a form.",
    404: "No such model.",
    406: "The Accept header takes none of the answers.",
    408: "The body did not arrive in time; the connection is closed.",
    409: "The Idempotency-Key came with another body.",
    413: "The body is too large, or a picture in it.",
    415: "The body is sent neither as JSON nor as a form.",
    422: "A field is unknown, missing, or impossible for the model; `param` names it.",
    429: "The queue is full; Retry-After says when a place should be free.",
    499: "The request was cancelled by `DELETE /requests/{name}`.",
    502: "A stage failed, or broke off twice; `param` names it.",
    503: "A stage is down, starting or stopping, for longer than a request waits; `param` names it.",
    504: "A stage was too slow; `param` names it.",
}

_HEADERS = {
    "X-Triptych-Id": "The request's name, in the logs of all services too.",
    "X-Triptych-Seed": "What makes the first picture again.",
    "X-Triptych-Pixels-Sha256": "SHA-256 of the picture's pixels, where the answer is a picture and the decoder tells it.",
    "Server-Timing": "Where the time went, in milliseconds.",
}

RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The pictures, in the form that the Accept header asks for.",
        "headers": {name: {"description": words, "schema": {"type": "string"}} for name, words in _HEADERS.items()},
        "content": {
            **{f"image/{name}": {"schema": {"type": "string", "format": "binary"}} for name in ImageFormat},
            "text/event-stream": {"schema": {"type": "string"}, "example": _STREAM_EXAMPLE},
        },
    },
    **{status: {"model": ErrorAnswer, "description": words} for status, words in REFUSALS.items()},
}

CANCEL_RESPONSES: dict[int | str, dict[str, Any]] = {
    204: {"description": "It has ended."},
    **{status: {"model": ErrorAnswer, "description": REFUSALS[status]} for status in (401, 403)},
    404: {"model": ErrorAnswer, "description": "No such request is in line or at work."},
}

_FORM_SCHEMA = BODY_SCHEMA | {
    "properties": BODY_SCHEMA["properties"] | {name: {"type": "string", "format": "binary"} for name in FILES}
}

IDEMPOTENCY_KEY: Mapping[str, Any] = {
    "name": HEADER,
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": LONGEST_KEY, "pattern": "^[ -~]+$"},
    "description": "What the caller calls this request: sent again with the same body, it is the same request and not another.",
}

REQUEST_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": BODY_SCHEMA, "examples": EXAMPLES},
            "multipart/form-data": {"schema": _FORM_SCHEMA},
        },
    }
}

"""Errors on their way out: our own with their words, everything else as a status and nothing more."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from triptych.errors import (
    BodyTooSlow,
    CallerError,
    ClientLeft,
    InvalidValue,
    MethodNotAllowed,
    NotFound,
    QueueFull,
    TriptychError,
    Unauthenticated,
)

ErrorBody: TypeAlias = Callable[[TriptychError], Mapping[str, Any]]
"""What an error looks like as JSON: each protocol has its own shape."""


def open_inference_error(error: TriptychError) -> dict[str, Any]:
    return {"error": error.message}


def error_response(error: TriptychError, body: ErrorBody) -> Response:
    return JSONResponse(body(error), status_code=error.status, headers=_headers(error))


def add_error_handlers(app: FastAPI, body: ErrorBody) -> None:
    """Turns our errors, and the framework's own, into responses of one shape.

    What is neither reaches `RequestLogMiddleware`, which logs it and answers 500.
    """

    async def answer(request: Request, error: Exception) -> Response:
        assert isinstance(error, TriptychError)
        request.state.error = error
        return error_response(error, body)

    async def answer_framework(request: Request, error: Exception) -> Response:
        response = await answer(request, _translate(request, error))
        response.headers.update(getattr(error, "headers", None) or {})
        return response

    app.add_exception_handler(TriptychError, answer)
    app.add_exception_handler(HTTPException, answer_framework)
    app.add_exception_handler(RequestValidationError, answer_framework)
    app.add_exception_handler(ClientDisconnect, answer_framework)


def _headers(error: TriptychError) -> dict[str, str]:
    if isinstance(error, QueueFull):
        # The header knows whole seconds only: better a little late than turned away twice.
        return {"Retry-After": str(max(1, math.ceil(error.retry_after_seconds)))}
    if isinstance(error, Unauthenticated):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, BodyTooSlow):
        # The rest of the body would be read as the next request, or waited for by the server for ever.
        return {"Connection": "close"}
    return {}


def _translate(request: Request, error: Exception) -> CallerError:
    if isinstance(error, ClientDisconnect):
        return ClientLeft("the client closed the connection before its request was read")
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        field = str(first["loc"][-1])
        return InvalidValue(f"{field}: {first['msg']}", param=field)
    assert isinstance(error, HTTPException)
    if error.status_code == MethodNotAllowed.status:
        return MethodNotAllowed(f"{request.method} is not for this address")
    if error.status_code == NotFound.status:
        return NotFound("there is nothing at this address")
    return CallerError(error.detail)

"""One line of the log for each request; and what nobody expected becomes 500, without a word about it to the caller."""

from __future__ import annotations

import re
import time
from typing import Any

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from triptych.errors import CallerError, TriptychError
from triptych.serving.error_responses import ErrorBody, error_response
from triptych.serving.metrics import route_of

log = structlog.get_logger(__name__)

QUIET = ("/health/live", "/health/ready", "/metrics", "/v2/models/{model}")
"""Ends of routes that machines ask for every few seconds."""

_PARAM = re.compile(r"[a-z][a-z_]{0,31}")
"""A name like those of our fields. One that a caller made up may be anything, such as a prompt in the wrong place."""


class RequestLogMiddleware:
    """Logs each request when it is answered, by its route and not by its address."""

    def __init__(self, app: ASGIApp, error_body: ErrorBody) -> None:
        self._app = app
        self._error_body = error_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status: int | None = None

        async def send_observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_observed)
        except Exception:
            log.exception("unexpected_error", route=route_of(scope))
            if status is None:
                error = TriptychError(f"this is our fault; the log knows more under {scope['state']['request_id']}")
                await error_response(error, self._error_body)(scope, receive, send_observed)
        finally:
            _log_request(scope, status, time.perf_counter() - started)


def _log_request(scope: Scope, status: int | None, seconds: float) -> None:
    route = route_of(scope)
    level = "debug" if route.endswith(QUIET) else "info"
    error, key = (scope["state"].get(name) for name in ("error", "key_name"))
    told = _describe(error) | ({"key": key} if key else {})
    getattr(log, level)("request", method=scope["method"], route=route, status=status, seconds=round(seconds, 4), **told)


def _describe(error: TriptychError | None) -> dict[str, Any]:
    """A caller's error may quote the caller, so it goes by its class; a stage's is ours to read."""
    if error is None:
        return {}
    if isinstance(error, CallerError):
        return {"error": error.code} | ({"param": error.param} if _PARAM.fullmatch(error.param or "") else {})
    return {"error": error.code, "reason": error.message}

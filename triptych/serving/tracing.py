"""W3C trace context: whoever calls us is the parent of what we do and of whom we call, with or without an OpenTelemetry SDK.

FastAPI makes the spans where an SDK is configured. Without one it does not even look at `traceparent`, and the chain from the
caller through the gateway to the stages would break here.
"""

from __future__ import annotations

from opentelemetry import context, propagate, trace
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send


class TraceContextMiddleware:
    """Makes the caller's trace the current one where nobody has done so yet."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or trace.get_current_span().get_span_context().is_valid:
            await self._app(scope, receive, send)
            return
        token = context.attach(propagate.extract(dict(Headers(scope=scope))))
        try:
            await self._app(scope, receive, send)
        finally:
            context.detach(token)

"""The app that stage services and the gateway are both made of: everything that is not about their routes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from importlib.metadata import version
from typing import Any

from fastapi import Depends, FastAPI

from triptych.serving.auth import make_guard
from triptych.serving.error_responses import ErrorBody, add_error_handlers
from triptych.serving.metrics import MetricsMiddleware, RequestMetrics
from triptych.serving.request_ids import RequestIdMiddleware
from triptych.serving.request_log import RequestLogMiddleware
from triptych.serving.security_headers import SecurityHeadersMiddleware
from triptych.serving.settings import ServerSettings
from triptych.serving.tracing import TraceContextMiddleware

_DOCUMENTATION = (
    "default-src 'none'; script-src 'unsafe-inline' https:; style-src 'unsafe-inline' https:; font-src https:; "
    "img-src 'self' data: https:; worker-src blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""FastAPI's pages of the API bring their program from elsewhere, and start it in the page itself."""


def make_app(
    *,
    title: str,
    settings: ServerSettings,
    error_body: ErrorBody,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]],
    **options: Any,
) -> FastAPI:
    """An app with request ids, logs, metrics (`/metrics`, and `app.state.metrics` to add to), tracing, errors and safe headers.

    Args:
        title: Its name.
        settings: Of the service.
        error_body: The shape of an error's JSON.
        lifespan: What lives as long as the app does.
        options: More for FastAPI.
    """
    app = FastAPI(
        title=title,
        version=version("triptych"),
        lifespan=lifespan,
        # Spans by FastAPI itself, where an OpenTelemetry SDK is configured; metrics and logs are ours.
        telemetry={"metrics": False, "logs": False, "operation_spans": False},
        **options,
    )
    metrics = RequestMetrics()
    app.state.metrics = metrics
    add_error_handlers(app, error_body)
    # The last one added is the first that a request meets.
    app.add_middleware(RequestLogMiddleware, error_body=error_body)
    app.add_middleware(MetricsMiddleware, metrics=metrics)
    policies = {url: _DOCUMENTATION for url in (app.docs_url, app.redoc_url) if url}
    app.add_middleware(SecurityHeadersMiddleware, policies=policies)
    app.add_middleware(RequestIdMiddleware)
    app.add_middleware(TraceContextMiddleware)
    app.include_router(metrics.router(), dependencies=[Depends(make_guard(settings))])
    return app

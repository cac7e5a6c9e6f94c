"""Prometheus metrics, in a registry of each app's own: two apps in one process count apart."""

from __future__ import annotations

import time
from typing import TypeAlias

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# From a cached context to fifty steps at full size on a slow machine.
SECONDS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0)

_Labels: TypeAlias = tuple[str, str]


class RequestMetrics:
    """How many requests, how long they took, and how many are running."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter("triptych_requests", "Requests answered.", ("method", "route", "status"), registry=self.registry)
        self.seconds = Histogram(
            "triptych_request_seconds",
            "From a request's first line to the end of its response.",
            ("method", "route"),
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self.running = Gauge("triptych_requests_running", "Requests that are not answered yet.", registry=self.registry)

    def router(self) -> APIRouter:
        """`GET /metrics`."""
        router = APIRouter()

        @router.get("/metrics", include_in_schema=False)
        async def metrics() -> Response:
            return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

        return router


class MetricsMiddleware:
    """Counts every request under its route's template, so that no caller can invent labels."""

    def __init__(self, app: ASGIApp, metrics: RequestMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = "none"

        async def send_observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        with self._metrics.running.track_inprogress():
            try:
                await self._app(scope, receive, send_observed)
            finally:
                labels = (_method(scope), route_of(scope))
                self._metrics.requests.labels(*labels, status).inc()
                self._metrics.seconds.labels(*labels).observe(time.perf_counter() - started)


def route_of(scope: Scope) -> str:
    """The template of the route that a request took, such as `/v2/models/{model}/infer`."""
    return getattr(scope.get("route"), "path", "none")


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH") else "other"

"""The gateway's app: models in, `POST /generate` out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from fastapi import Depends, FastAPI

from triptych.gateway import admin, catalogue, generate, replicas, static
from triptych.gateway.admission import Admission
from triptych.gateway.cors import cors
from triptych.gateway.errors import gateway_error
from triptych.gateway.jobs import routes as jobs
from triptych.gateway.jobs.service import Jobs
from triptych.gateway.live_topology import LiveTopology
from triptych.gateway.metrics import GatewayMetrics
from triptych.gateway.registry import Registry
from triptych.gateway.replicas import ReplicaMetrics
from triptych.gateway.settings import GatewaySettings
from triptych.gateway.shared_runs import SharedRuns
from triptych.gateway.state import Gateway
from triptych.gateway.swap import Swaps
from triptych.pipeline import Pipeline
from triptych.serving.auth import make_guard
from triptych.serving.base_app import make_app
from triptych.serving.places import Places

DESCRIPTION = """Stable Diffusion in three panels: a prompt goes in, a picture comes out.

Every error has one shape, `{"error": {"message", "type", "param", "code"}}`. A key, where this gateway demands one, is sent as
`Authorization: Bearer`. The header `X-Request-Timeout-Seconds` says how long the caller is willing to wait."""


def create_app(
    settings: GatewaySettings,
    models: Mapping[str, Pipeline] | Registry,
    *,
    resources: Sequence[AbstractAsyncContextManager[object]] = (),
    topology: LiveTopology | None = None,
) -> FastAPI:
    """A gateway in front of some models.

    Args:
        settings: Of the gateway.
        models: By name, the default one first; one under `registry.NAMED_BY_ITS_DIFFUSION_STAGE` goes by that stage's.
        resources: What must live as long as the app: a client of remote stages, or the stages themselves.
        topology: The file that the models follow, whose registry they are.
    """
    registry = models if isinstance(models, Registry) else Registry(models)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as living:
            for resource in resources:
                await living.enter_async_context(resource)
            await living.enter_async_context(_polling(registry, settings.poll_seconds))
            gateway: Gateway = app.state.gateway
            living.push_async_callback(gateway.shared.close)
            await living.enter_async_context(gateway.jobs.running(gateway))
            yield

    app = make_app(
        title="Triptych gateway",
        description=DESCRIPTION,
        settings=settings,
        error_body=gateway_error,
        lifespan=lifespan,
        middleware=cors(settings.cors_origins),
    )
    admission = Admission(max_running=settings.max_running_requests, max_waiting=settings.max_waiting_requests)
    metrics = GatewayMetrics(app.state.metrics.registry, admission)
    app.state.metrics.registry.register(ReplicaMetrics(registry))
    swaps = None if topology is None else Swaps(topology, timeout_seconds=settings.swap_timeout_seconds)
    app.state.gateway = Gateway(
        settings=settings,
        registry=registry,
        admission=admission,
        bodies=Places(None, most_bytes=settings.max_held_bytes),
        metrics=metrics,
        jobs=Jobs(settings),
        shared=SharedRuns(),
        topology=topology,
        swaps=swaps,
    )
    # Health and the page are for everybody: what asks for them has no keys.
    app.include_router(catalogue.health, tags=["health"])
    app.include_router(static.make_router())
    doors = [Depends(make_guard(settings))]
    app.include_router(generate.router, tags=["pictures"], dependencies=doors)
    app.include_router(jobs.router, tags=["jobs"], dependencies=doors)
    app.include_router(catalogue.router, tags=["models"], dependencies=doors)
    app.include_router(replicas.router, tags=["models"], dependencies=doors)
    app.include_router(admin.router, tags=["administration"], dependencies=[Depends(admin.make_guard(settings))])
    return app


@asynccontextmanager
async def _polling(registry: Registry, seconds: float) -> AsyncIterator[None]:
    """Asks the stages who they are again and again: one that was exchanged is noticed, and a problem is in the log."""

    async def poll() -> None:
        while True:
            await registry.learn()
            await asyncio.sleep(seconds)

    polling = asyncio.create_task(poll())
    try:
        yield
    finally:
        polling.cancel()
        await asyncio.wait([polling])

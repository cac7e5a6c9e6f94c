"""A stage as a service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from fastapi import FastAPI

from triptych.contract import Decoder, Diffusion, ImageEncoder, TextEncoder
from triptych.serving.auth import make_guard
from triptych.serving.base_app import make_app
from triptych.serving.error_responses import open_inference_error
from triptych.serving.inference import inference_router
from triptych.serving.lifespan import Startable, run_stages, stopped_by_signals
from triptych.serving.served_models import served_model
from triptych.serving.settings import StageSettings
from triptych.serving.stage_metrics import StageMetrics


class LocalTextEncoder(TextEncoder, Startable, Protocol):
    """A text encoder that loads its network here."""


class LocalDiffusion(Diffusion, Startable, Protocol):
    """A diffusion stage that loads its network here."""


class LocalDecoder(Decoder, Startable, Protocol):
    """A decoder that loads its network here."""


class LocalImageEncoder(ImageEncoder, Startable, Protocol):
    """An image encoder that loads its network here."""


LocalStage = LocalTextEncoder | LocalDiffusion | LocalDecoder | LocalImageEncoder


def stage_app(stage: LocalStage, settings: StageSettings, *beside: LocalStage) -> FastAPI:
    """The service of a stage: the Open Inference Protocol, health and metrics. Its stages start and end with the app.

    Args:
        stage: What the service is named by.
        settings: Of the service.
        beside: What it serves besides.
    """
    stages = (stage, *beside)
    models = {model.name: model for model in map(served_model, stages)}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with run_stages(*stages), stopped_by_signals(*stages, seconds=settings.shutdown_seconds):
            yield

    app = make_app(
        title=f"Triptych {next(iter(models))}",
        settings=settings,
        error_body=open_inference_error,
        lifespan=lifespan,
        # The protocol's own metadata describes these routes better than a schema of bytes could.
        openapi_url=None,
    )
    app.state.metrics.registry.register(StageMetrics(*stages))
    app.include_router(inference_router(models, settings=settings, guard=make_guard(settings)))
    return app

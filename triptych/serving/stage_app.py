"""A stage as a service."""

from __future__ import annotations

from typing import Protocol

from fastapi import FastAPI

from triptych.contract import Decoder, Diffusion, TextEncoder
from triptych.serving.auth import make_guard
from triptych.serving.base_app import make_app
from triptych.serving.error_responses import open_inference_error
from triptych.serving.inference import inference_router
from triptych.serving.lifespan import Startable, run_stages
from triptych.serving.served_models import served_model
from triptych.serving.settings import StageSettings


class LocalTextEncoder(TextEncoder, Startable, Protocol):
    """A text encoder that loads its network here."""


class LocalDiffusion(Diffusion, Startable, Protocol):
    """A diffusion stage that loads its network here."""


class LocalDecoder(Decoder, Startable, Protocol):
    """A decoder that loads its network here."""


def stage_app(stage: LocalTextEncoder | LocalDiffusion | LocalDecoder, settings: StageSettings) -> FastAPI:
    """The service of one stage: the Open Inference Protocol, health and metrics. The stage starts and ends with the app."""
    model = served_model(stage)
    app = make_app(
        title=f"Triptych {model.name}",
        settings=settings,
        error_body=open_inference_error,
        lifespan=lambda app: run_stages(stage),
        # The protocol's own metadata describes these routes better than a schema of bytes could.
        openapi_url=None,
    )
    app.include_router(inference_router({model.name: model}, settings=settings, guard=make_guard(settings)))
    return app

"""The diffusion stage as a service: settings in, app out."""

from __future__ import annotations

from fastapi import FastAPI

from triptych.serving.server import start_service
from triptych.serving.settings import StageSettings
from triptych.serving.stage_app import stage_app
from triptych.stages.diffusion import DiffusionStage


def create_app() -> FastAPI:
    settings = start_service(StageSettings)
    return stage_app(DiffusionStage(settings), settings)

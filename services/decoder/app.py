"""The decoder as a service, with the image encoder beside it: settings in, app out."""

from __future__ import annotations

from fastapi import FastAPI

from triptych.serving.server import start_service
from triptych.serving.settings import StageSettings
from triptych.serving.stage_app import stage_app
from triptych.stages.decoder import DecoderStage
from triptych.stages.image_encoder import ImageEncoderStage


def create_app() -> FastAPI:
    settings = start_service(StageSettings)
    return stage_app(DecoderStage(settings), settings, ImageEncoderStage(settings))

"""Gateway and stages in one process: settings in, app out."""

from __future__ import annotations

from fastapi import FastAPI

from triptych.gateway.settings import GatewaySettings
from triptych.gateway.topology import local_gateway
from triptych.serving.server import start_service
from triptych.serving.settings import StageSettings, read_settings
from triptych.stages.decoder import DecoderStage
from triptych.stages.diffusion import DiffusionStage
from triptych.stages.image_encoder import ImageEncoderStage
from triptych.stages.text_encoder import TextEncoderStage


def create_app() -> FastAPI:
    settings = start_service(GatewaySettings)
    # Only the gateway listens: the stages' own door is never opened, and needs no token.
    stages = read_settings(StageSettings, host="127.0.0.1")
    return local_gateway(
        settings, TextEncoderStage(stages), DiffusionStage(stages), DecoderStage(stages), ImageEncoderStage(stages)
    )

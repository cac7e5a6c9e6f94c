"""A gateway of which some stages are local and others remote: `python -m benchmarks.timing.front PORT STAGE=PLACE ...`.

A place is `local`, the address of a service, or `stand-in:SECONDS`. Everything else is read from the environment, as a gateway's
and a stage's settings.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import httpx2
from fastapi import FastAPI

from benchmarks.stand_in import make_stand_in
from benchmarks.timing.scenarios import LOCAL
from triptych.contract import StageName
from triptych.gateway.app import create_app
from triptych.gateway.settings import GatewaySettings
from triptych.pipeline import Pipeline
from triptych.remote import RemoteDecoder, RemoteDiffusion, RemoteImageEncoder, RemoteTextEncoder, make_client
from triptych.serving.lifespan import run_stages
from triptych.serving.logs import configure_logging
from triptych.serving.server import serve
from triptych.serving.settings import GATEWAY_PORT, StageSettings, read_settings

STAND_IN_PREFIX = "stand-in:"


def mixed_gateway(settings: GatewaySettings, places: Mapping[StageName, str]) -> FastAPI:
    """The gateway's app.

    Args:
        settings: Of the gateway; the addresses in it are not used.
        places: Of the three stages.
    """
    client = make_client()
    token = settings.stage_token.get_secret_value() if settings.stage_token else None
    local: list[Any] = []
    made: dict[str, Any] = {}
    for stage, place in places.items():
        stages = _remote(stage, place, token, client) if "://" in place else _local(stage, place)
        local += [] if "://" in place else stages.values()
        made |= stages
    return create_app(settings, {settings.model_name: Pipeline(**made)}, resources=[client, run_stages(*local)])


def _remote(stage: StageName, url: str, token: str | None, client: httpx2.AsyncClient) -> dict[str, Any]:
    match stage:
        case StageName.TEXT_ENCODER:
            return {"text_encoder": RemoteTextEncoder(url, token=token, client=client)}
        case StageName.DIFFUSION:
            return {"diffusion": RemoteDiffusion(url, token=token, client=client)}
        case StageName.DECODER:
            beside = RemoteImageEncoder(url, token=token, client=client)
            return {"decoder": RemoteDecoder(url, token=token, client=client), "image_encoder": beside}


def _local(stage: StageName, place: str) -> dict[str, Any]:
    """The real stage, the image encoder beside the decoder as in the decoder's service; or a stand-in."""
    from triptych.stages.decoder import DecoderStage
    from triptych.stages.diffusion import DiffusionStage
    from triptych.stages.image_encoder import ImageEncoderStage
    from triptych.stages.text_encoder import TextEncoderStage

    if place.startswith(STAND_IN_PREFIX):
        return {stage.value: make_stand_in(stage, float(place.removeprefix(STAND_IN_PREFIX)))}
    assert place == LOCAL, place
    settings = read_settings(StageSettings, host="127.0.0.1")
    match stage:
        case StageName.TEXT_ENCODER:
            return {"text_encoder": TextEncoderStage(settings)}
        case StageName.DIFFUSION:
            return {"diffusion": DiffusionStage(settings)}
        case StageName.DECODER:
            return {"decoder": DecoderStage(settings), "image_encoder": ImageEncoderStage(settings)}


def main() -> None:
    """Serves until it is told to stop."""
    port, *places = sys.argv[1:]
    settings = read_settings(GatewaySettings, host="127.0.0.1", port=int(port))
    configure_logging(log_format=settings.log_format, log_level=settings.log_level)
    pairs = (place.partition("=") for place in places)
    serve(mixed_gateway(settings, {StageName(stage): place for stage, _, place in pairs}), settings, port=GATEWAY_PORT)


if __name__ == "__main__":
    main()

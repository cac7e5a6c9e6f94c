"""Which models there are, and where their stages live."""

from __future__ import annotations

from collections.abc import Mapping

import httpx2
from fastapi import FastAPI

from triptych.gateway.app import create_app
from triptych.gateway.settings import GatewaySettings
from triptych.pipeline import Pipeline
from triptych.remote import RemoteDecoder, RemoteDiffusion, RemoteImageEncoder, RemoteTextEncoder, make_client
from triptych.serving.lifespan import run_stages
from triptych.serving.stage_app import LocalDecoder, LocalDiffusion, LocalImageEncoder, LocalTextEncoder


def remote_gateway(settings: GatewaySettings) -> FastAPI:
    """A gateway whose three stages are services.

    Raises:
        StartError: An address cannot be read.
    """
    client = make_client()
    return create_app(settings, remote_models(settings, client), resources=[client])


def local_gateway(
    settings: GatewaySettings,
    text_encoder: LocalTextEncoder,
    diffusion: LocalDiffusion,
    decoder: LocalDecoder,
    image_encoder: LocalImageEncoder,
) -> FastAPI:
    """A gateway and its three stages in one process."""
    stages = (text_encoder, diffusion, decoder, image_encoder)
    return create_app(settings, {settings.model_name: Pipeline(*stages)}, resources=[run_stages(*stages)])


def remote_models(settings: GatewaySettings, client: httpx2.AsyncClient) -> Mapping[str, Pipeline]:
    """The one model whose three stages the settings name.

    Args:
        settings: Addresses, the token of the stages, and the model's name.
        client: What carries the requests; closed by whoever made it.

    Raises:
        StartError: An address cannot be read.
    """
    token = settings.stage_token.get_secret_value() if settings.stage_token else None
    pipeline = Pipeline(
        text_encoder=RemoteTextEncoder(settings.text_encoder_url, token=token, client=client),
        diffusion=RemoteDiffusion(settings.diffusion_url, token=token, client=client),
        decoder=RemoteDecoder(settings.decoder_url, token=token, client=client),
        image_encoder=RemoteImageEncoder(settings.image_encoder_url or settings.decoder_url, token=token, client=client),
    )
    return {settings.model_name: pipeline}

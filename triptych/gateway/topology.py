"""Which models there are, and where their stages live."""

from __future__ import annotations

from collections.abc import Mapping

import httpx2
from fastapi import FastAPI

from triptych.errors import StartError
from triptych.gateway.app import create_app
from triptych.gateway.live_topology import LiveTopology
from triptych.gateway.remote_models import RemoteModels
from triptych.gateway.settings import GatewaySettings
from triptych.gateway.topology_file import ModelEntry, write_new
from triptych.pipeline import Pipeline
from triptych.remote import Patience, make_client
from triptych.serving.lifespan import run_stages
from triptych.serving.stage_app import LocalDecoder, LocalDiffusion, LocalImageEncoder, LocalTextEncoder
from triptych.serving.stage_metrics import StageMetrics


def remote_gateway(settings: GatewaySettings) -> FastAPI:
    """A gateway whose stages are services: those of the topology file where one is named, else the one model of the addresses.

    A topology file that is not there yet is written, from the addresses.

    Raises:
        StartError: An address cannot be read, or the topology file says something that is impossible.
    """
    client = make_client(ca_file=settings.stage_ca_file)
    if settings.topology is None:
        return create_app(settings, remote_models(settings, client), resources=[client])
    models = _models(settings, client)
    if not settings.topology.exists():
        write_new(settings.topology, (entry_of(settings),))
    live = LiveTopology(settings.topology, models)
    return create_app(settings, live.registry, resources=[client, live], topology=live)


def local_gateway(
    settings: GatewaySettings,
    text_encoder: LocalTextEncoder,
    diffusion: LocalDiffusion,
    decoder: LocalDecoder,
    image_encoder: LocalImageEncoder,
) -> FastAPI:
    """A gateway and its three stages in one process.

    Raises:
        StartError: A topology file is named, which says where stages are that are elsewhere.
    """
    if settings.topology is not None:
        raise StartError("TRIPTYCH_TOPOLOGY says where stages are, and all_in_one has its own: it is for the gateway alone")
    stages = (text_encoder, diffusion, decoder, image_encoder)
    app = create_app(settings, {settings.model_name: Pipeline(*stages)}, resources=[run_stages(*stages)])
    app.state.metrics.registry.register(StageMetrics(*stages))
    return app


def remote_models(settings: GatewaySettings, client: httpx2.AsyncClient) -> Mapping[str, Pipeline]:
    """The one model whose three stages the settings name.

    Args:
        settings: Addresses, the token of the stages, and the model's name.
        client: What carries the requests; closed by whoever made it.

    Raises:
        StartError: An address cannot be read.
    """
    return {settings.model_name: _models(settings, client).pipeline(entry_of(settings))}


def entry_of(settings: GatewaySettings) -> ModelEntry:
    """The settings' addresses as the one model of a topology."""
    return ModelEntry(
        name=settings.model_name,
        text_encoder=(settings.text_encoder_url,),
        diffusion=(settings.diffusion_url,),
        decoder=(settings.decoder_url,),
        image_encoder=(settings.image_encoder_url,) if settings.image_encoder_url else (),
    )


def _models(settings: GatewaySettings, client: httpx2.AsyncClient) -> RemoteModels:
    return RemoteModels(
        client,
        token=_stage_token(settings),
        patience=Patience(wait_seconds=settings.stage_wait_seconds, stall_seconds=settings.stall_seconds),
        context_cache_bytes=settings.context_cache_bytes,
    )


def _stage_token(settings: GatewaySettings) -> str | None:
    return settings.stage_token.get_secret_value() if settings.stage_token else None

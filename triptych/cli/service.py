"""`triptych serve`: one service in this process; what `services/` deploys, without a file to deploy.

Each stage is imported alone, and only where it is served: a decoder's machine need not hold what a text encoder needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastapi import FastAPI

GATEWAYS = ("central", "all_in_one")
LOOPBACK = "127.0.0.1"


def run_service(service: str, *, host: str | None, port: int | None, insecure: bool) -> None:
    """Serves until it is told to stop. What is None or False here, the environment's settings say.

    Raises:
        StartError: A setting is impossible.
    """
    from triptych.gateway.settings import GatewaySettings
    from triptych.serving.logs import configure_logging
    from triptych.serving.server import serve
    from triptych.serving.settings import GATEWAY_PORT, STAGE_PORTS, StageSettings, read_settings

    given: dict[str, Any] = {"host": host, "port": port, "insecure": insecure or None}
    kind = GatewaySettings if service in GATEWAYS else StageSettings
    settings = read_settings(kind, **{name: value for name, value in given.items() if value is not None})
    configure_logging(log_format=settings.log_format, log_level=settings.log_level)
    ports = {str(stage): stage_port for stage, stage_port in STAGE_PORTS.items()}
    serve(make_app(service, settings), settings, port=ports.get(service, GATEWAY_PORT))


def prepare_stage(stage: str) -> None:
    """Starts a stage once, which leaves its compiled network in the cache folder, and serves nothing.

    Raises:
        TriptychError: A setting is impossible, or the stage does not start.
    """
    from triptych.cli.console import say
    from triptych.serving.logs import configure_logging
    from triptych.serving.settings import StageSettings, read_settings

    settings = read_settings(StageSettings, host=LOOPBACK)
    configure_logging(log_format=settings.log_format, log_level=settings.log_level)
    for prepared in _make_stages(stage, settings):
        prepared.start()
        prepared.close()
    say(f"{stage} is prepared in {settings.cache_folder}")


def make_app(service: str, settings: Any) -> FastAPI:
    """The service's app, which starts its stages when it is served and not before.

    Args:
        service: Its name.
        settings: GatewaySettings or StageSettings, as the service wants.
    """
    if service == "central":
        from triptych.gateway.topology import remote_gateway

        return remote_gateway(settings)
    if service == "all_in_one":
        return _make_all_in_one(settings)
    from triptych.serving.stage_app import stage_app

    first, *beside = _make_stages(service, settings)
    return stage_app(first, settings, *beside)


def _make_all_in_one(settings: Any) -> FastAPI:
    from triptych.gateway.topology import local_gateway
    from triptych.serving.settings import StageSettings, read_settings

    # Only the gateway listens: the stages' own door is never opened, and needs no token.
    stages = read_settings(StageSettings, host=LOOPBACK)
    made = [stage for service in ("text_encoder", "diffusion", "decoder") for stage in _make_stages(service, stages)]
    return local_gateway(settings, *made)


def _make_stages(service: str, settings: Any) -> list[Any]:
    """What a stage's service serves, what it is named by first."""
    if service == "text_encoder":
        from triptych.stages.text_encoder import TextEncoderStage

        return [TextEncoderStage(settings)]
    if service == "diffusion":
        from triptych.stages.diffusion import DiffusionStage

        return [DiffusionStage(settings)]
    from triptych.stages.decoder import DecoderStage
    from triptych.stages.image_encoder import ImageEncoderStage

    return [DecoderStage(settings), ImageEncoderStage(settings)]

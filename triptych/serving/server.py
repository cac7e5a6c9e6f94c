"""A service as a process."""

from __future__ import annotations

import contextlib
from typing import TypeVar

import uvicorn
from fastapi import FastAPI

from triptych.errors import StartError
from triptych.serving.logs import configure_logging
from triptych.serving.settings import ServerSettings, read_settings

KEEPALIVE_SECONDS = 75
"""Longer than our clients keep an idle connection, so that it is never the server that closes one under a request."""

Settings = TypeVar("Settings", bound=ServerSettings)


def start_service(kind: type[Settings]) -> Settings:
    """The first line of each service: settings from the environment, and logs as they say.

    Raises:
        SystemExit: A setting is impossible; the sentence goes to standard error.
    """
    try:
        settings = read_settings(kind)
    except StartError as error:
        raise SystemExit(error.message) from None
    configure_logging(log_format=settings.log_format, log_level=settings.log_level)
    return settings


def serve(app: FastAPI, settings: ServerSettings, *, port: int) -> None:
    """Serves until SIGTERM or SIGINT; what runs is finished first, for at most `shutdown_seconds`.

    Args:
        app: What to serve.
        settings: Where, unless they leave the port open.
        port: The service's own, where the settings name none.
    """
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=port if settings.port is None else settings.port,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        timeout_keep_alive=KEEPALIVE_SECONDS,
        timeout_graceful_shutdown=round(settings.shutdown_seconds),
    )
    # After SIGINT uvicorn has shut down in order and raises it once more, which is nobody's business.
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run()

"""The gateway as a service: settings in, app out."""

from __future__ import annotations

from fastapi import FastAPI

from triptych.gateway.settings import GatewaySettings
from triptych.gateway.topology import remote_gateway
from triptych.serving.server import start_service


def create_app() -> FastAPI:
    return remote_gateway(start_service(GatewaySettings))

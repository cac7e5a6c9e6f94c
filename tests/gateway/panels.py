"""A gateway that follows a topology file, before fake stage services; all in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from asgi_lifespan import LifespanManager
from fastapi import FastAPI

from tests.fakes import FakeDecoder, FakeDiffusion, FakeImageEncoder, FakeTextEncoder, with_profile
from tests.gateway.running import client_of
from triptych.contract import Task
from triptych.gateway import topology
from triptych.gateway.settings import GatewaySettings
from triptych.remote import make_client
from triptych.serving.settings import StageSettings
from triptych.serving.stage_app import stage_app

TEXT_ENCODER, DIFFUSION, DECODER, NEXT = 8001, 8002, 8003, 8012
"""Ports. At NEXT is another diffusion model, ready to be swapped in."""


def at(port: int) -> str:
    return f"http://stage:{port}"


def model_table(name: str = "", *, diffusion: int = DIFFUSION, **others: str) -> str:
    """A `[[models]]` of a topology file, on the ends that all share."""
    told = {"text_encoder": at(TEXT_ENCODER), "diffusion": at(diffusion), "decoder": at(DECODER)} | others
    if name:
        told["name"] = name
    return "[[models]]\n" + "".join(f'{key} = "{value}"\n' for key, value in told.items())


class Panels(httpx2.AsyncBaseTransport):
    """The network: stages by their ports. Whoever is not there cannot be reached."""

    def __init__(self) -> None:
        self.stages: dict[int, Any] = {}
        self._apps: dict[int, httpx2.ASGITransport] = {}
        self.add(TEXT_ENCODER, FakeTextEncoder())
        self.add(DIFFUSION, diffusion("old"))
        self.add(NEXT, diffusion("new", takes_masked_image=True))
        self.add(DECODER, FakeDecoder(), FakeImageEncoder())

    def add(self, port: int, stage: Any, *beside: Any) -> Any:
        self.stages[port] = stage
        self._apps[port] = httpx2.ASGITransport(stage_app(stage, StageSettings(), *beside))
        return stage

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        app = self._apps.get(request.url.port or 80)
        if app is None or self.stages[request.url.port or 80] is None:
            raise httpx2.ConnectError("nobody is there")
        return await app.handle_async_request(request)


def diffusion(model: str, **profile: Any) -> FakeDiffusion:
    """A diffusion stage with weights of its own, for which pictures are changed too."""
    digest = model.encode().hex().ljust(64, "0")
    return with_profile(FakeDiffusion(), model=model, weights_digest=digest, tasks=tuple(Task), **profile)


class LiveGateway:
    """A gateway on a file, and what a caller sees of it."""

    def __init__(self, path: Path, panels: Panels) -> None:
        self.path = path
        self.panels = panels
        self.app: FastAPI
        self.client: httpx2.AsyncClient

    @asynccontextmanager
    async def running(self, **settings: Any) -> AsyncIterator[LiveGateway]:
        told = {"topology": self.path, "stage_wait_seconds": 0} | settings
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(topology, "make_client", lambda **_: make_client(transport=self.panels))
            self.app = topology.remote_gateway(GatewaySettings(**told))
        async with LifespanManager(self.app), client_of(self.app) as self.client:
            yield self

    async def generate(self, **body: Any) -> httpx2.Response:
        return await self.client.post("/generate", json={"prompt": "a red circle", "seed": 7, **body})

    async def made_by(self, **body: Any) -> tuple[str, str]:
        """The name that a picture's answer gives its model, and the one of its diffusion stage."""
        answer = await self.generate(**body)
        assert answer.status_code == 200, answer.text
        return answer.json()["model"], answer.json()["receipt"]["stages"]["diffusion"]["model"]

    async def swap(self, **body: Any) -> httpx2.Response:
        return await self.client.post("/admin/swap", json=body)

    async def told(self) -> dict[str, Any]:
        answer: dict[str, Any] = (await self.client.get("/models")).json()
        return answer

    async def steps(self) -> list[tuple[str, str | None]]:
        return [(step["step"], step["model"]) for step in (await self.told())["steps"]]


@pytest.fixture
def panels() -> Panels:
    return Panels()


@pytest.fixture
def gateway(tmp_path: Path, panels: Panels) -> LiveGateway:
    """Not running yet: its file says that there is one model, named by its diffusion stage."""
    path = tmp_path / "topology.toml"
    path.write_text(model_table())
    return LiveGateway(path, panels)

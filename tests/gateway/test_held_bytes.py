"""What the gateway holds of all requests together is bounded: their bodies before they are read, their pictures once decoded."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from asgi_lifespan import LifespanManager
from PIL import Image

from tests.fakes import FakeDiffusion, FakeImageEncoder
from tests.gateway.running import Stages, client_of, until
from tests.gateway.test_waiting import BreakingDiffusion
from triptych.contract import DenoiseEvent, DenoiseRequest
from triptych.errors import StageBrokeOff, StartError
from triptych.gateway.settings import GatewaySettings
from triptych.serving.settings import read_settings

BODY_BYTES = 2**20
PIXELS = 96 * 64
JSON = {"Content-Type": "application/json"}


def most(bodies: int) -> dict[str, int]:
    """Settings of a gateway that holds so many of the largest bodies, and a picture and a mask that are decoded."""
    held = bodies * BODY_BYTES + 4 * PIXELS
    return {"max_body_bytes": BODY_BYTES, "max_image_pixels": PIXELS, "max_held_bytes": held}


@pytest.mark.parametrize("path", ["/generate", "/jobs"])
async def test_a_body_too_many_is_refused_unread(tmp_path, path: str) -> None:
    kept = {"jobs_database": str(tmp_path / "jobs.sqlite3"), "jobs_store": str(tmp_path / "jobs")}
    app = Stages().app(**most(1), **kept)
    gateway, read = app.state.gateway, asyncio.Event()

    async def coming() -> Any:
        await read.wait()
        yield b'{"prompt": "x"}'

    async def unread() -> Any:
        yield pytest.fail("the body was read")

    async with LifespanManager(app), client_of(app) as client:
        first = asyncio.create_task(client.post("/generate", content=coming(), headers=JSON))  # it does not say how much it is
        await until(lambda: gateway.bodies.held_bytes)
        second = await client.post(path, content=unread(), headers=JSON)
        read.set()
        assert (await first).status_code == 200
        assert (await client.post("/generate", json={"prompt": "x"})).status_code == 200
    assert second.status_code == 429
    assert second.headers["Retry-After"] == "1"
    assert second.json()["error"]["message"].startswith(
        f"requests of {BODY_BYTES} bytes are here already, and with {BODY_BYTES} more"
    )
    assert gateway.bodies.held_bytes == 0


async def test_pictures_count_as_they_are_once_decoded() -> None:
    file = io.BytesIO()
    Image.new("RGB", (96, 64)).save(file, "PNG")
    body = {"prompt": "x", "image": base64.b64encode(file.getvalue()).decode()}
    gate = asyncio.Event()
    stages = Stages(diffusion=FakeDiffusion(gate=gate), image_encoder=FakeImageEncoder())
    app = stages.app(**most(1))
    async with client_of(app) as client:
        first = asyncio.create_task(client.post("/generate", json=body))
        await stages.diffusion.arrivals.get()
        held = app.state.gateway.bodies.held_bytes
        assert 3 * PIXELS < held < 3 * PIXELS + 2000
        app.state.gateway.bodies._most_bytes = held + 3 * PIXELS
        refused = await client.post("/generate", json=body)
        gate.set()
        assert (await first).status_code == 200
    assert refused.status_code == 429
    assert f"with {3 * PIXELS} more it would be over" in refused.json()["error"]["message"]
    assert app.state.gateway.bodies.held_bytes == 0


async def test_what_is_held_is_counted_in_a_second_attempt_too() -> None:
    class Weighing(BreakingDiffusion):
        async def denoise(self, request: DenoiseRequest, *, deadline: float | None = None) -> AsyncGenerator[DenoiseEvent, None]:
            held.append(app.state.gateway.bodies.held_bytes)
            async for event in super().denoise(request, deadline=deadline):
                yield event

    held: list[int] = []
    stages = Stages(diffusion=Weighing(StageBrokeOff("broke off", stage="diffusion")))
    app = stages.app(**most(1))
    async with client_of(app) as client:
        assert (await client.post("/generate", json={"prompt": "x"})).status_code == 200
    first, second = held
    assert first == second > 0
    assert app.state.gateway.bodies.held_bytes == 0


async def test_a_body_that_did_not_say_how_much_it_is_counts_as_what_it_was() -> None:
    async def coming() -> Any:
        yield b'{"prompt": "x"}'

    gate = asyncio.Event()
    stages = Stages(diffusion=FakeDiffusion(gate=gate))
    app = stages.app(**most(1))
    async with client_of(app) as client:
        first = asyncio.create_task(client.post("/generate", content=coming(), headers=JSON))
        await stages.diffusion.arrivals.get()
        held = app.state.gateway.bodies.held_bytes
        gate.set()
        assert (await first).status_code == 200
    assert held == len(b'{"prompt": "x"}')


def test_one_request_must_fit() -> None:
    assert read_settings(GatewaySettings, **most(1)).max_held_bytes == BODY_BYTES + 4 * PIXELS
    with pytest.raises(StartError, match=f"TRIPTYCH_MAX_HELD_BYTES must be at least {BODY_BYTES + 4 * PIXELS}: with "):
        read_settings(GatewaySettings, **{**most(1), "max_held_bytes": BODY_BYTES})

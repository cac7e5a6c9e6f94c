"""What the gateway holds of all requests together is bounded: their bodies before they are read, their pictures once decoded."""

from __future__ import annotations

import asyncio
import base64
import gc
import io
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from asgi_lifespan import LifespanManager
from PIL import Image

from tests.fakes import FakeDiffusion, FakeImageEncoder
from tests.gateway.running import Connection, Stages, client_of, until
from tests.gateway.test_jobs import running
from tests.gateway.test_waiting import BreakingDiffusion
from triptych.contract import DenoiseEvent, DenoiseRequest
from triptych.errors import StageBrokeOff, StartError
from triptych.gateway.editing import Pictures
from triptych.gateway.jobs import worker
from triptych.gateway.settings import GatewaySettings
from triptych.serving.settings import read_settings

BODY_BYTES = 2**20
PIXELS = 96 * 64
JSON = {"Content-Type": "application/json"}


def most(bodies: int) -> dict[str, int]:
    """Settings of a gateway that holds so many of the largest bodies, and a picture and a mask that are decoded."""
    held = bodies * BODY_BYTES + 4 * PIXELS
    return {"max_body_bytes": BODY_BYTES, "max_image_pixels": PIXELS, "max_held_bytes": held}


def jobs_in(folder: Path) -> dict[str, str]:
    return {"jobs_database": str(folder / "jobs.sqlite3"), "jobs_store": str(folder / "jobs")}


@pytest.mark.parametrize("path", ["/generate", "/jobs"])
async def test_a_body_too_many_is_refused_unread(tmp_path, path: str) -> None:
    app = Stages().app(**most(1), **jobs_in(tmp_path))
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


def with_a_picture() -> dict[str, Any]:
    """A body of less than 2000 bytes, and a picture of PIXELS once it is decoded."""
    file = io.BytesIO()
    Image.new("RGB", (96, 64)).save(file, "PNG")
    return {"prompt": "x", "image": base64.b64encode(file.getvalue()).decode()}


def gated() -> tuple[Stages, asyncio.Event]:
    """Stages that change pictures, where nothing is denoised before the event is set."""
    gate = asyncio.Event()
    return Stages(diffusion=FakeDiffusion(gate=gate), image_encoder=FakeImageEncoder()), gate


def held_pictures() -> list[Pictures]:
    """That anything in this process refers to."""
    return [each for each in gc.get_objects() if isinstance(each, Pictures) and each.image is not None]


async def test_pictures_count_as_they_are_once_decoded() -> None:
    body = with_a_picture()
    stages, gate = gated()
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


async def test_who_waits_in_line_is_counted() -> None:
    stages, gate = gated()
    app = stages.app(**most(2), max_running_requests=1)
    bodies = app.state.gateway.bodies
    async with client_of(app) as client:
        first = asyncio.create_task(client.post("/generate", json=with_a_picture()))
        await stages.diffusion.arrivals.get()
        of_one = bodies.held_bytes
        assert of_one > 3 * PIXELS
        second = asyncio.create_task(client.post("/generate", json=with_a_picture()))
        await until(lambda: app.state.gateway.admission.waiting)
        assert bodies.held_bytes == 2 * of_one
        gate.set()
        assert [(await each).status_code for each in (first, second)] == [200, 200]
    assert bodies.held_bytes == 0


@pytest.mark.parametrize("key", ["", "mine"])
@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_what_is_detached_is_counted_until_it_has_ended_and_then_held_no_more(accept: str, key: str) -> None:
    stages, gate = gated()
    app = stages.app(**most(1))
    bodies = app.state.gateway.bodies
    connection = Connection(app, {**with_a_picture(), "detach": True}, accept=accept, idempotency_key=key)
    await stages.diffusion.arrivals.get()
    held = bodies.held_bytes
    assert held > 3 * PIXELS
    await connection.close()
    assert bodies.held_bytes == held
    assert held_pictures()
    gate.set()
    await until(lambda: app.state.gateway.admission.running == 0)
    await until(lambda: not bodies.held_bytes)
    gc.collect()
    assert not held_pictures(), "what the run came to is kept, what it was made of is not"


async def test_who_waits_for_a_run_of_another_is_counted_beside_it() -> None:
    stages, gate = gated()
    app = stages.app(**most(2))
    bodies = app.state.gateway.bodies
    first = Connection(app, with_a_picture(), idempotency_key="mine")
    await stages.diffusion.arrivals.get()
    of_one = bodies.held_bytes
    assert of_one > 3 * PIXELS
    second = Connection(app, with_a_picture(), idempotency_key="mine")
    await until(lambda: bodies.held_bytes == 2 * of_one)
    await first.close()
    assert bodies.held_bytes == 2 * of_one, "the run is at work for the other"
    gate.set()
    await until(second.task.done)
    assert (second.status, len(stages.diffusion.asked)) == (200, 1)
    await until(lambda: not bodies.held_bytes)


async def test_a_job_is_counted_while_it_is_at_work(tmp_path) -> None:
    stages, gate = gated()
    async with running(stages, **most(1), **jobs_in(tmp_path)) as jobs:
        bodies = jobs.app.state.gateway.bodies
        job = await jobs.submit(**with_a_picture())
        await stages.diffusion.arrivals.get()
        await until(lambda: bodies.held_bytes < 3 * PIXELS + 2000)  # its caller has its answer
        assert bodies.held_bytes > 3 * PIXELS
        gate.set()
        assert (await jobs.ended(job))["status"] == "completed"
        await until(lambda: not bodies.held_bytes)


async def test_a_job_waits_where_there_is_no_room_for_it(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[int] = []

    def pause(before: int) -> float:
        failures.append(before)
        return 0.01

    monkeypatch.setattr(worker, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(worker, "_pause", pause)
    stages, gate = gated()
    async with running(stages, jobs_running=1, **most(2), **jobs_in(tmp_path)) as jobs:
        first, second = [await jobs.submit(**with_a_picture(), seed=seed) for seed in (1, 2)]
        await stages.diffusion.arrivals.get()
        bodies = jobs.app.state.gateway.bodies
        with bodies.take(PIXELS):
            bodies._most_bytes = 3 * PIXELS
            gate.set()
            await jobs.ended(first)
            await until(lambda: len(failures) == 3)
            assert set(failures) == {1}, "it is no failure"
            assert len(stages.diffusion.asked) == 1
        assert (await jobs.ended(second))["status"] == "completed"


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

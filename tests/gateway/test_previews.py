from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.fakes import DECODER, FakeDecoder, FakeDiffusion
from tests.gateway.running import Connection, Stages, events_of, until
from triptych.contract import Decoded, DecodeRequest, ImageFormat, Memory
from triptych.errors import QueueFull, StageFailed
from triptych.stages.memory import Room

STREAM = "text/event-stream"
NUM_STEPS = 8
BODY = {"prompt": "x", "seed": 3, "num_images": 2, "num_steps": NUM_STEPS, "previews": 2}


class PreviewsFail(FakeDecoder):
    """Its previews hang, or fail; its pictures are made."""

    def __init__(self, failure: Exception | None = None) -> None:
        super().__init__()
        self.preview_failure = failure
        self.previews = 0

    async def decode(self, request: DecodeRequest, *, deadline: float | None = None) -> Decoded:
        if request.image_format is not ImageFormat.JPEG:
            return await super().decode(request, deadline=deadline)
        self.previews += 1
        if self.preview_failure is not None:
            raise self.preview_failure
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        raise AssertionError


class RoomForOneRequest(PreviewsFail):
    """It has memory for two pictures, and a preview in the making has it all."""

    def __init__(self) -> None:
        super().__init__()
        self.room = Room("decoder", Memory(most_bytes=2, picture_bytes={(64, 64): 1}, call_bytes=0))

    async def decode(self, request: DecodeRequest, *, deadline: float | None = None) -> Decoded:
        with self.room.take(len(request.latents), (64, 64), retry_after=lambda: 1.0):
            return await super().decode(request, deadline=deadline)


class Followed:
    """A request for previews whose denoising goes on only when it is told to."""

    def __init__(self, stages: Stages, app: Any = None, **body: Any) -> None:
        self.diffusion = stages.diffusion
        self.turnstile = self.diffusion.turnstile = asyncio.Semaphore(0)
        self.position = 0
        self.app = app or stages.app()
        self.connection = Connection(self.app, {**BODY, **body}, accept=STREAM)

    async def go_to(self, position: int) -> None:
        for _ in range(self.position, position):
            self.turnstile.release()
        self.position = position
        await until(lambda: f'"position": {position}, "num_evaluations"'.encode() in self.connection.body)

    async def finish(self) -> None:
        await self.go_to(NUM_STEPS)
        await self.connection.task

    def events(self, name: str) -> list[Any]:
        return [data for event, data in events_of(self.connection.body.decode()) if event == name]


def counted(app: Any) -> dict[str, float]:
    samples: Iterator[Any] = (sample for metric in app.state.metrics.registry.collect() for sample in metric.samples)
    return {sample.labels["outcome"]: sample.value for sample in samples if sample.name == "triptych_previews_total"}


async def test_previews_come_while_the_picture_is_being_made() -> None:
    stages = Stages()
    followed = Followed(stages)
    await followed.go_to(2)
    await until(lambda: followed.events("preview"))
    await followed.go_to(4)
    await until(lambda: len(followed.events("preview")) == 2)
    assert stages.diffusion.evaluations == 4
    assert not followed.events("completed")
    await followed.finish()

    previews = followed.events("preview")
    assert [(preview["position"], preview["num_evaluations"]) for preview in previews] == [(2, 8), (4, 8)]
    pictures = [Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))) for image in previews[0]["images"]]
    assert [(picture.format, picture.size) for picture in pictures] == [("JPEG", (64, 64))] * 2
    assert np.asarray(pictures[0]).tobytes() != np.asarray(pictures[1]).tobytes()
    assert len(followed.events("completed")) == 1
    assert counted(followed.app) == {"made": 2.0}


async def test_previews_change_nothing_about_the_picture() -> None:
    stages = Stages()
    followed = Followed(stages)
    await followed.finish()
    stages.diffusion.turnstile = None
    async with stages.client() as client:
        plain = (await client.post("/generate", json={key: value for key, value in BODY.items() if key != "previews"})).json()
    (completed,) = followed.events("completed")
    assert {**completed, "id": None, "timings": None} == {**plain, "id": None, "timings": None}


async def test_without_a_wish_for_previews_no_states_are_asked_for() -> None:
    stages = Stages()
    async with stages.client() as client:
        for body in ({"prompt": "x"}, {"prompt": "x", "previews": 0}, {"prompt": "x", "previews": None}):
            answer = await client.post("/generate", json=body, headers={"Accept": STREAM})
            assert "event: preview" not in answer.text
    assert [(asked.progress_every, asked.previews) for asked in stages.diffusion.asked] == [(None, False)] * 3


async def test_a_preview_that_hangs_delays_neither_the_denoising_nor_the_picture() -> None:
    decoder = PreviewsFail()
    stages = Stages(decoder=decoder)
    followed = Followed(stages)
    await followed.finish()

    assert decoder.previews == 1, "one at a time"
    assert decoder.cancelled == 1
    assert len(followed.events("completed")) == 1
    assert followed.events("preview") == []
    assert counted(followed.app) == {"dropped": 2.0}


@pytest.mark.parametrize(
    "failure",
    [
        QueueFull("the decoder is full", retry_after_seconds=1.0),
        StageFailed("the decoder broke off", stage="decoder"),
        ZeroDivisionError("a bug"),
    ],
)
async def test_a_preview_that_fails_is_dropped_and_counted(failure: Exception) -> None:
    stages = Stages(decoder=PreviewsFail(failure))
    followed = Followed(stages)
    await followed.finish()

    assert len(followed.events("completed")) == 1
    assert followed.events("error") == []
    assert counted(followed.app) == {"dropped": 2.0}


async def test_while_another_picture_is_with_the_decoder_there_are_no_previews() -> None:
    stages = Stages(decoder=FakeDecoder(gate=asyncio.Event()))
    app = stages.app()
    other = Connection(app, {"prompt": "other"})
    await until(lambda: stages.decoder.asked)
    followed = Followed(stages, app)
    await followed.go_to(4)
    await until(lambda: counted(app) == {"dropped": 2.0})

    assert len(stages.decoder.asked) == 1
    assert stages.decoder.gate is not None
    stages.decoder.gate.set()
    await other.task
    await followed.finish()
    assert followed.events("preview") == []


async def test_a_preview_makes_way_for_another_requests_picture() -> None:
    decoder = PreviewsFail()
    stages = Stages(decoder=decoder)
    app = stages.app()
    followed = Followed(stages, app)
    await followed.go_to(2)
    await until(lambda: decoder.previews)
    stages.diffusion.turnstile = None
    other = Connection(app, {"prompt": "other", "num_steps": 1})
    await until(lambda: other.sent)

    assert other.status == 200
    assert decoder.cancelled == 1
    await other.close()
    await followed.connection.close()


@pytest.mark.parametrize("whose", ["its own", "another's"])
async def test_a_preview_is_gone_before_a_picture_comes_for_whose_memory_it_has(whose: str) -> None:
    decoder = RoomForOneRequest()
    stages = Stages(decoder=decoder)
    app = stages.app()
    followed = Followed(stages, app)
    await followed.go_to(2)
    await until(lambda: decoder.previews)
    if whose == "its own":
        await followed.finish()
        assert len(followed.events("completed")) == 1, followed.connection.body
    else:
        stages.diffusion.turnstile = None
        other = Connection(app, {"prompt": "other", "num_steps": 1})
        await until(lambda: other.sent)
        assert other.status == 200, other.body
        await other.close()
        await followed.connection.close()
    assert decoder.cancelled == 1


async def test_a_caller_that_leaves_takes_its_preview_along() -> None:
    decoder = PreviewsFail()
    stages = Stages(decoder=decoder)
    followed = Followed(stages)
    await followed.go_to(2)
    await until(lambda: decoder.previews)

    await followed.connection.close()

    assert decoder.cancelled == 1


@pytest.mark.parametrize("accept", ["application/json", "image/png", "*/*"])
async def test_previews_come_as_events_only(accept: str) -> None:
    async with Stages().client() as client:
        answer = await client.post("/generate", json={"prompt": "x", "previews": 1}, headers={"Accept": accept})
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "previews"
    assert "Accept: text/event-stream" in answer.json()["error"]["message"]


@pytest.mark.parametrize("previews", [-1, 21, 1.5, "2", True])
async def test_impossible_numbers_are_refused(previews: Any) -> None:
    async with Stages().client() as client:
        answer = await client.post("/generate", json={"prompt": "x", "previews": previews}, headers={"Accept": STREAM})
    assert answer.status_code == 422
    assert answer.json()["error"]["message"].startswith("previews must be a whole number from 0 to 20")


@pytest.mark.parametrize(("num_steps", "previews", "every"), [(25, 3, 6), (8, 2, 2), (4, 20, 1), (1, 1, 1), (150, 1, 75)])
async def test_previews_are_spread_over_the_steps(num_steps: int, previews: int, every: int) -> None:
    stages = Stages(diffusion=FakeDiffusion())
    async with stages.client() as client:
        body = {"prompt": "x", "num_steps": num_steps, "previews": previews}
        await client.post("/generate", json=body, headers={"Accept": STREAM})
    assert (stages.diffusion.asked[0].progress_every, stages.diffusion.asked[0].previews) == (every, True)


@pytest.mark.parametrize("has_preview_decoder", [True, False])
async def test_previews_and_no_pictures_go_through_the_preview_decoder(has_preview_decoder: bool) -> None:
    class Watched(FakeDecoder):
        profile = replace(DECODER, has_preview_decoder=has_preview_decoder)

        async def decode(self, request: DecodeRequest, *, deadline: float | None = None) -> Decoded:
            asked.append((request.image_format, request.preview))
            return await super().decode(request, deadline=deadline)

    asked: list[tuple[ImageFormat | None, bool]] = []
    followed = Followed(Stages(decoder=Watched()))
    await followed.go_to(2)
    await until(lambda: followed.events("preview"))
    await followed.finish()
    assert (ImageFormat.JPEG, has_preview_decoder) in asked
    assert (ImageFormat.JPEG, not has_preview_decoder) not in asked
    assert (ImageFormat.PNG, False) in asked

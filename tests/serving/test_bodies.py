"""Bodies that do not come, or come in drops: a stage waits for them so long, and lets go of all that it held for them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message

from tests.fakes import FakeDiffusion
from triptych.errors import BodyTooSlow, TooLarge
from triptych.serving.bodies import read_in_time
from triptych.serving.settings import StageSettings
from triptych.serving.stage_app import stage_app
from triptych.wire.frames import MEDIA_TYPE

INFER = "/v2/models/diffusion/infer"


def request_of(*parts: bytes, stalls: bool = False) -> Request:
    """A request whose body comes in these parts, and then ends, or does not."""
    coming = list(parts)

    async def receive() -> Message:
        if stalls and not coming:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": coming.pop(0), "more_body": bool(coming) or stalls}

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


async def test_a_body_that_comes_in_time_is_read_whole() -> None:
    assert await read_in_time(request_of(b"ab", b"c"), limit=3, seconds=20) == b"abc"


async def test_one_that_stalls_is_refused() -> None:
    with pytest.raises(BodyTooSlow, match=r"the body was not all here after 0\.05 s"):
        await read_in_time(request_of(b"ab", stalls=True), limit=3, seconds=0.05)


async def test_one_that_is_too_large_is_not_too_slow() -> None:
    with pytest.raises(TooLarge):
        await read_in_time(request_of(b"ab", b"cd", stalls=True), limit=3, seconds=20)


@pytest.mark.parametrize("accept", ["*/*", MEDIA_TYPE])
async def test_a_stage_keeps_no_place_for_it(connect, accept: str) -> None:
    stage = FakeDiffusion()
    client = connect(stage_app(stage, StageSettings(body_timeout_seconds=0.05, max_requests=1)))

    async def stalling() -> Any:
        yield b"{"
        await asyncio.Event().wait()

    for _ in range(2):
        answer = await client.post(INFER, content=stalling(), headers={"Accept": accept})
        assert (answer.status_code, answer.headers["Connection"]) == (408, "close")
        assert answer.json() == {"error": "the body was not all here after 0.05 s, which is as long as it is waited for"}
    assert stage.asked == []

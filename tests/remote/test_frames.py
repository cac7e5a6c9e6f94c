"""Remote diffusion in frames: events as they come, states to resume from, and streams that break."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx2
import numpy as np
import pytest

from tests.fakes import DIFFUSION, FakeDiffusion
from tests.remote.sockets import answering, listening
from triptych.contract import Denoised, DenoiseRequest, Progress, State
from triptych.errors import (
    Conflict,
    InvalidValue,
    QueueFull,
    StageBrokeOff,
    StageFailed,
    StageNotReady,
    StageTimeout,
    TriptychError,
)
from triptych.remote import RemoteDiffusion, make_client
from triptych.serving.settings import StageSettings
from triptych.serving.stage_app import stage_app
from triptych.wire import diffusion
from triptych.wire.frames import MEDIA_TYPE, encode_frame, error_frame
from triptych.wire.metadata import ModelMetadata
from triptych.wire.open_inference import encode_response

REQUEST = DenoiseRequest(
    context=np.linspace(0, 1, 77 * 768, dtype=np.float32).reshape(1, 77, 768),
    unconditional_context=None,
    seeds=np.array([7, 8], np.uint64),
    width=96,
    height=64,
    sampler="euler",
    num_steps=4,
    guidance_scale=1.0,
)
METADATA = diffusion.to_metadata(DIFFUSION)
LATENTS = np.ones((2, 8, 12, 4), np.float32)
PROGRESS = encode_frame(diffusion.write_event(Progress(position=1, num_evaluations=2)))
RESULT = encode_frame(diffusion.write_event(Denoised(latents=LATENTS)))


@asynccontextmanager
async def remote_of(stage: FakeDiffusion) -> AsyncIterator[RemoteDiffusion]:
    """Behind a real socket."""
    async with listening(stage_app(stage, StageSettings())) as url, make_client() as client:
        yield RemoteDiffusion(url, client=client)


def stage_that_answers(content: Any, *, metadata: ModelMetadata = METADATA, headers: Any = None) -> RemoteDiffusion:
    def handler(request: httpx2.Request) -> httpx2.Response:
        if request.method == "GET":
            return httpx2.Response(200, json=metadata.to_json())
        return httpx2.Response(200, content=content, headers=headers or {"Content-Type": MEDIA_TYPE})

    return RemoteDiffusion("http://stage", client=make_client(transport=httpx2.MockTransport(handler)))


async def events_of(stage: Any, request: DenoiseRequest = REQUEST, **options: Any) -> list[Any]:
    return [event async for event in stage.denoise(request, **options)]


async def test_what_a_local_stage_tells_a_remote_one_tells() -> None:
    request = replace(REQUEST, progress_every=2, previews=True)
    local = await events_of(FakeDiffusion(), request)
    async with remote_of(FakeDiffusion()) as stage:
        remote = await events_of(stage, request)
    assert [type(event) for event in remote] == [Progress, Progress, State, Progress, Progress, Denoised]
    assert [event for event in remote if isinstance(event, Progress)] == [event for event in local if isinstance(event, Progress)]
    assert remote[2].state.state_key == local[2].state.state_key
    for name in ("latents", "sampler_state", "position"):
        assert getattr(remote[2].state, name).tobytes() == getattr(local[2].state, name).tobytes()
    assert remote[2].predicted_original.tobytes() == local[2].predicted_original.tobytes()
    assert remote[-1].latents.tobytes() == local[-1].latents.tobytes()


async def test_events_come_while_the_stage_is_at_work() -> None:
    turnstile = asyncio.Semaphore(0)
    async with remote_of(FakeDiffusion(turnstile=turnstile)) as stage:
        positions = []
        async with aclosing(stage.denoise(REQUEST)) as events:
            turnstile.release()
            async for event in events:
                if isinstance(event, Progress):
                    positions.append(event.position)
                    turnstile.release()  # the next evaluation does not begin before this one was told
    assert positions == [1, 2, 3, 4]


async def test_whoever_closes_the_iterator_ends_the_denoising_within_one_evaluation() -> None:
    turnstile = asyncio.Semaphore(2)
    local = FakeDiffusion(turnstile=turnstile)
    async with remote_of(local) as stage:
        events = stage.denoise(REQUEST)
        assert await anext(events) == Progress(position=1, num_evaluations=4)
        assert await anext(events) == Progress(position=2, num_evaluations=4)
        await events.aclose()
        await asyncio.wait_for(local.ended.wait(), 10)
        assert local.evaluations == 2


async def test_whoever_leaves_before_the_first_evaluation_ends_it_too() -> None:
    local = FakeDiffusion(turnstile=asyncio.Semaphore(0))
    async with remote_of(local) as stage:
        waiting = asyncio.create_task(events_of(stage))
        await local.arrivals.get()
        waiting.cancel()
        await asyncio.wait_for(local.ended.wait(), 10)
    assert local.evaluations == 0


@pytest.mark.parametrize("position", [1, 2, 3])
async def test_cut_by_closing_and_resumed_on_another_replica(position: int) -> None:
    (*_, expected) = await events_of(FakeDiffusion())
    async with remote_of(FakeDiffusion()) as one, remote_of(FakeDiffusion()) as other:
        async with aclosing(one.denoise(replace(REQUEST, progress_every=1))) as events:
            async for event in events:
                if isinstance(event, State) and event.state.position[0] == position:
                    state = event.state
                    break
        *progress, resumed = await events_of(other, replace(REQUEST, resume=state))
    assert resumed.latents.tobytes() == expected.latents.tobytes()
    assert [event.position for event in progress] == list(range(position + 1, 5))


async def test_a_deadline_ends_the_waiting_between_frames() -> None:
    local = FakeDiffusion(turnstile=asyncio.Semaphore(1))
    async with remote_of(local) as stage:
        with pytest.raises(StageTimeout):
            await events_of(stage, deadline=time.monotonic() + 0.3)
        await asyncio.wait_for(local.ended.wait(), 10)


async def test_a_refusal_before_the_first_frame() -> None:
    async with remote_of(FakeDiffusion()) as stage:
        *_, state, _, _ = await events_of(stage, replace(REQUEST, progress_every=3))
        other_plan = replace(REQUEST, sampler="ddim", resume=state.state)
        with pytest.raises(Conflict, match=r"^the state belongs to another plan$"):
            await events_of(stage, other_plan)
        too_far = replace(REQUEST, resume=replace(state.state, position=np.array([9, 9], np.int32)))
        with pytest.raises(InvalidValue, match=r"^position must be 0\.\.4$"):
            await events_of(stage, too_far)


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (Conflict("another plan", param="state_key"), Conflict, "^another plan$"),
        (InvalidValue("no"), InvalidValue, "^no$"),
        (QueueFull("full", retry_after_seconds=2.5), QueueFull, "^full$"),
        (StageFailed("NaN", stage="diffusion"), StageFailed, "the diffusion stage at http://stage answered 502: NaN"),
        (StageNotReady("stopping", stage="diffusion"), StageNotReady, "answered 503: stopping"),
        (StageTimeout("late", stage="diffusion"), StageTimeout, "answered 504: late"),
        (TriptychError("a bug"), StageFailed, "answered 500: a bug"),
    ],
)
async def test_an_errors_frame_is_raised_as_what_it_was(error: TriptychError, kind: type[TriptychError], sentence: str) -> None:
    stage = stage_that_answers(PROGRESS + encode_frame(error_frame(error, model_name="diffusion")))
    events = stage.denoise(REQUEST)
    assert await anext(events) == Progress(position=1, num_evaluations=2)
    with pytest.raises(kind, match=sentence) as raised:
        await anext(events)
    assert type(raised.value) is kind
    assert getattr(raised.value, "param", None) == getattr(error, "param", None)
    if isinstance(raised.value, QueueFull):
        assert raised.value.retry_after_seconds == 2.5


@pytest.mark.parametrize("length", [0, 3, 10, len(PROGRESS), len(PROGRESS) + 2, len(PROGRESS + RESULT) - 1])
async def test_a_stream_that_is_cut_broke(length: int) -> None:
    with pytest.raises(StageBrokeOff, match="the diffusion stage at http://stage broke off in the middle of its answer"):
        await events_of(stage_that_answers((PROGRESS + RESULT)[:length]))


async def test_a_connection_that_closes_in_the_middle_of_a_frame() -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {MEDIA_TYPE}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    part = PROGRESS + RESULT[:50]
    async with answering(head + f"{len(part):x}\r\n".encode() + part + b"\r\n") as url, make_client() as client:
        stage = RemoteDiffusion(url, client=client)
        stage._metadata = METADATA
        events = stage.denoise(REQUEST)
        assert await anext(events) == Progress(position=1, num_evaluations=2)
        with pytest.raises(StageBrokeOff, match=f"the diffusion stage at {url} broke off"):
            await anext(events)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\xff\xff\xff\xff", "a frame's header has 4294967295 bytes"),
        (encode_frame(diffusion.write_event(Denoised(latents=LATENTS[:1]))), "latents must have the shape"),
        (encode_frame(diffusion.write_event(Denoised(latents=LATENTS * np.nan))), "latents has values that are NaN"),
        (RESULT + RESULT, "bytes after the last frame"),
        (encode_frame(diffusion.write_event(Progress(position=3, num_evaluations=2))), "position from 0"),
    ],
)
async def test_frames_that_are_none_are_the_stages_fault(content: bytes, sentence: str) -> None:
    with pytest.raises(
        StageFailed, match=f"the diffusion stage at http://stage gave an answer that cannot be used: .*{sentence}"
    ):
        await events_of(stage_that_answers(content))


async def test_frames_that_were_promised_and_do_not_come() -> None:
    body = encode_response(diffusion.write_response(Denoised(latents=LATENTS)))
    with pytest.raises(StageFailed, match="does not answer in frames, though its metadata say so"):
        await events_of(stage_that_answers(body.content, headers=body.headers))


async def test_a_foreign_stage_without_frames_gives_its_result_alone() -> None:
    body = encode_response(diffusion.write_response(Denoised(latents=LATENTS)))
    foreign = replace(METADATA, parameters={})
    (denoised,) = await events_of(
        stage_that_answers(body.content, metadata=foreign, headers=body.headers), replace(REQUEST, progress_every=2)
    )
    assert denoised.latents.tobytes() == LATENTS.tobytes()


async def test_another_stage_at_the_same_address_is_asked_anew() -> None:
    """Who answers in frames is remembered, until something goes wrong."""
    asked: list[str] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.method)
        if request.method == "GET":
            return httpx2.Response(200, json=METADATA.to_json())
        content = RESULT if len(asked) != 3 else RESULT[:9]
        return httpx2.Response(200, content=content, headers={"Content-Type": MEDIA_TYPE})

    stage = RemoteDiffusion("http://stage", client=make_client(transport=httpx2.MockTransport(handler)))
    await events_of(stage)
    with pytest.raises(StageFailed):
        await events_of(stage)
    await events_of(stage)
    assert asked == ["GET", "POST", "POST", "GET", "POST"]

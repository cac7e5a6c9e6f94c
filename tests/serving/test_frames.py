"""Answers of the diffusion stage in frames, and what becomes of states that somebody sends back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import httpx2
import numpy as np
import pytest

from tests.fakes import DIFFUSION, FakeDiffusion
from tests.gateway.running import until
from triptych.contract import Denoised, DenoiseEvent, DenoiseRequest, DenoiseState, Progress, State
from triptych.errors import QueueFull, StageFailed
from triptych.serving.settings import StageSettings
from triptych.serving.stage_app import stage_app
from triptych.wire import diffusion
from triptych.wire.frames import MEDIA_TYPE, Frame, Kind, Refusal, read_refusal
from triptych.wire.open_inference import InferRequest, decode_response, encode_request, read_header_length

INFER = "/v2/models/diffusion/infer"
CONTEXT = np.linspace(0, 1, 77 * 768, dtype=np.float32).reshape(1, 77, 768)
REQUEST = DenoiseRequest(
    context=CONTEXT,
    unconditional_context=None,
    seeds=np.array([7, 8], np.uint64),
    width=96,
    height=64,
    sampler="euler",
    num_steps=4,
    guidance_scale=1.0,
)


def app_of(stage: Any, **settings: Any) -> Any:
    return stage_app(stage, StageSettings(**settings))


async def ask(client: httpx2.AsyncClient, request: InferRequest, *, accept: str = MEDIA_TYPE, **headers: str) -> httpx2.Response:
    body = encode_request(request)
    return await client.post(INFER, content=body.content, headers={**body.headers, "Accept": accept, **headers})


def frames_of(response: httpx2.Response) -> list[Frame]:
    assert (response.status_code, response.headers["Content-Type"]) == (200, MEDIA_TYPE)
    reader = diffusion.frame_reader(REQUEST, DIFFUSION)
    frames = list(reader.feed(response.content))
    assert reader.is_complete
    return frames


def events_of(response: httpx2.Response) -> list[DenoiseEvent]:
    return [diffusion.read_event(frame, REQUEST) for frame in frames_of(response)]


def key(event: DenoiseEvent) -> tuple[str, int | None]:
    match event:
        case Progress():
            return "progress", event.position
        case State():
            return "state", int(event.state.position.min())
        case Denoised():
            return "result", None


def latents_of(response: httpx2.Response) -> bytes:
    assert response.status_code == 200, response.text
    return decode_response(response.content, read_header_length(response.headers)).outputs["latents"].tobytes()


async def test_a_denoising_in_frames(connect) -> None:
    client = connect(app_of(FakeDiffusion()))
    wanted = replace(diffusion.write_request(replace(REQUEST, progress_every=2, previews=True)), id="mine")
    response = await ask(client, wanted)
    events = events_of(response)
    assert list(map(key, events)) == [
        ("progress", 1),
        ("progress", 2),
        ("state", 2),
        ("progress", 3),
        ("progress", 4),
        ("result", None),
    ]
    assert {frame.response.id for frame in frames_of(response)} == {"mine"}
    state, result = events[2], events[-1]
    assert isinstance(state, State)
    assert isinstance(result, Denoised)
    assert state.predicted_original is not None
    assert state.predicted_original.tobytes() == (state.state.latents / 2).tobytes()
    assert result.latents.tobytes() == latents_of(await ask(client, diffusion.write_request(REQUEST), accept="*/*"))


async def test_without_asking_there_are_no_states(connect) -> None:
    events = events_of(await ask(connect(app_of(FakeDiffusion())), diffusion.write_request(REQUEST)))
    assert [kind for kind, _ in map(key, events)] == ["progress"] * 4 + ["result"]


@pytest.mark.parametrize("accept", [f"application/json, {MEDIA_TYPE};q=0.9", MEDIA_TYPE.upper()])
async def test_frames_among_other_kinds(connect, accept: str) -> None:
    response = await ask(connect(app_of(FakeDiffusion())), diffusion.write_request(REQUEST), accept=accept)
    assert key(events_of(response)[-1]) == ("result", None)


async def state_at(client: httpx2.AsyncClient, request: DenoiseRequest, position: int) -> DenoiseState:
    response = await ask(client, diffusion.write_request(replace(request, progress_every=position)))
    return next(event.state for event in events_of(response) if isinstance(event, State))


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
@pytest.mark.parametrize("position", [1, 3])
async def test_resumed_on_another_stage_it_ends_in_the_same_bytes(connect, sampler: str, position: int) -> None:
    one, other = FakeDiffusion(), FakeDiffusion()
    request = replace(REQUEST, sampler=sampler)
    expected = latents_of(await ask(connect(app_of(one)), diffusion.write_request(request), accept="*/*"))
    state = await state_at(connect(app_of(one)), request, position)
    resumed = diffusion.write_request(replace(request, resume=state))
    plain = await ask(connect(app_of(other)), resumed, accept="*/*")
    assert latents_of(plain) == expected
    assert other.evaluations == 4 - position
    events = events_of(await ask(connect(app_of(other)), resumed))
    assert [key(event)[1] for event in events] == [*range(position + 1, 5), None]
    assert isinstance(events[-1], Denoised)
    assert events[-1].latents.tobytes() == expected
    # The comparison can fail: half a state leads somewhere else.
    nudged = replace(state, latents=state.latents + np.float32(0.1))
    other_end = await ask(connect(app_of(other)), diffusion.write_request(replace(request, resume=nudged)), accept="*/*")
    assert latents_of(other_end) != expected


def doctored(state: DenoiseState, **changes: Any) -> InferRequest:
    return diffusion.write_request(replace(REQUEST, resume=replace(state, **changes)))


def cut(name: str) -> Callable[[DenoiseState], InferRequest]:
    def spoil(state: DenoiseState) -> InferRequest:
        written = doctored(state)
        return replace(written, inputs={key: array for key, array in written.inputs.items() if key != name})

    return spoil


def of_five_steps(request: InferRequest) -> InferRequest:
    return replace(request, parameters={**request.parameters, "num_steps": 5})


DOCTORED: Mapping[str, tuple[int, str, Callable[[DenoiseState], InferRequest]]] = {
    "another plan": (409, "the state belongs to", lambda s: of_five_steps(doctored(s))),
    "another key": (409, "the state belongs to", lambda s: doctored(s, state_key="0" * 64)),
    "NaN": (422, "latents has values that are NaN", lambda s: doctored(s, latents=np.full_like(s.latents, np.nan))),
    "NaN kept": (422, "sampler_state has values", lambda s: doctored(s, sampler_state=np.full_like(s.sampler_state, np.inf))),
    "fewer rows": (422, "latents must be", lambda s: doctored(s, latents=s.latents[:1])),
    "another size": (422, "latents must be", lambda s: doctored(s, latents=s.latents[:, :4])),
    "more arrays": (422, "sampler_state must be", lambda s: doctored(s, sampler_state=np.repeat(s.sampler_state, 2, axis=1))),
    "no arrays": (422, "sampler_state must be", lambda s: doctored(s, sampler_state=s.sampler_state[:, :0])),
    "too far": (422, "position must be 0..4", lambda s: doctored(s, position=np.array([2, 5], np.int32))),
    "before the start": (422, "position must be 0..4", lambda s: doctored(s, position=np.array([-1, 2], np.int32))),
    "position of other numbers": (422, "position must be INT32", lambda s: doctored(s, position=s.position.astype(np.int64))),
    "no position": (422, "position is missing", cut("position")),
    "no latents": (422, "latents is missing", cut("latents")),
}  # fmt: skip


@pytest.mark.parametrize("accept", [MEDIA_TYPE, "*/*"])
@pytest.mark.parametrize("what", DOCTORED)
async def test_a_doctored_state_is_refused_with_a_status(connect, what: str, accept: str) -> None:
    status, sentence, spoil = DOCTORED[what]
    stage = FakeDiffusion()
    client = connect(app_of(stage))
    state = await state_at(client, REQUEST, 2)
    evaluations = stage.evaluations
    response = await ask(client, spoil(state), accept=accept)
    assert (response.status_code, response.headers["Content-Type"]) == (status, "application/json")
    assert sentence in response.json()["error"]
    assert stage.evaluations == evaluations
    assert (await ask(client, doctored(state), accept=accept)).status_code == 200


@pytest.mark.parametrize("accept", [MEDIA_TYPE, "*/*"])
async def test_a_state_whose_bytes_are_cut_is_unreadable(connect, accept: str) -> None:
    client = connect(app_of(FakeDiffusion()))
    body = encode_request(doctored(await state_at(client, REQUEST, 2)))
    response = await client.post(INFER, content=body.content[:-3], headers={**body.headers, "Accept": accept})
    assert response.status_code == 400
    assert "binary data" in response.json()["error"]


async def test_an_error_before_the_first_frame_keeps_its_status(connect) -> None:
    full = FakeDiffusion(failure=QueueFull("64 pictures are here", retry_after_seconds=4.2))
    response = await ask(connect(app_of(full)), diffusion.write_request(REQUEST))
    assert (response.status_code, response.headers["Retry-After"]) == (429, "5")
    assert response.json() == {"error": "64 pictures are here"}


class Failing(FakeDiffusion):
    """Fails after its second evaluation, or computes NaN there."""

    computes_nan = False

    def _evaluate(self, request: DenoiseRequest, state: DenoiseState) -> DenoiseState:
        state = super()._evaluate(request, state)
        if self.evaluations < 2:
            return state
        if self.computes_nan:
            return replace(state, latents=np.full_like(state.latents, np.nan))
        raise StageFailed("the network broke", stage="diffusion")


@pytest.mark.parametrize(
    ("computes_nan", "sentence"), [(False, "the network broke"), (True, "the diffusion stage computed NaN or infinity")]
)
async def test_an_error_on_the_way_is_the_last_frame(connect, logged, computes_nan: bool, sentence: str) -> None:
    stage = Failing()
    stage.computes_nan = computes_nan
    response = await ask(connect(app_of(stage)), diffusion.write_request(replace(REQUEST, progress_every=1)))
    *before, last = frames_of(response)
    assert before[0].kind is Kind.PROGRESS
    assert Kind.RESULT not in [frame.kind for frame in before]
    assert read_refusal(last) == Refusal(status=502, sentence=sentence)
    assert stage.ended.is_set()
    (line,) = [entry for entry in logged if entry["event"] == "request"]
    assert (line["error"], line["reason"]) == ("stage_failed", sentence)


async def test_the_deadline_holds_between_frames(connect) -> None:
    stage = FakeDiffusion(turnstile=asyncio.Semaphore(2))
    response = await ask(connect(app_of(stage)), diffusion.write_request(REQUEST), **{"X-Request-Timeout-Seconds": "0.3"})
    *before, last = frames_of(response)
    assert [frame.kind for frame in before] == [Kind.PROGRESS] * 2
    assert read_refusal(last).status == 504
    assert stage.ended.is_set()


async def test_a_denoising_keeps_its_place_to_the_end(connect) -> None:
    turnstile = asyncio.Semaphore(1)
    stage = FakeDiffusion(turnstile=turnstile)
    client = connect(app_of(stage, max_requests=1))
    first = asyncio.create_task(ask(client, diffusion.write_request(REQUEST)))
    await stage.arrivals.get()
    await until(lambda: stage.evaluations == 1)
    assert (await ask(client, diffusion.write_request(REQUEST))).status_code == 429
    for _ in range(7):
        turnstile.release()
    assert (await first).status_code == 200
    assert (await ask(client, diffusion.write_request(REQUEST))).status_code == 200

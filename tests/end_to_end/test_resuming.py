"""A denoising that is cut and goes on in another process: the same bytes as if nothing had happened."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import replace

import httpx2
import numpy as np
import pytest

from tests.end_to_end.real_services import TinyModel, running
from tests.tiny_models import CONTEXT_LENGTH, UNET
from triptych.cli.processes import Service, ServiceEnded, ServiceProcess, free_ports
from triptych.cli.topology import serve_command
from triptych.contract import Denoised, DenoiseRequest, DenoiseState, Diffusion, Progress, State
from triptych.errors import Conflict, InvalidValue, StageFailed, StageNotReady
from triptych.remote import RemoteDiffusion, make_client
from triptych.wire import diffusion
from triptych.wire.open_inference import decode_response, encode_request, read_header_length

pytestmark = pytest.mark.timeout(600)

CONTEXTS = np.random.default_rng(3).standard_normal((2, CONTEXT_LENGTH, UNET.cross_attention_dim)).astype(np.float32)
REQUEST = DenoiseRequest(
    context=CONTEXTS[:1],
    unconditional_context=CONTEXTS[1:],
    seeds=np.array([7, 2**64 - 1], np.uint64),
    width=64,
    height=32,
    sampler="ddim",
    num_steps=4,
    guidance_scale=3.0,
)
SECONDS_TO_EXIT = 10.0

LONG = replace(REQUEST, num_steps=400, sampler="euler_ancestral")
LONGEST = replace(REQUEST, num_steps=150, seeds=np.arange(16, dtype=np.uint64))


@contextmanager
def replicas(model: TinyModel, number: int, **environment: str) -> Iterator[list[ServiceProcess]]:
    """Processes of the diffusion service alone."""
    services = [
        model.served_by(
            Service(
                name="diffusion",
                port=port,
                command=serve_command("diffusion", port),
                ready_path="/v2/health/ready",
                environment=environment,
            )
        )
        for port in free_ports(number)
    ]
    with running(services) as group:
        yield list(group.processes)


@pytest.fixture(scope="module")
def two(tiny_model: TinyModel) -> Iterator[list[ServiceProcess]]:
    with replicas(tiny_model, 2) as processes:
        yield processes


@asynccontextmanager
async def remote(process: ServiceProcess) -> AsyncIterator[RemoteDiffusion]:
    async with make_client() as client:
        yield RemoteDiffusion(process.service.url, client=client)


async def result_of(stage: Diffusion, request: DenoiseRequest) -> bytes:
    *_, denoised = [event async for event in stage.denoise(request)]
    assert isinstance(denoised, Denoised)
    return denoised.latents.tobytes()


async def cut_at(stage: RemoteDiffusion, request: DenoiseRequest, position: int) -> DenoiseState:
    """The state at a position, and nobody listens any more."""
    async with aclosing(stage.denoise(replace(request, progress_every=1))) as events:
        async for event in events:
            if isinstance(event, State) and event.state.position.min() == position:
                return event.state
    raise AssertionError(f"there was no state at {position}")


async def test_every_sampler_goes_on_in_another_process(two: list[ServiceProcess]) -> None:
    async with remote(two[0]) as one, remote(two[1]) as other:
        samplers = (await one.identity()).samplers
        for sampler in samplers:
            request = replace(REQUEST, sampler=sampler)
            events = [event async for event in one.denoise(replace(request, progress_every=1))]
            states = [event.state for event in events if isinstance(event, State)]
            assert isinstance(events[-1], Denoised)
            expected = events[-1].latents.tobytes()
            assert await result_of(other, request) == expected
            assert len(states) >= REQUEST.num_steps - 1
            for state in states:
                assert await result_of(other, replace(request, resume=state)) == expected, (sampler, state.position)
            nudged = replace(states[0], latents=states[0].latents + np.float32(0.1))
            assert await result_of(other, replace(request, resume=nudged)) != expected


async def test_cut_by_closing_the_connection_and_resumed_by_a_plain_inference(two: list[ServiceProcess]) -> None:
    async with remote(two[0]) as one, remote(two[1]) as other:
        expected = await result_of(other, REQUEST)
        state = await cut_at(one, REQUEST, 2)
    body = encode_request(diffusion.write_request(replace(REQUEST, resume=state)))
    url = f"{two[1].service.url}/v2/models/diffusion/infer"
    response = httpx2.post(url, content=body.content, headers=body.headers, timeout=100)
    latents = decode_response(response.content, read_header_length(response.headers)).outputs["latents"]
    assert latents.tobytes() == expected


async def test_a_state_of_another_plan_is_a_conflict(two: list[ServiceProcess]) -> None:
    async with remote(two[0]) as one, remote(two[1]) as other:
        state = await cut_at(one, REQUEST, 2)
        for change in ({"num_steps": 5}, {"sampler": "euler"}, {"guidance_scale": 2.0}):
            with pytest.raises(Conflict, match="the state belongs to other weights, another plan or other parameters"):
                await result_of(other, replace(REQUEST, **change, resume=state))  # type: ignore[arg-type]


async def test_kill_9_in_the_middle_costs_no_picture(two: list[ServiceProcess], tiny_model: TinyModel) -> None:
    with replicas(tiny_model, 1) as (process,):
        states: list[DenoiseState] = []

        async def listen(stage: Diffusion) -> None:
            async for event in stage.denoise(replace(LONG, progress_every=10)):
                if isinstance(event, State):
                    if not states:
                        os.kill(process.pid, signal.SIGKILL)
                    states.append(event.state)

        async with remote(process) as stage:
            with pytest.raises(StageFailed, match="broke off"):
                await listen(stage)
    async with remote(two[0]) as other:
        assert await result_of(other, replace(LONG, resume=states[-1])) == await result_of(other, LONG)


async def handed_back(process: ServiceProcess, request: DenoiseRequest, *, after: int) -> DenoiseState:
    """The state that a stage gives away when it is told to stop after so many evaluations, and ends."""
    states: list[DenoiseState] = []

    async def listen(stage: Diffusion) -> None:
        async for event in stage.denoise(request):
            if isinstance(event, Progress) and event.position == after:
                os.kill(process.pid, signal.SIGTERM)
            if isinstance(event, State):
                states.append(event.state)

    async with remote(process) as stage:
        with pytest.raises(StageNotReady, match="the diffusion stage is stopping"):
            await listen(stage)
    process.wait(SECONDS_TO_EXIT)
    with pytest.raises(ServiceEnded):
        process.check_running()
    (state,) = states
    return state


async def test_sigterm_hands_a_denoising_back_and_another_replica_goes_on(
    two: list[ServiceProcess], tiny_model: TinyModel
) -> None:
    with replicas(tiny_model, 1) as (process,):
        state = await handed_back(process, LONGEST, after=1)
    assert 1 <= state.position[0] < 150
    async with remote(two[0]) as other:
        assert await result_of(other, replace(LONGEST, resume=state)) == await result_of(other, LONGEST)


@pytest.mark.parametrize("after", [6, 74])
async def test_one_that_reuses_features_is_handed_back_where_the_whole_network_comes_next(
    tiny_model: TinyModel, after: int
) -> None:
    request = replace(LONGEST, cache_interval=4, guidance_start=0.5)
    first_guided = 75
    with replicas(tiny_model, 2, TRIPTYCH_FEATURE_REUSE="true") as (process, other):
        state = await handed_back(process, request, after=after)
        assert set(state.position.tolist()) <= {*range(4, 150, 4), first_guided}
        async with remote(other) as stage:
            assert (await stage.identity()).takes_cache_interval
            assert await result_of(stage, replace(request, resume=state)) == await result_of(stage, request)
            between = replace(state, position=np.full_like(state.position, first_guided - 1))
            with pytest.raises(InvalidValue, match="position must be one that the whole network comes next at"):
                await result_of(stage, replace(request, resume=between))


async def test_sigterm_lets_a_denoising_come_to_its_end_that_nobody_else_can_finish(tiny_model: TinyModel) -> None:
    with replicas(tiny_model, 1) as (process,):
        positions: list[int] = []
        async with remote(process) as stage:
            async for event in stage.denoise(replace(LONGEST, finish_here=True)):
                if isinstance(event, Progress):
                    if not positions:
                        os.kill(process.pid, signal.SIGTERM)
                    positions.append(event.position)
        assert isinstance(event, Denoised)
        assert positions == list(range(1, 151))
        process.wait(30)

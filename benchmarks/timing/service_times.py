"""How long each stage works on a call, by the size of the picture and the rows of the call: what the advisor reckons with.

The stages are services, asked one request at a time. What counts is what a stage itself says that the request was with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from pathlib import Path

import httpx2
import numpy as np

from benchmarks.timing.asking import PROMPT, MeasurementError, work_of, worked_since
from triptych.contract import (
    DecodeRequest,
    DenoiseRequest,
    DiffusionIdentity,
    EncodeRequest,
    ImageFormat,
    StageName,
)
from triptych.remote import RemoteDecoder, RemoteDiffusion, RemoteTextEncoder, make_client

ROWS_PER_PICTURE: Mapping[StageName, int] = {StageName.TEXT_ENCODER: 2, StageName.DIFFUSION: 2, StageName.DECODER: 1}
"""Under guidance: a prompt and a negative prompt, and the U-Net once for each."""

FEW_STEPS, MORE_STEPS = 2, 6
_GUIDANCE_SCALE = 7.5


async def seconds_of_calls(
    addresses: Mapping[StageName, str], stage: StageName, *, size: tuple[int, int], pictures: int, rounds: int
) -> list[float]:
    """Seconds of a call with so many pictures, once a round; of diffusion, of one evaluation.

    The latter is the difference of a denoising with more and one with few steps, over the steps between: what a denoising costs
    besides its evaluations falls out. One call comes before, uncounted.

    Raises:
        MeasurementError: The stage does not tell, or somebody else asks it too.
    """
    async with make_client() as client:
        call = _call(addresses, stage, size, pictures, client)
        durations = []
        for _ in range(rounds + 1):
            few = await _timed(client, stage, addresses[stage], call(FEW_STEPS))
            if stage is StageName.DIFFUSION:
                more = await _timed(client, stage, addresses[stage], call(MORE_STEPS))
                # Of a network that takes next to no time, noise may leave less than nothing.
                durations.append(max(0.0, more - few) / (MORE_STEPS - FEW_STEPS))
            else:
                durations.append(few)
        return durations[1:]


def peak_memory_bytes(pid: int) -> int:
    """The most that was resident of a process at any time."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


async def _timed(client: httpx2.AsyncClient, stage: StageName, address: str, call: Awaitable[None]) -> float:
    before = await work_of(client, address)
    if before is None:
        raise MeasurementError(f"the {stage} stage does not tell how long it works: it has no metrics of ours")
    await call
    return await worked_since(client, stage, address, before)


def _call(
    addresses: Mapping[StageName, str], stage: StageName, size: tuple[int, int], pictures: int, client: httpx2.AsyncClient
) -> Callable[[int], Awaitable[None]]:
    """A function from the number of steps to one call of the stage."""
    match stage:
        case StageName.TEXT_ENCODER:
            return lambda _: _encode(RemoteTextEncoder(addresses[stage], client=client), pictures)
        case StageName.DIFFUSION:
            remote = RemoteDiffusion(addresses[stage], client=client)
            return lambda num_steps: _denoise(remote, size, pictures, num_steps)
        case StageName.DECODER:
            noise = RemoteDiffusion(addresses[StageName.DIFFUSION], client=client)
            return lambda _: _decode(RemoteDecoder(addresses[stage], client=client), noise, size, pictures)


async def _encode(remote: RemoteTextEncoder, pictures: int) -> None:
    await remote.encode(EncodeRequest(prompts=(PROMPT, "") * pictures))


async def _denoise(remote: RemoteDiffusion, size: tuple[int, int], pictures: int, num_steps: int) -> None:
    identity = await remote.identity()
    contexts = np.random.default_rng(0).standard_normal((2, identity.context_length, identity.context_width), np.float32)
    request = DenoiseRequest(
        context=contexts[:1],
        unconditional_context=contexts[1:],
        seeds=np.arange(pictures, dtype=np.uint64),
        width=size[0],
        height=size[1],
        sampler=identity.samplers[0],
        num_steps=num_steps,
        guidance_scale=_GUIDANCE_SCALE,
    )
    async with aclosing(remote.denoise(request)) as events:
        async for _ in events:
            pass


async def _decode(remote: RemoteDecoder, noise: RemoteDiffusion, size: tuple[int, int], pictures: int) -> None:
    identity: DiffusionIdentity = await noise.identity()
    shape = (pictures, *identity.latents_shape(*size))
    latents = np.random.default_rng(0).standard_normal(shape, np.float32)
    await remote.decode(DecodeRequest(latents=latents, image_format=ImageFormat.PNG))


def measure_calls(
    addresses: Mapping[StageName, str], stage: StageName, *, size: tuple[int, int], pictures: int, rounds: int
) -> list[float]:
    """See `seconds_of_calls`."""
    return asyncio.run(seconds_of_calls(addresses, stage, size=size, pictures=pictures, rounds=rounds))

"""Remote stages against real stage apps, in this process: what a local stage gives, a remote one gives, to the byte."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx2
import numpy as np
import pytest

from tests.fakes import FakeDecoder, FakeDiffusion, FakeImageEncoder, FakeTextEncoder
from triptych.contract import (
    Decoder,
    DecodeRequest,
    Denoised,
    DenoiseRequest,
    Diffusion,
    EncodeImagesRequest,
    EncodeRequest,
    ImageEncoder,
    ImageFormat,
    TextEncoder,
)
from triptych.errors import InvalidValue, QueueFull, StageNotReady
from triptych.remote import RemoteDecoder, RemoteDiffusion, RemoteImageEncoder, RemoteTextEncoder, make_client
from triptych.serving.settings import StageSettings
from triptych.serving.stage_app import stage_app

LATENTS = np.linspace(-1, 1, 2 * 8 * 12 * 4, dtype=np.float32).reshape(2, 8, 12, 4)


@asynccontextmanager
async def client_of(stage: FakeTextEncoder | FakeDiffusion | FakeDecoder | FakeImageEncoder) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app=stage_app(stage, StageSettings()))
    async with make_client(transport=transport) as client:
        yield client


async def test_the_text_encoder() -> None:
    local = FakeTextEncoder()
    request = EncodeRequest(prompts=("ein Bär", "word " * 99, ""), truncate=True)
    async with client_of(local) as client:
        remote: TextEncoder = RemoteTextEncoder("http://stage", client=client)
        assert await remote.identity() == await local.identity()
        there, here = await remote.encode(request), await local.encode(request)
    assert there.context.tobytes() == here.context.tobytes()
    assert there.warnings == here.warnings == ("the prompt was cut from 99 to 77 tokens",)
    assert local.asked == [request, request]


@pytest.mark.parametrize("seeds", [None, np.array([1, 2], np.uint64)])
async def test_the_image_encoder(seeds: np.ndarray | None) -> None:
    local = FakeImageEncoder()
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), np.uint8)
    request = EncodeImagesRequest(images=images, seeds=seeds)
    async with client_of(local) as client:
        remote: ImageEncoder = RemoteImageEncoder("http://stage", client=client)
        assert await remote.identity() == await local.identity()
        there, here = await remote.encode_images(request), await local.encode_images(request)
    assert there.latents.tobytes() == here.latents.tobytes()


async def last(stage: Diffusion, request: DenoiseRequest) -> np.ndarray:
    *_, denoised = [event async for event in stage.denoise(request)]
    assert isinstance(denoised, Denoised)
    return denoised.latents


@pytest.mark.parametrize("guided", [True, False])
async def test_diffusion(guided: bool) -> None:
    local = FakeDiffusion()
    context = np.linspace(0, 1, 2 * 77 * 768, dtype=np.float32).reshape(2, 77, 768)
    request = DenoiseRequest(
        context=context,
        unconditional_context=context[:1] if guided else None,
        seeds=np.array([7, 2**64 - 1], np.uint64),
        width=96,
        height=64,
        sampler="euler",
        num_steps=3,
        guidance_scale=7.5 if guided else 1.0,
    )
    async with client_of(local) as client:
        remote: Diffusion = RemoteDiffusion("http://stage", client=client)
        assert await remote.identity() == await local.identity()
        assert (await last(remote, request)).tobytes() == (await last(local, request)).tobytes()
        # The comparison can fail: another seed gives other bytes.
        other = replace(request, seeds=np.array([8, 9], np.uint64))
        assert (await last(remote, other)).tobytes() != (await last(local, request)).tobytes()


@pytest.mark.parametrize(
    "request_",
    [
        DecodeRequest(latents=LATENTS),
        DecodeRequest(latents=LATENTS, image_format=ImageFormat.JPEG),
        DecodeRequest(latents=LATENTS, image_format=ImageFormat.PNG, image_texts=("eins", "zwei")),
    ],
)
async def test_the_decoder(request_: DecodeRequest) -> None:
    local = FakeDecoder()
    async with client_of(local) as client:
        remote: Decoder = RemoteDecoder("http://stage", client=client)
        assert await remote.identity() == await local.identity()
        there, here = (await remote.decode(request_)).images, (await local.decode(request_)).images
    if isinstance(here, tuple):
        assert there == here
    else:
        assert isinstance(there, np.ndarray)
        assert (there.shape, there.tobytes()) == (here.shape, here.tobytes())


async def test_a_stages_own_words_arrive() -> None:
    async with client_of(FakeTextEncoder()) as client:
        remote = RemoteTextEncoder("http://stage", client=client)
        with pytest.raises(InvalidValue, match=r"^the prompt has 99 tokens, the model takes 77; truncate=true cuts it$"):
            await remote.encode(EncodeRequest(prompts=("word " * 99,)))


async def test_a_full_queue_says_when_to_come_back() -> None:
    full = FakeDecoder(failure=QueueFull("64 jobs are waiting", retry_after_seconds=2.3))
    async with client_of(full) as client:
        with pytest.raises(QueueFull, match="64 jobs are waiting") as refused:
            await RemoteDecoder("http://stage", client=client).decode(DecodeRequest(latents=LATENTS))
    assert refused.value.retry_after_seconds == 3.0


async def test_a_stage_that_is_starting_has_no_identity() -> None:
    stage = FakeDecoder(started=False)
    async with client_of(stage) as client:
        remote = RemoteDecoder("http://stage", client=client)
        with pytest.raises(StageNotReady, match="the decoder stage at http://stage answered 503: the decoder stage is still"):
            await remote.identity()
        stage.start()
        assert (await remote.identity()).latent_space == "sd-1"


async def test_what_a_diffusion_stage_has_before_it_is_reported_and_is_no_part_of_who_it_is() -> None:
    class Busy(FakeDiffusion):
        evaluations_outstanding = 12

    for local, reported in ((Busy(), 12), (FakeDiffusion(), None)):
        async with client_of(local) as client:
            remote = RemoteDiffusion("http://stage", client=client)
            assert remote.evaluations_reported is None
            assert await remote.identity() == await local.identity()
            assert remote.evaluations_reported == reported

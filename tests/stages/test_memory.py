"""Pictures are let in by the memory that they will take, as it was counted when the stage started."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tests.stages.test_decoder import some_latents
from tests.stages.test_diffusion import some_request
from tests.stages.test_preview_decoder import write_tiny_vae
from tests.tiny_models import SIZES
from triptych.checkpoints.registry import find_model
from triptych.checkpoints.tiny_vae_folder import TinyVAEFolder
from triptych.contract import MOST_PICTURES, Decoded, DecodeRequest, EncodeImagesRequest, ImageFormat, Memory
from triptych.engines import CompiledNetwork, RowSpec
from triptych.engines.memory import PassingMemory
from triptych.errors import QueueFull, StartError, TooLarge
from triptych.gateway.body import GenerateBody
from triptych.stages import memory
from triptych.stages.decoder import DecoderStage
from triptych.stages.diffusion import DiffusionStage, plan_of, rows_of
from triptych.stages.evaluation import Row
from triptych.stages.image_encoder import ImageEncoderStage
from triptych.stages.memory import Room, plan_memory
from triptych.stages.networks import NetworkLoader

SMALL, LARGE = (32, 32), (64, 32)
PICTURES = {SMALL: 10, LARGE: 20}


@pytest.fixture
def room() -> Room:
    return Room("diffusion", Memory(most_bytes=50, picture_bytes=PICTURES, call_bytes=7))


class TestRoom:
    def test_what_does_not_fit_now_is_to_come_back(self, room) -> None:
        refused = pytest.raises(
            QueueFull,
            match=r"the memory of the diffusion stage is taken: 40 of 50 bytes are, and 1 picture of 64x32 would take 20; come",
        )
        with room.take(2, LARGE, retry_after=float), refused as error, room.take(1, LARGE, retry_after=lambda: 3.5):
            pytest.fail("took more than there is")
        assert error.value.retry_after_seconds == 3.5

    def test_what_fits_is_let_in(self, room) -> None:
        with room.take(2, LARGE, retry_after=float), room.take(1, SMALL, retry_after=float):
            assert room.held_bytes == 50

    def test_what_would_never_fit_is_too_large(self, room) -> None:
        refused = pytest.raises(
            TooLarge,
            match="3 pictures of 64x32 would take 60 bytes of memory at the diffusion stage, which has 50 for all; ask for",
        )
        with refused, room.take(3, LARGE, retry_after=float):
            pytest.fail("took more than there is")

    def test_room_is_given_back_whatever_happens(self, room) -> None:
        with pytest.raises(KeyError), room.take(5, SMALL, retry_after=float):
            raise KeyError
        assert room.held_bytes == 0


class TestPlan:
    def test_a_budget_is_for_a_call_and_pictures(self) -> None:
        planned = plan_memory("decoder", PICTURES, call_bytes=7, budget=57)
        assert planned == Memory(most_bytes=50, picture_bytes=PICTURES, call_bytes=7)

    def test_one_that_has_no_room_for_a_picture_fails_the_start(self) -> None:
        assert plan_memory("decoder", PICTURES, call_bytes=7, budget=17).most_bytes == 10
        with pytest.raises(
            StartError,
            match=r"MEMORY_BYTES: one picture of 32x32 takes 17 bytes at the decoder stage, 7 of them for the network; 16 ",
        ):
            plan_memory("decoder", PICTURES, call_bytes=7, budget=16)

    def test_by_default_it_is_a_quarter_of_what_is_left(self, monkeypatch) -> None:
        monkeypatch.setattr(memory, "bytes_left", lambda: 4000)
        assert plan_memory("decoder", PICTURES, call_bytes=100, budget=None).most_bytes == 900

    def test_by_default_there_is_room_for_whatever_a_gateway_may_ask_for(self, monkeypatch) -> None:
        monkeypatch.setattr(memory, "bytes_left", lambda: 0)
        room = Room("decoder", plan_memory("decoder", PICTURES, call_bytes=100, budget=None))
        assert GenerateBody(prompt="x", num_images=MOST_PICTURES).num_images == MOST_PICTURES
        with pytest.raises(ValidationError):
            GenerateBody(prompt="x", num_images=MOST_PICTURES + 1)
        with room.take(MOST_PICTURES, LARGE, retry_after=float):
            assert room.held_bytes == MOST_PICTURES * PICTURES[LARGE]


@pytest.fixture(scope="module")
def diffusion(options) -> Iterator[DiffusionStage]:
    stage = DiffusionStage(options)
    stage.start()
    yield stage
    stage.close()


@pytest.fixture(scope="module")
def decoder(options) -> Iterator[DecoderStage]:
    stage = DecoderStage(options)
    stage.start()
    yield stage
    stage.close()


def with_room(stage: Any, monkeypatch: pytest.MonkeyPatch, *, pictures: int, size: tuple[int, int] = SMALL) -> Room:
    """Gives a stage room for so many pictures."""
    assert stage.memory is not None
    room = Room(stage.name, replace(stage.memory, most_bytes=pictures * stage.memory.picture_bytes[size]))
    monkeypatch.setattr(stage, "_room", room)
    return room


def arrays_of(row: Row) -> list[np.ndarray]:
    known = [] if row.known is None else [row.known.original, row.known.mask]
    rest = [row.context, row.unconditional_context, row.extra_channels, row.predicted_original, row.latents, row.sampler_state]
    return [array for array in (*rest, *known) if array is not None]


async def test_a_stage_counts_what_each_size_takes(diffusion, decoder) -> None:
    for stage in (diffusion, decoder):
        assert tuple(stage.memory.picture_bytes) == SIZES
        small, large = (stage.memory.picture_bytes[size] for size in (SMALL, LARGE))
        assert small < large
        assert stage.memory.most_bytes >= small
        assert 0 <= stage.memory.call_bytes < 2**30


async def test_a_row_holds_no_more_than_was_counted_for_it(diffusion) -> None:
    """With the sampler that keeps most, and all that a picture that is changed brings."""
    rng = np.random.default_rng(5)
    latents = rng.standard_normal((1, 4, 4, 4)).astype(np.float32)
    request = some_request(
        1, sampler="unipc", init_latents=latents, mask=np.ones((1, 4, 4, 1), np.float32), initial_noise=latents + 1
    )
    plan = plan_of(request.sampler, diffusion._schedule, request.num_steps, 1, 1)
    (row,) = rows_of(request, plan, await diffusion.identity())
    held = sum(array.nbytes for array in arrays_of(row))
    assert held < diffusion.memory.picture_bytes[SMALL]
    state = row.latents.nbytes * (2 + plan.state_arrays)
    # Most of it are states that wait for their reader.
    assert 16 * state < diffusion.memory.picture_bytes[SMALL] < held + 25 * state


async def test_features_that_are_reused_are_counted(options, diffusion) -> None:
    stage = DiffusionStage(replace(options, feature_reuse=True))
    stage.start()
    try:
        assert stage.memory is not None and diffusion.memory is not None
        features = 4 * 4 * 4 * find_model(options.model).unet.num_features
        assert stage.memory.picture_bytes[SMALL] == diffusion.memory.picture_bytes[SMALL] + 2 * features
    finally:
        stage.close()


async def test_a_denoising_waits_outside_where_memory_is_taken(diffusion, monkeypatch) -> None:
    room = with_room(diffusion, monkeypatch, pictures=2)
    async with aclosing(diffusion.denoise(some_request(1, num_steps=100))) as events:
        await anext(events)
        assert room.held_bytes == diffusion.memory.picture_bytes[SMALL]
        with pytest.raises(QueueFull, match=r"the memory of the diffusion stage is taken: .* 2 pictures of 32x32 would take"):
            await anext(diffusion.denoise(some_request(2, 3)))
        async with aclosing(diffusion.denoise(some_request(4))) as others:
            await anext(others)
    assert room.held_bytes == 0
    assert len([event async for event in diffusion.denoise(some_request(2, 3))]) == 4


async def test_a_denoising_that_never_fits_is_too_large(diffusion, monkeypatch) -> None:
    with_room(diffusion, monkeypatch, pictures=2)
    with pytest.raises(TooLarge, match="3 pictures of 32x32 would take"):
        await anext(diffusion.denoise(some_request(1, 2, 3)))


async def test_a_decoder_holds_room_until_the_files_are_made(decoder, monkeypatch) -> None:
    room = with_room(decoder, monkeypatch, pictures=3)
    requests = [DecodeRequest(latents=some_latents(rows), image_format=ImageFormat.PNG) for rows in (2, 2, 1)]
    results: list[Any] = await asyncio.gather(*map(decoder.decode, requests), return_exceptions=True)
    assert [type(result) for result in results] == [Decoded, QueueFull, Decoded]
    assert "2 pictures of 32x32 would take" in results[1].message
    assert (len(results[0].images), len(results[2].images), room.held_bytes) == (2, 1, 0)
    with pytest.raises(TooLarge):
        await decoder.decode(DecodeRequest(latents=some_latents(4)))


async def test_a_decoding_takes_no_more_than_was_counted_for_it(decoder) -> None:
    rows, size = 64, LARGE
    original = np.zeros((rows, 32, 64, 3), np.uint8)
    mask, latents = original[..., 0], some_latents(rows, 4, 8)
    request = DecodeRequest(latents=latents, image_format=ImageFormat.PNG, original=original, paste_mask=mask)
    await decoder.decode(request)
    tracemalloc.start()
    try:
        await decoder.decode(request)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    counted = rows * decoder.memory.picture_bytes[size]
    brought = original.nbytes + mask.nbytes + latents.nbytes
    assert counted / 4 < peak + brought < counted


async def test_an_image_encoder_counts_too(options, monkeypatch) -> None:
    stage = ImageEncoderStage(options)
    stage.start()
    try:
        room = with_room(stage, monkeypatch, pictures=1)
        pixels = np.zeros((2, 32, 32, 3), np.uint8)
        await stage.encode_images(EncodeImagesRequest(images=pixels[:1]))
        assert room.held_bytes == 0
        with pytest.raises(TooLarge, match="2 pictures of 32x32 would take"):
            await stage.encode_images(EncodeImagesRequest(images=pixels))
    finally:
        stage.close()


@pytest.mark.parametrize(("kind", "shape"), [(DecoderStage, (16, 20, 4)), (ImageEncoderStage, (128, 160, 3))])
def test_a_picture_in_tiles_takes_no_more_than_was_counted_for_a_call(kind, shape, options, monkeypatch) -> None:
    monkeypatch.setattr(PassingMemory, "__exit__", lambda self, *exception: self._done.set())  # what networks take counts as none
    stage = kind(replace(options, sizes=((160, 128),), tile_side=96))
    stage.start()
    try:
        assert stage.memory is not None
        (tiled,) = (finite._network for finite in stage._finite_networks)
        assert stage.memory.call_bytes == tiled.call_bytes
        whole = np.random.default_rng(1).standard_normal((1, *shape)).astype(np.float32)
        tracemalloc.start()
        try:
            tiled({kind.input: whole})
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert tiled.call_bytes / 2 < peak < tiled.call_bytes
    finally:
        stage.close()


def test_the_call_of_a_preview_decoder_is_counted(options, tmp_path) -> None:
    """And with it all that came before the room was counted, its weights too."""

    class Loader(NetworkLoader):
        def load_tiny_decoder(self, files: TinyVAEFolder, latents: RowSpec) -> CompiledNetwork:
            compiled = super().load_tiny_decoder(files, latents)
            self.count_call(2**40)
            return compiled

    options = replace(options, preview_decoder=write_tiny_vae(tmp_path))
    stage = DecoderStage(options)
    stage.start(Loader(options, stage.name))
    try:
        assert stage.memory is not None
        assert stage.memory.call_bytes == 2**40
    finally:
        stage.close()


def test_a_budget_that_is_too_small_fails_the_start(options) -> None:
    stage = DiffusionStage(replace(options, memory_bytes=1000))
    with pytest.raises(StartError, match="TRIPTYCH_MEMORY_BYTES: one picture of 32x32 takes"):
        stage.start()
    stage.close()
